//! Which pipes of its socket a message went through: those whose count of messages a call has changed.
//!
//! A socket counts the messages that it writes to, and reads from, each of its pipes, whole ones. What the counts were
//! when the last message was complete is remembered here, so that nothing depends on what reaches userspace.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::bpf_probe_read_user,
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use tracer_common::{
    limits::{INLINE_DATA_BYTES, MAX_PIPED_SOCKETS, MAX_PIPES},
    record::{CallRecord, FLAG_DATA_APART, FLAG_DATA_LOST, Loss, RecordKind, SocketConfig},
    wire::{COUNT_UNSURE, Direction, PipeCount, PipeRecord, PipesKey, PipesSeen},
};

use crate::{
    fds::now,
    maps::{EVENTS, NO_WAKEUP, lose},
    memory::{read_user, send_apart},
};

/// What the pipes of sockets had counted.
#[map]
static PIPES: HashMap<PipesKey, PipesSeen> = HashMap::with_max_entries(MAX_PIPED_SOCKETS, BPF_F_NO_PREALLOC);

/// The pipes of one socket, and what has changed.
#[map]
static LOOK: PerCpuArray<Look> = PerCpuArray::with_max_entries(1, 0);

/// So often a pipe that is known is told of again, lest userspace missed it.
const REPEAT: u64 = 1 << 12;

#[repr(C)]
struct Look {
    key: PipesKey,
    /// Offsets in a pipe: messages written, messages read, the pointer to the other end.
    counts_at: [u32; 2],
    peer_at: u32,
    /// Pipes of the socket that are looked at.
    len: u32,
    /// How many are in `changed`. In a map, since the verifier would follow each value that a register can have.
    changed_len: u32,
    padding: u32,
    /// Their addresses now.
    pipes: [u64; MAX_PIPES],
    /// 1: it is new. Bytes of a map, since the verifier would follow each bit of a word by itself.
    is_new: [u8; MAX_PIPES],
    /// What was known of them before.
    before: PipesSeen,
    changed: [PipeCount; MAX_PIPES],
}

#[inline(always)]
fn look() -> Option<&'static mut Look> {
    // SAFETY: this CPU's own, and nothing else of ours runs on it meanwhile.
    LOOK.get_ptr_mut(0).map(|look| unsafe { &mut *look })
}

/// Puts into the call's data which pipes it has used. A call that failed has used none.
#[inline(always)]
pub fn note(call: &mut CallRecord, layout: &SocketConfig, handle: u64, direction: Direction) {
    let Some(look) = look() else { return };
    look.key = PipesKey { handle, tgid: call.tgid, padding: 0 };
    look.counts_at = [layout.pipe_written, layout.pipe_read];
    look.peer_at = layout.pipe_peer;
    let changed = pipes_note(u64::from(layout.pipes), direction as u64);
    put(call, look, changed as usize);
}

/// Finds out which pipes have changed their counts in a direction. How many. The vector of pipes is at `pipes` in the
/// socket.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipes_note(pipes: u64, direction: u64) -> u64 {
    let Some(look) = look() else { return 0 };
    let Some([begin, end]) = read_user::<[u64; 2]>(look.key.handle.wrapping_add(pipes)) else { return 0 };
    let bytes = end.wrapping_sub(begin);
    let len = if bytes > 8 * MAX_PIPES as u64 { MAX_PIPES as u64 } else { bytes / 8 };
    // SAFETY: at most the size of `pipes`; the helper checks the source.
    if unsafe { bpf_probe_read_user(look.pipes.as_mut_ptr().cast(), (len * 8) as u32, begin as *const _) } != 0 {
        return 0;
    }
    look.len = len as u32;
    pipes_changed(direction)
}

/// Compares with what was known before.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipes_changed(direction: u64) -> u64 {
    let direction = direction as usize & 1;
    let Some(look) = look() else { return 0 };
    let Some(seen) = seen(&look.key) else { return 0 };
    let mut is_same = true;
    for index in 0..MAX_PIPES {
        if (index as u32) < look.len && seen.pipes[index] != look.pipes[index] {
            is_same = false;
        }
    }
    look.is_new = [0; MAX_PIPES];
    if !is_same {
        pipes_moved();
    }
    look.changed_len = 0;
    for index in 0..MAX_PIPES {
        if index as u32 >= look.len {
            break;
        }
        let pipe = look.pipes[index];
        let Some(now) = read_user::<u64>(pipe.wrapping_add(u64::from(look.counts_at[direction]))) else { continue };
        let before = seen.counts[direction][index];
        seen.counts[direction][index] = now;
        // One that counts less than before is another one at the same address.
        let is_new = look.is_new[index] != 0 || now < before;
        if is_new || (now != before && now & (REPEAT - 1) == 0) {
            pipe_introduce(pipe);
        }
        if if is_new { now != 0 } else { now != before } {
            let unsure = if is_new { COUNT_UNSURE } else { 0 };
            // SAFETY: a field of a live map value; volatile, so that it is read back from there.
            let at = unsafe { core::ptr::read_volatile(&raw const look.changed_len) };
            look.changed[at as usize & (MAX_PIPES - 1)] = PipeCount { pipe, count: now | unsure };
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(&raw mut look.changed_len, at + 1) };
        }
    }
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const look.changed_len) }.into()
}

/// The socket's pipes are others now, or in another order: takes over what is known of those that it had.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipes_moved() -> u64 {
    let Some(look) = look() else { return 0 };
    let Some(seen) = seen(&look.key) else { return 0 };
    look.before = *seen;
    seen.pipes = [0; MAX_PIPES];
    // With a `continue` in it, Linux 6.1 takes this for a loop without an end ("back-edge").
    for index in 0..MAX_PIPES {
        if index as u32 >= look.len {
            break;
        }
        let pipe = look.pipes[index];
        let at = pipe_was_at(pipe) as usize;
        seen.pipes[index] = pipe;
        if at < MAX_PIPES {
            seen.counts[0][index] = look.before.counts[0][at & (MAX_PIPES - 1)];
            seen.counts[1][index] = look.before.counts[1][at & (MAX_PIPES - 1)];
        } else {
            look.is_new[index] = 1;
            for direction in 0..2 {
                let count = read_user::<u64>(pipe.wrapping_add(u64::from(look.counts_at[direction])));
                seen.counts[direction][index] = count.unwrap_or(0);
            }
        }
    }
    1
}

/// Which of the pipes that were known it is; [`MAX_PIPES`]: none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipe_was_at(pipe: u64) -> u64 {
    let Some(look) = look() else { return MAX_PIPES as u64 };
    for index in 0..MAX_PIPES {
        if look.before.pipes[index] == pipe {
            return index as u64;
        }
    }
    MAX_PIPES as u64
}

#[inline(always)]
fn put(call: &mut CallRecord, look: &Look, changed: usize) {
    const INLINE: usize = INLINE_DATA_BYTES / size_of::<PipeCount>();
    call.flags &= !(FLAG_DATA_APART | FLAG_DATA_LOST);
    if changed <= INLINE {
        // SAFETY: `data` has room for so many, whatever its alignment.
        unsafe {
            let data = call.data.as_mut_ptr().cast::<PipeCount>();
            for index in 0..INLINE {
                data.add(index).write_unaligned(look.changed[index]);
            }
        }
        call.data_len = (changed * size_of::<PipeCount>()) as u32;
    } else {
        send_apart(call, &look.changed, changed * size_of::<PipeCount>());
    }
}

#[inline(always)]
fn seen(key: &PipesKey) -> Option<&'static mut PipesSeen> {
    static NEW: PipesSeen = PipesSeen::NONE;
    let seen = PIPES.get_ptr_mut(key).or_else(|| {
        let _ = PIPES.insert(key, &NEW, BPF_NOEXIST.into());
        PIPES.get_ptr_mut(key)
    });
    // SAFETY: a live map value; one thread at a time uses a socket.
    seen.map(|seen| unsafe { &mut *seen })
}

/// A socket is closed.
#[inline(never)]
pub fn forget(tgid: u32, handle: u64) {
    let _ = PIPES.remove(&PipesKey { handle, tgid, padding: 0 });
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipe_introduce(pipe: u64) -> u64 {
    let Some(look) = look() else { return 0 };
    let record = PipeRecord {
        kind: RecordKind::Pipe as u8,
        padding: [0; 3],
        tgid: look.key.tgid,
        ts_ns: now(),
        handle: look.key.handle,
        pipe,
        peer: read_user::<u64>(pipe.wrapping_add(u64::from(look.peer_at))).unwrap_or(0),
    };
    if EVENTS.output::<PipeRecord>(&record, NO_WAKEUP).is_err() {
        lose(Loss::WireRingFull);
    }
    1
}
