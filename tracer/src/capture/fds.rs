//! Follows the fds of sockets: tells the kernel side where each build keeps what, and what was there before us, and
//! turns its records into events.
//!
//! Nothing is missed at the start. The hook is in before a process is looked into, so every fd that is then added or
//! removed makes a record; whatever the look saw of it, the records come after the look in the stream, and of each fd
//! that has any the last one says what is. A fd without a record was there before and has stayed: the look has it.
//! While that goes on, the kernel side notes what is removed, so that it is not entered into its table afterwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::maps::{HashMap, MapData};
use tracer_common::{
    fds::{
        FdAction, FdAddress, FdConfig, FdKey, FdOwner, FdPart as RawPart, FdRecord, FdRole, FdState, UNKNOWN_TYPE,
        WatcherConfig,
    },
    limits::{MAX_PATH_BYTES, MAX_WATCHERS},
    wire::EngineLayout,
};

use super::join::engine_layout;
use crate::{
    event::{Change, FdChange, FdPart, FdSocket, FoundFd, Role, Snapshot},
    inspect::layouts::{self, Layout},
    target::{Process, printable},
};

/// `BPF_NOEXIST`: what the kernel side has seen itself is newer.
const NO_REPLACE: u64 = 1;

/// The kernel side's tables.
#[derive(Debug)]
pub struct Follower {
    targets: HashMap<MapData, u32, FdConfig>,
    fds: HashMap<MapData, FdKey, FdOwner>,
}

impl Follower {
    /// Nobody is followed yet.
    pub const fn new(targets: HashMap<MapData, u32, FdConfig>, fds: HashMap<MapData, FdKey, FdOwner>) -> Self {
        Self { targets, fds }
    }

    /// From now on changes of the process's fds are seen. Of its libzmq no more is known than the version: all layouts
    /// that builds of it have are tried.
    ///
    /// # Errors
    /// When there is no room for another process.
    pub fn begin(&mut self, process: &Process) -> Result<(), String> {
        let program = self.config(process.pid).map_or(0, |config| config.program);
        self.forget(process.pid);
        let candidates = process.libraries.iter().zip(0u8..).flat_map(|(library, index)| {
            let fits = move |layout: &&Layout| library.version.is_some_and(|version| layout.fits(version));
            layouts::all().iter().filter(fits).map(move |layout| (index, layout))
        });
        let config = FdConfig { program, is_seeded: 0, watchers: watchers(candidates) };
        self.targets.insert(process.pid, config, 0).map_err(|error| error.to_string())
    }

    /// Enters what a look that began afterwards has found. Where it has found which layout a libzmq has, only that one
    /// is tried from now on.
    pub fn seed(&mut self, process: &Process, snapshot: Option<&Snapshot>) {
        let Some(mut config) = self.config(process.pid) else { return };
        let contexts = || snapshot.into_iter().flat_map(|snapshot| &snapshot.contexts).filter(|found| !found.inherited);
        for context in contexts() {
            for socket in &context.sockets {
                // The last ones first, since here the first one of a number counts.
                for FoundFd { fd, part, role, .. } in socket.fds().rev() {
                    let owner = FdOwner {
                        state: FdState::new(raw_part(part) as u8, role.map_or(0, raw_role), true, context.library),
                        handle: socket.handle,
                        file: 0,
                        program: config.program,
                        padding: 0,
                    };
                    // The kernel side counts fds that find no room; here they are learnt of by their next change.
                    let _ = self.fds.insert(FdKey { tgid: process.pid, fd }, owner, NO_REPLACE);
                }
            }
        }
        let known: Vec<(u8, &Layout)> = contexts()
            .filter_map(|context| Some((context.library, layouts::named(context.layout.as_deref()?)?)))
            .collect();
        let is_known = |library: u8| known.iter().any(|(index, _)| *index == library);
        let open = config.watchers.iter().copied().filter(|watcher| watcher.part != 0 && !is_known(watcher.library));
        let open: Vec<_> = open.collect();
        config.watchers = watchers(known.iter().copied());
        let free = config.watchers.iter_mut().filter(|watcher| watcher.part == 0);
        free.zip(open).for_each(|(slot, watcher)| *slot = watcher);
        config.is_seeded = 1;
        let _ = self.targets.insert(process.pid, config, 0);
    }

    /// The process has ended.
    pub fn end(&mut self, pid: u32) {
        let _ = self.targets.remove(&pid);
        self.forget(pid);
    }

    /// Makes room: what an earlier program of the process had.
    fn forget(&mut self, pid: u32) {
        let program = self.config(pid).map(|config| config.program);
        let keys: Vec<FdKey> = self.fds.keys().flatten().filter(|key| key.tgid == pid).collect();
        for key in keys {
            if self.fds.get(&key, 0).is_ok_and(|owner| Some(owner.program) != program) {
                let _ = self.fds.remove(&key);
            }
        }
    }

    fn config(&self, pid: u32) -> Option<FdConfig> {
        self.targets.get(&pid, 0).ok()
    }
}

const fn raw_part(part: FdPart) -> RawPart {
    match part {
        FdPart::Listener => RawPart::Listener,
        FdPart::Connecter => RawPart::Connecter,
        FdPart::Connection => RawPart::Connection,
        FdPart::Mailbox => RawPart::Mailbox,
    }
}

const fn raw_role(role: Role) -> u8 {
    match role {
        Role::Bind => FdRole::Bind as u8,
        Role::Connect => FdRole::Connect as u8,
    }
}

/// The classes that watch fds.
fn watchers<'a>(layouts: impl Iterator<Item = (u8, &'a Layout)>) -> [WatcherConfig; MAX_WATCHERS] {
    let mut rows: Vec<WatcherConfig> = Vec::new();
    for (library, layout) in layouts {
        let connecter = [layout.connecter_s, layout.connecter_handle, layout.connecter_socket, layout.connecter_events];
        let tcp =
            [layout.tcp_listener_s, layout.tcp_listener_handle, layout.tcp_listener_socket, layout.tcp_listener_events];
        let ipc =
            [layout.ipc_listener_s, layout.ipc_listener_handle, layout.ipc_listener_socket, layout.ipc_listener_events];
        let engine = [layout.engine_s, layout.engine_handle, layout.engine_socket, 0];
        let classes = [
            (RawPart::Connecter, connecter),
            (RawPart::Listener, tcp),
            (RawPart::Listener, ipc),
            (RawPart::Connection, engine),
        ];
        for (part, [fd, entry, socket, events]) in classes {
            let row = WatcherConfig {
                part: part as u8,
                library,
                fd: (fd - events) as u16,
                entry: (entry - events) as u16,
                socket: (socket - events) as u16,
                tag: layout.socket_tag as u16,
                socket_type: layout.opt_type as u16,
                socket_id: layout.opt_socket_id as u16,
                engine: if part == RawPart::Connection { engine_layout(layout) } else { EngineLayout::default() },
            };
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    let mut watchers = [WatcherConfig::default(); MAX_WATCHERS];
    watchers.iter_mut().zip(rows).for_each(|(slot, row)| *slot = row);
    watchers
}

/// The event that a record makes; `None`: it makes no sense.
pub fn change(record: &FdRecord) -> Option<FdChange> {
    let is_typed = record.socket_type != UNKNOWN_TYPE;
    let socket = FdSocket {
        handle: record.handle,
        generation: record.generation,
        library: record.library,
        socket_type: is_typed.then(|| record.socket_type.into()),
        id: is_typed.then_some(record.socket_id),
    };
    let (local, remote) = endpoints(record.family, &record.address);
    let change = match FdAction::from_byte(record.action)? {
        FdAction::Added => {
            let part = match RawPart::from_byte(record.part)? {
                RawPart::Listener => FdPart::Listener,
                RawPart::Connecter => FdPart::Connecter,
                RawPart::Connection => FdPart::Connection,
                RawPart::Mailbox => FdPart::Mailbox,
            };
            let role = [Role::Bind, Role::Connect].into_iter().find(|role| raw_role(*role) == record.role);
            Change::Added { socket, part, role, local, remote }
        }
        FdAction::Accepted => Change::Accepted { socket, listener: record.listener, local, remote },
        FdAction::Removed => Change::Removed,
        FdAction::Closed => Change::Closed,
    };
    Some(FdChange { ts_ns: record.ts_ns, pid: record.tgid, tid: record.tid, fd: record.fd, change })
}

/// Both ends, as libzmq writes endpoints.
pub fn endpoints(family: u16, address: &FdAddress) -> (Option<String>, Option<String>) {
    let tcp = |bytes: &[u8; 16], port: u16| {
        let ip = if i32::from(family) == libc::AF_INET {
            let [a, b, c, d, ..] = *bytes;
            IpAddr::from(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::from(Ipv6Addr::from(*bytes)).to_canonical()
        };
        (port != 0).then(|| format!("tcp://{}", SocketAddr::new(ip, port)))
    };
    match i32::from(family) {
        libc::AF_INET | libc::AF_INET6 => {
            (tcp(&address.local, address.local_port), tcp(&address.remote, address.remote_port))
        }
        libc::AF_UNIX => {
            let name = &address.path[..usize::from(address.path_len).min(MAX_PATH_BYTES)];
            let endpoint = match name.split_first() {
                Some((0, name)) => format!("ipc://@{}", printable(name)),
                _ => format!("ipc://{}", printable(name.split(|byte| *byte == 0).next().unwrap_or_default())),
            };
            if address.path_is_remote == 1 { (None, Some(endpoint)) } else { (Some(endpoint), None) }
        }
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_layouts_of_a_release_have_room_twice() {
        for version in ["4.1.6", "4.2.5", "4.3.1", "4.3.2", "4.3.4", "4.3.5"] {
            let version = version.parse().expect("a version");
            let layouts = || layouts::all().iter().filter(|layout| layout.fits(version));
            let rows =
                watchers([0u8, 1].into_iter().flat_map(|library| layouts().map(move |layout| (library, layout))));
            let used: Vec<_> = rows.iter().take_while(|row| row.part != 0).collect();
            assert!(used.len() > 8 && used.len() < MAX_WATCHERS, "{version}: {}", used.len());
        }
    }

    #[test]
    fn endpoints_are_written_as_libzmq_writes_them() {
        // SAFETY: integers only, for which zero is a value.
        let mut address: FdAddress = unsafe { std::mem::zeroed() };
        assert_eq!(endpoints(0, &address), (None, None));
        address.local[..4].copy_from_slice(&[127, 0, 0, 1]);
        address.local_port = 5555;
        assert_eq!(endpoints(libc::AF_INET as u16, &address), (Some("tcp://127.0.0.1:5555".into()), None));
        (address.remote, address.remote_port) = (Ipv6Addr::LOCALHOST.octets(), 1);
        assert_eq!(endpoints(libc::AF_INET6 as u16, &address).1, Some("tcp://[::1]:1".into()));
        address.path[..6].copy_from_slice(b"/tmp/x");
        (address.path_len, address.path_is_remote) = (7, 1);
        assert_eq!(endpoints(libc::AF_UNIX as u16, &address), (None, Some("ipc:///tmp/x".into())));
        address.path[..4].copy_from_slice(b"\0abc");
        (address.path_len, address.path_is_remote) = (4, 0);
        assert_eq!(endpoints(libc::AF_UNIX as u16, &address), (Some("ipc://@abc".into()), None));
    }
}
