//! The walk over ZMTP against a plain parser of whole buffers, over streams that a fuzzer makes.
//!
//! [`Direction::feed`] drives the walk as the kernel side does: a byte at a time through greetings and headers, past
//! bodies, and past whole short frames without the walk's help. [`parse`] was written from the RFCs and knows nothing of
//! the walk.

use tracer_common::zmtp::{COMMAND, Ended, LONG, MORE, Phase, REVISION_NONE, REVISION_UNKNOWN, Walk};

/// Connections that are made up, of which most are small.
const CONNECTIONS: u64 = 3000;
/// Streams of garbage, or nearly.
const GARBAGE: u64 = 20_000;
/// Sizes from here on are none: see the walk's `ABSURD_SIZE`.
const ABSURD_SIZE: u64 = 1 << 48;

/// Knuth's MMIX generator: the same streams each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// True one time in `times`.
    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        // What repeats is as good as what does not: bodies are not looked at.
        let block: Vec<u8> = (0..len.min(251)).map(|_| self.next() as u8).collect();
        block.iter().copied().cycle().take(len).collect()
    }

    /// Mostly small, often around where a size needs eight bytes, up to 1 MB.
    fn size(&mut self) -> usize {
        match self.below(200) {
            0..80 => self.below(12),
            80..150 => self.below(300),
            150..190 => 250 + self.below(10),
            190..199 => self.below(20_000),
            _ => self.below((1 << 20) + 1),
        }
    }
}

/// What a peer says of its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// ZMTP 1.0, which begins with a frame.
    Unversioned,
    /// Its greeting has this revision.
    Revision(u8),
}

impl Peer {
    /// What a walk over its direction says, once it has come.
    fn as_walked(self) -> u8 {
        match self {
            Self::Unversioned => REVISION_NONE,
            Self::Revision(revision) => revision,
        }
    }
}

/// Something that one direction of a connection consists of.
#[derive(Clone, Copy, Debug)]
struct Item {
    what: Ended,
    start: u64,
    /// Where its header ends.
    body: u64,
    end: u64,
    /// It is a frame of ZMTP 1.0: its flags are the last that comes of its header.
    has_late_flags: bool,
}

/// One direction, as it was parsed.
#[derive(Debug, Default)]
struct Parsed {
    items: Vec<Item>,
    /// The byte that shows that it is none ends here.
    nonsense: Option<u64>,
}

impl Parsed {
    /// What ends in the first `len` bytes, and where.
    fn ended(&self, len: u64) -> Vec<(Ended, u64)> {
        let items = self.items.iter().map(|item| (item.what, item.end));
        let nonsense = self.nonsense.map(|end| (Ended::Nonsense, end));
        items.chain(nonsense).filter(|(_, end)| *end <= len).collect()
    }
}

/// A frame's header: its flags, its body's size, and its own. Errors: the header's size that shows that it is none.
type Header = Result<(u8, u64, usize), usize>;

/// RFC 13. `None`: more has to come.
fn header1(bytes: &[u8]) -> Option<Header> {
    let (size, at) = match *bytes.first()? {
        0 => return Some(Err(1)),
        0xff => (u64::from_be_bytes(bytes.get(1..9)?.try_into().ok()?), 9),
        size => (size.into(), 1),
    };
    let flags = *bytes.get(at)?;
    let is_size = (1..=ABSURD_SIZE).contains(&size);
    Some(if is_size { Ok((flags & MORE, size - 1, at + 1)) } else { Err(at + 1) })
}

/// RFCs 15, 23 and 37. `None`: more has to come.
fn header2(bytes: &[u8]) -> Option<Header> {
    let flags = *bytes.first()?;
    if flags > 7 || flags & 5 == 5 {
        return Some(Err(1));
    }
    if flags & LONG == 0 {
        return Some(Ok((flags, (*bytes.get(1)?).into(), 2)));
    }
    let size = u64::from_be_bytes(bytes.get(1..9)?.try_into().ok()?);
    Some(if size < ABSURD_SIZE { Ok((flags, size, 9)) } else { Err(9) })
}

/// Who sent this. `None`: more has to come.
fn sender(bytes: &[u8], other: Peer) -> Option<Peer> {
    if *bytes.first()? != 0xff || bytes.get(9)? & 1 == 0 || other == Peer::Unversioned {
        return Some(Peer::Unversioned);
    }
    Some(Peer::Revision(*bytes.get(10)?))
}

/// One direction of a connection, whose other end is `other`: to one without versions there are none.
fn parse(bytes: &[u8], other: Peer) -> Parsed {
    let mut parsed = Parsed::default();
    let Some(own) = sender(bytes, other) else { return parsed };
    let (is_old, greeting) = match (own, other) {
        (Peer::Revision(own), Peer::Revision(other)) => match own.min(other) {
            0 => (true, 12),
            1 | 2 => (false, 12),
            _ => (false, 64),
        },
        _ => (true, 0),
    };
    if greeting > 0 {
        let end = greeting as u64;
        parsed.items.push(Item { what: Ended::Greeting, start: 0, body: end, end, has_late_flags: false });
    }
    let mut has_identity = greeting < 64;
    let mut at = greeting;
    while let Some(rest) = bytes.get(at..) {
        let (flags, size, header) = match if is_old { header1(rest) } else { header2(rest) } {
            None => break,
            Some(Ok(header)) => header,
            Some(Err(len)) => {
                parsed.nonsense = Some((at + len) as u64);
                break;
            }
        };
        let what = if std::mem::take(&mut has_identity) {
            Ended::Identity
        } else if flags & COMMAND != 0 {
            Ended::Command
        } else if flags & MORE != 0 {
            Ended::Part
        } else {
            Ended::Message
        };
        let (start, body) = (at as u64, (at + header) as u64);
        at = at + header + size as usize;
        parsed.items.push(Item { what, start, body, end: at as u64, has_late_flags: is_old });
    }
    parsed
}

/// One direction of a connection, as it is walked.
struct Direction {
    walk: Walk,
    position: u64,
    ended: Vec<(Ended, u64)>,
}

impl Direction {
    fn new(walk: Walk) -> Self {
        Self { walk, position: 0, ended: Vec::new() }
    }

    /// What a system call moves: as `wire_step` in `tracer-ebpf`.
    fn feed(&mut self, mut bytes: &[u8], other: u8, random: &mut Random) {
        let other = if self.walk.phase() == Phase::Greeting { other } else { REVISION_UNKNOWN };
        while !bytes.is_empty() {
            if self.recognise(other) {
                continue;
            }
            let mut passed = 0;
            let ended = if self.walk.skip > 0 {
                passed = self.walk.skip.min(bytes.len() as u64) as usize;
                self.walk.pass(passed as u64)
            } else {
                if self.walk.expects_frame2() {
                    passed = self.short_frames(bytes, random.below(9));
                }
                if passed == 0 {
                    passed = 1;
                    self.position += 1;
                    let ended = self.walk.take(bytes[0], other);
                    self.position -= 1;
                    ended
                } else {
                    self.position -= passed as u64;
                    Ended::Nothing
                }
            };
            self.position += passed as u64;
            bytes = &bytes[passed..];
            if ended != Ended::Nothing {
                self.ended.push((ended, self.position));
            }
            if ended == Ended::Nonsense {
                assert!(!self.walk.is_synchronised());
                assert_eq!(self.walk.skip, 0);
            }
        }
        self.recognise(other);
        self.check();
    }

    /// The other direction may have shown that its sender knows no versions: whether this one's greeting ends by that.
    fn recognise(&mut self, other: u8) -> bool {
        if self.walk.phase() != Phase::Greeting {
            return false;
        }
        let ended = self.walk.recognise(other);
        if ended != Ended::Nothing {
            self.ended.push((ended, self.position));
        }
        self.walk.phase() != Phase::Greeting
    }

    /// Passes as many whole short frames of messages as there are, at most `most`; how many bytes they have.
    fn short_frames(&mut self, bytes: &[u8], most: usize) -> usize {
        let (mut passed, mut frames, mut messages) = (0, 0, 0);
        while frames < most as u32 {
            let [flags, size, ..] = bytes[passed..] else { break };
            let end = passed + 2 + usize::from(size);
            if flags & !MORE != 0 || end > bytes.len() {
                break;
            }
            let is_last = flags & MORE == 0;
            passed = end;
            frames += 1;
            messages += u32::from(is_last);
            let what = if is_last { Ended::Message } else { Ended::Part };
            self.ended.push((what, self.position + passed as u64));
        }
        self.walk.count(frames, messages);
        self.position += passed as u64;
        passed
    }

    /// Its counters say what has ended.
    fn check(&self) {
        let count = |what| self.ended.iter().filter(|(ended, _)| *ended == what).count() as u64;
        let (parts, messages) = (count(Ended::Part), count(Ended::Message));
        assert_eq!(self.walk.frames, parts + messages);
        assert_eq!(self.walk.messages, messages);
        assert_eq!(self.walk.commands, count(Ended::Command));
    }

    /// What it says of where it is, against what is there.
    fn check_place(&self, parsed: &Parsed) {
        let (walk, at) = (&self.walk, self.position);
        if parsed.nonsense.is_some_and(|end| end <= at) {
            assert!(!walk.is_synchronised());
            return;
        }
        let Some(item) = parsed.items.iter().find(|item| item.start <= at && at < item.end) else {
            // Behind the last, or in a header that never ends.
            return;
        };
        let is_frame = item.what != Ended::Greeting;
        if walk.phase() == Phase::Greeting && at == 10 {
            // What the signature is shows with what the other end sends.
            return;
        }
        if item.start == at {
            assert_eq!(walk.is_at_boundary(), is_frame, "{item:?}");
            assert!(!walk.is_in_last_part() && !walk.is_in_command());
            return;
        }
        if walk.phase() == Phase::Greeting {
            return;
        }
        assert!(!walk.is_at_boundary());
        assert!(!walk.is_in_rest());
        let is_command = matches!(item.what, Ended::Command | Ended::Identity);
        assert_eq!(walk.is_in_command(), is_command && at >= item.body, "{item:?}");
        if at >= item.body || !item.has_late_flags {
            assert_eq!(walk.is_in_last_part(), item.what == Ended::Message, "{item:?}");
        }
        if at >= item.body {
            assert_eq!(walk.skip, item.end - at);
        }
    }
}

/// What one end of a connection sends.
#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
    /// What lies behind the first is sent once as much as the second has come from the other end.
    waits: Vec<(usize, usize)>,
    messages: u64,
    commands: u64,
}

impl Script {
    fn available(&self, received: usize) -> usize {
        let waits = self.waits.iter().filter(|(_, needs)| *needs > received);
        waits.map(|(at, _)| *at).min().unwrap_or(self.bytes.len())
    }

    fn wait(&mut self, needs: usize) {
        self.waits.push((self.bytes.len(), needs));
    }

    fn frame1(&mut self, flags: u8, size: usize, random: &mut Random) {
        let counted = size as u64 + 1;
        if counted >= 0xff || random.one_in(8) {
            self.bytes.push(0xff);
            self.bytes.extend(counted.to_be_bytes());
        } else {
            self.bytes.push(counted as u8);
        }
        self.bytes.push(flags);
        self.bytes.extend(random.bytes(size));
    }

    fn frame2(&mut self, flags: u8, size: usize, random: &mut Random) {
        if size > 0xff || random.one_in(8) {
            self.bytes.push(flags | LONG);
            self.bytes.extend((size as u64).to_be_bytes());
        } else {
            self.bytes.extend([flags, size as u8]);
        }
        self.bytes.extend(random.bytes(size));
    }
}

/// What security a connection of ZMTP 3 has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    Null,
    Plain,
    Curve,
}

impl Mechanism {
    fn name(self) -> [u8; 20] {
        let name: &[u8] = match self {
            Self::Null => b"NULL",
            Self::Plain => b"PLAIN",
            Self::Curve => b"CURVE",
        };
        std::array::from_fn(|at| name.get(at).copied().unwrap_or(0))
    }

    /// Sizes of the commands with which a handshake begins, by its end.
    fn handshake(self, is_server: bool, random: &mut Random) -> Vec<usize> {
        let metadata = random.below(80) + 25;
        match (self, is_server) {
            (Self::Null, _) => vec![6 + metadata],
            // HELLO, INITIATE; WELCOME, READY.
            (Self::Plain, false) => vec![8 + random.below(40), 9 + metadata],
            (Self::Plain, true) => vec![8, 6 + metadata],
            (Self::Curve, false) => vec![200, 257 + metadata],
            (Self::Curve, true) => vec![168, 30 + metadata],
        }
    }
}

/// What is common to both ends of a connection.
#[derive(Clone, Copy)]
struct Connection {
    mechanism: Mechanism,
    /// They send whole greetings without waiting.
    is_eager: bool,
    frames: usize,
}

fn script(own: Peer, other: Peer, is_server: bool, connection: Connection, random: &mut Random) -> Script {
    let mut script = Script::default();
    let identity = random.pick(&[0, 0, 0, 1, 2, 5, 253, 254, 255]);
    let version = match (own, other) {
        (Peer::Revision(own), Peer::Revision(other)) => own.min(other),
        _ => 0,
    };
    match (own, other) {
        (Peer::Unversioned, _) => script.frame1(0, identity, random),
        (Peer::Revision(revision), _) => {
            script.bytes.push(0xff);
            script.bytes.extend((identity as u64 + 1).to_be_bytes());
            script.bytes.push(0x7f);
            if other == Peer::Unversioned {
                // libzmq's: the rest of the frame as which its signature reads. What the other needs is added later.
                script.bytes.extend(random.bytes(identity));
            } else {
                if random.one_in(4) {
                    // Others do not say how long their identity is.
                    let padding = random.bytes(8);
                    script.bytes[1..9].copy_from_slice(&padding);
                }
                if !connection.is_eager {
                    script.wait(10);
                }
                script.bytes.push(revision);
                if revision >= 3 && (version < 3 || !connection.is_eager) {
                    script.wait(11);
                }
                if version < 3 {
                    script.bytes.push(random.below(12) as u8);
                } else {
                    script.bytes.push(random.below(2) as u8);
                    script.bytes.extend(connection.mechanism.name());
                    script.bytes.push(is_server.into());
                    script.bytes.extend([0; 31]);
                }
                let greeting = script.bytes.len();
                script.wait(random.pick(&[11, greeting]));
                match version {
                    0 => script.frame1(0, identity, random),
                    1 | 2 => script.frame2(0, identity, random),
                    _ => {
                        for size in connection.mechanism.handshake(is_server, random) {
                            script.frame2(COMMAND, size, random);
                            script.commands += 1;
                        }
                    }
                }
            }
        }
    }
    let is_curve = version >= 3 && connection.mechanism == Mechanism::Curve;
    let repeated = random.size();
    for _ in 0..connection.frames {
        if version >= 3 && random.one_in(6) {
            // SUBSCRIBE, PING and others.
            let size = 5 + random.below(300);
            script.frame2(COMMAND, size, random);
            script.commands += 1;
            continue;
        }
        let is_repeated = repeated < 1000 && !random.one_in(3);
        let size = if is_repeated { repeated } else { random.size() };
        let more = if random.one_in(3) && !is_curve { MORE } else { 0 };
        // CURVE's MESSAGE has a nonce, a tag and the flags of what it hides.
        let size = if is_curve { 33 + size } else { size };
        if version == 0 {
            script.frame1(more, size, random)
        } else {
            script.frame2(more, size, random)
        }
        script.messages += u64::from(more == 0);
    }
    script
}

/// Both ends' scripts.
fn scripts(peers: [Peer; 2], random: &mut Random) -> ([Script; 2], Connection) {
    let connection = Connection {
        mechanism: random.pick(&[Mechanism::Null, Mechanism::Plain, Mechanism::Curve]),
        is_eager: random.one_in(3),
        frames: random.pick(&[0, 1, 5, 20, 60]),
    };
    let [left, right] = peers;
    let mut scripts = [script(left, right, false, connection, random), script(right, left, true, connection, random)];
    for (end, other) in [(0, 1), (1, 0)] {
        if peers[end] != Peer::Unversioned && peers[other] == Peer::Unversioned {
            // As much as shows that there is no version.
            let needs = if scripts[other].bytes[0] == 0xff { 10 } else { 1 };
            scripts[end].waits.push((10, needs));
        }
    }
    (scripts, connection)
}

fn peer(random: &mut Random) -> Peer {
    if random.one_in(4) {
        return Peer::Unversioned;
    }
    Peer::Revision(random.pick(&[0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 0x7f, 0xfd, 0xfe, 0xff]))
}

/// Says which stream it was that a test failed with.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// Feeds both ends' scripts, cut anywhere, in an order that they allow.
fn run(scripts: &[Script; 2], peers: [Peer; 2], random: &mut Random) -> [Direction; 2] {
    let mut directions = [Direction::new(Walk::at_start()), Direction::new(Walk::at_start())];
    let parsed = [parse(&scripts[0].bytes, peers[1]), parse(&scripts[1].bytes, peers[0])];
    let mut at = [0, 0];
    let longest = random.pick(&[1, 3, 20, 1000, 1 << 21]);
    loop {
        let room = [0, 1].map(|end| scripts[end].available(at[1 - end]) - at[end]);
        if room == [0, 0] {
            break;
        }
        let end = if room[0] == 0 || room[1] > 0 && random.one_in(2) { 1 } else { 0 };
        // Cut finely where greetings and headers are: the rest of a long body need not be.
        let most = if at[end] > 20_000 { longest.max(5000) } else { longest };
        let cut = at[end] + 1 + random.below(room[end].min(most));
        let other = directions[1 - end].walk.revision();
        directions[end].feed(&scripts[end].bytes[at[end]..cut], other, random);
        directions[end].check_place(&parsed[end]);
        let shown = directions[end].walk.revision();
        directions[1 - end].recognise(shown);
        at[end] = cut;
    }
    for end in [0, 1] {
        assert_eq!(at[end], scripts[end].bytes.len());
        assert_eq!(directions[end].ended, parsed[end].ended(at[end] as u64), "of {:?}", peers[end]);
    }
    directions
}

#[test]
fn valid_connections_are_walked_as_they_are_parsed() {
    for seed in 0..CONNECTIONS {
        let _seed = Seed(seed);
        let random = &mut Random(seed);
        let peers = [peer(random), peer(random)];
        let (scripts, connection) = scripts(peers, random);
        let directions = run(&scripts, peers, random);
        for end in [0, 1] {
            let walk = &directions[end].walk;
            assert_eq!(walk.messages, scripts[end].messages);
            assert_eq!(walk.commands, scripts[end].commands);
            assert!(walk.is_synchronised());
            let (Peer::Revision(own), Peer::Revision(other)) = (peers[end], peers[1 - end]) else {
                assert_eq!(walk.revision(), REVISION_NONE);
                continue;
            };
            assert_eq!(walk.revision(), own.min(0xfd));
            if own.min(other) >= 3 {
                assert_eq!(walk.mechanism, connection.mechanism.name()[..8]);
                assert_eq!(walk.as_server, end as u8);
                assert_eq!(walk.minor, scripts[end].bytes[11]);
            }
        }
    }
}

#[test]
fn damaged_frames_are_walked_as_they_are_parsed() {
    for seed in 0..CONNECTIONS {
        let _seed = Seed(seed);
        let random = &mut Random(seed ^ 0x5eed << 40);
        let peers = [peer(random), peer(random)];
        let (mut scripts, _) = scripts(peers, random);
        for script in &mut scripts {
            // Greetings remain: on them depends what may be sent when.
            let rest = script.bytes.len().saturating_sub(64);
            for _ in 0..if rest > 0 { random.below(5) } else { 0 } {
                let most = if random.one_in(2) { 400 } else { rest };
                let at = 64 + random.below(rest.min(most));
                script.bytes[at] = random.pick(&[0, 1, 2, 3, 4, 0x7f, 0xff, random.0 as u8]);
            }
        }
        run(&scripts, peers, random);
    }
}

/// Bytes that are no ZMTP, or have gone far from it.
fn garbage(random: &mut Random) -> Vec<u8> {
    let len = 1 + random.below(400);
    let mut bytes = match random.below(3) {
        // Bytes that headers are made of.
        0 => (0..len).map(|_| random.pick(&[0, 0, 0, 1, 2, 3, 4, 6, 9, 0xff])).collect(),
        1 => random.bytes(len),
        _ => {
            let peers = [peer(random), peer(random)];
            let ([script, _], _) = scripts(peers, random);
            script.bytes[..script.bytes.len().min(len)].to_vec()
        }
    };
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len().min(80));
        bytes[at] = random.next() as u8;
    }
    if random.one_in(2) {
        // Most would not be taken for a greeting.
        for (at, byte) in [(0, 0xff), (9, 0x7f), (10, random.pick(&[0, 1, 2, 3, 3, 3, 0xff]))] {
            if let Some(to) = bytes.get_mut(at) {
                *to = byte;
            }
        }
    }
    bytes
}

#[test]
fn garbage_is_walked_as_it_is_parsed() {
    for seed in 0..GARBAGE {
        let _seed = Seed(seed);
        let random = &mut Random(seed ^ 0xbad << 40);
        let bytes = garbage(random);
        let revision = random.pick(&[0, 1, 2, 3, 9]);
        let other = random.pick(&[Peer::Unversioned, Peer::Revision(revision)]);
        let parsed = parse(&bytes, other);
        let mut direction = Direction::new(Walk::at_start());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(1 + random.below(rest.len()));
            direction.feed(now, other.as_walked(), random);
            direction.check_place(&parsed);
            rest = later;
        }
        assert_eq!(direction.ended, parsed.ended(bytes.len() as u64));
    }
}

/// Whatever is said of the other direction, at whatever moment, and wherever the walk joins.
#[test]
fn garbage_does_no_harm() {
    for seed in 0..GARBAGE {
        let _seed = Seed(seed);
        let random = &mut Random(seed ^ 0xbadbad << 40);
        let mut direction = Direction::new(random.pick(&[Walk::at_start(), Walk::unknown(), Walk::default()]));
        for _ in 0..random.below(6) {
            let bytes = garbage(random);
            let other = random.pick(&[REVISION_UNKNOWN, REVISION_NONE, 0, 1, 3, random.0 as u8]);
            direction.feed(&bytes, other, random);
            match random.below(4) {
                0 => {
                    let skip = random.pick(&[0, 1, 300, 1 << 47, 1 << 63, u64::MAX]);
                    direction.walk.join(skip, random.one_in(2));
                    assert_eq!(direction.walk.is_at_boundary(), skip == 0);
                    assert_eq!(direction.walk.is_in_rest(), skip > 0);
                }
                1 => direction.walk.lose(),
                _ => {}
            }
        }
    }
}

#[test]
fn a_joined_stream_goes_on_behind_the_rest_of_its_frame() {
    for seed in 0..CONNECTIONS {
        let _seed = Seed(seed);
        let random = &mut Random(seed ^ 0x101 << 40);
        let peers = [Peer::Revision(3); 2];
        let ([script, _], _) = scripts(peers, random);
        let parsed = parse(&script.bytes, peers[1]);
        let item = random.pick(&parsed.items);
        let start = item.body + random.below((item.end - item.body) as usize + 1) as u64;
        let mut direction = Direction::new(Walk::unknown());
        direction.position = start;
        // Where libzmq has the frame's flags in its memory they are known.
        let flags = match item.what {
            Ended::Command => Some(COMMAND),
            Ended::Part => Some(MORE),
            Ended::Message => Some(0),
            _ => None,
        };
        let flags = flags.filter(|_| start < item.end && random.one_in(2));
        match flags {
            Some(flags) => direction.walk.join_inside(flags, item.end - start),
            None => direction.walk.join(item.end - start, false),
        }
        let mut rest = &script.bytes[start as usize..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(1 + random.below(rest.len()));
            direction.feed(now, REVISION_UNKNOWN, random);
            rest = later;
        }
        let mut expected = parsed.ended(script.bytes.len() as u64);
        expected.retain(|(_, end)| *end > item.end);
        if start < item.end {
            let ended = if flags.is_some() { item.what } else { Ended::Rest };
            expected.insert(0, (ended, item.end));
        }
        assert_eq!(direction.ended, expected);
    }
}

/// A walk behind greeting and identity, with frames as of this version.
fn greeted(version: u8) -> Walk {
    let mut walk = Walk::at_start();
    let signature = [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, version, 5];
    for byte in signature {
        walk.take(byte, version);
    }
    for byte in if version == 0 { [1, 0] } else { [0, 0] } {
        walk.take(byte, version);
    }
    assert!(walk.is_at_boundary());
    walk
}

#[test]
fn sizes_of_up_to_2_to_the_63_are_taken_or_refused() {
    for size in (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]) {
        for version in [0, 1] {
            let mut walk = greeted(version);
            let header: Vec<u8> = if version == 0 {
                [0xff].into_iter().chain((size + 1).to_be_bytes()).chain([0]).collect()
            } else {
                [LONG].into_iter().chain(size.to_be_bytes()).collect()
            };
            let ended = header.into_iter().map(|byte| walk.take(byte, REVISION_UNKNOWN)).last();
            if size >= ABSURD_SIZE {
                assert_eq!(ended, Some(Ended::Nonsense));
                assert!(!walk.is_synchronised());
                continue;
            }
            assert_eq!(walk.skip, size);
            if size == 0 {
                assert_eq!(ended, Some(Ended::Message));
                continue;
            }
            assert_eq!(ended, Some(Ended::Nothing));
            assert!(walk.is_in_last_part());
            if size > 1 {
                assert_eq!(walk.pass(size - 1), Ended::Nothing);
            }
            assert_eq!(walk.pass(1), Ended::Message);
            assert_eq!(walk.messages, 1);
        }
    }
}
