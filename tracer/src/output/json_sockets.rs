//! `sockets --json`: contexts, sockets and queues, one object a line.

use std::io;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Report, Sink,
    arguments::escaped,
    json::{Closing, write},
    options,
    time::Rfc3339,
};
use crate::{
    analysis::{
        narrow::Narrow,
        queues::{Flow, Flows},
        topology::Topology,
    },
    constants,
    event::{
        Blocked, Connection, ConnectionState, Context, Endpoint, Event, Frame, KernelSocket, Mapping, Snapshot,
        SocketState,
    },
    world::World,
};

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Object<'a> {
    Context(ContextObject<'a>),
    Socket(Box<SocketObject<'a>>),
    Queue(QueueObject),
}

#[derive(Serialize)]
struct ContextObject<'a> {
    ts_ns: u64,
    time: String,
    pid: u32,
    process: &'a str,
    context: String,
    handle: String,
    layout: &'a Option<String>,
    owner_pid: Option<u32>,
    inherited: bool,
    io_threads: Option<i32>,
    max_sockets: Option<i32>,
    sockets: usize,
    ipv6: Option<bool>,
    blocky: Option<bool>,
    max_msgsz: Option<i32>,
    terminating: Option<bool>,
    /// Objects of the process that changed too fast to be read.
    unread: u32,
    /// What else could not be read, in words.
    missing: &'a [String],
    /// Of the process.
    stopped: bool,
    tracer_pid: Option<u32>,
    blocked: Vec<BlockedObject<'a>>,
}

#[derive(Serialize)]
struct SocketObject<'a> {
    ts_ns: u64,
    pid: u32,
    context: String,
    socket: String,
    handle: String,
    socket_type: Option<String>,
    socket_id: Option<u32>,
    layout: &'a Option<String>,
    options: Map<String, Value>,
    mailbox_fd: Option<i32>,
    closing: bool,
    subscriptions: Option<Vec<String>>,
    subscriptions_left_out: Option<u64>,
    bytes_held: Option<u64>,
    monitor: Option<String>,
    endpoints: &'a [Endpoint],
    connections: Vec<ConnectionObject<'a>>,
    blocked: Vec<BlockedObject<'a>>,
}

#[derive(Serialize)]
struct ConnectionObject<'a> {
    fd: Option<i32>,
    endpoint: &'a Option<String>,
    role: Option<crate::event::Role>,
    local: &'a Option<String>,
    remote: &'a Option<String>,
    state: Option<&'static str>,
    peer_type: Option<String>,
    peer_identity: Option<String>,
    peer_pid: Option<u32>,
    peer_socket: Option<String>,
    tx_queue: Option<u64>,
    tx_hwm: Option<i32>,
    tx_full: Option<bool>,
    rx_queue: Option<u64>,
    rx_hwm: Option<i32>,
    rx_full: Option<bool>,
    mapping: Mapping,
    kernel: &'a Option<KernelSocket>,
}

#[derive(Serialize)]
struct BlockedObject<'a> {
    tid: u32,
    thread: &'a str,
    call: Option<&'static str>,
    since_ns: Option<u64>,
    timeout_ms: Option<i32>,
    system_call: &'a Option<String>,
    sockets: Vec<String>,
    fds: &'a [i32],
    stack: &'a [Frame],
    stack_truncated: bool,
    python_stack: &'a [Frame],
}

#[derive(Serialize)]
struct QueueObject {
    ts_ns: u64,
    pid: u32,
    socket: Option<String>,
    handle: String,
    fd: Option<i32>,
    tx_queue: u64,
    tx_hwm: i32,
    rx_queue: u64,
    rx_hwm: i32,
    tx_written: u64,
    tx_read: u64,
    rx_written: u64,
    rx_read: u64,
}

/// The report.
#[derive(Debug)]
pub struct JsonSockets {
    narrow: Narrow,
    flows: Flows,
    clock: Rfc3339,
    closing: Closing,
}

impl JsonSockets {
    /// Shows what `narrow` leaves.
    pub fn new(narrow: Narrow) -> Self {
        Self { narrow, flows: Flows::default(), clock: Rfc3339::default(), closing: Closing::default() }
    }

    fn write_all(&mut self, world: &World, out: &mut Sink) -> io::Result<()> {
        let topology = Topology::new(world);
        for (pid, process) in world.processes().filter(|(_, process)| process.is_target) {
            let Some(snapshot) = &process.snapshot else { continue };
            for context in &snapshot.contexts {
                let view = View { world, topology: &topology, snapshot, context, pid };
                let object = view.context(&process.name, &mut self.clock);
                self.closing.events += 1;
                write(out, &Object::Context(object))?;
                for socket in &context.sockets {
                    if self.narrow.admits_socket(world.socket(pid, socket.handle, socket.generation)) {
                        self.closing.events += 1;
                        write(out, &Object::Socket(Box::new(view.socket(socket))))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Report for JsonSockets {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.closing.event(event);
        for flow in self.flows.event(event) {
            if self.narrow.admits_socket(world.socket(flow.pid, flow.handle, flow.generation)) {
                self.closing.events += 1;
                write(out, &Object::Queue(queue_object(world, &flow)))?;
            }
        }
        match event {
            Event::Tick(_) => {
                self.write_all(world, out)?;
                io::Write::flush(out)
            }
            Event::End(end) => self.closing.write(out, end.ts_ns.saturating_sub(world.start_ns()), end.reason),
            _ => Ok(()),
        }
    }
}

fn queue_object(world: &World, flow: &Flow) -> QueueObject {
    let pipes = flow.pipes;
    QueueObject {
        ts_ns: flow.ts_ns,
        pid: flow.pid,
        socket: world.socket_name(flow.pid, flow.handle, flow.generation),
        handle: format!("{:#x}", flow.handle),
        fd: flow.fd,
        tx_queue: pipes.tx_queue(),
        tx_hwm: pipes.tx_hwm,
        rx_queue: pipes.rx_queue(),
        rx_hwm: pipes.rx_hwm,
        tx_written: flow.tx_written,
        tx_read: flow.tx_read,
        rx_written: flow.rx_written,
        rx_read: flow.rx_read,
    }
}

/// What an object is seen with.
struct View<'a> {
    world: &'a World,
    topology: &'a Topology,
    snapshot: &'a Snapshot,
    context: &'a Context,
    pid: u32,
}

impl<'a> View<'a> {
    fn context(&self, process: &'a str, clock: &mut Rfc3339) -> ContextObject<'a> {
        let context = self.context;
        ContextObject {
            ts_ns: self.snapshot.ts_ns,
            time: clock.text(self.world.realtime_ns(self.snapshot.ts_ns)),
            pid: self.pid,
            process,
            context: self.world.context_name(self.pid, context.handle),
            handle: format!("{:#x}", context.handle),
            layout: &context.layout,
            owner_pid: context.owner_pid,
            inherited: context.inherited,
            io_threads: context.io_threads,
            max_sockets: context.max_sockets,
            sockets: context.sockets.len(),
            ipv6: context.ipv6,
            blocky: context.blocky,
            max_msgsz: context.max_msgsz,
            terminating: context.terminating,
            unread: self.snapshot.unread,
            missing: &self.snapshot.missing,
            stopped: self.snapshot.stopped,
            tracer_pid: self.snapshot.tracer_pid,
            blocked: self.blocked(|blocked| self.is_here(blocked)),
        }
    }

    /// Whether a thread is to be shown with the context: it waits for the context itself, or (of a thread-safe socket)
    /// for what is not known.
    fn is_here(&self, blocked: &Blocked) -> bool {
        let is_first = self.snapshot.contexts.first().is_some_and(|first| first.handle == self.context.handle);
        blocked.context.map_or(is_first && blocked.sockets.is_empty(), |context| context == self.context.handle)
    }

    fn socket(&self, socket: &'a SocketState) -> SocketObject<'a> {
        let socket_type = socket
            .socket_type
            .map(|number| constants::socket_type(number).map_or_else(|| format!("TYPE{number}"), str::to_owned));
        let subscriptions = socket.subscriptions.as_ref();
        SocketObject {
            ts_ns: self.snapshot.ts_ns,
            pid: self.pid,
            context: self.world.context_name(self.pid, self.context.handle),
            socket: self.world.socket_name(self.pid, socket.handle, socket.generation).unwrap_or_default(),
            handle: format!("{:#x}", socket.handle),
            socket_type,
            socket_id: socket.id,
            layout: &self.context.layout,
            options: options::of(socket).into_iter().map(|option| (option.name.to_owned(), option.value)).collect(),
            mailbox_fd: socket.mailbox_fd,
            closing: socket.closing,
            subscriptions: subscriptions.map(|found| found.topics.iter().map(|topic| escaped(&topic.0)).collect()),
            subscriptions_left_out: subscriptions.map(|found| found.more),
            bytes_held: socket.bytes_held,
            monitor: socket.monitor.as_ref().and_then(|found| self.world.newest_socket_name(self.pid, found.handle)),
            endpoints: &socket.endpoints,
            connections: socket.connections.iter().map(|connection| self.connection(connection)).collect(),
            blocked: self.blocked(|blocked| blocked.sockets.contains(&socket.handle)),
        }
    }

    fn connection(&self, connection: &'a Connection) -> ConnectionObject<'a> {
        let peer = self.topology.peer(self.snapshot, connection);
        let pipes = connection.pipes;
        let peer_socket = peer.and_then(|peer| peer.socket.map(|(handle, generation)| (peer.pid, handle, generation)));
        ConnectionObject {
            fd: connection.fd,
            endpoint: &connection.endpoint,
            role: connection.role,
            local: &connection.local,
            remote: &connection.remote,
            state: connection.state.map(ConnectionState::word),
            peer_type: connection.peer_type.clone(),
            peer_identity: connection.peer_identity.as_deref().map(escaped),
            peer_pid: peer.map(|peer| peer.pid),
            peer_socket: peer_socket
                .and_then(|(pid, handle, generation)| self.world.socket_name(pid, handle, generation)),
            tx_queue: pipes.map(|pipes| pipes.tx_queue()),
            tx_hwm: pipes.map(|pipes| pipes.tx_hwm),
            tx_full: pipes.map(|pipes| pipes.tx_full),
            rx_queue: pipes.map(|pipes| pipes.rx_queue()),
            rx_hwm: pipes.map(|pipes| pipes.rx_hwm),
            rx_full: pipes.map(|pipes| pipes.rx_full),
            mapping: connection.mapping,
            kernel: &connection.kernel,
        }
    }

    fn blocked(&self, is_here: impl Fn(&&Blocked) -> bool) -> Vec<BlockedObject<'a>> {
        let object = |blocked: &'a Blocked| BlockedObject {
            tid: blocked.tid,
            thread: &blocked.thread,
            call: blocked.call.map(|call| call.row().name),
            since_ns: blocked.since_ns,
            timeout_ms: blocked.timeout_ms,
            system_call: &blocked.system_call,
            sockets: blocked
                .sockets
                .iter()
                .filter_map(|handle| self.world.newest_socket_name(self.pid, *handle))
                .collect(),
            fds: &blocked.fds,
            stack: &blocked.stack.frames,
            stack_truncated: blocked.stack.truncated,
            python_stack: &blocked.python,
        };
        self.snapshot.blocked.iter().filter(|blocked| is_here(blocked)).map(object).collect()
    }
}
