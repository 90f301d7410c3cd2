//! Connections of a build whose layout is not known: an object that watches a fd holds, somewhere, the address of its
//! socket. Objects with the same virtual functions hold it at the same place, so they vote.
//!
//! In all builds that are known such an object has the fd itself, then the address of its poll entry, then the socket,
//! within [`REACH_BYTES`]. Behind a small object lies another one, whose socket may be found in its place: so a place
//! counts only if all objects of the class agree on it, and where two do that name different sockets nothing is said.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Subject,
    context::Found,
    epoll::Entry,
    image::at,
    layouts::{OBJECT_CTX, THREAD_EVENTS},
};
use crate::event::{Connection, Mapping};

/// How far behind its base class `i_poll_events` an object is searched, bytes.
const REACH_BYTES: u64 = 2048;

/// The connections of all sockets, as far as the objects agree. Those of all contexts vote together.
pub fn connections(subject: &Subject<'_>, entries: &[Entry], contexts: &[Found]) -> HashMap<u64, Vec<Connection>> {
    let threads: BTreeSet<u64> = contexts.iter().map(|context| context.address).collect();
    let sockets: BTreeSet<u64> =
        contexts.iter().flat_map(|context| context.sockets_of_any_build(subject).unwrap_or_default()).collect();
    let mut classes: BTreeMap<Class, Vec<Voter>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !is_of_thread(subject, entry, &threads)) {
        if let Some((class, voter)) = voter(subject, entry, &sockets) {
            classes.entry(class).or_default().push(voter);
        }
    }
    let mut connections: HashMap<u64, Vec<Connection>> = HashMap::new();
    for voters in classes.into_values() {
        let agreed: BTreeSet<u64> = voters
            .iter()
            .map(|voter| voter.places.keys().copied().collect())
            .reduce(|all: BTreeSet<u64>, places| &all & &places)
            .unwrap_or_default();
        for voter in voters {
            let named: BTreeSet<u64> = agreed.iter().filter_map(|place| voter.places.get(place).copied()).collect();
            if let (Some(socket), 1) = (named.first(), named.len())
                && subject.image.keep(size_of::<Connection>()).is_some()
            {
                let connection = Connection { fd: Some(voter.fd), mapping: Mapping::Inferred, ..Connection::default() };
                connections.entry(*socket).or_default().push(connection);
            }
        }
    }
    connections
}

/// What tells objects that are alike: their table of virtual functions, and where they keep their poll entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    table: u64,
    entry_offset: u64,
}

/// An object that watches a fd.
#[derive(Debug)]
struct Voter {
    fd: i32,
    /// Where it holds sockets.
    places: BTreeMap<u64, u64>,
}

/// The mailbox of an I/O thread or the reaper is no connection: such a thread is known by its context.
fn is_of_thread(subject: &Subject<'_>, entry: &Entry, contexts: &BTreeSet<u64>) -> bool {
    let context = entry.events.checked_sub(THREAD_EVENTS - OBJECT_CTX).and_then(|at| subject.image.u64(at));
    context.is_some_and(|context| contexts.contains(&context))
}

/// The object that an entry tells, if it holds the fd, the entry and any sockets.
fn voter(subject: &Subject<'_>, entry: &Entry, sockets: &BTreeSet<u64>) -> Option<(Class, Voter)> {
    let words = (0..REACH_BYTES / 8).map(|index| index * 8);
    let words = words.map_while(|offset| Some((offset, subject.image.u64(at(entry.events, offset))?)));
    let words: Vec<(u64, u64)> = words.collect();
    let (_, table) = *words.first()?;
    let position = words.iter().position(|(_, word)| *word == entry.address)?;
    let (before, behind) = words.split_at(position);
    let is_fd = |word: u64| [word as i32, (word >> 32) as i32].contains(&entry.fd);
    before.iter().skip(1).any(|(_, word)| is_fd(*word)).then_some(())?;
    let places: BTreeMap<u64, u64> = behind.iter().copied().filter(|(_, word)| sockets.contains(word)).collect();
    let class = Class { table, entry_offset: behind.first()?.0 };
    (!places.is_empty()).then_some((class, Voter { fd: entry.fd, places }))
}
