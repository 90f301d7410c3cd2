//! What the BPF object is built from, as one hash.
//!
//! It covers the sources and manifests of tracer-ebpf and tracer-common, and of Cargo.lock the entries
//! that tracer-ebpf depends on: with the whole lock file, every update of some crate that only the
//! userspace side uses would call the committed object stale. The entries are those that can be
//! reached in the lock file, so optional dependencies count too: that is a few crates too many, but
//! needs neither cargo nor a BPF toolchain.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::hash;
use crate::tree::Tree;

const PACKAGE: &str = "tracer-ebpf";
const FOLDERS: [&str; 2] = [PACKAGE, "tracer-common"];

/// The hash of all that the object is built from; `recipe` is how it is built.
pub fn hash(tree: &Tree, recipe: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        let folder = tree.root.join(folder);
        files.push(folder.join("Cargo.toml"));
        files.extend([folder.join("build.rs")].into_iter().filter(|script| script.exists()));
        collect_files(&folder.join("src"), &mut files)?;
    }
    files.sort();

    let mut hash = hash::Named::default();
    hash.add("recipe", recipe.join("\n").as_bytes());
    for file in files {
        let contents = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.add(&tree.relative(&file).to_string_lossy(), &contents);
    }
    let lock = tree.root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    for (name, contents) in locked_dependencies(&lock)? {
        hash.add(&name, contents.as_bytes());
    }
    Ok(hash.finish())
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        // An editor's hidden files are no sources.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// None for the workspace's own packages.
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// What tracer-ebpf can depend on: "name version" and checksum.
fn locked_dependencies(lock: &str) -> Result<BTreeMap<String, String>> {
    let lock: Lock = toml::from_str(lock).context("cannot parse Cargo.lock")?;
    let mut found = BTreeMap::new();
    let mut wanted = vec![PACKAGE];
    while let Some(dependency) = wanted.pop() {
        // "name", or "name version" where the lock file holds several versions, then perhaps a source.
        let mut words = dependency.split(' ');
        let (name, version) = (words.next(), words.next());
        let package = lock
            .package
            .iter()
            .find(|package| {
                Some(package.name.as_str()) == name && version.is_none_or(|version| package.version == version)
            })
            .with_context(|| format!("Cargo.lock has no {dependency}: run `cargo update --workspace`"))?;
        let checksum = package.checksum.clone().unwrap_or_default();
        if found.insert(format!("{} {}", package.name, package.version), checksum).is_none() {
            wanted.extend(package.dependencies.iter().map(String::as_str));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_bpf_depends_on_counts() -> Result<()> {
        let lock = r#"
            version = 4
            [[package]]
            name = "tracer-ebpf"
            version = "0.1.0"
            dependencies = ["tracer-common", "syn 2.0.0"]
            [[package]]
            name = "tracer-common"
            version = "0.1.0"
            [[package]]
            name = "syn"
            version = "1.0.0"
            checksum = "old"
            [[package]]
            name = "syn"
            version = "2.0.0"
            checksum = "new"
            [[package]]
            name = "tokio"
            version = "1.0.0"
            checksum = "userspace"
        "#;
        let found: Vec<_> = locked_dependencies(lock)?.into_iter().collect();
        let expected = [("syn 2.0.0", "new"), ("tracer-common 0.1.0", ""), ("tracer-ebpf 0.1.0", "")];
        assert_eq!(found, expected.map(|(name, checksum)| (name.to_owned(), checksum.to_owned())));
        Ok(())
    }
}
