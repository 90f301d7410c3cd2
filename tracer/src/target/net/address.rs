//! Addresses of sockets, and how they are written.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::target::printable;

/// One end of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `127.0.0.1:5555`, `[::1]:5555`. An IPv4 address within IPv6 (`::ffff:127.0.0.1`) is the IPv4 address. The
    /// interface of a link-local address is not kept.
    Tcp(SocketAddr),
    /// A unix socket's path, as it was given to bind(2): seen from the process's own root and directory.
    Path(Vec<u8>),
    /// A unix socket's name outside of the file system, without the NUL before it; printed as `@name`.
    Abstract(Vec<u8>),
}

impl Address {
    /// Of a tcp socket.
    pub(super) fn tcp(ip: IpAddr, port: u16) -> Self {
        Self::Tcp(SocketAddr::new(ip.to_canonical(), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Path(path) => f.write_str(&printable(path)),
            // A NUL is part of the name. As `/proc/net/unix` shows it.
            Self::Abstract(name) => {
                let name: Vec<u8> = name.iter().map(|&byte| if byte == 0 { b'@' } else { byte }).collect();
                write!(f, "@{}", printable(&name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_libzmq_and_ss_write_them() {
        let tcp = |ip: &str| Address::tcp(ip.parse().expect("an address"), 5555).to_string();
        assert_eq!(tcp("127.0.0.1"), "127.0.0.1:5555");
        assert_eq!(tcp("::1"), "[::1]:5555");
        assert_eq!(tcp("::ffff:10.0.0.1"), "10.0.0.1:5555");
        assert_eq!(Address::Path(b"/tmp/a b".to_vec()).to_string(), "/tmp/a b");
        assert_eq!(Address::Path(b"/tmp/\x1b[2J\xff".to_vec()).to_string(), "/tmp/\\u{1b}[2J\u{fffd}");
        assert_eq!(Address::Abstract(b"name\0x".to_vec()).to_string(), "@name@x");
    }
}
