//! Which processes, and which libzmq in them. All is read from `/proc` and from the mapped files; the
//! target is never stopped and nothing is written to it.

mod elf;
mod errno;
pub mod fds;
mod libzmq;
mod memory;
pub mod net;
mod privileges;
mod prologue;
pub mod python;
pub mod share;
pub mod stack;
pub mod threads;

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use procfs::process::{MMPermissions, MMapPath, Process as ProcFs};
use tracer_common::limits::MAX_LIBRARIES;

use self::elf::Elf;
pub use self::privileges::{check as check_privileges, check_to_inspect};
pub use self::{
    libzmq::{Library, Probe, Version},
    memory::{MAX_PARTS, Memory},
};
use crate::{error::Error, inspect::FileMapping};

/// Marks a kernel thread in the flags of `/proc/PID/stat` (`linux/sched.h`).
const PF_KTHREAD: u32 = 0x0020_0000;

/// A running process that uses libzmq.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its number as it sees it itself: in its own PID namespace.
    pub own_pid: u32,
    /// Its name (`comm`).
    pub name: String,
    /// The libzmq copies in it, in the order of their addresses; the index is the number in cookies.
    pub libraries: Vec<Library>,
    /// How many more there are, beyond [`MAX_LIBRARIES`].
    pub ignored_libraries: usize,
    /// Distance of `errno` from the thread pointer, where it could be found.
    pub errno_offset: Option<i64>,
    /// Becomes readable when the process ends.
    pub pidfd: OwnedFd,
}

impl Process {
    /// The mappings of files in it now, sorted, with the libzmq that they are.
    pub fn file_mappings(&self) -> Vec<FileMapping> {
        let maps = ProcFs::new(self.pid as i32).and_then(|proc| proc.maps()).map(|maps| maps.0).unwrap_or_default();
        let mapping = |map: procfs::process::MemoryMap| {
            let MMapPath::Path(path) = map.pathname else { return None };
            let library = self.libraries.iter().position(|library| library.path == path);
            let library = library.and_then(|index| u8::try_from(index).ok());
            Some(FileMapping { start: map.address.0, end: map.address.1, library })
        };
        maps.into_iter().filter_map(mapping).collect()
    }
}

/// One file that is mapped into a process with code in it.
#[derive(Debug)]
struct MappedFile {
    /// As the process sees it.
    path: PathBuf,
    /// The executable mappings: address range and file offset.
    code: Vec<CodeMapping>,
    file: File,
}

#[derive(Debug, Clone, Copy)]
struct CodeMapping {
    start: u64,
    end: u64,
    offset: u64,
}

impl Process {
    /// Looks into process `pid`.
    ///
    /// # Errors
    /// When there is no such process, it may not be read, or no traceable libzmq is in it.
    pub fn open(pid: u32) -> Result<Self, Error> {
        let (process, files) = Self::look_into(pid)?;
        if process.libraries.is_empty() {
            return Err(libzmq::explain_absence(pid, process.name, &files));
        }
        Ok(process)
    }

    /// The same, but a libzmq whose symbols are stripped does: there are none to probe then, but its memory can be
    /// read.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_to_inspect(pid: u32) -> Result<Self, Error> {
        Self::look_into(pid).map(|(process, _)| process)
    }

    fn look_into(pid: u32) -> Result<(Self, Vec<MappedFile>), Error> {
        let pidfd = open_pidfd(pid)?;
        let proc = ProcFs::new(pid as i32).map_err(|_| Error::NoSuchProcess { pid })?;
        let stat = proc.stat().map_err(|error| read_error("/proc/PID/stat", pid, error))?;
        if stat.state == 'Z' || stat.state == 'X' {
            let others = u32::try_from(stat.num_threads - 1).unwrap_or(0);
            return Err(if others > 0 { Error::MainThreadEnded { pid, others } } else { Error::Ended { pid } });
        }
        let name = printable(stat.comm.as_bytes());
        let is_kernel_thread = stat.flags & PF_KTHREAD != 0;
        let memory = Memory::new(pid);
        let found = mapped_files(&proc, pid).and_then(|(files, unreadable)| {
            // The kernel lists mappings without names to those who may not look.
            match unreadable {
                _ if !files.is_empty() => {}
                Some(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(not_permitted(pid, source));
                }
                Some(source) => return Err(Error::Read { what: "the mapped files", pid, source }),
                None => {
                    let examples = if is_kernel_thread { "a kernel thread" } else { "its code is in no file" };
                    return Err(Error::NoLibzmq { pid, name: name.clone(), files: 0, examples: examples.into() });
                }
            }
            match libzmq::find(&files) {
                Ok(libraries) => Ok((files, libraries)),
                Err(class) => Err(Error::UnsupportedTarget { pid, name: name.clone(), what: class }),
            }
        });
        let is_complete = found.as_ref().is_ok_and(|(_, libraries)| !libraries.is_empty());
        // Of one that ends meanwhile anything can be missing.
        if !is_complete && !is_kernel_thread && memory.is_gone() {
            return Err(Error::NoSuchProcess { pid });
        }
        let (files, mut libraries) = found?;
        let ignored_libraries = libraries.len().saturating_sub(MAX_LIBRARIES);
        libraries.truncate(MAX_LIBRARIES);
        let errno_offset = errno::offset(&files, &memory);
        Ok((Self { pid, own_pid: own_pid(pid), name, libraries, ignored_libraries, errno_offset, pidfd }, files))
    }
}

/// Every process that holds an epoll, ascending: libzmq cannot do without. Ours is left out.
pub fn with_event_polls() -> Vec<(u32, fds::Fds)> {
    let own = std::process::id();
    let fds = fds::pids().into_iter().filter(|pid| *pid != own).filter_map(|pid| Some((pid, fds::fds(pid).ok()?)));
    fds.filter(|(_, fds)| !fds.event_polls.is_empty()).collect()
}

/// The page that the kernel maps into a process when it is first probed, and that return addresses point to
/// while their return probes are pending.
pub fn trampoline(pid: u32) -> Option<u64> {
    let maps = ProcFs::new(pid as i32).ok()?.maps().ok()?;
    let is_trampoline = |path: &MMapPath| matches!(path, MMapPath::Other(name) if name == "uprobes");
    maps.iter().find(|map| is_trampoline(&map.pathname)).map(|map| map.address.0)
}

/// A name that its process chose, such that a terminal shows it and does nothing else.
pub fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    // As nearly all are, and there are thousands in a look.
    if !text.chars().any(char::is_control) {
        return text.into_owned();
    }
    let escape = |text: char| if text.is_control() { text.escape_default().to_string() } else { text.to_string() };
    text.chars().map(escape).collect()
}

fn open_pidfd(pid: u32) -> Result<OwnedFd, Error> {
    // SAFETY: takes integers, returns a new fd or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd >= 0 {
        // SAFETY: the fd is new and ours.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ESRCH) => Err(Error::NoSuchProcess { pid }),
        // A thread that is not its process's first.
        Some(libc::EINVAL | libc::ENOENT) => Err(match thread_group(pid) {
            Some(tgid) if tgid != pid => Error::IsThread { tid: pid, pid: tgid },
            _ => Error::NoSuchProcess { pid },
        }),
        Some(libc::ENOSYS) => {
            Err(Error::Kernel { what: "pidfd_open (Linux 5.3)".into(), remedy: "use Linux 5.15 or later" })
        }
        _ => Err(Error::Read { what: "the pidfd", pid, source: error }),
    }
}

/// Number of the process in its own PID namespace: the last of those that it has.
fn own_pid(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok()).unwrap_or(pid)
}

fn thread_group(tid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// Why nothing of ZeroMQ was found in a process.
pub fn absence(pid: u32) -> Error {
    match Process::look_into(pid) {
        Ok((process, files)) => libzmq::explain_absence(pid, process.name, &files),
        Err(error) => error,
    }
}

/// Why a process could not be looked into.
pub fn look_error(pid: u32, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::NoSuchProcess { pid },
        Some(libc::EACCES | libc::EPERM) if !privileges::may_read_of_other_users() => Error::NotPermitted {
            missing: "CAP_DAC_READ_SEARCH (for the fds of another user's process)".into(),
            needed: privileges::TO_INSPECT,
        },
        Some(libc::EACCES | libc::EPERM) => not_permitted(pid, error),
        _ => Error::Read { what: "the fds", pid, source: error },
    }
}

/// The target's mappings may not be seen.
fn not_permitted(pid: u32, source: io::Error) -> Error {
    if privileges::may_look_into_processes() {
        let remedy = "a security module (Yama, SELinux, AppArmor) or a user namespace may forbid it: see dmesg";
        return Error::Refused { action: format!("looking into process {pid}"), source, remedy };
    }
    Error::NotPermitted {
        missing: "CAP_SYS_PTRACE (for the target's mappings)".into(),
        needed: "CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE",
    }
}

fn read_error(what: &'static str, pid: u32, error: procfs::ProcError) -> Error {
    let source = match error {
        procfs::ProcError::NotFound(_) => return Error::NoSuchProcess { pid },
        procfs::ProcError::PermissionDenied(_) => io::Error::from_raw_os_error(libc::EACCES),
        procfs::ProcError::Io(source, _) => source,
        other => io::Error::other(other.to_string()),
    };
    if source.raw_os_error() == Some(libc::ESRCH) {
        return Error::NoSuchProcess { pid };
    }
    if source.kind() == io::ErrorKind::PermissionDenied {
        return not_permitted(pid, source);
    }
    Error::Read { what, pid, source }
}

/// Opens every file that is mapped executable. Also says why one could not be opened.
fn mapped_files(proc: &ProcFs, pid: u32) -> Result<(Vec<MappedFile>, Option<io::Error>), Error> {
    let maps = proc.maps().map_err(|error| read_error("/proc/PID/maps", pid, error))?;
    let mut files: Vec<MappedFile> = Vec::new();
    let mut by_inode: HashMap<(i32, i32, u64), Option<usize>> = HashMap::new();
    let mut unreadable = None;
    for map in maps.iter().filter(|map| map.perms.contains(MMPermissions::EXECUTE)) {
        let MMapPath::Path(path) = &map.pathname else { continue };
        let code = CodeMapping { start: map.address.0, end: map.address.1, offset: map.offset };
        let known = by_inode.entry((map.dev.0, map.dev.1, map.inode)).or_insert_with(|| {
            match open_mapped(pid, code, path, map.inode) {
                Ok(file) => {
                    files.push(MappedFile { path: path.clone(), code: Vec::new(), file });
                    Some(files.len() - 1)
                }
                Err(error) => {
                    unreadable = Some(error);
                    None
                }
            }
        });
        if let Some(index) = *known {
            files[index].code.push(code);
        }
    }
    Ok((files, unreadable))
}

/// The mapped file itself, also when it was deleted or replaced or lies in a container: first through
/// `map_files`, which needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, else by its path in the target's
/// root if that still is the same inode.
fn open_mapped(pid: u32, code: CodeMapping, path: &Path, inode: u64) -> io::Result<File> {
    let by_address = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", code.start, code.end));
    by_address.or_else(|error| {
        let path = path.strip_prefix("/").unwrap_or(path);
        let file = File::open(Path::new(&format!("/proc/{pid}/root")).join(path))?;
        if file.metadata()?.ino() == inode { Ok(file) } else { Err(error) }
    })
}

impl MappedFile {
    /// What to add to the file's own addresses to get the process's.
    fn load_bias(&self, elf: &Elf<'_>) -> Option<u64> {
        self.code.iter().find_map(|code| {
            let address = elf.address_of_offset(code.offset)?;
            Some(code.start.wrapping_sub(address))
        })
    }
}
