//! JSON lines of `latency`.

use std::{collections::BTreeMap, io};

use serde::Serialize;

use super::{
    LatencyOptions, Report, Sink,
    json::{Closing, write},
    time::Rfc3339,
};
use crate::{
    analysis::{
        latency::{Coverage, Fates, Histograms, Latency, Message, Party},
        narrow::Narrow,
    },
    event::Event,
    world::World,
};

/// Every line names its type first.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Object<'a> {
    Message(Box<MessageObject<'a>>),
    Latency(LatencyObject),
    LatencyCoverage(CoverageObject),
}

#[derive(Serialize)]
struct Ends {
    from_pid: Option<u32>,
    from_socket: Option<String>,
    /// Of one that is not traced.
    from_address: Option<String>,
    to_pid: Option<u32>,
    to_socket: Option<String>,
    to_address: Option<String>,
}

#[derive(Serialize)]
struct MessageObject<'a> {
    ts_ns: Option<u64>,
    time: Option<String>,
    #[serde(flatten)]
    ends: Ends,
    connection: Option<&'a str>,
    seq: u64,
    size: Option<u64>,
    parts: Option<u32>,
    send_enter_ns: Option<u64>,
    send_return_ns: Option<u64>,
    wire_tx_ns: Option<u64>,
    wire_rx_ns: Option<u64>,
    recv_return_ns: Option<u64>,
}

#[derive(Serialize)]
struct LatencyObject {
    ts_ns: u64,
    #[serde(flatten)]
    ends: Ends,
    stage: &'static str,
    count: u64,
    min_ns: u64,
    mean_ns: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    max_ns: u64,
    interval: bool,
}

#[derive(Serialize)]
struct CoverageObject {
    ts_ns: u64,
    sent: u64,
    received: u64,
    /// Of those sent.
    matched: u64,
    /// Of those received.
    received_matched: u64,
    /// Both ways.
    unmatched: BTreeMap<&'static str, u64>,
    sent_unmatched: BTreeMap<&'static str, u64>,
    received_unmatched: BTreeMap<&'static str, u64>,
    /// Neither matched nor given up yet, both ways.
    open: u64,
    /// Messages between ends whose calls are not seen.
    wire_only: u64,
    interval: bool,
}

/// `latency --json`.
#[derive(Debug)]
pub struct JsonLatency {
    latency: Latency,
    options: LatencyOptions,
    clock: Rfc3339,
    closing: Closing,
}

impl JsonLatency {
    /// Shows what `narrow` leaves.
    pub fn new(narrow: Narrow, options: LatencyOptions) -> Self {
        let latency = Latency::new(narrow, options.intervals, options.messages);
        Self { latency, options, clock: Rfc3339::default(), closing: Closing::default() }
    }

    fn message(&mut self, world: &World, message: &Message, out: &mut Sink) -> io::Result<()> {
        let first_ns = message.send_enter_ns.or(message.wire_tx_ns).or(message.wire_rx_ns);
        let object = MessageObject {
            ts_ns: first_ns,
            time: first_ns.map(|ns| self.clock.text(world.realtime_ns(ns))),
            ends: ends(&self.latency, &message.pair.from, &message.pair.to),
            connection: message.connection.as_deref(),
            seq: message.number,
            size: message.size,
            parts: message.parts,
            send_enter_ns: message.send_enter_ns,
            send_return_ns: message.send_return_ns,
            wire_tx_ns: message.wire_tx_ns,
            wire_rx_ns: message.wire_rx_ns,
            recv_return_ns: message.recv_return_ns,
        };
        write(out, &Object::Message(Box::new(object)))
    }

    fn counts(&mut self, histograms: &Histograms, ts_ns: u64, interval: bool, out: &mut Sink) -> io::Result<()> {
        for (pair, stages) in histograms.pairs().filter(|(pair, _)| self.latency.admits_pair(pair)) {
            for (stage, times) in stages {
                let object = LatencyObject {
                    ts_ns,
                    ends: ends(&self.latency, &pair.from, &pair.to),
                    stage: stage.name(),
                    count: times.count(),
                    min_ns: times.min_ns(),
                    mean_ns: times.mean_ns(),
                    p50_ns: times.quantile_ns(0.5),
                    p90_ns: times.quantile_ns(0.9),
                    p99_ns: times.quantile_ns(0.99),
                    p999_ns: times.quantile_ns(0.999),
                    max_ns: times.max_ns(),
                    interval,
                };
                write(out, &Object::Latency(object))?;
            }
        }
        let Coverage { sent, received } = self.latency.coverage();
        self.closing.events = sent.all + received.all;
        let mut unmatched = by_name(&sent);
        for (reason, count) in by_name(&received) {
            *unmatched.entry(reason).or_default() += count;
        }
        let object = CoverageObject {
            ts_ns,
            sent: sent.all,
            received: received.all,
            matched: sent.matched,
            received_matched: received.matched,
            unmatched,
            sent_unmatched: by_name(&sent),
            received_unmatched: by_name(&received),
            open: sent.open() + received.open(),
            wire_only: self.latency.wire_only(),
            interval,
        };
        write(out, &Object::LatencyCoverage(object))
    }
}

impl Report for JsonLatency {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.latency.event(world, event);
        self.closing.event(event);
        for message in self.latency.take_messages() {
            if self.options.shows(&self.latency, &message) {
                self.message(world, &message, out)?;
            }
        }
        match event {
            Event::Tick(tick) if self.options.intervals => {
                let histograms = self.latency.take_interval();
                self.counts(&histograms, tick.ts_ns, true, out)
            }
            Event::End(end) => {
                let histograms = self.latency.take_histograms();
                self.counts(&histograms, end.ts_ns, false, out)?;
                self.closing.write(out, end.ts_ns.saturating_sub(world.start_ns()), end.reason)
            }
            _ => Ok(()),
        }
    }
}

fn by_name(fates: &Fates) -> BTreeMap<&'static str, u64> {
    fates.unmatched.iter().map(|(reason, count)| (reason.name(), *count)).collect()
}

fn ends(latency: &Latency, from: &Party, to: &Party) -> Ends {
    let ((from_pid, from_socket, from_address), (to_pid, to_socket, to_address)) =
        (party(latency, from), party(latency, to));
    Ends { from_pid, from_socket, from_address, to_pid, to_socket, to_address }
}

fn party(latency: &Latency, party: &Party) -> (Option<u32>, Option<String>, Option<String>) {
    match party {
        Party::Socket(socket) => (Some(socket.pid), Some(latency.socket_name(*socket)), None),
        Party::Process(pid) => (Some(*pid), None, None),
        Party::Remote(address) => (None, None, Some(address.to_string())),
        Party::Nobody | Party::Unknown => (None, None, None),
        Party::Others => (None, Some("others".into()), None),
    }
}
