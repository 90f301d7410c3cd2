//! libzmq's numbers by name: `include/zmq.h` and `src/zmq_draft.h` of 4.1 to 4.3.5.

use std::borrow::Cow;

/// How the value of an option is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// `int`.
    Int,
    /// `int64_t`.
    Int64,
    /// `uint64_t`.
    Uint64,
    /// Text or bytes.
    Bytes,
    /// A secret: only its length is shown.
    Secret,
}

use OptionKind::{Bytes, Int, Int64, Secret, Uint64};

/// Socket types, by number, as in the names of sockets.
const SOCKET_TYPES: [&str; 21] = [
    "PAIR", "PUB", "SUB", "REQ", "REP", "DEALER", "ROUTER", "PULL", "PUSH", "XPUB", "XSUB", "STREAM", "SERVER",
    "CLIENT", "RADIO", "DISH", "GATHER", "SCATTER", "DGRAM", "PEER", "CHANNEL",
];

// Those of which something is known that others do not have.
/// `ZMQ_SUB`.
pub const SUB: i32 = 2;
/// `ZMQ_ROUTER`.
pub const ROUTER: i32 = 6;
/// `ZMQ_XSUB`.
pub const XSUB: i32 = 10;
/// `ZMQ_STREAM`.
pub const STREAM: i32 = 11;
/// `ZMQ_DISH`.
pub const DISH: i32 = 15;
/// `ZMQ_DGRAM`.
pub const DGRAM: i32 = 18;

/// Name of a socket type: `REQ`.
pub fn socket_type(number: i32) -> Option<&'static str> {
    SOCKET_TYPES.get(usize::try_from(number).ok()?).copied()
}

#[rustfmt::skip]
const SOCKET_OPTIONS: &[(i32, &str, OptionKind)] = &[
    (1, "ZMQ_HWM", Uint64), // 2.x
    (4, "ZMQ_AFFINITY", Uint64), (5, "ZMQ_ROUTING_ID", Bytes), (6, "ZMQ_SUBSCRIBE", Bytes),
    (7, "ZMQ_UNSUBSCRIBE", Bytes), (8, "ZMQ_RATE", Int), (9, "ZMQ_RECOVERY_IVL", Int), (11, "ZMQ_SNDBUF", Int),
    (12, "ZMQ_RCVBUF", Int), (13, "ZMQ_RCVMORE", Int), (14, "ZMQ_FD", Int), (15, "ZMQ_EVENTS", Int),
    (16, "ZMQ_TYPE", Int), (17, "ZMQ_LINGER", Int), (18, "ZMQ_RECONNECT_IVL", Int), (19, "ZMQ_BACKLOG", Int),
    (21, "ZMQ_RECONNECT_IVL_MAX", Int), (22, "ZMQ_MAXMSGSIZE", Int64), (23, "ZMQ_SNDHWM", Int),
    (24, "ZMQ_RCVHWM", Int), (25, "ZMQ_MULTICAST_HOPS", Int), (27, "ZMQ_RCVTIMEO", Int), (28, "ZMQ_SNDTIMEO", Int),
    (31, "ZMQ_IPV4ONLY", Int), (32, "ZMQ_LAST_ENDPOINT", Bytes), (33, "ZMQ_ROUTER_MANDATORY", Int),
    (34, "ZMQ_TCP_KEEPALIVE", Int), (35, "ZMQ_TCP_KEEPALIVE_CNT", Int), (36, "ZMQ_TCP_KEEPALIVE_IDLE", Int),
    (37, "ZMQ_TCP_KEEPALIVE_INTVL", Int), (38, "ZMQ_TCP_ACCEPT_FILTER", Bytes), (39, "ZMQ_IMMEDIATE", Int),
    (40, "ZMQ_XPUB_VERBOSE", Int), (41, "ZMQ_ROUTER_RAW", Int), (42, "ZMQ_IPV6", Int), (43, "ZMQ_MECHANISM", Int),
    (44, "ZMQ_PLAIN_SERVER", Int), (45, "ZMQ_PLAIN_USERNAME", Bytes), (46, "ZMQ_PLAIN_PASSWORD", Secret),
    (47, "ZMQ_CURVE_SERVER", Int), (48, "ZMQ_CURVE_PUBLICKEY", Bytes), (49, "ZMQ_CURVE_SECRETKEY", Secret),
    (50, "ZMQ_CURVE_SERVERKEY", Bytes), (51, "ZMQ_PROBE_ROUTER", Int), (52, "ZMQ_REQ_CORRELATE", Int),
    (53, "ZMQ_REQ_RELAXED", Int), (54, "ZMQ_CONFLATE", Int), (55, "ZMQ_ZAP_DOMAIN", Bytes),
    (56, "ZMQ_ROUTER_HANDOVER", Int), (57, "ZMQ_TOS", Int), (58, "ZMQ_IPC_FILTER_PID", Int),
    (59, "ZMQ_IPC_FILTER_UID", Int), (60, "ZMQ_IPC_FILTER_GID", Int), (61, "ZMQ_CONNECT_ROUTING_ID", Bytes),
    (62, "ZMQ_GSSAPI_SERVER", Int), (63, "ZMQ_GSSAPI_PRINCIPAL", Bytes), (64, "ZMQ_GSSAPI_SERVICE_PRINCIPAL", Bytes),
    (65, "ZMQ_GSSAPI_PLAINTEXT", Int), (66, "ZMQ_HANDSHAKE_IVL", Int), (68, "ZMQ_SOCKS_PROXY", Bytes),
    (69, "ZMQ_XPUB_NODROP", Int), (70, "ZMQ_BLOCKY", Int), (71, "ZMQ_XPUB_MANUAL", Int),
    (72, "ZMQ_XPUB_WELCOME_MSG", Bytes), (73, "ZMQ_STREAM_NOTIFY", Int), (74, "ZMQ_INVERT_MATCHING", Int),
    (75, "ZMQ_HEARTBEAT_IVL", Int), (76, "ZMQ_HEARTBEAT_TTL", Int), (77, "ZMQ_HEARTBEAT_TIMEOUT", Int),
    (78, "ZMQ_XPUB_VERBOSER", Int), (79, "ZMQ_CONNECT_TIMEOUT", Int), (80, "ZMQ_TCP_MAXRT", Int),
    (81, "ZMQ_THREAD_SAFE", Int), (84, "ZMQ_MULTICAST_MAXTPDU", Int), (85, "ZMQ_VMCI_BUFFER_SIZE", Uint64),
    (86, "ZMQ_VMCI_BUFFER_MIN_SIZE", Uint64), (87, "ZMQ_VMCI_BUFFER_MAX_SIZE", Uint64),
    (88, "ZMQ_VMCI_CONNECT_TIMEOUT", Int), (89, "ZMQ_USE_FD", Int), (90, "ZMQ_GSSAPI_PRINCIPAL_NAMETYPE", Int),
    (91, "ZMQ_GSSAPI_SERVICE_PRINCIPAL_NAMETYPE", Int), (92, "ZMQ_BINDTODEVICE", Bytes),
    (93, "ZMQ_ZAP_ENFORCE_DOMAIN", Int), (94, "ZMQ_LOOPBACK_FASTPATH", Int), (95, "ZMQ_METADATA", Bytes),
    (96, "ZMQ_MULTICAST_LOOP", Int), (97, "ZMQ_ROUTER_NOTIFY", Int), (98, "ZMQ_XPUB_MANUAL_LAST_VALUE", Int),
    (99, "ZMQ_SOCKS_USERNAME", Bytes), (100, "ZMQ_SOCKS_PASSWORD", Secret), (101, "ZMQ_IN_BATCH_SIZE", Int),
    (102, "ZMQ_OUT_BATCH_SIZE", Int), (103, "ZMQ_WSS_KEY_PEM", Secret), (104, "ZMQ_WSS_CERT_PEM", Bytes),
    (105, "ZMQ_WSS_TRUST_PEM", Bytes), (106, "ZMQ_WSS_HOSTNAME", Bytes), (107, "ZMQ_WSS_TRUST_SYSTEM", Int),
    (108, "ZMQ_ONLY_FIRST_SUBSCRIBE", Int), (109, "ZMQ_RECONNECT_STOP", Int), (110, "ZMQ_HELLO_MSG", Bytes),
    (111, "ZMQ_DISCONNECT_MSG", Bytes), (112, "ZMQ_PRIORITY", Int), (113, "ZMQ_BUSY_POLL", Int),
    (114, "ZMQ_HICCUP_MSG", Bytes), (115, "ZMQ_XSUB_VERBOSE_UNSUBSCRIBE", Int), (116, "ZMQ_TOPICS_COUNT", Int),
    (117, "ZMQ_NORM_MODE", Int), (118, "ZMQ_NORM_UNICAST_NACK", Int), (119, "ZMQ_NORM_BUFFER_SIZE", Int),
    (120, "ZMQ_NORM_SEGMENT_SIZE", Int), (121, "ZMQ_NORM_BLOCK_SIZE", Int), (122, "ZMQ_NORM_NUM_PARITY", Int),
    (123, "ZMQ_NORM_NUM_AUTOPARITY", Int), (124, "ZMQ_NORM_PUSH", Int),
];

/// Name and kind of a socket option.
pub fn socket_option(number: i32) -> Option<(&'static str, OptionKind)> {
    SOCKET_OPTIONS.iter().find(|(option, ..)| *option == number).map(|(_, name, kind)| (*name, *kind))
}

const CONTEXT_OPTIONS: &[(i32, &str)] = &[
    (1, "ZMQ_IO_THREADS"),
    (2, "ZMQ_MAX_SOCKETS"),
    (3, "ZMQ_SOCKET_LIMIT"),
    (4, "ZMQ_THREAD_SCHED_POLICY"),
    (5, "ZMQ_MAX_MSGSZ"),
    (6, "ZMQ_MSG_T_SIZE"),
    (7, "ZMQ_THREAD_AFFINITY_CPU_ADD"),
    (8, "ZMQ_THREAD_AFFINITY_CPU_REMOVE"),
    (9, "ZMQ_THREAD_NAME_PREFIX"),
    (10, "ZMQ_ZERO_COPY_RECV"),
    (42, "ZMQ_IPV6"),
    (70, "ZMQ_BLOCKY"),
];

/// Name of a context option, or its number.
pub fn context_option(number: i32) -> Cow<'static, str> {
    by_number(CONTEXT_OPTIONS, number)
}

const MESSAGE_PROPERTIES: &[(i32, &str)] = &[(1, "ZMQ_MORE"), (2, "ZMQ_SRCFD"), (3, "ZMQ_SHARED")];

/// Name of a message property, or its number.
pub fn message_property(number: i32) -> Cow<'static, str> {
    by_number(MESSAGE_PROPERTIES, number)
}

fn by_number(table: &[(i32, &'static str)], number: i32) -> Cow<'static, str> {
    table
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| Cow::Owned(number.to_string()), |(_, name)| Cow::Borrowed(*name))
}

/// Flags of sends and receives.
pub const FLAGS: &[(u64, &str)] = &[(1, "ZMQ_DONTWAIT"), (2, "ZMQ_SNDMORE")];

/// Events of poll items.
pub const POLL_EVENTS: &[(u64, &str)] =
    &[(1, "ZMQ_POLLIN"), (2, "ZMQ_POLLOUT"), (4, "ZMQ_POLLERR"), (8, "ZMQ_POLLPRI")];

/// Events of socket monitors.
pub const MONITOR_EVENTS: &[(u64, &str)] = &[
    (0x0001, "ZMQ_EVENT_CONNECTED"),
    (0x0002, "ZMQ_EVENT_CONNECT_DELAYED"),
    (0x0004, "ZMQ_EVENT_CONNECT_RETRIED"),
    (0x0008, "ZMQ_EVENT_LISTENING"),
    (0x0010, "ZMQ_EVENT_BIND_FAILED"),
    (0x0020, "ZMQ_EVENT_ACCEPTED"),
    (0x0040, "ZMQ_EVENT_ACCEPT_FAILED"),
    (0x0080, "ZMQ_EVENT_CLOSED"),
    (0x0100, "ZMQ_EVENT_CLOSE_FAILED"),
    (0x0200, "ZMQ_EVENT_DISCONNECTED"),
    (0x0400, "ZMQ_EVENT_MONITOR_STOPPED"),
    (0x0800, "ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL"),
    (0x1000, "ZMQ_EVENT_HANDSHAKE_SUCCEEDED"),
    (0x2000, "ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL"),
    (0x4000, "ZMQ_EVENT_HANDSHAKE_FAILED_AUTH"),
    (0x10000, "ZMQ_EVENT_PIPES_STATS"),
];

/// `A|B|0x80`, or `0`.
pub fn flags(table: &[(u64, &'static str)], value: u64) -> String {
    let mut unknown = value;
    let mut text = String::new();
    for (bit, name) in table {
        if value & bit != 0 {
            unknown &= !bit;
            push_flag(&mut text, name);
        }
    }
    if unknown != 0 {
        push_flag(&mut text, &format!("{unknown:#x}"));
    }
    if text.is_empty() { "0".into() } else { text }
}

fn push_flag(text: &mut String, name: &str) {
    if !text.is_empty() {
        text.push('|');
    }
    text.push_str(name);
}

/// libzmq's own error numbers, `ZMQ_HAUSNUMERO` + n, with the texts of `src/err.cpp`.
const ZMQ_ERRORS: &[(i32, &str, &str)] = &[
    (156_384_763, "EFSM", "Operation cannot be accomplished in current state"),
    (156_384_764, "ENOCOMPATPROTO", "The protocol is not compatible with the socket type"),
    (156_384_765, "ETERM", "Context was terminated"),
    (156_384_766, "EMTHREAD", "No thread available"),
];

macro_rules! errno_names {
    ($($name:ident)*) => {
        const SYSTEM_ERRORS: &[(i32, &str)] = &[$((libc::$name, stringify!($name))),*];
    };
}

errno_names! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST
    EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM
    ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP EPROTO EOVERFLOW EILSEQ EUSERS ENOTSOCK EDESTADDRREQ
    EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT ENOTSUP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE
    EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN
    ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE ECANCELED
}

/// Name of an error number: `EAGAIN`, or the number. 95 is ENOTSUP, as libzmq's manual has it.
pub fn errno_name(errno: i32) -> Cow<'static, str> {
    let own = ZMQ_ERRORS.iter().find(|(number, ..)| *number == errno).map(|(_, name, _)| *name);
    own.map_or_else(|| by_number(SYSTEM_ERRORS, errno), Cow::Borrowed)
}

/// What an error number means: `Resource temporarily unavailable`.
pub fn errno_text(errno: i32) -> String {
    if let Some((.., text)) = ZMQ_ERRORS.iter().find(|(number, ..)| *number == errno) {
        return (*text).into();
    }
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    // std appends " (os error N)".
    text.rsplit_once(" (os error").map_or(text.clone(), |(text, _)| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_and_unique() {
        assert!(SOCKET_OPTIONS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn socket_types_have_their_numbers() {
        let named = [SUB, ROUTER, XSUB, STREAM, DISH, DGRAM].map(|number| socket_type(number).unwrap_or_default());
        assert_eq!(named, ["SUB", "ROUTER", "XSUB", "STREAM", "DISH", "DGRAM"]);
    }

    #[test]
    fn flags_by_name_and_rest_by_number() {
        assert_eq!(flags(FLAGS, 0), "0");
        assert_eq!(flags(FLAGS, 3), "ZMQ_DONTWAIT|ZMQ_SNDMORE");
        assert_eq!(flags(FLAGS, 0x81), "ZMQ_DONTWAIT|0x80");
    }

    #[test]
    fn errors_by_name_and_text() {
        assert_eq!(errno_name(libc::EAGAIN), "EAGAIN");
        assert_eq!(errno_text(libc::EAGAIN), "Resource temporarily unavailable");
        assert_eq!(errno_name(156_384_763), "EFSM");
        assert_eq!(errno_text(156_384_765), "Context was terminated");
        assert_eq!(errno_name(9999), "9999");
    }
}
