//! The log that the `stages` programs keep of their messages (`workloads/README.md`), and what `latency` says compared
//! with it, message by message.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    sockets::look,
    support::{Finished, Tracer, Workload, made, made_external, root, scratch},
};

/// One end of a message, as its program saw it.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub before_ns: u64,
    pub after_ns: u64,
    pub size: u64,
    /// By its sender, from 1.
    pub number: u32,
    pub sender: u16,
    pub parts: u32,
    pub socket: usize,
    pub received: bool,
}

const RECORD_BYTES: usize = 32;

impl Record {
    fn read(bytes: &[u8]) -> Self {
        let number = |at: usize, size: usize| {
            bytes[at..at + size].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        Self {
            before_ns: number(0, 8),
            after_ns: number(8, 8),
            size: number(16, 4),
            number: number(20, 4) as u32,
            sender: number(24, 2) as u16,
            parts: number(26, 2) as u32,
            socket: bytes[28].into(),
            received: bytes[29] == 1,
        }
    }
}

/// A running `stages`, of any language.
pub struct Program {
    pub workload: Workload,
    log: PathBuf,
    names: Vec<String>,
}

impl Program {
    fn start(command: &mut Command, arguments: &[&str]) -> Self {
        // One test may have many.
        static PROGRAMS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = PROGRAMS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = scratch(&format!("stages-{number}.log"));
        let workload = Workload::start(command.args(arguments).arg("--log").arg(&log));
        let found = look(workload.pid()).of_type("socket");
        let sockets = workload.ready["sockets"].as_array().cloned().unwrap_or_default();
        let name = |socket: &Value| {
            let found = found.iter().find(|found| found["handle"] == socket["handle"]);
            let name = found.and_then(|found| found["socket"].as_str());
            name.unwrap_or_else(|| panic!("no name for {socket}")).to_owned()
        };
        Self { names: sockets.iter().map(name).collect(), workload, log }
    }

    pub fn c(arguments: &[&str]) -> Self {
        Self::start(&mut Command::new(made("workloads/stages")), arguments)
    }

    pub fn python(arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(made_external("venv/bin/python")?);
        Some(Self::start(command.arg(root().join("workloads/python/stages.py")), arguments))
    }

    /// Receiver and sender as processes of their own. `of_sender` goes to that one alone.
    pub fn pair(arguments: &[&str], of_sender: &[&str]) -> [Self; 2] {
        let receiver = Self::c(&[arguments, &["--role", "receiver"]].concat());
        let endpoint = receiver.endpoint();
        let mut sender = [arguments, of_sender, &["--role", "sender", "--endpoint", &endpoint]].concat();
        let key = receiver.workload.ready["server_key"].as_str().map(str::to_owned);
        if let Some(key) = &key {
            sender.extend(["--server-key", key]);
        }
        let sender = Self::c(&sender);
        [receiver, sender]
    }

    pub fn endpoint(&self) -> String {
        self.workload.ready["endpoint"].as_str().expect("it has an endpoint").to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.workload.pid()
    }

    /// The name of the socket with this index in the ready line.
    pub fn name(&self, index: usize) -> &str {
        &self.names[index]
    }

    fn truth(&self) -> Vec<Record> {
        let bytes = std::fs::read(&self.log).expect("it has written its log");
        bytes.chunks_exact(RECORD_BYTES).map(Record::read).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

/// A message as `latency` reports it.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    pub from_pid: Option<u32>,
    pub from_socket: Option<String>,
    pub to_pid: Option<u32>,
    pub to_socket: Option<String>,
    pub connection: Option<String>,
    pub size: Option<u64>,
    pub parts: Option<u32>,
    pub send_enter_ns: Option<u64>,
    pub send_return_ns: Option<u64>,
    pub wire_tx_ns: Option<u64>,
    pub wire_rx_ns: Option<u64>,
    pub recv_return_ns: Option<u64>,
}

/// A row of percentiles.
#[derive(Debug, Clone, Deserialize)]
pub struct Stage {
    pub stage: String,
    pub from_socket: Option<String>,
    pub to_socket: Option<String>,
    pub count: u64,
    pub p50_ns: u64,
    pub max_ns: u64,
}

/// What became of all messages.
#[derive(Debug, Clone, Deserialize)]
pub struct Coverage {
    pub sent: u64,
    pub received: u64,
    pub matched: u64,
    pub unmatched: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Message(Message),
    Latency(Stage),
    LatencyCoverage(Coverage),
    #[serde(other)]
    Other,
}

/// All that `latency` said.
#[derive(Debug)]
pub struct Report {
    pub messages: Vec<Message>,
    pub stages: Vec<Stage>,
    pub coverage: Coverage,
}

impl Report {
    /// Takes the file that it was written to, with one line after the other: there may be a million.
    fn read(path: &Path) -> Self {
        let file = std::fs::File::open(path).expect("the report was written");
        let (mut messages, mut stages, mut coverage) = (Vec::new(), Vec::new(), None);
        for line in BufReader::new(file).lines() {
            let line = line.expect("UTF-8");
            match serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")) {
                Line::Message(message) => messages.push(message),
                Line::Latency(stage) => stages.push(stage),
                Line::LatencyCoverage(all) => coverage = Some(all),
                Line::Other => {}
            }
        }
        std::fs::remove_file(path).expect("it is there");
        Self { messages, stages, coverage: coverage.expect("coverage is always stated") }
    }

    /// The rows of a stage.
    pub fn rows(&self, stage: &str) -> Vec<&Stage> {
        self.stages.iter().filter(|row| row.stage == stage).collect()
    }
}

/// A running `latency --messages`.
pub struct Watch {
    tracer: Tracer,
    path: PathBuf,
}

impl Watch {
    /// Attaches to processes; all calls made from then on are seen.
    pub fn attach(pids: &[u32], arguments: &[&str]) -> Self {
        static WATCHES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = WATCHES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = scratch(&format!("latency-{number}.json"));
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        let (pids, file) = (pids.join(","), path.to_str().expect("UTF-8"));
        let command = ["latency", "--json", "--messages", "-p", &pids, "-o", file];
        Self { tracer: Tracer::start([&command, arguments].concat()).attached(), path }
    }

    /// What it says when it is interrupted.
    pub fn interrupt(self) -> Report {
        let finished = self.tracer.interrupt();
        Self::report(finished, &self.path)
    }

    /// What it says in the end, which comes by itself.
    pub fn finish(self) -> Report {
        let finished = self.tracer.finish();
        Self::report(finished, &self.path)
    }

    #[track_caller]
    fn report(finished: Finished, path: &Path) -> Report {
        finished.ok();
        Report::read(path)
    }
}

/// What the programs say, by process and name of socket, in the order of time.
pub struct Truth {
    sent: HashMap<(u32, String), Vec<Record>>,
    received: HashMap<(u32, String), Vec<Record>>,
    /// Whether the receivers know each message by its number. Otherwise there is one sender, one receiver and one
    /// connection, and the n-th received is the n-th sent.
    numbered: bool,
    /// What stamps of a program's own may be off, ns: an interpreter takes its time between clock and call.
    precision_ns: u64,
}

/// Which end of which message: process, socket, and index among all that the socket sent or received.
type End = (u32, String, usize);

impl Truth {
    pub fn of(programs: &[&Program]) -> Self {
        let (mut sent, mut received) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for program in programs {
            for record in program.truth() {
                let of = if record.received { &mut received } else { &mut sent };
                of.entry((program.pid(), program.name(record.socket).to_owned())).or_default().push(record);
            }
        }
        for records in sent.values_mut().chain(received.values_mut()) {
            records.sort_by_key(|record| record.before_ns);
        }
        let numbered = received.values().flatten().all(|record| record.number > 0);
        // Where the machine is emulated, times tell nothing.
        let precision_ns = if std::env::var_os("ZMQTRACE_EMULATED").is_some() { u64::MAX } else { 50_000 };
        let truth = Self { sent, received, numbered, precision_ns };
        assert!(numbered || truth.is_single(), "which is which is not known");
        truth
    }

    fn is_single(&self) -> bool {
        self.sent.len() == 1 && self.received.len() == 1
    }

    /// All that were received, from some moment to another.
    pub fn received_within(&self, from_ns: u64, to_ns: u64) -> usize {
        let all = self.received.values().flatten();
        all.filter(|record| record.before_ns >= from_ns && record.after_ns <= to_ns).count()
    }

    pub fn received(&self) -> usize {
        self.received.values().map(Vec::len).sum()
    }

    pub fn sent(&self) -> usize {
        self.sent.values().map(Vec::len).sum()
    }

    /// The message in whose calls a moment lies.
    fn at<'truth>(
        ends: &'truth HashMap<(u32, String), Vec<Record>>,
        pid: Option<u32>,
        socket: Option<&String>,
        ns: u64,
    ) -> Option<(End, &'truth Record)> {
        let (pid, socket) = (pid?, socket?);
        let records = ends.get(&(pid, socket.clone()))?;
        let index = records.partition_point(|record| record.before_ns <= ns).checked_sub(1)?;
        let record = &records[index];
        (ns <= record.after_ns).then(|| ((pid, socket.clone(), index), record))
    }

    /// The same of programs in Python.
    pub fn by_python(self) -> Self {
        Self { precision_ns: 1_000_000, ..self }
    }

    /// The sending end of a message.
    pub fn sender(&self, message: &Message) -> Option<(End, &Record)> {
        Self::at(&self.sent, message.from_pid, message.from_socket.as_ref(), message.send_enter_ns?)
    }

    /// The receiving end of a message.
    pub fn receiver(&self, message: &Message) -> Option<(End, &Record)> {
        Self::at(&self.received, message.to_pid, message.to_socket.as_ref(), message.recv_return_ns?)
    }

    /// Asserts all that has to hold of each message: it is one that was sent, and one that was received, and the same;
    /// its stamps lie within the program's own and in order. Returns how many have both ends.
    #[track_caller]
    pub fn assert_sound(&self, messages: &[Message]) -> usize {
        let mut seen: HashSet<End> = HashSet::new();
        let mut errors_ns = Vec::new();
        for message in messages {
            assert_in_order(message);
            let sender = self.sender(message);
            let receiver = self.receiver(message);
            assert!(message.send_enter_ns.is_none() || sender.is_some(), "nobody sent it: {message:?}");
            assert!(message.recv_return_ns.is_none() || receiver.is_some(), "nobody received it: {message:?}");
            if let Some((end, sent)) = &sender {
                let fits = message.send_return_ns.is_some_and(|ns| ns <= sent.after_ns);
                assert!(fits, "it was not sent then: {message:?}\n{sent:?}");
                let routed = u32::from(end.1.starts_with("ROUTER#"));
                // A ROUTER is given the identity in front.
                let parts = message.parts.map(|parts| parts == sent.parts || parts == sent.parts + routed);
                let same = routed > 0 || message.size == Some(sent.size);
                assert!(parts == Some(true) && same, "it was another one: {message:?}\n{sent:?}");
            }
            if let Some((end, _)) = &receiver {
                assert!(seen.insert(end.clone()), "it was received once: {message:?}");
            }
            let (Some((from, sent)), Some((to, received))) = (sender, receiver) else { continue };
            let same = if self.numbered {
                (sent.sender, sent.number) == (received.sender, received.number)
            } else {
                from.2 == to.2
            };
            assert!(same, "two messages as one: {message:?}\nsent {from:?} {sent:?}\nreceived {to:?} {received:?}");
            let found = message.recv_return_ns.zip(message.send_enter_ns).map(|(end, start)| end - start);
            errors_ns.push((received.after_ns - sent.before_ns).abs_diff(found.expect("both are known")));
        }
        errors_ns.sort_unstable();
        if let Some(p99_ns) = errors_ns.get(errors_ns.len() * 99 / 100) {
            assert!(*p99_ns < self.precision_ns, "end to end is {p99_ns} ns off in the 99th percentile");
        }
        errors_ns.len()
    }

    /// The same, and nearly all that were received have both ends.
    #[track_caller]
    pub fn assert_all(&self, report: &Report) {
        let both = self.assert_sound(&report.messages);
        let coverage = &report.coverage;
        assert!(nearly_all(both, self.received()), "{both} of {}: {coverage:?}", self.received());
        assert_eq!(coverage.received as usize, self.received(), "received: {coverage:?}");
        assert_eq!(coverage.sent as usize, self.sent(), "sent: {coverage:?}");
        assert!(nearly_all(coverage.matched as usize, self.sent()), "matched: {coverage:?}");
        let unmatched = coverage.unmatched.values().sum::<u64>() as usize;
        assert!(unmatched * 1000 <= self.sent() + self.received(), "with its reasons: {coverage:?}");
    }
}

/// 99.9 %
pub fn nearly_all(part: usize, all: usize) -> bool {
    all > 0 && part * 1000 >= all * 999
}

/// As the design has it. What is not known is not in the way.
#[track_caller]
fn assert_in_order(message: &Message) {
    let in_order = [message.send_enter_ns, message.wire_tx_ns, message.wire_rx_ns, message.recv_return_ns];
    assert!(in_order.iter().flatten().is_sorted(), "out of order: {message:?}");
    assert!(message.send_return_ns.is_none_or(|ns| Some(ns) >= message.send_enter_ns), "{message:?}");
}

/// Lets all programs do their job while `latency` looks at them, and compares. Returns the report and the truth.
#[track_caller]
pub fn run(programs: &mut [&mut Program], arguments: &[&str]) -> (Report, Truth) {
    let pids: Vec<_> = programs.iter().map(|program| program.pid()).collect();
    let watch = Watch::attach(&pids, arguments);
    go(programs);
    let report = watch.interrupt();
    let programs: Vec<&Program> = programs.iter().map(|program| &**program).collect();
    let truth = Truth::of(&programs);
    (report, truth)
}

/// All at once, until each is done.
pub fn go(programs: &mut [&mut Program]) {
    for program in &mut *programs {
        program.workload.say("go");
    }
    for program in programs {
        program.workload.answer("done");
    }
}

/// What messages of a size take on the wire, in one part: ZMTP 2.0 and later.
pub const fn frame_bytes(size: u64) -> u64 {
    size + if size > 255 { 9 } else { 2 }
}

/// CLOCK_MONOTONIC, which all stamps are on.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one structure of ours.
    let ret = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(ret, 0, "clock_gettime");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
