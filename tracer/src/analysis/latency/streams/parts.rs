//! Which frames of an encrypted stream end messages.
//!
//! Each part of a message is one frame, but whether another one follows is encrypted, and so is whether it is a part or
//! a command, such as a PING. What is known is how many frames there were and how many messages they were made of at
//! moments when the connection had taken whole messages out of its pipe alone ([`Mark`]), and how many parts the
//! program gave to each message. If the frames between two marks are just as many as the parts, and of a message that is
//! not known one, there was nothing else: what libzmq adds, commands or the envelopes of REQ and REP, can only make them
//! more. Where they are more nothing is said of the stretch, since it could be any of them.

use std::{collections::VecDeque, ops::RangeInclusive};

use super::{
    super::{Reason, pipes::PipeId},
    sender::{Ends, Numbering},
};

/// A moment at which the frames that had been encoded were those of whole messages.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// How many, the one under way included.
    pub frames: u64,
    /// Messages that the connection had taken out of its pipe.
    pub messages: u64,
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
}

/// A stretch of frames of which it is not known which ones end messages: all after `after` up to `last`.
#[derive(Debug, Clone, Copy)]
struct Unknown {
    after: u64,
    last: u64,
    reason: Reason,
}

/// Parts of the messages that went over one connection.
#[derive(Debug, Default)]
pub struct Parts {
    pipe: Option<PipeId>,
    /// The last mark up to which all is decided.
    base: Option<Mark>,
    /// Those after it.
    marks: VecDeque<Mark>,
    /// The message whose parts have to be known before more can be decided.
    awaited: Option<u64>,
    /// Frames up to this one are decided.
    decided: u64,
    /// Frames that end messages, and which.
    ends: VecDeque<(u64, u64)>,
    unknown: VecDeque<Unknown>,
    /// Messages of which it is not known in which system call they ended, not yet told of.
    lost: Vec<(RangeInclusive<u64>, Reason)>,
}

impl Parts {
    /// All that was encoded is sent, and the messages are whole. The first such moment is where it begins.
    pub fn mark(&mut self, pipe: PipeId, mark: Mark) {
        let last = self.marks.back().or(self.base.as_ref());
        let goes_on = last.is_none_or(|last| last.frames <= mark.frames && last.messages <= mark.messages);
        if self.pipe == Some(pipe) && goes_on {
            self.marks.push_back(mark);
        } else if self.pipe.is_none() && mark.frames == 0 {
            *self = Self { pipe: Some(pipe), base: Some(mark), ..Self::default() };
        } else {
            // What went before is not known, or was another queue's.
            let reason = if self.pipe.is_none() { Reason::NotSynchronised } else { Reason::Ambiguous };
            let unknown = VecDeque::from([Unknown { after: 0, last: mark.frames, reason }]);
            *self = Self { pipe: Some(pipe), base: Some(mark), decided: mark.frames, unknown, ..Self::default() };
        }
    }

    /// The queue that the messages come from.
    pub const fn pipe(&self) -> Option<PipeId> {
        self.pipe
    }

    /// Whether it was this message that had to be known.
    pub fn awaits(&self, number: u64) -> bool {
        self.awaited == Some(number)
    }

    /// Decides what can be. `parts_of`: how many parts at least a message has. For messages that went before `late_ns`
    /// it is not waited any longer.
    pub fn decide(&mut self, parts_of: impl Fn(u64) -> Option<u32>, late_ns: u64) {
        self.awaited = None;
        while let Some(mark) = self.marks.front().copied() {
            let Some(base) = self.base else { return };
            let (mut parts, mut last_missing) = (0, None);
            for number in base.messages + 1..=mark.messages {
                let known = parts_of(number);
                if known.is_none() {
                    last_missing = Some(number);
                }
                parts += known.map_or(1, u64::from);
            }
            if base.frames + parts == mark.frames {
                let mut frame = base.frames;
                for number in base.messages + 1..=mark.messages {
                    frame += parts_of(number).map_or(1, u64::from);
                    self.ends.push_back((frame, number));
                }
                self.pass(mark);
            } else if last_missing.is_some() && mark.ts_ns >= late_ns {
                self.awaited = last_missing;
                return;
            } else {
                let reason = if last_missing.is_some() { Reason::Lost } else { Reason::Ambiguous };
                self.unknown.push_back(Unknown { after: self.decided, last: mark.frames, reason });
                self.lost.push((base.messages + 1..=mark.messages, reason));
                self.pass(mark);
            }
        }
    }

    fn pass(&mut self, mark: Mark) {
        self.decided = mark.frames;
        self.base = Some(mark);
        self.marks.pop_front();
    }

    /// Messages of which it is not known where they went, since this was last asked.
    pub fn take_lost(&mut self) -> Vec<(RangeInclusive<u64>, Reason)> {
        std::mem::take(&mut self.lost)
    }

    /// Turns frames that ended in a system call, `before` of them before it, into messages; `None`: it is not decided.
    pub fn messages(&mut self, before: u64, frames: &[(u32, u32)]) -> Option<(Numbering, Option<Ends>)> {
        let last = before + frames.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
        let pipe = self.pipe?;
        if last > self.decided {
            return None;
        }
        while self.unknown.front().is_some_and(|unknown| unknown.last <= before) {
            self.unknown.pop_front();
        }
        while self.ends.front().is_some_and(|(frame, _)| *frame <= before) {
            self.ends.pop_front();
        }
        if let Some(Unknown { reason, .. }) = self.unknown.front().filter(|unknown| unknown.after < last).copied() {
            while let Some((_, number)) = self.ends.pop_front_if(|(frame, _)| *frame <= last) {
                self.lost.push((number..=number, reason));
            }
            return Some((Numbering::Unknown(reason), None));
        }
        let first = self.ends.front().map(|(_, number)| *number);
        let mut ends = Vec::new();
        let (mut frame, mut length) = (before, 0);
        for (bytes, count) in frames {
            for _ in 0..*count {
                frame += 1;
                length += bytes;
                if self.ends.pop_front_if(|(end, _)| *end == frame).is_none() {
                    continue;
                }
                match ends.last_mut() {
                    Some((same, count)) if *same == length => *count += 1,
                    _ => ends.push((length, 1)),
                }
                length = 0;
            }
        }
        let numbering = first.map_or(Numbering::Unknown(Reason::Ambiguous), |first| Numbering::Of(pipe, first));
        Some((numbering, Some(ends.into_boxed_slice())))
    }
}
