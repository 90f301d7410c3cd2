//! Where connections and sockets that were there before us are: in their frames, as libzmq's own encoders and decoders
//! know, and in the counts of their pipes.
//!
//! The kernel side asks them, too, at each system call on a connection of which it does not know (`tracer-ebpf/src/wire.rs`),
//! but what it then learns holds for the bytes that follow. Of a connection that is at rest it can be said before its next
//! byte. The hooks are in before this is read, and what they have seen by then is not overwritten: so whatever happens
//! meanwhile, the first bytes that the kernel side sees are those that follow what was read.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use tracer_common::{
    fds::FdKey,
    limits::MAX_PIPES,
    record::SocketAddress,
    wire::{
        DECODER_BEFORE_ENCODER, Direction as RawDirection, Engine, EngineLayout, PipeEnd, PipeKey, PipeSeen, Piped,
        Stream, StreamKey, pipe_id,
    },
    zmtp::{Walk, is_old},
};

use super::{handshake, monotonic_ns};
use crate::{
    event::{
        Command, CommandContent, ConnectionState, Direction, Event, Pipe, PipeCount, Snapshot, SocketState,
        Stream as Met,
    },
    inspect::layouts::{self, Layout},
    target::Memory,
};

/// `BPF_NOEXIST`.
const NO_REPLACE: u64 = 1;
/// Before the pointer to the encoder: how many encoded bytes are not sent yet.
const OUT_SIZE_BEFORE_ENCODER: u64 = 8;
/// Before the pointer to the encoder: how many received bytes are not decoded yet.
const IN_SIZE_BEFORE_ENCODER: u64 = 32;
/// Bytes of a decoder's object, at most.
const DECODER_BYTES: u64 = 4096;

/// The kernel side's tables of what a look can tell it.
#[derive(Debug)]
pub struct Joiner {
    engines: HashMap<MapData, FdKey, Engine>,
    streams: HashMap<MapData, StreamKey, Stream>,
    piped: HashMap<MapData, SocketAddress, Piped>,
    pipes: HashMap<MapData, PipeKey, PipeSeen>,
}

impl Joiner {
    /// Nothing is entered yet.
    pub const fn new(
        engines: HashMap<MapData, FdKey, Engine>,
        streams: HashMap<MapData, StreamKey, Stream>,
        piped: HashMap<MapData, SocketAddress, Piped>,
        pipes: HashMap<MapData, PipeKey, PipeSeen>,
    ) -> Self {
        Self { engines, streams, piped, pipes }
    }

    /// Enters what a look that began after the hooks were in has found. `inodes`: of the process's sockets, by fd. Returns
    /// what the kernel side will not speak of when they are used.
    pub fn seed(&mut self, snapshot: &Snapshot, inodes: &BTreeMap<i32, u64>) -> Vec<Event> {
        let tgid = snapshot.pid;
        let memory = Memory::new(tgid);
        let mut found = Vec::new();
        for context in snapshot.contexts.iter().filter(|context| !context.inherited) {
            let Some(layout) = context.layout.as_deref().and_then(layouts::named) else { continue };
            for socket in &context.sockets {
                let pipes = self.seed_pipes(&memory, tgid, socket, layout).unwrap_or_default();
                found.extend(pipes.into_iter().map(Event::Pipe));
                for connection in &socket.connections {
                    let (Some(address), Some(fd)) = (connection.engine, connection.fd) else { continue };
                    let Some(inode) = inodes.get(&fd).copied() else { continue };
                    let socket_type = socket.socket_type.and_then(|it| u8::try_from(it).ok()).unwrap_or(u8::MAX);
                    let engine = Engine { address, layout: engine_layout(layout), socket_type, padding: [0; 3] };
                    let key = FdKey { tgid, fd };
                    let _ = self.engines.insert(key, engine, NO_REPLACE);
                    let met = |sent| Met {
                        ts_ns: monotonic_ns(),
                        pid: tgid,
                        fd,
                        inode,
                        peer_inode: connection.kernel.as_ref().and_then(|kernel| kernel.peer_inode),
                        local: None,
                        remote: None,
                        from_start: false,
                        sent,
                    };
                    if connection.state == Some(ConnectionState::Handshake) {
                        let said = self.seed_handshake(&memory, key, &engine, socket);
                        found.push(Event::Stream(met(None)));
                        found.extend(said.into_iter().map(|(direction, content)| {
                            let ts_ns = monotonic_ns();
                            Event::Command(Command { ts_ns, pid: tgid, tid: tgid, fd, inode, direction, content })
                        }));
                    } else if let Some(sent) = self.seed_connection(&memory, key, &engine) {
                        found.push(Event::Stream(met(Some(sent))));
                    }
                }
            }
        }
        found
    }

    /// The process's fds mean something else now, or nothing.
    pub fn forget(&mut self, pid: u32) {
        let keys: Vec<FdKey> = self.engines.keys().flatten().filter(|key| key.tgid == pid).collect();
        for key in keys {
            let _ = self.engines.remove(&key);
        }
    }

    /// Tells the kernel side how far a handshake is. Returns what was said by then.
    fn seed_handshake(
        &mut self,
        memory: &Memory,
        FdKey { tgid, fd }: FdKey,
        engine: &Engine,
        socket: &SocketState,
    ) -> Vec<(Direction, CommandContent)> {
        let Some(begun) = handshake::look(memory, engine, socket) else { return Vec::new() };
        for (direction, stream) in begun.streams {
            let _ = self.streams.insert(StreamKey { tgid, fd, direction: direction as u32 }, stream, NO_REPLACE);
        }
        begun.said
    }

    /// Tells the kernel side of the directions of a connection that are between two frames. Returns what it has sent of
    /// its pipe, if that is all that was taken out of it.
    fn seed_connection(&mut self, memory: &Memory, FdKey { tgid, fd }: FdKey, engine: &Engine) -> Option<PipeCount> {
        let mut walk = Walk::unknown();
        walk.join(0, speaks_old(memory, engine)?);
        let mut sent = None;
        if sends_next_frame(memory, engine) == Some(true) {
            let key = StreamKey { tgid, fd, direction: RawDirection::Send as u32 };
            let taken = taken(memory, engine);
            if self.streams.insert(key, Stream::walked(walk), NO_REPLACE).is_ok() {
                // What was taken out since, if anything, makes this too much: then nothing fits it.
                sent = taken.filter(|taken| taken.whole);
            }
        }
        if awaits_frame(memory, engine) == Some(true) {
            let key = StreamKey { tgid, fd, direction: RawDirection::Receive as u32 };
            // That it awaits a byte is certain, not that this byte begins a frame: a header of two may be half there.
            let stream = Stream { is_provisional: 1, ..Stream::walked(walk) };
            let _ = self.streams.insert(key, stream, NO_REPLACE);
        }
        sent
    }

    /// Tells the kernel side what the pipes of a socket have counted.
    fn seed_pipes(&mut self, memory: &Memory, pid: u32, socket: &SocketState, layout: &Layout) -> Option<Vec<Pipe>> {
        let (tgid, handle) = (pid, socket.handle);
        let vector = handle + layout.socket_pipes;
        let (begin, end) = (memory.read_u64(vector).ok()?, memory.read_u64(vector + 8).ok()?);
        let count = (end.checked_sub(begin)? / 8).min(MAX_PIPES.into());
        let mut found = Vec::new();
        for index in 0..count {
            let pipe = memory.read_u64(begin + 8 * index).ok()?;
            let own = pipe_end(memory, pipe, layout.pipe_counts())?;
            let other = pipe_end(memory, own.peer, layout.pipe_counts())?;
            let seen = PipeSeen {
                socket: pipe_id(handle, socket.generation),
                peer: own.peer,
                counts: [own.written, own.read],
                wire: [other.read, other.written],
                ..PipeSeen::default()
            };
            let _ = self.pipes.insert(PipeKey { pipe, tgid, padding: 0 }, seen, NO_REPLACE);
            let pipe = pipe_id(pipe, seen.life);
            found.push(Pipe { ts_ns: monotonic_ns(), pid, handle, pipe, peer: own.peer, inode: None });
        }
        let piped = Piped {
            pipes: layout.socket_pipes as u32,
            counts: layout.pipe_counts() as u32,
            socket_type: socket.socket_type? as u32,
            ..Piped::default()
        };
        let _ = self.piped.insert(SocketAddress { handle, tgid, padding: 0 }, piped, NO_REPLACE);
        Some(found)
    }
}

fn pipe_end(memory: &Memory, pipe: u64, counts: u64) -> Option<PipeEnd> {
    let mut words = [[0; 8]; 5];
    memory.read(pipe + counts, words.as_flattened_mut()).ok()?;
    let [read, written, peers_read, peer, sink] = words.map(u64::from_ne_bytes);
    Some(PipeEnd { read, written, peers_read, peer, sink })
}

/// The way from an engine to its queues.
pub fn engine_layout(layout: &Layout) -> EngineLayout {
    EngineLayout {
        session: layout.engine_session as u16,
        encoder: layout.engine_encoder() as u16,
        greeting: layout.engine_greeting as u16,
        pipe: layout.session_pipe as u16,
        // `incomplete_in` and `pending` lie before the pointer to the engine, in every release.
        incomplete: layout.session_engine as u16 - 8,
        counts: layout.pipe_counts() as u16,
        message_type: layout.msg_type as u16,
        message_content: layout.msg_content as u16,
        sink: layout.session_pipe_events as u16,
        padding: 0,
    }
}

/// An engine's decoder and encoder.
#[derive(Debug, Clone, Copy)]
pub struct Codecs {
    /// Address of the decoder; 0: there is none yet.
    pub decoder: u64,
    /// Address of the encoder; 0: there is none yet.
    pub encoder: u64,
}

impl Codecs {
    pub fn read(memory: &Memory, engine: &Engine) -> Option<Self> {
        let at = engine.address + u64::from(engine.layout.encoder);
        let decoder = memory.read_u64(at - DECODER_BEFORE_ENCODER).ok()?;
        Some(Self { decoder, encoder: memory.read_u64(at).ok()? })
    }

    /// Whether the encoder has ever been given a frame: before it writes from nowhere.
    pub fn has_encoded(&self, memory: &Memory) -> Option<bool> {
        Some(memory.read_u64(self.encoder + 8).ok()? != 0)
    }
}

/// Whether all that the encoder was given is sent.
pub fn sends_next_frame(memory: &Memory, engine: &Engine) -> Option<bool> {
    let at = engine.address + u64::from(engine.layout.encoder);
    let encoder = Codecs::read(memory, engine)?.encoder;
    if encoder == 0 {
        return None;
    }
    let to_write = memory.read_u64(encoder + 16).ok()?;
    let ends_message = memory.read_u64(encoder + 40).ok()? as u8 != 0;
    let message = memory.read_u64(encoder + 64).ok()?;
    let is_sent = memory.read_u64(at - OUT_SIZE_BEFORE_ENCODER).ok()? == 0;
    Some(is_sent && (message == 0 || (to_write == 0 && ends_message)))
}

/// The messages that a connection has taken out of its pipe.
fn taken(memory: &Memory, engine: &Engine) -> Option<PipeCount> {
    let layout = &engine.layout;
    let session = memory.read_u64(engine.address + u64::from(layout.session)).ok()?;
    let own = memory.read_u64(session + u64::from(layout.pipe)).ok()?;
    let end = pipe_end(memory, own, layout.counts.into())?;
    Some(PipeCount {
        pipe: pipe_id(end.peer, 0),
        count: end.read,
        unsure: false,
        whole: memory.read_u64(session + u64::from(layout.incomplete)).ok()? as u8 == 0,
    })
}

/// Whether the decoder has dealt with all that was received, and awaits one byte.
pub fn awaits_frame(memory: &Memory, engine: &Engine) -> Option<bool> {
    let at = engine.address + u64::from(engine.layout.encoder);
    let decoder = Codecs::read(memory, engine)?.decoder;
    if decoder == 0 {
        return None;
    }
    let reads_to = memory.read_u64(decoder + 24).ok()?;
    let to_read = memory.read_u64(decoder + 32).ok()?;
    let is_decoded = memory.read_u64(at - IN_SIZE_BEFORE_ENCODER).ok()? == 0;
    Some(is_decoded && to_read == 1 && reads_to.wrapping_sub(decoder) < DECODER_BYTES)
}

/// Whether the frames of a connection are those of ZMTP 1.0.
fn speaks_old(memory: &Memory, engine: &Engine) -> Option<bool> {
    let mut greeting = [0; 11];
    memory.read(engine.address + u64::from(engine.layout.greeting), &mut greeting).ok()?;
    Some(is_old(&greeting))
}
