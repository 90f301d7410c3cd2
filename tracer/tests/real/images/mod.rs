//! The memory of real processes, saved: all that one look at each of them touches. So everything behind the reading
//! is tested without a process, and with damage that no process would show.
//!
//! `tests/data/images` holds them, each with what must be found in it. `ZMQTRACE_UPDATE=1` writes the latter anew;
//! `ZMQTRACE_UPDATE=images cargo test -p zmqtrace --test real images::record` takes the images themselves anew, for which
//! it starts the workloads.

mod damage;
mod record;
mod replay;
mod saved;
mod votes;
