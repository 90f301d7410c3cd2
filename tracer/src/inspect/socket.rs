//! What a socket says of itself.

use bytes::Bytes;
use tracer_common::record::{CLOSED_SOCKET_TAG, SOCKET_TAG, is_socket_tag};

use super::{
    Detail,
    context::Reader,
    image::{Members, at},
    layouts::{
        self, Layout, OBJECT_CTX, OPT_AFFINITY, OPT_RCVHWM, OPT_ROUTING_ID, OPT_ROUTING_ID_SIZE, OPT_SNDHWM, SIGNALER_R,
    },
};
use crate::{
    constants::{SUB, XSUB},
    event::{Monitor, Options, SocketState},
    target::{Memory, Version},
};

/// Identity of a live socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// `ZMQ_REQ`, ...
    pub socket_type: u8,
    /// libzmq's own number of the socket, unique in one libzmq copy and in creation order.
    pub id: Option<u32>,
}

/// The highest socket type of 4.3.5 with drafts, `ZMQ_CHANNEL`.
pub const MAX_TYPE: u8 = 20;

/// Reads the socket at `handle`; `None` when there is none, or its layout is not known.
pub fn identity(memory: &Memory, version: Version, handle: u64) -> Option<Identity> {
    layouts::sockets(version).into_iter().find_map(|layout| {
        let word = |offset: u64| memory.read_u32(handle.checked_add(offset)?).ok();
        if word(layout.socket_tag)? != SOCKET_TAG {
            return None;
        }
        // `int8_t` or `int`, by version: the low byte is the type in both.
        let socket_type = word(layout.opt_type)? as u8;
        if socket_type > MAX_TYPE {
            return None;
        }
        let id = word(layout.opt_socket_id);
        // A socket that was closed and freed meanwhile has lost its tag.
        (word(layout.socket_tag)? == SOCKET_TAG).then_some(Identity { socket_type, id })
    })
}

impl Reader<'_> {
    /// The socket at `handle`, without its connections; `None` when there is none.
    pub fn socket(&self, handle: u64) -> Option<SocketState> {
        let (layout, image) = (self.layout, self.subject.image);
        let object = image.members(handle);
        let tag = object.u32(layout.socket_tag)?;
        let socket_type = object.u8(layout.opt_type)?;
        let is_socket = is_socket_tag(tag) && object.u64(OBJECT_CTX)? == self.context && socket_type <= MAX_TYPE;
        if !is_socket {
            return None;
        }
        image.keep(size_of::<SocketState>())?;
        let mut state = SocketState {
            handle,
            socket_type: Some(i32::from(socket_type)),
            id: object.u32(layout.opt_socket_id),
            mailbox_fd: self.mailbox_fd(&object),
            closing: tag == CLOSED_SOCKET_TAG,
            ..SocketState::default()
        };
        // Where peers say who they are, queues are counted in another way.
        state.options.mechanism = object.i32(layout.opt_mechanism);
        if self.detail >= Detail::Names {
            state.options = options(layout, &object);
            state.monitor = self.monitor(&object);
        }
        if self.detail == Detail::All && matches!(i32::from(socket_type), SUB | XSUB) {
            state.subscriptions = self.subscriptions(at(handle, layout.xsub_subscriptions));
        }
        Some(state)
    }

    /// What a blocked call polls. Thread-safe sockets wait for a condition variable instead.
    fn mailbox_fd(&self, socket: &Members<'_>) -> Option<i32> {
        let layout = self.layout;
        if layout.socket_thread_safe.and_then(|offset| socket.bool(offset)) == Some(true) {
            return None;
        }
        let behind_mailbox = layout.mailbox_signaler + SIGNALER_R;
        let fd = if layout.has_mailbox_pointer() {
            let mailbox = socket.u64(layout.socket_mailbox)?;
            self.subject.image.u32(at(mailbox, behind_mailbox))? as i32
        } else {
            socket.i32(layout.socket_mailbox + behind_mailbox)?
        };
        (fd >= 0).then_some(fd)
    }

    fn monitor(&self, socket: &Members<'_>) -> Option<Monitor> {
        let handle = socket.u64(self.layout.socket_monitor)?;
        let is_ours = self.subject.image.u64(at(handle, OBJECT_CTX)) == Some(self.context);
        // `int` or `int64_t`, by release; all events fit into the half word.
        let events = socket.u32(self.layout.socket_monitor_events).map_or(0, u64::from);
        is_ours.then_some(Monitor { handle, events })
    }
}

fn options(layout: &Layout, socket: &Members<'_>) -> Options {
    let i32 = |offset: u64| socket.i32(offset);
    let optional = |offset: Option<u64>| offset.and_then(|offset| socket.i32(offset));
    let routing_id_size = socket.u8(OPT_ROUTING_ID_SIZE).map(u64::from);
    Options {
        sndhwm: i32(OPT_SNDHWM),
        rcvhwm: i32(OPT_RCVHWM),
        linger: i32(layout.opt_linger),
        sndtimeo: i32(layout.opt_sndtimeo),
        rcvtimeo: i32(layout.opt_rcvtimeo),
        reconnect_ivl: i32(layout.opt_reconnect_ivl),
        reconnect_ivl_max: i32(layout.opt_reconnect_ivl_max),
        immediate: i32(layout.opt_immediate).map(|value| value != 0),
        ipv6: socket.bool(layout.opt_ipv6),
        conflate: socket.bool(layout.opt_conflate),
        tcp_keepalive: i32(layout.opt_tcp_keepalive),
        tcp_keepalive_cnt: i32(layout.opt_tcp_keepalive_cnt),
        tcp_keepalive_idle: i32(layout.opt_tcp_keepalive_idle),
        tcp_keepalive_intvl: i32(layout.opt_tcp_keepalive_intvl),
        heartbeat_ivl: optional(layout.opt_heartbeat_ivl),
        heartbeat_timeout: optional(layout.opt_heartbeat_timeout),
        handshake_ivl: i32(layout.opt_handshake_ivl),
        connect_timeout: optional(layout.opt_connect_timeout),
        mechanism: i32(layout.opt_mechanism),
        as_server: i32(layout.opt_as_server).map(|value| value != 0),
        routing_id: routing_id_size.and_then(|size| socket.bytes(OPT_ROUTING_ID, size)).map(Bytes::from),
        maxmsgsize: socket.u64(layout.opt_maxmsgsize).map(|bytes| bytes as i64),
        backlog: i32(layout.opt_backlog),
        affinity: socket.u64(OPT_AFFINITY),
        sndbuf: i32(layout.opt_sndbuf),
        rcvbuf: i32(layout.opt_rcvbuf),
        tos: i32(layout.opt_tos),
    }
}
