//! Saved events through the world and the reports: no kernel, no root. `tests/data` has the events and, beside
//! them, what must come of them; ZMQTRACE_UPDATE=1 writes that anew.

use std::{fs, io::Write, path::PathBuf};

use zmqtrace::{
    analysis::{calls::Filter, narrow::Narrow},
    event::{Event, Library},
    output::{
        Dot, JsonLatency, JsonSockets, JsonStat, JsonTrace, JsonWire, LatencyOptions, LatencyTable, Report, Sink,
        Sockets, StatTable, Strace, StraceOptions, TimeFormat, WireTable,
    },
    world::World,
};

use crate::support::scratch;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn events(name: &str) -> Vec<Event> {
    let text = fs::read_to_string(data(name)).expect("the events are there");
    let event =
        |(index, line)| serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}:{}: {error}", index + 1));
    text.lines().enumerate().map(event).collect()
}

/// What a report makes of events.
fn replay(events: &[Event], report: impl Report) -> String {
    replay_in(World::default(), events, report)
}

fn replay_in(mut world: World, events: &[Event], mut report: impl Report) -> String {
    // A number for each: tests run at the same time.
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = scratch(&format!("report-{number}"));
    let mut out = Sink::file(&path).expect("the folder is ours");
    for event in events {
        world.apply(event);
        report.event(&world, event, &mut out).expect("a file can be written");
    }
    out.flush().expect("a file can be written");
    let text = fs::read_to_string(&path).expect("reports are text");
    fs::remove_file(path).expect("the file is there");
    text
}

#[track_caller]
fn assert_is(expected: &str, found: &str) {
    let path = data(expected);
    if std::env::var_os("ZMQTRACE_UPDATE").is_some() {
        fs::write(&path, found).expect("the data can be written");
    }
    let text = fs::read_to_string(&path).expect("the expected text is there");
    for (number, (expected, found)) in text.lines().zip(found.lines()).enumerate() {
        assert_eq!(found, expected, "{}:{}", path.display(), number + 1);
    }
    assert_eq!(found.lines().count(), text.lines().count(), "lines of {}", path.display());
}

fn look(hexdump: bool) -> StraceOptions {
    // Independent of the local time zone.
    StraceOptions { time: TimeFormat::Relative, nanoseconds: false, hexdump }
}

fn narrow() -> Narrow {
    Narrow::default()
}

#[test]
fn trace_of_saved_events() {
    let events = events("calls.jsonl");
    assert_is("calls.trace.txt", &replay(&events, Strace::new(Filter::default(), look(false))));
    assert_is("calls.trace.jsonl", &replay(&events, JsonTrace::new(Filter::default())));
}

#[test]
fn trace_with_dumps_and_exact_times_of_saved_events() {
    let options = StraceOptions { time: TimeFormat::Epoch, nanoseconds: true, hexdump: true };
    assert_is("calls.dump.txt", &replay(&events("calls.jsonl"), Strace::new(Filter::default(), options)));
}

#[test]
fn narrowed_traces_of_saved_events() {
    let events = events("calls.jsonl");
    let cases = [
        ("--socket PULL#3", Narrow { sockets: vec!["PULL#3".into()], ..narrow() }, None),
        ("--socket push", Narrow { sockets: vec!["push".into()], ..narrow() }, None),
        ("--endpoint 5555", Narrow { endpoints: vec!["5555".into()], ..narrow() }, None),
        // Not 55551, though its text contains 5555.
        ("--port 5555", Narrow { ports: vec![5555], ..narrow() }, None),
        ("--contains job --contains hello", Narrow { contains: vec!["job".into(), "hello".into()], ..narrow() }, None),
        (
            "--socket REQ --contains job",
            Narrow { sockets: vec!["REQ".into()], contains: vec!["job".into()], ..narrow() },
            None,
        ),
        ("-z", narrow(), Some(true)),
        ("-Z", narrow(), Some(false)),
    ];
    let mut text = String::new();
    for (arguments, narrow, successful) in cases {
        text.push_str(&format!("## {arguments}\n"));
        text.push_str(&replay(&events, Strace::new(Filter { narrow, successful, net: false }, look(false))));
    }
    assert_is("calls.narrowed.txt", &text);
}

#[test]
fn calls_in_flight_when_programs_end() {
    let events = events("ends.jsonl");
    assert_is("ends.trace.txt", &replay(&events, Strace::new(Filter::default(), look(false))));
    assert_is("ends.trace.jsonl", &replay(&events, JsonTrace::new(Filter::default())));
}

/// What `-y` shows: fds with their sockets, before and after each changes its owner.
#[test]
fn fds_of_saved_events() {
    let events = events("fds.jsonl");
    let shown = |filter| replay_in(World::showing(true), &events, Strace::new(filter, look(false)));
    let mut text = shown(Filter::default());
    for (arguments, narrow) in [
        ("--socket REQ#7", Narrow { sockets: vec!["REQ#7".into()], ..narrow() }),
        ("--port 5555", Narrow { ports: vec![5555], ..narrow() }),
        ("--contains job", Narrow { contains: vec!["job".into()], ..narrow() }),
    ] {
        text.push_str(&format!("## {arguments}\n"));
        text.push_str(&shown(Filter { narrow, ..Filter::default() }));
    }
    assert_is("fds.trace.txt", &text);
    assert_is("fds.trace.jsonl", &replay(&events, JsonTrace::new(Filter::default())));
}

/// What `-e net` shows: a refused connect, a late bind, ipc that is not there yet, connects of other code in the process,
/// ends from both sides, and a program that speaks ZMTP without libzmq.
#[test]
fn system_calls_and_connections_of_saved_events() {
    let events = events("net.jsonl");
    let net = || Filter { net: true, ..Filter::default() };
    let shown = |filter| replay(&events, Strace::new(filter, look(false)));
    assert_is("net.trace.txt", &shown(net()));
    assert_is("net.trace.jsonl", &replay(&events, JsonTrace::new(net())));
    let mut text = String::from("## -y\n");
    text.push_str(&replay_in(World::showing(true), &events, Strace::new(net(), look(false))));
    let only = |narrow| Filter { narrow, ..net() };
    for (arguments, filter) in [
        ("--socket ROUTER", only(Narrow { sockets: vec!["ROUTER".into()], ..narrow() })),
        ("--endpoint jobs", only(Narrow { endpoints: vec!["jobs".into()], ..narrow() })),
        ("--port 5978", only(Narrow { ports: vec![5978], ..narrow() })),
        ("--contains hello", only(Narrow { contains: vec!["hello".into()], ..narrow() })),
        ("-z", Filter { successful: Some(true), ..net() }),
        ("-Z", Filter { successful: Some(false), ..net() }),
    ] {
        text.push_str(&format!("## {arguments}\n"));
        text.push_str(&shown(filter));
    }
    assert_is("net.narrowed.txt", &text);
    let without = replay(&events, Strace::new(Filter::default(), look(false)));
    assert!(!without.contains("sendto") && !without.contains("handshake"), "{without}");
}

#[test]
fn counts_of_saved_events() {
    let events = events("calls.jsonl");
    assert_is("calls.stat.txt", &replay(&events, StatTable::new(narrow(), false)));
    assert_is("calls.stat.jsonl", &replay(&events, JsonStat::new(narrow(), false)));
}

#[test]
fn counts_of_the_kernel_with_intervals() {
    let events = events("totals.jsonl");
    assert_is("totals.stat.txt", &replay(&events, StatTable::new(narrow(), true)));
    assert_is("totals.stat.jsonl", &replay(&events, JsonStat::new(narrow(), true)));
    let publishers = Narrow { sockets: vec!["PUB#9".into()], ..narrow() };
    assert_is("totals.narrowed.txt", &replay(&events, StatTable::new(publishers, false)));
}

/// Threads that hang in each way, with two processes that wait for each other, looked into; then their queues.
#[test]
fn sockets_of_saved_events() {
    let events = events("sockets.jsonl");
    assert_is("sockets.table.txt", &replay(&events, Sockets::new(narrow(), false, false)));
    assert_is("sockets.verbose.txt", &replay(&events, Sockets::new(narrow(), true, true)));
    assert_is("sockets.json.txt", &replay(&events, JsonSockets::new(narrow())));
    assert_is("sockets.dot.txt", &replay(&events, Dot));
    assert_is("sockets.stat.txt", &replay(&events, StatTable::new(narrow(), false)));
    let dealers = Narrow { sockets: vec!["DEALER".into()], endpoints: vec!["inproc".into()], ..narrow() };
    assert_is("sockets.narrowed.txt", &replay(&events, Sockets::new(dealers, false, false)));
}

/// Batches, parts, several receivers, requests, inproc, a peer that is not traced, and what cannot be matched.
#[test]
fn latency_of_saved_events() {
    let events = events("latency.jsonl");
    let shown = |narrow, options| replay(&events, LatencyTable::new(narrow, options).with_time(TimeFormat::Relative));
    let options = LatencyOptions::default();
    assert_is("latency.txt", &shown(narrow(), options));
    let full = LatencyOptions { histogram: true, intervals: true, messages: true, slower_than_ns: 0 };
    assert_is("latency.full.txt", &shown(narrow(), full));
    let mut text = String::new();
    let slow = LatencyOptions { messages: true, slower_than_ns: 2_000_000, ..options };
    text.push_str(&format!("## --slower-than 2ms\n{}", shown(narrow(), slow)));
    for name in ["PULL", "REP#7"] {
        let narrow = Narrow { sockets: vec![name.into()], ..narrow() };
        text.push_str(&format!("## --socket {name}\n{}", shown(narrow, options)));
    }
    assert_is("latency.narrowed.txt", &text);
    assert_is("latency.json.txt", &replay(&events, JsonLatency::new(narrow(), options)));
    assert_is("latency.messages.json.txt", &replay(&events, JsonLatency::new(narrow(), full)));
}

/// Handshakes, messages across system calls and several events of one, a late attach, lost bytes, a socket that speaks
/// something else.
#[test]
fn connections_of_saved_events() {
    let mut events = events("wire.jsonl");
    let mut text = replay(&events, WireTable::new(narrow(), false));
    text.push_str(&format!("## stat --interval\n{}", replay(&events, StatTable::new(narrow(), true))));
    for (arguments, narrow) in [
        ("--socket push", Narrow { sockets: vec!["push".into()], ..narrow() }),
        ("--endpoint 10.0.0", Narrow { endpoints: vec!["10.0.0".into()], ..narrow() }),
        ("--port 5556", Narrow { ports: vec![5556], ..narrow() }),
        ("--port 1", Narrow { ports: vec![1], ..narrow() }),
    ] {
        text.push_str(&format!("## {arguments}\n{}", replay(&events, WireTable::new(narrow, false))));
    }
    assert_is("wire.txt", &text);
    assert_is("wire.json.txt", &replay(&events, JsonWire::new(narrow(), true)));
    assert_eq!(replay(&events, JsonStat::new(narrow(), true)), replay(&events, JsonWire::new(narrow(), true)));
    // One of the processes has a libzmq: it is counted by its calls, of which there are none here.
    let with_libzmq = |event: &mut Event| match event {
        Event::Process(process) if process.pid == 301 => {
            process.libraries.push(Library { path: "/usr/lib/libzmq.so.5".into(), version: None });
        }
        _ => {}
    };
    events.iter_mut().for_each(with_libzmq);
    assert_is("wire.mixed.txt", &replay(&events, StatTable::new(narrow(), false)));
}

#[test]
fn events_survive_saving() {
    for event in [
        "calls.jsonl",
        "ends.jsonl",
        "totals.jsonl",
        "sockets.jsonl",
        "fds.jsonl",
        "latency.jsonl",
        "wire.jsonl",
        "net.jsonl",
    ]
    .into_iter()
    .flat_map(events)
    {
        let saved = serde_json::to_string(&event).expect("events can be saved");
        assert_eq!(serde_json::from_str::<Event>(&saved).expect("and read again"), event, "{saved}");
    }
}
