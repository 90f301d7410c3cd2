//! Running other programs: every failure names the command that failed.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Runs a command whose output the user wants to see.
pub fn run(command: &mut Command) -> Result<()> {
    wait(&mut start(command)?, command)
}

/// Starts a command, for [`wait`].
pub fn start(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| cannot_start(command))
}

/// Waits for the end of what [`start`] began.
pub fn wait(child: &mut Child, command: &Command) -> Result<()> {
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command whose output matters only when it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    checked_output(command).map(drop)
}

/// Runs a command and returns what it printed, without the last line's end.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = checked_output(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn checked_output(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", line(command))
}

/// Where a program is on PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

/// The cargo that runs us, in the repository's root.
pub fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo
}

/// A program that cargo has built.
pub struct Executable {
    /// The name of its target.
    pub target: String,
    pub path: PathBuf,
}

/// Runs a build of cargo's and returns where it put the programs: only cargo knows, since profiles, targets and
/// CARGO_TARGET_DIR all move them.
pub fn cargo_executables(build: &mut Command) -> Result<Vec<Executable>> {
    #[derive(Deserialize)]
    struct Message {
        target: Option<Target>,
        executable: Option<PathBuf>,
    }

    #[derive(Deserialize)]
    struct Target {
        name: String,
    }

    let mut child = start(build.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped()))?;
    let messages = child.stdout.take().context("cargo has no standard output")?;
    let mut executables = Vec::new();
    for message in BufReader::new(messages).lines() {
        let message: Message = serde_json::from_str(&message?).context("cargo's messages are not JSON")?;
        if let (Some(target), Some(path)) = (message.target, message.executable) {
            executables.push(Executable { target: target.name, path });
        }
    }
    wait(&mut child, build)?;
    Ok(executables)
}

/// The same of a build of one program.
pub fn cargo_build(build: &mut Command) -> Result<PathBuf> {
    let last = cargo_executables(build)?.pop().map(|executable| executable.path);
    last.with_context(|| format!("`{}` made no executable", line(build)))
}

/// Builds the program as users run it, and returns its path.
pub fn build_zmqtrace(root: &Path) -> Result<PathBuf> {
    let mut build = cargo(root);
    build.args(["build", "--locked", "--release", "--package", "zmqtrace", "--bin", "zmqtrace"]);
    cargo_build(&mut build)
}
