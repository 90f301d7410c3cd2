//! The threads of a process, and where those that sleep are. Read from `/proc/PID/task/TID`; nothing is stopped.

use std::{fs, io};

use super::printable;

/// A thread that sleeps in a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asleep {
    /// Thread.
    pub tid: u32,
    /// Its name (`comm`), printable.
    pub name: String,
    /// The system call, as `asm/unistd_64.h` numbers it. After the process was stopped and continued some calls read
    /// 219, `restart_syscall`, with the arguments of the call that they continue.
    pub number: u64,
    /// The system call's arguments; those beyond its own are what the registers held.
    pub args: [u64; 6],
    /// Stack pointer at the system call.
    pub sp: u64,
    /// Address behind the `syscall` instruction.
    pub pc: u64,
    /// How often the thread had been given a CPU: as long as it stays, all this holds.
    pub times_run: u64,
}

/// Every thread of process `pid` that sleeps in a system call. Each was read at its own moment; threads that run, or
/// that end meanwhile, are left out.
///
/// # Errors
/// `NotFound` when there is no such process, `PermissionDenied` without CAP_SYS_PTRACE (or, in a container, its like),
/// `Unsupported` when the kernel does not say where threads are (it needs CONFIG_HAVE_ARCH_TRACEHOOK; all x86_64
/// kernels have it, but some hide the file).
pub fn asleep(pid: u32) -> io::Result<Vec<Asleep>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        match asleep_one(pid, tid) {
            Ok(thread) => found.extend(thread),
            Err(error) if is_gone(&error) && fs::exists(format!("/proc/{pid}/task/{tid}"))? => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "there is no /proc/PID/task/TID/syscall"));
            }
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A thread, if it sleeps in a system call.
///
/// # Errors
/// `NotFound` or `ESRCH` when it has ended; else as [`asleep`].
pub fn asleep_one(pid: u32, tid: u32) -> io::Result<Option<Asleep>> {
    // First: what is read behind it is of this sleep or a later one.
    let times_run = times_run(pid, tid)?;
    let Some(Place { number, args, sp, pc }) = place(pid, tid)? else { return Ok(None) };
    let comm = fs::read(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    let name = printable(comm.strip_suffix(b"\n").unwrap_or(&comm));
    Ok(Some(Asleep { tid, name, number, args, sp, pc, times_run }))
}

/// Where a thread sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub number: u64,
    pub args: [u64; 6],
    pub sp: u64,
    pub pc: u64,
}

/// Where the thread sleeps; `None` when it runs, or sleeps elsewhere than in a system call.
pub(super) fn place(pid: u32, tid: u32) -> io::Result<Option<Place>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"))?;
    Ok(parse_place(&text))
}

/// `NUMBER 0xARG 0xARG 0xARG 0xARG 0xARG 0xARG 0xSP 0xPC` of a sleeping thread, `-1 0xSP 0xPC` of one that sleeps
/// elsewhere than in a system call, and `running`: `proc_pid_syscall` of the kernel's fs/proc/base.c.
fn parse_place(text: &str) -> Option<Place> {
    let mut words = text.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = hex()?;
    }
    let place = Place { number, args, sp: hex()?, pc: hex()? };
    words.next().is_none().then_some(place)
}

/// How often a thread has been given a CPU: as long as it stays, the thread has not run. The third number of
/// `schedstat`, or, on kernels without CONFIG_SCHED_INFO, whose three numbers are 0, its context switches.
pub(super) fn times_run(pid: u32, tid: u32) -> io::Result<u64> {
    let path = format!("/proc/{pid}/task/{tid}");
    match fs::read_to_string(format!("{path}/schedstat")).map(|text| parse_schedstat(&text)) {
        Ok(Some(count)) if count > 0 => Ok(count),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => parse_switches(&fs::read_to_string(format!("{path}/status"))?).ok_or(io::ErrorKind::InvalidData.into()),
    }
}

/// `TIME_RUN WAIT_TO_RUN TIMES_RUN`.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(2)?.parse().ok()
}

fn parse_switches(status: &str) -> Option<u64> {
    let number = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    number("voluntary_ctxt_switches:")?.checked_add(number("nonvoluntary_ctxt_switches:")?)
}

/// Whether an error of a file of `/proc` says that its thread or process has ended.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    #[test]
    fn a_place_is_read_from_the_kernels_line() {
        let line = "7 0x7f5d 0x1 0xffffffff 0x0 0x0 0xffffffffffffffff 0x7ffd90f54508 0x7f158cd682ad\n";
        let place = Place {
            number: 7,
            args: [0x7f5d, 1, 0xffff_ffff, 0, 0, u64::MAX],
            sp: 0x7ffd_90f5_4508,
            pc: 0x7f15_8cd6_82ad,
        };
        assert_eq!(parse_place(line), Some(place));
    }

    #[test]
    fn anything_else_is_no_place() {
        for line in [
            "",
            "\n",
            "running\n",
            "-1 0x7ffd90f54508 0x7f158cd682ad\n",
            "7\n",
            "7 0x1 0x2 0x3 0x4 0x5 0x6 0x7\n",
            "7 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8 0x9\n",
            "7 1 2 3 4 5 6 7 8\n",
            "7 0x 0x2 0x3 0x4 0x5 0x6 0x7 0x8\n",
            "7 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x11111111111111111\n",
            "99999999999999999999 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8\n",
            "7 0xg 0x2 0x3 0x4 0x5 0x6 0x7 0x8\n",
            "\u{fffd} 0x\u{fffd}",
        ] {
            assert_eq!(parse_place(line), None, "{line:?}");
        }
    }

    #[test]
    fn how_often_a_thread_ran_is_read_from_either_file() {
        assert_eq!(parse_schedstat("206283 5398 2\n"), Some(2));
        assert_eq!(parse_schedstat("206283 5398\n"), None);
        let status =
            "Name:\tvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(parse_switches(status), Some(9));
        assert_eq!(parse_switches("voluntary_ctxt_switches:\t7\n"), None);
        let overflow = format!("voluntary_ctxt_switches:\t{}\nnonvoluntary_ctxt_switches:\t1\n", u64::MAX);
        assert_eq!(parse_switches(&overflow), None);
    }

    #[test]
    fn a_sleeping_thread_of_our_own_is_found_under_its_printable_name() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let sleeper = thread::Builder::new().name("a\tb".into()).spawn(move || receiver.recv()).expect("a thread");
        let pid = std::process::id();
        let found = loop {
            let threads = asleep(pid).expect("our own threads");
            if let Some(found) = threads.into_iter().find(|thread| thread.name == "a\\tb") {
                break found;
            }
            thread::yield_now();
        };
        assert_eq!(found.number, libc::SYS_futex as u64);
        assert!(times_run(pid, found.tid).expect("it lives") > 0);
        drop(sender);
        assert!(sleeper.join().expect("it ends").is_err());
    }

    #[test]
    fn no_process_is_an_error() {
        let mut child = Command::new("true").spawn().expect("every system has it");
        let pid = child.id();
        child.wait().expect("it ends");
        assert_eq!(asleep(pid).expect_err("it has ended").kind(), io::ErrorKind::NotFound);
    }
}
