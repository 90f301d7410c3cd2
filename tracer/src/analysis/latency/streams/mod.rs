//! Connections: which two ends belong together, and which bytes of the one are which of the other.
//!
//! Both directions of an end are kept apart: a [`Sender`] has the system calls that sent, a [`Receiver`] those that
//! received, until both ends' have been laid beside each other. Bytes are counted from where an end was first seen
//! (`position`); what a receiver counts is brought to the sender's count by a difference that tcp's sequence numbers
//! give, and that unix sockets give when both were seen from their start, or at a moment when all that was sent had been
//! received.

mod crossing;
mod parts;
mod receiver;
mod sender;

use std::sync::Arc;

use rustc_hash::FxHashMap;

use self::{
    crossing::cross,
    receiver::{Drained, Receiver, Segment},
    sender::{Numbering, Sender},
};
use super::{
    Party, Reason, SECOND_NS,
    matching::{Crossing, End, Matching, Number},
    pipes::PipeId,
};
use crate::event::{Stream, Wire};

/// Connections' ends that are kept; beyond it those closed, then those unused longest, are forgotten.
const MAX_STREAMS: usize = 1 << 14;
/// System calls of one direction that wait for the other end's; beyond it the oldest are given up.
const MAX_CALLS: usize = 1 << 13;
/// Of messages that encryption hides so many are told to be lost at a time.
const MAX_LOST: usize = 1 << 13;
/// How long it is waited for the other end of a connection to be seen, once this one has moved bytes.
const PEER_GRACE_NS: u64 = SECOND_NS;
/// How long what has no counterpart, though later bytes have, is kept in case it comes late.
const LATE_NS: u64 = 10 * SECOND_NS;
/// How long an end is kept after it was closed: the other one may receive what is on its way.
const CLOSED_NS: u64 = 10 * SECOND_NS;

/// An end of a connection.
#[derive(Debug)]
pub struct Ending {
    /// Process.
    pub pid: u32,
    /// Its fd.
    pub fd: i32,
    /// When it was first seen.
    pub started_ns: u64,
    /// Whether that was from its beginning.
    pub from_start: bool,
    local: Option<Arc<str>>,
    remote: Option<Arc<str>>,
    peer_inode: Option<u64>,
    network: Option<u64>,
    /// The other end.
    peer: Option<u64>,
    /// When it was first seen to move bytes.
    moved_ns: Option<u64>,
    /// When it was closed.
    pub closed_ns: Option<u64>,
    used_ns: u64,
    /// Whether its pipe may be older: it came of a connect.
    pub survives: bool,
    /// Who it is: its socket, or its process.
    pub party: Party,
    /// Whether contents are encrypted, so that the walk cannot tell parts from messages.
    pub is_encrypted: bool,
    /// Which directions carry subscriptions instead of messages: sent, received.
    pub subscribes: [bool; 2],
}

/// All connections.
#[derive(Debug, Default)]
pub struct Streams {
    endings: FxHashMap<u64, Ending>,
    senders: FxHashMap<u64, Sender>,
    receivers: FxHashMap<u64, Receiver>,
    by_fd: FxHashMap<(u32, i32), u64>,
    by_addresses: FxHashMap<(Arc<str>, Arc<str>), Vec<u64>>,
    by_peer_inode: FxHashMap<u64, u64>,
    networks: FxHashMap<u32, u64>,
    /// Ends that send encrypted what comes from these pipes.
    encrypted: FxHashMap<PipeId, u64>,
    /// When each thread last returned from a system call: its next one began later.
    threads: FxHashMap<u32, u64>,
    /// What came of the last event.
    pub crossings: Vec<Crossing>,
    /// Numbers up to which a pipe's messages are settled: sent and received.
    pub settled: Vec<(PipeId, bool, u64)>,
}

impl Streams {
    /// The network namespace of a process is known.
    pub fn network(&mut self, pid: u32, network: u64) {
        self.networks.insert(pid, network);
        for ending in self.endings.values_mut().filter(|ending| ending.pid == pid) {
            ending.network = Some(network);
        }
    }

    /// An end of a connection.
    pub fn ending(&self, inode: u64) -> Option<&Ending> {
        self.endings.get(&inode)
    }

    /// The same, to be changed.
    pub fn ending_mut(&mut self, inode: u64) -> Option<&mut Ending> {
        self.endings.get_mut(&inode)
    }

    /// An end is met.
    pub fn met(&mut self, stream: &Stream) {
        if let Some(known) = self.endings.get_mut(&stream.inode) {
            // Told of again; what was not known may be now.
            known.peer_inode = known.peer_inode.or(stream.peer_inode);
            if known.local.is_some() || known.remote.is_some() {
                return self.pair(stream.inode);
            }
            known.local = stream.local.as_deref().map(plain);
            known.remote = stream.remote.as_deref().map(plain);
        } else {
            self.closed(stream.pid, stream.fd, stream.ts_ns);
            let ending = Ending {
                pid: stream.pid,
                fd: stream.fd,
                started_ns: stream.ts_ns,
                from_start: stream.from_start,
                local: stream.local.as_deref().map(plain),
                remote: stream.remote.as_deref().map(plain),
                peer_inode: stream.peer_inode,
                network: self.networks.get(&stream.pid).copied(),
                peer: None,
                moved_ns: None,
                closed_ns: None,
                used_ns: stream.ts_ns,
                survives: false,
                party: Party::Process(stream.pid),
                is_encrypted: false,
                subscribes: [false; 2],
            };
            self.endings.insert(stream.inode, ending);
            self.by_fd.insert((stream.pid, stream.fd), stream.inode);
            if self.endings.len() > MAX_STREAMS {
                self.forget_oldest();
            }
        }
        let Some(ending) = self.endings.get(&stream.inode) else { return };
        if let (Some(local), Some(remote), None) = (&ending.local, &ending.remote, ending.peer_inode)
            && is_tcp(local)
        {
            let same = self.by_addresses.entry((Arc::clone(local), Arc::clone(remote))).or_default();
            if !same.contains(&stream.inode) {
                same.push(stream.inode);
            }
        }
        if let Some(peer) = ending.peer_inode {
            self.by_peer_inode.insert(peer, stream.inode);
        }
        self.pair(stream.inode);
    }

    /// An end of which only a system call was seen.
    pub fn seen(&mut self, wire: &Wire) {
        if let Some(ending) = self.endings.get_mut(&wire.inode)
            && ending.closed_ns.is_some_and(|closed_ns| closed_ns < wire.ts_ns)
        {
            // It was not: a connecter's fd is removed and added again once it is connected.
            ending.closed_ns = None;
            self.by_fd.insert((wire.pid, wire.fd), wire.inode);
        }
        if !self.endings.contains_key(&wire.inode) {
            self.met(&Stream {
                ts_ns: wire.ts_ns,
                pid: wire.pid,
                fd: wire.fd,
                inode: wire.inode,
                peer_inode: None,
                local: None,
                remote: None,
                from_start: wire.from_start,
                sent: None,
            });
        }
    }

    /// An end was found between two messages, of which it had sent those up to this one.
    pub fn rests(&mut self, inode: u64, last: Number, ts_ns: u64) {
        self.senders.entry(inode).or_default().rest(last, ts_ns);
    }

    /// Looks for the other end.
    fn pair(&mut self, inode: u64) {
        let Some(ending) = self.endings.get(&inode) else { return };
        if ending.peer.is_some() {
            return;
        }
        let by_inode = ending.peer_inode.filter(|peer| self.endings.contains_key(peer));
        let by_inode = by_inode.or_else(|| self.by_peer_inode.get(&inode).copied());
        let Some(peer) = by_inode.or_else(|| self.peer_by_addresses(inode, ending)) else { return };
        let Some(other) = self.endings.get_mut(&peer) else { return };
        if other.peer.is_some_and(|known| known != inode) {
            return;
        }
        other.peer = Some(inode);
        if let Some(ending) = self.endings.get_mut(&inode) {
            ending.peer = Some(peer);
        }
        for (sender, receiver) in [(inode, peer), (peer, inode)] {
            self.align(sender, receiver);
            self.cross_all(sender, receiver);
        }
    }

    /// The only one that it can be: of several connections between the same addresses those that are closed do not
    /// count, nor, of loopback, those of other network namespaces.
    fn peer_by_addresses(&self, inode: u64, ending: &Ending) -> Option<u64> {
        let (local, remote) = (ending.local.as_ref()?, ending.remote.as_ref()?);
        let candidates = self.by_addresses.get(&(Arc::clone(remote), Arc::clone(local)))?;
        let fits = |candidate: &&u64| {
            self.endings.get(candidate).is_some_and(|other| {
                let may_be = other.network.zip(ending.network).is_none_or(|(there, here)| there == here);
                let is_open = other.closed_ns.is_none() && ending.closed_ns.is_none() && other.peer.is_none();
                **candidate != inode && is_open && (may_be || !is_loopback(local))
            })
        };
        let mut fitting = candidates.iter().filter(fits);
        let first = fitting.next()?;
        fitting.next().is_none().then_some(*first)
    }

    /// At this moment the kernel held nothing for this end. If neither end moves a byte before, both count from the same.
    pub fn at_rest(&mut self, inode: u64, ts_ns: u64) {
        self.receivers.entry(inode).or_default().at_rest_ns.get_or_insert(ts_ns);
    }

    /// Whether one of both ends says so.
    fn is_encrypted(&self, inode: u64) -> bool {
        self.endings.get(&inode).is_some_and(|ending| {
            let other = ending.peer.and_then(|peer| self.endings.get(&peer));
            ending.is_encrypted || other.is_some_and(|other| other.is_encrypted)
        })
    }

    /// A system call has sent. `sends`: what is known of the messages that wait to be found in it.
    pub fn wrote(&mut self, wire: &Wire, pipe: Option<PipeId>, has_calls: bool, sends: &Matching) {
        let Some(ending) = self.endings.get_mut(&wire.inode) else { return };
        ending.moved(wire);
        let peer = ending.peer;
        let is_encrypted = self.is_encrypted(wire.inode);
        let entry_ns = wire.entry_ns.or_else(|| self.threads.get(&wire.tid).copied());
        self.returned(wire.tid, wire.ts_ns);
        if ending_is_subscriber(&self.endings, wire.inode) || wire.ret <= 0 {
            return;
        }
        let sender = self.senders.entry(wire.inode).or_default();
        if wire.gap || sender.has_moved(wire) {
            sender.restart(&mut self.settled);
            if let Some(receiver) = peer.and_then(|peer| self.receivers.get_mut(&peer)) {
                receiver.difference = None;
                receiver.drained = None;
            }
        }
        if wire.position == 0 {
            sender.begun_ns = entry_ns;
        }
        let Some(mut written) = sender.gather(wire) else { return };
        let (start, end) = (written.start, written.end);
        // Receives of what has its numbers now.
        let mut numbered_from = start;
        match (pipe, wire.pipe, &wire.frames) {
            (Some(pipe), Some(counts), Some(frames)) if is_encrypted => {
                sender.hide(&mut written, wire, pipe, counts, frames);
                self.encrypted.insert(pipe, wire.inode);
            }
            (Some(pipe), Some(counts), Some(frames)) => {
                numbered_from = sender.number(&mut written, wire, pipe, counts.count, frames);
            }
            _ if !has_calls => written.numbering = Numbering::NoCalls,
            (_, _, None) => written.numbering = Numbering::Unknown(Reason::NotSynchronised),
            _ => written.numbering = Numbering::Unknown(Reason::PipeUnknown),
        }
        sender.last_exit_ns = sender.last_exit_ns.max(wire.ts_ns);
        sender.add(written, &mut self.settled);
        if is_encrypted {
            self.unhide(wire.inode, sends, 0);
        }
        if let Some(peer) = peer {
            self.confirm_drained(wire.inode, peer, start, wire.entry_ns, wire.ts_ns);
            self.align(wire.inode, peer);
            self.cross_from(wire.inode, peer, numbered_from, end);
        } else {
            self.alone(wire.inode, wire.ts_ns, false);
        }
    }

    /// The program has sent a message: what is encrypted may wait for its parts.
    pub fn sent(&mut self, number: Number, sends: &Matching) {
        let Some(inode) = self.encrypted.get(&number.pipe).copied() else { return };
        if self.senders.get(&inode).is_some_and(|sender| sender.parts.awaits(number.number)) {
            self.unhide(inode, sends, 0);
        }
    }

    /// Finds out which messages ended in what was sent encrypted. It is not waited for calls that send what was on the
    /// wire before `late_ns`.
    fn unhide(&mut self, inode: u64, sends: &Matching, late_ns: u64) {
        let (Some(ending), Some(sender)) = (self.endings.get(&inode), self.senders.get_mut(&inode)) else { return };
        let Some(pipe) = sender.parts.pipe() else { return };
        let number = |number: u64| Number { pipe, number };
        sender.parts.decide(|message| sends.frames_of(number(message)), late_ns);
        let bytes = sender.unhide();
        for (messages, reason) in sender.parts.take_lost() {
            let known = messages.rev().take(MAX_LOST).filter(|message| sends.frames_of(number(*message)).is_some());
            self.crossings.extend(known.map(|message| Crossing {
                from: ending.party.clone(),
                to: Party::Unknown,
                connection: ending.connection(),
                tx: End::Numbered(number(message)),
                rx: End::Unknown(reason),
                not_before_ns: 0,
                tx_ns: None,
                rx_ns: None,
                index: message,
            }));
        }
        if let (Some(bytes), Some(peer)) = (bytes, ending.peer) {
            self.cross_from(inode, peer, bytes.start, bytes.end);
        }
    }

    /// A system call has received.
    pub fn read(&mut self, wire: &Wire, pipe: Option<PipeId>, has_calls: bool) {
        let Some(ending) = self.endings.get_mut(&wire.inode) else { return };
        ending.moved(wire);
        let (peer, subscribes) = (ending.peer, ending.subscribes[1]);
        let entry_ns = wire.entry_ns.or_else(|| self.threads.get(&wire.tid).copied());
        self.returned(wire.tid, wire.ts_ns);
        if subscribes || peer.is_some_and(|peer| ending_is_subscriber(&self.endings, peer)) {
            return;
        }
        let moved = wire.ret.max(0) as u64;
        let end = wire.position + moved;
        let is_encrypted = self.is_encrypted(wire.inode);
        let receiver = self.receivers.entry(wire.inode).or_default();
        let origin = wire.sequence.map(|sequence| sequence.wrapping_sub(end as u32));
        if moved > 0 && (wire.gap || (receiver.origin.is_some() && origin.is_some() && receiver.origin != origin)) {
            *receiver = Receiver::default();
        }
        receiver.origin = origin.or(receiver.origin);
        let counted = pipe.zip(wire.pipe).map(|(pipe, count)| (pipe, count.count));
        let is_named = counted.is_some_and(|(pipe, _)| receiver.name_first(pipe));
        if moved > 0 {
            if wire.position == 0 {
                receiver.begun_ns = entry_ns;
            }
            receiver.end.raise(end);
            let frames = wire.frames.as_ref();
            let messages = frames.map(|frames| u64::from(frames.messages));
            // Where the walk has just joined, messages of earlier system calls may be among them.
            let is_joined = receiver.is_walked || wire.from_start;
            receiver.is_walked = messages.is_some();
            receiver.add(Segment {
                start: wire.position,
                end,
                rx_ns: wire.ts_ns,
                pipe: counted,
                has_calls,
                messages: messages.filter(|_| is_joined && !is_encrypted),
                is_first: wire.from_start
                    && frames.is_some_and(|frames| frames.total_messages == u64::from(frames.messages)),
                done: false,
            });
        }
        let Some(peer) = peer else { return self.alone(wire.inode, wire.ts_ns, false) };
        self.drained(wire, peer, end, entry_ns);
        self.align(peer, wire.inode);
        let start = if is_named { 0 } else { wire.position };
        self.cross_read(peer, wire.inode, start, end);
    }

    /// A connection that has received its first messages has its pipe now.
    pub fn piped(&mut self, inode: u64, pipe: PipeId) {
        let peer = self.endings.get(&inode).and_then(|ending| ending.peer);
        if self.receivers.get_mut(&inode).is_some_and(|receiver| receiver.name_first(pipe))
            && let Some(peer) = peer
        {
            self.cross_all(peer, inode);
        }
    }

    fn returned(&mut self, tid: u32, ts_ns: u64) {
        if self.threads.len() >= MAX_STREAMS && !self.threads.contains_key(&tid) {
            self.threads.clear();
        }
        let last = self.threads.entry(tid).or_default();
        *last = ts_ns.max(*last);
    }

    /// unix: notes where both ends are when a read has found no more, and nothing was being sent.
    fn drained(&mut self, wire: &Wire, peer: u64, end: u64, entry_ns: Option<u64>) {
        let (Some(sender), Some(receiver)) = (self.senders.get(&peer), self.receivers.get_mut(&wire.inode)) else {
            return;
        };
        const EAGAIN: i64 = -11;
        let found_no_more = if wire.ret > 0 { (wire.ret as u64) < wire.wanted } else { wire.ret == EAGAIN };
        let is_quiet = entry_ns.is_some_and(|entry_ns| sender.last_exit_ns != 0 && sender.last_exit_ns < entry_ns);
        if receiver.origin.is_some() || receiver.difference.is_some() || !found_no_more || !is_quiet {
            return;
        }
        receiver.drained = Some(Drained { sent: sender.end.now, received: end, read_exit_ns: wire.ts_ns });
    }

    /// unix: the next send tells whether it had begun by then, or another one had that was not seen.
    fn confirm_drained(&mut self, sender: u64, peer: u64, start: u64, entry_ns: Option<u64>, exit_ns: u64) {
        let Some(receiver) = self.receivers.get_mut(&peer) else { return };
        let Some(drained) = receiver.drained else { return };
        if exit_ns <= drained.read_exit_ns && start < drained.sent {
            return;
        }
        receiver.drained = None;
        let is_next = start == drained.sent && entry_ns.is_some_and(|entry_ns| entry_ns > drained.read_exit_ns);
        if is_next && receiver.difference.is_none() {
            receiver.difference = Some(drained.sent as i64 - drained.received as i64);
            self.cross_all(sender, peer);
        }
    }

    /// Finds the difference between both counts, where it can be said.
    fn align(&mut self, sender_inode: u64, receiver_inode: u64) {
        let (Some(from), Some(to)) = (self.endings.get(&sender_inode), self.endings.get(&receiver_inode)) else {
            return;
        };
        let (Some(sender), Some(receiver)) = (self.senders.get(&sender_inode), self.receivers.get_mut(&receiver_inode))
        else {
            return;
        };
        if receiver.difference.is_some() {
            return;
        }
        receiver.difference = match (sender.origin, receiver.origin) {
            (Some(sent), Some(received)) => {
                // Both number the same bytes, modulo 2^32; what is on the way is less than half of that.
                let near = sender.end.now as i64 - receiver.end.now as i64;
                let difference = received.wrapping_sub(sent);
                Some(near + i64::from(difference.wrapping_sub(near as u32) as i32))
            }
            (None, None) if from.from_start && to.from_start => Some(0),
            (None, None) => {
                let begun = [sender.begun_ns, receiver.begun_ns];
                let is_later = |rest| begun.iter().all(|begun| begun.is_some_and(|begun| begun > rest));
                receiver.at_rest_ns.filter(|rest| is_later(*rest)).map(|_| 0)
            }
            _ => None,
        };
        if receiver.difference.is_some() {
            self.cross_all(sender_inode, receiver_inode);
        }
    }

    fn cross_all(&mut self, sender: u64, receiver: u64) {
        self.cross_where(sender, receiver, 0..usize::MAX, false);
    }

    /// Receives that lie within what was just sent.
    fn cross_from(&mut self, sender: u64, receiver: u64, start: u64, end: u64) {
        let Some(side) = self.receivers.get(&receiver) else { return };
        let Some(difference) = side.difference else { return };
        let own = |position: u64| position as i64 - difference;
        let first = side.segments.partition_point(|segment| (segment.end as i64) <= own(start));
        let last = side.segments.partition_point(|segment| (segment.start as i64) < own(end));
        self.cross_where(sender, receiver, first..last, false);
    }

    fn cross_read(&mut self, sender: u64, receiver: u64, start: u64, end: u64) {
        let Some(side) = self.receivers.get(&receiver) else { return };
        let first = side.segments.partition_point(|segment| segment.start < start);
        let last = side.segments.partition_point(|segment| segment.start < end);
        self.cross_where(sender, receiver, first..last, false);
    }

    fn cross_where(&mut self, sender_inode: u64, receiver_inode: u64, range: std::ops::Range<usize>, forced: bool) {
        let (Some(from), Some(to)) = (self.endings.get(&sender_inode), self.endings.get(&receiver_inode)) else {
            return;
        };
        let (Some(sender), Some(receiver)) =
            (self.senders.get_mut(&sender_inode), self.receivers.get_mut(&receiver_inode))
        else {
            return;
        };
        if receiver.difference.is_none() {
            return;
        }
        for index in range.start..range.end.min(receiver.segments.len()) {
            cross(sender, receiver, index, (from, to), forced, &mut self.crossings);
        }
        receiver.drop_done(&mut self.settled);
        sender.drop_done(&mut self.settled);
    }

    /// An end whose other end is not seen: what it can say by itself.
    fn alone(&mut self, inode: u64, now_ns: u64, forced: bool) {
        let Some(ending) = self.endings.get(&inode) else { return };
        let is_alone = ending.peer.is_none();
        // The other end is met when it moves bytes, too.
        let is_early = ending.moved_ns.is_none_or(|moved_ns| now_ns < moved_ns + PEER_GRACE_NS);
        if !forced && (!is_alone || is_early) {
            return;
        }
        let reason = if is_alone { Reason::PeerNotTraced } else { Reason::NotSynchronised };
        let other = match ending.peer.and_then(|peer| self.endings.get(&peer)) {
            Some(peer) => peer.party.clone(),
            None => ending.remote.clone().map_or(Party::Unknown, Party::Remote),
        };
        let connection = ending.connection();
        let crossings = &mut self.crossings;
        if let Some(sender) = self.senders.get_mut(&inode) {
            for written in &mut sender.written {
                if written.numbering == Numbering::Pending && !forced {
                    break;
                }
                for nth in 0..written.count {
                    let (Numbering::Of(..) | Numbering::NoCalls) = written.numbering else { break };
                    crossings.push(Crossing {
                        from: ending.party.clone(),
                        to: other.clone(),
                        connection: connection.clone(),
                        tx: written.end_of(nth),
                        rx: End::Unknown(reason),
                        not_before_ns: ending.not_before_ns(),
                        tx_ns: written.entry_ns,
                        rx_ns: None,
                        index: written.before + nth + 1,
                    });
                }
                written.left = 0;
            }
            sender.drop_done(&mut self.settled);
        }
        if let Some(receiver) = self.receivers.get_mut(&inode) {
            for index in 0..receiver.segments.len() {
                let next = receiver.next_count(index);
                let segment = &mut receiver.segments[index];
                let (Some((pipe, before)), Some(messages)) = (segment.pipe, segment.messages.or(next)) else {
                    let is_hopeless = segment.pipe.is_none() && !segment.is_unnamed();
                    if forced || is_hopeless || receiver.segments.len() > index + 1 {
                        receiver.segments[index].done = true;
                        continue;
                    }
                    break;
                };
                segment.done = true;
                for nth in 1..=messages {
                    crossings.push(Crossing {
                        from: other.clone(),
                        to: ending.party.clone(),
                        connection: connection.clone(),
                        tx: End::Unknown(reason),
                        rx: End::Numbered(Number { pipe, number: before + nth }),
                        not_before_ns: 0,
                        tx_ns: None,
                        rx_ns: Some(segment.rx_ns),
                        index: before + nth,
                    });
                }
            }
            receiver.drop_done(&mut self.settled);
        }
    }

    /// Once a second of the stream: gives up what will not come, forgets what is closed.
    pub fn settle(&mut self, now_ns: u64, sends: &Matching) {
        for inode in self.encrypted.values().copied().collect::<Vec<_>>() {
            self.unhide(inode, sends, now_ns.saturating_sub(SECOND_NS));
        }
        let inodes: Vec<u64> = self.endings.keys().copied().collect();
        for inode in inodes {
            let Some(ending) = self.endings.get(&inode) else { continue };
            let Some(peer) = ending.peer else {
                self.alone(inode, now_ns, false);
                continue;
            };
            let is_aligned = self.receivers.get(&inode).is_some_and(|receiver| receiver.difference.is_some());
            if is_aligned {
                self.settle_receiver(peer, inode, now_ns);
            }
            self.give_up_unaligned(inode, peer, now_ns);
        }
        for sender in self.senders.values_mut() {
            sender.end.pass();
        }
        for receiver in self.receivers.values_mut() {
            receiver.end.pass();
        }
        let is_over = |ending: &Ending| ending.closed_ns.is_some_and(|closed_ns| closed_ns + CLOSED_NS < now_ns);
        let over: Vec<u64> =
            self.endings.iter().filter(|(_, ending)| is_over(ending)).map(|(inode, _)| *inode).collect();
        for inode in over {
            self.forget(inode);
        }
    }

    /// Receives that the sender has passed long ago are counted as far as what was seen goes; sends that the receiver
    /// has passed were received, but that was not seen.
    fn settle_receiver(&mut self, sender_inode: u64, receiver_inode: u64, now_ns: u64) {
        let (Some(sender), Some(receiver)) = (self.senders.get(&sender_inode), self.receivers.get(&receiver_inode))
        else {
            return;
        };
        let Some(difference) = receiver.difference else { return };
        let passed = sender.end.long_ago() as i64 - difference;
        let is_late = |segment: &Segment| {
            let waited_ns = now_ns.saturating_sub(segment.rx_ns);
            (segment.end as i64) <= passed && waited_ns > SECOND_NS || waited_ns > LATE_NS
        };
        let late = receiver.segments.iter().take_while(|segment| segment.done || is_late(segment)).count();
        self.cross_where(sender_inode, receiver_inode, 0..late, true);
        if let (Some(sender), Some(receiver)) =
            (self.senders.get_mut(&sender_inode), self.receivers.get(&receiver_inode))
        {
            let received = receiver.end.long_ago() as i64 + difference;
            for written in &mut sender.written {
                if (written.end as i64) > received {
                    break;
                }
                written.left = 0;
            }
            sender.drop_done(&mut self.settled);
        }
    }

    /// Ends that could not be aligned for long: each says what it can by itself.
    fn give_up_unaligned(&mut self, inode: u64, peer: u64, now_ns: u64) {
        let is_unaligned = |receiver: Option<&Receiver>| receiver.is_none_or(|receiver| receiver.difference.is_none());
        let old_writes = self
            .senders
            .get(&inode)
            .and_then(|sender| sender.written.front())
            .is_some_and(|first| first.exit_ns + LATE_NS < now_ns && is_unaligned(self.receivers.get(&peer)));
        let old_reads = self.receivers.get(&inode).is_some_and(|receiver| {
            receiver.difference.is_none()
                && receiver.segments.front().is_some_and(|first| first.rx_ns + LATE_NS < now_ns)
        });
        if old_writes || old_reads {
            self.alone(inode, now_ns, true);
        }
    }

    /// The end of the stream: all that can be said is said.
    pub fn end(&mut self, now_ns: u64, sends: &Matching) {
        for inode in self.encrypted.values().copied().collect::<Vec<_>>() {
            self.unhide(inode, sends, u64::MAX);
        }
        let inodes: Vec<u64> = self.endings.keys().copied().collect();
        for inode in &inodes {
            if let Some(sender) = self.senders.get_mut(inode) {
                for written in &mut sender.written {
                    // No later system call tells how many of the messages before were on the wire.
                    if written.numbering == Numbering::Pending {
                        written.numbering = Numbering::Unknown(Reason::Ambiguous);
                    }
                }
            }
        }
        for inode in inodes {
            let peer = self.endings.get(&inode).and_then(|ending| ending.peer);
            match peer {
                None => self.alone(inode, now_ns, true),
                Some(peer) => {
                    let is_aligned = self.receivers.get(&inode).is_some_and(|receiver| receiver.difference.is_some());
                    if is_aligned {
                        self.cross_where(peer, inode, 0..usize::MAX, true);
                    }
                    let there = self.receivers.get(&peer).is_none_or(|receiver| receiver.difference.is_none());
                    if !is_aligned && there {
                        self.alone(inode, now_ns, true);
                    }
                }
            }
        }
    }

    /// A fd is closed, or another connection has it.
    pub fn closed(&mut self, pid: u32, fd: i32, ts_ns: u64) {
        if let Some(inode) = self.by_fd.remove(&(pid, fd))
            && let Some(ending) = self.endings.get_mut(&inode)
        {
            ending.closed_ns.get_or_insert(ts_ns);
        }
    }

    /// All fds of a process are closed.
    pub fn process_ended(&mut self, pid: u32, ts_ns: u64) {
        self.by_fd.retain(|(of, _), _| *of != pid);
        self.networks.remove(&pid);
        for ending in self.endings.values_mut().filter(|ending| ending.pid == pid) {
            ending.closed_ns.get_or_insert(ts_ns);
        }
    }

    fn forget(&mut self, inode: u64) {
        let Some(ending) = self.endings.remove(&inode) else { return };
        if let Some(mut sender) = self.senders.remove(&inode) {
            sender.restart(&mut self.settled);
        }
        self.encrypted.retain(|_, of| *of != inode);
        self.receivers.remove(&inode);
        if let (Some(local), Some(remote)) = (ending.local, ending.remote) {
            let key = (local, remote);
            if let Some(same) = self.by_addresses.get_mut(&key) {
                same.retain(|other| *other != inode);
                if same.is_empty() {
                    self.by_addresses.remove(&key);
                }
            }
        }
        if let Some(peer_inode) = ending.peer_inode {
            self.by_peer_inode.remove(&peer_inode);
        }
        if self.by_fd.get(&(ending.pid, ending.fd)) == Some(&inode) {
            self.by_fd.remove(&(ending.pid, ending.fd));
        }
        if let Some(other) = ending.peer.and_then(|peer| self.endings.get_mut(&peer)) {
            other.peer = None;
        }
    }

    /// System calls that wait for their counterparts.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        let sent = self.senders.values().map(|sender| sender.written.len());
        sent.chain(self.receivers.values().map(|receiver| receiver.segments.len())).sum()
    }

    fn forget_oldest(&mut self) {
        let mut ages: Vec<_> =
            self.endings.iter().map(|(inode, it)| (it.closed_ns.is_none(), it.used_ns, *inode)).collect();
        ages.sort_unstable();
        for (_, _, inode) in ages.into_iter().take(MAX_STREAMS / 4) {
            self.forget(inode);
        }
    }
}

fn ending_is_subscriber(endings: &FxHashMap<u64, Ending>, inode: u64) -> bool {
    endings.get(&inode).is_some_and(|ending| {
        let receives = ending.peer.and_then(|peer| endings.get(&peer)).is_some_and(|peer| peer.subscribes[1]);
        ending.subscribes[0] || receives
    })
}

/// An address as both ends write it: one of IPv4 may be written as one of IPv6.
fn plain(address: &str) -> Arc<str> {
    let host = address.split_once("[::ffff:").and_then(|(scheme, rest)| Some((scheme, rest.split_once(']')?)));
    match host {
        Some((scheme, (host, port))) if host.contains('.') => format!("{scheme}{host}{port}").into(),
        _ => address.into(),
    }
}

fn is_tcp(address: &str) -> bool {
    !address.starts_with("ipc:")
}

/// `127.0.0.1:5`, or `tcp://127.0.0.1:5`.
fn is_loopback(address: &str) -> bool {
    let host = address.split_once("://").map_or(address, |(_, host)| host);
    host.starts_with("127.") || host.starts_with("[::1]") || host.starts_with("[::ffff:127.")
}

impl Ending {
    fn moved(&mut self, wire: &Wire) {
        self.used_ns = wire.ts_ns;
        if wire.ret > 0 {
            self.moved_ns.get_or_insert(wire.ts_ns);
        }
    }

    /// When the first send can have returned that went over it.
    const fn not_before_ns(&self) -> u64 {
        if self.survives || !self.from_start { 0 } else { self.started_ns }
    }

    /// Both addresses, this end's first.
    fn connection(&self) -> Option<Arc<str>> {
        match (&self.local, &self.remote) {
            (Some(local), Some(remote)) => Some(format!("{local} -> {remote}").into()),
            (Some(address), None) | (None, Some(address)) => Some(Arc::clone(address)),
            (None, None) => None,
        }
    }
}
