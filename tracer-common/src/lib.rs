//! What both sides of the kernel boundary must agree on: the raw records, the one table of libzmq's
//! functions, and the limits. `no_std`, no dependency, plain data only.

#![no_std]

pub mod fds;
pub mod function;
pub mod limits;
pub mod record;
pub mod wire;
pub mod zmtp;
