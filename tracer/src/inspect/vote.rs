//! Connections of a build whose layout is not known: an object that watches a fd holds, somewhere, the address of its
//! socket. Objects with the same virtual functions hold it at the same place, so they vote.

use std::collections::{BTreeMap, BTreeSet};

use super::{Subject, epoll::Entry, image::at};
use crate::event::{Connection, Mapping};

/// How far behind its fd an object is searched, bytes.
const REACH_BYTES: u64 = 2048;

/// Fds with their sockets, as far as one place has the most votes.
pub fn connections(subject: &Subject<'_>, entries: &[Entry], sockets: &BTreeSet<u64>) -> Vec<(u64, Connection)> {
    let mut votes: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    let voter = |entry: &Entry| {
        let table = subject.image.u64(entry.events)?;
        Some(Voter { fd: entry.fd, table, places: places(subject, entry, sockets) })
    };
    let voters: Vec<_> = entries.iter().filter_map(voter).collect();
    for voter in &voters {
        for (offset, _) in &voter.places {
            *votes.entry((voter.table, *offset)).or_default() += 1;
        }
    }
    let inferred = voters.iter().filter_map(|voter| {
        let (_, socket) = voter.places.iter().max_by_key(|(offset, _)| votes.get(&(voter.table, *offset)))?;
        Some((*socket, Connection { fd: Some(voter.fd), mapping: Mapping::Inferred, ..Connection::default() }))
    });
    inferred.collect()
}

/// An object that watches a fd.
struct Voter {
    fd: i32,
    /// Its table of virtual functions.
    table: u64,
    /// Where it holds sockets: offset and socket.
    places: Vec<(u64, u64)>,
}

/// Where, behind the address of its own poll entry, an object holds the address of a socket: offset and socket.
fn places(subject: &Subject<'_>, entry: &Entry, sockets: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let words = (0..REACH_BYTES / 8).map(|index| (index * 8, at(entry.events, index * 8)));
    let words = words.map_while(|(offset, at)| Some((offset, subject.image.u64(at)?)));
    words.skip_while(|(_, word)| *word != entry.address).filter(|(_, word)| sockets.contains(word)).collect()
}
