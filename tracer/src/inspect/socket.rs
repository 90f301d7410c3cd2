//! What a socket says of itself.

use tracer_common::record::SOCKET_TAG;

use super::layouts;
use crate::target::{Memory, Version};

/// Identity of a live socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// `ZMQ_REQ`, ...
    pub socket_type: u8,
    /// libzmq's own number of the socket, unique in one libzmq copy and in creation order.
    pub id: Option<u32>,
}

/// The highest socket type of 4.3.5 with drafts, `ZMQ_CHANNEL`.
const MAX_TYPE: u8 = 20;

/// Reads the socket at `handle`; `None` when there is none, or its layout is not known.
pub fn identity(memory: &Memory, version: Version, handle: u64) -> Option<Identity> {
    layouts::sockets(version).find_map(|layout| {
        let word = |offset: u32| memory.read_u32(handle.checked_add(u64::from(offset))?).ok();
        if word(layout.tag)? != SOCKET_TAG {
            return None;
        }
        // `int8_t` or `int`, by version: the low byte is the type in both.
        let socket_type = word(layout.socket_type)? as u8;
        if socket_type > MAX_TYPE {
            return None;
        }
        let id = layout.socket_id.and_then(word);
        // A socket that was closed and freed meanwhile has lost its tag.
        (word(layout.tag)? == SOCKET_TAG).then_some(Identity { socket_type, id })
    })
}
