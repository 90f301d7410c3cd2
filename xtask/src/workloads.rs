//! `workloads`: the programs that tests and the demo trace, ready to run under target/.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use crate::command::{cargo, run, start, wait};
use crate::setup;
use crate::tree::Tree;

const DEBIAN_PACKAGES: [&str; 3] = ["gcc", "libc6-dev", "libzmq3-dev"];

/// One Rust workload builds its libzmq itself.
const RUST_PACKAGES: [&str; 1] = ["g++"];

const FLAGS: [&str; 5] = ["-O2", "-g", "-Wall", "-Wextra", "-Werror"];

/// As needed: some load a libzmq by path, and one is there to have none.
const SHARED_LIBZMQ: &[&str] = &["-Wl,--as-needed", "-lzmq", "-lpthread", "-ldl"];

/// libzmq.a, and what Debian builds it with. libstdc++ by its run-time name: its development package
/// comes only with a C++ compiler.
const STATIC_LIBZMQ: &[&str] =
    &["-l:libzmq.a", "-l:libstdc++.so.6", "-lsodium", "-lpgm", "-lnorm", "-lgssapi_krb5", "-lbsd", "-lpthread", "-lm"];

/// What the linker gets; the sources say why.
fn link_arguments(workload: &str) -> Vec<&'static str> {
    match workload {
        "static" | "stages-static" => STATIC_LIBZMQ.to_vec(),
        "poller" => [&["-rdynamic"], SHARED_LIBZMQ].concat(),
        _ => SHARED_LIBZMQ.to_vec(),
    }
}

/// Makes all workloads; `external` ones need what PyPI and npm serve.
pub fn prepare(tree: &Tree, external: bool) -> Result<()> {
    compile(tree)?;
    build_rust(tree)?;
    if external {
        setup::python(tree)?;
        setup::npm_addon(tree)?;
        setup::libzmq_builds(tree)?;
    }
    Ok(())
}

/// Builds the Rust workloads, a package outside of the workspace: rust-zoo and rust-wire in target/workloads/rust/release.
fn build_rust(tree: &Tree) -> Result<()> {
    let folder = tree.workloads().join("rust");
    setup::packages(&RUST_PACKAGES)?;
    if !folder.exists() {
        println!("building the Rust workloads, one with a libzmq of its own");
    }
    run(cargo(&tree.root)
        .args(["build", "--quiet", "--locked", "--release", "--manifest-path", "workloads/rust/Cargo.toml"])
        .arg("--target-dir")
        .arg(folder))
}

/// Compiles every C workload.
fn compile(tree: &Tree) -> Result<()> {
    setup::packages(&DEBIAN_PACKAGES)?;
    let folder = sources(tree);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "c") {
            names.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    names.sort();
    // All at once: each is a fraction of a second of one core.
    let mut compilers = Vec::new();
    for name in &names {
        if let Some(mut gcc) = compiler(tree, name)? {
            println!("compiling {name}");
            compilers.push((start(&mut gcc)?, gcc));
        }
    }
    for (child, gcc) in &mut compilers {
        wait(child, gcc)?;
    }
    strip(tree)
}

/// Compiles one C workload and returns where it is.
pub fn compile_one(tree: &Tree, name: &str) -> Result<PathBuf> {
    setup::packages(&DEBIAN_PACKAGES)?;
    if let Some(mut gcc) = compiler(tree, name)? {
        run(&mut gcc)?;
    }
    Ok(tree.workloads().join(name))
}

/// The calls of a program without symbols cannot be traced: the tracer must say so, and show what goes over its wires.
fn strip(tree: &Tree) -> Result<()> {
    for name in ["static", "stages-static"] {
        let (with_symbols, without) = (tree.workloads().join(name), tree.workloads().join(format!("{name}-stripped")));
        if with_symbols.exists() && modified(&without) < modified(&with_symbols) {
            run(Command::new("strip").arg("-o").arg(&without).arg(&with_symbols))?;
        }
    }
    Ok(())
}

fn sources(tree: &Tree) -> PathBuf {
    tree.root.join("workloads/c")
}

/// The compiler's command line, unless the program is newer than all that it is made from.
fn compiler(tree: &Tree, name: &str) -> Result<Option<Command>> {
    let output = tree.workloads().join(name);
    let source = sources(tree).join(name).with_extension("c");
    // This program is one of its makings too: it holds the flags.
    let mut newest = modified(&source).max(modified(&std::env::current_exe()?));
    if name == "stages-static" {
        newest = newest.max(modified(&sources(tree).join("stages.c")));
    }
    for entry in fs::read_dir(sources(tree))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            newest = newest.max(modified(&path));
        }
    }
    if modified(&output) > newest {
        return Ok(None);
    }
    fs::create_dir_all(tree.workloads()).context("cannot make target/workloads")?;
    let mut gcc = Command::new("gcc");
    gcc.args(FLAGS).arg("-o").arg(output).arg(source).args(link_arguments(name));
    Ok(Some(gcc))
}

/// When a file was written; None, which is before all times, when there is none.
fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}
