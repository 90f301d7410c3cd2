//! How often a process is looked into: as often as is asked for, and no more often than it may cost. What the CPUs do
//! for us they do not do for the target, however nice we are.

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep_until};

/// Of the time of one CPU we take one part in so many at most.
const SHARE: u32 = 20;

/// The rhythm of looks.
#[derive(Debug)]
pub struct Pace {
    period: Duration,
    begun: Instant,
    cpu_time_then: Duration,
    /// What the look before the last one has cost.
    cost_before: Duration,
}

/// Why a look came later than was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// CPU time that a look takes.
    cost: Duration,
    /// After how long it came.
    pause: Duration,
    /// After how long it was asked for.
    period: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [cost, pause, period] = [self.cost, self.pause, self.period].map(|time| time.as_millis());
        write!(
            f,
            "looks between this one and the last: they come each {pause} ms instead of {period} ms, since one takes \
             {cost} ms of CPU time, which the process may need itself"
        )
    }
}

impl Pace {
    /// The first look begins now.
    pub fn new(period: Duration) -> Self {
        Self { period, begun: Instant::now(), cpu_time_then: cpu_time(), cost_before: Duration::ZERO }
    }

    /// Waits until it is time for the next look, which begins with that. Says why, if it has to come late.
    pub async fn tick(&mut self) -> Option<Late> {
        // Of all that was done since the last one began: also printing what came of it.
        let cost = cpu_time().saturating_sub(self.cpu_time_then);
        let late = self.late(cost);
        sleep_until(self.begun + late.map_or(self.period, |late| late.pause)).await;
        (self.begun, self.cpu_time_then, self.cost_before) = (Instant::now(), cpu_time(), cost);
        late
    }

    /// Whether the look after one that has cost so much has to come late.
    fn late(&self, cost: Duration) -> Option<Late> {
        // One that costs more than is usual, as the first, in which names of functions are read, is forgiven.
        let cost = cost.min(self.cost_before);
        let (pause, period) = (cost.saturating_mul(SHARE), self.period);
        (pause > period).then_some(Late { cost, pause, period })
    }
}

/// CPU time that this process has taken.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one structure of ours, which is filled.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_cost_too_much_come_late_and_say_so() {
        const MS: Duration = Duration::from_millis(1);
        let mut pace = Pace::new(100 * MS);
        assert_eq!(pace.late(90 * MS), None, "the first one is forgiven");
        pace.cost_before = 90 * MS;
        assert_eq!(pace.late(5 * MS), None, "that is its share");
        let late = Late { cost: 30 * MS, pause: 600 * MS, period: 100 * MS };
        assert_eq!(pace.late(30 * MS), Some(late));
        assert!(
            late.to_string().contains("each 600 ms instead of 100 ms, since one takes 30 ms of CPU time"),
            "{late}"
        );
        pace.cost_before = 20 * MS;
        assert_eq!(
            pace.late(90 * MS).map(|late| late.cost),
            Some(20 * MS),
            "one that is dearer than usual is forgiven"
        );
    }
}
