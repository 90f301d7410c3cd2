//! The life of threads and programs: calls in flight end with their thread.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext};
use aya_log_ebpf::info;
use tracer_common::record::RecordKind;

use crate::{
    fds,
    maps::{TARGETS, debug},
    threads,
};

/// `sched_process_exit` runs in the thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(_: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    // All threads of the host come by here.
    if TARGETS.get_ptr(&((pid_tgid >> 32) as u32)).is_none() {
        return 0;
    }
    if threads::free(pid_tgid) {
        threads::send(RecordKind::ThreadExit, pid_tgid, 0);
    }
    0
}

/// `sched_process_exec` runs in the one thread that is left, under the process's own number. The other
/// threads, and the calls of this one, are gone without a return.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if TARGETS.get_ptr(&tgid).is_none() {
        return 0;
    }
    let old_tid: u32 = ctx.arg(1);
    fds::program_replaced(tgid);
    threads::free(pid_tgid);
    threads::free(u64::from(tgid) << 32 | u64::from(old_tid));
    if debug() != 0 {
        info!(&ctx, "process {} replaced its program", tgid);
    }
    threads::send(RecordKind::ProcessExec, pid_tgid, 0);
    0
}
