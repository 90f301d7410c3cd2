//! A process's memory as it is read for one look: block by block, each once, within limits. What is in it is
//! untrusted; reading never fails louder than with `None`.
//!
//! A block is small, since objects are: of a connection 4 KiB are of interest, which lie in 16 pages. And a system call
//! can fetch many of them, wherever they are ([`Image::prefetch`]).

use std::cell::{Cell, RefCell};

use rustc_hash::FxHashMap;

use crate::target::{MAX_PARTS, Memory, share};

/// Bytes of a block: a part of a page.
pub const BLOCK_BYTES: usize = 512;
/// Blocks that are fetched together when one is missing.
const BLOCKS_AT_ONCE: u64 = 4;
/// Blocks that are worth a thread.
const LEAST_SHARED: usize = 400;
/// Blocks that are kept, 32 MiB; beyond it all are dropped and read anew.
const MAX_BLOCKS: usize = 64 << 10;

/// What one look may cost, whatever the memory says: it bounds the look's time and our memory. A process with 4,000
/// connections takes about a tenth of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Blocks that are fetched.
    pub fetches: u64,
    /// Bytes that are copied out of blocks, with a fixed price for each read.
    pub read_bytes: u64,
    /// Bytes of what is kept: lists, names, descriptions of sockets and connections.
    pub kept_bytes: u64,
}

impl Budget {
    /// That of a look.
    pub const LOOK: Self = Self { fetches: 1 << 21, read_bytes: 512 << 20, kept_bytes: 128 << 20 };
}

/// What a read costs besides its bytes, in the time that it takes to copy some.
const READ_COST_BYTES: u64 = 64;

/// One block.
pub type Block = [u8; BLOCK_BYTES];

/// Where memory comes from.
pub trait Source {
    /// Fills `blocks` from as many addresses, one each, in their order, and returns how many could be read before the
    /// first one that cannot.
    fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize;
}

impl Source for Memory {
    fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize {
        share::fill(addresses, blocks, LEAST_SHARED, |addresses, blocks| {
            self.read_scattered(addresses, BLOCK_BYTES, blocks.as_flattened_mut()) / BLOCK_BYTES
        })
    }
}

/// The address `offset` bytes behind `base`, which the target may have made up: where there is none it is the last
/// one, at which nothing can be read.
pub const fn at(base: u64, offset: u64) -> u64 {
    base.saturating_add(offset)
}

/// The blocks read so far.
pub struct Image<'source> {
    source: &'source dyn Source,
    blocks: RefCell<Blocks>,
    budget: Budget,
    left: Cell<Budget>,
    is_exhausted: Cell<bool>,
}

impl<'source> Image<'source> {
    /// Nothing is read yet.
    pub fn new(source: &'source dyn Source) -> Self {
        Self::with_budget(source, Budget::LOOK)
    }

    /// The same, with other limits.
    pub fn with_budget(source: &'source dyn Source, budget: Budget) -> Self {
        let (left, is_exhausted) = (Cell::new(budget), Cell::new(false));
        Self { source, blocks: RefCell::default(), budget, left, is_exhausted }
    }

    /// Forgets what was read, so that it is read anew.
    pub fn refresh(&self) {
        self.blocks.borrow_mut().clear();
    }

    /// What may still be spent.
    pub const fn left(&self) -> Budget {
        self.left.get()
    }

    /// Whether something was not read since it would have cost too much.
    pub const fn is_exhausted(&self) -> bool {
        self.is_exhausted.get()
    }

    /// Whether half of the budget for reading is gone.
    pub fn is_half_spent(&self) -> bool {
        let left = self.left.get();
        left.fetches < self.budget.fetches / 2 || left.read_bytes < self.budget.read_bytes / 2
    }

    /// Takes account of something that is kept. `None`: it must not be.
    pub fn keep(&self, bytes: usize) -> Option<()> {
        self.spend(|left| &mut left.kept_bytes, bytes as u64)
    }

    /// Fetches what lies at these addresses and has these lengths, all at once: what is read next will be there.
    pub fn prefetch(&self, ranges: impl IntoIterator<Item = (u64, u64)>) {
        let numbers = |(address, len): (u64, u64)| {
            address / BLOCK_BYTES as u64..=at(address, len.saturating_sub(1)) / BLOCK_BYTES as u64
        };
        // Before our blocks are borrowed: the ranges may come from them.
        let mut missing: Vec<u64> = ranges.into_iter().flat_map(numbers).collect();
        missing.sort_unstable();
        missing.dedup();
        let mut blocks = self.blocks.borrow_mut();
        missing.retain(|number| !blocks.numbers.contains_key(number));
        // What does not fit is fetched when it is needed.
        missing.truncate(MAX_BLOCKS.saturating_sub(blocks.numbers.len()));
        let mut rest = &missing[..];
        while !rest.is_empty() {
            let Some(tried) = self.fetch(&mut blocks, rest) else { return };
            rest = &rest[tried..];
        }
    }

    /// An object of which some members will be read.
    pub const fn members(&self, address: u64) -> Members<'_> {
        Members { image: self, address }
    }

    /// `len` bytes at `address`, all or none.
    pub fn object(&self, address: u64, len: usize) -> Option<Object> {
        // A length is no reason to take memory: only what can be read is.
        let mut bytes = Vec::with_capacity(len.min(BLOCK_BYTES));
        self.read(address, len, |part| bytes.extend_from_slice(part))?;
        Some(Object { address, bytes })
    }

    /// The word at `address`.
    pub fn u64(&self, address: u64) -> Option<u64> {
        self.array(address).map(u64::from_le_bytes)
    }

    /// The half word at `address`.
    pub fn u32(&self, address: u64) -> Option<u32> {
        self.array(address).map(u32::from_le_bytes)
    }

    /// `N` bytes at `address`.
    pub fn array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut filled = 0;
        self.read(address, N, |part| {
            bytes[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        })?;
        Some(bytes)
    }

    /// Gives `len` bytes at `address` block by block. What was given counts only if all could be.
    fn read(&self, address: u64, len: usize, mut take: impl FnMut(&[u8])) -> Option<()> {
        let end = address.checked_add(len as u64)?;
        self.spend(|left| &mut left.read_bytes, len as u64 + READ_COST_BYTES)?;
        let mut next = address;
        while next < end {
            let (number, offset) = (next / BLOCK_BYTES as u64, (next % BLOCK_BYTES as u64) as usize);
            let part = (BLOCK_BYTES - offset).min((end - next) as usize);
            self.with_block(number, |block| take(&block[offset..offset + part]))?;
            next += part as u64;
        }
        Some(())
    }

    /// Fetches the block if it was not tried yet. `None`: it cannot be read.
    fn with_block(&self, number: u64, take: impl FnOnce(&Block)) -> Option<()> {
        let mut blocks = self.blocks.borrow_mut();
        if let Some(place) = blocks.numbers.get(&number) {
            return blocks.at(*place).map(take);
        }
        if blocks.numbers.len() >= MAX_BLOCKS {
            blocks.clear();
        }
        let last = at(number, BLOCKS_AT_ONCE - 1).min(u64::MAX / BLOCK_BYTES as u64);
        let wanted: Vec<u64> = (number..=last).take_while(|number| !blocks.numbers.contains_key(number)).collect();
        self.fetch(&mut blocks, &wanted)?;
        let place = *blocks.numbers.get(&number)?;
        blocks.at(place).map(take)
    }

    /// Fetches the first of some blocks, with one call, up to one that cannot be read. How many were tried; `None`: that
    /// would have cost too much.
    fn fetch(&self, blocks: &mut Blocks, numbers: &[u64]) -> Option<usize> {
        let room = blocks.room();
        let numbers = &numbers[..numbers.len().min(room.len())];
        self.spend(|left| &mut left.fetches, numbers.len() as u64)?;
        let addresses: Vec<u64> = numbers.iter().map(|number| number * BLOCK_BYTES as u64).collect();
        let read = self.source.read_blocks(&addresses, &mut room[..numbers.len()]).min(numbers.len());
        blocks.enter(&numbers[..read]);
        if let Some(unreadable) = numbers.get(read) {
            blocks.numbers.insert(*unreadable, None);
        }
        Some((read + 1).min(numbers.len()))
    }

    fn spend(&self, part: impl FnOnce(&mut Budget) -> &mut u64, amount: u64) -> Option<()> {
        let mut left = self.left.get();
        let part = part(&mut left);
        let Some(rest) = part.checked_sub(amount) else {
            self.is_exhausted.set(true);
            return None;
        };
        *part = rest;
        self.left.set(left);
        Some(())
    }
}

/// Blocks by their numbers, in one place, since they are many and go together.
#[derive(Default)]
struct Blocks {
    /// Where a block is; `None`: it cannot be read.
    numbers: FxHashMap<u64, Option<u32>>,
    /// What one call fetches at most: small processes need no more.
    first: Vec<u8>,
    /// The rest, which takes no memory before it is used.
    rest: Vec<u8>,
    /// Blocks that hold something.
    used: usize,
}

impl Blocks {
    /// Blocks in `first`.
    const FIRST: usize = MAX_PARTS;

    fn at(&self, place: Option<u32>) -> Option<&Block> {
        let place = place? as usize;
        match place.checked_sub(Self::FIRST) {
            None => self.first.as_chunks().0.get(place),
            Some(place) => self.rest.as_chunks().0.get(place),
        }
    }

    /// Where the next blocks are to be put.
    fn room(&mut self) -> &mut [Block] {
        // Of bytes: these the allocator has as zeros, others would be written once more.
        match self.used.checked_sub(Self::FIRST) {
            None => {
                if self.first.is_empty() {
                    self.first = vec![0; BLOCK_BYTES * Self::FIRST];
                }
                &mut self.first.as_chunks_mut().0[self.used..]
            }
            Some(used) => {
                if self.rest.is_empty() {
                    self.rest = vec![0; BLOCK_BYTES * MAX_BLOCKS];
                    prefer_huge_pages(&mut self.rest);
                }
                let room = self.rest.as_chunks_mut().0.get_mut(used..).unwrap_or_default();
                let len = room.len().min(MAX_PARTS);
                &mut room[..len]
            }
        }
    }

    /// Enters blocks that were put there.
    fn enter(&mut self, numbers: &[u64]) {
        self.numbers.extend(numbers.iter().zip(self.used..).map(|(number, place)| (*number, Some(place as u32))));
        self.used += numbers.len();
    }

    /// Forgets all blocks, and keeps their memory for the next ones.
    fn clear(&mut self) {
        self.numbers.clear();
        self.used = 0;
    }
}

/// Asks for memory in pieces of 2 MiB, where the system gives such to those who ask: to be given thousands of pages
/// one by one takes as long as reading what goes into them.
fn prefer_huge_pages(memory: &mut [u8]) {
    const PAGE_BYTES: usize = 4096;
    let to_page = memory.as_ptr().align_offset(PAGE_BYTES);
    let Some(memory) = memory.get_mut(to_page..) else { return };
    // SAFETY: memory of ours, whose contents stay as they are. That it is refused is no reason to stop.
    unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_HUGEPAGE) };
}

/// An object in the image, whose members are read one by one.
#[derive(Clone, Copy)]
pub struct Members<'image> {
    image: &'image Image<'image>,
    /// Where it is.
    pub address: u64,
}

impl Members<'_> {
    /// `len` bytes at `offset`.
    pub fn bytes(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        self.image.object(at(self.address, offset), usize::try_from(len).ok()?).map(|object| object.bytes)
    }

    /// A word.
    pub fn u64(&self, offset: u64) -> Option<u64> {
        self.image.u64(at(self.address, offset))
    }

    /// A half word.
    pub fn u32(&self, offset: u64) -> Option<u32> {
        self.image.u32(at(self.address, offset))
    }

    /// An `int`.
    pub fn i32(&self, offset: u64) -> Option<i32> {
        self.image.array(at(self.address, offset)).map(i32::from_le_bytes)
    }

    /// A byte.
    pub fn u8(&self, offset: u64) -> Option<u8> {
        self.image.array(at(self.address, offset)).map(|[byte]| byte)
    }

    /// A `bool`: any other byte than 0 and 1 is none.
    pub fn bool(&self, offset: u64) -> Option<bool> {
        bool_of(self.u8(offset)?)
    }
}

fn bool_of(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// A copy of some bytes, read by offset. What lies outside is `None`.
#[derive(Debug, Clone)]
pub struct Object {
    /// Where it was.
    pub address: u64,
    bytes: Vec<u8>,
}

impl Object {
    /// `N` bytes at `offset`.
    pub fn array<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        self.bytes(offset, N as u64)?.try_into().ok()
    }

    /// `len` bytes at `offset`.
    pub fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    }

    /// A word.
    pub fn u64(&self, offset: u64) -> Option<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }

    /// A half word.
    pub fn u32(&self, offset: u64) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    /// An `int`.
    pub fn i32(&self, offset: u64) -> Option<i32> {
        self.array(offset).map(i32::from_le_bytes)
    }

    /// A byte.
    pub fn u8(&self, offset: u64) -> Option<u8> {
        self.array(offset).map(|[byte]| byte)
    }

    /// A `bool`: any other byte than 0 and 1 is none.
    pub fn bool(&self, offset: u64) -> Option<bool> {
        bool_of(self.u8(offset)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One page at 0x1000, which counts up. Counts the fetches.
    struct OnePage(Cell<u32>);

    impl Source for OnePage {
        fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize {
            self.0.set(self.0.get() + 1);
            let readable = addresses.iter().take_while(|address| (0x1000..0x2000).contains(*address)).count();
            for block in &mut blocks[..readable] {
                for (index, byte) in block.iter_mut().enumerate() {
                    *byte = index as u8;
                }
            }
            readable
        }
    }

    #[test]
    fn blocks_are_read_once_and_the_ends_of_memory_respected() {
        let source = OnePage(Cell::new(0));
        let image = Image::new(&source);
        assert_eq!(image.u32(0x1001), Some(0x0403_0201));
        assert_eq!(image.u64(0x1ffc), None, "it ends with the page");
        assert_eq!(image.u64(u64::MAX - 3), None, "no address is behind the last one");
        let object = image.object(0x1000, 16).expect("it is in the page");
        assert_eq!((object.u64(8), object.u64(9), object.u64(u64::MAX)), (Some(0x0f0e_0d0c_0b0a_0908), None, None));
        assert_eq!((object.bool(0), object.bool(1), object.bool(2)), (Some(false), Some(true), None));
        let members = image.members(0x1000);
        assert_eq!((members.u64(8), members.bool(1), members.bool(2)), (object.u64(8), Some(true), None));
        assert_eq!(members.u64(u64::MAX), None);
        let fetches = source.0.get();
        image.u32(0x1008);
        assert_eq!(source.0.get(), fetches, "what was read is not read again");
        image.refresh();
        image.u32(0x1008);
        assert_eq!(source.0.get(), fetches + 1);
    }

    #[test]
    fn what_was_prefetched_is_there_and_what_cannot_be_read_is_skipped() {
        let source = OnePage(Cell::new(0));
        let image = Image::new(&source);
        image.prefetch([(0x0ff0, 32), (0x1800, 8), (0x1ff8, 8), (0x9000, 8), (u64::MAX, 8), (0x1000, 0)]);
        let fetches = source.0.get();
        assert_eq!(image.u32(0x1000), Some(0x0302_0100));
        assert_eq!((image.u64(0x1800), image.u64(0x1ff8)), (Some(0x0706_0504_0302_0100), Some(0xfffe_fdfc_fbfa_f9f8)));
        assert_eq!((image.u64(0x0ff0), image.u64(0x9000)), (None, None));
        assert_eq!(source.0.get(), fetches, "all of it was fetched, or tried");
    }

    #[test]
    fn a_budget_ends_a_look() {
        let source = OnePage(Cell::new(0));
        let image = Image::with_budget(&source, Budget { fetches: 2, ..Budget::LOOK });
        image.prefetch((0..8).map(|block| (0x1000 + block * BLOCK_BYTES as u64, 8)));
        assert!(image.is_exhausted() && image.u64(0x1000).is_none());
    }
}
