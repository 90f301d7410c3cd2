//! The BPF atomic instructions that Rust's `AtomicU64` does not offer on this target.

use core::arch::asm;

/// Times that a longer maximum is retried against other threads.
const MAX_RETRIES: u32 = 8;

/// `*word += value`.
///
/// # Safety
/// `word` is an aligned word of a live map value.
#[inline(always)]
pub unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value) }
}

/// `*word = max(*word, value)`. Needs Linux 5.12 (`BPF_CMPXCHG`).
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn raise(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    let mut seen = unsafe { core::ptr::read_volatile(word) };
    for _ in 0..MAX_RETRIES {
        if value <= seen {
            return;
        }
        // SAFETY: the caller's promise.
        let now = unsafe { compare_exchange(word, seen, value) };
        if now == seen {
            return;
        }
        seen = now;
    }
}

/// Sets a word that is 0 to `value`; false when it was not 0. Needs Linux 5.12 (`BPF_CMPXCHG`).
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn claim(word: *mut u64, value: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { exchange(word, 0, value) }
}

/// Sets a word that is `expected` to `value`; false when it was not. Needs Linux 5.12 (`BPF_CMPXCHG`).
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn exchange(word: *mut u64, expected: u64, value: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { compare_exchange(word, expected, value) == expected }
}

/// Sets a word that is `expected` to `value`, and returns what it was.
///
/// # Safety
/// As [`add`].
#[inline(always)]
unsafe fn compare_exchange(word: *mut u64, expected: u64, value: u64) -> u64 {
    let before: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {value})",
            word = in(reg) word,
            value = in(reg) value,
            inout("r0") expected => before,
        );
    }
    before
}

/// The same value, of which the compiler knows nothing: else it drops the comparison that only the
/// verifier needs.
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: changes nothing. An instruction, since the kernel refuses two lines of debug information at the
    // same one.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
