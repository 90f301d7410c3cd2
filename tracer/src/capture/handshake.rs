//! Handshakes that had begun before us: what was said of them, and where they are, from libzmq's own buffers.
//!
//! An engine keeps both greetings as long as it lives: what it received, what it sends, and how far each is. Once it has
//! the peer's it makes a decoder and an encoder, and says the rest in commands.

use tracer_common::{
    limits::MAX_COMMAND_BYTES,
    wire::{Direction as RawDirection, Engine, Stream},
    zmtp::{COMMAND, Ended, Walk},
};

use super::{
    join::{Codecs, awaits_frame, sends_next_frame},
    wire::greeting,
};
use crate::{
    constants,
    event::{CommandContent, Direction, SocketState},
    target::Memory,
};

/// Bytes of the longest greeting.
const GREETING_BYTES: u64 = 64;
/// Bytes of a greeting to a peer that speaks ZMTP 2.0 or 1.0.
const SHORT_GREETING_BYTES: u64 = 12;
/// The revision that every libzmq since 4.0 names.
const OWN_REVISION: u8 = 3;
/// `msg_t::command`, as a message's flags have it. That more parts follow is the same flag as in a frame.
const MESSAGE_COMMAND: u8 = 2;
/// A decoder has the message that it decodes within so many bytes.
const DECODER_BYTES: usize = 256;

/// A handshake that was found under way.
#[derive(Debug)]
pub struct Begun {
    /// Where each direction is, if that can be said.
    pub streams: Vec<(RawDirection, Stream)>,
    /// What was said by then.
    pub said: Vec<(Direction, CommandContent)>,
}

/// Looks at an engine whose handshake is not done. `None`: it moves just now.
pub fn look(memory: &Memory, engine: &Engine, socket: &SocketState) -> Option<Begun> {
    let before = Greetings::read(memory, engine)?;
    let codecs = Codecs::read(memory, engine)?;
    let mut received = walk_greeting(&before.received, OWN_REVISION);
    let sent = walk_greeting(before.sent(codecs.encoder != 0, received.revision()), received.revision());
    let mut said = Vec::new();
    for (direction, walk) in [(Direction::Receive, &received), (Direction::Send, &sent)] {
        // Behind the whole greeting a frame begins.
        if walk.is_at_boundary() {
            said.push((direction, greeting(walk.revision(), walk.minor, walk.as_server, &walk.mechanism)));
        }
    }
    let mut streams = Vec::new();
    if codecs.decoder == 0 {
        streams.push((RawDirection::Send, Stream::walked(sent)));
        streams.push((RawDirection::Receive, Stream::walked(received)));
    } else {
        if sends_next_frame(memory, engine) == Some(true) && sent.is_at_boundary() {
            // Only NULL says all that it has to say at once, so that one frame tells which it was.
            if codecs.has_encoded(memory)? && received.mechanism == *b"NULL\0\0\0\0" {
                let socket_type = socket.socket_type.and_then(constants::socket_type).map(String::from);
                said.push((Direction::Send, CommandContent::Ready { socket_type, identity: None }));
            }
            streams.push((RawDirection::Send, Stream::walked(sent)));
        }
        if awaits_frame(memory, engine) == Some(true) {
            // Of the header of its next frame one byte may have come.
            streams.push((RawDirection::Receive, Stream { is_provisional: 1, ..Stream::walked(received) }));
        } else if let Some(command) = codecs.command_under_way(memory, engine) {
            received.join_inside(COMMAND, command.missing);
            let (len, mut stream) = (command.come.len(), Stream::walked(received));
            stream.command[..len].copy_from_slice(&command.come);
            stream.command_len = len as u32;
            streams.push((RawDirection::Receive, stream));
        }
    }
    (Greetings::read(memory, engine)? == before).then_some(Begun { streams, said })
}

/// How far a greeting goes. `other`: the revision of the other direction's.
fn walk_greeting(bytes: &[u8], other: u8) -> Walk {
    let mut walk = Walk::at_start();
    for byte in bytes {
        if walk.take(*byte, other) == Ended::Greeting {
            break;
        }
    }
    walk
}

/// What an engine has of the greetings.
#[derive(Debug, PartialEq, Eq)]
struct Greetings {
    received: Vec<u8>,
    own: [u8; GREETING_BYTES as usize],
    /// How much of its own is sent; `None`: something else is sent now.
    sent_len: Option<u64>,
}

impl Greetings {
    fn read(memory: &Memory, engine: &Engine) -> Option<Self> {
        let at = engine.address + u64::from(engine.layout.greeting);
        let (mut received, mut own) = ([0; GREETING_BYTES as usize], [0; GREETING_BYTES as usize]);
        memory.read(at, &mut received).ok()?;
        memory.read(at + GREETING_BYTES, &mut own).ok()?;
        let len = u64::from(memory.read_u32(at + 2 * GREETING_BYTES).ok()?).min(GREETING_BYTES);
        let next = memory.read_u64(engine.address + u64::from(engine.layout.encoder) - 16).ok()?;
        let sent_len = next.checked_sub(at + GREETING_BYTES).filter(|len| *len <= GREETING_BYTES);
        Some(Self { received: received[..len as usize].to_vec(), own, sent_len })
    }

    /// As much of its own as is sent, to a peer that named this revision.
    fn sent(&self, has_encoder: bool, revision: u8) -> &[u8] {
        let whole = if revision < OWN_REVISION { SHORT_GREETING_BYTES } else { GREETING_BYTES };
        let len = self.sent_len.unwrap_or(if has_encoder { whole } else { 0 });
        &self.own[..len as usize]
    }
}

/// A command that was received in part.
struct UnderWay {
    come: Vec<u8>,
    missing: u64,
}

impl Codecs {
    /// The command that the decoder is in the midst of, if it is in one.
    fn command_under_way(&self, memory: &Memory, engine: &Engine) -> Option<UnderWay> {
        let [to, missing] = [24, 32].map(|at| memory.read_u64(self.decoder + at));
        let (to, missing) = (to.ok()?, missing.ok()?);
        let mut object = [0; DECODER_BYTES];
        memory.read(self.decoder, &mut object).ok()?;
        let [kind, content] = [engine.layout.message_type, engine.layout.message_content].map(usize::from);
        let word = |at: usize| object.get(at..at + 8)?.first_chunk().map(|word| u64::from_le_bytes(*word));
        // It is a member of the decoder; that what is missing of it ends where it ends says which.
        (0..DECODER_BYTES - kind - 1).step_by(8).find_map(|at| {
            let (data, size) = match object[at + kind] {
                101 => (self.decoder + (at + content) as u64, u64::from(object[at + kind - 1])),
                102 | 105 => {
                    let content = word(at + content)?;
                    (memory.read_u64(content).ok()?, memory.read_u64(content + 8).ok()?)
                }
                _ => return None,
            };
            let come = size.checked_sub(missing).filter(|come| data.wrapping_add(*come) == to)?;
            let is_command = object[at + kind + 1] & MESSAGE_COMMAND != 0;
            let mut bytes = vec![0; come.min(MAX_COMMAND_BYTES as u64) as usize];
            memory.read(data, &mut bytes).ok()?;
            (is_command && missing > 0).then_some(UnderWay { come: bytes, missing })
        })
    }
}
