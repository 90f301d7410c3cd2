//! System calls on connections, and the messages that they move: what the kernel side keeps and says.

use crate::{limits::MAX_COMMAND_BYTES, zmtp::Walk};

/// Which way bytes go, one byte, seen from the process that makes the system call.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the peer.
    Send = 0,
    /// From the peer.
    Receive = 1,
}

/// Which sockets of a process count, one word.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireScope {
    /// None.
    Nothing = 0,
    /// Those that are known to be connections of ZeroMQ sockets.
    Connections = 1,
    /// Every stream socket: the process has no libzmq that is known.
    Streams = 2,
}

/// One direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamKey {
    /// Process.
    pub tgid: u32,
    /// The file descriptor.
    pub fd: i32,
    /// [`Direction`].
    pub direction: u32,
}

/// What the kernel side keeps of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// How far it was walked.
    pub walk: Walk,
    /// Address of the kernel's socket, which tells it from another one at the same fd; 0: not seen yet.
    pub sock: u64,
    /// Bytes that it has moved, since it was made or first seen.
    pub position: u64,
    /// Inode of the socket.
    pub inode: u64,
    /// tcp: sequence number of the byte after the last one that was moved.
    pub sequence: u32,
    /// 1: `sequence` is known.
    pub has_sequence: u8,
    /// 1: it was seen from its first byte.
    pub from_start: u8,
    /// 1: userspace has been told of it.
    pub is_introduced: u8,
    /// 1: what goes this way subscribes: its sender is a SUB or XSUB.
    pub subscribes: u8,
    /// Bytes of the frame under way that are kept in `command`.
    pub command_len: u32,
    /// 1: the walk began where a frame seemed to begin; what it says is kept back until a system call ends with a frame.
    pub is_provisional: u8,
    /// 1: the last system call moved all that it was asked to, and not as much as libzmq's batches hold.
    pub was_complete: u8,
    /// 1: its pipe was seen.
    pub has_pipe: u8,
    /// Explicit padding.
    pub padding: u8,
    /// Frames that were kept back while the walk was provisional, without commands.
    pub held_frames: u32,
    /// Messages that were kept back.
    pub held_messages: u32,
    /// The command under way, as far as it has come. Twice the room, so that the verifier sees that any piece fits.
    pub command: [u8; 2 * MAX_COMMAND_BYTES],
}

impl Stream {
    /// A connection of which nothing is known.
    pub const fn unknown() -> Self {
        Self {
            walk: Walk::unknown(),
            sock: 0,
            position: 0,
            inode: 0,
            sequence: 0,
            has_sequence: 0,
            from_start: 0,
            is_introduced: 0,
            subscribes: 0,
            command_len: 0,
            is_provisional: 0,
            was_complete: 0,
            has_pipe: 0,
            padding: 0,
            held_frames: 0,
            held_messages: 0,
            command: [0; 2 * MAX_COMMAND_BYTES],
        }
    }

    /// One that was walked so far.
    pub const fn walked(walk: Walk) -> Self {
        Self { walk, ..Self::unknown() }
    }
}

/// Where libzmq keeps the queue between a connection and its socket: offsets in bytes and the object that they begin
/// with. All zero: not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Engine {
    /// Address of the engine, of its base class `i_poll_events`.
    pub address: u64,
    /// Where what follows lies.
    pub layout: EngineLayout,
    /// `ZMQ_TYPE` of its socket.
    pub socket_type: u8,
    /// Explicit padding.
    pub padding: [u8; 3],
}

/// Offsets on the way from an engine to its queues and to its place in the frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLayout {
    /// In the engine: the pointer to its session. 0: nothing is known.
    pub session: u16,
    /// In the engine: the pointer to its encoder. Its decoder is [`DECODER_BEFORE_ENCODER`] before.
    pub encoder: u16,
    /// In the engine: what it received of the peer's greeting, 64 bytes.
    pub greeting: u16,
    /// In the session: the pointer to its pipe.
    pub pipe: u16,
    /// In the session: whether the message that it last took out of its pipe has parts in there still, one byte.
    pub incomplete: u16,
    /// In a pipe: its [`PipeEnd`].
    pub counts: u16,
    /// In a message: its type; 0: not known.
    pub message_type: u16,
    /// In a message: its content.
    pub message_content: u16,
    /// In the session: what the [`PipeEnd::sink`] of its pipe points to.
    pub sink: u16,
    /// Explicit padding.
    pub padding: u16,
}

/// How far before an engine's pointer to its encoder the one to its decoder lies.
pub const DECODER_BEFORE_ENCODER: u64 = 24;

/// A stretch of messages of the same length on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Bytes from the end of one to the end of the next; of the first in a system call, from the first byte that that
    /// moved.
    pub bytes: u32,
    /// How many.
    pub count: u32,
}

/// A system call on a connection. In the ring it is followed by `runs` many [`Run`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WireRecord {
    /// [`RecordKind::Wire`](crate::record::RecordKind::Wire).
    pub kind: u8,
    /// `WIRE_*`.
    pub flags: u8,
    /// [`Direction`].
    pub direction: u8,
    /// Where the walk is inside a frame: 0 in none, 1 in one that others of its message follow (or a command), 2 in a
    /// message's last, 3 in one of which that is not known.
    pub inside: u8,
    /// Number of the system call.
    pub call: u32,
    /// CLOCK_MONOTONIC at entry; 0: not stamped.
    pub entry_ns: u64,
    /// CLOCK_MONOTONIC at exit.
    pub exit_ns: u64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// The file descriptor.
    pub fd: i32,
    /// tcp: sequence number of the byte after the last one that was moved; see [`WIRE_SEQUENCE`].
    pub sequence: u32,
    /// What it returned: bytes, or minus the error.
    pub ret: i64,
    /// Bytes that it was asked to move.
    pub wanted: u64,
    /// Inode of the socket.
    pub inode: u64,
    /// The ZeroMQ socket's address; 0: not known.
    pub handle: u64,
    /// [`pipe_id`] of the one between the socket and the connection; 0: not known.
    pub pipe: u64,
    /// Sent: messages that the connection had taken out of the pipe by then. Received: messages that it had put into
    /// it before this system call.
    pub pipe_count: u64,
    /// Bytes that had been moved before, since the connection was made or first seen.
    pub position: u64,
    /// Messages that have ended in this direction by now, as far as it was walked.
    pub total_messages: u64,
    /// Frames that ended in what was moved, without commands.
    pub frames: u32,
    /// Messages that ended.
    pub messages: u32,
    /// Commands that ended.
    pub commands: u32,
    /// [`Run`]s that follow.
    pub runs: u32,
}

/// [`WireRecord::flags`]: it is known where frames begin.
pub const WIRE_SYNCHRONISED: u8 = 1;
/// [`WireRecord::flags`]: `sequence` is known.
pub const WIRE_SEQUENCE: u8 = 1 << 1;
/// [`WireRecord::flags`]: `position` counts from the connection's first byte.
pub const WIRE_FROM_START: u8 = 1 << 2;
/// [`WireRecord::flags`]: another record of the same system call follows, with more [`Run`]s.
pub const WIRE_CONTINUES: u8 = 1 << 3;
/// [`WireRecord::flags`]: bytes were moved that were not seen: what was counted before does not go on here.
pub const WIRE_GAP: u8 = 1 << 4;
/// [`WireRecord::flags`]: sent: of none of the messages that the connection had taken out of the pipe are parts in there
/// still.
pub const WIRE_WHOLE: u8 = 1 << 5;

/// A connection's end is met for the first time. Followed in the ring by nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StreamRecord {
    /// [`RecordKind::Stream`](crate::record::RecordKind::Stream).
    pub kind: u8,
    /// 1: it was seen being made.
    pub from_start: u8,
    /// The address family.
    pub family: u16,
    /// The file descriptor.
    pub fd: i32,
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Inode of the socket.
    pub inode: u64,
    /// Inode of the other end, of unix sockets; 0: not known.
    pub peer_inode: u64,
    /// The addresses.
    pub address: crate::fds::FdAddress,
    /// Explicit padding.
    pub padding: [u8; 4],
}

/// A greeting, a command, or a message of a subscriber has come to its end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CommandRecord {
    /// [`RecordKind::Command`](crate::record::RecordKind::Command).
    pub kind: u8,
    /// [`Ended`](crate::zmtp::Ended).
    pub what: u8,
    /// [`Direction`].
    pub direction: u8,
    /// ZMTP revision; see [`Walk::revision`].
    pub revision: u8,
    /// The file descriptor.
    pub fd: i32,
    /// CLOCK_MONOTONIC at the exit of the system call.
    pub ts_ns: u64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Inode of the socket.
    pub inode: u64,
    /// Of a greeting: the mechanism's name.
    pub mechanism: [u8; 8],
    /// Of a greeting: ZMTP's minor number.
    pub minor: u8,
    /// Of a greeting: 1: the sender is the server of the mechanism.
    pub as_server: u8,
    /// Explicit padding.
    pub padding: [u8; 2],
    /// Bytes used in `data`.
    pub data_len: u32,
    /// The first bytes of the body.
    pub data: [u8; MAX_COMMAND_BYTES],
}

/// What a pipe keeps side by side, as in libzmq 4.1 to 4.3.5: its owner's counts, and the other end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipeEnd {
    /// Messages that its owner has read.
    pub read: u64,
    /// Messages that its owner has written.
    pub written: u64,
    /// Messages that the other end's owner has said to have read.
    pub peers_read: u64,
    /// Address of the other end.
    pub peer: u64,
    /// Who is told of what happens to it: of a connection's end its session.
    pub sink: u64,
}

/// A socket whose pipes are looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piped {
    /// Offset of its vector of pipes.
    pub pipes: u32,
    /// Offset of a [`PipeEnd`] in a pipe.
    pub counts: u32,
    /// Its type, as `ZMQ_TYPE` says it.
    pub socket_type: u32,
    /// Explicit padding.
    pub padding: u32,
    /// By [`Direction`]: address of the pipe that the last message went through; 0: not known.
    pub last: [u64; 2],
}

/// Key of the map of pipes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PipeKey {
    /// Address of the socket's end.
    pub pipe: u64,
    /// Process.
    pub tgid: u32,
    /// Explicit padding.
    pub padding: u32,
}

/// What is known of the pipe at an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipeSeen {
    /// Which of the pipes that were there.
    pub life: u32,
    /// Explicit padding.
    pub padding: u32,
    /// [`pipe_id`] of its socket, by its generation; 0: not seen yet.
    pub socket: u64,
    /// Address of the other end; 0: nothing is known.
    pub peer: u64,
    /// By [`Direction`]: messages that the socket had written to it, and read from it.
    pub counts: [u64; 2],
    /// By [`Direction`]: messages that the connection had taken out of it, and put into it.
    pub wire: [u64; 2],
    /// Address of the connection's session; 0: not seen yet, or there is none.
    pub session: u64,
    /// Inode of the connection; 0: likewise.
    pub inode: u64,
    /// By [`Direction`]: address of the pipe of the socket that was used after it the last time; 0: not known.
    pub next: [u64; 2],
}

/// Bits of an address in user space. Those above number what was at one address, one after the other.
pub const ADDRESS_BITS: u32 = 48;

/// Names a pipe, or a socket, for good, where its address can be another one's later.
pub const fn pipe_id(address: u64, life: u32) -> u64 {
    address & ((1 << ADDRESS_BITS) - 1) | (life as u64) << ADDRESS_BITS
}

/// A pipe whose count a call has changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipeCount {
    /// Its [`pipe_id`].
    pub pipe: u64,
    /// Messages that the socket has written to, or read from, it by now; see [`COUNT_UNSURE`].
    pub count: u64,
}

/// [`PipeCount::count`]: the pipe was not known before, so that it may have been another call that changed it.
pub const COUNT_UNSURE: u64 = 1 << 63;

/// A pipe is met for the first time.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PipeRecord {
    /// [`RecordKind::Pipe`](crate::record::RecordKind::Pipe).
    pub kind: u8,
    /// Explicit padding.
    pub padding: [u8; 3],
    /// Process.
    pub tgid: u32,
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// The socket's address.
    pub handle: u64,
    /// Its [`pipe_id`].
    pub pipe: u64,
    /// Address of the other end: a connection's or, of inproc, another socket's.
    pub peer: u64,
    /// Inode of the connection, where it moved its first messages before it had this pipe; else 0.
    pub inode: u64,
}

#[cfg(feature = "user")]
mod user {
    use super::{
        CommandRecord, Engine, PipeCount, PipeKey, PipeRecord, PipeSeen, Piped, Run, Stream, StreamKey, StreamRecord,
        WireRecord,
    };

    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for CommandRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for Engine {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for PipeRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for Piped {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for PipeKey {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for PipeSeen {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for StreamRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for WireRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for Run {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for Stream {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for StreamKey {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for PipeCount {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_no_hidden_padding() {
        assert_eq!(size_of::<StreamKey>(), 12);
        assert_eq!(size_of::<Walk>(), 6 * 8 + 8);
        assert_eq!(size_of::<Stream>(), 104 + 2 * MAX_COMMAND_BYTES);
        assert_eq!(size_of::<EngineLayout>(), 20);
        assert_eq!(size_of::<Engine>(), 32);
        assert_eq!(size_of::<WireRecord>(), 8 + 16 + 16 + 8 * 8 + 16);
        assert_eq!(size_of::<StreamRecord>(), 40 + size_of::<crate::fds::FdAddress>() + 4);
        assert_eq!(size_of::<CommandRecord>(), 48 + MAX_COMMAND_BYTES);
        assert_eq!(size_of::<Piped>(), 32);
        assert_eq!(size_of::<PipeKey>(), 16);
        assert_eq!(size_of::<PipeSeen>(), 88);
        assert_eq!(size_of::<PipeRecord>(), 48);
    }
}
