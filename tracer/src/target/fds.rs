//! File descriptors of processes, from the links in `/proc/PID/fd`: a readlinkat(2) each, 1 to 3 us. Nothing is
//! opened through them, so nothing is held open for the target.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::CStr,
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{RawDir, readlinkat_raw},
    io::Errno,
    path::DecInt,
};

use super::share;

/// A getdents64(2) gives as many entries as fit; one of an fd takes 24 bytes.
const DIRECTORY_BYTES: usize = 32 << 10;
/// Links that are worth a thread.
const LEAST_LINKS: usize = 500;
/// Links longer than this are paths of files.
const LINK_BYTES: usize = 64;

/// The fds of a process that can be a socket's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fds {
    /// epoll instances, ascending. libzmq's pollers are such.
    pub event_polls: Vec<i32>,
    /// Sockets of any family: fd to inode.
    pub sockets: BTreeMap<i32, u64>,
}

/// The fds of process `pid`, in one pass. An fd that is closed meanwhile may be missing.
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process, `EACCES` when it may not be looked into (CAP_SYS_PTRACE).
pub fn fds(pid: u32) -> io::Result<Fds> {
    let directory = File::open(format!("/proc/{pid}/fd"))?;
    let mut numbers: Vec<i32> = Vec::new();
    each_number(&directory, &mut Vec::new(), |number, _| {
        numbers.push(number);
        Ok(())
    })?;
    let parts = share::map(&numbers, LEAST_LINKS, |numbers| {
        let (mut event_polls, mut sockets) = (Vec::new(), Vec::new());
        for fd in numbers {
            match link_of(&directory, *fd, kind) {
                Ok(Kind::EventPoll) => event_polls.push(*fd),
                Ok(Kind::Socket(inode)) => sockets.push((*fd, inode)),
                Ok(Kind::Other) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((event_polls, sockets))
    });
    let mut fds = Fds::default();
    for part in parts {
        let (event_polls, sockets) = part?;
        fds.event_polls.extend(event_polls);
        fds.sockets.extend(sockets);
    }
    Ok(fds)
}

impl Fds {
    /// Forgets those of `some` sockets that are no longer what they were: closed, or used again for another one.
    pub fn confirm(&mut self, pid: u32, some: impl Iterator<Item = i32>) {
        let Ok(directory) = File::open(format!("/proc/{pid}/fd")) else { return };
        let some: Vec<i32> = some.collect();
        let others = share::map(&some, LEAST_LINKS, |some| {
            let is_another = |fd: &i32| {
                let now = link_of(&directory, *fd, socket_inode).ok().flatten();
                now != self.sockets.get(fd).copied()
            };
            some.iter().copied().filter(is_another).collect::<Vec<_>>()
        });
        for fd in others.into_iter().flatten() {
            self.sockets.remove(&fd);
        }
    }
}

/// Who holds the sockets `inodes`: pid and fd, ascending. After a fork, or where an fd was passed on, these are
/// several, and all are given: so the pass over the processes always goes to its end. Processes that end meanwhile
/// or may not be looked into are missing.
pub fn owners(inodes: &HashSet<u64>) -> HashMap<u64, Vec<(u32, i32)>> {
    let mut owners: HashMap<u64, Vec<(u32, i32)>> = HashMap::new();
    if inodes.is_empty() {
        return owners;
    }
    let mut buffer = Vec::new();
    for pid in pids() {
        // Kernel threads have none: their empty directory is the quickest way to know them. A process that has
        // ended or may not be looked into is nobody's owner.
        _ = each_link(pid, &mut buffer, |fd, link| {
            if let Some(inode) = socket_inode(link)
                && inodes.contains(&inode)
            {
                owners.entry(inode).or_default().push((pid, fd));
            }
        });
    }
    owners
}

/// All processes at this moment, ascending; none where `/proc` cannot be read.
pub(super) fn pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Calls `each` with every fd of `pid` and the start of its link.
fn each_link(pid: u32, buffer: &mut Vec<u8>, mut each: impl FnMut(i32, &[u8])) -> io::Result<()> {
    let directory = File::open(format!("/proc/{pid}/fd"))?;
    each_number(&directory, buffer, |fd, name| {
        let mut link = [MaybeUninit::uninit(); LINK_BYTES];
        match link_start(directory.as_fd(), name, &mut link) {
            Ok(link) => each(fd, link),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })
}

/// Calls `each` with every fd of a directory and its name, until that fails.
fn each_number(
    directory: &File,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(i32, &CStr) -> Result<(), Errno>,
) -> io::Result<()> {
    buffer.clear();
    buffer.reserve(DIRECTORY_BYTES);
    let mut entries = RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        // All but `.` and `..`.
        let Some(fd) = name.to_str().ok().and_then(|name| name.parse().ok()) else { continue };
        each(fd, name)?;
    }
    Ok(())
}

/// What the link of a fd says.
fn link_of<T>(directory: &File, fd: i32, says: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
    let mut link = [MaybeUninit::uninit(); LINK_BYTES];
    let name = DecInt::new(fd);
    link_start(directory.as_fd(), name.as_c_str(), &mut link).map(says)
}

fn link_start<'link>(
    directory: BorrowedFd<'_>,
    name: &CStr,
    link: &'link mut [MaybeUninit<u8>; LINK_BYTES],
) -> Result<&'link [u8], Errno> {
    readlinkat_raw(directory, name, link).map(|(start, _)| &*start)
}

/// What a fd can be.
enum Kind {
    EventPoll,
    Socket(u64),
    Other,
}

fn kind(link: &[u8]) -> Kind {
    match link {
        b"anon_inode:[eventpoll]" => Kind::EventPoll,
        _ => socket_inode(link).map_or(Kind::Other, Kind::Socket),
    }
}

/// `socket:[12345]`.
fn socket_inode(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_other_things_are_not_sockets() {
        assert_eq!(socket_inode(b"socket:[12345]"), Some(12345));
        for link in [&b"socket:[]"[..], b"socket:[-1]", b"socket:[99999999999999999999]", b"socket:[1", b"/socket:[1]"]
        {
            assert_eq!(socket_inode(link), None);
        }
    }
}
