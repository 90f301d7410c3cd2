//! Who is at the other end of a connection, where that is a process on this machine.

use std::collections::HashMap;

use crate::{
    event::{Connection, Snapshot, SocketState},
    world::World,
};

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process.
    pub pid: u32,
    /// Its socket: address and generation. `None` where the process was not looked into.
    pub socket: Option<(u64, u32)>,
}

/// All connections, by what their other ends know of them.
#[derive(Debug, Default)]
pub struct Topology {
    /// By the inode of the connection's own end.
    by_inode: HashMap<u64, Peer>,
    /// By own and other address. The same pair exists in several network namespaces only for loopback addresses.
    by_addresses: HashMap<(String, String), Vec<Somewhere>>,
    /// Generations of sockets, by process and address.
    generations: HashMap<(u32, u64), u32>,
}

/// A connection's own end, and the network namespace that it is in.
#[derive(Debug, Clone, Copy)]
struct Somewhere {
    network: Option<u64>,
    end: Peer,
}

impl Topology {
    /// Of all that is known.
    pub fn new(world: &World) -> Self {
        let mut topology = Self::default();
        for (_, process) in world.processes() {
            let Some(snapshot) = &process.snapshot else { continue };
            for socket in snapshot.contexts.iter().flat_map(|context| &context.sockets) {
                topology.generations.entry((snapshot.pid, socket.handle)).or_insert(socket.generation);
                for connection in &socket.connections {
                    topology.add(snapshot, socket, connection);
                }
            }
        }
        topology
    }

    fn add(&mut self, snapshot: &Snapshot, socket: &SocketState, connection: &Connection) {
        let peer = Peer { pid: snapshot.pid, socket: Some((socket.handle, socket.generation)) };
        if let Some(kernel) = &connection.kernel {
            self.by_inode.insert(kernel.inode, peer);
        }
        if let (Some(local), Some(remote)) = (&connection.local, &connection.remote) {
            self.by_addresses
                .entry((local.clone(), remote.clone()))
                .or_default()
                .push(Somewhere { network: snapshot.network, end: peer });
        }
    }

    /// Who is at the other end of a connection of the process that `snapshot` is of.
    pub fn peer(&self, snapshot: &Snapshot, connection: &Connection) -> Option<Peer> {
        if let Some(handle) = connection.peer_handle {
            let generation = self.generations.get(&(snapshot.pid, handle)).copied().unwrap_or(0);
            return Some(Peer { pid: snapshot.pid, socket: Some((handle, generation)) });
        }
        let by_inode = connection.kernel.as_ref().and_then(|kernel| self.by_inode.get(&kernel.peer_inode?)).copied();
        let known = by_inode.or_else(|| self.by_addresses(snapshot.network, connection));
        known.or(connection.peer_pid.map(|pid| Peer { pid, socket: None }))
    }

    fn by_addresses(&self, network: Option<u64>, connection: &Connection) -> Option<Peer> {
        let (local, remote) = (connection.local.clone()?, connection.remote.clone()?);
        let is_loopback = local.starts_with("127.") || local.starts_with("[::1]");
        let candidates = self.by_addresses.get(&(remote, local))?;
        let here = candidates.iter().find(|candidate| candidate.network == network);
        // Elsewhere it must be the only one that it can be.
        let elsewhere = if is_loopback || candidates.len() != 1 { None } else { candidates.first() };
        here.or(elsewhere).map(|candidate| candidate.end)
    }
}

/// Name of a peer: `REP#1 of desk[4712]`.
pub fn peer_name(world: &World, peer: Peer, own_pid: u32) -> String {
    let socket = peer.socket.and_then(|(handle, generation)| world.socket_name(peer.pid, handle, generation));
    let process = world.process(peer.pid).map_or("", |process| process.name.as_str());
    match socket {
        Some(socket) if peer.pid == own_pid => socket,
        Some(socket) => format!("{socket} of {process}[{}]", peer.pid),
        None => format!("{process}[{}]", peer.pid),
    }
}
