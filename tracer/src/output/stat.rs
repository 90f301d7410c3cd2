//! The table of `stat`, as `strace -c` has it, by socket.

use std::io::{self, Write};

use super::{
    Report, Sink,
    table::{self, Line, Shape},
    time::duration,
    wire,
};
use crate::{
    analysis::{
        narrow::Narrow,
        queues::MovedBySocket,
        stat::{Counts, Key, Row, Stat},
        wire::Wires,
    },
    constants,
    event::{CallResult, Event, Loss},
    world::World,
};

/// The report.
#[derive(Debug)]
pub struct StatTable {
    stat: Stat,
    narrow: Narrow,
    moved: MovedBySocket,
    wires: Wires,
    intervals: bool,
    loss: Loss,
}

impl StatTable {
    /// Shows what `narrow` leaves; with `intervals`, a table at each tick.
    pub fn new(narrow: Narrow, intervals: bool) -> Self {
        let (stat, wires) = (Stat::new(narrow.clone()), Wires::new(narrow.clone()));
        Self { stat, narrow, moved: MovedBySocket::default(), wires, intervals, loss: Loss::default() }
    }
}

impl StatTable {
    /// Whether calls could be seen at all.
    fn shows_calls(&self, counts: &Counts) -> bool {
        !self.wires.is_all_there_is() || !counts.rows.is_empty()
    }

    fn write_calls(&self, out: &mut Sink, world: &World, counts: &Counts) -> io::Result<()> {
        write_table(out, world, counts)?;
        let calls: u64 = counts.rows.iter().map(|(_, row)| row.count).sum();
        let seconds = counts.duration_ns as f64 / 1e9;
        match self.loss.uncounted_calls() {
            0 => writeln!(out, "{calls} calls in {seconds:.1} s; percentiles are exact to 6.25 %, all else is exact"),
            uncounted => {
                writeln!(out, "{calls} calls in {seconds:.1} s, and {uncounted} that are NOT in the table")
            }
        }
    }
}

impl Report for StatTable {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.stat.event(world, event);
        self.moved.event(event);
        self.wires.event(event);
        match event {
            Event::Loss(loss) => self.loss = *loss,
            Event::Tick(tick) if self.intervals => {
                let at_s = tick.ts_ns.saturating_sub(world.start_ns()) as f64 / 1e9;
                writeln!(out, "--- at {at_s:.1} s")?;
                let counts = self.stat.interval(tick.ts_ns);
                if self.shows_calls(&counts) {
                    write_table(out, world, &counts)?;
                }
                if self.wires.is_wanted() {
                    wire::write_table(out, world, &self.wires.interval(tick.ts_ns))?;
                }
                out.flush()?;
            }
            Event::End(end) => {
                let counts = self.stat.total(world, end.ts_ns);
                if self.intervals {
                    writeln!(out, "--- total")?;
                }
                if self.shows_calls(&counts) {
                    self.write_calls(out, world, &counts)?;
                    write_moved(out, world, &self.moved, &self.narrow)?;
                }
                if self.wires.is_wanted() {
                    let rows = self.wires.total(world.start_ns(), end.ts_ns);
                    if self.shows_calls(&counts) {
                        writeln!(out, "\nprocesses that are looked at by their connections alone:")?;
                    }
                    wire::write_table(out, world, &rows)?;
                    wire::write_summary(out, &rows)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

const HEADINGS: [&str; 13] =
    ["socket", "call", "calls", "errors", "total", "mean", "p50", "p99", "max", "bytes", "messages", "msg/s", "Mbit/s"];

fn write_table(out: &mut Sink, world: &World, counts: &Counts) -> io::Result<()> {
    if counts.rows.is_empty() {
        return writeln!(out, "no calls");
    }
    const SHAPE: Shape = Shape { right: &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], dropped: &[], cut: &[] };
    let several = counts.rows.iter().any(|(key, _)| key.pid != counts.rows[0].0.pid);
    let mut lines = vec![Line::Row(HEADINGS.map(String::from))];
    lines.extend(counts.rows.iter().map(|(key, row)| Line::Row(cells(world, counts, key, row, several))));
    table::write(lines, &SHAPE, out)
}

/// What moved through the queues, where they were looked at.
fn write_moved(out: &mut Sink, world: &World, moved: &MovedBySocket, narrow: &Narrow) -> io::Result<()> {
    const HEADINGS: [&str; 7] =
        ["socket", "sent", "received", "to send", "most to send", "to receive", "most to receive"];
    const SHAPE: Shape = Shape { right: &[1, 2, 3, 4, 5, 6], dropped: &[], cut: &[] };
    let mut lines = vec![Line::Row(HEADINGS.map(String::from))];
    let most = |(depth, hwm): (u64, i32)| if hwm > 0 { format!("{depth}/{hwm}") } else { depth.to_string() };
    for ((pid, handle, generation), moved) in moved.sockets() {
        if !narrow.admits_socket(world.socket(pid, handle, generation)) {
            continue;
        }
        let process = world.process_name(pid);
        lines.push(Line::Row([
            format!("{process}[{pid}] {}", world.socket_name(pid, handle, generation).unwrap_or_default()),
            moved.sent.to_string(),
            moved.received.to_string(),
            moved.to_send.to_string(),
            most(moved.most_to_send),
            moved.to_receive.to_string(),
            most(moved.most_to_receive),
        ]));
    }
    // More than the headings.
    if lines.len() > 1 {
        writeln!(out, "\nmessages through the queues, zmq_proxy's included:")?;
        table::write(lines, &SHAPE, out)?;
    }
    Ok(())
}

fn cells(world: &World, counts: &Counts, key: &Key, row: &Row, several: bool) -> [String; 13] {
    let object = object_name(world, key).unwrap_or_else(|| "-".into());
    let process = world.process_name(key.pid);
    let moves = row.messages > 0 || row.bytes > 0 || row.parts_unknown > 0;
    let when_moves = |text: String| if moves { text } else { String::new() };
    [
        if several { format!("{process}[{}] {object}", key.pid) } else { object },
        key.function.row().name.into(),
        row.count.to_string(),
        errors(row),
        duration(row.total_ns),
        duration(row.mean_ns()),
        duration(row.percentile_ns(500)),
        duration(row.percentile_ns(990)),
        row.max_ns.map(duration).unwrap_or_default(),
        when_moves(row.bytes.to_string()),
        when_moves(row.known_messages().map_or_else(|| "?".into(), |messages| messages.to_string())),
        when_moves(row.known_messages().map_or_else(|| "?".into(), |count| format!("{:.0}", counts.per_second(count)))),
        when_moves(format!("{:.2}", counts.per_second(row.bytes * 8) / 1e6)),
    ]
}

fn errors(row: &Row) -> String {
    let text = |(result, count): (&CallResult, &u64)| match result {
        CallResult::Errno(errno) => format!("{} {count}", constants::errno_name(*errno)),
        CallResult::Failed | CallResult::Ok => format!("? {count}"),
    };
    row.errors.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// The socket, context or poller that a row is about.
pub fn object_name(world: &World, key: &Key) -> Option<String> {
    let function = key.function.row();
    function.handle_arg()?;
    if function.is_about_socket() {
        return world.socket_name(key.pid, key.handle, key.generation);
    }
    Some(match function.class {
        tracer_common::function::Class::Poll => world.poller_name(key.pid, key.handle),
        _ => world.context_name(key.pid, key.handle),
    })
}
