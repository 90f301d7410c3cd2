//! Reads a live libzmq's own structures. Everything read is untrusted: it is taken only when the
//! structure's tag stands where the layout says.

pub mod layouts;
pub mod socket;
