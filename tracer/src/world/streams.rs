//! Ends of connections, and who is at the other end.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Process, World};
use crate::event::{Command, CommandContent, Direction, Stream as Met};

/// Ends of connections that are remembered, a process. Beyond it they are forgotten, until they are met again.
const MAX_STREAMS: usize = 50_000;

/// An end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stream {
    /// Inode of its socket.
    pub inode: u64,
    /// Address of this end as an endpoint.
    pub local: Option<String>,
    /// Address of the other end.
    pub remote: Option<String>,
    /// Who is at the other end.
    pub peer: Peer,
}

/// What the other end of a connection said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// `ROUTER`; ZMTP before 3.0 does not say it in words.
    pub socket_type: Option<String>,
    /// The identity, where it has one.
    pub identity: Option<Bytes>,
    /// ZMTP version: major and minor.
    pub version: Option<(u8, u8)>,
    /// `NULL`, `PLAIN`, `CURVE`, `GSSAPI`.
    pub mechanism: Option<String>,
}

impl Stream {
    /// `tcp://local->tcp://remote`; of unix sockets, of which one end has a name, that: `ipc:///path`.
    pub fn connection(&self) -> Option<String> {
        match (&self.local, &self.remote) {
            (Some(local), Some(remote)) => Some(format!("{local}->{remote}")),
            (one, other) => one.as_ref().or(other.as_ref()).filter(|name| name.starts_with("ipc://")).cloned(),
        }
    }
}

/// Ends of a process's connections.
#[derive(Debug, Default)]
pub(super) struct Streams {
    by_inode: HashMap<u64, Stream>,
    by_fd: HashMap<i32, u64>,
}

impl Streams {
    pub(super) fn met(&mut self, met: &Met) {
        let Self { by_inode, by_fd } = self;
        if by_inode.len() >= MAX_STREAMS && !by_inode.contains_key(&met.inode) {
            by_inode.clear();
            by_fd.clear();
        }
        if let Some(before) = by_fd.insert(met.fd, met.inode)
            && before != met.inode
        {
            by_inode.remove(&before);
        }
        let stream = by_inode.entry(met.inode).or_default();
        stream.inode = met.inode;
        stream.local = met.local.clone().or(stream.local.take());
        stream.remote = met.remote.clone().or(stream.remote.take());
    }

    pub(super) fn told(&mut self, command: &Command) {
        if command.direction == Direction::Send {
            return;
        }
        let Some(peer) = self.by_inode.get_mut(&command.inode).map(|stream| &mut stream.peer) else { return };
        match &command.content {
            CommandContent::Greeting { version, mechanism, socket_type, .. } => {
                peer.version = Some(*version);
                peer.mechanism.clone_from(mechanism);
                peer.socket_type.clone_from(socket_type);
            }
            CommandContent::Ready { socket_type, identity } | CommandContent::Initiate { socket_type, identity } => {
                peer.socket_type.clone_from(socket_type);
                peer.identity.clone_from(identity);
            }
            CommandContent::Identity { identity } => {
                peer.identity = Some(identity.clone()).filter(|identity| !identity.is_empty());
                // Who has versions names his before.
                peer.version.get_or_insert((1, 0));
            }
            _ => {}
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl World {
    /// An end of a connection by the inode of its socket.
    pub fn stream(&self, pid: u32, inode: u64) -> Option<&Stream> {
        self.process(pid)?.streams.by_inode.get(&inode)
    }

    /// The end of a connection that was last met at a fd.
    pub fn stream_at(&self, pid: u32, fd: i32) -> Option<&Stream> {
        self.stream(pid, *self.process(pid)?.streams.by_fd.get(&fd)?)
    }

    /// What a fd is, by its connection alone: `14<tcp://127.0.0.1:40000->tcp://127.0.0.1:5555>`.
    pub fn stream_name(&self, pid: u32, fd: i32) -> String {
        let Some(stream) = self.stream_at(pid, fd) else { return fd.to_string() };
        match (stream.connection(), stream.local.as_ref().or(stream.remote.as_ref())) {
            (Some(connection), _) => format!("{fd}<{connection}>"),
            (None, Some(endpoint)) => format!("{fd}<{endpoint}>"),
            (None, None) => fd.to_string(),
        }
    }
}

impl Process {
    /// Sockets, by address and generation, that were found or seen to be bound or connected to an endpoint.
    pub fn sockets_at(&self, endpoint: &str) -> impl Iterator<Item = (u64, u32)> {
        let is_at = move |socket: &super::Socket| socket.endpoints.iter().any(|known| known == endpoint);
        self.sockets.iter().filter(move |(_, socket)| is_at(socket)).map(|(key, _)| *key)
    }
}
