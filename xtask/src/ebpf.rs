//! `build-ebpf`: the BPF object that zmqtrace embeds, and the sidecar that says what it was built from.
//!
//! The object is committed, so that who installs the tracer needs no BPF toolchain; `--check` is what
//! keeps it honest. It has to come out byte-identical wherever the same toolchain builds it: therefore
//! every path that reaches its debug information is remapped, and the profile is spelled out here.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::{cargo_build, run, run_quietly};
use crate::toolchain::{BPF_LINKER_VERSION, Toolchain};
use crate::tree::Tree;
use crate::{hash, sources};

const REMEDY: &str = "run `cargo xtask build-ebpf` and commit tracer/bpf";

const TARGET: &str = "bpfel-unknown-none";

/// The profile, apart from the root manifest's, whose settings are for the userspace side.
const PROFILE: [&str; 8] = [
    "profile.release.opt-level=3",
    "profile.release.codegen-units=1",
    "profile.release.lto=false", // bpf-linker sees the whole program anyway
    "profile.release.panic=\"abort\"",
    "profile.release.debug=2", // BTF is made from it
    "profile.release.debug-assertions=false",
    "profile.release.overflow-checks=false",
    "profile.release.incremental=false",
];

/// `bpf_target_arch` is the machine whose registers the programs read.
const RUSTC_FLAGS: [&str; 2] = ["--cfg=bpf_target_arch=\"x86_64\"", "-Clink-arg=--btf"];

/// What lies beside the object in tracer/bpf.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sidecar {
    #[serde(flatten)]
    tools: Tools,
    /// Of the sources, their manifests, their locked dependencies and the recipe.
    sources_sha256: String,
    object_sha256: String,
}

/// What decides about the object's bytes besides its sources.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Tools {
    rustc: String,
    llvm: String,
    bpf_linker: String,
}

impl Tools {
    fn of(toolchain: &Toolchain) -> Self {
        Self {
            rustc: toolchain.rustc_version.clone(),
            llvm: toolchain.llvm_version.clone(),
            bpf_linker: BPF_LINKER_VERSION.to_owned(),
        }
    }
}

impl std::fmt::Display for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, LLVM {}, bpf-linker {}", self.rustc, self.llvm, self.bpf_linker)
    }
}

impl Sidecar {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}: {REMEDY}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot parse {}: {REMEDY}", path.display()))
    }

    fn to_toml(&self) -> Result<String> {
        let fields = toml::to_string(self)?;
        Ok(format!(
            "# What zmqtrace.bpf.o was built from and by. `cargo xtask build-ebpf` writes both files.\n{fields}"
        ))
    }
}

fn object_path(tree: &Tree) -> PathBuf {
    tree.root.join("tracer/bpf/zmqtrace.bpf.o")
}

fn sidecar_path(tree: &Tree) -> PathBuf {
    tree.root.join("tracer/bpf/zmqtrace.bpf.toml")
}

fn sources_hash(tree: &Tree) -> Result<String> {
    sources::hash(tree, &[&PROFILE[..], &RUSTC_FLAGS[..]].concat())
}

/// Builds the object and writes it with its sidecar.
pub fn build(tree: &Tree) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let linker = toolchain.linker(tree)?;
    let object = compile(tree, &toolchain, &linker)?;
    let sidecar = Sidecar {
        tools: Tools::of(&toolchain),
        sources_sha256: sources_hash(tree)?,
        object_sha256: hash::sha256(&object),
    };
    write_if_changed(&object_path(tree), &object)?;
    write_if_changed(&sidecar_path(tree), sidecar.to_toml()?.as_bytes())?;
    println!("tracer/bpf/zmqtrace.bpf.o: {} bytes, SHA-256 {}", object.len(), sidecar.object_sha256);
    Ok(())
}

/// Fails unless the committed object is what the sources say.
pub fn check(tree: &Tree) -> Result<()> {
    let sidecar = Sidecar::read(&sidecar_path(tree))?;
    if sidecar.sources_sha256 != sources_hash(tree)? {
        bail!("tracer/bpf/zmqtrace.bpf.o was built from other sources than these: {REMEDY}");
    }
    let path = object_path(tree);
    let object = fs::read(&path).with_context(|| format!("cannot read {}: {REMEDY}", path.display()))?;
    if sidecar.object_sha256 != hash::sha256(&object) {
        bail!("tracer/bpf/zmqtrace.bpf.o is not the object that its sidecar describes: {REMEDY}");
    }
    println!("sources and object have the hashes of tracer/bpf/zmqtrace.bpf.toml");

    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(reason) => {
            println!("bytes were not compared: {reason:#}");
            return Ok(());
        }
    };
    let tools = Tools::of(&toolchain);
    if tools != sidecar.tools {
        println!("bytes were not compared: the object was built with {}; here is {tools}", sidecar.tools);
        return Ok(());
    }
    let linker = toolchain.linker(tree)?;
    if compile(tree, &toolchain, &linker)? != object {
        bail!("tracer/bpf/zmqtrace.bpf.o differs from what the same toolchain builds here: {REMEDY}");
    }
    println!("rebuilt with {tools}: identical bytes");
    Ok(())
}

/// Builds tracer-ebpf and returns the stripped object.
fn compile(tree: &Tree, toolchain: &Toolchain, linker: &Path) -> Result<Vec<u8>> {
    // The registry's folders must exist before they can be remapped.
    run(toolchain.cargo(tree, linker)?.args(["fetch", "--locked", "--quiet", "--target", TARGET]))?;

    // Apart from the host's target directory: neither invalidates the other.
    let target = tree.target().join("ebpf");
    let mut build = toolchain.cargo(tree, linker)?;
    build
        .args(["build", "--locked", "--release", "--package", "tracer-ebpf", "-Zbuild-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .args(PROFILE.iter().flat_map(|setting| ["--config", setting]))
        .env("CARGO_ENCODED_RUSTFLAGS", rustc_flags(tree, toolchain)?);
    let unstripped = cargo_build(&mut build)?;

    // DWARF is nine tenths of the file and of no use to the kernel; BTF stays.
    let stripped = target.join("zmqtrace.bpf.o");
    run_quietly(toolchain.objcopy().arg("--strip-debug").arg(&unstripped).arg(&stripped))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// All flags of rustc, in the form that allows spaces in paths.
fn rustc_flags(tree: &Tree, toolchain: &Toolchain) -> Result<OsString> {
    let mut flags: Vec<OsString> = RUSTC_FLAGS.iter().map(OsString::from).collect();
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(&tree.root, "/zmqtrace");
    // One folder a registry, named after its address: a mirror has another name for the same crates.
    for registry in registries()? {
        remap(&registry, "/registry");
    }
    let sources = toolchain.rust_sources();
    remap(&sources, "/rust");
    remap(&sources.canonicalize()?, "/rust");
    Ok(flags.join(std::ffi::OsStr::new("\u{1f}")))
}

/// The folders that cargo unpacks crates into.
fn registries() -> Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let sources = home.join("registry/src");
    let entries = fs::read_dir(&sources).with_context(|| format!("cannot list {}", sources.display()))?;
    let mut folders = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folders.sort();
    Ok(folders)
}

/// An unchanged file keeps its time, so that cargo does not rebuild the tracer that embeds it.
fn write_if_changed(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}
