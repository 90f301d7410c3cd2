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
    pipes: [u64; MAX_PIPES],
    changed: [PipeCount; MAX_PIPES],
}

/// Puts into the call's data which pipes it has used. A call that failed has used none.
#[inline(never)]
pub fn note(call: &mut CallRecord, layout: &SocketConfig, handle: u64, direction: Direction) -> u32 {
    let Some(look) = LOOK.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own, and nothing else of ours runs on it meanwhile.
    let look = unsafe { &mut *look };
    let Some([begin, end]) = read_user::<[u64; 2]>(handle + u64::from(layout.pipes)) else { return 0 };
    let bytes = end.wrapping_sub(begin);
    let count = if bytes > 8 * MAX_PIPES as u64 { MAX_PIPES as u64 } else { bytes / 8 };
    if count == 0 {
        return 0;
    }
    // SAFETY: at most the size of `pipes`; the helper checks the source.
    if unsafe { bpf_probe_read_user(look.pipes.as_mut_ptr().cast(), (count * 8) as u32, begin as *const _) } != 0 {
        return 0;
    }
    let key = PipesKey { handle, tgid: call.tgid, direction: direction as u32 };
    let Some(seen) = seen(&key) else { return 0 };
    // SAFETY: a live map value; one thread at a time uses a socket.
    let seen = unsafe { &mut *seen };
    let offset = u64::from(if matches!(direction, Direction::Send) { layout.pipe_written } else { layout.pipe_read });
    let mut changed = 0usize;
    for index in 0..MAX_PIPES {
        if index as u64 >= count {
            break;
        }
        let pipe = look.pipes[index];
        let Some(now) = read_user::<u64>(pipe.wrapping_add(offset)) else { continue };
        let is_known = seen.pipes[index] == pipe;
        let before = seen.counts[index];
        seen.pipes[index] = pipe;
        seen.counts[index] = now;
        if !is_known || (now != before && now & (REPEAT - 1) == 0) {
            introduce(call.tgid, handle, pipe, u64::from(layout.pipe_peer));
        }
        let has_changed = if is_known { now != before } else { now != 0 };
        if has_changed {
            let unsure = if is_known { 0 } else { COUNT_UNSURE };
            look.changed[changed & (MAX_PIPES - 1)] = PipeCount { pipe, count: now | unsure };
            changed += 1;
        }
    }
    put(call, look, changed);
    changed as u32
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
fn seen(key: &PipesKey) -> Option<*mut PipesSeen> {
    static NEW: PipesSeen = PipesSeen { pipes: [0; MAX_PIPES], counts: [0; MAX_PIPES] };
    if let Some(seen) = PIPES.get_ptr_mut(key) {
        return Some(seen);
    }
    let _ = PIPES.insert(key, &NEW, BPF_NOEXIST.into());
    PIPES.get_ptr_mut(key)
}

/// A socket is closed.
#[inline(never)]
pub fn forget(tgid: u32, handle: u64) {
    for direction in [Direction::Send, Direction::Receive] {
        let _ = PIPES.remove(&PipesKey { handle, tgid, direction: direction as u32 });
    }
}

#[inline(never)]
fn introduce(tgid: u32, handle: u64, pipe: u64, peer_offset: u64) {
    let record = PipeRecord {
        kind: RecordKind::Pipe as u8,
        padding: [0; 3],
        tgid,
        ts_ns: now(),
        handle,
        pipe,
        peer: read_user::<u64>(pipe.wrapping_add(peer_offset)).unwrap_or(0),
    };
    if EVENTS.output::<PipeRecord>(&record, NO_WAKEUP).is_err() {
        lose(Loss::WireRingFull);
    }
}
