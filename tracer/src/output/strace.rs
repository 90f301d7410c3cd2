//! Calls in strace's form, one line each:
//!
//! ```text
//! 21:03:04.123456 worker[4711/4713] zmq_send(PUSH#3, "hello", 5, ZMQ_DONTWAIT) = -1 EAGAIN (Resource temporarily unavailable) <0.000012>
//! ```

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anstyle::{AnsiColor, Style};
use tracer_common::function::Returns;

use super::{
    Report, Sink, arguments, hexdump, net,
    time::{Clock, TimeFormat, duration},
};
use crate::{
    analysis::{
        calls::{Calls, Filter, Line},
        connections::ConnectionEvent,
    },
    constants,
    event::{Call, Change, Event, FdChange, FdPart, Outcome, Role, Wire},
    world::World,
};

/// How lines look.
#[derive(Debug, Clone, Copy, Default)]
pub struct StraceOptions {
    /// The moment in front.
    pub time: TimeFormat,
    /// Durations in nanoseconds instead of microseconds.
    pub nanoseconds: bool,
    /// Payloads as a dump behind the line.
    pub hexdump: bool,
}

/// The report.
#[derive(Debug)]
pub struct Strace {
    options: StraceOptions,
    calls: Calls,
    clock: Clock,
    line: String,
}

const DIM: Style = Style::new().dimmed();
const FAILED: Style = AnsiColor::Red.on_default();
const BLOCKED: Style = AnsiColor::Yellow.on_default();

impl Strace {
    /// Shows what `filter` leaves.
    pub fn new(filter: Filter, options: StraceOptions) -> Self {
        Self { options, calls: Calls::new(filter), clock: Clock::default(), line: String::new() }
    }

    fn show(&mut self, world: &World, line: &Line<'_>, colour: bool) {
        let paint = |style: Style| if colour { style } else { Style::new() };
        match line {
            Line::Returned { call, resumed } => {
                let Some(outcome) = call.outcome else { return };
                let ts_ns = call.entry_ns.max(if *resumed { outcome.return_ns } else { 0 });
                self.begin(world, (call.pid, call.tid), ts_ns, colour);
                self.arguments(world, call, if *resumed { Part::Rest } else { Part::All });
                self.line.push(')');
                self.outcome(world, call, outcome, paint(FAILED));
                if self.options.hexdump {
                    self.line.push('\n');
                    hexdump::write(&mut self.line, call.payload().unwrap_or_default());
                    self.line.pop();
                }
            }
            Line::Unfinished { call, blocked_ns, .. } => {
                self.begin(world, (call.pid, call.tid), call.entry_ns, colour);
                self.arguments(world, call, Part::KnownAtEntry);
                let style = paint(BLOCKED);
                if !self.line.ends_with(' ') {
                    self.line.push(' ');
                }
                let _ = write!(self.line, "{style}<unfinished, blocked {}>{style:#}", duration(*blocked_ns));
            }
            Line::Fd(change) => {
                // What people need not be told of is no line at all.
                if !self.fd_changed(world, change, colour) {
                    return;
                }
            }
            Line::SystemCall { wire, began } => self.system_call(world, wire, began.as_deref(), colour),
            Line::Connection(event) => {
                self.moment(world, event.ts_ns, colour);
                let (process, name) = (world.process_name(event.pid), net::name(world, event));
                let _ = write!(self.line, "--- {process}[{}] {name} {} ---", event.pid, net::happened(event));
            }
            Line::Abandoned { call, ts_ns } => {
                self.begin(world, (call.pid, call.tid), *ts_ns, colour);
                let _ = write!(self.line, "<... {} never returned: its thread ended>", call.function.row().name);
            }
        }
        self.line.push('\n');
    }

    /// Moment and thread.
    fn begin(&mut self, world: &World, (pid, tid): (u32, u32), ts_ns: u64, colour: bool) {
        self.moment(world, ts_ns, colour);
        let _ = write!(self.line, "{}[{pid}/{tid}] ", world.thread_name(pid, tid));
    }

    fn moment(&mut self, world: &World, ts_ns: u64, colour: bool) {
        let style = if colour { DIM } else { Style::new() };
        if self.options.time != TimeFormat::None {
            let _ = write!(self.line, "{style}");
            self.clock.write(&mut self.line, self.options.time, world, ts_ns);
            let _ = write!(self.line, "{style:#} ");
        }
    }

    /// A connection has a line when it begins and one when it ends. False: this is none of them.
    fn fd_changed(&mut self, world: &World, event: &FdChange, colour: bool) -> bool {
        let Some(fd) = world.fd(event.pid, event.fd) else { return false };
        let peer = fd.remote.as_deref().unwrap_or_default();
        let what = match (&event.change, fd.part, fd.role) {
            (Change::Added { .. }, FdPart::Listener, _) => "listens".into(),
            (Change::Added { .. }, FdPart::Connecter, _) => "connects".into(),
            (Change::Added { .. }, FdPart::Connection, Some(Role::Connect)) => "connected".into(),
            (Change::Added { .. }, FdPart::Connection, None) => "added".into(),
            (Change::Accepted { .. }, ..) if peer.is_empty() => "accepted".into(),
            (Change::Accepted { .. }, ..) => format!("accepted from {peer}"),
            (Change::Removed, FdPart::Listener | FdPart::Connection, _) => "removed".into(),
            // A connecter's that became a connection's would not be one any more.
            (Change::Closed, FdPart::Connecter, _) => "not connected".into(),
            _ => return false,
        };
        let Some(name) = world.last_fd_name(event.pid, event.fd) else { return false };
        self.moment(world, event.ts_ns, colour);
        let _ = write!(self.line, "--- {}[{}] fd {name} {what} ---", world.process_name(event.pid), event.pid);
        true
    }

    fn arguments(&mut self, world: &World, call: &Call, part: Part) {
        let name = call.function.row().name;
        if part == Part::Rest {
            let _ = write!(self.line, "<... {name} resumed> ");
        } else {
            let _ = write!(self.line, "{name}(");
        }
        let start = self.line.len();
        let known_at_entry = arguments::write(&mut self.line, world, call);
        match part {
            Part::All => {}
            Part::KnownAtEntry => self.line.truncate(known_at_entry),
            Part::Rest => self.line.replace_range(start..known_at_entry, ""),
        }
    }

    fn outcome(&mut self, world: &World, call: &Call, outcome: Outcome, failed: Style) {
        let Outcome { ret, errno, .. } = outcome;
        if outcome.failed {
            let _ = write!(self.line, " = {failed}{}", if ret == 0 { "NULL".into() } else { ret.to_string() });
            let _ = match errno {
                Some(errno) => {
                    write!(self.line, " {} ({})", constants::errno_name(errno), constants::errno_text(errno))
                }
                None => write!(self.line, " (errno not readable)"),
            };
            let _ = write!(self.line, "{failed:#}");
        } else {
            let row = call.function.row();
            let _ = match (row.returns, row.name) {
                (Returns::Void, _) => write!(self.line, " = ?"),
                (_, "zmq_socket") => {
                    let name = world.shown_socket_name(call.pid, ret as u64, call.generation);
                    write!(self.line, " = {}", name.unwrap_or_default())
                }
                (_, "zmq_ctx_new" | "zmq_init") => write!(self.line, " = {}", world.context_name(call.pid, ret as u64)),
                (_, "zmq_poller_new") => write!(self.line, " = {}", world.poller_name(call.pid, ret as u64)),
                (Returns::Pointer, _) => write!(self.line, " = {ret:#x}"),
                _ => write!(self.line, " = {ret}"),
            };
            arguments::write_result_detail(&mut self.line, world, call, ret);
        }
        self.spent(outcome.return_ns.saturating_sub(call.entry_ns));
    }

    /// How long it took.
    fn spent(&mut self, ns: u64) {
        let _ = if self.options.nanoseconds {
            write!(self.line, " <{}.{:09}>", ns / 1_000_000_000, ns % 1_000_000_000)
        } else {
            write!(self.line, " <{}.{:06}>", ns / 1_000_000_000, ns / 1_000 % 1_000_000)
        };
    }

    fn system_call(&mut self, world: &World, wire: &Wire, began: Option<&ConnectionEvent>, colour: bool) {
        self.begin(world, (wire.pid, wire.tid), wire.entry_ns.unwrap_or(wire.ts_ns), colour);
        net::write_call(&mut self.line, world, wire, began);
        let (value, error) = net::result(wire);
        let _ = match error {
            Some(error) if colour => write!(self.line, " = {FAILED}{value} {error}{FAILED:#}"),
            Some(error) => write!(self.line, " = {value} {error}"),
            None => write!(self.line, " = {value}"),
        };
        if let Some(entry_ns) = wire.entry_ns {
            self.spent(wire.ts_ns.saturating_sub(entry_ns));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    KnownAtEntry,
    Rest,
}

impl Report for Strace {
    fn event(&mut self, world: &World, event: &Event, out: &mut Sink) -> io::Result<()> {
        for line in self.calls.event(world, event) {
            self.line.clear();
            self.show(world, &line, out.colour);
            out.write_all(self.line.as_bytes())?;
        }
        let note = match event {
            Event::Exec(exec) => {
                format!("+++ {}[{}] replaced its program by exec +++\n", world.process_name(exec.pid), exec.pid)
            }
            Event::ProcessExit(exit) => format!("+++ {}[{}] ended +++\n", world.process_name(exit.pid), exit.pid),
            _ => return Ok(()),
        };
        out.write_all(note.as_bytes())
    }
}
