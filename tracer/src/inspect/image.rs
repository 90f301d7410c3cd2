//! A process's memory as it is read for one look: page by page, each once, within limits. What is in it is
//! untrusted; reading never fails louder than with `None`.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use crate::target::Memory;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages that are fetched together: objects lie side by side in the heap.
const PAGES_AT_ONCE: u64 = 4;
/// Pages that are kept, 64 MiB; beyond it all are dropped and read anew.
const MAX_PAGES: usize = 16 << 10;

/// What one look may cost, whatever the memory says: it bounds the look's time and our memory. A process with 4,000
/// connections takes about a tenth of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Fetches of pages. Each moves 16 KiB.
    pub fetches: u64,
    /// Bytes that are copied out of pages, with [`READ_COST_BYTES`] for each read.
    pub read_bytes: u64,
    /// Bytes of what is kept: lists, names, descriptions of sockets and connections.
    pub kept_bytes: u64,
}

impl Budget {
    /// That of a look.
    pub const LOOK: Self = Self { fetches: 1 << 17, read_bytes: 512 << 20, kept_bytes: 128 << 20 };
}

/// What a read costs besides its bytes, in the time that it takes to copy some.
const READ_COST_BYTES: u64 = 64;

/// Where memory comes from.
pub trait Source {
    /// Fills as many whole pages of `pages` as can be read, the first one at `address`, and returns how many: those
    /// behind the first one that cannot be read are left out.
    fn read_pages(&self, address: u64, pages: &mut [[u8; PAGE_BYTES]]) -> usize;
}

impl Source for Memory {
    fn read_pages(&self, address: u64, pages: &mut [[u8; PAGE_BYTES]]) -> usize {
        self.read_some(address, pages.as_flattened_mut()) / PAGE_BYTES
    }
}

/// The address `offset` bytes behind `base`, which the target may have made up: where there is none it is the last
/// one, at which nothing can be read.
pub const fn at(base: u64, offset: u64) -> u64 {
    base.saturating_add(offset)
}

type Page = Box<[u8; PAGE_BYTES]>;

/// The pages read so far.
pub struct Image<'source> {
    source: &'source dyn Source,
    /// By number; `None`: it cannot be read.
    pages: RefCell<HashMap<u64, Option<Page>>>,
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
        Self { source, pages: RefCell::default(), budget, left, is_exhausted }
    }

    /// Forgets what was read, so that it is read anew.
    pub fn refresh(&self) {
        self.pages.borrow_mut().clear();
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

    /// `len` bytes at `address`, all or none.
    pub fn object(&self, address: u64, len: usize) -> Option<Object> {
        // A length is no reason to take memory: only what can be read is.
        let mut bytes = Vec::with_capacity(len.min(PAGE_BYTES));
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

    /// Gives `len` bytes at `address` page by page. What was given counts only if all could be.
    fn read(&self, address: u64, len: usize, mut take: impl FnMut(&[u8])) -> Option<()> {
        let end = address.checked_add(len as u64)?;
        self.spend(|left| &mut left.read_bytes, len as u64 + READ_COST_BYTES)?;
        let mut next = address;
        while next < end {
            let (number, offset) = (next / PAGE_BYTES as u64, (next % PAGE_BYTES as u64) as usize);
            let part = (PAGE_BYTES - offset).min((end - next) as usize);
            self.with_page(number, |page| take(&page[offset..offset + part]))?;
            next += part as u64;
        }
        Some(())
    }

    /// Fetches the page if it was not tried yet. `None`: it cannot be read.
    fn with_page(&self, number: u64, take: impl FnOnce(&[u8; PAGE_BYTES])) -> Option<()> {
        let mut pages = self.pages.borrow_mut();
        if let Some(page) = pages.get(&number) {
            return page.as_deref().map(take);
        }
        self.spend(|left| &mut left.fetches, 1)?;
        if pages.len() >= MAX_PAGES {
            pages.clear();
        }
        let mut buffer = [[0; PAGE_BYTES]; PAGES_AT_ONCE as usize];
        let read = self.source.read_pages(number * PAGE_BYTES as u64, &mut buffer);
        for (number, page) in (number..).zip(&buffer[..read]) {
            pages.entry(number).or_insert_with(|| Some(Box::new(*page)));
        }
        if read == 0 {
            pages.insert(number, None);
        }
        (read > 0).then(|| take(&buffer[0]))
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
        match self.u8(offset)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One page at 0x1000, which counts up.
    struct OnePage(Cell<u32>);

    impl Source for OnePage {
        fn read_pages(&self, address: u64, pages: &mut [[u8; PAGE_BYTES]]) -> usize {
            self.0.set(self.0.get() + 1);
            if address != 0x1000 {
                return 0;
            }
            for (index, byte) in pages[0].iter_mut().enumerate() {
                *byte = index as u8;
            }
            1
        }
    }

    #[test]
    fn pages_are_read_once_and_their_ends_respected() {
        let source = OnePage(Cell::new(0));
        let image = Image::new(&source);
        assert_eq!(image.u32(0x1001), Some(0x0403_0201));
        assert_eq!(image.u64(0x1ffc), None, "it ends with the page");
        assert_eq!(image.u64(u64::MAX - 3), None, "no address is behind the last one");
        let object = image.object(0x1000, 16).expect("it is in the page");
        assert_eq!((object.u64(8), object.u64(9), object.u64(u64::MAX)), (Some(0x0f0e_0d0c_0b0a_0908), None, None));
        assert_eq!((object.bool(0), object.bool(1), object.bool(2)), (Some(false), Some(true), None));
        let fetches = source.0.get();
        image.u32(0x1008);
        assert_eq!(source.0.get(), fetches, "what was read is not read again");
        image.refresh();
        image.u32(0x1008);
        assert_eq!(source.0.get(), fetches + 1);
    }
}
