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
/// Fetches in one look: bounds its time whatever the memory says. Each moves 16 KiB.
const MAX_FETCHES: u32 = 1 << 17;

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

type Page = Box<[u8; PAGE_BYTES]>;

/// The pages read so far.
pub struct Image<'source> {
    source: &'source dyn Source,
    /// By number; `None`: it cannot be read.
    pages: RefCell<HashMap<u64, Option<Page>>>,
    fetches_left: Cell<u32>,
}

impl<'source> Image<'source> {
    /// Nothing is read yet.
    pub fn new(source: &'source dyn Source) -> Self {
        Self { source, pages: RefCell::default(), fetches_left: Cell::new(MAX_FETCHES) }
    }

    /// Forgets what was read, so that it is read anew.
    pub fn refresh(&self) {
        self.pages.borrow_mut().clear();
    }

    /// `len` bytes at `address`, all or none.
    pub fn object(&self, address: u64, len: usize) -> Option<Object> {
        let mut bytes = vec![0; len];
        self.fill(address, &mut bytes)?;
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
        self.fill(address, &mut bytes)?;
        Some(bytes)
    }

    fn fill(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        address.checked_add(buffer.len() as u64)?;
        let mut filled = 0;
        while filled < buffer.len() {
            let at = address + filled as u64;
            let (number, offset) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            self.fetch(number)?;
            let pages = self.pages.borrow();
            let page = pages.get(&number)?.as_ref()?;
            let len = (PAGE_BYTES - offset).min(buffer.len() - filled);
            buffer[filled..filled + len].copy_from_slice(&page[offset..offset + len]);
            filled += len;
        }
        Some(())
    }

    /// Makes sure that a page was tried. `None`: no more may be read.
    fn fetch(&self, number: u64) -> Option<()> {
        let mut pages = self.pages.borrow_mut();
        if pages.contains_key(&number) {
            return Some(());
        }
        self.fetches_left.set(self.fetches_left.get().checked_sub(1)?);
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
