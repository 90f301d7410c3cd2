//! How reports look: strace-like text, tables, JSON lines. Reads analyses and the world, writes bytes.

mod arguments;
mod dot;
mod hexdump;
mod json;
mod json_latency;
mod json_net;
mod json_sockets;
mod json_wire;
mod latency;
mod net;
mod options;
mod sink;
mod sockets;
mod stat;
mod strace;
mod table;
mod time;
mod wire;

use std::io;

use crate::{event::Event, world::World};

pub use self::{
    dot::Dot,
    json::{JsonStat, JsonTrace},
    json_latency::JsonLatency,
    json_sockets::JsonSockets,
    json_wire::JsonWire,
    latency::{LatencyOptions, LatencyTable},
    sink::Sink,
    sockets::Sockets,
    stat::StatTable,
    strace::{Strace, StraceOptions},
    time::TimeFormat,
    wire::WireTable,
};

/// A report: shows events as they come. The world has taken an event in before the report sees it.
pub trait Report {
    /// Writes what the event makes it show.
    ///
    /// # Errors
    /// The output's.
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()>;
}
