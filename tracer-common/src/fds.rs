//! File descriptors of ZeroMQ sockets: what the kernel side keeps of them and says when they change.

use crate::{
    limits::{MAX_PATH_BYTES, MAX_WATCHERS},
    wire::EngineLayout,
};

/// What a socket has a file descriptor for, one byte.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdPart {
    /// It listens.
    Listener = 1,
    /// connect(2) is under way on it.
    Connecter = 2,
    /// It carries a connection, or will when its engine is in place.
    Connection = 3,
    /// It tells of commands to the socket (`ZMQ_FD`).
    Mailbox = 4,
}

impl FdPart {
    /// The part that a byte names.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Listener),
            2 => Some(Self::Connecter),
            3 => Some(Self::Connection),
            4 => Some(Self::Mailbox),
            _ => None,
        }
    }
}

/// How a connection came to be, one byte; 0: not known.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdRole {
    /// A listener accepted it.
    Bind = 1,
    /// It was connected.
    Connect = 2,
}

/// What happened to a file descriptor, one byte.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdAction {
    /// An object of a socket's began to watch it.
    Added = 1,
    /// accept(2) on a socket's listener returned it.
    Accepted = 2,
    /// Nobody watches it any more: at the latest now it ceases to be the socket's.
    Removed = 3,
    /// It was closed, having been removed or never watched.
    Closed = 4,
}

impl FdAction {
    /// The action that a byte names.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Added),
            2 => Some(Self::Accepted),
            3 => Some(Self::Removed),
            4 => Some(Self::Closed),
            _ => None,
        }
    }
}

/// A file descriptor of a target.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FdKey {
    /// Process.
    pub tgid: u32,
    /// Its number.
    pub fd: i32,
}

/// Whose a file descriptor is. One thread may close it while another one is given its number: so it is replaced by an
/// exchange of `state`, and never deleted as long as the process lives.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FdOwner {
    /// What the rest is worth.
    pub state: FdState,
    /// The socket's address; 0: nobody's.
    pub handle: u64,
    /// Address of the open file, which tells one that was closed from its successor of the same number; 0: not noted.
    pub file: u64,
    /// [`FdConfig::program`] at the time.
    pub program: u32,
    /// Explicit padding.
    pub padding: u32,
}

/// The word of a [`FdOwner`] that decides.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FdState(pub u64);

impl FdState {
    /// `part`: a [`FdPart`], 0: none. `role`: a [`FdRole`], 0: not known. `watched`: an object of the socket's watches
    /// it. `library`: index of the libzmq.
    #[inline(always)]
    pub const fn new(part: u8, role: u8, watched: bool, library: u8) -> Self {
        Self(part as u64 | (role as u64) << 8 | (watched as u64) << 16 | (library as u64) << 24)
    }

    /// The same, but different from all that an earlier one of this word was.
    #[inline(always)]
    pub const fn following(self, before: Self) -> Self {
        Self(self.0 as u32 as u64 | ((before.0 >> 32) + 1) << 32)
    }

    /// [`FdPart`].
    #[inline(always)]
    pub const fn part(self) -> u8 {
        self.0 as u8
    }

    /// [`FdRole`].
    #[inline(always)]
    pub const fn role(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether an object of the socket's watches it.
    #[inline(always)]
    pub const fn is_watched(self) -> bool {
        (self.0 >> 16) as u8 != 0
    }

    /// Index of the libzmq.
    #[inline(always)]
    pub const fn library(self) -> u8 {
        (self.0 >> 24) as u8
    }
}

/// Where objects of one class of one libzmq build, which watch a file descriptor, keep what tells whose it is. An
/// object is known by its base class `i_poll_events`, from which its own offsets count.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WatcherConfig {
    /// [`FdPart`]; 0: this entry is unused, and so are those behind it.
    pub part: u8,
    /// Index of the libzmq.
    pub library: u8,
    /// Offset of the file descriptor.
    pub fd: u16,
    /// Offset of the address of its poll entry, which is not there yet while that is added.
    pub entry: u16,
    /// Offset of the pointer to the socket.
    pub socket: u16,
    /// Offset in the socket of its tag.
    pub tag: u16,
    /// Offset in the socket of its type.
    pub socket_type: u16,
    /// Offset in the socket of libzmq's own number of it.
    pub socket_id: u16,
    /// Of connections: the way to their queues.
    pub engine: EngineLayout,
}

/// A class of objects that watch file descriptors.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClassKey {
    /// Address of its table of virtual functions, of the base class `i_poll_events`.
    pub table: u64,
    /// Process.
    pub tgid: u32,
    /// [`FdConfig::program`] at the time.
    pub program: u32,
}

/// What the kernel side must know of a process whose file descriptors are followed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdConfig {
    /// How often the process has replaced its program. Of what the one before had, nothing holds any more.
    pub program: u32,
    /// 1: userspace has entered what was there before us. Until then what is removed is noted, whatever it is, so
    /// that it is not entered afterwards.
    pub is_seeded: u32,
    /// What an object can be.
    pub watchers: [WatcherConfig; MAX_WATCHERS],
}

/// A change of a file descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FdRecord {
    /// [`RecordKind::Fd`](crate::record::RecordKind::Fd).
    pub kind: u8,
    /// [`FdAction`].
    pub action: u8,
    /// [`FdPart`].
    pub part: u8,
    /// [`FdRole`], 0: not known.
    pub role: u8,
    /// Index of the libzmq.
    pub library: u8,
    /// `ZMQ_REQ`, ...; [`UNKNOWN_TYPE`]: not read.
    pub socket_type: u8,
    /// The address family: `AF_INET`, `AF_INET6` or `AF_UNIX`; 0: no address was read.
    pub family: u16,
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// The file descriptor.
    pub fd: i32,
    /// Accepted: the listener.
    pub listener: i32,
    /// The socket's address; 0: not known.
    pub handle: u64,
    /// How often a socket at this address had been closed before.
    pub generation: u32,
    /// libzmq's own number of the socket; of no meaning where its type is unknown.
    pub socket_id: u32,
    /// The addresses.
    pub address: FdAddress,
    /// Explicit padding.
    pub padding: [u8; 4],
}

/// [`FdRecord::socket_type`]: not read.
pub const UNKNOWN_TYPE: u8 = u8::MAX;

/// The addresses of both ends, as far as the family has them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FdAddress {
    /// Port of this end, host order.
    pub local_port: u16,
    /// Port of the other end, host order; 0: there is none.
    pub remote_port: u16,
    /// Bytes used in `path`: of a unix socket's name, with the NUL that may end it.
    pub path_len: u8,
    /// 1: `path` is the other end's.
    pub path_is_remote: u8,
    /// Explicit padding.
    pub padding: [u8; 2],
    /// IP address of this end; IPv4 in the first 4 bytes.
    pub local: [u8; 16],
    /// IP address of the other end.
    pub remote: [u8; 16],
    /// Name of a unix socket; begins with a NUL if it is no path.
    pub path: [u8; MAX_PATH_BYTES],
}

/// Where a kernel keeps what leads from a file descriptor to its addresses: offsets, bytes, from its BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SocketLayout {
    /// `task_struct.files`. 0: nothing is known of this kernel.
    pub task_files: u32,
    /// `files_struct.fdt`.
    pub files_table: u32,
    /// `fdtable.fd`.
    pub table_files: u32,
    /// `file.private_data`.
    pub file_private_data: u32,
    /// `socket.file`.
    pub socket_file: u32,
    /// `socket.sk`.
    pub socket_sk: u32,
    /// `sock_common.skc_family`.
    pub family: u32,
    /// `sock_common.skc_num`, host order.
    pub local_port: u32,
    /// `sock_common.skc_dport`, network order.
    pub remote_port: u32,
    /// `sock_common.skc_rcv_saddr`.
    pub local: u32,
    /// `sock_common.skc_daddr`.
    pub remote: u32,
    /// `sock_common.skc_v6_rcv_saddr`.
    pub local6: u32,
    /// `sock_common.skc_v6_daddr`.
    pub remote6: u32,
    /// `unix_sock.addr`. 0: this kernel has no unix sockets, or has them in a module.
    pub unix_address: u32,
    /// `unix_sock.peer`.
    pub unix_peer: u32,
    /// `unix_address.len`.
    pub unix_len: u32,
    /// `unix_address.name`, a `sockaddr_un`.
    pub unix_name: u32,
    /// `sock.sk_type`.
    pub sock_type: u32,
    /// `sock.sk_protocol`.
    pub protocol: u32,
    /// `sock.sk_socket`.
    pub sock_socket: u32,
    /// `tcp_sock.write_seq`. 0: not known.
    pub write_sequence: u32,
    /// `tcp_sock.copied_seq`. 0: not known.
    pub copied_sequence: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `inode.i_ino`.
    pub inode_number: u32,
}

#[cfg(feature = "user")]
mod user {
    use super::{FdConfig, FdKey, FdOwner, FdRecord, SocketLayout};

    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for FdConfig {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for FdKey {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for FdOwner {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for FdRecord {}
    // SAFETY: `repr(C)`, integers only, no implicit padding (see the test of sizes).
    unsafe impl aya::Pod for SocketLayout {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_keeps_what_it_is_given_and_is_new_each_time() {
        let state = FdState::new(FdPart::Connection as u8, FdRole::Bind as u8, true, 2);
        let next = state.following(state);
        for state in [state, next] {
            let all = (state.part(), state.role(), state.is_watched(), state.library());
            assert_eq!(all, (FdPart::Connection as u8, FdRole::Bind as u8, true, 2));
        }
        assert!(next != state && next.following(next) != next);
        assert!(!FdState::new(1, 1, false, 0).is_watched());
    }

    #[test]
    fn records_have_no_hidden_padding() {
        assert_eq!(size_of::<FdKey>(), 8);
        assert_eq!(size_of::<FdOwner>(), 32);
        assert_eq!(size_of::<WatcherConfig>(), 34);
        assert_eq!(size_of::<FdConfig>(), 8 + 34 * MAX_WATCHERS);
        assert_eq!(size_of::<FdAddress>(), 40 + MAX_PATH_BYTES);
        assert_eq!(size_of::<FdRecord>(), 48 + size_of::<FdAddress>() + 4);
        assert_eq!(size_of::<SocketLayout>(), 24 * 4);
    }
}
