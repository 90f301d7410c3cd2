//! `test`: all that has to hold before a change goes in, in the order in which it fails fastest.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::command::{cargo, run};
use crate::tree::Tree;
use crate::{ebpf, setup, vm, workloads};

/// Tests that need what PyPI and npm serve look at this variable, and say that they were left out.
const NO_EXTERNAL: &str = "ZMQTRACE_NO_EXTERNAL";

/// What the tests compare stacks with.
const DEBIAN_PACKAGES: [&str; 1] = ["gdb"];

/// Runs every stage; the first failure ends it. `arguments` go to `cargo test`.
pub fn test(tree: &Tree, external: bool, arguments: &[String]) -> Result<()> {
    let begin = Instant::now();
    if !setup::is_root() {
        bail!(
            "the tests load BPF programs and trace other processes: run `sudo -E env PATH=\"$PATH\" cargo xtask test`"
        );
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!("the tests need a kernel with BTF (CONFIG_DEBUG_INFO_BTF), and this one has no /sys/kernel/btf/vmlinux");
    }

    stage("format", || {
        run(cargo(&tree.root).args(["fmt", "--all", "--check"]))?;
        run(cargo(&tree.root).args(["fmt", "--check", "--manifest-path", "workloads/rust/Cargo.toml"]))
    })?;
    stage("clippy", || {
        run(cargo(&tree.root).args(["clippy", "--locked", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    stage("documentation", || {
        run(cargo(&tree.root).args(["doc", "--locked", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    stage("BPF object", || ebpf::check(tree))?;
    stage("workloads", || {
        setup::packages(&DEBIAN_PACKAGES)?;
        workloads::prepare(tree, external)
    })?;
    stage("tests", || {
        // `ip`, for network namespaces.
        setup::packages(&["iproute2"])?;
        let mut tests = cargo(&tree.root);
        tests.args(["test", "--locked", "--workspace", "--exclude", "tracer-ebpf"]).args(arguments);
        if !external {
            tests.env(NO_EXTERNAL, "1");
        }
        run(&mut tests)
    })?;
    stage("other kernels", || vm::vm(tree, &[], false))?;
    if external {
        stage("Python frames", || {
            let feature = ["--locked", "--package", "zmqtrace", "--features", "python"];
            run(cargo(&tree.root).arg("clippy").args(feature).args(["--all-targets", "--", "--deny", "warnings"]))?;
            run(cargo(&tree.root).arg("test").args(feature).args(["--tests", "python"]))
        })?;
    }
    println!("\nall stages passed in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let begin = Instant::now();
    work().with_context(|| format!("stage `{name}` failed"))?;
    println!("== {name}: {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}
