//! Builds that no layout fits: what similar objects say, held against what is known of the same memory.

use std::{collections::BTreeMap, process::Command};

use zmqtrace::{
    event::{Mapping, SocketState},
    inspect::{
        Look,
        layouts::{self, Layout},
    },
};

use super::{
    record::record,
    saved::{IMAGES, Saved},
};
use crate::support::{Workload, made, made_external};

fn sockets(look: &Look) -> impl Iterator<Item = &SocketState> {
    look.contexts.iter().flat_map(|context| &context.sockets)
}

/// The fds of a look, listeners' and connections', with the sockets that they are of.
fn fds(look: &Look) -> BTreeMap<i32, u64> {
    let fds = sockets(look).flat_map(|socket| {
        let listeners = socket.endpoints.iter().filter_map(|endpoint| endpoint.fd);
        let connections = socket.connections.iter().filter_map(|connection| connection.fd);
        listeners.chain(connections).map(|fd| (fd, socket.handle))
    });
    fds.collect()
}

/// What votes say must be right; returns how many fds they found, and how many there are.
#[track_caller]
fn assert_votes(name: &str, saved: &Saved) -> (usize, usize) {
    let [_, voted, known] = saved.looks(saved);
    assert_eq!(voted.contexts.len(), known.contexts.len(), "{name}");
    assert!(voted.contexts.iter().all(|context| context.layout.is_none()), "{name}");
    for socket in sockets(&voted) {
        assert_eq!((socket.socket_type, socket.id), (None, None), "{name}");
        assert!(socket.connections.iter().all(|connection| connection.mapping == Mapping::Inferred), "{name}");
    }
    let handles = |look| sockets(look).map(|socket| socket.handle).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(handles(&voted), handles(&known), "{name}");
    let (voted, known) = (fds(&voted), fds(&known));
    for (fd, socket) in &voted {
        assert_eq!(known.get(fd), Some(socket), "{name}: fd {fd}");
    }
    (voted.len(), known.len())
}

#[test]
fn votes_claim_nothing_wrong() {
    for name in IMAGES {
        let (voted, known) = assert_votes(name, &Saved::load(name));
        assert_eq!(voted, known, "{name}: all that there is, where so little is");
    }
}

/// Among all that lies in the heap of a process besides.
#[test]
fn votes_in_live_zoos_of_each_release() {
    for release in ["", "4.1.5", "4.1.6", "4.2.5", "4.3.1", "4.3.2", "4.3.3", "4.3.4", "4.3.5-old-abi", "4.3.5"] {
        let mut command = Command::new(made("workloads/zoo"));
        if !release.is_empty() {
            let Some(folder) = made_external(&format!("libzmq/{release}")) else { return };
            command.env("LD_LIBRARY_PATH", folder);
        }
        let zoo = Workload::start(&mut command);
        let (voted, known) = assert_votes(release, &record(zoo.pid()));
        eprintln!("{release}: {voted} of {known} fds");
        assert!(known > 80 && voted * 20 >= known * 19, "{release}: {voted} of {known} fds");
        zoo.finish();
    }
}

/// A build that has its tags where a known one has them, and another member elsewhere.
#[test]
fn a_layout_that_fits_only_half_is_not_taken() {
    let saved = Saved::load("zoo");
    let moved = |change: fn(&mut Layout)| {
        let mut layouts = layouts::all().to_vec();
        layouts.iter_mut().for_each(change);
        saved.look(&layouts)
    };
    let inferred = saved.look(&[]);
    assert_eq!(moved(|_| ()), saved.look(layouts::all()));
    assert_eq!(moved(|layout| layout.own_owned += 8), inferred);
    assert_eq!(moved(|layout| layout.socket_endpoints -= 16), inferred);
    assert_eq!(moved(|layout| layout.socket_tag += 8), inferred);
    assert_eq!(moved(|layout| layout.ctx_tag += 4), inferred);
}
