//! libzmq's calls: stamped and copied into the thread's slot at entry, completed and sent at return.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, pt_regs},
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns,
        generated::{bpf_get_attach_cookie, bpf_get_current_task, bpf_get_func_ip, bpf_probe_read_kernel},
    },
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_common::{
    function::{Capture, Class, Cookie},
    limits::{
        INLINE_DATA_BYTES, MAX_CALLBACK_STACK_BYTES, MAX_DATA_BYTES, MAX_IOV_PARTS, MAX_LIBRARIES, MAX_TEXT_BYTES,
        POLL_ITEM_BYTES, POLLER_EVENT_BYTES,
    },
    record::{
        CALL_HEADER_BYTES, CallRecord, FLAG_DATA_FAULT, FLAG_ERRNO_KNOWN, FLAG_MORE, FLAG_MORE_KNOWN, FLAG_SIZE_KNOWN,
        Frame, LibraryConfig, Loss, RecordKind, SOCKET_TAG, SocketAddress, SocketConfig, TRAMPOLINE_BYTES, ThreadSlot,
    },
};

use crate::{
    fds,
    maps::{
        CLOSED, EVENTS, NO_WAKEUP, TARGETS, closes, count_classes, count_close, follow_fds, follow_pipes,
        fsbase_offset, lose, payload_limit, record_classes,
    },
    memory::{Message, copy_bytes, copy_text, read_message, read_user},
    pipes, threads,
    totals::count,
};

/// `ZMQ_FD`, an option of a socket.
const ZMQ_FD: u32 = 14;
/// `ZMQ_SNDMORE`.
const SNDMORE: u64 = 2;

/// For perf and multi links: at a function's entry.
#[uprobe]
pub fn call_entry(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: the kernel passes a valid context.
    enter(&ctx, unsafe { &*ctx.regs }, pid_tgid, threads::find(pid_tgid));
    0
}

/// For perf and multi links: at its return.
#[uretprobe]
pub fn call_return(ctx: RetProbeContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    let regs = unsafe { &*ctx.regs };
    if let Some(slot) = threads::find(bpf_get_current_pid_tgid())
        && let Some(frame) = returning_frame(slot, regs)
    {
        leave(frame, regs);
    }
    0
}

/// For session links: both. 1 at entry asks the kernel to leave the return alone. Written out, since the
/// `uprobe` macro returns 0 whatever the function says.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn call_session(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    // SAFETY: the kernel passes a valid context.
    let regs = unsafe { &*ctx.regs };
    let pid_tgid = bpf_get_current_pid_tgid();
    let slot = threads::find(pid_tgid);
    // SAFETY: a helper without precondition.
    if regs.rip == unsafe { bpf_get_func_ip(ctx.as_ptr()) } {
        return !enter(&ctx, regs, pid_tgid, slot) as u32;
    }
    if let Some(slot) = slot
        && let Some(frame) = returning_frame(slot, regs)
    {
        leave(frame, regs);
    }
    0
}

/// Does nothing: the floor that `cargo xtask bench` measures the cost of a traced call against.
#[uprobe]
pub fn empty(_: ProbeContext) -> u32 {
    0
}

/// Puts the call into its thread's slot. False when the call is not the program's own or not wanted.
#[inline(always)]
fn enter(ctx: &ProbeContext, regs: &pt_regs, pid_tgid: u64, slot: Option<*mut ThreadSlot>) -> bool {
    // SAFETY: a helper without precondition.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let Some(slot) = slot.or_else(|| threads::first_call(pid_tgid)) else { return false };
    // SAFETY: the slot belongs to the current thread, and no other code of it runs meanwhile.
    let slot = unsafe { &mut *slot };
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9];
    let tgid = (pid_tgid >> 32) as u32;
    let sequence = slot.sequence;
    let generation = generation(slot, tgid, handle(&args, cookie));
    if matches!(cookie.capture(), Capture::Close) {
        close(tgid, args[0], generation);
    }
    let sp = regs.rsp;
    if is_pending_below(slot.frames[0].sp, tgid, sp) {
        lose(Loss::OtherStack);
        return false;
    }
    let Some(frame) = free_frame(&mut slot.frames, tgid, sp, cookie) else { return false };
    if cookie.checks_caller() && caller(tgid, cookie, sp) == Caller::Libzmq {
        return false;
    }
    slot.sequence = sequence.wrapping_add(1);

    // No frame in flight until it is complete: userspace may look at any moment.
    // SAFETY: a live field; volatile, so that the compiler keeps the order (the CPU does).
    unsafe { core::ptr::write_volatile(&raw mut frame.sp, 0) };
    frame.cookie = cookie.0;
    let call = &mut frame.call;
    call.kind = RecordKind::Call as u8;
    call.function = cookie.function();
    call.library = cookie.library();
    call.flags = 0;
    call.data_len = 0;
    call.return_ns = 0;
    call.tgid = tgid;
    call.tid = pid_tgid as u32;
    call.sequence = sequence;
    call.args = args;
    call.generation = generation;
    capture_at_entry(call, cookie);
    // SAFETY: a helper without precondition. Last, so that our own work is not in the call's duration.
    call.entry_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut frame.sp, sp) };
    true
}

/// The frame of the call that returns with these registers: its return address has been popped. `None` for
/// a return without its entry (we came in between).
#[inline(always)]
fn returning_frame(slot: *mut ThreadSlot, regs: &pt_regs) -> Option<&'static mut Frame> {
    let sp = regs.rsp - 8;
    // SAFETY: the slot belongs to the current thread, and no other code of it runs meanwhile.
    let [outer, inner] = unsafe { &mut (*slot).frames };
    if outer.sp == sp {
        Some(outer)
    } else if inner.sp == sp {
        Some(inner)
    } else {
        None
    }
}

/// Completes the call that returns here and sends it.
#[inline(always)]
fn leave(frame: &mut Frame, regs: &pt_regs) {
    // SAFETY: a helper without precondition. First, so that our own work is not in the call's duration.
    let return_ns = unsafe { bpf_ktime_get_ns() };
    let cookie = Cookie(frame.cookie);
    let call = &mut frame.call;
    call.return_ns = return_ns;
    call.ret = regs.rax as i64;
    call.errno = 0;
    let failed = cookie.failed(call.ret);
    if failed && cookie.sets_errno() {
        let errno = read_errno(call.tgid);
        if errno != UNREADABLE {
            call.errno = errno as i32;
            call.flags |= FLAG_ERRNO_KNOWN;
        }
    }
    capture_at_return(call, cookie, failed);
    if follow_pipes() != 0 && !failed {
        note_pipes(call, cookie);
    }
    if count_classes() & u32::from(cookie.class_bit()) != 0 {
        count(call, cookie, failed);
    }
    if record_classes() & u32::from(cookie.class_bit()) != 0 {
        send(call);
    }
    frame.sp = 0;
}

#[inline(always)]
fn send(call: &CallRecord) {
    let data_len = call.data_len as usize;
    let data_len = if data_len > INLINE_DATA_BYTES { INLINE_DATA_BYTES } else { data_len };
    // SAFETY: a prefix of the record, which is plain data.
    let bytes =
        unsafe { core::slice::from_raw_parts((call as *const CallRecord).cast::<u8>(), CALL_HEADER_BYTES + data_len) };
    if EVENTS.output::<[u8]>(bytes, NO_WAKEUP).is_err() {
        lose(Loss::RingFull);
    }
}

/// Where a call that begins at the stack pointer `sp` is kept; `None` when libzmq made it itself.
///
/// A call is inside another one when its stack pointer is lower. One that is not lower means that the
/// call we remember never returned (`longjmp`, an exception): it is dropped. Equal, with another
/// function: a tail call, such as `zmq_term` into `zmq_ctx_term`. A lower one that the program made, where
/// that can be told, is a callback's, or the outer one was abandoned.
#[inline(always)]
fn free_frame(frames: &mut [Frame; 2], tgid: u32, sp: u64, cookie: Cookie) -> Option<&mut Frame> {
    let [outer, inner] = frames;
    if !encloses(outer, sp, cookie) {
        inner.sp = 0;
        return Some(outer);
    }
    let nested = Cookie(outer.cookie).nests() & cookie.class_bit() != 0;
    if nested && (sp == outer.sp || caller(tgid, cookie, sp) != Caller::Program) {
        return None;
    }
    if !has_trampoline(tgid, outer.sp) {
        inner.sp = 0;
        return Some(outer);
    }
    if outer.sp - sp > MAX_CALLBACK_STACK_BYTES {
        lose(Loss::OtherStack);
        return None;
    }
    if !encloses(inner, sp, cookie) {
        return Some(inner);
    }
    if Cookie(inner.cookie).nests() & cookie.class_bit() == 0 || caller(tgid, cookie, sp) == Caller::Program {
        lose(Loss::TooDeep);
    }
    None
}

#[inline(always)]
fn encloses(frame: &Frame, sp: u64, cookie: Cookie) -> bool {
    frame.sp != 0 && (sp < frame.sp || (sp == frame.sp && Cookie(frame.cookie).function() != cookie.function()))
}

/// Whether the outermost call that we remember has a lower stack pointer and is still pending. Then the thread
/// runs on another stack, and the kernel, which takes calls with a lower one for abandoned, would not know what
/// to do with its return. A call that really was abandoned is told by its return address: it is overwritten
/// sooner or later.
#[inline(always)]
fn is_pending_below(outer: u64, tgid: u32, sp: u64) -> bool {
    outer != 0 && outer < sp && has_trampoline(tgid, outer)
}

#[inline(never)]
fn has_trampoline(tgid: u32, sp: u64) -> bool {
    let Some(target) = TARGETS.get_ptr(&tgid) else { return true };
    // SAFETY: a live map value.
    let trampoline = unsafe { (*target).trampoline };
    // Before userspace has found it: better lose a call than the target.
    trampoline == 0 || read_user::<u64>(sp).is_some_and(|address| address.wrapping_sub(trampoline) < TRAMPOLINE_BYTES)
}

/// Who made a call.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Caller {
    Program,
    Libzmq,
    Unknown,
}

/// Who called the function that has just been entered, by its return address. libzmq calls its own functions
/// also where no call of the program is seen around it: I/O threads and `zmq_bind` send the events of socket
/// monitors, the reaper closes monitors, a `zmq_proxy` that began before us polls.
#[inline(never)]
fn caller(tgid: u32, cookie: Cookie, sp: u64) -> Caller {
    let Some(library) = library(tgid, cookie) else { return Caller::Unknown };
    match read_user::<u64>(sp) {
        Some(address) if library.internal_code[0] <= address && address < library.internal_code[1] => Caller::Libzmq,
        Some(_) if library.tells_callers != 0 => Caller::Program,
        _ => Caller::Unknown,
    }
}

/// Ends the generation of an address. At entry: it may belong to a new socket before `zmq_close` returns.
#[inline(never)]
fn close(tgid: u32, handle: u64, generation: u32) {
    let address = SocketAddress { handle, tgid, padding: 0 };
    let _ = CLOSED.insert(&address, &generation.wrapping_add(1), BPF_ANY.into());
    if follow_pipes() != 0 {
        pipes::forget(tgid, handle);
    }
    count_close();
}

#[inline(always)]
fn library(tgid: u32, cookie: Cookie) -> Option<&'static LibraryConfig> {
    let target = TARGETS.get_ptr(&tgid)?;
    // SAFETY: a live map value, which userspace writes before the first probe is in.
    unsafe { &*target }.libraries.get(cookie.library() as usize & (MAX_LIBRARIES - 1))
}

/// The argument that the call is about.
#[inline(always)]
pub fn handle(args: &[u64; 6], cookie: Cookie) -> u64 {
    match cookie.handle_arg() {
        0 => args[0],
        1 => args[1],
        _ => 0,
    }
}

/// The generation of a handle, as the thread remembers it or as the map has it.
#[inline(always)]
fn generation(slot: &mut ThreadSlot, tgid: u32, handle: u64) -> u32 {
    let closes = closes();
    if slot.handle != handle || slot.closes != closes {
        slot.generation = look_up_generation(tgid, handle);
        slot.handle = handle;
        slot.closes = closes;
    }
    slot.generation
}

#[inline(never)]
fn look_up_generation(tgid: u32, handle: u64) -> u32 {
    // SAFETY: the value is a plain word that is copied at once.
    unsafe { CLOSED.get(&SocketAddress { handle, tgid, padding: 0 }) }.copied().unwrap_or(0)
}

#[inline(always)]
fn capture_at_entry(call: &mut CallRecord, cookie: Cookie) {
    match cookie.capture() {
        Capture::SendBuffer => {
            let (address, len) = (call.args[1], call.args[2]);
            copy_payload(call, address, len);
            set_more(call, call.args[3] & SNDMORE != 0);
        }
        Capture::SendMessage0 => {
            copy_message(call, cookie, call.args[0]);
            set_more(call, call.args[2] & SNDMORE != 0);
        }
        Capture::SendMessage1 => {
            copy_message(call, cookie, call.args[1]);
            set_more(call, call.args[2] & SNDMORE != 0);
        }
        Capture::SendIov => {
            let count = call.args[2];
            copy_iov(call, call.args[1], count);
            // libzmq clears SNDMORE for the last part; without it, each part is a message of its own.
            if call.args[3] & SNDMORE != 0 || count == 1 {
                set_more(call, false);
            }
        }
        Capture::Text1 => copy_text(call, call.args[1]),
        Capture::OptionIn => copy_bytes(call, call.args[2], call.args[3], MAX_TEXT_BYTES as u64),
        // The first items, for as long as the poll lasts.
        Capture::PollItems => copy_bytes(call, call.args[0], poll_items_len(call), INLINE_DATA_BYTES as u64),
        _ => {}
    }
}

#[inline(always)]
fn capture_at_return(call: &mut CallRecord, cookie: Cookie, failed: bool) {
    // What lay in a page that had not been touched was brought in by the call itself.
    if call.flags & FLAG_DATA_FAULT != 0 && matches!(cookie.capture(), Capture::Text1 | Capture::SendBuffer) {
        call.flags &= !FLAG_DATA_FAULT;
        capture_at_entry(call, cookie);
    }
    match cookie.capture() {
        Capture::RecvBuffer if !failed => {
            let size = call.ret as u32 as u64;
            let (address, room) = (call.args[1], call.args[2]);
            copy_bytes(call, address, if size < room { size } else { room }, u64::from(payload_limit()));
            set_size(call, size);
            read_rcvmore(call, cookie);
        }
        Capture::RecvMessage0 if !failed => receive_message(call, cookie, call.args[0]),
        Capture::RecvMessage1 if !failed => receive_message(call, cookie, call.args[1]),
        Capture::RecvIov if !failed => {
            let count = read_user::<u64>(call.args[2]).unwrap_or(0);
            copy_iov(call, call.args[1], count);
            read_rcvmore(call, cookie);
        }
        Capture::PollItems => {
            call.flags &= !FLAG_DATA_FAULT;
            copy_bytes(call, call.args[0], poll_items_len(call), MAX_DATA_BYTES as u64);
        }
        Capture::PollerEvent if !failed => {
            copy_bytes(call, call.args[1], POLLER_EVENT_BYTES as u64, POLLER_EVENT_BYTES as u64)
        }
        Capture::PollerEvents if !failed => {
            let ready = call.ret as u32 as u64;
            copy_bytes(call, call.args[1], ready * POLLER_EVENT_BYTES as u64, MAX_DATA_BYTES as u64);
        }
        Capture::NewSocket if !failed => read_socket_id(call, cookie),
        Capture::OptionOut if !failed => {
            let len = read_user::<u64>(call.args[3]).unwrap_or(0);
            copy_bytes(call, call.args[2], len, MAX_TEXT_BYTES as u64);
            set_size(call, len);
            if follow_fds() != 0 && call.args[1] as u32 == ZMQ_FD {
                let pid_tgid = u64::from(call.tgid) << 32 | u64::from(call.tid);
                fds::mailbox_told(pid_tgid, call.args[0], call.library, call.args[2]);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn poll_items_len(call: &CallRecord) -> u64 {
    u64::from(call.args[1] as u32) * POLL_ITEM_BYTES as u64
}

#[inline(always)]
fn copy_payload(call: &mut CallRecord, address: u64, len: u64) {
    if payload_limit() != 0 {
        copy_bytes(call, address, len, u64::from(payload_limit()));
    }
    set_size(call, len);
}

#[inline(always)]
fn set_size(call: &mut CallRecord, size: u64) {
    call.size = size;
    call.flags |= FLAG_SIZE_KNOWN;
}

#[inline(always)]
fn set_more(call: &mut CallRecord, more: bool) {
    call.flags |= if more { FLAG_MORE_KNOWN | FLAG_MORE } else { FLAG_MORE_KNOWN };
}

/// Copies the payload of a `zmq_msg_t` and returns its flags, or -1.
#[inline(never)]
fn copy_message(call: &mut CallRecord, cookie: Cookie, message: u64) -> i32 {
    try_copy_message(call, cookie, message).map_or(-1, i32::from)
}

#[inline(always)]
fn try_copy_message(call: &mut CallRecord, cookie: Cookie, message: u64) -> Option<u8> {
    let library = library(call.tgid, cookie)?;
    let Message { address, size, flags } =
        read_message(message, library.message_type.into(), library.message_content.into())?;
    copy_payload(call, address, size);
    Some(flags)
}

/// Flag of a `zmq_msg_t`: more parts follow.
const MESSAGE_MORE: i32 = 1;

#[inline(always)]
fn receive_message(call: &mut CallRecord, cookie: Cookie, message: u64) {
    match copy_message(call, cookie, message) {
        -1 => set_size(call, call.ret as u32 as u64),
        flags => set_more(call, flags & MESSAGE_MORE != 0),
    }
}

/// The layout of a live socket: its tag tells which of those that the release can have.
#[inline(always)]
fn socket_layout(tgid: u32, cookie: Cookie, socket: u64) -> Option<&'static SocketConfig> {
    for layout in &library(tgid, cookie)?.sockets {
        if layout.tag == 0 {
            return None;
        }
        if read_user::<u32>(socket + u64::from(layout.tag)) == Some(SOCKET_TAG) {
            return Some(layout);
        }
    }
    None
}

/// libzmq's own number of the socket that the call returned.
#[inline(never)]
fn read_socket_id(call: &mut CallRecord, cookie: Cookie) {
    let socket = call.ret as u64;
    call.generation = look_up_generation(call.tgid, socket);
    fds::socket_opened(call.tgid, socket, call.generation);
    let Some(layout) = socket_layout(call.tgid, cookie, socket) else { return };
    if layout.socket_id != 0 {
        copy_bytes(call, socket + u64::from(layout.socket_id), 4, 4);
    }
}

/// After a plain `zmq_recv` only the socket knows whether more parts follow.
#[inline(never)]
fn read_rcvmore(call: &mut CallRecord, cookie: Cookie) {
    let socket = call.args[0];
    let Some(layout) = socket_layout(call.tgid, cookie, socket) else { return };
    if let Some(more) = read_user::<u8>(socket + u64::from(layout.rcvmore)) {
        set_more(call, more != 0);
    }
}

/// Sums the sizes of the iovecs and copies the first one's bytes.
#[inline(never)]
fn copy_iov(call: &mut CallRecord, iovecs: u64, count: u64) {
    let Some([address, len]) = read_user::<[u64; 2]>(iovecs) else { return };
    if count == 0 {
        return;
    }
    copy_bytes(call, address, len, u64::from(payload_limit()));
    if count > MAX_IOV_PARTS as u64 {
        return;
    }
    let mut size = 0u64;
    for index in 0..MAX_IOV_PARTS as u64 {
        if index < count {
            let Some(len) = read_user::<u64>(iovecs + index * 16 + 8) else { return };
            size = size.wrapping_add(len);
        }
    }
    set_size(call, size);
}

/// Says through which pipes the message went that the call has completed. Those of a socket whose endpoints have changed
/// are looked at, so that new ones are known before they are used.
#[inline(always)]
fn note_pipes(call: &mut CallRecord, cookie: Cookie) {
    const CLASSES: u32 = Class::Send.bit() as u32 | Class::Recv.bit() as u32 | Class::Endpoint.bit() as u32;
    if CLASSES & u32::from(cookie.class_bit()) == 0 || call.flags & FLAG_MORE != 0 {
        return;
    }
    let (tgid, socket) = (call.tgid, handle(&call.args, cookie));
    let pid_tgid = u64::from(tgid) << 32 | u64::from(call.tid);
    pipes::note(call, cookie, socket, pid_tgid, || socket_layout(tgid, cookie, socket));
}

/// No value of `errno`.
const UNREADABLE: i64 = i64::MIN;

/// The thread's own `errno`: it lies at a fixed distance from the thread pointer, which the kernel keeps
/// in `task_struct` as `thread.fsbase`.
#[inline(never)]
fn read_errno(tgid: u32) -> i64 {
    try_read_errno(tgid).map_or(UNREADABLE, i64::from)
}

#[inline(always)]
fn try_read_errno(tgid: u32) -> Option<i32> {
    let target = TARGETS.get_ptr(&tgid)?;
    // SAFETY: a live map value.
    let errno_offset = unsafe { (*target).errno_offset };
    if errno_offset == 0 || fsbase_offset() == 0 {
        return None;
    }
    let mut fsbase = 0u64;
    // SAFETY: reads one word of the current task; the helper checks the source.
    let status = unsafe {
        let field = bpf_get_current_task() + u64::from(fsbase_offset());
        bpf_probe_read_kernel((&raw mut fsbase).cast(), 8, field as *const _)
    };
    if status != 0 {
        return None;
    }
    read_user::<i32>(fsbase.wrapping_add(errno_offset as u64))
}
