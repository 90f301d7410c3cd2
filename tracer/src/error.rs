//! Why zmqtrace could not do what was asked: one sentence each, with its remedy and its exit status.

use std::{io, path::PathBuf};

/// A refusal, told apart by cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A capability is missing.
    #[error("not permitted: {missing} missing; run with sudo, or grant {needed}")]
    NotPermitted {
        /// What is missing, by name.
        missing: String,
        /// All that it takes.
        needed: &'static str,
    },
    /// The kernel refused something to us that the capabilities should allow.
    #[error("{action} was refused although the capabilities are there ({source}): {remedy}")]
    Refused {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
        /// What may be the cause, and what to do.
        remedy: &'static str,
    },
    /// No process has this number.
    #[error(
        "no process {pid}: it has ended, or runs in another PID namespace; `pgrep -a NAME` shows the numbers to use"
    )]
    NoSuchProcess {
        /// The number.
        pid: u32,
    },
    /// A number that belongs to a thread.
    #[error("{tid} is a thread of process {pid}: use -p {pid}, all its threads are traced")]
    IsThread {
        /// The number that was given.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// The thread that the process began with has ended, others have not.
    #[error(
        "the main thread of process {pid} has ended while {others} of its threads go on (pthread_exit): such a process \
         is not supported; let the main thread wait for the others"
    )]
    MainThreadEnded {
        /// The process.
        pid: u32,
        /// How many threads go on.
        others: u32,
    },
    /// The process has ended or is a zombie.
    #[error("process {pid} has ended (it is a zombie until its parent waits for it): there is nothing to trace")]
    Ended {
        /// The process.
        pid: u32,
    },
    /// Nothing in the process exports libzmq's functions.
    #[error(
        "no libzmq in {name}[{pid}]: none of its {files} mapped programs and libraries exports zmq_socket ({examples}); \
         is it another process of the application, or does it use a ZeroMQ without libzmq (JeroMQ, NetMQ)?"
    )]
    NoLibzmq {
        /// The process.
        pid: u32,
        /// Its name.
        name: String,
        /// How many files were looked at.
        files: usize,
        /// Some of them.
        examples: String,
    },
    /// libzmq is there, its symbols are not.
    #[error(
        "libzmq is linked into {path} of {name}[{pid}], but its symbols are stripped, so its functions cannot be found; \
         run a build that keeps .symtab (no `strip`, no `-s`), or one that links libzmq dynamically"
    )]
    SymbolsStripped {
        /// The process.
        pid: u32,
        /// Its name.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// We see other process numbers than the kernel's own.
    #[error(
        "zmqtrace runs in a PID namespace of its own, where process numbers are not those that BPF sees; run it on the \
         host, or in a container with the host's PID namespace (docker run --pid=host)"
    )]
    PidNamespace,
    /// A program for another machine.
    #[error("{name}[{pid}] is {what}: only x86_64 programs are supported")]
    UnsupportedTarget {
        /// The process.
        pid: u32,
        /// Its name.
        name: String,
        /// What it is.
        what: String,
    },
    /// The kernel lacks something.
    #[error("this kernel lacks {what}: {remedy}")]
    Kernel {
        /// The feature.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The BPF programs could not be loaded or attached, for a reason that is not one of the others.
    #[error("cannot {action}: {reason}")]
    Bpf {
        /// What was tried.
        action: String,
        /// What went wrong.
        reason: String,
    },
    /// A process could not be read.
    #[error("cannot read {what} of process {pid}: {source}")]
    Read {
        /// What was read.
        what: &'static str,
        /// The process.
        pid: u32,
        /// The system's word.
        source: io::Error,
    },
    /// The output could not be written.
    #[error("cannot write {path}: {source}")]
    Output {
        /// The file.
        path: String,
        /// The system's word.
        source: io::Error,
    },
}

/// Exit statuses, for the man page: status, when.
pub const EXIT_STATUSES: &[(u8, &str)] = &[
    (0, "all went well; Ctrl-C, SIGTERM, the end of the target or of --duration, and a closed pipe are no failures"),
    (2, "the command line makes no sense"),
    (120, "the BPF programs could not be loaded or attached, or a process could not be read"),
    (121, "not permitted: a capability is missing, or the kernel is locked down"),
    (122, "no such process, or it has ended"),
    (123, "no libzmq in the process"),
    (124, "libzmq's symbols are stripped"),
    (125, "the kernel lacks something, such as BTF or the BPF ring buffer"),
    (126, "the output cannot be written"),
    (127, "the process cannot be traced by this build or from here: a 32-bit program, or we are in a PID namespace"),
];

impl Error {
    /// The exit status that tells the cause.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Bpf { .. } | Self::Read { .. } => 120,
            Self::NotPermitted { .. } | Self::Refused { .. } => 121,
            Self::NoSuchProcess { .. } | Self::IsThread { .. } | Self::MainThreadEnded { .. } | Self::Ended { .. } => {
                122
            }
            Self::NoLibzmq { .. } => 123,
            Self::SymbolsStripped { .. } => 124,
            Self::Kernel { .. } => 125,
            Self::Output { .. } => 126,
            Self::UnsupportedTarget { .. } | Self::PidNamespace => 127,
        }
    }
}
