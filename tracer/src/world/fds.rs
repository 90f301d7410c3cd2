//! Which fd is which socket's, and for what.

use std::collections::HashMap;

use super::{Process, SocketLabel, World};
use crate::event::{Change, FdChange, FdPart, FdSocket, FoundFd, Role, Snapshot};

/// A fd that is a socket's, or was until just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fd {
    /// The socket's address.
    pub handle: u64,
    /// Of the socket.
    pub generation: u32,
    /// What it is for.
    pub part: FdPart,
    /// Whether it came of a bind or of a connect; `None`: not known.
    pub role: Option<Role>,
    /// Address of this end as an endpoint.
    pub local: Option<String>,
    /// Address of the other end.
    pub remote: Option<String>,
    /// What the socket is bound or connected to by it.
    pub endpoint: Option<String>,
    /// Whether it still is the socket's. If not, it is kept for those who tell of that, until the number has its next
    /// owner.
    pub is_current: bool,
}

impl Fd {
    fn new(
        socket: FdSocket,
        part: FdPart,
        role: Option<Role>,
        local: Option<&String>,
        remote: Option<&String>,
    ) -> Self {
        let endpoint = match (part, role) {
            (FdPart::Mailbox, _) => None,
            (FdPart::Listener, _) | (_, Some(Role::Bind)) => local,
            _ => remote,
        };
        Self {
            handle: socket.handle,
            generation: socket.generation,
            part,
            role,
            local: local.cloned(),
            remote: remote.cloned(),
            endpoint: endpoint.cloned(),
            is_current: true,
        }
    }
}

impl World {
    /// The fd of a process that is a socket's; also the one that has just ceased to be.
    pub fn fd(&self, pid: u32, fd: i32) -> Option<&Fd> {
        self.process(pid)?.fds.get(&fd)
    }

    /// Every fd of a process that is a socket's now.
    pub fn fds(&self, pid: u32) -> impl Iterator<Item = (i32, &Fd)> {
        let fds = self.process(pid).into_iter().flat_map(|process| &process.fds);
        fds.map(|(number, fd)| (*number, fd)).filter(|(_, fd)| fd.is_current)
    }

    /// What a fd is, `14<REQ#7 tcp://127.0.0.1:5555>`; `None`: no socket's that is known.
    pub fn fd_name(&self, pid: u32, fd: i32) -> Option<String> {
        self.fd(pid, fd).filter(|fd| fd.is_current)?;
        self.last_fd_name(pid, fd)
    }

    /// The same of one that may just have ceased to be a socket's.
    pub fn last_fd_name(&self, pid: u32, number: i32) -> Option<String> {
        let fd = self.fd(pid, number)?;
        let socket = self.socket(pid, fd.handle, fd.generation);
        let socket = socket.map_or_else(|| format!("{:#x}", fd.handle), |socket| SocketLabel(socket).to_string());
        Some(match (fd.part, &fd.endpoint) {
            (FdPart::Mailbox, _) => format!("{number}<{socket} ZMQ_FD>"),
            (_, Some(endpoint)) => format!("{number}<{socket} {endpoint}>"),
            (_, None) => format!("{number}<{socket}>"),
        })
    }
}

impl Process {
    /// What was found is so, whatever was known before.
    pub(super) fn fds_found(&mut self, snapshot: &Snapshot) {
        self.fds.clear();
        for context in snapshot.contexts.iter().filter(|context| !context.inherited) {
            for state in &context.sockets {
                let socket = FdSocket {
                    handle: state.handle,
                    generation: state.generation,
                    library: context.library,
                    socket_type: state.socket_type,
                    id: state.id,
                };
                for FoundFd { fd, part, role, endpoint } in state.fds() {
                    // Of a connection's addresses only the endpoint that it came of is known here.
                    let local = endpoint.filter(|_| part == FdPart::Listener);
                    let known = Fd::new(socket, part, role, local, None);
                    self.fds.insert(fd, Fd { endpoint: endpoint.cloned(), ..known });
                }
            }
        }
    }

    pub(super) fn fd_changed(&mut self, event: &FdChange) {
        match &event.change {
            Change::Added { socket, part, role, local, remote } => {
                self.name_socket(*socket);
                // Where its accept was not seen, one of the socket's listeners at the same address tells.
                let role = role.or_else(|| {
                    (*part == FdPart::Connection).then(|| self.role_by_listener(*socket, local.as_ref()))?
                });
                self.fds.insert(event.fd, Fd::new(*socket, *part, role, local.as_ref(), remote.as_ref()));
            }
            Change::Accepted { socket, local, remote, .. } => {
                self.name_socket(*socket);
                let fd = Fd::new(*socket, FdPart::Connection, Some(Role::Bind), local.as_ref(), remote.as_ref());
                self.fds.insert(event.fd, fd);
            }
            Change::Removed | Change::Closed => {
                if let Some(fd) = self.fds.get_mut(&event.fd) {
                    fd.is_current = false;
                }
            }
        }
    }

    fn role_by_listener(&self, socket: FdSocket, local: Option<&String>) -> Option<Role> {
        let mut listeners = self.fds.values().filter(|fd| {
            let is_its_own = fd.is_current && (fd.handle, fd.generation) == (socket.handle, socket.generation);
            is_its_own && fd.part == FdPart::Listener
        });
        listeners.any(|fd| fd.endpoint.is_some() && fd.endpoint.as_ref() == local).then_some(Role::Bind)
    }

    fn name_socket(&mut self, named: FdSocket) {
        let socket = self.socket_mut(named.handle, named.generation, named.library);
        socket.socket_type = named.socket_type.or(socket.socket_type);
        socket.id = named.id.or(socket.id);
    }
}

/// Fds by their number.
pub(super) type Fds = HashMap<i32, Fd>;
