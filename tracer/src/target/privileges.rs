//! Which capabilities and kernel features are needed, and which are there.

use std::{os::unix::fs::MetadataExt, path::Path};

use crate::error::Error;

/// Capability numbers of `linux/capability.h`.
const NEEDED: &[(u32, &str)] = &[(39, "CAP_BPF"), (38, "CAP_PERFMON"), (19, "CAP_SYS_PTRACE")];
/// Implies CAP_BPF and CAP_PERFMON.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;

/// What it takes to trace.
const TO_TRACE: &str = "CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE";
/// What it takes to look into a process.
pub const TO_INSPECT: &str = "CAP_SYS_PTRACE and, for processes of other users, CAP_DAC_READ_SEARCH";

/// What can be traced by perf events, among them uprobes.
const EVENT_SOURCES: &str = "/sys/bus/event_source/devices";

/// Refuses with the names of the missing ones.
pub fn check() -> Result<(), Error> {
    let missing = missing(effective());
    if !missing.is_empty() {
        return Err(Error::NotPermitted { missing: missing.join(", "), needed: TO_TRACE });
    }
    // The inode number of the kernel's first PID namespace is fixed: PROC_PID_INIT_INO of linux/proc_ns.h.
    let namespace = std::fs::metadata("/proc/self/ns/pid").map(|metadata| metadata.ino());
    if namespace.is_ok_and(|inode| inode != 0xefff_fffc) {
        return Err(Error::PidNamespace);
    }
    // Where sysfs is hidden, the attempt to attach will tell.
    if Path::new(EVENT_SOURCES).exists() && !Path::new(EVENT_SOURCES).join("uprobe").exists() {
        return Err(Error::Kernel { what: "uprobes".into(), remedy: "it needs CONFIG_UPROBE_EVENTS" });
    }
    Ok(())
}

/// Refuses when other processes may not be looked into. Reading memory needs no more than that.
pub fn check_to_inspect() -> Result<(), Error> {
    if may_look_into_processes() {
        return Ok(());
    }
    Err(Error::NotPermitted { missing: "CAP_SYS_PTRACE".into(), needed: TO_INSPECT })
}

/// Whether what `/proc` hides from other users can be read: the fds of their processes.
pub fn may_read_of_other_users() -> bool {
    effective() & (1 << CAP_DAC_READ_SEARCH | 1 << CAP_DAC_OVERRIDE) != 0
}

/// Our capabilities, as a set.
fn effective() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Whether other processes may be looked into; else something other than capabilities forbids it.
pub fn may_look_into_processes() -> bool {
    effective() >> CAP_SYS_PTRACE & 1 == 1
}

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |capability: u32| effective >> capability & 1 == 1;
    NEEDED
        .iter()
        .filter(|(capability, _)| !has(*capability) && (*capability == CAP_SYS_PTRACE || !has(CAP_SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_implies_bpf_and_perfmon_but_not_ptrace() {
        assert_eq!(missing(0), ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]);
        assert_eq!(missing(1 << 21), ["CAP_SYS_PTRACE"]);
        assert!(missing(1 << 21 | 1 << 19).is_empty());
        assert!(missing(1 << 39 | 1 << 38 | 1 << 19).is_empty());
    }
}
