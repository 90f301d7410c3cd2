//! The system calls around BPF that aya 0.14 does not make: uprobe programs with every attach type, their links, reading
//! a map in batches, and what an iterator over tasks takes without the rest of the object.

use std::{
    ffi::CString,
    io,
    mem::{size_of, zeroed},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{
    BPF_F_RDONLY_PROG, PERF_FLAG_FD_CLOEXEC,
    bpf_attach_type::{BPF_PERF_EVENT, BPF_TRACE_ITER},
    bpf_attr, bpf_cmd, bpf_insn,
    bpf_map_type::BPF_MAP_TYPE_ARRAY,
    bpf_prog_type, perf_event_attr,
};

/// Attach types, `enum bpf_attach_type` of `linux/bpf.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// None: for perf events.
    Perf = 0,
    /// `BPF_TRACE_UPROBE_MULTI`, Linux 6.6.
    UprobeMulti = 48,
    /// `BPF_TRACE_UPROBE_SESSION`, Linux 6.13.
    UprobeSession = 57,
}

/// What a program is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// Of uprobes.
    Uprobe(AttachType),
    /// An iterator over tasks, whose function `bpf_iter_task` has this number in the kernel's BTF.
    TaskIterator {
        /// The number.
        btf_id: u32,
    },
}

/// Flag of a `uprobe_multi` link: at the return.
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// One probe.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// In the file, bytes.
    pub offset: u64,
    /// For `bpf_get_attach_cookie`.
    pub cookie: u64,
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a live union of the size passed; the kernel checks all that it points to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// `result` is a new fd.
unsafe fn owned(result: i64) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn empty_attr() -> bpf_attr {
    // SAFETY: a union of plain integers, for which zero is what the kernel expects of unused fields.
    unsafe { zeroed() }
}

/// What the kernel is told of a program's functions.
#[derive(Debug, Clone, Copy)]
pub struct FunctionTypes<'load> {
    /// The types.
    pub btf: BorrowedFd<'load>,
    /// `struct bpf_func_info`, one a function.
    pub records: &'load [u8],
    /// Bytes of one.
    pub record_bytes: u32,
}

/// `BPF_BTF_GET_FD_BY_ID`.
///
/// # Errors
/// The kernel's.
pub fn btf_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    // SAFETY: BPF_BTF_GET_FD_BY_ID returns a new fd.
    bpf(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr).map(|fd| unsafe { owned(fd) })
}

/// `BPF_PROG_LOAD`.
///
/// # Errors
/// The kernel's; its verifier's log is in `log`.
pub fn load_program(
    name: &str,
    instructions: &[bpf_insn],
    kind: ProgramKind,
    types: Option<&FunctionTypes<'_>>,
    log: &mut Vec<u8>,
) -> io::Result<OwnedFd> {
    let attempt = |log: &mut [u8]| {
        let mut attr = empty_attr();
        // SAFETY: the fields of BPF_PROG_LOAD.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        match kind {
            ProgramKind::Uprobe(attach) => {
                load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
                load.expected_attach_type = attach as u32;
            }
            ProgramKind::TaskIterator { btf_id } => {
                load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
                load.expected_attach_type = BPF_TRACE_ITER as u32;
                load.attach_btf_id = btf_id;
            }
        }
        load.insns = instructions.as_ptr() as u64;
        load.insn_cnt = instructions.len() as u32;
        if let Some(FunctionTypes { btf, records, record_bytes }) = types {
            load.prog_btf_fd = btf.as_raw_fd() as u32;
            load.func_info = records.as_ptr() as u64;
            load.func_info_rec_size = *record_bytes;
            load.func_info_cnt = records.len() as u32 / record_bytes;
        }
        load.license = c"Dual MIT/GPL".as_ptr() as u64;
        // The kernel keeps 15 bytes of the name and a NUL.
        for (to, from) in load.prog_name.iter_mut().take(15).zip(name.bytes()) {
            *to = from as _;
        }
        if !log.is_empty() {
            load.log_level = 1;
            load.log_buf = log.as_mut_ptr() as u64;
            load.log_size = log.len() as u32;
        }
        // SAFETY: BPF_PROG_LOAD returns a new fd.
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map(|fd| unsafe { owned(fd) })
    };
    attempt(&mut []).or_else(|error| {
        log.resize(1 << 20, 0);
        // For its log.
        attempt(log).map_err(|_| error)
    })
}

/// Attaches a program to many places of one file, in process `pid` only, with one link.
///
/// # Errors
/// The kernel's: `EINVAL` where it does not know the link.
pub fn link_uprobes(
    program: BorrowedFd<'_>,
    attach: AttachType,
    path: &Path,
    points: &[Point],
    at_return: bool,
    pid: u32,
) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let offsets: Vec<u64> = points.iter().map(|point| point.offset).collect();
    let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
    let mut attr = empty_attr();
    // SAFETY: the fields of BPF_LINK_CREATE.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    link.attach_type = attach as u32;
    // SAFETY: the fields of a uprobe_multi link.
    let multi = unsafe { &mut link.__bindgen_anon_3.uprobe_multi };
    multi.path = path.as_ptr() as u64;
    multi.offsets = offsets.as_ptr() as u64;
    multi.cookies = cookies.as_ptr() as u64;
    multi.cnt = points.len() as u32;
    multi.flags = if at_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 };
    multi.pid = pid;
    // SAFETY: BPF_LINK_CREATE returns a new fd.
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(|fd| unsafe { owned(fd) })
}

/// What the kernel calls uprobes among the sources of perf events.
#[derive(Debug, Clone, Copy)]
pub struct PerfUprobes {
    kind: u32,
    /// The bit of `config` that asks for the return.
    return_bit: u32,
}

impl PerfUprobes {
    const SOURCE: &str = "/sys/bus/event_source/devices/uprobe";

    /// Asks the kernel.
    ///
    /// # Errors
    /// When sysfs does not say.
    pub fn look_up() -> io::Result<Self> {
        let number = |file: &str, prefix: &str| {
            let text = std::fs::read_to_string(format!("{}/{file}", Self::SOURCE))?;
            let number = text.trim().strip_prefix(prefix).and_then(|number| number.parse().ok());
            number.ok_or(io::Error::from(io::ErrorKind::InvalidData))
        };
        Ok(Self { kind: number("type", "")?, return_bit: number("format/retprobe", "config:")? })
    }

    /// Attaches a program to one place of a file, in process `pid` only. Needs Linux 5.15 for the cookie.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link(
        self,
        program: BorrowedFd<'_>,
        path: &Path,
        point: Point,
        at_return: bool,
        pid: u32,
    ) -> io::Result<OwnedFd> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: plain integers, for which zero is what the kernel expects of unused fields.
        let mut event: perf_event_attr = unsafe { zeroed() };
        event.size = size_of::<perf_event_attr>() as u32;
        event.type_ = self.kind;
        event.config = u64::from(at_return) << self.return_bit;
        event.__bindgen_anon_3.uprobe_path = path.as_ptr() as u64;
        event.__bindgen_anon_4.probe_offset = point.offset;
        // SAFETY: `event` and the path in it are live; the other arguments are integers.
        let event = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const event, pid as i32, -1, -1, PERF_FLAG_FD_CLOEXEC)
        };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the fd is new. It may be closed at the end: the link keeps the event.
        let event = unsafe { owned(event) };

        let mut attr = empty_attr();
        // SAFETY: the fields of BPF_LINK_CREATE.
        let link = unsafe { &mut attr.link_create };
        link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        link.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
        link.attach_type = BPF_PERF_EVENT as u32;
        link.__bindgen_anon_3.perf_event.bpf_cookie = point.cookie;
        // SAFETY: BPF_LINK_CREATE returns a new fd.
        bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(|fd| unsafe { owned(fd) })
    }
}

/// An array of one value that programs cannot change and whose contents the verifier knows: a section of constants.
///
/// # Errors
/// The kernel's.
pub fn create_constants(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: the fields of BPF_MAP_CREATE.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = size_of::<u32>() as u32;
    create.value_size = bytes.len() as u32;
    create.max_entries = 1;
    create.map_flags = BPF_F_RDONLY_PROG;
    // SAFETY: BPF_MAP_CREATE returns a new fd.
    let map = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr).map(|fd| unsafe { owned(fd) })?;

    let key = 0u32;
    let mut attr = empty_attr();
    // SAFETY: the fields of BPF_MAP_UPDATE_ELEM.
    let update = unsafe { &mut attr.__bindgen_anon_2 };
    update.map_fd = map.as_raw_fd() as u32;
    update.key = &raw const key as u64;
    update.__bindgen_anon_1.value = bytes.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)?;

    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr)?;
    Ok(map)
}

/// `union bpf_iter_link_info` of an iterator over tasks: its `task`, which aya-obj's bindings lack.
#[repr(C)]
struct TaskIteratorInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// Makes an iterator over the tasks of one process, ready to be read. Kernels before 6.1 iterate over all tasks:
/// `EINVAL`, or they take no notice of `pid`.
///
/// # Errors
/// The kernel's.
pub fn iterate_tasks(program: BorrowedFd<'_>, pid: Option<u32>) -> io::Result<std::fs::File> {
    let info = TaskIteratorInfo { tid: 0, pid: pid.unwrap_or(0), pid_fd: 0 };
    let mut attr = empty_attr();
    // SAFETY: the fields of BPF_LINK_CREATE.
    let create = unsafe { &mut attr.link_create };
    create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    create.attach_type = BPF_TRACE_ITER as u32;
    if pid.is_some() {
        // SAFETY: the fields of an iterator's link.
        let iterator = unsafe { &mut create.__bindgen_anon_3.__bindgen_anon_1 };
        iterator.iter_info = &raw const info as u64;
        iterator.iter_info_len = size_of::<TaskIteratorInfo>() as u32;
    }
    // SAFETY: BPF_LINK_CREATE returns a new fd.
    let link = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(|fd| unsafe { owned(fd) })?;

    let mut attr = empty_attr();
    attr.iter_create.link_fd = link.as_raw_fd() as u32;
    // SAFETY: BPF_ITER_CREATE returns a new fd.
    bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr).map(|fd| unsafe { owned(fd) }.into())
}

/// Reads up to `keys.len()` entries of a hash map into `keys` and `values`, from the start. Returns how many,
/// and whether that is all: the kernel also stops early when its next bucket does not fit.
///
/// # Errors
/// The kernel's; `ENOSPC` when not even the first bucket fits.
pub fn lookup_batch<K: Copy, V: Copy>(
    map: BorrowedFd<'_>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    assert_eq!(keys.len(), values.len());
    let mut position = 0u64;
    let mut attr = empty_attr();
    // SAFETY: the fields of BPF_MAP_LOOKUP_BATCH.
    let batch = unsafe { &mut attr.batch };
    batch.map_fd = map.as_raw_fd() as u32;
    batch.out_batch = &raw mut position as u64;
    batch.keys = keys.as_mut_ptr() as u64;
    batch.values = values.as_mut_ptr() as u64;
    batch.count = keys.len() as u32;
    let complete = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel has set it.
    Ok(((unsafe { attr.batch.count } as usize).min(keys.len()), complete))
}

/// Major and minor version of the running kernel; (0, 0) where it does not say.
pub fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// An array map with `BPF_F_MMAPABLE`, mapped read-only.
#[derive(Debug)]
pub struct MappedArray<V> {
    start: std::ptr::NonNull<u8>,
    len: u32,
    value: std::marker::PhantomData<V>,
}

impl<V: aya::Pod> MappedArray<V> {
    /// Maps the `len` values of the array `map`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), Self::bytes(len), libc::PROT_READ, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = std::ptr::NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len, value: std::marker::PhantomData })
    }

    /// A copy of the value at `index`. The kernel side may be writing it: what it means is for the caller to
    /// confirm.
    pub fn read(&self, index: u32) -> Option<V> {
        if index >= self.len {
            return None;
        }
        // SAFETY: within the mapping; `Pod` means that any bytes are a value.
        Some(unsafe { self.start.as_ptr().add(index as usize * Self::STRIDE).cast::<V>().read_volatile() })
    }

    /// The kernel keeps values of an array at multiples of 8 bytes.
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    const fn bytes(len: u32) -> usize {
        len as usize * Self::STRIDE
    }
}

impl<V> Drop for MappedArray<V> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len as usize * size_of::<V>().next_multiple_of(8)) };
    }
}
