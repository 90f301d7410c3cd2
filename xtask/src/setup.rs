//! What a fresh machine lacks: Debian packages, the Python environment, the npm addon. Each function
//! returns at once, and silently, when there is nothing to do.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
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

/// A libzmq out of a wheel of pyzmq, stripped.
struct Build {
    /// Of its folder: its version, and what tells it from others of that version.
    name: &'static str,
    pyzmq: &'static str,
    /// Version of Python, its ABI, platform: they choose the wheel.
    tags: [&'static str; 3],
    /// File names and SHA-256; libzmq comes first.
    files: &'static [[&'static str; 2]],
}

const PYTHON_27: [&str; 3] = ["27", "cp27mu", "manylinux1_x86_64"];
const PYTHON_36: [&str; 3] = ["36", "cp36m", "manylinux1_x86_64"];

/// One of each layout of libzmq's structures that wheels have. All but the last are compiled with the old std::string,
/// which shifts offsets.
const BUILDS: [Build; 9] = [
    Build {
        name: "4.1.5",
        pyzmq: "15.4.0",
        tags: PYTHON_27,
        files: &[["libzmq-feeff037.so.5.0.1", "6ff4b7e5946881aa3e0e7ce933983bba85d3920060cfde855b29012d993bbad3"]],
    },
    Build {
        name: "4.1.6",
        pyzmq: "16.0.4",
        tags: PYTHON_27,
        files: &[["libzmq-0576c57a.so.5.0.2", "cb7aaf9561215aff38651ded6e338be1cc4f649d0860b478572b61affdc30cd8"]],
    },
    Build {
        name: "4.2.5",
        pyzmq: "17.1.2",
        tags: PYTHON_27,
        files: &[
            ["libzmq-f7ef747e.so.5.1.5", "aa529005483abea14109416d88bd6405e2f6cb04c7af7e9c3af26243bc85bd5f"],
            ["libsodium-1cc92866.so.23.1.0", "3cfc01578ea7899543ab26b9db4173a0b0508095850bdcca3caf8c45dfe6e391"],
        ],
    },
    Build {
        name: "4.3.1",
        pyzmq: "18.0.1",
        tags: PYTHON_27,
        files: &[
            ["libzmq-39117701.so.5.2.1", "7456814ead1a5bab8bba414b1dc545512bdf97b782b8f60b4ade7d853766b055"],
            ["libsodium-72341b7d.so.23.2.0", "d760898af459271cb9669855bdd359b62531076ece8f8ef8b5b8fefac57e8f0b"],
        ],
    },
    Build {
        name: "4.3.2",
        pyzmq: "18.1.1",
        tags: PYTHON_27,
        files: &[
            ["libzmq-1358af2c.so.5.2.2", "2350e89444fa5ab6f7539bc456d9c89c3319d4ba8b3b3a728be5e6d988421ca8"],
            ["libsodium-bcf9f097.so.23.3.0", "6851c8a34cf29ebdaab7f68d6764cab4118bd8f3be3bbea846e6603c88293257"],
        ],
    },
    Build {
        name: "4.3.3",
        pyzmq: "20.0.0",
        tags: PYTHON_36,
        files: &[
            ["libzmq-f3e05bef.so.5.2.3", "c381981333551c0c67d68e606dbc5b92180e3b13522797cf868ebf5e65ce310c"],
            ["libsodium-bcf9f097.so.23.3.0", "5730a52f0631fbefebf0aed33b19f21c924c8af02ca93953fa61e2d3628a0bc9"],
        ],
    },
    Build {
        name: "4.3.4",
        pyzmq: "24.0.1",
        tags: PYTHON_36,
        files: &[
            ["libzmq-1cf02d00.so.5.2.4", "bdcfc5a29da0037e612fcef3ef97b0acc92ebbcde08207eb91baf196a1ed3bfb"],
            ["libsodium-bcf9f097.so.23.3.0", "5730a52f0631fbefebf0aed33b19f21c924c8af02ca93953fa61e2d3628a0bc9"],
        ],
    },
    Build {
        name: "4.3.5-old-abi",
        pyzmq: "26.4.0",
        tags: ["38", "cp38", "manylinux2010_x86_64"],
        files: &[
            ["libzmq-7537d61f.so.5.2.5", "91c833a29f71850d33dfac1f34c944fdcf4ee558f684ef09d3da617938162bfa"],
            ["libsodium-c854a0af.so.26.2.0", "e4a767a58e592d2642d85f3eec91503bd21925ee05cc850ca3a8105047a15762"],
        ],
    },
    Build {
        name: "4.3.5",
        pyzmq: PYZMQ_VERSION,
        tags: ["311", "cp311", "manylinux_2_28_x86_64"],
        files: &[
            ["libzmq-2f02442c.so.5.2.5", "1665f84c654a8e7c1e8df85a7dd65c7a12e686b9f4181424da19ad5bc80e5e88"],
            ["libsodium-6c8f8377.so.26.4.0", "1a6422f29c9c90e3910758527e366d762b792e30557abe7870f5594b3e3c62e5"],
        ],
    },
];

/// `script WHEEL FOLDER NAME...`: the files of these names, from whatever folder of the wheel.
const UNPACK: &str = "
import os, sys, zipfile
wheel, folder, *names = sys.argv[1:]
with zipfile.ZipFile(wheel) as files:
    for path in files.namelist():
        if os.path.basename(path) in names:
            with open(os.path.join(folder, os.path.basename(path)), 'wb') as file:
                file.write(files.read(path))
";

/// `script LIBRARY`: the version that it reports.
const REPORT: &str = "
import ctypes, sys
parts = [ctypes.c_int() for _ in range(3)]
ctypes.CDLL(sys.argv[1]).zmq_version(*map(ctypes.byref, parts))
print(*(part.value for part in parts), sep='.')
";

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
    is_pinned(addon, NPM_ADDON_SHA256)
}

fn is_pinned(file: &Path, sha256: &str) -> bool {
    fs::read(file).is_ok_and(|bytes| hash::sha256(&bytes) == sha256)
}

/// Builds of libzmq to run C programs with: target/libzmq/NAME for LD_LIBRARY_PATH. After [`python`].
pub fn libzmq_builds(tree: &Tree) -> Result<()> {
    for build in &BUILDS {
        let folder = tree.target().join("libzmq").join(build.name);
        if !is_unpacked(build, &folder) {
            eprintln!("fetching libzmq {} from pyzmq {}", build.name, build.pyzmq);
            fetch_build(tree, build, &folder)?;
        }
    }
    Ok(())
}

/// What the loader looks for: in a wheel the name has a hash in it.
const LIBZMQ_SONAME: &str = "libzmq.so.5";

fn is_unpacked(build: &Build, folder: &Path) -> bool {
    folder.join(LIBZMQ_SONAME).exists()
        && build.files.iter().all(|[name, sha256]| is_pinned(&folder.join(name), sha256))
}

fn fetch_build(tree: &Tree, build: &Build, folder: &Path) -> Result<()> {
    let python = tree.target().join("venv/bin/python3");
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let wheels = folder.join("wheel");
    fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    let [version, abi, platform] = build.tags;
    run_quietly(
        Command::new(&python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary=:all:", "--implementation", "cp"])
            .args(["--python-version", version, "--abi", abi, "--platform", platform, "--dest"])
            .arg(&wheels)
            .arg(format!("pyzmq=={}", build.pyzmq)),
    )?;
    let wheel = fs::read_dir(&wheels)?.next().context("pip has downloaded nothing")??.path();
    let names = build.files.iter().map(|[name, _]| name);
    run_quietly(Command::new(&python).args(["-c", UNPACK]).arg(&wheel).arg(folder).args(names))?;
    fs::remove_dir_all(&wheels).with_context(|| format!("cannot remove {}", wheels.display()))?;
    for [name, sha256] in build.files {
        ensure!(
            is_pinned(&folder.join(name), sha256),
            "{name} of pyzmq {} does not have the pinned SHA-256",
            build.pyzmq
        );
    }
    let [libzmq, _] = build.files[0];
    symlink(libzmq, folder.join(LIBZMQ_SONAME)).with_context(|| format!("cannot link to {libzmq}"))?;
    let reported = stdout(
        Command::new(&python).args(["-c", REPORT]).arg(folder.join(LIBZMQ_SONAME)).env("LD_LIBRARY_PATH", folder),
    )?;
    let version = build.name.split('-').next();
    ensure!(version == Some(&reported), "the libzmq of pyzmq {} says that it is {reported}", build.pyzmq);
    Ok(())
}
