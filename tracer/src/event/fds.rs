//! Fds of sockets that come and go.

use serde::{Deserialize, Serialize};

use super::{ConnectionState, Role, SocketState};

/// A change of a fd that is or was a socket's. Until the next one the fd stays what this one says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdChange {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// Thread: an I/O thread's, mostly.
    pub tid: u32,
    /// The fd.
    pub fd: i32,
    /// What became of it.
    #[serde(flatten)]
    pub change: Change,
}

/// What became of a fd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// It is the socket's. A connecter's becomes a connection's by another such change.
    Added {
        /// Whose it is.
        socket: FdSocket,
        /// What it is for.
        part: FdPart,
        /// Whether it came of a bind or of a connect; `None`: not known.
        role: Option<Role>,
        /// Address of this end as an endpoint: `tcp://127.0.0.1:5555`.
        local: Option<String>,
        /// Address of the other end.
        remote: Option<String>,
    },
    /// A listener of the socket accepted it. It is added next, or closed.
    Accepted {
        /// Whose it is.
        socket: FdSocket,
        /// The listener's fd.
        listener: i32,
        /// Address of this end as an endpoint.
        local: Option<String>,
        /// Address of the other end.
        remote: Option<String>,
    },
    /// It is no longer the socket's, or only until it is added again (a connecter's whose connection is made).
    Removed,
    /// It was closed after it had been removed, or accepted and never added.
    Closed,
}

/// A socket as its fds name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSocket {
    /// Its address.
    pub handle: u64,
    /// How often a socket at this address had been closed before.
    pub generation: u32,
    /// Index of its libzmq.
    pub library: u8,
    /// `ZMQ_REQ`, ...; `None`: not read.
    pub socket_type: Option<i32>,
    /// libzmq's own number of it; `None`: not read.
    pub id: Option<u32>,
}

/// What a socket has a fd for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FdPart {
    /// To accept connections.
    Listener,
    /// connect(2) is under way.
    Connecter,
    /// A connection.
    Connection,
    /// What `ZMQ_FD` returns: it tells of commands to the socket.
    Mailbox,
}

impl FdPart {
    /// The word that the JSON contract uses.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Connecter => "connecter",
            Self::Connection => "connection",
            Self::Mailbox => "mailbox",
        }
    }
}

/// A fd of a socket, as a look found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundFd<'look> {
    /// The fd.
    pub fd: i32,
    /// What it is for.
    pub part: FdPart,
    /// Whether it came of a bind or of a connect; `None`: not known, or neither.
    pub role: Option<Role>,
    /// What the socket is bound or connected to by it.
    pub endpoint: Option<&'look String>,
}

impl SocketState {
    /// Its fds. Of several with the same number, which was used again meanwhile, the last one counts.
    pub fn fds(&self) -> impl DoubleEndedIterator<Item = FoundFd<'_>> {
        let mailbox = self.mailbox_fd.map(|fd| FoundFd { fd, part: FdPart::Mailbox, role: None, endpoint: None });
        let bound = self.endpoints.iter().filter(|endpoint| endpoint.role == Some(Role::Bind));
        let listeners = bound.filter_map(|bound| {
            let (part, role) = (FdPart::Listener, bound.role);
            Some(FoundFd { fd: bound.fd?, part, role, endpoint: Some(&bound.endpoint) })
        });
        let connections = self.connections.iter().filter_map(|connection| {
            let is_made = connection.state != Some(ConnectionState::Connecting);
            let part = if is_made { FdPart::Connection } else { FdPart::Connecter };
            Some(FoundFd { fd: connection.fd?, part, role: connection.role, endpoint: connection.endpoint.as_ref() })
        });
        mailbox.into_iter().chain(listeners).chain(connections)
    }
}
