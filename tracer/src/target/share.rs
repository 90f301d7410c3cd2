//! Work on many things that several threads share: of a look as much as half is spent in short system calls, one for
//! each thing.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

/// Most threads that share some work, the one that has it included.
const MAX_THREADS: usize = 4;
/// 0: not known yet.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// From now on nothing is shared: the CPUs are needed elsewhere.
pub fn no_more() {
    THREADS.store(1, Relaxed);
}

fn threads() -> usize {
    let known = THREADS.load(Relaxed);
    if known > 0 {
        return known;
    }
    let threads = thread::available_parallelism().map_or(1, |cpus| cpus.get().min(MAX_THREADS));
    // Unless somebody says meanwhile that nothing is to be shared.
    THREADS.compare_exchange(0, threads, Relaxed, Relaxed).err().unwrap_or(threads)
}

/// Calls `each` with parts of `work`, of at least `least` each, and gives what it returns in the order of the parts.
pub fn map<T: Sync, R: Send>(work: &[T], least: usize, each: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let parts = threads().min(work.len() / least.max(1)).max(1);
    let (first, rest) = work.split_at(work.len() / parts);
    if rest.is_empty() {
        return vec![each(work)];
    }
    thread::scope(|scope| {
        let each = &each;
        let len = rest.len().div_ceil(parts - 1);
        let others: Vec<_> = rest.chunks(len).map(|part| (part, helper(scope, move || each(part)))).collect();
        let mut results = vec![each(first)];
        // One that was not to be had, or has failed, is done without.
        results.extend(
            others
                .into_iter()
                .map(|(part, other)| other.and_then(|other| other.join().ok()).unwrap_or_else(|| each(part))),
        );
        results
    })
}

/// Calls `each` with parts of `work`, of at least `least` each, and as much of `room`, which it fills in its order up
/// to something that it cannot. Gives how much was filled before the first such.
pub fn fill<T: Sync, R: Send>(
    work: &[T],
    room: &mut [R],
    least: usize,
    each: impl Fn(&[T], &mut [R]) -> usize + Sync,
) -> usize {
    let parts = threads().min(work.len() / least.max(1)).max(1);
    let len = work.len().div_ceil(parts);
    if parts == 1 || room.len() < work.len() {
        return each(work, room);
    }
    let (first, rest) = room.split_at_mut(len);
    let filled: Vec<Option<usize>> = thread::scope(|scope| {
        let each = &each;
        let parts = work[len..].chunks(len).zip(rest.chunks_mut(len));
        let others: Vec<_> = parts.map(|(part, room)| helper(scope, move || each(part, room))).collect();
        let first = each(&work[..len], first);
        let others = others.into_iter().map(|other| other.and_then(|other| other.join().ok()));
        std::iter::once(Some(first)).chain(others).collect()
    });
    let mut sum = 0;
    for (part, filled) in work.chunks(len).zip(filled) {
        let filled = filled.unwrap_or_else(|| each(part, &mut room[sum..sum + part.len()]));
        sum += filled;
        if filled < part.len() {
            break;
        }
    }
    sum
}

/// A thread that does some work meanwhile; `None`: there can be none, or nothing is shared.
pub fn helper<'scope, R: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() -> R + Send + 'scope,
) -> Option<thread::ScopedJoinHandle<'scope, R>> {
    if threads() > 1 { thread::Builder::new().spawn_scoped(scope, work).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_their_order_and_are_all() {
        for len in [0, 1, 2, 9, 10, 11, 100, 1001] {
            let work: Vec<usize> = (0..len).collect();
            let parts = map(&work, 10, <[usize]>::to_vec);
            assert!(parts.len() <= MAX_THREADS && parts.len() <= (len / 10).max(1), "{len}");
            assert_eq!(parts.concat(), work);
        }
    }

    #[test]
    fn room_is_filled_up_to_what_cannot_be() {
        const LEN: usize = 100;
        let work: Vec<usize> = (0..LEN).collect();
        for end in 0..=LEN {
            let mut room = [usize::MAX; LEN];
            let filled = fill(&work, &mut room, 10, |work, room| {
                let readable = work.iter().zip(room).take_while(|(work, _)| **work < end || **work > end + 30);
                readable.map(|(work, room)| *room = *work).count()
            });
            assert_eq!(filled, end);
            assert_eq!(room[..end], work[..end]);
        }
    }
}
