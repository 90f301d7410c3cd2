//! Samples the calls in flight from the threads' slots, without the target noticing.

use std::collections::{BTreeSet, HashMap};

use tracer_common::{
    function::Cookie,
    limits::MAX_THREADS,
    record::{CallRecord, Frame, ThreadSlot},
};

use super::{record::Decoder, sys::MappedArray};
use crate::event::{Event, InFlight};

/// A call is first sampled when it has lasted this long.
const FIRST_NS: u64 = 10_000_000;
/// Each further sample comes when it has lasted this many times longer than at the one before.
const GROWTH: u64 = 10;

/// Watches all threads.
#[derive(Debug)]
pub struct Sampler {
    slots: MappedArray<ThreadSlot>,
    /// Classes whose calls are wanted, as a set; others are probed only to tell libzmq's own calls.
    classes: u16,
    /// Slots that are or were in use.
    used: BTreeSet<u32>,
    /// By (thread, sequence of the call): how long it must have lasted for the next sample.
    due: HashMap<(u64, u32), u64>,
}

impl Sampler {
    pub fn new(slots: MappedArray<ThreadSlot>, classes: u16) -> Self {
        Self { slots, classes, used: BTreeSet::new(), due: HashMap::new() }
    }

    /// Looks for threads whose first call was not reported: the ring was full then.
    pub fn rescan(&mut self) {
        self.used =
            (0..MAX_THREADS).filter(|index| self.slots.read(*index).is_some_and(|slot| slot.owner != 0)).collect();
    }

    /// Events for the calls that are due at `now_ns`; with `all`, for every call in flight.
    pub fn sample(&mut self, now_ns: u64, all: bool, decoder: &mut Decoder) -> Vec<Event> {
        self.used.extend(decoder.take_slots());
        let mut still_due = HashMap::new();
        let mut events = Vec::new();
        for index in &self.used {
            let Some(slot) = self.slots.read(*index) else { continue };
            for (depth, frame) in slot.frames.iter().enumerate() {
                let lasted_ns = now_ns.saturating_sub(frame.call.entry_ns);
                let wanted = Cookie(frame.cookie).class_bit() & self.classes != 0;
                if slot.owner == 0 || frame.sp == 0 || !wanted || (!all && lasted_ns < FIRST_NS) {
                    continue;
                }
                let key = (slot.owner, frame.call.sequence);
                let due_ns = self.due.get(&key).copied().unwrap_or(FIRST_NS);
                if !all && lasted_ns < due_ns {
                    still_due.insert(key, due_ns);
                    continue;
                }
                // The thread may have gone on while we copied its slot: then this is no call.
                let Some(call) = self.confirmed(*index, slot.owner, depth, frame) else { continue };
                still_due.insert(key, due_ns.saturating_mul(GROWTH));
                if let Some(call) = decoder.in_flight(&call) {
                    events.push(Event::InFlight(InFlight { ts_ns: now_ns, call }));
                }
            }
        }
        self.due = still_due;
        events
    }

    fn confirmed(&self, index: u32, owner: u64, depth: usize, seen: &Frame) -> Option<CallRecord> {
        let slot = self.slots.read(index)?;
        let frame = slot.frames.get(depth)?;
        let same = slot.owner == owner
            && frame.sp == seen.sp
            // Set before the frame is given up.
            && frame.call.return_ns == 0
            && frame.call.entry_ns == seen.call.entry_ns
            && frame.call.sequence == seen.call.sequence;
        same.then_some(seen.call)
    }
}
