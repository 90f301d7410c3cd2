//! Where connections and sockets that were there before us are: in their frames, as libzmq's own encoders and decoders
//! know, and in the counts of their pipes.
//!
//! The kernel side asks them, too, at each system call on a connection of which it does not know (`tracer-ebpf/src/wire.rs`),
//! but what it then learns holds for the bytes that follow. Of a connection that is at rest it can be said before its next
//! byte. The hooks are in before this is read, and what they have seen by then is not overwritten: so whatever happens
//! meanwhile, the first bytes that the kernel side sees are those that follow what was read.

use aya::maps::{HashMap, MapData};
use tracer_common::{
    fds::FdKey,
    limits::MAX_PIPES,
    wire::{
        DECODER_BEFORE_ENCODER, Direction, Engine, EngineLayout, PipeEnd, PipeKey, PipeSeen, Piped, PipedKey, Stream,
        StreamKey, pipe_id,
    },
};

use super::monotonic_ns;
use crate::{
    event::{Pipe, Snapshot, SocketState},
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
    piped: HashMap<MapData, PipedKey, Piped>,
    pipes: HashMap<MapData, PipeKey, PipeSeen>,
}

impl Joiner {
    /// Nothing is entered yet.
    pub const fn new(
        engines: HashMap<MapData, FdKey, Engine>,
        streams: HashMap<MapData, StreamKey, Stream>,
        piped: HashMap<MapData, PipedKey, Piped>,
        pipes: HashMap<MapData, PipeKey, PipeSeen>,
    ) -> Self {
        Self { engines, streams, piped, pipes }
    }

    /// Enters what a look that began after the hooks were in has found. Returns the pipes of all sockets, of which the
    /// kernel side will not speak when they are used.
    pub fn seed(&mut self, snapshot: &Snapshot) -> Vec<Pipe> {
        let tgid = snapshot.pid;
        let memory = Memory::new(tgid);
        let mut found = Vec::new();
        for context in snapshot.contexts.iter().filter(|context| !context.inherited) {
            let Some(layout) = context.layout.as_deref().and_then(layouts::named) else { continue };
            for socket in &context.sockets {
                found.extend(self.seed_pipes(&memory, tgid, socket, layout).unwrap_or_default());
                for connection in &socket.connections {
                    if let (Some(address), Some(fd)) = (connection.engine, connection.fd) {
                        let engine = Engine { address, handle: socket.handle, layout: engine_layout(layout) };
                        self.seed_connection(&memory, FdKey { tgid, fd }, &engine);
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

    /// Tells the kernel side of the directions of a connection that are between two frames.
    fn seed_connection(&mut self, memory: &Memory, key: FdKey, engine: &Engine) {
        let FdKey { tgid, fd } = key;
        let _ = self.engines.insert(key, engine, NO_REPLACE);
        if sends_next_frame(memory, engine) == Some(true) {
            let key = StreamKey { tgid, fd, direction: Direction::Send as u32 };
            let _ = self.streams.insert(key, Stream::between_frames(false), NO_REPLACE);
        }
        if awaits_frame(memory, engine) == Some(true) {
            let key = StreamKey { tgid, fd, direction: Direction::Receive as u32 };
            // That it awaits a byte is certain, not that this byte begins a frame: a header of two may be half there.
            let _ = self.streams.insert(key, Stream::between_frames(true), NO_REPLACE);
        }
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
            let own = pipe_end(memory, pipe, layout)?;
            let other = pipe_end(memory, own.peer, layout)?;
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
        let _ = self.piped.insert(PipedKey { handle, tgid, padding: 0 }, piped, NO_REPLACE);
        Some(found)
    }
}

fn pipe_end(memory: &Memory, pipe: u64, layout: &Layout) -> Option<PipeEnd> {
    let mut words = [[0; 8]; 5];
    memory.read(pipe + layout.pipe_counts(), words.as_flattened_mut()).ok()?;
    let [read, written, peers_read, peer, sink] = words.map(u64::from_ne_bytes);
    Some(PipeEnd { read, written, peers_read, peer, sink })
}

/// The way from an engine to its queues.
pub fn engine_layout(layout: &Layout) -> EngineLayout {
    EngineLayout {
        session: layout.engine_session as u16,
        encoder: layout.engine_encoder() as u16,
        pipe: layout.session_pipe as u16,
        counts: layout.pipe_counts() as u16,
        message_type: layout.msg_type as u16,
        message_content: layout.msg_content as u16,
        sink: layout.session_pipe_events as u16,
        padding: 0,
    }
}

/// Whether all that the encoder was given is sent.
fn sends_next_frame(memory: &Memory, engine: &Engine) -> Option<bool> {
    let at = engine.address + u64::from(engine.layout.encoder);
    let encoder = memory.read_u64(at).ok()?;
    if encoder == 0 {
        return None;
    }
    let to_write = memory.read_u64(encoder + 16).ok()?;
    let ends_message = memory.read_u64(encoder + 40).ok()? as u8 != 0;
    let message = memory.read_u64(encoder + 64).ok()?;
    let is_sent = memory.read_u64(at - OUT_SIZE_BEFORE_ENCODER).ok()? == 0;
    Some(is_sent && (message == 0 || (to_write == 0 && ends_message)))
}

/// Whether the decoder has dealt with all that was received, and awaits one byte.
fn awaits_frame(memory: &Memory, engine: &Engine) -> Option<bool> {
    let at = engine.address + u64::from(engine.layout.encoder);
    let decoder = memory.read_u64(at - DECODER_BEFORE_ENCODER).ok()?;
    if decoder == 0 {
        return None;
    }
    let reads_to = memory.read_u64(decoder + 24).ok()?;
    let to_read = memory.read_u64(decoder + 32).ok()?;
    let is_decoded = memory.read_u64(at - IN_SIZE_BEFORE_ENCODER).ok()? == 0;
    Some(is_decoded && to_read == 1 && reads_to.wrapping_sub(decoder) < DECODER_BYTES)
}
