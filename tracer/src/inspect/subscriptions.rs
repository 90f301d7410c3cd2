//! Topics of a SUB or XSUB: a trie, or, where libzmq was built so, a radix tree.

use bytes::Bytes;

use super::{context::Reader, image::Object};
use crate::event::{Subscriptions, Topic};

/// Topics that are kept; more are counted.
const MAX_TOPICS: usize = 1000;
/// Nodes that are visited.
const MAX_NODES: u32 = 1 << 20;
/// Bytes of a topic.
const MAX_TOPIC_BYTES: usize = 4096;

impl Reader<'_> {
    /// The topics in the tree at `tree`; `None` when it makes no sense, or is too large.
    pub fn subscriptions(&self, tree: u64) -> Option<Subscriptions> {
        let mut walk = Walk { reader: self, topics: Vec::new(), more: 0, nodes_left: MAX_NODES };
        // The root of a radix tree is a pointer, of which a trie has its counters.
        let root = self.subject.image.u64(tree)?;
        match walk.radix_node(root) {
            Some(_) => walk.radix(root)?,
            None => walk.trie(tree.checked_add(self.layout.trie_root)?)?,
        }
        walk.topics.sort();
        Some(Subscriptions { topics: walk.topics, more: walk.more })
    }
}

struct Walk<'a> {
    reader: &'a Reader<'a>,
    topics: Vec<Topic>,
    more: u64,
    nodes_left: u32,
}

impl Walk<'_> {
    fn add(&mut self, topic: &[u8]) {
        if self.topics.len() < MAX_TOPICS {
            self.topics.push(Topic(Bytes::copy_from_slice(topic)));
        } else {
            self.more += 1;
        }
    }

    /// `trie_t`: {uint32_t refcnt @0; unsigned char min @4; unsigned short count @6; next @16}.
    fn trie(&mut self, root: u64) -> Option<()> {
        let mut waiting = vec![(root, Vec::new())];
        while let Some((address, topic)) = waiting.pop() {
            self.nodes_left = self.nodes_left.checked_sub(1)?;
            let node = self.reader.subject.image.object(address, 24)?;
            let (references, first) = (node.u32(0)?, node.u8(4)?);
            let (children, next) = (u64::from(u16::from_le_bytes(node.array(6)?)), node.u64(16)?);
            if references > 0 {
                self.add(&topic);
            }
            if children > 256 || topic.len() >= MAX_TOPIC_BYTES {
                return None;
            }
            let child = |topic: &[u8], index: u64| [topic, &[first.wrapping_add(index as u8)]].concat();
            match children {
                0 => {}
                1 => waiting.push((next, child(&topic, 0))),
                _ => {
                    let table = self.reader.subject.image.object(next, children as usize * 8)?;
                    for index in 0..children {
                        let address = table.u64(index * 8)?;
                        if address != 0 {
                            waiting.push((address, child(&topic, index)));
                        }
                    }
                }
            }
        }
        Some(())
    }

    /// A node of `radix_tree_t`: {uint32_t refcount; uint32_t prefix_length; uint32_t edgecount; prefix; first bytes of
    /// the edges; pointers of the edges}, packed.
    fn radix_node(&self, address: u64) -> Option<(u32, Object)> {
        let image = self.reader.subject.image;
        let head = image.object(address, 12)?;
        let (references, prefix, edges) = (head.u32(0)?, head.u32(4)?, head.u32(8)?);
        if prefix as usize > MAX_TOPIC_BYTES || edges > 256 {
            return None;
        }
        let node = image.object(address, 12 + prefix as usize + edges as usize * 9)?;
        Some((references, node))
    }

    fn radix(&mut self, root: u64) -> Option<()> {
        let mut waiting = vec![(root, Vec::new())];
        while let Some((address, before)) = waiting.pop() {
            self.nodes_left = self.nodes_left.checked_sub(1)?;
            let (references, node) = self.radix_node(address)?;
            let (prefix, edges) = (u64::from(node.u32(4)?), u64::from(node.u32(8)?));
            let topic = [&before[..], node.bytes(12, prefix)?].concat();
            if topic.len() > MAX_TOPIC_BYTES {
                return None;
            }
            if references > 0 {
                self.add(&topic);
            }
            for edge in 0..edges {
                waiting.push((node.u64(12 + prefix + edges + edge * 8)?, topic.clone()));
            }
        }
        Some(())
    }
}
