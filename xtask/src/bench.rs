//! `bench`: what tracing costs. Ratios of medians, all states of a comparison measured in turn in one run, so
//! that a machine that is slow or noisy today changes little.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{build_zmqtrace, start, stdout};
use crate::tree::Tree;
use crate::workload::Workload;
use crate::{setup, workloads};

/// How often each state is measured.
const ROUNDS: usize = 7;
/// Slices of a workload's time in each state, where states differ by less than the rounds do.
const SLICES: usize = 30;
/// Watchers that watch at once.
const WATCHERS: usize = 8;
/// The ring's default size, which zmqtrace maps twice.
const RING_KIB: u64 = 2 * 16 * 1024;

/// What is measured of the tracer at work.
type Comparison = fn(&Bench) -> Result<String>;

const COMPARISONS: [(&str, Comparison); 8] = [
    ("call", Bench::call),
    ("round-trip", Bench::round_trip),
    ("flood", Bench::flood),
    ("wire", Bench::wire),
    ("latency", Bench::latency),
    ("bystander", Bench::bystander),
    ("attach", Bench::attach),
    ("look", Bench::look),
];

/// Measures, all or `only` some, and prints the table.
pub fn bench(tree: &Tree, only: &[String], write: bool) -> Result<()> {
    if !setup::is_root() {
        bail!("zmqtrace loads BPF programs: run `sudo -E env PATH=\"$PATH\" cargo xtask bench`");
    }
    workloads::prepare(tree, false)?;
    setup::packages(&["strace", "bpftrace"])?;
    let bench = Bench { zmqtrace: build_zmqtrace(&tree.root)?, workloads: tree.workloads(), scratch: tree.target() };
    let mut report = bench.heading()?;
    if let Some(unknown) = only.iter().find(|only| COMPARISONS.iter().all(|(name, _)| name != only)) {
        bail!("nothing is called {unknown}");
    }
    for (name, compare) in COMPARISONS {
        if !only.is_empty() && !only.iter().any(|only| only == name) {
            continue;
        }
        let text = compare(&bench)?;
        println!("{text}");
        let _ = write!(report, "\n{text}");
    }
    if write {
        fs::write(tree.root.join("docs/performance.md"), report)?;
    }
    Ok(())
}

struct Bench {
    zmqtrace: PathBuf,
    workloads: PathBuf,
    scratch: PathBuf,
}

impl Bench {
    fn heading(&self) -> Result<String> {
        let kernel = stdout(Command::new("uname").arg("-r"))?;
        let libzmq = stdout(Command::new("dpkg-query").args(["-W", "-f=${Version}", "libzmq5"]))?;
        let cpus = std::thread::available_parallelism()?;
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let strace = stdout(Command::new("strace").arg("--version"))?;
        let bpftrace = stdout(Command::new("bpftrace").arg("--version"))?;
        Ok(format!(
            "# What tracing costs\n\nMade by `cargo xtask bench --write`. Linux {kernel}, {cpus} CPUs ({}), libzmq \
             {libzmq} of Debian, {}, {}. Medians of {ROUNDS} rounds in which the states take turns; the least and the \
             greatest in brackets.\n",
            model.trim_start_matches([' ', '\t', ':']),
            strace.lines().next().unwrap_or_default().replace(" -- version", ""),
            bpftrace.lines().next().unwrap_or_default(),
        ))
    }

    fn workload(&self, name: &str, arguments: &[&str]) -> Result<Workload> {
        Workload::start(Command::new(self.workloads.join(name)).args(arguments))
    }

    /// zmqtrace at work on a process, writing to a scratch file.
    fn zmqtrace(&self, pid: u32, arguments: &[&str]) -> Result<Tracer> {
        let mut command = Command::new(&self.zmqtrace);
        command.args(arguments).arg("-p").arg(pid.to_string()).arg("-o").arg(self.output());
        Tracer::start(&mut command, "attached to")
    }

    /// The same; without arguments nobody is at work.
    fn zmqtrace_or_none(&self, pid: u32, arguments: &[&str]) -> Result<Option<Tracer>> {
        if arguments.is_empty() { Ok(None) } else { self.zmqtrace(pid, arguments).map(Some) }
    }

    fn output(&self) -> PathBuf {
        self.scratch.join("bench-output")
    }

    /// A traced call against an empty entry and return pair.
    fn call(&self) -> Result<String> {
        const STATES: [(&str, &[&str]); 5] = [
            ("untraced", &[]),
            ("empty entry + return pair", &["trace", "-e", "send", "--empty-probes"]),
            ("`stat`", &["stat", "-e", "send"]),
            ("`trace -s 0`", &["trace", "-e", "send", "-s", "0"]),
            ("`trace` (32 bytes of payload)", &["trace", "-e", "send"]),
        ];
        let mut workload = self.workload("pair", &["--count", "100000", "--size", "64", "--phases"])?;
        let mut samples = vec![Vec::new(); STATES.len()];
        for _ in 0..ROUNDS {
            for ((_, arguments), samples) in STATES.iter().zip(&mut samples) {
                let tracer = self.zmqtrace_or_none(workload.pid()?, arguments)?;
                samples.push(number(&workload.go()?["ns_per_send"])?);
                tracer.map(Tracer::stop).transpose()?;
            }
        }
        workload.end()?;
        let (untraced, floor) = (median(&samples[0]), median(&samples[1]));
        let mut text = String::from(
            "## A call\n\n`zmq_send` of 64 bytes with `ZMQ_DONTWAIT` over an inproc PAIR, CPU time of the calling \
             thread. Limit: 1.25 times an empty pair of probes.\n\n\
             | state | ns a call | added, ns | times the empty pair |\n|---|---|---|---|\n",
        );
        for ((name, _), samples) in STATES.iter().zip(&samples) {
            let added = median(samples) - untraced;
            let ratio = added / (floor - untraced);
            let _ = writeln!(text, "| {name} | {} | {added:.0} | {ratio:.2} |", with_range(samples, 0));
        }
        Ok(text)
    }

    /// What a REQ/REP round trip over tcp pays, against strace and bpftrace.
    fn round_trip(&self) -> Result<String> {
        const STATES: [&str; 4] =
            ["untraced", "`zmqtrace trace -o FILE`", "bpftrace, the same facts", "strace -f -e trace=network,poll"];
        let mut workload = self.workload("reqrep", &["--role", "both", "--count", "3000", "--phases"])?;
        let pid = workload.pid()?;
        let mut samples = vec![Vec::new(); STATES.len()];
        for _ in 0..ROUNDS {
            for (state, samples) in samples.iter_mut().enumerate() {
                let tracer = match state {
                    0 => None,
                    1 => Some(self.zmqtrace(pid, &["trace"])?),
                    2 => Some(self.bpftrace(pid, &mut workload)?),
                    _ => Some(self.strace(pid)?),
                };
                samples.push(number(&workload.go()?["round_trip_ns"]["mean"])? / 1e3);
                tracer.map(Tracer::stop).transpose()?;
            }
        }
        workload.end()?;
        let untraced = median(&samples[0]);
        let strace_adds = median(&samples[3]) - untraced;
        let mut text = String::from(
            "## A round trip\n\nREQ/REP over tcp on the loopback, both ends in one traced process. Limits: 3 % of what \
             strace adds, less than what bpftrace adds (its script is `xtask/src/reqrep.bt`).\n\n\
             | state | us a round trip | added, us | of what strace adds |\n|---|---|---|---|\n",
        );
        for (name, samples) in STATES.iter().zip(&samples) {
            let added = median(samples) - untraced;
            let share = 100.0 * added / strace_adds;
            let _ = writeln!(text, "| {name} | {} | {added:.1} | {share:.1} % |", with_range(samples, 1));
        }
        Ok(text)
    }

    fn strace(&self, pid: u32) -> Result<Tracer> {
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=network,poll", "-p"]).arg(pid.to_string()).arg("-o").arg(self.output());
        Tracer::start(&mut command, "attached")
    }

    /// bpftrace does not say when its probes are in: the workload works until the first line is there.
    fn bpftrace(&self, pid: u32, workload: &mut Workload) -> Result<Tracer> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let libzmq =
            maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libzmq"));
        let libzmq = libzmq.context("the workload has no libzmq")?;
        let script = self.scratch.join("bench.bt");
        fs::write(&script, include_str!("reqrep.bt").replace("PATH", libzmq))?;
        let mut command = Command::new("bpftrace");
        command.arg("-p").arg(pid.to_string()).arg(&script).stdout(File::create(self.output())?).stderr(Stdio::null());
        let tracer = Tracer { child: start(&mut command)?, rest: None };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(self.output())?.contains("zmq_recv") {
            if Instant::now() > deadline {
                bail!("bpftrace traces nothing");
            }
            workload.go()?;
        }
        Ok(tracer)
    }

    /// Full speed: counts against the workload's own.
    fn flood(&self) -> Result<String> {
        let mut text = String::from(
            "## At full speed\n\nPUSH/PULL of 64-byte messages over tcp for 10 s, sender and receiver in one traced \
             process.\n\n| state | messages/s | calls by the program | counted or reported | lost, as stated | exact |\n\
             |---|---|---|---|---|---|\n",
        );
        let untraced = self.flood_once(None)?;
        let _ = writeln!(text, "| untraced | {:.0} | {} | | | |", untraced.messages_per_s, untraced.calls);
        for command in ["stat", "trace"] {
            let run = self.flood_once(Some(command))?;
            let exact = if run.seen + run.lost == run.calls { "yes" } else { "NO" };
            let _ = writeln!(
                text,
                "| `{command}` | {:.0} | {} | {} | {} | {exact} |",
                run.messages_per_s, run.calls, run.seen, run.lost
            );
        }
        Ok(text)
    }

    fn flood_once(&self, command: Option<&str>) -> Result<Flood> {
        let mut workload = self.workload("flood", &["--seconds", "10", "--size", "64", "--transport", "tcp"])?;
        let pid = workload.pid()?;
        let tracer = command.map(|command| self.zmqtrace(pid, &[command, "--json"])).transpose()?;
        let truth = workload.go()?;
        let (mut seen, mut lost) = (0, 0);
        if let Some(tracer) = tracer {
            tracer.stop()?;
            for line in BufReader::new(File::open(self.output())?).lines() {
                let line = line?;
                if line.starts_with("{\"type\":\"call\"") {
                    seen += 1;
                } else if line.starts_with("{\"type\":\"stat\"") {
                    seen += count(&serde_json::from_str::<Value>(&line)?["count"])?;
                } else if line.starts_with("{\"type\":\"lost\"") {
                    lost = count(&serde_json::from_str::<Value>(&line)?["events"])?;
                }
            }
        }
        workload.end()?;
        let totals = truth["totals"].as_array().context("the workload states no totals")?;
        let calls = totals.iter().map(|total| count(&total["count"])).sum::<Result<u64>>()?;
        Ok(Flood { messages_per_s: number(&truth["msgs_per_s"])?, calls, seen, lost })
    }

    /// What the wire view alone takes of a stream's throughput.
    fn wire(&self) -> Result<String> {
        const PACES: [(&str, &[&str], u32); 2] =
            [("as fast as it can", &[], 20), ("50,000 messages/s", &["--rate", "50000"], 2)];
        let mut text = String::from(
            "## The wire alone\n\nPUSH/PULL of 64-byte messages over tcp within one process, seen by `stat --wire-only`. \
             What is lost is that of each round.\n\n\
             | pace | untraced, messages/s | traced, messages/s | lost, % | limit, % |\n|---|---|---|---|---|\n",
        );
        for (pace, arguments, limit) in PACES {
            let states = [&[][..], &["stat", "--wire-only"]];
            let [untraced, traced] = self.stream(arguments, states)?;
            let lost: Vec<f64> = untraced
                .iter()
                .zip(&traced)
                .map(|(untraced, traced)| 100.0 * (1.0 - traced.messages_per_s / untraced.messages_per_s))
                .collect();
            let rates = |rounds: &[Rate]| with_range(&rounds.iter().map(|it| it.messages_per_s).collect::<Vec<_>>(), 0);
            let _ = writeln!(
                text,
                "| {pace} | {} | {} | {} | {limit} |",
                rates(&untraced),
                rates(&traced),
                with_range(&lost, 1)
            );
        }
        Ok(text)
    }

    /// What `latency` costs, against what it is made of.
    fn latency(&self) -> Result<String> {
        let mut text = String::from(
            "## A message's stages\n\nPUSH/PULL of 64-byte messages over tcp within one process: CPU time of that \
             process by message. `latency` may cost 1.1 times what tracing the calls does (`trace -e send,recv -s 0 -o \
             FILE`) and what the wire does (`stat --wire-only`) besides. As fast as it can, the tracer's own CPU time \
             counts, too, and the slower a stream is the fewer messages share a system call.\n\n\
             | pace | untraced, ns | wire, ns | calls, ns | `latency`, ns | adds, of what it may | \
             `latency`, messages/s |\n|---|---|---|---|---|---|---|\n",
        );
        for (pace, arguments) in [("50,000 messages/s", &["--rate", "50000"][..]), ("as fast as it can", &[][..])] {
            let states = [&[][..], &["stat", "--wire-only"], &["trace", "-e", "send,recv", "-s", "0"], &["latency"]];
            let rounds = self.stream(arguments, states)?;
            let costs = rounds.each_ref().map(|it| it.iter().map(|rate| rate.cpu_ns).collect::<Vec<_>>());
            let [untraced, wire, calls, latency] = costs.each_ref().map(|costs| median(costs));
            let share = (latency - untraced) / (1.1 * (calls - untraced) + wire - untraced);
            let rates: Vec<f64> = rounds[3].iter().map(|rate| rate.messages_per_s).collect();
            let [untraced, wire, calls, latency] = costs.map(|costs| with_range(&costs, 0));
            let _ = writeln!(
                text,
                "| {pace} | {untraced} | {wire} | {calls} | {latency} | {share:.2} | {} |",
                with_range(&rates, 0)
            );
        }
        Ok(text)
    }

    /// What a process pays that nobody traces, while another one is.
    fn bystander(&self) -> Result<String> {
        const BLOCKS: u32 = 500_000;
        let mut traced = self.workload("reqrep", &["--role", "both", "--count", "1000", "--phases"])?;
        traced.go()?;
        let states: [&[&str]; 3] = [&[], &["trace"], &["latency"]];
        let mut samples = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (arguments, samples) in states.iter().zip(&mut samples) {
                let tracer = self.zmqtrace_or_none(traced.pid()?, arguments)?;
                let begin = Instant::now();
                let mut copy = Command::new("dd");
                copy.args(["if=/dev/zero", "of=/dev/null", "bs=1"]).arg(format!("count={BLOCKS}"));
                crate::command::run_quietly(&mut copy)?;
                samples.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(2 * BLOCKS));
                tracer.map(Tracer::stop).transpose()?;
            }
        }
        traced.end()?;
        let mut text = String::from(
            "## Who is not traced\n\nA system call of an untraced process (`dd` of single bytes: read and write) while \
             another process is traced.\n\n| state | ns a system call | added, ns |\n|---|---|---|\n",
        );
        let alone = median(&samples[0]);
        for (name, samples) in ["nobody is traced", "`trace` of another", "`latency` of another"].iter().zip(&samples) {
            let _ = writeln!(text, "| {name} | {} | {:.0} |", with_range(samples, 0), median(samples) - alone);
        }
        Ok(text)
    }

    /// Rounds of a second of a stream, in states that take turns.
    fn stream<const N: usize>(&self, arguments: &[&str], states: [&[&str]; N]) -> Result<[Vec<Rate>; N]> {
        let mut rates = [const { Vec::new() }; N];
        for _ in 0..ROUNDS {
            for (state, rates) in states.into_iter().zip(&mut rates) {
                // How its threads come to share the CPUs stays with a process for long: each round has its own.
                let mut workload = self.workload("flood", &[&["--seconds", "1", "--phases"], arguments].concat())?;
                let pid = workload.pid()?;
                let tracer = self.zmqtrace_or_none(pid, state)?;
                // What coming takes has a section of its own.
                workload.go()?;
                let before_s = cpu_time_s(pid)?;
                let measured = workload.go()?;
                let cpu_s = cpu_time_s(pid)? - before_s;
                let messages_per_s = number(&measured["msgs_per_s"])?;
                let messages = messages_per_s * number(&measured["seconds"])?;
                rates.push(Rate { messages_per_s, cpu_ns: cpu_s * 1e9 / messages });
                tracer.map(Tracer::stop).transpose()?;
                workload.end()?;
            }
        }
        Ok(rates)
    }

    /// What it takes to look into a large process, and what that process pays for being watched.
    fn look(&self) -> Result<String> {
        let mut workload = self.workload("scale", &["--sockets", "1000", "--connections", "1000", "--rounds", "80"])?;
        let mut look_ms = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            self.look_command(workload.pid()?, &self.output(), &[]).status()?;
            look_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let watch = self.watch(&mut workload)?;
        workload.end()?;
        let [alone_lost, watched_lost] = watch.lost_percent.map(|lost| with_confidence(&lost));
        let [alone_added, watched_added] = watch.added_percent.map(|added| with_confidence(&added));
        Ok(format!(
            "## Looking into a process\n\n`sockets` on a process with 1,000 sockets and 2,000 connections (1,000 over the \
             loopback, with both ends in it), and what its throughput (messages of 64 bytes over all of them in turn) \
             loses under `--watch 100ms`, which looks as often as a twentieth of a CPU allows. What one watcher costs is \
             lost in the noise: {WATCHERS} watch at once, and what is said is the part of one. Slices of the process's \
             work with and without them take turns, {SLICES} of each; in brackets the 95 % confidence interval of the \
             median. The noise is what slices differ in that are both without, in the same part.\n\n\
             | what | median | noise | limit |\n|---|---|---|---|\n\
             | from start to exit of `sockets`, ms | {} | | 50 |\n\
             | peak resident memory, MiB | {:.1} | | 64 |\n\
             | throughput lost when watched, % | {watched_lost} | {alone_lost} | 1 |\n\
             | CPU time that each message takes more when watched, % | {watched_added} | {alone_added} | |\n\
             | looks a second | {:.1} | | |\n\
             | CPU time that the watcher takes, % of a CPU | {:.1} | | |\n",
            with_range(&look_ms, 0),
            watch.resident_mib,
            watch.looks_per_s,
            watch.busy_percent,
        ))
    }

    /// What a process pays for being watched. The watchers are there all the time, and stopped while they are not to
    /// watch.
    fn watch(&self, workload: &mut Workload) -> Result<Watch> {
        /// The first two are the same: nobody watches.
        const STATES: usize = 3;
        const WATCHED: usize = 2;
        let pid = workload.pid()?;
        let outputs: Vec<PathBuf> =
            (0..WATCHERS).map(|number| self.scratch.join(format!("bench-output-{number}"))).collect();
        let watcher = |output: &PathBuf| -> Result<Tracer> {
            fs::write(output, "")?;
            let child = start(&mut self.look_command(pid, output, &["--watch", "100ms"]))?;
            await_output(output, 0)?;
            Ok(Tracer { child, rest: None })
        };
        let watchers = outputs.iter().map(watcher).collect::<Result<Vec<_>>>()?;
        let signal = |name| watchers.iter().try_for_each(|watcher| watcher.signal(name));
        let watchers_cpu_s = || watchers.iter().map(|watcher| cpu_time_s(watcher.child.id())).sum::<Result<f64>>();
        let looks = || outputs.iter().map(|output| count_looks(output)).sum::<Result<usize>>();
        signal("STOP")?;
        let (mut rates, mut costs) = ([const { Vec::new() }; STATES], [const { Vec::new() }; STATES]);
        let (mut looked, mut watched_s, mut watchers_s) = (0, 0.0, 0.0);
        for slice in 0..SLICES {
            for turn in 0..STATES {
                // To and fro: none always comes behind the same other one.
                let state = if slice % 2 == 0 { turn } else { STATES - 1 - turn };
                if state == WATCHED {
                    // The look that they have missed comes at once, and is none of this slice's.
                    let written = outputs.iter().map(|output| Ok(fs::metadata(output)?.len()));
                    let written = written.collect::<Result<Vec<_>>>()?;
                    signal("CONT")?;
                    outputs.iter().zip(written).try_for_each(|(output, written)| await_output(output, written))?;
                }
                let (looks_before, begin) = (looks()?, Instant::now());
                let before_s = [cpu_time_s(pid)?, watchers_cpu_s()?];
                workload.say("measure")?;
                let measured = workload.hear()?;
                costs[state].push((cpu_time_s(pid)? - before_s[0]) / number(&measured["messages"])?);
                rates[state].push(number(&measured["msgs_per_s"])?);
                if state == WATCHED {
                    watched_s += begin.elapsed().as_secs_f64();
                    watchers_s += watchers_cpu_s()? - before_s[1];
                    signal("STOP")?;
                    looked += looks()? - looks_before;
                }
            }
        }
        let resident_kib = watchers.iter().map(|watcher| peak_resident_kib(watcher.child.id()));
        let resident_kib = resident_kib.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
        signal("CONT")?;
        watchers.into_iter().try_for_each(Tracer::stop)?;
        outputs.iter().try_for_each(fs::remove_file)?;
        // Of slices that lie side by side.
        let change = |samples: &[Vec<f64>; STATES], state: usize| -> Vec<f64> {
            let changes = samples[state].iter().zip(&samples[0]).map(|(with, without)| with / without - 1.0);
            changes.map(|change| 100.0 * change / WATCHERS as f64).collect()
        };
        Ok(Watch {
            lost_percent: [1, WATCHED].map(|state| change(&rates, state).into_iter().map(|gain| -gain).collect()),
            added_percent: [1, WATCHED].map(|state| change(&costs, state)),
            looks_per_s: looked as f64 / watched_s / WATCHERS as f64,
            busy_percent: 100.0 * watchers_s / watched_s / WATCHERS as f64,
            resident_mib: resident_kib as f64 / 1024.0,
        })
    }

    fn look_command(&self, pid: u32, output: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.zmqtrace);
        command.args(["sockets", "-p"]).arg(pid.to_string()).arg("-o").arg(output).args(arguments);
        command
    }

    /// How long it takes to attach and to go, and what it needs.
    fn attach(&self) -> Result<String> {
        let mut workload =
            self.workload("reqrep", &["--role", "both", "--count", "1000", "--threads-idle", "50", "--phases"])?;
        let (mut attach_ms, mut exit_ms, mut resident_mib) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let tracer = self.zmqtrace(workload.pid()?, &["trace"])?;
            attach_ms.push(begun.elapsed().as_secs_f64() * 1e3);
            workload.go()?;
            resident_mib.push(peak_resident_kib(tracer.child.id())?.saturating_sub(RING_KIB) as f64 / 1024.0);
            let asked = Instant::now();
            tracer.stop()?;
            exit_ms.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        workload.end()?;
        let mut text = String::from(
            "## Coming and going\n\n`trace` on a process of more than 50 threads. The ring (16 MiB) is mapped twice and \
             not counted.\n\n| what | median | limit |\n|---|---|---|\n",
        );
        let _ = writeln!(text, "| from start to attached, ms | {} | 150 |", with_range(&attach_ms, 0));
        let _ = writeln!(text, "| from Ctrl-C to exit, ms | {} | 300 |", with_range(&exit_ms, 0));
        let _ =
            writeln!(text, "| peak resident memory besides the ring, MiB | {} | 64 |", with_range(&resident_mib, 1));
        Ok(text)
    }
}

/// A stream for a while.
struct Rate {
    messages_per_s: f64,
    /// CPU time of the process, by message.
    cpu_ns: f64,
}

struct Flood {
    messages_per_s: f64,
    calls: u64,
    seen: u64,
    lost: u64,
}

/// What a process pays for one watcher: by slices that nobody watches, and by those that are watched.
struct Watch {
    /// Of its throughput.
    lost_percent: [Vec<f64>; 2],
    /// To the CPU time of a message.
    added_percent: [Vec<f64>; 2],
    looks_per_s: f64,
    busy_percent: f64,
    resident_mib: f64,
}

/// A tracer at work.
struct Tracer {
    child: Child,
    /// Its standard error, if that is where it says that it is ready.
    rest: Option<BufReader<std::process::ChildStderr>>,
}

impl Tracer {
    /// Starts it and waits until its standard error says `ready`.
    fn start(command: &mut Command, ready: &str) -> Result<Self> {
        let mut child = start(command.stderr(Stdio::piped()).stdout(Stdio::null()))?;
        let mut errors = BufReader::new(child.stderr.take().context("the tracer has no standard error")?);
        let mut line = String::new();
        while !line.contains(ready) {
            line.clear();
            if errors.read_line(&mut line)? == 0 {
                bail!("the tracer ended before it was ready");
            }
        }
        Ok(Self { child, rest: Some(errors) })
    }

    fn signal(&self, name: &str) -> Result<()> {
        crate::command::run_quietly(Command::new("kill").args(["-s", name]).arg(self.child.id().to_string()))
    }

    /// Ctrl-C, and waits for its end.
    fn stop(mut self) -> Result<()> {
        self.signal("INT")?;
        if let Some(rest) = &mut self.rest {
            rest.read_to_string(&mut String::new())?;
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn peak_resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(peak.trim().trim_end_matches(" kB").parse()?)
}

/// Waits until a tracer has written more than this to its output, bytes.
fn await_output(output: &Path, written: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::metadata(output)?.len() <= written {
        if Instant::now() > deadline {
            bail!("the tracer writes nothing");
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Looks that a watcher has written.
fn count_looks(output: &Path) -> Result<usize> {
    let lines = BufReader::new(File::open(output)?).lines();
    lines.map(|line| Ok(usize::from(line?.starts_with("--- at ")))).sum()
}

/// What the threads of a process have run.
fn cpu_time_s(pid: u32) -> Result<f64> {
    let mut ns = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let ran = fs::read_to_string(thread?.path().join("schedstat"))?;
        ns += ran.split(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(ns / 1e9)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("{value} is no number"))
}

fn count(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no count"))
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn with_range(samples: &[f64], decimals: usize) -> String {
    let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let most = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.decimals$} ({least:.decimals$} .. {most:.decimals$})", median(samples))
}

/// The median with its 95 % confidence interval, which the order of the samples gives, however they are distributed.
fn with_confidence(samples: &[f64]) -> String {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let reach = 0.98 * (sorted.len() as f64).sqrt();
    let at = |position: f64| sorted.get(position.max(0.0) as usize).or(sorted.last()).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() as f64 / 2.0;
    format!("{:.1} ({:.1} .. {:.1})", median(samples), at(middle - reach), at(middle + reach))
}
