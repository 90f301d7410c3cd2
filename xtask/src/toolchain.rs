//! The BPF toolchain: a rustc that can build `core` from source for BPF, and bpf-linker.
//!
//! Building `core` takes unstable options and Rust's sources. On Debian both come as packages that do
//! not disturb rustup (and work where rustup cannot reach its servers); elsewhere it is rustup's nightly.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{cargo, find_program, run, stdout};
use crate::setup;
use crate::tree::Tree;

/// Debian's Rust for its browsers is recent. `rust-web-llvm` brings the `rust-objcopy` that strips.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-llvm"];

pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// A rustc for BPF with what belongs to it.
pub struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    /// A stable rustc takes unstable options only with RUSTC_BOOTSTRAP.
    stable: bool,
    sysroot: PathBuf,
    host: String,
    /// rustc's own version line.
    pub rustc_version: String,
    pub llvm_version: String,
}

impl Toolchain {
    /// Finds the toolchain; on Debian as root it installs what is missing.
    pub fn find() -> Result<Self> {
        if !setup::is_debian() {
            return Self::nightly()
                .context("the BPF toolchain is missing: run `rustup toolchain install nightly --component rust-src`");
        }
        // A nightly is the way out for who is not root, and for releases of Debian without these packages.
        match setup::packages(&DEBIAN_PACKAGES) {
            Ok(()) => Self::describe("/usr/bin/rustc".into(), "/usr/bin/cargo".into(), true),
            Err(refusal) => Self::nightly().or(Err(refusal)),
        }
    }

    fn nightly() -> Result<Self> {
        let which = |program| {
            stdout(Command::new("rustup").args(["which", "--toolchain", "nightly", program])).map(PathBuf::from)
        };
        Self::describe(which("rustc")?, which("cargo")?, false)
    }

    fn describe(rustc: PathBuf, cargo: PathBuf, stable: bool) -> Result<Self> {
        // Both would point this rustc to the libraries of the toolchain that runs us.
        let ask = |option: &[&str]| {
            stdout(Command::new(&rustc).args(option).env_remove("LD_LIBRARY_PATH").env_remove("RUSTUP_TOOLCHAIN"))
        };
        let verbose = ask(&["--version", "--verbose"])?;
        let field = |name: &str| {
            verbose
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
                .with_context(|| format!("{} does not say its {name}", rustc.display()))
        };
        let toolchain = Self {
            stable,
            sysroot: ask(&["--print", "sysroot"])?.into(),
            host: field("host")?,
            rustc_version: verbose.lines().next().unwrap_or_default().to_owned(),
            llvm_version: field("LLVM version")?,
            rustc,
            cargo,
        };
        if !toolchain.rust_sources().join("library/core").is_dir() {
            bail!("{} has no rust-src", toolchain.rustc_version);
        }
        Ok(toolchain)
    }

    /// Rust's own sources, as rustc names them (on Debian a link).
    pub fn rust_sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    /// This toolchain's cargo, shielded from the settings that belong to the cargo that runs us.
    pub fn cargo(&self, tree: &Tree, linker: &Path) -> Result<Command> {
        let folder = linker.parent().context("bpf-linker is in no folder")?;
        let mut path = OsString::from(folder);
        path.push(":/usr/bin:/bin");
        let mut cargo = Command::new(&self.cargo);
        cargo.current_dir(&tree.root).env("PATH", path).env("RUSTC", &self.rustc);
        for inherited in
            ["LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"]
        {
            cargo.env_remove(inherited);
        }
        if self.stable {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        Ok(cargo)
    }

    /// This toolchain's `rust-objcopy`: the same rustc then always means the same stripped bytes.
    pub fn objcopy(&self) -> Command {
        let folder = self.sysroot.join("lib/rustlib").join(&self.host).join("bin");
        let mut objcopy = Command::new(folder.join("rust-objcopy"));
        objcopy.env("LD_LIBRARY_PATH", self.sysroot.join("lib"));
        objcopy
    }

    /// A bpf-linker of the wanted version: ours, one on PATH, or one that is built now.
    pub fn linker(&self, tree: &Tree) -> Result<PathBuf> {
        let ours = tree.tools().join("bin/bpf-linker");
        if is_wanted(&ours) {
            return Ok(ours);
        }
        if let Some(linker) = find_program("bpf-linker").filter(|linker| is_wanted(linker)) {
            return Ok(linker);
        }
        if !self.stable {
            bail!("bpf-linker is missing: run `cargo install bpf-linker --version {BPF_LINKER_VERSION} --locked`");
        }
        self.install_linker(tree)?;
        ensure!(is_wanted(&ours), "{} was just built, but does not run", ours.display());
        Ok(ours)
    }

    /// Builds bpf-linker against the LLVM that Debian's rustc itself uses. Its build asks for a folder
    /// with `lib/libLLVM.so`, which a link provides without the several hundred MB of llvm-dev.
    fn install_linker(&self, tree: &Tree) -> Result<()> {
        let mut numbers = self.llvm_version.split('.');
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            bail!("LLVM version {:?} is not of the form 1.2.3", self.llvm_version);
        };
        let tools = tree.tools();
        let llvm = tools.join("llvm");
        std::fs::create_dir_all(llvm.join("lib")).with_context(|| format!("cannot make {}", llvm.display()))?;
        let link = llvm.join("lib/libLLVM.so");
        if link.is_symlink() {
            std::fs::remove_file(&link)?;
        }
        let library = format!("/usr/lib/{}-linux-gnu/libLLVM.so.{major}.{minor}", std::env::consts::ARCH);
        std::os::unix::fs::symlink(&library, &link)
            .with_context(|| format!("cannot link {} to {library}", link.display()))?;

        eprintln!("building bpf-linker {BPF_LINKER_VERSION} with LLVM {major} (once, about a minute)");
        run(cargo(&tree.root)
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--quiet"])
            .args(["--no-default-features", "--features", &format!("llvm-{major}"), "--force", "--root"])
            .arg(&tools)
            .env("LLVM_PREFIX", &llvm)
            // In a target directory of ours it would leave its own build behind.
            .env_remove("CARGO_TARGET_DIR"))
    }
}

fn is_wanted(linker: &Path) -> bool {
    let version = stdout(Command::new(linker).arg("--version"));
    version.is_ok_and(|version| version == format!("bpf-linker {BPF_LINKER_VERSION}"))
}
