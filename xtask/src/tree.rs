//! Where things are in the repository.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The repository's folders.
pub struct Tree {
    pub root: PathBuf,
}

impl Tree {
    /// Finds the repository by the place of this package. What cargo says at run time comes first: a
    /// moved repository may still run an xtask that was compiled before the move.
    pub fn find() -> Result<Self> {
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package.parent().context("xtask lies outside of a repository")?;
        Ok(Self { root: root.to_owned() })
    }

    /// What xtask makes. CARGO_TARGET_DIR does not move it, so that tests find it by its path.
    pub fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// Programs that xtask installs for itself; ZMQTRACE_TOOLS lets several checkouts share them.
    pub fn tools(&self) -> PathBuf {
        std::env::var_os("ZMQTRACE_TOOLS").map_or_else(|| self.target().join("tools"), PathBuf::from)
    }

    /// The compiled C workloads.
    pub fn workloads(&self) -> PathBuf {
        self.target().join("workloads")
    }

    /// A path as people know it: relative to the repository.
    pub fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}
