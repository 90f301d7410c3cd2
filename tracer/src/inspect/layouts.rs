//! Where libzmq builds keep what is read from their memory. The offsets are data: `layouts.txt` beside this file.
//!
//! Several builds can fit one version. Two offsets, of the tag of a context and of the tag of a socket, are the
//! fingerprint of a build; where builds share it, checks on values that are known decide (`fingerprint`).

use std::sync::LazyLock;

use crate::target::Version;

/// The table as it is kept.
const TABLE: &str = include_str!("layouts.txt");

/// How a build's `std::string` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strings {
    /// Since GCC 5: pointer, size, and room for 15 bytes.
    Short,
    /// Before: a pointer to the bytes, with the size before them.
    CopyOnWrite,
}

macro_rules! layout {
    (required { $($required:ident)* } optional { $($optional:ident)* }) => {
        /// One column of the table: what its head says of the members, bytes.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(missing_docs)] // CLASS_MEMBER, as in the table.
        pub struct Layout {
            /// Variant of the build.
            pub variant: String,
            /// How strings look.
            pub strings: Strings,
            /// The first release that has it.
            pub since: Version,
            /// The last release that has it.
            pub until: Version,
            $(pub $required: u64,)*
            $(pub $optional: Option<u64>,)*
        }

        impl Layout {
            fn from_column(head: Head, offset: impl Fn(&str) -> Result<Option<u64>, String>) -> Result<Self, String> {
                let Head { variant, strings, since, until } = head;
                Ok(Self {
                    variant, strings, since, until,
                    $($required: offset(stringify!($required))?
                        .ok_or_else(|| format!("{} cannot be `-`", stringify!($required)))?,)*
                    $($optional: offset(stringify!($optional))?,)*
                })
            }

            /// All rows that the table must have.
            #[cfg(test)]
            const ROWS: &'static [&'static str] = &[$(stringify!($required),)* $(stringify!($optional),)*];
        }
    };
}

layout! {
    required {
        ctx_tag ctx_terminating ctx_io_threads ctx_term_mailbox ctx_endpoints ctx_max_sockets
        ctx_io_thread_count ctx_ipv6
        own_owned own_owner
        socket_poll_events socket_pipe_events socket_endpoints socket_inprocs socket_tag socket_mailbox socket_pipes
        socket_rcvmore socket_monitor socket_monitor_events
        xsub_subscriptions trie_root
        opt_sndbuf opt_rcvbuf opt_tos opt_type opt_linger opt_reconnect_ivl opt_reconnect_ivl_max opt_backlog
        opt_maxmsgsize opt_rcvtimeo opt_sndtimeo opt_ipv6 opt_immediate opt_tcp_keepalive opt_tcp_keepalive_cnt
        opt_tcp_keepalive_idle opt_tcp_keepalive_intvl opt_mechanism opt_as_server opt_socket_id opt_conflate
        opt_handshake_ivl
        session_pipe_events session_pipe session_engine session_socket
        pipe_hwm pipe_msgs_read pipe_msgs_written pipe_peer pipe_sink pipe_state pipe_routing_id pipe_conflate
        engine_s engine_handle engine_session engine_socket engine_handshaking engine_mechanism
        engine_metadata engine_greeting
        tcp_listener_events tcp_listener_s tcp_listener_handle tcp_listener_socket
        ipc_listener_events ipc_listener_s ipc_listener_handle ipc_listener_socket
        connecter_events connecter_s connecter_handle connecter_socket
        mailbox_signaler metadata_dict
        msg_size msg_type msg_content conflate_has_msg conflate_front
    }
    optional {
        ctx_max_msgsz ctx_blocky ctx_pid
        socket_thread_safe
        opt_connect_timeout opt_heartbeat_ivl opt_heartbeat_timeout
        udp_s udp_handle udp_session
    }
}

/// What stands over a column.
struct Head {
    variant: String,
    strings: Strings,
    since: Version,
    until: Version,
}

/// `ctx_t::sockets`, behind the tag.
pub const CTX_SOCKETS_BEHIND_TAG: u64 = 8;
/// `object_t::ctx`.
pub const OBJECT_CTX: u64 = 8;
/// `options_t::sndhwm` in a socket.
pub const OPT_SNDHWM: u64 = 24;
/// `options_t::rcvhwm` in a socket.
pub const OPT_RCVHWM: u64 = 28;
/// `options_t::affinity` in a socket.
pub const OPT_AFFINITY: u64 = 32;
/// `options_t::routing_id_size` in a socket, one byte.
pub const OPT_ROUTING_ID_SIZE: u64 = 40;
/// `options_t::routing_id` in a socket.
pub const OPT_ROUTING_ID: u64 = 41;
/// `pipe_t::in_pipe`.
pub const PIPE_IN: u64 = 72;
/// `pipe_t::out_pipe`.
pub const PIPE_OUT: u64 = 80;
/// `signaler_t::r`.
pub const SIGNALER_R: u64 = 4;
/// The base class `i_engine` in an engine, to which sessions point.
pub const ENGINE_INTERFACE: u64 = 16;
/// The base class `i_poll_events` in an I/O thread and in the reaper.
pub const THREAD_EVENTS: u64 = 24;

impl Layout {
    /// `4.3.4`; with the variant where it is not the usual one: `4.3.4-cow`. `version`: what the library says, which
    /// can be any of those that share the layout.
    pub fn name(&self, version: Option<Version>) -> String {
        let version = version.filter(|version| self.fits(*version)).unwrap_or(self.until.min(NEWEST));
        if self.variant == USUAL { version.to_string() } else { format!("{version}-{}", self.variant) }
    }

    /// Whether a release can have it.
    pub fn fits(&self, version: Version) -> bool {
        self.since <= version && version <= self.until
    }

    /// Offset in an engine of the pointer to its encoder: in 4.3.3 and later before that to its mechanism, before 4.3.3
    /// before that to its metadata.
    pub fn engine_encoder(&self) -> u64 {
        let next = if self.since >= Version(4, 3, 3) { self.engine_mechanism } else { self.engine_metadata };
        next - size_of::<u64>() as u64
    }

    /// Offset in a pipe of what the kernel side reads at once.
    ///
    /// A test holds the table to it that these stand side by side.
    pub const fn pipe_counts(&self) -> u64 {
        self.pipe_msgs_read
    }

    /// Whether a socket keeps a pointer to its mailbox; before 4.2 the mailbox itself.
    pub fn has_mailbox_pointer(&self) -> bool {
        self.since >= V4_2_0
    }

    /// Whether `blob_t` is a class of libzmq's own; before 4.2.3 it was a `std::basic_string`.
    pub fn has_blob_class(&self) -> bool {
        self.since >= Version(4, 2, 3)
    }
}

const USUAL: &str = "usual";
/// The newest release; the last column holds for what comes after it, as long as its fingerprint does.
const NEWEST: Version = Version(4, 3, 5);
const V4_1_0: Version = Version(4, 1, 0);
const V4_2_0: Version = Version(4, 2, 0);
const V4_4_0: Version = Version(4, 4, 0);

static LAYOUTS: LazyLock<Vec<Layout>> = LazyLock::new(|| {
    // What it says of a damaged table is what the test of it shows.
    parse(TABLE).unwrap_or_default()
});

/// Every layout, the usual builds first.
pub fn all() -> &'static [Layout] {
    &LAYOUTS
}

/// The layouts that sockets of this release can have, most usual first, each fingerprint once.
pub fn sockets(version: Version) -> Vec<&'static Layout> {
    let mut layouts: Vec<&Layout> = Vec::new();
    for layout in all().iter().filter(|layout| layout.fits(version)) {
        if layouts.iter().all(|known| known.socket_tag != layout.socket_tag) {
            layouts.push(layout);
        }
    }
    layouts
}

/// The layout that [`Layout::name`] calls so.
pub fn named(name: &str) -> Option<&'static Layout> {
    let (version, variant) = name.split_once('-').unwrap_or((name, USUAL));
    let version: Version = version.parse().ok()?;
    all().iter().find(|layout| layout.variant == variant && layout.fits(version))
}

/// Offsets in `zmq_msg_t`: its type, and its content (a short message's bytes or a long one's pointer).
/// The size of a short message lies one byte before the type, the flags one byte behind.
pub fn message(version: Version) -> (u32, u32) {
    let layout = all().iter().find(|layout| layout.fits(version) && (V4_1_0..V4_4_0).contains(&version));
    layout.map_or((0, 0), |layout| (layout.msg_type as u32, layout.msg_content as u32))
}

/// Reads the table.
fn parse(table: &str) -> Result<Vec<Layout>, String> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let mut tables: Vec<Vec<Vec<&str>>> = Vec::new();
    for line in lines {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.first() {
            None => {}
            Some(&"variant") => tables.push(vec![words]),
            Some(_) => tables.last_mut().ok_or("a row before the first variant")?.push(words),
        }
    }
    let mut layouts = Vec::new();
    for rows in &tables {
        let [_, variant, _, strings] = rows[0][..] else { return Err(format!("not a variant: {}", rows[0].join(" "))) };
        let strings = if strings == "cow" { Strings::CopyOnWrite } else { Strings::Short };
        let row = |name: &str| {
            rows.iter().find(|row| row[0] == name).ok_or_else(|| format!("variant {variant} has no row {name}"))
        };
        for column in 1..row("since")?.len() {
            let cell =
                |name: &str| row(name)?.get(column).copied().ok_or_else(|| format!("{variant}: {name} is too short"));
            let version = |name: &str| {
                let text = cell(name)?;
                text.parse().map_err(|_| format!("{variant}: {name} has no version {text}"))
            };
            let head = Head { variant: variant.into(), strings, since: version("since")?, until: version("until")? };
            layouts.push(Layout::from_column(head, |name| match cell(name)? {
                "-" => Ok(None),
                number => number.parse().map(Some).map_err(|_| format!("{variant}: {name} has no number {number}")),
            })?);
        }
    }
    Ok(layouts)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use tracer_common::wire::PipeEnd;

    use super::*;

    #[test]
    fn the_table_is_complete() {
        let layouts = parse(TABLE).expect("the table is sound");
        assert_eq!(all(), layouts);
        assert!(layouts.len() > 50, "{}", layouts.len());
        let rows = TABLE.lines().filter_map(|line| line.split_whitespace().next());
        for row in rows.filter(|row| !row.starts_with('#') && !["variant", "since", "until"].contains(row)) {
            assert!(Layout::ROWS.contains(&row), "nobody reads the row {row}");
        }
    }

    #[test]
    fn a_pipe_keeps_its_counts_as_the_kernel_side_reads_them() {
        for layout in all() {
            let written = layout.pipe_counts() + offset_of!(PipeEnd, written) as u64;
            let peer = layout.pipe_counts() + offset_of!(PipeEnd, peer) as u64;
            let sink = layout.pipe_counts() + offset_of!(PipeEnd, sink) as u64;
            let found = [layout.pipe_msgs_written, layout.pipe_peer, layout.pipe_sink];
            assert_eq!(found, [written, peer, sink], "{}", layout.variant);
        }
    }

    #[test]
    fn a_damaged_table_is_refused_with_the_place() {
        for (damage, part) in [("ctx_tag", "ctx_pag"), ("1120", "x"), ("since", "sense"), ("4.1.8", "4.1")] {
            assert!(parse(&TABLE.replace(damage, part)).is_err(), "{damage}");
        }
        assert!(parse("ctx_tag 1\n").is_err());
    }

    #[test]
    fn every_release_has_a_layout_and_fits_the_kernel_sides_table() {
        for version in ["4.1.0", "4.1.3", "4.1.8", "4.2.0", "4.2.5", "4.3.0", "4.3.1", "4.3.2", "4.3.4", "4.3.5"] {
            let version: Version = version.parse().expect("a version");
            let tags: Vec<_> = sockets(version).iter().map(|layout| layout.socket_tag).collect();
            assert!((3..=5).contains(&tags.len()), "{version}: {tags:?}");
            assert_eq!(
                all().iter().find(|layout| layout.fits(version)).map(|layout| layout.variant.as_str()),
                Some(USUAL)
            );
        }
        assert_eq!(sockets(Version(3, 2, 5)).len(), 0);
        assert_eq!(message(Version(3, 2, 5)), (0, 0));
        assert_eq!(message(Version(4, 1, 6)), (62, 16));
        assert_eq!(message(Version(4, 3, 4)), (42, 8));
    }

    #[test]
    fn layouts_are_named_by_the_librarys_own_version() {
        let layout = sockets(Version(4, 2, 5))[0];
        assert_eq!(layout.name(Some(Version(4, 2, 4))), "4.2.4");
        assert_eq!(layout.name(None), "4.2.5");
        let cow = all().iter().find(|layout| layout.variant == "cow" && layout.fits(NEWEST)).expect("wheels have it");
        assert_eq!(cow.name(None), "4.3.5-cow");
        for layout in all() {
            assert_eq!(named(&layout.name(None)), Some(layout));
        }
        assert_eq!(named("4.3.5-other"), None);
    }
}
