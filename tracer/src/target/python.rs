//! The frames of Python programs, read from the interpreter's memory by [py-spy](https://docs.rs/py-spy) in its
//! non-blocking mode: the target is never stopped.
//!
//! Behind the cargo feature `python`, since it brings 70 crates. Without it nothing is found.

use std::{collections::HashMap, io};

use crate::event::Frame;

/// The Python frames of each thread of process `pid` that has some, innermost first, by tid. Empty where no Python
/// is mapped, and in builds without the feature `python`. CPython 3.11 and later: earlier ones do not keep the tid.
///
/// Takes 10 to 60 ms, nearly all of it to find the interpreter. The program runs on meanwhile: a thread that does not
/// sleep may have frames of several moments.
///
/// # Errors
/// When the interpreter could not be found or read, after three tries: one bad read fails all of it.
pub fn frames(pid: u32) -> io::Result<HashMap<u32, Vec<Frame>>> {
    imp::frames(pid)
}

#[cfg(not(feature = "python"))]
mod imp {
    use super::{Frame, HashMap, io};

    pub fn frames(_: u32) -> io::Result<HashMap<u32, Vec<Frame>>> {
        Ok(HashMap::new())
    }
}

#[cfg(feature = "python")]
mod imp {
    use std::{fs, panic};

    use procfs::process::{MMPermissions, MMapPath, Process as ProcFs};
    use py_spy::{Config, PythonSpy, StackTrace, config::LockingStrategy};

    use super::{Frame, HashMap, io};

    const TRIES: u32 = 3;
    /// The most frames that are taken of a thread.
    const MAX_FRAMES: usize = 1024;

    pub fn frames(pid: u32) -> io::Result<HashMap<u32, Vec<Frame>>> {
        if !has_python(pid)? {
            return Ok(HashMap::new());
        }
        let traces = read(pid)?;
        let tids = tids(pid)?;
        let with_tid = traces.into_iter().filter_map(|trace| {
            let tid = *tids.get(&u32::try_from(trace.os_thread_id?).ok()?)?;
            Some((tid, trace.frames.into_iter().take(MAX_FRAMES).map(frame).collect::<Vec<_>>()))
        });
        Ok(with_tid.filter(|(_, frames)| !frames.is_empty()).collect())
    }

    /// Whether a file with code in it is named as Python or its library is. py-spy would look through all memory.
    fn has_python(pid: u32) -> io::Result<bool> {
        let maps = ProcFs::new(pid as i32).and_then(|process| process.maps()).map_err(io::Error::other)?;
        let is_python = |path: &MMapPath| {
            let MMapPath::Path(path) = path else { return false };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("python") || name.starts_with("libpython")
        };
        Ok(maps.iter().any(|map| map.perms.contains(MMPermissions::EXECUTE) && is_python(&map.pathname)))
    }

    fn read(pid: u32) -> io::Result<Vec<StackTrace>> {
        let config =
            Config { blocking: LockingStrategy::NonBlocking, collect_thread_names: false, ..Config::default() };
        let pid = py_spy::Pid::try_from(pid).map_err(io::Error::other)?;
        let attempt = || {
            // What it reads may be anything, and it was written for processes of one's own.
            panic::catch_unwind(|| PythonSpy::new(pid, &config)?.get_stack_traces())
                .unwrap_or_else(|_| Err(io::Error::other("py-spy could not make sense of the interpreter").into()))
        };
        let mut tried = attempt();
        for _ in 1..TRIES {
            tried = tried.or_else(|_| attempt());
        }
        tried.map_err(|error| io::Error::other(format!("{error:#}")))
    }

    /// The tids by what the program itself takes them for, which is another number in a PID namespace.
    fn tids(pid: u32) -> io::Result<HashMap<u32, u32>> {
        let mut tids = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = entry?.path();
            let Some(tid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            tids.insert(innermost_tid(&status).unwrap_or(tid), tid);
        }
        Ok(tids)
    }

    /// `NSpid:` has a number for each PID namespace that the thread is in, the innermost last.
    fn innermost_tid(status: &str) -> Option<u32> {
        status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
    }

    fn frame(frame: py_spy::Frame) -> Frame {
        Frame {
            function: Some(frame.name),
            file: Some(frame.filename),
            line: u32::try_from(frame.line).ok().filter(|line| *line > 0),
            module: frame.module,
            address: 0,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_innermost_namespace_is_the_programs_own() {
            assert_eq!(innermost_tid("Pid:\t9\nNSpid:\t4711\t12\t3\n"), Some(3));
            assert_eq!(innermost_tid("NSpid:\t4711\n"), Some(4711));
            assert_eq!(innermost_tid("NSpid:\n"), None);
            assert_eq!(innermost_tid(""), None);
        }

        #[test]
        fn a_program_without_python_has_no_such_frames() {
            assert_eq!(frames(std::process::id()).expect("our own mappings"), HashMap::new());
        }
    }
}
