//! JSON objects of system calls and of what becomes of connections.

use serde::Serialize;

use super::{arguments::escaped, net, time::Rfc3339};
use crate::{
    analysis::{
        calls::owner_of,
        connections::{ConnectionEvent, Retry, What},
    },
    constants::errno_name,
    event::Wire,
    world::World,
};

/// A system call on a connection.
#[derive(Serialize)]
pub struct SystemCallObject {
    ts_ns: u64,
    time: String,
    dur_ns: Option<u64>,
    pid: u32,
    tid: u32,
    call: &'static str,
    fd: i32,
    socket: Option<String>,
    handle: Option<String>,
    endpoint: Option<String>,
    connection: Option<String>,
    ret: i64,
    /// Of getsockopt: what SO_ERROR says.
    errno: Option<String>,
    bytes: Option<u64>,
    wanted: Option<u64>,
    frames: Option<u32>,
    messages: Option<u32>,
    commands: Option<u32>,
}

/// Something happened to a connection.
#[derive(Serialize)]
pub struct ConnectionObject {
    ts_ns: u64,
    time: String,
    pid: u32,
    fd: i32,
    socket: Option<String>,
    handle: Option<String>,
    endpoint: Option<String>,
    connection: Option<String>,
    local: Option<String>,
    remote: Option<String>,
    event: &'static str,
    detail: Option<String>,
    errno: Option<String>,
    /// Between which times libzmq tries again, ms.
    retry_ms: Option<[u32; 2]>,
    peer_type: Option<String>,
    peer_identity: Option<String>,
    /// ZMTP, `3.1`.
    version: Option<String>,
    mechanism: Option<String>,
}

/// The object of a system call. `began`: of a connect, what it began.
pub fn system_call(
    world: &World,
    wire: &Wire,
    began: Option<&ConnectionEvent>,
    clock: &mut Rfc3339,
) -> SystemCallObject {
    let ts_ns = wire.entry_ns.unwrap_or(wire.ts_ns);
    let fd = if began.is_some() { None } else { owner_of(world, wire) };
    let owner = began.map_or_else(|| fd.map(|fd| (fd.handle, fd.generation)), |began| began.owner);
    let endpoint = began.map_or_else(|| fd.and_then(|fd| fd.endpoint.clone()), |began| began.endpoint.clone());
    let connection = world.stream(wire.pid, wire.inode).and_then(|stream| stream.connection());
    let of_fd = || fd.and_then(|fd| Some(format!("{}->{}", fd.local.as_ref()?, fd.remote.as_ref()?)));
    let moves = !matches!(wire.call.name(), "connect" | "getsockopt");
    let error = (wire.ret < 0).then(|| errno_name(-wire.ret as i32).into_owned());
    let ret = match wire.call.name() {
        "getsockopt" => 0,
        _ if wire.ret < 0 => -1,
        _ => wire.ret,
    };
    SystemCallObject {
        ts_ns,
        time: clock.text(world.realtime_ns(ts_ns)),
        dur_ns: wire.entry_ns.map(|entry_ns| wire.ts_ns.saturating_sub(entry_ns)),
        pid: wire.pid,
        tid: wire.tid,
        call: wire.call.name(),
        fd: wire.fd,
        socket: owner.and_then(|(handle, generation)| world.socket_name(wire.pid, handle, generation)),
        handle: owner.map(|(handle, _)| format!("{handle:#x}")),
        endpoint,
        connection: connection.or_else(of_fd),
        ret,
        errno: error,
        bytes: moves.then_some(wire.ret.max(0) as u64),
        wanted: (moves && wire.wanted != u64::MAX).then_some(wire.wanted),
        frames: wire.frames.as_ref().map(|frames| frames.frames),
        messages: wire.frames.as_ref().map(|frames| frames.messages),
        commands: wire.frames.as_ref().map(|frames| frames.commands),
    }
}

/// The object of what happened to a connection.
pub fn connection(world: &World, event: &ConnectionEvent, clock: &mut Rfc3339) -> ConnectionObject {
    let (pid, owner) = (event.pid, event.owner);
    let connection = || Some(format!("{}->{}", event.local.as_ref()?, event.remote.as_ref()?));
    ConnectionObject {
        ts_ns: event.ts_ns,
        time: clock.text(world.realtime_ns(event.ts_ns)),
        pid,
        fd: event.fd,
        socket: owner.and_then(|(handle, generation)| world.socket_name(pid, handle, generation)),
        handle: owner.map(|(handle, _)| format!("{handle:#x}")),
        endpoint: event.endpoint.clone(),
        connection: connection(),
        local: event.local.clone(),
        remote: event.remote.clone(),
        event: event.what.word(),
        detail: net::detail(event),
        errno: event.what.errno().map(|errno| errno_name(errno).into_owned()),
        retry_ms: match &event.what {
            What::Refused { retry: Retry::After(range) | Retry::ByDefault(range), .. } => {
                Some([*range.start(), *range.end()])
            }
            _ => None,
        },
        peer_type: event.peer.socket_type.clone(),
        peer_identity: event.peer.identity.as_deref().map(escaped),
        version: event.peer.version.map(|(major, minor)| format!("{major}.{minor}")),
        mechanism: event.peer.mechanism.clone(),
    }
}
