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
    /// Columns of the terminal that it is; `None`: any width will do.
    pub width: Option<u16>,
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
        let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| width.0);
        Self { writer: Writer::Stdout(BufWriter::with_capacity(BUFFER_BYTES, stdout)), colour, width }
    }

    /// A file, which is made if need be, and left as it is until [`begin`](Self::begin).
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        Ok(Self { writer: Writer::File(BufWriter::with_capacity(BUFFER_BYTES, file)), colour: false, width: None })
    }
}

impl Sink {
    /// Drops what a file held before. What is no regular file has nothing to drop.
    ///
    /// # Errors
    /// The file's.
    pub fn begin(&mut self) -> io::Result<()> {
        match &self.writer {
            Writer::File(file) if file.get_ref().metadata()?.is_file() => file.get_ref().set_len(0),
            _ => Ok(()),
        }
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
