//! What is counted of messages: times by pair and stage, and how many there were of which fate.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::{Fates, Pair, Party, Reason, SocketId, Stage};

/// Pairs that have histograms of their own; the messages of further ones are counted as one pair of others.
pub const MAX_PAIRS: usize = 1024;
/// Sockets that have a coverage of their own, likewise.
const MAX_SOCKETS: usize = 1 << 14;
/// Digits of a time that are kept: percentiles are exact to 1 %.
const SIGNIFICANT_DIGITS: u8 = 2;

/// Longer times are shown so in percentiles: a day.
const MAX_NS: u64 = 86_400_000_000_000;

/// Times of one stage. Count, mean, least and most are exact.
#[derive(Debug, Clone)]
pub struct Times {
    histogram: Histogram<u32>,
    count: u64,
    sum_ns: u128,
    min_ns: u64,
    max_ns: u64,
}

impl Default for Times {
    fn default() -> Self {
        // It grows with what it is given.
        let histogram = Histogram::new(SIGNIFICANT_DIGITS).expect("two digits are few enough");
        Self { histogram, count: 0, sum_ns: 0, min_ns: u64::MAX, max_ns: 0 }
    }
}

impl Times {
    fn add(&mut self, ns: u64) {
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.min_ns = self.min_ns.min(ns);
        self.max_ns = self.max_ns.max(ns);
        // It has no upper bound of its own; a count at its limit stays there.
        let _ = self.histogram.record(ns.min(MAX_NS));
    }

    /// How many.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The least.
    pub const fn min_ns(&self) -> u64 {
        self.min_ns
    }

    /// The most.
    pub const fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The mean.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(u128::from(self.count)).unwrap_or(0) as u64
    }

    /// The time that this share of all does not exceed.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile).clamp(self.min_ns.min(self.max_ns), self.max_ns)
    }

    /// How many were below each power of two and not below the one before: upper bound and count, from the first one to
    /// the last one that is not empty.
    pub fn powers(&self) -> Vec<(u64, u64)> {
        let mut powers = BTreeMap::new();
        for value in self.histogram.iter_recorded() {
            *powers.entry(u64::BITS - value.value_iterated_to().leading_zeros()).or_default() +=
                value.count_since_last_iteration();
        }
        let (Some(first), Some(last)) = (powers.keys().next().copied(), powers.keys().last().copied()) else {
            return Vec::new();
        };
        let bound = |power| 1u64.checked_shl(power).unwrap_or(u64::MAX);
        (first..=last).map(|power| (bound(power), powers.get(&power).copied().unwrap_or(0))).collect()
    }
}

/// Times by pair and stage.
#[derive(Debug, Default)]
pub struct Histograms {
    pairs: BTreeMap<Pair, BTreeMap<Stage, Times>>,
}

impl Histograms {
    /// Counts one message's time in a stage.
    pub fn add(&mut self, pair: &Pair, stage: Stage, ns: u64) {
        if let Some(stages) = self.pairs.get_mut(pair) {
            return stages.entry(stage).or_default().add(ns);
        }
        let pair =
            if self.pairs.len() < MAX_PAIRS { pair.clone() } else { Pair { from: Party::Others, to: Party::Others } };
        self.pairs.entry(pair).or_default().entry(stage).or_default().add(ns);
    }

    /// All of them.
    pub fn pairs(&self) -> impl Iterator<Item = (&Pair, &BTreeMap<Stage, Times>)> {
        self.pairs.iter()
    }
}

/// Fates of messages by socket.
#[derive(Debug, Default)]
pub struct Coverages {
    sockets: BTreeMap<SocketId, Coverage>,
    others: Coverage,
}

/// How many messages there were, and what became of them. A message to several receivers counts once for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// That were sent.
    pub sent: Fates,
    /// That were received.
    pub received: Fates,
}

impl Coverages {
    /// The coverage of a socket, to be counted on.
    pub fn of(&mut self, socket: SocketId) -> &mut Coverage {
        if self.sockets.len() >= MAX_SOCKETS && !self.sockets.contains_key(&socket) {
            return &mut self.others;
        }
        self.sockets.entry(socket).or_default()
    }

    /// Of all sockets that are admitted together.
    pub fn sum(&self, admits: impl Fn(SocketId) -> bool) -> Coverage {
        let mut sum = self.others.clone();
        for (_, coverage) in self.sockets.iter().filter(|(socket, _)| admits(**socket)) {
            sum.sent.add(&coverage.sent);
            sum.received.add(&coverage.received);
        }
        sum
    }
}

impl Fates {
    fn add(&mut self, other: &Self) {
        self.all += other.all;
        self.matched += other.matched;
        for (reason, count) in &other.unmatched {
            *self.unmatched.entry(*reason).or_default() += count;
        }
    }

    /// One more is not matched.
    pub fn unmatch(&mut self, reason: Reason) {
        *self.unmatched.entry(reason).or_default() += 1;
    }
}
