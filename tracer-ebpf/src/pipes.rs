//! Which pipes of its socket a message went through: those whose count of messages a call has changed.
//!
//! A socket counts the messages that it writes to, and reads from, each of its pipes, whole ones. What the counts were
//! when the last message was complete is remembered here, so that nothing depends on what reaches userspace.
//!
//! libzmq uses the memory of its pipes again. The pipes that were at an address are told apart by what one of them
//! cannot have: another end, another socket, a count that went back, the session of another connection.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::{bpf_loop, bpf_probe_read_user},
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray},
};
use tracer_common::{
    function::{Class, Cookie},
    limits::{INLINE_DATA_BYTES, MAX_FIRST_MESSAGES, MAX_PIPES, MAX_SOCKET_PIPES},
    record::{CallRecord, FLAG_DATA_APART, FLAG_DATA_LOST, Loss, RecordKind, SocketAddress, SocketConfig},
    wire::{ADDRESS_BITS, COUNT_UNSURE, Direction, PipeCount, PipeEnd, PipeKey, PipeRecord, PipeSeen, Piped, pipe_id},
};

use crate::{
    atomic::opaque,
    fds::now,
    maps::{EVENTS, NO_WAKEUP, lose},
    memory::{copy_own, read_user},
};

/// Sockets whose pipes are looked at.
#[map]
static PIPED: HashMap<SocketAddress, Piped> = HashMap::with_max_entries(MAX_PIPES, BPF_F_NO_PREALLOC);

/// Their pipes. None is ever removed: another one at its address takes its place.
#[map]
static PIPES: HashMap<PipeKey, PipeSeen> = HashMap::with_max_entries(MAX_PIPES, BPF_F_NO_PREALLOC);

/// By the session, as the pipe that it will have knows it: the inode of a connection that has moved messages already.
#[map]
static FIRST: LruHashMap<PipeKey, u64> = LruHashMap::with_max_entries(MAX_FIRST_MESSAGES, 0);

/// The pipes of one socket, and what has changed.
#[map]
static LOOK: PerCpuArray<Look> = PerCpuArray::with_max_entries(1, 0);

/// So often a pipe that is known is told of again, lest userspace missed it.
const REPEAT: u64 = 1 << 12;
/// Types of sockets whose messages can go through several pipes: PUB, SUB, XPUB, XSUB, RADIO.
const FAN_OUT: u32 = 1 << 1 | 1 << 2 | 1 << 9 | 1 << 10 | 1 << 14;
/// It reads what its subscribers have sent before it is asked for.
const XPUB: u32 = 9;

const PIPES_LEN: usize = MAX_SOCKET_PIPES as usize;

#[repr(C)]
struct Look {
    /// The thread. Where the kernel lets another one run on this CPU before we are done, it may be another one's.
    pid_tgid: u64,
    key: SocketAddress,
    /// Names the socket for good, as [`pipe_id`] does a pipe.
    socket: u64,
    /// Of the socket.
    piped: Piped,
    /// [`Direction`].
    direction: u32,
    /// Pipes of the socket that are looked at.
    len: u32,
    /// How many are in `changed`. In a map, since the verifier would follow each value that a register can have.
    changed_len: u32,
    /// 1: nothing was known of the socket.
    is_first: u32,
    /// Their addresses.
    pipes: [u64; PIPES_LEN],
    changed: [PipeCount; PIPES_LEN],
}

#[inline(always)]
fn look() -> Option<&'static mut Look> {
    // SAFETY: this CPU's own; that no other thread has changed it meanwhile is checked before it is believed.
    LOOK.get_ptr_mut(0).map(|look| unsafe { &mut *look })
}

#[inline(always)]
fn seen_at(pipe: u64, tgid: u32) -> Option<&'static mut PipeSeen> {
    // SAFETY: a live map value; one thread at a time uses a socket, and its connection changes other fields.
    PIPES.get_ptr_mut(&PipeKey { pipe, tgid, padding: 0 }).map(|seen| unsafe { &mut *seen })
}

/// What is known of a pipe that is met; nothing, as long as its `peer` is 0. `None`: there is no room.
#[inline(always)]
fn seen_or_new(pipe: u64, tgid: u32) -> Option<&'static mut PipeSeen> {
    static NEW: PipeSeen = PipeSeen {
        life: 0,
        padding: 0,
        socket: 0,
        peer: 0,
        counts: [0; 2],
        wire: [0; 2],
        session: 0,
        inode: 0,
        next: [0; 2],
    };
    seen_at(pipe, tgid).or_else(|| {
        let _ = PIPES.insert(&PipeKey { pipe, tgid, padding: 0 }, &NEW, BPF_NOEXIST.into());
        let seen = seen_at(pipe, tgid);
        if seen.is_none() {
            lose(Loss::PipeTableFull);
        }
        seen
    })
}

/// Another pipe is at the address now.
#[inline(always)]
fn renew(seen: &mut PipeSeen, peer: u64) {
    seen.life = seen.life.wrapping_add(1);
    seen.socket = 0;
    seen.peer = peer;
    seen.counts = [0; 2];
    seen.wire = [0; 2];
    seen.session = 0;
    seen.inode = 0;
    seen.next = [0; 2];
}

/// Puts into the data of a call that has succeeded which pipes its message used; of one that changes what a socket is
/// connected to, only looks at them.
#[inline(always)]
pub fn note(
    call: &mut CallRecord,
    cookie: Cookie,
    handle: u64,
    pid_tgid: u64,
    layout: impl FnOnce() -> Option<&'static SocketConfig>,
) {
    let is_of = |class: Class| cookie.class_bit() == class.bit();
    let Some(look) = look() else { return };
    look.pid_tgid = pid_tgid;
    look.key = SocketAddress { handle, tgid: call.tgid, padding: 0 };
    look.socket = pipe_id(handle, call.generation);
    look.direction = if is_of(Class::Recv) { Direction::Receive } else { Direction::Send } as u32;
    look.changed_len = 0;
    look.is_first = 0;
    let mut piped = PIPED.get_ptr(&look.key);
    if piped.is_none() {
        let Some(layout) = layout().filter(|layout| layout.pipes != 0) else { return };
        let socket_type = read_user::<u8>(handle.wrapping_add(u64::from(layout.socket_type)));
        let new = Piped {
            pipes: layout.pipes,
            counts: layout.pipe_counts,
            socket_type: socket_type.unwrap_or(0).into(),
            padding: 0,
            last: [0; 2],
        };
        look.is_first = 1;
        let _ = PIPED.insert(&look.key, &new, BPF_NOEXIST.into());
        piped = PIPED.get_ptr(&look.key);
    }
    let Some(piped) = piped else { return lose(Loss::PipeTableFull) };
    // SAFETY: a live map value. Field by field, since a call of `memcpy` lacks what the kernel asks of functions.
    unsafe {
        look.piped.pipes = (*piped).pipes;
        look.piped.counts = (*piped).counts;
        look.piped.socket_type = (*piped).socket_type;
        look.piped.last = (*piped).last;
    }
    if is_of(Class::Endpoint) {
        pipes_look();
        return;
    }
    if pipes_take_turns() == 0 {
        pipes_look();
    }
    let changed = look.changed_len;
    put(call, look, changed);
    if look.pid_tgid != pid_tgid {
        call.data_len = 0;
        call.flags = call.flags & !FLAG_DATA_APART | FLAG_DATA_LOST;
    }
}

/// A message that goes through one pipe mostly goes through that which came after the last one before. 1: so it is.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipes_take_turns() -> u64 {
    let Some(look) = look() else { return 0 };
    let direction = look.direction as usize & 1;
    let pipe = look.piped.last[direction];
    if pipe == 0 || !look.uses_one_pipe() {
        return 0;
    }
    let Some(last) = seen_at(pipe, look.key.tgid) else { return 0 };
    let next = last.next[direction];
    if next == pipe {
        return look.is_used(pipe, last).into();
    }
    let Some(seen) = seen_at(next, look.key.tgid) else { return 0 };
    let is_used = look.is_used(next, seen);
    if is_used {
        look.remember(next);
    }
    is_used.into()
}

/// Looks at all pipes of the socket, or at those that it got last.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipes_look() -> u64 {
    let Some(look) = look() else { return 0 };
    let vector = look.key.handle.wrapping_add(u64::from(look.piped.pipes));
    let Some([begin, end]) = read_user::<[u64; 2]>(vector) else { return 0 };
    let len = end.wrapping_sub(begin) / 8;
    let len = if len > u64::from(MAX_SOCKET_PIPES) { MAX_SOCKET_PIPES } else { len as u32 };
    let first = end.wrapping_sub(u64::from(len) * 8);
    // SAFETY: at most the size of `pipes`; the helper checks the source.
    if unsafe { bpf_probe_read_user(look.pipes.as_mut_ptr().cast(), len * 8, first as *const _) } != 0 {
        return 0;
    }
    look.len = len;
    // SAFETY: a function of this program, without a context.
    unsafe { bpf_loop(len, visit as *mut c_void, core::ptr::null_mut(), 0) };
    let is_received = look.direction == Direction::Receive as u32;
    if len == 1 && look.changed_len == 0 && is_received && look.piped.socket_type != XPUB {
        pipe_renewed();
    }
    if look.changed_len == 1 && look.uses_one_pipe() {
        pipe_used();
    }
    1
}

/// One of them, as `bpf_loop` calls it; 1 ends it.
extern "C" fn visit(index: u64, _: *mut c_void) -> u64 {
    // The compiler knows what it returns, the verifier does not.
    opaque(pipe_visit(index) as usize) as u64 & 1
}

/// The same. The kernel verifies functions that have a name of their own once, and not once a way to each call of them.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipe_visit(index: u64) -> u64 {
    let Some(look) = look() else { return 1 };
    let direction = look.direction as usize & 1;
    let pipe = look.pipes[index as usize & (PIPES_LEN - 1)];
    let Some(end) = look.read(pipe) else { return 0 };
    let Some(seen) = seen_or_new(pipe, look.key.tgid) else { return 0 };
    let counts = [end.written, end.read];
    let is_another = seen.peer != end.peer
        || (seen.socket != 0 && seen.socket != look.socket)
        || counts[0] < seen.counts[0]
        || counts[1] < seen.counts[1];
    if seen.peer == 0 {
        seen.peer = end.peer;
        if look.is_first != 0 {
            seen.counts[direction ^ 1] = counts[direction ^ 1];
        }
    } else if is_another {
        renew(seen, end.peer);
    }
    let is_new = seen.socket == 0;
    let inode = if is_new {
        seen.socket = look.socket;
        first_messages(look, end.peer)
    } else {
        0
    };
    let (before, now) = (seen.counts[direction], counts[direction]);
    seen.counts[direction] = now;
    if now != before {
        look.changed(pipe, seen.life, now, is_new);
    }
    if is_new || (now != before && now & (REPEAT - 1) == 0) {
        introduce(look, pipe, seen, inode);
    }
    0
}

/// Inode of the connection that has this end of a pipe, if it moved messages before.
#[inline(always)]
fn first_messages(look: &Look, own: u64) -> u64 {
    let Some(PipeEnd { sink, .. }) = look.read(own) else { return 0 };
    let key = PipeKey { pipe: sink, tgid: look.key.tgid, padding: 0 };
    let Some(inode) = FIRST.get_ptr(&key) else { return 0 };
    // SAFETY: a live map value, a plain word.
    let inode = unsafe { *inode };
    let _ = FIRST.remove(&key);
    inode
}

/// A connection has moved its first messages, and its pipe is made only now.
#[inline(always)]
pub fn moved_before(tgid: u32, sink: u64, inode: u64) {
    let _ = FIRST.insert(&PipeKey { pipe: sink, tgid, padding: 0 }, &inode, BPF_ANY.into());
}

/// A message was received, and the socket's only pipe has counted none: it is another one that has counted as many.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipe_renewed() -> u64 {
    let Some(look) = look() else { return 0 };
    let pipe = look.pipes[0];
    let Some(end) = look.read(pipe) else { return 0 };
    let Some(seen) = seen_at(pipe, look.key.tgid) else { return 0 };
    if end.read != 0 {
        renew(seen, end.peer);
        seen.socket = look.socket;
        seen.counts = [end.written, end.read];
        look.changed(pipe, seen.life, end.read, true);
        introduce(look, pipe, seen, first_messages(look, end.peer));
    }
    1
}

/// The message went through one pipe: which one comes after which is remembered.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipe_used() -> u64 {
    let Some(look) = look() else { return 0 };
    let pipe = look.changed[0].pipe & ((1 << ADDRESS_BITS) - 1);
    let direction = look.direction as usize & 1;
    if let Some(last) = seen_at(look.piped.last[direction], look.key.tgid) {
        last.next[direction] = pipe;
    }
    look.remember(pipe);
    1
}

impl Look {
    #[inline(always)]
    fn uses_one_pipe(&self) -> bool {
        self.direction == Direction::Receive as u32 || FAN_OUT & (1 << (self.piped.socket_type & 31)) == 0
    }

    #[inline(always)]
    fn read(&self, pipe: u64) -> Option<PipeEnd> {
        read_user::<PipeEnd>(pipe.wrapping_add(u64::from(self.piped.counts)))
    }

    /// Whether the call has used this pipe, and so no other one.
    #[inline(always)]
    fn is_used(&mut self, pipe: u64, seen: &mut PipeSeen) -> bool {
        let direction = self.direction as usize & 1;
        let Some(end) = self.read(pipe) else { return false };
        let counts = [end.written, end.read];
        let is_used = end.peer == seen.peer
            && seen.socket == self.socket
            && counts[direction] == seen.counts[direction] + 1
            && counts[direction ^ 1] >= seen.counts[direction ^ 1];
        if is_used {
            seen.counts[direction] = counts[direction];
            self.changed(pipe, seen.life, counts[direction], false);
            if counts[direction] & (REPEAT - 1) == 0 {
                introduce(self, pipe, seen, 0);
            }
        }
        is_used
    }

    #[inline(always)]
    fn changed(&mut self, pipe: u64, life: u32, count: u64, unsure: bool) {
        // SAFETY: a field of a live map value; volatile, so that it is read back from there.
        let at = unsafe { core::ptr::read_volatile(&raw const self.changed_len) };
        let count = if unsure { count | COUNT_UNSURE } else { count };
        self.changed[at as usize & (PIPES_LEN - 1)] = PipeCount { pipe: pipe_id(pipe, life), count };
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut self.changed_len, at + 1) };
    }

    #[inline(always)]
    fn remember(&self, pipe: u64) {
        if let Some(piped) = PIPED.get_ptr_mut(&self.key) {
            // SAFETY: a live map value; one thread at a time uses a socket.
            unsafe { (*piped).last[self.direction as usize & 1] = pipe };
        }
    }
}

#[inline(always)]
fn put(call: &mut CallRecord, look: &Look, changed: u32) {
    const INLINE: usize = INLINE_DATA_BYTES / size_of::<PipeCount>();
    call.flags &= !(FLAG_DATA_APART | FLAG_DATA_LOST);
    call.data_len = changed * size_of::<PipeCount>() as u32;
    if changed as usize <= INLINE {
        // SAFETY: `data` has room for so many, whatever its alignment.
        unsafe {
            let data = call.data.as_mut_ptr().cast::<PipeCount>();
            for index in 0..INLINE {
                data.add(index).write_unaligned(look.changed[index]);
            }
        }
    } else {
        copy_own::<{ PIPES_LEN * size_of::<PipeCount>() }>(call, look.changed.as_ptr().cast());
    }
}

/// A socket is closed.
#[inline(never)]
pub fn forget(tgid: u32, handle: u64) {
    let _ = PIPED.remove(&SocketAddress { handle, tgid, padding: 0 });
}

#[inline(always)]
fn introduce(look: &Look, pipe: u64, seen: &PipeSeen, inode: u64) {
    let record = PipeRecord {
        kind: RecordKind::Pipe as u8,
        padding: [0; 3],
        tgid: look.key.tgid,
        ts_ns: now(),
        handle: look.key.handle,
        pipe: pipe_id(pipe, seen.life),
        peer: seen.peer,
        inode,
    };
    if EVENTS.output::<PipeRecord>(&record, NO_WAKEUP).is_err() {
        lose(Loss::WireRingFull);
    }
}

/// A connection, and its end of a pipe.
pub struct Connected {
    /// Process.
    pub tgid: u32,
    /// Which way its system call goes.
    pub is_sent: bool,
    /// Address of its end.
    pub own: u64,
    /// Offset of a [`PipeEnd`] in a pipe.
    pub counts: u64,
    /// Address of its session.
    pub session: u64,
    /// Of its socket.
    pub inode: u64,
}

/// The pipe between a connection and its socket, and how many messages the connection has taken out of it, or put in.
#[inline(always)]
pub fn of_connection(connected: &Connected) -> Option<PipeCount> {
    let Connected { tgid, is_sent, own, counts, session, inode } = *connected;
    let end = read_user::<PipeEnd>(own.wrapping_add(counts))?;
    let pipe = end.peer;
    // The socket's end may have gone before this one.
    let back = pipe.wrapping_add(counts).wrapping_add(offset_of!(PipeEnd, peer) as u64);
    if read_user::<u64>(back)? != own {
        return None;
    }
    let seen = seen_or_new(pipe, tgid)?;
    let now = [end.read, end.written];
    let went_back = seen.inode != inode && (now[0] < seen.wire[0] || now[1] < seen.wire[1]);
    if seen.peer == 0 {
        seen.peer = own;
    } else if seen.peer != own || (seen.session != 0 && seen.session != session) || went_back {
        renew(seen, own);
    }
    seen.session = session;
    seen.inode = inode;
    seen.wire = now;
    Some(PipeCount { pipe: pipe_id(pipe, seen.life), count: now[if is_sent { 0 } else { 1 }] })
}
