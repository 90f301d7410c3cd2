//! The little of an ELF file that is needed to find functions in it, read piece by piece: programs can
//! be gigabytes, their symbol tables are not. Every offset and size comes from the file and is checked.

use std::{fs::File, io, os::unix::fs::FileExt};

use object::{
    LittleEndian as LE,
    elf::{
        ELFMAG, EM_X86_64, FileHeader64, PF_X, PT_LOAD, ProgramHeader64, SHF_COMPRESSED, SHN_UNDEF, SHT_DYNSYM,
        SHT_NOBITS, SHT_SYMTAB, STT_FUNC, STT_GNU_IFUNC, SectionHeader64, Sym64,
    },
    pod,
    read::elf::FileHeader as _,
};

/// A table larger than this is not read: no real symbol table is.
const MAX_TABLE_BYTES: u64 = 256 << 20;

/// An x86_64 ELF file.
pub struct Elf<'file> {
    file: &'file File,
    segments: Vec<ProgramHeader64<LE>>,
    sections: Vec<SectionHeader64<LE>>,
    /// Index of the section that holds the sections' names.
    names: u16,
}

/// Which symbol table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `.dynsym`: what the file exports.
    Dynamic,
    /// `.symtab`: all functions, unless stripped.
    Full,
}

/// A function that the file defines.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Address in the file's own terms.
    pub address: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
}

/// A symbol table with its names.
pub struct Symbols {
    symbols: Vec<Sym64<LE>>,
    names: Vec<u8>,
}

/// The contents of a section, and where they are loaded.
#[derive(Debug)]
pub struct Section {
    /// In the file's own terms.
    pub address: u64,
    pub bytes: Vec<u8>,
}

/// Why a file is not one of ours.
pub enum NotElf {
    /// Not ELF, or damaged: of no interest.
    Other,
    /// ELF for another machine or word size.
    Foreign(String),
}

impl<'file> Elf<'file> {
    pub fn open(file: &'file File) -> Result<Self, NotElf> {
        let header = read_table::<FileHeader64<LE>>(file, 0, 1).map_err(|_| NotElf::Other)?;
        let header = header.first().filter(|header| header.e_ident.magic == ELFMAG).ok_or(NotElf::Other)?;
        if !header.is_class_64() || !header.is_little_endian() || header.e_machine.get(LE) != EM_X86_64 {
            let bits = if header.is_class_64() { 64 } else { 32 };
            return Err(NotElf::Foreign(format!("a {bits}-bit program of ELF machine {}", header.e_machine.get(LE))));
        }
        let segments = read_table(file, header.e_phoff.get(LE), u64::from(header.e_phnum.get(LE)));
        let sections = read_table(file, header.e_shoff.get(LE), u64::from(header.e_shnum.get(LE)));
        Ok(Self {
            file,
            segments: segments.map_err(|_| NotElf::Other)?,
            // A file without section headers has no symbol table that we could read.
            sections: sections.unwrap_or_default(),
            names: header.e_shstrndx.get(LE),
        })
    }

    /// The symbols of one table; `None` where the file has none.
    pub fn symbols(&self, table: Table) -> Option<Symbols> {
        let kind = if table == Table::Dynamic { SHT_DYNSYM } else { SHT_SYMTAB };
        let section = self.sections.iter().find(|section| section.sh_type.get(LE) == kind)?;
        let names = self.sections.get(section.sh_link.get(LE) as usize)?;
        let count = section.sh_size.get(LE) / size_of::<Sym64<LE>>() as u64;
        Some(Symbols {
            names: read_bytes(self.file, names.sh_offset.get(LE), names.sh_size.get(LE)).ok()?,
            symbols: read_table(self.file, section.sh_offset.get(LE), count).ok()?,
        })
    }

    /// The section of that name, if the file has its contents.
    pub fn section(&self, name: &[u8]) -> Option<Section> {
        let names = self.section_names()?;
        let section = self.sections.iter().find(|section| is_named(section, name, &names))?;
        if section.sh_type.get(LE) == SHT_NOBITS || section.sh_flags.get(LE) & u64::from(SHF_COMPRESSED) != 0 {
            return None;
        }
        let bytes = read_bytes(self.file, section.sh_offset.get(LE), section.sh_size.get(LE)).ok()?;
        Some(Section { address: section.sh_addr.get(LE), bytes })
    }

    /// Where the section of that name is loaded.
    pub fn section_address(&self, name: &[u8]) -> Option<u64> {
        let names = self.section_names()?;
        let section = self.sections.iter().find(|section| is_named(section, name, &names))?;
        Some(section.sh_addr.get(LE))
    }

    /// Size of the file's debug information; 0 where it does not tell lines.
    pub fn debug_bytes(&self) -> u64 {
        let Some(names) = self.section_names() else { return 0 };
        if !self.sections.iter().any(|section| is_named(section, b".debug_line", &names)) {
            return 0;
        }
        let is_debug = |section: &&SectionHeader64<LE>| name_of(section, &names).starts_with(b".debug_");
        self.sections.iter().filter(is_debug).fold(0, |sum, section| sum.saturating_add(section.sh_size.get(LE)))
    }

    fn section_names(&self) -> Option<Vec<u8>> {
        let names = self.sections.get(usize::from(self.names))?;
        read_bytes(self.file, names.sh_offset.get(LE), names.sh_size.get(LE)).ok()
    }

    /// Offset in the file of what is mapped at `address`.
    pub fn offset_of_address(&self, address: u64) -> Option<u64> {
        self.code_segments().find_map(|segment| {
            let offset = address.checked_sub(segment.p_vaddr.get(LE))?;
            (offset < segment.p_filesz.get(LE)).then(|| segment.p_offset.get(LE).wrapping_add(offset))
        })
    }

    /// Address of what lies at `offset`, a page boundary at or before a segment with code. Only those
    /// segments count: with lld, file ranges of segments share pages.
    pub fn address_of_offset(&self, offset: u64) -> Option<u64> {
        self.code_segments().find_map(|segment| {
            let start = segment.p_offset.get(LE);
            let in_segment =
                offset < start.saturating_add(segment.p_filesz.get(LE)) && offset.saturating_add(4096) > start;
            in_segment.then(|| segment.p_vaddr.get(LE).wrapping_add(offset).wrapping_sub(start))
        })
    }

    /// Up to `len` bytes of code at `address`.
    pub fn code(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self
            .offset_of_address(address)
            .and_then(|offset| self.file.read_at(&mut bytes, offset).ok())
            .unwrap_or_default();
        bytes.truncate(read);
        bytes
    }

    /// Whether a part of the file that is loaded holds `text`. Reads it in pieces.
    pub fn contains(&self, text: &[u8]) -> bool {
        const PIECE_BYTES: u64 = 1 << 20;
        self.segments.iter().filter(|segment| segment.p_type.get(LE) == PT_LOAD).any(|segment| {
            let (start, len) = (segment.p_offset.get(LE), segment.p_filesz.get(LE).min(MAX_TABLE_BYTES));
            (0..len).step_by(PIECE_BYTES as usize).any(|at| {
                let piece = (len - at).min(PIECE_BYTES + text.len() as u64);
                read_bytes(self.file, start.saturating_add(at), piece)
                    .is_ok_and(|bytes| memchr::memmem::find(&bytes, text).is_some())
            })
        })
    }

    fn code_segments(&self) -> impl Iterator<Item = &ProgramHeader64<LE>> {
        self.segments.iter().filter(|segment| segment.p_type.get(LE) == PT_LOAD && segment.p_flags.get(LE) & PF_X != 0)
    }
}

impl Symbols {
    /// Whether `name` could be in the table: a quick look that spares reading every symbol.
    pub fn may_hold(&self, name: &str) -> bool {
        memchr::memmem::find(&self.names, name.as_bytes()).is_some()
    }

    /// The functions that the file defines, with their names.
    pub fn functions(&self) -> impl Iterator<Item = (&[u8], Function)> {
        self.symbols.iter().filter_map(|symbol| {
            let kind = symbol.st_info & 0xf;
            let defined = symbol.st_shndx.get(LE) != SHN_UNDEF && symbol.st_value.get(LE) != 0;
            if !defined || (kind != STT_FUNC && kind != STT_GNU_IFUNC) {
                return None;
            }
            let name = self.names.get(symbol.st_name.get(LE) as usize..)?;
            let name = &name[..memchr::memchr(0, name)?];
            Some((name, Function { address: symbol.st_value.get(LE), size: symbol.st_size.get(LE) }))
        })
    }

    /// The function of that name.
    pub fn function(&self, name: &str) -> Option<Function> {
        if !self.may_hold(name) {
            return None;
        }
        self.functions().find(|(found, _)| *found == name.as_bytes()).map(|(_, function)| function)
    }
}

/// The name of a section, from the table of names; empty where that does not have it.
fn name_of<'names>(section: &SectionHeader64<LE>, names: &'names [u8]) -> &'names [u8] {
    let name = names.get(section.sh_name.get(LE) as usize..).unwrap_or_default();
    &name[..memchr::memchr(0, name).unwrap_or(0)]
}

fn is_named(section: &SectionHeader64<LE>, name: &[u8], names: &[u8]) -> bool {
    name_of(section, names) == name
}

fn read_bytes(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidData)?;
    if len > MAX_TABLE_BYTES || end > file.metadata()?.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn read_table<T: pod::Pod>(file: &File, offset: u64, count: u64) -> io::Result<Vec<T>> {
    let len = count.checked_mul(size_of::<T>() as u64).ok_or(io::ErrorKind::InvalidData)?;
    let bytes = read_bytes(file, offset, len)?;
    let (table, _) = pod::slice_from_bytes::<T>(&bytes, count as usize).map_err(|()| io::ErrorKind::InvalidData)?;
    Ok(table.to_vec())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Damaged copies of a real program are read to the end or refused, never a panic. Bytes are changed where
    /// it hurts: in the headers, and in the tables that they point to.
    #[test]
    fn damaged_files_are_survived() {
        let sound = std::fs::read("/bin/true").expect("every system has it");
        let mut seed = 7u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let path = std::env::temp_dir().join(format!("zmqtrace-elf-{}", std::process::id()));
        let mut opened = 0;
        for round in 0..500 {
            let mut damaged = sound.clone();
            let sections = u64::from_le_bytes(sound[0x28..0x30].try_into().expect("8 bytes")) as usize;
            for _ in 0..=random(4) {
                let at = if round % 2 == 0 { 5 + random(0x400) } else { sections + random(sound.len() - sections) };
                damaged[at] = random(256) as u8;
            }
            if round % 10 == 0 {
                damaged.truncate(random(damaged.len()));
            }
            File::create(&path).expect("a scratch file").write_all(&damaged).expect("room for it");
            let file = File::open(&path).expect("the scratch file");
            let Ok(elf) = Elf::open(&file) else { continue };
            opened += 1;
            for table in [Table::Dynamic, Table::Full] {
                for (_, function) in elf.symbols(table).iter().flat_map(Symbols::functions) {
                    elf.code(function.address, 64);
                    elf.address_of_offset(function.address);
                }
            }
            elf.contains(b"no such text");
        }
        let _ = std::fs::remove_file(path);
        assert!(opened > 100, "damage this small leaves most files readable: {opened}");
    }
}
