//! Where a report goes.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, StdoutLock, Write},
    path::Path,
};

/// A file or standard output, buffered.
#[derive(Debug)]
pub struct Sink {
    writer: Writer,
    /// Whether to colour: only a terminal, and only if NO_COLOR is not set.
    pub colour: bool,
}

#[derive(Debug)]
enum Writer {
    File(BufWriter<File>),
    Stdout(BufWriter<StdoutLock<'static>>),
}

const BUFFER_BYTES: usize = 64 << 10;

impl Sink {
    /// Standard output.
    pub fn stdout() -> Self {
        let stdout = io::stdout().lock();
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { writer: Writer::Stdout(BufWriter::with_capacity(BUFFER_BYTES, stdout)), colour }
    }

    /// A new file.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        Ok(Self { writer: Writer::File(BufWriter::with_capacity(BUFFER_BYTES, file)), colour: false })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.writer {
            Writer::File(file) => file.write(bytes),
            Writer::Stdout(stdout) => stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.writer {
            Writer::File(file) => file.flush(),
            Writer::Stdout(stdout) => stdout.flush(),
        }
    }
}
