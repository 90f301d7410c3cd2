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
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
};

use crate::{
    constants,
    event::{
        Change, Command, CommandContent, Direction, Event, FdChange, FdPart, FdSocket, Role, SocketState, SystemCall,
        Wire,
    },
    world::{Peer, World},
};

/// Connections that are followed, and connects whose owner is not known yet, each. Beyond it they are forgotten.
const MAX_CONNECTIONS: usize = 50_000;

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
    /// Endpoints that sockets were refused by when they last tried.
    refused: HashSet<(u32, (u64, u32), String)>,
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
            Event::Exec(end) | Event::ProcessExit(end) => {
                self.known.retain(|(pid, _), _| *pid != end.pid);
                self.pending.retain(|(pid, _), _| *pid != end.pid);
                self.refused.retain(|(pid, ..)| *pid != end.pid);
                Vec::new()
            }
            _ => Vec::new(),
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
                let what = match remote {
                    Some(remote) if self.refused.contains(&refusal(pid, owner(*socket), remote)) => What::Retried,
                    _ => What::Connecting,
                };
                Some(ConnectionEvent { connect, ..at_fd(world, ts_ns, key, inode, what) })
            }
            Change::Added { part: FdPart::Connection, socket, role, remote, .. } => {
                if let Some(remote) = remote {
                    self.refused.remove(&refusal(pid, owner(*socket), remote));
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
                let Some(known) = self.known.get(&key).cloned() else {
                    // It was being made before us.
                    let what = What::Disconnected(Cause::GivenUp);
                    return (part == FdPart::Connecter).then(|| at_fd(world, ts_ns, key, None, what));
                };
                match known.state {
                    State::Connecting if part == FdPart::Connecter => {
                        self.known.remove(&key);
                        Some(at_fd(world, ts_ns, key, known.inode, What::Disconnected(Cause::GivenUp)))
                    }
                    State::Handshake => self.ended(world, ts_ns, key),
                    _ => {
                        self.known.remove(&key);
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
            State::Handshake => What::HandshakeFailed(Failure::Ended(cause)),
            _ => What::Disconnected(cause),
        };
        Some(at_fd(world, ts_ns, key, known.inode, what))
    }

    /// connect(2) has returned.
    fn tried(&mut self, world: &World, wire: &Wire) -> Vec<ConnectionEvent> {
        let key = (wire.pid, wire.fd);
        // The number is another connection's from now on.
        self.known.remove(&key);
        self.pending.remove(&key);
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
        let tried = self.refused.iter().filter(|(pid, _, endpoint)| *pid == wire.pid && *endpoint == remote);
        owners.extend(tried.map(|(_, owner, _)| *owner));
        let owner = match owners.len() {
            0 => return Vec::new(),
            1 => owners.into_iter().next(),
            _ => None,
        };
        let again = owner.is_some_and(|owner| self.refused.contains(&refusal(wire.pid, owner, &remote)));
        let retry = retry(world, wire.pid, owner);
        if let Some(owner) = owner {
            self.refuse(wire.pid, owner, &remote);
        }
        let event = |what, connect| ConnectionEvent {
            ts_ns: wire.ts_ns,
            pid: wire.pid,
            fd: wire.fd,
            owner,
            endpoint: Some(remote.clone()),
            local: None,
            remote: Some(remote.clone()),
            what,
            peer: Peer::default(),
            connect,
        };
        let first = if again { What::Retried } else { What::Connecting };
        vec![event(first, Some(Box::new(wire.clone()))), event(What::Refused { errno, retry }, None)]
    }

    /// SO_ERROR was asked for.
    fn asked(&mut self, world: &World, wire: &Wire) -> Option<ConnectionEvent> {
        let fd = world.fd(wire.pid, wire.fd).filter(|fd| fd.part == FdPart::Connecter)?;
        let key = (wire.pid, wire.fd);
        if wire.ret >= 0 || self.known.get(&key).is_some_and(|known| known.state != State::Connecting) {
            return None;
        }
        self.keep(key, Known::new(State::Refused));
        let owner = (fd.handle, fd.generation);
        if let Some(remote) = &fd.remote {
            self.refuse(wire.pid, owner, remote);
        }
        let what = What::Refused { errno: -wire.ret as i32, retry: retry(world, wire.pid, Some(owner)) };
        Some(at_fd(world, wire.ts_ns, key, Some(wire.inode), what))
    }

    fn refuse(&mut self, pid: u32, owner: (u64, u32), remote: &str) {
        if self.refused.len() >= MAX_CONNECTIONS {
            self.refused.clear();
        }
        self.refused.insert(refusal(pid, owner, remote));
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
        if has_frames && known.state == State::Handshake {
            // It is done, even where not all of it was seen.
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
        if known.state == State::Connecting {
            known.state = State::Handshake;
        }
        if known.state != State::Handshake {
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

fn refusal(pid: u32, owner: (u64, u32), remote: &str) -> (u32, (u64, u32), String) {
    (pid, owner, remote.to_owned())
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
