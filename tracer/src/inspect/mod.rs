//! Reads a live libzmq's own structures, without stopping it: contexts, sockets, options, connections and their fds,
//! queues.
//!
//! The way in are the process's epoll fds, of which `/proc` lists what they watch. libzmq registers the addresses of its
//! own poll entries; an I/O thread's leads to its context (`context`), the context to its sockets (`socket`), a socket to
//! the sessions, listeners and connecters that it owns (`connection`) and to its pipes (`pipe`). Where libzmq keeps what
//! is data (`layouts`); which layout a build has is told by its fingerprint (`fingerprint`). Of a build that no layout
//! fits, similar objects vote (`vote`), and what comes of it is marked as inferred.
//!
//! Everything read is untrusted and races with the process: tags, back pointers and ranges are checked, what fails is
//! read anew a few times, all loops are bounded.

mod connection;
mod context;
pub mod cxx;
mod epoll;
mod fingerprint;
#[cfg(test)]
mod hostile;
pub mod image;
pub mod layouts;
#[cfg(test)]
mod made;
mod pipe;
mod prefetch;
pub mod socket;
mod subscriptions;
mod vote;

pub use self::epoll::{Watched, parse_fdinfo};
use self::{image::Image, layouts::Layout};
use crate::{event::Context, target::Version};

/// A process as it is looked into: all that comes from outside its heap.
pub struct Subject<'a> {
    /// Its number as it sees it itself: what `getpid` returns to it.
    pub own_pid: u32,
    /// Its memory.
    pub image: &'a Image<'a>,
    /// What its epoll fds watch.
    pub watched: &'a [Watched],
    /// The file-backed mappings, sorted by address.
    pub files: &'a [FileMapping],
    /// The versions that its libzmq copies say, by their index; `None` where one does not.
    pub versions: &'a [Option<Version>],
    /// The layouts that they may have: [`layouts::all`].
    pub layouts: &'a [Layout],
}

/// A mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileMapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Index of the libzmq that the file is.
    pub library: Option<u8>,
}

/// How much is wanted, the cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Sockets, connections and their queues: what can be read again and again.
    Queues,
    /// Options and endpoints besides: what sockets are called by.
    Names,
    /// Also topics, what the peers said of themselves, and what the queues hold.
    All,
}

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Look {
    /// Every context that has opened a socket.
    pub contexts: Vec<Context>,
    /// Objects that changed under the reader each time they were read, and what was left out for its cost.
    pub unread: u32,
    /// Whether something was left out for what it would have cost.
    pub is_cut: bool,
}

/// How often what changed under the reader is read anew.
const TRIES: u32 = 4;

/// Looks for everything that libzmq holds in the process.
pub fn look(subject: &Subject<'_>, detail: Detail) -> Look {
    let mut look = context::read_all(subject, &epoll::entries(subject), detail);
    look.is_cut = subject.image.is_exhausted();
    look.unread += u32::from(look.is_cut);
    look.contexts.sort_by_key(|context| (context.library, context.handle));
    look
}

impl Subject<'_> {
    /// Whether an address lies in a mapping of a file, as the tables of virtual functions do.
    fn is_in_file(&self, address: u64) -> bool {
        self.file_at(address).is_some()
    }

    fn file_at(&self, address: u64) -> Option<&FileMapping> {
        let behind = self.files.partition_point(|file| file.start <= address);
        self.files[..behind].last().filter(|file| address < file.end)
    }
}
