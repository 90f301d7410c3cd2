//! Connections: which two ends belong together, and which bytes of the one are which of the other.
//!
//! Both directions of an end are kept apart: a [`Sender`] has the system calls that sent, a [`Receiver`] those that
//! received, until both ends' have been laid beside each other. Bytes are counted from where an end was first seen
//! (`position`); what a receiver counts is brought to the sender's count by a difference that tcp's sequence numbers
//! give, and that unix sockets give when both were seen from their start, or at a moment when all that was sent had been
//! received.

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::FxHashMap;

use super::{
    Aged, Party, Reason, SECOND_NS,
    matching::{Crossing, End, Number},
    pipes::PipeId,
};
use crate::event::{Inside, Stream, Wire};

/// Connections' ends that are kept; beyond it those closed, then those unused longest, are forgotten.
const MAX_STREAMS: usize = 1 << 14;
/// System calls of one direction that wait for the other end's; beyond it the oldest are given up.
const MAX_CALLS: usize = 1 << 13;
/// The same for messages that ended in them.
const MAX_ENDS: u64 = 1 << 17;
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

/// A system call that sent, or several records of it.
#[derive(Debug)]
struct Written {
    start: u64,
    end: u64,
    entry_ns: Option<u64>,
    exit_ns: u64,
    /// Where messages ended: lengths and how many; `None`: it is not known.
    ends: Option<Box<[(u32, u32)]>>,
    count: u64,
    /// Messages on this connection before.
    before: u64,
    numbering: Numbering,
    /// Bytes that no receive was laid beside.
    left: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbering {
    /// The next complete system call tells.
    Pending,
    /// By the pipe: the number of the first one.
    Of(PipeId, u64),
    /// Nothing is known of calls.
    NoCalls,
    Unknown(Reason),
}

/// One direction of one end: what it sent.
#[derive(Debug, Default)]
pub struct Sender {
    written: VecDeque<Written>,
    ends: u64,
    /// tcp: sequence number at position 0.
    origin: Option<u32>,
    end: Aged,
    /// Records of a system call whose last one has not come.
    partial: Vec<(u32, u32)>,
    partial_of: Option<(u64, u64)>,
    /// What the pipe's count was more than the connection's, when a system call was complete.
    offset: Option<(PipeId, i64)>,
    last_exit_ns: u64,
    /// Before when its first byte cannot have been sent.
    begun_ns: Option<u64>,
}

/// A system call that received.
#[derive(Debug)]
struct Segment {
    start: u64,
    end: u64,
    rx_ns: u64,
    pipe: Option<(PipeId, u64)>,
    has_calls: bool,
    /// Messages that ended in it, by its own walk.
    messages: Option<u64>,
    /// It has the first messages of its connection: the handshake ended in it, and only then was the pipe made.
    is_first: bool,
    done: bool,
}

/// One direction of one end: what it received.
#[derive(Debug, Default)]
pub struct Receiver {
    segments: VecDeque<Segment>,
    origin: Option<u32>,
    end: Aged,
    /// What the sender's position is more than the receiver's.
    difference: Option<i64>,
    /// unix: where both were when a read had drained the socket, to be confirmed by the next send.
    drained: Option<Drained>,
    /// unix: when the kernel held nothing for it, before anything was seen to move.
    at_rest_ns: Option<u64>,
    /// Before when its first byte cannot have been read.
    begun_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Drained {
    sent: u64,
    received: u64,
    read_exit_ns: u64,
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
            if known.local.is_some() || stream.local.is_none() {
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
            });
        }
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

    /// A system call has sent.
    pub fn wrote(&mut self, wire: &Wire, pipe: Option<PipeId>, has_calls: bool) {
        let frames = wire.frames.as_ref();
        let Some(ending) = self.endings.get_mut(&wire.inode) else { return };
        ending.moved(wire);
        let (is_encrypted, peer, from_start) = (ending.is_encrypted, ending.peer, wire.from_start);
        let is_encrypted =
            is_encrypted || peer.is_some_and(|peer| self.endings.get(&peer).is_some_and(|it| it.is_encrypted));
        let entry_ns = wire.entry_ns.or_else(|| self.threads.get(&wire.tid).copied());
        self.returned(wire.tid, wire.ts_ns);
        if ending_is_subscriber(&self.endings, wire.inode) || wire.ret <= 0 {
            return;
        }
        let sender = self.senders.entry(wire.inode).or_default();
        let start = wire.position;
        let end = wire.position + wire.ret as u64;
        if wire.gap || sender.has_moved(wire, end) {
            sender.restart(&mut self.settled);
            if let Some(receiver) = peer.and_then(|peer| self.receivers.get_mut(&peer)) {
                receiver.difference = None;
                receiver.drained = None;
            }
        }
        let sender = self.senders.entry(wire.inode).or_default();
        if wire.position == 0 {
            sender.begun_ns = entry_ns;
        }
        sender.origin = wire.sequence.map(|sequence| sequence.wrapping_sub(end as u32));
        let of = (wire.position, wire.ts_ns);
        if sender.partial_of != Some(of) {
            sender.partial.clear();
            sender.partial_of = Some(of);
        }
        if let Some(frames) = frames {
            sender.partial.extend_from_slice(&frames.ends);
            if frames.continues {
                return;
            }
        }
        sender.partial_of = None;
        let ends = std::mem::take(&mut sender.partial);
        let counted: u64 = ends.iter().map(|(_, count)| u64::from(*count)).sum();
        let length: u64 = ends.iter().map(|(bytes, count)| u64::from(*bytes) * u64::from(*count)).sum();
        // Records of the call that were lost would number the rest wrongly.
        let is_whole = frames.is_some_and(|frames| counted == u64::from(frames.messages) && length <= wire.ret as u64);
        let mut written = Written {
            start,
            end,
            entry_ns: wire.entry_ns,
            exit_ns: wire.ts_ns,
            ends: is_whole.then(|| ends.into_boxed_slice()),
            count: if is_whole { counted } else { 0 },
            before: frames.map_or(0, |frames| frames.total_messages.saturating_sub(u64::from(frames.messages))),
            numbering: Numbering::Pending,
            left: end - start,
        };
        // Inside a frame of which encryption hides whether it is the last one, it is not known whether its message counts.
        // Nor is it inside the frame in which the walk began.
        let is_clear = frames.is_some_and(|frames| match frames.inside {
            Inside::Nothing => true,
            Inside::Part | Inside::LastPart => !is_encrypted,
            Inside::Unknown => false,
        });
        let is_complete = wire.ret as u64 == wire.wanted && is_clear;
        // Receives of what has its numbers now.
        let mut numbered_from = start;
        match (pipe, wire.pipe, frames) {
            (Some(pipe), Some(counts), Some(frames)) => {
                let first = sender.offset;
                if is_complete {
                    let taken = counts.count - u64::from(frames.inside == Inside::LastPart && counts.count > 0);
                    let offset = taken as i64 - frames.total_messages as i64;
                    let known_before = first.is_some_and(|(of, known)| of == pipe && known == offset);
                    let differs = first.is_some_and(|(of, known)| of == pipe && known != offset);
                    // With encryption parts count as messages: only where both counts have grown by the same, none did.
                    let is_sure = if is_encrypted {
                        known_before || (first.is_none() && from_start && offset == 0)
                    } else {
                        !differs && taken >= written.count
                    };
                    let number = |before: u64| {
                        let first = before as i64 + offset + 1;
                        if is_sure && first >= 1 {
                            Numbering::Of(pipe, first as u64)
                        } else {
                            Numbering::Unknown(Reason::Ambiguous)
                        }
                    };
                    written.numbering = number(written.before);
                    let pending = sender.written.iter_mut().rev().filter(|it| it.exit_ns <= wire.ts_ns);
                    for earlier in pending.take_while(|it| it.numbering == Numbering::Pending) {
                        earlier.numbering = number(earlier.before);
                        numbered_from = earlier.start;
                    }
                    sender.offset = Some((pipe, offset));
                }
            }
            _ if !has_calls => written.numbering = Numbering::NoCalls,
            (_, _, None) => written.numbering = Numbering::Unknown(Reason::NotSynchronised),
            _ => written.numbering = Numbering::Unknown(Reason::PipeUnknown),
        }
        sender.last_exit_ns = sender.last_exit_ns.max(wire.ts_ns);
        let (entry_ns, exit_ns) = (wire.entry_ns, wire.ts_ns);
        sender.add(written, &mut self.settled);
        if let Some(peer) = peer {
            self.confirm_drained(wire.inode, peer, start, entry_ns, exit_ns);
            self.align(wire.inode, peer);
            self.cross_from(wire.inode, peer, numbered_from, end);
        } else {
            self.alone(wire.inode, wire.ts_ns, false);
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
            receiver.add(Segment {
                start: wire.position,
                end,
                rx_ns: wire.ts_ns,
                pipe: counted,
                has_calls,
                messages: frames.map(|frames| u64::from(frames.messages)),
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
                let by_walk = segment.messages.filter(|_| !ending.is_encrypted);
                let (Some((pipe, before)), Some(messages)) = (segment.pipe, by_walk.or(next)) else {
                    if forced || segment.pipe.is_none() || receiver.segments.len() > index + 1 {
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
    pub fn settle(&mut self, now_ns: u64) {
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
    pub fn end(&mut self, now_ns: u64) {
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

impl Written {
    /// The end of its nth message, from 0.
    fn end_of(&self, nth: u64) -> End {
        match self.numbering {
            Numbering::Of(pipe, first) => End::Numbered(Number { pipe, number: first + nth }),
            Numbering::NoCalls => End::NoCalls,
            Numbering::Pending => End::Unknown(Reason::Ambiguous),
            Numbering::Unknown(reason) => End::Unknown(reason),
        }
    }
}

impl Sender {
    /// Whether what tcp says does not go on from what it said.
    fn has_moved(&self, wire: &Wire, end: u64) -> bool {
        let origin = wire.sequence.map(|sequence| sequence.wrapping_sub(end as u32));
        self.origin.is_some() && origin.is_some() && self.origin != origin
    }

    /// What was counted does not go on.
    fn restart(&mut self, settled: &mut Vec<(PipeId, bool, u64)>) {
        for written in &mut self.written {
            written.left = 0;
        }
        self.drop_done(settled);
        *self = Self { last_exit_ns: self.last_exit_ns, ..Self::default() };
    }

    /// Keeps the order of positions, whatever the order of events.
    fn add(&mut self, written: Written, settled: &mut Vec<(PipeId, bool, u64)>) {
        self.end.raise(written.end);
        self.ends += written.count;
        let at = self.written.partition_point(|earlier| earlier.start < written.start);
        let overlaps = self.written.get(at).is_some_and(|next| next.start < written.end)
            || at > 0 && self.written[at - 1].end > written.start;
        if overlaps {
            // The same bytes twice: not to be believed.
            self.ends -= written.count;
            return;
        }
        self.written.insert(at, written);
        while self.written.len() > MAX_CALLS || self.ends > MAX_ENDS && self.written.len() > 1 {
            if let Some(first) = self.written.front_mut() {
                first.left = 0;
            }
            self.drop_done(settled);
        }
    }

    fn drop_done(&mut self, settled: &mut Vec<(PipeId, bool, u64)>) {
        while self.written.front().is_some_and(|first| first.left == 0) {
            let Some(first) = self.written.pop_front() else { break };
            self.ends -= first.count;
            if let Numbering::Of(pipe, number) = first.numbering {
                settled.push((pipe, true, (number + first.count).saturating_sub(1)));
            }
        }
    }
}

impl Segment {
    /// Whether its pipe is still to be told.
    fn is_unnamed(&self) -> bool {
        self.pipe.is_none() && self.is_first && self.has_calls && self.messages != Some(0)
    }
}

impl Receiver {
    fn add(&mut self, segment: Segment) {
        let at = self.segments.partition_point(|earlier| earlier.start < segment.start);
        let overlaps = self.segments.get(at).is_some_and(|next| next.start < segment.end)
            || at > 0 && self.segments[at - 1].end > segment.start;
        if overlaps {
            return;
        }
        self.segments.insert(at, segment);
        if self.segments.len() > MAX_CALLS {
            self.segments.pop_front();
        }
    }

    /// The connection has its pipe by now: its first messages went through it. Whether there were some.
    fn name_first(&mut self, pipe: PipeId) -> bool {
        let first = self.segments.iter_mut().find(|segment| segment.is_unnamed());
        first.map(|segment| segment.pipe = Some((pipe, 0))).is_some()
    }

    /// Messages that ended in a segment, by what the pipe had counted before the next one.
    fn next_count(&self, index: usize) -> Option<u64> {
        let (segment, next) = (self.segments.get(index)?, self.segments.get(index + 1)?);
        let ((pipe, before), (next_pipe, after)) = (segment.pipe?, next.pipe?);
        (segment.end == next.start && pipe == next_pipe).then(|| after.checked_sub(before))?
    }

    fn drop_done(&mut self, settled: &mut Vec<(PipeId, bool, u64)>) {
        while self.segments.front().is_some_and(|first| first.done) {
            if let Some(Segment { pipe: Some((pipe, before)), .. }) = self.segments.pop_front() {
                settled.push((pipe, false, before));
            }
        }
    }
}

/// Lays a receive beside the sends whose bytes it returned. Where not all of those were seen, it waits for them unless
/// forced to do without.
fn cross(
    sender: &mut Sender,
    receiver: &mut Receiver,
    index: usize,
    (from, to): (&Ending, &Ending),
    forced: bool,
    crossings: &mut Vec<Crossing>,
) {
    let Some(difference) = receiver.difference else { return };
    let counted = receiver.next_count(index);
    let segment = &mut receiver.segments[index];
    if segment.done || (segment.is_unnamed() && !forced) {
        return;
    }
    let (start, end) = (segment.start as i64 + difference, segment.end as i64 + difference);
    // Bytes from before the sender was seen.
    let begins_before = start < 0;
    let (start, end) = (start.max(0) as u64, end.max(0) as u64);
    let first = sender.written.partition_point(|written| written.end <= start);
    let last = sender.written.partition_point(|written| written.start < end);
    // Messages that ended in it, by stretches without a hole: each is a send, and which of its messages.
    let (mut at, mut holes) = (start, u32::from(begins_before));
    let mut ended: Vec<(usize, u64, u32)> = Vec::new();
    for place in first..last {
        let written = &sender.written[place];
        if written.numbering == Numbering::Pending && !forced {
            return;
        }
        if written.start > at {
            holes += 1;
        }
        at = written.end;
        let Some(ends) = &written.ends else {
            holes += 1;
            continue;
        };
        let (mut position, mut nth) = (written.start, 0);
        for (bytes, count) in ends {
            for _ in 0..*count {
                position += u64::from(*bytes);
                if position > start && position <= end {
                    ended.push((place, nth, holes));
                }
                nth += 1;
            }
        }
    }
    if at < end {
        holes += 1;
    }
    if end == 0 {
        segment.done = true;
        return;
    }
    if holes > 0 && !forced {
        return;
    }
    // Encrypted parts look like messages; what the pipe counted tells.
    let is_sure = |(place, ..): &(usize, u64, u32)| matches!(sender.written[*place].numbering, Numbering::Of(..));
    if (from.is_encrypted || to.is_encrypted)
        && (holes > 0 || counted != Some(ended.len() as u64) && !ended.iter().all(is_sure))
    {
        segment.done = forced || counted.is_some();
        return;
    }
    let connection = from.connection();
    let total = ended.len() as u64;
    for (nth, (place, message, before_holes)) in (1..).zip(&ended) {
        let number = match (segment.pipe, holes) {
            (None, _) => None,
            // Forward from what was counted before, as far as all bytes were seen; backward from what was after.
            (Some((pipe, before)), _) if *before_holes == 0 => Some(Number { pipe, number: before + nth }),
            (Some((pipe, before)), _) if *before_holes == holes => counted
                .and_then(|counted| (before + counted + nth).checked_sub(total))
                .map(|number| Number { pipe, number }),
            _ => None,
        };
        let written = &sender.written[*place];
        crossings.push(Crossing {
            from: from.party.clone(),
            to: to.party.clone(),
            connection: connection.clone(),
            tx: written.end_of(*message),
            rx: match (number, segment.has_calls, segment.pipe) {
                (Some(number), ..) => End::Numbered(number),
                (None, false, _) => End::NoCalls,
                (None, true, None) => End::Unknown(Reason::PipeUnknown),
                (None, true, Some(_)) => End::Unknown(Reason::Lost),
            },
            not_before_ns: from.not_before_ns(),
            tx_ns: written.entry_ns,
            rx_ns: Some(segment.rx_ns),
            index: written.before + message + 1,
        });
    }
    for place in first..last {
        let written = &mut sender.written[place];
        let shared = written.end.min(end).saturating_sub(written.start.max(start));
        written.left = written.left.saturating_sub(shared);
    }
    segment.done = true;
}
