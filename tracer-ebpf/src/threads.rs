//! The slots of threads: found by tid, claimed at a thread's first call, freed at its end.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_ktime_get_ns};
use tracer_common::{
    limits::{MAX_SLOT_STEPS, MAX_THREADS},
    record::{Loss, RecordKind, ThreadRecord, ThreadSlot},
};

use crate::{
    atomic::claim,
    maps::{EVENTS, NO_WAKEUP, TARGETS, THREADS, lose},
};

/// The slot of the current thread.
#[inline(always)]
pub fn find(pid_tgid: u64) -> Option<*mut ThreadSlot> {
    let slot = THREADS.get_ptr_mut(pid_tgid as u32 & (MAX_THREADS - 1))?;
    // SAFETY: a live map value.
    if unsafe { (*slot).owner } == pid_tgid { Some(slot) } else { find_behind(pid_tgid) }
}

/// The same where another thread has the slot that the tid names. Also the way of all who have no slot:
/// those find the named one free, or are few.
#[inline(never)]
fn find_behind(pid_tgid: u64) -> Option<*mut ThreadSlot> {
    for step in 0..MAX_SLOT_STEPS {
        let slot = THREADS.get_ptr_mut(index(pid_tgid, step))?;
        // SAFETY: a live map value.
        if unsafe { (*slot).owner } == pid_tgid {
            return Some(slot);
        }
    }
    None
}

/// Claims a slot for the current thread, if its process is a target.
#[inline(never)]
pub fn first_call(pid_tgid: u64) -> Option<*mut ThreadSlot> {
    let tgid = (pid_tgid >> 32) as u32;
    TARGETS.get_ptr(&tgid)?;
    for step in 0..MAX_SLOT_STEPS {
        let index = index(pid_tgid, step);
        let slot = THREADS.get_ptr_mut(index)?;
        // SAFETY: a live map value; once claimed it is ours.
        unsafe {
            if claim(&raw mut (*slot).owner, pid_tgid) {
                (*slot).handle = 0;
                (*slot).closes = 0;
                (*slot).generation = 0;
                (*slot).sequence = 0;
                send(RecordKind::ThreadStart, pid_tgid, index);
                return Some(slot);
            }
        }
    }
    lose(Loss::ThreadTableFull);
    None
}

/// Frees the slot of a thread that ends, with its calls in flight. False when it has none.
#[inline(always)]
pub fn free(pid_tgid: u64) -> bool {
    let Some(slot) = find(pid_tgid) else { return false };
    // SAFETY: the slot is that thread's, and it runs no more.
    unsafe {
        (*slot).frames[0].sp = 0;
        (*slot).frames[1].sp = 0;
        core::ptr::write_volatile(&raw mut (*slot).owner, 0);
    }
    true
}

#[inline(always)]
fn index(pid_tgid: u64, step: u32) -> u32 {
    (pid_tgid as u32).wrapping_add(step) & (MAX_THREADS - 1)
}

/// Reports the life of the current thread.
#[inline(always)]
pub fn send(kind: RecordKind, pid_tgid: u64, slot: u32) {
    let record = ThreadRecord {
        kind: kind as u8,
        padding: [0; 3],
        slot,
        // SAFETY: a helper without precondition.
        ts_ns: unsafe { bpf_ktime_get_ns() },
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    if EVENTS.output::<ThreadRecord>(&record, NO_WAKEUP).is_err() {
        lose(Loss::LifeRingFull);
    }
}
