//! Pipes: the two queues between a socket and a connection, or between two inproc sockets.
//!
//! Each side has a `pipe_t`, which counts the messages that it has written and read. What one has written and the other
//! has not read is queued: whole messages, exactly.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use super::{
    connection::text,
    context::{Reader, Sockets},
    cxx,
    image::{Members, Object, at},
    layouts::{OBJECT_CTX, PIPE_IN, PIPE_OUT},
};
use crate::{
    constants,
    event::{Connection, ConnectionState, Pipes, Role},
};

/// `message_pipe_granularity` of libzmq's `config.hpp`: messages in a chunk of a queue.
const CHUNK_MESSAGES: u64 = 256;
/// Message parts of one socket whose bytes are summed up; what holds more is not known.
const MAX_PARTS: u64 = 1 << 18;

/// Types of a `zmq_msg_t`, constant from 4.1 to 4.3.5.
const TYPE_VSM: u8 = 101;
const TYPE_LMSG: u8 = 102;
const TYPE_CMSG: u8 = 104;
const TYPE_ZCLMSG: u8 = 105;

/// Flags of a `zmq_msg_t`, constant from 4.1 to 4.3.5.
const FLAG_MORE: u8 = 1;
const FLAG_CREDENTIAL: u8 = 32;

/// `pipe_t::_peers_msgs_read`, behind `_msgs_written` in every layout.
const PEERS_READ_BEHIND_WRITTEN: u64 = 8;
/// `pipe_t::_state` of a pipe that is in use.
const ACTIVE: i32 = 0;

/// Both sides of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The socket's.
    pub socket: u64,
    /// The session's, or the other socket's.
    pub other: u64,
}

impl Reader<'_> {
    /// The ends of the pipe at `pipe` that belongs to a session of the socket.
    pub fn ends_of_session(&self, pipe: u64, session: u64, socket: u64) -> Option<Ends> {
        let layout = self.layout;
        let other = self.pipe(pipe)?;
        let ends = self.ends(other.u64(layout.pipe_peer)?)?;
        let sink = self.pipe(ends.socket)?.u64(layout.pipe_sink)?;
        let is_sound = ends.other == pipe
            && other.u64(layout.pipe_sink)? == at(session, layout.session_pipe_events)
            // The socket sees a new pipe only at its next call.
            && (sink == 0 || sink == at(socket, layout.socket_pipe_events));
        is_sound.then_some(ends)
    }

    /// The ends of the pipe whose one side is at `socket`: each must know the other.
    fn ends(&self, socket: u64) -> Option<Ends> {
        let other = self.pipe(socket)?.u64(self.layout.pipe_peer)?;
        let back = self.pipe(other)?.u64(self.layout.pipe_peer)?;
        (back == socket).then_some(Ends { socket, other })
    }

    fn pipe(&self, address: u64) -> Option<Members<'_>> {
        let pipe = self.subject.image.members(address);
        (pipe.u64(OBJECT_CTX)? == self.context).then_some(pipe)
    }

    /// What a pipe counts.
    pub fn pipes(&self, ends: Ends) -> Option<Pipes> {
        let layout = self.layout;
        let (socket, other) = (self.pipe(ends.socket)?, self.pipe(ends.other)?);
        let mut pipes = Pipes {
            handle: ends.socket,
            tx_written: socket.u64(layout.pipe_msgs_written)?,
            tx_read: other.u64(layout.pipe_msgs_read)?,
            tx_hwm: socket.i32(layout.pipe_hwm)?,
            tx_full: self.is_full(&socket)?,
            rx_written: other.u64(layout.pipe_msgs_written)?,
            rx_read: socket.u64(layout.pipe_msgs_read)?,
            rx_hwm: other.i32(layout.pipe_hwm)?,
            rx_full: self.is_full(&other)?,
        };
        // A conflating queue keeps the last message: what it dropped counts as read.
        if socket.bool(layout.pipe_conflate) == Some(true) {
            pipes.tx_read = pipes.tx_written - u64::from(self.conflated(socket.u64(PIPE_OUT)?)?).min(pipes.tx_written);
        }
        if other.bool(layout.pipe_conflate) == Some(true) {
            pipes.rx_read = pipes.rx_written - u64::from(self.conflated(other.u64(PIPE_OUT)?)?).min(pipes.rx_written);
        }
        Some(pipes)
    }

    /// What the pipe of a session counts whose peer has said who it is. Its credentials, which its engine puts before
    /// the first message, count as written and never as read: here the queue itself is counted.
    pub fn pipes_of_authenticated(&self, ends: Ends) -> Option<Pipes> {
        let mut pipes = self.pipes(ends)?;
        if pipes.rx_queue() > 0 {
            let queue = self.pipe(ends.other)?.u64(PIPE_OUT)?;
            let mut parts_left = MAX_PARTS;
            let waiting =
                self.queued(queue, &mut parts_left, |messages, offset| self.ends_message(messages, offset))?;
            pipes.rx_read = pipes.rx_written.saturating_sub(waiting);
        }
        Some(pipes)
    }

    /// Whether the writer of a pipe may write no more (`pipe_t::check_hwm`): by what the reader has confirmed, which it
    /// does each time that it has read as much as the low-water mark.
    fn is_full(&self, pipe: &Members<'_>) -> Option<bool> {
        let (written, hwm) = (pipe.u64(self.layout.pipe_msgs_written)?, pipe.i32(self.layout.pipe_hwm)?);
        let confirmed = pipe.u64(self.layout.pipe_msgs_written + PEERS_READ_BEHIND_WRITTEN)?;
        Some(u64::try_from(hwm).is_ok_and(|hwm| hwm > 0 && written.saturating_sub(confirmed) >= hwm))
    }

    /// Whether one of the ends is being shut down.
    pub fn is_closing(&self, ends: Ends) -> bool {
        let state = |pipe: u64| self.pipe(pipe)?.i32(self.layout.pipe_state);
        state(ends.socket).is_some_and(|state| state != ACTIVE)
            || state(ends.other).is_some_and(|state| state != ACTIVE)
    }

    /// Whether a conflating queue holds a message.
    fn conflated(&self, queue: u64) -> Option<bool> {
        Some(self.subject.image.array::<1>(at(queue, self.layout.conflate_has_msg))?[0] != 0)
    }

    /// The routing id that a ROUTER gave the peer.
    pub fn routing_id(&self, ends: Ends) -> Option<Bytes> {
        const ROUTING_ID_BYTES: usize = 32;
        let layout = self.layout;
        let object = self.subject.image.object(at(ends.socket, layout.pipe_routing_id), ROUTING_ID_BYTES)?;
        let id = if layout.has_blob_class() {
            cxx::bytes(self.subject.image, object.u64(0)?, object.u64(8)?)
        } else {
            cxx::string(self.subject.image, &object, 0, layout.strings)
        };
        id.filter(|id| !id.is_empty())
    }

    /// The connections of all inproc sockets, by socket, each with the pipe that it is.
    pub fn inproc(&self, sockets: &Sockets, bound: &BTreeMap<Bytes, u64>) -> HashMap<u64, Vec<(Ends, Connection)>> {
        let of_sessions: HashSet<u64> = sockets
            .values()
            .flat_map(|(_, owned)| &owned.sessions)
            .filter_map(|session| session.ends)
            .map(|ends| ends.socket)
            .collect();
        let mut connections: HashMap<u64, Vec<(Ends, Connection)>> = HashMap::new();
        let mut unattached = Vec::new();
        let mut attached = HashSet::new();
        for (handle, (_, owned)) in sockets {
            let names: HashMap<u64, &Bytes> = owned.inproc_endpoints.iter().map(|(name, pipe)| (*pipe, name)).collect();
            for pipe in owned.pipes.iter().filter(|pipe| !of_sessions.contains(pipe)) {
                let Some((ends, peer)) = self.inproc_pipe(*pipe, *handle, sockets) else { continue };
                let name = names.get(pipe).copied();
                let cost = size_of::<(Ends, Connection)>() + name.map_or(0, Bytes::len);
                if self.subject.image.keep(cost).is_none() {
                    break;
                }
                let role = if name.is_some() { Role::Connect } else { Role::Bind };
                let bound_socket = name.and_then(|name| bound.get(name)).copied();
                let is_connected = peer.or(bound_socket).is_some();
                // Whatever a name says it is bound to: a socket it is only if it was read as one.
                let peer = peer.or(bound_socket.filter(|socket| sockets.contains_key(socket)));
                let state = if is_connected { ConnectionState::Ready } else { ConnectionState::Pending };
                let connection = Connection {
                    endpoint: name.map(|name| text(name)),
                    role: Some(role),
                    state: Some(state),
                    peer_handle: peer,
                    pipes: self.pipes(ends),
                    ..Connection::default()
                };
                attached.insert(ends.socket);
                unattached.extend(peer.map(|peer| (peer, *handle, ends, connection.endpoint.clone())));
                connections.entry(*handle).or_default().push((ends, connection));
            }
        }
        // The bound side learns of a connection at its next call: until then only the connecting side has it.
        for (peer, handle, ends, endpoint) in unattached {
            if self.subject.image.keep(size_of::<(Ends, Connection)>()).is_some() && attached.insert(ends.other) {
                let ends = Ends { socket: ends.other, other: ends.socket };
                let connection = Connection {
                    endpoint,
                    role: Some(Role::Bind),
                    state: Some(ConnectionState::Ready),
                    peer_handle: Some(handle),
                    pipes: self.pipes(ends),
                    ..Connection::default()
                };
                connections.entry(peer).or_default().push((ends, connection));
            }
        }
        self.name_bound_ends(&mut connections);
        for (ends, connection) in connections.values_mut().flatten() {
            // inproc sockets tell each other no more than their routing ids: the rest is known from the peer itself.
            let peer = connection.peer_handle.and_then(|peer| sockets.get(&peer)).map(|(state, _)| state);
            connection.peer_type = peer.and_then(|peer| constants::socket_type(peer.socket_type?)).map(str::to_owned);
            let own_id = peer.and_then(|peer| peer.options.routing_id.clone()).filter(|id| !id.is_empty());
            connection.peer_identity = self.routing_id(*ends).or(own_id);
        }
        connections
    }

    /// What a bound side cannot say of itself, its peer does: the endpoint.
    fn name_bound_ends(&self, connections: &mut HashMap<u64, Vec<(Ends, Connection)>>) {
        let names: HashMap<u64, Option<String>> = connections
            .values()
            .flatten()
            .filter(|(_, connection)| connection.role == Some(Role::Connect))
            .map(|(ends, connection)| (ends.other, connection.endpoint.clone()))
            .collect();
        for (ends, connection) in connections.values_mut().flatten() {
            if connection.endpoint.is_none() {
                connection.endpoint = names.get(&ends.socket).cloned().flatten();
            }
        }
    }

    /// The pipe of an inproc socket, and the socket at its other end where that has taken it.
    fn inproc_pipe(&self, pipe: u64, socket: u64, sockets: &Sockets) -> Option<(Ends, Option<u64>)> {
        let layout = self.layout;
        let ends = self.ends(pipe)?;
        if self.pipe(pipe)?.u64(layout.pipe_sink)? != at(socket, layout.socket_pipe_events) {
            return None;
        }
        let sink = self.pipe(ends.other)?.u64(layout.pipe_sink)?;
        let peer = sink.checked_sub(layout.socket_pipe_events).filter(|peer| sockets.contains_key(peer));
        // A session whose socket is being closed is no inproc peer.
        (sink == 0 || peer.is_some()).then_some((ends, peer))
    }

    /// Bytes of the messages that wait in these pipes; `None` when that is too much to add up, or unreadable. It may
    /// leave half of a look's budget to what matters more.
    pub fn bytes_held(&self, ends: &[Ends]) -> Option<u64> {
        let mut parts_left = MAX_PARTS;
        let mut bytes = 0u64;
        for end in ends {
            let (socket, other) = (self.pipe(end.socket)?, self.pipe(end.other)?);
            for (pipe, reader_queue) in [(&other, socket.u64(PIPE_IN)?), (&socket, other.u64(PIPE_IN)?)] {
                let conflates = pipe.bool(self.layout.pipe_conflate) == Some(true);
                let queue = pipe.u64(PIPE_OUT)?;
                if queue == 0 || reader_queue != queue {
                    // One side has given it up.
                    continue;
                }
                bytes = bytes.saturating_add(if conflates {
                    self.conflated_bytes(queue)?
                } else {
                    self.queued(queue, &mut parts_left, |messages, offset| self.message_bytes(messages, offset))?
                });
            }
        }
        Some(bytes)
    }

    /// The sum of `each` over the parts in a `ypipe_t`: a list of chunks, from the reader's place to the writer's.
    fn queued(&self, queue: u64, parts_left: &mut u64, each: impl Fn(&Object, u64) -> Option<u64>) -> Option<u64> {
        let layout = self.layout;
        // The table of virtual functions, then begin_chunk, begin_pos, back_chunk, back_pos.
        let object = self.subject.image.object(queue, 40)?;
        let (mut chunk, mut first) = (object.u64(8)?, u64::from(object.u32(16)?));
        let (last_chunk, last) = (object.u64(24)?, u64::from(object.u32(32)?));
        let messages_bytes = layout.msg_size * CHUNK_MESSAGES;
        let mut sum = 0u64;
        loop {
            let end = if chunk == last_chunk { last } else { CHUNK_MESSAGES };
            if first > end || end > CHUNK_MESSAGES {
                return None;
            }
            if self.subject.image.is_half_spent() {
                return None;
            }
            let parts = end - first;
            *parts_left = parts_left.checked_sub(parts)?;
            let messages =
                self.subject.image.object(at(chunk, first * layout.msg_size), (parts * layout.msg_size) as usize)?;
            for index in 0..parts {
                sum = sum.saturating_add(each(&messages, index * layout.msg_size)?);
            }
            if chunk == last_chunk {
                return Some(sum);
            }
            // A chunk ends with pointers to its neighbours.
            *parts_left = parts_left.checked_sub(1)?;
            chunk = self.subject.image.u64(at(chunk, messages_bytes + 8))?;
            first = 0;
        }
    }

    fn conflated_bytes(&self, queue: u64) -> Option<u64> {
        if !self.conflated(queue)? {
            return Some(0);
        }
        let front = self.subject.image.u64(at(queue, self.layout.conflate_front))?;
        self.message_bytes(&self.subject.image.object(front, self.layout.msg_size as usize)?, 0)
    }

    /// 1 for a part that ends a message of the peer's, else 0.
    fn ends_message(&self, messages: &Object, offset: u64) -> Option<u64> {
        let flags = messages.u8(offset + self.layout.msg_type + 1)?;
        Some(u64::from(flags & (FLAG_MORE | FLAG_CREDENTIAL) == 0))
    }

    /// Bytes of the message at `offset`.
    fn message_bytes(&self, messages: &Object, offset: u64) -> Option<u64> {
        let layout = self.layout;
        let content = offset + layout.msg_content;
        match messages.u8(offset + layout.msg_type)? {
            TYPE_VSM => messages.u8(offset + layout.msg_type - 1).map(u64::from),
            TYPE_LMSG | TYPE_ZCLMSG => self.subject.image.u64(at(messages.u64(content)?, 8)),
            TYPE_CMSG => messages.u64(content + 8),
            // Delimiters, and commands of subscriptions.
            _ => Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            layouts::Layout,
            made::{CONTEXT, Made, usual},
        },
        *,
    };
    use crate::target::Version;

    const SOCKET_END: u64 = 0x1_0000;
    const OTHER_END: u64 = 0x1_1000;
    const QUEUE: u64 = 0x2_0000;
    const CHUNKS: u64 = 0x10_0000;
    const BODIES: u64 = 0x50_0000;
    const ENDS: Ends = Ends { socket: SOCKET_END, other: OTHER_END };
    /// One of each layout of messages.
    const VERSIONS: [Version; 2] = [Version(4, 1, 6), Version(4, 3, 4)];

    fn chunk_bytes(layout: &Layout) -> u64 {
        layout.msg_size * CHUNK_MESSAGES + 16
    }

    /// A pipe whose socket has written to `QUEUE`; nothing comes back.
    fn pipe(layout: &Layout) -> Made {
        let mut made = Made::default();
        for (end, peer) in [(SOCKET_END, OTHER_END), (OTHER_END, SOCKET_END)] {
            made.bytes(end, &[0; 512]).words(end + OBJECT_CTX, &[CONTEXT]).words(end + layout.pipe_peer, &[peer]);
        }
        made.words(SOCKET_END + PIPE_OUT, &[QUEUE]).words(OTHER_END + PIPE_IN, &[QUEUE]);
        made
    }

    /// A queue from place `first` of its first chunk to place `last` of its last one, all short messages of `size`.
    fn queue(made: &mut Made, layout: &Layout, chunks: u64, first: u32, last: u32, size: u8) {
        let chunk = |index: u64| CHUNKS + index * chunk_bytes(layout);
        made.words(QUEUE, &[0, chunk(0), first.into(), chunk(chunks - 1), last.into()]);
        for index in 0..chunks {
            for place in 0..CHUNK_MESSAGES {
                let message = chunk(index) + place * layout.msg_size;
                made.bytes(message + layout.msg_type - 1, &[size, TYPE_VSM]);
            }
            made.words(chunk(index) + layout.msg_size * CHUNK_MESSAGES, &[0, chunk(index + 1)]);
        }
    }

    fn held(made: &Made, version: Version) -> Option<u64> {
        made.read(version, |reader| reader.bytes_held(&[ENDS]))
    }

    #[test]
    fn queues_across_chunks() {
        for version in VERSIONS {
            let layout = usual(version);
            for (chunks, first, last) in
                [(1, 0, 0), (1, 3, 10), (1, 0, 256), (1, 256, 256), (2, 255, 1), (2, 256, 0), (2, 0, 256), (5, 100, 7)]
            {
                let mut made = pipe(layout);
                queue(&mut made, layout, chunks, first, last, 5);
                let messages = (chunks - 1) * CHUNK_MESSAGES + u64::from(last) - u64::from(first);
                assert_eq!(held(&made, version), Some(messages * 5), "{version}: {chunks} chunks, {first} to {last}");
            }
        }
    }

    #[test]
    fn messages_of_each_kind() {
        for version in VERSIONS {
            let layout = usual(version);
            let mut made = pipe(layout);
            queue(&mut made, layout, 1, 0, 5, 7);
            let message = |place: u64| CHUNKS + place * layout.msg_size;
            for (place, kind, content) in [
                (1, TYPE_LMSG, [BODIES, 0]),
                (2, TYPE_ZCLMSG, [BODIES + 100, 0]),
                (3, TYPE_CMSG, [0xdead, 40_000]),
                (4, 103, [1, 2]),
            ] {
                made.bytes(message(place) + layout.msg_type, &[kind])
                    .words(message(place) + layout.msg_content, &content);
            }
            made.words(BODIES, &[0, 1000]).words(BODIES + 100, &[0, 200]);
            assert_eq!(held(&made, version), Some(7 + 1000 + 200 + 40_000), "{version}");
        }
    }

    #[test]
    fn queues_that_make_no_sense() {
        let version = Version(4, 3, 4);
        let layout = usual(version);
        let mut sound = pipe(layout);
        queue(&mut sound, layout, 2, 0, 10, 1);
        let next = CHUNKS + layout.msg_size * CHUNK_MESSAGES + 8;
        let damages: [(&str, u64, u64); 8] = [
            ("it begins behind the end of a chunk", QUEUE + 16, 257),
            ("it ends behind the end of a chunk", QUEUE + 32, 257),
            ("a first chunk that is no address", QUEUE + 8, u64::MAX - 100),
            ("a next chunk that is no address", next, u64::MAX),
            ("a next chunk that is not there", next, 0x6666_0000),
            ("a chunk that follows itself", next, CHUNKS),
            ("a last chunk that does not come", QUEUE + 24, 1),
            ("a body that is no address", CHUNKS + layout.msg_content, u64::MAX),
        ];
        assert_eq!(held(&sound, version), Some(266));
        sound.bytes(CHUNKS + layout.msg_type, &[TYPE_LMSG]).words(CHUNKS + layout.msg_content, &[BODIES]);
        sound.words(BODIES, &[0, 1]);
        assert_eq!(held(&sound, version), Some(266));
        for (what, at, word) in damages {
            let mut made = sound.clone();
            made.words(at, &[word]);
            assert_eq!(held(&made, version), None, "{what}");
        }
        // Sizes that add up to more than there can be.
        let mut made = sound.clone();
        made.words(BODIES, &[0, u64::MAX]);
        assert_eq!(held(&made, version), Some(u64::MAX));
        // A queue that one side has given up.
        made.words(OTHER_END + PIPE_IN, &[0]);
        assert_eq!(held(&made, version), Some(0));
    }

    #[test]
    fn conflating_queues_hold_the_last_message() {
        let version = Version(4, 3, 4);
        let layout = usual(version);
        for (has_message, size, queued) in [(0, 0, 0), (1, 9, 1)] {
            let mut made = pipe(layout);
            made.bytes(SOCKET_END + layout.pipe_conflate, &[1])
                .words(SOCKET_END + layout.pipe_msgs_written, &[100])
                .words(QUEUE + layout.conflate_front, &[BODIES])
                .bytes(QUEUE + layout.conflate_has_msg, &[has_message])
                .bytes(BODIES + layout.msg_type - 1, &[9, TYPE_VSM])
                .bytes(BODIES + layout.msg_size, &[0]);
            assert_eq!(held(&made, version), Some(size));
            let pipes = made.read(version, |reader| reader.pipes(ENDS)).expect("they are there");
            assert_eq!((pipes.tx_queue(), pipes.rx_queue()), (queued, 0));
        }
    }

    #[test]
    fn ends_must_know_each_other() {
        let version = Version(4, 3, 4);
        let layout = usual(version);
        let mut made = pipe(layout);
        let ends = |made: &Made| made.read(version, |reader| reader.ends(SOCKET_END));
        assert_eq!(ends(&made), Some(ENDS));
        made.words(OTHER_END + layout.pipe_peer, &[OTHER_END]);
        assert_eq!(ends(&made), None, "another peer");
        made.words(OTHER_END + layout.pipe_peer, &[SOCKET_END]).words(OTHER_END + OBJECT_CTX, &[CONTEXT + 8]);
        assert_eq!(ends(&made), None, "another context");
    }
}
