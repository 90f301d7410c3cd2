//! The kernel's tables of sockets from `/proc/PID/net`, where sock_diag(7) cannot be had: these can be read without
//! being in the namespace, and say less (proc_pid_net(5)).

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Address, Dump, MAX_SOCKETS, Socket, Table, state};

/// Of one table: a line of tcp6 takes some 180 bytes.
const MAX_BYTES: u64 = 256 << 20;
/// `__SO_ACCEPTCON` of include/uapi/linux/net.h.
const SO_ACCEPTCON: u32 = 1 << 16;

/// All sockets of `table` in the namespace of process `pid`.
///
/// # Errors
/// When the file cannot be read: `ENOENT` when there is no such process, or no IPv6.
pub fn read(pid: u32, table: Table, namespace: u64) -> io::Result<Dump> {
    let name = match table {
        Table::Tcp4 => "tcp",
        Table::Tcp6 => "tcp6",
        Table::Unix => "unix",
    };
    let mut text = Vec::new();
    let bytes = File::open(format!("/proc/{pid}/net/{name}"))?.take(MAX_BYTES).read_to_end(&mut text)?;
    let mut dump = parse(&text, table, namespace);
    dump.is_cut |= bytes as u64 == MAX_BYTES;
    Ok(dump)
}

fn parse(text: &[u8], table: Table, namespace: u64) -> Dump {
    let mut dump = Dump::default();
    // The first line names the columns.
    for line in text.split(|&byte| byte == b'\n').skip(1).filter(|line| !line.is_empty()) {
        let socket = match table {
            Table::Tcp4 | Table::Tcp6 => tcp_socket(line, namespace),
            Table::Unix => unix_socket(line, namespace),
        };
        match socket {
            Some(Some(socket)) => dump.sockets.push(socket),
            Some(None) => {}
            None => dump.undecoded += 1,
        }
        if dump.sockets.len() + dump.undecoded >= MAX_SOCKETS {
            dump.is_cut = true;
            break;
        }
    }
    dump
}

/// `Some(None)`: of no interest. `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...`, numbers in hex up
/// to `retrnsmt`.
fn tcp_socket(line: &[u8], namespace: u64) -> Option<Option<Socket>> {
    let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1);
    let (local_ip, local_port) = address(fields.next()?)?;
    let (remote_ip, remote_port) = address(fields.next()?)?;
    let state = state(u8::from_str_radix(fields.next()?, 16).ok()?);
    let (tx, rx) = fields.next()?.split_once(':')?;
    let retransmits = fields.nth(1)?;
    let inode = fields.nth(2)?.parse().ok()?;
    if state == "TIME_WAIT" {
        return Some(None);
    }
    let is_listener = state == "LISTEN";
    let hex = |number| u32::from_str_radix(number, 16).ok();
    Some(Some(Socket {
        namespace,
        inode,
        state,
        local: Some(Address::tcp(local_ip, local_port)),
        remote: (remote_port != 0).then(|| Address::tcp(remote_ip, remote_port)),
        rx_bytes: Some(hex(rx)?),
        // Of a listener it is always 0 here.
        tx_bytes: if is_listener { None } else { Some(hex(tx)?) },
        retransmits: if is_listener { None } else { Some(hex(retransmits)?) },
        ..Socket::default()
    }))
}

/// `0100007F:15B3`: the address in words as they lie in memory, the port as a number.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let word = |from| Some(u32::from_str_radix(ip.get(from..from + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

/// `Some(None)`: of no interest. `Num RefCount Protocol Flags Type St Inode Path`, numbers in hex but the inode.
fn unix_socket(line: &[u8], namespace: u64) -> Option<Option<Socket>> {
    let mut rest = line;
    let mut field = || {
        let start = rest.iter().position(|&byte| byte != b' ')?;
        let field = &rest[start..];
        let end = field.iter().position(|&byte| byte == b' ').unwrap_or(field.len());
        rest = &field[end..];
        std::str::from_utf8(&field[..end]).ok()
    };
    let (_number, _references, _protocol) = (field()?, field()?, field()?);
    let flags = u32::from_str_radix(field()?, 16).ok()?;
    let kind = i32::from_str_radix(field()?, 16).ok()?;
    let connection = field()?;
    let inode = field()?.parse().ok()?;
    if kind != libc::SOCK_STREAM {
        return Some(None);
    }
    // `socket_state` of include/uapi/linux/net.h, in sock_diag's words.
    let state = match connection {
        _ if flags & SO_ACCEPTCON != 0 => "LISTEN",
        "01" => "CLOSE",
        "02" => "SYN_SENT",
        "03" => "ESTABLISHED",
        "04" => "CLOSING",
        _ => return None,
    };
    let local = match rest.strip_prefix(b" ") {
        Some([b'@', name @ ..]) => Some(Address::Abstract(name.to_vec())),
        Some(path) if !path.is_empty() => Some(Address::Path(path.to_vec())),
        _ => None,
    };
    Some(Some(Socket { namespace, inode, state, local, ..Socket::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &[u8] = include_bytes!("../../../tests/data/sockets/proc_net.tcp.txt");
    const UNIX: &[u8] = include_bytes!("../../../tests/data/sockets/proc_net.unix.txt");

    fn text(address: &Option<Address>) -> String {
        address.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn recorded_tables_are_understood() {
        let tcp = parse(TCP, Table::Tcp4, 1);
        assert_eq!((tcp.sockets.len(), tcp.undecoded), (5, 0));
        let accepted = tcp.sockets.iter().find(|socket| socket.inode == 80761).expect("the socket");
        assert_eq!(
            (text(&accepted.local).as_str(), text(&accepted.remote).as_str()),
            ("127.0.0.1:5555", "127.0.0.1:40000")
        );
        assert_eq!((accepted.state, accepted.rx_bytes, accepted.retransmits), ("ESTABLISHED", Some(1000), Some(0)));
        let listener = &tcp.sockets[0];
        assert_eq!((listener.state, listener.rx_bytes, listener.tx_bytes), ("LISTEN", Some(1), None));
        let unix = parse(UNIX, Table::Unix, 1);
        assert_eq!((unix.sockets.len(), unix.undecoded), (4, 0), "no datagram sockets");
        let found = |inode| unix.sockets.iter().find(|socket| socket.inode == inode).expect("the socket");
        assert_eq!((found(80763).state, text(&found(80763).local).as_str()), ("LISTEN", "/tmp/zmqtrace.ipc"));
        assert_eq!((found(80764).state, &found(80764).local), ("ESTABLISHED", &None));
        assert_eq!(text(&found(80766).local), "@zmqtrace");
        assert_eq!(found(80764).to_event().rx_bytes, None, "its queues are not known");
    }

    #[test]
    fn addresses_of_ipv6_are_words_in_memory_order() {
        let ip = |text: &str| address(text).map(|(ip, port)| (ip.to_canonical().to_string(), port));
        assert_eq!(ip("00000000000000000000000001000000:15B3"), Some(("::1".into(), 5555)));
        assert_eq!(ip("0000000000000000FFFF00000100007F:0001"), Some(("127.0.0.1".into(), 1)));
        for garbage in
            ["", ":", "0100007F", "0100007F:", "0100007G:1", "0100007:15B3", "0100007F:15B3F", "\u{e9}00007F:1"]
        {
            assert_eq!(ip(garbage), None);
        }
    }

    #[test]
    fn a_cut_or_damaged_table_is_survived() {
        for (text, table) in [(TCP, Table::Tcp4), (TCP, Table::Tcp6), (UNIX, Table::Unix), (TCP, Table::Unix)] {
            for end in 0..text.len() {
                parse(&text[..end], table, 1);
            }
            for position in 0..text.len() {
                for value in [0, b' ', b'\n', b':', b'F', 0xc3, 0xff] {
                    let mut damaged = text.to_vec();
                    damaged[position] = value;
                    parse(&damaged, table, 1);
                }
            }
        }
        // A path with a line feed in it.
        let dump = parse(b"head\n00: 00000002 00000000 00000000 0001 03    12 /a\nb c\n", Table::Unix, 1);
        assert_eq!((dump.sockets.len(), dump.undecoded), (1, 1));
    }
}
