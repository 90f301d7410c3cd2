//! Who looks again and again must not take the CPU time that the targets need: they come first.

use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use crate::target::share;

/// The last in the order of nice(1).
const LAST: i32 = 19;
/// What this process was started with.
static USUAL: AtomicI32 = AtomicI32::new(LAST);

/// From now on this thread runs when nobody else wants to.
pub fn yield_to_targets() {
    // SAFETY: takes integers. That we may not become nicer is no reason to stop.
    unsafe {
        USUAL.store(libc::getpriority(libc::PRIO_PROCESS, 0), Relaxed);
        libc::setpriority(libc::PRIO_PROCESS, 0, LAST);
    }
    share::no_more();
}

/// Does what keeps a target waiting as if nothing had been yielded: who holds a lock that a target needs must not be
/// kept from giving it back. Without CAP_SYS_NICE it stays as it is.
pub fn without_yielding<T>(work: impl FnOnce() -> T) -> T {
    let usual = USUAL.load(Relaxed);
    if usual == LAST {
        return work();
    }
    // SAFETY: takes integers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, usual) };
    let result = work();
    // SAFETY: as above.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LAST) };
    result
}
