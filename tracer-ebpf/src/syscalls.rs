//! System calls: what comes by here and whom it concerns.
//!
//! Every system call of the machine does: what is cheap and turns most away goes first. Where a command needs one half
//! only, the verifier drops the other.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::pt_regs, helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext,
};
use tracer_common::wire::WireScope;

use crate::{
    fds,
    maps::{TARGETS, follow_fds, follow_wire},
    memory::read_kernel,
    wire::{self, Returned},
};

/// The registers that hold arguments of system calls, as they lie in `pt_regs` from `r10` on.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Arguments {
    pub r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
}

/// Stamps what moves bytes.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn syscall_enter(ctx: RawTracePointContext) -> i32 {
    let number: u64 = ctx.arg(1);
    if !wire::moves(number) {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let scope = scope((pid_tgid >> 32) as u32);
    if scope == WireScope::Nothing as u32 {
        return 0;
    }
    if scope == WireScope::Connections as u32 {
        let regs: u64 = ctx.arg(0);
        let fd: u64 = read_kernel(regs + offset_of!(pt_regs, rdi) as u64);
        if fds::connection_owner((pid_tgid >> 32) as u32, fd as i32) == 0 {
            return 0;
        }
    }
    wire::entered(pid_tgid, number);
    0
}

/// What was done.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    let regs: u64 = ctx.arg(0);
    let ret: i64 = ctx.arg(1);
    // What failed changed nothing. (close of what libzmq has does not fail.)
    if follow_wire() == 0 && ret < 0 {
        return 0;
    }
    let number: u64 = read_kernel(regs + offset_of!(pt_regs, orig_rax) as u64);
    let changes_fds = ret >= 0 && fds::is_change(number);
    let is_wire = follow_wire() != 0 && wire::is_wire(number);
    if !changes_fds && !is_wire {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let scope = if follow_wire() != 0 { scope(tgid) } else { 0 };
    if is_wire && scope == 0 {
        return 0;
    }
    if changes_fds && scope == 0 && !fds::is_target(tgid) {
        return 0;
    }
    let args: Arguments = read_kernel(regs + offset_of!(pt_regs, r10) as u64);
    if changes_fds {
        if follow_fds() != 0 {
            fds::changed(pid_tgid, number, &args, ret);
        }
        if scope != 0 {
            match number {
                fds::CLOSE => wire::closed(pid_tgid, args.rdi as i32),
                fds::ACCEPT | fds::ACCEPT4 => wire::accepted(pid_tgid, ret as i32),
                _ => {}
            }
        }
        return 0;
    }
    let fd = args.rdi as i32;
    let handle = if scope == WireScope::Connections as u32 {
        let handle = fds::connection_owner(tgid, fd);
        // Whose a connect is is known only later.
        if handle == 0 && !wire::is_about_connecting(number) {
            return 0;
        }
        handle
    } else {
        0
    };
    wire::exited(&Returned { number, args: [args.rdi, args.rsi, args.rdx, args.r10], ret, pid_tgid, handle });
    0
}

/// Which of a process's system calls are looked at.
#[inline(always)]
fn scope(tgid: u32) -> u32 {
    let Some(target) = TARGETS.get_ptr(&tgid) else { return 0 };
    // SAFETY: a live map value.
    unsafe { (*target).wire }
}
