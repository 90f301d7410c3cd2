//! Where the time of each message went: from the program's call over the queues and the wire to the other program's call.
//!
//! `calls` joins parts to messages, which `pipes` number: a pipe counts what goes through it, so that the same message
//! has the same number at both its ends, whatever was lost and whenever observation began. `streams` lays the system
//! calls of both ends of a connection beside each other, byte by byte, which joins the number of the sender's pipe with
//! the number of the receiver's. `matching` joins all of that, in whatever order it comes. `histograms` has what is
//! reported, and what became of those messages that could not be matched: never is one guessed.
//!
//! What is kept is bounded: the number of messages that wait for their counterparts (`matching`), system calls,
//! connections (`streams`), pipes (`pipes`), and pairs with histograms (`histograms`).

mod calls;
mod histograms;
mod matching;
mod pipes;
mod streams;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use tracer_common::function::Class;

pub use self::{
    calls::Turn,
    histograms::{Coverage, Histograms, Times},
};
use self::{
    calls::{ApiMessage, Calls},
    matching::{Matching, Moved, Number},
    pipes::{PipeId, Pipes},
    streams::Streams,
};
use super::narrow::Narrow;
use crate::{
    event::{Call, Change, Command, CommandContent, Direction, Event, FdPart, PipeCount, Role, Snapshot, Wire},
    world::{SocketLabel, World},
};

const SECOND_NS: u64 = 1_000_000_000;

/// Names of sockets that are remembered.
const MAX_NAMES: usize = 1 << 15;

/// So many numbers of a pipe are gone through when it becomes known which one is at its other end.
const MAX_LOOKED_BACK: u64 = 1 << 13;

/// A socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    /// Process.
    pub pid: u32,
    /// Its address.
    pub handle: u64,
    /// How often a socket at this address had been closed before.
    pub generation: u32,
}

/// Who sent or received.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A traced socket.
    Socket(SocketId),
    /// A traced process of which no socket is known.
    Process(u32),
    /// Somebody who is not traced, at this address.
    Remote(Arc<str>),
    /// Nobody else: the stage is between two calls of one socket.
    Nobody,
    /// Not known.
    Unknown,
    /// All that are beyond the number of pairs that are told apart.
    Others,
}

/// Who sent, and who received.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The sender.
    pub from: Party,
    /// The receiver.
    pub to: Party,
}

/// A stretch of a message's way. They may overlap and need not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// In the calls that sent its parts.
    SendCall,
    /// From then until the system call that carried its last byte began; nothing where that was earlier.
    SendQueue,
    /// From then until the system call that returned its last byte ended.
    Network,
    /// From then until the call that received its last part returned.
    RecvQueue,
    /// All of it.
    EndToEnd,
    /// From the call that sent a request to the one that received its reply.
    RoundTrip,
    /// From the call that received a request to the one that sent its reply.
    Service,
}

impl Stage {
    /// The name that reports and the JSON contract use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SendCall => "send_call",
            Self::SendQueue => "send_queue",
            Self::Network => "network",
            Self::RecvQueue => "recv_queue",
            Self::EndToEnd => "end_to_end",
            Self::RoundTrip => "round_trip",
            Self::Service => "service",
        }
    }
}

/// Why a message is not matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It could be one of several.
    Ambiguous,
    /// Bytes of both ends could not be laid beside each other, or it is not known where messages begin.
    NotSynchronised,
    /// The other end is in no traced process.
    PeerNotTraced,
    /// At the other end no calls are seen: it is no libzmq that is known, or `zmq_proxy` moved the message.
    NoCalls,
    /// It is not known through which queue it went.
    PipeUnknown,
    /// Its socket keeps only the newest message.
    Conflated,
    /// It waited longest when too many did.
    Evicted,
    /// What belongs to it was not seen.
    Lost,
    /// It was still under way at the end.
    InFlight,
    /// It went to nobody: no receiver wanted it, or had room for it.
    Filtered,
    /// Its stamps cannot be right.
    Contradiction,
}

impl Reason {
    /// The name that reports and the JSON contract use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::NotSynchronised => "not_synchronised",
            Self::PeerNotTraced => "peer_not_traced",
            Self::NoCalls => "no_calls",
            Self::PipeUnknown => "pipe_unknown",
            Self::Conflated => "conflated",
            Self::Evicted => "evicted",
            Self::Lost => "lost",
            Self::InFlight => "in_flight",
            Self::Filtered => "filtered",
            Self::Contradiction => "contradiction",
        }
    }
}

/// What became of messages that went one way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fates {
    /// All of them.
    pub all: u64,
    /// Those that were matched with their other ends.
    pub matched: u64,
    /// Those that will not be, by reason. Until the end there are others that are still open.
    pub unmatched: BTreeMap<Reason, u64>,
}

/// A message whose way was seen, or as much of it as can be. All stamps are CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sent it to whom.
    pub pair: Pair,
    /// The addresses of the connection that it went over; `None`: none, or not known.
    pub connection: Option<Arc<str>>,
    /// The how-manieth of its sender's queue it is; where that is not traced, of its receiver's.
    pub number: u64,
    /// Bytes of all parts, of the sender where that is traced.
    pub size: Option<u64>,
    /// Parts, likewise.
    pub parts: Option<u32>,
    /// Entry of the call that sent its first part.
    pub send_enter_ns: Option<u64>,
    /// Return of the call that sent its last part.
    pub send_return_ns: Option<u64>,
    /// Entry of the system call that carried its last byte.
    pub wire_tx_ns: Option<u64>,
    /// Exit of the system call that returned its last byte.
    pub wire_rx_ns: Option<u64>,
    /// Return of the call that received its last part.
    pub recv_return_ns: Option<u64>,
}

impl Message {
    /// The stages that were seen.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, u64)> {
        let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        [
            (Stage::SendCall, between(self.send_enter_ns, self.send_return_ns)),
            (Stage::SendQueue, between(self.send_return_ns, self.wire_tx_ns)),
            (Stage::Network, between(self.wire_tx_ns, self.wire_rx_ns)),
            (Stage::RecvQueue, between(self.wire_rx_ns, self.recv_return_ns)),
            (Stage::EndToEnd, between(self.send_enter_ns, self.recv_return_ns)),
        ]
        .into_iter()
        .filter_map(|(stage, ns)| Some((stage, ns?)))
    }

    /// From end to end; where that was not seen, its longest stage.
    pub fn longest_ns(&self) -> u64 {
        let whole = self.stages().find(|(stage, _)| *stage == Stage::EndToEnd);
        whole.or_else(|| self.stages().max_by_key(|(_, ns)| *ns)).map_or(0, |(_, ns)| ns)
    }

    /// Whether what must come first did.
    fn is_in_order(&self) -> bool {
        let stamps = [self.send_enter_ns, self.wire_tx_ns, self.wire_rx_ns, self.recv_return_ns];
        stamps.into_iter().flatten().is_sorted()
    }
}

/// A count with what it was some time ago.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aged {
    now: u64,
    before: u64,
    long_before: u64,
}

impl Aged {
    fn raise(&mut self, to: u64) {
        self.now = self.now.max(to);
    }

    /// A second is over.
    fn pass(&mut self) {
        self.long_before = self.before;
        self.before = self.now;
    }

    /// What it was at least a second ago.
    const fn long_ago(&self) -> u64 {
        self.long_before
    }
}

/// The analysis.
#[derive(Debug, Default)]
pub struct Latency {
    narrow: Narrow,
    calls: Calls,
    pipes: Pipes,
    streams: Streams,
    matching: Matching,
    /// Sockets that keep only the newest message, and those that a proxy moves messages of.
    conflated: HashSet<(u32, u64)>,
    proxied: HashSet<(u32, u64)>,
    /// Processes of which pipes are known.
    piped: HashSet<u32>,
    names: HashMap<SocketId, Named>,
    now_ns: u64,
    settled_ns: u64,
}

#[derive(Debug, Clone)]
struct Named {
    name: String,
    is_admitted: bool,
    socket_type: Option<i32>,
}

const PAIR: i32 = 0;
const PUB: i32 = 1;
const SUB: i32 = 2;
const REQ: i32 = 3;
const REP: i32 = 4;
const DEALER: i32 = 5;
const ROUTER: i32 = 6;
const PUSH: i32 = 8;
const XPUB: i32 = 9;
const XSUB: i32 = 10;
const CLIENT: i32 = 13;
const RADIO: i32 = 14;
const DISH: i32 = 15;
const SCATTER: i32 = 17;
const CHANNEL: i32 = 20;

/// Types whose every message goes to one receiver.
const SINGLE: [i32; 7] = [PAIR, REQ, DEALER, PUSH, CLIENT, SCATTER, CHANNEL];
/// Types that send subscriptions.
const SUBSCRIBERS: [i32; 3] = [SUB, XSUB, DISH];
/// Types that receive them.
const PUBLISHERS: [i32; 3] = [PUB, XPUB, RADIO];
const ZMQ_CONFLATE: u64 = 54;

impl Latency {
    /// Shows pairs that `narrow` leaves. With `intervals` what is counted is kept by interval, too; with `messages`, each
    /// message.
    pub fn new(narrow: Narrow, intervals: bool, messages: bool) -> Self {
        let mut matching = Matching::default();
        matching.interval = intervals.then(Histograms::default);
        matching.messages = messages.then(Vec::new);
        Self { narrow, matching, ..Self::default() }
    }

    /// Takes in the next event.
    pub fn event(&mut self, world: &World, event: &Event) {
        self.now_ns = self.now_ns.max(event.ts_ns());
        match event {
            Event::Start(start) => self.settled_ns = start.ts_ns,
            Event::Call(call) => self.call(world, call),
            Event::InFlight(sample) => self.proxies(&sample.call),
            Event::Wire(wire) => self.wire(world, wire),
            Event::Stream(stream) => {
                self.streams.met(stream);
                if let Some(sent) = &stream.sent {
                    let number = Number { pipe: PipeId::new(stream.pid, sent.pipe), number: sent.count };
                    self.streams.rests(stream.inode, number, stream.ts_ns);
                }
            }
            Event::Command(command) => self.command(command),
            Event::Pipe(pipe) => {
                self.piped.insert(pipe.pid);
                let id = self.pipes.told(pipe, world.newest_generation(pipe.pid, pipe.handle));
                self.look_back(id);
                if let Some(inode) = pipe.inode {
                    self.streams.piped(inode, id);
                }
                if let Some(peer) = self.pipes.at(pipe.pid, pipe.peer) {
                    self.look_back(peer);
                }
            }
            Event::Snapshot(snapshot) => self.snapshot(snapshot),
            Event::Fd(change) => {
                let part = world.fd(change.pid, change.fd).map(|fd| fd.part);
                let is_over = match change.change {
                    Change::Closed => true,
                    Change::Removed => part == Some(FdPart::Connection),
                    _ => false,
                };
                if is_over {
                    self.streams.closed(change.pid, change.fd, change.ts_ns);
                }
            }
            Event::ThreadExit(exit) => self.calls.thread_ended(exit.tid),
            Event::Exec(end) | Event::ProcessExit(end) => {
                self.calls.process_ended(end.pid);
                self.pipes.process_ended(end.pid);
                self.streams.process_ended(end.pid, end.ts_ns);
                self.piped.remove(&end.pid);
                self.conflated.retain(|(pid, _)| *pid != end.pid);
                self.proxied.retain(|(pid, _)| *pid != end.pid);
            }
            Event::End(_) => self.end(),
            _ => {}
        }
        self.take_crossings();
        if self.now_ns >= self.settled_ns + SECOND_NS {
            self.settle();
        }
    }

    fn take_crossings(&mut self) {
        let now_ns = self.now_ns;
        for crossing in self.streams.crossings.drain(..) {
            self.matching.crossed(crossing, now_ns);
        }
        for (pipe, is_sent, number) in self.streams.settled.drain(..) {
            if let Some(state) = self.pipes.get_mut(pipe) {
                (if is_sent { &mut state.left } else { &mut state.arrived }).raise(number);
            }
        }
    }

    fn settle(&mut self) {
        self.settled_ns = self.now_ns;
        self.streams.settle(self.now_ns, &self.matching);
        self.take_crossings();
        self.matching.settle(&self.pipes);
        for state in self.pipes.states_mut() {
            for count in [&mut state.sent, &mut state.received, &mut state.left, &mut state.arrived] {
                count.pass();
            }
        }
        self.pipes.forget_before(self.now_ns.saturating_sub(60 * SECOND_NS));
    }

    fn end(&mut self) {
        self.streams.end(self.now_ns, &self.matching);
        self.take_crossings();
        let streams = &self.streams;
        let reason = |pipes: &Pipes, number: Number| {
            let Some(pipe) = pipes.get(number.pipe) else { return Reason::Lost };
            match pipe.inode.and_then(|inode| streams.ending(inode)) {
                Some(_) => Reason::Lost,
                None if pipe.peer.is_none() => Reason::PipeUnknown,
                // The connection moved nothing that was seen: observation began when all was in the queue.
                None => Reason::NotSynchronised,
            }
        };
        self.matching.end(reason, &self.pipes);
    }

    /// Messages that are finished since this was last asked.
    pub fn take_messages(&mut self) -> Vec<Message> {
        self.matching.messages.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All times since the start.
    pub const fn histograms(&self) -> &Histograms {
        &self.matching.histograms
    }

    /// The same, at the end.
    pub fn take_histograms(&mut self) -> Histograms {
        std::mem::take(&mut self.matching.histograms)
    }

    /// All times since the last interval.
    pub fn take_interval(&mut self) -> Histograms {
        self.matching.interval.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What became of the messages of all sockets that are admitted.
    pub fn coverage(&self) -> Coverage {
        self.matching.coverages.sum(|socket| self.admits(socket))
    }

    /// Messages that crossed connections of which no end's calls are seen.
    pub const fn wire_only(&self) -> u64 {
        self.matching.wire_only
    }

    /// Whether a pair is to be shown: one of its sockets is.
    pub fn admits_pair(&self, pair: &Pair) -> bool {
        let admits = |party: &Party| match party {
            Party::Socket(socket) => self.admits(*socket),
            _ => self.narrow.admits_socket(None),
        };
        admits(&pair.from) || admits(&pair.to)
    }

    fn admits(&self, socket: SocketId) -> bool {
        self.names.get(&socket).map_or_else(|| self.narrow.admits_socket(None), |named| named.is_admitted)
    }

    /// Name of a socket: `REQ#7`.
    pub fn socket_name(&self, socket: SocketId) -> String {
        self.names.get(&socket).map_or_else(|| format!("{:#x}", socket.handle), |named| named.name.clone())
    }

    /// A socket's type. Its name is kept, since the world forgets sockets that were closed.
    fn know(&mut self, world: &World, socket: SocketId) -> Option<i32> {
        if let Some(named) = self.names.get(&socket)
            && named.socket_type.is_some()
        {
            return named.socket_type;
        }
        let found = world.socket(socket.pid, socket.handle, socket.generation)?;
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        let named = Named {
            name: SocketLabel(found).to_string(),
            is_admitted: self.narrow.admits_socket(Some(found)),
            socket_type: found.socket_type,
        };
        self.names.insert(socket, named);
        found.socket_type
    }

    fn snapshot(&mut self, snapshot: &Snapshot) {
        if let Some(network) = snapshot.network {
            self.streams.network(snapshot.pid, network);
        }
        for socket in snapshot.contexts.iter().flat_map(|context| &context.sockets) {
            let key = (snapshot.pid, socket.handle);
            match socket.options.conflate {
                Some(true) => self.conflated.insert(key),
                _ => self.conflated.remove(&key),
            };
            for kernel in socket.connections.iter().filter_map(|connection| connection.kernel.as_ref()) {
                if kernel.peer_inode.is_some() && kernel.rx_bytes == Some(0) {
                    self.streams.at_rest(kernel.inode, snapshot.ts_ns);
                }
            }
        }
        for blocked in &snapshot.blocked {
            if blocked.call.is_some_and(|call| call.row().class == Class::Proxy) {
                self.proxied.extend(blocked.sockets.iter().map(|handle| (snapshot.pid, *handle)));
            }
        }
    }

    /// Sockets whose messages a proxy moves: no call shows those.
    fn proxies(&mut self, call: &Call) {
        if call.function.row().class == Class::Proxy {
            let sockets = call.socket().into_iter().chain(call.other_sockets());
            self.proxied.extend(sockets.map(|handle| (call.pid, handle)));
        }
    }

    fn call(&mut self, world: &World, call: &Call) {
        let socket = call.socket().map(|handle| SocketId { pid: call.pid, handle, generation: call.generation });
        let row = call.function.row();
        match (row.class, row.name, socket) {
            (Class::Proxy, ..) => {
                let sockets: Vec<_> = call.socket().into_iter().chain(call.other_sockets()).collect();
                for handle in sockets {
                    self.proxied.remove(&(call.pid, handle));
                }
            }
            (_, "zmq_setsockopt", Some(socket))
                if call.args[1] == ZMQ_CONFLATE && call.data.bytes.first().is_none_or(|byte| *byte != 0) =>
            {
                // A value that was not copied sets it, too: nobody sets it to what it is anyhow.
                self.conflated.insert((socket.pid, socket.handle));
            }
            (Class::Endpoint, _, Some(socket)) => {
                // It may be admitted by its new endpoint.
                self.names.remove(&socket);
                self.know(world, socket);
            }
            (_, "zmq_close", Some(socket)) => {
                self.calls.socket_closed(socket);
                self.conflated.remove(&(socket.pid, socket.handle));
                self.proxied.remove(&(socket.pid, socket.handle));
            }
            _ => {}
        }
        let socket_type = match (row.class, socket) {
            (Class::Send | Class::Recv, Some(socket)) => self.know(world, socket),
            _ => None,
        };
        let (message, turn) = self.calls.call(call, socket_type);
        if let Some(turn) = turn {
            let pair = Pair { from: Party::Socket(turn.socket), to: Party::Nobody };
            let stage = if turn.is_round_trip { Stage::RoundTrip } else { Stage::Service };
            self.matching.time(&pair, stage, turn.ns);
        }
        if let Some(message) = message {
            self.message(&message, &call.pipes, socket_type);
        }
    }

    /// A whole message of the program: which numbers it has.
    fn message(&mut self, message: &ApiMessage, counts: &[PipeCount], socket_type: Option<i32>) {
        let is_sent = message.direction == Direction::Send;
        let subscribes = if is_sent { &SUBSCRIBERS } else { &PUBLISHERS };
        if socket_type.is_some_and(|it| subscribes.contains(&it)) {
            return;
        }
        let ApiMessage { socket, enter_ns, return_ns, size, parts, flaw, .. } = *message;
        let frames = frames(socket_type, parts).filter(|_| flaw.is_none());
        let moved = Moved { socket, enter_ns, return_ns, size, parts, frames, flaw };
        let (mut sure, mut perhaps) = (Vec::new(), Vec::new());
        for count in counts {
            let pipe = self.pipes.called(socket, message.direction, count, return_ns);
            let numbers = if count.unsure { &mut perhaps } else { &mut sure };
            numbers.push(Number { pipe, number: count.count });
        }
        self.piped.extend((!counts.is_empty()).then_some(socket.pid));
        if self.conflated.contains(&(socket.pid, socket.handle)) {
            return self.matching.unnumbered(&moved, is_sent, Reason::Conflated);
        }
        let is_single = !is_sent || socket_type.is_some_and(|it| SINGLE.contains(&it));
        if is_single {
            let one = match (&sure[..], &perhaps[..]) {
                ([one], _) | ([], [one]) => *one,
                ([], []) => {
                    let reason = flaw.unwrap_or(Reason::PipeUnknown);
                    return self.matching.unnumbered(&moved, is_sent, reason);
                }
                _ => return self.matching.unnumbered(&moved, is_sent, Reason::Ambiguous),
            };
            return self.numbered(one, moved, is_sent);
        }
        if sure.is_empty() && perhaps.is_empty() {
            let is_known = self.piped.contains(&socket.pid);
            let reason = if is_known { Reason::Filtered } else { Reason::PipeUnknown };
            return self.matching.unnumbered(&moved, is_sent, flaw.unwrap_or(reason));
        }
        for _ in perhaps {
            self.matching.unnumbered(&moved, is_sent, Reason::Ambiguous);
        }
        for one in sure {
            self.numbered(one, moved, is_sent);
        }
    }

    fn numbered(&mut self, number: Number, moved: Moved, is_sent: bool) {
        if is_sent {
            self.matching.sent(number, moved);
            self.streams.sent(number, &self.matching);
        } else {
            self.matching.received(number, moved);
            self.pass(number);
        }
    }

    /// inproc: a message that a socket received from a pipe was sent through the pipe at its other end.
    fn pass(&mut self, received: Number) {
        let Some(sender) = self.inproc_peer(received.pipe) else { return };
        self.matching.passed(Number { pipe: sender, number: received.number }, received, self.now_ns);
        if let Some(state) = self.pipes.get_mut(sender) {
            state.left.raise(received.number);
        }
    }

    fn inproc_peer(&self, id: PipeId) -> Option<PipeId> {
        let own = self.pipes.get(id)?;
        let sender = self.pipes.at(own.socket?.pid, own.peer?)?;
        let other = self.pipes.get(sender)?;
        let is_pair = other.socket.is_some() && other.peer == Some(id.address());
        (is_pair && own.inode.is_none() && other.inode.is_none()).then_some(sender)
    }

    /// It is known now which pipe is at the other end: so are the messages that were received before.
    fn look_back(&mut self, id: PipeId) {
        if self.inproc_peer(id).is_none() {
            return;
        }
        let last = self.pipes.get(id).map_or(0, |state| state.received.now);
        for number in last.saturating_sub(MAX_LOOKED_BACK)..last {
            let number = Number { pipe: id, number: number + 1 };
            if self.matching.has_received(number) {
                self.pass(number);
            }
        }
    }

    fn wire(&mut self, world: &World, wire: &Wire) {
        self.streams.seen(wire);
        let is_proxied = wire.handle.is_some_and(|handle| self.proxied.contains(&(wire.pid, handle)));
        let survives = world.fd(wire.pid, wire.fd).and_then(|fd| fd.role) == Some(Role::Connect);
        let mut pipe = None;
        if let Some(handle) = wire.handle {
            let generation = world.newest_generation(wire.pid, handle);
            let socket = SocketId { pid: wire.pid, handle, generation };
            let socket_type = self.know(world, socket);
            if let Some(ending) = self.streams.ending_mut(wire.inode) {
                if ending.party != Party::Socket(socket) {
                    ending.party = Party::Socket(socket);
                    ending.is_encrypted |= is_encrypted(world, socket);
                }
                ending.survives |= survives;
                if let Some(socket_type) = socket_type {
                    ending.subscribes[0] |= SUBSCRIBERS.contains(&socket_type);
                    ending.subscribes[1] |= PUBLISHERS.contains(&socket_type);
                }
            }
        }
        if let Some(counts) = wire.pipe {
            self.piped.insert(wire.pid);
            pipe = Some(self.pipes.wired(wire.pid, &counts, wire.inode, wire.ts_ns));
        }
        let has_calls = wire.handle.is_some() && !is_proxied;
        let pipe = pipe.filter(|_| has_calls);
        match wire.direction {
            Direction::Send => self.streams.wrote(wire, pipe, has_calls, &self.matching),
            Direction::Receive => self.streams.read(wire, pipe, has_calls),
        }
    }

    fn command(&mut self, command: &Command) {
        let Some(ending) = self.streams.ending_mut(command.inode) else { return };
        match &command.content {
            CommandContent::Greeting { mechanism: Some(mechanism), .. } => {
                ending.is_encrypted |= matches!(mechanism.as_str(), "CURVE" | "GSSAPI");
            }
            CommandContent::Ready { socket_type: Some(socket_type), .. }
            | CommandContent::Initiate { socket_type: Some(socket_type), .. } => {
                let which = usize::from(command.direction == Direction::Receive);
                ending.subscribes[which] |= matches!(socket_type.as_str(), "SUB" | "XSUB" | "DISH");
            }
            _ => {}
        }
    }
}

/// Frames that a message has on the wire at least, by the parts that the program sends.
fn frames(socket_type: Option<i32>, parts: u32) -> Option<u32> {
    match socket_type? {
        // The first one says to whom.
        ROUTER => parts.checked_sub(1),
        // Behind an envelope: an empty frame, and before that those that say how a reply finds its way back.
        REQ | REP => Some(parts + 1),
        _ => Some(parts),
    }
}

/// Whether the socket's connections are encrypted, as far as was found in its memory.
fn is_encrypted(world: &World, socket: SocketId) -> bool {
    const CURVE: i32 = 2;
    const GSSAPI: i32 = 3;
    let snapshot = world.process(socket.pid).and_then(|process| process.snapshot.as_ref());
    let sockets = snapshot.into_iter().flat_map(|snapshot| &snapshot.contexts).flat_map(|context| &context.sockets);
    let mut found = sockets.filter(|found| found.handle == socket.handle);
    found.any(|found| matches!(found.options.mechanism, Some(CURVE | GSSAPI)))
}
