//! Loads and attaches the BPF programs, reads the ring, samples, and yields events. Raw records, maps and
//! clocks end here.

mod attach;
mod blocked;
mod btf;
mod event_polls;
mod fds;
mod handshake;
mod holder;
mod in_flight;
mod join;
mod order;
mod pace;
mod priority;
mod program;
mod record;
pub mod registers;
pub mod snapshot;
mod sys;
mod totals;
mod wire;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::{Array, HashMap, MapData, RingBuf};
use aya_log::EbpfLogger;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracer_common::{
    function::Class,
    limits::MAX_THREADS,
    record::{SocketAddress, TargetConfig},
    wire::WireScope,
};

use self::{
    attach::Probes,
    blocked::Sleepers,
    event_polls::EventPolls,
    fds::Follower,
    in_flight::Sampler,
    join::Joiner,
    order::Order,
    program::{Constants, Object},
    record::Decoder,
    sys::MappedArray,
    totals::{TotalsReader, read_loss},
};
pub use self::{
    attach::{LinkKind, Programs},
    btf::KernelTypes,
};
use crate::{
    error::Error,
    event::{Call, End, EndReason, Event, Library, Loss, Process, ProcessEnd, Socket, Start, Tick, Totals},
    inspect::{self, Detail},
    target::{self, Memory, net::KernelSockets},
};

/// How often the ring is read when little happens. Nothing wakes us.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);
/// How many records are read before they are passed on: bounds our own memory.
const DRAIN_RECORDS: usize = 16 << 10;
/// How often losses and counted sockets are looked up.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often a process that has replaced its program is looked into without a pause, and then the pause.
const REOPEN_TRIES: u32 = 100;

/// What to capture.
#[derive(Debug, Clone)]
pub struct Options {
    /// Classes of functions to attach to.
    pub classes: Vec<Class>,
    /// Those of them whose calls are wanted one by one.
    pub records: Vec<Class>,
    /// Whether the kernel is to count calls.
    pub totals: bool,
    /// Whether the fds of sockets are to be followed.
    pub fds: bool,
    /// Whether system calls on connections are recorded, those that fail too.
    pub net: bool,
    /// Whether it matters when those began.
    pub net_entries: bool,
    /// Whether calls that complete messages say which pipes those went through. Nothing of payloads is copied then.
    pub pipes: bool,
    /// Whether a process needs no libzmq: all its stream sockets are looked at.
    pub wire_only: bool,
    /// Bytes of each payload to copy.
    pub payload_limit: u32,
    /// Size of the ring, a power of two.
    pub ring_bytes: u32,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Yield totals and a tick this often.
    pub interval: Option<Duration>,
    /// Look at the queues this often.
    pub queues: Option<Duration>,
    /// The kind of link to use; else the best.
    pub link: Option<LinkKind>,
    /// What to attach.
    pub programs: Programs,
    /// Whether the BPF side is to report on itself.
    pub debug: bool,
    /// Set when the capture has noticed that it is to end.
    pub ending: Arc<AtomicBool>,
}

/// Where events come from.
pub trait Events {
    /// The next events, in order; `None` after [`Event::End`].
    ///
    /// # Errors
    /// When the source cannot go on.
    fn next(&mut self) -> impl Future<Output = Result<Option<Vec<Event>>, Error>>;

    /// Ends the stream at the next [`next`](Self::next).
    fn stop(&mut self);
}

/// A running capture.
pub struct Capture {
    /// Dropped first: the probes come out.
    probes: Option<Probes>,
    /// Tells when they are out too early.
    probes_gone: Option<AsyncFd<OwnedFd>>,
    ring: RingBuf<MapData>,
    decoder: Decoder,
    order: Order,
    sampler: Sampler,
    totals: Option<TotalsReader>,
    lost: Array<MapData, u64>,
    closed: HashMap<MapData, SocketAddress, u32>,
    targets: HashMap<MapData, u32, TargetConfig>,
    follower: Option<Follower>,
    joiner: Option<Joiner>,
    loss: Loss,
    look_due: Instant,
    /// Targets that have not ended.
    alive: Vec<(target::Process, AsyncFd<OwnedFd>)>,
    /// Targets that have replaced their program and were not looked into since, and how often that was tried.
    replaced: Vec<(u32, u32)>,
    /// Sockets that the stream has introduced: process, handle, generation.
    introduced: HashSet<(u32, u64, u32)>,
    options: Options,
    event_polls: BTreeMap<u32, EventPolls>,
    clock: Clock,
    ended: Option<EndReason>,
    ending: Arc<AtomicBool>,
    finished: bool,
    attached: (usize, LinkKind),
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    _object: Object,
    ready: Vec<Event>,
}

/// What makes time pass and ends the capture.
struct Clock {
    drain: tokio::time::Interval,
    tick: Option<tokio::time::Interval>,
    sample: Option<tokio::time::Interval>,
    deadline: Option<Instant>,
    ending: Ending,
}

/// Signals that ask us to end.
struct Ending {
    interrupt: Signal,
    terminate: Signal,
    /// None where `nohup` has it ignored.
    hangup: Option<Signal>,
}

impl Ending {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup()?,
        })
    }

    /// Once one of them has come.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = or_never(self.hangup.as_mut().map(Signal::recv)) => {}
        }
    }
}

/// What happened while we waited.
enum Wake {
    Drain,
    Tick,
    Sample,
    Ended(EndReason),
    TargetEnded(usize),
    ProbesGone,
}

impl Capture {
    /// Loads the programs and attaches them to `processes`. When it returns, every call is seen.
    ///
    /// # Errors
    /// When privileges or kernel features are missing; nothing is left attached then.
    pub fn start(processes: Vec<target::Process>, kernel_types: KernelTypes, options: &Options) -> Result<Self, Error> {
        Self::begin(processes, kernel_types, options)
            .map_err(|error| name_the_kernel(error, options.net, sys::kernel_version()))
    }

    fn begin(processes: Vec<target::Process>, kernel_types: KernelTypes, options: &Options) -> Result<Self, Error> {
        let loader = program::loader();
        let kernel = kernel_types.offsets()?;
        let constants = Constants {
            payload_limit: options.payload_limit,
            record_classes: set_of(&options.records).into(),
            count_classes: if options.totals { set_of(&options.classes).into() } else { 0 },
            fsbase_offset: kernel.fsbase,
            follow_fds: options.fds.into(),
            follow_wire: options.net.into(),
            follow_pipes: options.pipes.into(),
            socket_layout: kernel.sockets,
            debug: options.debug.into(),
        };
        let mut object = Object::load(loader, &constants, options.ring_bytes)?;
        let logger = if options.debug { Some(object.log()?) } else { None };
        let mut targets: HashMap<_, u32, TargetConfig> = typed(object.take_map("TARGETS")?)?;
        for process in &processes {
            targets.insert(process.pid, target_config(process, scope(process, options)), 0).map_err(|error| {
                Error::Bpf { action: "tell the kernel side of a target".into(), reason: error.to_string() }
            })?;
        }
        object.attach_raw_tracepoint("thread_exit", "sched_process_exit")?;
        object.attach_raw_tracepoint("process_exec", "sched_process_exec")?;
        let probes =
            attach::attach(&object, &processes, &options.classes, options.fds, options.programs, options.link)?;
        let follower = if options.fds { Some(follow(&mut object, &processes)?) } else { None };
        if options.net && options.net_entries {
            object.attach_raw_tracepoint("syscall_enter", "sys_enter")?;
        }
        if options.net || options.fds {
            object.attach_raw_tracepoint("syscall_exit", "sys_exit")?;
        }
        let joiner = if options.net {
            let [engines, streams, piped, pipes] =
                ["ENGINES", "STREAMS", "PIPED", "PIPES"].map(|name| object.take_map(name));
            Some(Joiner::new(typed(engines?)?, typed(streams?)?, typed(piped?)?, typed(pipes?)?))
        } else {
            None
        };
        let ring: RingBuf<MapData> = typed(object.take_map("EVENTS")?)?;
        let totals = if options.totals { Some(TotalsReader::new(object.map_fd("TOTALS")?)) } else { None };
        let slots = MappedArray::new(object.map_fd("THREADS")?.as_fd(), MAX_THREADS)
            .map_err(|error| Error::Bpf { action: "map the table of threads".into(), reason: error.to_string() })?;
        let mut capture = Self {
            ring,
            decoder: Decoder::new(options.pipes),
            order: Order::default(),
            sampler: Sampler::new(slots, set_of(&options.records)),
            totals,
            lost: typed(object.take_map("LOST")?)?,
            closed: typed(object.take_map("CLOSED")?)?,
            targets,
            follower,
            joiner,
            loss: Loss::default(),
            look_due: Instant::now(),
            alive: Vec::new(),
            replaced: Vec::new(),
            introduced: HashSet::new(),
            options: options.clone(),
            event_polls: BTreeMap::new(),
            clock: Clock::new(options).map_err(|error| runtime_error(&error))?,
            ended: None,
            ending: Arc::clone(&options.ending),
            finished: false,
            attached: (probes.functions, probes.kind),
            logger,
            _object: object,
            ready: Vec::new(),
            probes_gone: watch(&probes).map_err(|error| runtime_error(&error))?,
            probes: Some(probes),
        };
        let now_ns = monotonic_ns();
        capture.ready.push(Event::Start(Start { ts_ns: now_ns, realtime_ns: realtime_ns(), totals: options.totals }));
        for process in processes {
            capture.ready.push(Event::Process(describe(&process, now_ns, true)));
            capture.introduce_all(&process);
            let pidfd = process.pidfd.try_clone().map_err(|error| runtime_error(&error))?;
            // SAFETY: an owned fd stays open, and the same, for as long as it lives.
            let pidfd = unsafe { AsyncFd::register(pidfd) }.map_err(|error| runtime_error(&error.into()))?;
            capture.alive.push((process, pidfd));
        }
        Ok(capture)
    }

    /// What was attached: how many functions, by what kind of link.
    pub fn attached(&self) -> (usize, LinkKind) {
        self.attached
    }

    async fn wait(&mut self) -> Result<Wake, Error> {
        let Clock { drain, tick, sample, deadline, ending } = &mut self.clock;
        let wake = tokio::select! {
            biased;
            () = ending.asked() => Wake::Ended(EndReason::Asked),
            () = or_never(deadline.map(sleep_until)) => Wake::Ended(EndReason::Duration),
            index = first_ended(&self.alive) => Wake::TargetEnded(index),
            _ = or_never(self.probes_gone.as_ref().map(AsyncFd::readable)) => Wake::ProbesGone,
            _ = or_never(tick.as_mut().map(tokio::time::Interval::tick)) => Wake::Tick,
            _ = or_never(sample.as_mut().map(tokio::time::Interval::tick)) => Wake::Sample,
            _ = drain.tick() => Wake::Drain,
        };
        Ok(wake)
    }

    /// Reads the ring until it is empty or enough was read, and passes on what is in order. Returns the stamp
    /// that the calls in flight were sampled with.
    fn drain(&mut self, to_the_end: bool) -> u64 {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let started_ns = monotonic_ns();
        let mut records = 0;
        let mut drained_ns = started_ns;
        while let Some(record) = self.ring.next() {
            if let Some(event) = self.decoder.decode(&record) {
                self.order.push(event);
            }
            records += 1;
            if records == DRAIN_RECORDS && !to_the_end {
                // More is there: what we have read so far ends before it.
                drained_ns = self.order.newest_ns().min(started_ns);
                self.clock.drain.reset_immediately();
                break;
            }
        }
        for event in self.sampler.sample(started_ns, to_the_end, &mut self.decoder) {
            self.order.push(event);
        }
        self.release(if to_the_end { u64::MAX } else { drained_ns });
        if Instant::now() >= self.look_due {
            self.look_due = Instant::now() + LOOK_INTERVAL;
            self.look_up_loss(started_ns);
            // Sockets say what they are only as long as their process lives.
            let _ = self.read_totals(started_ns);
        }
        self.reopen_replaced();
        started_ns
    }

    fn release(&mut self, drained_ns: u64) {
        let mut order = std::mem::take(&mut self.order);
        for event in order.release(drained_ns) {
            if let Event::Exec(exec) = &event {
                // Addresses of the old program mean nothing in the new one.
                let _ = self.targets.insert(exec.pid, TargetConfig::default(), 0);
                self.introduced.retain(|(pid, ..)| *pid != exec.pid);
                self.replaced.push((exec.pid, 0));
            }
            if let Event::Thread(thread) = &event {
                self.find_trampoline(thread.pid);
            }
            if let Event::Call(call) | Event::InFlight(crate::event::InFlight { call, .. }) = &event {
                self.introduce(call, event.ts_ns());
            }
            self.ready.push(event);
        }
        self.order = order;
    }

    /// Tells the stream of every socket that a process has. One that a call is seen to make or close meanwhile is
    /// left to that call.
    fn introduce_all(&mut self, process: &target::Process) {
        // What their changes are added to must be read now.
        let mut event_polls = EventPolls::default();
        let found = target::fds::fds(process.pid).and_then(|fds| {
            let snapshot = snapshot::take(process, &fds, &mut event_polls, Detail::Names)?;
            Ok((snapshot, fds))
        });
        if let Some(follower) = &mut self.follower {
            follower.seed(process, found.as_ref().ok().map(|(snapshot, _)| snapshot));
        }
        let Ok((mut snapshot, fds)) = found else { return };
        if self.options.pipes {
            // Which sockets a proxy has: it began before us, so no call tells.
            snapshot.blocked = Sleepers::default().find(process, &snapshot.contexts, false).unwrap_or_default();
        }
        let mut told = Vec::new();
        if let Some(joiner) = &mut self.joiner {
            // What waits in the kernel's queues now, after the hooks are in.
            snapshot::describe_connections(&mut snapshot, &fds, &KernelSockets::read([process.pid]));
            snapshot.ts_ns = monotonic_ns();
            told = joiner.seed(&snapshot, &fds.sockets);
        }
        for context in &mut snapshot.contexts {
            context.sockets.retain(|socket| self.generation(process.pid, socket.handle) == 0);
        }
        let sockets = snapshot.contexts.iter().flat_map(|context| &context.sockets);
        self.introduced.extend(sockets.map(|socket| (process.pid, socket.handle, 0)));
        self.ready.push(Event::Snapshot(Arc::new(snapshot)));
        self.ready.extend(told);
    }

    /// Passes on how full the queues of all targets are.
    fn sample_queues(&mut self) {
        for (process, _) in &self.alive {
            let event_polls = self.event_polls.entry(process.pid).or_default();
            let Ok(mut queues) = snapshot::queues(process, event_polls) else { continue };
            for queue in &mut queues.queues {
                queue.generation = self.generation(process.pid, queue.handle);
            }
            self.order.push(Event::Queues(queues));
        }
    }

    /// Before the first call on a socket that was there before us, asks the socket what it is.
    fn introduce(&mut self, call: &Call, ts_ns: u64) {
        if let (Some(outcome), "zmq_socket") = (call.outcome, call.function.row().name) {
            self.introduced.insert((call.pid, outcome.ret as u64, call.generation));
            return;
        }
        for handle in call.other_sockets() {
            // A later generation was made under our eyes: its own zmq_socket introduces it.
            if !self.introduced.contains(&(call.pid, handle, 0)) && self.generation(call.pid, handle) == 0 {
                self.introduce_socket(call.pid, call.library, handle, 0, ts_ns);
            }
        }
        let Some(handle) = call.socket() else { return };
        self.introduce_socket(call.pid, call.library, handle, call.generation, ts_ns);
        if call.function.row().name == "zmq_close" && call.outcome.is_some_and(|outcome| !outcome.failed) {
            self.introduced.remove(&(call.pid, handle, call.generation));
        }
    }

    fn introduce_socket(&mut self, pid: u32, library: u8, handle: u64, generation: u32, ts_ns: u64) {
        if !self.introduced.insert((pid, handle, generation)) {
            return;
        }
        let Some((process, _)) = self.alive.iter().find(|(process, _)| process.pid == pid) else { return };
        let version = process.libraries.get(usize::from(library)).and_then(|library| library.version);
        let identity = version.and_then(|version| inspect::socket::identity(&Memory::new(pid), version, handle));
        // A socket closed in the meantime may have left its address to another one.
        if let Some(identity) = identity
            && self.generation(pid, handle) == generation
        {
            let socket_type = i32::from(identity.socket_type);
            let socket = Socket { ts_ns, pid, library, handle, generation, socket_type, id: identity.id };
            // At once: it goes before the call that mentions it.
            self.ready.push(Event::Socket(socket));
        }
    }

    fn generation(&self, pid: u32, handle: u64) -> u32 {
        self.closed.get(&SocketAddress { handle, tgid: pid, padding: 0 }, 0).unwrap_or(0)
    }

    /// The kernel's counts, after what makes their sockets known.
    fn read_totals(&mut self, now_ns: u64) -> Result<Option<Totals>, Error> {
        let Some(reader) = &mut self.totals else { return Ok(None) };
        let totals = reader.read(now_ns).map_err(|error| Error::Bpf {
            action: "read the kernel side's counters".into(),
            reason: error.to_string(),
        })?;
        for row in &totals.rows {
            if row.function.row().is_about_socket() && row.handle != 0 {
                self.introduce_socket(row.pid, row.library, row.handle, row.generation, now_ns);
            }
        }
        Ok(Some(totals))
    }

    /// Passes the kernel's counts on.
    fn push_totals(&mut self, now_ns: u64) -> Result<(), Error> {
        let totals = self.read_totals(now_ns)?;
        totals.into_iter().for_each(|totals| self.order.push(Event::Totals(totals)));
        Ok(())
    }

    /// Totals, then a tick.
    fn tick(&mut self, now_ns: u64) -> Result<(), Error> {
        self.push_totals(now_ns)?;
        self.order.push(Event::Tick(Tick { ts_ns: now_ns }));
        Ok(())
    }

    /// At a thread's first call, the kernel has mapped the page of the trampoline.
    fn find_trampoline(&mut self, pid: u32) {
        if let Ok(config) = self.targets.get(&pid, 0)
            && config.trampoline == 0
            && let Some(trampoline) = target::trampoline(pid)
        {
            let _ = self.targets.insert(pid, TargetConfig { trampoline, ..config }, 0);
        }
    }

    /// Looks into processes that have replaced their program, once that has loaded its libzmq: at first as often
    /// as the ring is read, later now and then.
    fn reopen_replaced(&mut self) {
        let Self { replaced, alive, targets, options, .. } = self;
        let mut reopened_pids = Vec::new();
        replaced.retain_mut(|(pid, tries)| {
            *tries = tries.saturating_add(1);
            if *tries > REOPEN_TRIES && *tries % REOPEN_TRIES != 0 {
                return true;
            }
            let Some((process, _)) = alive.iter_mut().find(|(process, _)| process.pid == *pid) else { return false };
            let Ok(reopened) = target::Process::open(*pid) else { return true };
            let scope = scope(&reopened, options);
            let _ = targets.insert(*pid, target_config(&reopened, scope), 0);
            *process = reopened;
            reopened_pids.push(*pid);
            false
        });
        for pid in reopened_pids {
            self.follow_again(pid);
        }
    }

    /// What a process has had since it replaced its program.
    fn follow_again(&mut self, pid: u32) {
        let Some(index) = self.alive.iter().position(|(process, _)| process.pid == pid) else { return };
        if let Some(joiner) = &mut self.joiner {
            joiner.forget(pid);
        }
        let Some(follower) = &mut self.follower else { return };
        let (process, pidfd) = self.alive.swap_remove(index);
        // It had room before.
        let _ = follower.begin(&process);
        self.introduce_all(&process);
        self.alive.push((process, pidfd));
    }

    fn look_up_loss(&mut self, now_ns: u64) {
        let loss = Loss {
            unreadable: self.decoder.unreadable,
            stragglers: self.order.stragglers,
            ..read_loss(&self.lost, now_ns)
        };
        if (Loss { ts_ns: self.loss.ts_ns, ..loss }) != self.loss {
            if loss.life_ring_full > self.loss.life_ring_full {
                self.sampler.rescan();
            }
            self.loss = loss;
            self.order.push(Event::Loss(loss));
        }
    }

    fn target_ended(&mut self, index: usize) {
        let (process, _) = self.alive.swap_remove(index);
        // All that it did before is in the ring.
        self.drain(false);
        let _ = self.targets.remove(&process.pid);
        if let Some(follower) = &mut self.follower {
            follower.end(process.pid);
        }
        if let Some(joiner) = &mut self.joiner {
            joiner.forget(process.pid);
        }
        self.introduced.retain(|(pid, ..)| *pid != process.pid);
        self.event_polls.remove(&process.pid);
        self.order.push(Event::ProcessExit(ProcessEnd { ts_ns: monotonic_ns(), pid: process.pid }));
        if self.alive.is_empty() {
            self.ended = Some(EndReason::TargetsEnded);
        }
    }

    /// Takes the probes out, reads what is left, and closes the stream.
    fn finish(&mut self) -> Result<(), Error> {
        self.finished = true;
        self.probes = None;
        if self.clock.sample.is_some() {
            // What moved since the last sample.
            self.sample_queues();
        }
        let sampled_ns = self.drain(true);
        let now_ns = monotonic_ns();
        self.push_totals(now_ns)?;
        self.look_up_loss(now_ns);
        self.release(u64::MAX);
        let reason = self.ended.unwrap_or(EndReason::Asked);
        self.ready.push(Event::End(End { ts_ns: now_ns, sampled_ns, reason }));
        Ok(())
    }
}

impl Events for Capture {
    fn stop(&mut self) {
        self.ended.get_or_insert(EndReason::Asked);
    }

    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        loop {
            if !self.ready.is_empty() {
                return Ok(Some(std::mem::take(&mut self.ready)));
            }
            if self.finished {
                return Ok(None);
            }
            if self.ended.is_some() {
                self.ending.store(true, Relaxed);
                self.finish()?;
                continue;
            }
            match self.wait().await? {
                Wake::Drain => _ = self.drain(false),
                Wake::Tick => {
                    self.drain(false);
                    self.tick(monotonic_ns())?;
                }
                Wake::Sample => self.sample_queues(),
                Wake::Ended(reason) => self.ended = Some(reason),
                Wake::TargetEnded(index) => self.target_ended(index),
                Wake::ProbesGone => {
                    return Err(Error::Bpf {
                        action: "go on".into(),
                        reason: "the child process that holds the probes was killed".into(),
                    });
                }
            }
        }
    }
}

/// Ticks from now on, later where there is no time.
fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// What the future yields; where there is none, nothing ever.
pub(crate) async fn or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// SIGHUP, unless `nohup` has it ignored.
fn hangup() -> io::Result<Option<Signal>> {
    let mut inherited = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; the structure is filled by the call.
    let ignored = unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), inherited.as_mut_ptr()) == 0
            && inherited.assume_init().sa_sigaction == libc::SIG_IGN
    };
    if ignored { Ok(None) } else { signal(SignalKind::hangup()).map(Some) }
}

impl Clock {
    fn new(options: &Options) -> io::Result<Self> {
        let mut drain = interval(DRAIN_INTERVAL);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            drain,
            tick: options.interval.map(every),
            sample: options.queues.map(every),
            deadline: options.duration.map(|duration| Instant::now() + duration),
            ending: Ending::new()?,
        })
    }
}

fn watch(probes: &Probes) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    // SAFETY: an owned fd stays open, and the same, for as long as it lives.
    probes.watch()?.map(|fd| unsafe { AsyncFd::register(fd) }.map_err(Into::into)).transpose()
}

/// Index of the first target that has ended, once one has.
async fn first_ended(alive: &[(target::Process, AsyncFd<OwnedFd>)]) -> usize {
    let mut waits: Vec<_> = alive.iter().map(|(_, pidfd)| Box::pin(pidfd.readable())).collect();
    std::future::poll_fn(|context| {
        for (index, wait) in waits.iter_mut().enumerate() {
            if wait.as_mut().poll(context).is_ready() {
                return std::task::Poll::Ready(index);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

fn set_of(classes: &[Class]) -> u16 {
    classes.iter().fold(0, |set, class| set | class.bit())
}

/// Which system calls of a process are looked at.
fn scope(process: &target::Process, options: &Options) -> WireScope {
    match options.net {
        false => WireScope::Nothing,
        true if process.libraries.is_empty() || options.wire_only => WireScope::Streams,
        true => WireScope::Connections,
    }
}

fn target_config(process: &target::Process, scope: WireScope) -> TargetConfig {
    let mut config = TargetConfig {
        wire: scope as u32,
        errno_offset: process.errno_offset.unwrap_or(0),
        trampoline: target::trampoline(process.pid).unwrap_or(0),
        ..TargetConfig::default()
    };
    for (slot, library) in config.libraries.iter_mut().zip(&process.libraries) {
        *slot = library.config();
    }
    config
}

/// Makes the changes of the processes' fds seen.
fn follow(object: &mut Object, processes: &[target::Process]) -> Result<Follower, Error> {
    let mut follower = Follower::new(typed(object.take_map("FD_TARGETS")?)?, typed(object.take_map("FDS")?)?);
    for process in processes {
        follower
            .begin(process)
            .map_err(|reason| Error::Bpf { action: "tell the kernel side of a target's fds".into(), reason })?;
    }
    Ok(follower)
}

fn describe(process: &target::Process, ts_ns: u64, is_target: bool) -> Process {
    let library = |library: &target::Library| Library {
        path: target::printable(library.path.as_os_str().as_bytes()),
        version: library.version,
    };
    Process {
        ts_ns,
        pid: process.pid,
        name: process.name.clone(),
        libraries: process.libraries.iter().map(library).collect(),
        is_target,
    }
}

fn typed<T>(map: aya::maps::Map) -> Result<T, Error>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    T::try_from(map)
        .map_err(|error| Error::Bpf { action: "use a map of the BPF object".into(), reason: error.to_string() })
}

/// What an older kernel refuses, a later one takes. Tried it is all the same: distributions take over what is new into
/// kernels of old numbers.
fn name_the_kernel(error: Error, net: bool, kernel: (u32, u32)) -> Error {
    let (major, minor) = kernel;
    match error {
        Error::Bpf { .. } if kernel < (5, 15) => Error::Kernel {
            what: format!("much of what tracing takes (it is Linux {major}.{minor})"),
            remedy: "use Linux 5.15 or later; `zmqtrace sockets` works here, too",
        },
        Error::Bpf { .. } if net && kernel < (5, 17) => Error::Kernel {
            what: format!("bpf_loop, by which connections are looked at (it is Linux {major}.{minor})"),
            remedy: "`latency`, `trace -e net` and --wire-only need Linux 5.17 or later",
        },
        other => other,
    }
}

fn runtime_error(error: &io::Error) -> Error {
    Error::Bpf { action: "set up signals and timers".into(), reason: error.to_string() }
}

/// CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the structure that it is given; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_older_kernel_is_blamed() {
        let refused = |net, kernel| {
            let error = Error::Bpf { action: "load".into(), reason: "unknown func".into() };
            name_the_kernel(error, net, kernel).to_string()
        };
        assert!(refused(false, (5, 10)).ends_with("use Linux 5.15 or later; `zmqtrace sockets` works here, too"));
        assert!(refused(true, (5, 15)).ends_with("`trace -e net` and --wire-only need Linux 5.17 or later"));
        assert_eq!(refused(false, (5, 15)), "cannot load: unknown func");
        assert_eq!(refused(true, (5, 17)), "cannot load: unknown func");
        let other = name_the_kernel(Error::PidNamespace, true, (5, 10));
        assert!(matches!(other, Error::PidNamespace));
    }
}
