//! Counts by socket and call: from what the kernel counted where the stream has that, else from the calls.

use std::collections::BTreeMap;

use tracer_common::{
    function::Class,
    record::{bucket_bounds, bucket_of},
};

use super::narrow::Narrow;
use crate::{
    event::{Call, CallResult, Event, FunctionId, TotalsRow},
    world::World,
};

/// One socket and one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Process.
    pub pid: u32,
    /// Index of the libzmq.
    pub library: u8,
    /// Socket, context or poller; 0 where the call has none.
    pub handle: u64,
    /// Of the handle.
    pub generation: u32,
    /// What was called.
    pub function: FunctionId,
}

/// What was counted of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Calls.
    pub count: u64,
    /// Failed ones, by error.
    pub errors: BTreeMap<CallResult, u64>,
    /// Sum of durations.
    pub total_ns: u64,
    /// The longest; `None` for an interval, of which only totals until now are known.
    pub max_ns: Option<u64>,
    /// Payload bytes moved.
    pub bytes: u64,
    /// Messages completed.
    pub messages: u64,
    /// Parts of which it is not known whether they completed a message.
    pub parts_unknown: u64,
    buckets: BTreeMap<u16, u64>,
}

/// Counts until now.
#[derive(Debug, Default)]
pub struct Stat {
    narrow: Narrow,
    rows: BTreeMap<Key, Row>,
    /// As of the last interval's end.
    previous: BTreeMap<Key, Row>,
    previous_ns: u64,
}

/// The counts of a stretch of time.
#[derive(Debug)]
pub struct Counts {
    /// How long, ns.
    pub duration_ns: u64,
    /// Rows with at least one call, the most time-consuming first.
    pub rows: Vec<(Key, Row)>,
}

impl Stat {
    /// Leaves out what `narrow` says.
    pub fn new(narrow: Narrow) -> Self {
        Self { narrow, ..Self::default() }
    }

    /// Counts the next event.
    pub fn event(&mut self, world: &World, event: &Event) {
        match event {
            Event::Start(start) => self.previous_ns = start.ts_ns,
            Event::Totals(totals) => {
                self.rows.clear();
                let admits =
                    |row: &&TotalsRow| self.narrow.admits_socket(world.socket(row.pid, row.handle, row.generation));
                for row in totals.rows.iter().filter(admits) {
                    self.rows.entry(Key::of(row)).or_default().add_totals(row);
                }
            }
            Event::Call(call) if !world.has_totals() && self.narrow.admits(world, call) => {
                self.rows.entry(Key::of_call(call)).or_default().add_call(call);
            }
            _ => {}
        }
    }

    /// All that was counted from the start to `now_ns`.
    pub fn total(&self, world: &World, now_ns: u64) -> Counts {
        Counts::new(now_ns.saturating_sub(world.start_ns()), self.rows.clone())
    }

    /// What was counted since the last call of this.
    pub fn interval(&mut self, now_ns: u64) -> Counts {
        let nothing = Row::default();
        let rows = self.rows.iter().map(|(key, row)| (*key, row.since(self.previous.get(key).unwrap_or(&nothing))));
        let counts = Counts::new(now_ns.saturating_sub(self.previous_ns), rows.collect());
        self.previous.clone_from(&self.rows);
        self.previous_ns = now_ns;
        counts
    }
}

impl Counts {
    fn new(duration_ns: u64, rows: BTreeMap<Key, Row>) -> Self {
        let mut rows: Vec<_> = rows.into_iter().filter(|(_, row)| row.count > 0).collect();
        rows.sort_by_key(|(key, row)| (key.pid, std::cmp::Reverse(row.total_ns)));
        Self { duration_ns, rows }
    }

    /// `count` things a second.
    pub fn per_second(&self, count: u64) -> f64 {
        if self.duration_ns == 0 { 0.0 } else { count as f64 * 1e9 / self.duration_ns as f64 }
    }
}

impl Key {
    fn of(row: &TotalsRow) -> Self {
        let TotalsRow { pid, library, handle, generation, function, .. } = *row;
        Self { pid, library, handle, generation, function }
    }

    fn of_call(call: &Call) -> Self {
        // As the kernel side does: the generation of `zmq_socket` is the new socket's, not its context's.
        let generation = if call.socket().is_some() { call.generation } else { 0 };
        let (pid, library, function) = (call.pid, call.library, call.function);
        Self { pid, library, handle: call.handle().unwrap_or(0), generation, function }
    }
}

impl Row {
    fn add_totals(&mut self, totals: &TotalsRow) {
        self.count += totals.count;
        if totals.result != CallResult::Ok {
            *self.errors.entry(totals.result).or_default() += totals.count;
        }
        self.total_ns += totals.total_ns;
        self.max_ns = self.max_ns.max(Some(totals.max_ns));
        self.bytes += totals.bytes;
        self.messages += totals.messages;
        self.parts_unknown += totals.parts_unknown;
        for (index, count) in &totals.buckets {
            *self.buckets.entry(*index).or_default() += count;
        }
    }

    fn add_call(&mut self, call: &Call) {
        let Some(outcome) = call.outcome else { return };
        let duration_ns = outcome.return_ns.saturating_sub(call.entry_ns);
        self.count += 1;
        self.total_ns += duration_ns;
        self.max_ns = self.max_ns.max(Some(duration_ns));
        *self.buckets.entry(bucket_of(duration_ns) as u16).or_default() += 1;
        if call.result() != CallResult::Ok {
            *self.errors.entry(call.result()).or_default() += 1;
        } else if matches!(call.function.row().class, Class::Send | Class::Recv) {
            self.bytes += call.size.unwrap_or(0);
            match call.more {
                Some(false) => self.messages += 1,
                Some(true) => {}
                None => self.parts_unknown += 1,
            }
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        let minus = |now: &BTreeMap<CallResult, u64>, then: &BTreeMap<CallResult, u64>| {
            let differences = now.iter().map(|(key, count)| (*key, count - then.get(key).unwrap_or(&0).min(count)));
            differences.filter(|(_, count)| *count > 0).collect()
        };
        let buckets = self
            .buckets
            .iter()
            .map(|(index, count)| (*index, count.saturating_sub(earlier.buckets.get(index).copied().unwrap_or(0))));
        Self {
            count: self.count.saturating_sub(earlier.count),
            errors: minus(&self.errors, &earlier.errors),
            total_ns: self.total_ns.saturating_sub(earlier.total_ns),
            max_ns: if earlier.count == 0 { self.max_ns } else { None },
            bytes: self.bytes.saturating_sub(earlier.bytes),
            messages: self.messages.saturating_sub(earlier.messages),
            parts_unknown: self.parts_unknown.saturating_sub(earlier.parts_unknown),
            buckets: buckets.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Calls that failed.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Mean duration.
    pub fn mean_ns(&self) -> u64 {
        self.total_ns.checked_div(self.count).unwrap_or(0)
    }

    /// Messages completed, unless that is not known of every part.
    pub fn known_messages(&self) -> Option<u64> {
        (self.parts_unknown == 0).then_some(self.messages)
    }

    /// The duration that `per_mille` of 1000 calls do not exceed: the middle of its bucket, so at most
    /// 6.25 % off.
    pub fn percentile_ns(&self, per_mille: u64) -> u64 {
        let total: u64 = self.buckets.values().sum();
        let rank = (total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in &self.buckets {
            seen += count;
            if seen >= rank {
                let (low, width) = bucket_bounds(usize::from(*index));
                return (low + width / 2).min(self.max_ns.unwrap_or(u64::MAX));
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(durations_ns: &[u64]) -> Row {
        let mut row = Row::default();
        for duration_ns in durations_ns {
            row.count += 1;
            row.total_ns += duration_ns;
            row.max_ns = row.max_ns.max(Some(*duration_ns));
            *row.buckets.entry(bucket_of(*duration_ns) as u16).or_default() += 1;
        }
        row
    }

    #[test]
    fn percentiles_are_within_their_stated_error() {
        let durations: Vec<u64> = (1..=1000).map(|n| n * 1_000).collect();
        let row = row(&durations);
        for (per_mille, exact) in [(500, 500_000.0), (990, 990_000.0), (999, 999_000.0)] {
            let found = row.percentile_ns(per_mille) as f64;
            assert!((found - exact).abs() <= exact * 0.0625, "p{per_mille}: {found}");
        }
        assert_eq!(row.percentile_ns(1000), 1_000_000, "never above the maximum");
    }

    #[test]
    fn an_interval_is_the_difference() {
        let (earlier, now) = (row(&[1_000, 5_000]), row(&[1_000, 5_000, 2_000]));
        let interval = now.since(&earlier);
        assert_eq!((interval.count, interval.total_ns, interval.max_ns), (1, 2_000, None));
        assert_eq!(interval.buckets.values().sum::<u64>(), 1);
    }
}
