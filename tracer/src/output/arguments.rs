//! The arguments of a call, decoded by the function table's kinds: for strace-like text and for JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use tracer_common::{
    function::{Arg, Capture},
    limits::{POLL_ITEM_BYTES, POLLER_EVENT_BYTES},
};

use crate::{
    constants::{self, FLAGS, MONITOR_EVENTS, OptionKind, POLL_EVENTS},
    event::{Call, Missing},
    world::World,
};

/// Appends the arguments, separated by commas. Returns where the part begins that is known only when the
/// call has returned.
pub fn write(line: &mut String, world: &World, call: &Call) -> usize {
    let row = call.function.row();
    let mut known_at_entry = None;
    let mut first = true;
    for (index, arg) in row.args.iter().enumerate() {
        // The option's value stands behind `=`, which implies its length.
        if matches!(arg, Arg::OptionValue | Arg::OptionLength) {
            continue;
        }
        if !std::mem::take(&mut first) {
            line.push_str(", ");
        }
        if known_at_entry.is_none() && is_filled_by_call(*arg, row.capture) {
            known_at_entry = Some(line.len());
        }
        write_one(line, world, call, index, *arg);
    }
    known_at_entry.unwrap_or(line.len())
}

/// Whether the call itself writes what the argument points to.
fn is_filled_by_call(arg: Arg, capture: Capture) -> bool {
    match capture {
        Capture::RecvBuffer | Capture::RecvMessage0 | Capture::RecvMessage1 | Capture::RecvIov => {
            matches!(arg, Arg::Buffer | Arg::Message | Arg::Iov)
        }
        Capture::PollerEvent | Capture::PollerEvents => arg == Arg::PollerEvents,
        Capture::OptionOut => arg == Arg::SocketOption,
        _ => false,
    }
}

fn write_one(line: &mut String, world: &World, call: &Call, index: usize, arg: Arg) {
    let raw = call.args[index];
    let int = raw as i32;
    // Writing to a String cannot fail.
    let _ = match arg {
        Arg::Context => line.write_str(&world.context_name(call.pid, raw)),
        Arg::Poller => line.write_str(&world.poller_name(call.pid, raw)),
        Arg::Socket | Arg::OptionalSocket => line.write_str(&shown_socket_name(world, call, index)),
        Arg::Pointer | Arg::IovCount => write_pointer(line, raw),
        Arg::Buffer | Arg::Message | Arg::Iov => write_payload(line, call, raw),
        Arg::Text => write_text(line, call, raw),
        Arg::Size | Arg::Unsigned64 => write!(line, "{raw}"),
        Arg::Fd => line.write_str(&shown_fd(world, call.pid, int)),
        Arg::Int => write!(line, "{int}"),
        Arg::Unsigned => write!(line, "{}", raw as u32),
        Arg::Flags => line.write_str(&constants::flags(FLAGS, u64::from(raw as u32))),
        Arg::SocketType => match constants::socket_type(int) {
            Some(name) => write!(line, "ZMQ_{name}"),
            None => write!(line, "{int}"),
        },
        Arg::ContextOption => line.write_str(&constants::context_option(int)),
        Arg::MessageProperty => line.write_str(&constants::message_property(int)),
        Arg::SocketOption => match constants::socket_option(int) {
            Some((name, _)) => write!(line, "{name}={}", option_text(call)),
            None => write!(line, "{int}={}", option_text(call)),
        },
        Arg::OptionValue | Arg::OptionLength => Ok(()),
        Arg::PollItems => write_poll_items(line, world, call, false),
        Arg::PollerEvents => write_poller_events(line, world, call),
        Arg::PollEvents => line.write_str(&constants::flags(POLL_EVENTS, raw & 0xffff)),
        Arg::MonitorEvents => write_monitor_events(line, monitor_events(call, raw)),
        Arg::Timeout => write!(line, "{}", raw as i64),
    };
}

/// An `int` of `zmq_socket_monitor`, a `uint64_t` of its versioned sister.
fn monitor_events(call: &Call, raw: u64) -> u64 {
    if call.function.row().name == "zmq_socket_monitor" { u64::from(raw as u32) } else { raw }
}

fn write_monitor_events(line: &mut String, raw: u64) -> std::fmt::Result {
    /// `ZMQ_EVENT_ALL`.
    const ALL: u64 = 0xffff;
    if raw & ALL == ALL {
        line.write_str("ZMQ_EVENT_ALL")
    } else {
        line.write_str(&constants::flags(MONITOR_EVENTS, raw))
    }
}

/// The name of the socket in argument `index`. The call's own socket has the generation that it had when
/// the call began.
fn socket_name(world: &World, call: &Call, index: usize) -> String {
    let raw = call.args[index];
    let name = if call.function.row().handle_arg() == Some(index) {
        world.socket_name(call.pid, raw, call.generation)
    } else {
        world.newest_socket_name(call.pid, raw)
    };
    name.unwrap_or_else(|| "NULL".into())
}

/// The same for people.
fn shown_socket_name(world: &World, call: &Call, index: usize) -> String {
    let raw = call.args[index];
    let name = if call.function.row().handle_arg() == Some(index) {
        world.shown_socket_name(call.pid, raw, call.generation)
    } else {
        world.newest_shown_socket_name(call.pid, raw)
    };
    name.unwrap_or_else(|| "NULL".into())
}

/// A fd; with `-y` what it is, if it is a socket's.
fn shown_fd(world: &World, pid: u32, fd: i32) -> String {
    let name = if world.shows_endpoints() { world.fd_name(pid, fd) } else { None };
    name.unwrap_or_else(|| fd.to_string())
}

fn write_pointer(line: &mut String, pointer: u64) -> std::fmt::Result {
    if pointer == 0 { line.write_str("NULL") } else { write!(line, "{pointer:#x}") }
}

fn write_payload(line: &mut String, call: &Call, pointer: u64) -> std::fmt::Result {
    let is_message = call.size.is_some() || !call.data.bytes.is_empty();
    match call.data.missing {
        Some(Missing::Unreadable) => write_pointer(line, pointer),
        Some(Missing::Lost) => line.write_str("<lost>"),
        _ if !is_message || !call.has_data() => write_pointer(line, pointer),
        _ => {
            write_quoted(line, &call.data.bytes)?;
            let available = match call.function.row().capture {
                // What did not fit into the program's buffer is no part of it.
                Capture::RecvBuffer => call.size.map(|size| size.min(call.args[2])),
                _ => call.size,
            };
            if available.is_some_and(|size| size > call.data.bytes.len() as u64) {
                line.write_str("...")
            } else {
                Ok(())
            }
        }
    }
}

fn write_text(line: &mut String, call: &Call, pointer: u64) -> std::fmt::Result {
    match call.data.missing {
        Some(Missing::Unreadable) => write_pointer(line, pointer),
        Some(Missing::Lost) => line.write_str("<lost>"),
        _ if pointer == 0 => line.write_str("NULL"),
        missing => {
            write_quoted(line, &call.data.bytes)?;
            if missing == Some(Missing::Cut) { line.write_str("...") } else { Ok(()) }
        }
    }
}

/// Appends bytes in quotes as a C string: what is not printable ASCII as `\n` and so on, or `\xNN`.
fn write_quoted(line: &mut String, bytes: &[u8]) -> std::fmt::Result {
    line.push('"');
    for byte in bytes {
        match byte {
            b'\'' => line.push('\''),
            byte => write!(line, "{}", byte.escape_ascii())?,
        }
    }
    line.push('"');
    Ok(())
}

/// Bytes for JSON: what is not printable ASCII, and the backslash, as `\xNN`, so that nothing is ambiguous.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' | ..=0x1f | 0x7f.. => _ = write!(text, "\\x{byte:02x}"),
            byte => text.push(char::from(*byte)),
        }
    }
    text
}

/// The value of a socket option as text.
fn option_text(call: &Call) -> String {
    let length = if call.function.row().capture == Capture::OptionOut { call.size.unwrap_or(0) } else { call.args[3] };
    match (option_value(call), call.data.missing) {
        (_, Some(Missing::Unreadable)) => format!("{:#x}", call.args[2]),
        (_, Some(Missing::Lost)) => "<lost>".into(),
        (Value::Null, _) if !call.has_data() => "?".into(),
        (Value::Null, _) => format!("<{length} bytes>"),
        (Value::String(_), _) => {
            let mut text = String::new();
            let _ = write_quoted(&mut text, &call.data.bytes);
            if length > call.data.bytes.len() as u64 {
                text.push_str("...");
            }
            text
        }
        (value, _) => value.to_string(),
    }
}

/// The value of a socket option; null where it is a secret or was not copied.
fn option_value(call: &Call) -> Value {
    let bytes = &call.data.bytes[..];
    let kind = constants::socket_option(call.args[1] as i32).map(|(_, kind)| kind);
    if !call.has_data() || call.data.missing.is_some_and(|missing| missing != Missing::Cut) {
        return Value::Null;
    }
    let int = || bytes.try_into().map(i32::from_ne_bytes).ok();
    match kind {
        Some(OptionKind::Secret) => Value::Null,
        Some(OptionKind::Int) if bytes.len() == 4 => json!(int()),
        Some(OptionKind::Int64) if bytes.len() == 8 => json!(bytes.try_into().map(i64::from_ne_bytes).ok()),
        Some(OptionKind::Uint64) if bytes.len() == 8 => json!(bytes.try_into().map(u64::from_ne_bytes).ok()),
        // An option that we do not know is most likely an int.
        None if bytes.len() == 4 => json!(int()),
        _ => json!(escaped(bytes)),
    }
}

/// A `zmq_pollitem_t` or what a `zmq_poller_event_t` has in common with it.
struct PollItem {
    socket: u64,
    fd: i32,
    events: u16,
    revents: u16,
}

fn poll_items(call: &Call) -> impl Iterator<Item = PollItem> + '_ {
    call.data.bytes.chunks_exact(POLL_ITEM_BYTES).map(|item| PollItem {
        socket: word(item, 0),
        fd: word(item, 8) as i32,
        events: half(item, 12),
        revents: half(item, 14),
    })
}

fn poller_events(call: &Call) -> impl Iterator<Item = PollItem> + '_ {
    call.data.bytes.chunks_exact(POLLER_EVENT_BYTES).map(|event| PollItem {
        socket: word(event, 0),
        fd: word(event, 8) as i32,
        events: half(event, 24),
        revents: half(event, 24),
    })
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|half| half.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

impl PollItem {
    /// A socket's name or `fd=5`, `fd=5<REQ#7 ZMQ_FD>`.
    fn object(&self, world: &World, pid: u32) -> String {
        world
            .newest_shown_socket_name(pid, self.socket)
            .unwrap_or_else(|| format!("fd={}", shown_fd(world, pid, self.fd)))
    }

    fn json(&self, world: &World, pid: u32, with_events: bool) -> Value {
        let mut item = Map::new();
        match world.newest_socket_name(pid, self.socket) {
            Some(name) => item.insert("socket".into(), name.into()),
            None => item.insert("fd".into(), self.fd.into()),
        };
        if with_events {
            item.insert("events".into(), event_names(self.events));
        }
        item.insert("revents".into(), event_names(self.revents));
        item.into()
    }
}

fn event_names(events: u16) -> Value {
    POLL_EVENTS.iter().filter(|(bit, _)| u64::from(events) & bit != 0).map(|(_, name)| without_prefix(name)).collect()
}

/// `[{PULL#3, ZMQ_POLLIN}, {fd=5, ZMQ_POLLOUT}]`; with `ready`, only those that are, with what they are.
fn write_poll_items(line: &mut String, world: &World, call: &Call, ready: bool) -> std::fmt::Result {
    if call.args[0] == 0 {
        return line.write_str("NULL");
    }
    line.push('[');
    let mut first = true;
    for item in poll_items(call).filter(|item| !ready || item.revents != 0) {
        if !std::mem::take(&mut first) {
            line.push_str(", ");
        }
        let (word, events) = if ready { ("revents=", item.revents) } else { ("", item.events) };
        write!(line, "{{{}, {word}{}}}", item.object(world, call.pid), constants::flags(POLL_EVENTS, events.into()))?;
    }
    if call.data.bytes.len() < (call.args[1] as u32 as usize).saturating_mul(POLL_ITEM_BYTES) {
        line.push_str(if first { "..." } else { ", ..." });
    }
    line.push(']');
    Ok(())
}

fn write_poller_events(line: &mut String, world: &World, call: &Call) -> std::fmt::Result {
    if !has_result(call) {
        return write_pointer(line, call.args[1]);
    }
    line.push('[');
    for (index, event) in poller_events(call).enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let events = constants::flags(POLL_EVENTS, event.revents.into());
        write!(line, "{comma}{{{}, revents={events}}}", event.object(world, call.pid))?;
    }
    line.push(']');
    Ok(())
}

/// Appends what a successful call says besides its value: which poll items are ready.
pub fn write_result_detail(line: &mut String, world: &World, call: &Call, ret: i64) {
    if call.function.row().capture != Capture::PollItems {
        return;
    }
    if ret == 0 {
        line.push_str(" (Timeout)");
        return;
    }
    line.push_str(" (");
    // Writing to a String cannot fail.
    let _ = write_poll_items(line, world, call, true);
    line.push(')');
}

/// The call's own arguments as an object. Socket, flags, size and payload have fields of their own.
pub fn json(world: &World, call: &Call) -> Value {
    let row = call.function.row();
    let mut object = Map::new();
    for (index, arg) in row.args.iter().enumerate() {
        let raw = call.args[index];
        let int = raw as i32;
        let entry = match arg {
            Arg::Context => ("context", json!(world.context_name(call.pid, raw))),
            Arg::Poller => ("poller", json!(world.poller_name(call.pid, raw))),
            Arg::OptionalSocket => {
                let names: &[&str] = match row.name {
                    "zmq_proxy" | "zmq_proxy_steerable" => &["frontend", "backend", "capture", "control"],
                    "zmq_device" => &["type", "frontend", "backend"],
                    _ => &["poller", "member"],
                };
                let name = (raw != 0).then(|| socket_name(world, call, index));
                (names.get(index).copied().unwrap_or("socket"), json!(name))
            }
            Arg::Text if row.name == "zmq_msg_gets" => ("property", text_value(call)),
            Arg::Text if matches!(row.name, "zmq_join" | "zmq_leave" | "zmq_msg_set_group") => {
                ("group", text_value(call))
            }
            Arg::Text => ("endpoint", text_value(call)),
            Arg::SocketType => {
                ("socket_type", json!(constants::socket_type(int).map_or_else(|| int.to_string(), Into::into)))
            }
            Arg::ContextOption => ("option", json!(constants::context_option(int))),
            Arg::SocketOption => {
                let name = constants::socket_option(int).map_or_else(|| int.to_string(), |(name, _)| name.into());
                ("option", json!(name))
            }
            Arg::OptionValue => ("value", option_value(call)),
            Arg::MessageProperty => ("property", json!(constants::message_property(int))),
            Arg::MonitorEvents => ("events", json!(monitor_events(call, raw))),
            Arg::PollEvents => ("events", event_names(raw as u16)),
            Arg::PollItems => ("items", poll_items(call).map(|item| item.json(world, call.pid, true)).collect()),
            Arg::PollerEvents if has_result(call) => {
                ("events", poller_events(call).map(|event| event.json(world, call.pid, false)).collect())
            }
            Arg::Timeout => ("timeout_ms", json!(raw as i64)),
            Arg::Fd => ("fd", json!(int)),
            Arg::Int => ("value", json!(int)),
            Arg::Size if matches!(row.capture, Capture::RecvBuffer) => ("room", json!(raw)),
            // `size` says it already.
            Arg::Size if matches!(row.capture, Capture::SendBuffer) => continue,
            Arg::Size => ("length", json!(raw)),
            Arg::Unsigned => ("value", json!(raw as u32)),
            Arg::Unsigned64 => ("value", json!(raw)),
            _ => continue,
        };
        object.insert(entry.0.into(), entry.1);
    }
    object.into()
}

fn has_result(call: &Call) -> bool {
    call.outcome.is_some_and(|outcome| !outcome.failed)
}

fn text_value(call: &Call) -> Value {
    match call.data.missing {
        None | Some(Missing::Cut) if call.args[1] != 0 => json!(escaped(&call.data.bytes)),
        _ => Value::Null,
    }
}

/// Send and receive flags as the JSON contract has them; `None` for calls without.
pub fn json_flags(call: &Call) -> Option<Vec<&'static str>> {
    let index = call.function.row().args.iter().position(|arg| *arg == Arg::Flags)?;
    Some(FLAGS.iter().filter(|(bit, _)| call.args[index] & bit != 0).map(|(_, name)| without_prefix(name)).collect())
}

fn without_prefix(name: &'static str) -> &'static str {
    name.strip_prefix("ZMQ_").unwrap_or(name)
}
