//! Records of system calls on connections, and of what went over those, to events.

use aya::Pod;
use bytes::Bytes;
use tracer_common::{
    limits::MAX_COMMAND_BYTES,
    wire::{
        COUNT_UNSURE, CommandRecord, Direction as RawDirection, PipeCount as RawPipeCount, PipeRecord, Run,
        StreamRecord, WIRE_CONTINUES, WIRE_FROM_START, WIRE_GAP, WIRE_SEQUENCE, WIRE_SYNCHRONISED, WIRE_WHOLE,
        WireRecord,
    },
    zmtp::{Ended, REVISION_NONE, SHORT_GREETING},
};

use super::{fds::endpoints, record::read};
use crate::{
    constants,
    event::{Command, CommandContent, Direction, Frames, Inside, Pipe, PipeCount, Stream, SystemCall, Wire},
    target::printable,
};

/// The event that a [`WireRecord`] and its runs make; `None`: it makes no sense.
pub fn wire(record: &[u8]) -> Option<Wire> {
    let wire: WireRecord = read(record, size_of::<WireRecord>())?;
    let runs = record.get(size_of::<WireRecord>()..)?;
    if wire.runs as usize > runs.len() / size_of::<Run>() {
        return None;
    }
    let is = |flag| wire.flags & flag != 0;
    let ends = all_of::<Run>(runs, wire.runs as usize).map(|run| (run.bytes, run.count)).collect();
    let frames = is(WIRE_SYNCHRONISED).then_some(Frames {
        frames: wire.frames,
        messages: wire.messages,
        commands: wire.commands,
        total_messages: wire.total_messages,
        inside: match wire.inside {
            0 => Inside::Nothing,
            1 => Inside::Part,
            2 => Inside::LastPart,
            _ => Inside::Unknown,
        },
        ends,
        continues: is(WIRE_CONTINUES),
    });
    let pipe = (wire.pipe != 0).then_some(PipeCount {
        pipe: wire.pipe,
        count: wire.pipe_count,
        unsure: false,
        whole: is(WIRE_WHOLE),
    });
    Some(Wire {
        ts_ns: wire.exit_ns,
        entry_ns: (wire.entry_ns != 0).then_some(wire.entry_ns),
        pid: wire.tgid,
        tid: wire.tid,
        call: SystemCall(wire.call),
        fd: wire.fd,
        inode: wire.inode,
        handle: (wire.handle != 0).then_some(wire.handle),
        direction: direction(wire.direction),
        ret: wire.ret,
        wanted: wire.wanted,
        sequence: is(WIRE_SEQUENCE).then_some(wire.sequence),
        position: wire.position,
        from_start: is(WIRE_FROM_START),
        gap: is(WIRE_GAP),
        frames,
        pipe,
    })
}

/// The event that a [`StreamRecord`] makes.
pub fn stream(record: &[u8]) -> Option<Stream> {
    let stream: StreamRecord = read(record, size_of::<StreamRecord>())?;
    let (local, remote) = endpoints(stream.family, &stream.address);
    Some(Stream {
        ts_ns: stream.ts_ns,
        pid: stream.tgid,
        fd: stream.fd,
        inode: stream.inode,
        peer_inode: (stream.peer_inode != 0).then_some(stream.peer_inode),
        local,
        remote,
        from_start: stream.from_start == 1,
        sent: None,
    })
}

/// The event that a [`PipeRecord`] makes.
pub fn pipe(record: &[u8]) -> Option<Pipe> {
    let PipeRecord { tgid, ts_ns, handle, pipe, peer, inode, .. } = read(record, size_of::<PipeRecord>())?;
    Some(Pipe { ts_ns, pid: tgid, handle, pipe, peer, inode: (inode != 0).then_some(inode) })
}

/// The pipes that a call has used, from its data.
pub fn pipes(data: &[u8]) -> Vec<PipeCount> {
    let count = |RawPipeCount { pipe, count }| PipeCount {
        pipe,
        count: count & !COUNT_UNSURE,
        unsure: count & COUNT_UNSURE != 0,
        whole: false,
    };
    all_of(data, usize::MAX).map(count).collect()
}

/// The event that a [`CommandRecord`] makes; `None`: it makes no sense.
pub fn command(record: &[u8]) -> Option<Command> {
    let command: CommandRecord = read(record, size_of::<CommandRecord>())?;
    let data = &command.data[..(command.data_len as usize).min(MAX_COMMAND_BYTES)];
    let content = match command.what {
        what if what == Ended::Greeting as u8 => {
            greeting(command.revision, command.minor, command.as_server, &command.mechanism)
        }
        what if what == Ended::Identity as u8 => CommandContent::Identity { identity: Bytes::copy_from_slice(data) },
        what if what == Ended::Message as u8 => subscription(data)?,
        what if what == Ended::Command as u8 => content(data, &command.mechanism)?,
        _ => return None,
    };
    Some(Command {
        ts_ns: command.ts_ns,
        pid: command.tgid,
        tid: command.tid,
        fd: command.fd,
        inode: command.inode,
        direction: direction(command.direction),
        content,
    })
}

/// What a greeting says, as a walk has kept it.
pub fn greeting(revision: u8, minor: u8, as_server: u8, mechanism: &[u8; 8]) -> CommandContent {
    let version = match revision {
        0 | REVISION_NONE => (1, 0),
        1 => (2, 0),
        // What libzmq takes for 3.x.
        2 => (3, 0),
        major => (major, minor),
    };
    if as_server == SHORT_GREETING {
        let socket_type = constants::socket_type(minor.into()).map(String::from);
        let version = (version.0, 0);
        return CommandContent::Greeting { version, mechanism: None, as_server: false, socket_type };
    }
    let name = mechanism.split(|byte| *byte == 0).next().unwrap_or_default();
    let mechanism = (version.0 >= 3).then(|| printable(name));
    CommandContent::Greeting { version, mechanism, as_server: as_server == 1, socket_type: None }
}

/// What a message of a subscriber says, before ZMTP 3.1: its first byte is 1 or 0. Others are the program's own.
fn subscription(data: &[u8]) -> Option<CommandContent> {
    let (first, topic) = data.split_first()?;
    let topic = Bytes::copy_from_slice(topic);
    match first {
        1 => Some(CommandContent::Subscribe { topic }),
        0 => Some(CommandContent::Cancel { topic }),
        _ => None,
    }
}

/// What a command says: the length of its name, the name, what belongs to it.
fn content(data: &[u8], mechanism: &[u8; 8]) -> Option<CommandContent> {
    // libzmq's PLAIN has "\x5ERROR" in its source, of which C makes one byte, 0x5e, and "RROR".
    if let Some(rest) = data.strip_prefix(b"\x5eRROR") {
        return Some(error(rest));
    }
    let (name, rest) = short_text(data)?;
    Some(match name {
        b"READY" => {
            let (socket_type, identity) = who(rest);
            CommandContent::Ready { socket_type, identity }
        }
        b"INITIATE" if mechanism == b"PLAIN\0\0\0" => {
            let (socket_type, identity) = who(rest);
            CommandContent::Initiate { socket_type, identity }
        }
        b"ERROR" => error(rest),
        b"SUBSCRIBE" => CommandContent::Subscribe { topic: Bytes::copy_from_slice(rest) },
        b"CANCEL" => CommandContent::Cancel { topic: Bytes::copy_from_slice(rest) },
        b"PING" => {
            let ttl = rest.first_chunk().map_or(0, |ttl| u16::from_be_bytes(*ttl));
            CommandContent::Ping { ttl }
        }
        b"PONG" => CommandContent::Pong,
        name => CommandContent::Other { name: printable(name) },
    })
}

/// Socket type and identity, from properties.
fn who(properties: &[u8]) -> (Option<String>, Option<Bytes>) {
    let value = |wanted: &str| {
        let mut values = Properties(properties);
        values.find(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes())).map(|(_, value)| value)
    };
    let identity = value("Identity").filter(|identity| !identity.is_empty());
    (value("Socket-Type").map(printable), identity.map(Bytes::copy_from_slice))
}

/// What follows the name of an ERROR: a reason behind its length.
fn error(rest: &[u8]) -> CommandContent {
    CommandContent::Error { reason: printable(short_text(rest).map_or(rest, |(reason, _)| reason)) }
}

/// A text behind its length in one byte, as far as it is there, and what follows.
fn short_text(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first()?;
    Some(rest.split_at(usize::from(*len).min(rest.len())))
}

/// Names and values of a READY or INITIATE: a name behind its length in one byte, a value behind its length in four. Ends
/// where that is not all there.
struct Properties<'data>(&'data [u8]);

impl<'data> Iterator for Properties<'data> {
    type Item = (&'data [u8], &'data [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = short_text(self.0)?;
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        self.0 = rest;
        Some((name, value))
    }
}

const fn direction(raw: u8) -> Direction {
    if raw == RawDirection::Send as u8 { Direction::Send } else { Direction::Receive }
}

/// At most so many values that lie side by side.
fn all_of<T: Pod>(bytes: &[u8], most: usize) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).take(most).filter_map(|bytes| read(bytes, size_of::<T>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NULL: [u8; 8] = *b"NULL\0\0\0\0";

    fn content(data: &[u8]) -> Option<CommandContent> {
        super::content(data, &NULL)
    }

    fn ready(properties: &[(&str, &[u8])]) -> Vec<u8> {
        let mut data = b"\x05READY".to_vec();
        for (name, value) in properties {
            data.push(name.len() as u8);
            data.extend(name.as_bytes());
            data.extend((value.len() as u32).to_be_bytes());
            data.extend(*value);
        }
        data
    }

    #[test]
    fn commands_are_told_by_their_names() {
        let found = content(&ready(&[("Identity", b"me"), ("socket-TYPE", b"DEALER"), ("X-Other", b"")]));
        let (socket_type, identity) = (Some("DEALER".into()), Some(Bytes::from_static(b"me")));
        assert_eq!(found, Some(CommandContent::Ready { socket_type, identity }));
        assert_eq!(content(&ready(&[])), Some(CommandContent::Ready { socket_type: None, identity: None }));
        let topic = Bytes::from_static(b"abc");
        assert_eq!(content(b"\x09SUBSCRIBEabc"), Some(CommandContent::Subscribe { topic: topic.clone() }));
        assert_eq!(content(b"\x06CANCELabc"), Some(CommandContent::Cancel { topic: topic.clone() }));
        assert_eq!(subscription(b"\x01abc"), Some(CommandContent::Subscribe { topic }));
        assert_eq!(subscription(b"abc"), None);
        assert_eq!(content(b"\x04PING\x00\x0actx"), Some(CommandContent::Ping { ttl: 10 }));
        assert_eq!(content(b"\x04PONG"), Some(CommandContent::Pong));
        assert_eq!(content(b"\x05ERROR\x03bad"), Some(CommandContent::Error { reason: "bad".into() }));
        assert_eq!(content(b"\x5eRROR\x03400"), Some(CommandContent::Error { reason: "400".into() }));
        assert_eq!(content(b"\x05HELLO\x01\x00"), Some(CommandContent::Other { name: "HELLO".into() }));
    }

    /// The client's password is nobody's business.
    #[test]
    fn who_the_client_is_stands_in_its_initiate_unless_that_is_encrypted() {
        let initiate = ready(&[("Socket-Type", b"SUB"), ("Identity", b"me")]).split_off(6);
        let initiate = [b"\x08INITIATE", &initiate[..]].concat();
        let (socket_type, identity) = (Some("SUB".into()), Some(Bytes::from_static(b"me")));
        let told = super::content(&initiate, b"PLAIN\0\0\0");
        assert_eq!(told, Some(CommandContent::Initiate { socket_type, identity }));
        let encrypted = super::content(&initiate, b"CURVE\0\0\0");
        assert_eq!(encrypted, Some(CommandContent::Other { name: "INITIATE".into() }));
        let hello = super::content(b"\x05HELLO\x04name\x06secret", b"PLAIN\0\0\0");
        assert_eq!(hello, Some(CommandContent::Other { name: "HELLO".into() }));
    }

    #[test]
    fn commands_that_are_cut_or_garbage_are_survived() {
        let whole = ready(&[("Socket-Type", b"REQ"), ("Identity", &[255; 200])]);
        for len in 0..whole.len() {
            let found = content(&whole[..len]);
            assert_eq!(found.is_none(), len == 0);
            if let Some(CommandContent::Ready { identity, .. }) = found {
                assert_eq!(identity, None, "the identity is not all there");
            }
        }
        for len in [0u8, 1, 128, 255] {
            for byte in 0..=255 {
                let mut data = whole.clone();
                data.iter_mut().skip(6).for_each(|known| *known = byte);
                data[0] = len;
                let _ = content(&data);
            }
        }
    }
}
