//! What a fresh machine lacks: Debian packages, the Python environment, the npm addon. Each function
//! returns at once, and silently, when there is nothing to do.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{find_program, run_quietly, stdout};
use crate::hash;
use crate::tree::Tree;

const PYZMQ_VERSION: &str = "27.3.0";

const NPM_ZEROMQ_VERSION: &str = "6.8.0";
/// Of its builds, the one for old C libraries: the others ask for glibc 2.38, Debian 12 has 2.36.
const NPM_ADDON: &str = "package/build/linux/x64/node/glibc-127-Release/addon.node";
/// A binary that tests load into a root process is pinned by its contents, not only by a version.
const NPM_ADDON_SHA256: &str = "a6508e8a090d5e9ca1e1f36a2d7d8de2f9dcc431bddde97d3c4e2d4bced3be6f";

/// The owner of /proc/self is the effective user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Debian itself: its derivatives lack the packages that the BPF toolchain comes from.
pub fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|release| release.lines().any(|line| line == "ID=debian"))
}

/// Those of the packages that are not installed.
fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    // dpkg-query fails when it does not know one of them, but still answers for the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("cannot start dpkg-query")?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let installed = |package: &str| {
        let wanted = format!("{package} installed");
        answer.lines().any(|line| line == wanted)
    };
    Ok(packages.iter().copied().filter(|package| !installed(package)).collect())
}

/// Installs those of the Debian packages that are missing.
pub fn packages(packages: &[&str]) -> Result<()> {
    if find_program("dpkg-query").is_none() {
        bail!(
            "this is not Debian, so packages cannot be installed from here: needed is what Debian calls {}",
            packages.join(", ")
        );
    }
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_root() {
        bail!("Debian packages are missing: run `sudo apt-get install {names}`");
    }
    eprintln!("installing Debian packages: {names}");
    static UPDATE: Once = Once::new();
    let mut updated = Ok(());
    UPDATE.call_once(|| updated = run_quietly(Command::new("apt-get").args(["update", "-qq"])));
    updated?;
    run_quietly(
        Command::new("apt-get")
            .args(["install", "-qq", "--yes", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// A Python environment with pyzmq, target/venv.
pub fn python(tree: &Tree) -> Result<()> {
    let environment = tree.target().join("venv");
    let python = environment.join("bin/python3");
    let version = "import importlib.metadata as m; print(m.version('pyzmq'))";
    if stdout(Command::new(&python).args(["-c", version])).is_ok_and(|found| found == PYZMQ_VERSION) {
        return Ok(());
    }
    // On Debian its own interpreter, since python3-venv belongs to that one and not to another on PATH.
    let base = if is_debian() {
        packages(&["python3", "python3-venv"])?;
        "/usr/bin/python3"
    } else {
        "python3"
    };
    eprintln!("making a Python environment with pyzmq {PYZMQ_VERSION}");
    run_quietly(Command::new(base).args(["-m", "venv", "--clear"]).arg(&environment))?;
    run_quietly(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"])
            .arg(format!("pyzmq=={PYZMQ_VERSION}")),
    )
}

/// The npm package zeromq's shared object: a libzmq linked into something else, with the draft API, target/npm/addon.node.
pub fn npm_addon(tree: &Tree) -> Result<()> {
    let folder = tree.target().join("npm");
    let addon = folder.join("addon.node");
    if is_pinned_addon(&addon) {
        return Ok(());
    }
    if find_program("npm").is_none() {
        packages(&["npm"])?;
    }
    eprintln!("fetching the npm package zeromq {NPM_ZEROMQ_VERSION}");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let archive = stdout(
        Command::new("npm")
            .args([
                "pack",
                "--silent",
                "--ignore-scripts",
                &format!("zeromq@{NPM_ZEROMQ_VERSION}"),
                "--pack-destination",
            ])
            .arg(&folder),
    )?;
    let archive = folder.join(archive);
    run_quietly(
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(&folder)
            .args(["--strip-components=6", NPM_ADDON]),
    )?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    ensure!(
        is_pinned_addon(&addon),
        "{} of npm's zeromq {NPM_ZEROMQ_VERSION} does not have the pinned SHA-256",
        tree.relative(&addon).display()
    );
    Ok(())
}

fn is_pinned_addon(addon: &Path) -> bool {
    fs::read(addon).is_ok_and(|bytes| hash::sha256(&bytes) == NPM_ADDON_SHA256)
}
