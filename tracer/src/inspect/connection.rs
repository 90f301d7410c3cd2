//! What a socket owns: listeners, the sessions of its connections, their engines and connecters.
//!
//! A session lives as long as its endpoint is connected (or, of an accepted connection, as long as that); the engine
//! only as long as a connection is up; between, a connecter makes the next attempt. The fd is the engine's or the
//! connecter's.
//!
//! A socket enters what it owns into its own set only at its next call, so a session is also looked for from the
//! endpoint that it was made for, and from its engine's poll entry.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::{
    Detail,
    context::Reader,
    cxx,
    epoll::Entry,
    image::{Members, at},
    layouts::{ENGINE_INTERFACE, OBJECT_CTX},
    pipe::Ends,
};
use crate::{
    constants::{DGRAM, DISH},
    event::{Connection, ConnectionState, Endpoint, Role, SocketState},
};

/// `ZMQ_NULL`.
const NULL_MECHANISM: i32 = 0;

/// All that a socket owns.
#[derive(Debug, Default)]
pub struct Owned {
    /// What it was bound and connected to: the name, and the listener or session that came of it.
    endpoints: Vec<(Bytes, u64)>,
    /// What it was connected to by inproc: the name, and the pipe that came of it.
    pub inproc_endpoints: Vec<(Bytes, u64)>,
    /// The pipes that it knows, sessions' and inproc ones.
    pub pipes: Vec<u64>,
    listeners: Vec<Listener>,
    /// In the order of libzmq's own set of them.
    pub sessions: Vec<Session>,
    /// What was found by its poll entry and leads to no session.
    alone: Vec<Part>,
}

#[derive(Debug, Clone, Copy)]
struct Listener {
    address: u64,
    watch: Option<Watch>,
}

/// A fd that an object was found to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Watch {
    /// The fd.
    pub fd: i32,
    /// The address of the poll entry.
    pub entry: u64,
    /// The base class `i_poll_events` of the object.
    pub events: u64,
}

/// One end of a connection, or of the attempts to make it.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its address.
    pub address: u64,
    /// The listener that accepted it; `None`: it was connected.
    listener: Option<u64>,
    /// Its pipe to the socket, while there is one.
    pub ends: Option<Ends>,
    engine: Option<Engine>,
    /// The connecter, and what it watches while an attempt is on.
    connecter: Option<Option<Watch>>,
}

/// What speaks ZMTP on a fd.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    watch: Watch,
    is_ready: bool,
    is_udp: bool,
    metadata: Option<u64>,
}

/// Something with a fd.
#[derive(Debug)]
pub enum Part {
    /// A listener.
    Listener,
    /// A connecter whose attempt is on.
    Connecter(Watch),
    /// What speaks ZMTP.
    Engine(Engine),
    /// The session of an engine.
    Session(Box<Session>),
}

impl Owned {
    /// Every fd that was found.
    pub fn watches(&self) -> Vec<Watch> {
        let listeners = self.listeners.iter().filter_map(|listener| listener.watch);
        let sessions = self.sessions.iter().filter_map(Session::watch);
        listeners.chain(sessions).chain(self.alone.iter().filter_map(Part::watch)).collect()
    }

    /// Forgets fds that turned out to be other objects' by now.
    pub fn forget(&mut self, gone: &HashSet<Watch>) {
        let is_gone = |watch: Option<Watch>| watch.is_some_and(|watch| gone.contains(&watch));
        for listener in self.listeners.iter_mut().filter(|listener| is_gone(listener.watch)) {
            listener.watch = None;
        }
        self.sessions.retain(|session| !is_gone(session.watch()));
        self.alone.retain(|part| !is_gone(part.watch()));
    }

    /// Adds what was found by its poll entries.
    pub fn add(&mut self, parts: Vec<Part>) {
        let mut sessions = Vec::new();
        for part in parts {
            match part {
                Part::Session(session) => sessions.push(*session),
                part => self.alone.push(part),
            }
        }
        // One that was read before it had its engine is known already.
        let addresses: HashSet<u64> = sessions.iter().map(|session| session.address).collect();
        self.sessions.retain(|known| !addresses.contains(&known.address));
        self.sessions.extend(sessions);
    }
}

impl Part {
    const fn watch(&self) -> Option<Watch> {
        match self {
            Self::Connecter(watch) => Some(*watch),
            Self::Engine(engine) => Some(engine.watch),
            Self::Listener | Self::Session(_) => None,
        }
    }
}

impl Session {
    fn watch(&self) -> Option<Watch> {
        self.engine.map(|engine| engine.watch).or(self.connecter.flatten())
    }

    fn fd(&self) -> Option<i32> {
        self.watch().map(|watch| watch.fd)
    }

    /// A bind to udp, which DISH and DGRAM do, has no listener; RADIO connects.
    fn role(&self, socket: &SocketState) -> Role {
        let is_udp = self.engine.is_some_and(|engine| engine.is_udp);
        let binds_udp = is_udp && matches!(socket.socket_type, Some(DISH | DGRAM));
        if self.listener.is_some() || binds_udp { Role::Bind } else { Role::Connect }
    }

    /// `None`: it is gone, or comes to life only now.
    fn state(&self) -> Option<ConnectionState> {
        match (self.engine, self.connecter, self.listener) {
            (Some(engine), ..) if engine.is_ready => Some(ConnectionState::Ready),
            (Some(_), ..) => Some(ConnectionState::Handshake),
            (None, Some(Some(_)), _) => Some(ConnectionState::Connecting),
            (None, _, None) => Some(ConnectionState::Waiting),
            (None, _, Some(_)) => None,
        }
    }
}

impl Reader<'_> {
    /// What the socket at `handle` owns; `None` when some of it is being changed.
    pub fn owned(&self, handle: u64) -> Option<Owned> {
        let layout = self.layout;
        let mut owned = Owned {
            endpoints: self.names(at(handle, layout.socket_endpoints))?,
            inproc_endpoints: self.names(at(handle, layout.socket_inprocs))?,
            pipes: cxx::vector(self.subject.image, at(handle, layout.socket_pipes))?,
            ..Owned::default()
        };
        let mut children: Vec<u64> = owned.endpoints.iter().map(|(_, owner)| *owner).collect();
        children.extend(self.set(at(handle, layout.own_owned))?);
        children.sort_unstable();
        children.dedup();
        for child in children.into_iter().filter_map(|address| self.child(address, handle)) {
            if let Some(watch) = self.listener(&child, handle) {
                owned.listeners.push(Listener { address: child.address, watch });
                for accepted in self.set(at(child.address, layout.own_owned))? {
                    let Some(session) = self.child(accepted, child.address) else { continue };
                    owned.sessions.extend(self.session(&session, handle, Some(child.address)));
                }
            } else {
                owned.sessions.extend(self.session(&child, handle, None));
            }
        }
        Some(owned)
    }

    /// A `std::multimap` from names to pairs that begin with a pointer. What binds to udp has no name there; another one
    /// that is no endpoint, which was a C string, has been freed.
    fn names(&self, address: u64) -> Option<Vec<(Bytes, u64)>> {
        let is_endpoint =
            |name: &[u8]| name.is_empty() || (!name.contains(&0) && name.windows(3).any(|part| part == b"://"));
        let named = |node| self.named(node).filter(|(name, _)| is_endpoint(name));
        cxx::tree(self.subject.image, address)?.into_iter().map(named).collect()
    }

    /// The elements of a `std::set` of pointers.
    fn set(&self, address: u64) -> Option<Vec<u64>> {
        let nodes = cxx::tree(self.subject.image, address)?;
        Some(nodes.into_iter().filter_map(|node| self.subject.image.u64(at(node, cxx::NODE_VALUE))).collect())
    }

    /// An object of the context's, owned by `parent`.
    fn child(&self, address: u64, parent: u64) -> Option<Members<'_>> {
        let child = self.subject.image.members(address);
        let is_ours = child.u64(OBJECT_CTX)? == self.context && child.u64(self.layout.own_owner)? == parent;
        is_ours.then_some(child)
    }

    /// If the object is a listener of the socket: what it watches, if that is anything.
    fn listener(&self, object: &Members<'_>, socket: u64) -> Option<Option<Watch>> {
        let layout = self.layout;
        let kinds = [
            (layout.tcp_listener_s, layout.tcp_listener_handle, layout.tcp_listener_socket, layout.tcp_listener_events),
            (layout.ipc_listener_s, layout.ipc_listener_handle, layout.ipc_listener_socket, layout.ipc_listener_events),
        ];
        kinds.into_iter().find_map(|(s, handle, owner, events)| {
            let fd = object.i32(s).filter(|_| object.u64(owner) == Some(socket))?;
            let watch = Watch { fd, entry: object.u64(handle)?, events: at(object.address, events) };
            // Between bind and the I/O thread's taking it up, nobody watches it yet.
            Some(Some(watch).filter(|watch| watch.fd >= 0 && self.is_on(*watch)))
        })
    }

    /// Whether there still is such a poll entry.
    pub fn is_on(&self, watch: Watch) -> bool {
        let entry = Entry::read(self.subject, watch.entry);
        entry.is_some_and(|entry| entry.fd == watch.fd && entry.events == watch.events)
    }

    /// The session, if the object is one of the socket.
    fn session(&self, session: &Members<'_>, socket: u64, listener: Option<u64>) -> Option<Session> {
        let layout = self.layout;
        if session.u64(layout.session_socket)? != socket {
            return None;
        }
        let pipe = session.u64(layout.session_pipe)?;
        let interface = session.u64(layout.session_engine)?;
        let engine = interface.checked_sub(ENGINE_INTERFACE).and_then(|at| self.engine(at, session.address));
        let connecter = if interface == 0 { self.connecter(session.address, socket) } else { None };
        self.subject.image.keep(size_of::<Session>() + size_of::<Connection>())?;
        Some(Session {
            address: session.address,
            listener,
            ends: self.ends_of_session(pipe, session.address, socket),
            engine,
            connecter,
        })
    }

    /// The engine at `address`, if it is one of the session.
    fn engine(&self, address: u64, session: u64) -> Option<Engine> {
        let layout = self.layout;
        let engine = self.subject.image.members(address);
        if engine.u64(layout.engine_session) == Some(session) {
            let watch =
                Watch { fd: engine.i32(layout.engine_s)?, entry: engine.u64(layout.engine_handle)?, events: address };
            return self.is_on(watch).then(|| self.progress(&engine, watch));
        }
        let (s, owner) = (layout.udp_s?, layout.udp_session?);
        let fd = engine.i32(s).filter(|fd| *fd >= 0)?;
        let watch = Watch { fd, entry: engine.u64(layout.udp_handle?)?, events: address };
        let is_udp = engine.u64(owner)? == session && self.is_on(watch);
        is_udp.then_some(Engine { watch, is_ready: true, is_udp: true, metadata: None })
    }

    /// How far the handshake is: behind the greeting comes the mechanism's part, which ends with the metadata. Peers
    /// that speak ZMTP 1 or 2, and raw ones, have no mechanism.
    fn progress(&self, engine: &Members<'_>, watch: Watch) -> Engine {
        let layout = self.layout;
        let word = |offset: u64| engine.u64(offset).filter(|word| *word != 0);
        let metadata = word(layout.engine_metadata);
        let has_greeted = engine.bool(layout.engine_handshaking) == Some(false);
        let is_ready = has_greeted && (metadata.is_some() || word(layout.engine_mechanism).is_none());
        Engine { watch, is_ready, is_udp: false, metadata }
    }

    /// The connecter that a session owns: what it watches while an attempt is on.
    fn connecter(&self, session: u64, socket: u64) -> Option<Option<Watch>> {
        let layout = self.layout;
        self.set(at(session, layout.own_owned))?.into_iter().find_map(|child| {
            let child = self.child(child, session)?;
            if child.u64(layout.connecter_socket)? != socket {
                return None;
            }
            let watch = Watch {
                fd: child.i32(layout.connecter_s)?,
                entry: child.u64(layout.connecter_handle)?,
                events: at(child.address, layout.connecter_events),
            };
            Some(Some(watch).filter(|watch| watch.fd >= 0 && self.is_on(*watch)))
        })
    }

    /// What watches a fd, and whose it is, told by the object alone. `is_socket`: whether an address is a socket's.
    pub fn part(&self, entry: Entry, is_socket: impl Fn(u64) -> bool) -> Option<(u64, Part)> {
        let layout = self.layout;
        let Entry { fd, events, address } = entry;
        let watch = Watch { fd, entry: address, events };
        // Up to 4.3.2 engines and connecters keep their fds at the same place: the socket and the entry decide.
        let owner = |base: u64, s: u64, handle: u64, socket: u64| {
            let object = events.checked_sub(base)?;
            let word = |offset: u64| self.subject.image.u64(at(object, offset));
            let socket = word(socket).filter(|socket| is_socket(*socket))?;
            let is_watched = word(s)? as i32 == fd && word(handle)? == entry.address;
            is_watched.then_some(socket)
        };
        let connecter =
            owner(layout.connecter_events, layout.connecter_s, layout.connecter_handle, layout.connecter_socket);
        if let Some(socket) = connecter {
            return Some((socket, Part::Connecter(watch)));
        }
        let listener = owner(
            layout.tcp_listener_events,
            layout.tcp_listener_s,
            layout.tcp_listener_handle,
            layout.tcp_listener_socket,
        );
        let listener = listener.or_else(|| {
            owner(
                layout.ipc_listener_events,
                layout.ipc_listener_s,
                layout.ipc_listener_handle,
                layout.ipc_listener_socket,
            )
        });
        if let Some(socket) = listener {
            return Some((socket, Part::Listener));
        }
        let socket = owner(0, layout.engine_s, layout.engine_handle, layout.engine_socket)?;
        let engine = self.subject.image.members(events);
        let session = engine.u64(layout.engine_session).and_then(|session| self.session_of_engine(session, socket));
        let part = session
            .map_or_else(|| Part::Engine(self.progress(&engine, watch)), |session| Part::Session(Box::new(session)));
        Some((socket, part))
    }

    /// The session at `address`, to whomever it belongs.
    fn session_of_engine(&self, address: u64, socket: u64) -> Option<Session> {
        let owner = self.subject.image.u64(at(address, self.layout.own_owner))?;
        let session = self.child(address, owner)?;
        self.session(&session, socket, (owner != socket).then_some(owner)).filter(|session| session.engine.is_some())
    }

    /// Adds endpoints and connections to what is said of a socket. `bound`: its inproc names. Returns its pipes.
    pub fn describe(
        &self,
        state: &mut SocketState,
        owned: Owned,
        inproc: Vec<(Ends, Connection)>,
        bound: &[Bytes],
    ) -> Vec<Ends> {
        let listeners: HashMap<u64, &Listener> =
            owned.listeners.iter().map(|listener| (listener.address, listener)).collect();
        let sessions: HashMap<u64, &Session> =
            owned.sessions.iter().map(|session| (session.address, session)).collect();
        let mut endpoints: HashMap<u64, String> = HashMap::new();
        for (name, owner) in &owned.endpoints {
            let (name, owner) = (text(name), *owner);
            let listener = listeners.get(&owner);
            let session = sessions.get(&owner);
            let role = match (listener, session) {
                (Some(_), _) => Some(Role::Bind),
                (None, session) => session.map(|session| session.role(state)),
            };
            let watch = listener.and_then(|listener| listener.watch).or_else(|| session?.watch());
            let fd = watch.map(|watch| watch.fd);
            if self.detail >= Detail::Names {
                state.endpoints.push(Endpoint { endpoint: name.clone(), role, fd });
            }
            endpoints.insert(owner, name);
        }
        let mut ends: Vec<Ends> = owned.sessions.iter().filter_map(|session| session.ends).collect();
        for session in &owned.sessions {
            if let Some(progress) = session.state() {
                let endpoint = endpoints.get(&session.listener.unwrap_or(session.address));
                let endpoint = endpoint.filter(|name| self.subject.image.keep(name.len()).is_some()).cloned();
                let connection = self.session_connection(state, session, progress, endpoint);
                state.connections.push(connection);
            }
        }
        state.connections.extend(owned.alone.iter().filter_map(|part| self.lone_connection(part)));
        for (end, connection) in inproc {
            if self.detail >= Detail::Names
                && let (Some(endpoint), Some(Role::Connect)) = (&connection.endpoint, connection.role)
            {
                state.endpoints.push(Endpoint { endpoint: endpoint.clone(), role: Some(Role::Connect), fd: None });
            }
            ends.push(end);
            state.connections.push(connection);
        }
        if self.detail >= Detail::Names {
            state.endpoints.extend(bound.iter().map(|name| Endpoint {
                endpoint: text(name),
                role: Some(Role::Bind),
                fd: None,
            }));
            state.endpoints.sort_by(|a, b| (a.role, &a.endpoint).cmp(&(b.role, &b.endpoint)));
        }
        state.connections.sort_by_key(|connection| connection.fd);
        ends
    }

    fn session_connection(
        &self,
        socket: &SocketState,
        session: &Session,
        state: ConnectionState,
        endpoint: Option<String>,
    ) -> Connection {
        let authenticates = socket.options.mechanism.is_some_and(|mechanism| mechanism != NULL_MECHANISM);
        let pipes = |ends| if authenticates { self.pipes_of_authenticated(ends) } else { self.pipes(ends) };
        let is_closing = session.ends.is_some_and(|ends| self.is_closing(ends));
        let state = if is_closing { ConnectionState::Closing } else { state };
        let peer = session.engine.map(|engine| self.peer(engine)).unwrap_or_default();
        Connection {
            fd: session.fd(),
            endpoint,
            role: Some(session.role(socket)),
            state: Some(state),
            peer_type: peer.socket_type,
            peer_identity: peer.identity.or_else(|| session.ends.and_then(|ends| self.routing_id(ends))),
            engine: session.engine.map(|engine| engine.watch.events),
            pipes: session.ends.and_then(pipes),
            remote: peer.address,
            ..Connection::default()
        }
    }

    fn lone_connection(&self, part: &Part) -> Option<Connection> {
        let (fd, state, peer, engine) = match part {
            Part::Listener | Part::Session(_) => return None,
            Part::Connecter(watch) => (watch.fd, ConnectionState::Connecting, Peer::default(), None),
            Part::Engine(engine) => {
                let state = if engine.is_ready { ConnectionState::Ready } else { ConnectionState::Handshake };
                (engine.watch.fd, state, self.peer(*engine), Some(engine.watch.events))
            }
        };
        Some(Connection {
            fd: Some(fd),
            state: Some(state),
            peer_type: peer.socket_type,
            peer_identity: peer.identity,
            remote: peer.address,
            engine,
            ..Connection::default()
        })
    }

    /// What the peer said of itself in the handshake: a `std::map` of strings.
    fn peer(&self, engine: Engine) -> Peer {
        let mut peer = Peer::default();
        let Some(metadata) = engine.metadata.filter(|_| self.detail == Detail::All) else { return peer };
        for node in cxx::tree(self.subject.image, at(metadata, self.layout.metadata_dict)).unwrap_or_default() {
            let value_at = cxx::NODE_VALUE + cxx::string_bytes(self.layout.strings);
            let len = value_at + cxx::string_bytes(self.layout.strings);
            let Some(object) = self.subject.image.object(node, len as usize) else { continue };
            let string = |offset| cxx::string(self.subject.image, &object, offset, self.layout.strings);
            let (Some(name), Some(value)) = (string(cxx::NODE_VALUE), string(value_at)) else { continue };
            match &name[..] {
                b"Socket-Type" => peer.socket_type = Some(text(&value)),
                b"Identity" | b"Routing-Id" if !value.is_empty() => peer.identity = Some(value),
                b"Peer-Address" => peer.address = Some(text(&value)).filter(|address| !address.is_empty()),
                _ => {}
            }
        }
        peer
    }
}

#[derive(Debug, Default)]
struct Peer {
    socket_type: Option<String>,
    identity: Option<Bytes>,
    address: Option<String>,
}

/// Text that another process chose, such that a terminal shows it and does nothing else.
pub fn text(bytes: &[u8]) -> String {
    crate::target::printable(bytes)
}
