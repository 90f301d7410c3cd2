//! What is refused: its exit status tells the cause, its sentence the remedy.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Child, Command},
    time::Instant,
};

use crate::support::{Finished, Tracer, Workload, made, scratch, signal};

const NOBODY: u32 = 65534;

/// Runs it, and it must refuse with this status, in one line that has these parts.
#[track_caller]
fn assert_refused(tracer: Tracer, status: i32, parts: &[&str]) {
    let Finished { status: found, stdout, stderr } = tracer.finish();
    let said = stderr.join("\n");
    assert_eq!(found, status, "{said}");
    assert_eq!(stderr.len(), 1, "one line: {said}");
    assert!(said.starts_with("zmqtrace: "), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert!(stdout.is_empty(), "{stdout:?}");
}

fn trace(pid: u32) -> Tracer {
    Tracer::start(["trace", "-p", &pid.to_string()])
}

#[test]
fn senseless_command_lines_have_status_2() {
    let cases: &[&[&str]] = &[
        &[],
        &["trace"],
        &["trace", "-p", "0"],
        &["trace", "-p", "x"],
        &["trace", "-p", "1", "-e", "nonsense"],
        &["trace", "-p", "1", "-s", "4097"],
        &["trace", "-p", "1", "-s", "-1"],
        &["trace", "-p", "1", "-z", "-Z"],
        &["trace", "-p", "1", "-r", "-t"],
        &["trace", "-p", "1", "--buffer", "3"],
        &["trace", "-p", "1", "--duration", "0"],
        &["stat", "-p", "1", "--interval", "soon"],
        &["stat", "-p", "1", "-X"],
        &["nonsense"],
    ];
    for case in cases {
        let finished = Tracer::start(*case).finish();
        assert_eq!(finished.status, 2, "{case:?}: {:?}", finished.stderr);
        assert!(!finished.stderr.is_empty() && finished.stdout.is_empty(), "{case:?}");
    }
}

#[test]
fn no_such_process() {
    let mut child = Command::new("true").spawn().expect("true runs");
    child.wait().expect("it ends");
    assert_refused(trace(child.id()), 122, &["no process", "pgrep"]);
    assert_refused(trace(4_000_000_000), 122, &["no process"]);
}

#[test]
fn a_thread_instead_of_its_process() {
    let workload = Workload::c("blocked", &[]);
    let tid = workload.ready["worker_tid"].as_u64().expect("a number");
    let remedy = format!("use -p {}", workload.pid());
    assert_refused(trace(tid as u32), 122, &["is a thread of process", &remedy]);
}

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.wait();
    }
}

fn zombie() -> Reaped {
    let child = Reaped(Command::new("true").spawn().expect("true runs"));
    // SAFETY: the structure is plain data, for which zero is a value.
    let mut info = unsafe { std::mem::zeroed() };
    // SAFETY: fills the structure; WNOWAIT leaves the child as it is.
    let waited = unsafe { libc::waitid(libc::P_PID, child.0.id(), &raw mut info, libc::WEXITED | libc::WNOWAIT) };
    assert_eq!(waited, 0, "it ends");
    child
}

#[test]
fn a_zombie() {
    assert_refused(trace(zombie().0.id()), 122, &["zombie", "nothing to trace"]);
}

#[test]
fn a_kernel_thread() {
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        assert_refused(trace(2), 123, &["no libzmq in kthreadd[2]", "kernel thread"]);
    } else {
        eprintln!("left out: no kernel thread is seen from here");
    }
}

#[test]
fn a_process_without_libzmq() {
    let workload = Workload::c("nozmq", &[]);
    assert_refused(trace(workload.pid()), 123, &["no libzmq in nozmq[", "(nozmq", "is it another process"]);
}

#[test]
fn one_of_several_targets() {
    let (good, bad) = (Workload::c("flood", &["--count", "1"]), Workload::c("nozmq", &[]));
    let pids = format!("{},{}", good.pid(), bad.pid());
    assert_refused(Tracer::start(["stat", "-p", &pids]), 123, &["nozmq"]);
}

/// There is nothing to probe, but the program has connections.
#[test]
fn stripped_symbols() {
    let workload = Workload::c("static-stripped", &[]);
    assert_wire_alone(&trace(workload.pid()).attached().interrupt(), "static-stripped");
}

/// A process without a libzmq that can be probed is looked at by its connections, and that is said.
fn assert_wire_alone(finished: &Finished, what: &str) {
    assert_eq!(finished.status, 0, "{what}: {:?}", finished.stderr);
    let attached = finished.stderr.first().map(String::as_str).unwrap_or_default();
    assert!(attached.contains("no libzmq with symbols"), "{what}: {:?}", finished.stderr);
}

/// Spoils the bytes of a program.
type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn damaged_files_are_no_more_than_that() {
    let program = fs::read(made("workloads/static")).expect("it can be read");
    let headers = u64::from_le_bytes(program[0x28..0x30].try_into().expect("8 bytes")) as usize;
    // The loader looks at the program headers only; we look at the sections.
    let damages: [(&str, Damage); 6] = [
        ("cut off", &|bytes| bytes.truncate(headers)),
        ("cut in the middle of the headers", &|bytes| bytes.truncate(headers + 100)),
        ("headers far away", &|bytes| bytes[0x28..0x30].fill(0xff)),
        ("headers at 0", &|bytes| bytes[0x28..0x30].fill(0)),
        ("headers of all ones", &|bytes| bytes[headers..].fill(0xff)),
        ("random headers", &|bytes| {
            let mut state = 1u32;
            for byte in &mut bytes[headers..] {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
        }),
    ];
    for (number, (what, damage)) in damages.into_iter().enumerate() {
        let path = scratch(&format!("damaged-{number}"));
        let mut bytes = program.clone();
        damage(&mut bytes);
        fs::write(&path, bytes).expect("the folder is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        let workload = Workload::start(&mut Command::new(&path));
        // What is left of it has no symbols.
        assert_wire_alone(&trace(workload.pid()).attached().interrupt(), what);
        fs::remove_file(path).expect("it is there");
    }
}

#[test]
fn an_ordinary_user() {
    let workload = Workload::c("flood", &["--count", "1"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmqtrace"));
    command.args(["trace", "-p", &workload.pid().to_string()]).uid(NOBODY).gid(NOBODY);
    assert_refused(Tracer::run(&mut command), 121, &["not permitted", "CAP_SYS_PTRACE", "run with sudo"]);
}

#[test]
fn a_process_of_ones_own_without_capabilities() {
    let mut own = Command::new(made("workloads/flood"));
    let workload = Workload::start(own.args(["--count", "1"]).uid(NOBODY).gid(NOBODY));
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmqtrace"));
    command.args(["trace", "-p", &workload.pid().to_string()]).uid(NOBODY).gid(NOBODY);
    let missing = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "run with sudo"];
    assert_refused(Tracer::run(&mut command), 121, &missing);
}

#[test]
fn each_missing_capability_is_named() {
    let workload = Workload::c("flood", &["--count", "1"]);
    let cases =
        [("-sys_ptrace", "CAP_SYS_PTRACE"), ("-bpf,-sys_admin", "CAP_BPF"), ("-perfmon,-sys_admin", "CAP_PERFMON")];
    for (without, name) in cases {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", without, env!("CARGO_BIN_EXE_zmqtrace"), "trace", "-p"]);
        assert_refused(Tracer::run(command.arg(workload.pid().to_string())), 121, &["not permitted", name]);
    }
}

#[test]
fn the_capabilities_that_it_names_are_enough() {
    let mut workload = Workload::c("flood", &["--count", "100"]);
    let capabilities = "+bpf,+perfmon,+sys_ptrace,+dac_read_search,+sys_admin";
    let nobody = NOBODY.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
        .args(["--inh-caps", capabilities, "--ambient-caps", capabilities])
        .args([env!("CARGO_BIN_EXE_zmqtrace"), "trace", "--json", "-p", &workload.pid().to_string()]);
    let tracer = Tracer::run(&mut command).attached();
    workload.go();
    assert_eq!(tracer.interrupt().ok().of_type("call").len(), 200);
    workload.finish();
}

#[test]
fn output_that_cannot_be_written() {
    let mut workload = Workload::c("flood", &["--count", "100"]);
    let pid = workload.pid().to_string();
    let folder = env!("CARGO_TARGET_TMPDIR");
    for path in ["/nowhere/at/all", folder] {
        assert_refused(Tracer::start(["trace", "-p", &pid, "-o", path]), 126, &["cannot write", path]);
    }
    // Also when that comes out only later.
    let full = Tracer::attach("trace", &workload, &["-o", "/dev/full"]);
    workload.go();
    let finished = full.finish();
    assert_eq!(finished.status, 126, "{:?}", finished.stderr);
    assert!(
        finished.stderr.last().is_some_and(|line| line.contains("cannot write /dev/full")),
        "{:?}",
        finished.stderr
    );
    workload.finish();
}

/// In a mount namespace of its own the kernel's type information can be hidden.
#[test]
fn a_kernel_without_btf_is_refused_with_the_remedy() {
    let workload = Workload::c("blocked", &["--call", "recv", "--ms", "0"]);
    let script = format!(
        "mount -t tmpfs none /sys/kernel/btf && exec {} trace -p {}",
        env!("CARGO_BIN_EXE_zmqtrace"),
        workload.pid()
    );
    let tracer = Tracer::run(Command::new("unshare").args(["-m", "sh", "-c", &script]));
    assert_refused(tracer, 125, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
}

#[test]
fn a_pid_namespace_of_our_own_is_refused_with_the_remedy() {
    let script = format!("{} trace -p $$", env!("CARGO_BIN_EXE_zmqtrace"));
    let tracer = Tracer::run(Command::new("unshare").args(["-pf", "--mount-proc", "sh", "-c", &script]));
    assert_refused(tracer, 127, &["PID namespace", "--pid=host"]);
}

fn sockets(pid: u32) -> Tracer {
    Tracer::start(["sockets", "--json", "-p", &pid.to_string()])
}

#[test]
fn nothing_to_look_into() {
    let mut ended = Command::new("true").spawn().expect("true runs");
    ended.wait().expect("it ends");
    assert_refused(sockets(ended.id()), 122, &["no process", "pgrep"]);
    assert_refused(sockets(4_000_000_000), 122, &["no process"]);
    let workload = Workload::c("nozmq", &[]);
    assert_refused(sockets(workload.pid()), 123, &["no libzmq in nozmq[", "is it another process"]);
    let workload = Workload::c("blocked", &[]);
    let tid = workload.ready["worker_tid"].as_u64().expect("a number");
    assert_refused(sockets(tid as u32), 122, &["is a thread of process", &format!("use -p {}", workload.pid())]);
    assert_refused(sockets(zombie().0.id()), 122, &["zombie"]);
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        assert_refused(sockets(2), 123, &["no libzmq in kthreadd[2]", "kernel thread"]);
    }
}

#[test]
fn one_of_several_processes_to_look_into() {
    let (good, bad) = (Workload::c("flood", &["--count", "1"]), Workload::c("nozmq", &[]));
    let pids = format!("{},{}", good.pid(), bad.pid());
    assert_refused(Tracer::start(["sockets", "-p", &pids]), 123, &["nozmq"]);
}

#[test]
fn an_ordinary_user_who_wants_to_look() {
    let workload = Workload::c("flood", &["--count", "1"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmqtrace"));
    command.args(["sockets", "-p", &workload.pid().to_string()]).uid(NOBODY).gid(NOBODY);
    assert_refused(Tracer::run(&mut command), 121, &["not permitted", "CAP_SYS_PTRACE", "run with sudo"]);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_ptrace", env!("CARGO_BIN_EXE_zmqtrace"), "sockets", "-p"]);
    assert_refused(Tracer::run(command.arg(workload.pid().to_string())), 121, &["not permitted", "CAP_SYS_PTRACE"]);
}

/// The target is killed at a moment that comes a little later each time, until after the look.
#[test]
fn a_process_that_dies_while_it_is_looked_into() {
    const ROUNDS: u32 = 100;
    let spared = Workload::c("corners", &["--case", "shutdown"]);
    let begun = Instant::now();
    assert_eq!(sockets(spared.pid()).finish().status, 0);
    let look = begun.elapsed();
    let mut statuses = [0; 2];
    for round in 0..ROUNDS {
        let mut workload = Workload::c("corners", &["--case", "shutdown"]);
        let there = workload.ready["contexts"][0]["sockets"].as_array().expect("a census").len();
        let tracer = sockets(workload.pid());
        let begun = Instant::now();
        while begun.elapsed() < look * round * 2 / ROUNDS {
            std::thread::yield_now();
        }
        signal(workload.pid(), libc::SIGKILL);
        // In half of the cases it is a zombie until we are done.
        if round % 2 == 0 {
            workload.end();
        }
        let finished = tracer.finish();
        match finished.status {
            0 => assert_eq!(finished.of_type("socket").len(), there, "all of it, or nothing"),
            122 => {
                assert_eq!((finished.stdout.len(), finished.stderr.len()), (0, 1), "{:?}", finished.stderr);
                assert!(finished.stderr[0].contains(&workload.pid().to_string()), "{:?}", finished.stderr);
            }
            status => panic!("{status}: {:?}", finished.stderr),
        }
        statuses[usize::from(finished.status != 0)] += 1;
    }
    eprintln!("looked into: {}, gone: {}", statuses[0], statuses[1]);
    assert!(statuses.iter().all(|count| *count > 0), "too early or too late each time: {statuses:?}");
}
