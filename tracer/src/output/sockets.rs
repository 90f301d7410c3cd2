//! The table of `sockets`: what a person reads at three in the morning.

use std::{
    collections::HashSet,
    io::{self, Write},
};

use super::{
    Report, Sink,
    arguments::escaped,
    options,
    table::{self, Shape},
    time::duration,
};
use crate::{
    analysis::{
        narrow::Narrow,
        queues::{Flow, Flows},
        topology::{Topology, peer_name},
    },
    constants::{ROUTER, STREAM},
    event::{
        Blocked, Connection, ConnectionState, Context, Endpoint, Event, Frame, KernelSocket, Mapping, Role, Snapshot,
        SocketState,
    },
    world::{Process, World},
};

/// Topics that are shown of a socket, unless all are asked for.
const MAX_TOPICS: usize = 8;
/// Options in a line.
const OPTIONS_A_LINE: usize = 7;
/// Functions that are shown of a stack, unless all are asked for.
const MAX_FUNCTIONS: usize = 4;

/// The report.
#[derive(Debug)]
pub struct Sockets {
    narrow: Narrow,
    /// Everything: all options, topics and stacks.
    verbose: bool,
    /// Looks come again and again.
    watching: bool,
    flows: Flows,
    /// Processes that have ended since the last look.
    ended: Vec<String>,
}

impl Sockets {
    /// Shows what `narrow` leaves, at each look; with `verbose`, everything of it.
    pub fn new(narrow: Narrow, verbose: bool, watching: bool) -> Self {
        Self { narrow, verbose, watching, flows: Flows::default(), ended: Vec::new() }
    }
}

impl Report for Sockets {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        let flows = self.flows.event(event);
        for flow in &flows {
            if flow.has_moved() && self.narrow.admits_socket(world.socket(flow.pid, flow.handle, flow.generation)) {
                write_flow(world, flow, out)?;
            }
        }
        match event {
            Event::Tick(tick) => {
                if self.watching {
                    if out.width.is_some() {
                        // A terminal: to the top, and clear.
                        write!(out, "\x1b[H\x1b[2J")?;
                    } else {
                        let at_s = tick.ts_ns.saturating_sub(world.start_ns()) as f64 / 1e9;
                        writeln!(out, "--- at {at_s:.1} s")?;
                    }
                }
                for ended in self.ended.drain(..) {
                    out.write_all(ended.as_bytes())?;
                }
                self.write_all(world, out)?;
                out.flush()
            }
            Event::ProcessExit(exit) if world.process(exit.pid).is_some_and(|process| process.is_target) => {
                let name = world.process_name(exit.pid);
                let ended = format!("+++ {name}[{}] ended +++\n", exit.pid);
                // On a terminal the next look clears what stands there.
                self.ended.push(ended.clone());
                if out.width.is_none() || !self.watching {
                    self.ended.clear();
                    out.write_all(ended.as_bytes())?;
                }
                Ok(())
            }
            Event::End(_) => {
                for ended in self.ended.drain(..) {
                    out.write_all(ended.as_bytes())?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Sockets {
    fn write_all(&self, world: &World, out: &mut Sink) -> io::Result<()> {
        let topology = Topology::new(world);
        let mut first = true;
        for (pid, process) in world.processes().filter(|(_, process)| process.is_target) {
            let Some(snapshot) = &process.snapshot else { continue };
            if !std::mem::take(&mut first) {
                writeln!(out)?;
            }
            let lines = self.process(world, &topology, pid, process, snapshot);
            table::write(lines, &SHAPE, out)?;
        }
        if first {
            writeln!(out, "no process with a ZeroMQ socket")?;
        }
        Ok(())
    }

    fn process(
        &self,
        world: &World,
        topology: &Topology,
        pid: u32,
        process: &Process,
        snapshot: &Snapshot,
    ) -> Vec<Line> {
        let sockets: usize = snapshot.contexts.iter().map(|context| context.sockets.len()).sum();
        let libraries: Vec<_> = process
            .libraries
            .iter()
            .map(|library| {
                let version =
                    library.version.map_or_else(|| "of unknown version".into(), |version| version.to_string());
                let file = library.path.rsplit('/').next().unwrap_or(&library.path);
                format!("libzmq {version} ({file})")
            })
            .collect();
        let layout = snapshot.contexts.iter().find_map(|context| context.layout.clone());
        let libraries = match layout {
            _ if !libraries.is_empty() => libraries.join(", "),
            Some(layout) => format!("libzmq without symbols, with the layout of {layout}"),
            None => "no libzmq".into(),
        };
        let mut lines = vec![Line::Note(format!("{}[{pid}]: {libraries}, {}", process.name, count(sockets, "socket")))];
        match (snapshot.stopped, snapshot.tracer_pid) {
            (true, Some(tracer)) => lines.push(Line::Note(format!("STOPPED by process {tracer}, which traces it"))),
            (true, None) => {
                lines.push(Line::Note(format!("STOPPED by a signal: nothing in it runs before `kill -CONT {pid}`")));
            }
            (false, Some(tracer)) => {
                lines.push(Line::Note(format!("traced by process {tracer}: it may be slowed down by that")));
            }
            (false, None) => {}
        }
        lines.extend(snapshot.missing.iter().map(|missing| Line::Note(format!("NOT READ: {missing}"))));
        if snapshot.unread > 0 {
            let objects = count(snapshot.unread as usize, "object");
            lines
                .push(Line::Note(format!("{objects} changed too fast to be read and may be missing here: look again")));
        }
        let Some(last) = snapshot.contexts.last() else { return lines };
        for context in &snapshot.contexts {
            lines.push(Line::Note(describe_context(world, pid, context)));
            let monitors = context.sockets.iter().filter_map(|socket| socket.monitor.as_ref());
            let monitors = monitors.map(|monitor| monitor.handle).collect();
            let view = View { world, topology, pid, snapshot, monitors, verbose: self.verbose };
            let of_context = snapshot.blocked.iter().filter(|blocked| blocked.context == Some(context.handle));
            lines.extend(of_context.map(|blocked| Line::Note(format!("  {}", view.describe_blocked(blocked)))));
            let admitted: Vec<_> = context
                .sockets
                .iter()
                .filter(|socket| self.narrow.admits_socket(world.socket(pid, socket.handle, socket.generation)))
                .collect();
            if !admitted.is_empty() {
                lines.push(Line::Row(HEADINGS.map(String::from)));
            }
            lines.extend(admitted.into_iter().flat_map(|socket| view.socket(socket)));
            if std::ptr::eq(context, last) {
                // Thread-safe sockets have no fd that would tell which one it is.
                let elsewhere = |blocked: &&Blocked| blocked.context.is_none() && blocked.sockets.is_empty();
                let threads = snapshot.blocked.iter().filter(elsewhere);
                lines.extend(threads.map(|blocked| {
                    Line::Note(format!("{}, on a socket that is not known", view.describe_blocked(blocked)))
                }));
            }
        }
        lines
    }
}

/// `1 socket`, `2 sockets`.
fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn describe_context(world: &World, pid: u32, context: &Context) -> String {
    let name = world.context_name(pid, context.handle);
    let mut facts = Vec::new();
    if let Some(owner) = context.owner_pid.filter(|_| context.inherited) {
        return format!("{name}: inherited by fork from process {owner}, and of no use here");
    }
    if context.layout.is_none() {
        facts.push("a build of libzmq that is not known: what is shown is inferred".into());
    }
    if let Some(threads) = context.io_threads {
        facts.push(count(threads.max(0) as usize, "I/O thread"));
    }
    if let Some(most) = context.max_sockets {
        facts.push(format!("{} of at most {most} sockets", context.sockets.len()));
    }
    if context.ipv6 == Some(true) {
        facts.push("ipv6".into());
    }
    if context.blocky == Some(false) {
        facts.push("not blocky".into());
    }
    if let Some(bytes) = context.max_msgsz.filter(|bytes| *bytes != i32::MAX) {
        facts.push(format!("messages of at most {bytes} bytes"));
    }
    if context.terminating == Some(true) {
        let open = context.sockets.iter().filter(|socket| !socket.closing).count();
        facts.push(match open {
            0 => "terminating".into(),
            open => format!(
                "terminating, but {} open",
                if open == 1 { "1 socket is".into() } else { format!("{open} sockets are") }
            ),
        });
    }
    format!("{name}: {}", facts.join(", "))
}

const HEADINGS: [&str; COLUMNS] = ["SOCKET", "ENDPOINT", "FD", "STATE", "PEER", "TO SEND", "TO RECV", "KERNEL"];
const COLUMNS: usize = 8;
const ENDPOINT: usize = 1;
const FD: usize = 2;
const PEER: usize = 4;
const KERNEL: usize = 7;

/// Aligned rows, with notes between them.
type Line = super::table::Line<COLUMNS>;

/// How the table is fitted into a terminal.
const SHAPE: Shape = Shape { right: &[FD], dropped: &[KERNEL], cut: &[PEER, ENDPOINT] };

/// What a socket is seen with.
struct View<'a> {
    world: &'a World,
    topology: &'a Topology,
    pid: u32,
    snapshot: &'a Snapshot,
    /// The sockets that libzmq sends the events of monitors by.
    monitors: HashSet<u64>,
    verbose: bool,
}

impl View<'_> {
    fn socket(&self, socket: &SocketState) -> Vec<Line> {
        let mut name = self.name(socket);
        let mut lines = Vec::new();
        let mut row = |cells: [String; COLUMNS - 1]| {
            // The name stands in the first row only.
            let [endpoint, fd, state, peer, to_send, to_receive, kernel] = cells;
            lines.push(Line::Row([std::mem::take(&mut name), endpoint, fd, state, peer, to_send, to_receive, kernel]));
        };
        let kind = socket.socket_type;
        let mut shown = vec![false; socket.connections.len()];
        for endpoint in &socket.endpoints {
            let own: Vec<usize> = (0..socket.connections.len())
                .filter(|index| !shown[*index] && belongs(&socket.connections[*index], endpoint))
                .collect();
            let text = format!("{} {}", endpoint.role.map_or("?", role_word), endpoint.endpoint);
            let merged = if endpoint.role == Some(Role::Connect) { own.first().copied() } else { None };
            match merged {
                Some(index) => {
                    shown[index] = true;
                    row(self.connection(kind, &socket.connections[index], text));
                }
                None => row(bare(text, endpoint)),
            }
            for index in own.into_iter().filter(|_| endpoint.role == Some(Role::Bind)) {
                shown[index] = true;
                let connection = &socket.connections[index];
                row(self.connection(kind, connection, format!("  from {}", other_address(connection))));
            }
        }
        for (connection, _) in socket.connections.iter().zip(&shown).filter(|(_, shown)| !**shown) {
            let text = match (&connection.endpoint, connection.role) {
                (Some(endpoint), Some(role)) => format!("{} {endpoint}", role_word(role)),
                (None, Some(Role::Bind)) => format!("  from {}", other_address(connection)),
                _ => other_address(connection).to_owned(),
            };
            row(self.connection(kind, connection, text));
        }
        if socket.endpoints.is_empty() && socket.connections.is_empty() {
            row(bare("-".into(), &Endpoint { endpoint: String::new(), role: None, fd: None }));
        }
        lines.extend(self.notes(socket).into_iter().map(|note| Line::Note(format!("        {note}"))));
        lines
    }

    fn name(&self, socket: &SocketState) -> String {
        self.world.socket_name(self.pid, socket.handle, socket.generation).unwrap_or_default()
    }

    fn connection(&self, socket_type: Option<i32>, connection: &Connection, text: String) -> [String; COLUMNS - 1] {
        let peer = self.topology.peer(self.snapshot, connection);
        let peer = peer.map(|peer| peer_name(self.world, peer, self.pid)).or_else(|| connection.peer_type.clone());
        // What a ROUTER gives to peers that name none begins with 0; a REP does so behind the scenes.
        let is_of_interest = |id: &&[u8]| !id.starts_with(&[0]) || matches!(socket_type, Some(ROUTER | STREAM));
        let identity = connection.peer_identity.as_deref().filter(is_of_interest);
        let identity = identity.map(|id| format!(" \"{}\"", escaped(id))).unwrap_or_default();
        let mut state = connection.state.map_or("?", ConnectionState::word).to_owned();
        if connection.mapping == Mapping::Inferred {
            state.push_str(" (inferred)");
        }
        let queue = |depth: Option<(u64, i32, bool)>| match depth {
            None => String::new(),
            // -1: a conflating queue holds the last message.
            Some((depth, ..=0, _)) => format!("{depth}/no limit"),
            Some((depth, hwm, is_full)) => format!("{depth}/{hwm}{}", if is_full { " FULL" } else { "" }),
        };
        let pipes = connection.pipes;
        [
            text,
            connection.fd.map(|fd| fd.to_string()).unwrap_or_default(),
            state,
            format!("{}{identity}", peer.unwrap_or_default()),
            queue(pipes.map(|pipes| (pipes.tx_queue(), pipes.tx_hwm, pipes.tx_full))),
            queue(pipes.map(|pipes| (pipes.rx_queue(), pipes.rx_hwm, pipes.rx_full))),
            connection.kernel.as_ref().map(describe_kernel).unwrap_or_default(),
        ]
    }

    /// What is to be said of a socket besides its connections.
    fn notes(&self, socket: &SocketState) -> Vec<String> {
        let mut notes = Vec::new();
        let options = options::of(socket).into_iter().filter(|option| self.verbose || !option.is_default());
        let options: Vec<_> = options.map(|option| option.to_string()).collect();
        notes.extend(options.chunks(OPTIONS_A_LINE).map(|line| line.join(" ")));
        if let Some(subscriptions) = &socket.subscriptions {
            let most = if self.verbose { usize::MAX } else { MAX_TOPICS };
            let topics: Vec<_> =
                subscriptions.topics.iter().take(most).map(|topic| format!("\"{}\"", escaped(&topic.0))).collect();
            let more = subscriptions.topics.len().saturating_sub(most) as u64 + subscriptions.more;
            notes.push(match (topics.is_empty(), more) {
                (true, _) => "subscribed to NOTHING".into(),
                (false, 0) => format!("subscribed to {}", topics.join(", ")),
                (false, more) => format!("subscribed to {} and {more} more", topics.join(", ")),
            });
        }
        if let Some(bytes) = socket.bytes_held.filter(|bytes| *bytes > 0) {
            notes.push(format!("holds {bytes} {} in its queues", if bytes == 1 { "byte" } else { "bytes" }));
        }
        let pipes = || socket.connections.iter().filter_map(|connection| connection.pipes);
        if socket.bytes_held.is_none() && pipes().any(|pipes| pipes.tx_queue() + pipes.rx_queue() > 0) {
            notes.push("holds more messages in its queues than can be added up in bytes".into());
        }
        if let Some(monitor) = &socket.monitor {
            let name = self.world.newest_socket_name(self.pid, monitor.handle).unwrap_or_default();
            notes.push(format!("monitored through {name}"));
        }
        if self.monitors.contains(&socket.handle) {
            notes.push("libzmq's own: sends the events of a monitor".into());
        }
        if socket.closing {
            notes.push("closed by the program; libzmq still has to end its connections".into());
        }
        let blocked = self.snapshot.blocked.iter().filter(|blocked| blocked.sockets.contains(&socket.handle));
        notes.extend(
            blocked.flat_map(|blocked| self.describe_blocked(blocked).lines().map(str::to_owned).collect::<Vec<_>>()),
        );
        notes
    }

    fn describe_blocked(&self, blocked: &Blocked) -> String {
        let of_libzmq = blocked.call.map(|call| call.row().name);
        let call = of_libzmq.or(blocked.system_call.as_deref()).unwrap_or("a call");
        let since = blocked.since_ns.map(|since_ns| self.snapshot.ts_ns.saturating_sub(since_ns));
        let since = since.map(|ns| format!(" for {}", duration(ns))).unwrap_or_default();
        // A loop of the program's own waits for events, which is its job.
        let (word, own) = if of_libzmq.is_some() { ("BLOCKED", "") } else { ("waits", ", an event loop of its own") };
        let mut text = format!("{word}: {}[{}/{}] in {call}{since}{own}", blocked.thread, self.pid, blocked.tid);
        let frames = if blocked.python.is_empty() { &blocked.stack.frames } else { &blocked.python };
        if self.verbose {
            for frame in &blocked.stack.frames {
                text.push_str(&format!("\n  {}", describe_frame(frame)));
            }
            if blocked.stack.truncated {
                text.push_str("\n  ... (the rest of the stack could not be read)");
            }
            for frame in &blocked.python {
                text.push_str(&format!("\n  {} (Python)", describe_frame(frame)));
            }
        } else {
            let of_program = frames.iter().filter(|frame| !is_libzmqs(frame));
            let functions: Vec<_> = of_program.filter_map(|frame| frame.function.clone()).take(MAX_FUNCTIONS).collect();
            if !functions.is_empty() {
                text.push_str(&format!(", called by {}", functions.join(" < ")));
            }
        }
        text
    }
}

/// Whether a frame is libzmq's or the C library's, and of no interest to the program's author.
fn is_libzmqs(frame: &Frame) -> bool {
    let file = file_name(frame).unwrap_or_default();
    let function = frame.function.as_deref().unwrap_or_default();
    file.starts_with("libzmq") || file.starts_with("libc.so") || function.starts_with("zmq")
}

/// Of the file that a frame's code is in.
fn file_name(frame: &Frame) -> Option<&str> {
    frame.module.as_deref().and_then(|module| module.rsplit('/').next())
}

fn describe_frame(frame: &Frame) -> String {
    let function = frame.function.clone().unwrap_or_else(|| format!("{:#x}", frame.address));
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!(" at {file}:{line}"),
        (Some(file), None) => format!(" at {file}"),
        _ => file_name(frame).map(|file| format!(" in {file}")).unwrap_or_default(),
    };
    format!("{function}{place}")
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Bind => "bind",
        Role::Connect => "connect",
    }
}

fn belongs(connection: &Connection, endpoint: &Endpoint) -> bool {
    connection.role == endpoint.role && connection.endpoint.as_ref() == Some(&endpoint.endpoint)
}

fn other_address(connection: &Connection) -> &str {
    let is_inproc = connection.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("inproc:"));
    let unnamed = if is_inproc { "(inproc)" } else { "(unnamed)" };
    connection.remote.as_deref().filter(|remote| !remote.is_empty()).unwrap_or(unnamed)
}

/// An endpoint without a connection of its own.
fn bare(text: String, endpoint: &Endpoint) -> [String; COLUMNS - 1] {
    let mut cells = [const { String::new() }; COLUMNS - 1];
    cells[0] = text;
    cells[1] = endpoint.fd.map(|fd| fd.to_string()).unwrap_or_default();
    if endpoint.role == Some(Role::Bind) {
        cells[2] = "listening".into();
    }
    cells
}

/// Only what is not as it should be.
fn describe_kernel(kernel: &KernelSocket) -> String {
    let mut facts = Vec::new();
    if kernel.state != "ESTABLISHED" {
        facts.push(kernel.state.clone());
    }
    let bytes =
        |name: &str, bytes: Option<u32>| bytes.filter(|bytes| *bytes > 0).map(|bytes| format!("{name} {bytes} B"));
    facts.extend(bytes("tx", kernel.tx_bytes));
    facts.extend(bytes("rx", kernel.rx_bytes));
    facts.extend(kernel.retransmits.filter(|count| *count > 0).map(|count| count_of(count, "retransmit")));
    if kernel.snd_wnd == Some(0) && kernel.tx_bytes.is_some_and(|bytes| bytes > 0) {
        facts.push("window 0".into());
    }
    facts.join(", ")
}

fn count_of(number: u32, thing: &str) -> String {
    count(number as usize, thing)
}

/// A queue that moved since the last sample.
fn write_flow(world: &World, flow: &Flow, out: &mut Sink) -> io::Result<()> {
    let name = world.socket_name(flow.pid, flow.handle, flow.generation).unwrap_or_default();
    let process = world.process_name(flow.pid);
    let at_s = flow.ts_ns.saturating_sub(world.start_ns()) as f64 / 1e9;
    let fd = flow.fd.map(|fd| format!(" fd {fd}")).unwrap_or_default();
    let direction = |word: &str, depth: u64, hwm: i32, written: u64, read: u64| match (depth, written, read) {
        (0, 0, 0) => String::new(),
        _ if hwm <= 0 => format!(", {word} {depth} (+{written} -{read})"),
        _ => format!(", {word} {depth}/{hwm} (+{written} -{read})"),
    };
    let pipes = flow.pipes;
    writeln!(
        out,
        "{at_s:.3} {process}[{}] {name}{fd}{}{}",
        flow.pid,
        direction("to send", pipes.tx_queue(), pipes.tx_hwm, flow.tx_written, flow.tx_read),
        direction("to recv", pipes.rx_queue(), pipes.rx_hwm, flow.rx_written, flow.rx_read),
    )
}
