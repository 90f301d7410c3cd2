//! `demo`: starts a small order service that stalls now and then, and looks at it with zmqtrace.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command::{build_zmqtrace, line, start, wait};
use crate::tree::Tree;
use crate::workload::Workload;
use crate::{setup, workloads};

/// The reports of the demo, and how many of their lines are shown at most.
const REPORTS: [(&[&str], usize); 3] = [
    (&["sockets"], 40),
    (&["trace", "-y", "--duration", "3"], 40),
    (&["stat", "--queues", "100ms", "--duration", "3"], usize::MAX),
];

pub fn demo(tree: &Tree) -> Result<()> {
    if !setup::is_root() {
        bail!("zmqtrace loads BPF programs: run `sudo -E env PATH=\"$PATH\" cargo xtask demo`");
    }
    let orders = workloads::compile_one(tree, "orders")?;
    let zmqtrace = build_zmqtrace(&tree.root)?;

    let mut service = Workload::start(&mut Command::new(orders))?;
    let pid = service.pid()?;
    service.say("go")?;
    println!("An order service runs as process {pid}: ZeroMQ requests, a feed, a pipeline.");
    for (arguments, lines) in REPORTS {
        report(&zmqtrace, arguments, pid, lines)?;
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
