//! zmqtrace: strace for ZeroMQ. It attaches to a running process and shows its libzmq calls.
//!
//! From the target to the screen: `target` finds the process and its libzmq, `capture` attaches the BPF
//! programs and yields `event`s, `world` folds them into processes and sockets, `analysis` says what they
//! mean, `output` shows it, `cli` is what a person types. Imports run one way:
//! `cli -> output -> analysis -> world -> event`, and `capture, inspect -> event`.

pub mod analysis;
pub mod capture;
pub mod cli;
pub mod constants;
pub mod error;
pub mod event;
pub mod inspect;
pub mod output;
pub mod target;
pub mod world;
