//! The messages of the program: its calls of sends and receives, parts joined, and through which pipes each one went.

use rustc_hash::FxHashMap;
use tracer_common::function::{Arg, Class};

use super::{Reason, SocketId};
use crate::event::{Call, Direction, Missing};

/// Threads that are remembered; beyond it all are forgotten, which only makes proofs fail.
const MAX_THREADS: usize = 50_000;
/// Sockets whose messages may be under way or answered; beyond it all are forgotten, likewise.
const MAX_SOCKETS: usize = 50_000;

/// A whole message that a program has sent or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiMessage {
    /// On which socket.
    pub socket: SocketId,
    /// Whether it was sent or received.
    pub direction: Direction,
    /// Entry of its first part's call.
    pub enter_ns: u64,
    /// Return of its last part's call.
    pub return_ns: u64,
    /// Bytes of all parts; `None`: not all were read.
    pub size: Option<u64>,
    /// Parts.
    pub parts: u32,
    /// Why its stamps are not what they seem, or nothing is known of its pipes.
    pub flaw: Option<Reason>,
}

/// A socket that answers or is answered: one turn of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The socket.
    pub socket: SocketId,
    /// Whether a request was answered (REQ); else one was served (REP).
    pub is_round_trip: bool,
    /// From the one call to the other.
    pub ns: u64,
}

/// Joins parts to messages.
#[derive(Debug, Default)]
pub struct Calls {
    threads: FxHashMap<u32, Thread>,
    under_way: FxHashMap<(SocketId, Direction), UnderWay>,
    /// By socket: when its turn began.
    turns: FxHashMap<SocketId, Place>,
    gaps: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Thread {
    pid: u32,
    /// Of its last call.
    sequence: u32,
    /// How often calls were missing between two.
    gaps: u32,
}

/// Where in a thread's calls something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    ns: u64,
    tid: u32,
    gaps: u32,
    /// Of all threads.
    all_gaps: u32,
}

impl Place {
    /// Whether no call between the two was missed.
    pub const fn leads_to(self, later: Self) -> bool {
        self.tid == later.tid && self.gaps == later.gaps
    }

    /// Whether a part may have been missed between the two. A socket may pass from one thread to another.
    const fn may_lack_part(self, later: Self) -> bool {
        if self.tid == later.tid { self.gaps != later.gaps } else { self.all_gaps != later.all_gaps }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct UnderWay {
    first: Option<Place>,
    /// Where the last message was complete.
    last: Option<Place>,
    size: Option<u64>,
    parts: u32,
    has_gap: bool,
}

impl Calls {
    /// The message that a call completes, and the turn that it ends.
    pub fn call(&mut self, call: &Call, socket_type: Option<i32>) -> (Option<ApiMessage>, Option<Turn>) {
        let gaps = self.place(call);
        let direction = match call.function.row().class {
            Class::Send => Direction::Send,
            Class::Recv => Direction::Receive,
            _ => return (None, None),
        };
        let (Some(handle), Some(outcome)) = (call.socket(), call.outcome) else { return (None, None) };
        if outcome.failed {
            return (None, None);
        }
        let socket = SocketId { pid: call.pid, handle, generation: call.generation };
        if self.under_way.len() >= MAX_SOCKETS && !self.under_way.contains_key(&(socket, direction)) {
            self.under_way.clear();
        }
        let place = Place { ns: call.entry_ns, tid: call.tid, gaps, all_gaps: self.gaps };
        let message = self.under_way.entry((socket, direction)).or_default();
        let first = *message.first.get_or_insert_with(|| {
            message.size = Some(0);
            message.parts = 0;
            message.has_gap = message.last.map_or(gaps > 0, |last| last.may_lack_part(place));
            place
        });
        message.has_gap |= first.may_lack_part(place);
        message.size = message.size.zip(call.size).map(|(all, part)| all + part);
        message.parts += parts(call);
        let is_last = match call.more {
            Some(more) => !more,
            // A plain zmq_recv where the socket's own note of it could not be read: only the last part moves a pipe.
            None => !call.pipes.is_empty() || call.data.missing.is_none(),
        };
        if !is_last {
            return (None, None);
        }
        let flaw = if message.has_gap || call.data.missing == Some(Missing::Lost) { Some(Reason::Lost) } else { None };
        let whole = ApiMessage {
            socket,
            direction,
            enter_ns: first.ns,
            return_ns: outcome.return_ns,
            size: message.size,
            parts: message.parts,
            flaw,
        };
        message.first = None;
        message.last = Some(place);
        let turn = self.turn(&whole, socket_type, place);
        (Some(whole), turn)
    }

    /// Notes a call's place in its thread: how often calls were missing until now.
    fn place(&mut self, call: &Call) -> u32 {
        if self.threads.len() >= MAX_THREADS && !self.threads.contains_key(&call.tid) {
            self.threads.clear();
        }
        // The first call that is seen of a thread is its number 0.
        let unseen = Thread { pid: call.pid, sequence: u32::MAX, gaps: 0 };
        let thread = self.threads.entry(call.tid).or_insert(unseen);
        if thread.sequence.wrapping_add(1) != call.sequence {
            thread.gaps += 1;
            self.gaps += 1;
        }
        thread.sequence = call.sequence;
        thread.gaps
    }

    /// REQ and REP alone alternate, whatever the program does.
    fn turn(&mut self, message: &ApiMessage, socket_type: Option<i32>, place: Place) -> Option<Turn> {
        const REQ: i32 = 3;
        const REP: i32 = 4;
        let (begins, is_round_trip) = match (socket_type?, message.direction) {
            (REQ, Direction::Send) => (Some(message.enter_ns), true),
            (REQ, Direction::Receive) => (None, true),
            (REP, Direction::Receive) => (Some(message.return_ns), false),
            (REP, Direction::Send) => (None, false),
            _ => return None,
        };
        let socket = message.socket;
        let Some(ns) = begins else {
            let ends_ns = if is_round_trip { message.return_ns } else { message.enter_ns };
            let began = self.turns.remove(&socket).filter(|began| began.leads_to(place))?;
            return Some(Turn { socket, is_round_trip, ns: ends_ns.checked_sub(began.ns)? });
        };
        if self.turns.len() >= MAX_SOCKETS {
            self.turns.clear();
        }
        self.turns.insert(socket, Place { ns, ..place });
        None
    }

    /// A thread is gone.
    pub fn thread_ended(&mut self, tid: u32) {
        self.threads.remove(&tid);
    }

    /// A socket is gone.
    pub fn socket_closed(&mut self, socket: SocketId) {
        self.under_way.remove(&(socket, Direction::Send));
        self.under_way.remove(&(socket, Direction::Receive));
        self.turns.remove(&socket);
    }

    /// All that a process had is gone.
    pub fn process_ended(&mut self, pid: u32) {
        self.threads.retain(|_, thread| thread.pid != pid);
        self.under_way.retain(|(socket, _), _| socket.pid != pid);
        self.turns.retain(|socket, _| socket.pid != pid);
    }
}

/// How many parts a call moves: calls with iovecs move one each.
fn parts(call: &Call) -> u32 {
    let iovecs = call.function.row().args.iter().position(|arg| *arg == Arg::Iov);
    match (iovecs, call.function.row().class) {
        (Some(index), Class::Send) => call.args[index + 1] as u32,
        (Some(_), _) => call.outcome.map_or(1, |outcome| outcome.ret.max(1) as u32),
        (None, _) => 1,
    }
}
