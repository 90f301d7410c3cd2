//! JSON lines of connections, from what went over them alone.

use std::io;

use serde::Serialize;

use super::{
    Report, Sink,
    json::{Closing, write},
};
use crate::{
    analysis::{
        narrow::Narrow,
        wire::{Connection, Counts, Moved, Rows, Wires},
    },
    event::Event,
    world::World,
};

/// Every line names its type first.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Object<'a> {
    Wire(Box<WireObject<'a>>),
    WireOther(OtherObject),
}

#[derive(Serialize)]
struct WireObject<'a> {
    ts_ns: u64,
    pid: u32,
    fd: i32,
    inode: u64,
    local: Option<&'a str>,
    remote: Option<&'a str>,
    types: Types<'a>,
    /// `3.1`.
    zmtp: Option<String>,
    mechanism: Option<&'a str>,
    closed: bool,
    /// Both ways, as all up to `synchronised`.
    messages: Option<u64>,
    frames: Option<u64>,
    bytes: u64,
    messages_per_s: Option<f64>,
    mbit_per_s: f64,
    /// Whether frames could be counted in all the bytes.
    synchronised: Option<bool>,
    /// In which share of them.
    synchronised_share: Option<f64>,
    sent: Way,
    received: Way,
    interval_ns: u64,
    interval: bool,
}

#[derive(Serialize)]
struct Types<'a> {
    local: Option<&'a str>,
    remote: Option<&'a str>,
}

/// One direction.
#[derive(Serialize)]
struct Way {
    calls: u64,
    bytes: u64,
    synchronised_bytes: u64,
    frames: Option<u64>,
    messages: Option<u64>,
    commands: Option<u64>,
    messages_per_s: Option<f64>,
    mbit_per_s: f64,
    /// On the wire, headers included, since the start; of what was sent.
    message_bytes: Option<Sizes>,
    first_ns: Option<u64>,
    last_ns: Option<u64>,
}

#[derive(Serialize)]
struct Sizes {
    count: u64,
    min: u64,
    mean: f64,
    max: u64,
}

/// Connections that are not listed.
#[derive(Serialize)]
struct OtherObject {
    ts_ns: u64,
    /// That do not speak ZMTP.
    connections: u64,
    /// That were forgotten.
    evicted: u64,
}

/// `sockets --wire-only --json`.
#[derive(Debug)]
pub struct JsonWire {
    wires: Wires,
    intervals: bool,
    closing: Closing,
}

impl JsonWire {
    /// Shows what `narrow` leaves; with `intervals`, lines at each tick.
    pub fn new(narrow: Narrow, intervals: bool) -> Self {
        Self { wires: Wires::new(narrow), intervals, closing: Closing::default() }
    }
}

impl Report for JsonWire {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.wires.event(event);
        self.closing.event(event);
        match event {
            Event::Tick(tick) if self.intervals => {
                write_rows(out, &self.wires.interval(tick.ts_ns), tick.ts_ns, true)?;
                io::Write::flush(out)
            }
            Event::End(end) => {
                let rows = self.wires.total(world.start_ns(), end.ts_ns);
                write_rows(out, &rows, end.ts_ns, false)?;
                self.closing.events = rows.connections.len() as u64;
                self.closing.write(out, rows.duration_ns, end.reason)
            }
            _ => Ok(()),
        }
    }
}

/// A line for each connection and, at the end, one for those that are not listed.
pub fn write_rows(out: &mut Sink, rows: &Rows, ts_ns: u64, interval: bool) -> io::Result<()> {
    for end in &rows.connections {
        write(out, &Object::Wire(Box::new(object(rows, end, ts_ns, interval))))?;
    }
    if interval {
        return Ok(());
    }
    write(out, &Object::WireOther(OtherObject { ts_ns, connections: rows.others, evicted: rows.evicted }))
}

fn object<'a>(rows: &Rows, end: &'a Connection, ts_ns: u64, interval: bool) -> WireObject<'a> {
    let both = end.both();
    WireObject {
        ts_ns,
        pid: end.pid,
        fd: end.fd,
        inode: end.inode,
        local: end.local.as_deref(),
        remote: end.remote.as_deref(),
        types: Types { local: end.types[0].as_deref(), remote: end.types[1].as_deref() },
        zmtp: end.version().map(|(major, minor)| format!("{major}.{minor}")),
        mechanism: end.mechanism.as_deref(),
        closed: end.is_closed,
        messages: known(&both, both.messages),
        frames: known(&both, both.frames),
        bytes: both.bytes,
        messages_per_s: known(&both, both.messages).map(|messages| rows.per_second(messages)),
        mbit_per_s: rows.per_second(both.bytes * 8) / 1e6,
        synchronised: both.synchronised().map(|_| both.synchronised_bytes == both.bytes),
        synchronised_share: both.synchronised(),
        sent: way(rows, &end.sent),
        received: way(rows, &end.received),
        interval_ns: rows.duration_ns,
        interval,
    }
}

fn way(rows: &Rows, moved: &Moved) -> Way {
    let (counts, sizes) = (&moved.counts, &moved.sizes);
    Way {
        calls: counts.calls,
        bytes: counts.bytes,
        synchronised_bytes: counts.synchronised_bytes,
        frames: known(counts, counts.frames),
        messages: known(counts, counts.messages),
        commands: known(counts, counts.commands),
        messages_per_s: known(counts, counts.messages).map(|messages| rows.per_second(messages)),
        mbit_per_s: rows.per_second(counts.bytes * 8) / 1e6,
        message_bytes: sizes.mean().map(|mean| Sizes { count: sizes.count, min: sizes.min, mean, max: sizes.max }),
        first_ns: moved.first_ns,
        last_ns: moved.last_ns,
    }
}

fn known(counts: &Counts, count: u64) -> Option<u64> {
    counts.is_known().then_some(count)
}
