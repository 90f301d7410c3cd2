//! Starts workloads and the tracer and talks with them. Nothing sleeps; every wait has a deadline.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use serde_json::Value;

/// Longer than anything here takes, however busy the machine is.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_owned()
}

/// A new path for a file that a test writes.
pub fn scratch(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Something that `cargo xtask workloads` makes.
pub fn made(path: &str) -> PathBuf {
    let path = root().join("target").join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask workloads`", path.display());
    path
}

/// The same for what comes from PyPI or npm: `None`, said aloud, where the caller wants to do without.
pub fn made_external(path: &str) -> Option<PathBuf> {
    if std::env::var_os("ZMQTRACE_NO_EXTERNAL").is_some_and(|value| value == "1") {
        eprintln!("left out, since ZMQTRACE_NO_EXTERNAL is set: it needs target/{path}");
        return None;
    }
    Some(made(path))
}

/// The lines that come through a pipe, read by a thread so that a wait for one can end.
struct Lines {
    received: Receiver<String>,
    what: &'static str,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static, what: &'static str) -> Self {
        let (sender, received) = channel();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            loop {
                let mut line = Vec::new();
                if pipe.read_until(b'\n', &mut line).is_err() || line.is_empty() {
                    return;
                }
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                // A test that is over does not listen any more.
                if sender.send(String::from_utf8_lossy(line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self { received, what }
    }

    /// The next line; `None` at the end.
    fn next(&self) -> Option<String> {
        match self.received.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line from {} within {DEADLINE:?}", self.what),
        }
    }

    fn rest(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// Waits for the end of a child, but not for ever.
fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let pidfd = pidfd(child.id());
    let mut ended = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure of ours, with a fd that is open.
    let ready = unsafe { libc::poll(&raw mut ended, 1, DEADLINE.as_millis() as i32) };
    assert_eq!(ready, 1, "{what} did not end within {DEADLINE:?}");
    child.wait().expect("a child can be waited for")
}

fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: takes integers, returns a new fd or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    assert!(fd >= 0, "pidfd_open({pid}): {}", std::io::Error::last_os_error());
    // SAFETY: the fd is new and ours.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Sends a signal to a process that is known to be there.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: takes integers.
    let sent = unsafe { libc::kill(pid as libc::pid_t, signal) };
    assert_eq!(sent, 0, "kill({pid}, {signal}): {}", std::io::Error::last_os_error());
}

/// A workload that has said that it is ready. Killed when dropped.
pub struct Workload {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    /// Its ready line.
    pub ready: Value,
}

impl Workload {
    /// One of the C programs.
    pub fn c(name: &str, arguments: &[&str]) -> Self {
        Self::start(Command::new(made("workloads").join(name)).args(arguments))
    }

    /// One of the Python programs, where those are wanted.
    pub fn python(name: &str, arguments: &[&str]) -> Option<Self> {
        let python = made_external("venv/bin/python")?;
        Some(Self::start(Command::new(python).arg(root().join("workloads/python").join(name)).args(arguments)))
    }

    /// Any other command that speaks the protocol.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("cannot start {command:?} ({error}): run `cargo xtask workloads`");
        });
        let stdout = Lines::of(child.stdout.take().expect("was asked for"), "the workload");
        let stdin = child.stdin.take();
        let mut workload = Self { child, stdin, stdout, ready: Value::Null };
        workload.ready = workload.answer("ready");
        workload
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its stdin is still open");
        writeln!(stdin, "{line}").expect("the workload listens");
    }

    /// The next line, which must be the one that says `kind`.
    pub fn answer(&mut self, kind: &str) -> Value {
        let line = self.stdout.next().unwrap_or_else(|| panic!("the workload ended before it was {kind}"));
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(answer[kind], true, "expected {kind}: {line}");
        answer
    }

    /// Lets it do its job, and returns the truth about that.
    pub fn go(&mut self) -> Value {
        self.say("go");
        self.answer("done")
    }

    /// Ends its stdin.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Ends its stdin and waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        self.close();
        wait(&mut self.child, "the workload")
    }

    /// The same, and all must be well.
    pub fn finish(mut self) {
        let status = self.end();
        assert!(status.success(), "the workload ended with {status}");
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running zmqtrace. Killed when dropped.
pub struct Tracer {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    /// What it has said on standard error so far.
    said: Vec<String>,
}

/// What a zmqtrace that has ended left.
pub struct Finished {
    /// Its exit status, or 128 and the signal.
    pub status: i32,
    /// Lines of standard output that were not read before.
    pub stdout: Vec<String>,
    /// Lines of standard error.
    pub stderr: Vec<String>,
}

impl Tracer {
    /// Starts it with any arguments.
    pub fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_zmqtrace")).args(arguments))
    }

    /// Starts it by another command.
    pub fn run(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What a user's shell may have set.
            .env_remove("NO_COLOR")
            .env("TZ", "UTC")
            .spawn()
            .expect("zmqtrace starts");
        let stdout = Lines::of(child.stdout.take().expect("was asked for"), "zmqtrace's standard output");
        let stderr = Lines::of(child.stderr.take().expect("was asked for"), "zmqtrace's standard error");
        Self { child, stdout, stderr, said: Vec::new() }
    }

    /// Attaches to a workload. Every call made after that is seen.
    pub fn attach(command: &str, workload: &Workload, arguments: &[&str]) -> Self {
        let pid = workload.pid().to_string();
        Self::start([&[command, "-p", &pid], arguments].concat()).attached()
    }

    /// Waits until it says that it is attached.
    pub fn attached(mut self) -> Self {
        loop {
            let Some(line) = self.stderr.next() else {
                panic!("zmqtrace ended instead of attaching: {}", self.said.join("\n"));
            };
            let attached = line.starts_with("zmqtrace: attached to ");
            self.said.push(line);
            if attached {
                return self;
            }
        }
    }

    /// Waits until it shows something.
    pub fn shows(self) -> Self {
        self.line();
        self
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output, which must come.
    pub fn line(&self) -> String {
        self.stdout.next().expect("zmqtrace's output goes on")
    }

    /// The same, from JSON.
    pub fn object(&self) -> Value {
        parse(&self.line())
    }

    /// Ctrl-C, and its end.
    pub fn interrupt(self) -> Finished {
        signal(self.pid(), libc::SIGINT);
        self.finish()
    }

    /// Its end, without a push.
    pub fn finish(mut self) -> Finished {
        let stdout = self.stdout.rest();
        self.said.extend(self.stderr.rest());
        let status = wait(&mut self.child, "zmqtrace");
        let status = status.code().or(status.signal().map(|signal| 128 + signal)).expect("ended one way or another");
        Finished { status, stdout, stderr: std::mem::take(&mut self.said) }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// It must have ended well, and lost nothing.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{}", self.stderr.join("\n"));
        let summary = self.stderr.last().expect("it says what it saw");
        assert!(summary.contains("nothing lost"), "{summary}");
        self
    }

    /// All JSON objects. The last two must be what closes each stream.
    pub fn objects(&self) -> Vec<Value> {
        let objects: Vec<_> = self.stdout.iter().map(|line| parse(line)).collect();
        let kinds: Vec<_> = objects.iter().rev().take(2).map(|object| object["type"].clone()).collect();
        assert_eq!(kinds, ["end", "lost"], "how the stream ends, backwards");
        objects
    }

    /// The JSON objects of one type.
    pub fn of_type(&self, kind: &str) -> Vec<Value> {
        self.objects().into_iter().filter(|object| object["type"] == kind).collect()
    }

    /// How many calls the stream of JSON says that it lost; they must all be of this reason.
    pub fn lost(&self) -> u64 {
        let lost = self.of_type("lost").remove(0);
        for (reason, _) in lost["by_reason"].as_object().expect("by reason") {
            assert!(reason == "ring_full" || reason == "data_ring_full", "{lost}");
        }
        lost["by_reason"]["ring_full"].as_u64().unwrap_or(0)
    }
}

/// A line of JSON.
#[track_caller]
pub fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"))
}

/// The number in a member.
#[track_caller]
pub fn number(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {object}"))
}

/// Asserts that a line has the form of a regular expression.
#[track_caller]
pub fn assert_matches(line: &str, pattern: &str) {
    let regex = regex_lite::Regex::new(&format!("^(?:{pattern})$")).expect("a sound pattern");
    assert!(regex.is_match(line), "expected {pattern}\n     got {line}");
}
