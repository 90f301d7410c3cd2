//! `stat`: counts are exact, whatever is lost elsewhere; and what `trace` loses, it counts.

use std::collections::BTreeMap;

use serde_json::Value;
use tracer_common::function::Class;
use zmqtrace::cli::args::DEFAULT_CLASSES;

use crate::{
    support::{Tracer, Workload, assert_matches, number, parse, signal},
    truth,
};

/// The one row of a socket and call.
#[track_caller]
fn row<'rows>(rows: &'rows [Value], total: &Value) -> &'rows Value {
    let same = |row: &&Value| row["call"] == total["call"] && row["handle"] == total["handle"];
    let found: Vec<_> = rows.iter().filter(same).collect();
    assert_eq!(found.len(), 1, "rows for {total}: {found:?}");
    found[0]
}

/// Asserts that a row says what the workload says, and nothing impossible.
#[track_caller]
fn assert_row(row: &Value, total: &Value) {
    for name in ["count", "errors", "bytes"] {
        assert_eq!(row[name], total[name], "{name} of {row}");
    }
    let [count, total_ns, mean_ns, p50_ns, p99_ns, max_ns] =
        ["count", "total_ns", "mean_ns", "p50_ns", "p99_ns", "max_ns"].map(|name| number(row, name));
    assert!(max_ns <= total_ns && total_ns <= max_ns * count, "{row}");
    assert_eq!(mean_ns, total_ns / count, "{row}");
    assert!(p50_ns <= p99_ns && p99_ns <= max_ns, "{row}");
}

#[test]
fn counts_are_the_workloads_own_even_while_the_ring_overflows() {
    let mut workload = Workload::c("flood", &["--count", "200000"]);
    let trace = Tracer::attach("trace", &workload, &["--json", "--buffer", "1"]);
    let stat = Tracer::attach("stat", &workload, &["--json", "--buffer", "1"]);
    // Now its ring overflows for certain.
    signal(trace.pid(), libc::SIGSTOP);
    let done = workload.go();
    signal(trace.pid(), libc::SIGCONT);
    let (trace, stat) = (trace.interrupt(), stat.interrupt().ok());
    workload.finish();

    let rows = stat.of_type("stat");
    let mut calls = 0;
    for total in done["totals"].as_array().expect("totals") {
        let row = row(&rows, total);
        assert_row(row, total);
        assert_eq!(row["messages"], 200_000);
        calls += number(total, "count");
    }
    assert_eq!(rows.len(), 2, "nothing else was called");

    assert_eq!(trace.status, 0);
    let (reported, lost) = (trace.of_type("call").len() as u64, trace.lost());
    assert!(lost > 0 && reported > 0, "{reported} calls seen, {lost} lost");
    assert_eq!(reported + lost, calls, "{reported} calls seen, {lost} lost");
    let summary = trace.stderr.last().expect("a summary");
    assert_matches(summary, &format!("zmqtrace: {reported} calls seen, LOST: {lost} ring full.*"));
}

#[test]
fn counts_are_the_workloads_own_for_a_second_at_full_speed() {
    let mut workload = Workload::c("flood", &["--seconds", "1", "--size", "100"]);
    let trace = Tracer::attach("trace", &workload, &["--json", "-s", "0"]);
    let stat = Tracer::attach("stat", &workload, &["--json"]);
    let done = workload.go();
    let (trace, stat) = (trace.interrupt(), stat.interrupt().ok());
    workload.finish();
    let rows = stat.of_type("stat");
    let mut calls = 0;
    for total in done["totals"].as_array().expect("totals") {
        assert_row(row(&rows, total), total);
        calls += number(total, "count");
    }
    assert_eq!(trace.of_type("call").len() as u64 + trace.lost(), calls, "reported and lost");
}

#[test]
fn sockets_that_were_there_before_have_their_names() {
    let mut workload = Workload::c("flood", &["--count", "1000"]);
    let json = Tracer::attach("stat", &workload, &["--json"]);
    let table = Tracer::attach("stat", &workload, &[]);
    let narrowed = Tracer::attach("stat", &workload, &["--json", "--socket", "PUSH"]);
    let done = workload.go();
    let (json, table, narrowed) = (json.interrupt().ok(), table.interrupt().ok(), narrowed.interrupt().ok());
    workload.finish();

    let rows = json.of_type("stat");
    for (total, kind) in done["totals"].as_array().expect("totals").iter().zip(["PUSH#", "PULL#"]) {
        let name = row(&rows, total)["socket"].as_str().expect("a name").to_owned();
        assert!(name.starts_with(kind), "{name}");
    }
    let calls: Vec<_> = narrowed.of_type("stat").iter().map(|row| row["call"].clone()).collect();
    assert_eq!(calls, ["zmq_send"]);

    assert_matches(
        &table.stdout[0],
        r"socket +call +calls +errors +total +mean +p50 +p99 +max +bytes +messages +msg/s +Mbit/s",
    );
    let line = table.stdout.iter().find(|line| line.contains("zmq_send")).expect("a row");
    assert_matches(line, r"PUSH#\d+ +zmq_send +1000 +([\d.]+ [mun]?s +){5}64000 +1000 +\d+ +[\d.]+");
    assert_matches(table.stdout.last().expect("lines"), r"2000 calls in \d+\.\d s; percentiles .*");
}

/// Calls, failures by name, bytes and messages.
type Counts = (u64, BTreeMap<String, u64>, u64, u64);

#[test]
fn errors_are_counted_by_name_for_each_socket_and_call() {
    let mut workload = Workload::c("calls", &[]);
    let tracer = Tracer::attach("stat", &workload, &["--json"]);
    let done = workload.go();
    workload.finish();
    let mut expected: BTreeMap<(String, String), Counts> = BTreeMap::new();
    for call in truth::calls(&done, DEFAULT_CLASSES) {
        let counts = expected.entry(key(&call)).or_default();
        counts.0 += 1;
        match truth::errno(&call) {
            Some(name) => *counts.1.entry(name.into()).or_default() += 1,
            None if matches!(truth::class(&call), Class::Send | Class::Recv) => {
                counts.2 += number(&call, "size");
                counts.3 += u64::from(call["more"] == false);
            }
            None => {}
        }
    }
    // An address may have been that of several sockets, one after another; each has rows of its own.
    let mut counted: BTreeMap<(String, String), Counts> = BTreeMap::new();
    for row in tracer.finish().ok().of_type("stat") {
        let counts = counted.entry(key(&row)).or_default();
        counts.0 += number(&row, "count");
        for (name, count) in row["errors"].as_object().expect("by name") {
            let name = if name == "EOPNOTSUPP" { "ENOTSUP" } else { name };
            *counts.1.entry(name.into()).or_default() += count.as_u64().expect("a number");
        }
        counts.2 += number(&row, "bytes");
        counts.3 += number(&row, "messages");
    }
    for key in expected.keys().chain(counted.keys()) {
        assert_eq!(counted.get(key), expected.get(key), "{key:?}: calls, errors, bytes, messages");
    }
}

fn key(object: &Value) -> (String, String) {
    (object["call"].to_string(), object["handle"].to_string())
}

#[test]
fn intervals_add_up_to_the_total() {
    let mut workload = Workload::c("flood", &["--count", "30000", "--rate", "60000"]);
    let tracer = Tracer::attach("stat", &workload, &["--json", "--interval", "200ms"]);
    let done = workload.go();
    let totals = done["totals"].as_array().expect("totals");
    let mut sums: BTreeMap<(String, String), [u64; 4]> = BTreeMap::new();
    let columns = |row: &Value| ["count", "bytes", "messages", "total_ns"].map(|name| number(row, name));
    let mut intervals = 0;
    // Until an interval has the last call.
    while totals.iter().any(|total| sums.get(&key(total)).is_none_or(|sum| sum[0] < number(total, "count"))) {
        let row = parse(&tracer.line());
        assert!(row["interval"] == true && row["type"] == "stat", "{row}");
        let sum = sums.entry(key(&row)).or_default();
        for (sum, value) in sum.iter_mut().zip(columns(&row)) {
            *sum += value;
        }
        intervals += 1;
    }
    assert!(intervals > 2, "half a second has more than one interval of 200 ms");
    let rows = tracer.interrupt().ok().of_type("stat");
    workload.finish();
    let rows: Vec<_> = rows.into_iter().filter(|row| row["interval"] == false).collect();
    for total in totals {
        let row = row(&rows, total);
        assert_row(row, total);
        assert_eq!(columns(row), sums[&key(total)], "{row}");
    }
}

/// More rows than one read of the kernel's table takes. By chance a read ends early, so not once only.
#[test]
fn many_sockets_are_all_counted() {
    for _ in 0..4 {
        let mut workload = Workload::c("many", &[]);
        let tracer = Tracer::attach("stat", &workload, &["--json"]);
        let done = workload.go();
        let rows = tracer.interrupt().ok().of_type("stat");
        workload.finish();
        let counted: u64 = rows.iter().filter(|row| row["call"] == "zmq_send").map(|row| number(row, "count")).sum();
        assert_eq!(counted, number(&done["totals"][0], "count"));
    }
}
