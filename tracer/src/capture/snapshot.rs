//! Looks into processes: everything that `/proc`, the kernel's tables and their memory say at a moment, without a
//! probe. One look, or one each interval, as a stream of events.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Ending, Events, describe, every, monotonic_ns, or_never, realtime_ns, runtime_error};
use crate::{
    error::Error,
    event::{Connection, End, EndReason, Event, ProcessEnd, Queue, Queues, Snapshot, Start, Tick},
    inspect::{self, Detail, Look, Subject, image::Image, layouts},
    target::{
        self, Memory, Process,
        fds::{self, Fds},
        net::{self, KernelSockets},
    },
};

/// What to look into, and how often.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Processes.
    pub pids: Vec<u32>,
    /// Every process that has a ZeroMQ socket besides.
    pub all: bool,
    /// Look again this often; else once.
    pub interval: Option<Duration>,
    /// Look at the queues this often.
    pub queues: Option<Duration>,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Set when the end is noticed.
    pub ending: Arc<AtomicBool>,
}

/// A stream of looks.
pub struct Snapshots {
    options: Options,
    targets: BTreeMap<u32, Target>,
    looks: Option<tokio::time::Interval>,
    samples: Option<tokio::time::Interval>,
    deadline: Option<Instant>,
    ending: Ending,
    ended: Option<EndReason>,
    started: bool,
    finished: bool,
}

/// A process that is looked into.
struct Target {
    process: Process,
    /// Whether it was asked for.
    is_asked: bool,
    /// Whether the stream knows it.
    is_introduced: bool,
}

/// What happened while we waited.
enum Wake {
    Look,
    Sample,
    Ended(EndReason),
}

impl Snapshots {
    /// Opens the processes that are asked for.
    ///
    /// # Errors
    /// When one of them is not there, may not be looked into, or has no libzmq.
    pub fn start(options: Options) -> Result<Self, Error> {
        let mut targets = BTreeMap::new();
        for pid in &options.pids {
            let process = Process::open_to_inspect(*pid)?;
            targets.insert(*pid, Target { process, is_asked: true, is_introduced: false });
        }
        Ok(Self {
            looks: options.interval.map(every),
            samples: options.queues.map(every),
            deadline: options.duration.map(|duration| Instant::now() + duration),
            ending: Ending::new().map_err(|error| runtime_error(&error))?,
            targets,
            options,
            ended: None,
            started: false,
            finished: false,
        })
    }

    async fn wait(&mut self) -> Wake {
        let Self { looks, samples, deadline, ending, .. } = self;
        tokio::select! {
            biased;
            () = ending.asked() => Wake::Ended(EndReason::Asked),
            () = or_never(deadline.map(tokio::time::sleep_until)) => Wake::Ended(EndReason::Duration),
            _ = or_never(looks.as_mut().map(tokio::time::Interval::tick)) => Wake::Look,
            _ = or_never(samples.as_mut().map(tokio::time::Interval::tick)) => Wake::Sample,
        }
    }

    /// Looks into all processes, and into those at the other ends of their connections.
    fn look(&mut self) -> Result<Vec<Event>, Error> {
        if self.options.all {
            self.find_all();
        }
        let kernel = KernelSockets::read(net::network_namespaces().into_values());
        let mut round = Round { kernel: &kernel, snapshots: BTreeMap::new(), fds: HashMap::new() };
        let mut events = Vec::new();
        let pids: Vec<u32> = self.targets.iter().filter(|(_, target)| target.is_asked).map(|(pid, _)| *pid).collect();
        for pid in pids {
            self.look_into(pid, &mut round, &mut events)?;
        }
        for pid in round.processes_at_other_ends() {
            let process = match self.targets.remove(&pid) {
                Some(target) => Some(target),
                None => Process::open_to_inspect(pid).ok().map(|process| Target {
                    process,
                    is_asked: false,
                    is_introduced: false,
                }),
            };
            if let Some(target) = process {
                self.targets.insert(pid, target);
                self.look_into(pid, &mut round, &mut events)?;
            }
        }
        for (pid, snapshot) in round.snapshots {
            if let Some(target) = self.targets.get_mut(&pid)
                && !target.is_introduced
            {
                target.is_introduced = true;
                let process = describe(&target.process, snapshot.ts_ns, target.is_asked);
                events.push(Event::Process(process));
            }
            events.push(Event::Snapshot(snapshot));
        }
        events.push(Event::Tick(Tick { ts_ns: monotonic_ns() }));
        self.targets.retain(|_, target| target.is_asked || target.is_introduced);
        Ok(events)
    }

    fn look_into(&mut self, pid: u32, round: &mut Round<'_>, events: &mut Vec<Event>) -> Result<(), Error> {
        let Some(target) = self.targets.get(&pid) else { return Ok(()) };
        match round.look_into(&target.process) {
            Ok(snapshot) => {
                let nothing_there = snapshot.contexts.is_empty() && target.process.libraries.is_empty();
                if nothing_there && target.is_asked && !self.options.all {
                    return Err(target::absence(pid));
                }
                if !nothing_there {
                    round.snapshots.insert(pid, snapshot);
                }
                Ok(())
            }
            Err(error) if target.is_asked && !target.is_introduced && !self.options.all => {
                Err(target::look_error(pid, error))
            }
            Err(_) => {
                if self.targets.remove(&pid).is_some_and(|target| target.is_introduced) {
                    events.push(Event::ProcessExit(ProcessEnd { ts_ns: monotonic_ns(), pid }));
                }
                Ok(())
            }
        }
    }

    /// Every process that has a context.
    fn find_all(&mut self) {
        for (pid, fds) in target::with_event_polls() {
            if self.targets.contains_key(&pid) {
                continue;
            }
            let Ok(process) = Process::open_to_inspect(pid) else { continue };
            if look_with(&process, &fds, Detail::Queues).contexts.is_empty() {
                continue;
            }
            self.targets.insert(pid, Target { process, is_asked: true, is_introduced: false });
        }
    }

    /// Looks at the queues alone.
    fn sample(&mut self) -> Vec<Event> {
        let asked = self.targets.values().filter(|target| target.is_asked);
        let sample = |target: &Target| queues(&target.process).ok().map(Event::Queues);
        asked.filter_map(sample).collect()
    }
}

impl Events for Snapshots {
    fn stop(&mut self) {
        self.ended.get_or_insert(EndReason::Asked);
    }

    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        if self.finished {
            return Ok(None);
        }
        if !self.started {
            self.started = true;
            let mut events =
                vec![Event::Start(Start { ts_ns: monotonic_ns(), realtime_ns: realtime_ns(), totals: false })];
            events.extend(self.look()?);
            if self.looks.is_none() && self.samples.is_none() {
                self.ended = Some(EndReason::Complete);
            }
            return Ok(Some(events));
        }
        if self.ended.is_none() {
            match self.wait().await {
                Wake::Look => {
                    let events = self.look()?;
                    if self.targets.values().all(|target| !target.is_asked) && !self.options.all {
                        self.ended = Some(EndReason::TargetsEnded);
                    }
                    return Ok(Some(events));
                }
                Wake::Sample => return Ok(Some(self.sample())),
                Wake::Ended(reason) => self.ended = Some(reason),
            }
        }
        self.options.ending.store(true, Relaxed);
        self.finished = true;
        let now_ns = monotonic_ns();
        let reason = self.ended.unwrap_or(EndReason::Asked);
        Ok(Some(vec![Event::End(End { ts_ns: now_ns, sampled_ns: now_ns, reason })]))
    }
}

/// One look at everything.
struct Round<'a> {
    kernel: &'a KernelSockets,
    snapshots: BTreeMap<u32, Snapshot>,
    fds: HashMap<u32, Fds>,
}

impl Round<'_> {
    fn look_into(&mut self, process: &Process) -> io::Result<Snapshot> {
        let fds = fds::fds(process.pid)?;
        let mut snapshot = take(process, &fds, Detail::All)?;
        for connection in connections(&mut snapshot) {
            let socket = connection.fd.and_then(|fd| self.kernel.get(*fds.sockets.get(&fd)?));
            let Some(socket) = socket else { continue };
            connection.local = socket.local.as_ref().map(ToString::to_string);
            // What libzmq notes of the peer lacks the port.
            connection.remote = socket.remote.as_ref().map(ToString::to_string);
            connection.kernel = Some(socket.to_event());
        }
        self.fds.insert(process.pid, fds);
        Ok(snapshot)
    }

    /// The processes, not looked into yet, that hold the other ends of connections. Notes them at the connections.
    fn processes_at_other_ends(&mut self) -> Vec<u32> {
        let known: HashSet<u64> = self.fds.values().flat_map(|fds| fds.sockets.values().copied()).collect();
        let mut ends: Vec<(u32, u64, u64)> = Vec::new();
        for (pid, snapshot) in &mut self.snapshots {
            for connection in connections(snapshot) {
                let inode = connection.kernel.as_ref().map(|kernel| kernel.inode);
                let other = inode.and_then(|inode| self.kernel.other_end(self.kernel.get(inode)?)).map(|end| end.inode);
                if let (Some(inode), Some(other)) = (inode, other.filter(|other| *other != 0 && !known.contains(other)))
                {
                    ends.push((*pid, inode, other));
                }
            }
        }
        let owners = fds::owners(&ends.iter().map(|(.., other)| *other).collect());
        let owner = |inode: &u64| owners.get(inode)?.first().map(|(pid, _)| *pid);
        let peers: HashMap<u64, u32> =
            ends.iter().filter_map(|(_, inode, other)| Some((*inode, owner(other)?))).collect();
        for snapshot in self.snapshots.values_mut() {
            for connection in connections(snapshot) {
                let inode = connection.kernel.as_ref().map(|kernel| kernel.inode);
                connection.peer_pid = inode.and_then(|inode| peers.get(&inode)).copied();
            }
        }
        let pids: HashSet<u32> = peers.into_values().filter(|pid| *pid != std::process::id()).collect();
        pids.into_iter().collect()
    }
}

fn connections(snapshot: &mut Snapshot) -> impl Iterator<Item = &mut Connection> {
    snapshot.contexts.iter_mut().flat_map(|context| &mut context.sockets).flat_map(|socket| &mut socket.connections)
}

/// What libzmq holds in a process now, without what the kernel knows of its connections.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn take(process: &Process, fds: &Fds, detail: Detail) -> io::Result<Snapshot> {
    let begun_ns = monotonic_ns();
    let Look { contexts, unread } = look_with(process, fds, detail);
    let now_ns = monotonic_ns();
    // A process that has ended has no memory left: what was read may be half of it.
    fs::metadata(format!("/proc/{}/fd/.", process.pid))?;
    Ok(Snapshot {
        ts_ns: now_ns,
        took_ns: now_ns - begun_ns,
        pid: process.pid,
        network: net::network_namespace(process.pid).ok(),
        contexts,
        blocked: Vec::new(),
        unread,
    })
}

/// The queues of all sockets of a process.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn queues(process: &Process) -> io::Result<Queues> {
    let snapshot = take(process, &fds::fds(process.pid)?, Detail::Queues)?;
    let sockets = snapshot.contexts.into_iter().flat_map(|context| context.sockets);
    let queues = sockets.flat_map(|socket| {
        let queue = move |connection: Connection| {
            let (handle, generation) = (socket.handle, socket.generation);
            connection.pipes.map(|pipes| Queue { handle, generation, fd: connection.fd, pipes })
        };
        socket.connections.into_iter().filter_map(queue)
    });
    Ok(Queues { ts_ns: snapshot.ts_ns, pid: snapshot.pid, queues: queues.collect() })
}

fn look_with(process: &Process, fds: &Fds, detail: Detail) -> Look {
    let fdinfo = |fd: &i32| fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", process.pid)).unwrap_or_default();
    let watched: Vec<_> = fds.event_polls.iter().flat_map(|fd| inspect::parse_fdinfo(&fdinfo(fd))).collect();
    let files = process.file_mappings();
    let versions: Vec<_> = process.libraries.iter().map(|library| library.version).collect();
    let memory = Memory::new(process.pid);
    let image = Image::new(&memory);
    let subject = Subject {
        own_pid: process.own_pid(),
        image: &image,
        watched: &watched,
        files: &files,
        versions: &versions,
        layouts: layouts::all(),
    };
    inspect::look(&subject, detail)
}
