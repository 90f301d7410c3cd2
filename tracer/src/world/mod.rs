//! What is known of the targets at a moment of the stream: processes, threads, contexts, sockets, and
//! their names. A fold over events, the same from a live process and from saved events.

mod fds;
mod names;
mod streams;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tracer_common::function::Class;

pub use self::{
    fds::Fd,
    names::SocketLabel,
    streams::{Peer, Stream},
};
use crate::event::{Call, Event, Library, Outcome, Queues, Snapshot, Start};

/// Closed sockets that are remembered, a process.
const MAX_CLOSED: usize = 10_000;

/// Names of threads that are remembered, a process. Beyond it they are forgotten: a thread is then shown by its
/// process's name.
const MAX_THREAD_NAMES: usize = 50_000;

/// Everything known.
#[derive(Debug, Default)]
pub struct World {
    start: Option<Start>,
    lost_calls: bool,
    endpoints_shown: bool,
    processes: BTreeMap<u32, Process>,
}

/// A process.
#[derive(Debug, Default)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Whether it was asked for; else it is at the other end of a connection.
    pub is_target: bool,
    /// The libzmq copies in it.
    pub libraries: Vec<Library>,
    /// What it held when it was last looked into.
    pub snapshot: Option<Arc<Snapshot>>,
    threads: HashMap<u32, String>,
    /// Fds of sockets.
    fds: fds::Fds,
    /// Ends of connections.
    streams: streams::Streams,
    sockets: HashMap<(u64, u32), Socket>,
    /// The latest generation of each address.
    newest: HashMap<u64, u32>,
    /// Sockets that were closed, oldest first.
    closed: VecDeque<(u64, u32)>,
    contexts: HashMap<u64, u32>,
    pollers: HashMap<u64, u32>,
    /// How many sockets, contexts and pollers have been seen.
    seen: [u32; 3],
}

/// A socket.
#[derive(Debug, Clone, Default)]
pub struct Socket {
    /// Index of its libzmq.
    pub library: u8,
    /// `ZMQ_REQ`, ...; `None`: not known.
    pub socket_type: Option<i32>,
    /// libzmq's own number of it.
    pub id: Option<u32>,
    /// n-th socket seen in its process, from 1.
    pub ordinal: u32,
    /// Endpoints that it was found or seen to be bound or connected to, and has not left.
    pub endpoints: Vec<String>,
    /// Messages sent and received, as far as seen.
    pub messages: [u64; 2],
}

impl World {
    /// With `endpoints`, sockets are shown to people with what they are bound and connected to (`-y`).
    pub fn showing(endpoints: bool) -> Self {
        Self { endpoints_shown: endpoints, ..Self::default() }
    }

    /// Takes in the next event. Reports show an event after the world has taken it in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Start(start) => self.start = Some(start.clone()),
            Event::Process(found) => {
                let process = self.processes.entry(found.pid).or_default();
                process.name.clone_from(&found.name);
                process.is_target = found.is_target;
                process.libraries.clone_from(&found.libraries);
            }
            Event::Thread(thread) => {
                let threads = &mut self.process_mut(thread.pid).threads;
                if threads.len() >= MAX_THREAD_NAMES {
                    threads.clear();
                }
                threads.insert(thread.tid, thread.name.clone());
            }
            Event::Socket(found) => {
                let socket = self.process_mut(found.pid).socket_mut(found.handle, found.generation, found.library);
                socket.socket_type = Some(found.socket_type);
                socket.id = found.id;
            }
            Event::Snapshot(snapshot) => self.process_mut(snapshot.pid).found(snapshot),
            Event::Queues(queues) => self.process_mut(queues.pid).sampled(queues),
            Event::Fd(change) => self.process_mut(change.pid).fd_changed(change),
            Event::Call(call) => self.apply_call(call),
            Event::InFlight(in_flight) => self.see(&in_flight.call),
            Event::Totals(totals) => {
                for row in &totals.rows {
                    if row.handle != 0 && row.function.row().is_about_socket() {
                        self.process_mut(row.pid).socket_mut(row.handle, row.generation, row.library);
                    }
                }
            }
            Event::Exec(exec) => {
                // What the old program had is gone; its sockets keep their names, of which reports may still
                // speak, until the new program's take their places.
                let process = self.process_mut(exec.pid);
                process.newest.clear();
                process.contexts.clear();
                process.pollers.clear();
                process.snapshot = None;
                process.fds.clear();
                process.streams.clear();
            }
            Event::Loss(loss) => self.lost_calls = loss.ring_full > 0,
            Event::ProcessExit(exit) => {
                let process = self.process_mut(exit.pid);
                process.fds.clear();
                process.streams.clear();
                // What it held is gone.
                process.snapshot = None;
            }
            Event::Stream(stream) => self.process_mut(stream.pid).streams.met(stream),
            Event::Command(command) => self.process_mut(command.pid).streams.told(command),
            Event::Wire(_) | Event::Pipe(_) => {}
            Event::ThreadExit(_) | Event::Tick(_) | Event::End(_) => {}
        }
    }

    /// Whether people are to be shown what sockets are bound and connected to, and what fds are.
    pub fn shows_endpoints(&self) -> bool {
        self.endpoints_shown
    }

    /// CLOCK_REALTIME of a stamp, ns.
    pub fn realtime_ns(&self, ts_ns: u64) -> u64 {
        match &self.start {
            Some(start) => start.realtime_ns.wrapping_add(ts_ns.wrapping_sub(start.ts_ns)),
            None => ts_ns,
        }
    }

    /// When observation began, CLOCK_MONOTONIC.
    pub fn start_ns(&self) -> u64 {
        self.start.as_ref().map_or(0, |start| start.ts_ns)
    }

    /// Whether the stream's totals say all that is to be counted.
    pub fn has_totals(&self) -> bool {
        self.start.as_ref().is_some_and(|start| start.totals)
    }

    /// Whether the stream lacks calls, so that what is counted from it is not exact.
    pub fn has_lost_calls(&self) -> bool {
        self.lost_calls
    }

    /// Every process that was found or seen, by its number.
    pub fn processes(&self) -> impl Iterator<Item = (u32, &Process)> {
        self.processes.iter().map(|(pid, process)| (*pid, process))
    }

    /// A process that was found or seen.
    pub fn process(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// A process's name; `?` where it is not known.
    pub fn process_name(&self, pid: u32) -> &str {
        self.processes.get(&pid).map_or("?", |process| &process.name)
    }

    /// The socket at an address.
    pub fn socket(&self, pid: u32, handle: u64, generation: u32) -> Option<&Socket> {
        self.processes.get(&pid)?.sockets.get(&(handle, generation))
    }

    /// The socket that a call is about; of `zmq_socket`, the one that it made.
    pub fn socket_of(&self, call: &Call) -> Option<&Socket> {
        let handle = match (call.outcome, call.function.row().name) {
            (Some(outcome), "zmq_socket") => outcome.ret as u64,
            _ => call.socket()?,
        };
        self.socket(call.pid, handle, call.generation)
    }

    /// A thread's name; that of its process where it is not known.
    pub fn thread_name(&self, pid: u32, tid: u32) -> &str {
        self.processes.get(&pid).map_or("?", |process| process.threads.get(&tid).unwrap_or(&process.name))
    }

    fn process_mut(&mut self, pid: u32) -> &mut Process {
        self.processes.entry(pid).or_default()
    }

    /// Makes the object that a call is about known.
    fn see(&mut self, call: &Call) {
        let Some(handle) = call.handle() else { return };
        let row = call.function.row();
        let process = self.process_mut(call.pid);
        if row.is_about_socket() {
            process.socket_mut(handle, call.generation, call.library);
        } else if row.class == Class::Poll {
            Process::number(&mut process.pollers, &mut process.seen[2], handle);
        } else {
            Process::number(&mut process.contexts, &mut process.seen[1], handle);
        }
    }

    fn apply_call(&mut self, call: &Call) {
        self.see(call);
        let Some(Outcome { ret, failed: false, .. }) = call.outcome else { return };
        let process = self.process_mut(call.pid);
        match call.function.row().name {
            "zmq_socket" => process.opened(call, ret as u64),
            "zmq_ctx_new" | "zmq_init" => {
                process.contexts.remove(&(ret as u64));
                Process::number(&mut process.contexts, &mut process.seen[1], ret as u64);
            }
            "zmq_poller_new" => {
                process.pollers.remove(&(ret as u64));
                Process::number(&mut process.pollers, &mut process.seen[2], ret as u64);
            }
            "zmq_bind" | "zmq_connect" | "zmq_connect_peer" => {
                if let Some(socket) = process.socket_of(call) {
                    socket.endpoints.push(String::from_utf8_lossy(&call.data.bytes).into_owned());
                }
            }
            "zmq_close" => process.closed(call.args[0], call.generation),
            "zmq_unbind" | "zmq_disconnect" => {
                if let Some(socket) = process.socket_of(call) {
                    let left = socket.endpoints.iter().position(|endpoint| endpoint.as_bytes() == call.data.bytes);
                    left.map(|index| socket.endpoints.remove(index));
                }
            }
            _ => {
                let direction = match call.function.row().class {
                    Class::Send => 0,
                    Class::Recv => 1,
                    _ => return,
                };
                if call.more == Some(false)
                    && let Some(socket) = process.socket_of(call)
                {
                    socket.messages[direction] += 1;
                }
            }
        }
    }
}

impl Process {
    fn socket_mut(&mut self, handle: u64, generation: u32, library: u8) -> &mut Socket {
        let seen = &mut self.seen[0];
        let newest = self.newest.entry(handle).or_insert(generation);
        *newest = generation.max(*newest);
        self.sockets.entry((handle, generation)).or_insert_with(|| {
            *seen += 1;
            Socket { library, socket_type: None, id: None, ordinal: *seen, endpoints: Vec::new(), messages: [0; 2] }
        })
    }

    /// What was found in its memory is so, whatever was known before.
    fn found(&mut self, snapshot: &Arc<Snapshot>) {
        for context in &snapshot.contexts {
            Self::number(&mut self.contexts, &mut self.seen[1], context.handle);
            for state in &context.sockets {
                let key = (state.handle, state.generation);
                let is_another = |known: &Socket| known.id.is_some() && state.id.is_some() && known.id != state.id;
                if self.sockets.get(&key).is_some_and(is_another) {
                    // It was closed, and another one made at its address, unseen.
                    self.sockets.remove(&key);
                }
                let socket = self.socket_mut(state.handle, state.generation, context.library);
                socket.socket_type = state.socket_type.or(socket.socket_type);
                socket.id = state.id.or(socket.id);
                socket.endpoints.clear();
                for found in &state.endpoints {
                    if !socket.endpoints.contains(&found.endpoint) {
                        socket.endpoints.push(found.endpoint.clone());
                    }
                }
            }
        }
        self.forget_all_but(snapshot);
        self.fds_found(snapshot);
        self.snapshot = Some(Arc::clone(snapshot));
    }

    /// Sockets that are not there any more were closed, unseen.
    fn forget_all_but(&mut self, snapshot: &Snapshot) {
        // What could not be read may be there still.
        if snapshot.unread > 0 {
            return;
        }
        let sockets = snapshot.contexts.iter().flat_map(|context| &context.sockets);
        let there: HashSet<u64> = sockets.map(|socket| socket.handle).collect();
        self.sockets.retain(|(handle, _), _| there.contains(handle));
        self.newest.retain(|handle, _| there.contains(handle));
    }

    /// Brings the queues of the snapshot up to date.
    fn sampled(&mut self, queues: &Queues) {
        let Some(snapshot) = &mut self.snapshot else { return };
        let sampled: HashMap<u64, _> = queues.queues.iter().map(|queue| (queue.pipes.handle, queue.pipes)).collect();
        let sockets = Arc::make_mut(snapshot).contexts.iter_mut().flat_map(|context| &mut context.sockets);
        for connection in sockets.flat_map(|socket| &mut socket.connections) {
            if let Some(pipes) = &mut connection.pipes
                && let Some(now) = sampled.get(&pipes.handle)
            {
                *pipes = *now;
            }
        }
    }

    fn socket_of(&mut self, call: &Call) -> Option<&mut Socket> {
        self.sockets.get_mut(&(call.socket()?, call.generation))
    }

    fn opened(&mut self, call: &Call, handle: u64) {
        let id: Option<[u8; 4]> = call.data.bytes.as_ref().try_into().ok();
        self.sockets.remove(&(handle, call.generation));
        let socket = self.socket_mut(handle, call.generation, call.library);
        socket.socket_type = Some(call.args[1] as i32);
        socket.id = id.map(u32::from_le_bytes);
    }

    /// A closed socket keeps its name for a while: reports may still speak of it.
    fn closed(&mut self, handle: u64, generation: u32) {
        self.closed.push_back((handle, generation));
        if self.closed.len() > MAX_CLOSED
            && let Some(oldest) = self.closed.pop_front()
        {
            self.sockets.remove(&oldest);
            if self.newest.get(&oldest.0) == Some(&oldest.1) {
                self.newest.remove(&oldest.0);
            }
        }
    }

    fn number(known: &mut HashMap<u64, u32>, seen: &mut u32, handle: u64) {
        known.entry(handle).or_insert_with(|| {
            *seen += 1;
            *seen
        });
    }
}
