//! Contexts: found from what the I/O threads' and the reaper's epolls watch, and read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::{
    Detail, Look, Subject, TRIES,
    connection::{Owned, Part, Watch},
    cxx,
    epoll::Entry,
    fingerprint,
    image::at,
    layouts::{CTX_SOCKETS_BEHIND_TAG, Layout, OBJECT_CTX, SIGNALER_R, THREAD_EVENTS},
    vote,
};
use crate::{
    event::{Connection, Context, SocketState},
    target::Version,
};

/// Marks a context (`ctx_t::check_tag`).
const CTX_TAG: u32 = 0xabad_cafe;
/// The tag of a context lies in its first bytes.
const MAX_TAG_OFFSET: u64 = 256;
/// Nothing is mapped below: vm.mmap_min_addr.
const LEAST_POINTER: u64 = 1 << 16;
/// A context is not longer than this in any layout.
const CTX_BYTES: usize = 704;

/// A context that was found.
pub struct Found {
    /// Its address.
    pub address: u64,
    /// Where its tag is.
    pub tag: u64,
    /// Index of its libzmq.
    pub library: u8,
}

impl Found {
    /// What its libzmq says that it is.
    pub fn version(&self, subject: &Subject<'_>) -> Option<Version> {
        subject.versions.get(usize::from(self.library)).copied().flatten()
    }

    /// The addresses of its sockets.
    pub fn sockets(&self, subject: &Subject<'_>) -> Option<Vec<u64>> {
        let sockets = cxx::vector(subject.image, at(self.address, self.tag + CTX_SOCKETS_BEHIND_TAG))?;
        Some(sockets.into_iter().filter(|socket| *socket != 0).collect())
    }

    /// The same, as far as they have what sockets of all builds have in common: the pointer to the context.
    pub fn sockets_of_any_build(&self, subject: &Subject<'_>) -> Option<BTreeSet<u64>> {
        let is_socket = |handle: &u64| subject.image.u64(at(*handle, OBJECT_CTX)) == Some(self.address);
        Some(self.sockets(subject)?.into_iter().filter(is_socket).collect())
    }
}

/// Every context of the process.
fn find(subject: &Subject<'_>, entries: &[Entry]) -> Vec<Found> {
    let mut contexts: BTreeMap<u64, Found> = BTreeMap::new();
    for entry in entries {
        // What it would be if the entry is that of a thread's mailbox.
        let word = entry.events.checked_sub(THREAD_EVENTS - OBJECT_CTX).and_then(|at| subject.image.u64(at));
        // Of most others it is the allocator's note of a size.
        let may_be_pointer = |address: &u64| *address >= LEAST_POINTER && address.is_multiple_of(8);
        let word = word.filter(|address| may_be_pointer(address) && !contexts.contains_key(address));
        let Some(address) = word else { continue };
        let Some(tag) = tag_offset(subject, address) else { continue };
        let table = subject.image.u64(entry.events).and_then(|table| subject.file_at(table));
        let library = table.and_then(|file| file.library).unwrap_or(0);
        let found = Found { address, tag, library };
        if found.sockets(subject).is_some() {
            contexts.insert(address, found);
        }
    }
    contexts.into_values().collect()
}

fn tag_offset(subject: &Subject<'_>, context: u64) -> Option<u64> {
    let head = subject.image.object(context, MAX_TAG_OFFSET as usize)?;
    (0..MAX_TAG_OFFSET).step_by(4).find(|offset| head.u32(*offset) == Some(CTX_TAG))
}

/// Reads all contexts and what belongs to them.
pub fn read_all(subject: &Subject<'_>, entries: &[Entry], detail: Detail) -> Look {
    let mut look = Look::default();
    let contexts = find(subject, entries);
    let mut unknown = Vec::new();
    for found in &contexts {
        match recognise(subject, entries, found) {
            Recognised::Layout(layout, sockets) => {
                let reader = Reader { subject, entries, layout, context: found.address, detail };
                read(&reader, found, sockets, &mut look);
            }
            Recognised::Unknown => unknown.push(found),
            Recognised::Unread => look.unread += 1,
        }
    }
    if !unknown.is_empty() {
        let mut voted = vote::connections(subject, entries, &contexts);
        look.contexts.extend(unknown.into_iter().map(|found| of_unknown_build(subject, found, &mut voted)));
    }
    look
}

/// What a context turns out to be.
enum Recognised<'a> {
    /// Of a build that has this layout, with these sockets.
    Layout(&'a Layout, Vec<u64>),
    /// Of a build that is not known.
    Unknown,
    /// It ended, or was being changed each time.
    Unread,
}

/// A build is not known when its sockets fit no layout each time that they are read: one may be closed meanwhile, and
/// the memory of all of them.
fn recognise<'a>(subject: &Subject<'a>, entries: &[Entry], found: &Found) -> Recognised<'a> {
    let mut recognised = Recognised::Unread;
    for round in 0..TRIES {
        if round > 0 {
            subject.image.refresh();
        }
        let Some(sockets) = found.sockets(subject) else { continue };
        if let Some(layout) = fingerprint::layout(subject, entries, found, &sockets) {
            return Recognised::Layout(layout, sockets);
        }
        recognised = Recognised::Unknown;
    }
    recognised
}

fn read(reader: &Reader<'_>, found: &Found, sockets: Vec<u64>, look: &mut Look) {
    let Reader { subject, layout, .. } = *reader;
    let mut context = members(subject, found, layout);
    context.layout = Some(layout.name(found.version(subject)));
    context.inherited = context.owner_pid.is_some_and(|owner| owner != subject.own_pid);
    if !context.inherited {
        context.sockets = reader.sockets(found, sockets, look);
    }
    look.contexts.push(context);
}

/// What the context says of itself.
fn members(subject: &Subject<'_>, found: &Found, layout: &Layout) -> Context {
    let object = subject.image.object(found.address, CTX_BYTES);
    let i32 = |offset: u64| object.as_ref().and_then(|object| object.i32(offset));
    let bool = |offset: u64| object.as_ref().and_then(|object| object.bool(offset));
    Context {
        handle: found.address,
        library: found.library,
        layout: None,
        owner_pid: layout.ctx_pid.and_then(i32).and_then(|pid| u32::try_from(pid).ok()),
        inherited: false,
        io_threads: i32(layout.ctx_io_thread_count),
        max_sockets: i32(layout.ctx_max_sockets),
        max_msgsz: layout.ctx_max_msgsz.and_then(i32),
        ipv6: bool(layout.ctx_ipv6),
        blocky: layout.ctx_blocky.and_then(bool),
        terminating: bool(layout.ctx_terminating),
        term_fd: i32(layout.ctx_term_mailbox + layout.mailbox_signaler + SIGNALER_R).filter(|fd| *fd >= 0),
        sockets: Vec::new(),
    }
}

/// What it takes to read the objects of one context.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// The process.
    pub subject: &'a Subject<'a>,
    /// What its epolls watch.
    pub entries: &'a [Entry],
    /// Where this build keeps what.
    pub layout: &'a Layout,
    /// The context.
    pub context: u64,
    /// How much is wanted.
    pub detail: Detail,
}

impl Reader<'_> {
    /// All sockets with their connections.
    fn sockets(&self, found: &Found, handles: Vec<u64>, look: &mut Look) -> Vec<SocketState> {
        let (mut sockets, missing) = self.sockets_and_what_they_own(found, handles);
        look.unread += missing;
        self.add_watched(&mut sockets);
        let (names, are_all) = self.bound_names(&sockets);
        look.unread += u32::from(!are_all);
        let mut inproc = self.inproc(&sockets, &names);
        let mut names_of: HashMap<u64, Vec<Bytes>> = HashMap::new();
        for (name, socket) in names {
            names_of.entry(socket).or_default().push(name);
        }
        let states = sockets.into_iter().map(|(handle, (mut state, owned))| {
            let inproc = inproc.remove(&handle).unwrap_or_default();
            let names = names_of.remove(&handle).unwrap_or_default();
            let pipes = self.describe(&mut state, owned, inproc, &names);
            (state, pipes)
        });
        let mut states: Vec<_> = states.collect();
        if self.detail == Detail::All {
            // Last, since nothing else says how much it is.
            states.iter_mut().for_each(|(state, pipes)| state.bytes_held = self.bytes_held(pipes));
        }
        let mut states: Vec<_> = states.into_iter().map(|(state, _)| state).collect();
        look.unread += self.forget_replaced(&mut states);
        states.sort_by_key(|socket| (socket.id, socket.handle));
        states
    }

    /// Forgets sockets that are gone by now: another one may have their memory, and some of what was read may be its
    /// own. Returns how many.
    fn forget_replaced(&self, states: &mut Vec<SocketState>) -> u32 {
        let (image, layout) = (self.subject.image, self.layout);
        let before = states.len();
        image.refresh();
        image.prefetch(states.iter().map(|state| (at(state.handle, layout.opt_socket_id), 4)));
        states.retain(|state| {
            let id = image.u32(at(state.handle, layout.opt_socket_id));
            // Numbers are never used again.
            id == state.id || (id.is_none() && image.is_exhausted())
        });
        if states.len() < before {
            let left: HashSet<u64> = states.iter().map(|state| state.handle).collect();
            for connection in states.iter_mut().flat_map(|state| &mut state.connections) {
                connection.peer_handle = connection.peer_handle.filter(|peer| left.contains(peer));
            }
        }
        (before - states.len()) as u32
    }

    /// Reads each socket, again and again what changes meanwhile. Also returns how many could not be read.
    fn sockets_and_what_they_own(&self, found: &Found, handles: Vec<u64>) -> (Sockets, u32) {
        let mut known: BTreeSet<u64> = handles.into_iter().collect();
        let mut sockets = Sockets::new();
        for round in 0..TRIES {
            if round == 0 {
                self.prefetch(&known.iter().copied().collect::<Vec<_>>());
            } else {
                // What could not be read was closed meanwhile, or was being changed.
                self.subject.image.refresh();
                if let Some(handles) = found.sockets(self.subject) {
                    known = handles.into_iter().collect();
                    sockets.retain(|handle, _| known.contains(handle));
                }
            }
            for handle in &known {
                if !sockets.contains_key(handle)
                    && let Some(state) = self.socket(*handle)
                    && let Some(owned) = self.owned(*handle)
                {
                    sockets.insert(*handle, (state, owned));
                }
            }
            if sockets.len() == known.len() || self.subject.image.is_exhausted() {
                break;
            }
        }
        let missing = known.len() - sockets.len();
        (sockets, missing as u32)
    }

    /// Engines, listeners and connecters that the walk from the sockets did not reach.
    fn add_watched(&self, sockets: &mut Sockets) {
        let mut seen: HashSet<i32> = fds(sockets).map(|(_, watch)| watch.fd).collect();
        let mut found: HashMap<u64, Vec<Part>> = HashMap::new();
        for entry in self.entries {
            if !seen.contains(&entry.fd)
                && let Some((handle, part)) = self.part(*entry, |handle| sockets.contains_key(&handle))
            {
                seen.insert(entry.fd);
                found.entry(handle).or_default().push(part);
            }
        }
        for (handle, parts) in found {
            if let Some((_, owned)) = sockets.get_mut(&handle) {
                owned.add(parts);
            }
        }
        self.forget_gone(sockets);
    }

    /// A fd that several objects seem to watch was closed and used again while we read: memory as it is now decides
    /// whose it is, then what the kernel said, and else nobody has it.
    fn forget_gone(&self, sockets: &mut Sockets) {
        if contradicting(sockets).is_empty() {
            return;
        }
        self.subject.image.refresh();
        let is_listed = |watch: Watch| {
            let entry = Entry { address: watch.entry, fd: watch.fd, events: watch.events };
            self.entries.binary_search(&entry).is_ok()
        };
        let judges: [&dyn Fn(Watch) -> bool; 3] = [&|watch| self.is_on(watch), &is_listed, &|_| false];
        for is_right in judges {
            for (handle, watches) in contradicting(sockets) {
                let gone = watches.into_iter().filter(|watch| !is_right(*watch)).collect();
                if let Some((_, owned)) = sockets.get_mut(&handle) {
                    owned.forget(&gone);
                }
            }
        }
    }

    /// Names that inproc sockets of the context are bound to, and the sockets; and whether these are all. Where the map
    /// is changed each time that it is read, what was found in it counts all the same: each name says its own socket.
    fn bound_names(&self, sockets: &Sockets) -> (BTreeMap<Bytes, u64>, bool) {
        let address = at(self.context, self.layout.ctx_endpoints);
        let mut names = BTreeMap::new();
        for round in 0..TRIES {
            if round > 0 {
                self.subject.image.refresh();
            }
            let sound = cxx::tree(self.subject.image, address);
            let is_sound = sound.is_some();
            let nodes = sound.unwrap_or_else(|| cxx::reachable(self.subject.image, address));
            let named = nodes.into_iter().filter_map(|node| self.named(node));
            names.extend(named.filter(|(name, socket)| name.starts_with(b"inproc:") && sockets.contains_key(socket)));
            if is_sound {
                return (names, true);
            }
        }
        (names, false)
    }

    /// A node of a map from strings to what begins with a pointer: both.
    pub fn named(&self, node: u64) -> Option<(Bytes, u64)> {
        let value = cxx::NODE_VALUE + cxx::string_bytes(self.layout.strings);
        let object = self.subject.image.object(node, (value + 8) as usize)?;
        Some((cxx::string(self.subject.image, &object, cxx::NODE_VALUE, self.layout.strings)?, object.u64(value)?))
    }
}

/// All fds that were found, with the sockets that they are of.
fn fds(sockets: &Sockets) -> impl Iterator<Item = (u64, Watch)> + '_ {
    let of_socket = |(handle, (_, owned)): (&u64, &(SocketState, Owned))| {
        let handle = *handle;
        owned.watches().into_iter().map(move |watch| (handle, watch))
    };
    sockets.iter().flat_map(of_socket)
}

/// The fds that are found more than once, by their sockets.
fn contradicting(sockets: &Sockets) -> HashMap<u64, HashSet<Watch>> {
    let mut counts: HashMap<i32, u32> = HashMap::new();
    fds(sockets).for_each(|(_, watch)| *counts.entry(watch.fd).or_default() += 1);
    let mut watches: HashMap<u64, HashSet<Watch>> = HashMap::new();
    for (handle, watch) in fds(sockets).filter(|(_, watch)| counts.get(&watch.fd) > Some(&1)) {
        watches.entry(handle).or_default().insert(watch);
    }
    watches
}

/// By address: a socket, and what it owns.
pub type Sockets = BTreeMap<u64, (SocketState, Owned)>;

/// What can be said of a context whose build is not known. `voted`: connections by socket.
fn of_unknown_build(subject: &Subject<'_>, found: &Found, voted: &mut HashMap<u64, Vec<Connection>>) -> Context {
    let sockets = found.sockets_of_any_build(subject).unwrap_or_default().into_iter();
    let sockets = sockets.take_while(|_| subject.image.keep(size_of::<SocketState>()).is_some()).map(|handle| {
        let mut connections = voted.remove(&handle).unwrap_or_default();
        connections.sort_by_key(|connection| connection.fd);
        SocketState { handle, connections, ..SocketState::default() }
    });
    Context { handle: found.address, library: found.library, sockets: sockets.collect(), ..Context::default() }
}
