//! A saved image: a line of JSON, then blocks.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::{Deserialize, Serialize};
use zmqtrace::{
    inspect::{
        self, Detail, FileMapping, Look, Subject, Watched,
        image::{BLOCK_BYTES, Block, Image, Source},
        layouts::{self, Layout},
    },
    target::Version,
};

/// The images that are kept: of which program, and its libzmq or case.
pub const IMAGES: [&str; 8] =
    ["zoo", "rust-zoo", "hung", "hung-4.1.6", "hung-4.2.5", "hung-4.3.5", "corners-inproc", "corners-fork"];

const WORD_BYTES: usize = 8;
/// One bit a word of a block.
const MAP_BYTES: usize = BLOCK_BYTES / WORD_BYTES / 8;

/// All that a look gets of a process.
#[derive(Debug, Clone)]
pub struct Saved {
    /// What does not come from its memory.
    pub head: Head,
    /// Blocks that can be read, by address.
    pub blocks: BTreeMap<u64, Block>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Head {
    pub own_pid: u32,
    pub versions: Vec<Option<Version>>,
    pub watched: Vec<Watched>,
    pub files: Vec<FileMapping>,
}

impl Saved {
    pub fn load(name: &str) -> Self {
        let path = data(&format!("{name}.image"));
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let head_len = bytes.iter().position(|byte| *byte == b'\n').expect("a line of JSON");
        let head = serde_json::from_slice(&bytes[..head_len]).expect("the head is sound");
        let mut rest = &bytes[head_len + 1..];
        let mut blocks = BTreeMap::new();
        while !rest.is_empty() {
            let address = u64::from_le_bytes(take(&mut rest));
            let map: [u8; MAP_BYTES] = take(&mut rest);
            let mut block = [0; BLOCK_BYTES];
            for (index, word) in block.chunks_exact_mut(WORD_BYTES).enumerate() {
                if map[index / 8] & 1 << (index % 8) != 0 {
                    word.copy_from_slice(&take::<WORD_BYTES>(&mut rest));
                }
            }
            blocks.insert(address, block);
        }
        Self { head, blocks }
    }

    pub fn save(&self, name: &str) {
        let mut bytes = serde_json::to_vec(&self.head).expect("the head is plain data");
        bytes.push(b'\n');
        for (address, block) in &self.blocks {
            bytes.extend(address.to_le_bytes());
            let words = block.chunks_exact(WORD_BYTES);
            let mut map = [0; MAP_BYTES];
            // Most words of a heap are zero: only the others are kept.
            for (index, _) in words.clone().enumerate().filter(|(_, word)| word.iter().any(|byte| *byte != 0)) {
                map[index / 8] |= 1 << (index % 8);
            }
            bytes.extend(map);
            bytes.extend(words.filter(|word| word.iter().any(|byte| *byte != 0)).flatten());
        }
        fs::write(data(&format!("{name}.image")), bytes).expect("the image can be written");
    }

    /// One look.
    pub fn look(&self, layouts: &[Layout]) -> Look {
        self.head.look(&Image::new(self), Detail::All, layouts)
    }

    /// All looks that an image is good for, with memory from anywhere: what is known, what a vote infers, and, if its
    /// contexts were inherited, what their owner would have found.
    pub fn looks(&self, memory: &dyn Source) -> [Look; 3] {
        let look = |head: &Head, layouts: &[Layout]| head.look(&Image::new(memory), Detail::All, layouts);
        let known = look(&self.head, layouts::all());
        let as_owner = look(&self.head.of_owner(&known), layouts::all());
        [known, look(&self.head, &[]), as_owner]
    }
}

impl Head {
    /// The same of the process that made the contexts: another one after a fork.
    pub fn of_owner(&self, look: &Look) -> Self {
        let owner = look.contexts.iter().find_map(|context| context.owner_pid);
        Self { own_pid: owner.unwrap_or(self.own_pid), ..self.clone() }
    }

    /// One look, with its memory from anywhere.
    pub fn look(&self, image: &Image<'_>, detail: Detail, layouts: &[Layout]) -> Look {
        let Self { own_pid, versions, watched, files } = self;
        inspect::look(&Subject { own_pid: *own_pid, image, watched, files, versions, layouts }, detail)
    }
}

impl Source for Saved {
    fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize {
        let read = blocks.iter_mut().zip(addresses).map_while(|(block, address)| {
            *block = *self.blocks.get(address)?;
            Some(())
        });
        read.count()
    }
}

/// A file among the images.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (first, rest) = bytes.split_first_chunk().expect("the image is complete");
    *bytes = rest;
    *first
}
