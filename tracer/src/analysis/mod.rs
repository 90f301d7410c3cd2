//! What the events mean: each analysis reads events and the world, and knows nothing of capture or of how
//! it will be shown.

pub mod calls;
pub mod connections;
pub mod latency;
pub mod narrow;
pub mod queues;
pub mod stat;
pub mod topology;
pub mod wire;
