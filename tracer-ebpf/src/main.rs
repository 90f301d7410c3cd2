//! The BPF programs of zmqtrace.
//!
//! The kernel side filters, stamps, copies and counts; userspace thinks. `calls` sits on libzmq's
//! functions and `pipes` says which queues they used, `process` on the life of threads and programs, `syscalls` on system
//! calls: `fds` follows those by which file descriptors change hands, `wire` those that move messages. `totals` counts for
//! `stat`; `maps` holds all that is shared. `registers` stands apart: it lists where threads are, when it is asked to. Nothing here wakes the reader: it comes on its own timer.

#![no_std]
#![no_main]
// Rust's atomics stop at load and store for this target; the instructions are there.
#![feature(asm_experimental_arch)]

mod atomic;
mod calls;
mod fds;
mod maps;
mod memory;
mod pipes;
mod process;
mod registers;
mod syscalls;
mod threads;
mod totals;
mod wire;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_probe_read_user` and others are reserved to programs that call themselves GPL-compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
