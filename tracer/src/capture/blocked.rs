//! Threads that wait for a socket, before anybody came: which, in which call, since when, and from where.
//!
//! A blocked call of libzmq sleeps in poll(2) on the mailboxes of its sockets (`zmq_ctx_term`: on the context's), so the
//! fds that a thread polls tell the sockets, and its stack tells the call. Thread-safe sockets have no mailbox fd: their
//! calls wait in futex(2), and only the stack tells them. An event loop of the program's own (asyncio, libuv) sleeps in
//! epoll_wait(2) on such fds.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

use super::registers::Reader;
use crate::{
    event::{Blocked, Context, Frame, FunctionId, Stack},
    inspect::{self, FileMapping},
    target::{
        Memory, Process, printable, python,
        stack::{Addresses, Registers, Unwinder},
        threads::{self, Asleep},
    },
};

/// Most fds that one poll is taken in with.
const MAX_POLLFDS: u64 = 4096;
/// `sizeof (struct pollfd)`, and where its fd is.
const POLLFD_BYTES: usize = 8;

/// Numbers of system calls in `/proc/PID/task/TID/syscall`, x86_64.
mod number {
    pub const POLL: u64 = libc::SYS_poll as u64;
    pub const PPOLL: u64 = libc::SYS_ppoll as u64;
    pub const FUTEX: u64 = libc::SYS_futex as u64;
    pub const EPOLL_WAIT: u64 = libc::SYS_epoll_wait as u64;
    pub const EPOLL_PWAIT: u64 = libc::SYS_epoll_pwait as u64;
    /// After a stop the kernel restarts a sleep by this one, whose arguments are the old ones.
    pub const RESTART: u64 = libc::SYS_restart_syscall as u64;
}

/// Finds the threads of processes that wait for sockets.
#[derive(Debug, Default)]
pub struct Sleepers {
    /// Loaded when it is first needed; `None` where it could not be.
    registers: Option<Option<Reader>>,
}

/// A thread, and what it waits for.
struct Candidate {
    thread: Asleep,
    sockets: Vec<u64>,
    context: Option<u64>,
    fds: Vec<i32>,
    /// Whether it may wait for something else altogether: only its stack tells.
    is_doubtful: bool,
}

impl Sleepers {
    /// The threads of a process that wait for its sockets or contexts. With `lines`, their stacks have source files
    /// and lines where there is debug information.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn find(&mut self, process: &Process, contexts: &[Context], lines: bool) -> io::Result<Vec<Blocked>> {
        let mailboxes = Mailboxes::new(contexts);
        if mailboxes.is_empty() {
            return Ok(Vec::new());
        }
        let memory = Memory::new(process.pid);
        let threads = threads::asleep(process.pid)?;
        let sleeps = self.sleeps(process, &memory, &mailboxes, threads, lines);
        let mut python = python_frames(process.pid, &sleeps);
        let blocked = sleeps.into_iter().filter_map(|Sleep { candidate, since_ns, stack, called }| {
            let call = called.or_else(|| outermost(process, &stack)).or_else(|| {
                // Nothing else waits for a context's own mailbox.
                candidate.context.and_then(|_| FunctionId::from_name("zmq_ctx_term"))
            });
            if call.is_none() && candidate.is_doubtful {
                return None;
            }
            let Candidate { thread, sockets, context, fds, .. } = candidate;
            Some(Blocked {
                tid: thread.tid,
                call,
                sockets,
                context,
                fds,
                system_call: system_call(&thread).map(str::to_owned),
                timeout_ms: timeout_ms(&thread),
                since_ns,
                stack: Stack { frames: stack.frames.into_iter().map(shown).collect(), ..stack },
                python: python.remove(&thread.tid).unwrap_or_default().into_iter().map(shown).collect(),
                thread: thread.name,
            })
        });
        Ok(blocked.collect())
    }

    /// How those of the threads sleep that may wait for one of the mailboxes. What a thread waits for and its stack
    /// are of the same sleep: one that has run in between is looked at anew, and one that always has is not blocked.
    fn sleeps(
        &mut self,
        process: &Process,
        memory: &Memory,
        mailboxes: &Mailboxes,
        threads: Vec<Asleep>,
        lines: bool,
    ) -> Vec<Sleep> {
        const TRIES: usize = 4;
        let pid = process.pid;
        let find = |threads: Vec<Asleep>| -> Vec<Candidate> {
            threads.into_iter().filter_map(|thread| mailboxes.candidate(memory, pid, thread)).collect()
        };
        let mut found = find(threads);
        if found.is_empty() {
            return Vec::new();
        }
        let Ok(mut unwinder) = Unwinder::new(pid) else { return Vec::new() };
        let (mut candidates, mut since, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TRIES {
            let registers = self.registers(pid);
            let mut moved = Vec::new();
            for candidate in found {
                let thread = &candidate.thread;
                let registers = registers.get(&thread.tid);
                if let Some(stack) = unwinder.unwind_sleeper(thread, registers) {
                    let of_this_sleep = registers.filter(|known| known.times_run == Some(thread.times_run));
                    since.push(of_this_sleep.and_then(|registers| registers.last_ran_ns));
                    addresses.push(stack);
                    candidates.push(candidate);
                } else if let Ok(Some(thread)) = threads::asleep_one(pid, thread.tid) {
                    moved.push(thread);
                }
            }
            found = find(moved);
            if found.is_empty() {
                break;
            }
        }
        let called = called_functions(process, memory, &mut unwinder, &addresses);
        let stacks = unwinder.symbolise(&addresses, lines);
        let sleeps = candidates.into_iter().zip(since).zip(stacks).zip(called);
        sleeps.map(|(((candidate, since_ns), stack), called)| Sleep { candidate, since_ns, stack, called }).collect()
    }

    fn registers(&mut self, pid: u32) -> HashMap<u32, Registers> {
        let reader = self.registers.get_or_insert_with(|| {
            Reader::load().map_err(|error| log::debug!("no registers of sleeping threads: {error}")).ok()
        });
        reader.as_ref().and_then(|reader| reader.read(pid).ok()).unwrap_or_default()
    }
}

/// How a thread sleeps.
struct Sleep {
    candidate: Candidate,
    since_ns: Option<u64>,
    stack: Stack,
    /// The outermost function of libzmq that was called on the stack, by the code that called it.
    called: Option<FunctionId>,
}

/// For each stack the outermost function of libzmq's interface that the program's frames have called. Where that has
/// handed over to another one by a jump, as `zmq_proxy` and the receives of some builds do, it has no frame of its own.
fn called_functions(
    process: &Process,
    memory: &Memory,
    unwinder: &mut Unwinder,
    stacks: &[Addresses],
) -> Vec<Option<FunctionId>> {
    if stacks.is_empty() {
        return Vec::new();
    }
    // What a libzmq calls is no call of the program.
    let is_libzmq = |file: &&FileMapping| {
        let library = file.library.and_then(|index| process.libraries.get(usize::from(index)));
        library.is_some_and(|library| library.tells_callers())
    };
    let files = process.file_mappings();
    let libzmq: Vec<_> = files.iter().filter(is_libzmq).collect();
    let is_programs = |address: &u64| !libzmq.iter().any(|file| (file.start..file.end).contains(address));
    let targets = |stack: &Addresses| {
        stack.iter().skip(1).filter(is_programs).filter_map(|address| called_at(memory, address)).collect()
    };
    let targets: Vec<Vec<u64>> = stacks.iter().map(targets).collect();
    let each: Vec<Addresses> = targets.iter().flatten().map(|target| Addresses::of(*target)).collect();
    let mut names = unwinder.symbolise(&each, false).into_iter();
    let outermost = |targets: Vec<u64>| {
        let names = names.by_ref().take(targets.len());
        let functions = names.filter_map(|named| FunctionId::from_name(named.frames.first()?.function.as_deref()?));
        functions.last()
    };
    targets.into_iter().map(outermost).collect()
}

/// What the call instruction before a return address calls, where it says so itself: directly, or through a slot that
/// the dynamic linker has filled, also by way of the procedure linkage table.
fn called_at(memory: &Memory, return_address: u64) -> Option<u64> {
    let mut code = [0; 6];
    memory.read(return_address.checked_sub(6)?, &mut code).ok()?;
    let displacement = i64::from(i32::from_le_bytes(*code.last_chunk()?));
    let address = return_address.wrapping_add_signed(displacement);
    match code {
        // call *slot(%rip)
        [0xff, 0x15, ..] => memory.read_u64(address).ok(),
        // call target
        [_, 0xe8, ..] => Some(jumped_to(memory, address).unwrap_or(address)),
        _ => None,
    }
}

/// Where an entry of the procedure linkage table goes: `[endbr64] [bnd] jmp *slot(%rip)`.
fn jumped_to(memory: &Memory, address: u64) -> Option<u64> {
    const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
    let mut code = [0; 12];
    memory.read(address, &mut code).ok()?;
    let rest = code.strip_prefix(ENDBR64).unwrap_or(&code);
    let rest = rest.strip_prefix(&[0xf2]).unwrap_or(rest);
    let displacement = rest.strip_prefix(&[0xff, 0x25])?.first_chunk()?;
    let behind = address + (code.len() - rest.len()) as u64 + 6;
    memory.read_u64(behind.wrapping_add_signed(i64::from(i32::from_le_bytes(*displacement)))).ok()
}

/// What blocked calls poll.
struct Mailboxes {
    sockets: HashMap<i32, u64>,
    contexts: HashMap<i32, u64>,
    /// Whether there are sockets without a mailbox fd.
    some_are_thread_safe: bool,
}

impl Mailboxes {
    fn new(contexts: &[Context]) -> Self {
        let sockets = || contexts.iter().flat_map(|context| &context.sockets);
        Self {
            sockets: sockets().filter_map(|socket| Some((socket.mailbox_fd?, socket.handle))).collect(),
            contexts: contexts.iter().filter_map(|context| Some((context.term_fd?, context.handle))).collect(),
            some_are_thread_safe: sockets().any(|socket| socket.mailbox_fd.is_none()),
        }
    }

    fn is_empty(&self) -> bool {
        self.sockets.is_empty() && self.contexts.is_empty() && !self.some_are_thread_safe
    }

    /// The thread, if it may wait for one of them.
    fn candidate(&self, memory: &Memory, pid: u32, thread: Asleep) -> Option<Candidate> {
        match thread.number {
            number::POLL | number::PPOLL | number::RESTART => {
                let polled = polled(memory, thread.args)?;
                let sockets: Vec<u64> = polled.iter().filter_map(|fd| self.sockets.get(fd)).copied().collect();
                let context = polled.iter().find_map(|fd| self.contexts.get(fd)).copied();
                let known = |fd: &i32| self.sockets.contains_key(fd) || self.contexts.contains_key(fd);
                let fds = polled.iter().filter(|fd| !known(fd)).copied().collect();
                let waits = !sockets.is_empty() || context.is_some();
                waits.then_some(Candidate { thread, sockets, context, fds, is_doubtful: false })
            }
            // libzmq's own threads wait for no mailbox of a socket's but closed ones. Their epolls are large, and reading
            // what they watch keeps them waiting. The names are those of 4.3 and later.
            number::EPOLL_WAIT | number::EPOLL_PWAIT if !thread.name.starts_with("ZMQbg/") => {
                let sockets = self.watched_by_a_loop(memory, pid, thread.args[0] as i32);
                (!sockets.is_empty()).then_some(Candidate {
                    thread,
                    sockets,
                    context: None,
                    fds: Vec::new(),
                    is_doubtful: false,
                })
            }
            number::FUTEX if self.some_are_thread_safe => {
                Some(Candidate { thread, sockets: Vec::new(), context: None, fds: Vec::new(), is_doubtful: true })
            }
            _ => None,
        }
    }

    /// The sockets whose mailboxes an epoll of the program's own watches. The reaper watches those of sockets that
    /// are being closed, with entries of libzmq's.
    fn watched_by_a_loop(&self, memory: &Memory, pid: u32, epoll: i32) -> Vec<u64> {
        let fdinfo = fs::read_to_string(format!("/proc/{pid}/fdinfo/{epoll}")).unwrap_or_default();
        let watched = inspect::parse_fdinfo(&fdinfo).into_iter();
        let mailboxes = watched.filter_map(|watched| Some((watched, *self.sockets.get(&watched.fd)?)));
        let of_program = mailboxes.filter(|(watched, _)| {
            let itself = watched.data.checked_add(8).and_then(|at| memory.read_u64(at).ok());
            itself != Some(watched.data)
        });
        of_program.map(|(_, socket)| socket).collect()
    }
}

/// The fds that a poll(2) was given.
fn polled(memory: &Memory, args: [u64; 6]) -> Option<Vec<i32>> {
    let [address, count, ..] = args;
    if count == 0 || count > MAX_POLLFDS {
        return None;
    }
    let mut bytes = vec![0; count as usize * POLLFD_BYTES];
    memory.read(address, &mut bytes).ok()?;
    let fd = |pollfd: &[u8]| pollfd.first_chunk().map(|fd| i32::from_ne_bytes(*fd));
    bytes.chunks_exact(POLLFD_BYTES).map(fd).collect()
}

fn system_call(thread: &Asleep) -> Option<&'static str> {
    Some(match thread.number {
        number::POLL => "poll",
        number::PPOLL => "ppoll",
        number::FUTEX => "futex",
        number::EPOLL_WAIT => "epoll_wait",
        number::EPOLL_PWAIT => "epoll_pwait",
        _ => return None,
    })
}

/// Of a poll and an epoll_wait the timeout stands in the arguments.
fn timeout_ms(thread: &Asleep) -> Option<i32> {
    match thread.number {
        number::POLL => Some(thread.args[2] as i32),
        number::EPOLL_WAIT | number::EPOLL_PWAIT => Some(thread.args[3] as i32),
        _ => None,
    }
}

/// The outermost function of libzmq's interface on a stack: the call of the program, unless that has no frame.
fn outermost(process: &Process, stack: &Stack) -> Option<FunctionId> {
    let exported = |index: usize| FunctionId::from_name(stack.frames.get(index)?.function.as_deref()?);
    let outermost = (0..stack.frames.len()).rev().find(|index| exported(*index).is_some())?;
    // zmq_proxy hands over to a function inside libzmq, which polls through the interface.
    let caller = stack.frames.get(outermost + 1);
    let is_within_libzmq = caller.is_some_and(|caller| {
        let is_named_so = caller.function.as_deref().is_some_and(|function| function.starts_with("zmq::proxy"));
        let in_same_file = caller.module.is_some() && caller.module == stack.frames[outermost].module;
        let is_all_libzmq = process
            .libraries
            .iter()
            .any(|library| library.tells_callers() && caller.module.as_deref() == library.path.to_str());
        is_named_so || (in_same_file && is_all_libzmq)
    });
    if is_within_libzmq { FunctionId::from_name("zmq_proxy") } else { exported(outermost) }
}

/// A frame whose names a terminal shows and does nothing else: files and their symbols can be called anything.
fn shown(frame: Frame) -> Frame {
    let shown = |text: Option<String>| text.map(|text| printable(text.as_bytes()));
    let Frame { address, module, function, file, line } = frame;
    Frame { address, module: shown(module), function: shown(function), file: shown(file), line }
}

/// Frames of Python, where an interpreter is on one of the stacks.
fn python_frames(pid: u32, sleeps: &[Sleep]) -> HashMap<u32, Vec<Frame>> {
    let modules: HashSet<&str> =
        sleeps.iter().flat_map(|sleep| &sleep.stack.frames).filter_map(|frame| frame.module.as_deref()).collect();
    let is_python = |module: &&str| module.rsplit('/').next().is_some_and(|file| file.contains("python"));
    if modules.iter().any(is_python) {
        python::frames(pid).map_err(|error| log::debug!("no Python frames: {error}")).unwrap_or_default()
    } else {
        HashMap::new()
    }
}
