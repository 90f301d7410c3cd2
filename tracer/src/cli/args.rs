//! Every flag of every command.

use std::{path::PathBuf, time::Duration};

use clap::{
    ArgAction, Args, Parser, Subcommand, ValueEnum,
    builder::{EnumValueParser, TypedValueParser},
};
use tracer_common::{function::Class, limits::MAX_DATA_BYTES};

use crate::capture::LinkKind;

/// strace for ZeroMQ: attaches to a running process and shows its libzmq calls
///
/// No code change, no restart, no stop. Needs root, or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_long_help = exit_statuses(), propagate_version = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print each libzmq call as it returns, in strace's form
    Trace(Trace),
    /// Count calls, errors, time, bytes and messages by socket and call
    Stat(Stat),
    /// Say where the time of each message went, stage by stage, between the sockets of the processes
    ///
    /// From the call that sent it over the sender's queue, the wire and the receiver's queue to the call that received it;
    /// how many messages were matched, and why the others were not, is always said.
    Latency(Latency),
    /// Show contexts, sockets, options, connections with fds and peers, queues, and blocked threads, now
    ///
    /// Read from the memory of the process, without a probe and without a stop: also of one that hangs. Needs
    /// CAP_SYS_PTRACE.
    Sockets(Sockets),
    /// Print the man page or a shell's completions
    #[command(hide = true)]
    Generate {
        /// What to print.
        document: Document,
    },
}

/// What `generate` prints.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Document {
    /// The man page.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
}

/// `zmqtrace trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,

    /// What every command takes that attaches probes.
    #[command(flatten)]
    pub attach: Attach,

    /// Classes of calls to trace: ctx, socket, endpoint, option, send, recv, poll, proxy, msg, net, all
    ///
    /// All but msg and net by default. zmq_getsockopt and the zmq_msg_* helpers are probed only when asked for by
    /// option, msg or all, since programs call them often.
    ///
    /// net: what goes on below. Each system call that moves bytes over a connection of a socket, with what the bytes were,
    /// `sendto(14<REQ#7 tcp://127.0.0.1:5555>, 2 frames, 66) = 66`, and what becomes of connections: connecting, refused
    /// and when libzmq tries again, connected, accepted, handshake done and with whom, or failed and why, disconnected
    /// and why. Of a process without a known libzmq, all its stream sockets. With --json, objects of type `syscall` and
    /// `connection_event`. Alone, no libzmq call is shown. While it is on, every system call on the machine takes a
    /// little longer.
    #[arg(short = 'e', long = "calls", value_name = "CLASS,...", value_delimiter = ',')]
    pub classes: Vec<ClassName>,

    /// Bytes of each payload to show, at most 4096; 0 copies none [default: 32, with -X 4096]
    #[arg(short, long = "string-limit", value_name = "LEN", value_parser = payload_limit())]
    pub string_limit: Option<u32>,

    /// Only calls whose payload, as far as it was copied (-s), contains this text
    #[arg(long, value_name = "TEXT")]
    pub contains: Vec<String>,

    /// Show sockets with what they are bound and connected to, REQ#7<tcp://127.0.0.1:5555>, and fds with their sockets
    ///
    /// Fds in calls are shown as 14<REQ#7 tcp://127.0.0.1:5555>, or 12<REQ#7 ZMQ_FD> for what ZMQ_FD returns. Lines in
    /// between say when a socket's fd listens, connects, is connected or accepted, and when it is no longer the
    /// socket's: `--- orders[4711] fd 14<REQ#7 tcp://127.0.0.1:5555> connected ---`. With --json, objects of type `fd`
    /// say so: fd, change (added, accepted, removed, closed), part (listener, connecter, connection, mailbox), role
    /// (bind, connect), socket, handle, endpoint, local, address (of the other end; of a listener its own), listener.
    ///
    /// What is new comes from the exits of the process's system calls; while that is on, every system call on the
    /// machine takes about 0.1 us longer.
    #[arg(short = 'y', long = "endpoints")]
    pub show_endpoints: bool,

    /// Dump payloads in hexadecimal and text
    #[arg(short = 'X', long)]
    pub hexdump: bool,

    /// Time of day in seconds; -tt in microseconds (the default), -ttt seconds since 1970
    #[arg(short = 't', action = ArgAction::Count)]
    pub time: u8,

    /// Time since the start
    #[arg(short, long, conflicts_with = "time")]
    pub relative: bool,

    /// Time spent in calls in nanoseconds (it is always shown, in microseconds without -T)
    #[arg(short = 'T', long)]
    pub nanoseconds: bool,

    /// Only calls that succeeded
    #[arg(short = 'z', long, conflicts_with = "failed_only")]
    pub successful_only: bool,

    /// Only calls that failed
    #[arg(short = 'Z', long)]
    pub failed_only: bool,

    /// Only what goes over the wire: connections, frames and messages, also of processes without a libzmq
    #[arg(long)]
    pub wire_only: bool,
}

/// `zmqtrace stat`.
#[derive(Debug, Args)]
pub struct Stat {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,

    /// What every command takes that attaches probes.
    #[command(flatten)]
    pub attach: Attach,

    /// Classes of calls to count: as for trace, but net
    #[arg(short = 'e', long = "calls", value_name = "CLASS,...", value_delimiter = ',', value_parser = counted_class())]
    pub classes: Vec<ClassName>,

    /// Also a table for each interval, such as 1s or 500ms
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub interval: Option<Duration>,

    /// Also a table of the queues, looked at this often, such as 100ms: what moved through them, zmq_proxy's
    /// messages included, and how full they were
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub queues: Option<Duration>,

    /// Count only what goes over the wire, by connection: messages, frames, bytes, rates
    ///
    /// Implied for processes without a libzmq that could be probed. Rates are those of both directions together; the
    /// size of messages is what they take on the wire, headers included, least/mean/most, and is known of what is sent.
    #[arg(long, conflicts_with_all = ["queues", "classes"])]
    pub wire_only: bool,
}

/// `zmqtrace latency`.
#[derive(Debug, Args)]
pub struct Latency {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,

    /// What every command takes that attaches probes.
    #[command(flatten)]
    pub attach: Attach,

    /// Also a table for each interval, such as 1s or 500ms
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub interval: Option<Duration>,

    /// Also a line for each message
    #[arg(long)]
    pub messages: bool,

    /// Only lines of messages that took longer from end to end, such as 5ms; where one end is not traced, in the longest
    /// stage that was seen. Implies --messages
    #[arg(long, value_name = "TIME", value_parser = short_duration)]
    pub slower_than: Option<Duration>,

    /// Also a histogram for each pair and stage
    #[arg(long, conflicts_with = "json")]
    pub histogram: bool,

    /// Only what goes over the wire: processes without a libzmq that is known are looked at, too
    #[arg(long)]
    pub wire_only: bool,
}

/// `zmqtrace sockets`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("targets").required(true).args(["pids", "all"])))]
pub struct Sockets {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,

    /// Processes to look into
    #[arg(short, long = "pid", value_name = "PID,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub pids: Vec<u32>,

    /// Every process on the machine that has a ZeroMQ socket
    #[arg(short, long)]
    pub all: bool,

    /// All options, all topics and whole stacks, whatever their values
    #[arg(short, long)]
    pub verbose: bool,

    /// Look again and again, such as each 1s
    ///
    /// Less often where that would take more than a twentieth of a CPU, which is then said.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub watch: Option<Duration>,

    /// Look at the queues again and again, such as each 100ms, and print what moved
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["watch", "dot"])]
    pub queues: Option<Duration>,

    /// A graph for Graphviz: processes, sockets and who is connected with whom
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub dot: bool,

    /// Watch what goes over the wire for --duration (1 s by default), and print it by connection
    ///
    /// Nothing is read from memory; which connections are ZeroMQ's cannot be known without watching them. Implied for
    /// processes that have sockets but no libzmq. With --watch also a table for each interval. Needs what `stat` needs.
    #[arg(long, conflicts_with_all = ["all", "queues", "dot"])]
    pub wire_only: bool,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,

    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Stop after this time; else at Ctrl-C or when the targets have ended
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Only sockets of this name (REQ#7) or type (REQ)
    #[arg(long = "socket", value_name = "NAME|TYPE")]
    pub sockets: Vec<String>,

    /// Only sockets bound or connected to an endpoint that contains this text
    #[arg(long = "endpoint", id = "endpoint", value_name = "TEXT")]
    pub endpoints: Vec<String>,

    /// Only sockets bound or connected to this port
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<u16>,

    /// No diagnostics but errors, and what was lost
    #[arg(short, long)]
    pub quiet: bool,

    /// Diagnostics of zmqtrace itself and of its BPF side
    #[arg(long, hide_short_help = true)]
    pub debug: bool,
}

/// What every command takes that attaches probes.
#[derive(Debug, Args)]
pub struct Attach {
    /// Processes to attach to
    #[arg(short, long = "pid", value_name = "PID,...", value_delimiter = ',', required = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub pids: Vec<u32>,

    /// Size of the ring buffer between kernel and zmqtrace, MiB, a power of two
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_RING_MIB, value_parser = ring_mib())]
    pub buffer: u32,

    /// Kind of link to attach with, instead of the best that the kernel has
    #[arg(long, value_enum, value_name = "KIND", hide_short_help = true)]
    pub link: Option<LinkKind>,

    /// Attach programs that do nothing, to measure what the probes alone cost
    #[arg(long, hide = true)]
    pub empty_probes: bool,
}

impl Attach {
    /// As if only processes had been typed.
    pub const fn to(pids: Vec<u32>) -> Self {
        Self { pids, buffer: DEFAULT_RING_MIB, link: None, empty_probes: false }
    }
}

const DEFAULT_RING_MIB: u32 = 16;

/// A class as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClassName {
    /// Contexts.
    Ctx,
    /// Sockets and monitors.
    Socket,
    /// bind, connect, unbind, disconnect.
    Endpoint,
    /// setsockopt and getsockopt.
    Option,
    /// Sends.
    Send,
    /// Receives.
    Recv,
    /// Polls.
    Poll,
    /// Proxies.
    Proxy,
    /// zmq_msg_* other than send and receive.
    Msg,
    /// System calls, and what becomes of connections: no functions of libzmq.
    Net,
    /// All of them.
    All,
}

impl ClassName {
    /// The classes of the function table that it stands for.
    pub fn classes(self) -> &'static [Class] {
        match self {
            Self::Ctx => &[Class::Ctx],
            Self::Socket => &[Class::Socket],
            Self::Endpoint => &[Class::Endpoint],
            Self::Option => &[Class::Option, Class::Getsockopt],
            Self::Send => &[Class::Send],
            Self::Recv => &[Class::Recv],
            Self::Poll => &[Class::Poll],
            Self::Proxy => &[Class::Proxy],
            Self::Msg => &[Class::Msg],
            Self::Net => &[],
            Self::All => &Class::ALL,
        }
    }
}

/// What is traced by default.
pub const DEFAULT_CLASSES: &[Class] =
    &[Class::Ctx, Class::Socket, Class::Endpoint, Class::Option, Class::Send, Class::Recv, Class::Poll, Class::Proxy];

fn counted_class() -> impl TypedValueParser<Value = ClassName> {
    EnumValueParser::<ClassName>::new().try_map(|class| match class {
        ClassName::Net => Err("system calls are not counted: see `trace -e net`"),
        class => Ok(class),
    })
}

fn payload_limit() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=MAX_DATA_BYTES as i64)
}

fn ring_mib() -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    |text: &str| match text.parse::<u32>() {
        Ok(mib) if mib.is_power_of_two() && mib <= 1024 => Ok(mib),
        _ => Err("must be a power of two from 1 to 1024".into()),
    }
}

/// `1.5` (seconds), `1s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let friendly = || Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok();
    const SENSIBLE: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24 * 366);
    seconds
        .or_else(friendly)
        .filter(|duration| SENSIBLE.contains(duration))
        .ok_or_else(|| "must be a time such as 3, 0.5, 500ms or 2m, from 1ms to a year".into())
}

/// The same, as short as one likes: `5us`.
fn short_duration(text: &str) -> Result<Duration, String> {
    let friendly = || Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok();
    duration(text).ok().or_else(friendly).ok_or_else(|| "must be a time such as 5ms, 20us or 0.5".into())
}

fn exit_statuses() -> String {
    let mut text = String::from("Exit status:\n");
    for (status, when) in crate::error::EXIT_STATUSES {
        text.push_str(&format!("  {status:>3}  {when}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        for bad in ["", "-1", "0", "x", "NaN", "1e19", "1e99"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
