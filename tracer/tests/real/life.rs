//! Beginnings and ends: of targets, of their threads, of calls, and our own.

use std::{fs, process::Command};

use serde_json::Value;
use zmqtrace::cli::args::DEFAULT_CLASSES;

use crate::{
    kernels::{Kind, assert_left_alone, assert_nothing_remains, exists, is_pristine, kernel_objects},
    support::{DEADLINE, Tracer, Workload, assert_matches, number, signal},
    truth,
};

#[test]
fn several_targets_at_once_and_nobody_else() {
    let mut workloads = [(); 3].map(|()| Workload::c("calls", &[]));
    let pids = format!("{},{}", workloads[0].pid(), workloads[1].pid());
    let tracer = Tracer::start(["trace", "--json", "-p", &pids]).attached();
    let done = workloads.each_mut().map(Workload::go);
    let pids = workloads.each_ref().map(Workload::pid);
    workloads.into_iter().for_each(Workload::finish);
    let finished = tracer.finish().ok();
    for (pid, done) in pids[..2].iter().zip(&done) {
        let mut calls = finished.of_type("call");
        calls.retain(|call| call["pid"] == *pid);
        truth::assert_same(&truth::calls(done, DEFAULT_CLASSES), &calls, 32);
    }
    assert!(finished.of_type("call").iter().all(|call| call["pid"] != pids[2]), "it was not asked for");
    assert_eq!(finished.of_type("end")[0]["reason"], "targets_ended");
}

#[test]
fn threads_that_come_and_go_are_all_seen() {
    let mut workload = Workload::c("exits", &["--how", "thread"]);
    let trace = Tracer::attach("trace", &workload, &["--json"]);
    let stat = Tracer::attach("stat", &workload, &["--json"]);
    let done = workload.go();
    workload.finish();
    let total = &done["totals"][0];
    assert_eq!(total["count"], 2000, "the workload has changed");
    let sends = |objects: Vec<Value>| {
        objects.into_iter().filter(|object| object["call"] == "zmq_send" && object["handle"] == total["handle"])
    };
    let calls: Vec<_> = sends(trace.finish().ok().of_type("call")).collect();
    assert_eq!(calls.len(), 2000);
    assert!(calls.iter().all(|call| call["ret"] == 7 && call["payload"] == "counted"));
    let mut tids: Vec<_> = calls.iter().map(|call| number(call, "tid")).collect();
    tids.sort_unstable();
    tids.dedup();
    assert!(tids.len() > 1000, "nearly each by a thread of its own: {}", tids.len());
    let rows: Vec<_> = sends(stat.finish().ok().of_type("stat")).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["count"], 2000);
}

#[test]
fn a_target_that_ends_with_calls_in_flight_ends_the_trace() {
    for (how, succeeds) in [("return", true), ("exit", true), ("signal", false)] {
        let mut workload = Workload::c("exits", &["--how", how]);
        let text = Tracer::attach("trace", &workload, &[]);
        let json = Tracer::attach("trace", &workload, &["--json"]);
        let done = workload.go();
        assert_eq!(workload.end().success(), succeeds, "{how}");
        let (text, json) = (text.finish().ok(), json.finish().ok());
        let counted =
            text.stdout.iter().filter(|line| line.contains("zmq_send(") && line.contains("\"counted\"")).count();
        assert_eq!(counted as u64, number(&done["totals"][0], "count"), "{how}");
        assert_matches(text.stdout.last().expect("lines"), r"\+\+\+ exits\[\d+\] ended \+\+\+");
        assert_eq!(json.of_type("end")[0]["reason"], "targets_ended");
        // The blocked receive returned only where it was let go.
        let in_flight = &done["in_flight"][0];
        let calls = json.of_type("call");
        let received = calls.iter().filter(|call| call["tid"] == in_flight["tid"] && call["call"] == "zmq_recv");
        assert_eq!(received.count(), usize::from(how == "return"), "{how}");
    }
}

#[test]
fn a_target_that_execs_with_calls_in_flight_is_followed() {
    let mut workload = Workload::c("exits", &["--how", "exec"]);
    let tracer = Tracer::attach("trace", &workload, &[]);
    let first = workload.go();
    workload.ready = workload.answer("ready");
    let second = workload.go();
    workload.finish();
    let lines = tracer.finish().ok().stdout;
    let exec = lines.iter().position(|line| line.ends_with("replaced its program by exec +++")).expect("it says so");
    let counted = |lines: &[String]| {
        lines.iter().filter(|line| line.contains("zmq_send(") && line.contains("\"counted\"")).count() as u64
    };
    assert_eq!(counted(&lines[..exec]), number(&first["totals"][0], "count"));
    assert_eq!(counted(&lines[exec..]), number(&second["totals"][0], "count"));
}

#[test]
fn a_call_that_blocks_is_shown_after_a_second_and_resumed_when_it_returns() {
    let time = r"\d\d:\d\d:\d\d\.\d{6}";
    let cases = [
        ("recv", r"zmq_recv\(PULL#\d+,", r#"<\.\.\. zmq_recv resumed> "release", 16, 0\) = 7"#),
        ("msg_recv", r"zmq_msg_recv\(", r#"<\.\.\. zmq_msg_recv resumed> "release", PULL#\d+, 0\) = 7"#),
        ("send", r#"zmq_send\(PUSH#\d+, "blocked", 7, 0"#, r"<\.\.\. zmq_send resumed> \) = 7"),
        (
            "poll",
            r"zmq_poll\(\[\{PULL#\d+, ZMQ_POLLIN\}\], 1, -1",
            r"<\.\.\. zmq_poll resumed> \) = 1 \(\[\{PULL#\d+, revents=ZMQ_POLLIN\}\]\)",
        ),
        ("ctx_term", r"zmq_ctx_term\(ctx#~1", r"<\.\.\. zmq_ctx_term resumed> \) = 0"),
    ];
    let mut all: Vec<_> = cases
        .iter()
        .map(|(call, begun, resumed)| {
            let mut workload = Workload::c("blocked", &["--call", call, "--ms", "0"]);
            let tracers = [&[][..], &["--json"]].map(|arguments| Tracer::attach("trace", &workload, arguments));
            workload.say("go");
            workload.answer("blocked");
            (workload, tracers, begun, resumed)
        })
        .collect();
    for (workload, [text, json], begun, resumed) in &mut all {
        let worker = format!(r"worker\[{}/{}\]", workload.pid(), workload.ready["worker_tid"]);
        assert_matches(&text.line(), &format!(r"{time} {worker} {begun} <unfinished, blocked 1\.\d\d s>"));
        let sample = json.object();
        assert_eq!(sample["type"], "in_flight");
        assert_eq!((&sample["call"], &sample["tid"]), (&workload.ready["call"], &workload.ready["worker_tid"]));
        assert_eq!((&sample["ended"], &sample["ret"]), (&Value::Bool(false), &Value::Null));
        assert!(number(&sample, "blocked_ns") >= 1_000_000_000, "{sample}");

        workload.say("release");
        let done = workload.answer("done");
        let returned = truth::calls(&done, DEFAULT_CLASSES);
        let ours = returned.iter().find(|call| call["tid"] == workload.ready["worker_tid"]).expect("it returned");
        loop {
            let line = text.line();
            if line.contains("resumed") {
                assert_matches(&line, &format!(r"{time} {worker} {resumed} <[1-9]\d*\.\d{{6}}>"));
                break;
            }
        }
        loop {
            let call = json.object();
            if call["tid"] == workload.ready["worker_tid"] {
                assert_eq!((&call["type"], &call["ret"]), (&"call".into(), &ours["ret"]));
                assert!(number(&call, "ts_ns") >= number(ours, "start_ns"), "{call}");
                assert!(number(&call, "ts_ns") + number(&call, "dur_ns") <= number(ours, "end_ns"), "{call}");
                break;
            }
        }
    }
    for (workload, tracers, ..) in all {
        workload.finish();
        for tracer in tracers {
            tracer.finish().ok();
        }
    }
}

#[test]
fn a_call_still_in_flight_at_the_end_is_shown() {
    let mut workload = Workload::c("blocked", &["--ms", "0"]);
    let tracers = [&[][..], &["--json"]].map(|arguments| Tracer::attach("trace", &workload, arguments));
    workload.say("go");
    workload.answer("blocked");
    let [text, json] = tracers.map(|tracer| tracer.interrupt().ok());
    assert_matches(text.stdout.last().expect("a line"), r".* zmq_recv\(PULL#\d+, <unfinished, blocked .*>");
    let sample = json.of_type("in_flight").remove(0);
    assert_eq!((&sample["ended"], &sample["handle"]), (&Value::Bool(false), &workload.ready["handle"]));
    workload.say("release");
    workload.answer("done");
    workload.finish();
}

#[test]
fn every_way_to_end_it_is_clean_and_leaves_the_target_alone() {
    let mut workload = Workload::c("flood", &["--count", "2000", "--phases"]);
    for (end, reason) in [
        (Some(libc::SIGINT), "asked"),
        (Some(libc::SIGTERM), "asked"),
        (Some(libc::SIGHUP), "asked"),
        (None, "duration"),
    ] {
        let arguments: &[&str] = if end.is_some() { &["--json"] } else { &["--json", "--duration", "0.2"] };
        let tracer = Tracer::attach("trace", &workload, arguments);
        let status = fs::read_to_string(format!("/proc/{}/status", workload.pid())).expect("it runs");
        assert!(status.contains("TracerPid:\t0\n"), "no ptrace");
        assert!(status.contains("State:\tS (sleeping)\n") || status.contains("State:\tR (running)\n"), "no stop");
        if let Some(end) = end {
            workload.go();
            assert!(!is_pristine(workload.pid()), "its libzmq has probes");
            signal(tracer.pid(), end);
        }
        let finished = tracer.finish().ok();
        assert_eq!(finished.of_type("end")[0]["reason"], reason);
        assert_eq!(finished.of_type("call").len(), if end.is_some() { 4000 } else { 0 });
        assert_left_alone(workload.pid());
    }
    workload.go();
    workload.finish();
}

#[test]
fn nothing_is_left_in_the_kernel_when_it_is_killed() {
    let mut workload = Workload::c("flood", &["--seconds", "1", "--phases"]);
    let mut tracers =
        [Tracer::attach("trace", &workload, &["-o", "/dev/null"]), Tracer::attach("stat", &workload, &[])];
    let objects: Vec<_> = tracers.iter().flat_map(|tracer| kernel_objects(tracer.pid())).collect();
    for kind in [Kind::Program, Kind::Map, Kind::Link] {
        assert!(objects.iter().any(|object| object.0 == kind), "no {kind:?} among {objects:?}");
    }
    assert!(objects.iter().all(|object| exists(*object)), "they are there: {objects:?}");
    workload.say("go");
    // In the middle of the flood.
    for tracer in &mut tracers {
        signal(tracer.pid(), libc::SIGKILL);
    }
    for tracer in tracers {
        assert_eq!(tracer.finish().status, 128 + libc::SIGKILL);
    }
    let done = workload.answer("done");
    let totals = done["totals"].as_array().expect("totals");
    assert_eq!(totals[0]["count"], totals[1]["count"], "every message arrived");

    // The kernel frees them a little later.
    assert_nothing_remains(&objects, workload.pid(), DEADLINE);
    workload.go();
    workload.finish();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut workload = Workload::c("flood", &["--count", "50000"]);
    let command = r#""$0" trace -p "$1" | head -1"#;
    let mut shell = Command::new("bash");
    let pid = workload.pid().to_string();
    shell.args(["-o", "pipefail", "-c", command, env!("CARGO_BIN_EXE_zmqtrace"), &pid]);
    let tracer = Tracer::run(&mut shell).attached();
    workload.go();
    // Ends by itself, while the target goes on.
    let finished = tracer.finish();
    assert_eq!(finished.status, 0, "{:?}", finished.stderr);
    assert_eq!(finished.stdout.len(), 1);
    assert_matches(finished.stderr.last().expect("a summary"), r"zmqtrace: \d+ calls seen, .*");
    workload.finish();
}

/// Nobody reads our output, so writing blocks: the loop sees neither signal nor timer, yet the program ends.
#[test]
fn a_blocked_output_does_not_keep_us_from_ending() {
    for by_signal in [true, false] {
        let mut workload = Workload::c("flood", &["--count", "200000"]);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_zmqtrace"));
        command.args(["trace", "-p", &workload.pid().to_string()]);
        if !by_signal {
            command.args(["--duration", "2"]);
        }
        let piped = std::process::Stdio::piped;
        let mut tracer = command.stdout(piped()).stderr(piped()).spawn().expect("zmqtrace runs");
        let mut errors = std::io::BufReader::new(tracer.stderr.take().expect("piped"));
        std::io::BufRead::read_line(&mut errors, &mut String::new()).expect("the attached line");
        workload.go();
        if by_signal {
            signal(tracer.id(), libc::SIGTERM);
        }
        assert_eq!(tracer.wait().expect("it ends").code(), Some(0));
        workload.finish();
    }
}

#[test]
fn a_standard_error_that_takes_nothing_is_no_failure() {
    let workload = Workload::c("blocked", &["--call", "recv", "--ms", "0"]);
    let script = format!("{} trace -p {} --duration 0.1 2>/dev/full", env!("CARGO_BIN_EXE_zmqtrace"), workload.pid());
    let status = std::process::Command::new("sh").args(["-c", &script]).status().expect("sh runs");
    assert_eq!(status.code(), Some(0));
}

/// `script` gives its command a terminal.
#[test]
fn colour_is_for_terminals_only() {
    let mut workload = Workload::c("flood", &["--count", "5"]);
    let command = format!("{} trace -e send,recv -p {}", env!("CARGO_BIN_EXE_zmqtrace"), workload.pid());
    let terminal = Tracer::run(std::process::Command::new("script").args(["-qec", &command, "/dev/null"]));
    let pipe = Tracer::attach("trace", &workload, &["-e", "send,recv"]);
    // On a terminal standard error is there as well.
    while !terminal.line().contains("attached") {}
    workload.go();
    workload.finish();
    let (terminal, pipe) = (terminal.finish(), pipe.finish());
    let coloured = |lines: &[String]| lines.iter().filter(|line| line.contains('\u{1b}')).count();
    assert_eq!(coloured(&terminal.stdout), 10, "{:?}", terminal.stdout);
    assert_eq!((pipe.stdout.iter().filter(|line| line.contains("zmq_")).count(), coloured(&pipe.stdout)), (10, 0));
}
