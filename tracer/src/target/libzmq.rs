//! Finds libzmq by what mapped files define, whatever their names: a distribution's library, a wheel's
//! mangled copy, a Node addon, a program that links it statically.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};
use tracer_common::{
    function::FUNCTIONS,
    record::{LibraryConfig, SocketConfig},
};

use super::{
    MappedFile, Process,
    elf::{Elf, Function, NotElf, Symbols, Table},
    prologue,
};
use crate::{error::Error, inspect::layouts};

/// A libzmq in a process.
#[derive(Debug)]
pub struct Library {
    /// The file it is in, as the process sees it.
    pub path: PathBuf,
    /// The file itself, whatever has become of its path.
    pub file: File,
    /// What `zmq_version` would say; `None` where the file lacks that function.
    pub version: Option<Version>,
    /// Its functions.
    pub probes: Vec<Probe>,
    /// Addresses of code that is libzmq's own: all of it, or what sends events of socket monitors.
    internal_code: [u64; 2],
    /// Whether that is all of it.
    tells_callers: bool,
}

/// A function of a [`Library`].
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Row of [`FUNCTIONS`].
    pub function: usize,
    /// Where in the file its probe goes.
    pub offset: u64,
}

/// A release of libzmq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl std::str::FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.split('.').map(|number| number.parse().map_err(|_| ()));
        let mut next = || numbers.next().unwrap_or(Err(()));
        let version = Self(next()?, next()?, next()?);
        if numbers.next().is_none() { Ok(version) } else { Err(()) }
    }
}

impl Library {
    /// What the kernel side must know of this build.
    pub fn config(&self) -> LibraryConfig {
        let mut config = LibraryConfig {
            internal_code: self.internal_code,
            tells_callers: self.tells_callers.into(),
            ..LibraryConfig::default()
        };
        if let Some(version) = self.version {
            (config.message_type, config.message_content) = layouts::message(version);
            let sockets = layouts::sockets(version);
            for (slot, layout) in config.sockets.iter_mut().zip(sockets) {
                *slot = SocketConfig {
                    tag: layout.socket_tag as u32,
                    rcvmore: layout.socket_rcvmore as u32,
                    socket_id: layout.opt_socket_id as u32,
                    pipes: layout.socket_pipes as u32,
                    socket_type: layout.opt_type as u32,
                    pipe_counts: layout.pipe_counts() as u32,
                };
            }
        }
        config
    }

    /// Whether calls made by libzmq itself can be told by their return address.
    pub const fn tells_callers(&self) -> bool {
        self.tells_callers
    }

    /// The file's name without its folder.
    pub fn file_name(&self) -> &Path {
        self.path.file_name().map_or(&self.path, Path::new)
    }
}

/// Every libzmq in the process. The error says what a foreign program is.
pub fn find(files: &[MappedFile]) -> Result<Vec<Library>, String> {
    let mut libraries = Vec::new();
    let mut foreign = None;
    for mapped in files {
        match Elf::open(&mapped.file) {
            Ok(elf) => libraries.extend(look_into(mapped, &elf)),
            Err(NotElf::Foreign(what)) => foreign = foreign.or(Some(what)),
            Err(NotElf::Other) => {}
        }
    }
    match foreign {
        Some(what) if libraries.is_empty() => Err(what),
        _ => Ok(libraries),
    }
}

fn look_into(mapped: &MappedFile, elf: &Elf<'_>) -> Option<Library> {
    let symbols = [Table::Dynamic, Table::Full]
        .into_iter()
        .filter_map(|table| elf.symbols(table))
        .find(|symbols| symbols.function("zmq_socket").is_some())?;
    let mut probes = Vec::new();
    let mut version = None;
    for (name, function) in symbols.functions() {
        if name == b"zmq_version" {
            version = read_version(&elf.code(function.address, 64));
        }
        let Some(row) = FUNCTIONS.iter().position(|row| row.name.as_bytes() == name) else { continue };
        let code = elf.code(function.address, code_len(function));
        let address = function.address.wrapping_add(prologue::probe_offset(&code, function.size));
        if let Some(offset) = elf.offset_of_address(address) {
            probes.push(Probe { function: row, offset });
        }
    }
    let file = mapped.file.try_clone().ok()?;
    let tells_callers = is_nothing_but_libzmq(elf);
    let internal_code = internal_code(mapped, elf, tells_callers);
    Some(Library { path: mapped.path.clone(), file, version, probes, internal_code, tells_callers })
}

/// Enough to see the whole function, if it is of ordinary size.
fn code_len(function: Function) -> usize {
    function.size.clamp(64, 16 << 10) as usize
}

/// Whether the file is libzmq as a shared library. Programs and bindings that have it linked in (a Node
/// addon, a Rust extension) define other functions as well, and call libzmq's from the same file.
fn is_nothing_but_libzmq(elf: &Elf<'_>) -> bool {
    const OWN: [&[u8]; 5] = [b"zmq_", b"_ZN3zmq", b"_ZNK3zmq", b"_init", b"_fini"];
    elf.symbols(Table::Dynamic).is_some_and(|exports| {
        exports.function("zmq_socket").is_some()
            && exports.functions().all(|(name, _)| OWN.iter().any(|own| name.starts_with(own)))
    })
}

/// In libzmq as a shared library, calls to its own exported functions come from its own code. Elsewhere they
/// must be told from the program's, by the one function that sends monitor events.
fn internal_code(mapped: &MappedFile, elf: &Elf<'_>, is_library: bool) -> [u64; 2] {
    if is_library {
        let start = mapped.code.iter().map(|code| code.start).min().unwrap_or(0);
        let end = mapped.code.iter().map(|code| code.end).max().unwrap_or(0);
        return [start, end];
    }
    let bias = mapped.load_bias(elf);
    let tables = [Table::Full, Table::Dynamic].into_iter().filter_map(|table| elf.symbols(table));
    let monitor = tables.filter_map(|symbols| monitor_event(&symbols)).next();
    match (bias, monitor) {
        (Some(bias), Some(monitor)) => {
            let start = monitor.address.wrapping_add(bias);
            [start, start.wrapping_add(monitor.size)]
        }
        _ => [0; 2],
    }
}

fn monitor_event(symbols: &Symbols) -> Option<Function> {
    const MANGLED: &[u8] = b"_ZNK3zmq13socket_base_t13monitor_event";
    const MANGLED_BEFORE_4_3: &[u8] = b"_ZN3zmq13socket_base_t13monitor_event";
    symbols
        .functions()
        .find(|(name, _)| name.starts_with(MANGLED) || name.starts_with(MANGLED_BEFORE_4_3))
        .map(|(_, function)| function)
}

/// `zmq_version` stores three immediates: major, minor, patch. They are read without running it.
fn read_version(code: &[u8]) -> Option<Version> {
    let mut stored = Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
        .into_iter()
        .take_while(|instruction| instruction.mnemonic() != Mnemonic::Ret)
        .filter(|instruction| {
            instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_kind() == OpKind::Memory
                && instruction.op1_kind() == OpKind::Immediate32
        })
        .map(|instruction| instruction.immediate32());
    let version = Version(stored.next()?, stored.next()?, stored.next()?);
    // libzmq 2 has other functions, and nothing above 99 is a version.
    ((3..10).contains(&version.0) && version.1 < 100 && version.2 < 100).then_some(version)
}

/// No libzmq was found: because there is none, or because its symbols were stripped?
pub fn explain_absence(pid: u32, name: String, files: &[MappedFile]) -> Error {
    /// `zmq_strerror (EFSM)`: a text that every libzmq contains and nothing else.
    const EFSM_TEXT: &[u8] = b"Operation cannot be accomplished in current state";
    let stripped = files.iter().find(|mapped| Elf::open(&mapped.file).is_ok_and(|elf| elf.contains(EFSM_TEXT)));
    if let Some(mapped) = stripped {
        return Error::SymbolsStripped { pid, name, path: mapped.path.clone() };
    }
    let examples: Vec<_> = files
        .iter()
        .filter_map(|mapped| mapped.path.file_name())
        .take(3)
        .map(|file| file.to_string_lossy().into_owned())
        .collect();
    let more = if files.len() > examples.len() { ", ..." } else { "" };
    Error::NoLibzmq { pid, name, files: files.len(), examples: format!("{}{more}", examples.join(", ")) }
}

impl Process {
    /// One line on what was found, for diagnostics.
    pub fn describe_libraries(&self) -> String {
        let describe = |library: &Library| {
            let version = library.version.map_or_else(|| "of unknown version".into(), |version| version.to_string());
            format!("libzmq {version} ({})", library.file_name().display())
        };
        let mut described: Vec<_> = self.libraries.iter().map(describe).collect();
        if described.is_empty() {
            described.push("no libzmq with symbols: what goes over its connections is all that is seen".into());
        }
        if self.ignored_libraries > 0 {
            described.push(format!("and {} more that are NOT traced", self.ignored_libraries));
        }
        described.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_the_code() {
        // endbr64; movl $4, (%rdi); movl $3, (%rsi); movl $5, (%rdx); ret
        let code =
            [0xf3, 0x0f, 0x1e, 0xfa, 0xc7, 0x07, 4, 0, 0, 0, 0xc7, 0x06, 3, 0, 0, 0, 0xc7, 0x02, 5, 0, 0, 0, 0xc3];
        assert_eq!(read_version(&code), Some(Version(4, 3, 5)));
        assert_eq!(read_version(&code[..16]), None);
        assert_eq!(read_version(&[0xc3]), None);
    }
}
