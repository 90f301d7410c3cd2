//! A virtual machine: what is in it, and what its console says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::archive::Archive;
use super::kernel::Files;
use crate::command::{line, start, stdout};
use crate::tree::Tree;

/// The machine's first process. `/tests` and `/checks` are the machine's own.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin RUST_BACKTRACE=0 ZMQTRACE_EMULATED=1 ZMQTRACE_NO_EXTERNAL=1
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tracefs tracefs /sys/kernel/tracing
mount -t tmpfs tmpfs /tmp
ip link set lo up
for module in /modules/*; do insmod $module; done
echo "kernel: $(uname -r)"
/tests --exact $(cat /checks) --show-output --test-threads 1
poweroff -f
"#;

const CPUS: &str = "2";
const MEMORY: &str = "2G";
/// What a machine takes at most, seconds: several times what the checks take.
const LIMIT: &str = "400";

/// All that machines have in common.
pub struct Machine<'a> {
    pub tree: &'a Tree,
    /// The tests, and where they look for zmqtrace.
    pub tests: PathBuf,
    pub tested: PathBuf,
    /// zmqtrace as users build it.
    pub zmqtrace: PathBuf,
}

impl Machine<'_> {
    /// Boots a kernel and lets it run some of the tests. Returns what was said on its console.
    pub fn run(&self, kernel: &Files, checks: &[&str], folder: &Path) -> Result<String> {
        let initramfs = folder.join("initramfs");
        self.write_initramfs(&initramfs, kernel, checks)?;
        let console = folder.join("console");
        let mut qemu = Command::new("timeout");
        qemu.args([LIMIT, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", CPUS, "-m", MEMORY])
            .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initramfs)
            .stdin(Stdio::null())
            .stdout(File::create(&console).with_context(|| format!("cannot write {}", console.display()))?);
        let status = start(&mut qemu)?.wait()?;
        fs::remove_file(&initramfs)?;
        let said = String::from_utf8_lossy(&fs::read(&console)?).replace('\r', "");
        ensure!(status.success(), "`{}` failed: {status}; its console's end:\n{}", line(&qemu), tail(&said));
        Ok(said)
    }

    fn write_initramfs(&self, path: &Path, kernel: &Files, checks: &[&str]) -> Result<()> {
        let mut archive = Archive::create(path)?;
        archive.file("/init".as_ref(), INIT.as_bytes())?;
        archive.file("/checks".as_ref(), checks.join("\n").as_bytes())?;
        archive.copy("/bin/busybox".as_ref(), "/bin/busybox".as_ref())?;
        for folder in ["/dev", "/proc", "/sys", "/tmp", "/modules"] {
            archive.folder(folder.as_ref())?;
        }
        // By number: they are loaded in the order of their names.
        for (number, module) in kernel.modules.iter().enumerate() {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.copy(module, format!("/modules/{number}-{name}").as_ref())?;
        }
        archive.copy(&self.tests, "/tests".as_ref())?;
        archive.copy(&self.zmqtrace, &self.tested)?;
        // Where the tests write.
        let target = self.tested.parent().and_then(Path::parent).context("zmqtrace is in no target directory")?;
        archive.folder(&target.join("tmp"))?;
        let mut programs = vec![self.tests.clone(), self.zmqtrace.clone()];
        for entry in fs::read_dir(self.tree.workloads())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                archive.copy(&entry.path(), &entry.path())?;
                programs.push(entry.path());
            }
        }
        for library in libraries(&programs)? {
            archive.copy(&library, &library)?;
        }
        archive.finish()
    }
}

/// What programs are linked with, the loader included.
fn libraries(programs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let linked = stdout(Command::new("ldd").args(programs))?;
    // "name => path (address)", or "path (address)" of the loader, below each program's own "path:".
    let paths = linked.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let mut libraries: Vec<_> = paths.map(PathBuf::from).collect();
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

/// The last lines.
pub fn tail(said: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
