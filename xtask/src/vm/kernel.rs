//! A kernel of Debian's, out of its package, in target/vm/VERSION.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{run_quietly, stdout};

/// A kernel to run with.
pub struct Kernel {
    pub version: &'static str,
    /// Depends on the newest package of this version.
    pub package: &'static str,
    /// Debian's release that has it.
    pub release: &'static str,
    /// Whether that one is so old that archives may drop it.
    pub is_ageing: bool,
    /// Names of tests.
    pub checks: &'static [&'static str],
}

/// What the kernel's own files are.
pub struct Files {
    pub image: PathBuf,
    /// In the order in which they are loaded.
    pub modules: Vec<PathBuf>,
}

/// By which sockets are asked about, in their folders of `net`. On a whole system the kernel finds them by itself.
const MODULES: [(&str, &str); 3] = [("unix", "unix_diag.ko"), ("ipv4", "inet_diag.ko"), ("ipv4", "tcp_diag.ko")];

/// The folder with a package's files.
const UNPACKED: &str = "unpacked";

/// With the keys that Debian's archives are signed by.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Kernel {
    /// Fetches and unpacks it, once.
    pub fn files(&self, folder: &Path) -> Result<Files> {
        let folder = folder.join(self.version);
        if let Ok(files) = find(&folder) {
            return Ok(files);
        }
        eprintln!("fetching Linux {} of Debian {}", self.version, self.release);
        self.fetch(&folder)?;
        find(&folder)
    }

    /// apt gets lists of its own: the kernel's release may be another one than this machine's, and nothing here is to
    /// change by it.
    fn fetch(&self, folder: &Path) -> Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let lists = folder.join("lists");
        fs::create_dir_all(&lists).with_context(|| format!("cannot make {}", lists.display()))?;
        let sources = folder.join("sources.list");
        fs::write(&sources, self.sources()?)?;
        let apt = |program: &str| {
            let mut apt = Command::new(program);
            apt.current_dir(folder)
                .arg("-qq")
                .arg(format!("-oDir::Etc::SourceList={}", sources.display()))
                .args(["-oDir::Etc::SourceParts=/dev/null", "-oAPT::Sandbox::User=root"])
                .arg(format!("-oDir::State::Lists={}", lists.display()))
                .args(["-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache="]);
            apt
        };
        run_quietly(apt("apt-get").arg("update"))?;
        let depends = stdout(apt("apt-cache").args(["depends", self.package]))?;
        let image = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .with_context(|| format!("{} of {} depends on nothing", self.package, self.release))?;
        run_quietly(apt("apt-get").args(["download", image]))?;
        let package = entry(folder, &format!("{image}_"))?;
        // Under another name until it is complete.
        let (unpacking, unpacked) = (folder.join("unpacking"), folder.join(UNPACKED));
        run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacking))?;
        fs::rename(unpacking, unpacked)?;
        fs::remove_file(&package)?;
        fs::remove_dir_all(lists)?;
        Ok(())
    }

    /// The release's archives, from where this machine has its own packages.
    fn sources(&self) -> Result<String> {
        let format = "--format=$(ORIGIN)|$(LABEL)|$(REPO_URI)";
        let known = stdout(Command::new("apt-get").args(["indextargets", format, "Created-By: Packages"]))?;
        let mut sources = Vec::new();
        for line in known.lines() {
            let suite = match line.split('|').collect::<Vec<_>>()[..] {
                ["Debian", "Debian", archive] => format!("{archive} {}", self.release),
                ["Debian", "Debian-Security", archive] => format!("{archive} {}-security", self.release),
                _ => continue,
            };
            sources.push(format!("deb [signed-by={KEYRING}] {suite} main\n"));
        }
        sources.sort();
        sources.dedup();
        if sources.is_empty() {
            bail!("apt knows no archive of Debian: run `apt-get update`");
        }
        Ok(sources.concat())
    }
}

/// What is needed of an unpacked package.
fn find(folder: &Path) -> Result<Files> {
    let unpacked = folder.join(UNPACKED);
    let image = entry(&unpacked.join("boot"), "vmlinuz-")?;
    let all = entry(&unpacked.join("lib/modules"), "")?.join("kernel/net");
    // Those of later kernels are compressed, and have a further suffix.
    let modules = MODULES.iter().map(|(folder, name)| entry(&all.join(folder), name)).collect::<Result<_>>()?;
    Ok(Files { image, modules })
}

/// The entry of a folder whose name begins with `prefix`.
fn entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("{} has no {prefix}*", folder.display())
}
