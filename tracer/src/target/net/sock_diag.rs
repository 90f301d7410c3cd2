//! The kernel's tables of sockets by sock_diag(7), of the network namespace that the calling thread is in.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{self, ExtensionFlags, InetRequest, InetResponse, SocketId},
    unix::{self, ShowFlags, UnixRequest, UnixResponse, nlas::UnixDiagName},
};
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};

use super::{Address, Dump, MAX_SOCKETS, Socket, Table, state};

/// The kernel gives at most 32 KiB a datagram, and that only to those who offer as much (`netlink_recvmsg` of
/// net/netlink/af_netlink.c): none is cut.
const RECEIVE_BYTES: usize = 64 << 10;
/// `sizeof(struct nlmsghdr)`.
const NETLINK_HEADER_BYTES: usize = 16;
/// A dump that was disturbed is tried again, this often in all.
const ATTEMPTS: usize = 3;

/// Where fields of `struct tcp_info` lie (linux/tcp.h). It only ever grows at its end; how long it is says which
/// fields there are.
mod tcp_info {
    /// `tcpi_retransmits`, u8.
    pub const RETRANSMITS: usize = 2;
    /// `tcpi_rtt`, us.
    pub const RTT: usize = 68;
    /// `tcpi_snd_cwnd`, segments.
    pub const SND_CWND: usize = 80;
    /// `tcpi_total_retrans`, segments.
    pub const TOTAL_RETRANS: usize = 100;
    /// `tcpi_snd_wnd`, bytes. Linux 5.4.
    pub const SND_WND: usize = 228;
}

/// All sockets of `table`.
///
/// # Errors
/// The kernel's: `ENOENT` without the module (`tcp_diag`, `unix_diag`), `EPROTONOSUPPORT` without sock_diag.
pub fn read(table: Table, namespace: u64) -> io::Result<Dump> {
    let mut result = read_once(table, namespace);
    for _ in 1..ATTEMPTS {
        let is_disturbed = match &result {
            Ok(dump) => dump.is_interrupted,
            Err(error) => is_temporary(error),
        };
        if !is_disturbed {
            break;
        }
        result = read_once(table, namespace);
    }
    result
}

/// The kernel ran short of memory for the next datagram, or a signal came.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::EINTR))
}

/// With a socket of its own, so that nothing of a failed attempt is left in it.
fn read_once(table: Table, namespace: u64) -> io::Result<Dump> {
    let socket = Netlink::new(NETLINK_SOCK_DIAG)?;
    // Connected to the kernel, it takes messages of nobody else.
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&request(table), 0)?;
    let mut dump = Dump::default();
    let mut datagram = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        datagram.clear();
        // The kernel makes the next datagram of a dump within the receive of the one before: there is nothing to
        // wait for, and a dump that breaks off is `EAGAIN` instead of a wait for ever.
        if socket.recv(&mut datagram, libc::MSG_DONTWAIT)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !take(&datagram, namespace, &mut dump)? {
            return Ok(dump);
        }
    }
}

fn request(table: Table) -> Vec<u8> {
    let inner = match table {
        Table::Tcp4 => tcp_request(AF_INET, SocketId::new_v4()),
        Table::Tcp6 => tcp_request(AF_INET6, SocketId::new_v6()),
        Table::Unix => SockDiagMessage::UnixRequest(UnixRequest {
            // Those that are neither connected nor listen, too.
            state_flags: unix::StateFlags::from_bits_retain(u32::MAX),
            inode: 0,
            show_flags: ShowFlags::NAME | ShowFlags::PEER | ShowFlags::RQLEN,
            cookie: [0xff; 8],
        }),
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(inner));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn tcp_request(family: u8, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        // Those belong to no process any more.
        states: inet::StateFlags::all() - inet::StateFlags::TIME_WAIT,
        socket_id,
    })
}

/// Takes the messages of one datagram into `dump`. Whether more are to come.
///
/// # Errors
/// What the kernel said instead of a table; `InvalidData` when messages cannot be told apart.
fn take(mut datagram: &[u8], namespace: u64, dump: &mut Dump) -> io::Result<bool> {
    while let Some(length) = datagram.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
        if length < NETLINK_HEADER_BYTES || length > datagram.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message of an impossible length"));
        }
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(&datagram[..length]);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        let Ok(message) = message else {
            dump.undecoded += 1;
            continue;
        };
        dump.is_interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(tcp)) => {
                dump.sockets.push(tcp_socket(&tcp, namespace));
            }
            NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(unix))
                if i32::from(unix.header.kind) == libc::SOCK_STREAM =>
            {
                dump.sockets.push(unix_socket(&unix, namespace));
            }
            NetlinkPayload::Done(done) if done.code < 0 => return Err(kernel_error(done.code)),
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) => return Err(kernel_error(error.code.map_or(-libc::EPROTO, i32::from))),
            NetlinkPayload::Overrun(_) => return Err(kernel_error(-libc::ENOBUFS)),
            _ => {}
        }
        if dump.sockets.len() + dump.undecoded >= MAX_SOCKETS {
            dump.is_cut = true;
            return Ok(false);
        }
    }
    Ok(true)
}

fn kernel_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

fn tcp_socket(response: &InetResponse, namespace: u64) -> Socket {
    let (header, id) = (&response.header, &response.header.socket_id);
    let mut socket = Socket {
        namespace,
        inode: header.inode.into(),
        state: state(header.state),
        local: Some(Address::tcp(id.source_address, id.source_port)),
        remote: (id.destination_port != 0).then(|| Address::tcp(id.destination_address, id.destination_port)),
        rx_bytes: Some(header.recv_queue),
        tx_bytes: Some(header.send_queue),
        ..Socket::default()
    };
    let info = response.nlas.iter().find_map(|attribute| match attribute {
        inet::nlas::Nla::TcpInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    if let Some(info) = info {
        add_tcp_info(&mut socket, info);
    }
    socket
}

/// Where the kernel has not measured, `tcp_info` holds zeros: these are not passed on as values.
fn add_tcp_info(socket: &mut Socket, info: &[u8]) {
    if socket.is_listener() {
        return;
    }
    let field = |offset: usize| info.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    socket.retransmits = info.get(tcp_info::RETRANSMITS).map(|&count| count.into());
    socket.total_retransmits = field(tcp_info::TOTAL_RETRANS);
    socket.rtt_us = field(tcp_info::RTT).filter(|&rtt_us| rtt_us > 0);
    socket.snd_cwnd = field(tcp_info::SND_CWND);
    // Before the peer has answered, it has no window.
    socket.snd_wnd = field(tcp_info::SND_WND).filter(|_| !matches!(socket.state, "SYN_SENT" | "SYN_RECV" | "CLOSE"));
}

fn unix_socket(response: &UnixResponse, namespace: u64) -> Socket {
    let queues = response.nlas.iter().find_map(|attribute| match attribute {
        unix::nlas::Nla::ReceiveQueueLength(rx, tx) => Some((*rx, *tx)),
        _ => None,
    });
    Socket {
        namespace,
        inode: response.header.inode.into(),
        // Of a peer that is closed, or not accepted yet, the inode is 0.
        peer_inode: response.peer().filter(|&inode| inode != 0).map(u64::from),
        state: state(response.header.state),
        local: response.name().map(|name| match name {
            UnixDiagName::Pathname(path) => Address::Path(path.as_encoded_bytes().to_vec()),
            UnixDiagName::Abstract(name) => Address::Abstract(name.clone()),
        }),
        rx_bytes: queues.map(|(rx, _)| rx),
        tx_bytes: queues.map(|(_, tx)| tx),
        ..Socket::default()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Dumps of Linux 6.18: a listener, a connection with 1000 bytes unread, one that waits to be accepted; the same
    /// of unix sockets, and an abstract listener.
    const TCP: &[u8] = include_bytes!("../../../tests/data/sockets/sock_diag.tcp.bin");
    const UNIX: &[u8] = include_bytes!("../../../tests/data/sockets/sock_diag.unix.bin");

    fn dump(bytes: &[u8]) -> Dump {
        let mut dump = Dump::default();
        assert!(!take(bytes, 1, &mut dump).expect("a dump"), "it ends");
        dump
    }

    fn text(address: &Option<Address>) -> String {
        address.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn a_recorded_dump_of_tcp_is_understood() {
        let dump = dump(TCP);
        assert_eq!((dump.sockets.len(), dump.undecoded), (5, 0));
        let found = |inode| dump.sockets.iter().find(|socket| socket.inode == inode).expect("the socket");
        let listener = found(80759);
        assert_eq!((listener.state, text(&listener.local).as_str()), ("LISTEN", "127.0.0.1:5555"));
        assert_eq!((&listener.remote, listener.rx_bytes, listener.tx_bytes), (&None, Some(1), Some(100)));
        assert_eq!((listener.rtt_us, listener.snd_wnd, listener.retransmits), (None, None, None));
        let accepted = found(80761);
        assert_eq!(
            (text(&accepted.local).as_str(), text(&accepted.remote).as_str()),
            ("127.0.0.1:5555", "127.0.0.1:40000")
        );
        assert_eq!((accepted.state, accepted.rx_bytes, accepted.tx_bytes), ("ESTABLISHED", Some(1000), Some(0)));
        assert_eq!((accepted.retransmits, accepted.total_retransmits), (Some(0), Some(0)));
        let connected = found(80760);
        assert_eq!(connected.snd_cwnd, Some(11), "as /proc/net/tcp said at the time");
        assert!(connected.rtt_us.is_some_and(|rtt_us| rtt_us < 10_000));
        assert!(connected.snd_wnd.is_some_and(|window| window > 1000));
    }

    #[test]
    fn a_recorded_dump_of_unix_sockets_is_understood() {
        let dump = dump(UNIX);
        assert_eq!(dump.undecoded, 0);
        let found = |inode| dump.sockets.iter().find(|socket| socket.inode == inode).expect("the socket");
        let listener = found(80763);
        assert_eq!((listener.state, text(&listener.local).as_str()), ("LISTEN", "/tmp/zmqtrace.ipc"));
        assert_eq!((listener.rx_bytes, listener.tx_bytes), (Some(0), Some(7)));
        let (connected, accepted) = (found(80764), found(80765));
        assert_eq!((connected.peer_inode, accepted.peer_inode), (Some(80765), Some(80764)));
        assert_eq!((&connected.local, text(&accepted.local).as_str()), (&None, "/tmp/zmqtrace.ipc"));
        assert_eq!(accepted.rx_bytes, Some(1000));
        assert_eq!(text(&found(80766).local), "@zmqtrace");
        assert_eq!(dump.sockets.len(), 4, "no datagram sockets");
    }

    #[test]
    fn a_cut_or_damaged_dump_is_survived() {
        for whole in [TCP, UNIX] {
            for end in 0..whole.len() {
                _ = take(&whole[..end], 1, &mut Dump::default());
            }
            // Every byte as each of some values: lengths that are 0, odd, too large.
            for position in 0..whole.len() {
                for value in [0, 1, 3, 5, 0x7f, 0x80, 0xff] {
                    let mut bytes = whole.to_vec();
                    bytes[position] = value;
                    let mut dump = Dump::default();
                    _ = take(&bytes, 1, &mut dump);
                    assert!(dump.sockets.len() + dump.undecoded <= whole.len() / NETLINK_HEADER_BYTES);
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_says_instead_of_a_table_is_an_error() {
        let message = |kind: u16, flags: u16, code: i32| {
            let header = [20u32.to_ne_bytes(), ((u32::from(flags) << 16) | u32::from(kind)).to_ne_bytes()].concat();
            [header, vec![0; 8], code.to_ne_bytes().to_vec()].concat()
        };
        let error = |bytes: &[u8]| take(bytes, 1, &mut Dump::default()).expect_err("an error").raw_os_error();
        assert_eq!(error(&message(2, 0, -libc::ENOENT)), Some(libc::ENOENT));
        assert_eq!(error(&message(3, 2, -libc::ENOBUFS)), Some(libc::ENOBUFS));
        assert_eq!(error(&message(2, 0, i32::MIN)), Some(i32::MAX));
        let mut dump = Dump::default();
        assert!(!take(&message(3, NLM_F_DUMP_INTR, 0), 1, &mut dump).expect("the end"));
        assert!(dump.is_interrupted);
    }

    #[test]
    fn tcp_info_of_an_older_kernel_says_less() {
        let mut socket = Socket { state: state(1), ..Socket::default() };
        add_tcp_info(&mut socket, &[1; 104]);
        assert_eq!((socket.total_retransmits, socket.snd_wnd), (Some(0x0101_0101), None));
        let mut socket = Socket { state: state(2), ..Socket::default() };
        add_tcp_info(&mut socket, &[0; 232]);
        assert_eq!(
            (socket.snd_wnd, socket.rtt_us, socket.snd_cwnd),
            (None, None, Some(0)),
            "no peer has said anything"
        );
        add_tcp_info(&mut socket, &[]);
        assert_eq!(socket.retransmits, None);
    }

    #[test]
    fn tcp_info_lies_as_the_c_header_has_it() {
        assert_eq!(tcp_info::RETRANSMITS, offset_of!(libc::tcp_info, tcpi_retransmits));
        assert_eq!(tcp_info::RTT, offset_of!(libc::tcp_info, tcpi_rtt));
        assert_eq!(tcp_info::SND_CWND, offset_of!(libc::tcp_info, tcpi_snd_cwnd));
        assert_eq!(tcp_info::TOTAL_RETRANS, offset_of!(libc::tcp_info, tcpi_total_retrans));
    }
}
