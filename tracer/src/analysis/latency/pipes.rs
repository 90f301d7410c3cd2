//! Pipes: whose they are, and what was counted of them.

use rustc_hash::FxHashMap;
use tracer_common::wire::pipe_id;

use super::{Aged, SocketId};
use crate::event::{Direction, Pipe, PipeCount};

/// Pipes that are kept; beyond it those that were used longest ago are forgotten.
const MAX_PIPES: usize = 1 << 16;

/// A pipe, by what names it for good: numbers of messages are those of one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipeId {
    pid: u32,
    id: u64,
}

impl PipeId {
    /// Of a process's socket.
    pub const fn new(pid: u32, id: u64) -> Self {
        Self { pid, id }
    }

    /// Where it is, or was.
    pub const fn address(self) -> u64 {
        pipe_id(self.id, 0)
    }
}

/// What is known of a pipe.
#[derive(Debug, Clone, Default)]
pub struct PipeState {
    /// Its socket.
    pub socket: Option<SocketId>,
    /// Address of the other end.
    pub peer: Option<u64>,
    /// The connection that it was last seen at: it is no pipe to another socket.
    pub inode: Option<u64>,
    /// Messages that calls have sent.
    pub sent: Aged,
    /// Messages that calls have received.
    pub received: Aged,
    /// Messages whose way over the wire is settled: none up to this one will be joined with its send any more.
    pub left: Aged,
    /// The same of what arrived.
    pub arrived: Aged,
    used_ns: u64,
}

/// All pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    states: FxHashMap<PipeId, PipeState>,
    /// The pipe that was last met at an address.
    newest: FxHashMap<(u32, u64), PipeId>,
}

impl Pipes {
    /// A pipe.
    pub fn get(&self, id: PipeId) -> Option<&PipeState> {
        self.states.get(&id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: PipeId) -> Option<&mut PipeState> {
        self.states.get_mut(&id)
    }

    /// Every pipe.
    pub fn states_mut(&mut self) -> impl Iterator<Item = &mut PipeState> {
        self.states.values_mut()
    }

    /// The pipe at an address now.
    pub fn at(&self, pid: u32, address: u64) -> Option<PipeId> {
        self.newest.get(&(pid, address)).copied()
    }

    /// The pipe is told of; again and again, so that this says nothing of its age.
    pub fn told(&mut self, event: &Pipe, generation: u32) -> PipeId {
        let id = PipeId::new(event.pid, event.pipe);
        let state = self.used(id, event.ts_ns);
        state.socket.get_or_insert(SocketId { pid: event.pid, handle: event.handle, generation });
        state.peer = (event.peer != 0).then_some(event.peer).or(state.peer);
        id
    }

    /// A call of a socket has counted.
    pub fn called(&mut self, socket: SocketId, direction: Direction, count: &PipeCount, ts_ns: u64) -> PipeId {
        let id = PipeId::new(socket.pid, count.pipe);
        let state = self.used(id, ts_ns);
        state.socket = Some(socket);
        match direction {
            Direction::Send => state.sent.raise(count.count),
            Direction::Receive => state.received.raise(count.count),
        }
        id
    }

    /// A connection has counted.
    pub fn wired(&mut self, pid: u32, count: &PipeCount, inode: u64, ts_ns: u64) -> PipeId {
        let id = PipeId::new(pid, count.pipe);
        self.used(id, ts_ns).inode = Some(inode);
        id
    }

    fn used(&mut self, id: PipeId, ts_ns: u64) -> &mut PipeState {
        if !self.states.contains_key(&id) {
            if self.states.len() >= MAX_PIPES {
                self.forget_oldest();
            }
            self.newest.insert((id.pid, id.address()), id);
        }
        let state = self.states.entry(id).or_default();
        state.used_ns = state.used_ns.max(ts_ns);
        state
    }

    fn forget_oldest(&mut self) {
        let mut ages: Vec<_> = self.states.iter().map(|(id, state)| (state.used_ns, *id)).collect();
        let middle = ages.len() / 2;
        let (_, (limit_ns, limit_id), _) = ages.select_nth_unstable(middle);
        let limit = (*limit_ns, *limit_id);
        self.states.retain(|id, state| (state.used_ns, *id) >= limit);
        let states = &self.states;
        self.newest.retain(|_, id| states.contains_key(id));
    }

    /// All pipes of a process are gone; its peers may still receive what it sent.
    pub fn process_ended(&mut self, pid: u32) {
        self.newest.retain(|(of, _), _| *of != pid);
    }

    /// Forgets pipes that are at no address any more and were last used before this.
    pub fn forget_before(&mut self, ns: u64) {
        let newest = &self.newest;
        self.states.retain(|id, state| state.used_ns >= ns || newest.get(&(id.pid, id.address())) == Some(id));
    }
}
