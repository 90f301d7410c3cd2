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

#[cfg(test)]
mod tests {
    use super::{super::made::Made, *};

    const AT: u64 = 0x1_0000;
    const ELSEWHERE: u64 = 0x2_0000;

    #[test]
    fn strings_of_both_kinds() {
        for (text, strings) in
            [(&b"inproc://a"[..], Strings::Short), (b"tcp://127.0.0.1:1", Strings::CopyOnWrite), (b"", Strings::Short)]
        {
            let mut made = Made::default();
            made.string(AT, ELSEWHERE, text, strings);
            let image = Image::new(&made);
            let object = image.object(AT, string_bytes(strings) as usize).expect("it is there");
            assert_eq!(string(&image, &object, 0, strings).as_deref(), Some(text));
            assert_eq!(string(&image, &object, 32, strings), None, "behind the object");
        }
    }

    #[test]
    fn strings_that_make_no_sense() {
        let longest = MAX_STRING_BYTES;
        for (pointer, len) in
            [(ELSEWHERE, longest + 1), (ELSEWHERE, u64::MAX), (0, 5), (u64::MAX, 5), (u64::MAX - 8, 8)]
        {
            let mut made = Made::default();
            made.bytes(ELSEWHERE, &[b'x'; 5000]).words(AT, &[pointer, len, 0, 0]);
            let image = Image::new(&made);
            let object = image.object(AT, 32).expect("it is there");
            assert_eq!(string(&image, &object, 0, Strings::Short), None, "{pointer:x} {len:x}");
            // Whose size would stand before the first address.
            made.words(AT, &[pointer.min(16)]);
            let image = Image::new(&made);
            let object = image.object(AT, 8).expect("it is there");
            assert_eq!(string(&image, &object, 0, Strings::CopyOnWrite), None);
        }
    }

    #[test]
    fn vectors() {
        let elements: Vec<u64> = (0..1000).collect();
        let mut made = Made::default();
        made.vector(AT, ELSEWHERE + 0xff0, &elements);
        assert_eq!(vector(&Image::new(&made), AT), Some(elements));
        let top = u64::MAX - 7;
        for [begin, end] in [
            [ELSEWHERE + 8, ELSEWHERE],
            [ELSEWHERE, ELSEWHERE + 7],
            [ELSEWHERE + 4, ELSEWHERE + 12],
            [ELSEWHERE, ELSEWHERE + 8 * (MAX_ELEMENTS + 1)],
            [ELSEWHERE, ELSEWHERE + (1 << 20)],
            [0, top],
            [top - 8, top],
        ] {
            made.words(AT, &[begin, end]);
            assert_eq!(vector(&Image::new(&made), AT), None, "{begin:x} {end:x}");
        }
        made.words(AT, &[0, 0]);
        assert_eq!(vector(&Image::new(&made), AT), Some(vec![]), "one that was never filled");
        assert_eq!(vector(&Image::new(&made), u64::MAX), None);
    }

    #[test]
    fn trees() {
        for count in [0, 1, 2, 3, 100, 1000] {
            let values: Vec<_> = (0..count).map(|value: u64| value.to_le_bytes().to_vec()).collect();
            let mut made = Made::default();
            let nodes = made.tree(AT, ELSEWHERE, &values);
            assert_eq!(tree(&Image::new(&made), AT), Some(nodes), "{count}");
        }
    }

    #[test]
    fn trees_that_are_not_sound() {
        let mut sound = Made::default();
        let values = vec![vec![]; 7];
        let nodes = sound.tree(AT, ELSEWHERE, &values);
        let (root, leftmost, rightmost) = (nodes[3], nodes[0], nodes[6]);
        let damages: [(&str, u64, u64); 12] = [
            ("a count too small", AT + 40, 6),
            ("a count too large", AT + 40, 8),
            ("a count beyond all sense", AT + 40, u64::MAX),
            ("no root", AT + 16, 0),
            ("a root that is no address", AT + 16, u64::MAX - 16),
            ("another first node", AT + 24, root),
            ("another last node", AT + 32, leftmost),
            ("a node below itself", leftmost + 16, leftmost),
            ("the root below a leaf", rightmost + 24, root),
            ("the header below a leaf", rightmost + 24, AT + 8),
            ("one child twice", root + 16, nodes[5]),
            ("another parent", nodes[1] + 8, nodes[2]),
        ];
        for (what, at, word) in damages {
            let mut made = sound.clone();
            made.words(at, &[word]);
            assert_eq!(tree(&Image::new(&made), AT), None, "{what}");
        }
        let mut zero = Made::default();
        zero.words(AT, &[0; 6]);
        assert_eq!(tree(&Image::new(&zero), AT), None, "what was never a tree");
    }

    #[test]
    fn what_can_be_reached_in_a_tree_that_is_being_changed() {
        let mut made = Made::default();
        let nodes = made.tree(AT, ELSEWHERE, &vec![vec![]; 7]);
        // The last branch goes round, and the count is old.
        made.words(nodes[6] + 24, &[nodes[3]]).words(AT + 40, &[6]);
        let image = Image::new(&made);
        let mut found = reachable(&image, AT);
        found.sort_unstable();
        assert_eq!((tree(&image, AT), found), (None, nodes));
        assert!(reachable(&image, 0x6666_0000).is_empty());
    }

    #[test]
    fn a_tree_that_is_only_a_long_branch_is_none() {
        let mut made = Made::default();
        let nodes: Vec<u64> = (0..100).map(|index| ELSEWHERE + index * 32).collect();
        for (index, node) in nodes.iter().enumerate() {
            let parent = if index == 0 { AT + 8 } else { nodes[index - 1] };
            made.words(*node, &[0, parent, nodes.get(index + 1).copied().unwrap_or(0), 0]);
        }
        made.words(AT + 8, &[0, nodes[0], nodes[99], nodes[0], 100]);
        assert_eq!(tree(&Image::new(&made), AT), None);
    }
}
