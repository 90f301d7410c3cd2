//! Where in their frames the connections are that were there before us: libzmq's own encoders and decoders know.
//!
//! The kernel side asks them, too, at each system call on a connection of which it does not know (`tracer-ebpf/src/wire.rs`),
//! but what it then learns holds for the bytes that follow. Of a connection that is at rest it can be said before its next
//! byte. The hook is in before this is read, and what it has seen by then is not overwritten: so whatever happens
//! meanwhile, the first bytes that the kernel side sees are those that follow what was read.

use aya::maps::{HashMap, MapData};
use tracer_common::{
    fds::FdKey,
    wire::{DECODER_BEFORE_ENCODER, Direction, Engine, Stream, StreamKey},
};

use crate::target::Memory;

/// `BPF_NOEXIST`.
const NO_REPLACE: u64 = 1;
/// Before the pointer to the encoder: how many encoded bytes are not sent yet.
const OUT_SIZE_BEFORE_ENCODER: u64 = 8;
/// Before the pointer to the encoder: how many received bytes are not decoded yet.
const IN_SIZE_BEFORE_ENCODER: u64 = 32;
/// Bytes of a decoder's object, at most.
const DECODER_BYTES: u64 = 4096;

/// Tells the kernel side of the directions of a connection that are between two frames.
pub fn seed(streams: &mut HashMap<MapData, StreamKey, Stream>, memory: &Memory, key: FdKey, engine: &Engine) {
    let FdKey { tgid, fd } = key;
    if sends_next_frame(memory, engine) == Some(true) {
        let key = StreamKey { tgid, fd, direction: Direction::Send as u32 };
        let _ = streams.insert(key, Stream::between_frames(false), NO_REPLACE);
    }
    if awaits_frame(memory, engine) == Some(true) {
        let key = StreamKey { tgid, fd, direction: Direction::Receive as u32 };
        // That it awaits a byte is certain, not that this byte begins a frame: a header of two may be half there.
        let _ = streams.insert(key, Stream::between_frames(true), NO_REPLACE);
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
