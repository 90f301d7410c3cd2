//! JSON lines. The names are a contract: they are kept, additions are fine, unknown is null.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;
use serde_json::Value;
use tracer_common::function::Returns;

use super::{
    Report, Sink, arguments,
    json_net::{self, ConnectionObject, SystemCallObject},
    json_wire,
    stat::object_name,
    time::Rfc3339,
};
use crate::{
    analysis::{
        calls::{Calls, Filter, Line},
        narrow::Narrow,
        queues::{Moved, MovedBySocket},
        stat::{Counts, Stat},
        wire::Wires,
    },
    constants,
    event::{Call, CallResult, Change, Event, FdChange, FdPart, Loss, Role},
    world::{Fd, World},
};

/// Every line names its type first.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Object<'a> {
    Call(CallObject<'a>),
    InFlight(InFlightObject<'a>),
    Fd(FdObject),
    #[serde(rename = "syscall")]
    SystemCall(SystemCallObject),
    #[serde(rename = "connection_event")]
    Connection(ConnectionObject),
    Stat(StatObject),
    QueueTotal(QueueTotalObject),
    Lost(LostObject),
    End(EndObject),
}

#[derive(Serialize)]
struct CallObject<'a> {
    ts_ns: u64,
    time: String,
    dur_ns: Option<u64>,
    pid: u32,
    tid: u32,
    thread: &'a str,
    call: &'static str,
    socket: Option<String>,
    handle: Option<String>,
    ret: Value,
    errno: Option<String>,
    size: Option<u64>,
    flags: Option<Vec<&'static str>>,
    more: Option<bool>,
    payload: Option<String>,
    args: Value,
    ordinal: Option<u64>,
}

/// A call that has not returned: as `call`, but what only the return tells is null.
#[derive(Serialize)]
struct InFlightObject<'a> {
    blocked_ns: u64,
    ended: bool,
    #[serde(flatten)]
    call: CallObject<'a>,
}

/// A fd of a socket that came or went.
#[derive(Serialize)]
struct FdObject {
    ts_ns: u64,
    time: String,
    pid: u32,
    tid: u32,
    fd: i32,
    change: &'static str,
    part: &'static str,
    role: Option<Role>,
    socket: Option<String>,
    handle: String,
    /// What the socket is bound or connected to by it.
    endpoint: Option<String>,
    /// Of this end.
    local: Option<String>,
    /// Of the other end; of a listener, its own.
    address: Option<String>,
    /// Of one that was accepted: the listener.
    listener: Option<i32>,
}

fn fd_object(world: &World, event: &FdChange, fd: &Fd, clock: &mut Rfc3339) -> FdObject {
    let (change, listener) = match &event.change {
        Change::Added { .. } => ("added", None),
        Change::Accepted { listener, .. } => ("accepted", Some(*listener)),
        Change::Removed => ("removed", None),
        Change::Closed => ("closed", None),
    };
    let address = if fd.part == FdPart::Listener { &fd.local } else { &fd.remote };
    FdObject {
        ts_ns: event.ts_ns,
        time: clock.text(world.realtime_ns(event.ts_ns)),
        pid: event.pid,
        tid: event.tid,
        fd: event.fd,
        change,
        part: fd.part.word(),
        role: fd.role,
        socket: world.socket_name(event.pid, fd.handle, fd.generation),
        handle: format!("{:#x}", fd.handle),
        endpoint: fd.endpoint.clone(),
        local: fd.local.clone(),
        address: address.clone(),
        listener,
    }
}

#[derive(Serialize)]
struct StatObject {
    ts_ns: u64,
    pid: u32,
    socket: Option<String>,
    object: Option<String>,
    handle: Option<String>,
    call: &'static str,
    count: u64,
    errors: BTreeMap<String, u64>,
    total_ns: u64,
    mean_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: Option<u64>,
    bytes: u64,
    messages: Option<u64>,
    messages_per_s: Option<f64>,
    mbit_per_s: f64,
    interval_ns: u64,
    interval: bool,
}

/// What moved through a socket's queues, by their own counters.
#[derive(Serialize)]
struct QueueTotalObject {
    pid: u32,
    socket: Option<String>,
    handle: String,
    sent: u64,
    received: u64,
    tx_queue: u64,
    tx_queue_max: u64,
    rx_queue: u64,
    rx_queue_max: u64,
}

fn queue_total(world: &World, (pid, handle, generation): (u32, u64, u32), moved: Moved) -> QueueTotalObject {
    QueueTotalObject {
        pid,
        socket: world.socket_name(pid, handle, generation),
        handle: format!("{handle:#x}"),
        sent: moved.sent,
        received: moved.received,
        tx_queue: moved.to_send,
        tx_queue_max: moved.most_to_send.0,
        rx_queue: moved.to_receive,
        rx_queue_max: moved.most_to_receive.0,
    }
}

#[derive(Serialize)]
struct LostObject {
    events: u64,
    by_reason: BTreeMap<&'static str, u64>,
    stragglers: u64,
}

#[derive(Serialize)]
struct EndObject {
    duration_ns: u64,
    events: u64,
    reason: crate::event::EndReason,
}

/// What closes every stream of JSON lines.
#[derive(Debug, Default)]
pub struct Closing {
    loss: Loss,
    /// Objects that the stream has had.
    pub events: u64,
}

impl Closing {
    /// Takes note of what was lost.
    pub fn event(&mut self, event: &Event) {
        if let Event::Loss(loss) = event {
            self.loss = *loss;
        }
    }

    /// Writes the last two lines.
    pub fn write(&self, out: &mut Sink, duration_ns: u64, reason: crate::event::EndReason) -> io::Result<()> {
        let by_reason = self.loss.reasons().into_iter().filter(|(_, count)| *count > 0).collect();
        let lost = LostObject { events: self.loss.total(), by_reason, stragglers: self.loss.stragglers };
        write(out, &Object::Lost(lost))?;
        write(out, &Object::End(EndObject { duration_ns, events: self.events, reason }))
    }
}

/// Writes one line.
pub fn write(out: &mut Sink, object: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, object)?;
    out.write_all(b"\n")
}

/// `trace --json`.
#[derive(Debug)]
pub struct JsonTrace {
    calls: Calls,
    clock: Rfc3339,
    closing: Closing,
}

impl JsonTrace {
    /// Shows what `filter` leaves.
    pub fn new(filter: Filter) -> Self {
        Self { calls: Calls::new(filter), clock: Rfc3339::default(), closing: Closing::default() }
    }
}

impl Report for JsonTrace {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.closing.event(event);
        for line in self.calls.event(world, event) {
            let object = match &line {
                Line::Returned { call, .. } => {
                    self.closing.events += 1;
                    Object::Call(call_object(world, call, &mut self.clock))
                }
                Line::Unfinished { call, blocked_ns, .. } => Object::InFlight(InFlightObject {
                    blocked_ns: *blocked_ns,
                    ended: false,
                    call: call_object(world, call, &mut self.clock),
                }),
                Line::Fd(change) => {
                    let Some(fd) = world.fd(change.pid, change.fd) else { continue };
                    Object::Fd(fd_object(world, change, fd, &mut self.clock))
                }
                Line::SystemCall { wire, began } => {
                    self.closing.events += 1;
                    Object::SystemCall(json_net::system_call(world, wire, began.as_deref(), &mut self.clock))
                }
                Line::Connection(event) => Object::Connection(json_net::connection(world, event, &mut self.clock)),
                Line::Abandoned { call, ts_ns } => Object::InFlight(InFlightObject {
                    blocked_ns: ts_ns.saturating_sub(call.entry_ns),
                    ended: true,
                    call: call_object(world, call, &mut self.clock),
                }),
            };
            write(out, &object)?;
        }
        match event {
            Event::End(end) => self.closing.write(out, end.ts_ns.saturating_sub(world.start_ns()), end.reason),
            _ => Ok(()),
        }
    }
}

fn call_object<'a>(world: &'a World, call: &Call, clock: &mut Rfc3339) -> CallObject<'a> {
    let row = call.function.row();
    let outcome = call.outcome;
    CallObject {
        ts_ns: call.entry_ns,
        time: clock.text(world.realtime_ns(call.entry_ns)),
        dur_ns: outcome.map(|outcome| outcome.return_ns.saturating_sub(call.entry_ns)),
        pid: call.pid,
        tid: call.tid,
        thread: world.thread_name(call.pid, call.tid),
        call: row.name,
        socket: subject(world, call),
        handle: handle(call).map(|handle| format!("{handle:#x}")),
        ret: outcome.map_or(Value::Null, |outcome| match row.returns {
            Returns::Void => Value::Null,
            Returns::Pointer => format!("{:#x}", outcome.ret).into(),
            Returns::Size => (outcome.ret as u64).into(),
            Returns::Int | Returns::Unsigned => outcome.ret.into(),
        }),
        errno: outcome
            .filter(|outcome| outcome.failed)
            .and_then(|outcome| outcome.errno)
            .map(|errno| constants::errno_name(errno).into_owned()),
        size: call.size,
        flags: arguments::json_flags(call),
        more: call.more,
        payload: call.payload().map(arguments::escaped),
        args: arguments::json(world, call),
        ordinal: ordinal(world, call),
    }
}

/// The socket that the call is about; of `zmq_socket`, the one that it made.
fn subject(world: &World, call: &Call) -> Option<String> {
    match (call.outcome, call.function.row().name) {
        (Some(outcome), "zmq_socket") => world.socket_name(call.pid, outcome.ret as u64, call.generation),
        _ => world.socket_name(call.pid, call.socket()?, call.generation),
    }
}

fn handle(call: &Call) -> Option<u64> {
    match (call.outcome, call.function.row().name) {
        (Some(outcome), "zmq_socket") => Some(outcome.ret as u64).filter(|handle| *handle != 0),
        _ => call.handle(),
    }
}

/// Which message of its socket and direction a part belongs to, from 1.
fn ordinal(world: &World, call: &Call) -> Option<u64> {
    use tracer_common::function::Class;
    let direction = match call.function.row().class {
        Class::Send => 0,
        Class::Recv => 1,
        _ => return None,
    };
    if call.outcome.is_none_or(|outcome| outcome.failed) {
        return None;
    }
    // The world has counted the message with its last part, unless a record was lost.
    if world.has_lost_calls() {
        return None;
    }
    let completed = world.socket_of(call)?.messages[direction];
    call.more.map(|more| completed + u64::from(more))
}

/// `stat --json`.
#[derive(Debug)]
pub struct JsonStat {
    stat: Stat,
    narrow: Narrow,
    moved: MovedBySocket,
    wires: Wires,
    intervals: bool,
    closing: Closing,
}

impl JsonStat {
    /// Shows what `narrow` leaves; with `intervals`, lines at each tick.
    pub fn new(narrow: Narrow, intervals: bool) -> Self {
        let (stat, wires) = (Stat::new(narrow.clone()), Wires::new(narrow.clone()));
        Self { stat, narrow, moved: MovedBySocket::default(), wires, intervals, closing: Closing::default() }
    }
}

impl Report for JsonStat {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        self.stat.event(world, event);
        self.moved.event(event);
        self.wires.event(event);
        self.closing.event(event);
        match event {
            Event::Tick(tick) if self.intervals => {
                let counts = self.stat.interval(tick.ts_ns);
                write_stat(world, &counts, tick.ts_ns, true, out)?;
                if self.wires.is_wanted() {
                    json_wire::write_rows(out, &self.wires.interval(tick.ts_ns), tick.ts_ns, true)?;
                }
                Ok(())
            }
            Event::End(end) => {
                let counts = self.stat.total(world, end.ts_ns);
                write_stat(world, &counts, end.ts_ns, false, out)?;
                for (socket, moved) in self.moved.sockets() {
                    if self.narrow.admits_socket(world.socket(socket.0, socket.1, socket.2)) {
                        write(out, &Object::QueueTotal(queue_total(world, socket, moved)))?;
                    }
                }
                self.closing.events = counts.rows.iter().map(|(_, row)| row.count).sum();
                if self.wires.is_wanted() {
                    let rows = self.wires.total(world.start_ns(), end.ts_ns);
                    self.closing.events += rows.connections.len() as u64;
                    json_wire::write_rows(out, &rows, end.ts_ns, false)?;
                }
                self.closing.write(out, counts.duration_ns, end.reason)
            }
            _ => Ok(()),
        }
    }
}

fn write_stat(world: &World, counts: &Counts, ts_ns: u64, interval: bool, out: &mut Sink) -> io::Result<()> {
    for (key, row) in &counts.rows {
        let error = |(result, count): (&CallResult, &u64)| match result {
            CallResult::Errno(errno) => (constants::errno_name(*errno).into_owned(), *count),
            CallResult::Failed | CallResult::Ok => ("unknown".to_owned(), *count),
        };
        let stat = StatObject {
            ts_ns,
            pid: key.pid,
            socket: object_name(world, key).filter(|_| key.function.row().is_about_socket()),
            object: object_name(world, key),
            handle: (key.handle != 0).then(|| format!("{:#x}", key.handle)),
            call: key.function.row().name,
            count: row.count,
            errors: row.errors.iter().map(error).collect(),
            total_ns: row.total_ns,
            mean_ns: row.mean_ns(),
            p50_ns: row.percentile_ns(500),
            p99_ns: row.percentile_ns(990),
            max_ns: row.max_ns,
            bytes: row.bytes,
            messages: row.known_messages(),
            messages_per_s: row.known_messages().map(|messages| counts.per_second(messages)),
            mbit_per_s: counts.per_second(row.bytes * 8) / 1e6,
            interval_ns: counts.duration_ns,
            interval,
        };
        write(out, &Object::Stat(stat))?;
    }
    Ok(())
}
