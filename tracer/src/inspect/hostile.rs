//! Tests with a process that makes up memory in order to be looked at for ever: as large as it likes, and all of it sound.
//! Each look must come to its end, say that something is missing, and leave us in peace.

use tracer_common::record::SOCKET_TAG;

use super::{
    Detail, FileMapping, Look, Subject, Watched,
    image::{Block, Budget, Image, Source},
    layouts::{self, Layout, OBJECT_CTX, THREAD_EVENTS},
    look,
    made::usual,
};
use crate::{event::SocketState, target::Version};

const FILE: FileMapping = FileMapping { start: 0x1000, end: 0x2000, library: Some(0) };
const ENTRY: u64 = 0x10_0000;
const THREAD: u64 = 0x11_0000;
const CONTEXT: u64 = 0x12_0000;
/// The list of sockets, and any other.
const LIST: u64 = 0x1_0000_0000;
const LIST_LEN: u64 = 1 << 20;
/// Where the sockets lie, a page each.
const SOCKETS: u64 = 0x10_0000_0000;
const SOCKET_BYTES: u64 = 4096;
/// Nodes of a trie by depth, and, behind each, its children: all the same.
const TRIE: u64 = 0x20_0000_0000;
const TRIE_NODE_BYTES: u64 = 0x1000;
/// Nodes of a perfect tree, numbered from its root in breadth.
const TREE: u64 = 0x30_0000_0000;
const TREE_NODE_BYTES: u64 = 128;
const TREE_LEN: u64 = (1 << 20) - 1;
const NAME: u64 = 0x40_0000_0000;

/// What its sockets have too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excess {
    /// The sockets themselves.
    Sockets,
    /// Pipes, all the same.
    Pipes,
    /// Topics.
    Topics,
    /// Endpoints, each with the longest name.
    Names,
}

/// Memory that is computed as it is read.
struct Endless {
    layout: &'static Layout,
    excess: Excess,
}

impl Source for Endless {
    fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize {
        for (block, address) in blocks.iter_mut().zip(addresses) {
            for (word, at) in block.as_chunks_mut::<8>().0.iter_mut().zip((*address..).step_by(8)) {
                *word = self.word(at).to_le_bytes();
            }
        }
        blocks.len()
    }
}

impl Endless {
    fn word(&self, at: u64) -> u64 {
        match at {
            NAME.. => u64::from_le_bytes(*b"tcp://n:"),
            TREE.. => self.tree_node((at - TREE) / TREE_NODE_BYTES, (at - TREE) % TREE_NODE_BYTES),
            TRIE.. => match (at - TRIE) % TRIE_NODE_BYTES {
                // One reference, 256 children.
                0 => 1 | 256 << 48,
                16 => at + 16,
                _ => (at / TRIE_NODE_BYTES + 1) * TRIE_NODE_BYTES,
            },
            SOCKETS.. => self.socket(at / SOCKET_BYTES * SOCKET_BYTES, at % SOCKET_BYTES),
            LIST.. => SOCKETS + (at - LIST) / 8 * SOCKET_BYTES,
            CONTEXT.. => match at - CONTEXT {
                offset if offset == self.layout.ctx_tag => 0xabad_cafe,
                offset if offset == self.layout.ctx_tag + 8 => LIST,
                offset if offset == self.layout.ctx_tag + 16 => LIST + LIST_LEN * 8,
                offset => self.empty_tree(CONTEXT + self.layout.ctx_endpoints, CONTEXT + offset).unwrap_or(1),
            },
            THREAD.. if at == THREAD + OBJECT_CTX => CONTEXT,
            THREAD.. => FILE.start,
            ENTRY.. => [7, ENTRY, THREAD + THREAD_EVENTS][(at - ENTRY) as usize / 8 % 3],
            _ => 0,
        }
    }

    fn socket(&self, socket: u64, offset: u64) -> u64 {
        let layout = self.layout;
        let at = socket + offset;
        let names = socket + layout.socket_endpoints;
        match offset {
            OBJECT_CTX => CONTEXT,
            _ if offset == layout.socket_tag => u64::from(SOCKET_TAG),
            // A SUB, whose type is the upper half of a word.
            _ if offset == layout.opt_type / 8 * 8 => 2 << (layout.opt_type % 8 * 8),
            _ if offset == layout.socket_pipes && self.excess == Excess::Pipes => LIST,
            _ if offset == layout.socket_pipes + 8 && self.excess == Excess::Pipes => LIST + LIST_LEN * 8,
            _ if offset == layout.xsub_subscriptions + layout.trie_root && self.excess == Excess::Topics => {
                self.word(TRIE)
            }
            _ if offset == layout.xsub_subscriptions + layout.trie_root + 16 && self.excess == Excess::Topics => {
                self.word(TRIE + 16)
            }
            _ if socket == SOCKETS && self.excess == Excess::Names && (names + 8..names + 48).contains(&at) => {
                [0, TREE, TREE + TREE_LEN / 2 * TREE_NODE_BYTES, TREE + (TREE_LEN - 1) * TREE_NODE_BYTES, TREE_LEN]
                    [(at - names - 8) as usize / 8]
            }
            _ => [layout.own_owned, layout.socket_endpoints, layout.socket_inprocs]
                .into_iter()
                .find_map(|tree| self.empty_tree(socket + tree, at))
                .unwrap_or(0),
        }
    }

    /// A word of the empty tree at `tree`, if it is one.
    fn empty_tree(&self, tree: u64, at: u64) -> Option<u64> {
        match at.checked_sub(tree)? {
            24 | 32 => Some(tree + 8),
            0..48 => Some(0),
            _ => None,
        }
    }

    fn tree_node(&self, number: u64, offset: u64) -> u64 {
        let node = |number: u64| if number < TREE_LEN { TREE + number * TREE_NODE_BYTES } else { 0 };
        match offset {
            8 if number == 0 => SOCKETS + self.layout.socket_endpoints + 8,
            8 => node((number - 1) / 2),
            16 => node(2 * number + 1),
            24 => node(2 * number + 2),
            32 => NAME,
            40 => 4096,
            _ => 0,
        }
    }
}

/// The look, and how much of what it may keep it has kept.
fn look_at(excess: Excess) -> (Look, u64) {
    let layout = usual(Version(4, 3, 4));
    let endless = Endless { layout, excess };
    let image = Image::new(&endless);
    let subject = Subject {
        own_pid: 1,
        image: &image,
        watched: &[Watched { fd: 7, data: ENTRY }],
        files: &[FILE],
        versions: &[Some(Version(4, 3, 4))],
        layouts: layouts::all(),
    };
    let look = look(&subject, Detail::All);
    assert!(image.is_exhausted());
    assert!(look.unread > 0, "it is said that something is missing");
    assert_eq!(look.contexts.len(), 1);
    (look, Budget::LOOK.kept_bytes - image.left().kept_bytes)
}

#[test]
fn a_million_sockets() {
    let (look, kept_bytes) = look_at(Excess::Sockets);
    let found = &look.contexts[0].sockets;
    assert!(found.len() > 10_000, "what was read is shown: {}", found.len());
    assert!(found.len() * size_of::<SocketState>() < kept_bytes as usize);
    assert_eq!(look.contexts[0].layout.as_deref(), Some("4.3.4"));
}

#[test]
fn a_million_pipes_of_each_socket() {
    let (look, kept_bytes) = look_at(Excess::Pipes);
    assert!(look.contexts[0].sockets.len() < 100, "{}", look.contexts[0].sockets.len());
    assert!(kept_bytes > Budget::LOOK.kept_bytes / 2);
}

#[test]
fn topics_without_end() {
    let (look, _) = look_at(Excess::Topics);
    let topics = look.contexts[0].sockets.iter().filter_map(|socket| socket.subscriptions.as_ref());
    assert_eq!(topics.count(), 0, "none of them was read to its end");
}

#[test]
fn a_million_names() {
    let (look, kept_bytes) = look_at(Excess::Names);
    assert!(look.contexts[0].sockets.iter().all(|socket| socket.endpoints.is_empty()));
    assert!(kept_bytes > Budget::LOOK.kept_bytes - 10_000);
}
