//! Stacks of threads that are blocked in libzmq, against what gdb says of the same threads afterwards. gdb stops them;
//! nothing here does.

#[path = "real/support.rs"]
#[allow(dead_code)]
mod support;

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Command,
    sync::{PoisonError, RwLock, RwLockReadGuard, mpsc::channel},
    time::{Duration, Instant},
};

use serde_json::Value;
use zmqtrace::{
    capture::registers::Reader,
    event::{Frame, Stack},
    target::{
        python,
        stack::{Addresses, Registers, Unwinder},
        threads::{self, Asleep},
    },
};

use crate::support::{Tracer, Workload, number, parse, root, scratch};

/// Prints each thread's frames, one JSON object a thread. Those that left by a tail call have none any more.
const GDB: &str = r"
import gdb, json
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frames, frame = [], gdb.newest_frame()
    while frame is not None:
        if frame.type() != gdb.TAILCALL_FRAME:
            frames.append([frame.pc(), frame.name(), frame.type() == gdb.INLINE_FRAME])
        frame = frame.older()
    print(json.dumps({'tid': thread.ptid[1], 'frames': frames}))
";

/// A frame as gdb has it: address, name, whether it is a function that was inlined.
type GdbFrame = (u64, Option<String>, bool);

fn gdb(pid: u32) -> HashMap<u32, Vec<GdbFrame>> {
    let script = scratch(&format!("{pid}-gdb.py"));
    std::fs::write(&script, GDB).expect("room for it");
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-p", &pid.to_string()]);
    for setting in ["set backtrace past-main on", "set backtrace past-entry on", "set debuginfod enabled off"] {
        command.args(["-iex", setting]);
    }
    let output = command.arg("-x").arg(&script).output().expect("gdb starts: run `cargo xtask test` to have it");
    let text = String::from_utf8_lossy(&output.stdout);
    let threads: Vec<_> = text.lines().filter(|line| line.starts_with('{')).map(parse).collect();
    assert!(!threads.is_empty(), "gdb said: {text}{}", String::from_utf8_lossy(&output.stderr));
    let frame = |frame: &Value| {
        let address = frame[0].as_u64().expect("an address");
        (address, frame[1].as_str().map(str::to_owned), frame[2].as_bool().expect("inlined or not"))
    };
    let frames = |thread: &Value| thread["frames"].as_array().expect("frames").iter().map(frame).collect();
    threads.iter().map(|thread| (number(thread, "tid") as u32, frames(thread))).collect()
}

/// Stacks of threads that sleep, with what goes with them.
struct Sample {
    threads: Vec<Asleep>,
    registers: HashMap<u32, Registers>,
    stacks: Vec<Addresses>,
    named: Vec<Stack>,
}

impl Sample {
    /// All threads of a process that does not go on meanwhile.
    fn take(pid: u32) -> Self {
        Self::with(pid, registers(pid)).expect("they sleep on")
    }

    /// `None` where one goes on.
    fn with(pid: u32, registers: HashMap<u32, Registers>) -> Option<Self> {
        let mut unwinder = Unwinder::new(pid).expect("the target lives");
        let threads = threads::asleep(pid).expect("the target lives");
        let stack = |thread: &Asleep| unwinder.unwind(thread.tid, registers.get(&thread.tid));
        let stacks = threads.iter().map(stack).collect::<Option<Vec<_>>>()?;
        let named = unwinder.symbolise(&stacks, true);
        Some(Self { threads, registers, stacks, named })
    }

    #[track_caller]
    fn thread(&self, tid: u32) -> usize {
        self.threads.iter().position(|thread| thread.tid == tid).expect("the thread sleeps")
    }

    fn functions(&self, tid: u32) -> Vec<&str> {
        let frames = &self.named[self.thread(tid)].frames;
        frames.iter().map(|frame| frame.function.as_deref().unwrap_or("?")).collect()
    }

    /// Every thread's addresses, and the functions of the program itself, inlined ones too, are as gdb says.
    #[track_caller]
    fn assert_as_gdb(&self, pid: u32, program: &str) {
        let gdb = gdb(pid);
        assert_eq!(gdb.len(), self.threads.len(), "all threads sleep");
        for ((thread, addresses), stack) in self.threads.iter().zip(&self.stacks).zip(&self.named) {
            let theirs = &gdb[&thread.tid];
            let context = || format!("{} of {thread:?}\nours {stack:#x?}\ngdb's {theirs:#x?}", thread.name);
            let physical = theirs.iter().filter(|(_, _, inlined)| !inlined).map(|(address, ..)| *address);
            assert!(addresses.iter().eq(physical), "{}", context());
            assert!(!addresses.truncated, "{}", context());
            let of_program = |frame: &&Frame| frame.module.as_ref().is_some_and(|module| module.ends_with(program));
            let ours: Vec<_> = stack.frames.iter().filter(of_program).collect();
            let is_ours = |frame: &&GdbFrame| ours.iter().any(|ours| ours.address == frame.0);
            let names: Vec<_> = theirs.iter().filter(is_ours).map(|(_, name, _)| name).collect();
            assert_eq!(ours.iter().map(|frame| &frame.function).collect::<Vec<_>>(), names, "{}", context());
        }
    }
}

fn registers(pid: u32) -> HashMap<u32, Registers> {
    Reader::load().and_then(|reader| reader.read(pid)).expect("this kernel has iterators over tasks")
}

/// The kernel arms the return probes of all processes that are probed in the same library (seen on 6.18): who sets
/// some must be alone.
static PROBES: RwLock<()> = RwLock::new(());

fn without_probes() -> RwLockReadGuard<'static, ()> {
    PROBES.read().unwrap_or_else(PoisonError::into_inner)
}

/// `blocked` in one of its calls, and its worker.
fn blocked(call: &str) -> (Workload, u32) {
    block(Workload::c("blocked", &["--call", call, "--ms", "0"]))
}

fn block(mut workload: Workload) -> (Workload, u32) {
    workload.say("go");
    let worker = number(&workload.answer("blocked"), "tid") as u32;
    (workload, worker)
}

/// Lets it go on, and returns the truth about its call.
fn release(mut workload: Workload) -> Value {
    workload.say("release");
    let done = workload.answer("done");
    workload.finish();
    done
}

/// A thread blocked in one call of a C program without frame pointers.
#[track_caller]
fn assert_call(call: &str) {
    let _guard = without_probes();
    let (workload, worker) = blocked(call);
    let sample = Sample::take(workload.pid());
    sample.assert_as_gdb(workload.pid(), "blocked");
    assert_eq!(sample.threads[sample.thread(worker)].name, "worker");
    let exported = format!("zmq_{call}");
    let functions = sample.functions(worker);
    assert!(functions.windows(2).any(|pair| pair == [&exported, &*format!("log_{call}")]), "{functions:?}");
    let frames = &sample.named[sample.thread(worker)].frames;
    let work = frames.iter().find(|frame| frame.function.as_deref() == Some("work")).expect("its own function");
    assert!(work.file.as_ref().is_some_and(|file| file.ends_with("workloads/c/blocked.c")), "{work:?}");
    assert!(work.line.is_some_and(|line| line > 20), "{work:?}");
    release(workload);
}

#[test]
fn receives() {
    assert_call("recv");
    assert_call("msg_recv");
}

#[test]
fn a_send_at_the_high_water_mark() {
    assert_call("send");
}

#[test]
fn a_poll() {
    assert_call("poll");
}

#[test]
fn the_end_of_a_context() {
    assert_call("ctx_term");
}

/// Sleeps below a function whose frame has no size that the compiler knows: it can be left by rbp alone.
const FRAME_POINTER: &str = r#"
#include <alloca.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((noinline)) static long wait_for_the_end(size_t size)
{
    char *buffer = alloca(size);
    long length = read(0, buffer, size);
    return length > 0 ? buffer[0] : length;
}
int main(int argc, char **argv)
{
    (void)argv;
    puts("{\"ready\":true}");
    fflush(stdout);
    return wait_for_the_end((size_t)argc << 8) != 0;
}
"#;

/// Sleeps in a signal handler, on a stack of its own where there is an argument.
const HANDLER: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static char stack[65536];
static void handle(int signal)
{
    char byte;
    if (read(0, &byte, 1) != 0)
        _exit(signal);
}
int main(int argc, char **argv)
{
    (void)argv;
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handle, .sa_flags = argc > 1 ? SA_ONSTACK : 0}, NULL);
    puts("{\"ready\":true}");
    fflush(stdout);
    return kill(getpid(), SIGUSR1);
}
"#;

/// A program of one file.
fn compile(name: &str, text: &str) -> PathBuf {
    let (program, source) = (scratch(name), scratch(&format!("{name}.c")));
    std::fs::write(&source, text).expect("room for it");
    let status = Command::new("gcc").args(["-O2", "-g", "-o"]).args([&program, &source]).status();
    assert!(status.expect("gcc starts").success());
    program
}

#[test]
fn a_signal_handler() {
    let _guard = without_probes();
    let program = compile("handler", HANDLER);
    for arguments in [&[][..], &["--alternate-stack"]] {
        let workload = Workload::start(Command::new(&program).args(arguments));
        let pid = workload.pid();
        await_asleep(pid, pid);
        let sample = Sample::take(pid);
        sample.assert_as_gdb(pid, "handler");
        let functions = sample.functions(pid);
        let named: Vec<_> = functions.iter().filter(|name| ["read", "handle", "main"].contains(name)).collect();
        assert_eq!(named, [&"read", &"handle", &"main"], "{functions:?}");
        workload.finish();
    }
}

#[test]
fn a_frame_that_takes_the_frame_pointer_to_leave() {
    let _guard = without_probes();
    let program = compile("frame-pointer", FRAME_POINTER);
    let workload = Workload::start(&mut Command::new(&program));
    let pid = workload.pid();
    await_asleep(pid, pid);
    let sample = Sample::take(pid);
    sample.assert_as_gdb(pid, "frame-pointer");
    let whole = sample.functions(pid);
    assert_eq!(whole[..3], ["read", "wait_for_the_end", "main"]);
    assert_eq!(whole.last(), Some(&"_start"));

    // Without, and with registers of another moment, which are not used, it is cut off, never wrong.
    let old = Registers { times_run: Some(0), ..sample.registers[&pid] };
    let elsewhere = Registers { sp: 0, ..sample.registers[&pid] };
    for registers in [None, Some(old), Some(elsewhere)] {
        let registers = registers.map(|registers| (pid, registers)).into_iter().collect();
        let sample = Sample::with(pid, registers).expect("it sleeps on");
        assert_eq!(sample.functions(pid), ["read", "wait_for_the_end"]);
        assert!(sample.stacks[0].truncated);
    }
    workload.finish();
}

/// Waits until a thread that is about to sleep does.
fn await_asleep(pid: u32, tid: u32) {
    let begin = Instant::now();
    while !threads::asleep(pid).expect("the target lives").iter().any(|thread| thread.tid == tid) {
        assert!(begin.elapsed() < support::DEADLINE, "{tid} does not sleep");
        std::thread::yield_now();
    }
}

/// Its files are gone from where they were mapped from; another one has taken the place.
#[test]
fn a_program_that_was_replaced_on_disk() {
    let _guard = without_probes();
    let program = scratch("replaced");
    std::fs::copy(support::made("workloads/blocked"), &program).expect("room for it");
    let (workload, worker) = block(Workload::start(Command::new(&program).args(["--call", "poll", "--ms", "0"])));
    std::fs::remove_file(&program).expect("it is there");
    std::fs::copy(support::made("workloads/nozmq"), &program).expect("room for it");
    let sample = Sample::take(workload.pid());
    let functions = sample.functions(worker);
    assert!(functions.windows(3).any(|names| names == ["zmq_poll", "log_poll", "work"]), "{functions:?}");
    let frames = &sample.named[sample.thread(worker)].frames;
    assert!(frames.iter().any(|frame| frame.module.as_deref() == program.to_str()), "{frames:?}");
    assert!(!sample.named[sample.thread(worker)].truncated);
    release(workload);
}

/// A pending return probe has taken the place of a return address: the stack ends before it.
#[test]
fn a_stack_with_return_probes_on_it_is_truncated() {
    let _alone = PROBES.write().unwrap_or_else(PoisonError::into_inner);
    let workload = Workload::c("blocked", &["--call", "recv", "--ms", "0"]);
    let tracer = Tracer::attach("trace", &workload, &[]);
    let (workload, worker) = block(workload);
    let sample = Sample::take(workload.pid());
    let stack = &sample.named[sample.thread(worker)];
    assert!(stack.truncated, "{stack:?}");
    let last = stack.frames.last().expect("the innermost ones");
    assert_eq!(last.function.as_deref(), Some("zmq_recv"), "{stack:?}");
    release(workload);
    assert_eq!(tracer.finish().status, 0);
}

/// The program says itself when its call began.
#[test]
fn since_when_a_thread_sleeps() {
    let _guard = without_probes();
    let (workload, worker) = blocked("recv");
    let seen_ns = monotonic_ns();
    let first = registers(workload.pid())[&worker];
    let second = registers(workload.pid())[&worker];
    let done = release(workload);
    let call = done["calls"].as_array().expect("calls").iter().find(|call| call["tid"] == worker).expect("its receive");
    for registers in [first, second] {
        assert_fell_asleep(&registers, number(call, "start_ns"), seen_ns);
    }
}

/// It had run for a while when it fell asleep.
#[test]
fn since_when_a_thread_sleeps_that_was_busy_before() {
    const BUSY: Duration = Duration::from_millis(300);
    let (tell, told) = channel();
    let (wake, sleep) = channel::<()>();
    let sleeper = std::thread::spawn(move || {
        let begin = Instant::now();
        while begin.elapsed() < BUSY {
            std::hint::spin_loop();
        }
        // SAFETY: no arguments.
        tell.send((unsafe { libc::gettid() } as u32, monotonic_ns())).expect("the test listens");
        assert!(sleep.recv().is_err());
    });
    let (tid, awake_ns) = told.recv().expect("it says so");
    let own = std::process::id();
    await_asleep(own, tid);
    let seen_ns = monotonic_ns();
    assert_fell_asleep(&registers(own)[&tid], awake_ns, seen_ns);
    drop(wake);
    sleeper.join().expect("it ends");
}

/// It did so after it was last known to be awake and before it was seen asleep: on a machine that is not busy some
/// 0.1 ms.
#[track_caller]
fn assert_fell_asleep(registers: &Registers, awake_ns: u64, seen_ns: u64) {
    const SLACK_NS: u64 = 1_000_000;
    let last_ran_ns = registers.last_ran_ns.expect("this kernel says so");
    println!("asleep {} ns after it was awake, of {}", last_ran_ns as i64 - awake_ns as i64, seen_ns - awake_ns);
    assert!(last_ran_ns + SLACK_NS >= awake_ns, "{last_ran_ns} before {awake_ns}");
    assert!(last_ran_ns <= seen_ns + SLACK_NS, "{last_ran_ns} after {seen_ns}");
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one structure of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[test]
fn python() {
    let _guard = without_probes();
    let Some(mut workload) = Workload::python("service.py", &[]) else { return };
    workload.say("step 3");
    workload.answer("done");
    let (sample, server) = settled(workload.pid());
    sample.assert_as_gdb(workload.pid(), "python3");
    let frames = python::frames(workload.pid()).expect("an interpreter that is at rest");
    if cfg!(feature = "python") {
        let answer = frames[&server].first().expect("the innermost one");
        assert_eq!(answer.function.as_deref(), Some("answer"));
        let source = root().join("workloads/python/service.py");
        assert_eq!(answer.file.as_deref(), source.to_str());
        let lines = std::fs::read_to_string(source).expect("its source");
        let line = lines.lines().nth(answer.line.expect("a line") as usize - 1).expect("it has that");
        assert!(line.contains("server.recv()"), "{line}");
        assert!(frames[&workload.pid()].iter().any(|frame| frame.function.as_deref() == Some("main")), "{frames:?}");
    } else {
        assert!(frames.is_empty());
    }
    workload.finish();
}

/// A sample of all threads of a program that has done its work, and which of them waits to receive.
fn settled(pid: u32) -> (Sample, u32) {
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < support::DEADLINE, "it does not come to rest");
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the target lives").count();
        let sample = Sample::with(pid, registers(pid)).filter(|sample| sample.threads.len() == threads);
        let Some(sample) = sample else { continue };
        let receives = |tid: &u32| sample.functions(*tid).contains(&"zmq_msg_recv");
        let main_waits = sample.functions(pid).contains(&"read");
        if let Some(server) = sample.threads.iter().map(|thread| thread.tid).find(receives).filter(|_| main_waits) {
            return (sample, server);
        }
    }
}
