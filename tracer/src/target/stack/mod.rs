//! Stacks of threads that sleep, taken from outside: the target is neither stopped nor slowed down.
//!
//! [`Unwinder::unwind`] reads where the thread sleeps, walks its stack by the call frame information of the modules
//! that it meets (`cfi`), and looks whether the thread has run meanwhile; if so the sample is thrown away.
//! [`Unwinder::symbolise`] names what was found, many stacks at once (`symbols`). `mappings` knows which file an
//! address belongs to.
//!
//! Registers come from `/proc/PID/task/TID/syscall`, which has the stack pointer and the pc, and, where the caller has
//! them, from [`Registers`], which have rbp, too: libc and libzmq keep frame pointers in some functions, and those
//! cannot be left without. A register that is not known stays unknown: the stack is then *truncated* where it is
//! needed, never guessed. So it is where there is no call frame information (musl, code made at run time), and at the
//! kernel's `[uprobes]`, where a return probe has taken the place of a return address.

mod cfi;
mod mappings;
mod symbols;

use std::io;

use self::{
    cfi::{RBP, RSP, Registers as Frame, Step},
    mappings::{Code, Mappings},
    symbols::Symbols,
};
use super::{
    Memory,
    threads::{self, Asleep},
};
use crate::event::Stack;

/// The most frames that are taken.
const MAX_FRAMES: usize = 256;
/// The most of a stack that is read, bytes.
const MAX_STACK_BYTES: usize = 1 << 20;
/// How much of it is read at a time, bytes: most stacks of blocked calls fit.
const PIECE_BYTES: usize = 16 << 10;
const PAGE_BYTES: usize = 4096;
/// Below the stack pointer, functions that call no other keep data here (System V ABI, red zone).
const RED_ZONE_BYTES: u64 = 128;
/// How often a thread that has run meanwhile is tried again.
const TRIES: u32 = 3;

/// What a sleeping thread's registers held when it entered the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Address behind the `syscall` instruction.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, rbp.
    pub bp: u64,
    /// When the thread last ran, CLOCK_MONOTONIC: it has slept ever since. `None` where the kernel does not say.
    pub last_ran_ns: Option<u64>,
    /// How often the thread had been given a CPU. `None` where the kernel does not say.
    pub times_run: Option<u64>,
}

/// The addresses on a stack, innermost first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    frames: Vec<CodeAddress>,
    /// Whether frames are missing behind the last one.
    pub truncated: bool,
}

/// Where a function is, or goes on when the inner one returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CodeAddress {
    address: u64,
    /// Whether that is the instruction itself. Else it is behind the call, which may be the last instruction of its
    /// function.
    exact: bool,
}

impl CodeAddress {
    /// An address inside of the instruction.
    const fn lookup(self) -> u64 {
        if self.exact { self.address } else { self.address.wrapping_sub(1) }
    }
}

impl Addresses {
    /// A function alone, to be named.
    pub fn of(address: u64) -> Self {
        Self { frames: vec![CodeAddress { address, exact: true }], truncated: false }
    }

    /// The innermost one is where the thread is, the others are return addresses.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.frames.iter().map(|frame| frame.address)
    }
}

/// Takes and names stacks of one process. Keep it as long as the process runs the same program: it remembers the
/// modules that it has met.
#[derive(Debug)]
pub struct Unwinder {
    pid: u32,
    memory: Memory,
    mappings: Mappings,
    cfi: cfi::Unwinder,
    symbols: Symbols,
}

impl Unwinder {
    /// For process `pid`. Modules are read when they appear on a stack.
    ///
    /// # Errors
    /// When `/proc/PID/maps` cannot be read: the process has ended, or CAP_SYS_PTRACE is missing.
    pub fn new(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            memory: Memory::new(pid),
            mappings: Mappings::read(pid)?,
            cfi: cfi::Unwinder::default(),
            symbols: Symbols::default(),
        })
    }

    /// The stack of a thread that sleeps in a system call. `registers` are used if the thread has not run since they
    /// were read. `None` when it does not sleep, has ended, or ran each time while its stack was read.
    pub fn unwind(&mut self, tid: u32, registers: Option<&Registers>) -> Option<Addresses> {
        for _ in 0..TRIES {
            let before = self.moment(tid)?;
            // Where the kernel does not say how often it ran, they may be another moment's.
            let of_this_sleep = |registers: &&Registers| {
                (registers.times_run, registers.sp, registers.ip) == (Some(before.times_run), before.sp, before.pc)
            };
            let bp = registers.filter(of_this_sleep).map(|registers| registers.bp);
            let addresses = self.walk(before.pc, before.sp, bp);
            if self.moment(tid)? == before {
                return Some(addresses);
            }
        }
        None
    }

    /// The same of a thread that was found asleep. `None`, too, when it has run since: then it sleeps elsewhere.
    pub fn unwind_sleeper(&mut self, thread: &Asleep, registers: Option<&Registers>) -> Option<Addresses> {
        let found = Moment { times_run: thread.times_run, sp: thread.sp, pc: thread.pc };
        if self.moment(thread.tid)? != found {
            return None;
        }
        let addresses = self.unwind(thread.tid, registers)?;
        (self.moment(thread.tid)? == found).then_some(addresses)
    }

    /// What stays the same as long as the thread sleeps.
    fn moment(&self, tid: u32) -> Option<Moment> {
        let times_run = threads::times_run(self.pid, tid).ok()?;
        let place = threads::place(self.pid, tid).ok()??;
        Some(Moment { times_run, sp: place.sp, pc: place.pc })
    }

    fn walk(&mut self, pc: u64, sp: u64, bp: Option<u64>) -> Addresses {
        let mut stack = StackReader::new(&self.memory, sp);
        let mut registers = Frame::default();
        registers.set(RSP, sp);
        if let Some(bp) = bp {
            registers.set(RBP, bp);
        }
        let mut addresses = Addresses { frames: Vec::new(), truncated: true };
        let mut at = CodeAddress { address: pc, exact: true };
        let mut looked_again = false;
        while addresses.frames.len() < MAX_FRAMES {
            if self.mappings.find(at.lookup()).is_none() && !looked_again {
                // A library that was loaded since? Once a stack is enough: it may lead to where nothing is.
                looked_again = true;
                let _ = self.mappings.read_again();
            }
            let code = match self.mappings.find(at.lookup()) {
                Some(Code::File(code)) => code,
                Some(Code::Other) => {
                    addresses.frames.push(at);
                    break;
                }
                // The caller's address is not there: it was replaced, or was never one.
                Some(Code::Uprobes) | None => break,
            };
            addresses.frames.push(at);
            let Some(cfi) = &code.file.cfi else { break };
            let sp_before = registers.get(RSP);
            let lookup = at.lookup().wrapping_sub(code.bias);
            let step = self.cfi.step(cfi, lookup, at.address, &mut registers, |address| stack.read_u64(address));
            match step {
                Step::Caller { address } if registers.get(RSP) > sp_before => {
                    at = CodeAddress { address, exact: false };
                }
                Step::Interrupted { address } => {
                    // The handler may have had a stack of its own.
                    let Some(sp) = registers.get(RSP) else { break };
                    stack = StackReader::new(&self.memory, sp);
                    // What the kernel made the handler return to is no call's end either.
                    if let Some(trampoline) = addresses.frames.last_mut() {
                        trampoline.exact = true;
                    }
                    at = CodeAddress { address, exact: true };
                }
                Step::Root => {
                    addresses.truncated = false;
                    break;
                }
                Step::Caller { .. } | Step::Unknown => break,
            }
        }
        addresses
    }

    /// Names the addresses of many stacks at once, which costs little more than one. With `lines`, also source files,
    /// lines and inlined functions of modules that have debug information of ordinary size; inlined functions have
    /// the address of the function that they are in.
    pub fn symbolise(&mut self, stacks: &[Addresses], lines: bool) -> Vec<Stack> {
        self.symbols.symbolise(&self.mappings, stacks, lines)
    }
}

/// What tells that a thread has not run in between.
#[derive(PartialEq, Eq)]
struct Moment {
    times_run: u64,
    sp: u64,
    pc: u64,
}

/// A stack, copied as far as it is needed.
struct StackReader<'memory> {
    memory: &'memory Memory,
    start: u64,
    bytes: Vec<u8>,
    /// Nothing more can be read.
    ended: bool,
}

impl<'memory> StackReader<'memory> {
    fn new(memory: &'memory Memory, sp: u64) -> Self {
        Self { memory, start: sp.saturating_sub(RED_ZONE_BYTES), bytes: Vec::new(), ended: false }
    }

    fn read_u64(&mut self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let end = offset.checked_add(8).filter(|end| *end <= MAX_STACK_BYTES)?;
        while end > self.bytes.len() && !self.ended {
            self.read_piece();
        }
        let word = self.bytes.get(offset..end)?;
        Some(u64::from_le_bytes(word.try_into().ok()?))
    }

    /// Reads on, up to the end of the mapping if that comes first.
    fn read_piece(&mut self) {
        let old = self.bytes.len();
        let Some(address) = self.start.checked_add(old as u64) else {
            self.ended = true;
            return;
        };
        let len = PIECE_BYTES - address as usize % PAGE_BYTES;
        self.bytes.resize(old + len, 0);
        let read = self.memory.read_some(address, &mut self.bytes[old..]);
        self.bytes.truncate(old + read);
        self.ended = read < len;
    }
}

#[cfg(test)]
mod tests;
