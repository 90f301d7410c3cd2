//! The event: the one vocabulary that everything after capture speaks.
//!
//! All that is learned about a target becomes an event in one stream, ordered by the time at which it was
//! complete (a call's is its return). What comes after capture reads no clock, no `/proc` and no map, so
//! it gives the same answer from a live process and from saved events.

mod fds;
mod state;
mod wire;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracer_common::{
    function::{Arg, Capture, FUNCTIONS, Function},
    limits::{POLL_ITEM_BYTES, POLLER_EVENT_BYTES},
};

pub use self::fds::{Change, FdChange, FdPart, FdSocket, FoundFd};
pub use self::state::{
    Blocked, Connection, ConnectionState, Context, Endpoint, Frame, KernelSocket, Mapping, Monitor, Options, Pipes,
    Role, Snapshot, SocketState, Stack, Subscriptions, Topic,
};
pub use self::wire::{Command, CommandContent, Direction, Frames, Inside, Pipe, PipeCount, Stream, SystemCall, Wire};
use crate::target::Version;

/// Something that was observed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Observation begins. Always the first event.
    Start(Start),
    /// A target was found.
    Process(Process),
    /// A thread made its first call.
    Thread(Thread),
    /// A socket that was there before us says what it is.
    Socket(Socket),
    /// All that a process holds, as found in its memory and in the kernel's tables.
    Snapshot(Arc<Snapshot>),
    /// Queues were looked at.
    Queues(Queues),
    /// A call returned.
    Call(Call),
    /// A call is still in flight.
    InFlight(InFlight),
    /// A fd of a socket came or went.
    Fd(FdChange),
    /// A process's end of a connection is met.
    Stream(Stream),
    /// A system call on a connection returned.
    Wire(Wire),
    /// A greeting or a command went over a connection.
    Command(Command),
    /// A pipe between a socket and a connection, or another socket, is met.
    Pipe(Pipe),
    /// A thread ended, and its calls in flight with it.
    ThreadExit(ThreadExit),
    /// A process replaced its program. Its threads but one, and all its calls in flight, are gone.
    Exec(ProcessEnd),
    /// A process ended.
    ProcessExit(ProcessEnd),
    /// What the kernel counted until now.
    Totals(Totals),
    /// What was lost until now; only when it grew.
    Loss(Loss),
    /// A moment without news, so that time passes for those who wait: once an interval.
    Tick(Tick),
    /// Observation ends. Always the last event.
    End(End),
}

/// See [`Event::Start`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// CLOCK_REALTIME at the same moment.
    pub realtime_ns: u64,
    /// Whether [`Event::Totals`] say all that is to be counted; else the calls themselves do.
    pub totals: bool,
}

/// See [`Event::Process`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// The libzmq copies in it; [`Call::library`] is an index.
    pub libraries: Vec<Library>,
    /// Whether it was asked for; else it is at the other end of a connection.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub is_target: bool,
}

const fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
const fn is_yes(value: &bool) -> bool {
    *value
}

/// A libzmq in a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// The file that it is in.
    pub path: String,
    /// What it says of itself.
    pub version: Option<Version>,
}

/// See [`Event::Thread`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Its name.
    pub name: String,
}

/// See [`Event::Socket`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// Index of its libzmq.
    pub library: u8,
    /// Its address.
    pub handle: u64,
    /// How often a socket at this address had been closed before.
    pub generation: u32,
    /// `ZMQ_REQ`, ...
    pub socket_type: i32,
    /// libzmq's own number of it.
    pub id: Option<u32>,
}

/// See [`Event::Queues`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queues {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// Every pipe of every socket, those that were known before and are gone left out.
    pub queues: Vec<Queue>,
}

/// The pipes between a socket and one of its connections, at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// The socket's address.
    pub handle: u64,
    /// Of the socket.
    #[serde(default)]
    pub generation: u32,
    /// The connection's fd, while it has one.
    pub fd: Option<i32>,
    /// Its counters.
    pub pipes: Pipes,
}

/// A call of a libzmq function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Counts the calls of the thread.
    pub sequence: u32,
    /// What was called.
    #[serde(rename = "call")]
    pub function: FunctionId,
    /// Index of the libzmq within the process.
    pub library: u8,
    /// How often a socket at the handle's address (`zmq_socket`: at the returned one) had been closed
    /// before.
    pub generation: u32,
    /// CLOCK_MONOTONIC at entry.
    pub entry_ns: u64,
    /// The arguments as passed.
    pub args: [u64; 6],
    /// Bytes of the message part, or of the parts for iovecs.
    pub size: Option<u64>,
    /// Whether more parts of the message follow.
    pub more: Option<bool>,
    /// Payload, text, option value, poll items: what [`Function::capture`] says.
    pub data: Data,
    /// The pipes through which the message went that this call completed, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipes: Vec<PipeCount>,
    /// `None` while in flight.
    pub outcome: Option<Outcome>,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// CLOCK_MONOTONIC at return.
    pub return_ns: u64,
    /// The value returned, of the function's own type.
    pub ret: i64,
    /// Whether that value says that the call failed.
    pub failed: bool,
    /// `errno` of a failed call, where it could be read.
    pub errno: Option<i32>,
}

/// Bytes copied from the target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// The bytes, as many as were asked for.
    #[serde(with = "text_bytes")]
    pub bytes: Bytes,
    /// Why they are not all there, where that is not because no more were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Missing>,
}

/// Why data is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The target's memory could not be read.
    Unreadable,
    /// The ring was full.
    Lost,
    /// The text goes on.
    Cut,
}

/// See [`Event::InFlight`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// CLOCK_MONOTONIC of the sample.
    pub ts_ns: u64,
    /// The call.
    pub call: Call,
}

/// See [`Event::ThreadExit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadExit {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
}

/// See [`Event::ProcessExit`] and [`Event::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
}

/// See [`Event::Totals`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// All rows, each counted since the start.
    pub rows: Vec<TotalsRow>,
}

/// One socket, one function, one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalsRow {
    /// Process.
    pub pid: u32,
    /// Index of the libzmq.
    pub library: u8,
    /// Socket, context or poller; 0 where the call has none.
    pub handle: u64,
    /// Of the handle.
    pub generation: u32,
    /// What was called.
    #[serde(rename = "call")]
    pub function: FunctionId,
    /// How it ended.
    pub result: CallResult,
    /// Calls.
    pub count: u64,
    /// Sum of their durations.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Payload bytes moved.
    pub bytes: u64,
    /// Messages completed.
    pub messages: u64,
    /// Parts of which it is not known whether they completed a message.
    pub parts_unknown: u64,
    /// Durations by bucket ([`bucket_of`](tracer_common::record::bucket_of)): index and count.
    pub buckets: Vec<(u16, u64)>,
}

/// Success or a kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallResult {
    /// It succeeded.
    Ok,
    /// It failed with this `errno`.
    Errno(i32),
    /// It failed, and `errno` could not be read.
    Failed,
}

/// See [`Event::Loss`]. All counts are since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Loss {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Calls that found the ring full.
    pub ring_full: u64,
    /// Payloads and texts that found the ring full, of calls that were reported.
    pub data_ring_full: u64,
    /// Calls of threads beyond the table of threads.
    pub thread_table_full: u64,
    /// Calls that `stat` could not count.
    pub totals_full: u64,
    /// Calls nested deeper than is kept.
    pub nested_too_deep: u64,
    /// Starts and ends of threads that found the ring full.
    pub life_ring_full: u64,
    /// Calls that began on another stack while one of their thread was pending.
    pub other_stack: u64,
    /// Changes of fds that found the ring full.
    pub fd_ring_full: u64,
    /// Fds beyond the table of those that are followed.
    pub fd_table_full: u64,
    /// System calls on connections, and what was learnt of those, that found the ring full.
    pub wire_ring_full: u64,
    /// Directions of connections beyond the table of those that are followed.
    pub stream_table_full: u64,
    /// Pipes, and sockets with pipes, beyond the table's size.
    #[serde(default)]
    pub pipe_table_full: u64,
    /// Records that made no sense.
    pub unreadable: u64,
    /// Calls that were reported, but later than others that returned after them.
    pub stragglers: u64,
}

impl Loss {
    /// What was lost, by reason, with the names of the JSON contract. Stragglers were not lost.
    pub const fn reasons(&self) -> [(&'static str, u64); 13] {
        [
            ("ring_full", self.ring_full),
            ("data_ring_full", self.data_ring_full),
            ("thread_table_full", self.thread_table_full),
            ("totals_full", self.totals_full),
            ("nested_too_deep", self.nested_too_deep),
            ("life_ring_full", self.life_ring_full),
            ("other_stack", self.other_stack),
            ("fd_ring_full", self.fd_ring_full),
            ("fd_table_full", self.fd_table_full),
            ("wire_ring_full", self.wire_ring_full),
            ("stream_table_full", self.stream_table_full),
            ("pipe_table_full", self.pipe_table_full),
            ("unreadable", self.unreadable),
        ]
    }

    /// Calls that were neither reported nor counted.
    pub const fn uncounted_calls(&self) -> u64 {
        self.thread_table_full + self.totals_full + self.nested_too_deep + self.other_stack
    }

    /// Calls that were not reported. Data that was lost of a call that was reported is not among them.
    pub const fn total(&self) -> u64 {
        self.ring_full
            + self.thread_table_full
            + self.totals_full
            + self.nested_too_deep
            + self.other_stack
            + self.unreadable
    }
}

/// See [`Event::Tick`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
}

/// See [`Event::End`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Stamp of the last samples of calls in flight: what was in flight at the end has a sample of it.
    #[serde(default)]
    pub sampled_ns: u64,
    /// Why.
    pub reason: EndReason,
}

/// Why observation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Ctrl-C, SIGTERM, or nobody reads our output.
    Asked,
    /// `--duration` is over.
    Duration,
    /// All targets have ended.
    TargetsEnded,
    /// Everything that was asked for was read.
    Complete,
}

/// A row of [`FUNCTIONS`]. Saved by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(u8);

impl FunctionId {
    /// The row at `index`.
    pub fn from_index(index: u8) -> Option<Self> {
        (usize::from(index) < FUNCTIONS.len()).then_some(Self(index))
    }

    /// The row of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let index = FUNCTIONS.iter().position(|function| function.name == name)?;
        u8::try_from(index).ok().map(Self)
    }

    /// The row.
    pub fn row(self) -> &'static Function {
        &FUNCTIONS[usize::from(self.0)]
    }
}

impl Serialize for FunctionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.row().name)
    }
}

impl<'de> Deserialize<'de> for FunctionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown function {name}")))
    }
}

impl Event {
    /// When it was complete, CLOCK_MONOTONIC.
    pub fn ts_ns(&self) -> u64 {
        match self {
            Self::Start(event) => event.ts_ns,
            Self::Process(event) => event.ts_ns,
            Self::Thread(event) => event.ts_ns,
            Self::Socket(event) => event.ts_ns,
            Self::Snapshot(event) => event.ts_ns,
            Self::Queues(event) => event.ts_ns,
            Self::Call(event) => event.outcome.map_or(event.entry_ns, |outcome| outcome.return_ns),
            Self::InFlight(event) => event.ts_ns,
            Self::Fd(event) => event.ts_ns,
            Self::Stream(event) => event.ts_ns,
            Self::Wire(event) => event.ts_ns,
            Self::Command(event) => event.ts_ns,
            Self::Pipe(event) => event.ts_ns,
            Self::ThreadExit(event) => event.ts_ns,
            Self::Exec(event) | Self::ProcessExit(event) => event.ts_ns,
            Self::Totals(event) => event.ts_ns,
            Self::Loss(event) => event.ts_ns,
            Self::Tick(event) => event.ts_ns,
            Self::End(event) => event.ts_ns,
        }
    }
}

impl Call {
    /// The socket, context or poller that the call is about; `None` where it has none, or NULL.
    pub fn handle(&self) -> Option<u64> {
        let index = self.function.row().handle_arg()?;
        self.args.get(index).copied().filter(|handle| *handle != 0)
    }

    /// The handle, if it is a socket's.
    pub fn socket(&self) -> Option<u64> {
        if self.function.row().is_about_socket() { self.handle() } else { None }
    }

    /// Sockets that it mentions besides its own: members of polls and pollers, sides of proxies.
    pub fn other_sockets(&self) -> impl Iterator<Item = u64> + '_ {
        let row = self.function.row();
        let arguments = row.args.iter().zip(self.args).filter(|(arg, _)| **arg == Arg::OptionalSocket);
        let item_bytes = match row.capture {
            Capture::PollItems => POLL_ITEM_BYTES,
            Capture::PollerEvent | Capture::PollerEvents => POLLER_EVENT_BYTES,
            _ => usize::MAX,
        };
        // An item begins with its socket, NULL for a plain fd.
        let items = self.data.bytes.chunks_exact(item_bytes).filter_map(|item| item.first_chunk::<8>());
        arguments
            .map(|(_, handle)| handle)
            .chain(items.map(|word| u64::from_ne_bytes(*word)))
            .filter(|handle| *handle != 0)
    }

    /// The payload of a send or a successful receive, as far as it was copied.
    pub fn payload(&self) -> Option<&[u8]> {
        let row = self.function.row();
        let carries = row.args.iter().any(|arg| matches!(arg, Arg::Buffer | Arg::Message | Arg::Iov));
        let readable = self.size.is_some() && self.data.missing.is_none();
        (carries && readable && self.has_data()).then_some(&self.data.bytes[..])
    }

    /// Whether there is data to copy at all: a failed receive has none.
    pub fn has_data(&self) -> bool {
        let fills = matches!(
            self.function.row().capture,
            Capture::RecvBuffer | Capture::RecvMessage0 | Capture::RecvMessage1 | Capture::RecvIov | Capture::OptionOut
        );
        !fills || self.outcome.is_some_and(|outcome| !outcome.failed)
    }

    /// How it ended, in one word.
    pub fn result(&self) -> CallResult {
        match self.outcome {
            Some(Outcome { failed: true, errno: Some(errno), .. }) => CallResult::Errno(errno),
            Some(Outcome { failed: true, errno: None, .. }) => CallResult::Failed,
            _ => CallResult::Ok,
        }
    }
}

/// Saves bytes as text with `\xNN` for what is not printable ASCII.
mod text_bytes {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&bytes.escape_ascii())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        unescape(&text).map(Bytes::from).ok_or_else(|| serde::de::Error::custom("bad escape in bytes"))
    }

    fn unescape(text: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'\\' {
                bytes.push(byte);
                continue;
            }
            bytes.push(match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
                other => other,
            });
        }
        Some(bytes)
    }

    fn hex(digit: u8) -> Option<u8> {
        char::from(digit).to_digit(16).map(|digit| digit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_survives_saving() {
        let data = Data { bytes: Bytes::from((0..=255).collect::<Vec<u8>>()), missing: Some(Missing::Cut) };
        let saved = serde_json::to_string(&data).expect("serialises");
        assert_eq!(serde_json::from_str::<Data>(&saved).expect("parses"), data);
    }

    #[test]
    fn functions_are_saved_by_name() {
        let function = FunctionId::from_name("zmq_send").expect("in the table");
        assert_eq!(serde_json::to_string(&function).expect("serialises"), "\"zmq_send\"");
        assert!(serde_json::from_str::<FunctionId>("\"zmq_nonsense\"").is_err());
        assert_eq!(FunctionId::from_index(255), None);
    }
}
