//! Puts the probes in: with the best kind of link that this kernel makes.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use clap::ValueEnum;
use tracer_common::function::{Capture, Class, Cookie, FUNCTIONS, nesting_classes};

use super::{
    holder::Holder,
    program::{LoadError, Object},
    sys::{self, AttachType, PerfUprobes, Point},
};
use crate::{
    error::Error,
    target::{Library, Probe, Process},
};

/// Kinds of links, from the cheapest a call to the dearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LinkKind {
    /// One program for entry and return, one link for all functions of a file (Linux 6.13).
    Session,
    /// One link for all entries of a file, one for all returns (Linux 6.6).
    Multi,
    /// A perf event for each entry and each return: detached within seconds, when we are gone.
    Perf,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "uprobe_session",
            Self::Multi => "uprobe_multi",
            Self::Perf => "perf uprobe",
        })
    }
}

/// The probes that are in. They come out when this is dropped.
#[derive(Debug)]
pub struct Probes {
    /// What kind of link the kernel made.
    pub kind: LinkKind,
    /// How many functions are probed, over all processes and libraries.
    pub functions: usize,
    held: Held,
}

/// Who has the links.
#[derive(Debug)]
enum Held {
    Here(Vec<OwnedFd>),
    ByChild(Holder),
}

/// What is attached to the functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programs {
    /// Those that trace.
    Calls,
    /// One that does nothing, to measure the floor.
    Empty,
}

/// The probes of one library in one process.
struct Site {
    pid: u32,
    /// Through our own fd, so that it is this file whatever its path has become, in whatever container.
    path: PathBuf,
    points: Vec<Point>,
}

/// Attaches to all functions of the wanted `classes` in all `processes`, with links of the `wanted` kind or
/// else the best. `bounds`: sockets must be told from later ones at their addresses whatever the classes.
pub fn attach(
    object: &Object,
    processes: &[Process],
    classes: &[Class],
    bounds: bool,
    programs: Programs,
    wanted: Option<LinkKind>,
) -> Result<Probes, Error> {
    let sites = sites(processes, classes, bounds);
    let kinds = wanted.map_or_else(|| vec![LinkKind::Session, LinkKind::Multi, LinkKind::Perf], |kind| vec![kind]);
    let mut reasons = Vec::new();
    for kind in kinds {
        let result = match kind {
            LinkKind::Session => attach_session(object, &sites, programs),
            LinkKind::Multi => attach_multi(object, &sites, programs),
            LinkKind::Perf => attach_perf(object, &sites, programs),
        };
        match result {
            Ok(held) => {
                let functions = sites.iter().map(|site| site.points.len()).sum();
                return Ok(Probes { kind, functions, held });
            }
            Err(reason) => {
                log::debug!("no {kind} links: {reason}");
                reasons.push(format!("{kind}: {reason}"));
            }
        }
    }
    Err(Error::Bpf { action: "attach to libzmq's functions".into(), reason: reasons.join("; ") })
}

fn sites(processes: &[Process], classes: &[Class], bounds: bool) -> Vec<Site> {
    processes
        .iter()
        .flat_map(|process| {
            let libraries = process.libraries.iter().enumerate();
            libraries.map(move |(number, library)| Site {
                pid: process.pid,
                path: PathBuf::from(format!("/proc/self/fd/{}", library.file.as_raw_fd())),
                points: points(number, library, classes, bounds),
            })
        })
        .filter(|site| !site.points.is_empty())
        .collect()
}

/// The functions to probe. Where one that is wanted can be called by libzmq itself, the caller is looked at.
/// Where callers cannot be told apart (libzmq linked into the program), the functions that make such calls
/// are probed as well, unreported. So are `zmq_socket` and `zmq_close`, by which a reused address is known to
/// be a new socket.
fn points(number: usize, library: &Library, classes: &[Class], bounds: bool) -> Vec<Point> {
    let wanted = |class: Class| classes.contains(&class);
    let about_sockets = bounds || classes.iter().any(|class| !matches!(class, Class::Ctx | Class::Msg));
    let to_tell = |class: Class| {
        !library.tells_callers() && classes.iter().any(|nested| nesting_classes(*nested) & class.bit() != 0)
    };
    let point = |probe: &Probe| {
        let function = &FUNCTIONS[probe.function];
        let sends_monitor_events = matches!(function.capture, Capture::SendMessage0 | Capture::SendMessage1);
        let libzmq_calls = nesting_classes(function.class) != 0 || function.capture == Capture::Close;
        let check_caller = sends_monitor_events || (library.tells_callers() && libzmq_calls);
        Point { offset: probe.offset, cookie: Cookie::new(probe.function, number, check_caller).0 }
    };
    let probed = |probe: &&Probe| {
        let function = &FUNCTIONS[probe.function];
        let bounds_sockets = matches!(function.capture, Capture::NewSocket | Capture::Close);
        wanted(function.class) || to_tell(function.class) || (about_sockets && bounds_sockets)
    };
    library.probes.iter().filter(probed).map(point).collect()
}

/// The programs stay in the kernel with their links.
type Attached = Result<Held, LoadError>;

fn attach_session(object: &Object, sites: &[Site], programs: Programs) -> Attached {
    let name = if programs == Programs::Calls { "call_session" } else { "empty" };
    let program = object.load_as(name, AttachType::UprobeSession)?;
    Ok(Held::Here(link_all(&program, AttachType::UprobeSession, sites, false)?))
}

fn attach_multi(object: &Object, sites: &[Site], programs: Programs) -> Attached {
    let (entry, ret) = entry_and_return(object, programs, AttachType::UprobeMulti)?;
    // Returns first: a return whose entry was not seen is tolerated, the other way round a call would
    // look as if it never ended.
    let mut links = link_all(&ret, AttachType::UprobeMulti, sites, true)?;
    links.extend(link_all(&entry, AttachType::UprobeMulti, sites, false)?);
    Ok(Held::Here(links))
}

fn entry_and_return(object: &Object, programs: Programs, attach: AttachType) -> Result<(OwnedFd, OwnedFd), LoadError> {
    let (entry, ret) = if programs == Programs::Calls { ("call_entry", "call_return") } else { ("empty", "empty") };
    Ok((object.load_as(entry, attach)?, object.load_as(ret, attach)?))
}

fn link_all(program: &OwnedFd, attach: AttachType, sites: &[Site], at_return: bool) -> Result<Vec<OwnedFd>, LoadError> {
    let link = |site: &Site| {
        sys::link_uprobes(program.as_fd(), attach, &site.path, &site.points, at_return, scope(site.pid))
            .map_err(refused)
    };
    sites.iter().map(link).collect()
}

/// The process that a link is limited to; 0: none. Before 6.10 the kernel took the process for its first
/// thread and let no other one through: there the kernel side's own table of targets is the limit.
fn scope(pid: u32) -> u32 {
    if sys::kernel_version() < (6, 10) { 0 } else { pid }
}

fn attach_perf(object: &Object, sites: &[Site], programs: Programs) -> Attached {
    let (entry, ret) = entry_and_return(object, programs, AttachType::Perf)?;
    let uprobes = PerfUprobes::look_up().map_err(refused)?;
    let mut holder = Holder::start().map_err(refused)?;
    // Returns first, as above. Each is handed over at once: we may be killed at any moment.
    for (program, at_return) in [(&ret, true), (&entry, false)] {
        for site in sites {
            for point in &site.points {
                let link = uprobes.link(program.as_fd(), &site.path, *point, at_return, site.pid).map_err(refused)?;
                holder.take(&link).map_err(refused)?;
            }
        }
    }
    Ok(Held::ByChild(holder))
}

fn refused(error: io::Error) -> LoadError {
    LoadError::Kernel(error, String::new())
}

impl Probes {
    /// Becomes readable when the probes are gone before we let them; `None`: they cannot.
    ///
    /// # Errors
    /// The system's.
    pub fn watch(&self) -> io::Result<Option<OwnedFd>> {
        match &self.held {
            Held::Here(_) => Ok(None),
            Held::ByChild(holder) => holder.watch().map(Some),
        }
    }
}

impl Drop for Probes {
    /// A link takes the kernel some 30 ms to detach: all at once is faster.
    fn drop(&mut self) {
        const PARALLEL: usize = 16;
        let Held::Here(links) = &mut self.held else { return };
        let links = std::mem::take(links);
        if links.len() <= 2 {
            return;
        }
        let mut shares: Vec<Vec<OwnedFd>> = (0..PARALLEL).map(|_| Vec::new()).collect();
        for (index, link) in links.into_iter().enumerate() {
            shares[index % PARALLEL].push(link);
        }
        std::thread::scope(|scope| {
            for share in shares {
                scope.spawn(move || drop(share));
            }
        });
    }
}
