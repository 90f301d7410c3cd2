//! `trace -e net`: the system calls on connections, exact to the byte, and what becomes of connections, against what
//! programs and their monitors say.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    stages::{Program, frame_bytes, go},
    support::{Tracer, Workload, assert_matches, number},
};

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

/// Whether a system call sends, receives, or neither.
fn direction(call: &Value) -> Option<bool> {
    match text(call, "call") {
        "sendto" | "sendmsg" | "write" | "writev" => Some(true),
        "recvfrom" | "recvmsg" | "read" | "readv" => Some(false),
        _ => None,
    }
}

/// What went one way over the connections of a socket.
#[derive(Debug, Default, PartialEq, Eq)]
struct Moved {
    bytes: u64,
    frames: u64,
    messages: u64,
}

/// By process, socket, and whether it was sent.
fn moved(calls: &[Value]) -> BTreeMap<(u64, String, bool), Moved> {
    let mut moved: BTreeMap<_, Moved> = BTreeMap::new();
    for call in calls {
        let Some(sends) = direction(call) else { continue };
        let done = call["errno"].is_null();
        assert_eq!(call["bytes"].as_u64().unwrap_or(0) > 0, done && call["ret"] != 0, "{call}");
        if !done {
            continue;
        }
        assert_eq!(call["ret"], call["bytes"], "{call}");
        let moved = moved.entry((number(call, "pid"), text(call, "socket").to_owned(), sends)).or_default();
        moved.bytes += number(call, "bytes");
        moved.frames += call["frames"].as_u64().unwrap_or(0);
        moved.messages += call["messages"].as_u64().unwrap_or(0);
    }
    moved
}

/// What `count` messages of these sizes, in turn, and of as many parts come to.
fn expected(count: u64, sizes: &[u64], parts: u64) -> Moved {
    let mut expected = Moved { bytes: 0, frames: count * parts, messages: count };
    for index in 0..count {
        let size = sizes[index as usize % sizes.len()];
        let first = size / parts + size % parts;
        expected.bytes += frame_bytes(first) + (parts - 1) * frame_bytes(size / parts);
    }
    expected
}

/// Bytes, frames and messages of both ends are what the program has sent and received.
#[track_caller]
fn assert_exact(transport: &str, count: u64, sizes: &[u64], parts: u64) {
    let list: Vec<_> = sizes.iter().map(u64::to_string).collect();
    let (count_text, list, parts_text) = (count.to_string(), list.join(","), parts.to_string());
    let arguments = ["--transport", transport, "--count", &count_text, "--size", &list, "--parts", &parts_text];
    let [mut receiver, mut sender] = Program::pair(&arguments, &[]);
    let pids = format!("{},{}", receiver.pid(), sender.pid());
    let tracer = Tracer::start(["trace", "--json", "-e", "net", "-p", &pids]).attached();
    go(&mut [&mut receiver, &mut sender]);
    let finished = tracer.interrupt().ok();
    assert!(finished.of_type("call").is_empty(), "libzmq's calls were not asked for");
    let calls = finished.of_type("syscall");
    let moved = moved(&calls);
    let expected = expected(count, sizes, parts);
    let end = |program: &Program, sends| (u64::from(program.pid()), program.name(0).to_owned(), sends);
    assert_eq!(moved.get(&end(&sender, true)), Some(&expected), "sent by {transport}");
    assert_eq!(moved.get(&end(&receiver, false)), Some(&expected), "received by {transport}");
    assert!(moved.keys().all(|(_, socket, _)| !socket.is_empty()), "whose it is is known: {:?}", moved.keys());
    // Each in a thread of its own, of libzmq, and within its time.
    for call in &calls {
        assert!(number(call, "fd") > 2 && number(call, "ts_ns") > 0 && !call["dur_ns"].is_null(), "{call}");
        assert_ne!(call["tid"], call["pid"], "the I/O thread's, not the program's: {call}");
        assert!(text(call, "connection").contains(if transport == "tcp" { "127.0.0.1:" } else { "/" }), "{call}");
    }
    let ends: Vec<_> = calls.iter().map(|call| number(call, "ts_ns") + number(call, "dur_ns")).collect();
    assert!(ends.is_sorted(), "in the order in which they returned");
}

#[test]
fn system_calls_are_exact_to_the_byte() {
    for transport in ["tcp", "ipc"] {
        assert_exact(transport, 20_000, &[64], 1);
        assert_exact(transport, 2000, &[8, 255, 256, 40_000], 1);
        assert_exact(transport, 2000, &[30, 900], 3);
        assert_exact(transport, 100, &[1 << 20], 1);
    }
}

/// Calls and system calls stand on one time line.
#[test]
fn between_the_calls_of_libzmq() {
    let mut program = Program::c(&["--count", "200", "--rate", "2000"]);
    let tracer = Tracer::attach("trace", &program.workload, &["--json", "-e", "net,send,recv"]);
    go(&mut [&mut program]);
    let finished = tracer.interrupt().ok();
    let objects = finished.objects();
    let of = |object: &Value| object["type"] == "call" || object["type"] == "syscall";
    let ends: Vec<_> = objects
        .iter()
        .filter(|object| of(object))
        .map(|object| number(object, "ts_ns") + number(object, "dur_ns"))
        .collect();
    assert!(ends.is_sorted());
    assert_eq!(finished.of_type("call").iter().filter(|call| call["call"] == "zmq_send").count(), 200);
    let sent = moved(&finished.of_type("syscall"));
    let pid = u64::from(program.pid());
    assert_eq!(sent.get(&(pid, program.name(0).to_owned(), true)), Some(&expected(200, &[64], 1)));
}

#[test]
fn lines_have_straces_form() {
    let mut program = Program::c(&["--count", "1", "--size", "64", "--parts", "2"]);
    let tracer = Tracer::attach("trace", &program.workload, &["-e", "net"]);
    go(&mut [&mut program]);
    let lines = tracer.interrupt().ok().stdout;
    let line = |call: &str| {
        let found = lines.iter().find(|line| line.contains(call) && line.contains("= 68"));
        found.unwrap_or_else(|| panic!("no {call} of 68 bytes: {lines:#?}"))
    };
    let time = r"\d\d:\d\d:\d\d\.\d{6} \S+\[\d+/\d+\]";
    let send = format!(r"{time} send(to|msg)\(\d+<{} tcp://127\.0\.0\.1:\d+>, 2 frames, 68\) = 68.*", program.name(0));
    let receive = format!(r"{time} recv(from|msg)\(\d+<{} tcp://\S+>, 2 frames, .*\) = 68.*", program.name(1));
    assert_matches(line("send"), &send);
    assert_matches(line("recv"), &receive);
}

/// How often each socket, in the order of their making, was told each thing.
type Told = Vec<BTreeMap<String, u64>>;

/// What the monitors of `connections` heard, in the words of the contract.
fn heard(done: &Value) -> (Vec<String>, Told) {
    let (mut names, mut told, mut indices) = (Vec::new(), Told::new(), BTreeMap::new());
    for event in done["events"].as_array().expect("events") {
        let handle = text(event, "handle");
        let index = *indices.entry(handle.to_owned()).or_insert_with(|| {
            names.push(text(event, "name").to_owned());
            told.push(BTreeMap::new());
            told.len() - 1
        });
        let retrying = text(event, "name") == "retrying" || text(event, "name") == "connecter";
        let word = match text(event, "event") {
            "accepted" => "accepted",
            "connected" => "connected",
            "connect_retried" => "retried",
            "handshake_succeeded" => "handshake_done",
            // Of one that connects, the fd of an attempt that has failed.
            "closed" if retrying => "refused",
            "disconnected" => "disconnected",
            // The last of its life: the next one at this address is another.
            "monitor_stopped" => {
                indices.remove(handle);
                continue;
            }
            _ => continue,
        };
        *told[index].entry(word.to_owned()).or_default() += 1;
    }
    (names, told)
}

/// All that the monitors tell, and why a handshake failed, which they do not tell.
#[test]
fn what_becomes_of_connections() {
    let mut workload = Workload::c("connections", &["--retries", "4"]);
    let tracer = Tracer::attach("trace", &workload, &["--json", "-e", "net,socket"]);
    let done = workload.go();
    let finished = tracer.interrupt().ok();
    workload.finish();
    let (names, told) = heard(&done);
    let events = finished.of_type("connection_event");

    // The numbers in the sockets' names stand in the order of their making.
    let mut by_socket: BTreeMap<u64, (String, BTreeMap<String, u64>)> = BTreeMap::new();
    for event in &events {
        let socket = text(event, "socket");
        let id = socket.rsplit('#').next().and_then(|id| id.trim_start_matches('~').parse().ok());
        let id = id.unwrap_or_else(|| panic!("whose it is is known: {event}"));
        let (_, counts) = by_socket.entry(id).or_insert_with(|| (socket.to_owned(), BTreeMap::new()));
        *counts.entry(text(event, "event").to_owned()).or_default() += 1;
    }
    let types: Vec<_> = by_socket.values().map(|(socket, _)| socket.split('#').next().unwrap_or("")).collect();
    let pairs = ["PUSH", "PULL", "PUSH", "PUB", "PUSH", "PUB", "ROUTER", "DEALER", "REP", "REQ"];
    assert_eq!(types, pairs, "the sockets of {names:?}");

    // The monitors' sockets come in the order in which something was first told of them: a pair each time.
    let of = |name: &str, nth: usize| {
        let found = names.iter().enumerate().filter(|(_, heard)| *heard == name).nth(nth);
        &told[found.unwrap_or_else(|| panic!("no {name} {nth} in {names:?}")).0]
    };
    let order = [
        of("retrying", 0),
        of("late", 0),
        of("push", 0),
        of("pub", 0),
        of("push", 1),
        of("pub", 1),
        of("binder", 0),
        of("connecter", 0),
        of("binder", 1),
        of("connecter", 1),
    ];
    for ((socket, found), expected) in by_socket.values().zip(order) {
        for event in ["accepted", "connected", "refused", "handshake_done"] {
            assert_eq!(found.get(event), expected.get(event), "{event} of {socket}: {found:?}, but {expected:?}");
        }
        // Monitors are gone when the socket that was closed itself loses its connection.
        // What failed in its handshake is not said to be disconnected, too.
        let ended = |event: &str| found.get(event).copied().unwrap_or(0);
        let lost = ended("disconnected") + ended("handshake_failed");
        let heard = expected.get("disconnected").copied().unwrap_or(0);
        assert!(lost >= heard, "{socket} disconnected: {found:?}, but {expected:?}");
        assert_eq!(found.contains_key("retried"), expected.contains_key("retried"), "{socket}: {found:?}");
        let fails = socket.starts_with("PUB#") || (socket.starts_with("PUSH#") && !expected.contains_key("retried"));
        if fails {
            assert!(!found.contains_key("handshake_done"), "{socket}: {found:?}");
        }
    }
    let failed: Vec<_> = events.iter().filter(|event| event["event"] == "handshake_failed").collect();
    assert!(failed.len() >= 2, "by tcp and by ipc: {failed:?}");
    // The end that finds out closes before it has said what it is: so the other one never knows.
    let told: Vec<_> = failed.into_iter().filter(|event| !event["peer_type"].is_null()).collect();
    assert!(told.len() >= 2, "by tcp and by ipc: {told:?}");
    for event in told {
        let detail = text(event, "detail");
        assert!(detail.contains("PUSH") && detail.contains("PUB"), "which types it were: {event}");
    }
}

/// The peer's type and identity come from its handshake.
#[test]
fn the_peers_of_a_handshake() {
    let mut workload = Workload::c("connections", &[]);
    let tracer = Tracer::attach("trace", &workload, &["--json", "-e", "net"]);
    workload.go();
    let events = tracer.interrupt().ok().of_type("connection_event");
    workload.finish();
    let done: Vec<_> = events.iter().filter(|event| event["event"] == "handshake_done").collect();
    let mut peers: Vec<_> = done
        .iter()
        .map(|event| {
            let kind = text(event, "socket").split('#').next().unwrap_or_default().to_owned();
            (kind, text(event, "peer_type").to_owned(), text(event, "peer_identity").to_owned())
        })
        .collect();
    peers.sort();
    let peer = |kind: &str, peer: &str, identity: &str| (kind.to_owned(), peer.to_owned(), identity.to_owned());
    assert_eq!(
        peers,
        [
            peer("DEALER", "ROUTER", ""),
            peer("PULL", "PUSH", ""),
            peer("PUSH", "PULL", ""),
            peer("REP", "REQ", "who I am"),
            peer("REQ", "REP", ""),
            peer("ROUTER", "DEALER", "who I am"),
        ]
    );
}

/// Whatever the version, and however the greeting is cut.
#[test]
fn handshakes_of_each_version_cut_into_single_bytes() {
    for version in ["3.1", "3.0", "2.0", "1.0"] {
        for chunk in ["0", "1", "7"] {
            let mut receiver = Program::c(&["--pattern", "dealer", "--role", "receiver", "--count", "20"]);
            let endpoint = receiver.endpoint();
            let arguments = ["--endpoint", &endpoint, "--type", "DEALER", "--count", "20", "--late"];
            let mut peer = Workload::c("rawpeer", &[&arguments[..], &["--zmtp", version, "--chunk", chunk]].concat());
            let tracer = Tracer::attach("trace", &receiver.workload, &["--json", "-e", "net"]);
            receiver.workload.say("go");
            let sent = peer.go();
            receiver.workload.answer("done");
            let finished = tracer.interrupt().ok();
            let events = finished.of_type("connection_event");
            let done: Vec<_> = events.iter().filter(|event| event["event"] == "handshake_done").collect();
            assert_eq!(done.len(), 1, "{version} by {chunk}: {events:?}");
            // Without versions nobody says what he is.
            let peer_type = if version == "1.0" { Value::Null } else { "DEALER".into() };
            assert_eq!(done[0]["peer_type"], peer_type, "{version} by {chunk}: {}", done[0]);
            assert_eq!(done[0]["peer_identity"], "rawpeer", "{version} by {chunk}: {}", done[0]);
            let moved = moved(&finished.of_type("syscall"));
            let from_peer = &moved[&(u64::from(receiver.pid()), receiver.name(0).to_owned(), false)];
            assert_eq!(from_peer.messages, 20, "{version} by {chunk}");
            assert_eq!(from_peer.frames, 20, "{version} by {chunk}");
            assert_eq!(from_peer.bytes, number(&sent, "bytes_written"), "{version} by {chunk}");
            peer.close();
        }
    }
}

/// A handshake that had begun before is followed to its end from wherever it was.
#[test]
fn handshakes_that_had_begun() {
    let stalls = [
        ("3.1", &[0, 1, 5, 10, 11, 12, 40, 64, 66, 67, 80, 100][..]),
        ("3.0", &[0, 11, 64, 90]),
        ("2.0", &[0, 5, 11]),
        ("1.0", &[0]),
    ];
    for (version, stalls) in stalls {
        for stall in stalls {
            let mut receiver = Program::c(&["--pattern", "dealer", "--role", "receiver", "--count", "20"]);
            let (endpoint, stall) = (receiver.endpoint(), stall.to_string());
            let arguments = ["--endpoint", &endpoint, "--type", "DEALER", "--count", "20", "--stall", &stall];
            let mut peer = Workload::c("rawpeer", &[&arguments[..], &["--zmtp", version]].concat());
            let tracer = Tracer::attach("trace", &receiver.workload, &["--json", "-e", "net"]);
            receiver.workload.say("go");
            peer.go();
            receiver.workload.answer("done");
            let finished = tracer.interrupt().ok();
            let events = finished.of_type("connection_event");
            let [done] = &events[..] else { panic!("{version} after {stall}: {events:?}") };
            assert_eq!(done["event"], "handshake_done", "{version} after {stall}: {done}");
            let peer_type = if version == "1.0" { Value::Null } else { "DEALER".into() };
            assert_eq!(done["peer_type"], peer_type, "{version} after {stall}: {done}");
            assert_eq!(done["peer_identity"], "rawpeer", "{version} after {stall}: {done}");
            let moved = moved(&finished.of_type("syscall"));
            let from_peer = &moved[&(u64::from(receiver.pid()), receiver.name(0).to_owned(), false)];
            assert_eq!((from_peer.messages, from_peer.frames), (20, 20), "{version} after {stall}");
            peer.close();
        }
    }
}

/// Where frames begin is known of a connection that was there before, whatever version it speaks.
#[test]
fn connections_that_were_there_before() {
    for version in ["3.1", "3.0", "2.0", "1.0"] {
        let mut receiver = Program::c(&["--role", "receiver", "--count", "200"]);
        let endpoint = receiver.endpoint();
        let arguments = ["--endpoint", &endpoint, "--count", "200", "--size", "8,300", "--zmtp", version];
        let mut peer = Workload::c("rawpeer", &arguments);
        let tracer = Tracer::attach("trace", &receiver.workload, &["--json", "-e", "net"]);
        receiver.workload.say("go");
        peer.go();
        receiver.workload.answer("done");
        let moved = moved(&tracer.interrupt().ok().of_type("syscall"));
        let from_peer = &moved[&(u64::from(receiver.pid()), receiver.name(0).to_owned(), false)];
        assert_eq!((from_peer.messages, from_peer.frames), (200, 200), "{version}");
        peer.close();
    }
}

/// Why it fails is told, too.
#[test]
fn handshakes_that_had_begun_and_fail() {
    for (arguments, stall, why) in [
        (&["--type", "PUB"][..], "5", "PUB"),
        (&["--type", "PUB"], "70", "PUB"),
        (&["--error", "not today"], "64", "not today"),
        (&["--error", "not today"], "70", "not today"),
    ] {
        let mut receiver = Program::c(&["--role", "receiver", "--until-told"]);
        let endpoint = receiver.endpoint();
        let mut peer = Workload::c("rawpeer", &[&["--endpoint", &endpoint, "--stall", stall], arguments].concat());
        let tracer = Tracer::attach("trace", &receiver.workload, &["--json", "-e", "net"]);
        receiver.workload.say("go");
        peer.say("go");
        // It has to come: nothing says when.
        let failed = loop {
            let object = tracer.object();
            if object["type"] == "connection_event" {
                break object;
            }
        };
        assert_eq!(failed["event"], "handshake_failed", "{failed}");
        assert!(text(&failed, "detail").contains(why), "{failed}");
        tracer.interrupt().ok();
        receiver.workload.say("stop");
        receiver.workload.answer("done");
    }
}

/// Subscriptions are no messages, by command or by message.
#[test]
fn subscriptions_of_each_version() {
    for version in ["3.1", "3.0", "2.0", "1.0"] {
        let arguments = ["--role", "sender", "--pattern", "xpub", "--sender-binds", "--count", "400"];
        let mut publisher = Program::c(&arguments);
        let endpoint = publisher.endpoint();
        let arguments = ["--endpoint", &endpoint, "--type", "SUB", "--count", "200", "--subscribe", "b", "--late"];
        let mut peer = Workload::c("rawpeer", &[&arguments[..], &["--zmtp", version, "--chunk", "1"]].concat());
        let tracer = Tracer::attach("trace", &publisher.workload, &["--json", "-e", "net"]);
        publisher.workload.say("go");
        let received = peer.go();
        publisher.workload.answer("done");
        let moved = moved(&tracer.interrupt().ok().of_type("syscall"));
        let end = |sends| (u64::from(publisher.pid()), publisher.name(0).to_owned(), sends);
        let subscribed = Moved { bytes: number(&received, "bytes_written"), frames: 0, messages: 0 };
        assert_eq!(moved[&end(false)], subscribed, "{version}");
        assert!(moved[&end(true)].messages >= 200, "{version}: {moved:?}");
        peer.close();
    }
}

/// A peer without versions takes libzmq's signature for the header of a frame, whose body is its identity.
#[test]
fn identities_of_both_ends_before_there_were_versions() {
    for (identity, chunk) in [(None, "65536"), (Some("i"), "1"), (Some("identity"), "65536"), (Some("identity"), "3")] {
        let named = identity.iter().flat_map(|identity| ["--identity", identity]);
        let arguments = ["--role", "receiver", "--count", "20"].into_iter().chain(named);
        let mut receiver = Program::c(&arguments.collect::<Vec<_>>());
        let endpoint = receiver.endpoint();
        let arguments = ["--endpoint", &endpoint, "--zmtp", "1.0", "--count", "20", "--late", "--read", chunk];
        let mut peer = Workload::c("rawpeer", &arguments);
        let pids = format!("{},{}", receiver.pid(), peer.pid());
        let tracer = Tracer::start(["trace", "--json", "-e", "net", "--wire-only", "-p", &pids]).attached();
        receiver.workload.say("go");
        peer.go();
        receiver.workload.answer("done");
        let events = tracer.interrupt().ok().of_type("connection_event");
        let done = |pid: u32| {
            let mut done = events.iter().filter(|event| event["event"] == "handshake_done" && event["pid"] == pid);
            let only = done.next().unwrap_or_else(|| panic!("{pid} has shaken hands: {events:?}"));
            assert!(done.next().is_none(), "once: {events:?}");
            only
        };
        assert_eq!(done(receiver.pid())["peer_identity"], "rawpeer", "{events:?}");
        assert_eq!(done(peer.pid())["peer_identity"].as_str(), identity, "{events:?}");
        peer.close();
    }
}

/// With PLAIN the client says who it is by INITIATE.
#[test]
fn both_ends_of_a_plain_handshake() {
    let arguments = ["--pattern", "dealer", "--count", "20", "--plain", "--late"];
    let mut program = Program::c(&arguments);
    let tracer = Tracer::attach("trace", &program.workload, &["--json", "-e", "net"]);
    go(&mut [&mut program]);
    let events = tracer.interrupt().ok().of_type("connection_event");
    let done: Vec<_> = events.iter().filter(|event| event["event"] == "handshake_done").collect();
    let mut peers: Vec<_> = done.iter().map(|event| (text(event, "socket"), text(event, "peer_type"))).collect();
    peers.sort_unstable();
    assert_eq!(peers, [(program.name(0), "ROUTER"), (program.name(1), "DEALER")], "{events:?}");

    let arguments = ["--pattern", "dealer", "--role", "receiver", "--count", "20", "--plain"];
    let mut receiver = Program::c(&arguments);
    let endpoint = receiver.endpoint();
    let arguments = ["--endpoint", &endpoint, "--type", "DEALER", "--count", "20", "--plain", "--late", "--chunk", "1"];
    let mut peer = Workload::c("rawpeer", &arguments);
    let tracer = Tracer::attach("trace", &receiver.workload, &["--json", "-e", "net"]);
    receiver.workload.say("go");
    peer.go();
    receiver.workload.answer("done");
    let events = tracer.interrupt().ok().of_type("connection_event");
    let done = events.iter().find(|event| event["event"] == "handshake_done");
    let done = done.unwrap_or_else(|| panic!("it was done: {events:?}"));
    assert_eq!((text(done, "peer_type"), text(done, "peer_identity")), ("DEALER", "rawpeer"), "{done}");
    peer.close();
}

#[test]
fn a_peer_that_refuses_the_handshake() {
    let mut receiver = Program::c(&["--role", "receiver", "--until-told"]);
    let endpoint = receiver.endpoint();
    let mut peer = Workload::c("rawpeer", &["--endpoint", &endpoint, "--error", "not today", "--late"]);
    let tracer = Tracer::attach("trace", &receiver.workload, &["--json", "-e", "net"]);
    receiver.workload.say("go");
    peer.go();
    peer.finish();
    let mut refused = None;
    // It has to come: nothing says when.
    while refused.is_none() {
        let object = tracer.object();
        refused = (object["event"] == "handshake_failed").then_some(object);
    }
    let refused = refused.expect("it came");
    assert!(text(&refused, "detail").contains("not today"), "{refused}");
    tracer.interrupt().ok();
    receiver.workload.say("stop");
    receiver.workload.answer("done");
}
