//! Narrows a report to some sockets, endpoints or payloads.

use crate::{
    event::Call,
    world::{Fd, Socket, SocketLabel, World},
};

/// What to keep. An empty list keeps everything; of a list, one match is enough; all lists must match.
#[derive(Debug, Clone, Default)]
pub struct Narrow {
    /// Names (`REQ#7`) or types (`REQ`) of sockets.
    pub sockets: Vec<String>,
    /// Parts of endpoints.
    pub endpoints: Vec<String>,
    /// Ports of endpoints.
    pub ports: Vec<u16>,
    /// Parts of payloads.
    pub contains: Vec<String>,
}

impl Narrow {
    /// Whether a call is to be shown.
    pub fn admits(&self, world: &World, call: &Call) -> bool {
        self.admits_socket(world.socket_of(call)) && self.admits_payload(call.payload().unwrap_or_default())
    }

    /// Whether changes of a socket's fd are to be shown.
    pub fn admits_fd(&self, world: &World, pid: u32, fd: &Fd) -> bool {
        let socket = world.socket(pid, fd.handle, fd.generation).cloned().map(|mut socket| {
            // Its own end of it is known even where the socket was bound to any port.
            socket.endpoints.extend(fd.endpoint.clone());
            socket
        });
        self.contains.is_empty() && self.admits_socket(socket.as_ref())
    }

    /// Whether what happens on a connection is to be shown, of which `endpoints` are known; `owner`: the socket's address
    /// and generation.
    pub fn admits_connection(
        &self,
        world: &World,
        pid: u32,
        owner: Option<(u64, u32)>,
        endpoints: impl IntoIterator<Item = String>,
    ) -> bool {
        if !self.contains.is_empty() {
            return false;
        }
        if self.sockets.is_empty() && self.endpoints.is_empty() && self.ports.is_empty() {
            return true;
        }
        let socket = owner.and_then(|(handle, generation)| world.socket(pid, handle, generation)).cloned();
        if socket.is_none() && !self.sockets.is_empty() {
            return false;
        }
        let mut socket = socket.unwrap_or_default();
        socket.endpoints.extend(endpoints);
        self.admits_socket(Some(&socket))
    }

    /// Whether calls on a socket (`None`: on none) are to be shown.
    pub fn admits_socket(&self, socket: Option<&Socket>) -> bool {
        let by_name = |socket: &Socket| {
            let name = SocketLabel(socket).to_string();
            let kind = name.split(['#', ':']).rev().nth(1).unwrap_or_default();
            self.sockets.iter().any(|wanted| wanted.eq_ignore_ascii_case(&name) || wanted.eq_ignore_ascii_case(kind))
        };
        let by_endpoint = |socket: &Socket| {
            self.endpoints.iter().any(|wanted| socket.endpoints.iter().any(|endpoint| endpoint.contains(wanted)))
        };
        let by_port = |socket: &Socket| {
            let port = |endpoint: &String| endpoint.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            socket.endpoints.iter().filter_map(port).any(|port| self.ports.contains(&port))
        };
        (self.sockets.is_empty() || socket.is_some_and(by_name))
            && (self.endpoints.is_empty() || socket.is_some_and(by_endpoint))
            && (self.ports.is_empty() || socket.is_some_and(by_port))
    }

    /// Whether a connection is to be shown of which only what goes over it is known: the type of the socket here, and
    /// the addresses of both ends. Names of sockets are not known then.
    pub fn admits_wire<'a>(&self, own_type: Option<&str>, addresses: impl Iterator<Item = &'a str> + Clone) -> bool {
        let by_type = |own: &str| self.sockets.iter().any(|wanted| wanted.eq_ignore_ascii_case(own));
        let by_endpoint = |address: &str| self.endpoints.iter().any(|wanted| address.contains(wanted));
        let port = |address: &str| address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        (self.sockets.is_empty() || own_type.is_some_and(by_type))
            && (self.endpoints.is_empty() || addresses.clone().any(by_endpoint))
            && (self.ports.is_empty() || addresses.filter_map(port).any(|port| self.ports.contains(&port)))
    }

    fn admits_payload(&self, payload: &[u8]) -> bool {
        self.contains.is_empty()
            || self.contains.iter().any(|wanted| memchr::memmem::find(payload, wanted.as_bytes()).is_some())
    }
}
