//! `sockets --dot`: the topology as a graph for Graphviz. A process is a cluster, a socket a node, a connection an edge
//! from the side that connected to the one that was bound.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
};

use super::{Report, Sink};
use crate::{
    analysis::topology::{Peer, Topology},
    event::{Connection, ConnectionState, Event, Role, SocketState},
    world::World,
};

/// The report.
#[derive(Debug, Default)]
pub struct Dot;

impl Report for Dot {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        match event {
            Event::Tick(_) => out.write_all(graph(world).as_bytes()),
            _ => Ok(()),
        }
    }
}

/// The whole graph.
fn graph(world: &World) -> String {
    let topology = Topology::new(world);
    let mut text = String::from("digraph zeromq {\n  rankdir=LR;\n  node [shape=box];\n");
    let mut edges = BTreeSet::new();
    for (pid, process) in world.processes() {
        let Some(snapshot) = &process.snapshot else { continue };
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "  subgraph cluster_{pid} {{\n    label={};", quoted(&format!("{}[{pid}]", process.name)));
        for socket in snapshot.contexts.iter().flat_map(|context| &context.sockets) {
            let name = world.socket_name(pid, socket.handle, socket.generation).unwrap_or_default();
            let label = std::iter::once(name).chain(bound(socket)).collect::<Vec<_>>().join("\n");
            let _ = writeln!(text, "    {} [label={}];", node(pid, socket.handle), quoted(&label));
            for connection in &socket.connections {
                let peer = topology.peer(snapshot, connection);
                edges.extend(edge(pid, socket, connection, peer));
            }
        }
        text.push_str("  }\n");
    }
    for edge in edges {
        let _ = writeln!(text, "  {edge}");
    }
    text.push_str("}\n");
    text
}

/// What a socket is bound to.
fn bound(socket: &SocketState) -> impl Iterator<Item = String> + '_ {
    socket
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.role == Some(Role::Bind))
        .map(|endpoint| endpoint.endpoint.clone())
}

fn node(pid: u32, handle: u64) -> String {
    format!("s{pid}_{handle:x}")
}

/// The edge of a connection, drawn from the side that connected. Where the other side is not known, to what it is.
fn edge(pid: u32, socket: &SocketState, connection: &Connection, peer: Option<Peer>) -> Option<String> {
    let own = node(pid, socket.handle);
    let known = peer.and_then(|peer| peer.socket.map(|(handle, _)| node(peer.pid, handle)));
    let is_up = connection.state == Some(ConnectionState::Ready);
    let style = if is_up { "solid" } else { "dashed" };
    let attributes = |queued: String| {
        let state = if is_up { "" } else { connection.state.map_or("?", ConnectionState::word) };
        let label = [state, &queued].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
        format!("[style={style}, label={}];", quoted(&label))
    };
    let queued = connection.pipes.map(|pipes| pipes.tx_queue()).filter(|depth| *depth > 0);
    let queued = queued.map(|depth| format!("{depth} to send")).unwrap_or_default();
    match (connection.role, known) {
        // Both sides have it: the connecting one draws it.
        (Some(Role::Bind), Some(_)) => None,
        (_, Some(other)) => Some(format!("{own} -> {other} {}", attributes(queued))),
        (role, None) => {
            let other = connection.endpoint.as_deref().filter(|_| role == Some(Role::Connect));
            let other = other.or(connection.remote.as_deref()).filter(|other| !other.is_empty()).unwrap_or("?");
            let (from, to) = if role == Some(Role::Bind) { (quoted(other), own) } else { (own, quoted(other)) };
            Some(format!("{from} -> {to} {}", attributes(queued)))
        }
    }
}

/// A string of the DOT language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
