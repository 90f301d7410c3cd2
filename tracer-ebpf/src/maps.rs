//! Everything that both sides of the kernel boundary share, and the constants that userspace sets
//! before loading. The verifier sees those as known values and drops the code they turn off.

use core::cell::UnsafeCell;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap, RingBuf},
};
use tracer_common::{
    fds::{ClassKey, FdConfig, FdKey, FdOwner, WatcherConfig},
    limits::{MAX_CLASSES, MAX_CLOSED_SOCKETS, MAX_FDS, MAX_REOPENED_SOCKETS, MAX_TARGETS, MAX_THREADS, MAX_TOTALS},
    record::{CallTotals, LOSS_REASONS, Loss, SocketAddress, TargetConfig, ThreadSlot, TotalsKey},
};

use crate::atomic;

/// Don't wake the reader: `BPF_RB_NO_WAKEUP`.
pub const NO_WAKEUP: u64 = 1;

/// Records to userspace. The size is set at load.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 24, 0);

/// The threads' calls in flight. An array, whose lookup the kernel inlines, because each traced call looks here
/// twice; mapped into userspace, which samples it without a system call.
#[map]
pub static THREADS: Array<ThreadSlot> = Array::with_max_entries(MAX_THREADS, BPF_F_MMAPABLE);

/// By tgid: the processes that are traced.
#[map]
pub static TARGETS: HashMap<u32, TargetConfig> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// How often a socket at this address was closed.
#[map]
pub static CLOSED: LruHashMap<SocketAddress, u32> = LruHashMap::with_max_entries(MAX_CLOSED_SOCKETS, 0);

/// By tgid: the processes whose file descriptors are followed. Userspace gives this and the next three maps one entry
/// where nobody asked for that.
#[map]
pub static FD_TARGETS: HashMap<u32, FdConfig> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// The file descriptors of ZeroMQ sockets. No LRU: one that was pushed out would be taken for another's.
#[map]
pub static FDS: HashMap<FdKey, FdOwner> = HashMap::with_max_entries(MAX_FDS, 0);

/// The classes of objects that watch file descriptors, as far as one of them could be told beyond doubt.
#[map]
pub static CLASSES: HashMap<ClassKey, WatcherConfig> = HashMap::with_max_entries(MAX_CLASSES, 0);

/// The generation of a socket whose address an earlier one had. [`CLOSED`] runs ahead of it from `zmq_close` on, while
/// the socket still lives and may connect.
#[map]
pub static REOPENED: LruHashMap<SocketAddress, u32> = LruHashMap::with_max_entries(MAX_REOPENED_SOCKETS, 0);

/// What `stat` counts. One map for all CPUs, not one a CPU: a ZeroMQ socket is used by one thread at a
/// time, so there is nothing to contend for, and the memory does not grow with the CPUs.
#[map]
pub static TOTALS: HashMap<TotalsKey, CallTotals> = HashMap::with_max_entries(MAX_TOTALS, 0);

/// By [`Loss`]: how often it happened.
#[map]
static LOST: Array<u64> = Array::with_max_entries(LOSS_REASONS, 0);

macro_rules! constant {
    ($(#[$doc:meta])* $name:ident, $read:ident, $type:ty) => {
        #[unsafe(no_mangle)]
        static $name: $type = 0;

        $(#[$doc])*
        #[inline(always)]
        pub fn $read() -> $type {
            // SAFETY: a static of this program. Volatile, because userspace replaces the value at load.
            unsafe { core::ptr::read_volatile(&raw const $name) }
        }
    };
}

constant! {
    /// Bytes of payload to copy (`-s`).
    PAYLOAD_LIMIT, payload_limit, u32
}
constant! {
    /// Classes whose calls become records.
    RECORD_CLASSES, record_classes, u32
}
constant! {
    /// Classes whose calls are counted in [`TOTALS`].
    COUNT_CLASSES, count_classes, u32
}
constant! {
    /// Offset of `thread.fsbase` in `task_struct`, from BTF; 0: not known.
    FSBASE_OFFSET, fsbase_offset, u32
}
constant! {
    /// 1: the file descriptors of sockets are followed.
    FOLLOW_FDS, follow_fds, u32
}
constant! {
    /// 1: system calls on connections are looked at.
    FOLLOW_WIRE, follow_wire, u32
}
constant! {
    /// 1: calls that complete messages say which pipes those went through.
    FOLLOW_PIPES, follow_pipes, u32
}
constant! {
    /// 1: `--debug`.
    DEBUG, debug, u32
}

/// How many sockets have been closed.
static CLOSES: Counter = Counter(UnsafeCell::new(0));

struct Counter(UnsafeCell<u64>);

// SAFETY: only ever accessed by atomic instructions and volatile loads.
unsafe impl Sync for Counter {}

/// How many sockets have been closed: while it stays, so does each address's generation.
#[inline(always)]
pub fn closes() -> u64 {
    // SAFETY: a live word; volatile, since other CPUs change it.
    unsafe { core::ptr::read_volatile(CLOSES.0.get()) }
}

/// Counts one more, after [`CLOSED`] has it.
#[inline(always)]
pub fn count_close() {
    // SAFETY: a live word.
    unsafe { atomic::add(CLOSES.0.get(), 1) };
}

/// Counts something that userspace will not see.
#[inline(always)]
pub fn lose(reason: Loss) {
    if let Some(counter) = LOST.get_ptr_mut(reason as u32) {
        // SAFETY: a live map value.
        unsafe { atomic::add(counter, 1) };
    }
}
