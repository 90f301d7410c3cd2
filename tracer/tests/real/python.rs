//! pyzmq: its own libzmq, under a mangled name.

use std::collections::BTreeMap;

use serde_json::Value;
use tracer_common::function::Class;

use crate::{
    support::{Finished, Tracer, Workload},
    truth,
};

/// How often each call was made on each socket, those of the truth.
fn counts(done: &Value) -> BTreeMap<(String, String), u64> {
    let totals = done["totals"].as_array().expect("totals").iter();
    totals.map(|total| (key(total), total["count"].as_u64().expect("a number"))).collect()
}

fn key(object: &Value) -> (String, String) {
    (object["call"].to_string(), object["handle"].to_string())
}

/// How often each call was traced on each socket.
fn traced(finished: &Finished) -> BTreeMap<(String, String), u64> {
    let mut counts = BTreeMap::new();
    for call in finished.of_type("call") {
        assert_eq!(call["errno"], Value::Null, "{call}");
        *counts.entry(key(&call)).or_default() += 1;
    }
    counts
}

/// The same by `stat`.
fn counted(finished: &Finished) -> BTreeMap<(String, String), u64> {
    finished.of_type("stat").iter().map(|row| (key(row), row["count"].as_u64().expect("a number"))).collect()
}

#[test]
fn what_pyzmqs_operations_become_with_and_without_copies() {
    let Some(mut workload) = Workload::python("calls.py", &[]) else { return };
    let classes = "ctx,socket,endpoint,option,send,recv,poll,proxy";
    let tracer = Tracer::attach("trace", &workload, &["--json", "-e", classes, "-s", "4096"]);
    let done = workload.go();
    let finished = tracer.interrupt().ok();
    let tid = workload.ready["tid"].clone();
    workload.finish();
    let mut reported = finished.of_type("call");
    // pyzmq's own thread frees what was sent without a copy.
    reported.retain(|call| call["tid"] == tid);
    truth::assert_same(&truth::calls(&done, &Class::ALL), &reported, 4096);
    assert!(finished.stderr[0].contains("libzmq-"), "the mangled name: {}", finished.stderr[0]);
}

/// Both reports at work at the same time.
#[track_caller]
fn assert_sends_and_receives_are_exact(workload: &mut Workload) {
    let trace = Tracer::attach("trace", workload, &["--json", "-e", "send,recv"]);
    let stat = Tracer::attach("stat", workload, &["--json", "-e", "send,recv"]);
    let done = workload.go();
    assert_eq!(traced(&trace.interrupt().ok()), counts(&done));
    assert_eq!(counted(&stat.interrupt().ok()), counts(&done));
}

#[test]
fn requests_and_replies_of_two_threads() {
    let Some(mut workload) = Workload::python("reqrep.py", &["--count", "500", "--phases"]) else { return };
    for _ in 0..2 {
        // Each time anew to a process that goes on.
        assert_sends_and_receives_are_exact(&mut workload);
    }
    workload.finish();
}

#[test]
fn asyncio() {
    let Some(mut workload) = Workload::python("asyncio_echo.py", &["--count", "300"]) else { return };
    assert_sends_and_receives_are_exact(&mut workload);
    workload.finish();
}

#[test]
fn a_service_that_was_already_running_shows_its_messages() {
    let Some(mut workload) = Workload::python("service.py", &[]) else { return };
    // It has done its work for a while when we come.
    workload.say("step 200");
    workload.answer("done");

    let json = Tracer::attach("trace", &workload, &["--json", "-e", "send,recv"]);
    let text = Tracer::attach("trace", &workload, &[]);
    let stat = Tracer::attach("stat", &workload, &["--json", "-e", "send,recv"]);
    workload.say("step 100");
    let done = workload.answer("done");
    let (json, text, stat) = (json.interrupt().ok(), text.interrupt().ok(), stat.interrupt().ok());
    let server = workload.ready["server"].clone();
    workload.finish();

    // The server's thread was inside its first receive when we came: that call's entry was not seen.
    let mut expected = counts(&done);
    let receive = ("\"zmq_msg_recv\"".to_owned(), server.to_string());
    let seen = traced(&json).get(&receive).copied();
    assert!(seen == Some(99) || seen == Some(100), "{seen:?} receives of the server");
    expected.insert(receive.clone(), seen.expect("was checked"));
    assert_eq!(traced(&json), expected);
    let counted = counted(&stat);
    assert!(counted[&receive] == 99 || counted[&receive] == 100, "{counted:?}");

    let calls = json.of_type("call");
    let named = |name: &str, call: &str| {
        let handle = &workload_handle(&calls, name);
        calls.iter().filter(|made| &made["handle"] == handle && made["call"] == call).cloned().collect::<Vec<_>>()
    };
    for (index, call) in named("REQ", "zmq_msg_send").iter().enumerate() {
        assert_eq!(call["payload"], format!("job {index:06}"));
        assert_eq!((&call["size"], &call["more"], &call["ordinal"]), (&10.into(), &false.into(), &(index + 1).into()));
    }
    for (index, call) in named("SUB", "zmq_msg_recv").iter().enumerate() {
        assert_eq!(call["payload"], format!("jobs {index:06}"));
    }
    let sent = text.stdout.iter().filter(|line| line.contains("zmq_msg_send(\"job 0")).collect::<Vec<_>>();
    assert_eq!(sent.len(), 100);
    crate::support::assert_matches(
        sent[7],
        r#"\d\d:\d\d:\d\d\.\d{6} python\[\d+/\d+\] zmq_msg_send\("job 000007", REQ#\d+, 0\) = 10 <0\.\d{6}>"#,
    );
}

/// The address of the one socket of a type.
fn workload_handle(calls: &[Value], kind: &str) -> Value {
    let named = |call: &&Value| call["socket"].as_str().is_some_and(|name| name.starts_with(&format!("{kind}#")));
    calls.iter().find(named).unwrap_or_else(|| panic!("no call on a {kind} socket"))["handle"].clone()
}
