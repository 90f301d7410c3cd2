//! Traces real processes, as root, and compares what is reported with what they say that they did. The
//! workloads come from `cargo xtask workloads`. `ZMQTRACE_NO_EXTERNAL=1` leaves out those that need PyPI or
//! npm.

#![allow(missing_docs)]

mod calls;
mod documents;
mod images;
mod kernels;
mod latency;
mod life;
mod links;
mod live;
mod nesting;
mod net;
mod python;
mod refusals;
mod replay;
mod sockets;
mod stages;
mod stat;
mod support;
mod truth;
mod wire;
