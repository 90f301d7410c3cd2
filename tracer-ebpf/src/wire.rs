//! What system calls move over connections: how many bytes, and which messages end in them.
//!
//! All of it is seen at the exit of the system call: the registers still hold the arguments, and the result says how much
//! was moved. The entry is only stamped: when bytes are handed to the kernel the peer may have them before the exit, and
//! whether a queue was empty is known only if nothing was sent while it was read.
//!
//! A connection's direction is a [`Stream`], walked by [`Walk`](tracer_common::zmtp::Walk). The walk's state, and the
//! window of bytes that it looks at, lie in a map while it goes on: on the stack the verifier would follow each value
//! that they can have. tcp's sequence numbers tell whether it goes on where it ended.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::{bpf_loop, bpf_probe_read_user},
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray},
};
use tracer_common::{
    fds::{FdAddress, FdKey, SocketLayout},
    limits::{MAX_COMMAND_BYTES, MAX_FDS, MAX_RUNS, MAX_STREAMS, MAX_THREADS},
    record::{Loss, RecordKind},
    wire::{
        CommandRecord, DECODER_BEFORE_ENCODER, Direction, Engine, PipeCount, Run, Stream, StreamKey, StreamRecord,
        WIRE_CONTINUES, WIRE_FROM_START, WIRE_GAP, WIRE_SEQUENCE, WIRE_SYNCHRONISED, WIRE_WHOLE, WireRecord,
    },
    zmtp::{Ended, MORE, Phase, REVISION_NONE, REVISION_UNKNOWN, SHORT_GREETING, Walk, is_old},
};

use crate::{
    atomic::opaque,
    fds::{self, AF_INET, AF_INET6, AF_UNIX, file_at, layout, now},
    maps::{EVENTS, NO_WAKEUP, lose},
    memory::{message_size, read_kernel, read_user},
    pipes::{self, Connected},
};

/// The directions of connections.
#[map]
static STREAMS: HashMap<StreamKey, Stream> = HashMap::with_max_entries(MAX_STREAMS, BPF_F_NO_PREALLOC);

/// Where libzmq has the queues of its connections.
#[map]
pub static ENGINES: HashMap<FdKey, Engine> = HashMap::with_max_entries(MAX_FDS, BPF_F_NO_PREALLOC);

/// By thread: the system call that it has entered, and when.
#[map]
static ENTERED: LruHashMap<u64, Entered> = LruHashMap::with_max_entries(MAX_THREADS, 0);

/// A walk that goes on.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What a thread has entered.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entered {
    ts_ns: u64,
    number: u64,
}

/// Bytes that are looked at together: as much as a batch of libzmq's.
const WINDOW_BYTES: usize = 8192;
/// The same where messages are larger than that is worth.
const SMALL_WINDOW_BYTES: u64 = 64;
/// Frames above this size make windows small.
const LARGE_FRAME_BYTES: u64 = 1024;
/// Short frames that one step of a walk takes at most.
const SHORT_FRAMES: u32 = 8;
/// Times that a walk may go on: each byte of headers, each frame and each buffer is one at most.
const MAX_STEPS: u32 = 1 << 17;
/// Buffers of one system call that are walked. `UIO_MAXIOV`.
const MAX_PIECES: u64 = 1024;
/// Bytes of one of libzmq's batches: as much as that says nothing of where a frame ends.
const BATCH_BYTES: u64 = 8192;
/// A frame's rest that libzmq's own memory cannot mean.
const ABSURD_REST: u64 = 1 << 40;
/// Bytes of a decoder's object, at most.
const DECODER_BYTES: u64 = 4096;
/// Bytes of a decoder's step that only a frame's body can have: a size has 8.
const HEADER_BYTES: u64 = 8;

// Numbers of system calls on x86_64, `asm/unistd_64.h`.
const READ: u64 = 0;
const WRITE: u64 = 1;
const READV: u64 = 19;
const WRITEV: u64 = 20;
const CONNECT: u64 = 42;
const SENDTO: u64 = 44;
const RECVFROM: u64 = 45;
const SENDMSG: u64 = 46;
const RECVMSG: u64 = 47;
const GETSOCKOPT: u64 = 55;

const MSG_PEEK: u64 = 2;
const SOL_SOCKET: u64 = 1;
const SO_ERROR: u64 = 4;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const EINPROGRESS: i64 = 115;

// Types of sockets, `zmq.h`.
const ZMQ_PUB: u8 = 1;
const ZMQ_SUB: u8 = 2;
const ZMQ_XPUB: u8 = 9;
const ZMQ_XSUB: u8 = 10;

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Piece {
    address: u64,
    len: u64,
}

/// A walk, and what will be said of it.
#[repr(C)]
struct Scratch {
    call: Returned,
    walk: Walk,
    key: StreamKey,
    padding: u32,
    /// What the other direction's greeting said.
    other_revision: u8,
    /// 1: the stream subscribes.
    subscribes: u8,
    /// 1: the last frame was large.
    is_large: u8,
    /// 1: bytes could not be read, or were nonsense.
    is_lost: u8,
    window_at: u32,
    /// Bytes that the system call moved.
    len: u64,
    /// Bytes of the window that are not passed yet.
    window_left: u64,
    /// Bytes that the system call moved and that are not passed yet.
    left: u64,
    /// Bytes passed.
    done: u64,
    /// What `done` was when the last message ended.
    message_end: u64,
    /// The connection's session as its pipe knows it, or will; 0: not known.
    sink: u64,
    piece: Piece,
    /// The next piece's `struct iovec`.
    pieces: u64,
    pieces_left: u64,
    record: WireRecord,
    runs: [Run; MAX_RUNS],
    window: [u8; WINDOW_BYTES],
}

/// A system call that has returned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Returned {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub args: [u64; 4],
    /// What it returned.
    pub ret: i64,
    /// The thread.
    pub pid_tgid: u64,
    /// The ZeroMQ socket whose connection it is; 0: not known.
    pub handle: u64,
}

/// Whether a system call moves bytes: then its entry is stamped.
#[inline(always)]
pub const fn moves(number: u64) -> bool {
    sends(number) || matches!(number, RECVFROM | RECVMSG | READ | READV)
}

/// Whether a system call sends.
#[inline(always)]
const fn sends(number: u64) -> bool {
    matches!(number, SENDTO | SENDMSG | WRITE | WRITEV)
}

/// Whether a system call is one of those looked at.
#[inline(always)]
pub const fn is_wire(number: u64) -> bool {
    moves(number) || is_about_connecting(number)
}

/// Whether an error of it says something of the connection.
#[inline(always)]
pub const fn is_about_connecting(number: u64) -> bool {
    matches!(number, CONNECT | GETSOCKOPT)
}

/// Notes when the thread has entered a system call.
#[inline(always)]
pub fn entered(pid_tgid: u64, number: u64) {
    let entered = Entered { ts_ns: now(), number };
    if let Some(slot) = ENTERED.get_ptr_mut(&pid_tgid) {
        // SAFETY: a live map value, of the current thread.
        unsafe { *slot = entered };
    } else {
        let _ = ENTERED.insert(&pid_tgid, &entered, BPF_ANY.into());
    }
}

#[inline(always)]
fn take_entry(pid_tgid: u64, number: u64) -> u64 {
    let Some(slot) = ENTERED.get_ptr_mut(&pid_tgid) else { return 0 };
    // SAFETY: a live map value, of the current thread.
    let slot = unsafe { &mut *slot };
    let ts_ns = if slot.number == number { slot.ts_ns } else { 0 };
    slot.ts_ns = 0;
    ts_ns
}

/// The kernel's side of a socket.
#[derive(Clone, Copy)]
struct Sock {
    file: u64,
    address: u64,
    family: u16,
    is_tcp: bool,
}

/// The stream socket at a fd of the current process.
#[inline(always)]
fn sock_at(layout: &SocketLayout, fd: i32) -> Option<Sock> {
    let file = file_at(fd);
    if file == 0 {
        return None;
    }
    let socket: u64 = read_kernel(file + u64::from(layout.file_private_data));
    // What another kind of file has there does not point back.
    if socket == 0 || read_kernel::<u64>(socket + u64::from(layout.socket_file)) != file {
        return None;
    }
    let address: u64 = read_kernel(socket + u64::from(layout.socket_sk));
    let family: u16 = read_kernel(address + u64::from(layout.family));
    let kind: u16 = read_kernel(address + u64::from(layout.sock_type));
    if kind != SOCK_STREAM || !matches!(family, AF_INET | AF_INET6 | AF_UNIX) {
        return None;
    }
    let is_tcp = family != AF_UNIX
        && layout.protocol != 0
        && read_kernel::<u16>(address + u64::from(layout.protocol)) == IPPROTO_TCP;
    Some(Sock { file, address, family, is_tcp })
}

#[inline(always)]
fn inode(layout: &SocketLayout, file: u64) -> u64 {
    let inode: u64 = read_kernel(file + u64::from(layout.file_inode));
    read_kernel(inode + u64::from(layout.inode_number))
}

/// The inode of the other end of a unix socket; 0: not known.
#[inline(always)]
fn peer_inode(layout: &SocketLayout, sock: &Sock) -> u64 {
    if sock.family != AF_UNIX || layout.unix_peer == 0 || layout.sock_socket == 0 {
        return 0;
    }
    let peer: u64 = read_kernel(sock.address + u64::from(layout.unix_peer));
    if peer == 0 {
        return 0;
    }
    // A connection that is not accepted yet has no file.
    let socket: u64 = read_kernel(peer + u64::from(layout.sock_socket));
    if socket == 0 {
        return 0;
    }
    let file: u64 = read_kernel(socket + u64::from(layout.socket_file));
    if file == 0 { 0 } else { inode(layout, file) }
}

/// The walk of this CPU. Only one goes on at a time: programs on tracepoints are not interrupted by each other.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: this CPU's own, and nothing else of ours runs on it meanwhile.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// A direction that is known.
#[inline(always)]
fn stream(key: &StreamKey) -> Option<&'static mut Stream> {
    // SAFETY: a live map value, whose direction no other thread moves at the same time.
    STREAMS.get_ptr_mut(key).map(|stream| unsafe { &mut *stream })
}

/// A system call that may have moved bytes over a connection, or made one.
#[inline(always)]
pub fn exited(call: &Returned) {
    let Some(scratch) = scratch() else { return };
    scratch.call = *call;
    match call.number {
        CONNECT => wire_connected(),
        GETSOCKOPT => wire_asked(),
        _ => wire_moved(),
    };
}

/// A connection was accepted: both directions begin.
#[inline(never)]
pub fn accepted(pid_tgid: u64, fd: i32) {
    begin(pid_tgid, fd);
}

/// A fd was closed. Its number may be another one's by now.
#[inline(never)]
pub fn closed(pid_tgid: u64, fd: i32) {
    let tgid = (pid_tgid >> 32) as u32;
    let layout = layout();
    for direction in [Direction::Send, Direction::Receive] {
        let key = StreamKey { tgid, fd, direction: direction as u32 };
        let Some(stream) = STREAMS.get_ptr(&key) else { continue };
        // SAFETY: a live map value.
        let known = unsafe { (*stream).sock };
        if sock_at(layout, fd).is_none_or(|sock| sock.address != known) {
            let _ = STREAMS.remove(&key);
        }
    }
}

#[inline(always)]
fn begin(pid_tgid: u64, fd: i32) {
    let layout = layout();
    let Some(sock) = sock_at(layout, fd) else { return };
    let tgid = (pid_tgid >> 32) as u32;
    for direction in [Direction::Send, Direction::Receive] {
        let key = StreamKey { tgid, fd, direction: direction as u32 };
        let Some(stream) = new_stream(&key) else { return };
        // SAFETY: a live map value.
        unsafe { reset(stream, &sock, inode(layout, sock.file)) };
        // SAFETY: as above.
        unsafe {
            (*stream).walk = Walk::at_start();
            (*stream).from_start = 1;
        }
    }
}

#[inline(always)]
fn new_stream(key: &StreamKey) -> Option<*mut Stream> {
    if let Some(stream) = STREAMS.get_ptr_mut(key) {
        return Some(stream);
    }
    static NEW: Stream = Stream::unknown();
    let _ = STREAMS.insert(key, &NEW, BPF_NOEXIST.into());
    let stream = STREAMS.get_ptr_mut(key);
    if stream.is_none() {
        lose(Loss::StreamTableFull);
    }
    stream
}

/// Another connection has the fd.
///
/// # Safety
/// `stream` is a live map value.
#[inline(always)]
unsafe fn reset(stream: *mut Stream, sock: &Sock, inode: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        (*stream).walk = Walk::unknown();
        (*stream).sock = sock.address;
        (*stream).position = 0;
        (*stream).inode = inode;
        (*stream).has_sequence = 0;
        (*stream).from_start = 0;
        (*stream).is_introduced = 0;
        (*stream).subscribes = 0;
        (*stream).command_len = 0;
        (*stream).is_provisional = 0;
        (*stream).was_complete = 0;
        (*stream).held_frames = 0;
        (*stream).held_messages = 0;
    }
}

/// A connection is being made.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_connected() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    connected(&scratch.call);
    0
}

#[inline(always)]
fn connected(call: &Returned) {
    let fd = call.args[0] as i32;
    let layout = layout();
    let Some(sock) = sock_at(layout, fd) else { return };
    let inode = inode(layout, sock.file);
    if call.ret == 0 || call.ret == -EINPROGRESS {
        begin(call.pid_tgid, fd);
    }
    wire_introduce(inode, 0, 1);
    send_bare(call, fd, inode, call.ret);
}

/// `getsockopt(SO_ERROR)`: what came of a connect.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_asked() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    asked(&scratch.call);
    0
}

#[inline(always)]
fn asked(call: &Returned) {
    if call.args[1] != SOL_SOCKET || call.args[2] != SO_ERROR || call.ret != 0 {
        return;
    }
    let fd = call.args[0] as i32;
    let layout = layout();
    let Some(sock) = sock_at(layout, fd) else { return };
    let Some(error) = read_user::<i32>(call.args[3]) else { return };
    send_bare(call, fd, inode(layout, sock.file), -i64::from(error));
}

/// What a system call says that moves nothing.
#[inline(never)]
fn send_bare(call: &Returned, fd: i32, inode: u64, ret: i64) {
    let Some(mut entry) = EVENTS.reserve::<WireRecord>(0) else {
        lose(Loss::WireRingFull);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved record is ours until submitted.
    unsafe {
        core::ptr::write_bytes(record, 0, 1);
        (*record).kind = RecordKind::Wire as u8;
        (*record).call = call.number as u32;
        (*record).exit_ns = now();
        (*record).tgid = (call.pid_tgid >> 32) as u32;
        (*record).tid = call.pid_tgid as u32;
        (*record).fd = fd;
        (*record).ret = ret;
        (*record).inode = inode;
        (*record).handle = call.handle;
    }
    entry.submit(NO_WAKEUP);
}

/// Tells userspace of the connection's end that the system call is about. 0: the ring is full.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_introduce(inode: u64, peer_inode: u64, from_start: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    introduce(&scratch.call, inode, peer_inode, from_start != 0).into()
}

#[inline(always)]
fn introduce(call: &Returned, inode: u64, peer_inode: u64, from_start: bool) -> bool {
    let Some(mut entry) = EVENTS.reserve::<StreamRecord>(0) else {
        lose(Loss::WireRingFull);
        return false;
    };
    let fd = call.args[0] as i32;
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved record is ours until submitted.
    unsafe {
        (*record).kind = RecordKind::Stream as u8;
        (*record).from_start = from_start.into();
        (*record).fd = fd;
        (*record).ts_ns = now();
        (*record).tgid = (call.pid_tgid >> 32) as u32;
        (*record).tid = call.pid_tgid as u32;
        (*record).inode = inode;
        (*record).peer_inode = peer_inode;
        (*record).padding = [0; 4];
        core::ptr::write_bytes(&raw mut (*record).address, 0, 1);
        (*record).family = fds::read_address(fd, &raw mut (*record).address);
        if call.number == CONNECT {
            (*record).family = read_user(call.args[1]).unwrap_or(0);
            read_wanted(call.args[1], call.args[2], &raw mut (*record).address);
        }
    }
    entry.submit(NO_WAKEUP);
    true
}

/// The address that connect(2) was given: of one that failed the kernel keeps none.
///
/// # Safety
/// `to` is room in a reserved record.
#[inline(always)]
unsafe fn read_wanted(address: u64, len: u64, to: *mut FdAddress) {
    let Some(family) = read_user::<u16>(address) else { return };
    // SAFETY: the caller's promise; the helper checks the sources, and writes no more than each field holds.
    unsafe {
        match family {
            AF_INET => {
                (*to).remote_port = u16::from_be(read_user(address + 2).unwrap_or(0));
                bpf_probe_read_user((&raw mut (*to).remote).cast(), 4, (address + 4) as *const _);
            }
            AF_INET6 => {
                (*to).remote_port = u16::from_be(read_user(address + 2).unwrap_or(0));
                bpf_probe_read_user((&raw mut (*to).remote).cast(), 16, (address + 8) as *const _);
            }
            AF_UNIX => {
                let len = len.wrapping_sub(2);
                if len == 0 || len > tracer_common::limits::MAX_PATH_BYTES as u64 {
                    return;
                }
                (*to).path_len = len as u8;
                (*to).path_is_remote = 1;
                bpf_probe_read_user((&raw mut (*to).path).cast(), len as u32, (address + 2) as *const _);
            }
            _ => {}
        }
    }
}

/// Bytes may have been moved. In steps, each of which the kernel verifies by itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_moved() -> u64 {
    if wire_buffers() != 0 && wire_stream() != 0 {
        wire_queue();
        wire_walk();
    }
    0
}

/// Where the bytes are, and how many were to be moved. 0: none were.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_buffers() -> u64 {
    scratch().is_some_and(find_buffers).into()
}

#[inline(always)]
fn find_buffers(scratch: &mut Scratch) -> bool {
    let Returned { number, args, ret, .. } = scratch.call;
    scratch.len = if ret > 0 { ret as u64 } else { 0 };
    scratch.pieces = 0;
    scratch.pieces_left = 0;
    scratch.piece = Piece { address: args[1], len: args[2] };
    scratch.record.wanted = args[2];
    match number {
        SENDTO | WRITE | READ => return true,
        RECVFROM => return args[3] & MSG_PEEK == 0,
        READV | WRITEV => {
            scratch.pieces = args[1];
            scratch.pieces_left = args[2];
        }
        _ => {
            if number == RECVMSG && args[2] & MSG_PEEK != 0 {
                return false;
            }
            // `struct user_msghdr`: the iovecs at 16, their number at 24.
            let Some([iovecs, count]) = read_user::<[u64; 2]>(args[1] + 16) else { return false };
            scratch.pieces = iovecs;
            scratch.pieces_left = count;
        }
    }
    if scratch.pieces_left > MAX_PIECES {
        scratch.pieces_left = MAX_PIECES;
    }
    scratch.piece = Piece::default();
    scratch.record.wanted = sum_of_pieces(scratch.pieces, scratch.pieces_left);
    true
}

/// How much fits into a few buffers; of more it is not known.
#[inline(always)]
fn sum_of_pieces(pieces: u64, count: u64) -> u64 {
    const FEW: usize = 8;
    let mut few = [Piece { address: 0, len: 0 }; FEW];
    if count > FEW as u64 {
        return u64::MAX;
    }
    // SAFETY: at most the size of `few`; the helper checks the source.
    let status = unsafe {
        bpf_probe_read_user(few.as_mut_ptr().cast(), (count as usize * size_of::<Piece>()) as u32, pieces as *const _)
    };
    if status != 0 { u64::MAX } else { few.iter().fold(0, |sum, piece| sum.wrapping_add(piece.len)) }
}

/// Which direction of which connection it is. 0: of none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_stream() -> u64 {
    scratch().is_some_and(find_stream).into()
}

#[inline(always)]
fn find_stream(scratch: &mut Scratch) -> bool {
    let Returned { number, args, ret, pid_tgid, handle } = scratch.call;
    let fd = args[0] as i32;
    let tgid = (pid_tgid >> 32) as u32;
    let direction = if sends(number) { Direction::Send } else { Direction::Receive };
    let layout = layout();
    let Some(sock) = sock_at(layout, fd) else { return false };
    let key = StreamKey { tgid, fd, direction: direction as u32 };
    let Some(stream) = new_stream(&key) else { return false };
    // SAFETY: a live map value, whose direction no other thread moves at the same time.
    let stream = unsafe { &mut *stream };
    if stream.sock == 0 && stream.walk.is_synchronised() {
        // Userspace knows where it is.
        stream.sock = sock.address;
        stream.inode = inode(layout, sock.file);
    } else if stream.sock != sock.address {
        // SAFETY: as above.
        unsafe { reset(stream, &sock, inode(layout, sock.file)) };
    }
    if stream.is_introduced == 0 {
        let from_start = stream.from_start.into();
        stream.is_introduced = wire_introduce(stream.inode, peer_inode(layout, &sock), from_start) as u8;
    }
    scratch.key = key;
    let record = &mut scratch.record;
    record.kind = RecordKind::Wire as u8;
    record.flags = if stream.from_start != 0 { WIRE_FROM_START } else { 0 };
    record.direction = direction as u8;
    record.inside = 0;
    record.call = number as u32;
    record.entry_ns = take_entry(pid_tgid, number);
    record.exit_ns = now();
    record.tgid = tgid;
    record.tid = pid_tgid as u32;
    record.fd = fd;
    record.sequence = 0;
    record.ret = ret;
    record.inode = stream.inode;
    record.handle = handle;
    record.pipe = 0;
    record.pipe_count = 0;
    scratch.sink = 0;
    record.position = stream.position;
    record.frames = 0;
    record.messages = 0;
    record.commands = 0;
    record.runs = 0;
    if sock.is_tcp {
        follow_sequence(layout, &sock, direction, stream, record, scratch.len);
    }
    true
}

/// What the queue between the connection and its socket says, and of a connection of which nothing is known yet, where in
/// its frames it is.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_queue() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let key = scratch.key;
    let Some(stream) = stream(&key) else { return 0 };
    // The pipe is made while what ends the handshake is decoded: messages behind it in the same system call came before.
    if scratch.len == 0 && stream.has_pipe != 0 {
        return 0;
    }
    let Some(engine) = ENGINES.get_ptr(&FdKey { tgid: key.tgid, fd: key.fd }) else { return 0 };
    // SAFETY: a live map value.
    let engine = unsafe { &*engine };
    if engine.layout.session == 0 {
        return 0;
    }
    count_pipe(engine, scratch);
    stream.has_pipe |= (scratch.record.pipe != 0) as u8;
    if key.direction == Direction::Receive as u32
        && scratch.len > 0
        && (!stream.walk.is_synchronised() || stream.is_provisional != 0)
    {
        join_receive(engine, stream);
    }
    1
}

/// Walks what was moved, and says what it was.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_walk() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let Some(stream) = stream(&scratch.key) else { return 0 };
    let is_sent = scratch.key.direction == Direction::Send as u32;
    let has_engine = scratch.record.pipe != 0;
    let len = scratch.len;
    if is_sent && !has_engine && !stream.walk.is_synchronised() && stream.was_complete != 0 {
        stream.walk.join(0, false);
        stream.is_provisional = 1;
    }
    if len > 0 && stream.walk.is_synchronised() {
        let greets = matches!(stream.walk.phase(), Phase::Greeting);
        scratch.walk = stream.walk;
        scratch.subscribes = stream.subscribes;
        walk(scratch, len);
        stream.walk = scratch.walk;
        if greets {
            wire_recognise(scratch.key.direction.into(), 1 - (scratch.key.direction & 1) as u64);
            wire_recognise(1 - (scratch.key.direction & 1) as u64, scratch.key.direction.into());
        }
        if scratch.is_lost != 0 {
            stream.walk.lose();
            stream.is_provisional = 0;
            stream.held_frames = 0;
            stream.held_messages = 0;
            // What may have been counted on the way was none.
            scratch.record.flags |= WIRE_GAP;
        }
    }
    let is_complete = len > 0 && len == scratch.record.wanted;
    stream.position = stream.position.wrapping_add(len);
    stream.was_complete = (is_complete && len != BATCH_BYTES).into();
    finish(scratch, stream);
    if is_sent && is_complete && has_engine && !stream.walk.is_synchronised() {
        wire_join_send();
    }
    1
}

/// Says what the system call has moved.
#[inline(always)]
fn finish(scratch: &mut Scratch, stream: &mut Stream) {
    let walk = &stream.walk;
    let record = &mut scratch.record;
    if stream.is_provisional != 0 && walk.is_at_boundary() {
        stream.is_provisional = 0;
    }
    // Where messages ended in what was kept back is not said: that matters only of what was sent.
    let is_received = record.direction == Direction::Receive as u8;
    if stream.is_provisional != 0 && is_received {
        stream.held_frames += record.frames;
        stream.held_messages += record.messages;
    }
    if walk.is_synchronised() && stream.is_provisional == 0 {
        record.flags |= WIRE_SYNCHRONISED;
        record.frames += stream.held_frames;
        record.messages += stream.held_messages;
        stream.held_frames = 0;
        stream.held_messages = 0;
        record.inside = if walk.is_in_rest() {
            3
        } else if walk.is_in_last_part() {
            2
        } else {
            !walk.is_at_boundary() as u8
        };
    } else {
        record.runs = 0;
    }
    record.total_messages = walk.messages;
    if is_received && record.pipe == 0 && record.messages != 0 && stream.from_start != 0 && scratch.sink != 0 {
        pipes::moved_before(scratch.key.tgid, scratch.sink, stream.inode);
    }
    wire_output();
}

#[inline(always)]
fn follow_sequence(
    layout: &SocketLayout,
    sock: &Sock,
    direction: Direction,
    stream: &mut Stream,
    record: &mut WireRecord,
    len: u64,
) {
    let offset = if matches!(direction, Direction::Send) { layout.write_sequence } else { layout.copied_sequence };
    if offset == 0 {
        return;
    }
    let mut sequence: u32 = read_kernel(sock.address + u64::from(offset));
    let mut missed = sequence.wrapping_sub(len as u32).wrapping_sub(stream.sequence);
    if missed == 1 && stream.has_sequence != 0 && matches!(direction, Direction::Receive) {
        // The peer's FIN has a number, too, and is no byte.
        sequence = sequence.wrapping_sub(1);
        missed = 0;
    }
    if stream.has_sequence != 0 && missed != 0 {
        record.flags |= WIRE_GAP;
        stream.walk.lose();
        stream.is_provisional = 0;
        stream.was_complete = 0;
        stream.position = stream.position.wrapping_add(u64::from(missed));
        record.position = stream.position;
    }
    stream.sequence = sequence;
    stream.has_sequence = 1;
    record.sequence = sequence;
    record.flags |= WIRE_SEQUENCE;
}

/// How much had gone through the pipe between the connection and its socket.
#[inline(always)]
fn count_pipe(engine: &Engine, scratch: &mut Scratch) {
    let layout = &engine.layout;
    let Some(session) = read_user::<u64>(engine.address + u64::from(layout.session)) else { return };
    let is_sent = scratch.key.direction == Direction::Send as u32;
    scratch.sink = session.wrapping_add(u64::from(layout.sink));
    let pipe = || {
        pipes::of_connection(&Connected {
            tgid: scratch.key.tgid,
            is_sent,
            own: read_user::<u64>(session + u64::from(layout.pipe))?,
            counts: layout.counts.into(),
            session,
            inode: scratch.record.inode,
        })
    };
    let Some(PipeCount { pipe, count }) = pipe() else { return };
    scratch.record.pipe = pipe;
    scratch.record.pipe_count = count;
    if is_sent && read_user::<u8>(session + u64::from(layout.incomplete)) == Some(0) {
        scratch.record.flags |= WIRE_WHOLE;
    }
}

/// Where the encoder is, once all that it made has been sent, so is the stream.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_join_send() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let key = scratch.key;
    let Some(engine) = ENGINES.get_ptr(&FdKey { tgid: key.tgid, fd: key.fd }) else { return 0 };
    let Some(stream) = stream(&key) else { return 0 };
    // SAFETY: a live map value.
    join_send(unsafe { &*engine }, stream);
    1
}

/// Whether the frames of a connection are those of ZMTP 1.0.
#[inline(always)]
fn speaks_old(engine: &Engine) -> bool {
    read_user(engine.address + u64::from(engine.layout.greeting)).is_some_and(|greeting| is_old(&greeting))
}

#[inline(always)]
fn join_send(engine: &Engine, stream: &mut Stream) {
    /// `encoder_base_t` behind its table of virtual functions, as in 4.1 to 4.3.5: where it writes from, how much, the
    /// next step, whether that begins a message, its buffer's size, the buffer, the message under way.
    type Encoder = [u64; 8];
    let rest = || {
        let encoder = read_user::<u64>(engine.address + u64::from(engine.layout.encoder))?;
        let [_, to_write, _, _, ends_message, size, buffer, message] = read_user::<Encoder>(encoder + 8)?;
        if buffer == 0 || size == 0 || size > ABSURD_REST || to_write > ABSURD_REST {
            return None;
        }
        if message == 0 {
            return Some(0);
        }
        if ends_message as u8 != 0 {
            return Some(to_write);
        }
        // Its header is under way.
        let (kind, content) = (engine.layout.message_type, engine.layout.message_content);
        Some(to_write + message_size(message, kind.into(), content.into())?)
    };
    if let Some(rest) = rest()
        && rest < ABSURD_REST
    {
        stream.walk.join(rest, speaks_old(engine));
    }
}

/// The decoder has dealt with all that was received before this system call.
#[inline(always)]
fn join_receive(engine: &Engine, stream: &mut Stream) {
    let rest = || {
        let decoder = engine.address + u64::from(engine.layout.encoder) - DECODER_BEFORE_ENCODER;
        let decoder = read_user::<u64>(decoder)?;
        // `decoder_base_t`: the next step, where it reads to, how much.
        let [to, rest] = read_user::<[u64; 2]>(decoder + 24)?;
        let is_body = rest > HEADER_BYTES || to.wrapping_sub(decoder) >= DECODER_BYTES;
        (decoder != 0 && rest > 0 && rest < ABSURD_REST && is_body).then_some(rest)
    };
    if let Some(rest) = rest() {
        if stream.is_provisional == 0 || stream.walk.skip != rest {
            stream.walk.join(rest, speaks_old(engine));
            stream.held_frames = 0;
            stream.held_messages = 0;
        }
        stream.is_provisional = 0;
    }
}

/// Walks `len` bytes.
#[inline(always)]
fn walk(scratch: &mut Scratch, len: u64) {
    scratch.left = len;
    scratch.done = 0;
    scratch.message_end = 0;
    scratch.window_left = 0;
    scratch.window_at = 0;
    scratch.is_lost = 0;
    scratch.other_revision = REVISION_UNKNOWN;
    if matches!(scratch.walk.phase(), Phase::Greeting) {
        let other = StreamKey { direction: 1 - (scratch.key.direction & 1), ..scratch.key };
        if let Some(stream) = STREAMS.get_ptr(&other) {
            // SAFETY: a live map value.
            scratch.other_revision = unsafe { (*stream).walk.revision() };
        }
    }
    // SAFETY: a function of this program, without a context.
    unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0) };
    if scratch.left > 0 {
        scratch.is_lost = 1;
    }
}

/// Ends a direction's greeting if the other one has shown by now that its sender knows no versions.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_recognise(direction: u64, other: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let key = scratch.key;
    let Some(other) = STREAMS.get_ptr(&StreamKey { direction: other as u32 & 1, ..key }) else { return 0 };
    // SAFETY: a live map value.
    let revision = unsafe { (*other).walk.revision() };
    scratch.key.direction = direction as u32 & 1;
    if let Some(stream) = stream(&scratch.key)
        && matches!(stream.walk.recognise(revision), Ended::Identity)
    {
        scratch.walk = stream.walk;
        wire_tell(Ended::Identity as u64);
    }
    scratch.key = key;
    1
}

/// One step of a walk, as `bpf_loop` calls it; 1 ends it.
extern "C" fn step(_: u64, _: *mut c_void) -> u64 {
    // The compiler knows that it is no more, the verifier does not.
    opaque(wire_step() as usize) as u64 & 1
}

/// The same. The kernel verifies functions that have a name of their own once, and not once a way to each call of them.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_step() -> u64 {
    let Some(scratch) = scratch() else { return 1 };
    if scratch.left == 0 {
        return 1;
    }
    if scratch.piece.len == 0 {
        return next_piece(scratch);
    }
    let here = if scratch.left < scratch.piece.len { scratch.left } else { scratch.piece.len };
    let skip = scratch.walk.skip;
    if skip > 0 {
        let len = if skip < here { skip } else { here };
        if scratch.walk.is_in_command() || scratch.subscribes != 0 {
            wire_keep(len);
        }
        scratch.is_large = (skip > LARGE_FRAME_BYTES).into();
        pass(scratch, len);
        let ended = scratch.walk.pass(len);
        return end(scratch, ended);
    }
    if scratch.window_left == 0 && !fill(scratch, here) {
        scratch.is_lost = 1;
        return 1;
    }
    if scratch.walk.expects_frame2() && scratch.subscribes == 0 && wire_short_frames(here) != 0 {
        return 0;
    }
    if matches!(scratch.walk.phase(), Phase::Greeting) {
        let ended = scratch.walk.recognise(scratch.other_revision);
        if !matches!(scratch.walk.phase(), Phase::Greeting) {
            return end(scratch, ended);
        }
    }
    let byte = scratch.window[scratch.window_at as usize & (WINDOW_BYTES - 1)];
    pass(scratch, 1);
    let ended = scratch.walk.take(byte, scratch.other_revision);
    end(scratch, ended)
}

/// See [`short_frames`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_short_frames(here: u64) -> u64 {
    scratch().is_some_and(|scratch| short_frames(scratch, here)).into()
}

/// Takes as many whole short frames of messages as the window begins with. False: it begins with none.
#[inline(always)]
fn short_frames(scratch: &mut Scratch, here: u64) -> bool {
    let room = if scratch.window_left < here { scratch.window_left } else { here };
    let runs = scratch.record.runs as usize;
    let is_sent = scratch.key.direction == Direction::Send as u32;
    let start = scratch.window_at as usize;
    // The last run goes on in registers; the first message may have begun earlier.
    let begun = scratch.done - scratch.message_end;
    let Some(last) = scratch.runs.get(runs.wrapping_sub(1) & (MAX_RUNS - 1)) else { return false };
    let mut run = if runs > 0 { *last } else { Run { bytes: 0, count: 0 } };
    let (mut passed, mut ended, mut frames, mut messages) = (0u64, 0u64, 0u32, 0u32);
    for _ in 0..SHORT_FRAMES {
        let at = start + passed as usize;
        if passed + 2 > room {
            break;
        }
        let flags = scratch.window[at & (WINDOW_BYTES - 1)];
        let whole = u64::from(scratch.window[(at + 1) & (WINDOW_BYTES - 1)]) + 2;
        if flags & !MORE != 0 || passed + whole > room {
            break;
        }
        let is_last = flags & MORE == 0;
        if is_last && is_sent {
            let bytes = (passed + whole - ended + if ended == 0 { begun } else { 0 }) as u32;
            if bytes != run.bytes {
                // Another run: by the general way.
                if frames > 0 {
                    break;
                }
                return false;
            }
            run.count += 1;
            ended = passed + whole;
        }
        passed += whole;
        frames += 1;
        messages += is_last as u32;
    }
    if frames == 0 {
        return false;
    }
    if ended > 0 && runs > 0 {
        scratch.runs[(runs - 1) & (MAX_RUNS - 1)] = run;
        scratch.message_end = scratch.done + ended;
    }
    scratch.is_large = 0;
    scratch.record.frames += frames;
    scratch.record.messages += messages;
    scratch.walk.count(frames, messages);
    pass(scratch, passed);
    true
}

#[inline(always)]
fn next_piece(scratch: &mut Scratch) -> u64 {
    scratch.window_left = 0;
    let piece = if scratch.pieces_left > 0 { read_user::<Piece>(scratch.pieces) } else { None };
    let Some(piece) = piece else {
        scratch.is_lost = 1;
        return 1;
    };
    scratch.piece = piece;
    scratch.pieces += size_of::<Piece>() as u64;
    scratch.pieces_left -= 1;
    0
}

/// Copies the next bytes into the window.
#[inline(always)]
fn fill(scratch: &mut Scratch, here: u64) -> bool {
    let most = if scratch.is_large != 0 { SMALL_WINDOW_BYTES } else { WINDOW_BYTES as u64 };
    let len = if here < most { here } else { most };
    scratch.window_at = 0;
    scratch.window_left = len;
    // SAFETY: `len` is at most the window's size; the helper checks the source.
    unsafe {
        bpf_probe_read_user(scratch.window.as_mut_ptr().cast(), len as u32, scratch.piece.address as *const _) == 0
    }
}

#[inline(always)]
fn pass(scratch: &mut Scratch, len: u64) {
    scratch.left -= len;
    scratch.done += len;
    scratch.piece.address += len;
    scratch.piece.len -= len;
    if len < scratch.window_left {
        scratch.window_left -= len;
        scratch.window_at += len as u32;
    } else {
        scratch.window_left = 0;
    }
}

/// Deals with what has ended; 1 ends the walk.
#[inline(always)]
fn end(scratch: &mut Scratch, ended: Ended) -> u64 {
    match ended {
        Ended::Nothing | Ended::Rest => return 0,
        Ended::Message => {
            scratch.record.frames += 1;
            scratch.record.messages += 1;
            if scratch.key.direction == Direction::Send as u32 {
                add_run(scratch);
            }
            if scratch.subscribes == 0 {
                return 0;
            }
        }
        Ended::Part => {
            scratch.record.frames += 1;
            return 0;
        }
        Ended::Nonsense => {
            scratch.is_lost = 1;
            return 1;
        }
        Ended::Command => scratch.record.commands += 1,
        Ended::Greeting | Ended::Identity => {}
    }
    wire_tell(ended as u64);
    0
}

#[inline(always)]
fn add_run(scratch: &mut Scratch) {
    let bytes = (scratch.done - scratch.message_end) as u32;
    scratch.message_end = scratch.done;
    let runs = scratch.record.runs as usize;
    if runs > 0 {
        let last = &mut scratch.runs[(runs - 1) & (MAX_RUNS - 1)];
        if last.bytes == bytes {
            last.count += 1;
            return;
        }
    }
    if runs >= MAX_RUNS {
        scratch.record.flags |= WIRE_CONTINUES | WIRE_SYNCHRONISED;
        wire_output();
        scratch.record.flags &= !(WIRE_CONTINUES | WIRE_SYNCHRONISED);
        scratch.record.runs = 0;
    }
    let runs = scratch.record.runs as usize;
    scratch.runs[runs & (MAX_RUNS - 1)] = Run { bytes, count: 1 };
    scratch.record.runs = runs as u32 + 1;
}

/// Sends the record with its runs.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_output() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let runs = scratch.record.runs as usize;
    let runs = if runs > MAX_RUNS { MAX_RUNS } else { runs };
    const { assert!(offset_of!(Scratch, runs) == offset_of!(Scratch, record) + size_of::<WireRecord>()) };
    // SAFETY: a prefix of record and runs, which lie side by side and are plain data.
    let bytes = unsafe {
        core::slice::from_raw_parts(
            (&raw const scratch.record).cast::<u8>(),
            size_of::<WireRecord>() + runs * size_of::<Run>(),
        )
    };
    if EVENTS.output::<[u8]>(bytes, NO_WAKEUP).is_err() {
        lose(Loss::WireRingFull);
    }
    1
}

/// Keeps what comes of a command.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_keep(len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let Some(stream) = stream(&scratch.key) else { return 0 };
    const MOST: u64 = MAX_COMMAND_BYTES as u64;
    let at = u64::from(stream.command_len);
    if at >= MOST {
        return 0;
    }
    let len = if len < MOST { len } else { MOST };
    // SAFETY: `command` has room for twice the most that there is, in front of `at` and behind it; the helper checks the
    // source.
    unsafe {
        let to = stream.command.as_mut_ptr().add(at as usize);
        bpf_probe_read_user(to.cast(), len as u32, scratch.piece.address as *const _)
    };
    let end = at + len;
    stream.command_len = if end < MOST { end } else { MOST } as u32;
    1
}

/// Tells userspace of a greeting or command: what has [`Ended`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wire_tell(what: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let Some(stream) = stream(&scratch.key) else { return 0 };
    let len = stream.command_len;
    stream.command_len = 0;
    if what == Ended::Message as u64 {
        // Before ZMTP 3.1 a message that begins with 1 or 0 subscribes; others are the program's own.
        if len == 0 || stream.command[0] > 1 {
            return 0;
        }
        scratch.record.frames -= 1;
        scratch.record.messages -= 1;
        scratch.record.commands += 1;
    }
    let is_greeted_by_subscriber = what == Ended::Greeting as u64
        && scratch.walk.as_server == SHORT_GREETING
        && matches!(scratch.walk.minor, ZMQ_SUB | ZMQ_XSUB);
    // Without versions nobody says what he is: it follows from what this end's socket is.
    let is_unversioned = what == Ended::Identity as u64 && scratch.walk.revision() == REVISION_NONE;
    if is_greeted_by_subscriber
        || is_subscriber(&stream.command, len)
        || is_unversioned && is_subscription(&scratch.key)
    {
        stream.subscribes = 1;
        scratch.subscribes = 1;
    }
    let Some(mut entry) = EVENTS.reserve::<CommandRecord>(0) else {
        lose(Loss::WireRingFull);
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved record is ours until submitted.
    unsafe {
        (*record).kind = RecordKind::Command as u8;
        (*record).what = what as u8;
        (*record).direction = scratch.key.direction as u8;
        (*record).revision = scratch.walk.revision();
        (*record).fd = scratch.key.fd;
        (*record).ts_ns = scratch.record.exit_ns;
        (*record).tgid = scratch.key.tgid;
        (*record).tid = scratch.record.tid;
        (*record).inode = scratch.record.inode;
        (*record).mechanism = scratch.walk.mechanism;
        (*record).minor = scratch.walk.minor;
        (*record).as_server = scratch.walk.as_server;
        (*record).padding = [0; 2];
        (*record).data_len = len;
        (*record).data = *stream.command.as_ptr().cast();
    }
    entry.submit(NO_WAKEUP);
    1
}

/// Whether what goes this way are subscriptions, by the type of this end's socket.
#[inline(always)]
fn is_subscription(key: &StreamKey) -> bool {
    let Some(engine) = ENGINES.get_ptr(&FdKey { tgid: key.tgid, fd: key.fd }) else { return false };
    // SAFETY: a live map value.
    let socket_type = unsafe { (*engine).socket_type };
    if key.direction == Direction::Send as u32 {
        matches!(socket_type, ZMQ_SUB | ZMQ_XSUB)
    } else {
        matches!(socket_type, ZMQ_PUB | ZMQ_XPUB)
    }
}

/// Whether a command is the READY of a SUB or XSUB, or what a PLAIN client says instead, as all that are known write it.
#[inline(always)]
fn is_subscriber(command: &[u8; 2 * MAX_COMMAND_BYTES], len: u32) -> bool {
    const READY: usize = 6;
    const INITIATE: usize = 9;
    len >= 25 && command[0] as usize + 1 == READY && command[1] == b'R' && names_subscriber::<READY>(command)
        || len >= 28
            && command[0] as usize + 1 == INITIATE
            && command[1] == b'I'
            && names_subscriber::<INITIATE>(command)
}

/// Whether the first property, behind the name of the command, is the socket type, and that one that subscribes.
#[inline(always)]
const fn names_subscriber<const AT: usize>(command: &[u8; 2 * MAX_COMMAND_BYTES]) -> bool {
    // The lengths of the property's name and of its value, the name, `Socket-Type`, and the value.
    let (value_len, value) = (command[AT + 15], AT + 16);
    let is_type = command[AT] == 11 && command[AT + 1] == b'S';
    let is_sub = value_len == 3 && command[value] == b'S';
    let is_xsub = value_len == 4 && command[value] == b'X' && command[value + 1] == b'S';
    is_type
        && (is_sub && command[value + 1] == b'U' && command[value + 2] == b'B' || is_xsub && command[value + 2] == b'U')
}
