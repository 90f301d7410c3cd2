//! SHA-256, in hexadecimal.

use sha2::{Digest as _, Sha256};

/// The hash of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The hash of many named things, which depends on where each one ends.
#[derive(Default)]
pub struct Named(Sha256);

impl Named {
    pub fn add(&mut self, name: &str, contents: &[u8]) {
        for part in [name.as_bytes(), contents] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    pub fn finish(self) -> String {
        format!("{:x}", self.0.finalize())
    }
}
