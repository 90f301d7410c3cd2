//! Containers of libstdc++ in another process's memory. Each is read within limits: a count or a pointer that makes no
//! sense ends it.

use std::collections::HashSet;

use bytes::Bytes;

use super::{
    image::{Image, Object, at},
    layouts::Strings,
};

/// Elements of a vector or nodes of a tree that are read at most.
const MAX_ELEMENTS: u64 = 1 << 20;
/// Bytes of a string that are read at most. Endpoints, topics and names are shorter.
const MAX_STRING_BYTES: u64 = 4096;
/// Depth of a balanced tree of [`MAX_ELEMENTS`], twice the logarithm.
const MAX_DEPTH: usize = 48;

/// The elements of a `std::vector` of pointers.
pub fn vector(image: &Image<'_>, address: u64) -> Option<Vec<u64>> {
    let [begin, end] = [image.u64(address)?, image.u64(at(address, 8))?];
    let bytes = end.checked_sub(begin)?;
    if bytes % 8 != 0 || bytes / 8 > MAX_ELEMENTS || begin % 8 != 0 {
        return None;
    }
    let elements = image.object(begin, bytes as usize)?;
    image.keep(bytes as usize)?;
    (0..bytes / 8).map(|index| elements.u64(index * 8)).collect()
}

/// The `std::string` at `offset` of an object.
pub fn string(image: &Image<'_>, object: &Object, offset: u64, strings: Strings) -> Option<Bytes> {
    let pointer = object.u64(offset)?;
    let len = match strings {
        Strings::Short => object.u64(at(offset, 8))?,
        // The size stands three words before the bytes.
        Strings::CopyOnWrite => image.u64(pointer.checked_sub(24)?)?,
    };
    bytes(image, pointer, len)
}

/// `len` bytes behind a pointer, if that is a length that makes sense.
pub fn bytes(image: &Image<'_>, pointer: u64, len: u64) -> Option<Bytes> {
    if len > MAX_STRING_BYTES {
        return None;
    }
    if len == 0 {
        return Some(Bytes::new());
    }
    let object = image.object(pointer, len as usize)?;
    image.keep(len as usize)?;
    object.bytes(0, len).map(Bytes::copy_from_slice)
}

/// Bytes of a `std::string` itself.
pub const fn string_bytes(strings: Strings) -> u64 {
    match strings {
        Strings::Short => 32,
        Strings::CopyOnWrite => 8,
    }
}

/// Bytes that we keep of a node which was seen.
const NODE_KEPT: usize = 64;

/// Where the value of a node of a tree begins.
pub const NODE_VALUE: u64 = 32;

/// The nodes of a `std::map`, `std::set` or their multi kinds, in their order. `None` when the tree is not sound.
pub fn tree(image: &Image<'_>, address: u64) -> Option<Vec<u64>> {
    // The comparison, then the header {colour, parent (the root), leftmost, rightmost}, then the count.
    let map = image.object(address, 48)?;
    let (header, root, count) = (at(address, 8), map.u64(16)?, map.u64(40)?);
    let ends = [map.u64(24)?, map.u64(32)?];
    if count > MAX_ELEMENTS {
        return None;
    }
    let mut nodes = Vec::new();
    let mut path = Vec::new();
    let mut next = root;
    let mut parent = header;
    while next != 0 || !path.is_empty() {
        while next != 0 {
            let node = image.object(next, NODE_VALUE as usize)?;
            if node.u64(8)? != parent || path.len() >= MAX_DEPTH {
                return None;
            }
            (parent, next) = (next, node.u64(16)?);
            path.push((node.address, node.u64(24)?));
        }
        let (address, right) = path.pop()?;
        if nodes.len() as u64 >= count {
            return None;
        }
        image.keep(size_of::<u64>())?;
        nodes.push(address);
        (parent, next) = (address, right);
    }
    // Of an empty one both ends are the header itself: a place that was never a tree is all zero.
    let found = [nodes.first(), nodes.last()].map(|node| node.copied().unwrap_or(header));
    (nodes.len() as u64 == count && found == ends).then_some(nodes)
}

/// The nodes that can be reached in a tree which is being changed: some may be missing, and none is known to be in it
/// still.
pub fn reachable(image: &Image<'_>, address: u64) -> Vec<u64> {
    let mut nodes = Vec::new();
    let mut seen = HashSet::new();
    let mut waiting: Vec<u64> = image.u64(at(address, 16)).into_iter().collect();
    while let Some(node) = waiting.pop() {
        if node == 0 || nodes.len() as u64 >= MAX_ELEMENTS || !seen.insert(node) || image.keep(NODE_KEPT).is_none() {
            continue;
        }
        let (Some(left), Some(right)) = (image.u64(at(node, 16)), image.u64(at(node, 24))) else { continue };
        nodes.push(node);
        waiting.extend([left, right]);
    }
    nodes
}
