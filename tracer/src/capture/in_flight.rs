//! Samples the calls in flight from the threads' slots, without the target noticing.

use std::{
    collections::HashMap as StdMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::maps::{HashMap, MapData};
use tracer_common::record::{CallRecord, Frame, ThreadSlot};

use super::{record::Decoder, sys};
use crate::event::{Event, InFlight};

/// A call is first sampled when it has lasted this long.
const FIRST_NS: u64 = 10_000_000;
/// Each further sample comes when it has lasted this many times longer than at the one before.
const GROWTH: u64 = 10;

/// Watches all threads.
#[derive(Debug)]
pub struct Sampler {
    slots: HashMap<MapData, u64, ThreadSlot>,
    fd: OwnedFd,
    keys: Vec<u64>,
    values: Vec<ThreadSlot>,
    /// By (thread, sequence of the call): how long it must have lasted for the next sample.
    due: StdMap<(u64, u32), u64>,
}

impl Sampler {
    /// `fd` is another handle on `slots`.
    pub fn new(slots: HashMap<MapData, u64, ThreadSlot>, fd: OwnedFd) -> Self {
        Self { slots, fd, keys: Vec::new(), values: Vec::new(), due: StdMap::new() }
    }

    /// Events for the calls that are due at `now_ns`; with `all`, for every call in flight.
    pub fn sample(&mut self, now_ns: u64, all: bool, decoder: &mut Decoder) -> Vec<Event> {
        let Ok(count) = self.read_slots() else { return Vec::new() };
        let mut still_due = StdMap::new();
        let mut events = Vec::new();
        for (thread, slot) in self.keys[..count].iter().zip(&self.values[..count]) {
            for (index, frame) in slot.frames.iter().enumerate() {
                let lasted_ns = now_ns.saturating_sub(frame.call.entry_ns);
                if frame.sp == 0 || (!all && lasted_ns < FIRST_NS) {
                    continue;
                }
                let key = (*thread, frame.call.sequence);
                let due_ns = self.due.get(&key).copied().unwrap_or(FIRST_NS);
                if !all && lasted_ns < due_ns {
                    still_due.insert(key, due_ns);
                    continue;
                }
                // The thread may have gone on while the kernel copied its slot: then this is no call.
                if let Some(call) = confirmed(&self.slots, *thread, index, frame) {
                    still_due.insert(key, due_ns.max(lasted_ns.min(due_ns)).saturating_mul(GROWTH));
                    if let Some(call) = decoder.in_flight(&call) {
                        events.push(Event::InFlight(InFlight { ts_ns: now_ns, call }));
                    }
                }
            }
        }
        self.due = still_due;
        events
    }

    fn read_slots(&mut self) -> io::Result<usize> {
        const LEAST: usize = 256;
        loop {
            let len = self.keys.len().max(LEAST);
            self.keys.resize(len, 0);
            // SAFETY: integers only, for which zero is a value.
            self.values.resize(len, unsafe { std::mem::zeroed() });
            match sys::lookup_batch(self.fd.as_fd(), &mut self.keys, &mut self.values) {
                Ok(count) if count < len => return Ok(count),
                Ok(_) => {}
                // A bucket did not fit.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
                Err(error) => return Err(error),
            }
            self.keys.resize(len * 2, 0);
        }
    }
}

fn confirmed(slots: &HashMap<MapData, u64, ThreadSlot>, thread: u64, index: usize, seen: &Frame) -> Option<CallRecord> {
    let frame = slots.get(&thread, 0).ok()?.frames[index];
    let same =
        frame.sp == seen.sp && frame.call.entry_ns == seen.call.entry_ns && frame.call.sequence == seen.call.sequence;
    same.then_some(frame.call)
}
