//! What epoll fds watch, and which of it is libzmq's.

use super::{Subject, image::Object, prefetch};

/// Most fds of one epoll that are taken in.
const MAX_WATCHED: usize = 1 << 20;

/// A fd that an epoll watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Watched {
    /// The fd.
    pub fd: i32,
    /// What its owner registered with it: libzmq, the address of its poll entry.
    pub data: u64,
}

/// `/proc/PID/fdinfo/FD` of an epoll: lines `tfd: N events: HEX data: HEX ...` (`fs/eventpoll.c`).
pub fn parse_fdinfo(text: &str) -> Vec<Watched> {
    let watched = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let data = words.skip_while(|word| *word != "data:").nth(1)?;
        Some(Watched { fd, data: u64::from_str_radix(data, 16).ok()? })
    };
    text.lines().filter_map(watched).take(MAX_WATCHED).collect()
}

/// A `poll_entry_t` of libzmq: `{int fd @0; epoll_event @4; i_poll_events *events @16}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// Where it is.
    pub address: u64,
    /// The fd that it watches.
    pub fd: i32,
    /// The base class `i_poll_events` of the object that is told of its events.
    pub events: u64,
}

impl Entry {
    /// The entry at an address, if it is one: it then points to itself, and its object's virtual functions lie in a
    /// file.
    pub fn read(subject: &Subject<'_>, address: u64) -> Option<Self> {
        let entry: Object = subject.image.object(address, 24)?;
        let (fd, itself, events) = (entry.i32(0)?, entry.u64(8)?, entry.u64(16)?);
        let is_entry = fd >= 0 && itself == address && subject.is_in_file(subject.image.u64(events)?);
        is_entry.then_some(Self { address, fd, events })
    }
}

/// All of libzmq's entries, sorted.
pub fn entries(subject: &Subject<'_>) -> Vec<Entry> {
    prefetch::entries(subject.image, subject.watched);
    let entry = |watched: &Watched| Entry::read(subject, watched.data).filter(|entry| entry.fd == watched.fd);
    let mut entries: Vec<_> = subject.watched.iter().filter_map(entry).collect();
    entries.sort_unstable();
    entries.dedup();
    entries
}

#[cfg(test)]
mod tests {
    use super::{
        super::{FileMapping, Subject, image::Image, made::Made},
        *,
    };

    #[test]
    fn entries_point_to_themselves_and_to_objects_with_virtual_functions() {
        const ENTRY: u64 = 0x1_0ff0;
        const OBJECT: u64 = 0x3_0000;
        let files = [FileMapping { start: 0x40_0000, end: 0x41_0000, library: Some(0) }];
        let read = |entry: [u64; 3], table: u64, watched: Watched| {
            let mut made = Made::default();
            made.words(ENTRY, &entry).words(OBJECT, &[table]);
            let image = Image::new(&made);
            let watched = [watched, watched];
            let (files, layouts) = (&files, &[]);
            entries(&Subject { own_pid: 1, image: &image, watched: &watched, files, versions: &[], layouts })
        };
        let watched = Watched { fd: 7, data: ENTRY };
        // The fd, and one behind it half a word of the epoll_event.
        let sound = [7 | 1 << 32, ENTRY, OBJECT];
        let expected = Entry { address: ENTRY, fd: 7, events: OBJECT };
        assert_eq!(read(sound, 0x40_1000, watched), [expected], "once, however many epolls have it");
        for (what, entry, table, watched) in [
            ("another fd", sound, 0x40_1000, Watched { fd: 8, ..watched }),
            ("a negative fd", [u64::MAX, ENTRY, OBJECT], 0x40_1000, Watched { fd: -1, ..watched }),
            ("another address", [7, ENTRY + 8, OBJECT], 0x40_1000, watched),
            ("no object", [7, ENTRY, 0], 0x40_1000, watched),
            ("an object that is no address", [7, ENTRY, u64::MAX], 0x40_1000, watched),
            ("a table before the file", sound, 0x3f_ffff, watched),
            ("a table behind the file", sound, 0x41_0000, watched),
            ("an entry that is no address", sound, 0x40_1000, Watched { data: u64::MAX - 4, ..watched }),
        ] {
            assert_eq!(read(entry, table, watched), [], "{what}");
        }
    }

    #[test]
    fn fdinfo_is_read_line_by_line() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t1046\ntfd:        5 events:       19 data:     \
                    7f3a2c001200  pos:0 ino:3f sdev:f\ntfd:       12 events: 8000001d data: ffffffffffffffff pos:0\n";
        let expected = [Watched { fd: 5, data: 0x7f3a_2c00_1200 }, Watched { fd: 12, data: u64::MAX }];
        assert_eq!(parse_fdinfo(text), expected);
        for damaged in ["tfd:", "tfd: x data: 1", "tfd: 5 data:", "tfd: 5 events: 1", "tfd: 5 data: zz"] {
            assert_eq!(parse_fdinfo(damaged), [], "{damaged}");
        }
    }
}
