//! Looks into processes: everything that `/proc`, the kernel's tables and their memory say at a moment, without a
//! probe. One look, or one each interval, as a stream of events.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    convert::Infallible,
    fs, io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Ending, Events,
    blocked::Sleepers,
    describe,
    event_polls::EventPolls,
    every, monotonic_ns, or_never,
    pace::{Late, Pace},
    priority, realtime_ns, runtime_error,
};
use crate::{
    error::Error,
    event::{Connection, End, EndReason, Event, ProcessEnd, Queue, Queues, Snapshot, Start, Tick},
    inspect::{self, Detail, Look, Subject, image::Image, layouts},
    target::{
        self, Memory, Process,
        fds::{self, Fds},
        net::{self, KernelSockets},
        share,
    },
};

/// What to look into, and how often.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Processes.
    pub pids: Vec<u32>,
    /// Every process that has a ZeroMQ socket besides.
    pub all: bool,
    /// Look again this often, or as often as the cost allows; else once.
    pub interval: Option<Duration>,
    /// Look at the queues this often.
    pub queues: Option<Duration>,
    /// Whether stacks are wanted with source files and lines.
    pub lines: bool,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Set when the end is noticed.
    pub ending: Arc<AtomicBool>,
}

/// A stream of looks.
pub struct Snapshots {
    options: Options,
    targets: BTreeMap<u32, Target>,
    looks: Option<Pace>,
    samples: Option<tokio::time::Interval>,
    deadline: Option<Instant>,
    sleepers: Sleepers,
    ending: Ending,
    ended: Option<EndReason>,
    started: bool,
    finished: bool,
}

/// A process that is looked into.
struct Target {
    process: Process,
    event_polls: EventPolls,
    /// Whether it was asked for.
    is_asked: bool,
    /// Whether the stream knows it.
    is_introduced: bool,
    /// What tells the program that it runs from the next one: the kernel's notes to it, with addresses and random
    /// bytes of its own.
    program: Vec<u8>,
}

impl Target {
    fn open(pid: u32, is_asked: bool) -> Result<Self, Error> {
        let (program, process) = (program(pid), Process::open_to_inspect(pid)?);
        Ok(Self { process, event_polls: EventPolls::default(), is_asked, is_introduced: false, program })
    }

    /// After an exec nothing that is known of it holds. Whether that was so.
    fn reopen_if_replaced(&mut self) -> bool {
        let pid = self.process.pid;
        if program(pid) != self.program
            && let Ok(target) = Self::open(pid, self.is_asked)
        {
            let was_known = self.is_introduced;
            *self = target;
            return was_known;
        }
        false
    }

    /// Whether the process has ended. Its number may be another one's by now.
    fn has_ended(&self) -> bool {
        let mut ended = libc::pollfd { fd: self.process.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure of ours, with a fd that is open. It does not wait.
        unsafe { libc::poll(&raw mut ended, 1, 0) == 1 }
    }
}

fn program(pid: u32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default()
}

/// What happened while we waited.
enum Wake {
    Look(Option<Late>),
    Sample,
    Ended(EndReason),
}

impl Snapshots {
    /// Opens the processes that are asked for.
    ///
    /// # Errors
    /// When one of them is not there, may not be looked into, or has no libzmq.
    pub fn start(options: Options) -> Result<Self, Error> {
        if options.interval.is_some() || options.queues.is_some() {
            priority::yield_to_targets();
        }
        let mut targets = BTreeMap::new();
        for pid in &options.pids {
            targets.insert(*pid, Target::open(*pid, true)?);
        }
        Ok(Self {
            looks: options.interval.map(Pace::new),
            samples: options.queues.map(every),
            deadline: options.duration.map(|duration| Instant::now() + duration),
            sleepers: Sleepers::default(),
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
            late = or_never(looks.as_mut().map(Pace::tick)) => Wake::Look(late),
            _ = or_never(samples.as_mut().map(tokio::time::Interval::tick)) => Wake::Sample,
        }
    }

    /// Looks into all processes, and into those at the other ends of their connections.
    fn look(&mut self, late: Option<Late>) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        let (round, kernel) = std::thread::scope(|scope| {
            let read_kernel = || KernelSockets::read(net::network_namespaces().into_values());
            let (begin, begun) = mpsc::channel();
            let kernel = share::helper(scope, move || {
                // Nothing is ever sent.
                let _ = begun.recv();
                read_kernel()
            });
            if self.options.all {
                self.find_all();
            }
            let mut round = Round { kernel: Some(begin), ..Round::default() };
            for pid in self.asked() {
                self.look_into(pid, &mut round, &mut events)?;
            }
            round.kernel = None;
            let kernel = kernel.map_or_else(read_kernel, |kernel| kernel.join().unwrap_or_default());
            Ok((round, kernel))
        })?;
        let mut round = round;
        round.describe_connections(&kernel);
        for pid in round.processes_at_other_ends(&kernel) {
            if let Entry::Vacant(vacant) = self.targets.entry(pid) {
                let Ok(target) = Target::open(pid, false) else { continue };
                vacant.insert(target);
            }
            self.look_into(pid, &mut round, &mut events)?;
        }
        round.describe_connections(&kernel);
        round.add_shortfalls(&kernel);
        for (pid, mut snapshot) in round.snapshots {
            snapshot.missing.extend(late.map(|late| late.to_string()));
            // Complete only now.
            snapshot.ts_ns = monotonic_ns();
            if let Some(target) = self.targets.get_mut(&pid)
                && !target.is_introduced
            {
                target.is_introduced = true;
                events.push(Event::Process(describe(&target.process, snapshot.ts_ns, target.is_asked)));
            }
            events.push(Event::Snapshot(Arc::new(snapshot)));
        }
        events.push(Event::Tick(Tick { ts_ns: monotonic_ns() }));
        self.targets.retain(|_, target| target.is_asked || target.is_introduced);
        Ok(events)
    }

    fn asked(&self) -> Vec<u32> {
        self.targets.iter().filter(|(_, target)| target.is_asked).map(|(pid, _)| *pid).collect()
    }

    fn look_into(&mut self, pid: u32, round: &mut Round, events: &mut Vec<Event>) -> Result<(), Error> {
        let Some(target) = self.targets.get_mut(&pid) else { return Ok(()) };
        // Only what was typed can be refused, and only at first: later it just ends.
        let may_refuse = target.is_asked && !target.is_introduced && !self.options.all;
        if target.has_ended() {
            if self.targets.remove(&pid).is_some_and(|target| target.is_introduced) {
                events.push(Event::ProcessExit(ProcessEnd { ts_ns: monotonic_ns(), pid }));
            }
            return if may_refuse { Err(Error::NoSuchProcess { pid }) } else { Ok(()) };
        }
        if target.reopen_if_replaced() {
            events.push(Event::Exec(ProcessEnd { ts_ns: monotonic_ns(), pid }));
        }
        match round.look_into(target, &mut self.sleepers, self.options.lines) {
            Ok(()) if may_refuse && round.has_nothing(&target.process) => Err(target::absence(pid)),
            Ok(()) => Ok(()),
            Err(error) if may_refuse => Err(target::look_error(pid, error)),
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
            let Ok(mut target) = Target::open(pid, true) else { continue };
            let Target { process, event_polls, .. } = &mut target;
            let look = look_with(process, &fds, event_polls, Detail::Queues);
            if look.is_ok_and(|look| !look.contexts.is_empty()) {
                self.targets.insert(pid, target);
            }
        }
    }

    /// Looks at the queues alone.
    fn sample(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.targets.retain(|pid, target| {
            if !target.is_asked {
                return true;
            }
            let sample = if target.has_ended() {
                Err(io::Error::from(io::ErrorKind::NotFound))
            } else {
                queues(&target.process, &mut target.event_polls).map(Event::Queues)
            };
            let is_there = sample.is_ok();
            let end = || Event::ProcessExit(ProcessEnd { ts_ns: monotonic_ns(), pid: *pid });
            events.push(sample.unwrap_or_else(|_| end()));
            is_there
        });
        events
    }

    /// Ends the stream when there is nothing left to look into.
    fn end_with_targets(&mut self) {
        if !self.options.all && self.targets.values().all(|target| !target.is_asked) {
            self.ended = Some(EndReason::TargetsEnded);
        }
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
            events.extend(self.look(None)?);
            if self.looks.is_none() && self.samples.is_none() {
                self.ended = Some(EndReason::Complete);
            }
            return Ok(Some(events));
        }
        if self.ended.is_none() {
            match self.wait().await {
                Wake::Look(late) => {
                    let events = self.look(late)?;
                    self.end_with_targets();
                    return Ok(Some(events));
                }
                Wake::Sample => {
                    let events = self.sample();
                    self.end_with_targets();
                    return Ok(Some(events));
                }
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
#[derive(Default)]
struct Round {
    snapshots: BTreeMap<u32, Snapshot>,
    fds: HashMap<u32, Fds>,
    /// What the reader of the kernel's tables waits for: reading fds takes all CPUs, and memory one.
    kernel: Option<mpsc::Sender<Infallible>>,
}

impl Round {
    fn look_into(&mut self, target: &mut Target, sleepers: &mut Sleepers, lines: bool) -> io::Result<()> {
        let Target { process, event_polls, .. } = target;
        let mut fds = fds::fds(process.pid)?;
        self.kernel = None;
        let mut snapshot = take(process, &fds, event_polls, Detail::All)?;
        // One that was closed and used again while the memory was read is another socket's now.
        fds.confirm(process.pid, connections(&mut snapshot).filter_map(|connection| connection.fd));
        // Without what they say the rest is as good.
        match sleepers.find(process, &snapshot.contexts, lines) {
            Ok(blocked) => snapshot.blocked = blocked,
            Err(error) => snapshot.missing.push(format!("blocked threads ({error})")),
        }
        self.snapshots.insert(process.pid, snapshot);
        self.fds.insert(process.pid, fds);
        Ok(())
    }

    /// Whether nothing of ZeroMQ was found in a process.
    fn has_nothing(&self, process: &Process) -> bool {
        let contexts = self.snapshots.get(&process.pid).map_or(0, |snapshot| snapshot.contexts.len());
        contexts == 0 && process.libraries.is_empty()
    }

    /// Adds what the kernel knows of the connections.
    fn describe_connections(&mut self, kernel: &KernelSockets) {
        for (pid, snapshot) in &mut self.snapshots {
            if let Some(fds) = self.fds.get(pid) {
                describe_connections(snapshot, fds, kernel);
            }
        }
    }

    /// Adds what the kernel did not tell of the processes' networks.
    fn add_shortfalls(&mut self, kernel: &KernelSockets) {
        for snapshot in self.snapshots.values_mut() {
            let of_network = kernel
                .shortfalls()
                .iter()
                .filter(|shortfall| net::network_namespace(shortfall.pid).ok() == snapshot.network);
            snapshot.missing.extend(of_network.map(ToString::to_string));
        }
    }

    /// The processes, not looked into yet, that hold the other ends of connections. Notes them at the connections.
    fn processes_at_other_ends(&mut self, kernel: &KernelSockets) -> Vec<u32> {
        let known: HashSet<u64> = self.fds.values().flat_map(|fds| fds.sockets.values().copied()).collect();
        let mut ends: Vec<(u32, u64, u64)> = Vec::new();
        for (pid, snapshot) in &mut self.snapshots {
            for connection in connections(snapshot) {
                let inode = connection.kernel.as_ref().map(|kernel| kernel.inode);
                let other = inode.and_then(|inode| kernel.other_end(kernel.get(inode)?)).map(|end| end.inode);
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

/// Adds what the kernel knows of the connections of a process, where that is not known yet.
pub fn describe_connections(snapshot: &mut Snapshot, fds: &Fds, kernel: &KernelSockets) {
    for connection in connections(snapshot).filter(|connection| connection.kernel.is_none()) {
        let socket = connection.fd.and_then(|fd| kernel.get(*fds.sockets.get(&fd)?));
        let Some(socket) = socket else { continue };
        connection.local = socket.local.as_ref().map(ToString::to_string);
        // What libzmq notes of the peer lacks the port.
        connection.remote = socket.remote.as_ref().map(ToString::to_string);
        connection.kernel = Some(socket.to_event());
    }
}

fn connections(snapshot: &mut Snapshot) -> impl Iterator<Item = &mut Connection> {
    snapshot.contexts.iter_mut().flat_map(|context| &mut context.sockets).flat_map(|socket| &mut socket.connections)
}

/// What libzmq holds in a process now, without what the kernel knows of its connections.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn take(process: &Process, fds: &Fds, event_polls: &mut EventPolls, detail: Detail) -> io::Result<Snapshot> {
    let begun_ns = monotonic_ns();
    let Look { contexts, unread, is_cut } = look_with(process, fds, event_polls, detail)?;
    let now_ns = monotonic_ns();
    let status = procfs::process::Process::new(process.pid as i32).and_then(|proc| proc.status()).ok();
    Ok(Snapshot {
        ts_ns: now_ns,
        took_ns: now_ns - begun_ns,
        pid: process.pid,
        network: net::network_namespace(process.pid).ok(),
        contexts,
        blocked: Vec::new(),
        unread,
        missing: is_cut
            .then(|| "what exceeds the cost of one look: this process holds too much".into())
            .into_iter()
            .collect(),
        // `T (stopped)`, `t (tracing stop)`.
        stopped: status.as_ref().is_some_and(|status| status.state.starts_with(['T', 't'])),
        tracer_pid: status.and_then(|status| u32::try_from(status.tracerpid).ok()).filter(|pid| *pid != 0),
    })
}

/// The queues of all sockets of a process.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn queues(process: &Process, event_polls: &mut EventPolls) -> io::Result<Queues> {
    let look = look_with(process, &fds::fds(process.pid)?, event_polls, Detail::Queues)?;
    let ts_ns = monotonic_ns();
    let sockets = look.contexts.into_iter().flat_map(|context| context.sockets);
    let queues = sockets.flat_map(|socket| {
        let queue = move |connection: Connection| {
            let (handle, generation) = (socket.handle, socket.generation);
            connection.pipes.map(|pipes| Queue { handle, generation, fd: connection.fd, pipes })
        };
        socket.connections.into_iter().filter_map(queue)
    });
    Ok(Queues { ts_ns, pid: process.pid, queues: queues.collect() })
}

/// What libzmq holds in a process. What was read of one that has ended meanwhile may be half of it: that is an error.
fn look_with(process: &Process, fds: &Fds, event_polls: &mut EventPolls, detail: Detail) -> io::Result<Look> {
    let files = process.file_mappings();
    let versions: Vec<_> = process.libraries.iter().map(|library| library.version).collect();
    let memory = Memory::new(process.pid);
    let image = Image::new(&memory);
    let subject = Subject {
        own_pid: process.own_pid,
        image: &image,
        watched: event_polls.watched(process.pid, fds),
        files: &files,
        versions: &versions,
        layouts: layouts::all(),
    };
    let look = inspect::look(&subject, detail);
    if memory.is_gone() { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(look) }
}
