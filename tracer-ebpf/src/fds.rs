//! File descriptors of sockets, from the system calls by which they change hands.
//!
//! What makes the mapping exact is epoll_ctl(2): libzmq watches every fd that it has, and registers with each the address
//! of its own poll entry, from which the object leads to the socket. At that moment listeners, connecters and engines
//! hold their socket already. A connection that is made is ADD by its connecter, DEL, ADD by its engine, all on one fd;
//! one that is accepted is accept, ADD by its engine, perhaps on another thread. DEL always comes before close, while
//! nobody else can have the number: it is the end of the mapping. By close we learn of what came to nothing.
//!
//! All of it is seen at the exit of the system call, where the registers still hold the arguments. That has one catch:
//! when close returns, another thread may have been given the number and have come by here before us.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_ANY, pt_regs},
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns,
        generated::{bpf_get_current_task, bpf_probe_read_kernel},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    fds::{
        ClassKey, FdAction, FdAddress, FdConfig, FdKey, FdOwner, FdPart, FdRecord, FdRole, SocketLayout, UNKNOWN_TYPE,
        WatcherConfig,
    },
    limits::{MAX_PATH_BYTES, MAX_WATCHERS},
    record::{CLOSED_SOCKET_TAG, Loss, RecordKind, SOCKET_TAG, SocketAddress},
};

use crate::{
    maps::{CLASSES, EVENTS, FD_TARGETS, FDS, NO_WAKEUP, REOPENED, follow_fds, lose},
    memory::{read_kernel, read_user},
};

/// Where the kernel keeps the addresses of sockets, from BTF.
#[unsafe(no_mangle)]
static SOCKET_LAYOUT: SocketLayout = SocketLayout {
    task_files: 0,
    files_table: 0,
    table_files: 0,
    file_private_data: 0,
    socket_file: 0,
    socket_sk: 0,
    family: 0,
    local_port: 0,
    remote_port: 0,
    local: 0,
    remote: 0,
    local6: 0,
    remote6: 0,
    unix_address: 0,
    unix_peer: 0,
    unix_len: 0,
    unix_name: 0,
};

// Numbers of system calls on x86_64, `asm/unistd_64.h`.
const CLOSE: u64 = 3;
const ACCEPT: u64 = 43;
const EPOLL_CTL: u64 = 233;
const ACCEPT4: u64 = 288;

// Operations of epoll_ctl(2), `linux/eventpoll.h`.
const EPOLL_CTL_ADD: u64 = 1;
const EPOLL_CTL_DEL: u64 = 2;
const EPOLL_CTL_MOD: u64 = 3;

// Address families, `linux/socket.h`.
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The registers that hold arguments of system calls, as they lie in `pt_regs` from `r10` on.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Arguments {
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
}

/// libzmq's `poll_entry_t`. epoll_event is packed on x86_64.
#[repr(C)]
#[derive(Clone, Copy)]
struct PollEntry {
    fd: i32,
    events: u32,
    /// `epoll_event.data`: the entry's own address.
    itself: u64,
    /// The base class `i_poll_events` of the object that is told of its events.
    object: u64,
}

/// Where `poll_entry_t` has its `epoll_event`.
const ENTRY_EVENT: u64 = 4;

/// What is told of a change, addresses apart.
struct Change {
    action: u8,
    part: u8,
    role: u8,
    library: u8,
    socket_type: u8,
    fd: i32,
    listener: i32,
    socket_id: u32,
    handle: u64,
}

impl Change {
    #[inline(always)]
    fn new(action: FdAction, fd: i32, owner: &FdOwner) -> Self {
        let FdOwner { handle, part, role, library, .. } = *owner;
        let (action, socket_type) = (action as u8, UNKNOWN_TYPE);
        Self { action, part, role, library, socket_type, fd, listener: -1, socket_id: 0, handle }
    }
}

/// The current thread's process, as far as it matters here.
struct Caller {
    pid_tgid: u64,
    program: u32,
    is_seeded: bool,
}

impl Caller {
    #[inline(always)]
    fn key(&self, fd: i32) -> FdKey {
        FdKey { tgid: (self.pid_tgid >> 32) as u32, fd }
    }

    /// Whose the fd is, as far as this program of the process has it.
    #[inline(always)]
    fn owner(&self, fd: i32) -> Option<FdOwner> {
        // SAFETY: plain words that are copied at once.
        let owner = unsafe { FDS.get(&self.key(fd)) }.copied()?;
        (owner.program == self.program).then_some(owner)
    }

    #[inline(always)]
    fn enter(&self, fd: i32, owner: &FdOwner) {
        if FDS.insert(&self.key(fd), owner, BPF_ANY.into()).is_err() {
            lose(Loss::FdTableFull);
        }
    }

    #[inline(always)]
    fn forget(&self, fd: i32) {
        let _ = FDS.remove(&self.key(fd));
    }
}

/// Every system call of the machine comes by here when it returns: what is cheap and turns most away goes first.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    let regs: u64 = ctx.arg(0);
    let ret: i64 = ctx.arg(1);
    // What failed changed nothing. (close of what libzmq has does not fail.)
    if ret < 0 {
        return 0;
    }
    let number: u64 = read_kernel(regs + offset_of!(pt_regs, orig_rax) as u64);
    if !matches!(number, EPOLL_CTL | CLOSE | ACCEPT4 | ACCEPT) {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(config) = FD_TARGETS.get_ptr(&((pid_tgid >> 32) as u32)) else { return 0 };
    // SAFETY: a live map value.
    let config = unsafe { &*config };
    let caller = Caller { pid_tgid, program: config.program, is_seeded: config.is_seeded != 0 };
    let args: Arguments = read_kernel(regs + offset_of!(pt_regs, r10) as u64);
    match number {
        CLOSE => closed(&caller, args.rdi as i32),
        ACCEPT | ACCEPT4 => accepted(&caller, args.rdi as i32, ret as i32),
        _ => match args.rsi {
            EPOLL_CTL_DEL => removed(&caller, args.rdx as i32, args.r10),
            operation @ (EPOLL_CTL_ADD | EPOLL_CTL_MOD) => {
                added(&caller, config, operation == EPOLL_CTL_ADD, args.rdx as i32, args.r10);
            }
            _ => {}
        },
    }
    0
}

/// Begins another program of the process: what the one before had means nothing any more. libzmq's fds are closed by
/// exec itself.
#[inline(always)]
pub fn program_replaced(tgid: u32) {
    if follow_fds() != 0
        && let Some(config) = FD_TARGETS.get_ptr_mut(&tgid)
    {
        // SAFETY: a live map value, and the process has one thread now.
        unsafe { (*config).program = (*config).program.wrapping_add(1) };
    }
}

/// Notes the generation of a socket that `zmq_socket` has just returned.
#[inline(always)]
pub fn socket_opened(tgid: u32, handle: u64, generation: u32) {
    if follow_fds() != 0 && generation != 0 {
        let _ = REOPENED.insert(&SocketAddress { handle, tgid, padding: 0 }, &generation, BPF_ANY.into());
    }
}

/// `zmq_getsockopt` told the program a socket's `ZMQ_FD`.
#[inline(never)]
pub fn mailbox_told(pid_tgid: u64, handle: u64, library: u8, address: u64) {
    let Some(config) = FD_TARGETS.get_ptr(&((pid_tgid >> 32) as u32)) else { return };
    // SAFETY: a live map value.
    let program = unsafe { (*config).program };
    let caller = Caller { pid_tgid, program, is_seeded: true };
    let Some(fd) = read_user::<i32>(address) else { return };
    if fd < 0 || caller.owner(fd).is_some_and(|owner| owner.part == MAILBOX) {
        return;
    }
    let owner = FdOwner { handle, file: 0, program, part: MAILBOX, role: 0, watched: 1, library };
    caller.enter(fd, &owner);
    send(&caller, &Change::new(FdAction::Added, fd, &owner));
}

/// An ADD, or a MOD by which we learn of what was there before us and userspace could not read: until it has tried,
/// there is nothing to be learnt.
#[inline(always)]
fn added(caller: &Caller, config: &FdConfig, is_new: bool, fd: i32, event: u64) {
    let before = caller.owner(fd).unwrap_or_default();
    if !is_new && (before.watched != 0 || !caller.is_seeded) {
        return;
    }
    let Some(object) = watcher(fd, event) else { return };
    let mut found = Change::new(FdAction::Added, fd, &FdOwner::default());
    if !identify(caller, config, object, &mut found) {
        return;
    }
    let file = file_at(fd);
    found.role = match found.part {
        LISTENER => FdRole::Bind as u8,
        CONNECTER => FdRole::Connect as u8,
        _ => 0,
    };
    if before.watched == 0 && before.handle != 0 {
        let goes_on = before.handle == found.handle && before.file == file && before.part != LISTENER;
        if goes_on && found.part == CONNECTION {
            found.role = before.role;
        } else if !goes_on {
            // Its close has not come by here yet.
            send(caller, &Change::new(FdAction::Closed, fd, &before));
        }
    }
    let owner = FdOwner {
        handle: found.handle,
        file: 0,
        program: caller.program,
        part: found.part,
        role: found.role,
        watched: 1,
        library: found.library,
    };
    caller.enter(fd, &owner);
    send(caller, &found);
}

const LISTENER: u8 = FdPart::Listener as u8;
const CONNECTER: u8 = FdPart::Connecter as u8;
const CONNECTION: u8 = FdPart::Connection as u8;
const MAILBOX: u8 = FdPart::Mailbox as u8;

#[inline(always)]
fn removed(caller: &Caller, fd: i32, event: u64) {
    let known = caller.owner(fd);
    if known.is_none() && caller.is_seeded {
        return;
    }
    let mut owner = known.unwrap_or_default();
    if known.is_some() && owner.watched == 0 {
        return;
    }
    // A program's own epoll may watch it, too.
    if watcher(fd, event).is_none() {
        return;
    }
    owner.program = caller.program;
    owner.watched = 0;
    owner.file = file_at(fd);
    if owner.part == MAILBOX {
        caller.forget(fd);
    } else {
        caller.enter(fd, &owner);
    }
    send(caller, &Change::new(FdAction::Removed, fd, &owner));
}

/// A listener's fd gave birth to another one.
#[inline(always)]
fn accepted(caller: &Caller, listener: i32, fd: i32) {
    let Some(by) = caller.owner(listener) else { return };
    if by.part != LISTENER || by.watched == 0 {
        return;
    }
    let before = caller.owner(fd).unwrap_or_default();
    if before.watched == 0 && before.handle != 0 {
        // Its close has not come by here yet.
        send(caller, &Change::new(FdAction::Closed, fd, &before));
    }
    let role = FdRole::Bind as u8;
    let owner = FdOwner { file: file_at(fd), part: CONNECTION, role, watched: 0, ..by };
    caller.enter(fd, &owner);
    send(caller, &Change { listener, ..Change::new(FdAction::Accepted, fd, &owner) });
}

#[inline(always)]
fn closed(caller: &Caller, fd: i32) {
    let Some(owner) = caller.owner(fd) else { return };
    // What is watched is not closed: the number is somebody else's by now. So it is if that file is open.
    if owner.watched != 0 || (owner.file != 0 && owner.file == file_at(fd)) {
        return;
    }
    if owner.handle != 0 {
        caller.forget(fd);
        send(caller, &Change::new(FdAction::Closed, fd, &owner));
    } else if caller.is_seeded {
        caller.forget(fd);
    }
}

/// The object that watches a fd, if it is one of libzmq's, which passes the `epoll_event` inside its poll entry.
#[inline(always)]
fn watcher(fd: i32, event: u64) -> Option<u64> {
    let address = event.wrapping_sub(ENTRY_EVENT);
    let entry: PollEntry = read_user(address)?;
    (entry.fd == fd && entry.itself == address).then_some(entry.object)
}

/// Asks an object whose it is, and of which of the build's classes.
///
/// The class tells where its fields are, and the fields must make sense: the fd, and a pointer to something with the tag
/// of a socket. Those of its true class always do. Another one's may, too, since memory that was used before is full of
/// pointers to live sockets (up to 4.3.2 an engine has its fd where a connecter has its, and what stands for a
/// connecter's socket is room for a message, not yet used). So a class is learnt, by its table of virtual functions,
/// when no other one fits, which is so soon; until then the first that fits is taken.
#[inline(never)]
fn identify(caller: &Caller, config: &FdConfig, object: u64, found: &mut Change) -> bool {
    let Some(table) = read_user::<u64>(object) else { return false };
    let key = ClassKey { table, tgid: (caller.pid_tgid >> 32) as u32, program: caller.program };
    // SAFETY: plain words that are copied at once.
    if let Some(class) = unsafe { CLASSES.get(&key) }.copied() {
        let Some(handle) = socket_of(&class, object, found.fd) else { return false };
        describe(&class, handle, found);
        return true;
    }
    let (mut first, mut socket, mut is_only) = (WatcherConfig::default(), 0, true);
    for index in 0..MAX_WATCHERS {
        let Some(watcher) = config.watchers.get(index) else { break };
        if watcher.part == 0 {
            break;
        }
        if let Some(handle) = socket_of(watcher, object, found.fd) {
            if socket != 0 {
                is_only = false;
                break;
            }
            (first, socket) = (*watcher, handle);
        }
    }
    if socket == 0 {
        return false;
    }
    if is_only {
        // Where there is no room, it is found out again.
        let _ = CLASSES.insert(&key, &first, BPF_ANY.into());
    }
    describe(&first, socket, found);
    true
}

/// The socket of an object, if that can be of this class.
#[inline(always)]
fn socket_of(watcher: &WatcherConfig, object: u64, fd: i32) -> Option<u64> {
    if read_user::<i32>(object.wrapping_add(u64::from(watcher.fd))) != Some(fd) {
        return None;
    }
    let handle = read_user::<u64>(object.wrapping_add(u64::from(watcher.socket)))?;
    let tag = read_user::<u32>(handle.wrapping_add(u64::from(watcher.tag)))?;
    (tag == SOCKET_TAG || tag == CLOSED_SOCKET_TAG).then_some(handle)
}

#[inline(always)]
fn describe(watcher: &WatcherConfig, handle: u64, found: &mut Change) {
    found.handle = handle;
    found.part = watcher.part;
    found.library = watcher.library;
    found.socket_type = read_user::<u8>(handle.wrapping_add(u64::from(watcher.socket_type))).unwrap_or(UNKNOWN_TYPE);
    found.socket_id = read_user::<u32>(handle.wrapping_add(u64::from(watcher.socket_id))).unwrap_or(0);
}

#[inline(never)]
fn send(caller: &Caller, change: &Change) {
    let tgid = (caller.pid_tgid >> 32) as u32;
    let Some(mut entry) = EVENTS.reserve::<FdRecord>(0) else {
        lose(Loss::FdRingFull);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved record is ours until submitted.
    unsafe {
        (*record).kind = RecordKind::Fd as u8;
        (*record).action = change.action;
        (*record).part = change.part;
        (*record).role = change.role;
        (*record).library = change.library;
        (*record).socket_type = change.socket_type;
        (*record).family = 0;
        (*record).ts_ns = bpf_ktime_get_ns();
        (*record).tgid = tgid;
        (*record).tid = caller.pid_tgid as u32;
        (*record).fd = change.fd;
        (*record).listener = change.listener;
        (*record).handle = change.handle;
        (*record).generation = generation(tgid, change.handle);
        (*record).socket_id = change.socket_id;
        (*record).padding = [0; 4];
        core::ptr::write_bytes(&raw mut (*record).address, 0, 1);
        if change.action == FdAction::Added as u8 || change.action == FdAction::Accepted as u8 {
            (*record).family = read_address(change.fd, &raw mut (*record).address);
        }
    }
    entry.submit(NO_WAKEUP);
}

#[inline(always)]
fn generation(tgid: u32, handle: u64) -> u32 {
    // SAFETY: the value is a plain word that is copied at once.
    unsafe { REOPENED.get(&SocketAddress { handle, tgid, padding: 0 }) }.copied().unwrap_or(0)
}

#[inline(always)]
fn layout() -> SocketLayout {
    // SAFETY: a static of this program. Volatile, because userspace replaces the value at load.
    unsafe { core::ptr::read_volatile(&raw const SOCKET_LAYOUT) }
}

/// The address of the open file at a fd of the current process; 0: there is none, or it cannot be read. A table of
/// fds is replaced when it grows and the old one freed after a grace period of RCU, which a program is inside of.
#[inline(always)]
fn file_at(fd: i32) -> u64 {
    let layout = layout();
    if layout.task_files == 0 || fd < 0 {
        return 0;
    }
    // SAFETY: a helper without precondition.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = read_kernel(task + u64::from(layout.task_files));
    let table: u64 = read_kernel(files + u64::from(layout.files_table));
    let array: u64 = read_kernel(table + u64::from(layout.table_files));
    read_kernel(array + fd as u64 * 8)
}

/// Fills in the addresses of the socket at a fd, and returns their family; 0: there are none.
///
/// # Safety
/// `to` is zeroed room in a reserved record.
#[inline(always)]
unsafe fn read_address(fd: i32, to: *mut FdAddress) -> u16 {
    let layout = layout();
    let file = file_at(fd);
    if file == 0 {
        return 0;
    }
    let socket: u64 = read_kernel(file + u64::from(layout.file_private_data));
    // What another kind of file has there does not point back.
    if read_kernel::<u64>(socket + u64::from(layout.socket_file)) != file {
        return 0;
    }
    let sock: u64 = read_kernel(socket + u64::from(layout.socket_sk));
    let family: u16 = read_kernel(sock + u64::from(layout.family));
    if family == AF_UNIX && layout.unix_address != 0 {
        // SAFETY: the caller's promise.
        return unsafe { read_unix_name(sock, &layout, to) };
    }
    let (local, remote, len) = match family {
        AF_INET => (layout.local, layout.remote, 4),
        AF_INET6 => (layout.local6, layout.remote6, 16),
        _ => return 0,
    };
    // SAFETY: the caller's promise; the helper checks the sources, and writes no more than either field holds.
    unsafe {
        (*to).local_port = read_kernel(sock + u64::from(layout.local_port));
        (*to).remote_port = u16::from_be(read_kernel(sock + u64::from(layout.remote_port)));
        if len == 4 {
            bpf_probe_read_kernel((&raw mut (*to).local).cast(), 4, (sock + u64::from(local)) as *const _);
            bpf_probe_read_kernel((&raw mut (*to).remote).cast(), 4, (sock + u64::from(remote)) as *const _);
        } else {
            bpf_probe_read_kernel((&raw mut (*to).local).cast(), 16, (sock + u64::from(local)) as *const _);
            bpf_probe_read_kernel((&raw mut (*to).remote).cast(), 16, (sock + u64::from(remote)) as *const _);
        }
    }
    family
}

/// Of a unix socket one end has a name: the listener's, which what it accepts has, too.
///
/// # Safety
/// As [`read_address`].
#[inline(always)]
unsafe fn read_unix_name(sock: u64, layout: &SocketLayout, to: *mut FdAddress) -> u16 {
    let mut address: u64 = read_kernel(sock + u64::from(layout.unix_address));
    let is_remote = address == 0;
    if is_remote {
        let peer: u64 = read_kernel(sock + u64::from(layout.unix_peer));
        if peer == 0 {
            return 0;
        }
        address = read_kernel(peer + u64::from(layout.unix_address));
    }
    if address == 0 {
        return 0;
    }
    /// Bytes of a `sockaddr_un` before its name.
    const NAME: u64 = 2;
    let len = u64::from(read_kernel::<u32>(address + u64::from(layout.unix_len))).wrapping_sub(NAME);
    if len == 0 || len > MAX_PATH_BYTES as u64 {
        return 0;
    }
    let name = address + u64::from(layout.unix_name) + NAME;
    // SAFETY: the caller's promise; `len` is at most the size of `path`, and the helper checks the source.
    unsafe {
        (*to).path_len = len as u8;
        (*to).path_is_remote = is_remote.into();
        bpf_probe_read_kernel((&raw mut (*to).path).cast(), len as u32, name as *const _);
    }
    AF_UNIX
}
