//! What one end of a connection sent: its system calls, and which messages ended in each.

use std::collections::VecDeque;

use super::{
    super::{
        Aged, Reason,
        matching::{End, Number},
        pipes::PipeId,
    },
    MAX_CALLS,
    parts::{Mark, Parts},
};
use crate::event::{Frames, Inside, PipeCount, Wire};

/// Messages that ended in the system calls that are kept; beyond it the oldest are given up.
const MAX_ENDS: u64 = 1 << 17;

/// Where messages end: lengths from one end to the next, of the first from where the system call begins, and how many
/// of each.
pub type Ends = Box<[(u32, u32)]>;

/// A system call that sent, or several records of it.
#[derive(Debug)]
pub struct Written {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) entry_ns: Option<u64>,
    pub(super) exit_ns: u64,
    /// `None`: it is not known.
    pub(super) ends: Option<Ends>,
    /// Whether it may begin inside the frame in which the walk began, of which it is not known whether it ends a
    /// message.
    begins_inside: bool,
    /// Messages that ended in it.
    pub(super) count: u64,
    /// Where frames end, as long as encryption hides which ones end messages.
    frames: Option<Ends>,
    /// Messages on this connection before; of encrypted ones frames.
    pub(super) before: u64,
    pub(super) numbering: Numbering,
    /// Bytes that no receive was laid beside.
    pub(super) left: u64,
}

/// Which messages they are that ended in a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// A later system call tells.
    Pending,
    /// By the pipe: the number of the first one.
    Of(PipeId, u64),
    /// Nothing is known of calls.
    NoCalls,
    /// It is not known, and why.
    Unknown(Reason),
}

/// One direction of one end: what it sent.
#[derive(Debug, Default)]
pub struct Sender {
    pub(super) written: VecDeque<Written>,
    /// Messages that ended in those.
    count: u64,
    /// tcp: sequence number at position 0.
    pub(super) origin: Option<u32>,
    pub(super) end: Aged,
    /// Whether a frame has begun since the walk did.
    is_past_rest: bool,
    /// Records of a system call whose last one has not come.
    partial: Vec<(u32, u32)>,
    partial_of: Option<(u64, u64)>,
    /// What the pipe's count was more than the connection's, when a system call was complete.
    offset: Option<(PipeId, i64)>,
    /// Of encrypted ones.
    pub(super) parts: Parts,
    pub(super) last_exit_ns: u64,
    /// Before when its first byte cannot have been sent.
    pub(super) begun_ns: Option<u64>,
}

impl Written {
    /// The end of its nth message, from 0.
    pub(super) fn end_of(&self, nth: u64) -> End {
        match self.numbering {
            Numbering::Of(pipe, first) => End::Numbered(Number { pipe, number: first + nth }),
            Numbering::NoCalls => End::NoCalls,
            Numbering::Pending => End::Unknown(Reason::Ambiguous),
            Numbering::Unknown(reason) => End::Unknown(reason),
        }
    }

    /// From which byte on it is known where messages ended; `None`: nowhere.
    pub(super) fn known_from(&self) -> Option<u64> {
        let first = self.ends.as_ref()?.first();
        if self.begins_inside { Some(self.start + u64::from(first?.0)) } else { Some(self.start) }
    }

    /// Why it is not known which messages ended in it.
    pub(super) const fn doubt(&self) -> Option<Reason> {
        match self.numbering {
            Numbering::Unknown(reason) => Some(reason),
            Numbering::Pending => Some(Reason::Ambiguous),
            Numbering::Of(..) | Numbering::NoCalls => None,
        }
    }
}

impl Sender {
    /// Takes a record of a system call: all of it, once the last one has come.
    pub(super) fn gather(&mut self, wire: &Wire) -> Option<Written> {
        let (start, end) = (wire.position, wire.position + wire.ret as u64);
        self.origin = wire.sequence.map(|sequence| sequence.wrapping_sub(end as u32));
        let of = (wire.position, wire.ts_ns);
        if self.partial_of != Some(of) {
            self.partial.clear();
            self.partial_of = Some(of);
        }
        let frames = wire.frames.as_ref();
        if let Some(frames) = frames {
            self.partial.extend_from_slice(&frames.ends);
            if frames.continues {
                return None;
            }
        }
        self.partial_of = None;
        let ends = std::mem::take(&mut self.partial);
        let count: u64 = ends.iter().map(|(_, count)| u64::from(*count)).sum();
        let length: u64 = ends.iter().map(|(bytes, count)| u64::from(*bytes) * u64::from(*count)).sum();
        // Records of the call that were lost would number the rest wrongly.
        let is_whole = frames.is_some_and(|frames| count == u64::from(frames.messages) && length <= wire.ret as u64);
        let begins_inside = !(self.is_past_rest || wire.from_start && wire.position == 0);
        self.is_past_rest = frames.is_some_and(|frames| !begins_inside || frames.messages > 0);
        Some(Written {
            start,
            end,
            entry_ns: wire.entry_ns,
            exit_ns: wire.ts_ns,
            ends: is_whole.then(|| ends.into_boxed_slice()),
            begins_inside,
            count: if is_whole { count } else { 0 },
            frames: None,
            before: frames.map_or(0, |frames| frames.total_messages.saturating_sub(u64::from(frames.messages))),
            numbering: Numbering::Pending,
            left: end - start,
        })
    }

    /// Numbers the messages that ended in a system call by what the pipe had counted, and those before that waited for
    /// it. Returns from which byte on something is numbered.
    pub(super) fn number(
        &mut self,
        written: &mut Written,
        wire: &Wire,
        pipe: PipeId,
        counted: u64,
        frames: &Frames,
    ) -> u64 {
        let mut numbered_from = written.start;
        // Inside the frame in which the walk began it is not known whether its message counts.
        if wire.ret as u64 != wire.wanted || frames.inside == Inside::Unknown {
            return numbered_from;
        }
        let taken = counted - u64::from(frames.inside == Inside::LastPart && counted > 0);
        let offset = taken as i64 - frames.total_messages as i64;
        let differs = self.offset.is_some_and(|(of, known)| of == pipe && known != offset);
        let is_sure = !differs && taken >= written.count;
        let number = |before: u64| {
            let first = before as i64 + offset + 1;
            if is_sure && first >= 1 {
                Numbering::Of(pipe, first as u64)
            } else {
                Numbering::Unknown(Reason::Ambiguous)
            }
        };
        written.numbering = number(written.before);
        let pending = self.written.iter_mut().rev().filter(|it| it.exit_ns <= wire.ts_ns);
        for earlier in pending.take_while(|it| it.numbering == Numbering::Pending) {
            earlier.numbering = number(earlier.before);
            numbered_from = earlier.start;
        }
        self.offset = Some((pipe, offset));
        numbered_from
    }

    /// Notes what is known of the encrypted frames that ended in a system call.
    pub(super) fn hide(
        &mut self,
        written: &mut Written,
        wire: &Wire,
        pipe: PipeId,
        counts: PipeCount,
        frames: &Frames,
    ) {
        written.frames = written.ends.take();
        written.count = 0;
        if written.frames.is_none() {
            written.numbering = Numbering::Unknown(Reason::Lost);
        }
        // What is encoded but not sent is in the pipe's count, and frames that are half sent are of messages alone, once
        // the handshake is over.
        let under_way = match frames.inside {
            Inside::Nothing => 0,
            Inside::LastPart => 1,
            Inside::Part | Inside::Unknown => return,
        };
        if wire.ret as u64 == wire.wanted && counts.whole {
            let mark = Mark { frames: frames.total_messages + under_way, messages: counts.count, ts_ns: wire.ts_ns };
            self.parts.mark(pipe, mark);
        }
    }

    /// Tells which messages ended in system calls of which that is decided by now. Returns in which bytes.
    pub(super) fn unhide(&mut self) -> Option<std::ops::Range<u64>> {
        let mut bytes: Option<std::ops::Range<u64>> = None;
        for written in &mut self.written {
            let Some(frames) = &written.frames else { continue };
            let Some((numbering, ends)) = self.parts.messages(written.before, frames) else { break };
            written.count = ends.iter().flatten().map(|(_, count)| u64::from(*count)).sum();
            (written.numbering, written.ends, written.frames) = (numbering, ends, None);
            self.count += written.count;
            bytes = Some(bytes.map_or(written.start, |bytes| bytes.start)..written.end);
        }
        bytes
    }

    /// It was found between two messages, of which it had sent those up to this one.
    pub(super) fn rest(&mut self, last: Number, ts_ns: u64) {
        self.is_past_rest = true;
        self.parts.mark(last.pipe, Mark { frames: 0, messages: last.number, ts_ns });
    }

    /// Whether what tcp says does not go on from what it said.
    pub(super) fn has_moved(&self, wire: &Wire) -> bool {
        let end = wire.position + wire.ret as u64;
        let origin = wire.sequence.map(|sequence| sequence.wrapping_sub(end as u32));
        self.origin.is_some() && origin.is_some() && self.origin != origin
    }

    /// What was counted does not go on.
    pub(super) fn restart(&mut self, settled: &mut Vec<(PipeId, bool, u64)>) {
        for written in &mut self.written {
            written.left = 0;
        }
        self.drop_done(settled);
        *self = Self { last_exit_ns: self.last_exit_ns, ..Self::default() };
    }

    /// Keeps the order of positions, whatever the order of events.
    pub(super) fn add(&mut self, written: Written, settled: &mut Vec<(PipeId, bool, u64)>) {
        self.end.raise(written.end);
        let at = self.written.partition_point(|earlier| earlier.start < written.start);
        let overlaps = self.written.get(at).is_some_and(|next| next.start < written.end)
            || at > 0 && self.written[at - 1].end > written.start;
        if overlaps {
            // The same bytes twice: not to be believed.
            return;
        }
        self.count += written.count;
        self.written.insert(at, written);
        while self.written.len() > MAX_CALLS || self.count > MAX_ENDS && self.written.len() > 1 {
            if let Some(first) = self.written.front_mut() {
                first.left = 0;
            }
            self.drop_done(settled);
        }
    }

    pub(super) fn drop_done(&mut self, settled: &mut Vec<(PipeId, bool, u64)>) {
        while self.written.front().is_some_and(|first| first.left == 0) {
            let Some(first) = self.written.pop_front() else { break };
            self.count -= first.count;
            if let Numbering::Of(pipe, number) = first.numbering {
                settled.push((pipe, true, (number + first.count).saturating_sub(1)));
            }
        }
    }
}
