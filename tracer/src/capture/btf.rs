//! Offsets in the kernel's own structures, from its BTF.

use std::{fs::File, os::fd::FromRawFd as _, thread::JoinHandle};

use btf_rs::{Backend, Btf, Type};
use tracer_common::{fds::SocketLayout, record::TaskLayout};

use crate::error::Error;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// A look-up in the kernel's type information, which is large: it goes on in a thread of its own while the
/// targets are looked into.
#[derive(Debug)]
pub struct KernelTypes(JoinHandle<Result<Offsets, Error>>);

/// What a capture needs of the kernel's type information.
#[derive(Debug, Clone, Copy)]
pub struct Offsets {
    /// `thread.fsbase` in `task_struct`, bytes: the thread pointer of an x86_64 thread.
    pub fsbase: u32,
    /// The way from a fd to its socket's addresses; all zero where it is not known.
    pub sockets: SocketLayout,
}

impl KernelTypes {
    /// Begins.
    pub fn look_up() -> Self {
        Self(std::thread::spawn(|| {
            let btf = open()?;
            Ok(Offsets { fsbase: fsbase_offset(&btf)?, sockets: socket_layout(&btf).unwrap_or_default() })
        }))
    }

    /// What was found.
    ///
    /// # Errors
    /// When the kernel has no type information, or not of what every capture needs.
    pub fn offsets(self) -> Result<Offsets, Error> {
        self.0.join().unwrap_or_else(|_| {
            Err(Error::Kernel { what: "readable type information".into(), remedy: "please report this kernel" })
        })
    }
}

/// What an iterator over tasks needs.
#[derive(Debug, Clone, Copy)]
pub struct TaskIteratorTypes {
    /// Number of the function `bpf_iter_task`, which such programs are attached to.
    pub function: u32,
    /// Where tasks keep what is read.
    pub layout: TaskLayout,
}

/// Looks up what an iterator over tasks needs.
///
/// # Errors
/// When the kernel has no type information, or no such iterators (Linux 5.8).
pub fn task_iterator() -> Result<TaskIteratorTypes, Error> {
    let btf = open()?;
    let lacks = |what: &str| Error::Kernel { what: what.into(), remedy: "use Linux 5.15 or later" };
    let ids = btf.resolve_ids_by_name("bpf_iter_task").unwrap_or_default();
    let is_function = |id: &u32| matches!(btf.resolve_type_by_id(*id), Ok(Type::Func(_)));
    let function = ids.into_iter().find(is_function).ok_or_else(|| lacks("BPF iterators over tasks"))?;
    let task = structure(&btf, "task_struct").ok_or_else(|| lacks("task_struct in its type information"))?;
    let optional = |path: &[&str]| nested(&btf, &task, path).unwrap_or(TaskLayout::ABSENT);
    let needed = |name: &str| {
        nested(&btf, &task, &[name]).ok_or_else(|| lacks(&format!("task_struct.{name} in its type information")))
    };
    let layout = TaskLayout {
        pid: needed("pid")?,
        tgid: needed("tgid")?,
        policy: optional(&["policy"]),
        times_run: optional(&["sched_info", "pcount"]),
        arrival_ns: optional(&["sched_info", "last_arrival"]),
        ran_ns: optional(&["se", "sum_exec_runtime"]),
        ran_before_ns: optional(&["se", "prev_sum_exec_runtime"]),
    };
    Ok(TaskIteratorTypes { function, layout })
}

fn fsbase_offset(btf: &Btf) -> Result<u32, Error> {
    let offset = structure(btf, "task_struct").and_then(|task| nested(btf, &task, &["thread", "fsbase"]));
    offset.ok_or_else(|| Error::Kernel {
        what: "task_struct.thread.fsbase in its type information".into(),
        remedy: "only x86_64 kernels are supported",
    })
}

fn open() -> Result<Btf, Error> {
    let unusable = |error: &dyn std::fmt::Display| Error::Kernel {
        what: format!("its type information ({VMLINUX}: {error})"),
        remedy: "it needs CONFIG_DEBUG_INFO_BTF, which distribution kernels have since 2020",
    };
    // Mapped, only what is asked for is parsed, which takes a tenth of the time that all of it takes.
    Btf::from_file_with_backend(VMLINUX, Backend::Mmap).or_else(|_| open_copy()).map_err(|error| unusable(&error))
}

/// Kernels before 6.16 do not let it be mapped, but a copy can be.
fn open_copy() -> Result<Btf, btf_rs::Error> {
    // SAFETY: takes a string and flags, returns a new fd or -1.
    let fd = unsafe { libc::memfd_create(c"btf".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the fd is new and ours.
    let mut copy = unsafe { File::from_raw_fd(fd) };
    std::io::copy(&mut File::open(VMLINUX)?, &mut copy)?;
    Btf::from_file_with_backend(format!("/proc/self/fd/{fd}"), Backend::Mmap)
}

fn structure(btf: &Btf, name: &str) -> Option<Type> {
    btf.resolve_types_by_name(name).ok()?.into_iter().find(|kind| matches!(kind, Type::Struct(_)))
}

/// `None`: a kernel that keeps something elsewhere than all that are known. Unix sockets may be in a module.
fn socket_layout(btf: &Btf) -> Option<SocketLayout> {
    let offset = |name: &str, path: &[&str]| nested(btf, &structure(btf, name)?, path);
    let common = |member: &str| offset("sock", &["__sk_common", member]);
    Some(SocketLayout {
        task_files: offset("task_struct", &["files"])?,
        files_table: offset("files_struct", &["fdt"])?,
        table_files: offset("fdtable", &["fd"])?,
        file_private_data: offset("file", &["private_data"])?,
        socket_file: offset("socket", &["file"])?,
        socket_sk: offset("socket", &["sk"])?,
        family: common("skc_family")?,
        local_port: common("skc_num")?,
        remote_port: common("skc_dport")?,
        local: common("skc_rcv_saddr")?,
        remote: common("skc_daddr")?,
        local6: common("skc_v6_rcv_saddr").unwrap_or(0),
        remote6: common("skc_v6_daddr").unwrap_or(0),
        unix_address: offset("unix_sock", &["addr"]).unwrap_or(0),
        unix_peer: offset("unix_sock", &["peer"]).unwrap_or(0),
        unix_len: offset("unix_address", &["len"]).unwrap_or(0),
        unix_name: offset("unix_address", &["name"]).unwrap_or(0),
        sock_type: offset("sock", &["sk_type"]).unwrap_or(0),
        protocol: offset("sock", &["sk_protocol"]).unwrap_or(0),
        sock_socket: offset("sock", &["sk_socket"]).unwrap_or(0),
        write_sequence: offset("tcp_sock", &["write_seq"]).unwrap_or(0),
        copied_sequence: offset("tcp_sock", &["copied_seq"]).unwrap_or(0),
        file_inode: offset("file", &["f_inode"])?,
        inode_number: offset("inode", &["i_ino"])?,
    })
}

/// Offset of a member, or of a member's member, of a structure, bytes. Members without a name are looked into.
fn nested(btf: &Btf, structure: &Type, path: &[&str]) -> Option<u32> {
    let (name, rest) = path.split_first()?;
    let (Type::Struct(structure) | Type::Union(structure)) = structure else { return None };
    structure.members.iter().find_map(|member| {
        let offset = member.bit_offset() / 8;
        let found = btf.resolve_name(member).unwrap_or_default();
        let inner = || btf.resolve_chained_type(member).ok();
        match (found.as_str(), rest) {
            ("", _) => Some(offset + nested(btf, &inner()?, path)?),
            (found, []) if found == *name => Some(offset),
            (found, rest) if found == *name => Some(offset + nested(btf, &inner()?, rest)?),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_from_a_fd_to_its_addresses_is_known() {
        let btf = open().expect("tests need a kernel with BTF");
        let layout = socket_layout(&btf).expect("this kernel is as others");
        // ABI in all but name: the addresses begin the structure.
        assert_eq!((layout.remote, layout.local, layout.remote_port, layout.local_port), (0, 4, 12, 14));
        assert!(layout.task_files > 0 && layout.unix_address > 0);
    }

    #[test]
    fn a_copy_says_the_same() {
        let offset = |btf: &Btf| nested(btf, &structure(btf, "task_struct")?, &["sched_info", "last_arrival"]);
        let copied = open_copy().expect("memory for a copy");
        let mapped = open().expect("tests need a kernel with BTF");
        assert!(offset(&mapped).is_some());
        assert_eq!(offset(&copied), offset(&mapped));
    }
}
