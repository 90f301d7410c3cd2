//! What was found in a process's memory and in the kernel's tables: contexts, sockets, connections, and threads
//! blocked in libzmq. A value that could not be read is `None`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{FunctionId, text_bytes};

/// All that one process held at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// CLOCK_MONOTONIC when it was complete.
    pub ts_ns: u64,
    /// How long it took to read, ns: it is no single moment.
    pub took_ns: u64,
    /// Process.
    pub pid: u32,
    /// Inode of its network namespace.
    pub network: Option<u64>,
    /// Every context that has opened a socket.
    pub contexts: Vec<Context>,
    /// Threads that wait for a socket: inside libzmq, or in an event loop of the program's own.
    pub blocked: Vec<Blocked>,
    /// Objects that changed or vanished under the reader each time they were read, and so are missing.
    pub unread: u32,
    /// What else could not be read, or only in part, in words.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Whether it was stopped, by a signal or by a tracer: then nothing in it moves, whatever the sockets say.
    #[serde(default)]
    pub stopped: bool,
    /// The process that traces it, with ptrace(2): a debugger, strace.
    #[serde(default)]
    pub tracer_pid: Option<u32>,
}

/// A `zmq::ctx_t`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Its address, what `zmq_ctx_new` returned.
    pub handle: u64,
    /// Index of its libzmq within the process.
    pub library: u8,
    /// The build whose layout fits: a row of the table of layouts. `None`: no known one does, and what is said of
    /// sockets is inferred.
    pub layout: Option<String>,
    /// The process that made it, as that one sees its own number.
    pub owner_pid: Option<u32>,
    /// Whether that is another process: it was copied by a fork, after which it is of no use.
    pub inherited: bool,
    /// `ZMQ_IO_THREADS`.
    pub io_threads: Option<i32>,
    /// `ZMQ_MAX_SOCKETS`.
    pub max_sockets: Option<i32>,
    /// `ZMQ_MAX_MSGSZ`, bytes; 4.2 and later.
    pub max_msgsz: Option<i32>,
    /// `ZMQ_IPV6`.
    pub ipv6: Option<bool>,
    /// `ZMQ_BLOCKY`; 4.2 and later.
    pub blocky: Option<bool>,
    /// Whether `zmq_ctx_term` or `zmq_ctx_shutdown` was called.
    pub terminating: Option<bool>,
    /// The fd that `zmq_ctx_term` waits for.
    pub term_fd: Option<i32>,
    /// Its sockets, in the order of their numbers.
    pub sockets: Vec<SocketState>,
}

/// A `zmq::socket_base_t`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketState {
    /// Its address.
    pub handle: u64,
    /// How often a socket at this address had been closed before, as far as it was observed.
    #[serde(default)]
    pub generation: u32,
    /// `ZMQ_REQ`, ...
    pub socket_type: Option<i32>,
    /// libzmq's own number of it.
    pub id: Option<u32>,
    /// What can be set.
    pub options: Options,
    /// What `ZMQ_FD` returns, and what a blocked call polls. Thread-safe sockets have none.
    pub mailbox_fd: Option<i32>,
    /// Whether it was closed by the program and only waits for its last messages to leave.
    pub closing: bool,
    /// What a SUB or XSUB subscribed to; `None` for other types.
    pub subscriptions: Option<Subscriptions>,
    /// Bytes of the message parts that its queues hold, both ways.
    pub bytes_held: Option<u64>,
    /// The monitor, where one is set.
    pub monitor: Option<Monitor>,
    /// What it is bound and connected to.
    pub endpoints: Vec<Endpoint>,
    /// Its connections, those that are being made included.
    pub connections: Vec<Connection>,
}

/// Topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriptions {
    /// Prefixes, sorted, as many as are kept.
    pub topics: Vec<Topic>,
    /// How many more there are.
    pub more: u64,
}

/// A prefix that a SUB subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Topic(#[serde(with = "text_bytes")] pub Bytes);

/// Options of a socket, by the names of the JSON contract; times in ms, -1: none or for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `ZMQ_SNDHWM`, messages; 0: no limit.
    pub sndhwm: Option<i32>,
    /// `ZMQ_RCVHWM`, messages; 0: no limit.
    pub rcvhwm: Option<i32>,
    /// `ZMQ_LINGER`.
    pub linger: Option<i32>,
    /// `ZMQ_SNDTIMEO`.
    pub sndtimeo: Option<i32>,
    /// `ZMQ_RCVTIMEO`.
    pub rcvtimeo: Option<i32>,
    /// `ZMQ_RECONNECT_IVL`.
    pub reconnect_ivl: Option<i32>,
    /// `ZMQ_RECONNECT_IVL_MAX`; 0: the interval does not grow.
    pub reconnect_ivl_max: Option<i32>,
    /// `ZMQ_IMMEDIATE`.
    pub immediate: Option<bool>,
    /// `ZMQ_IPV6`.
    pub ipv6: Option<bool>,
    /// `ZMQ_CONFLATE`.
    pub conflate: Option<bool>,
    /// `ZMQ_TCP_KEEPALIVE`; -1: the system's own.
    pub tcp_keepalive: Option<i32>,
    /// `ZMQ_TCP_KEEPALIVE_CNT`.
    pub tcp_keepalive_cnt: Option<i32>,
    /// `ZMQ_TCP_KEEPALIVE_IDLE`, s.
    pub tcp_keepalive_idle: Option<i32>,
    /// `ZMQ_TCP_KEEPALIVE_INTVL`, s.
    pub tcp_keepalive_intvl: Option<i32>,
    /// `ZMQ_HEARTBEAT_IVL`; 4.2 and later.
    pub heartbeat_ivl: Option<i32>,
    /// `ZMQ_HEARTBEAT_TIMEOUT`; 4.2 and later.
    pub heartbeat_timeout: Option<i32>,
    /// `ZMQ_HANDSHAKE_IVL`.
    pub handshake_ivl: Option<i32>,
    /// `ZMQ_CONNECT_TIMEOUT`; 4.2 and later.
    pub connect_timeout: Option<i32>,
    /// `ZMQ_MECHANISM`: 0 NULL, 1 PLAIN, 2 CURVE, 3 GSSAPI.
    pub mechanism: Option<i32>,
    /// Whether it is the server of its mechanism.
    pub as_server: Option<bool>,
    /// `ZMQ_ROUTING_ID`; empty: none set.
    #[serde(with = "optional_bytes")]
    pub routing_id: Option<Bytes>,
    /// `ZMQ_MAXMSGSIZE`, bytes.
    pub maxmsgsize: Option<i64>,
    /// `ZMQ_BACKLOG`.
    pub backlog: Option<i32>,
    /// `ZMQ_AFFINITY`, a set of I/O threads.
    pub affinity: Option<u64>,
    /// `ZMQ_SNDBUF`, bytes.
    pub sndbuf: Option<i32>,
    /// `ZMQ_RCVBUF`, bytes.
    pub rcvbuf: Option<i32>,
    /// `ZMQ_TOS`.
    pub tos: Option<i32>,
}

/// A socket monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Monitor {
    /// The PAIR socket inside libzmq that sends the events.
    pub handle: u64,
    /// `ZMQ_EVENT_*`.
    pub events: u64,
}

/// Which side of a connection an endpoint makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `zmq_bind`.
    Bind,
    /// `zmq_connect`.
    Connect,
}

/// Something that a socket is bound or connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// As libzmq keeps it: a bind's with the port that came of it.
    pub endpoint: String,
    /// Bound or connected; `None`: what libzmq has made of it is of an unknown kind.
    pub role: Option<Role>,
    /// The listener's fd; of a connect, the connection's.
    pub fd: Option<i32>,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionState {
    /// Between two attempts.
    Waiting,
    /// connect(2) has not completed.
    Connecting,
    /// Connected; the ZMTP handshake is not done.
    Handshake,
    /// Messages can pass.
    Ready,
    /// An inproc connect to a name that nobody has bound yet.
    Pending,
    /// It is being shut down.
    Closing,
}

impl ConnectionState {
    /// The word that reports and the JSON contract use.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::Handshake => "handshake",
            Self::Ready => "ready",
            Self::Pending => "pending",
            Self::Closing => "closing",
        }
    }
}

/// How it is known which socket a connection belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// By libzmq's own pointers, at offsets that are known for this build.
    #[default]
    Exact,
    /// By the vote of similar objects of a build that is not known.
    Inferred,
}

/// A connection of a socket, or the attempt to make one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connection {
    /// Its fd, while it has one. inproc never has.
    pub fd: Option<i32>,
    /// The endpoint of the socket that it came of.
    pub endpoint: Option<String>,
    /// Whether that was bound or connected.
    pub role: Option<Role>,
    /// How far it is.
    pub state: Option<ConnectionState>,
    /// How it is known to be the socket's.
    pub mapping: Mapping,
    /// Address of this side: `127.0.0.1:5555`, an ipc path, an inproc name.
    pub local: Option<String>,
    /// Address of the other side.
    pub remote: Option<String>,
    /// Socket type that the peer named in its handshake: `DEALER`.
    pub peer_type: Option<String>,
    /// Routing id that the peer named in its handshake, or that a ROUTER gave it.
    #[serde(with = "optional_bytes")]
    pub peer_identity: Option<Bytes>,
    /// Process at the other side, where it is on this machine.
    pub peer_pid: Option<u32>,
    /// inproc: the socket at the other end.
    pub peer_handle: Option<u64>,
    /// Address of what speaks ZMTP on the fd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<u64>,
    /// Pipes between socket and connection; `None` while there are none.
    pub pipes: Option<Pipes>,
    /// What the kernel says of its fd.
    pub kernel: Option<KernelSocket>,
}

/// Both directions between a socket and one of its connections. Whole messages are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipes {
    /// Address of the socket's end: the same as long as the pipe lives.
    pub handle: u64,
    /// Messages that the socket has written, ever.
    pub tx_written: u64,
    /// Messages that the connection (inproc: the peer) has taken out, ever.
    pub tx_read: u64,
    /// High-water mark of this direction; 0, and -1 of a conflating queue: no limit.
    pub tx_hwm: i32,
    /// Whether a send would block, or drop, now. libzmq compares with what the other side has confirmed, which it does
    /// in steps: a queue can be full that holds less than its mark.
    #[serde(default)]
    pub tx_full: bool,
    /// Messages that the connection (inproc: the peer) has written, ever.
    pub rx_written: u64,
    /// Messages that the socket has taken out, ever.
    pub rx_read: u64,
    /// High-water mark of this direction; 0, and -1 of a conflating queue: no limit.
    pub rx_hwm: i32,
    /// Whether the other side cannot pass on what it has received.
    #[serde(default)]
    pub rx_full: bool,
}

impl Pipes {
    /// Messages that wait to be sent.
    pub const fn tx_queue(&self) -> u64 {
        self.tx_written.saturating_sub(self.tx_read)
    }

    /// Messages that wait to be received.
    pub const fn rx_queue(&self) -> u64 {
        self.rx_written.saturating_sub(self.rx_read)
    }
}

/// What sock_diag(7) says of a socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelSocket {
    /// Inode.
    pub inode: u64,
    /// Unix sockets: inode of the other end.
    pub peer_inode: Option<u64>,
    /// `ESTABLISHED`, `SYN_SENT`, `LISTEN`, ...
    pub state: String,
    /// Bytes received and not yet read. Of a listener: connections not yet accepted.
    pub rx_bytes: Option<u32>,
    /// Bytes written and not yet acknowledged. Of a listener: the most connections that may wait.
    pub tx_bytes: Option<u32>,
    /// tcp: retransmits of the segment that is on its way.
    pub retransmits: Option<u32>,
    /// tcp: segments ever retransmitted.
    pub total_retransmits: Option<u32>,
    /// tcp: smoothed round trip time, us.
    pub rtt_us: Option<u32>,
    /// tcp: congestion window, segments.
    pub snd_cwnd: Option<u32>,
    /// tcp: the peer's receive window, bytes; 0: it does not read. Linux 5.4 and later.
    pub snd_wnd: Option<u32>,
}

/// A thread that waits inside a libzmq call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Thread.
    pub tid: u32,
    /// Its name.
    pub thread: String,
    /// The call of the program, as far as the stack names it.
    pub call: Option<FunctionId>,
    /// The sockets that it waits for, by their addresses.
    pub sockets: Vec<u64>,
    /// The context that it waits for in `zmq_ctx_term`.
    pub context: Option<u64>,
    /// Fds that it waits for besides.
    pub fds: Vec<i32>,
    /// What it sleeps in: `poll`, `futex`; `epoll_wait` of a loop of the program's own, which is no call of libzmq.
    pub system_call: Option<String>,
    /// The call's own timeout in the kernel, ms; -1: none.
    pub timeout_ms: Option<i32>,
    /// When it last ran, CLOCK_MONOTONIC: it has slept ever since.
    pub since_ns: Option<u64>,
    /// Innermost frame first.
    pub stack: Stack,
    /// Frames of the Python program, innermost first; empty where there are none or they were not asked for.
    #[serde(default)]
    pub python: Vec<Frame>,
}

/// The frames of a thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// Whether frames are missing behind the last one.
    pub truncated: bool,
}

/// One function on a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Frame {
    /// Where it goes on when the inner one returns (the innermost one: where it is).
    pub address: u64,
    /// The file that the code is in.
    pub module: Option<String>,
    /// The function, demangled.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
}

pub(super) mod optional_bytes {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Topic;

    pub fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.clone().map(Topic).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Topic>::deserialize(deserializer)?.map(|Topic(bytes)| bytes))
    }
}
