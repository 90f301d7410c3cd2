//! What every thread's registers held when it entered the kernel, and when it last ran: a BPF iterator over tasks,
//! which runs when userspace reads it. None of the maps is used.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{pt_regs, seq_file, task_struct},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_current_task, bpf_seq_write, bpf_task_pt_regs},
    },
};
use tracer_common::record::{TaskLayout, TaskRecord};

use crate::memory::read_kernel;

/// Where the kernel keeps what is read here, from BTF.
#[unsafe(no_mangle)]
static TASK_LAYOUT: TaskLayout = TaskLayout::UNKNOWN;

/// The policies of threads that run fairly, of `linux/sched.h`: SCHED_NORMAL, SCHED_BATCH, SCHED_IDLE. Others do not
/// keep `prev_sum_exec_runtime`, and are said to have slept since they last arrived.
const FAIR_POLICIES: [u32; 3] = [0, 3, 5];

/// `struct bpf_iter_meta`.
#[repr(C)]
pub struct IteratorMeta {
    seq: *mut seq_file,
}

/// `struct bpf_iter__task`.
#[repr(C)]
pub struct TaskIterator {
    meta: *const IteratorMeta,
    /// Null after the last one.
    task: *mut task_struct,
}

/// Once a task. Written out, since aya-ebpf has no macro for it. Linux 5.15 (`bpf_task_pt_regs`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn task_registers(ctx: *const TaskIterator) -> u32 {
    // SAFETY: the kernel passes a valid context.
    let (task, seq) = unsafe { ((*ctx).task, (*(*ctx).meta).seq) };
    if task.is_null() {
        return 0;
    }
    // SAFETY: a task, as the verifier sees to. Loads from what it returns are checked by the kernel.
    let regs = unsafe { bpf_task_pt_regs(task) } as *const pt_regs;
    // SAFETY: a static of this program. Volatile, because userspace replaces the value at load.
    let layout = unsafe { core::ptr::read_volatile(&raw const TASK_LAYOUT) };
    // SAFETY: a helper without precondition.
    let reader = unsafe { bpf_get_current_task() };
    let task_address = task as u64;
    let policy: u32 = read(task_address, layout.policy);
    let is_fair = layout.policy != TaskLayout::ABSENT && FAIR_POLICIES.contains(&policy);
    let ran = read::<u64>(task_address, layout.ran_ns).wrapping_sub(read::<u64>(task_address, layout.ran_before_ns));
    let record = TaskRecord {
        tid: read(task_address, layout.pid),
        tgid: read(task_address, layout.tgid),
        // SAFETY: as above.
        ip: unsafe { (*regs).rip },
        // SAFETY: as above.
        sp: unsafe { (*regs).rsp },
        // SAFETY: as above.
        bp: unsafe { (*regs).rbp },
        times_run: read(task_address, layout.times_run),
        arrival_ns: read(task_address, layout.arrival_ns),
        ran_ns: if is_fair { ran } else { 0 },
        reader_arrival_ns: read(reader, layout.arrival_ns),
        // SAFETY: a helper without precondition. Last, so that it is after the reader's arrival.
        now_ns: unsafe { bpf_ktime_get_ns() },
    };
    // SAFETY: a record of plain integers without padding. Where it does not fit, the kernel enlarges or drains its
    // buffer and comes here again for the same task.
    unsafe { bpf_seq_write(seq, (&raw const record).cast::<c_void>(), size_of::<TaskRecord>() as u32) };
    0
}

/// A field of a task; 0 where the kernel has no such field.
#[inline(always)]
fn read<T: Copy + Default>(task: u64, offset: u32) -> T {
    if offset == TaskLayout::ABSENT { T::default() } else { read_kernel(task.wrapping_add(u64::from(offset))) }
}
