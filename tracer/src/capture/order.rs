//! Restores the order of events.
//!
//! Records reach the ring in the order in which CPUs reserve room, shortly after their stamps. So events
//! are held until everything with an earlier stamp must have arrived; what still comes later (its thread
//! was descheduled in between) is passed on at once and counted as a straggler.

use crate::event::Event;

/// How long a record may take from its stamp into the ring.
const WINDOW_NS: u64 = 1_000_000;

/// Events waiting for their turn.
#[derive(Debug, Default)]
pub struct Order {
    waiting: Vec<Event>,
    released_ns: u64,
    /// Events that came after others with later stamps had been passed on.
    pub stragglers: u64,
}

impl Order {
    /// Takes the next event of the ring.
    pub fn push(&mut self, event: Event) {
        if event.ts_ns() < self.released_ns {
            self.stragglers += 1;
        }
        self.waiting.push(event);
    }

    /// The latest stamp among those waiting.
    pub fn newest_ns(&self) -> u64 {
        self.waiting.iter().map(Event::ts_ns).max().unwrap_or(self.released_ns)
    }

    /// Passes on what is complete, given that the ring was empty at `drained_ns`.
    pub fn release(&mut self, drained_ns: u64) -> impl Iterator<Item = Event> + '_ {
        let until_ns = drained_ns.saturating_sub(WINDOW_NS);
        // Nearly sorted already, which a stable sort is quick with.
        self.waiting.sort_by_key(Event::ts_ns);
        let complete = self.waiting.partition_point(|event| event.ts_ns() <= until_ns);
        if let Some(last) = complete.checked_sub(1) {
            self.released_ns = self.released_ns.max(self.waiting[last].ts_ns());
        }
        self.waiting.drain(..complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Tick;

    fn tick(ts_ns: u64) -> Event {
        Event::Tick(Tick { ts_ns })
    }

    fn stamps(events: impl Iterator<Item = Event>) -> Vec<u64> {
        events.map(|event| event.ts_ns()).collect()
    }

    #[test]
    fn events_leave_by_stamp_once_the_window_is_over() {
        let mut order = Order::default();
        for ts_ns in [3_000_000, 1_000_000, 2_000_000] {
            order.push(tick(ts_ns));
        }
        assert_eq!(stamps(order.release(3_500_000)), [1_000_000, 2_000_000]);
        assert_eq!(stamps(order.release(u64::MAX)), [3_000_000]);
        assert_eq!(order.stragglers, 0);
    }

    #[test]
    fn stragglers_are_counted_not_lost() {
        let mut order = Order::default();
        order.push(tick(5_000_000));
        assert_eq!(stamps(order.release(u64::MAX)), [5_000_000]);
        order.push(tick(4_000_000));
        assert_eq!(stamps(order.release(u64::MAX)), [4_000_000]);
        assert_eq!(order.stragglers, 1);
    }
}
