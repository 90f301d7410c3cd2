//! A running workload: speaks JSON lines on standard output, takes words on standard input, and ends when
//! that ends (`workloads/README.md`).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::start;

pub struct Workload {
    child: Child,
    /// What it said when it was ready.
    pub ready: Value,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Workload {
    /// Starts it and waits until it is ready.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let input = child.stdin.take().context("the workload has no standard input")?;
        let output = BufReader::new(child.stdout.take().context("the workload has no standard output")?);
        let mut workload = Self { child, ready: Value::Null, input: Some(input), output };
        workload.ready = workload.hear()?;
        Ok(workload)
    }

    pub fn pid(&self) -> Result<u32> {
        let pid = self.ready["pid"].as_u64().context("the workload did not say its pid")?;
        Ok(u32::try_from(pid)?)
    }

    pub fn say(&mut self, word: &str) -> Result<()> {
        let input = self.input.as_mut().context("the workload's input is closed")?;
        writeln!(input, "{word}").context("the workload takes no input")
    }

    /// The next line that it says.
    pub fn hear(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the workload said {line:?}"))
    }

    /// Lets it do its job once, and returns what it says of it.
    pub fn go(&mut self) -> Result<Value> {
        self.say("go")?;
        self.hear()
    }

    /// Lets it end by itself.
    pub fn end(mut self) -> Result<()> {
        self.input = None;
        self.output.read_to_string(&mut String::new())?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the workload did not end well: {status}");
        }
        Ok(())
    }
}

impl Drop for Workload {
    /// After a failure the workload still has to go; how it ends is then of no interest.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
