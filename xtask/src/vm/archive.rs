//! A cpio archive of the form "newc", which the kernel unpacks into its first file system.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

pub struct Archive {
    out: BufWriter<File>,
    /// Paths in it.
    made: BTreeSet<Box<Path>>,
}

impl Archive {
    pub fn create(path: &Path) -> Result<Self> {
        let out = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { out: BufWriter::new(out), made: BTreeSet::new() })
    }

    /// Adds a file of this machine, or what a link of it leads to.
    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, &contents)
    }

    /// Adds a file that can be executed, once.
    pub fn file(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        if let Some(folder) = path.parent() {
            self.folder(folder)?;
        }
        self.entry(path, PROGRAM, contents)
    }

    /// Adds a folder and those that it lies in.
    pub fn folder(&mut self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
            self.entry(path, FOLDER, &[])?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) -> Result<()> {
        if self.made.insert(path.into()) {
            // Paths are relative to the root.
            self.write(path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes(), mode, contents)?;
        }
        Ok(())
    }

    fn write(&mut self, name: &[u8], mode: u32, contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len()).context("a file is too large for the archive")?;
        let name_size = name.len() as u32 + 1;
        // Inode, mode, owner, group, links, time, size, four of devices, size of the name, checksum.
        let fields = [self.made.len() as u32, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        header.extend(fields.map(|field| format!("{field:08x}")));
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name)?;
        self.out.write_all(&[0; 4][..1 + (4 - (header.len() + name.len() + 1) % 4) % 4])?;
        self.out.write_all(contents)?;
        self.out.write_all(&[0; 3][..(4 - contents.len() % 4) % 4])?;
        Ok(())
    }

    pub fn finish(mut self) -> Result<()> {
        self.write(b"TRAILER!!!", 0, &[])?;
        Ok(self.out.flush()?)
    }
}
