//! The table of connections, from what went over them alone.

use std::io::{self, Write};

use super::{
    Report, Sink,
    table::{self, Line, Shape},
};
use crate::{
    analysis::{
        narrow::Narrow,
        wire::{Connection, Counts, Rows, Wires},
    },
    event::Event,
    world::World,
};

/// The report of `sockets --wire-only`.
#[derive(Debug)]
pub struct WireTable {
    wires: Wires,
    intervals: bool,
}

impl WireTable {
    /// Shows what `narrow` leaves; with `intervals`, a table at each tick.
    pub fn new(narrow: Narrow, intervals: bool) -> Self {
        Self { wires: Wires::new(narrow), intervals }
    }
}

impl Report for WireTable {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.wires.event(event);
        match event {
            Event::Tick(tick) if self.intervals => {
                let at_s = tick.ts_ns.saturating_sub(world.start_ns()) as f64 / 1e9;
                writeln!(out, "--- at {at_s:.1} s")?;
                write_table(out, world, &self.wires.interval(tick.ts_ns))?;
                out.flush()
            }
            Event::End(end) => {
                if self.intervals {
                    writeln!(out, "--- total")?;
                }
                let rows = self.wires.total(world.start_ns(), end.ts_ns);
                write_table(out, world, &rows)?;
                write_summary(out, &rows)
            }
            _ => Ok(()),
        }
    }
}

const HEADINGS: [&str; 12] = [
    "connection",
    "types",
    "sent",
    "frames",
    "bytes",
    "received",
    "frames",
    "bytes",
    "msg/s",
    "Mbit/s",
    "sent size",
    "synchronised",
];

/// A row for each connection.
pub fn write_table(out: &mut Sink, world: &World, rows: &Rows) -> io::Result<()> {
    if rows.connections.is_empty() {
        return writeln!(out, "no ZeroMQ connections");
    }
    const SHAPE: Shape = Shape { right: &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11], dropped: &[10], cut: &[0] };
    let several = rows.connections.iter().any(|end| end.pid != rows.connections[0].pid);
    let mut lines = vec![Line::Row(HEADINGS.map(String::from))];
    lines.extend(rows.connections.iter().map(|end| Line::Row(cells(world, rows, end, several))));
    table::write(lines, &SHAPE, out)
}

/// What the table does not say.
pub fn write_summary(out: &mut Sink, rows: &Rows) -> io::Result<()> {
    let seconds = rows.duration_ns as f64 / 1e9;
    let connections = rows.connections.len();
    write!(out, "{connections} ZeroMQ connection{} in {seconds:.1} s", if connections == 1 { "" } else { "s" })?;
    if rows.others > 0 {
        write!(out, ", {} other connection{}", rows.others, if rows.others == 1 { "" } else { "s" })?;
    }
    if rows.evicted > 0 {
        write!(out, ", and {} that are NOT in the table: there were too many", rows.evicted)?;
    }
    let unknown: u64 =
        rows.connections.iter().map(Connection::both).map(|both| both.bytes - both.synchronised_bytes).sum();
    if unknown > 0 {
        let bytes: u64 = rows.connections.iter().map(|end| end.both().bytes).sum();
        let share = unknown as f64 * 100.0 / bytes as f64;
        write!(out, "; not synchronised, so that frames in them are not counted: {unknown} bytes, {share:.1} %")?;
    }
    writeln!(out)
}

fn cells(world: &World, rows: &Rows, end: &Connection, several: bool) -> [String; 12] {
    let known = |counts: &Counts, text: String| if counts.is_known() { text } else { "?".into() };
    let (sent, received, both) = (&end.sent.counts, &end.received.counts, end.both());
    let sizes = end.sent.sizes;
    [
        connection_name(world, end, several),
        types(end),
        known(sent, sent.messages.to_string()),
        known(sent, sent.frames.to_string()),
        sent.bytes.to_string(),
        known(received, received.messages.to_string()),
        known(received, received.frames.to_string()),
        received.bytes.to_string(),
        known(&both, format!("{:.0}", rows.per_second(both.messages))),
        format!("{:.2}", rows.per_second(both.bytes * 8) / 1e6),
        // One number where all are alike.
        match sizes.mean() {
            Some(_) if sizes.min == sizes.max => sizes.min.to_string(),
            Some(mean) => format!("{}/{mean:.0}/{}", sizes.min, sizes.max),
            None => String::new(),
        },
        both.synchronised().map(percent).unwrap_or_default(),
    ]
}

/// Whole only when it is.
fn percent(share: f64) -> String {
    if share >= 1.0 { "100 %".into() } else { format!("{:.1} %", (share * 1000.0).floor() / 10.0) }
}

/// Both addresses; unix sockets that have none by their inode.
fn connection_name(world: &World, end: &Connection, several: bool) -> String {
    let process = if several { format!("{}[{}] ", world.process_name(end.pid), end.pid) } else { String::new() };
    match (&end.local, &end.remote) {
        (None, None) => format!("{process}fd {} (inode {})", end.fd, end.inode),
        (local, remote) => {
            let address = |address: &Option<String>| address.clone().unwrap_or_else(|| "?".into());
            format!("{process}{}->{}", address(local), address(remote))
        }
    }
}

/// `PUSH->PULL`, as far as it is known.
fn types(end: &Connection) -> String {
    match &end.types {
        [None, None] => "?".into(),
        types => types.each_ref().map(|of| of.as_deref().unwrap_or("?")).join("->"),
    }
}
