//! Counts calls for `stat`, exact whatever happens to the ring.

use aya_ebpf::bindings::BPF_NOEXIST;
use tracer_common::{
    function::{Capture, Class, Cookie},
    record::{
        BUCKETS, CallRecord, CallTotals, FLAG_ERRNO_KNOWN, FLAG_MORE, FLAG_MORE_KNOWN, FLAG_SIZE_KNOWN, Loss,
        TotalsKey, bucket_of,
    },
};

use crate::{
    atomic::{add, opaque, raise},
    calls::handle,
    maps::{TOTALS, lose},
};

/// Adds a completed call to the totals of its socket, function and outcome.
#[inline(never)]
pub fn count(call: &CallRecord, cookie: Cookie, failed: bool) {
    let errno = match (failed, call.flags & FLAG_ERRNO_KNOWN != 0) {
        (false, _) => 0,
        (true, true) => call.errno,
        (true, false) => -1,
    };
    let key = TotalsKey {
        handle: handle(&call.args, cookie),
        tgid: call.tgid,
        // Of `zmq_socket` it is the new socket's, but the handle is the context.
        generation: if matches!(cookie.capture(), Capture::NewSocket) { 0 } else { call.generation },
        errno,
        function: call.function,
        library: call.library,
        padding: [0; 2],
    };
    let Some(totals) = TOTALS.get_ptr_mut(&key).or_else(|| insert(&key)) else {
        lose(Loss::TotalsFull);
        return;
    };
    let duration_ns = call.return_ns - call.entry_ns;
    // SAFETY: a live map value, of which every word is only ever accessed atomically.
    unsafe {
        add(&raw mut (*totals).total_ns, duration_ns);
        raise(&raw mut (*totals).max_ns, duration_ns);
        let moves_message = cookie.class_bit() & (Class::Send.bit() | Class::Recv.bit()) != 0;
        if moves_message && !failed {
            if call.flags & FLAG_SIZE_KNOWN != 0 {
                add(&raw mut (*totals).bytes, call.size);
            }
            match (call.flags & FLAG_MORE_KNOWN != 0, call.flags & FLAG_MORE != 0) {
                (true, false) => add(&raw mut (*totals).messages, 1),
                (true, true) => {}
                (false, _) => add(&raw mut (*totals).parts_unknown, 1),
            }
        }
        let bucket = opaque(bucket_of(duration_ns));
        if bucket < BUCKETS {
            add((&raw mut (*totals).buckets).cast::<u64>().add(bucket), 1);
        }
    }
}

#[inline(never)]
fn insert(key: &TotalsKey) -> Option<*mut CallTotals> {
    static NEW: CallTotals =
        CallTotals { total_ns: 0, max_ns: 0, bytes: 0, messages: 0, parts_unknown: 0, buckets: [0; BUCKETS] };
    // Another thread that shares the socket may have been faster: then its entry is the one.
    let _ = TOTALS.insert(key, &NEW, BPF_NOEXIST.into());
    TOTALS.get_ptr_mut(key)
}
