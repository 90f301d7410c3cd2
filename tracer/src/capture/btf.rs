//! Offsets in the kernel's own structures, from its BTF.

use btf_rs::{Btf, Type};

use crate::error::Error;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Offset of `thread.fsbase` in `task_struct`, bytes: the thread pointer of an x86_64 thread.
pub fn fsbase_offset() -> Result<u32, Error> {
    let btf = Btf::from_file(VMLINUX).map_err(|error| Error::Kernel {
        what: format!("its type information ({VMLINUX}: {error})"),
        remedy: "it needs CONFIG_DEBUG_INFO_BTF, which distribution kernels have since 2020",
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
