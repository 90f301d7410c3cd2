//! Lays what was received beside what was sent, byte by byte.

use super::{
    super::{
        Reason,
        matching::{Crossing, End, Number},
    },
    Ending,
    receiver::Receiver,
    sender::{Numbering, Sender, Written},
};

/// Lays a receive beside the sends whose bytes it returned. Where not all of those were seen, it waits for them unless
/// forced to do without.
pub fn cross(
    sender: &mut Sender,
    receiver: &mut Receiver,
    index: usize,
    (from, to): (&Ending, &Ending),
    forced: bool,
    crossings: &mut Vec<Crossing>,
) {
    let Some(difference) = receiver.difference else { return };
    let counted = receiver.next_count(index);
    let segment = &mut receiver.segments[index];
    if segment.done || (segment.is_unnamed() && !forced) {
        return;
    }
    let (start, end) = (segment.start as i64 + difference, segment.end as i64 + difference);
    // Bytes from before the sender was seen.
    let begins_before = start < 0;
    let (start, end) = (start.max(0) as u64, end.max(0) as u64);
    let first = sender.written.partition_point(|written| written.end <= start);
    let last = sender.written.partition_point(|written| written.start < end);
    // Messages that ended in it, by stretches without a hole: each is a send, and which of its messages.
    let (mut at, mut holes) = (start, u32::from(begins_before));
    let mut ended: Vec<(usize, u64, u32)> = Vec::new();
    for place in first..last {
        let written = &sender.written[place];
        if written.numbering == Numbering::Pending && !forced {
            return;
        }
        if written.start > at {
            holes += 1;
        }
        at = written.end;
        holes += u32::from(written.known_from().is_none_or(|from| start.max(written.start) < from));
        let (mut position, mut nth) = (written.start, 0);
        for (bytes, count) in written.ends.iter().flatten() {
            for _ in 0..*count {
                position += u64::from(*bytes);
                if position > start && position <= end {
                    ended.push((place, nth, holes));
                }
                nth += 1;
            }
        }
    }
    if at < end {
        holes += 1;
    }
    if end == 0 {
        segment.done = true;
        return;
    }
    if holes > 0 && !forced {
        return;
    }
    let is_encrypted = from.is_encrypted || to.is_encrypted;
    // Where the sender's calls are not seen parts look like messages; what the receiver's pipe counted tells.
    let is_hidden = |(place, ..): &(usize, u64, u32)| sender.written[*place].numbering == Numbering::NoCalls;
    if is_encrypted && ended.iter().any(is_hidden) && (holes > 0 || counted != Some(ended.len() as u64)) {
        segment.done = forced || counted.is_some();
        return;
    }
    // Why it is not known what ended in the holes.
    let doubt = sender.written.range(first..last).find(|written| written.ends.is_none());
    let reason = doubt.and_then(Written::doubt).unwrap_or(Reason::Lost);
    let connection = from.connection();
    let total = ended.len() as u64;
    for (nth, (place, message, before_holes)) in (1..).zip(&ended) {
        let number = match (segment.pipe, holes) {
            (None, _) => None,
            // Forward from what was counted before, as far as all bytes were seen; backward from what was after.
            (Some((pipe, before)), _) if *before_holes == 0 => Some(Number { pipe, number: before + nth }),
            (Some((pipe, before)), _) if *before_holes == holes => counted
                .and_then(|counted| (before + counted + nth).checked_sub(total))
                .map(|number| Number { pipe, number }),
            _ => None,
        };
        let written = &sender.written[*place];
        crossings.push(Crossing {
            from: from.party.clone(),
            to: to.party.clone(),
            connection: connection.clone(),
            tx: written.end_of(*message),
            rx: match (number, segment.has_calls, segment.pipe) {
                (Some(number), ..) => End::Numbered(number),
                (None, false, _) => End::NoCalls,
                (None, true, None) => End::Unknown(Reason::PipeUnknown),
                (None, true, Some(_)) => End::Unknown(reason),
            },
            not_before_ns: from.not_before_ns(),
            tx_ns: written.entry_ns,
            rx_ns: Some(segment.rx_ns),
            index: written.before + message + 1,
        });
    }
    if is_encrypted && let (Some((pipe, before)), Some(counted)) = (segment.pipe, counted) {
        // What ended where it is not known what did.
        let known = |holes: u32| ended.iter().filter(|(.., before_holes)| *before_holes == holes).count() as u64;
        let after = if holes > 0 { known(holes) } else { 0 };
        for number in before + known(0) + 1..=(before + counted).saturating_sub(after) {
            crossings.push(Crossing {
                from: from.party.clone(),
                to: to.party.clone(),
                connection: connection.clone(),
                tx: End::Unknown(reason),
                rx: End::Numbered(Number { pipe, number }),
                not_before_ns: 0,
                tx_ns: None,
                rx_ns: Some(segment.rx_ns),
                index: number,
            });
        }
    }
    for place in first..last {
        let written = &mut sender.written[place];
        let shared = written.end.min(end).saturating_sub(written.start.max(start));
        written.left = written.left.saturating_sub(shared);
    }
    segment.done = true;
}
