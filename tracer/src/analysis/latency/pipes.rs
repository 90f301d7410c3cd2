//! Pipes: whose they are, what was counted of them, and when one ends and another begins at its address.

use rustc_hash::FxHashMap;

use super::{Aged, SocketId, calls::Place};
use crate::event::{Direction, Pipe};

/// Pipes that are kept; beyond it those that were used longest ago are forgotten.
const MAX_PIPES: usize = 1 << 16;

/// A pipe that was at an address for some time: numbers of messages are those of one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipeId(u32);

/// What is known of a pipe.
#[derive(Debug, Clone, Default)]
pub struct PipeState {
    /// Its socket.
    pub socket: Option<SocketId>,
    /// Address of the other end.
    pub peer: Option<u64>,
    /// The connection that it was last seen at.
    pub inode: Option<u64>,
    /// Whether it may outlive that.
    pub survives: bool,
    /// Of a pipe to a connection: it is not one to another socket.
    pub has_wire: bool,
    /// Messages that calls have sent.
    pub sent: Aged,
    /// Messages that calls have received.
    pub received: Aged,
    /// Messages whose way over the wire is settled: none up to this one will be joined with its send any more.
    pub left: Aged,
    /// The same of what arrived.
    pub arrived: Aged,
    /// When the newest of the calls counted in `sent` and `received` returned.
    call_ns: [u64; 2],
    /// Messages that the connection has taken out, and put in.
    wire: [u64; 2],
    wire_ns: [u64; 2],
    /// Where in its thread's calls the last message was received.
    received_at: Option<Place>,
    used_ns: u64,
}

/// All pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    now: FxHashMap<(u32, u64), PipeId>,
    states: FxHashMap<PipeId, PipeState>,
    last: u32,
}

/// What a connection says of a pipe.
#[derive(Debug, Clone, Copy)]
pub struct WireSight {
    /// Of the system call.
    pub direction: Direction,
    /// The connection.
    pub inode: u64,
    /// Whether the pipe may outlive a connection: it came of a connect.
    pub survives: bool,
    /// Messages through the pipe by then.
    pub count: u64,
    /// Messages that went over this connection by then, where all of them were counted.
    pub over_connection: Option<u64>,
    /// At exit.
    pub ts_ns: u64,
}

const fn index(direction: Direction) -> usize {
    match direction {
        Direction::Send => 0,
        Direction::Receive => 1,
    }
}

impl Pipes {
    /// A pipe by its number.
    pub fn get(&self, id: PipeId) -> Option<&PipeState> {
        self.states.get(&id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: PipeId) -> Option<&mut PipeState> {
        self.states.get_mut(&id)
    }

    /// A message was received: whether it was the next one after the last one that was seen, which is certain where no
    /// call in between was missed.
    pub fn is_next(&mut self, id: PipeId, count: u64, before: Option<u64>, place: Place) -> bool {
        let Some(state) = self.states.get_mut(&id) else { return false };
        let last = state.received_at.replace(place);
        before.is_some_and(|before| before + 1 == count) && last.is_some_and(|last| last.leads_to(place))
    }

    /// It is not known whether what was received last came from this pipe: nor is it of what comes next.
    pub fn doubt(&mut self, id: PipeId) {
        if let Some(state) = self.states.get_mut(&id) {
            state.received_at = None;
        }
    }

    /// Every pipe.
    pub fn states_mut(&mut self) -> impl Iterator<Item = &mut PipeState> {
        self.states.values_mut()
    }

    /// The pipe at an address now.
    pub fn at(&self, pid: u32, pipe: u64) -> Option<PipeId> {
        self.now.get(&(pid, pipe)).copied()
    }

    /// The pipe is told of; again and again, so that this says nothing of its age.
    pub fn told(&mut self, event: &Pipe, generation: u32) -> PipeId {
        let socket = SocketId { pid: event.pid, handle: event.handle, generation };
        let peer = (event.peer != 0).then_some(event.peer);
        let id = self.at_or_new(event.pid, event.pipe);
        let state = &self.states[&id];
        let is_another = state.socket.is_some_and(|known| known.handle != socket.handle)
            || state.peer.zip(peer).is_some_and(|(known, now)| known != now);
        let id = if is_another { self.renew(event.pid, event.pipe) } else { id };
        let state = self.states.entry(id).or_default();
        state.socket.get_or_insert(socket);
        state.peer = peer.or(state.peer);
        state.used_ns = state.used_ns.max(event.ts_ns);
        id
    }

    /// A call has counted: its pipe, and whether this count is news.
    pub fn called(
        &mut self,
        socket: SocketId,
        pipe: u64,
        direction: Direction,
        count: u64,
        (enter_ns, return_ns): (u64, u64),
    ) -> (PipeId, Option<u64>) {
        let id = self.at_or_new(socket.pid, pipe);
        let state = &self.states[&id];
        let which = index(direction);
        let counted = if which == 0 { state.sent.now } else { state.received.now };
        let is_another = state.socket.is_some_and(|known| known != socket)
            // Less than before, and later: another pipe. (The same count is one that did not change.)
            || count < counted && enter_ns >= state.call_ns[which];
        let id = if is_another { self.renew(socket.pid, pipe) } else { id };
        let state = self.states.entry(id).or_default();
        state.socket = Some(socket);
        state.used_ns = state.used_ns.max(return_ns);
        let counter = if which == 0 { &mut state.sent } else { &mut state.received };
        let before = (state.call_ns[which] != 0).then_some(counter.now);
        counter.now = counter.now.max(count);
        state.call_ns[which] = state.call_ns[which].max(return_ns);
        (id, before)
    }

    /// A connection has counted.
    pub fn wired(&mut self, pid: u32, pipe: u64, sight: &WireSight) -> PipeId {
        let id = self.at_or_new(pid, pipe);
        let state = &self.states[&id];
        let which = index(sight.direction);
        let is_later = sight.ts_ns >= state.wire_ns[which];
        let went_back = is_later && sight.count < state.wire[which];
        let is_other_connection = state.inode.is_some_and(|inode| inode != sight.inode);
        // A pipe that goes on over a new connection has counted what went over the old one.
        let starts_anew = is_other_connection
            && sight.over_connection.is_some_and(|over| sight.count.saturating_sub(over) < state.wire[which]);
        let is_another = went_back || starts_anew || (is_other_connection && !sight.survives && is_later);
        let id = if is_another { self.renew(pid, pipe) } else { id };
        let state = self.states.entry(id).or_default();
        state.inode = Some(sight.inode);
        state.survives = sight.survives;
        state.has_wire = true;
        state.wire[which] = state.wire[which].max(sight.count);
        state.wire_ns[which] = state.wire_ns[which].max(sight.ts_ns);
        state.used_ns = state.used_ns.max(sight.ts_ns);
        id
    }

    fn at_or_new(&mut self, pid: u32, pipe: u64) -> PipeId {
        match self.at(pid, pipe) {
            Some(id) if self.states.contains_key(&id) => id,
            _ => self.renew(pid, pipe),
        }
    }

    /// Another pipe is at the address. What is known of the old one is kept until it is forgotten by age.
    fn renew(&mut self, pid: u32, pipe: u64) -> PipeId {
        self.last += 1;
        let id = PipeId(self.last);
        let old = self.now.insert((pid, pipe), id).and_then(|old| self.states.get(&old));
        let state = PipeState { socket: None, used_ns: old.map_or(0, |old| old.used_ns), ..PipeState::default() };
        self.states.insert(id, state);
        if self.states.len() > MAX_PIPES {
            self.forget_oldest();
        }
        id
    }

    fn forget_oldest(&mut self) {
        let mut ages: Vec<_> = self.states.iter().map(|(id, state)| (state.used_ns, *id)).collect();
        let middle = ages.len() / 2;
        let (_, (limit_ns, limit_id), _) = ages.select_nth_unstable(middle);
        let limit = (*limit_ns, *limit_id);
        self.states.retain(|id, state| (state.used_ns, *id) >= limit);
        self.forget_addresses();
    }

    fn forget_addresses(&mut self) {
        let states = &self.states;
        self.now.retain(|_, id| states.contains_key(id));
    }

    /// All pipes of a process are gone; its peers may still receive what it sent.
    pub fn process_ended(&mut self, pid: u32) {
        self.now.retain(|(of, _), _| *of != pid);
    }

    /// Forgets pipes that are at no address any more and were last used before this.
    pub fn forget_before(&mut self, ns: u64) {
        let current: std::collections::HashSet<PipeId> = self.now.values().copied().collect();
        self.states.retain(|id, state| state.used_ns >= ns || current.contains(id));
    }
}
