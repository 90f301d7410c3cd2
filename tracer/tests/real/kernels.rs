//! What depends on the kernel: the kind of link, what the verifier makes of the programs, what remains of a tracer that
//! was killed, and what older kernels are refused for. `cargo xtask vm` runs this under other kernels.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use aya::programs::loaded_programs;

use crate::support::{Tracer, Workload, signal};

/// Since when `trace` works, as (major, minor) of the kernel.
const TRACES: (u32, u32) = (5, 15);
/// Since when connections are looked at.
const LOOKS_AT_CONNECTIONS: (u32, u32) = (5, 17);
/// Since when probes have one link for all: they are out as soon as whoever has the link is.
const MULTI_LINKS: (u32, u32) = (6, 6);

/// How long a probe may outlive the tracer.
const REMAINS: Duration = Duration::from_secs(10);
/// What the verifier of each kernel reads at most.
const VERIFIER_LIMIT: u32 = 1_000_000;

/// This kernel's version.
pub fn version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux has a release");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().expect("a major number"), numbers.next().expect("a minor number"))
}

/// What BPF calls into being, as its system call numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Program = 11,
    Map = 12,
    Link = 31,
}

/// The BPF objects that a process and its children hold.
pub fn kernel_objects(pid: u32) -> Vec<(Kind, u32)> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it runs").flatten() {
        // A fd may be closed while we look.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for (name, kind) in [("link_id:", Kind::Link), ("map_id:", Kind::Map), ("prog_id:", Kind::Program)] {
            let id = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|id| id.trim().parse().ok());
            objects.extend(id.map(|id| (kind, id)));
        }
    }
    objects.extend(children(pid).into_iter().flat_map(kernel_objects));
    objects
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    children.split_whitespace().map(|pid| pid.parse().expect("numbers")).collect()
}

/// Whether an object is there: `BPF_*_GET_NEXT_ID` after the number before it.
pub fn exists((kind, id): (Kind, u32)) -> bool {
    let mut attributes = [id - 1, 0, 0, 0];
    // SAFETY: reads and writes the 16 bytes that it is given.
    let found = unsafe { libc::syscall(libc::SYS_bpf, kind as i32, attributes.as_mut_ptr(), size_of_val(&attributes)) };
    found == 0 && attributes[1] == id
}

/// Whether the code of libzmq in a process is what its file says: no breakpoint in it.
pub fn is_pristine(pid: u32) -> bool {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("it runs");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let mut seen = false;
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains("/libzmq")) {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').expect("a range");
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
        let file = fs::read(Path::new(fields[5])).expect("the library is there");
        let file = &file[hex(fields[2]) as usize..];
        let mut code = vec![0; file.len().min((hex(end) - hex(start)) as usize)];
        memory.read_exact_at(&mut code, hex(start)).expect("it is mapped");
        seen = true;
        if code != file[..code.len()] {
            return false;
        }
    }
    assert!(seen, "no libzmq is mapped:\n{maps}");
    true
}

/// Waits until nothing is left of tracers that held `objects` and probed `pid`.
#[track_caller]
pub fn assert_nothing_remains(objects: &[(Kind, u32)], pid: u32, limit: Duration) {
    let begin = Instant::now();
    while objects.iter().any(|object| exists(*object)) || !is_pristine(pid) {
        let left: Vec<_> = objects.iter().filter(|object| exists(**object)).collect();
        assert!(begin.elapsed() < limit, "left in the kernel: {left:?}; pristine: {}", is_pristine(pid));
        std::thread::yield_now();
    }
}

/// No probe is left of a tracer that has ended: at once, or, of perf events, within [`REMAINS`].
#[track_caller]
pub fn assert_left_alone(pid: u32) {
    if version() < MULTI_LINKS {
        assert_nothing_remains(&[], pid, REMAINS)
    } else {
        assert!(is_pristine(pid), "a probe is left")
    }
}

/// Why a test does not run here, said aloud.
fn is_older_than(needed: (u32, u32)) -> bool {
    let older = version() < needed;
    if older {
        eprintln!("left out: it needs Linux {}.{}", needed.0, needed.1);
    }
    older
}

/// Prints the kind: `link: KIND`.
#[test]
fn the_best_kind_of_link_is_used() {
    if is_older_than(TRACES) {
        return;
    }
    let expected = match version() {
        (6, 13..) | (7.., _) => "uprobe_session",
        (6, 6..) => "uprobe_multi",
        _ => "perf uprobe",
    };
    let workload = Workload::c("blocked", &["--call", "recv", "--ms", "0"]);
    let finished = Tracer::attach("trace", &workload, &[]).interrupt().ok();
    assert!(finished.stderr[0].ends_with(&format!("({expected})")), "{:?}", finished.stderr);
    println!("link: {expected}");
}

/// Prints how many instructions the verifier has gone through, at most, of each program: `verified: PROGRAM COUNT`. What
/// a command does not need is left out of the programs before that.
#[test]
fn the_verifier_is_far_from_its_limit() {
    if is_older_than(LOOKS_AT_CONNECTIONS) {
        return;
    }
    let mut workload = Workload::c("blocked", &["--call", "recv", "--ms", "0"]);
    workload.say("go");
    workload.answer("blocked");
    let pid = workload.pid().to_string();
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for command in [
        &["trace", "-e", "all", "-y", "-s", "4096", "-p", &pid][..],
        &["stat", "-p", &pid],
        &["latency", "-p", &pid],
        &["stat", "--wire-only", "-p", &pid],
        &["sockets", "--watch", "1s", "-p", &pid],
    ] {
        let tracer = Tracer::start(command);
        // What it shows first, it has found by its programs.
        let tracer = if command[0] == "sockets" { tracer.shows() } else { tracer.attached() };
        let held = kernel_objects(tracer.pid());
        for program in loaded_programs().flatten().filter(|program| held.contains(&(Kind::Program, program.id()))) {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            let count = program.verified_instruction_count().expect("kernels since 5.16 say it");
            let most = most.entry(name).or_default();
            *most = count.max(*most);
        }
        tracer.interrupt();
    }
    for (name, count) in &most {
        println!("verified: {name} {count}");
    }
    for program in ["syscall_exit", "task_registers"] {
        assert!(most.contains_key(program), "{most:?}");
    }
    assert!(most.values().all(|count| *count < VERIFIER_LIMIT / 2), "{most:?}");
}

#[test]
fn nothing_remains_of_a_killed_tracer_with_perf_events() {
    if is_older_than(TRACES) {
        return;
    }
    let mut workload = Workload::c("flood", &["--seconds", "1", "--phases"]);
    // Where it is not the kind that is used anyway, a few will do.
    let classes = if version() < MULTI_LINKS { &[][..] } else { &["-e", "send"] };
    let tracer = Tracer::attach("trace", &workload, &[&["--link", "perf", "-o", "/dev/null"], classes].concat());
    let objects = kernel_objects(tracer.pid());
    let links = objects.iter().filter(|(kind, _)| *kind == Kind::Link).count();
    assert!(links > 8, "two for each function: {objects:?}");
    workload.say("go");
    // In the middle of the flood.
    let begin = Instant::now();
    signal(tracer.pid(), libc::SIGKILL);
    assert_eq!(tracer.finish().status, 128 + libc::SIGKILL);
    let ended = begin.elapsed();
    assert_nothing_remains(&objects, workload.pid(), REMAINS);
    eprintln!("{links} links: the tracer had ended after {ended:?}, all was gone after {:?}", begin.elapsed());
    assert!(ended < Duration::from_secs(1), "it waits for its probes: {ended:?}");
    if let Ok(definitions) = fs::read_to_string("/sys/kernel/tracing/uprobe_events") {
        assert_eq!(definitions, "", "nobody has defined any");
    }
    // The target has noticed nothing.
    workload.answer("done");
    workload.go();
    workload.finish();
}

#[test]
fn what_holds_the_probes_outlives_a_ctrl_c_and_is_missed() {
    if is_older_than(TRACES) {
        return;
    }
    let mut workload = Workload::c("flood", &["--count", "100", "--phases"]);
    let tracer = Tracer::attach("trace", &workload, &["--link", "perf", "-e", "send"]);
    let [child] = children(tracer.pid())[..] else { panic!("one child") };
    let name = fs::read_to_string(format!("/proc/{child}/comm")).expect("it runs");
    assert_eq!(name, "zmqtrace-probes\n");
    assert_eq!(fs::read_dir(format!("/proc/{child}/fd")).expect("it runs").filter(is_output).count(), 0);
    // A terminal's Ctrl-C goes to a process group.
    // SAFETY: takes a number.
    let group = |pid: u32| unsafe { libc::getpgid(pid as i32) };
    assert_ne!(group(child), group(tracer.pid()));
    workload.go();
    signal(child, libc::SIGKILL);
    let finished = tracer.finish();
    assert_eq!(finished.status, 120, "{:?}", finished.stderr);
    let said = finished.stderr.last().expect("it says why");
    assert!(said.contains("the child process that holds the probes was killed"), "{said}");
    workload.finish();
}

/// Whether a fd is a pipe, as the tests read outputs by.
fn is_output(fd: &std::io::Result<fs::DirEntry>) -> bool {
    let target = fd.as_ref().ok().and_then(|fd| fs::read_link(fd.path()).ok());
    target.is_some_and(|target| target.to_string_lossy().starts_with("pipe:"))
}

/// What this kernel cannot is said in one sentence that names the one that can.
#[test]
fn what_an_older_kernel_cannot_is_said() {
    let workload = Workload::c("flood", &["--count", "100"]);
    let pid = workload.pid().to_string();
    let refused: &[(&[&str], &str)] = match version() {
        kernel if kernel < TRACES => &[
            (&["trace"], "use Linux 5.15 or later"),
            (&["stat"], "use Linux 5.15 or later"),
            (&["latency"], "use Linux 5.15 or later"),
        ],
        kernel if kernel < LOOKS_AT_CONNECTIONS => {
            &[(&["trace", "-e", "net"], "need Linux 5.17 or later"), (&["latency"], "need Linux 5.17 or later")]
        }
        _ => return eprintln!("left out: this kernel can all"),
    };
    for (command, remedy) in refused {
        let finished = Tracer::start([command, &["-p", &pid][..]].concat()).finish();
        assert_eq!(finished.status, 125, "{command:?}: {:?}", finished.stderr);
        let [sentence] = &finished.stderr[..] else { panic!("one sentence: {:?}", finished.stderr) };
        assert!(sentence.contains(remedy), "{command:?}: {sentence}");
    }
}
