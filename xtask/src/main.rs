//! zmqtrace's own chores, run as `cargo xtask COMMAND`. Each command is a file; what a fresh machine
//! needs for it is in `setup` and `toolchain`.

mod bench;
mod command;
mod demo;
mod ebpf;
mod hash;
mod setup;
mod sources;
mod test;
mod toolchain;
mod tree;
mod vm;
mod workload;
mod workloads;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::tree::Tree;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "zmqtrace's own chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the BPF object that zmqtrace embeds, with its sidecar, into tracer/bpf
    BuildEbpf {
        /// Write nothing; fail unless the committed object belongs to the sources
        #[arg(long)]
        check: bool,
    },
    /// Build the C and Rust workloads and fetch pyzmq, releases of libzmq and npm's zeromq, into target/
    Workloads,
    /// Format, lints, documentation, BPF object and all tests (as root)
    Test {
        /// Without what comes from PyPI and npm, and the tests that need it
        #[arg(long)]
        no_external: bool,
        /// For `cargo test`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Trace a small service that stalls now and then (as root)
    Demo,
    /// What tracing costs, as ratios taken in one run (as root)
    Bench {
        /// Only these comparisons: call, round-trip, flood, attach, look
        #[arg(conflicts_with = "write")]
        only: Vec<String>,
        /// Write the table to docs/performance.md
        #[arg(long)]
        write: bool,
    },
    /// The tests of what depends on the kernel, under other kernels of Debian in virtual machines (as root)
    Vm {
        /// Only these kernels: 5.10, 6.1, 6.12
        #[arg(conflicts_with = "write")]
        only: Vec<String>,
        /// Write the table to docs/kernels.md
        #[arg(long)]
        write: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that anyhow would add under RUST_BACKTRACE: the sentence is the message.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    let tree = Tree::find()?;
    match chore {
        Chore::BuildEbpf { check: false } => ebpf::build(&tree),
        Chore::BuildEbpf { check: true } => ebpf::check(&tree),
        Chore::Workloads => workloads::prepare(&tree, true),
        Chore::Test { no_external, arguments } => test::test(&tree, !no_external, &arguments),
        Chore::Demo => demo::demo(&tree),
        Chore::Bench { only, write } => bench::bench(&tree, &only, write),
        Chore::Vm { only, write } => vm::vm(&tree, &only, write),
    }
}
