//! What one end of a connection received: its system calls, and where they are in the sender's bytes.

use std::collections::VecDeque;

use super::{
    super::{Aged, pipes::PipeId},
    MAX_CALLS,
};

/// A system call that received.
#[derive(Debug)]
pub struct Segment {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) rx_ns: u64,
    pub(super) pipe: Option<(PipeId, u64)>,
    pub(super) has_calls: bool,
    /// Messages that ended in it, by its own walk; `None`: it does not say.
    pub(super) messages: Option<u64>,
    /// It has the first messages of its connection: the handshake ended in it, and only then was the pipe made.
    pub(super) is_first: bool,
    pub(super) done: bool,
}

/// One direction of one end: what it received.
#[derive(Debug, Default)]
pub struct Receiver {
    pub(super) segments: VecDeque<Segment>,
    pub(super) origin: Option<u32>,
    pub(super) end: Aged,
    /// Whether frames were known in the last system call.
    pub(super) is_walked: bool,
    /// What the sender's position is more than the receiver's.
    pub(super) difference: Option<i64>,
    /// unix: where both were when a read had drained the socket, to be confirmed by the next send.
    pub(super) drained: Option<Drained>,
    /// unix: when the kernel held nothing for it, before anything was seen to move.
    pub(super) at_rest_ns: Option<u64>,
    /// Before when its first byte cannot have been read.
    pub(super) begun_ns: Option<u64>,
}

/// A moment at which all that was sent had been received.
#[derive(Debug, Clone, Copy)]
pub struct Drained {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) read_exit_ns: u64,
}

impl Segment {
    /// Whether its pipe is still to be told.
    pub(super) fn is_unnamed(&self) -> bool {
        self.pipe.is_none() && self.is_first && self.has_calls && self.messages != Some(0)
    }
}

impl Receiver {
    pub(super) fn add(&mut self, segment: Segment) {
        let at = self.segments.partition_point(|earlier| earlier.start < segment.start);
        let overlaps = self.segments.get(at).is_some_and(|next| next.start < segment.end)
            || at > 0 && self.segments[at - 1].end > segment.start;
        if overlaps {
            return;
        }
        self.segments.insert(at, segment);
        if self.segments.len() > MAX_CALLS {
            self.segments.pop_front();
        }
    }

    /// The connection has its pipe by now: its first messages went through it. Whether there were some.
    pub(super) fn name_first(&mut self, pipe: PipeId) -> bool {
        let first = self.segments.iter_mut().find(|segment| segment.is_unnamed());
        first.map(|segment| segment.pipe = Some((pipe, 0))).is_some()
    }

    /// Messages that ended in a segment, by what the pipe had counted before the next one.
    pub(super) fn next_count(&self, index: usize) -> Option<u64> {
        let (segment, next) = (self.segments.get(index)?, self.segments.get(index + 1)?);
        let ((pipe, before), (next_pipe, after)) = (segment.pipe?, next.pipe?);
        (segment.end == next.start && pipe == next_pipe).then(|| after.checked_sub(before))?
    }

    pub(super) fn drop_done(&mut self, settled: &mut Vec<(PipeId, bool, u64)>) {
        while self.segments.front().is_some_and(|first| first.done) {
            if let Some(Segment { pipe: Some((pipe, before)), .. }) = self.segments.pop_front() {
                settled.push((pipe, false, before));
            }
        }
    }
}
