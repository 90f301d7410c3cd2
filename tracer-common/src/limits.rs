//! Sizes of what the kernel side keeps and copies. All memory is fixed when the maps are made, so it
//! does not grow with load, threads or CPUs.

/// Bytes of a call's data (payload, text, option value, poll items) that travel inside the call's own
/// record. More goes as a [`DataRecord`](crate::record::DataRecord) of its own.
pub const INLINE_DATA_BYTES: usize = 64;

/// The most that one call's data can be, and so the upper bound of `-s`.
pub const MAX_DATA_BYTES: usize = 4096;

/// Bytes kept of an endpoint, a topic or another option value, whatever `-s` says.
pub const MAX_TEXT_BYTES: usize = 256;

/// Parts of a `zmq_sendiov` or `zmq_recviov` whose sizes are summed up; beyond it the size is unknown.
pub const MAX_IOV_PARTS: usize = 32;

/// Slots for threads that have called libzmq and live, over all targets; a power of two. A thread's slot
/// is the one at its tid modulo this, or one of the [`MAX_SLOT_STEPS`] behind it.
pub const MAX_THREADS: u32 = 8192;

/// How far a thread's slot is looked for. The call of a thread that finds none is counted as
/// [`Loss::ThreadTableFull`](crate::record::Loss::ThreadTableFull).
pub const MAX_SLOT_STEPS: u32 = 32;

/// Target processes.
pub const MAX_TARGETS: u32 = 1024;

/// libzmq copies that are told apart within one process.
pub const MAX_LIBRARIES: usize = 4;

/// Addresses of closed sockets whose generation is remembered, least recently used first out.
pub const MAX_CLOSED_SOCKETS: u32 = 65_536;

/// Distinct (socket, call, errno) that `stat` counts. One more is counted as
/// [`Loss::TotalsFull`](crate::record::Loss::TotalsFull).
pub const MAX_TOTALS: u32 = 4096;

/// Calls of one thread that can be in flight and reported at the same time: the outermost one, and one
/// that a callback of the program makes inside it.
pub const MAX_NESTED_FRAMES: usize = 2;

/// Stack, bytes, that may lie between a pending call and one that a callback of the program makes inside it.
/// A call further away runs on another stack, such as a coroutine's, and may outlive the pending one.
pub const MAX_CALLBACK_STACK_BYTES: u64 = 16 << 10;

/// File descriptors of ZeroMQ sockets that are followed, over all targets. One more is counted as
/// [`Loss::FdTableFull`](crate::record::Loss::FdTableFull).
pub const MAX_FDS: u32 = 65_536;

/// Addresses of sockets that were given to a later socket, whose generation is remembered for their file descriptors.
pub const MAX_REOPENED_SOCKETS: u32 = 65_536;

/// Classes of objects that watch file descriptors, over all libzmq copies of a process and the layouts that each may
/// have.
pub const MAX_WATCHERS: usize = 64;

/// Classes of objects that watch file descriptors that are told by their tables of virtual functions, over all
/// targets. Of one more the fields have to tell, each time.
pub const MAX_CLASSES: u32 = 8192;

/// Bytes of a unix socket's name, `sizeof sockaddr_un.sun_path`.
pub const MAX_PATH_BYTES: usize = 108;

/// Directions of connections that are walked, over all targets. One more is counted as
/// [`Loss::StreamTableFull`](crate::record::Loss::StreamTableFull).
pub const MAX_STREAMS: u32 = 32_768;

/// Bytes kept of a command, or of what a subscriber sends.
pub const MAX_COMMAND_BYTES: usize = 256;

/// Stretches of messages of the same length that one record can tell of; a system call with more makes several.
pub const MAX_RUNS: usize = 1024;

/// Pipes of one socket that are looked at after a call, those that it got last; what goes through others is only told as
/// long as messages take turns between them.
pub const MAX_SOCKET_PIPES: u32 = 128;

/// Pipes that are known, over all targets, and sockets that have some. One more is counted as
/// [`Loss::PipeTableFull`](crate::record::Loss::PipeTableFull).
pub const MAX_PIPES: u32 = 65_536;

/// Connections that moved their first messages before they had a pipe, until it is met; the oldest are forgotten.
pub const MAX_FIRST_MESSAGES: u32 = 4096;

/// `sizeof (zmq_pollitem_t)`.
pub const POLL_ITEM_BYTES: usize = 16;

/// `sizeof (zmq_poller_event_t)`.
pub const POLLER_EVENT_BYTES: usize = 32;
