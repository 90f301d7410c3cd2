//! Which file the code at an address is from.

use std::{cell::OnceCell, collections::HashMap, fs::File, io, path::PathBuf};

use procfs::process::{MMPermissions, MMapPath, Process as ProcFs};

use super::cfi::Cfi;
use crate::target::{CodeMapping, elf::Elf, open_mapped};

/// The executable mappings of a process.
#[derive(Debug)]
pub struct Mappings {
    pid: u32,
    /// Sorted by address.
    mappings: Vec<Mapping>,
    files: Vec<MappedFile>,
    by_inode: HashMap<(i32, i32, u64), usize>,
}

#[derive(Debug)]
struct Mapping {
    code: CodeMapping,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A file, by its index, and its load bias once that was needed.
    File(usize, OnceCell<Option<u64>>),
    /// Code that was made at run time, or the kernel's own.
    Other,
    /// Where return probes make functions return to.
    Uprobes,
}

/// What is at an address.
#[derive(Debug)]
pub enum Code<'mappings> {
    /// Code of a file.
    File(FileCode<'mappings>),
    /// Code that no file can be read for.
    Other,
    /// Where return probes make functions return to.
    Uprobes,
}

/// The code of a file, as it is mapped.
#[derive(Debug, Clone, Copy)]
pub struct FileCode<'mappings> {
    /// The same for all code of that file.
    pub index: usize,
    /// What to add to the file's own addresses to get the process's.
    pub bias: u64,
    pub file: &'mappings OpenFile,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    inode: u64,
    /// Once it was needed; `None` when it could not be read.
    opened: OnceCell<Option<OpenFile>>,
}

/// A file with code in it.
#[derive(Debug)]
pub struct OpenFile {
    pub file: File,
    pub cfi: Option<Cfi>,
    /// Size of its debug information; 0: none.
    pub debug_bytes: u64,
}

impl Mappings {
    /// Of process `pid`.
    pub fn read(pid: u32) -> io::Result<Self> {
        let mut mappings = Self { pid, mappings: Vec::new(), files: Vec::new(), by_inode: HashMap::new() };
        mappings.read_again()?;
        Ok(mappings)
    }

    /// Reads what is mapped now. What is known of files stays.
    pub fn read_again(&mut self) -> io::Result<()> {
        let maps = ProcFs::new(self.pid as i32).and_then(|process| process.maps()).map_err(io_error)?;
        self.mappings.clear();
        for map in maps.iter().filter(|map| map.perms.contains(MMPermissions::EXECUTE)) {
            let content = match &map.pathname {
                MMapPath::Path(path) => {
                    let index = *self.by_inode.entry((map.dev.0, map.dev.1, map.inode)).or_insert_with(|| {
                        self.files.push(MappedFile { path: path.clone(), inode: map.inode, opened: OnceCell::new() });
                        self.files.len() - 1
                    });
                    Content::File(index, OnceCell::new())
                }
                MMapPath::Other(name) if name == "uprobes" => Content::Uprobes,
                _ => Content::Other,
            };
            let code = CodeMapping { start: map.address.0, end: map.address.1, offset: map.offset };
            self.mappings.push(Mapping { code, content });
        }
        self.mappings.sort_unstable_by_key(|mapping| mapping.code.start);
        Ok(())
    }

    /// What code is at an address; `None`: nothing that can be executed.
    pub fn find(&self, address: u64) -> Option<Code<'_>> {
        let behind = self.mappings.partition_point(|mapping| mapping.code.start <= address);
        let mapping = self.mappings.get(behind.checked_sub(1)?).filter(|mapping| address < mapping.code.end)?;
        Some(match &mapping.content {
            Content::Uprobes => Code::Uprobes,
            Content::Other => Code::Other,
            Content::File(index, bias) => self.file(*index, bias, mapping.code).map_or(Code::Other, Code::File),
        })
    }

    fn file(&self, index: usize, bias: &OnceCell<Option<u64>>, code: CodeMapping) -> Option<FileCode<'_>> {
        let mapped = self.files.get(index)?;
        let opened =
            mapped.opened.get_or_init(|| OpenFile::new(open_mapped(self.pid, code, &mapped.path, mapped.inode)));
        let file = opened.as_ref()?;
        let load_bias = || Some(code.start.wrapping_sub(Elf::open(&file.file).ok()?.address_of_offset(code.offset)?));
        let bias = (*bias.get_or_init(load_bias))?;
        Some(FileCode { index, bias, file })
    }

    /// The file's path as the process sees it.
    pub fn path(&self, index: usize) -> Option<String> {
        let path = self.files.get(index)?.path.to_string_lossy();
        Some(path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned())
    }
}

impl OpenFile {
    fn new(file: io::Result<File>) -> Option<Self> {
        let file = file.ok()?;
        let elf = Elf::open(&file).ok()?;
        let (cfi, debug_bytes) = (Cfi::read(&elf), elf.debug_bytes());
        Some(Self { file, cfi, debug_bytes })
    }
}

fn io_error(error: procfs::ProcError) -> io::Error {
    match error {
        procfs::ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        procfs::ProcError::PermissionDenied(_) => io::ErrorKind::PermissionDenied.into(),
        procfs::ProcError::Io(error, _) => error,
        other => io::Error::other(other.to_string()),
    }
}
