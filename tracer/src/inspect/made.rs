//! Memory made by hand, for tests: structures of libstdc++ and libzmq at any address.

use std::collections::BTreeMap;

use super::{
    Detail, Subject,
    context::Reader,
    cxx,
    image::{BLOCK_BYTES, Block, Image, Source},
    layouts::{self, Layout, Strings},
};
use crate::target::Version;

/// The context that everything belongs to.
pub const CONTEXT: u64 = 0x7000_0000;
/// Between two nodes of a tree.
const NODE_BYTES: u64 = 128;

/// Blocks that were written to; all others cannot be read.
#[derive(Debug, Default, Clone)]
pub struct Made {
    blocks: BTreeMap<u64, Block>,
}

impl Source for Made {
    fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize {
        let read = blocks.iter_mut().zip(addresses).map_while(|(block, address)| {
            *block = *self.blocks.get(address)?;
            Some(())
        });
        read.count()
    }
}

impl Made {
    /// Writes bytes.
    pub fn bytes(&mut self, address: u64, bytes: &[u8]) -> &mut Self {
        for (at, byte) in (address..).zip(bytes) {
            let offset = at % BLOCK_BYTES as u64;
            self.blocks.entry(at - offset).or_insert([0; BLOCK_BYTES])[offset as usize] = *byte;
        }
        self
    }

    /// Writes words, one behind the other.
    pub fn words(&mut self, address: u64, words: &[u64]) -> &mut Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(address, &bytes)
    }

    /// Writes half words, one behind the other.
    pub fn half_words(&mut self, address: u64, half_words: &[u32]) -> &mut Self {
        let bytes: Vec<u8> = half_words.iter().flat_map(|half_word| half_word.to_le_bytes()).collect();
        self.bytes(address, &bytes)
    }

    /// A `std::vector` of pointers at `address`, its elements at `elements_at`.
    pub fn vector(&mut self, address: u64, elements_at: u64, elements: &[u64]) -> &mut Self {
        let end = elements_at + elements.len() as u64 * 8;
        self.words(address, &[elements_at, end, end]).words(elements_at, elements)
    }

    /// A `std::string` at `address`, its bytes at `bytes_at`.
    pub fn string(&mut self, address: u64, bytes_at: u64, text: &[u8], strings: Strings) -> &mut Self {
        match strings {
            Strings::Short => self.words(address, &[bytes_at, text.len() as u64]),
            Strings::CopyOnWrite => {
                self.words(address, &[bytes_at]).words(bytes_at - 24, &[text.len() as u64, text.len() as u64, 0])
            }
        };
        self.bytes(bytes_at, text)
    }

    /// A balanced tree at `address`, its nodes at `nodes_at`, each with the bytes of its value.
    pub fn tree(&mut self, address: u64, nodes_at: u64, values: &[Vec<u8>]) -> Vec<u64> {
        let header = address + 8;
        let nodes: Vec<u64> = (0..values.len() as u64).map(|index| nodes_at + index * NODE_BYTES).collect();
        for (node, value) in nodes.iter().zip(values) {
            self.bytes(node + cxx::NODE_VALUE, value);
        }
        let root = self.subtree(header, &nodes);
        let ends = [nodes.first(), nodes.last()].map(|node| node.copied().unwrap_or(header));
        self.words(header, &[0, root, ends[0], ends[1], nodes.len() as u64]);
        nodes
    }

    fn subtree(&mut self, parent: u64, nodes: &[u64]) -> u64 {
        let Some(root) = nodes.get(nodes.len() / 2).copied() else { return 0 };
        let (left, right) = nodes.split_at(nodes.len() / 2);
        let (left, right) = (self.subtree(root, left), self.subtree(root, &right[1..]));
        self.words(root, &[0, parent, left, right]);
        root
    }

    /// Lets a reader of a usual build of `version` read it.
    pub fn read<T>(&self, version: Version, read: impl FnOnce(&Reader<'_>) -> T) -> T {
        let image = Image::new(self);
        let subject =
            Subject { own_pid: 1, image: &image, watched: &[], files: &[], versions: &[], layouts: layouts::all() };
        let layout = usual(version);
        read(&Reader { subject: &subject, entries: &[], layout, context: CONTEXT, detail: Detail::All })
    }
}

/// The layout of the usual build.
pub fn usual(version: Version) -> &'static Layout {
    layouts::all().iter().find(|layout| layout.fits(version)).expect("the version is known")
}
