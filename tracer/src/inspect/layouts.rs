//! Where libzmq builds keep what is read from their memory: data, one row a group of releases, taken
//! from the debug information of the release headers and checked on live processes (x86_64, glibc).
//!
//! Several rows can fit one version; the tag of a live socket decides which.

use crate::target::Version;

/// Offsets in `zmq::socket_base_t`, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLayout {
    /// The tag [`SOCKET_TAG`](tracer_common::record::SOCKET_TAG).
    pub tag: u32,
    /// `options.type`, an `int8_t` or an `int` by release; the low byte is the type in both.
    pub socket_type: u32,
    /// `options.socket_id`, an `int`; `None` where a build variant moves it by an unknown amount.
    pub socket_id: Option<u32>,
    /// `rcvmore`, a `bool`.
    pub rcvmore: u32,
}

/// First release, first release that it no longer holds for, layout.
type Row = (Version, Version, SocketLayout);

const fn row(from: Version, before: Version, tag: u32, socket_type: u32, socket_id: Option<u32>) -> Row {
    // `rcvmore` follows the tag at a distance that no build option changes.
    let rcvmore = tag + if from.1 == 1 { 220 } else { 68 };
    (from, before, SocketLayout { tag, socket_type, socket_id, rcvmore })
}

const V4_1_0: Version = Version(4, 1, 0);
const V4_2_0: Version = Version(4, 2, 0);
const V4_2_3: Version = Version(4, 2, 3);
const V4_2_4: Version = Version(4, 2, 4);
const V4_3_0: Version = Version(4, 3, 0);
const V4_3_2: Version = Version(4, 3, 2);
const V4_3_3: Version = Version(4, 3, 3);
const V4_3_4: Version = Version(4, 3, 4);
const V4_3_5: Version = Version(4, 3, 5);
const V4_4_0: Version = Version(4, 4, 0);

#[rustfmt::skip]
const SOCKETS: &[Row] = &[
    // The usual build.
    row(V4_1_0, V4_2_0, 1120, 324, Some(868)),
    row(V4_2_0, V4_2_3, 1152, 328, Some(884)),
    row(V4_2_3, V4_2_4, 1200, 328, Some(884)),
    row(V4_2_4, V4_3_0, 1248, 328, Some(884)),
    row(V4_3_0, V4_3_2, 1216, 328, Some(884)),
    row(V4_3_2, V4_3_3, 1304, 328, Some(948)),
    row(V4_3_3, V4_3_4, 1552, 328, Some(948)),
    row(V4_3_4, V4_3_5, 1560, 332, Some(956)),
    row(V4_3_5, V4_4_0, 1624, 332, Some(956)),
    // The std::string from before GCC 5: manylinux wheels, CentOS 7.
    row(V4_1_0, V4_2_0,  952, 324, Some(724)),
    row(V4_2_0, V4_2_3,  984, 328, Some(740)),
    row(V4_2_3, V4_2_4, 1008, 328, Some(740)),
    row(V4_2_4, V4_3_0, 1064, 328, Some(748)), // built as C++98
    row(V4_2_4, V4_3_0, 1056, 328, None),
    row(V4_3_0, V4_3_2, 1056, 328, Some(748)), // built as C++98
    row(V4_3_0, V4_3_2, 1048, 328, Some(740)),
    row(V4_3_2, V4_3_3, 1088, 328, Some(756)),
    row(V4_3_3, V4_3_4, 1240, 328, Some(756)),
    row(V4_3_4, V4_3_5, 1248, 332, Some(764)),
    row(V4_3_5, V4_4_0, 1312, 332, Some(764)),
    // No SO_PEERCRED.
    row(V4_1_0, V4_2_0,  968, 324, None),
    row(V4_2_0, V4_2_3, 1000, 328, None),
    row(V4_2_3, V4_2_4, 1056, 328, None),
    row(V4_2_4, V4_3_0, 1104, 328, None),
    row(V4_3_0, V4_3_2, 1072, 328, None),
    row(V4_3_2, V4_3_3, 1160, 328, None),
    row(V4_3_3, V4_3_4, 1408, 328, None),
    row(V4_3_4, V4_3_5, 1416, 332, None),
    row(V4_3_5, V4_4_0, 1480, 332, None),
];

/// The layouts that sockets of this release can have, most usual first.
pub fn sockets(version: Version) -> impl Iterator<Item = SocketLayout> {
    SOCKETS.iter().filter(move |(from, before, _)| *from <= version && version < *before).map(|(_, _, layout)| *layout)
}

/// Offsets in `zmq_msg_t`: its type, and its content (a short message's bytes or a long one's pointer).
/// The size of a short message lies one byte before the type, the flags one byte behind.
pub fn message(version: Version) -> (u32, u32) {
    match version {
        version if version < V4_1_0 || version >= V4_4_0 => (0, 0),
        version if version < V4_2_0 => (62, 16),
        _ => (42, 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_release_has_a_layout_and_fits_the_kernel_sides_table() {
        for version in [V4_1_0, V4_2_0, Version(4, 2, 5), V4_3_0, Version(4, 3, 1), V4_3_2, V4_3_4, V4_3_5] {
            let tags: Vec<_> = sockets(version).map(|layout| layout.tag).collect();
            let distinct: std::collections::BTreeSet<_> = tags.iter().collect();
            assert!((3..=4).contains(&tags.len()) && distinct.len() == tags.len(), "{version}: {tags:?}");
        }
        assert_eq!(sockets(Version(3, 2, 5)).count(), 0);
        assert_eq!(message(Version(3, 2, 5)), (0, 0));
    }
}
