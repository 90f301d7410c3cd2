//! Which lines a trace of calls has: calls that returned, calls that still block, fds of sockets that came or went, and
//! what goes on below: system calls on connections, and what becomes of those.

use std::{borrow::Cow, collections::HashMap};

use tracer_common::limits::MAX_NESTED_FRAMES;

use super::{
    connections::{ConnectionEvent, Connections},
    narrow::Narrow,
};
use crate::{
    event::{Call, Event, FdChange, FdPart, Wire},
    world::{Fd, World},
};

/// A call is shown as unfinished when it has blocked this long.
const UNFINISHED_NS: u64 = 1_000_000_000;

/// What a trace leaves out.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only some sockets, endpoints or payloads.
    pub narrow: Narrow,
    /// `Some(true)`: only calls that succeeded; `Some(false)`: only those that failed.
    pub successful: Option<bool>,
    /// Whether system calls and connections are shown. Of fds only what is said by neither is shown then.
    pub net: bool,
}

/// One thing to show.
#[derive(Debug)]
pub enum Line<'event> {
    /// A call returned; `resumed`: it was shown as unfinished before.
    Returned {
        /// The call.
        call: &'event Call,
        /// Whether it resumes an unfinished line.
        resumed: bool,
    },
    /// A call blocks.
    Unfinished {
        /// The call.
        call: Call,
        /// For how long by now.
        blocked_ns: u64,
        /// When.
        ts_ns: u64,
    },
    /// A fd of a socket came or went: what the world now knows of it.
    Fd(&'event FdChange),
    /// A system call on a connection returned.
    SystemCall {
        /// It.
        wire: Cow<'event, Wire>,
        /// Of a connect: what it began, which says whose it is.
        began: Option<Box<ConnectionEvent>>,
    },
    /// Something happened to a connection.
    Connection(ConnectionEvent),
    /// The thread of a call that was shown as unfinished has ended.
    Abandoned {
        /// The call.
        call: Call,
        /// When.
        ts_ns: u64,
    },
}

/// Follows the calls of all threads.
#[derive(Debug, Default)]
pub struct Calls {
    filter: Filter,
    /// Calls in flight, by thread, outermost first, and whether they were shown. One whose return was lost is
    /// pushed out by later ones.
    in_flight: HashMap<u32, Vec<InFlight>>,
    connections: Connections,
    /// What commands made of connections, until their system call has been shown.
    held: Vec<ConnectionEvent>,
    /// Calls that returned.
    pub returned: u64,
}

#[derive(Debug)]
struct InFlight {
    call: Call,
    sampled_ns: u64,
    shown: bool,
}

impl Calls {
    /// Leaves out what `filter` says.
    pub fn new(filter: Filter) -> Self {
        Self { filter, ..Self::default() }
    }

    /// What the next event makes us show.
    pub fn event<'event>(&mut self, world: &World, event: &'event Event) -> Vec<Line<'event>> {
        let mut lines = if self.filter.net { self.below(world, event) } else { Vec::new() };
        lines.extend(self.above(world, event));
        lines
    }

    /// System calls, and what becomes of connections.
    fn below<'event>(&mut self, world: &World, event: &'event Event) -> Vec<Line<'event>> {
        let is_told_at_once = matches!(event, Event::Wire(wire) if self.is_told_at_once(world, wire));
        let mut events = self.connections.event(world, event);
        // What the system call says of the connection comes after it, and what the bytes said, too.
        let is_of =
            |wire: &Wire, told: &ConnectionEvent| (told.pid, told.fd, told.ts_ns) == (wire.pid, wire.fd, wire.ts_ns);
        let mut lines = Vec::new();
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            match event {
                Event::Wire(wire) => {
                    let (of_it, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|told| is_of(wire, told));
                    others.into_iter().for_each(|told| self.connection(world, told, &mut lines));
                    events.splice(..0, of_it);
                }
                Event::Command(command) if held.iter().all(|told| told.ts_ns == command.ts_ns) => self.held = held,
                _ => held.into_iter().for_each(|told| self.connection(world, told, &mut lines)),
            }
        }
        match event {
            Event::Wire(wire) if is_told_at_once && self.admits_system_call(world, wire, None) => {
                lines.push(Line::SystemCall { wire: Cow::Borrowed(wire), began: None });
            }
            Event::Wire(wire) if wire.frames.as_ref().is_some_and(|frames| frames.continues) => {
                self.held = events;
                return lines;
            }
            Event::Command(_) => {
                self.held.append(&mut events);
                return lines;
            }
            _ => {}
        }
        events.into_iter().for_each(|told| self.connection(world, told, &mut lines));
        lines
    }

    /// Shows what happened to a connection, after the connect that began it.
    fn connection(&self, world: &World, mut event: ConnectionEvent, lines: &mut Vec<Line<'_>>) {
        if let Some(wire) = event.connect.take()
            && self.admits_system_call(world, &wire, Some(&event))
        {
            lines.push(Line::SystemCall { wire: Cow::Owned(*wire), began: Some(Box::new(event.clone())) });
        }
        let endpoints = [&event.endpoint, &event.local].into_iter().flatten().cloned();
        if self.filter.narrow.admits_connection(world, event.pid, event.owner, endpoints) {
            lines.push(Line::Connection(event));
        }
    }

    /// Whether a system call is shown when it returns. Whose a connect is is known only later, and what other code of a
    /// process than libzmq asks its sockets is its own affair.
    fn is_told_at_once(&self, world: &World, wire: &Wire) -> bool {
        match wire.call.name() {
            "connect" => false,
            "getsockopt" => self.connections.is_connecting(world, wire.pid, wire.fd),
            // One that is told in several parts is shown with the last.
            _ => !wire.frames.as_ref().is_some_and(|frames| frames.continues),
        }
    }

    fn admits_system_call(&self, world: &World, wire: &Wire, event: Option<&ConnectionEvent>) -> bool {
        let failed = wire.ret < 0;
        if self.filter.successful.is_some_and(|successful| successful == failed) {
            return false;
        }
        let fd = owner_of(world, wire);
        let owner = event.map_or_else(|| fd.map(|fd| (fd.handle, fd.generation)), |event| event.owner);
        let of_event = event.and_then(|event| event.endpoint.clone());
        let of_fd = || fd.and_then(|fd| fd.endpoint.clone());
        let of_stream = || {
            let stream = world.stream(wire.pid, wire.inode).filter(|_| owner.is_none());
            stream.into_iter().flat_map(|stream| [stream.local.clone(), stream.remote.clone()]).flatten()
        };
        let endpoints = of_event.or_else(of_fd).into_iter().chain(of_stream());
        self.filter.narrow.admits_connection(world, wire.pid, owner, endpoints)
    }

    /// libzmq's calls and fds.
    fn above<'event>(&mut self, world: &World, event: &'event Event) -> Vec<Line<'event>> {
        match event {
            Event::Call(call) => self.returned(world, call).into_iter().collect(),
            Event::InFlight(sample) => self.sampled(world, &sample.call, sample.ts_ns).into_iter().collect(),
            Event::Fd(change) => self.fd_changed(world, change).into_iter().collect(),
            Event::ThreadExit(exit) => self.abandon(exit.ts_ns, |call| call.tid == exit.tid),
            Event::Exec(end) | Event::ProcessExit(end) => self.abandon(end.ts_ns, |call| call.pid == end.pid),
            Event::End(end) => self.still_in_flight(end.sampled_ns),
            _ => Vec::new(),
        }
    }

    fn returned<'event>(&mut self, world: &World, call: &'event Call) -> Option<Line<'event>> {
        self.returned += 1;
        // Nearly always empty; then there is nothing to look up.
        let sample = if self.in_flight.is_empty() { None } else { self.take(call) };
        let resumed = sample.is_some_and(|sample| sample.shown);
        let failed = call.outcome.is_some_and(|outcome| outcome.failed);
        let wanted = self.filter.successful.is_none_or(|successful| successful != failed);
        // What was begun is ended.
        (resumed || (wanted && self.filter.narrow.admits(world, call))).then_some(Line::Returned { call, resumed })
    }

    /// Fds of which is not known whose they were are not shown.
    fn fd_changed<'event>(&self, world: &World, change: &'event FdChange) -> Option<Line<'event>> {
        let fd = world.fd(change.pid, change.fd)?;
        let is_told_of = matches!(fd.part, FdPart::Connecter | FdPart::Connection);
        if self.filter.net && (is_told_of || !world.shows_endpoints()) {
            return None;
        }
        self.filter.narrow.admits_fd(world, change.pid, fd).then_some(Line::Fd(change))
    }

    fn sampled(&mut self, world: &World, call: &Call, ts_ns: u64) -> Option<Line<'static>> {
        // Whether it will succeed is not known yet.
        if self.filter.successful.is_some() || !self.filter.narrow.admits(world, call) {
            return None;
        }
        let blocked_ns = ts_ns.saturating_sub(call.entry_ns);
        let samples = self.in_flight.entry(call.tid).or_default();
        let index = samples.iter().position(|sample| sample.call.sequence == call.sequence);
        let index = index.unwrap_or_else(|| {
            if samples.len() == MAX_NESTED_FRAMES {
                samples.remove(0);
            }
            samples.push(InFlight { call: call.clone(), sampled_ns: ts_ns, shown: false });
            samples.len() - 1
        });
        let sample = &mut samples[index];
        sample.sampled_ns = ts_ns;
        if sample.shown || blocked_ns < UNFINISHED_NS {
            return None;
        }
        sample.shown = true;
        Some(Line::Unfinished { call: call.clone(), blocked_ns, ts_ns })
    }

    /// The sample of a call that returns.
    fn take(&mut self, call: &Call) -> Option<InFlight> {
        let samples = self.in_flight.get_mut(&call.tid)?;
        let index = samples.iter().position(|sample| sample.call.sequence == call.sequence)?;
        let sample = samples.remove(index);
        if samples.is_empty() {
            self.in_flight.remove(&call.tid);
        }
        Some(sample)
    }

    fn abandon(&mut self, ts_ns: u64, ended: impl Fn(&Call) -> bool) -> Vec<Line<'static>> {
        let of_ended = |samples: &mut Vec<InFlight>| samples.first().is_some_and(|sample| ended(&sample.call));
        let abandoned = self.in_flight.extract_if(|_, samples| of_ended(samples)).flat_map(|(_, samples)| samples);
        abandoned.filter(|sample| sample.shown).map(|sample| Line::Abandoned { call: sample.call, ts_ns }).collect()
    }

    /// Those of the last samples: others have returned, and their returns were lost.
    fn still_in_flight(&mut self, last_sampled_ns: u64) -> Vec<Line<'static>> {
        let mut samples: Vec<_> = self.in_flight.drain().flat_map(|(_, samples)| samples).collect();
        samples.retain(|sample| sample.sampled_ns >= last_sampled_ns);
        samples.sort_by_key(|sample| sample.call.entry_ns);
        let line = |InFlight { call, sampled_ns, .. }| {
            let blocked_ns = sampled_ns.saturating_sub(call.entry_ns);
            Line::Unfinished { call, blocked_ns, ts_ns: sampled_ns }
        };
        samples.into_iter().map(line).collect()
    }
}

/// The fd of a system call, as a socket's: not that of who had the number before.
pub fn owner_of<'world>(world: &'world World, wire: &Wire) -> Option<&'world Fd> {
    let is_known = |fd: &&Fd| wire.handle.is_none_or(|handle| handle == fd.handle);
    world.fd(wire.pid, wire.fd).filter(is_known)
}
