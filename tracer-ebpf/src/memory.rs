//! Copies from the target's memory into a call's record, or into a data record before it.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str},
};
use tracer_common::{
    limits::{INLINE_DATA_BYTES, MAX_DATA_BYTES, MAX_TEXT_BYTES},
    record::{
        CallRecord, DataRecord, FLAG_DATA_APART, FLAG_DATA_FAULT, FLAG_DATA_LOST, FLAG_TEXT_CUT, Loss, RecordKind,
    },
};

use crate::maps::{EVENTS, lose};

/// Reads one plain value of the target.
#[inline(always)]
pub fn read_user<T: Copy>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: writes at most the size of `value`; the helper checks the source.
    let status = unsafe { bpf_probe_read_user(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _) };
    // SAFETY: the helper filled it, and callers ask for plain integers only.
    (status == 0).then(|| unsafe { value.assume_init() })
}

/// Reads one plain value of the kernel; zero where that is not readable.
#[inline(always)]
pub fn read_kernel<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: writes the size of `value`; the helper checks the source.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    value
}

/// Copies the first `limit` of `len` bytes at `address`.
#[inline(never)]
pub fn copy_bytes(call: &mut CallRecord, address: u64, len: u64, limit: u64) {
    let wanted = if len < limit { len } else { limit };
    if wanted <= INLINE_DATA_BYTES as u64 {
        copy_inline(call, address, wanted);
    } else if wanted <= 256 {
        copy_apart::<256>(call, address, wanted);
    } else if wanted <= 1024 {
        copy_apart::<1024>(call, address, wanted);
    } else {
        copy_apart::<MAX_DATA_BYTES>(call, address, wanted);
    }
}

#[inline(always)]
fn copy_inline(call: &mut CallRecord, address: u64, len: u64) {
    let len = if len > INLINE_DATA_BYTES as u64 { INLINE_DATA_BYTES as u64 } else { len };
    call.data_len = len as u32;
    if len == 0 {
        return;
    }
    // SAFETY: `len` is at most the size of `data`; the helper checks the source.
    if unsafe { bpf_probe_read_user(call.data.as_mut_ptr().cast(), len as u32, address as *const _) } != 0 {
        call.data_len = 0;
        call.flags |= FLAG_DATA_FAULT;
    }
}

#[inline(always)]
fn copy_apart<const N: usize>(call: &mut CallRecord, address: u64, len: u64) {
    call.data_len = 0;
    let Some(mut entry) = EVENTS.reserve::<DataRecord<N>>(0) else {
        call.flags |= FLAG_DATA_LOST;
        lose(Loss::DataRingFull);
        return;
    };
    let record = entry.as_mut_ptr();
    let len = if len > N as u64 { N as u64 } else { len };
    // SAFETY: the reserved record is ours until submitted, and `len` is at most its data's size.
    let status = unsafe {
        fill_header(record, call, len as u32);
        bpf_probe_read_user((&raw mut (*record).data).cast(), len as u32, address as *const _)
    };
    if status == 0 {
        call.flags |= FLAG_DATA_APART;
        entry.submit(BPF_RB_NO_WAKEUP as u64);
    } else {
        call.flags |= FLAG_DATA_FAULT;
        entry.discard(BPF_RB_NO_WAKEUP as u64);
    }
}

/// Copies the C string at `address`, without its NUL.
#[inline(never)]
pub fn copy_text(call: &mut CallRecord, address: u64) {
    call.data_len = 0;
    if address == 0 {
        return;
    }
    // SAFETY: writes at most the size of `data`; the helper checks the source.
    let len = unsafe {
        bpf_probe_read_user_str(call.data.as_mut_ptr().cast(), INLINE_DATA_BYTES as u32, address as *const _)
    };
    if len <= 0 {
        call.flags |= FLAG_DATA_FAULT;
    } else if len < INLINE_DATA_BYTES as i64 {
        call.data_len = len as u32 - 1;
    } else {
        copy_long_text(call, address);
    }
}

#[inline(always)]
fn copy_long_text(call: &mut CallRecord, address: u64) {
    let Some(mut entry) = EVENTS.reserve::<DataRecord<MAX_TEXT_BYTES>>(0) else {
        call.flags |= FLAG_DATA_LOST;
        lose(Loss::DataRingFull);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved record is ours until submitted.
    let len = unsafe {
        bpf_probe_read_user_str((&raw mut (*record).data).cast(), MAX_TEXT_BYTES as u32, address as *const _)
    };
    if len <= 0 {
        call.flags |= FLAG_DATA_FAULT;
        entry.discard(BPF_RB_NO_WAKEUP as u64);
        return;
    }
    call.flags |= if len == MAX_TEXT_BYTES as i64 { FLAG_DATA_APART | FLAG_TEXT_CUT } else { FLAG_DATA_APART };
    // SAFETY: as above.
    unsafe { fill_header(record, call, len as u32 - 1) };
    entry.submit(BPF_RB_NO_WAKEUP as u64);
}

/// # Safety
/// `record` is reserved and not yet submitted.
#[inline(always)]
unsafe fn fill_header<const N: usize>(record: *mut DataRecord<N>, call: &CallRecord, data_len: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        (*record).kind = RecordKind::Data as u8;
        (*record).padding = [0; 3];
        (*record).data_len = data_len;
        (*record).tid = call.tid;
        (*record).sequence = call.sequence;
    }
}

/// Sends `data_len` bytes of ours, of which there are at most `N`, ahead of the call, as its data.
#[inline(always)]
pub fn copy_own<const N: usize>(call: &mut CallRecord, data: *const u8) {
    let len = call.data_len as u64;
    let len = if len > N as u64 { N as u64 } else { len };
    call.data_len = 0;
    let Some(mut entry) = EVENTS.reserve::<DataRecord<N>>(0) else {
        call.flags |= FLAG_DATA_LOST;
        lose(Loss::DataRingFull);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved record is ours until submitted, and `len` is at most its data's size.
    unsafe {
        fill_header(record, call, len as u32);
        bpf_probe_read_kernel((&raw mut (*record).data).cast(), len as u32, data.cast());
    }
    call.flags |= FLAG_DATA_APART;
    entry.submit(BPF_RB_NO_WAKEUP as u64);
}

// Types of a `zmq_msg_t`, constant from 4.1 to 4.3.5.
const TYPE_VSM: u8 = 101;
const TYPE_LMSG: u8 = 102;
const TYPE_CMSG: u8 = 104;
const TYPE_ZCLMSG: u8 = 105;

/// Where a `zmq_msg_t` has its bytes, and how many.
pub struct Message {
    /// Address of the bytes.
    pub address: u64,
    /// How many.
    pub size: u64,
    /// Its flags.
    pub flags: u8,
}

/// Reads a `zmq_msg_t`, which has its type and content at these offsets; `None`: there is none, or its layout is not
/// known.
#[inline(always)]
pub fn read_message(message: u64, kind_at: u64, content_at: u64) -> Option<Message> {
    if kind_at < 2 {
        return None;
    }
    let [_, short_size, kind, flags] = read_user::<[u8; 4]>(message + kind_at - 2)?;
    let content = message + content_at;
    let [address, size] = match kind {
        TYPE_VSM => [content, u64::from(short_size)],
        TYPE_LMSG | TYPE_ZCLMSG => read_user::<[u64; 2]>(read_user::<u64>(content)?)?,
        TYPE_CMSG => read_user::<[u64; 2]>(content)?,
        _ => return None,
    };
    Some(Message { address, size, flags })
}

/// The size of a `zmq_msg_t`.
#[inline(always)]
pub fn message_size(message: u64, kind_at: u64, content_at: u64) -> Option<u64> {
    read_message(message, kind_at, content_at).map(|message| message.size)
}
