//! What becomes of connections: a state machine by fd, over changes of fds, system calls and commands.
//!
//! ```text
//! connecting -> refused -> retried -> connected -> handshake_done -> disconnected
//!                                     accepted  -> handshake_failed
//! ```
//!
//! A connection that was there before us begins where it is. `handshake_failed` or `disconnected` ends one; nothing is
//! said of it afterwards.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::RangeInclusive,
};

use crate::{
    constants,
    event::{
        Call, Change, Command, CommandContent, ConnectionState, Direction, Event, FdChange, FdPart, FdSocket, Role,
        Snapshot, SocketState, SystemCall, Wire,
    },
    world::{Peer, World},
};

/// Connections that are followed, and connects whose owner is not known yet, each. Beyond it they are forgotten.
const MAX_CONNECTIONS: usize = 50_000;

/// Connects that have failed, and may turn out to be a socket's when its zmq_connect returns.
const MAX_FAILED: usize = 64;

/// `ZMQ_RECONNECT_IVL` unless it is set.
const DEFAULT_RECONNECT_MS: u32 = 100;

/// Something happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionEvent {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// The fd.
    pub fd: i32,
    /// The socket's address and generation; `None`: of a process without a known libzmq, or it may be one of several.
    pub owner: Option<(u64, u32)>,
    /// What the socket is bound or connected to by it.
    pub endpoint: Option<String>,
    /// Address of this end.
    pub local: Option<String>,
    /// Address of the other end.
    pub remote: Option<String>,
    /// What happened.
    pub what: What,
    /// Who is at the other end, as far as it has said.
    pub peer: Peer,
    /// The connect(2) that began it: whose it is was not known before.
    pub connect: Option<Box<Wire>>,
}

/// What happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// connect(2) is under way.
    Connecting,
    /// The same, after the same endpoint has refused the same socket.
    Retried,
    /// It could not be made.
    Refused {
        /// Why.
        errno: i32,
        /// When libzmq tries again.
        retry: Retry,
    },
    /// It was made.
    Connected,
    /// It was made by the other end.
    Accepted,
    /// Messages can pass.
    HandshakeDone,
    /// It has ended before that.
    HandshakeFailed(Failure),
    /// It has ended.
    Disconnected(Cause),
}

/// When libzmq tries to connect again: after its interval, to which it adds a random part of up to the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retry {
    /// After so long, by the options of the socket, ms.
    After(RangeInclusive<u32>),
    /// After so long unless the program has set `ZMQ_RECONNECT_IVL`, which is not known, ms.
    ByDefault(RangeInclusive<u32>),
    /// The socket's options say that it does not.
    Never,
}

/// Why a handshake has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An ERROR command.
    Error {
        /// Whether the other end sent it.
        by_peer: bool,
        /// The reason that it gives.
        reason: String,
    },
    /// These two types of sockets do not talk to each other.
    Types {
        /// This end's.
        own: String,
        /// The other end's.
        peer: String,
    },
    /// The connection has ended.
    Ended(Cause),
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The other end has closed it.
    Peer,
    /// A system call has failed.
    Failed {
        /// Which.
        call: SystemCall,
        /// Why.
        errno: i32,
    },
    /// This process has closed it.
    Own,
    /// This process has closed it before it was made.
    GivenUp,
}

impl What {
    /// The word that the JSON contract uses.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Retried => "retried",
            Self::Refused { .. } => "refused",
            Self::Connected => "connected",
            Self::Accepted => "accepted",
            Self::HandshakeDone => "handshake_done",
            Self::HandshakeFailed(_) => "handshake_failed",
            Self::Disconnected(_) => "disconnected",
        }
    }

    /// The error of a system call that it comes of.
    pub const fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. }
            | Self::Disconnected(Cause::Failed { errno, .. })
            | Self::HandshakeFailed(Failure::Ended(Cause::Failed { errno, .. })) => Some(*errno),
            _ => None,
        }
    }
}

/// Follows the connections of all processes.
#[derive(Debug, Default)]
pub struct Connections {
    known: HashMap<(u32, i32), Known>,
    /// Connects whose owner is not known yet.
    pending: HashMap<(u32, i32), Wire>,
    /// Endpoints that sockets were seen to connect to, and whether they were refused when they last tried.
    targets: HashMap<(u32, (u64, u32), String), bool>,
    /// Connects that have failed, and where to: whether they are a socket's is not known yet.
    failed: VecDeque<(Wire, String)>,
}

/// A connection.
#[derive(Debug, Clone)]
struct Known {
    /// Inode of its socket, once that is known.
    inode: Option<u64>,
    state: State,
    /// READY was seen, or the identity before ZMTP 3.0: sent and received.
    ready: [bool; 2],
    /// This end's type, as it says itself.
    own_type: Option<String>,
    /// What a system call said of its end.
    cause: Option<Cause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Refused,
    Handshake,
    Ready,
    Ended,
}

impl Known {
    const fn new(state: State) -> Self {
        Self { inode: None, state, ready: [false; 2], own_type: None, cause: None }
    }
}

impl Connections {
    /// What the next event makes of connections. The world has taken it in.
    pub fn event(&mut self, world: &World, event: &Event) -> Vec<ConnectionEvent> {
        match event {
            Event::Fd(change) => self.fd_changed(world, change).into_iter().collect(),
            Event::Wire(wire) => match wire.call.name() {
                "connect" => self.tried(world, wire),
                "getsockopt" => self.asked(world, wire).into_iter().collect(),
                _ => self.moved(world, wire).into_iter().collect(),
            },
            Event::Command(command) => self.told(world, command).into_iter().collect(),
            Event::Call(call) => self.returned(world, call),
            Event::Snapshot(snapshot) => {
                self.found(snapshot);
                Vec::new()
            }
            Event::Exec(end) | Event::ProcessExit(end) => {
                self.known.retain(|(pid, _), _| *pid != end.pid);
                self.pending.retain(|(pid, _), _| *pid != end.pid);
                self.targets.retain(|(pid, ..), _| *pid != end.pid);
                self.failed.retain(|(wire, _)| wire.pid != end.pid);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// What a look has found to be in its handshake is, unless more is known of it.
    fn found(&mut self, snapshot: &Snapshot) {
        let connections = snapshot.contexts.iter().flat_map(|it| &it.sockets).flat_map(|it| &it.connections);
        for connection in connections.filter(|it| it.state == Some(ConnectionState::Handshake)) {
            if let Some(key) = connection.fd.map(|fd| (snapshot.pid, fd))
                && !self.known.contains_key(&key)
            {
                self.keep(key, Known::new(State::Handshake));
            }
        }
    }

    fn fd_changed(&mut self, world: &World, change: &FdChange) -> Option<ConnectionEvent> {
        let FdChange { ts_ns, pid, fd, .. } = *change;
        let key = (pid, fd);
        match &change.change {
            Change::Added { part: FdPart::Connecter, socket, remote, .. } => {
                let connect = self.pending.remove(&key).map(Box::new);
                let mut known = Known::new(State::Connecting);
                let inode = connect.as_ref().map(|wire| wire.inode);
                known.inode = inode;
                self.keep(key, known);
                let again = remote.as_ref().is_some_and(|remote| self.aim(pid, owner(*socket), remote, false));
                let what = if again { What::Retried } else { What::Connecting };
                Some(ConnectionEvent { connect, ..at_fd(world, ts_ns, key, inode, what) })
            }
            Change::Added { part: FdPart::Connection, socket, role, remote, .. } => {
                if let (Some(remote), Some(Role::Connect)) = (remote, role) {
                    self.aim(pid, owner(*socket), remote, false);
                }
                let before = self.known.get(&key).filter(|known| known.state == State::Handshake);
                if before.is_some() {
                    // Its accept has been told.
                    return None;
                }
                let connect = self.pending.remove(&key).map(Box::new);
                let inode = self.known.get(&key).and_then(|known| known.inode);
                self.keep(key, Known { inode, ..Known::new(State::Handshake) });
                let role = role.or_else(|| world.fd(pid, fd)?.role);
                let what = if role == Some(Role::Bind) { What::Accepted } else { What::Connected };
                Some(ConnectionEvent { connect, ..at_fd(world, ts_ns, key, inode, what) })
            }
            Change::Added { .. } => {
                self.known.remove(&key);
                self.pending.remove(&key);
                None
            }
            Change::Accepted { .. } => {
                self.pending.remove(&key);
                self.keep(key, Known::new(State::Handshake));
                Some(at_fd(world, ts_ns, key, None, What::Accepted))
            }
            // A connecter's fd is taken out before it is known what came of it.
            Change::Removed if world.fd(pid, fd)?.part == FdPart::Connection => self.ended(world, ts_ns, key),
            Change::Removed => None,
            Change::Closed => {
                let part = world.fd(pid, fd)?.part;
                let known = self.known.get(&key).cloned();
                match known.as_ref().map(|known| known.state) {
                    Some(State::Connecting) | None if part == FdPart::Connecter => {
                        // The number may be anybody's now.
                        self.keep(key, Known::new(State::Ended));
                        let inode = known.and_then(|known| known.inode);
                        Some(at_fd(world, ts_ns, key, inode, What::Disconnected(Cause::GivenUp)))
                    }
                    Some(State::Handshake) => self.ended(world, ts_ns, key),
                    _ => {
                        self.keep(key, Known::new(State::Ended));
                        None
                    }
                }
            }
        }
    }

    /// The end of a connection, known or not.
    fn ended(&mut self, world: &World, ts_ns: u64, key: (u32, i32)) -> Option<ConnectionEvent> {
        let known = self.known.remove(&key).unwrap_or(Known::new(State::Ready));
        let cause = known.cause.unwrap_or(Cause::Own);
        let what = match known.state {
            State::Ended => return None,
            State::Handshake => {
                let failure = mismatch(world, key, &known).unwrap_or(Failure::Ended(cause));
                What::HandshakeFailed(failure)
            }
            _ => What::Disconnected(cause),
        };
        Some(at_fd(world, ts_ns, key, known.inode, what))
    }

    /// connect(2) has returned.
    fn tried(&mut self, world: &World, wire: &Wire) -> Vec<ConnectionEvent> {
        let key = (wire.pid, wire.fd);
        // The number is another connection's from now on.
        self.pending.remove(&key);
        if world.fd(wire.pid, wire.fd).is_some() {
            // Until a socket has it.
            self.keep(key, Known::new(State::Ended));
        } else {
            self.known.remove(&key);
        }
        let errno = -wire.ret as i32;
        if wire.ret == 0 || errno == libc::EINPROGRESS {
            make_room(&mut self.pending);
            self.pending.insert(key, wire.clone());
            return Vec::new();
        }
        // libzmq closes it without having it ever registered: that somebody in the process connects to where a socket
        // is connected to must do.
        let Some(remote) = world.stream(wire.pid, wire.inode).and_then(|stream| stream.remote.clone()) else {
            return Vec::new();
        };
        let mut owners: HashSet<_> =
            world.process(wire.pid).into_iter().flat_map(|it| it.sockets_at(&remote)).collect();
        let seen = self.targets.keys().filter(|(pid, _, endpoint)| *pid == wire.pid && *endpoint == remote);
        owners.extend(seen.map(|(_, owner, _)| *owner));
        let owner = match owners.len() {
            0 => {
                if self.failed.len() >= MAX_FAILED {
                    self.failed.pop_front();
                }
                self.failed.push_back((wire.clone(), remote));
                return Vec::new();
            }
            1 => owners.into_iter().next(),
            _ => None,
        };
        self.failed_at_once(world, wire, owner, &remote)
    }

    /// A zmq_connect has returned, during which libzmq may have tried already.
    fn returned(&mut self, world: &World, call: &Call) -> Vec<ConnectionEvent> {
        let connects = matches!(call.function.row().name, "zmq_connect" | "zmq_connect_peer");
        let (true, Some(handle)) = (connects && !self.failed.is_empty(), call.socket()) else { return Vec::new() };
        let (failed, others) = std::mem::take(&mut self.failed).into_iter().partition(|(wire, remote)| {
            wire.pid == call.pid && wire.ts_ns >= call.entry_ns && remote.as_bytes() == &call.data.bytes[..]
        });
        self.failed = others;
        let failed: VecDeque<(Wire, String)> = failed;
        let owner = Some((handle, call.generation));
        failed.iter().flat_map(|(wire, remote)| self.failed_at_once(world, wire, owner, remote)).collect()
    }

    /// A connect that has failed before libzmq registered its fd.
    fn failed_at_once(
        &mut self,
        world: &World,
        wire: &Wire,
        owner: Option<(u64, u32)>,
        remote: &str,
    ) -> Vec<ConnectionEvent> {
        let again = owner.is_some_and(|owner| self.aim(wire.pid, owner, remote, true));
        let event = |what, connect| ConnectionEvent {
            ts_ns: wire.ts_ns,
            pid: wire.pid,
            fd: wire.fd,
            owner,
            endpoint: Some(remote.to_owned()),
            local: None,
            remote: Some(remote.to_owned()),
            what,
            peer: Peer::default(),
            connect,
        };
        let first = if again { What::Retried } else { What::Connecting };
        let refused = What::Refused { errno: -wire.ret as i32, retry: retry(world, wire.pid, owner) };
        vec![event(first, Some(Box::new(wire.clone()))), event(refused, None)]
    }

    /// Whether what the process asks a fd's socket is what came of a socket's connect.
    pub fn is_connecting(&self, world: &World, pid: u32, fd: i32) -> bool {
        match self.known.get(&(pid, fd)) {
            Some(known) => known.state == State::Connecting,
            None => world.fd(pid, fd).is_some_and(|fd| fd.part == FdPart::Connecter),
        }
    }

    /// SO_ERROR was asked for.
    fn asked(&mut self, world: &World, wire: &Wire) -> Option<ConnectionEvent> {
        if wire.ret >= 0 || !self.is_connecting(world, wire.pid, wire.fd) {
            return None;
        }
        let fd = world.fd(wire.pid, wire.fd)?;
        let key = (wire.pid, wire.fd);
        self.keep(key, Known::new(State::Refused));
        let owner = (fd.handle, fd.generation);
        if let Some(remote) = &fd.remote {
            self.aim(wire.pid, owner, remote, true);
        }
        let what = What::Refused { errno: -wire.ret as i32, retry: retry(world, wire.pid, Some(owner)) };
        Some(at_fd(world, wire.ts_ns, key, Some(wire.inode), what))
    }

    /// Notes that a socket connects to an endpoint, and whether it was `refused`; returns whether it was before.
    fn aim(&mut self, pid: u32, owner: (u64, u32), remote: &str, refused: bool) -> bool {
        if self.targets.len() >= MAX_CONNECTIONS {
            self.targets.clear();
        }
        self.targets.insert((pid, owner, remote.to_owned()), refused) == Some(true)
    }

    /// Bytes were moved, or could not be.
    fn moved(&mut self, world: &World, wire: &Wire) -> Option<ConnectionEvent> {
        let key = (wire.pid, wire.fd);
        let has_frames = wire.frames.as_ref().is_some_and(|frames| frames.frames > 0);
        let known = match self.known.get_mut(&key) {
            Some(known) if known.inode.is_none_or(|inode| inode == wire.inode) => known,
            // Of another process than libzmq's it is one of ours when it speaks ZMTP.
            _ if wire.handle.is_some() || has_frames => self.keep(key, Known::new(State::Ready)),
            _ => return None,
        };
        known.inode = Some(wire.inode);
        // tcp counts the end as a byte, too.
        let is_lost = wire.ret > 0 && (wire.gap || wire.frames.is_none());
        if (has_frames || is_lost) && known.state == State::Handshake {
            // It is done, even where not all of it was seen; or it is not known how far it is.
            known.state = State::Ready;
        }
        let errno = if wire.ret < 0 { -wire.ret as i32 } else { 0 };
        if wire.ret == 0 && wire.direction == Direction::Receive && wire.wanted > 0 {
            known.cause.get_or_insert(Cause::Peer);
        } else if errno != 0 && !matches!(errno, libc::EAGAIN | libc::EINTR | libc::ENOBUFS) {
            known.cause.get_or_insert(Cause::Failed { call: wire.call, errno });
        }
        // That libzmq lets go of the fd says when it ends; of others that is not known.
        if wire.handle.is_some() || known.cause.is_none() {
            return None;
        }
        let ended = self.ended(world, wire.ts_ns, key)?;
        self.keep(key, Known { inode: Some(wire.inode), ..Known::new(State::Ended) });
        Some(ended)
    }

    /// A greeting or a command was seen.
    fn told(&mut self, world: &World, command: &Command) -> Option<ConnectionEvent> {
        let key = (command.pid, command.fd);
        let known = match self.known.get_mut(&key) {
            Some(known) if known.inode.is_none_or(|inode| inode == command.inode) => known,
            _ => self.keep(key, Known::new(State::Handshake)),
        };
        known.inode = Some(command.inode);
        if known.state != State::Handshake {
            return None;
        }
        if let CommandContent::Greeting { socket_type: Some(own), .. }
        | CommandContent::Initiate { socket_type: Some(own), .. } = &command.content
            && command.direction == Direction::Send
        {
            known.own_type = Some(own.clone());
        }
        let is_of_handshake = match &command.content {
            CommandContent::Greeting { .. }
            | CommandContent::Ready { .. }
            | CommandContent::Initiate { .. }
            | CommandContent::Identity { .. }
            | CommandContent::Error { .. } => true,
            CommandContent::Other { name } => name != "MESSAGE",
            _ => false,
        };
        if !is_of_handshake {
            known.state = State::Ready;
            return None;
        }
        let unknown = Peer::default();
        let peer = world.stream(command.pid, command.inode).map_or(&unknown, |stream| &stream.peer);
        let is_sent = command.direction == Direction::Send;
        let what = match &command.content {
            CommandContent::Ready { socket_type, .. } => {
                known.ready[usize::from(!is_sent)] = true;
                if is_sent {
                    known.own_type.clone_from(socket_type);
                }
                // Of the other mechanisms only the server says READY.
                let is_done = known.ready == [true; 2] || peer.mechanism.as_ref().is_some_and(|name| name != "NULL");
                if !is_done {
                    return None;
                }
                match (&known.own_type, &peer.socket_type) {
                    (Some(own), Some(peer)) if !go_together(own, peer) => {
                        What::HandshakeFailed(Failure::Types { own: own.clone(), peer: peer.clone() })
                    }
                    _ => What::HandshakeDone,
                }
            }
            CommandContent::Identity { .. } => {
                known.ready[usize::from(!is_sent)] = true;
                if known.ready != [true; 2] {
                    return None;
                }
                What::HandshakeDone
            }
            CommandContent::Error { reason } => {
                What::HandshakeFailed(Failure::Error { by_peer: !is_sent, reason: reason.clone() })
            }
            _ => return None,
        };
        known.state = if what == What::HandshakeDone { State::Ready } else { State::Ended };
        Some(at_fd(world, command.ts_ns, key, Some(command.inode), what))
    }

    fn keep(&mut self, key: (u32, i32), known: Known) -> &mut Known {
        if !self.known.contains_key(&key) {
            make_room(&mut self.known);
        }
        self.known.entry(key).insert_entry(known).into_mut()
    }
}

fn make_room<T>(table: &mut HashMap<(u32, i32), T>) {
    if table.len() >= MAX_CONNECTIONS {
        table.clear();
    }
}

const fn owner(socket: FdSocket) -> (u64, u32) {
    (socket.handle, socket.generation)
}

/// What happened to the connection of a fd, whose inode is known as soon as it was used.
fn at_fd(world: &World, ts_ns: u64, (pid, number): (u32, i32), inode: Option<u64>, what: What) -> ConnectionEvent {
    let fd = world.fd(pid, number);
    let stream = inode.and_then(|inode| world.stream(pid, inode));
    ConnectionEvent {
        ts_ns,
        pid,
        fd: number,
        owner: fd.map(|fd| (fd.handle, fd.generation)),
        endpoint: fd.and_then(|fd| fd.endpoint.clone()),
        local: fd.and_then(|fd| fd.local.clone()).or_else(|| stream?.local.clone()),
        remote: fd.and_then(|fd| fd.remote.clone()).or_else(|| stream?.remote.clone()),
        what,
        peer: stream.map(|stream| stream.peer.clone()).unwrap_or_default(),
        connect: None,
    }
}

/// When a socket tries again to connect.
fn retry(world: &World, pid: u32, owner: Option<(u64, u32)>) -> Retry {
    let state = owner.and_then(|owner| {
        let snapshot = world.process(pid)?.snapshot.as_ref()?;
        let mut sockets = snapshot.contexts.iter().flat_map(|context| &context.sockets);
        sockets.find(|socket: &&SocketState| (socket.handle, socket.generation) == owner)
    });
    let Some(interval) = state.and_then(|state| state.options.reconnect_ivl) else {
        return Retry::ByDefault(DEFAULT_RECONNECT_MS..=2 * DEFAULT_RECONNECT_MS);
    };
    let Ok(interval) = u32::try_from(interval) else { return Retry::Never };
    // It doubles up to this, where it is set.
    let most = state.and_then(|state| u32::try_from(state.options.reconnect_ivl_max?).ok()).unwrap_or(0);
    Retry::After(interval..=interval.saturating_add(interval.max(most)))
}

/// Whether a handshake ended because of the types, of which libzmq says nothing over the wire: it reads the peer's before
/// it has sent its own.
fn mismatch(world: &World, (pid, fd): (u32, i32), known: &Known) -> Option<Failure> {
    let peer = world.stream(pid, known.inode?)?.peer.socket_type.clone()?;
    let own = known.own_type.clone().or_else(|| {
        let fd = world.fd(pid, fd)?;
        constants::socket_type(world.socket(pid, fd.handle, fd.generation)?.socket_type?).map(String::from)
    })?;
    (!go_together(&own, &peer)).then_some(Failure::Types { own, peer })
}

/// Whether libzmq lets sockets of two types talk to each other: each checks what the other's READY says.
fn go_together(own: &str, peer: &str) -> bool {
    const PAIRS: [(&str, &[&str]); 18] = [
        ("PAIR", &["PAIR"]),
        ("PUB", &["SUB", "XSUB"]),
        ("SUB", &["PUB", "XPUB"]),
        ("XPUB", &["SUB", "XSUB"]),
        ("XSUB", &["PUB", "XPUB"]),
        ("REQ", &["REP", "ROUTER"]),
        ("REP", &["REQ", "DEALER"]),
        ("DEALER", &["REP", "DEALER", "ROUTER"]),
        ("ROUTER", &["REQ", "DEALER", "ROUTER"]),
        ("PULL", &["PUSH"]),
        ("PUSH", &["PULL"]),
        ("SERVER", &["CLIENT"]),
        ("CLIENT", &["SERVER"]),
        ("RADIO", &["DISH"]),
        ("DISH", &["RADIO"]),
        ("GATHER", &["SCATTER"]),
        ("SCATTER", &["GATHER"]),
        ("PEER", &["PEER"]),
    ];
    // What is not known may.
    PAIRS.iter().find(|(name, _)| *name == own).is_none_or(|(_, peers)| peers.contains(&peer))
}

impl Cause {
    /// As words: `closed by the peer`.
    pub fn text(self) -> String {
        match self {
            Self::Peer => "closed by the peer".into(),
            Self::Failed { call, errno } => {
                let (name, text) = (constants::errno_name(errno), constants::errno_text(errno));
                format!("{} failed with {name} ({text})", call.name())
            }
            Self::Own => "closed by this process".into(),
            Self::GivenUp => "given up by this process before it was connected".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{Frames, Inside, ProcessEnd, Stream};

    const PID: u32 = 1;
    const REQ: FdSocket = FdSocket { handle: 0x10, generation: 0, library: 0, socket_type: Some(3), id: Some(7) };
    const REMOTE: &str = "tcp://127.0.0.1:5555";

    /// A process, and what was said of its connections.
    #[derive(Default)]
    struct Watched {
        world: World,
        connections: Connections,
        now_ns: u64,
    }

    impl Watched {
        fn see(&mut self, event: Event) -> Vec<ConnectionEvent> {
            self.world.apply(&event);
            self.connections.event(&self.world, &event)
        }

        fn words(&mut self, event: Event) -> Vec<&'static str> {
            self.see(event).iter().map(|told| told.what.word()).collect()
        }

        fn fd(&mut self, fd: i32, change: Change) -> Vec<&'static str> {
            self.now_ns += 1;
            self.words(Event::Fd(FdChange { ts_ns: self.now_ns, pid: PID, tid: 2, fd, change }))
        }

        fn wire(&mut self, fd: i32, call: u32, ret: i64) -> Vec<ConnectionEvent> {
            self.now_ns += 1;
            let moves = !matches!(call, 42 | 55);
            let direction = if call == 44 { Direction::Send } else { Direction::Receive };
            self.see(Event::Wire(Wire {
                handle: moves.then_some(REQ.handle),
                direction,
                ..wire(fd, call, ret, self.now_ns)
            }))
        }

        fn stream(&mut self, fd: i32, remote: &str) {
            assert!(self.see(stream(fd, remote)).is_empty());
        }

        fn command(&mut self, fd: i32, direction: Direction, content: CommandContent) -> Vec<ConnectionEvent> {
            self.now_ns += 1;
            let (ts_ns, inode) = (self.now_ns, fd as u64);
            self.see(Event::Command(Command { ts_ns, pid: PID, tid: 2, fd, inode, direction, content }))
        }

        /// A connection that was made.
        fn connected(fd: i32) -> Self {
            let mut watched = Self::default();
            watched.stream(fd, REMOTE);
            watched.wire(fd, 42, -115);
            assert_eq!(watched.fd(fd, added(FdPart::Connecter)), ["connecting"]);
            assert_eq!(watched.fd(fd, Change::Removed), [""; 0]);
            assert!(watched.wire(fd, 55, 0).is_empty());
            assert_eq!(watched.fd(fd, added(FdPart::Connection)), ["connected"]);
            watched
        }

        /// One whose handshake is done.
        fn ready(fd: i32) -> Self {
            let mut watched = Self::connected(fd);
            assert!(watched.command(fd, Direction::Receive, greeting("NULL")).is_empty());
            assert!(watched.command(fd, Direction::Send, ready("REQ")).is_empty());
            let told = watched.command(fd, Direction::Receive, ready("ROUTER"));
            assert_eq!(told[0].what, What::HandshakeDone);
            watched
        }
    }

    fn wire(fd: i32, call: u32, ret: i64, ts_ns: u64) -> Wire {
        Wire {
            ts_ns,
            entry_ns: None,
            pid: PID,
            tid: 2,
            call: SystemCall(call),
            fd,
            inode: fd as u64,
            handle: None,
            direction: Direction::Receive,
            ret,
            wanted: 8192,
            sequence: None,
            position: 0,
            from_start: true,
            gap: false,
            frames: Some(Frames {
                frames: 0,
                messages: 0,
                commands: 0,
                total_messages: 0,
                inside: Inside::Nothing,
                ends: Vec::new(),
                continues: false,
            }),
            pipe: None,
        }
    }

    fn stream(fd: i32, remote: &str) -> Event {
        Event::Stream(Stream {
            ts_ns: 0,
            pid: PID,
            fd,
            inode: fd as u64,
            peer_inode: None,
            local: Some("tcp://127.0.0.1:40000".into()),
            remote: Some(remote.into()),
            from_start: true,
            sent: None,
        })
    }

    fn added(part: FdPart) -> Change {
        let remote = Some(REMOTE.into());
        Change::Added { socket: REQ, part, role: Some(Role::Connect), local: None, remote }
    }

    fn accepted() -> Change {
        let (local, remote) = (Some(REMOTE.into()), Some("tcp://127.0.0.1:40000".into()));
        Change::Accepted { socket: REQ, listener: 3, local, remote }
    }

    fn greeting(mechanism: &str) -> CommandContent {
        CommandContent::Greeting {
            version: (3, 1),
            mechanism: Some(mechanism.into()),
            as_server: false,
            socket_type: None,
        }
    }

    fn ready(socket_type: &str) -> CommandContent {
        let identity = Some(Bytes::from_static(b"id"));
        CommandContent::Ready { socket_type: Some(socket_type.into()), identity }
    }

    #[test]
    fn a_handshake_tells_who_the_peer_is() {
        let mut watched = Watched::ready(9);
        assert_eq!(watched.fd(9, Change::Removed), ["disconnected"]);
        assert_eq!(watched.fd(9, Change::Closed), [""; 0]);
        let mut watched = Watched::connected(9);
        watched.command(9, Direction::Receive, greeting("NULL"));
        watched.command(9, Direction::Receive, ready("ROUTER"));
        let told = watched.command(9, Direction::Send, ready("REQ")).remove(0);
        assert_eq!((told.owner, told.endpoint.as_deref()), (Some((REQ.handle, 0)), Some(REMOTE)));
        assert_eq!(told.local.as_deref(), Some("tcp://127.0.0.1:40000"));
        let Peer { socket_type, identity, version, mechanism } = told.peer;
        assert_eq!((socket_type.as_deref(), identity.as_deref()), (Some("ROUTER"), Some(&b"id"[..])));
        assert_eq!((version, mechanism.as_deref()), (Some((3, 1)), Some("NULL")));
    }

    #[test]
    fn of_other_mechanisms_only_the_server_says_ready() {
        let mut watched = Watched::connected(9);
        watched.command(9, Direction::Receive, greeting("PLAIN"));
        assert_eq!(watched.command(9, Direction::Receive, ready("ROUTER"))[0].what, What::HandshakeDone);
    }

    #[test]
    fn before_zmtp_3_identities_end_the_handshake() {
        let mut watched = Watched::connected(9);
        let identity = || CommandContent::Identity { identity: Bytes::new() };
        assert!(watched.command(9, Direction::Send, identity()).is_empty());
        assert_eq!(watched.command(9, Direction::Receive, identity())[0].what, What::HandshakeDone);
    }

    #[test]
    fn refused_connects_are_retried() {
        let mut watched = Watched::default();
        for first in ["connecting", "retried", "retried"] {
            watched.stream(9, REMOTE);
            assert!(watched.wire(9, 42, -115).is_empty());
            assert_eq!(watched.fd(9, added(FdPart::Connecter)), [first]);
            watched.fd(9, Change::Removed);
            let told = watched.wire(9, 55, -111).remove(0);
            assert_eq!(told.what, What::Refused { errno: 111, retry: Retry::ByDefault(100..=200) });
            assert_eq!(watched.fd(9, Change::Closed), [""; 0]);
            // Somebody else's, on the same number.
            assert!(watched.wire(9, 55, -111).is_empty());
        }
        assert_eq!(watched.fd(9, added(FdPart::Connecter)), ["retried"]);
        assert_eq!(watched.fd(9, added(FdPart::Connection)), ["connected"]);
        // The next time nobody has refused it before.
        assert_eq!(watched.fd(10, added(FdPart::Connecter)), ["connecting"]);
        assert_eq!(watched.fd(10, Change::Removed), [""; 0]);
        assert_eq!(watched.fd(10, Change::Closed), ["disconnected"]);
    }

    #[test]
    fn connects_of_others_are_not_claimed() {
        let mut watched = Watched::connected(9);
        for errno in [-111, -115, -2] {
            watched.stream(30, "tcp://127.0.0.1:1");
            assert!(watched.wire(30, 42, errno).is_empty());
            assert!(watched.wire(30, 55, -111).is_empty());
        }
        // Where a socket connects to, too, it is the socket's.
        watched.stream(30, REMOTE);
        let told = watched.wire(30, 42, -111);
        assert_eq!(told.iter().map(|told| told.what.word()).collect::<Vec<_>>(), ["connecting", "refused"]);
        assert_eq!(told[0].owner, Some((REQ.handle, 0)));
        assert!(told[0].connect.is_some());
    }

    #[test]
    fn why_a_connection_ended() {
        let ended = |watched: &mut Watched| {
            watched.now_ns += 1;
            let ts_ns = watched.now_ns;
            let change = FdChange { ts_ns, pid: PID, tid: 2, fd: 9, change: Change::Removed };
            watched.see(Event::Fd(change)).remove(0).what
        };
        let mut watched = Watched::ready(9);
        watched.wire(9, 45, -11);
        assert_eq!(ended(&mut watched), What::Disconnected(Cause::Own));
        let mut watched = Watched::ready(9);
        watched.wire(9, 45, 0);
        assert_eq!(ended(&mut watched), What::Disconnected(Cause::Peer));
        let mut watched = Watched::ready(9);
        watched.wire(9, 44, -32);
        // What comes of it later is not why.
        watched.wire(9, 45, 0);
        let broken = Cause::Failed { call: SystemCall(44), errno: 32 };
        assert_eq!(ended(&mut watched), What::Disconnected(broken));
        let mut watched = Watched::connected(9);
        let end = Wire { handle: Some(REQ.handle), gap: true, ..wire(9, 45, 0, 99) };
        watched.see(Event::Wire(end));
        assert_eq!(ended(&mut watched), What::HandshakeFailed(Failure::Ended(Cause::Peer)));
        // How far it was is not known where bytes were missed.
        let mut watched = Watched::connected(9);
        let gap = Wire { handle: Some(REQ.handle), gap: true, ..wire(9, 45, 5, 99) };
        watched.see(Event::Wire(gap));
        assert_eq!(ended(&mut watched), What::Disconnected(Cause::Own));
    }

    #[test]
    fn failed_handshakes_end_a_connection_once() {
        let mut watched = Watched::default();
        assert_eq!(watched.fd(9, accepted()), ["accepted"]);
        assert_eq!(watched.fd(9, added(FdPart::Connection)), [""; 0]);
        let error = CommandContent::Error { reason: "400".into() };
        let told = watched.command(9, Direction::Receive, error).remove(0);
        assert_eq!(told.what, What::HandshakeFailed(Failure::Error { by_peer: true, reason: "400".into() }));
        assert_eq!(watched.fd(9, Change::Removed), [""; 0]);
        let mut watched = Watched::connected(9);
        watched.command(9, Direction::Send, ready("REQ"));
        let told = watched.command(9, Direction::Receive, ready("PUSH")).remove(0);
        let types = Failure::Types { own: "REQ".into(), peer: "PUSH".into() };
        assert_eq!(told.what, What::HandshakeFailed(types));
        assert_eq!(watched.fd(9, Change::Removed), [""; 0]);
        // Accepted, and never made a connection.
        let mut watched = Watched::default();
        assert_eq!(watched.fd(9, accepted()), ["accepted"]);
        assert_eq!(watched.fd(9, Change::Closed), ["handshake_failed"]);
    }

    #[test]
    fn connections_that_were_there_before_are_not_in_their_handshake() {
        let mut watched = Watched::default();
        watched.world.apply(&Event::Fd(FdChange {
            ts_ns: 0,
            pid: PID,
            tid: 2,
            fd: 9,
            change: added(FdPart::Connection),
        }));
        let topic = Bytes::from_static(b"a");
        assert!(watched.command(9, Direction::Send, CommandContent::Subscribe { topic }).is_empty());
        assert_eq!(watched.fd(9, Change::Removed), ["disconnected"]);
    }

    #[test]
    fn nothing_is_left_of_a_process_that_has_ended() {
        let mut watched = Watched::ready(9);
        watched.stream(30, "tcp://127.0.0.1:1");
        watched.wire(30, 42, -111);
        watched.wire(31, 42, -115);
        assert!(watched.see(Event::ProcessExit(ProcessEnd { ts_ns: 9, pid: PID })).is_empty());
        let Connections { known, pending, targets, failed } = &watched.connections;
        assert!(known.is_empty() && pending.is_empty() && targets.is_empty() && failed.is_empty());
        assert_eq!(watched.world.stream_at(PID, 9), None);
    }

    #[test]
    fn which_types_go_together_is_mutual() {
        let types = ["PAIR", "PUB", "SUB", "XPUB", "XSUB", "REQ", "REP", "DEALER", "ROUTER", "PULL", "PUSH"];
        for own in types {
            assert!(types.into_iter().any(|peer| go_together(own, peer)), "{own}");
            assert!(types.into_iter().all(|peer| go_together(own, peer) == go_together(peer, own)), "{own}");
        }
        assert!(go_together("X", "PUB"));
    }
}
