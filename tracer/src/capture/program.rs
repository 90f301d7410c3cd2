//! The BPF object: loaded by aya, for the maps and the raw tracepoints; its uprobe programs by ourselves, under the
//! attach types that aya does not know.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError},
    programs::RawTracePoint,
};

use tracer_common::{
    fds::SocketLayout,
    limits::{MAX_CLASSES, MAX_FDS, MAX_REOPENED_SOCKETS, MAX_TARGETS, MAX_THREADS},
};

use super::sys::{self, AttachType, FunctionTypes, ProgramKind};
use crate::error::Error;

/// The object that `cargo xtask build-ebpf` makes from `tracer-ebpf`, with its alignment.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/zmqtrace.bpf.o");

/// The section of constants, and the map that is made of it.
const CONSTANTS: &str = ".rodata";

/// Values of the constants in `tracer-ebpf/src/maps.rs`.
#[derive(Debug, Clone, Copy)]
pub struct Constants {
    /// Bytes of payload to copy.
    pub payload_limit: u32,
    /// Classes whose calls become records, as a set.
    pub record_classes: u32,
    /// Classes whose calls are counted in the kernel, as a set.
    pub count_classes: u32,
    /// Offset of `thread.fsbase` in `task_struct`; 0: not known.
    pub fsbase_offset: u32,
    /// 1: the fds of sockets are followed.
    pub follow_fds: u32,
    /// 1: system calls on connections are looked at.
    pub follow_wire: u32,
    /// 1: calls that complete messages say which pipes those went through.
    pub follow_pipes: u32,
    /// The way from a fd to its socket's addresses.
    pub socket_layout: SocketLayout,
    /// 1: the BPF side reports on itself.
    pub debug: u32,
}

/// The loaded object.
#[derive(Debug)]
pub struct Object {
    bpf: Ebpf,
    /// Handles on all maps, also on those that have been taken.
    maps: HashMap<String, OwnedFd>,
}

/// Begins loading. aya reads the kernel's type information here, too: see to other things meanwhile.
pub fn loader<'a>() -> EbpfLoader<'a> {
    EbpfLoader::new()
}

impl Object {
    /// Creates the maps. `ring_bytes` is a power of two and a multiple of the page size.
    pub fn load<'a>(mut loader: EbpfLoader<'a>, constants: &'a Constants, ring_bytes: u32) -> Result<Self, Error> {
        // Room is taken when maps are made.
        let room = |entries: u32| if constants.follow_fds != 0 { entries } else { 1 };
        let bpf = loader
            .override_global("PAYLOAD_LIMIT", &constants.payload_limit, true)
            .override_global("RECORD_CLASSES", &constants.record_classes, true)
            .override_global("COUNT_CLASSES", &constants.count_classes, true)
            .override_global("FSBASE_OFFSET", &constants.fsbase_offset, true)
            .override_global("FOLLOW_FDS", &constants.follow_fds, true)
            .override_global("FOLLOW_WIRE", &constants.follow_wire, true)
            .override_global("FOLLOW_PIPES", &constants.follow_pipes, true)
            .override_global("SOCKET_LAYOUT", &constants.socket_layout, true)
            .override_global("DEBUG", &constants.debug, true)
            .map_max_entries("EVENTS", ring_bytes)
            .map_max_entries("FD_TARGETS", room(MAX_TARGETS))
            .map_max_entries("FDS", room(MAX_FDS))
            .map_max_entries("CLASSES", room(MAX_CLASSES))
            .map_max_entries("REOPENED", room(MAX_REOPENED_SOCKETS))
            .map_max_entries("ENTERED", if constants.follow_wire != 0 { MAX_THREADS } else { 1 })
            .load(OBJECT)
            .map_err(load_error)?;
        let fd = |(name, map): (&str, &Map)| {
            let fd = map_data(map)?.fd().as_fd().try_clone_to_owned().ok()?;
            Some((name.to_owned(), fd))
        };
        let maps = bpf.maps().filter_map(fd).collect();
        Ok(Self { bpf, maps })
    }

    /// Forwards the BPF side's own log (`--debug`).
    pub fn log(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, Error> {
        aya_log::EbpfLogger::init(&mut self.bpf).map_err(|error| bpf_error("read the BPF side's log", &error))
    }

    /// Takes a map for its reader.
    pub fn take_map(&mut self, name: &str) -> Result<Map, Error> {
        self.bpf.take_map(name).ok_or_else(|| bpf_error("load the BPF object", &format!("it lacks the map {name}")))
    }

    /// Loads and attaches a raw tracepoint program. It is detached with the object.
    pub fn attach_raw_tracepoint(&mut self, program: &str, tracepoint: &str) -> Result<(), Error> {
        let action = format!("attach to the raw tracepoint {tracepoint}");
        let program =
            self.bpf.program_mut(program).ok_or_else(|| bpf_error(&action, &"the object lacks its program"))?;
        let program: &mut RawTracePoint = program.try_into().map_err(|error| bpf_error(&action, &error))?;
        program.load().map_err(|error| bpf_error(&action, &Chain(&error)))?;
        program.attach(tracepoint).map(drop).map_err(|error| bpf_error(&action, &Chain(&error)))
    }

    /// Loads a uprobe program under an attach type.
    pub fn load_as(&self, name: &str, attach: AttachType) -> Result<OwnedFd, LoadError> {
        let mut object = aya_obj::Object::parse(OBJECT).map_err(|error| LoadError::Object(error.to_string()))?;
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps = object.maps.clone();
        let maps: Vec<_> = maps
            .iter()
            .filter_map(|(name, map)| Some((name.as_str(), self.maps.get(name)?.as_raw_fd(), map)))
            .collect();
        object.relocate_maps(maps.into_iter(), &text).map_err(|error| LoadError::Object(error.to_string()))?;
        object.relocate_calls(&text).map_err(|error| LoadError::Object(error.to_string()))?;
        load(&object, name, ProgramKind::Uprobe(attach), self.types().as_ref())
    }

    /// The object's BTF as the kernel has it: aya's own programs hold it.
    fn types(&self) -> Option<OwnedFd> {
        let id = self.bpf.programs().find_map(|(_, program)| program.info().ok()?.btf_id())?;
        sys::btf_by_id(id).ok()
    }

    /// A handle of its own on a map, for the system calls that aya does not make.
    pub fn map_fd(&self, name: &str) -> Result<OwnedFd, Error> {
        let fd = self.maps.get(name).and_then(|fd| fd.try_clone().ok());
        fd.ok_or_else(|| bpf_error("use the BPF object", &format!("the map {name} has no fd")))
    }
}

/// Loads one program of the object alone, one that uses no map but the constants. `constants` are set first.
pub fn load_alone(name: &str, kind: ProgramKind, constants: &[(&str, &[u8])]) -> Result<OwnedFd, LoadError> {
    let invalid = |error: &dyn std::fmt::Display| LoadError::Object(error.to_string());
    let mut object = aya_obj::Object::parse(OBJECT).map_err(|error| invalid(&error))?;
    let key = object.programs.get(name).ok_or_else(|| invalid(&format!("no program {name}")))?.function_key();
    object.functions.retain(|function, _| *function == key);
    let constants = constants.iter().map(|(constant, value)| (*constant, (*value, true))).collect();
    object.patch_map_data(constants).map_err(|error| invalid(&error))?;
    let section = object.maps.get(CONSTANTS).cloned().ok_or_else(|| invalid(&"no constants"))?;
    let map = sys::create_constants(section.data()).map_err(|error| LoadError::Kernel(error, String::new()))?;
    object
        .relocate_maps([(CONSTANTS, map.as_raw_fd(), &section)].into_iter(), &HashSet::new())
        .map_err(|error| invalid(&error))?;
    // The program keeps the map.
    load(&object, name, kind, None)
}

/// With its `types` the kernel verifies each function that has a name of its own once, else once a call.
fn load(
    object: &aya_obj::Object,
    name: &str,
    kind: ProgramKind,
    types: Option<&OwnedFd>,
) -> Result<OwnedFd, LoadError> {
    let program = object.programs.get(name).ok_or_else(|| LoadError::Object(format!("no program {name}")))?;
    let function = object
        .functions
        .get(&program.function_key())
        .ok_or_else(|| LoadError::Object(format!("no code for {name}")))?;
    let mut log = Vec::new();
    let functions = function.func_info.func_info_bytes();
    let types = types.map(|btf| FunctionTypes {
        btf: btf.as_fd(),
        records: &functions,
        record_bytes: function.func_info_rec_size as u32,
    });
    sys::load_program(name, &function.instructions, kind, types.as_ref(), &mut log).map_err(|error| {
        log.truncate(memchr::memchr(0, &log).unwrap_or(log.len()));
        LoadError::Kernel(error, String::from_utf8_lossy(&log).into_owned())
    })
}

/// Why a program was not loaded or attached.
#[derive(Debug)]
pub enum LoadError {
    /// The object is not as expected.
    Object(String),
    /// The kernel refused it, with the verifier's log.
    Kernel(io::Error, String),
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Object(reason) => f.write_str(reason),
            // The verdict is the last line of the verifier's log but its statistics.
            Self::Kernel(error, log) => {
                log::debug!("the verifier's log:\n{log}");
                let verdict = log.lines().rev().find(|line| !line.starts_with("processed ") && !line.is_empty());
                match verdict {
                    Some(verdict) => write!(f, "{error}: {verdict} (--debug shows the verifier's log)"),
                    None => write!(f, "{error}"),
                }
            }
        }
    }
}

/// Every kind of map that `tracer-ebpf` has.
fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => {
            Some(data)
        }
        _ => None,
    }
}

/// Shows an error with its causes.
struct Chain<'error>(&'error dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // aya puts the verifier's whole log into the message.
        let message = self.0.to_string();
        let first = message.lines().next().unwrap_or_default();
        if first.len() < message.len() {
            log::debug!("{message}");
        }
        write!(f, "{first}")?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

fn bpf_error(action: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::Bpf { action: action.into(), reason: reason.to_string() }
}

fn load_error(error: EbpfError) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        if let Some(MapError::CreateError { name, io_error, .. }) = current.downcast_ref::<MapError>()
            && name == "EVENTS"
            && io_error.raw_os_error() == Some(libc::EINVAL)
        {
            return Error::Kernel { what: "BPF ring buffers (Linux 5.8)".into(), remedy: "use Linux 5.15 or later" };
        }
        if let Some(source) = current.downcast_ref::<io::Error>() {
            match source.raw_os_error() {
                Some(libc::EPERM) => {
                    return Error::Refused {
                        action: "creating BPF maps".into(),
                        source: io::Error::from_raw_os_error(libc::EPERM),
                        remedy: "the kernel may be locked down (cat /sys/kernel/security/lockdown), or a container \
                                 runtime's seccomp profile forbids bpf(2)",
                    };
                }
                Some(libc::ENOSYS) => {
                    return Error::Kernel { what: "the bpf system call".into(), remedy: "it needs CONFIG_BPF_SYSCALL" };
                }
                _ => {}
            }
        }
        cause = current.source();
    }
    bpf_error("load the BPF object", &Chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ring_buffers_is_named_so() {
        let io_error = io::Error::from_raw_os_error(libc::EINVAL);
        let error = load_error(EbpfError::MapError(MapError::CreateError { name: "EVENTS".into(), io_error }));
        assert!(matches!(&error, Error::Kernel { what, .. } if what.contains("ring buffers")), "{error}");
        assert_eq!(error.exit_status(), 125);
    }

    #[test]
    fn a_locked_down_kernel_is_named_so() {
        let io_error = io::Error::from_raw_os_error(libc::EPERM);
        let error = load_error(EbpfError::MapError(MapError::CreateError { name: "TARGETS".into(), io_error }));
        assert_eq!(error.exit_status(), 121, "{error}");
    }
}
