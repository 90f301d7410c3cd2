//! `demo`: starts a small order service that stalls now and then, and looks at it with zmqtrace.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::command::{cargo, cargo_build, line, start, wait};
use crate::tree::Tree;
use crate::{setup, workloads};

/// The reports of the demo, and how many of their lines are shown at most.
const REPORTS: [(&[&str], usize); 2] =
    [(&["trace", "--duration", "3"], 40), (&["stat", "--duration", "3"], usize::MAX)];

pub fn demo(tree: &Tree) -> Result<()> {
    if !setup::is_root() {
        bail!("zmqtrace loads BPF programs: run `sudo -E env PATH=\"$PATH\" cargo xtask demo`");
    }
    let orders = workloads::compile_one(tree, "orders")?;
    let mut build = cargo(&tree.root);
    build.args(["build", "--locked", "--release", "--package", "zmqtrace", "--bin", "zmqtrace"]);
    let zmqtrace = cargo_build(&mut build)?;

    let mut service = Service::start(&orders)?;
    println!("An order service runs as process {}: ZeroMQ requests, a feed, a pipeline.", service.pid);
    for (arguments, lines) in REPORTS {
        report(&zmqtrace, arguments, service.pid, lines)?;
    }
    service.end()
}

/// Runs one report, printed as a person would type it.
fn report(zmqtrace: &Path, arguments: &[&str], pid: u32, most_lines: usize) -> Result<()> {
    let mut report = Command::new(zmqtrace);
    report.args(&arguments[..1]).arg("-p").arg(pid.to_string()).args(&arguments[1..]);
    let typed = line(&report).replace(&*zmqtrace.to_string_lossy(), "zmqtrace");
    println!("\n$ sudo {typed}");

    let mut child = start(report.stdout(Stdio::piped()))?;
    let output = child.stdout.take().context("the report has no standard output")?;
    let mut more = 0;
    for (index, shown) in BufReader::new(output).lines().enumerate() {
        let shown = shown?;
        if index < most_lines {
            println!("{shown}");
        } else {
            more += 1;
        }
    }
    if more > 0 {
        println!("... and {more} more lines");
    }
    wait(&mut child, &report)
}

/// The workload `orders`: speaks JSON lines on standard output, ends when its standard input does.
struct Service {
    child: Child,
    pid: u32,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Service {
    fn start(program: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Ready {
            pid: u32,
        }

        let mut child = start(Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let mut input = child.stdin.take().context("the workload has no standard input")?;
        let mut output = BufReader::new(child.stdout.take().context("the workload has no standard output")?);
        let mut ready = String::new();
        output.read_line(&mut ready)?;
        let Ready { pid } =
            serde_json::from_str(&ready).with_context(|| format!("the workload is not ready, it said {ready:?}"))?;
        writeln!(input, "go").context("the workload takes no input")?;
        Ok(Self { child, pid, input: Some(input), output })
    }

    /// Lets the workload end by itself.
    fn end(&mut self) -> Result<()> {
        self.input = None;
        self.output.read_to_string(&mut String::new())?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the workload did not survive the demo well: {status}");
        }
        Ok(())
    }
}

impl Drop for Service {
    /// After a failed report the workload still has to go; how it ends is then of no interest.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
