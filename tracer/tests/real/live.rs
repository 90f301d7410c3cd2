//! Fds that are followed live, against what monitors tell: each fd of each socket, with each libzmq from 4.1.5 on.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

use crate::{
    sockets::{OLD_BUILDS, look},
    support::{Tracer, Workload, made, made_external, number, root},
};

fn fd_of(object: &Value) -> i64 {
    object["fd"].as_i64().unwrap_or_else(|| panic!("no fd in {object}"))
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_else(|| panic!("no {name} in {object}"))
}

/// Between the making of a socket and its close: what its monitor told of fds, in order.
#[derive(Debug, Default)]
struct Life {
    listening: Vec<i64>,
    accepted: Vec<i64>,
    connected: Vec<i64>,
    closed_ns: Option<u64>,
}

/// By handle, one after the other.
fn lives(done: &Value) -> BTreeMap<String, Vec<Life>> {
    let mut lives: BTreeMap<String, Vec<Life>> = BTreeMap::new();
    let mut events: Vec<&Value> = done["fd_events"].as_array().expect("events").iter().collect();
    events.sort_by_key(|event| number(event, "ns"));
    for event in events {
        let of_handle = lives.entry(text(event, "handle").to_owned()).or_default();
        if of_handle.last().is_none_or(|life| life.closed_ns.is_some()) {
            of_handle.push(Life::default());
        }
        let life = of_handle.last_mut().expect("one was pushed");
        match text(event, "event") {
            "listening" => life.listening.push(fd_of(event)),
            "accepted" => life.accepted.push(fd_of(event)),
            "connected" => life.connected.push(fd_of(event)),
            "close" => life.closed_ns = Some(number(event, "ns")),
            _ => {}
        }
    }
    lives
}

/// The changes of each socket, by its name; the first one's stamp decides the order of those with one handle.
fn by_handle(changes: &[Value]) -> BTreeMap<String, Vec<Vec<&Value>>> {
    let mut by_socket: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
    // Mailboxes are no matter of monitors.
    for change in changes.iter().filter(|change| change["part"] != "mailbox") {
        by_socket.entry((text(change, "handle"), text(change, "socket"))).or_default().push(change);
    }
    let mut by_handle: BTreeMap<String, Vec<Vec<&Value>>> = BTreeMap::new();
    for ((handle, _), changes) in by_socket {
        by_handle.entry(handle.to_owned()).or_default().push(changes);
    }
    for sockets in by_handle.values_mut() {
        sockets.sort_by_key(|changes| number(changes[0], "ts_ns"));
    }
    by_handle
}

fn fds_of(changes: &[&Value], change: &str, part: &str, role: &str) -> Vec<i64> {
    let wanted = |object: &&&Value| object["change"] == change && object["part"] == part && object["role"] == role;
    changes.iter().filter(wanted).map(|object| fd_of(object)).collect()
}

/// What is a socket's at the end: fd, socket and part. No fd has a new owner before the old one is gone.
fn fold(changes: &[Value]) -> BTreeMap<i64, (String, String)> {
    let mut fds: BTreeMap<i64, (String, String)> = BTreeMap::new();
    for change in changes {
        let fd = fd_of(change);
        let owner = (text(change, "socket").to_owned(), text(change, "part").to_owned());
        match text(change, "change") {
            "added" | "accepted" => {
                let before = fds.insert(fd, owner.clone());
                assert!(before.is_none_or(|before| before == owner), "not removed before: {change}");
            }
            _ => _ = fds.remove(&fd),
        }
    }
    fds
}

/// The same as a look at the process finds it.
fn found_now(pid: u32) -> BTreeMap<i64, (String, String)> {
    let mut fds = BTreeMap::new();
    for socket in look(pid).of_type("socket") {
        let name = text(&socket, "socket");
        for endpoint in socket["endpoints"].as_array().into_iter().flatten() {
            if endpoint["role"] == "bind" && !endpoint["fd"].is_null() {
                fds.insert(fd_of(endpoint), (name.to_owned(), "listener".to_owned()));
            }
        }
        for connection in socket["connections"].as_array().into_iter().flatten() {
            if !connection["fd"].is_null() {
                fds.insert(fd_of(connection), (name.to_owned(), "connection".to_owned()));
            }
        }
    }
    fds
}

/// Lets a workload come and go, and compares all that is said of its fds with what it says.
fn assert_followed(mut workload: Workload) {
    let seeded = found_now(workload.pid());
    let tracer = Tracer::attach("trace", &workload, &["-y", "--json", "-e", "socket"]);
    let done = workload.go();
    let now = found_now(workload.pid());
    let changes = tracer.interrupt().ok().of_type("fd");
    workload.finish();

    let (lives, told) = (lives(&done), by_handle(&changes));
    assert_eq!(told.keys().collect::<Vec<_>>(), lives.keys().collect::<Vec<_>>(), "sockets with fds");
    let mut compared = 0;
    for (handle, lives) in &lives {
        let told = &told[handle];
        assert_eq!(told.len(), lives.len(), "sockets at {handle}: {lives:?}, but {told:?}");
        for (life, changes) in lives.iter().zip(told) {
            let context = || format!("{} at {handle}: {changes:#?}", changes[0]["socket"]);
            let was_there = seeded.values().any(|(name, _)| changes[0]["socket"] == **name);
            // Monitors do not tell of what the closed socket accepts before its listener is gone.
            let until_close: Vec<_> = changes
                .iter()
                .copied()
                .filter(|change| life.closed_ns.is_none_or(|closed_ns| number(change, "ts_ns") < closed_ns))
                .collect();
            if was_there {
                assert_eq!(fds_of(changes, "added", "listener", "bind"), [0; 0], "{}", context());
                assert_eq!(fds_of(changes, "removed", "listener", "bind"), life.listening, "{}", context());
                assert_eq!(fds_of(changes, "removed", "connection", "connect"), life.connected, "{}", context());
                assert_eq!(fds_of(changes, "removed", "connection", "bind"), life.accepted, "{}", context());
                continue;
            }
            assert_eq!(fds_of(changes, "added", "listener", "bind"), life.listening, "{}", context());
            assert_eq!(fds_of(changes, "added", "connection", "connect"), life.connected, "{}", context());
            assert_eq!(fds_of(&until_close, "accepted", "connection", "bind"), life.accepted, "{}", context());
            let added = fds_of(changes, "added", "connection", "bind");
            // An earlier one may have been lost before its engine was in place.
            assert_eq!(added.last(), life.accepted.last(), "{}", context());
            assert!(added.len() <= fds_of(changes, "accepted", "connection", "bind").len(), "{}", context());
            let addresses =
                changes.iter().filter(|change| change["change"] == "added").map(|change| &change["endpoint"]);
            for endpoint in addresses {
                let endpoint = endpoint.as_str().unwrap_or_else(|| panic!("no endpoint: {}", context()));
                assert!(endpoint.starts_with("tcp://127.0.0.1:") || endpoint.starts_with("ipc://"), "{endpoint}");
            }
            compared += life.listening.len() + life.connected.len() + life.accepted.len();
        }
    }
    assert!(compared > 50, "only {compared} fds");

    // Those of the program's own have none of it, though they have had, and will have, the same numbers.
    for own in done["foreign"].as_array().into_iter().flatten() {
        let meanwhile = number(own, "from_ns")..number(own, "to_ns");
        let claimed = changes.iter().find(|change| {
            let is_claim = change["change"] == "added" || change["change"] == "accepted";
            is_claim && fd_of(change) == fd_of(own) && meanwhile.contains(&number(change, "ts_ns"))
        });
        assert_eq!(claimed, None, "it is the program's own: {own}");
    }

    assert_eq!(fold(&changes), now, "what is left");
}

#[test]
fn every_fd_that_comes_and_goes() {
    assert_followed(Workload::c("live", &["--rounds", "200"]));
}

#[test]
fn every_fd_that_comes_and_goes_in_each_release() {
    for version in OLD_BUILDS {
        let Some(folder) = made_external(&format!("libzmq/{version}")) else { return };
        let mut command = Command::new(made("workloads/live"));
        assert_followed(Workload::start(command.env("LD_LIBRARY_PATH", folder)));
    }
}

#[test]
fn every_fd_that_comes_and_goes_in_python() {
    if let Some(workload) = Workload::python("live.py", &[]) {
        assert_followed(workload);
    }
}

/// A socket's own fd is known once the program has asked for it, and no longer than it is the socket's. The names come
/// with the fds: no other call is looked at.
#[test]
fn mailboxes_that_a_program_asks_for() {
    let Some(mut workload) = Workload::python("live.py", &[]) else { return };
    let tracer = Tracer::attach("trace", &workload, &["-y", "--json", "-e", "option"]);
    let done = workload.go();
    workload.finish();
    let changes = tracer.finish().ok().of_type("fd");
    let mailbox = |change: &&Value| change["part"] == "mailbox";
    let told: Vec<(&str, i64)> = changes
        .iter()
        .filter(|change| mailbox(change) && change["change"] == "added")
        .map(|change| (text(change, "handle"), fd_of(change)))
        .collect();
    let asked: Vec<(&str, i64)> = done["fd_events"]
        .as_array()
        .expect("events")
        .iter()
        .filter(|event| event["event"] == "mailbox")
        .map(|event| (text(event, "handle"), fd_of(event)))
        .collect();
    // The first couples were there before.
    assert_eq!(told, asked[4..], "mailboxes");
    let removed = changes.iter().filter(|change| mailbox(change) && change["change"] == "removed").count();
    assert!(removed >= asked.len(), "{removed} of {}", asked.len());
    let unnamed = changes.iter().find(|change| text(change, "socket").starts_with('?'));
    assert_eq!(unnamed, None);
}

/// What was there before is known, too: at the end of the program all of it goes.
#[track_caller]
fn assert_seeded(mut zoo: Workload) {
    let census = zoo.ready.clone();
    let tracer = Tracer::attach("trace", &zoo, &["-y", "--json", "-e", "socket"]);
    assert!(zoo.end().success());
    let changes = tracer.finish().ok().of_type("fd");
    let removed: BTreeSet<(i64, &str, &str)> = changes
        .iter()
        .filter(|change| change["change"] == "removed")
        .map(|change| (fd_of(change), text(change, "handle"), text(change, "part")))
        .collect();
    let mut stated = 0;
    let sockets = census["contexts"].as_array().into_iter().flatten().flat_map(|context| context["sockets"].as_array());
    for socket in sockets.flatten() {
        let handle = text(socket, "handle");
        let list = |name: &str| socket[name].as_array().cloned().unwrap_or_default();
        let mut is_gone = |fd: &Value, part: &str| {
            if let Some(fd) = fd.as_i64() {
                stated += 1;
                assert!(removed.contains(&(fd, handle, part)), "{part} {fd} of {}", socket["name"]);
            }
        };
        is_gone(&socket["mailbox_fd"], "mailbox");
        for bound in list("endpoints").iter().filter(|endpoint| endpoint["role"] == "bind") {
            is_gone(&bound["fd"], "listener");
        }
        for connection in list("connections") {
            is_gone(&connection["fd"], if connection["state"] == "connecting" { "connecter" } else { "connection" });
        }
    }
    assert!(stated > 5, "only {stated} fds");
    for other in census["other_fds"].as_array().into_iter().flatten().filter_map(Value::as_i64) {
        assert!(changes.iter().all(|change| fd_of(change) != other), "{other} is not libzmq's");
    }
}

#[test]
fn every_fd_that_was_there() {
    assert_seeded(Workload::c("zoo", &[]));
    assert_seeded(Workload::start(&mut Command::new(root().join("target/workloads/rust/release/rust-zoo"))));
    if let Some(zoo) = Workload::python("zoo.py", &[]) {
        assert_seeded(zoo);
    }
}
