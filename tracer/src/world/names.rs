//! How things are named in every report.

use std::fmt;

use super::{Socket, World};
use crate::constants;

/// `REQ#7`: type and libzmq's own number of the socket. Where that cannot be read, `REQ#~2`: the second
/// socket seen in the process. `?#~3`: its type is not known either. `b:REQ#7`: of the process's second
/// libzmq.
#[derive(Debug, Clone, Copy)]
pub struct SocketLabel<'world>(pub &'world Socket);

impl fmt::Display for SocketLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Socket { library, socket_type, id, ordinal, .. } = self.0;
        if *library > 0 {
            write!(f, "{}:", char::from(b'a' + library))?;
        }
        match socket_type.map(|number| (number, constants::socket_type(number))) {
            None => f.write_str("?")?,
            Some((_, Some(name))) => f.write_str(name)?,
            Some((number, None)) => write!(f, "TYPE{number}")?,
        }
        match id {
            Some(id) => write!(f, "#{id}"),
            None => write!(f, "#~{ordinal}"),
        }
    }
}

impl World {
    /// Name of the socket at an address; `None` for NULL.
    pub fn socket_name(&self, pid: u32, handle: u64, generation: u32) -> Option<String> {
        if handle == 0 {
            return None;
        }
        let socket = self.socket(pid, handle, generation);
        Some(socket.map_or_else(|| format!("{handle:#x}"), |socket| SocketLabel(socket).to_string()))
    }

    /// Name of the newest socket at an address, for arguments of which the generation was not noted.
    pub fn newest_socket_name(&self, pid: u32, handle: u64) -> Option<String> {
        self.socket_name(pid, handle, self.newest_generation(pid, handle))
    }

    /// The name for people: with `-y`, also what the socket is bound and connected to, `REQ#7<tcp://127.0.0.1:5555>`.
    pub fn shown_socket_name(&self, pid: u32, handle: u64, generation: u32) -> Option<String> {
        let name = self.socket_name(pid, handle, generation)?;
        let endpoints = self.socket(pid, handle, generation).map(|socket| &socket.endpoints[..]).unwrap_or_default();
        Some(match endpoints {
            _ if !self.endpoints_shown => name,
            [] => name,
            [first] => format!("{name}<{first}>"),
            [first, second] => format!("{name}<{first},{second}>"),
            [first, second, ..] => format!("{name}<{first},{second},+{}>", endpoints.len() - 2),
        })
    }

    /// The same of the newest socket at an address.
    pub fn newest_shown_socket_name(&self, pid: u32, handle: u64) -> Option<String> {
        self.shown_socket_name(pid, handle, self.newest_generation(pid, handle))
    }

    /// How often sockets at an address had been closed before the one that is there now.
    pub fn newest_generation(&self, pid: u32, handle: u64) -> u32 {
        self.process(pid).and_then(|process| process.newest.get(&handle)).copied().unwrap_or(0)
    }

    /// `ctx#~1`: the n-th context seen in the process.
    pub fn context_name(&self, pid: u32, handle: u64) -> String {
        numbered("ctx", handle, self.process(pid).and_then(|process| process.contexts.get(&handle)))
    }

    /// `poller#~1`: the n-th poller seen in the process.
    pub fn poller_name(&self, pid: u32, handle: u64) -> String {
        numbered("poller", handle, self.process(pid).and_then(|process| process.pollers.get(&handle)))
    }
}

fn numbered(kind: &str, handle: u64, number: Option<&u32>) -> String {
    match number {
        _ if handle == 0 => "NULL".into(),
        Some(number) => format!("{kind}#~{number}"),
        None => format!("{handle:#x}"),
    }
}
