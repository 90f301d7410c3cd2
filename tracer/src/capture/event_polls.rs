//! What the epolls of a process watch, for those who look again and again.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::priority;
use crate::{
    inspect::{self, Watched},
    target::fds::Fds,
};

/// The time between two readings is at least this many times what the last one took: while the kernel writes down what
/// an epoll watches it holds that epoll's lock, and libzmq's I/O thread waits.
const LEAST_PAUSE: u32 = 100;
/// So long it is at most.
const MOST_PAUSE: Duration = Duration::from_secs(1);

/// What they watch, as the kernel said last. What is old of it does no harm: memory must agree with each entry, and
/// what is new is found from the sockets, too.
#[derive(Debug, Default)]
pub struct EventPolls {
    fds: Vec<i32>,
    watched: Vec<Watched>,
    next: Option<Instant>,
}

impl EventPolls {
    /// What the epolls among `fds` of process `pid` watch. It is read anew when there is another epoll, or after a
    /// pause.
    pub fn watched(&mut self, pid: u32, fds: &Fds) -> &[Watched] {
        let begun = Instant::now();
        if self.fds != fds.event_polls || self.next.is_none_or(|next| next <= begun) {
            let fdinfo = |fd: &i32| fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let read = || fds.event_polls.iter().map(fdinfo).collect::<Vec<_>>();
            let texts = priority::without_yielding(read);
            let pause = begun.elapsed().saturating_mul(LEAST_PAUSE).min(MOST_PAUSE);
            self.watched = texts.iter().flat_map(|text| inspect::parse_fdinfo(text)).collect();
            self.fds.clone_from(&fds.event_polls);
            self.next = Some(Instant::now() + pause);
        }
        &self.watched
    }
}
