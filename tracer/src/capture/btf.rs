//! Offsets in the kernel's own structures, from its BTF.

use std::{fs::File, os::fd::FromRawFd as _, thread::JoinHandle};

use btf_rs::{Backend, Btf, Type};
use tracer_common::record::TaskLayout;

use crate::error::Error;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// A look-up in the kernel's type information, which is large: it goes on in a thread of its own while the
/// targets are looked into.
#[derive(Debug)]
pub struct KernelTypes(JoinHandle<Result<u32, Error>>);

impl KernelTypes {
    /// Begins.
    pub fn look_up() -> Self {
        Self(std::thread::spawn(fsbase_offset))
    }

    /// Offset of `thread.fsbase` in `task_struct`, bytes: the thread pointer of an x86_64 thread.
    ///
    /// # Errors
    /// When the kernel has no type information, or not of that.
    pub fn fsbase_offset(self) -> Result<u32, Error> {
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

fn fsbase_offset() -> Result<u32, Error> {
    let btf = open()?;
    let offset = structure(&btf, "task_struct").and_then(|task| nested(&btf, &task, &["thread", "fsbase"]));
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

/// Offset of a member, or of a member's member, of a structure, bytes.
fn nested(btf: &Btf, structure: &Type, path: &[&str]) -> Option<u32> {
    let (name, rest) = path.split_first()?;
    let Type::Struct(structure) = structure else { return None };
    let is_named = |member: &&btf_rs::Member| btf.resolve_name(*member).is_ok_and(|found| found == *name);
    let member = structure.members.iter().find(is_named)?;
    let offset = member.bit_offset() / 8;
    if rest.is_empty() {
        return Some(offset);
    }
    Some(offset + nested(btf, &btf.resolve_chained_type(member).ok()?, rest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_the_same() {
        let offset = |btf: &Btf| nested(btf, &structure(btf, "task_struct")?, &["sched_info", "last_arrival"]);
        let copied = open_copy().expect("memory for a copy");
        let mapped = open().expect("tests need a kernel with BTF");
        assert!(offset(&mapped).is_some());
        assert_eq!(offset(&copied), offset(&mapped));
    }
}
