//! Resolves what was typed into what will run, and runs it: events from the capture through the world
//! into a report.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use tracer_common::{function::Class, limits::MAX_DATA_BYTES};

use super::args::{Attach, ClassName, Common, DEFAULT_CLASSES, Latency, Sockets, Stat, Trace};
use super::{deadline, say};
use crate::{
    analysis::{calls::Filter, narrow::Narrow},
    capture::{
        Capture, Events, KernelTypes, Options, Programs,
        snapshot::{self, Snapshots},
    },
    error::Error,
    event::{Event, Loss},
    output::{
        Dot, JsonLatency, JsonSockets, JsonStat, JsonTrace, JsonWire, LatencyOptions, LatencyTable, Report, Sink,
        Sockets as SocketTable, StatTable, Strace, StraceOptions, TimeFormat, WireTable,
    },
    target::{self, Process},
    world::World,
};

/// Bytes of each payload that are shown unless -s says otherwise: as strace.
const DEFAULT_STRING_LIMIT: u32 = 32;
/// How long `sockets` watches connections unless --duration says otherwise.
const WIRE_DURATION: Duration = Duration::from_secs(1);

/// `zmqtrace trace`.
pub fn trace(arguments: &Trace) -> Result<(), Error> {
    let common = &arguments.common;
    let classes = if arguments.wire_only { Vec::new() } else { classes(&arguments.classes) };
    let default_limit = if arguments.hexdump { MAX_DATA_BYTES as u32 } else { DEFAULT_STRING_LIMIT };
    let payload_limit = arguments.string_limit.unwrap_or(default_limit);
    let is_net = |class: &ClassName| matches!(class, ClassName::Net | ClassName::All);
    let net = arguments.wire_only || arguments.classes.iter().any(is_net);
    let options = Options {
        records: classes.clone(),
        classes,
        fds: arguments.show_endpoints || net,
        net,
        wire_only: arguments.wire_only,
        payload_limit,
        ..options(common, &arguments.attach)
    };
    let successful = match (arguments.successful_only, arguments.failed_only) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let narrow = Narrow { contains: arguments.contains.clone(), ..narrow(common) };
    let filter = Filter { narrow, successful, net };
    let time = match (arguments.relative, arguments.time) {
        (true, _) => TimeFormat::Relative,
        (_, 1) => TimeFormat::Seconds,
        (_, 0 | 2) => TimeFormat::Microseconds,
        _ => TimeFormat::Epoch,
    };
    let look = StraceOptions { time, nanoseconds: arguments.nanoseconds, hexdump: arguments.hexdump };
    let mut report: Box<dyn Report> =
        if common.json { Box::new(JsonTrace::new(filter)) } else { Box::new(Strace::new(filter, look)) };
    run(common, &arguments.attach, &options, World::showing(arguments.show_endpoints), report.as_mut())
}

/// `zmqtrace stat`.
pub fn stat(arguments: &Stat) -> Result<(), Error> {
    let common = &arguments.common;
    let classes = if arguments.wire_only { Vec::new() } else { classes(&arguments.classes) };
    // Enough to know sockets by name; what happens often is counted in the kernel.
    let records = classes.iter().copied().filter(|class| matches!(class, Class::Ctx | Class::Socket | Class::Endpoint));
    let options = Options {
        records: records.collect(),
        classes,
        totals: !arguments.wire_only,
        net: arguments.wire_only,
        net_entries: false,
        wire_only: arguments.wire_only,
        payload_limit: 0,
        interval: arguments.interval,
        queues: arguments.queues,
        ..options(common, &arguments.attach)
    };
    let (narrow, intervals) = (narrow(common), arguments.interval.is_some());
    let mut report: Box<dyn Report> = if common.json {
        Box::new(JsonStat::new(narrow, intervals))
    } else {
        Box::new(StatTable::new(narrow, intervals))
    };
    run(common, &arguments.attach, &options, World::default(), report.as_mut())
}

/// `zmqtrace latency`.
pub fn latency(arguments: &Latency) -> Result<(), Error> {
    let common = &arguments.common;
    let sees_calls =
        [Class::Ctx, Class::Socket, Class::Endpoint, Class::Option, Class::Send, Class::Recv, Class::Proxy];
    let classes = if arguments.wire_only { Vec::new() } else { sees_calls.to_vec() };
    let options = Options {
        records: classes.clone(),
        classes,
        fds: true,
        net: true,
        pipes: true,
        wire_only: arguments.wire_only,
        interval: arguments.interval,
        ..options(common, &arguments.attach)
    };
    let shown = LatencyOptions {
        messages: arguments.messages || arguments.slower_than.is_some(),
        slower_than_ns: arguments.slower_than.map_or(0, |time| time.as_nanos() as u64),
        histogram: arguments.histogram,
        intervals: arguments.interval.is_some(),
    };
    let narrow = narrow(common);
    let mut report: Box<dyn Report> = if common.json {
        Box::new(JsonLatency::new(narrow, shown))
    } else {
        Box::new(LatencyTable::new(narrow, shown))
    };
    run(common, &arguments.attach, &options, World::default(), report.as_mut())
}

/// `zmqtrace sockets`.
pub fn sockets(arguments: &Sockets) -> Result<(), Error> {
    let common = &arguments.common;
    if common.debug {
        Diagnostics::install();
    }
    if arguments.wire_only {
        return watch_wire(arguments);
    }
    match look(arguments) {
        // There may be a ZeroMQ all the same, that only its connections show.
        Err(Error::NoLibzmq { .. }) if has_wire_alone(arguments) => watch_wire(arguments),
        looked => looked,
    }
}

/// Looks into the memory of processes.
fn look(arguments: &Sockets) -> Result<(), Error> {
    let common = &arguments.common;
    target::check_to_inspect()?;
    let options = snapshot::Options {
        pids: arguments.pids.clone(),
        all: arguments.all,
        interval: arguments.watch,
        queues: arguments.queues,
        lines: arguments.verbose || common.json,
        duration: common.duration,
        ending: Arc::default(),
    };
    let narrow = narrow(common);
    let mut report: Box<dyn Report> = match (arguments.dot, common.json) {
        (true, _) => Box::new(Dot),
        (_, true) => Box::new(JsonSockets::new(narrow)),
        _ => Box::new(SocketTable::new(narrow, arguments.verbose, arguments.watch.is_some())),
    };
    let mut out = open_output(common)?;
    runtime()?.block_on(async {
        let ending = Arc::clone(&options.ending);
        let mut snapshots = Snapshots::start(options)?;
        deadline::watch(common.duration, ending);
        out.begin().map_err(|source| output_error(common, source))?;
        pump(&mut snapshots, World::default(), report.as_mut(), &mut out, common).await.map(drop)
    })
}

/// Whether all processes have sockets but no libzmq, so that watching their connections is what is left.
fn has_wire_alone(arguments: &Sockets) -> bool {
    let has_sockets = |pid: &u32| target::fds::fds(*pid).is_ok_and(|fds| !fds.sockets.is_empty());
    let has_libzmq = |pid: &u32| Process::open_to_inspect(*pid).is_ok_and(|process| !process.libraries.is_empty());
    let can_watch = !(arguments.all || arguments.dot || arguments.queues.is_some());
    can_watch && arguments.pids.iter().all(|pid| has_sockets(pid) && !has_libzmq(pid))
}

/// `zmqtrace sockets --wire-only`.
fn watch_wire(arguments: &Sockets) -> Result<(), Error> {
    let mut common = arguments.common.clone();
    if arguments.watch.is_none() {
        common.duration.get_or_insert(WIRE_DURATION);
    }
    let attach = Attach::to(arguments.pids.clone());
    let common_options = options(&common, &attach);
    let options =
        Options { net: true, net_entries: false, wire_only: true, interval: arguments.watch, ..common_options };
    let (narrow, intervals) = (narrow(&common), arguments.watch.is_some());
    let mut report: Box<dyn Report> = if common.json {
        Box::new(JsonWire::new(narrow, intervals))
    } else {
        Box::new(WireTable::new(narrow, intervals))
    };
    run(&common, &attach, &options, World::default(), report.as_mut())
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Bpf { action: "set up signals and timers".into(), reason: error.to_string() })
}

fn classes(typed: &[ClassName]) -> Vec<Class> {
    if typed.is_empty() {
        return DEFAULT_CLASSES.to_vec();
    }
    let mut classes: Vec<_> = typed.iter().flat_map(|name| name.classes()).copied().collect();
    classes.sort_by_key(|class| *class as u8);
    classes.dedup();
    classes
}

fn options(common: &Common, attach: &Attach) -> Options {
    Options {
        classes: Vec::new(),
        records: Vec::new(),
        totals: false,
        fds: false,
        net: false,
        net_entries: true,
        pipes: false,
        wire_only: false,
        payload_limit: 0,
        ring_bytes: attach.buffer << 20,
        duration: common.duration,
        interval: None,
        queues: None,
        link: attach.link,
        programs: if attach.empty_probes { Programs::Empty } else { Programs::Calls },
        debug: common.debug,
        ending: Arc::default(),
    }
}

fn narrow(common: &Common) -> Narrow {
    Narrow {
        sockets: common.sockets.clone(),
        endpoints: common.endpoints.clone(),
        ports: common.ports.clone(),
        contains: Vec::new(),
    }
}

fn run(
    common: &Common,
    attach: &Attach,
    options: &Options,
    world: World,
    report: &mut dyn Report,
) -> Result<(), Error> {
    if common.debug {
        Diagnostics::install();
    }
    target::check_privileges()?;
    let kernel_types = KernelTypes::look_up();
    let mut pids = attach.pids.clone();
    pids.sort_unstable();
    pids.dedup();
    let mut processes = pids.iter().map(|pid| open(*pid, options.wire_only)).collect::<Result<Vec<_>, _>>()?;
    // All that can be seen of a process without a libzmq is what goes over its connections.
    let has_wire_alone = processes.iter().any(|process| process.libraries.is_empty());
    let options = &Options { net: options.net || has_wire_alone, ..options.clone() };
    let mut out = open_output(common)?;
    runtime()?.block_on(async {
        let described: Vec<_> = processes
            .iter()
            .map(|process| format!("{}[{}]: {}", process.name, process.pid, process.describe_libraries()))
            .collect();
        let mut capture = Capture::start(std::mem::take(&mut processes), kernel_types, options)?;
        deadline::watch(common.duration, Arc::clone(&options.ending));
        out.begin().map_err(|source| output_error(common, source))?;
        if !common.quiet {
            let (functions, kind) = capture.attached();
            say(format_args!("attached to {}; {functions} functions probed ({kind})", described.join("; ")));
        }
        let (seen, loss) = pump(&mut capture, world, report, &mut out, common).await?;
        // What was lost is said even to those who want no diagnostics.
        let lost = loss.reasons().iter().any(|(_, count)| *count > 0);
        if lost || !common.quiet {
            summarise((!options.totals).then_some(seen), options.net, &loss);
        }
        Ok(())
    })
}

/// Opens a process to attach to: with `wire_only`, or where it has sockets but no libzmq that could be probed, to look at
/// its connections alone.
fn open(pid: u32, wire_only: bool) -> Result<Process, Error> {
    match Process::open(pid) {
        Err(Error::NoLibzmq { .. } | Error::SymbolsStripped { .. })
            if wire_only || target::fds::fds(pid).is_ok_and(|fds| !fds.sockets.is_empty()) =>
        {
            Process::open_to_inspect(pid)
        }
        Ok(process) if wire_only => Ok(Process { libraries: Vec::new(), ..process }),
        opened => opened,
    }
}

/// What came.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    calls: u64,
    system_calls: u64,
}

/// Moves events until the stream ends. Returns what came, and what was lost.
async fn pump(
    capture: &mut impl Events,
    mut world: World,
    report: &mut dyn Report,
    out: &mut Sink,
    common: &Common,
) -> Result<(Seen, Loss), Error> {
    let (mut seen, mut loss) = (Seen::default(), Loss::default());
    let mut reader_is_gone = false;
    while let Some(events) = capture.next().await? {
        for event in &events {
            world.apply(event);
            match event {
                Event::Call(_) => seen.calls += 1,
                // One that is told in several parts counts once.
                Event::Wire(wire) if !wire.frames.as_ref().is_some_and(|frames| frames.continues) => {
                    seen.system_calls += 1;
                }
                Event::Loss(now) => loss = *now,
                _ => {}
            }
            if reader_is_gone {
                continue;
            }
            if let Err(error) = report.event(&world, event, out) {
                reader_is_gone = closed_pipe(error, common)?;
                capture.stop();
            }
        }
        if !reader_is_gone && let Err(error) = out.flush() {
            reader_is_gone = closed_pipe(error, common)?;
            capture.stop();
        }
    }
    // The process ends soon: what it knows goes with it, and need not be taken apart first.
    std::mem::forget(world);
    Ok((seen, loss))
}

/// A reader that has seen enough is no failure.
fn closed_pipe(error: io::Error, common: &Common) -> Result<bool, Error> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(true) } else { Err(output_error(common, error)) }
}

fn output_error(common: &Common, source: io::Error) -> Error {
    let path = common.output.as_ref().map_or_else(|| "standard output".into(), |path| path.display().to_string());
    Error::Output { path, source }
}

fn open_output(common: &Common) -> Result<Sink, Error> {
    match &common.output {
        None => Ok(Sink::stdout()),
        Some(path) => Sink::file(path).map_err(|source| output_error(common, source)),
    }
}

/// What was seen and what was not, on standard error.
fn summarise(seen: Option<Seen>, net: bool, loss: &Loss) {
    let reasons: Vec<_> = loss
        .reasons()
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")))
        .collect();
    let lost = if reasons.is_empty() { "nothing lost".into() } else { format!("LOST: {}", reasons.join(", ")) };
    let late = if loss.stragglers > 0 { format!(", {} out of order", loss.stragglers) } else { String::new() };
    let seen = match seen {
        None => String::new(),
        Some(Seen { calls, system_calls }) if net => format!("{calls} calls seen, {system_calls} system calls seen, "),
        Some(Seen { calls, .. }) => format!("{calls} calls seen, "),
    };
    say(format_args!("{seen}{lost}{late}"));
}

/// Shows what the libraries log, and the BPF side through aya-log, on standard error.
struct Diagnostics;

impl Diagnostics {
    fn install() {
        // Fails only when it is installed already.
        if log::set_logger(&Self).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
    }
}

impl log::Log for Diagnostics {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        say(format_args!("{}: {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}
