//! `vm`: the tests of what depends on the kernel, under other kernels of Debian, each in a virtual machine.
//!
//! A machine has a kernel out of its package, which is unpacked and not installed, and an initramfs made of files of
//! this machine at the same paths: the tests, zmqtrace as users build it, the workloads, and what they load. It is
//! emulated, which works wherever qemu does, and takes 5 s to boot.

mod archive;
mod kernel;
mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::kernel::Kernel;
use self::machine::Machine;
use crate::command::{build_zmqtrace, cargo, cargo_executables, run, stdout};
use crate::tree::Tree;
use crate::{setup, workloads};

const DEBIAN_PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];

/// Says which kind of link is used.
const LINK: &str = "kernels::the_best_kind_of_link_is_used";
/// Says how much the verifier has read of each program.
const VERIFIER: &str = "kernels::the_verifier_is_far_from_its_limit";

/// What must hold under a kernel that everything works with.
const EVERYTHING: &[&str] = &[
    LINK,
    VERIFIER,
    "kernels::nothing_remains_of_a_killed_tracer_with_perf_events",
    "kernels::what_holds_the_probes_outlives_a_ctrl_c_and_is_missed",
    "calls::every_call_appears_once_in_order_with_all_that_is_known_of_it",
    "links::every_kind_of_link_counts_the_same",
    "links::every_kind_of_link_sees_the_same_calls",
    "life::a_target_that_execs_with_calls_in_flight_is_followed",
    "stat::errors_are_counted_by_name_for_each_socket_and_call",
    "sockets::everything_in_a_zoo",
    "sockets::threads_that_hung_before_we_came",
    "net::what_becomes_of_connections",
    "latency::a_publisher_that_receives_subscriptions",
    "wire::a_stripped_program",
];

/// What must hold under a kernel that only processes' memory can be looked at with.
const LOOKING: &[&str] =
    &["kernels::what_an_older_kernel_cannot_is_said", "sockets::everything_in_a_zoo", "sockets::everything_in_corners"];

/// The kernels, from the oldest.
const KERNELS: [Kernel; 3] = [
    Kernel {
        version: "5.10",
        package: "linux-image-cloud-amd64",
        release: "bullseye",
        is_ageing: true,
        checks: LOOKING,
    },
    Kernel {
        version: "6.1",
        package: "linux-image-cloud-amd64",
        release: "bookworm",
        is_ageing: false,
        checks: EVERYTHING,
    },
    Kernel {
        version: "6.12",
        package: "linux-image-6.12-cloud-amd64",
        release: "bookworm",
        is_ageing: false,
        checks: EVERYTHING,
    },
];

/// Runs the checks under each kernel, or `only` some, and prints what came of it.
pub fn vm(tree: &Tree, only: &[String], write: bool) -> Result<()> {
    if !setup::is_root() {
        bail!("this machine's kernel is asked, too: run `sudo -E env PATH=\"$PATH\" cargo xtask vm`");
    }
    if let Some(unknown) = only.iter().find(|only| KERNELS.iter().all(|kernel| kernel.version != **only)) {
        bail!("no kernel is called {unknown}");
    }
    setup::packages(&DEBIAN_PACKAGES)?;
    workloads::prepare(tree, false)?;
    let folder = tree.target().join("vm");
    let (tests, tested) = build_tests(tree)?;
    let machine = Machine { tree, tests, tested, zmqtrace: build_zmqtrace(&tree.root)? };
    let mut columns = Vec::new();
    for kernel in KERNELS.iter().filter(|kernel| only.is_empty() || only.iter().any(|only| only == kernel.version)) {
        let files = match kernel.files(&folder) {
            Err(reason) if kernel.is_ageing => {
                println!(
                    "Linux {} is left out, {} may have left the archives: {reason:#}",
                    kernel.version, kernel.release
                );
                continue;
            }
            files => files?,
        };
        let begin = Instant::now();
        let said = machine.run(&files, kernel.checks, &folder.join(kernel.version))?;
        let column = Column::of(&said, kernel.checks.len()).with_context(|| {
            format!(
                "not all checks passed under Linux {}; its console's end:\n{}",
                kernel.version,
                machine::tail(&said)
            )
        })?;
        let (passed, seconds) = (kernel.checks.len(), begin.elapsed().as_secs_f64());
        println!("Linux {}: {passed} checks passed in {seconds:.1} s", column.kernel);
        columns.push(column);
    }
    columns.push(Column::here(tree, &machine)?);
    let table = table(&columns);
    println!("\n{table}");
    if write {
        let text = format!(
            "# Kernels\n\nMade by `cargo xtask vm --write`: the release build under Debian's kernels in virtual machines, \
             and under the kernel of the machine that they ran on. Which checks: `xtask/src/vm/mod.rs`.\n\n{table}"
        );
        fs::write(tree.root.join("docs/kernels.md"), text)?;
    }
    Ok(())
}

/// Builds the tests on real processes. Returns where they are, and where they look for zmqtrace.
fn build_tests(tree: &Tree) -> Result<(PathBuf, PathBuf)> {
    let mut build = cargo(&tree.root);
    build.args(["test", "--locked", "--package", "zmqtrace", "--test", "real", "--no-run"]);
    let executables = cargo_executables(&mut build)?;
    let named = |name: &str| {
        let found = executables.iter().find(|executable| executable.target == name);
        found.map(|executable| executable.path.clone()).with_context(|| format!("cargo has built no {name}"))
    };
    let stripped = tree.target().join("vm/tests");
    fs::create_dir_all(tree.target().join("vm"))?;
    // Nine tenths of it are of no use to the machine.
    run(Command::new("strip").arg("-o").arg(&stripped).arg(named("real")?))?;
    Ok((stripped, named("zmqtrace")?))
}

/// What a kernel has shown.
struct Column {
    kernel: String,
    link: Option<String>,
    checks: Option<usize>,
    /// How many instructions the verifier has gone through, by program.
    verified: BTreeMap<String, String>,
}

impl Column {
    /// Reads what the tests have said; `None` unless all that were asked for have passed.
    fn of(said: &str, checks: usize) -> Option<Self> {
        let passed = format!("test result: ok. {checks} passed; 0 failed; 0 ignored;");
        said.lines().find(|line| line.starts_with(&passed))?;
        let value = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        // Without what the builder has added: "6.1.0-56-cloud-amd64".
        let kernel = value("kernel: ")?;
        let end =
            kernel.find(|byte: char| !byte.is_ascii_digit() && !matches!(byte, '.' | '-')).unwrap_or(kernel.len());
        let verified = said.lines().filter_map(|line| line.strip_prefix("verified: ")?.split_once(' '));
        Some(Self {
            kernel: kernel[..end].trim_end_matches('-').to_owned(),
            link: value("link: "),
            checks: Some(checks),
            verified: verified.map(|(program, count)| (program.to_owned(), count.to_owned())).collect(),
        })
    }

    /// This machine, whose tests run elsewhere: only what they say.
    fn here(tree: &Tree, machine: &Machine) -> Result<Self> {
        let said = stdout(
            Command::new(&machine.tests)
                .args(["--exact", LINK, VERIFIER, "--show-output"])
                .current_dir(tree.root.join("tracer")),
        )?;
        let kernel = stdout(Command::new("uname").arg("-r"))?;
        let column = Self::of(&format!("kernel: {kernel}\n{said}"), 2);
        let column = column.with_context(|| format!("the checks have said:\n{said}"))?;
        Ok(Self { kernel: format!("{} (no VM)", column.kernel), checks: None, ..column })
    }
}

/// A table in Markdown.
fn table(columns: &[Column]) -> String {
    let row = |name: &str, value: &dyn Fn(&Column) -> String| {
        let values: Vec<_> = columns.iter().map(value).collect();
        format!("| {name} | {} |\n", values.join(" | "))
    };
    let mut table = row("Linux", &|column| column.kernel.clone());
    table += &row("---", &|_| "---".into());
    table += &row("kind of link", &|column| column.link.clone().unwrap_or_else(|| "none: only `sockets` works".into()));
    table += &row("checks passed", &|column| column.checks.map(|checks| checks.to_string()).unwrap_or_default());
    let programs: BTreeSet<_> = columns.iter().flat_map(|column| column.verified.keys()).collect();
    for program in programs {
        table += &row(&format!("instructions verified of `{program}`"), &|column| {
            column.verified.get(program).cloned().unwrap_or_default()
        });
    }
    table
}
