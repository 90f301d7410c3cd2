//! The raw records of the ring buffer and the values of the shared maps.
//!
//! All are `repr(C)` with explicit padding and hold plain integers only, so that every bit pattern is
//! valid. A record in the ring begins with its [`RecordKind`] as one byte.

use crate::limits::{INLINE_DATA_BYTES, MAX_LIBRARIES, MAX_NESTED_FRAMES};

/// First byte of every record in the ring buffer.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A [`CallRecord`].
    Call = 1,
    /// A [`DataRecord`].
    Data = 2,
    /// A [`ThreadRecord`]: a thread made its first call.
    ThreadStart = 3,
    /// A [`ThreadRecord`]: a thread that had made calls ended.
    ThreadExit = 4,
    /// A [`ThreadRecord`]: a target replaced its program by `execve`.
    ProcessExec = 5,
    /// A [`FdRecord`](crate::fds::FdRecord).
    Fd = 6,
    /// A [`WireRecord`](crate::wire::WireRecord).
    Wire = 7,
    /// A [`StreamRecord`](crate::wire::StreamRecord).
    Stream = 8,
    /// A [`CommandRecord`](crate::wire::CommandRecord).
    Command = 9,
    /// A [`PipeRecord`](crate::wire::PipeRecord).
    Pipe = 10,
}

impl RecordKind {
    /// The kind that a record's first byte names.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Call),
            2 => Some(Self::Data),
            3 => Some(Self::ThreadStart),
            4 => Some(Self::ThreadExit),
            5 => Some(Self::ProcessExec),
            6 => Some(Self::Fd),
            7 => Some(Self::Wire),
            8 => Some(Self::Stream),
            9 => Some(Self::Command),
            10 => Some(Self::Pipe),
            _ => None,
        }
    }
}

/// [`CallRecord::flags`]: `errno` was read from the thread's own variable.
pub const FLAG_ERRNO_KNOWN: u8 = 1;
/// [`CallRecord::flags`]: `size` is known.
pub const FLAG_SIZE_KNOWN: u8 = 1 << 1;
/// [`CallRecord::flags`]: whether more parts follow is known.
pub const FLAG_MORE_KNOWN: u8 = 1 << 2;
/// [`CallRecord::flags`]: more parts follow.
pub const FLAG_MORE: u8 = 1 << 3;
/// [`CallRecord::flags`]: the target's memory could not be read; `data` is shorter than it should be.
pub const FLAG_DATA_FAULT: u8 = 1 << 4;
/// [`CallRecord::flags`]: the data came before in a [`DataRecord`] with the same thread and sequence.
pub const FLAG_DATA_APART: u8 = 1 << 5;
/// [`CallRecord::flags`]: the data had to go in a [`DataRecord`] and the ring was full.
pub const FLAG_DATA_LOST: u8 = 1 << 6;
/// [`CallRecord::flags`]: a text is longer than [`MAX_TEXT_BYTES`](crate::limits::MAX_TEXT_BYTES).
pub const FLAG_TEXT_CUT: u8 = 1 << 7;

/// One libzmq call. In flight it lies in its thread's [`ThreadSlot`]; at the return it is completed
/// there and copied to the ring, cut behind the bytes of `data` that are used.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CallRecord {
    /// [`RecordKind::Call`].
    pub kind: u8,
    /// Index in [`FUNCTIONS`](crate::function::FUNCTIONS).
    pub function: u8,
    /// Which libzmq of the process, in the order in which they were found.
    pub library: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Bytes used in `data`, at most [`INLINE_DATA_BYTES`].
    pub data_len: u32,
    /// CLOCK_MONOTONIC at entry.
    pub entry_ns: u64,
    /// CLOCK_MONOTONIC at return; 0 while in flight.
    pub return_ns: u64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Counts the calls of this thread, so that data records find their call.
    pub sequence: u32,
    /// `errno` after the call; see [`FLAG_ERRNO_KNOWN`].
    pub errno: i32,
    /// The whole return register; its type is [`Returns`](crate::function::Returns).
    pub ret: i64,
    /// Bytes of the message part (or parts, for iovecs); see [`FLAG_SIZE_KNOWN`].
    pub size: u64,
    /// How often a socket at the handle's address (`zmq_socket`: at the returned one) had been closed
    /// before.
    pub generation: u32,
    /// Explicit padding.
    pub padding: u32,
    /// The call's arguments as passed.
    pub args: [u64; 6],
    /// Payload, text, option value or poll items: what the function table's capture column says.
    pub data: [u8; INLINE_DATA_BYTES],
}

/// Bytes of a [`CallRecord`] before its data.
pub const CALL_HEADER_BYTES: usize = core::mem::size_of::<CallRecord>() - INLINE_DATA_BYTES;

/// Data of a call that did not fit into its record. Comes before the call's record.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DataRecord<const N: usize> {
    /// [`RecordKind::Data`].
    pub kind: u8,
    /// Explicit padding.
    pub padding: [u8; 3],
    /// Bytes used in `data`.
    pub data_len: u32,
    /// Thread.
    pub tid: u32,
    /// [`CallRecord::sequence`] of its call.
    pub sequence: u32,
    /// The bytes.
    pub data: [u8; N],
}

/// Bytes of a [`DataRecord`] before its data.
pub const DATA_HEADER_BYTES: usize = core::mem::size_of::<DataRecord<0>>();

/// Life of a thread or process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadRecord {
    /// A [`RecordKind`].
    pub kind: u8,
    /// Explicit padding.
    pub padding: [u8; 3],
    /// Index of the thread's [`ThreadSlot`].
    pub slot: u32,
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Name of the thread, NUL-padded.
    pub comm: [u8; 16],
}

/// A call in flight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Stack pointer at entry, which together with the thread is the call's key: a nested or abandoned
    /// call has another one. 0: no call in flight.
    pub sp: u64,
    /// The probe's [`Cookie`](crate::function::Cookie).
    pub cookie: u64,
    /// What is known of the call so far.
    pub call: CallRecord,
}

/// What the kernel side keeps of a thread: its calls in flight. Written by that thread alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadSlot {
    /// The thread, as `pid_tgid`; 0: the slot is free.
    pub owner: u64,
    /// The last handle that a call was about, and its generation, which holds as long as the number of
    /// sockets closed is `closes`.
    pub handle: u64,
    /// See `handle`.
    pub closes: u64,
    /// See `handle`.
    pub generation: u32,
    /// Sequence of the thread's next call.
    pub sequence: u32,
    /// Outermost first.
    pub frames: [Frame; MAX_NESTED_FRAMES],
}

/// Where one libzmq build keeps what the kernel side reads from its structures.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LibraryConfig {
    /// Code of libzmq itself, start and end address: a call that returns there was made by libzmq (a
    /// monitor's event), not by the program.
    pub internal_code: [u64; 2],
    /// 1: `internal_code` is all of libzmq's code and nothing else, so a call from elsewhere is the program's.
    pub tells_callers: u32,
    /// Explicit padding.
    pub padding: u32,
    /// Offset in `zmq_msg_t` of its type, which stands between a short message's size and the flags.
    /// 0: layout not known.
    pub message_type: u32,
    /// Offset of the content pointer of a long message, and of a short message's bytes.
    pub message_content: u32,
    /// The layouts that builds of this version are known to have; unused ones have a tag at 0.
    pub sockets: [SocketConfig; 4],
}

/// One layout of `zmq::socket_base_t`. It applies to a socket when the socket's tag is found at `tag`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SocketConfig {
    /// Offset of the tag word [`SOCKET_TAG`].
    pub tag: u32,
    /// Offset of the flag that the last part received has successors.
    pub rcvmore: u32,
    /// Offset of libzmq's own number of the socket; 0: not known.
    pub socket_id: u32,
    /// Offset of its type, a byte.
    pub socket_type: u32,
    /// Offset of its vector of pipes; 0: not known.
    pub pipes: u32,
    /// Offset in a pipe of its [`PipeEnd`](crate::wire::PipeEnd).
    pub pipe_counts: u32,
}

/// Marks a live socket in libzmq's memory (`socket_base_t::check_tag`, 4.1 to 4.3.5).
pub const SOCKET_TAG: u32 = 0xbadd_ecaf;

/// The same of a socket that the program has closed, until the reaper thread has dealt with it.
pub const CLOSED_SOCKET_TAG: u32 = 0xdead_beef;

/// Whether a tag is that of a socket, open or closed.
pub const fn is_socket_tag(tag: u32) -> bool {
    tag == SOCKET_TAG || tag == CLOSED_SOCKET_TAG
}

/// Bytes of the page that holds the trampoline of return probes.
pub const TRAMPOLINE_BYTES: u64 = 4096;

/// What the kernel side must know of a target process.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct TargetConfig {
    /// Offset of `errno` from the thread pointer (negative on x86_64); 0: not known.
    pub errno_offset: i64,
    /// Page that return addresses point to while their return probes are pending (`[uprobes]` in
    /// `/proc/PID/maps`); 0: not known yet.
    pub trampoline: u64,
    /// Which of its system calls are looked at: a [`WireScope`](crate::wire::WireScope).
    pub wire: u32,
    /// Explicit padding.
    pub padding: u32,
    /// By the index in the probe's cookie.
    pub libraries: [LibraryConfig; MAX_LIBRARIES],
}

/// Key of [`CallTotals`]: one socket, one call, one outcome.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TotalsKey {
    /// Address of the socket, or of the context or poller; 0 where the call has none.
    pub handle: u64,
    /// Process.
    pub tgid: u32,
    /// See [`CallRecord::generation`].
    pub generation: u32,
    /// `errno` of a failed call, -1 where it could not be read; 0 for success.
    pub errno: i32,
    /// See [`CallRecord::function`].
    pub function: u8,
    /// See [`CallRecord::library`].
    pub library: u8,
    /// Explicit padding.
    pub padding: [u8; 2],
}

/// Sub-buckets an octave of duration is divided into, as a power of two.
pub const BUCKETS_PER_OCTAVE_BITS: u32 = 3;
/// Octaves: durations up to 2^40 ns, 18 minutes, are told apart; longer ones share the last bucket.
pub const BUCKET_OCTAVES: u32 = 41;
/// Log-linear buckets of call durations.
pub const BUCKETS: usize = (BUCKET_OCTAVES << BUCKETS_PER_OCTAVE_BITS) as usize;

/// Index of the bucket that counts `duration_ns`.
#[inline(always)]
pub const fn bucket_of(duration_ns: u64) -> usize {
    let linear = 1 << BUCKETS_PER_OCTAVE_BITS;
    if duration_ns < linear {
        return duration_ns as usize;
    }
    let octave = 63 - duration_ns.leading_zeros();
    let shift = octave - BUCKETS_PER_OCTAVE_BITS;
    let index = (((shift + 1) as u64) << BUCKETS_PER_OCTAVE_BITS) + ((duration_ns >> shift) & (linear - 1));
    if index < BUCKETS as u64 { index as usize } else { BUCKETS - 1 }
}

/// The durations that bucket `index` counts: its lowest value and its width, ns.
pub const fn bucket_bounds(index: usize) -> (u64, u64) {
    let linear = 1 << BUCKETS_PER_OCTAVE_BITS;
    let index = index as u64;
    if index < linear {
        return (index, 1);
    }
    let shift = (index >> BUCKETS_PER_OCTAVE_BITS) - 1;
    ((linear + (index & (linear - 1))) << shift, 1 << shift)
}

/// What `stat` counts in the kernel, exact whatever is lost in the ring. The number of calls is the sum of
/// the buckets.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CallTotals {
    /// Sum of durations.
    pub total_ns: u64,
    /// Longest call.
    pub max_ns: u64,
    /// Payload bytes of successful sends and receives.
    pub bytes: u64,
    /// Messages completed: parts that have no successor.
    pub messages: u64,
    /// Parts of which it is not known whether others follow.
    pub parts_unknown: u64,
    /// Durations; see [`bucket_of`].
    pub buckets: [u64; BUCKETS],
}

/// Why something observed did not reach userspace: index into the kernel side's loss counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A call's record found the ring full.
    RingFull = 0,
    /// A call's data found the ring full; the call itself was reported.
    DataRingFull = 1,
    /// More threads inside libzmq than [`MAX_THREADS`](crate::limits::MAX_THREADS).
    ThreadTableFull = 2,
    /// More kinds of calls than [`MAX_TOTALS`](crate::limits::MAX_TOTALS).
    TotalsFull = 3,
    /// A callback called libzmq from within a callback, deeper than is kept.
    TooDeep = 4,
    /// A thread or process record found the ring full.
    LifeRingFull = 5,
    /// A call began on another stack while one of the thread was pending below it (a signal handler's stack, a
    /// coroutine): a second return probe there would make the kernel kill the target.
    OtherStack = 6,
    /// A change of a file descriptor found the ring full.
    FdRingFull = 7,
    /// More file descriptors than [`MAX_FDS`](crate::limits::MAX_FDS).
    FdTableFull = 8,
    /// A system call on a connection, or what was learnt of one, found the ring full.
    WireRingFull = 9,
    /// More directions of connections than [`MAX_STREAMS`](crate::limits::MAX_STREAMS).
    StreamTableFull = 10,
    /// More pipes, or sockets with pipes, than [`MAX_PIPES`](crate::limits::MAX_PIPES).
    PipeTableFull = 11,
}

/// Number of [`Loss`] reasons.
pub const LOSS_REASONS: u32 = 12;

/// Key of maps of sockets, or of what is counted at the address of one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketAddress {
    /// The socket's address.
    pub handle: u64,
    /// Process.
    pub tgid: u32,
    /// Explicit padding.
    pub padding: u32,
}

/// What the iterator over tasks says of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskRecord {
    /// Thread.
    pub tid: u32,
    /// Process.
    pub tgid: u32,
    /// Where it entered the kernel; of no meaning for one that runs.
    pub ip: u64,
    /// Stack pointer there.
    pub sp: u64,
    /// Frame pointer there.
    pub bp: u64,
    /// How often it was given a CPU; 0: not known.
    pub times_run: u64,
    /// When it was last given one, on the scheduler's clock; 0: not known.
    pub arrival_ns: u64,
    /// How long it then ran.
    pub ran_ns: u64,
    /// When the thread that reads this was last given a CPU, on the scheduler's clock; 0: not known.
    pub reader_arrival_ns: u64,
    /// CLOCK_MONOTONIC, after that.
    pub now_ns: u64,
}

/// Where a kernel keeps what [`TaskRecord`] has: offsets in `task_struct`, bytes, or [`ABSENT`](Self::ABSENT).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskLayout {
    /// `pid`: the thread's number.
    pub pid: u32,
    /// `tgid`.
    pub tgid: u32,
    /// `policy`.
    pub policy: u32,
    /// `sched_info.pcount`.
    pub times_run: u32,
    /// `sched_info.last_arrival`.
    pub arrival_ns: u32,
    /// `se.sum_exec_runtime`: how long it has run since it began.
    pub ran_ns: u32,
    /// `se.prev_sum_exec_runtime`: the same when it was last given a CPU, for threads of the fair policies.
    pub ran_before_ns: u32,
}

impl TaskLayout {
    /// The kernel has no such field.
    pub const ABSENT: u32 = u32::MAX;
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        pid: Self::ABSENT,
        tgid: Self::ABSENT,
        policy: Self::ABSENT,
        times_run: Self::ABSENT,
        arrival_ns: Self::ABSENT,
        ran_ns: Self::ABSENT,
        ran_before_ns: Self::ABSENT,
    };
}

#[cfg(feature = "user")]
mod user {
    use super::{
        CallRecord, CallTotals, SocketAddress, TargetConfig, TaskLayout, TaskRecord, ThreadRecord, ThreadSlot,
        TotalsKey,
    };

    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for CallRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for CallTotals {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for SocketAddress {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for TargetConfig {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for TaskLayout {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for TaskRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for ThreadRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for ThreadSlot {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for TotalsKey {}
    // SAFETY: as above.
    unsafe impl<const N: usize> aya::Pod for super::DataRecord<N> {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_all_durations_without_gap_or_overlap() {
        let mut next = 0;
        for index in 0..BUCKETS {
            let (low, width) = bucket_bounds(index);
            assert_eq!(low, next, "bucket {index}");
            assert_eq!(bucket_of(low), index);
            assert_eq!(bucket_of(low + width - 1), index);
            next = low + width;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_bucket_is_at_most_an_eighth_of_its_value_wide() {
        for index in 16..BUCKETS {
            let (low, width) = bucket_bounds(index);
            assert!(width * 8 <= low, "bucket {index}: {low} + {width}");
        }
    }

    #[test]
    fn records_have_no_hidden_padding() {
        assert_eq!(CALL_HEADER_BYTES, 112);
        assert_eq!(DATA_HEADER_BYTES, 16);
        assert_eq!(size_of::<TotalsKey>(), 24);
        assert_eq!(size_of::<ThreadRecord>(), 40);
        assert_eq!(size_of::<TaskRecord>(), 72);
        assert_eq!(size_of::<TaskLayout>(), 28);
        assert_eq!(size_of::<LibraryConfig>(), 128);
        assert_eq!(size_of::<TargetConfig>(), 24 + 128 * MAX_LIBRARIES);
    }
}
