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

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_current_task, bpf_probe_read_kernel},
    },
};
use tracer_common::{
    fds::{
        ClassKey, FdAction, FdAddress, FdConfig, FdKey, FdOwner, FdPart, FdRecord, FdRole, FdState, SocketLayout,
        UNKNOWN_TYPE, WatcherConfig,
    },
    limits::{MAX_PATH_BYTES, MAX_WATCHERS},
    record::{Loss, RecordKind, SocketAddress, is_socket_tag},
    wire::Engine,
};

use crate::{
    atomic::{exchange, opaque},
    maps::{CLASSES, EVENTS, FD_TARGETS, FDS, NO_WAKEUP, REOPENED, follow_fds, follow_wire, lose},
    memory::{read_kernel, read_user},
    syscalls::Arguments,
    wire::ENGINES,
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
    sock_type: 0,
    protocol: 0,
    sock_socket: 0,
    write_sequence: 0,
    copied_sequence: 0,
    file_inode: 0,
    inode_number: 0,
};

// Numbers of system calls on x86_64, `asm/unistd_64.h`.
/// close(2).
pub const CLOSE: u64 = 3;
/// accept(2).
pub const ACCEPT: u64 = 43;
const EPOLL_CTL: u64 = 233;
/// accept4(2).
pub const ACCEPT4: u64 = 288;

// Operations of epoll_ctl(2), `linux/eventpoll.h`.
const EPOLL_CTL_ADD: u64 = 1;
const EPOLL_CTL_DEL: u64 = 2;
const EPOLL_CTL_MOD: u64 = 3;

// Address families, `linux/socket.h`.
pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

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
        let FdOwner { state, handle, .. } = *owner;
        let (part, role, library) = (state.part(), state.role(), state.library());
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

    /// Where it is noted whose the fd is.
    #[inline(always)]
    fn slot(&self, fd: i32) -> Option<*mut FdOwner> {
        FDS.get_ptr_mut(&self.key(fd))
    }

    /// The same, made if need be.
    #[inline(always)]
    fn new_slot(&self, fd: i32) -> Option<*mut FdOwner> {
        let key = self.key(fd);
        if let Some(slot) = FDS.get_ptr_mut(&key) {
            return Some(slot);
        }
        // Another thread may be quicker.
        let _ = FDS.insert(&key, &FdOwner::default(), BPF_NOEXIST.into());
        let slot = FDS.get_ptr_mut(&key);
        if slot.is_none() {
            lose(Loss::FdTableFull);
        }
        slot
    }

    /// Whose the fd is, and the word that says whether that has changed. What an earlier program of the process had is
    /// nobody's.
    #[inline(always)]
    fn owner(&self, slot: *mut FdOwner) -> (FdOwner, FdState) {
        // SAFETY: a live map value. The state first, and volatile, since other CPUs change it: where it is still the same
        // when it is replaced, so was the rest.
        let owner = unsafe {
            let state = FdState(core::ptr::read_volatile(&raw const (*slot).state.0));
            FdOwner { state, ..core::ptr::read_volatile(slot) }
        };
        if owner.program == self.program { (owner, owner.state) } else { (FdOwner::default(), owner.state) }
    }

    /// Makes the fd another one's, unless that has changed since `before`: then false.
    #[inline(always)]
    fn replace(&self, slot: *mut FdOwner, before: FdState, state: FdState, handle: u64, file: u64) -> bool {
        // Until the rest is written, it must look as if it were nobody's to take.
        let busy = FdState::new(0, 0, true, 0).following(before);
        // SAFETY: a live map value, which is ours when the exchange succeeds.
        unsafe {
            if !exchange(&raw mut (*slot).state.0, before.0, busy.0) {
                return false;
            }
            core::ptr::write_volatile(&raw mut (*slot).handle, handle);
            core::ptr::write_volatile(&raw mut (*slot).file, file);
            core::ptr::write_volatile(&raw mut (*slot).program, self.program);
            core::ptr::write_volatile(&raw mut (*slot).state.0, state.following(busy).0);
        }
        true
    }
}

/// How often it is tried to replace an owner that another thread replaces meanwhile.
const TRIES: u32 = 4;

/// Whether a system call changes what fds are.
#[inline(always)]
pub const fn is_change(number: u64) -> bool {
    matches!(number, EPOLL_CTL | CLOSE | ACCEPT4 | ACCEPT)
}

/// Whether a process's fds are followed.
#[inline(always)]
pub fn is_target(tgid: u32) -> bool {
    FD_TARGETS.get_ptr(&tgid).is_some()
}

/// The socket of a connection, or of the attempt at one; 0: the fd is no such thing.
#[inline(always)]
pub fn connection_owner(tgid: u32, fd: i32) -> u64 {
    let Some(slot) = FDS.get_ptr(&FdKey { tgid, fd }) else { return 0 };
    // SAFETY: a live map value.
    let owner = unsafe { &*slot };
    if matches!(owner.state.part(), CONNECTION | CONNECTER) { owner.handle } else { 0 }
}

/// A system call that succeeded may have changed what a fd is.
#[inline(always)]
pub fn changed(pid_tgid: u64, number: u64, args: &Arguments, ret: i64) {
    let Some(config) = FD_TARGETS.get_ptr(&((pid_tgid >> 32) as u32)) else { return };
    // SAFETY: a live map value.
    let config = unsafe { &*config };
    let caller = Caller { pid_tgid, program: config.program, is_seeded: config.is_seeded != 0 };
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
    let config = unsafe { &*config };
    let caller = Caller { pid_tgid, program: config.program, is_seeded: true };
    let Some(fd) = read_user::<i32>(address) else { return };
    if fd < 0 {
        return;
    }
    let Some(slot) = caller.new_slot(fd) else { return };
    let (before, word) = caller.owner(slot);
    let state = FdState::new(MAILBOX, 0, true, library);
    let is_known = before.state.is_watched() && before.state.part() == MAILBOX && before.handle == handle;
    if is_known || !caller.replace(slot, word, state, handle, 0) {
        return;
    }
    let mut change = Change::new(FdAction::Added, fd, &FdOwner { state, handle, ..before });
    for watcher in &config.watchers {
        if watcher.part == 0 {
            break;
        }
        if watcher.library == library && has_tag(watcher, handle) {
            describe(watcher, handle, &mut change);
            change.part = MAILBOX;
            break;
        }
    }
    send(&caller, &change, now());
}

/// An ADD; or a MOD, by which we learn of what an ADD left in doubt, and of what was there before us and userspace could
/// not read: until it has tried, there is nothing to be learnt of that.
#[inline(always)]
fn added(caller: &Caller, config: &FdConfig, is_new: bool, fd: i32, event: u64) {
    let known = caller.slot(fd);
    if !is_new && (!caller.is_seeded || known.is_some_and(|slot| caller.owner(slot).0.state.is_watched())) {
        return;
    }
    let Some(object) = watcher(fd, event) else { return };
    let entry = if is_new { 0 } else { event - ENTRY_EVENT };
    let mut found = Change::new(FdAction::Added, fd, &FdOwner::default());
    if !identify(caller, config, &Object { address: object, entry }, &mut found) {
        return;
    }
    take(caller, &mut found, true);
}

/// Gives a fd to a socket. The one that had its number before may not be known to be closed yet, if another thread's
/// close of it has not come by here.
#[inline(never)]
fn take(caller: &Caller, found: &mut Change, is_watched: bool) {
    let Some(slot) = caller.new_slot(found.fd) else { return };
    let file = file_at(found.fd);
    let role = match found.part {
        LISTENER => FdRole::Bind as u8,
        CONNECTER => FdRole::Connect as u8,
        _ => found.role,
    };
    for _ in 0..TRIES {
        let (before, word) = caller.owner(slot);
        let was_left = !before.state.is_watched() && before.handle != 0;
        // A connecter's that becomes an engine's, or one that was accepted.
        let goes_on = is_watched
            && found.part == CONNECTION
            && before.state.part() != LISTENER
            && before.handle == found.handle
            && before.file == file;
        found.role = if was_left && goes_on { before.state.role() } else { role };
        let state = FdState::new(found.part, found.role, is_watched, found.library);
        // What is watched may be closed without our help only when it has been removed, which notes the file.
        let noted = if is_watched { 0 } else { file };
        if caller.replace(slot, word, state, found.handle, noted) {
            if was_left && !goes_on {
                send(caller, &Change::new(FdAction::Closed, found.fd, &before), now());
            }
            send(caller, found, now());
            return;
        }
    }
    lose(Loss::FdTableFull);
}

const LISTENER: u8 = FdPart::Listener as u8;
const CONNECTER: u8 = FdPart::Connecter as u8;
const CONNECTION: u8 = FdPart::Connection as u8;
const MAILBOX: u8 = FdPart::Mailbox as u8;

#[inline(always)]
fn removed(caller: &Caller, fd: i32, event: u64) {
    // A program's own epoll may watch it, too.
    if watcher(fd, event).is_none() {
        return;
    }
    let slot = if caller.is_seeded { caller.slot(fd) } else { caller.new_slot(fd) };
    let Some(slot) = slot else { return };
    let (before, word) = caller.owner(slot);
    if !before.state.is_watched() && (before.handle != 0 || caller.is_seeded) {
        return;
    }
    // Of a mailbox that was all: nothing comes of it.
    let handle = if before.state.part() == MAILBOX { 0 } else { before.handle };
    let state = FdState::new(before.state.part(), before.state.role(), false, before.state.library());
    if caller.replace(slot, word, state, handle, file_at(fd)) {
        send(caller, &Change::new(FdAction::Removed, fd, &before), now());
    }
}

/// A listener's fd gave birth to another one.
#[inline(always)]
fn accepted(caller: &Caller, listener: i32, fd: i32) {
    let Some(slot) = caller.slot(listener) else { return };
    let (by, _) = caller.owner(slot);
    if by.state.part() != LISTENER || !by.state.is_watched() {
        return;
    }
    let mut change = Change::new(FdAction::Accepted, fd, &by);
    (change.part, change.listener) = (CONNECTION, listener);
    take(caller, &mut change, false);
}

#[inline(always)]
fn closed(caller: &Caller, fd: i32) {
    let Some(slot) = caller.slot(fd) else { return };
    // The number may be given away at any moment. The stamp is from before, if it is not yet; who takes it stamps
    // afterwards.
    let ts_ns = now();
    let (before, word) = caller.owner(slot);
    // What is watched is not closed: the number is somebody else's by now. So it is if that file is open.
    if before.state.is_watched() || before.handle == 0 || (before.file != 0 && before.file == file_at(fd)) {
        return;
    }
    if caller.replace(slot, word, FdState::default(), 0, 0) {
        send(caller, &Change::new(FdAction::Closed, fd, &before), ts_ns);
    }
}

/// CLOCK_MONOTONIC.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// The object that watches a fd, if it is one of libzmq's, which passes the `epoll_event` inside its poll entry.
#[inline(always)]
fn watcher(fd: i32, event: u64) -> Option<u64> {
    let address = event.wrapping_sub(ENTRY_EVENT);
    let entry: PollEntry = read_user(address)?;
    (entry.fd == fd && entry.itself == address).then_some(entry.object)
}

/// An object that watches a fd.
struct Object {
    /// Of its base class `i_poll_events`.
    address: u64,
    /// The address of its poll entry; 0: it does not have that yet.
    entry: u64,
}

/// Asks an object whose it is, and of which of the build's classes.
///
/// The class tells where its fields are, and the fields must make sense: the fd, a pointer to something with the tag of
/// a socket, after the ADD also the poll entry. Those of its true class always do. Before there is an entry another
/// one's may, too, since memory that was used before is full of pointers to live sockets (up to 4.3.2 an engine has its
/// fd where a connecter has its, and what stands for a connecter's socket is room for a message, not yet used). So
/// nothing is said while several classes fit: the entry will tell, at the MOD that follows. The class is then known by
/// its table of virtual functions.
#[inline(never)]
fn identify(caller: &Caller, config: &FdConfig, object: &Object, found: &mut Change) -> bool {
    let Some(table) = read_user::<u64>(object.address) else { return false };
    let key = ClassKey { table, tgid: (caller.pid_tgid >> 32) as u32, program: caller.program };
    // SAFETY: plain words that are copied at once.
    if let Some(class) = unsafe { CLASSES.get(&key) }.copied() {
        let Some(handle) = socket_of(&class, object, found.fd) else { return false };
        describe(&class, handle, found);
        note_engine(caller, &class, object, found);
        return true;
    }
    let (mut class, mut socket) = (WatcherConfig::default(), 0);
    for index in 0..MAX_WATCHERS {
        let Some(watcher) = config.watchers.get(index) else { break };
        if watcher.part == 0 {
            break;
        }
        if let Some(handle) = socket_of(watcher, object, found.fd) {
            if socket != 0 {
                return false;
            }
            (class, socket) = (*watcher, handle);
        }
    }
    if socket == 0 {
        return false;
    }
    // Where there is no room, it is found out again.
    let _ = CLASSES.insert(&key, &class, BPF_ANY.into());
    describe(&class, socket, found);
    note_engine(caller, &class, object, found);
    true
}

/// Notes where the queues of a connection are.
#[inline(always)]
fn note_engine(caller: &Caller, class: &WatcherConfig, object: &Object, found: &Change) {
    if follow_wire() == 0 || class.part != CONNECTION {
        return;
    }
    let engine =
        Engine { address: object.address, layout: class.engine, socket_type: found.socket_type, padding: [0; 3] };
    let _ = ENGINES.insert(&caller.key(found.fd), &engine, BPF_ANY.into());
}

/// The socket of an object, if that can be of this class.
#[inline(always)]
fn socket_of(watcher: &WatcherConfig, object: &Object, fd: i32) -> Option<u64> {
    if read_user::<i32>(object.address.wrapping_add(u64::from(watcher.fd))) != Some(fd) {
        return None;
    }
    let entry = object.address.wrapping_add(u64::from(watcher.entry));
    if object.entry != 0 && read_user::<u64>(entry) != Some(object.entry) {
        return None;
    }
    let handle = read_user::<u64>(object.address.wrapping_add(u64::from(watcher.socket)))?;
    has_tag(watcher, handle).then_some(handle)
}

/// Whether a socket is at an address, its build being that of the class.
#[inline(always)]
fn has_tag(watcher: &WatcherConfig, handle: u64) -> bool {
    read_user::<u32>(handle.wrapping_add(u64::from(watcher.tag))).is_some_and(is_socket_tag)
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
fn send(caller: &Caller, change: &Change, ts_ns: u64) {
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
        (*record).ts_ns = ts_ns;
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

/// Where this kernel keeps the addresses of sockets.
#[inline(always)]
pub fn layout() -> &'static SocketLayout {
    // By a pointer of which the compiler knows nothing, because userspace replaces the value at load; and no copy, which
    // would take a fifth of the stack.
    // SAFETY: a static of this program.
    unsafe { &*(opaque(&raw const SOCKET_LAYOUT as usize) as *const SocketLayout) }
}

/// The address of the open file at a fd of the current process; 0: there is none, or it cannot be read. A table of
/// fds is replaced when it grows and the old one freed after a grace period of RCU, which a program is inside of.
#[inline(always)]
pub fn file_at(fd: i32) -> u64 {
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
pub unsafe fn read_address(fd: i32, to: *mut FdAddress) -> u16 {
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
        return unsafe { read_unix_name(sock, layout, to) };
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
