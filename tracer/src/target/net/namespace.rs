//! Network namespaces of processes.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::target::fds::pids;

/// A network namespace, held open.
#[derive(Debug)]
pub(super) struct Namespace {
    /// Its inode, by which the kernel names it.
    pub inode: u64,
    file: File,
}

impl Namespace {
    /// That of process `pid`.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { inode: file.metadata()?.ino(), file })
    }

    /// What `read` gives in this namespace. If it is not the caller's own, it runs on a thread that is made for it
    /// and ends with it: no thread that lives on ever changes its namespace.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN, here and in the user namespace that owns the namespace.
    pub fn enter<T: Send>(&self, read: impl FnOnce() -> T + Send) -> io::Result<T> {
        let is_ours = Self::open("/proc/thread-self/ns/net").is_ok_and(|ours| ours.inode == self.inode);
        if is_ours {
            return Ok(read());
        }
        thread::scope(|scope| {
            let within = || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(read())
            };
            let thread = thread::Builder::new().name("zmqtrace-netns".into()).spawn_scoped(scope, within)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in another network namespace panicked")))
        })
    }
}

/// Inode of the network namespace of process `pid`.
///
/// # Errors
/// `ENOENT` when there is no such process, `EACCES` when it may not be looked into (CAP_SYS_PTRACE).
pub fn network_namespace(pid: u32) -> io::Result<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/net")).map(|metadata| metadata.ino())
}

/// Every network namespace that a process lives in, and one such process: what [`KernelSockets::read`] needs to find
/// the other ends in containers too. Processes that may not be looked into are missing.
///
/// [`KernelSockets::read`]: super::KernelSockets::read
pub fn network_namespaces() -> BTreeMap<u64, u32> {
    let mut namespaces = BTreeMap::new();
    for pid in pids() {
        if let Ok(inode) = network_namespace(pid) {
            namespaces.entry(inode).or_insert(pid);
        }
    }
    namespaces
}
