//! Calls inside calls, several libzmqs in one process, and libzmqs that are not a shared library.

use std::process::Command;

use serde_json::Value;
use tracer_common::function::Class;
use zmqtrace::cli::args::DEFAULT_CLASSES;

use crate::{
    support::{Tracer, Workload, made, made_external},
    truth,
};

#[test]
fn calls_that_libzmq_makes_itself_are_not_reported_and_those_of_callbacks_are() {
    let mut workload = Workload::c("nesting", &[]);
    let attach = |arguments: &[&str]| Tracer::attach("trace", &workload, arguments);
    let default = attach(&["--json"]);
    let all = attach(&["--json", "-e", "all"]);
    let done = workload.go();
    workload.finish();
    truth::assert_same(&truth::calls(&done, DEFAULT_CLASSES), &default.finish().ok().of_type("call"), 32);
    let mut all = all.finish().ok().of_type("call");
    all.retain(|call| !truth::is_accessor(call));
    truth::assert_same(&truth::calls(&done, &Class::ALL), &all, 32);
}

#[test]
fn calls_that_libzmq_makes_itself_are_not_reported_where_only_they_are_traced() {
    let mut workload = Workload::c("nesting", &[]);
    let traced = [
        ("msg", vec![Class::Msg]),
        ("ctx", vec![Class::Ctx]),
        ("option", vec![Class::Option, Class::Getsockopt]),
        ("endpoint", vec![Class::Endpoint]),
        ("send", vec![Class::Send]),
    ]
    .map(|(name, classes)| (Tracer::attach("trace", &workload, &["--json", "-e", name]), classes));
    let done = workload.go();
    workload.finish();
    for (tracer, classes) in traced {
        let mut reported = tracer.finish().ok().of_type("call");
        reported.retain(|call| !truth::is_accessor(call));
        truth::assert_same(&truth::calls(&done, &classes), &reported, 32);
    }
}

#[test]
fn two_libzmqs_in_one_process_are_told_apart() {
    // The system's, and the one in pyzmq's wheel.
    let Some(environment) = made_external("venv/lib") else { return };
    let wheel = find(&environment, "libzmq-").expect("the pyzmq wheel has a libzmq");
    let mut workload = Workload::c("twolibs", &["--count-a", "30", "--count-b", "50", &system_libzmq(), &wheel]);
    let trace = Tracer::attach("trace", &workload, &["--json"]);
    let stat = Tracer::attach("stat", &workload, &["--json"]);
    let libraries = workload.ready["libraries"].clone();
    let done = workload.go();
    // Before it ends, so that it can be asked what its sockets are.
    let (trace, stat) = (trace.interrupt().ok(), stat.interrupt().ok());
    workload.finish();

    let calls = trace.of_type("call");
    let rows = stat.of_type("stat");
    for total in done["totals"].as_array().expect("totals") {
        let same = |object: &&Value| object["call"] == total["call"] && object["handle"] == total["handle"];
        let calls: Vec<_> = calls.iter().filter(same).collect();
        assert_eq!(calls.len() as u64, total["count"], "{total}");
        let rows: Vec<_> = rows.iter().filter(same).collect();
        assert_eq!(rows.len(), 1, "{total}");
        assert_eq!((&rows[0]["count"], &rows[0]["bytes"]), (&total["count"], &total["bytes"]));
        // Which copy is the first is decided by the order of their addresses.
        assert_eq!(rows[0]["socket"], calls[0]["socket"]);
    }
    let prefixed = |index: usize| {
        let name = |end: &str| {
            calls.iter().find(|call| call["handle"] == libraries[index][end]).map(|call| call["socket"].clone())
        };
        let names = [name("push"), name("pull")]
            .map(|name| name.and_then(|name| name.as_str().map(String::from)).expect("is named"));
        let prefix = names[0].starts_with("b:");
        let expected = if prefix { ["b:PUSH#", "b:PULL#"] } else { ["PUSH#", "PULL#"] };
        assert!(names[0].starts_with(expected[0]) && names[1].starts_with(expected[1]), "{names:?}");
        prefix
    };
    assert_ne!(prefixed(0), prefixed(1), "one of the two copies has the prefix");
}

/// The system's libzmq, as a program that is linked with it maps it.
pub fn system_libzmq() -> String {
    let output = Command::new("ldd").arg(made("workloads/calls")).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = text.lines().find_map(|line| line.trim().strip_prefix("libzmq.so.5 => ")?.split(' ').next());
    path.expect("calls is linked with libzmq").to_owned()
}

/// A file somewhere in a folder, by the start of its name.
pub fn find(folder: &std::path::Path, start: &str) -> Option<String> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, start) {
                return Some(found);
            }
        } else if entry.file_name().to_string_lossy().starts_with(start) {
            return path.to_str().map(String::from);
        }
    }
    None
}

#[test]
fn draft_pollers_of_an_addon_are_traced() {
    let Some(addon) = made_external("npm/addon.node") else { return };
    let mut workload = Workload::c("poller", &[addon.to_str().expect("UTF-8")]);
    let json = Tracer::attach("trace", &workload, &["--json", "-e", "poll"]);
    let text = Tracer::attach("trace", &workload, &[]);
    let done = workload.go();
    workload.finish();
    let text = text.finish().ok();
    let json = json.finish().ok().of_type("call");
    truth::assert_same(&truth::calls(&done, &[Class::Poll]), &json, 32);

    let waits: Vec<_> = json.iter().filter(|call| call["call"] == "zmq_poller_wait" && call["ret"] == 0).collect();
    assert_eq!(waits.len(), 1);
    assert_eq!(waits[0]["args"]["events"][0]["revents"], serde_json::json!(["POLLIN"]));
    let all =
        json.iter().find(|call| call["call"] == "zmq_poller_wait_all" && call["ret"] == 2).expect("both were ready");
    assert_eq!(all["args"]["events"].as_array().map(Vec::len), Some(2));
    assert!(text.stdout.iter().any(|line| line.contains("zmq_poller_new() = poller#~1 <")));
    assert!(text.stdout.iter().any(|line| line.contains("zmq_poller_add_fd(poller#~1, ")));
}

#[test]
fn a_libzmq_inside_an_executable_is_found_by_its_symbols() {
    let mut workload = Workload::c("static", &["--count", "20"]);
    let tracer = Tracer::attach("trace", &workload, &["--json"]);
    let done = workload.go();
    let reported = tracer.interrupt().ok();
    workload.finish();
    truth::assert_same(&truth::calls(&done, DEFAULT_CLASSES), &reported.of_type("call"), 32);
    assert!(reported.stderr[0].contains("(static)"), "{}", reported.stderr[0]);
}
