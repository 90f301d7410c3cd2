//! What the kernel knows of sockets: tcp and unix stream sockets of the network namespaces of processes, with their
//! addresses, queues and other ends.
//!
//! Read by sock_diag(7); where that is refused, from `/proc/PID/net`, which says less. Both tables hold the sockets of
//! one network namespace, so that of every process is entered (see [`network_namespaces`] for those of containers).
//! A table is no single moment: sockets may come and go while it is read.

mod address;
mod namespace;
mod proc_net;
mod sock_diag;

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt, io,
    net::SocketAddr,
};

use self::namespace::Namespace;
pub use self::{
    address::Address,
    namespace::{network_namespace, network_namespaces},
};
use crate::event::KernelSocket;

/// Of one table; what is beyond is left out and stated.
const MAX_SOCKETS: usize = 1 << 20;

/// Names of `sk_state` (include/net/tcp_states.h), which unix sockets use too. From 1.
const STATES: [&str; 13] = [
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "BOUND_INACTIVE",
];

fn state(number: u8) -> &'static str {
    usize::from(number).checked_sub(1).and_then(|index| STATES.get(index)).copied().unwrap_or("UNKNOWN")
}

/// A tcp or unix stream socket. What the kernel did not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Socket {
    /// Inode of the network namespace that it was found in.
    pub namespace: u64,
    /// Its inode, the number in `/proc/PID/fd`; 0: no process has it, as it was closed or not accepted yet.
    pub inode: u64,
    /// Unix: inode of the other end; `None` also while that is not accepted yet, or after it was closed.
    pub peer_inode: Option<u64>,
    /// `ESTABLISHED`, `SYN_SENT`, `LISTEN`, ...
    pub state: &'static str,
    /// Address of this end; `None`: a unix socket without a name, as one is that connects. One that was accepted has
    /// its listener's.
    pub local: Option<Address>,
    /// Address of the other end; `None`: it has no other end, or that is a unix socket without a name.
    pub remote: Option<Address>,
    /// Bytes received and not yet read. Of a listener: connections not yet accepted.
    pub rx_bytes: Option<u32>,
    /// Bytes written that tcp's peer has not acknowledged, or that the reader of a unix socket has not read (if that
    /// end was not found, the kernel's memory for them, which is more). Of a listener: the most connections that may
    /// wait.
    pub tx_bytes: Option<u32>,
    /// tcp: retransmits of the segment that is on its way.
    pub retransmits: Option<u32>,
    /// tcp: segments ever retransmitted.
    pub total_retransmits: Option<u32>,
    /// tcp: smoothed round trip time, us.
    pub rtt_us: Option<u32>,
    /// tcp: congestion window, segments.
    pub snd_cwnd: Option<u32>,
    /// tcp: the peer's receive window, bytes. Linux 5.4 and later.
    pub snd_wnd: Option<u32>,
}

impl Socket {
    /// As events have it.
    pub fn to_event(&self) -> KernelSocket {
        KernelSocket {
            inode: self.inode,
            peer_inode: self.peer_inode,
            state: self.state.into(),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            retransmits: self.retransmits,
            total_retransmits: self.total_retransmits,
            rtt_us: self.rtt_us,
            snd_cwnd: self.snd_cwnd,
            snd_wnd: self.snd_wnd,
        }
    }

    /// Whether it waits for connections.
    pub fn is_listener(&self) -> bool {
        self.state == "LISTEN"
    }

    /// tcp: both addresses.
    fn pair(&self) -> Option<(SocketAddr, SocketAddr)> {
        match (&self.local, &self.remote) {
            (Some(Address::Tcp(local)), Some(Address::Tcp(remote))) => Some((*local, *remote)),
            _ => None,
        }
    }
}

/// A table of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// tcp over IPv4.
    Tcp4,
    /// tcp over IPv6, also that of IPv4 addresses by such sockets.
    Tcp6,
    /// Unix stream sockets.
    Unix,
}

impl Table {
    const ALL: [Self; 3] = [Self::Tcp4, Self::Tcp6, Self::Unix];
}

/// What a table gave, however it was read.
#[derive(Debug, Default)]
struct Dump {
    sockets: Vec<Socket>,
    /// Entries that made no sense.
    undecoded: usize,
    /// It changed while it was read, so that entries may be missing or double.
    is_interrupted: bool,
    /// There were more than [`MAX_SOCKETS`].
    is_cut: bool,
}

/// Something that was not read as it should be.
#[derive(Debug)]
pub struct Shortfall {
    /// Through which process.
    pub pid: u32,
    /// Which table; `None`: all of its namespace.
    pub table: Option<Table>,
    /// What is missing.
    pub loss: Loss,
}

/// What is missing of a table.
#[derive(Debug)]
pub enum Loss {
    /// All.
    Unread(io::Error),
    /// Sockets are there, but not what only sock_diag(7) says, for this reason.
    FromProc(io::Error),
    /// So many sockets, whose entries made no sense.
    Undecoded(usize),
    /// Some sockets perhaps: it changed under each attempt to read it.
    Interrupted,
    /// All beyond the first 1,048,576 sockets.
    Cut,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = match self.table {
            Some(Table::Tcp4) => "tcp sockets (IPv4)",
            Some(Table::Tcp6) => "tcp sockets (IPv6)",
            Some(Table::Unix) => "unix sockets",
            None => "sockets",
        };
        write!(f, "{table} in the network namespace of process {}: ", self.pid)?;
        match &self.loss {
            Loss::Unread(error) => write!(f, "not read ({error})"),
            Loss::FromProc(error) => write!(f, "read from /proc, with less detail, as sock_diag failed ({error})"),
            Loss::Undecoded(count) => write!(f, "{count} were not understood"),
            Loss::Interrupted => f.write_str("changed while they were read; some may be missing"),
            Loss::Cut => write!(f, "only the first {MAX_SOCKETS} were read"),
        }
    }
}

/// The sockets of some network namespaces.
#[derive(Debug, Default)]
pub struct KernelSockets {
    sockets: Vec<Socket>,
    by_inode: HashMap<u64, usize>,
    /// tcp: namespace, local and remote address.
    by_pair: HashMap<(u64, SocketAddr, SocketAddr), usize>,
    namespaces: Vec<u64>,
    shortfalls: Vec<Shortfall>,
}

impl KernelSockets {
    /// Reads the network namespaces that `pids` live in, each once. It always gives what could be read; what could
    /// not is in [`shortfalls`](Self::shortfalls).
    ///
    /// Namespaces other than our own need CAP_SYS_ADMIN.
    pub fn read(pids: impl IntoIterator<Item = u32>) -> Self {
        let mut sockets = Self::default();
        for pid in pids {
            match Namespace::of(pid) {
                Ok(namespace) if sockets.namespaces.contains(&namespace.inode) => {}
                Ok(namespace) => sockets.read_namespace(pid, &namespace),
                Err(error) => sockets.shortfalls.push(Shortfall { pid, table: None, loss: Loss::Unread(error) }),
            }
        }
        sockets.join_unix_ends();
        sockets
    }

    /// The socket with this inode.
    pub fn get(&self, inode: u64) -> Option<&Socket> {
        self.by_inode.get(&inode).map(|&index| &self.sockets[index])
    }

    /// The socket that `socket` is connected to, if it is in one of the namespaces read.
    ///
    /// Of tcp it is the one with the addresses swapped: in the same namespace, else, unless these are loopback
    /// addresses, in another one, if in no more than one. So an other end behind address translation is not found.
    pub fn other_end(&self, socket: &Socket) -> Option<&Socket> {
        let Some((local, remote)) = socket.pair() else { return self.get(socket.peer_inode?) };
        let within = |namespace| self.by_pair.get(&(namespace, remote, local)).map(|&index| &self.sockets[index]);
        if let Some(end) = within(socket.namespace) {
            return Some(end);
        }
        if remote.ip().is_loopback() {
            return None;
        }
        let elsewhere = self.namespaces.iter().filter(|&&namespace| namespace != socket.namespace);
        let mut ends = elsewhere.filter_map(|&namespace| within(namespace));
        let end = ends.next()?;
        ends.next().is_none().then_some(end)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.iter()
    }

    /// What could not be read as it should be.
    pub fn shortfalls(&self) -> &[Shortfall] {
        &self.shortfalls
    }

    fn read_namespace(&mut self, pid: u32, namespace: &Namespace) {
        self.namespaces.push(namespace.inode);
        let read = || Table::ALL.map(|table| sock_diag::read(table, namespace.inode));
        let dumps = namespace.enter(read).unwrap_or_else(|error| {
            Table::ALL.map(|_| Err(error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error)))
        });
        for (table, dump) in Table::ALL.into_iter().zip(dumps) {
            self.add(pid, table, dump, |table| proc_net::read(pid, table, namespace.inode));
        }
    }

    /// Takes a table in, or what `fallback` gives instead.
    fn add(
        &mut self,
        pid: u32,
        table: Table,
        dump: io::Result<Dump>,
        fallback: impl FnOnce(Table) -> io::Result<Dump>,
    ) {
        let mut lost = |loss| self.shortfalls.push(Shortfall { pid, table: Some(table), loss });
        let dump = match dump {
            Ok(dump) => dump,
            Err(error) => match fallback(table) {
                Ok(dump) => {
                    lost(Loss::FromProc(error));
                    dump
                }
                Err(_) => return lost(Loss::Unread(error)),
            },
        };
        if dump.undecoded > 0 {
            lost(Loss::Undecoded(dump.undecoded));
        }
        if dump.is_interrupted {
            lost(Loss::Interrupted);
        }
        if dump.is_cut {
            lost(Loss::Cut);
        }
        for socket in dump.sockets {
            self.insert(socket);
        }
    }

    fn insert(&mut self, socket: Socket) {
        let index = self.sockets.len();
        if socket.inode != 0 {
            match self.by_inode.entry(socket.inode) {
                Entry::Vacant(entry) => _ = entry.insert(index),
                // The kernel walks a table that changes: an entry may come twice.
                Entry::Occupied(_) => return,
            }
        }
        if let Some((local, remote)) = socket.pair() {
            self.by_pair.insert((socket.namespace, local, remote), index);
        }
        self.sockets.push(socket);
    }

    /// Of a unix socket, the kernel knows the other end's address and queue as that end's own.
    fn join_unix_ends(&mut self) {
        for index in 0..self.sockets.len() {
            let Some(peer_inode) = self.sockets[index].peer_inode else { continue };
            let Some(peer) = self.get(peer_inode) else { continue };
            let (remote, unread_bytes) = (peer.local.clone(), peer.rx_bytes);
            let socket = &mut self.sockets[index];
            socket.remote = remote;
            // The kernel's own number counts its memory for them, not the bytes.
            socket.tx_bytes = unread_bytes.or(socket.tx_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(namespace: u64, inode: u64, local: &str, remote: &str) -> Socket {
        let address = |text: &str| Some(Address::Tcp(text.parse().expect("an address")));
        Socket {
            namespace,
            inode,
            state: state(1),
            local: address(local),
            remote: address(remote),
            ..Socket::default()
        }
    }

    fn sockets(all: impl IntoIterator<Item = Socket>) -> KernelSockets {
        let mut sockets = KernelSockets { namespaces: vec![1, 2, 3], ..KernelSockets::default() };
        all.into_iter().for_each(|socket| sockets.insert(socket));
        sockets.join_unix_ends();
        sockets
    }

    #[test]
    fn the_other_end_is_sought_in_other_namespaces_unless_it_is_ambiguous() {
        let (host, inner) = ("10.0.0.1:40000", "10.0.0.2:5555");
        let other_end = |sockets: &KernelSockets| sockets.other_end(sockets.get(10)?).map(|end| end.inode);
        let client = tcp(1, 10, host, inner);
        assert_eq!(other_end(&sockets([client.clone()])), None);
        assert_eq!(other_end(&sockets([client.clone(), tcp(2, 20, inner, host)])), Some(20));
        assert_eq!(other_end(&sockets([client.clone(), tcp(2, 20, inner, host), tcp(3, 30, inner, host)])), None);
        assert_eq!(other_end(&sockets([client, tcp(1, 11, inner, host), tcp(2, 20, inner, host)])), Some(11));
        let (local, remote) = ("127.0.0.1:40000", "127.0.0.1:5555");
        assert_eq!(other_end(&sockets([tcp(1, 10, local, remote), tcp(2, 20, remote, local)])), None);
    }

    #[test]
    fn unix_ends_tell_each_other_their_address_and_queue() {
        let unix = |inode, peer_inode, rx_bytes, tx_bytes| Socket {
            inode,
            peer_inode: Some(peer_inode),
            rx_bytes: Some(rx_bytes),
            tx_bytes: Some(tx_bytes),
            ..Socket::default()
        };
        let path = Some(Address::Path(b"/x".to_vec()));
        let accepted = Socket { local: path.clone(), ..unix(2, 1, 1000, 0) };
        let sockets = sockets([unix(1, 2, 0, 2304), accepted, unix(3, 4, 0, 2304)]);
        let connected = sockets.get(1).expect("the socket");
        assert_eq!((&connected.remote, connected.tx_bytes), (&path, Some(1000)));
        assert_eq!(sockets.get(3).and_then(|socket| socket.tx_bytes), Some(2304), "its other end is not there");
    }

    fn pair(socket: &Socket) -> String {
        [&socket.local, &socket.remote].map(|end| end.as_ref().map(ToString::to_string).unwrap_or_default()).join(" ")
    }

    #[test]
    fn proc_and_sock_diag_agree() {
        let listener = std::net::TcpListener::bind("[::1]:0").expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let _waits = std::net::TcpStream::connect(("::1", port)).expect("connect");
        let of_port = |dump: io::Result<Dump>| {
            let mut sockets = dump.expect("the table").sockets;
            sockets.retain(|socket| pair(socket).contains(&format!("[::1]:{port}")));
            let mut known: Vec<_> =
                sockets.iter().map(|socket| (pair(socket), socket.inode, socket.state, socket.rx_bytes)).collect();
            known.sort();
            known
        };
        let known = of_port(sock_diag::read(Table::Tcp6, 1));
        assert_eq!(known.len(), 3, "{known:?}");
        assert_eq!(of_port(proc_net::read(std::process::id(), Table::Tcp6, 1)), known);
    }

    #[test]
    fn a_table_that_is_refused_is_read_from_proc_and_stated() {
        let refused = || Err(io::Error::from_raw_os_error(libc::ENOENT));
        let mut sockets = KernelSockets::default();
        let dump = Dump { sockets: vec![Socket { inode: 5, ..Socket::default() }], undecoded: 2, ..Dump::default() };
        sockets.add(7, Table::Unix, refused(), |_| Ok(dump));
        sockets.add(7, Table::Tcp6, refused(), |_| refused());
        assert!(sockets.get(5).is_some());
        let stated: Vec<String> = sockets.shortfalls().iter().map(ToString::to_string).collect();
        assert_eq!(
            stated,
            [
                "unix sockets in the network namespace of process 7: read from /proc, with less detail, as sock_diag \
                 failed (No such file or directory (os error 2))",
                "unix sockets in the network namespace of process 7: 2 were not understood",
                "tcp sockets (IPv6) in the network namespace of process 7: not read (No such file or directory (os error 2))",
            ]
        );
    }
}
