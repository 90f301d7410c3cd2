//! What `latency` prints: a table of stages by pair, what became of the messages, and lines of single ones.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{
    Report, Sink,
    table::{self, Line, Shape},
    time::{Clock, TimeFormat, duration},
};
use crate::{
    analysis::{
        latency::{Fates, Histograms, Latency, Message, Pair, Party, Stage, Times},
        narrow::Narrow,
    },
    event::Event,
    world::World,
};

/// What is shown besides the table.
#[derive(Debug, Clone, Copy, Default)]
pub struct LatencyOptions {
    /// A line for each message.
    pub messages: bool,
    /// Only for those that took longer.
    pub slower_than_ns: u64,
    /// A histogram for each row.
    pub histogram: bool,
    /// A table for each interval.
    pub intervals: bool,
}

impl LatencyOptions {
    /// Whether a message has a line.
    pub fn shows(&self, latency: &Latency, message: &Message) -> bool {
        let is_slow = self.slower_than_ns == 0 || message.longest_ns() > self.slower_than_ns;
        is_slow && latency.admits_pair(&message.pair)
    }
}

/// The report.
#[derive(Debug)]
pub struct LatencyTable {
    latency: Latency,
    options: LatencyOptions,
    clock: Clock,
    time: TimeFormat,
    line: String,
}

impl LatencyTable {
    /// Shows what `narrow` leaves.
    pub fn new(narrow: Narrow, options: LatencyOptions) -> Self {
        let latency = Latency::new(narrow, options.intervals, options.messages);
        Self { latency, options, clock: Clock::default(), time: TimeFormat::default(), line: String::new() }
    }

    /// How lines of messages say when.
    pub fn with_time(mut self, time: TimeFormat) -> Self {
        self.time = time;
        self
    }

    fn message(&mut self, world: &World, message: &Message, out: &mut Sink) -> io::Result<()> {
        self.line.clear();
        let first_ns = message.send_enter_ns.or(message.wire_tx_ns).or(message.wire_rx_ns).unwrap_or(0);
        self.clock.write(&mut self.line, self.time, world, first_ns);
        write!(out, "{} {}", self.line, pair_name(world, &self.latency, &message.pair))?;
        write!(out, " #{}", message.number)?;
        match (message.size, message.parts) {
            (Some(size), Some(parts)) if parts > 1 => write!(out, " {size} bytes in {parts} parts:")?,
            (Some(size), _) => write!(out, " {size} bytes:")?,
            _ => write!(out, ":")?,
        }
        for (nth, (stage, ns)) in message.stages().enumerate() {
            write!(out, "{}{} {}", if nth == 0 { " " } else { ", " }, stage.name(), duration(ns))?;
        }
        writeln!(out)
    }

    fn table(&self, world: &World, histograms: &Histograms, out: &mut Sink) -> io::Result<()> {
        let pairs: Vec<_> = histograms.pairs().filter(|(pair, _)| self.latency.admits_pair(pair)).collect();
        if pairs.is_empty() {
            return writeln!(out, "no messages");
        }
        const HEADINGS: [&str; 9] = ["  stage", "messages", "min", "mean", "p50", "p90", "p99", "p99.9", "max"];
        const SHAPE: Shape = Shape { right: &[1, 2, 3, 4, 5, 6, 7, 8], dropped: &[], cut: &[] };
        let mut lines = vec![Line::Row(HEADINGS.map(String::from))];
        for (pair, stages) in &pairs {
            lines.push(Line::Note(pair_name(world, &self.latency, pair)));
            lines.extend(stages.iter().map(|(stage, times)| Line::Row(cells(*stage, times))));
            if self.options.histogram {
                lines.extend(histogram_lines(stages).map(Line::Note));
            }
        }
        table::write(lines, &SHAPE, out)?;
        if let Some((count, mean_ns)) = mean_round_trip(&pairs) {
            writeln!(out, "mean round trip {} of {count}", duration(mean_ns))?;
        }
        Ok(())
    }

    fn coverage(&self, out: &mut Sink) -> io::Result<()> {
        let coverage = self.latency.coverage();
        write_fates("sent", &coverage.sent, out)?;
        write_fates("received", &coverage.received, out)?;
        match self.latency.wire_only() {
            0 => Ok(()),
            count => writeln!(out, "on the wire alone: {count} messages between ends whose calls are not seen"),
        }
    }
}

impl Report for LatencyTable {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.latency.event(world, event);
        for message in self.latency.take_messages() {
            if self.options.shows(&self.latency, &message) {
                self.message(world, &message, out)?;
            }
        }
        match event {
            Event::Tick(tick) if self.options.intervals => {
                let at_s = tick.ts_ns.saturating_sub(world.start_ns()) as f64 / 1e9;
                writeln!(out, "--- at {at_s:.1} s")?;
                let histograms = self.latency.take_interval();
                self.table(world, &histograms, out)?;
                self.coverage(out)?;
                out.flush()
            }
            Event::End(_) => {
                if self.options.intervals {
                    writeln!(out, "--- total")?;
                }
                self.table(world, self.latency.histograms(), out)?;
                writeln!(out, "percentiles are exact to 1 %, all else is exact; stages may overlap")?;
                self.coverage(out)
            }
            _ => Ok(()),
        }
    }
}

fn cells(stage: Stage, times: &Times) -> [String; 9] {
    [
        format!("  {}", stage.name()),
        times.count().to_string(),
        duration(times.min_ns()),
        duration(times.mean_ns()),
        duration(times.quantile_ns(0.5)),
        duration(times.quantile_ns(0.9)),
        duration(times.quantile_ns(0.99)),
        duration(times.quantile_ns(0.999)),
        duration(times.max_ns()),
    ]
}

fn mean_round_trip(pairs: &[(&Pair, &BTreeMap<Stage, Times>)]) -> Option<(u64, u64)> {
    let trips = pairs.iter().filter_map(|(_, stages)| stages.get(&Stage::RoundTrip));
    let (count, sum_ns) = trips.fold((0, 0u128), |(count, sum_ns), times| {
        (count + times.count(), sum_ns + u128::from(times.mean_ns()) * u128::from(times.count()))
    });
    Some((count, sum_ns.checked_div(u128::from(count))? as u64))
}

/// A bar for each power of two.
fn histogram_lines(stages: &BTreeMap<Stage, Times>) -> impl Iterator<Item = String> {
    const WIDTH: u64 = 40;
    stages.iter().flat_map(|(stage, times)| {
        let powers = times.powers();
        let most = powers.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
        let bars = powers.into_iter().map(move |(bound_ns, count)| {
            let bar = "#".repeat((count * WIDTH).div_ceil(most) as usize);
            format!("    < {:>8}  {bar:<40}  {count}", duration(bound_ns))
        });
        std::iter::once(format!("  {}", stage.name())).chain(bars)
    })
}

/// `sent 1000: 998 matched (99.8 %), 2 in flight`
fn write_fates(name: &str, fates: &Fates, out: &mut Sink) -> io::Result<()> {
    let Fates { all, matched, unmatched } = fates;
    write!(out, "{name} {all}: {matched} matched")?;
    if *all > 0 {
        // Never rounded up to all.
        let tenths = (u128::from(*matched) * 1000 / u128::from(*all)) as u64;
        write!(out, " ({}.{} %)", tenths / 10, tenths % 10)?;
    }
    for (reason, count) in unmatched {
        write!(out, ", {count} {}", reason.name().replace('_', " "))?;
    }
    match fates.open() {
        0 => writeln!(out),
        open => writeln!(out, ", {open} not settled yet"),
    }
}

/// `PUSH#1 of orders[4711] -> PULL#3 of desk[4712]`
fn pair_name(world: &World, latency: &Latency, pair: &Pair) -> String {
    let name = |party: &Party| match party {
        Party::Socket(socket) => {
            let process = world.process_name(socket.pid);
            format!("{} of {process}[{}]", latency.socket_name(*socket), socket.pid)
        }
        Party::Process(pid) => {
            format!("{}[{pid}]", world.process_name(*pid))
        }
        Party::Remote(address) => address.to_string(),
        Party::Nobody => String::new(),
        Party::Unknown => "?".into(),
        Party::Others => "others".into(),
    };
    match &pair.to {
        Party::Nobody => name(&pair.from),
        to => format!("{} -> {}", name(&pair.from), name(to)),
    }
}
