//! Offsets in the kernel's own structures, from its BTF.

use std::thread::JoinHandle;

use btf_rs::{Backend, Btf, Type};

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

fn fsbase_offset() -> Result<u32, Error> {
    let unusable = |error: &dyn std::fmt::Display| Error::Kernel {
        what: format!("its type information ({VMLINUX}: {error})"),
        remedy: "it needs CONFIG_DEBUG_INFO_BTF, which distribution kernels have since 2020",
    };
    // Mapped, only what is asked for is parsed, but kernels before 6.16 do not let it be mapped. Else at once: read
    // piece by piece it takes longer than all the rest.
    let btf = Btf::from_file_with_backend(VMLINUX, Backend::Mmap).or_else(|_| {
        let bytes = std::fs::read(VMLINUX).map_err(|error| unusable(&error))?;
        Btf::from_bytes(&bytes).map_err(|error| unusable(&error))
    })?;
    let lacks = || Error::Kernel {
        what: "task_struct.thread.fsbase in its type information".into(),
        remedy: "only x86_64 kernels are supported",
    };
    let (thread_offset, thread) = member(&btf, "task_struct", "thread").ok_or_else(lacks)?;
    let name = btf.resolve_name(thread.as_btf_type().ok_or_else(lacks)?).map_err(|_| lacks())?;
    let (fsbase_offset, _) = member(&btf, &name, "fsbase").ok_or_else(lacks)?;
    Ok(thread_offset + fsbase_offset)
}

/// Offset of a member of a structure, bytes, and its type.
fn member(btf: &Btf, structure: &str, member: &str) -> Option<(u32, Type)> {
    btf.resolve_types_by_name(structure).ok()?.into_iter().find_map(|kind| {
        let Type::Struct(structure) = kind else { return None };
        let found =
            structure.members.iter().find(|candidate| btf.resolve_name(*candidate).is_ok_and(|name| name == member))?;
        Some((found.bit_offset() / 8, btf.resolve_chained_type(found).ok()?))
    })
}
