//! Which lines a trace of calls has: calls that returned, calls that still block, fds of sockets that came or went.

use std::collections::HashMap;

use tracer_common::limits::MAX_NESTED_FRAMES;

use super::narrow::Narrow;
use crate::{
    event::{Call, Event, FdChange},
    world::World,
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
