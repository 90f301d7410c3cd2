//! Topics of a SUB or XSUB: a trie, or, where libzmq was built so, a radix tree.

use bytes::Bytes;

use super::{
    context::Reader,
    image::{Image, Object, at},
};
use crate::event::{Subscriptions, Topic};

/// Topics that are kept; more are counted.
const MAX_TOPICS: usize = 1000;
/// Nodes that are visited.
const MAX_NODES: u32 = 1 << 20;
/// Bytes of a topic.
const MAX_TOPIC_BYTES: usize = 4096;
/// Children of a node, one a byte.
const MAX_CHILDREN: u32 = 256;

impl Reader<'_> {
    /// The topics in the tree at `tree`; `None` when it makes no sense, or is too large.
    pub fn subscriptions(&self, tree: u64) -> Option<Subscriptions> {
        let mut walk = Walk::new(self.subject.image);
        // The root of a radix tree is a pointer, of which a trie has its counters.
        let root = walk.image.u64(tree)?;
        match walk.radix_node(root, None) {
            Some(_) => walk.radix(root)?,
            None => walk.trie(at(tree, self.layout.trie_root))?,
        }
        walk.topics.sort();
        Some(Subscriptions { topics: walk.topics, more: walk.more })
    }
}

struct Walk<'a> {
    image: &'a Image<'a>,
    topics: Vec<Topic>,
    more: u64,
    nodes_left: u32,
}

/// A node that is to be visited. The topic of where we are is kept once, not with each of them.
struct Waiting {
    address: u64,
    /// The byte that leads to it from its parent; of the root none.
    byte: Option<u8>,
    /// Bytes of the parent's topic.
    depth: usize,
}

impl<'a> Walk<'a> {
    const fn new(image: &'a Image<'a>) -> Self {
        Self { image, topics: Vec::new(), more: 0, nodes_left: MAX_NODES }
    }

    fn add(&mut self, topic: &[u8]) {
        if self.topics.len() < MAX_TOPICS && self.image.keep(size_of::<Topic>() + topic.len()).is_some() {
            self.topics.push(Topic(Bytes::copy_from_slice(topic)));
        } else {
            self.more += 1;
        }
    }

    /// `trie_t`: {uint32_t refcnt @0; unsigned char min @4; unsigned short count @6; next @16}.
    fn trie(&mut self, root: u64) -> Option<()> {
        let mut topic = Vec::new();
        let mut waiting = vec![Waiting { address: root, byte: None, depth: 0 }];
        while let Some(Waiting { address, byte, depth }) = waiting.pop() {
            self.nodes_left = self.nodes_left.checked_sub(1)?;
            topic.truncate(depth);
            topic.extend(byte);
            let node = self.image.object(address, 24)?;
            let (references, first) = (node.u32(0)?, node.u8(4)?);
            let (children, next) = (u32::from(u16::from_le_bytes(node.array(6)?)), node.u64(16)?);
            if references > 0 {
                self.add(&topic);
            }
            if children > MAX_CHILDREN || topic.len() >= MAX_TOPIC_BYTES {
                return None;
            }
            let child = |address: u64, index: u32| Waiting {
                address,
                byte: Some(first.wrapping_add(index as u8)),
                depth: topic.len(),
            };
            match children {
                0 => {}
                1 => waiting.push(child(next, 0)),
                _ => {
                    let table = self.image.object(next, children as usize * 8)?;
                    for index in 0..children {
                        let address = table.u64(u64::from(index) * 8)?;
                        if address != 0 {
                            waiting.push(child(address, index));
                        }
                    }
                }
            }
        }
        Some(())
    }

    /// A node of `radix_tree_t`: {uint32_t refcount; uint32_t prefix_length; uint32_t edgecount; prefix; first bytes of
    /// the edges; pointers of the edges}, packed. Only the root's prefix is empty; another's begins with the byte that
    /// leads to it.
    fn radix_node(&self, address: u64, byte: Option<u8>) -> Option<RadixNode> {
        let head = self.image.object(address, 12)?;
        let (references, prefix_bytes, edges) = (head.u32(0)?, head.u32(4)?, head.u32(8)?);
        if prefix_bytes as usize > MAX_TOPIC_BYTES || edges > MAX_CHILDREN {
            return None;
        }
        let node = self.image.object(address, 12 + prefix_bytes as usize + edges as usize * 9)?;
        let prefix = node.bytes(12, prefix_bytes.into())?;
        (prefix.first().copied() == byte).then_some(RadixNode { references, prefix_bytes, edges, node })
    }

    fn radix(&mut self, root: u64) -> Option<()> {
        let mut topic = Vec::new();
        let mut waiting = vec![Waiting { address: root, byte: None, depth: 0 }];
        while let Some(Waiting { address, byte, depth }) = waiting.pop() {
            self.nodes_left = self.nodes_left.checked_sub(1)?;
            let RadixNode { references, prefix_bytes, edges, node } = self.radix_node(address, byte)?;
            topic.truncate(depth);
            topic.extend_from_slice(node.bytes(12, prefix_bytes.into())?);
            if topic.len() > MAX_TOPIC_BYTES {
                return None;
            }
            if references > 0 {
                self.add(&topic);
            }
            let bytes_at = 12 + u64::from(prefix_bytes);
            for edge in 0..u64::from(edges) {
                let address = node.u64(bytes_at + u64::from(edges) + edge * 8)?;
                waiting.push(Waiting { address, byte: Some(node.u8(bytes_at + edge)?), depth: topic.len() });
            }
        }
        Some(())
    }
}

struct RadixNode {
    references: u32,
    prefix_bytes: u32,
    edges: u32,
    node: Object,
}

#[cfg(test)]
mod tests {
    use super::{super::made::Made, *};
    use crate::target::Version;

    const TREE: u64 = 0x1_0000;
    const NODES: u64 = 0x10_0000;
    const V4_3_4: Version = Version(4, 3, 4);

    fn read(made: &Made) -> Option<(Vec<String>, u64)> {
        let subscriptions = made.read(V4_3_4, |reader| reader.subscriptions(TREE))?;
        let topics = subscriptions.topics.iter().map(|topic| topic.0.escape_ascii().to_string());
        Some((topics.collect(), subscriptions.more))
    }

    fn trie_node(made: &mut Made, at: u64, references: u32, first: u8, children: u16, next: u64) {
        made.half_words(at, &[references, u32::from(first) | u32::from(children) << 16]).words(at + 16, &[next]);
    }

    fn radix_node(made: &mut Made, at: u64, references: u32, prefix: &[u8], edges: &[(u8, u64)]) {
        let (bytes, pointers): (Vec<u8>, Vec<u64>) = edges.iter().copied().unzip();
        let behind = at + 12 + prefix.len() as u64;
        made.half_words(at, &[references, prefix.len() as u32, edges.len() as u32])
            .bytes(at + 12, prefix)
            .bytes(behind, &bytes)
            .words(behind + bytes.len() as u64, &pointers);
    }

    #[test]
    fn a_trie() {
        // "", "a", "b\xff" and, where "c" would be, nothing.
        let mut made = Made::default();
        trie_node(&mut made, TREE, 1, b'a', 3, NODES);
        made.words(NODES, &[NODES + 0x100, NODES + 0x200, 0]);
        trie_node(&mut made, NODES + 0x100, 2, 0, 0, 0);
        trie_node(&mut made, NODES + 0x200, 0, 0xff, 1, NODES + 0x300);
        trie_node(&mut made, NODES + 0x300, 1, 0, 0, 0);
        assert_eq!(read(&made), Some((vec!["".into(), "a".into(), "b\\xff".into()], 0)));
    }

    #[test]
    fn topics_that_are_too_many_are_counted() {
        // All 65536 topics of two bytes, in memory for 257 nodes.
        let mut made = Made::default();
        trie_node(&mut made, TREE, 0, 0, 256, NODES);
        made.words(NODES, &[NODES + 0x1000; 256]);
        trie_node(&mut made, NODES + 0x1000, 0, 0, 256, NODES + 0x2000);
        made.words(NODES + 0x2000, &[NODES + 0x3000; 256]);
        trie_node(&mut made, NODES + 0x3000, 1, 0, 0, 0);
        let (topics, more) = read(&made).expect("it is sound");
        assert_eq!((topics.len(), more), (MAX_TOPICS, 65536 - MAX_TOPICS as u64));
    }

    #[test]
    fn tries_that_do_not_end() {
        let mut made = Made::default();
        trie_node(&mut made, TREE, 1, b'a', 1, TREE);
        assert_eq!(read(&made), None, "a node below itself");
        trie_node(&mut made, TREE, 1, b'a', 256, NODES);
        made.words(NODES, &[TREE; 256]);
        assert_eq!(read(&made), None, "256 times");
        trie_node(&mut made, TREE, 0, b'a', 257, NODES);
        made.words(NODES, &[0; 257]);
        assert_eq!(read(&made), None, "more children than bytes");
        trie_node(&mut made, TREE, 0, b'a', 2, u64::MAX - 8);
        assert_eq!(read(&made), None, "children beyond all memory");
    }

    #[test]
    fn a_radix_tree() {
        let mut made = Made::default();
        made.words(TREE, &[NODES, 4]);
        radix_node(&mut made, NODES, 0, b"", &[(b'p', NODES + 0x101), (0, NODES + 0x401)]);
        radix_node(&mut made, NODES + 0x101, 1, b"price.", &[(b'c', NODES + 0x203), (b't', NODES + 0x305)]);
        radix_node(&mut made, NODES + 0x203, 1, b"coffee", &[]);
        radix_node(&mut made, NODES + 0x305, 3, b"tea", &[]);
        radix_node(&mut made, NODES + 0x401, 1, b"\0", &[]);
        let expected = ["\\x00", "price.", "price.coffee", "price.tea"];
        assert_eq!(read(&made), Some((expected.map(str::to_owned).to_vec(), 0)));
        radix_node(&mut made, NODES, 1, b"", &[]);
        assert_eq!(read(&made), Some((vec![String::new()], 0)), "everything");
    }

    #[test]
    fn radix_trees_that_make_no_sense() {
        let mut made = Made::default();
        made.words(TREE, &[NODES, 1]);
        radix_node(&mut made, NODES, 0, b"", &[(b'a', NODES); 256]);
        assert_eq!(read(&made), None, "the root below itself");
        radix_node(&mut made, NODES, 0, b"", &[(b'a', NODES + 0x4000)]);
        for (what, prefix, edges) in [
            ("a prefix that the edge does not begin with", &b"b"[..], &[][..]),
            ("an empty prefix", b"", &[]),
            ("a node below itself", b"a", &[(b'a', NODES + 0x4000); 256]),
        ] {
            radix_node(&mut made, NODES + 0x4000, 1, prefix, edges);
            assert_eq!(read(&made), None, "{what}");
        }
        made.half_words(NODES + 0x4000, &[1, u32::MAX, 0]);
        assert_eq!(read(&made), None, "a prefix of 4 GiB");
        made.half_words(NODES + 0x4000, &[1, 1, u32::MAX]);
        assert_eq!(read(&made), None, "as many edges");
    }
}
