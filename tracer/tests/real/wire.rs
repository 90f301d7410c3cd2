//! What is known of connections from the wire alone: exact, of programs with libzmq, of stripped ones, and of such as
//! have none.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use crate::{
    stages::frame_bytes,
    support::{Finished, Tracer, Workload, made, number, root},
};

/// All connections of a process, both ways.
#[derive(Debug, Default, PartialEq, Eq)]
struct Total {
    messages: u64,
    frames: u64,
    bytes: u64,
}

fn total(finished: &Finished, pid: u32) -> Total {
    let mut total = Total::default();
    for wire in finished.of_type("wire").iter().filter(|wire| wire["pid"] == pid) {
        total.messages += number(wire, "messages");
        total.frames += number(wire, "frames");
        total.bytes += number(wire, "bytes");
    }
    total
}

/// Greeting and READY of a PUSH or PULL.
const HANDSHAKE_BYTES: u64 = 64 + 28;

/// What both ends of a stream within one process come to, the handshake included.
const fn both_ends(count: u64, parts: u64, size_of_part: u64) -> Total {
    Total {
        messages: 2 * count,
        frames: 2 * count * parts,
        bytes: 4 * HANDSHAKE_BYTES + 2 * count * parts * frame_bytes(size_of_part),
    }
}

/// Lets a workload do its job, and returns what it says and what `stat` counts.
fn count(workload: &mut Workload, arguments: &[&str]) -> (Value, Finished) {
    let tracer = Tracer::attach("stat", workload, &[&["--json"], arguments].concat());
    let done = workload.go();
    let finished = tracer.interrupt().ok();
    for wire in finished.of_type("wire") {
        assert_eq!(wire["synchronised"], true, "its frames lie open from the start: {wire}");
        // Of a unix socket one end has a name.
        assert!(wire["local"].is_string() || wire["remote"].is_string(), "{wire}");
        assert!(number(&wire, "fd") > 2, "{wire}");
    }
    (done, finished)
}

/// Hundreds to a write.
#[test]
fn a_million_small_messages() {
    let mut workload = Workload::c("stages", &["--late", "--count", "1000000"]);
    let (_, counted) = count(&mut workload, &["--wire-only"]);
    assert_eq!(total(&counted, workload.pid()), both_ends(1_000_000, 1, 64));
    assert!(counted.of_type("stat").is_empty(), "calls were not asked for");
}

/// In pieces, on both sides.
#[test]
fn large_messages() {
    for transport in ["tcp", "ipc"] {
        let mut workload =
            Workload::c("stages", &["--late", "--count", "300", "--size", "1048576", "--transport", transport]);
        let (_, counted) = count(&mut workload, &["--wire-only"]);
        assert_eq!(total(&counted, workload.pid()), both_ends(300, 1, 1 << 20));
    }
}

#[test]
fn messages_of_many_parts_and_sizes() {
    for transport in ["tcp", "ipc"] {
        let arguments = ["--late", "--count", "5000", "--size", "1000", "--parts", "4", "--transport", transport];
        let mut workload = Workload::c("stages", &arguments);
        let (_, counted) = count(&mut workload, &["--wire-only"]);
        assert_eq!(total(&counted, workload.pid()), both_ends(5000, 4, 250));

        let mut workload =
            Workload::c("stages", &["--late", "--count", "1000", "--size", "mixed", "--transport", transport]);
        let (_, counted) = count(&mut workload, &["--wire-only"]);
        let total = total(&counted, workload.pid());
        assert_eq!((total.messages, total.frames), (2000, 2000));
    }
}

/// Nothing has to be said: there is no libzmq that could be traced, but a socket that listens.
#[test]
fn a_stripped_program() {
    let mut command = Command::new(made("workloads/stages-static-stripped"));
    let mut workload = Workload::start(command.args(["--late", "--count", "100000"]));
    let (_, counted) = count(&mut workload, &[]);
    assert_eq!(total(&counted, workload.pid()), both_ends(100_000, 1, 64));

    // Of a connection that was there before it need not be known where its frames begin.
    let mut workload = Workload::start(Command::new(made("workloads/static-stripped")).args(["--count", "500"]));
    let tracer = Tracer::attach("stat", &workload, &["--json"]);
    workload.go();
    let counted = tracer.interrupt().ok();
    let wires = counted.of_type("wire");
    assert_eq!(wires.iter().map(|wire| number(wire, "fd")).collect::<BTreeSet<_>>().len(), 2, "{wires:?}");
    let total = total(&counted, workload.pid());
    assert_eq!(total.bytes, 2 * (500 * frame_bytes(6) + frame_bytes(7)), "bytes are known: {wires:?}");
    assert!(total.messages <= 2 * 501, "{wires:?}");
}

fn rust_wire(arguments: &[&str]) -> Workload {
    Workload::start(Command::new(root().join("target/workloads/rust/release/rust-wire")).args(arguments))
}

/// Bytes of all frames of a program's messages; what is beyond that is the handshake.
#[track_caller]
fn assert_total(counted: &Finished, workload: &Workload, messages: u64, frames: u64, bytes: u64) {
    let found = total(counted, workload.pid());
    assert_eq!((found.messages, found.frames), (messages, frames));
    assert!((bytes + 1..bytes + 4 * 500).contains(&found.bytes), "{} for {bytes}", found.bytes);
}

/// The crate `zeromq` has no libzmq at all.
#[test]
fn a_program_in_pure_rust() {
    let mut workload = rust_wire(&["--count", "50000"]);
    let (done, counted) = count(&mut workload, &[]);
    assert_eq!(number(&done, "received"), 50_000);
    assert_total(&counted, &workload, 100_000, 100_000, 100_000 * frame_bytes(64));

    let mut workload = rust_wire(&["--count", "200", "--size", "500000", "--parts", "2"]);
    let (_, counted) = count(&mut workload, &[]);
    assert_total(&counted, &workload, 400, 800, 800 * frame_bytes(500_000));

    // An empty frame in front of each, both ways.
    let mut workload = rust_wire(&["--pattern", "req", "--count", "500"]);
    let (_, counted) = count(&mut workload, &[]);
    assert_total(&counted, &workload, 2000, 4000, 2000 * (frame_bytes(64) + frame_bytes(0)));

    let mut workload = rust_wire(&["--pattern", "pub", "--count", "500"]);
    let (done, counted) = count(&mut workload, &[]);
    let received = number(&done, "received");
    let found = total(&counted, workload.pid());
    assert_eq!((found.messages, found.frames), (2 * received, 2 * received), "subscriptions are none");
}

/// Types are known from the handshake, where that was seen.
#[test]
fn peers_of_every_version_cut_into_pieces() {
    for version in ["3.1", "3.0", "2.0", "1.0"] {
        for (chunk, pings) in [("1", None), ("0", None), ("5", Some("10"))] {
            if pings.is_some() && !version.starts_with('3') {
                continue;
            }
            let mut receiver = Workload::c("stages", &["--role", "receiver", "--count", "500"]);
            let endpoint = receiver.ready["endpoint"].as_str().expect("an endpoint").to_owned();
            let arguments = ["--endpoint", &endpoint, "--count", "500", "--size", "8,300", "--late"];
            let more = ["--zmtp", version, "--chunk", chunk, "--ping-every", pings.unwrap_or("0")];
            let mut peer = Workload::c("rawpeer", &[&arguments[..], &more].concat());
            let tracer = Tracer::attach("stat", &receiver, &["--json", "--wire-only"]);
            receiver.say("go");
            let sent = peer.go();
            receiver.answer("done");
            let counted = tracer.interrupt().ok();
            let found = total(&counted, receiver.pid());
            assert_eq!((found.messages, found.frames), (500, 500), "{version} by {chunk}");
            let bytes = number(&sent, "bytes_written") + number(&sent, "bytes_read");
            assert_eq!(found.bytes, bytes, "{version} by {chunk}");
            let wires = counted.of_type("wire");
            if version != "1.0" {
                let types = wires.iter().map(|wire| wire["types"].to_string()).collect::<String>();
                assert!(types.contains("PUSH"), "{version} by {chunk}: {wires:?}");
            }
            peer.close();
        }
    }
}

/// Subscriptions are no messages, by command or by message.
#[test]
fn subscribers_of_every_version() {
    for (version, mechanism) in
        [("3.1", None), ("3.0", None), ("2.0", None), ("3.1", Some("--plain")), ("3.0", Some("--plain"))]
    {
        let arguments = ["--role", "sender", "--pattern", "xpub", "--sender-binds", "--count", "400"];
        let mechanism = mechanism.as_slice();
        let mut publisher = Workload::c("stages", &[&arguments[..], mechanism].concat());
        let endpoint = publisher.ready["endpoint"].as_str().expect("an endpoint").to_owned();
        let arguments = ["--endpoint", &endpoint, "--type", "SUB", "--count", "200", "--subscribe", "b"];
        let more = ["--zmtp", version, "--read", "3", "--chunk", "1", "--late"];
        let mut peer = Workload::c("rawpeer", &[&arguments[..], &more, mechanism].concat());
        let tracer = Tracer::attach("stat", &publisher, &["--json", "--wire-only"]);
        publisher.say("go");
        let received = peer.go();
        publisher.answer("done");
        let counted = tracer.interrupt().ok();
        assert_eq!(number(&received, "received"), 200);
        assert_eq!(total(&counted, publisher.pid()).messages, 200, "{version}: {:?}", counted.of_type("wire"));
        peer.close();
    }
}

/// Between ends of which only the wire is seen there is the stage of the wire.
#[test]
fn the_network_stage_of_programs_without_libzmq() {
    let mut receiver = rust_wire(&["--role", "receiver", "--count", "20000"]);
    let endpoint = receiver.ready["endpoint"].as_str().expect("an endpoint").to_owned();
    let mut sender = rust_wire(&["--role", "sender", "--count", "20000", "--endpoint", &endpoint]);
    let pids = format!("{},{}", receiver.pid(), sender.pid());
    // It has to be said: they have no connection yet by which it could be known that they speak ZMTP.
    let tracer = Tracer::start(["latency", "--json", "--messages", "--wire-only", "-p", &pids]).attached();
    receiver.say("go");
    sender.go();
    receiver.answer("done");
    let finished = tracer.interrupt().ok();
    let rows = finished.of_type("latency");
    let network: Vec<_> = rows.iter().filter(|row| row["stage"] == "network").collect();
    assert_eq!(network.len(), 1, "{rows:?}");
    assert!(number(network[0], "count") >= 19_980, "{}", network[0]);
    assert_eq!((&network[0]["from_pid"], &network[0]["to_pid"]), (&sender.pid().into(), &receiver.pid().into()));
    for message in finished.of_type("message") {
        assert!(message["send_enter_ns"].is_null() && message["recv_return_ns"].is_null(), "{message}");
        assert!(number(&message, "wire_tx_ns") <= number(&message, "wire_rx_ns"), "{message}");
    }
}

/// The same view of a program whose calls could be traced.
#[test]
fn only_the_wire_of_a_program_with_libzmq() {
    let mut workload = Workload::c("stages", &["--count", "5000"]);
    let tracer = Tracer::attach("latency", &workload, &["--json", "--messages", "--wire-only"]);
    workload.go();
    let finished = tracer.interrupt().ok();
    let messages = finished.of_type("message");
    assert!(messages.len() >= 4995, "{}", messages.len());
    assert!(messages.iter().all(|message| message["send_enter_ns"].is_null() && !message["wire_rx_ns"].is_null()));
}
