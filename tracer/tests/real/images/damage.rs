//! Damaged images: whatever a process's memory holds, a look ends soon, takes little, and claims nothing that cannot
//! be.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use zmqtrace::{
    constants,
    event::{Context, Mapping},
    inspect::{
        Detail, Look,
        image::{BLOCK_BYTES, Block, Budget, Image, Source},
        layouts,
    },
    target::Version,
};

use super::saved::{Head, IMAGES, Saved};

/// Looks at each image. Large ones take longer.
const ROUNDS: [(&str, u64); IMAGES.len()] = [
    ("zoo", 1600),
    ("rust-zoo", 6000),
    ("hung", 8000),
    ("hung-4.1.6", 8000),
    ("hung-4.2.5", 8000),
    ("hung-4.3.5", 8000),
    ("corners-inproc", 12000),
    ("corners-fork", 8000),
];

/// Numbers at which things go wrong.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    7,
    255,
    256,
    257,
    4095,
    4096,
    4097,
    1 << 20,
    (1 << 20) + 1,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 47,
    i64::MAX as u64,
    u64::MAX - 4096,
    u64::MAX,
];

/// Pseudo-random numbers, the same in each run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// What is worth damaging in an image: the words that are not zero, and of them those that point into it.
struct Places {
    words: Vec<u64>,
    pointers: Vec<u64>,
    blocks: Vec<u64>,
}

impl Places {
    fn of(saved: &Saved) -> Self {
        let words = saved.blocks.iter().flat_map(|(address, block)| {
            let words = block.as_chunks::<8>().0.iter().zip((*address..).step_by(8));
            words.map(|(word, at)| (at, u64::from_le_bytes(*word))).filter(|(_, word)| *word != 0)
        });
        let words: Vec<_> = words.collect();
        let points = |word: u64| saved.blocks.contains_key(&(word & !(BLOCK_BYTES as u64 - 1)));
        Self {
            pointers: words.iter().filter(|(_, word)| points(*word)).map(|(at, _)| *at).collect(),
            words: words.into_iter().map(|(at, _)| at).collect(),
            blocks: saved.blocks.keys().copied().collect(),
        }
    }
}

/// An image with some of its blocks changed or gone, and its head too.
struct Damaged<'a> {
    whole: &'a Saved,
    head: Head,
    /// `None`: it cannot be read any more.
    changed: BTreeMap<u64, Option<Block>>,
    /// In memory that is being changed, a block is sometimes as it was before.
    races: Option<RefCell<Random>>,
    fetches: Cell<u64>,
}

impl<'a> Damaged<'a> {
    fn new(whole: &'a Saved, head: &Head, places: &Places, random: &mut Random) -> Self {
        let races = (random.below(8) == 0).then(|| RefCell::new(Random(random.next())));
        let mut damaged = Self { whole, head: head.clone(), changed: BTreeMap::new(), races, fetches: Cell::new(0) };
        for _ in 0..1 + random.below(4) {
            damaged.damage(places, random);
        }
        damaged
    }

    fn word(&self, at: u64) -> u64 {
        let (block, offset) = (at & !(BLOCK_BYTES as u64 - 1), at as usize % BLOCK_BYTES);
        let block = self.changed.get(&block).map_or_else(|| self.whole.blocks.get(&block), Option::as_ref);
        block.map_or(0, |block| u64::from_le_bytes(block[offset..offset + 8].try_into().expect("8 bytes")))
    }

    fn block(&mut self, address: u64) -> Option<&mut Block> {
        let whole = || self.whole.blocks.get(&address).copied();
        self.changed.entry(address).or_insert_with(whole).as_mut()
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let offset = at as usize % BLOCK_BYTES;
        if let Some(block) = self.block(at & !(BLOCK_BYTES as u64 - 1)) {
            let len = bytes.len().min(BLOCK_BYTES - offset);
            block[offset..offset + len].copy_from_slice(&bytes[..len]);
        }
    }

    fn damage(&mut self, places: &Places, random: &mut Random) {
        let (word, pointer) = (random.one(&places.words), random.one(&places.pointers));
        let value = self.word(word);
        match random.below(20) {
            0 => self.write(word, &(value ^ 1 << random.below(64)).to_le_bytes()),
            1 => self.write(word + random.below(8) as u64, &[random.next() as u8]),
            2 => self.write(word, &random.one(&NUMBERS).to_le_bytes()),
            3 => self.write(word + 4 * random.below(2) as u64, &(random.one(&NUMBERS) as u32).to_le_bytes()),
            4 => self.write(word, &value.wrapping_add(8 << random.below(24)).to_le_bytes()),
            // Another pointer of the image: trees with cycles, shared nodes, objects of other kinds and owners.
            5..9 => self.write(pointer, &self.word(random.one(&places.pointers)).to_le_bytes()),
            // To itself, or close.
            9 => self.write(pointer, &pointer.wrapping_sub(8 * random.below(8) as u64).to_le_bytes()),
            10 => self.write(pointer, &(pointer & !(BLOCK_BYTES as u64 - 1)).to_le_bytes()),
            11 => {
                let near = self.word(pointer).wrapping_add(random.below(128) as u64).wrapping_sub(64);
                self.write(pointer, &near.to_le_bytes());
            }
            12 => {
                let other = random.one(&places.words);
                let [one, two] = [value, self.word(other)].map(u64::to_le_bytes);
                self.write(word, &two);
                self.write(other, &one);
            }
            13 => {
                // A piece of another object in place of this one.
                let words: Vec<u8> = (0..16).flat_map(|index| self.word(pointer + index * 8).to_le_bytes()).collect();
                self.write(word, &words);
            }
            14 => {
                self.changed.insert(random.one(&places.blocks), None);
            }
            15 => {
                let address = random.one(&places.blocks);
                let other = self.whole.blocks.get(&random.one(&places.blocks)).copied();
                let contents = [Some([0; BLOCK_BYTES]), Some([0xff; BLOCK_BYTES]), other];
                self.changed.insert(address, random.one(&contents));
            }
            16 => {
                // Unreadable from here on.
                let from = random.one(&places.words);
                let blocks = places.blocks.iter().filter(|block| **block > from).take(1 + random.below(8));
                blocks.for_each(|block| _ = self.changed.insert(*block, None));
            }
            _ => self.damage_head(random),
        }
    }

    fn damage_head(&mut self, random: &mut Random) {
        let Head { own_pid, versions, watched, files } = &mut self.head;
        if watched.is_empty() || files.is_empty() {
            return;
        }
        let (index, other) = (random.below(watched.len()), random.one(watched));
        match random.below(8) {
            0 => *own_pid = random.next() as u32,
            1 => versions.iter_mut().for_each(|version| *version = None),
            2 => versions.clear(),
            3 => versions.fill(Some(random.one(&[Version(4, 1, 0), Version(4, 2, 5), Version(9, 9, 9)]))),
            4 => watched[index].fd = random.one(&[-1, i32::MIN, i32::MAX, other.fd]),
            5 => watched[index].data = random.one(&[0, u64::MAX, other.data, other.data.wrapping_add(8)]),
            6 => watched.truncate(index),
            _ => _ = files.remove(random.below(files.len())),
        }
    }
}

impl Source for Damaged<'_> {
    fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize {
        self.fetches.set(self.fetches.get() + addresses.len() as u64);
        let read = blocks.iter_mut().zip(addresses).map_while(|(block, address)| {
            let is_old = self.races.as_ref().is_some_and(|random| random.borrow_mut().below(2) == 0);
            let changed = self.changed.get(address).filter(|_| !is_old);
            *block = changed.map_or_else(|| self.whole.blocks.get(address), Option::as_ref).copied()?;
            Some(())
        });
        read.count()
    }
}

/// What a look at a damaged image may cost: a few times what it costs while it is whole.
fn limits(whole: Budget) -> Budget {
    Budget {
        fetches: 10 * whole.fetches + 1000,
        read_bytes: 10 * whole.read_bytes + (64 << 20),
        kept_bytes: 10 * whole.kept_bytes + (4 << 20),
    }
}

fn spent(image: &Image<'_>) -> Budget {
    let (all, left) = (Budget::LOOK, image.left());
    Budget {
        fetches: all.fetches - left.fetches,
        read_bytes: all.read_bytes - left.read_bytes,
        kept_bytes: all.kept_bytes - left.kept_bytes,
    }
}

fn greater(one: Budget, two: Budget) -> Budget {
    Budget {
        fetches: one.fetches.max(two.fetches),
        read_bytes: one.read_bytes.max(two.read_bytes),
        kept_bytes: one.kept_bytes.max(two.kept_bytes),
    }
}

/// Whatever the memory says: what a look claims is possible.
fn assert_possible(look: &Look, saved: &Saved) {
    let memory = saved.blocks.len() * BLOCK_BYTES;
    assert!(look.contexts.len() <= saved.head.watched.len(), "a context was found by a poll entry");
    let text = serde_json::to_vec(&look.contexts).expect("plain data").len();
    assert!(text < 4 * memory + (1 << 20), "{text} bytes of text from {memory} of memory");
    for context in &look.contexts {
        assert_context_possible(context);
    }
}

fn assert_context_possible(context: &Context) {
    let handles: BTreeSet<u64> = context.sockets.iter().map(|socket| socket.handle).collect();
    assert_eq!(handles.len(), context.sockets.len(), "each socket once");
    assert!(context.term_fd.is_none_or(|fd| fd >= 0));
    assert!(!context.inherited || context.sockets.is_empty(), "a copy's sockets are of no use");
    let mapping = if context.layout.is_some() { Mapping::Exact } else { Mapping::Inferred };
    let mut fds = BTreeSet::new();
    for socket in &context.sockets {
        let kind = socket.socket_type;
        assert_eq!(kind.is_some(), context.layout.is_some(), "only a known layout tells types");
        assert!(kind.is_none_or(|kind| constants::socket_type(kind).is_some()), "{kind:?} is a type");
        assert!(socket.mailbox_fd.is_none_or(|fd| fd >= 0));
        for connection in &socket.connections {
            assert_eq!(connection.mapping, mapping);
            assert!(connection.fd.is_none_or(|fd| fd >= 0 && fds.insert(fd)), "each fd once: {connection:?}");
            assert!(connection.peer_handle.is_none_or(|peer| handles.contains(&peer)), "{connection:?}");
        }
        assert!(socket.endpoints.iter().all(|endpoint| endpoint.fd.is_none_or(|fd| fd >= 0)));
    }
}

/// Says which damage it was.
struct Case(&'static str, u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("image {}, damage {}", self.0, self.1);
        }
    }
}

#[test]
fn damaged_images_do_no_harm() {
    let (mut looks, mut spent_time) = (0u32, Duration::ZERO);
    for (name, rounds) in ROUNDS {
        let saved = Saved::load(name);
        let places = Places::of(&saved);
        let image = Image::new(&saved);
        let whole = saved.head.look(&image, Detail::All, layouts::all());
        // As the process itself, and as the one that it inherited from.
        let heads = [&saved.head, &saved.head.of_owner(&whole)];
        let limits = limits(spent(&image));
        let mut most = Budget { fetches: 0, read_bytes: 0, kept_bytes: 0 };
        for round in 0..rounds {
            let _case = Case(name, round);
            let mut random = Random(round);
            let damaged = Damaged::new(&saved, heads[random.below(2)], &places, &mut random);
            let detail = random.one(&[Detail::All, Detail::All, Detail::Names, Detail::Queues]);
            let known = if random.below(8) == 0 { &[] } else { layouts::all() };
            let begun = Instant::now();
            let image = Image::new(&damaged);
            let look = damaged.head.look(&image, detail, known);
            spent_time += begun.elapsed();
            looks += 1;
            let spent = spent(&image);
            assert_eq!(spent.fetches, damaged.fetches.get());
            assert_eq!(greater(spent, limits), limits, "it costs too much");
            most = greater(most, spent);
            assert_possible(&look, &saved);
        }
        eprintln!("{name}: at most {most:?}, of {limits:?}");
    }
    eprintln!("{looks} looks in {spent_time:?}: {:.0} a second", f64::from(looks) / spent_time.as_secs_f64());
}
