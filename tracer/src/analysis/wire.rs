//! Connections seen by what goes over them alone: who speaks ZMTP, and how much. Needs nothing of libzmq.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use super::narrow::Narrow;
use crate::event::{Change, Command, CommandContent, Direction, Event, Frames, Inside, Stream, Wire};

/// Ends that are remembered. Beyond it those are forgotten that were closed, then those that have been silent longest.
const MAX_ENDS: usize = 1 << 16;
/// Ends that are forgotten at a time, so that it need not be thought about for each new one.
const EVICTED_AT_ONCE: usize = MAX_ENDS / 16;

const EPIPE: i64 = 32;
const ECONNRESET: i64 = 104;

/// A process's end of a connection.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Process.
    pub pid: u32,
    /// Inode of its socket, which names this end.
    pub inode: u64,
    /// Its fd.
    pub fd: i32,
    /// Inode of the other end, of unix sockets.
    pub peer_inode: Option<u64>,
    /// Address of this end as an endpoint.
    pub local: Option<String>,
    /// Address of the other end.
    pub remote: Option<String>,
    /// Types of the ZeroMQ sockets here and at the other end, where the handshake was seen.
    pub types: [Option<String>; 2],
    /// Mechanism, where a greeting was seen.
    pub mechanism: Option<String>,
    /// Whether it has ended, as far as seen.
    pub is_closed: bool,
    /// What went to the peer.
    pub sent: Moved,
    /// What came from it.
    pub received: Moved,
    /// Versions in the greetings of this end and of the other one.
    versions: [Option<(u8, u8)>; 2],
    /// Whether what went over it was ZMTP.
    is_zmtp: bool,
    /// As of the last interval's end.
    before: [Counts; 2],
}

/// What went one way.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    /// How much.
    pub counts: Counts,
    /// How long messages were on the wire.
    pub sizes: Sizes,
    /// CLOCK_MONOTONIC of the first system call that moved something.
    pub first_ns: Option<u64>,
    /// CLOCK_MONOTONIC of the last one.
    pub last_ns: Option<u64>,
    /// Where the next system call is expected to go on.
    position: Option<u64>,
    /// Bytes since the end of the last message; `None`: not known.
    tail_bytes: Option<u64>,
    /// Whether the last frame that ended may belong to a message that has not.
    may_be_in_message: bool,
    /// Bytes of the present system call in messages that ended in it.
    covered_bytes: u64,
}

/// Sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// System calls, failed ones too.
    pub calls: u64,
    /// Bytes, those of system calls that were not seen too.
    pub bytes: u64,
    /// Of those, the bytes of which it is known where frames begin: only their frames are counted.
    pub synchronised_bytes: u64,
    /// Frames that ended, without commands.
    pub frames: u64,
    /// Messages that ended.
    pub messages: u64,
    /// Commands that ended, and subscriptions in whatever form.
    pub commands: u64,
}

/// Lengths of messages on the wire, headers of their frames included. Of messages sent alone, and of those only that
/// were seen from end to end and with no command between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// How many were measured.
    pub count: u64,
    /// The shortest, bytes.
    pub min: u64,
    /// The longest, bytes.
    pub max: u64,
    sum: u64,
}

/// All ends.
#[derive(Debug, Default)]
pub struct Wires {
    narrow: Narrow,
    ends: HashMap<(u32, u64), Connection>,
    /// Which one a process's fd is.
    fds: HashMap<(u32, i32), u64>,
    /// Processes without a libzmq that is known.
    without_libzmq: HashSet<u32>,
    with_libzmq: bool,
    evicted: u64,
    interval_ns: u64,
}

/// What went over connections in a stretch of time.
#[derive(Debug)]
pub struct Rows {
    /// How long, ns.
    pub duration_ns: u64,
    /// Those that speak ZMTP, by process, the busiest first.
    pub connections: Vec<Connection>,
    /// Stream sockets that moved something else.
    pub others: u64,
    /// Ends that were forgotten, since there were too many.
    pub evicted: u64,
}

impl Wires {
    /// Leaves out what `narrow` says.
    pub fn new(narrow: Narrow) -> Self {
        Self { narrow, ..Self::default() }
    }

    /// Takes in the next event.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Start(start) => self.interval_ns = start.ts_ns,
            Event::Process(process) if process.is_target => {
                if process.libraries.is_empty() {
                    self.without_libzmq.insert(process.pid);
                } else {
                    self.without_libzmq.remove(&process.pid);
                    self.with_libzmq = true;
                }
            }
            Event::Stream(stream) if self.without_libzmq.contains(&stream.pid) => self.stream(stream),
            Event::Wire(wire) if self.without_libzmq.contains(&wire.pid) => self.wire(wire),
            Event::Command(command) if self.without_libzmq.contains(&command.pid) => self.command(command),
            Event::Fd(change) if matches!(change.change, Change::Closed) => self.close(change.pid, change.fd),
            Event::ProcessExit(exit) => {
                self.fds.retain(|(pid, _), _| *pid != exit.pid);
                self.ends.values_mut().filter(|end| end.pid == exit.pid).for_each(|end| end.is_closed = true);
            }
            _ => {}
        }
    }

    /// Whether a process is looked at by its connections alone.
    pub fn is_wanted(&self) -> bool {
        !self.without_libzmq.is_empty()
    }

    /// Whether all processes are.
    pub fn is_all_there_is(&self) -> bool {
        self.is_wanted() && !self.with_libzmq
    }

    /// All that went over connections from `start_ns` to `now_ns`.
    pub fn total(&self, start_ns: u64, now_ns: u64) -> Rows {
        self.rows(now_ns.saturating_sub(start_ns), self.ends.values().cloned())
    }

    /// What went over them since the last call of this. Sizes of messages are those of all time.
    pub fn interval(&mut self, now_ns: u64) -> Rows {
        let has_moved = |end: &Connection| end.before != [end.sent.counts, end.received.counts];
        let rows = self.rows(
            now_ns.saturating_sub(self.interval_ns),
            self.ends.values().filter(|end| has_moved(end)).map(|end| {
                let mut end = end.clone();
                end.sent.counts = end.sent.counts.since(&end.before[0]);
                end.received.counts = end.received.counts.since(&end.before[1]);
                end
            }),
        );
        for end in self.ends.values_mut() {
            end.before = [end.sent.counts, end.received.counts];
        }
        self.interval_ns = now_ns;
        rows
    }

    fn rows(&self, duration_ns: u64, ends: impl Iterator<Item = Connection>) -> Rows {
        let names = self.ends.values().filter_map(|end| Some((end.name()?, end)));
        let by_name: HashMap<_, _> = names.filter(|(_, end)| end.is_zmtp).collect();
        let ends = ends.map(|mut end| {
            let other = end.other_name().and_then(|name| by_name.get(&name).copied());
            if let Some(other) = other {
                end.learn_from(other);
            }
            end
        });
        let (mut connections, others): (Vec<_>, Vec<_>) = ends.partition(|end| end.is_zmtp);
        let admits = |end: &Connection| {
            let addresses = [&end.local, &end.remote].into_iter().flatten().map(String::as_str);
            self.narrow.admits_wire(end.types[0].as_deref(), addresses)
        };
        connections.retain(admits);
        connections.sort_by_key(|end| (end.pid, Reverse(end.bytes()), end.fd, end.inode));
        Rows { duration_ns, connections, others: others.len() as u64, evicted: self.evicted }
    }

    fn stream(&mut self, stream: &Stream) {
        let end = self.end(stream.pid, stream.inode, stream.fd);
        let differs = |known: &Option<String>, now: &Option<String>| known.is_some() && now.is_some() && known != now;
        if differs(&end.local, &stream.local) && differs(&end.remote, &stream.remote) {
            // The number of an inode was used again.
            *end = Connection { pid: end.pid, inode: end.inode, fd: stream.fd, ..Connection::default() };
        }
        // Each direction is met by itself.
        end.local = stream.local.clone().or_else(|| end.local.take());
        end.remote = stream.remote.clone().or_else(|| end.remote.take());
        end.peer_inode = stream.peer_inode.or(end.peer_inode);
    }

    fn wire(&mut self, wire: &Wire) {
        let end = self.end(wire.pid, wire.inode, wire.fd);
        let is_over = is_end_of_stream(wire) || (wire.direction == Direction::Send && wire.ret == -EPIPE);
        end.is_closed = is_over || wire.ret == -ECONNRESET || (end.is_closed && wire.ret <= 0);
        // A walk from the first byte takes any for a greeting, until it has come to its end.
        end.is_zmtp |= wire.frames.as_ref().is_some_and(|frames| frames.frames > 0 || frames.commands > 0);
        match wire.direction {
            Direction::Send => end.sent.wire(wire),
            Direction::Receive => end.received.wire(wire),
        }
    }

    fn command(&mut self, command: &Command) {
        let end = self.end(command.pid, command.inode, command.fd);
        // What was sent is about this end.
        let side = usize::from(command.direction == Direction::Receive);
        match &command.content {
            CommandContent::Greeting { version, mechanism, socket_type, .. } => {
                end.versions[side] = Some(*version);
                if socket_type.is_some() {
                    end.types[side].clone_from(socket_type);
                }
                if mechanism.is_some() {
                    end.mechanism.clone_from(mechanism);
                }
            }
            CommandContent::Ready { socket_type: Some(socket_type), .. }
            | CommandContent::Initiate { socket_type: Some(socket_type), .. } => {
                end.types[side] = Some(socket_type.clone());
            }
            _ => {}
        }
        end.is_zmtp = true;
    }

    /// The end of that name, made if it is not there.
    fn end(&mut self, pid: u32, inode: u64, fd: i32) -> &mut Connection {
        if let Some(before) = self.fds.insert((pid, fd), inode)
            && before != inode
            && let Some(end) = self.ends.get_mut(&(pid, before))
        {
            // Its fd is another one's now.
            end.is_closed = true;
        }
        if self.ends.len() >= MAX_ENDS && !self.ends.contains_key(&(pid, inode)) {
            self.evict(EVICTED_AT_ONCE);
            self.fds.insert((pid, fd), inode);
        }
        self.ends.entry((pid, inode)).or_insert_with(|| Connection { pid, inode, fd, ..Connection::default() })
    }

    fn evict(&mut self, count: usize) {
        let worth = |end: &Connection| (!end.is_closed, end.sent.last_ns.max(end.received.last_ns));
        let mut ends: Vec<_> = self.ends.iter().map(|(key, end)| (worth(end), *key)).collect();
        ends.sort_unstable();
        for (_, key) in ends.iter().take(count) {
            self.ends.remove(key);
            self.evicted += 1;
        }
        self.fds.retain(|(pid, _), inode| self.ends.contains_key(&(*pid, *inode)));
    }

    fn close(&mut self, pid: u32, fd: i32) {
        if let Some(inode) = self.fds.remove(&(pid, fd))
            && let Some(end) = self.ends.get_mut(&(pid, inode))
        {
            end.is_closed = true;
        }
    }
}

/// What names an end to the other one: the addresses of tcp, from this end, or a unix socket's inode.
type Name<'a> = (Option<u64>, &'a str, &'a str);

impl Connection {
    fn name(&self) -> Option<Name<'_>> {
        match self.peer_inode {
            Some(_) => Some((Some(self.inode), "", "")),
            None => Some((None, self.local.as_deref()?, self.remote.as_deref()?)),
        }
    }

    /// The name of the other end.
    fn other_name(&self) -> Option<Name<'_>> {
        match self.peer_inode {
            Some(peer) => Some((Some(peer), "", "")),
            None => Some((None, self.remote.as_deref()?, self.local.as_deref()?)),
        }
    }

    /// What is known of the other end holds for this one, too.
    fn learn_from(&mut self, other: &Self) {
        self.is_zmtp = true;
        self.mechanism = self.mechanism.take().or_else(|| other.mechanism.clone());
        for (own, others) in [(0, 1), (1, 0)] {
            self.types[own] = self.types[own].take().or_else(|| other.types[others].clone());
            self.versions[own] = self.versions[own].or(other.versions[others]);
        }
    }

    /// Version of ZMTP that is spoken: the lower one of both greetings; `None`: they were not both seen.
    pub fn version(&self) -> Option<(u8, u8)> {
        Some(self.versions[0]?.min(self.versions[1]?))
    }

    /// Both ways.
    pub fn both(&self) -> Counts {
        self.sent.counts.plus(&self.received.counts)
    }

    fn bytes(&self) -> u64 {
        self.both().bytes
    }
}

/// Whether it says that the peer sends nothing more.
const fn is_end_of_stream(wire: &Wire) -> bool {
    matches!(wire.direction, Direction::Receive) && wire.ret == 0 && wire.wanted > 0
}

impl Moved {
    fn wire(&mut self, wire: &Wire) {
        if matches!(wire.call.name(), "connect" | "accept" | "accept4" | "shutdown" | "close" | "getsockopt") {
            // Moves nothing.
            return;
        }
        // tcp numbers the end of the stream like a byte.
        let end_of_stream = u64::from(is_end_of_stream(wire) && wire.sequence.is_some());
        let expected = self.position.map(|position| position + end_of_stream);
        let missed = expected.map_or(0, |expected| wire.position.saturating_sub(expected));
        if wire.from_start && wire.position == 0 {
            self.tail_bytes = Some(0);
            self.may_be_in_message = false;
        } else if wire.gap || missed > 0 || self.position.is_none() {
            self.tail_bytes = None;
            self.may_be_in_message = true;
        }
        self.counts.bytes += missed;
        self.position = Some(wire.position);
        let moved = u64::try_from(wire.ret).unwrap_or(0);
        match &wire.frames {
            Some(frames) => self.measure(wire.direction, frames, moved),
            None if moved > 0 => {
                self.tail_bytes = None;
                self.may_be_in_message = true;
                self.covered_bytes = 0;
            }
            None => {}
        }
        if wire.frames.as_ref().is_some_and(|frames| frames.continues) {
            // The last event of the system call has its sums.
            return;
        }
        self.position = Some(wire.position + moved);
        self.counts.calls += 1;
        self.counts.bytes += moved;
        if moved > 0 {
            self.first_ns = self.first_ns.or(wire.entry_ns).or(Some(wire.ts_ns));
            self.last_ns = Some(wire.ts_ns);
        }
        if let Some(frames) = &wire.frames {
            self.counts.synchronised_bytes += moved;
            self.counts.frames += u64::from(frames.frames);
            self.counts.messages += u64::from(frames.messages);
            self.counts.commands += u64::from(frames.commands);
        }
    }

    /// Takes the lengths of messages. They are given from end to end: a command in between would be taken for a part.
    fn measure(&mut self, direction: Direction, frames: &Frames, moved: u64) {
        if direction == Direction::Receive {
            return;
        }
        for (bytes, count) in frames.ends.iter().map(|(bytes, count)| (u64::from(*bytes), u64::from(*count))) {
            if frames.commands == 0 && count > 0 {
                if let Some(tail) = self.tail_bytes {
                    self.sizes.add(tail + bytes, 1);
                }
                self.sizes.add(bytes, count - 1);
            }
            self.tail_bytes = Some(0);
            self.covered_bytes += bytes * count;
        }
        if frames.continues {
            return;
        }
        let rest = moved.saturating_sub(std::mem::take(&mut self.covered_bytes));
        if frames.frames > frames.messages && (rest > 0 || frames.messages == 0) {
            self.may_be_in_message = true;
        } else if frames.messages > 0 {
            self.may_be_in_message = false;
        }
        self.tail_bytes = match self.tail_bytes {
            _ if frames.inside == Inside::Nothing && !self.may_be_in_message => Some(0),
            _ if frames.commands > 0 && rest > 0 => None,
            tail => tail.map(|tail| tail + rest),
        };
    }
}

impl Counts {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(earlier.calls),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            synchronised_bytes: self.synchronised_bytes.saturating_sub(earlier.synchronised_bytes),
            frames: self.frames.saturating_sub(earlier.frames),
            messages: self.messages.saturating_sub(earlier.messages),
            commands: self.commands.saturating_sub(earlier.commands),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            bytes: self.bytes + other.bytes,
            synchronised_bytes: self.synchronised_bytes + other.synchronised_bytes,
            frames: self.frames + other.frames,
            messages: self.messages + other.messages,
            commands: self.commands + other.commands,
        }
    }

    /// Which share of the bytes it is known of where frames begin; `None`: there were no bytes.
    pub fn synchronised(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.synchronised_bytes as f64 / self.bytes as f64)
    }

    /// Whether frames could be counted: of none of the bytes is known where they begin otherwise.
    pub const fn is_known(&self) -> bool {
        self.bytes == 0 || self.synchronised_bytes > 0
    }
}

impl Sizes {
    fn add(&mut self, bytes: u64, count: u64) {
        if count == 0 {
            return;
        }
        self.min = if self.count == 0 { bytes } else { self.min.min(bytes) };
        self.max = self.max.max(bytes);
        self.count += count;
        self.sum += bytes * count;
    }

    /// Mean, bytes; `None`: none was measured.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }
}

impl Rows {
    /// `count` things a second.
    pub fn per_second(&self, count: u64) -> f64 {
        if self.duration_ns == 0 { 0.0 } else { count as f64 * 1e9 / self.duration_ns as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Process, ProcessEnd, SystemCall};

    fn wires() -> Wires {
        let mut wires = Wires::default();
        let (name, libraries) = (String::new(), Vec::new());
        wires.event(&Event::Process(Process { ts_ns: 0, pid: 7, name, libraries, is_target: true }));
        wires
    }

    fn frames(messages: u32, inside: Inside, ends: &[(u32, u32)]) -> Frames {
        let ends = ends.to_vec();
        Frames { frames: messages, messages, commands: 0, total_messages: 0, inside, ends, continues: false }
    }

    fn wire(inode: u64, ret: i64, position: u64, frames: Option<Frames>) -> Wire {
        Wire {
            ts_ns: position + 1,
            entry_ns: None,
            pid: 7,
            tid: 7,
            call: SystemCall(44),
            fd: inode as i32,
            inode,
            handle: None,
            direction: Direction::Send,
            ret,
            wanted: ret.max(1) as u64,
            sequence: None,
            position,
            from_start: true,
            gap: false,
            frames,
            pipe: None,
        }
    }

    fn only(wires: &Wires) -> Connection {
        wires.total(0, 1_000_000_000).connections.pop().expect("one connection")
    }

    #[test]
    fn messages_are_measured_across_system_calls() {
        let mut wires = wires();
        wires.event(&Event::Wire(wire(5, 25, 0, Some(frames(2, Inside::LastPart, &[(10, 2)])))));
        wires.event(&Event::Wire(wire(5, -11, 25, Some(frames(0, Inside::LastPart, &[])))));
        wires.event(&Event::Wire(wire(5, 15, 25, Some(frames(1, Inside::Nothing, &[(15, 1)])))));
        let end = only(&wires);
        assert_eq!((end.sent.sizes.count, end.sent.sizes.min, end.sent.sizes.max), (3, 10, 20));
        assert_eq!((end.sent.counts.calls, end.sent.counts.bytes, end.sent.counts.messages), (3, 40, 3));
    }

    #[test]
    fn the_end_of_a_stream_is_no_byte() {
        let mut wires = wires();
        let received = |ret, position, frames| Wire {
            direction: Direction::Receive,
            sequence: Some(1),
            wanted: 100,
            gap: ret == 0,
            ..wire(5, ret, position, frames)
        };
        wires.event(&Event::Wire(received(10, 0, Some(frames(1, Inside::Nothing, &[])))));
        wires.event(&Event::Wire(received(0, 11, None)));
        let end = only(&wires);
        assert_eq!((end.received.counts.bytes, end.is_closed), (10, true));
        assert_eq!(end.both().synchronised(), Some(1.0));
    }

    #[test]
    fn a_system_call_in_several_events_counts_once() {
        let mut wires = wires();
        let mut first = frames(2, Inside::Nothing, &[(10, 1), (20, 1)]);
        first.continues = true;
        wires.event(&Event::Wire(wire(5, 60, 0, Some(first))));
        wires.event(&Event::Wire(wire(5, 60, 0, Some(frames(3, Inside::Nothing, &[(30, 1)])))));
        let end = only(&wires);
        let expected =
            Counts { calls: 1, bytes: 60, synchronised_bytes: 60, frames: 3, messages: 3, ..Counts::default() };
        assert_eq!(end.sent.counts, expected);
        assert_eq!((end.sent.sizes.count, end.sent.sizes.mean()), (3, Some(20.0)));
    }

    #[test]
    fn what_was_missed_is_not_synchronised_and_not_measured() {
        let mut wires = wires();
        wires.event(&Event::Wire(wire(5, 10, 0, Some(frames(1, Inside::Nothing, &[(10, 1)])))));
        let gap = Wire { gap: true, ..wire(5, 10, 90, None) };
        wires.event(&Event::Wire(gap));
        wires.event(&Event::Wire(wire(5, 10, 100, Some(frames(1, Inside::Nothing, &[(10, 1)])))));
        wires.event(&Event::Wire(wire(5, 10, 110, Some(frames(1, Inside::Nothing, &[(10, 1)])))));
        let end = only(&wires);
        assert_eq!((end.sent.counts.bytes, end.sent.counts.synchronised_bytes), (120, 30));
        assert_eq!(end.both().synchronised(), Some(0.25));
        assert_eq!(end.sent.sizes.count, 2, "of the one after the gap it is not known where it began");
    }

    #[test]
    fn a_socket_counts_as_others_until_it_speaks_zmtp() {
        let mut wires = wires();
        wires.event(&Event::Wire(wire(5, 10, 0, None)));
        wires.event(&Event::Wire(wire(6, 10, 0, Some(frames(0, Inside::Part, &[])))));
        let rows = wires.total(0, 1);
        assert_eq!((rows.connections.len(), rows.others), (0, 2));
        let content = CommandContent::Ready { socket_type: Some("PUSH".into()), identity: None };
        let direction = Direction::Send;
        wires.event(&Event::Command(Command { ts_ns: 9, pid: 7, tid: 7, fd: 6, inode: 6, direction, content }));
        let rows = wires.total(0, 1);
        assert_eq!((rows.connections.len(), rows.others), (1, 1));
        assert_eq!(rows.connections[0].types, [Some("PUSH".into()), None]);
    }

    #[test]
    fn one_end_tells_of_the_other() {
        let mut wires = wires();
        for (inode, local, remote) in [(5, "tcp://a", "tcp://b"), (6, "tcp://b", "tcp://a"), (8, "tcp://b", "tcp://c")]
        {
            let (local, remote) = (Some(local.into()), Some(remote.into()));
            let stream = Stream {
                ts_ns: 0,
                pid: 7,
                fd: 5,
                inode,
                peer_inode: None,
                local,
                remote,
                from_start: false,
                sent: None,
            };
            wires.event(&Event::Stream(stream));
        }
        let content = CommandContent::Ready { socket_type: Some("PUSH".into()), identity: None };
        let direction = Direction::Send;
        wires.event(&Event::Command(Command { ts_ns: 9, pid: 7, tid: 7, fd: 5, inode: 5, direction, content }));
        let rows = wires.total(0, 1);
        assert_eq!((rows.connections.len(), rows.others), (2, 1));
        assert_eq!(rows.connections[1].types, [None, Some("PUSH".into())]);
    }

    #[test]
    fn an_interval_is_the_difference() {
        let mut wires = wires();
        wires.event(&Event::Wire(wire(5, 10, 0, Some(frames(1, Inside::Nothing, &[(10, 1)])))));
        assert_eq!(wires.interval(1_000).connections[0].sent.counts.bytes, 10);
        assert!(wires.interval(2_000).connections.is_empty());
        wires.event(&Event::Wire(wire(5, 30, 10, Some(frames(3, Inside::Nothing, &[(10, 3)])))));
        let rows = wires.interval(3_000);
        assert_eq!((rows.duration_ns, rows.connections[0].sent.counts.messages), (1_000, 3));
        assert_eq!(only(&wires).sent.counts.messages, 4);
    }

    #[test]
    fn closed_ends_are_forgotten_first() {
        let mut wires = wires();
        let bytes = |inode: u64| Event::Wire(wire(inode, 10, 0, Some(frames(1, Inside::Nothing, &[(10, 1)]))));
        for inode in 1..=MAX_ENDS as u64 {
            wires.event(&bytes(inode));
        }
        let closed = 100..200;
        for inode in closed.clone() {
            wires.event(&Event::Wire(wire(inode, -EPIPE, 10, None)));
        }
        wires.event(&bytes(MAX_ENDS as u64 + 1));
        assert_eq!(wires.ends.len(), MAX_ENDS - EVICTED_AT_ONCE + 1);
        assert!(closed.into_iter().all(|inode| !wires.ends.contains_key(&(7, inode))));
        assert!(wires.ends.contains_key(&(7, MAX_ENDS as u64 + 1)));
        assert_eq!(wires.total(0, 1).evicted, EVICTED_AT_ONCE as u64);
        wires.event(&Event::ProcessExit(ProcessEnd { ts_ns: 1, pid: 7 }));
        assert!(wires.fds.is_empty() && wires.ends.values().all(|end| end.is_closed));
    }
}
