//! System calls on connections, and what they moved.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::text_bytes;

/// Which way bytes or messages go, seen from the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the peer.
    Send,
    /// From the peer.
    Receive,
}

/// A process's end of a connection is met for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// Its fd.
    pub fd: i32,
    /// Inode of its socket, which names this end in all that follows.
    pub inode: u64,
    /// Inode of the other end, of unix sockets.
    pub peer_inode: Option<u64>,
    /// Address of this end as an endpoint: `tcp://127.0.0.1:5555`.
    pub local: Option<String>,
    /// Address of the other end.
    pub remote: Option<String>,
    /// Whether it was seen being made.
    pub from_start: bool,
    /// Of one that was found at rest, between two messages: what it had taken out of the queue between it and its socket,
    /// all of which it had sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<PipeCount>,
}

/// A system call on a connection has returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// CLOCK_MONOTONIC at exit.
    pub ts_ns: u64,
    /// CLOCK_MONOTONIC at entry; `None`: it was not stamped.
    pub entry_ns: Option<u64>,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// `sendto`, `recvfrom`, `connect`, ...
    pub call: SystemCall,
    /// The fd.
    pub fd: i32,
    /// Inode of its socket.
    pub inode: u64,
    /// The ZeroMQ socket's address, where that is known.
    pub handle: Option<u64>,
    /// Which way.
    pub direction: Direction,
    /// Bytes moved, or minus the error.
    pub ret: i64,
    /// Bytes asked for.
    pub wanted: u64,
    /// tcp: sequence number of the byte after the last one moved; both ends number the same bytes.
    pub sequence: Option<u32>,
    /// Bytes moved before, since the connection was made or first seen.
    pub position: u64,
    /// Whether `position` counts from the connection's first byte.
    pub from_start: bool,
    /// Whether bytes were moved before that were not seen: what was counted before does not go on here.
    pub gap: bool,
    /// What the bytes were; `None`: it is not known where frames begin.
    pub frames: Option<Frames>,
    /// The queue between the connection and its ZeroMQ socket, where that could be read.
    pub pipe: Option<PipeCount>,
}

/// What the bytes of a system call were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Frames that ended, without commands.
    pub frames: u32,
    /// Messages that ended: frames without a successor. Subscriptions are commands, in whatever form.
    pub messages: u32,
    /// Commands that ended.
    pub commands: u32,
    /// Messages that have ended in this direction, these included, since it is known where frames begin.
    pub total_messages: u64,
    /// Where its last byte lies.
    pub inside: Inside,
    /// Where messages ended, as stretches of the same length: bytes from the end of one (of the first: from the first
    /// byte moved) to the end of the next, and how many such. Only of what was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<(u32, u32)>,
    /// Whether another event of the same system call follows, with more `ends`.
    #[serde(default)]
    pub continues: bool,
}

/// Where a byte lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inside {
    /// The next one begins a frame.
    Nothing,
    /// In a frame, of which it is not known that it is the last of its message.
    Part,
    /// In a message's last frame.
    LastPart,
    /// In the frame in which the walk began, of which nothing is known.
    Unknown,
}

/// A system call, by its number on x86_64. Saved by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemCall(pub u32);

const SYSTEM_CALLS: [(u32, &str); 15] = [
    (0, "read"),
    (1, "write"),
    (3, "close"),
    (19, "readv"),
    (20, "writev"),
    (42, "connect"),
    (43, "accept"),
    (44, "sendto"),
    (45, "recvfrom"),
    (46, "sendmsg"),
    (47, "recvmsg"),
    (48, "shutdown"),
    (55, "getsockopt"),
    (288, "accept4"),
    (40, "sendfile"),
];

impl SystemCall {
    /// Its name; `?` for one that is none of those on connections.
    pub fn name(self) -> &'static str {
        SYSTEM_CALLS.iter().find(|(number, _)| *number == self.0).map_or("?", |(_, name)| name)
    }
}

impl Serialize for SystemCall {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for SystemCall {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = SYSTEM_CALLS.iter().find(|(_, name)| *name == text);
        found.map(|(number, _)| Self(*number)).ok_or_else(|| serde::de::Error::custom("unknown system call"))
    }
}

/// A greeting or a command went over a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// The fd.
    pub fd: i32,
    /// Inode of its socket.
    pub inode: u64,
    /// Which way it went.
    pub direction: Direction,
    /// What it says.
    #[serde(flatten)]
    pub content: CommandContent,
}

/// What a greeting or a command says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CommandContent {
    /// The greeting.
    Greeting {
        /// ZMTP version of its sender: major and minor; 1.0 and 2.0 have no minor of their own.
        version: (u8, u8),
        /// Mechanism, `NULL`, of 3.x.
        mechanism: Option<String>,
        /// Whether its sender is the server of the mechanism.
        as_server: bool,
        /// Its sender's socket type, where ZMTP 2.0 or before is spoken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        socket_type: Option<String>,
    },
    /// READY: the handshake is done in this direction.
    Ready {
        /// `Socket-Type`.
        socket_type: Option<String>,
        /// `Identity`.
        #[serde(with = "super::state::optional_bytes")]
        identity: Option<Bytes>,
    },
    /// INITIATE of PLAIN: the client says who it is. What it says with CURVE is encrypted.
    Initiate {
        /// `Socket-Type`.
        socket_type: Option<String>,
        /// `Identity`.
        #[serde(with = "super::state::optional_bytes")]
        identity: Option<Bytes>,
    },
    /// The identity that a peer before ZMTP 3.0 sends first.
    Identity {
        /// It.
        #[serde(with = "text_bytes")]
        identity: Bytes,
    },
    /// ERROR: the handshake has failed.
    Error {
        /// The reason that is given.
        reason: String,
    },
    /// SUBSCRIBE, or the message that says so before ZMTP 3.1.
    Subscribe {
        /// The topic, as far as it was kept.
        #[serde(with = "text_bytes")]
        topic: Bytes,
    },
    /// CANCEL, or the message that says so before ZMTP 3.1.
    Cancel {
        /// The topic, as far as it was kept.
        #[serde(with = "text_bytes")]
        topic: Bytes,
    },
    /// PING.
    Ping {
        /// After which time without traffic the connection is given up, tenths of a second.
        ttl: u16,
    },
    /// PONG.
    Pong,
    /// Another one, such as those of the mechanisms.
    Other {
        /// Its name.
        name: String,
    },
}

/// A pipe and how many messages went through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeCount {
    /// Names it for good: the address of the socket's end, and above that which of those that were there.
    pub pipe: u64,
    /// Messages until now. Of a [`Wire`] or [`Stream`] that sent: taken out by the connection; of one that received: put in before by
    /// it. Of a call: written or read by the socket, this one included.
    pub count: u64,
    /// Of a call: the pipe was not known before, so that it may have been an earlier one that changed its count.
    #[serde(default)]
    pub unsure: bool,
    /// Of the connection: it has not taken parts of the next message, too. False: it may have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
}

/// A pipe is met for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// The socket's address.
    pub handle: u64,
    /// As [`PipeCount::pipe`].
    pub pipe: u64,
    /// Address of the other end: a connection's or, of inproc, another socket's.
    pub peer: u64,
    /// The connection, where it had moved its first messages before it had this pipe.
    #[serde(default)]
    pub inode: Option<u64>,
}
