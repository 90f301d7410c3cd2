//! System calls and what becomes of connections, as text.

use std::{fmt::Write as _, ops::RangeInclusive};

use super::arguments::escaped;
use crate::{
    analysis::{
        calls::owner_of,
        connections::{ConnectionEvent, Failure, Retry, What},
    },
    constants::{errno_name, errno_text},
    event::{Frames, Inside, Wire},
    world::{Peer, World},
};

/// Bytes of a greeting, ZMTP 3.
const GREETING_BYTES: u64 = 64;

/// `sendto(14<REQ#7 tcp://127.0.0.1:5555>, 2 frames, 66)`. `began`: of a connect, what it began.
pub fn write_call(line: &mut String, world: &World, wire: &Wire, began: Option<&ConnectionEvent>) {
    let call = wire.call.name();
    let fd_name = match began {
        Some(began) => name(world, began),
        None => owner_of(world, wire)
            .and_then(|_| world.last_fd_name(wire.pid, wire.fd))
            .unwrap_or_else(|| world.stream_name(wire.pid, wire.fd)),
    };
    // Writing to a String cannot fail.
    let _ = match call {
        "connect" => {
            let remote = began.and_then(|began| began.remote.as_deref());
            write!(line, "connect({fd_name}, {})", remote.unwrap_or("?"))
        }
        "getsockopt" => {
            let error = if wire.ret < 0 { errno_name(-wire.ret as i32) } else { "0".into() };
            write!(line, "getsockopt({fd_name}, SO_ERROR, [{error}])")
        }
        _ => {
            let what = if wire.ret > 0 { format!("{}, ", moved(wire)) } else { String::new() };
            // A gather of many pieces.
            let wanted = if wire.wanted == u64::MAX { "?".into() } else { wire.wanted.to_string() };
            write!(line, "{call}({fd_name}, {what}{wanted})")
        }
    };
}

/// What it returned: the value, and the error.
pub fn result(wire: &Wire) -> (String, Option<String>) {
    if wire.call.name() == "getsockopt" {
        return ("0".into(), None);
    }
    if wire.ret >= 0 {
        return (wire.ret.to_string(), None);
    }
    let errno = -wire.ret as i32;
    ("-1".into(), Some(format!("{} ({})", errno_name(errno), errno_text(errno))))
}

/// What the bytes were: `2 frames`, `1 command`, `part of a frame`.
fn moved(wire: &Wire) -> String {
    let Some(frames) = &wire.frames else { return "? frames".into() };
    let mut parts = Vec::new();
    let Frames { frames: ended, commands, .. } = *frames;
    if ended > 0 {
        parts.push(counted(ended, "frame"));
    }
    if commands > 0 {
        parts.push(counted(commands, "command"));
    }
    match frames.inside {
        _ if !parts.is_empty() => parts.join(" "),
        _ if wire.from_start && wire.position < GREETING_BYTES => "greeting".into(),
        Inside::Nothing => "0 frames".into(),
        _ => "part of a frame".into(),
    }
}

fn counted(count: u32, of_what: &str) -> String {
    format!("{count} {of_what}{}", if count == 1 { "" } else { "s" })
}

/// What a connection is called: `14<REQ#7 tcp://127.0.0.1:5555>`.
pub fn name(world: &World, event: &ConnectionEvent) -> String {
    let ConnectionEvent { pid, fd: number, owner, .. } = *event;
    let known = world.fd(pid, number).map(|fd| (fd.handle, fd.generation));
    if known == owner
        && known.is_some()
        && let Some(name) = world.last_fd_name(pid, number)
    {
        return name;
    }
    let socket = owner.and_then(|(handle, generation)| world.socket_name(pid, handle, generation));
    match (socket, &event.endpoint) {
        (Some(socket), Some(endpoint)) => format!("{number}<{socket} {endpoint}>"),
        (Some(socket), None) => format!("{number}<{socket}>"),
        (None, Some(endpoint)) => format!("{number}<{endpoint}>"),
        (None, None) => world.stream_name(pid, number),
    }
}

/// What happened: `handshake done with ROUTER "id" (ZMTP 3.1 NULL)`.
pub fn happened(event: &ConnectionEvent) -> String {
    let detail = detail(event);
    match (&event.what, detail) {
        (What::Connecting, _) => "connecting".into(),
        (What::Retried, _) => "connecting again".into(),
        (What::Refused { errno, .. }, detail) => {
            format!("refused: {} ({}), {}", errno_name(*errno), errno_text(*errno), detail.unwrap_or_default())
        }
        (What::Connected, Some(detail)) => format!("connected {detail}"),
        (What::Connected, None) => "connected".into(),
        (What::Accepted, Some(detail)) => format!("accepted {detail}"),
        (What::Accepted, None) => "accepted".into(),
        (What::HandshakeDone, Some(detail)) => format!("handshake done {detail}"),
        (What::HandshakeDone, None) => "handshake done".into(),
        (What::HandshakeFailed(_), detail) => format!("handshake failed: {}", detail.unwrap_or_default()),
        (What::Disconnected(_), detail) => format!("disconnected: {}", detail.unwrap_or_default()),
    }
}

/// What is known besides, in words.
pub fn detail(event: &ConnectionEvent) -> Option<String> {
    Some(match &event.what {
        What::Connecting | What::Retried | What::Connected => return None,
        What::Accepted => format!("from {}", event.remote.as_ref()?),
        What::Refused { retry, .. } => retried(retry),
        What::HandshakeDone => with(&event.peer)?,
        What::HandshakeFailed(Failure::Error { by_peer, reason }) => {
            let sender = if *by_peer { "the peer" } else { "this process" };
            format!("{sender} says \"{reason}\"")
        }
        What::HandshakeFailed(Failure::Types { own, peer }) => format!("{own} cannot talk to {peer}"),
        What::HandshakeFailed(Failure::Ended(cause)) | What::Disconnected(cause) => cause.text(),
    })
}

fn retried(retry: &Retry) -> String {
    let between = |range: &RangeInclusive<u32>| match (range.start(), range.end()) {
        (from, to) if from == to => format!("tries again in {from} ms"),
        (from, to) => format!("tries again in {from} to {to} ms"),
    };
    match retry {
        Retry::After(range) => between(range),
        Retry::ByDefault(range) => format!("{} unless set otherwise", between(range)),
        Retry::Never => "does not try again".into(),
    }
}

fn with(peer: &Peer) -> Option<String> {
    let mut text = String::new();
    if let Some(kind) = &peer.socket_type {
        let _ = write!(text, "with {kind}");
        if let Some(identity) = &peer.identity {
            let _ = write!(text, " \"{}\"", escaped(identity));
        }
    } else if let Some(identity) = &peer.identity {
        let _ = write!(text, "with \"{}\"", escaped(identity));
    }
    if let Some((major, minor)) = peer.version {
        let separator = if text.is_empty() { "" } else { " " };
        let _ = write!(text, "{separator}(ZMTP {major}.{minor}");
        if let Some(mechanism) = &peer.mechanism {
            let _ = write!(text, " {mechanism}");
        }
        text.push(')');
    }
    (!text.is_empty()).then_some(text)
}
