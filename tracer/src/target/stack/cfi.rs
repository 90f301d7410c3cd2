//! One step up a stack, by the call frame information of the module that the pc is in (`.eh_frame`, DWARF 5 section
//! 6.4, with the registers' numbers of the System V ABI for x86_64).
//!
//! All of it is untrusted: what a rule needs and is not known, not readable, or not sound, ends the walk.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, Evaluation, EvaluationResult, Expression,
    FrameDescriptionEntry, LittleEndian, Location, Register, RegisterRule, UnwindContext, UnwindExpression,
    UnwindSection, UnwindTableRow, Value,
};

use crate::target::elf::{Elf, Section};

type Bytes<'data> = EndianSlice<'data, LittleEndian>;

/// DWARF numbers of registers.
pub const RBP: Register = gimli::X86_64::RBP;
pub const RSP: Register = gimli::X86_64::RSP;
const RIP: Register = gimli::X86_64::RA;
/// What a function gives back as it found it, and the rest are lost.
const PRESERVED: [Register; 6] =
    [gimli::X86_64::RBX, RBP, gimli::X86_64::R12, gimli::X86_64::R13, gimli::X86_64::R14, gimli::X86_64::R15];
const REGISTERS: u16 = 17;

/// Operations that one DWARF expression may take: it could loop.
const MAX_OPERATIONS: u32 = 1000;

/// The registers of a frame, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Registers([Option<u64>; REGISTERS as usize]);

impl Registers {
    pub fn get(&self, register: Register) -> Option<u64> {
        self.0.get(usize::from(register.0)).copied().flatten()
    }

    pub fn set(&mut self, register: Register, value: u64) {
        self.put(register, Some(value));
    }

    fn put(&mut self, register: Register, value: Option<u64>) {
        if let Some(slot) = self.0.get_mut(usize::from(register.0)) {
            *slot = value;
        }
    }
}

/// The call frame information of a file.
#[derive(Debug)]
pub struct Cfi {
    frames: Section,
    index: Index,
    bases: BaseAddresses,
}

/// How a function's entry is found.
#[derive(Debug)]
enum Index {
    /// By the file's own sorted table, `.eh_frame_hdr`.
    Header(Section),
    /// By one that was made here: a function's address, and the offset of its entry. Sorted.
    Made(Vec<(u64, usize)>),
}

/// Where a step led.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// To the caller, which goes on at this address.
    Caller { address: u64 },
    /// From a signal handler's trampoline to what the signal interrupted at this address.
    Interrupted { address: u64 },
    /// Nowhere: this is where the thread began.
    Root,
    /// Nowhere, though there is a caller.
    Unknown,
}

impl Cfi {
    /// Reads it from a file; `None` when it has none.
    pub fn read(elf: &Elf<'_>) -> Option<Self> {
        let frames = elf.section(b".eh_frame")?;
        let start = |name: &[u8]| elf.section_address(name).unwrap_or_default();
        let bases =
            BaseAddresses::default().set_eh_frame(frames.address).set_text(start(b".text")).set_got(start(b".got"));
        let index = match elf.section(b".eh_frame_hdr").filter(has_table) {
            Some(header) => Index::Header(header),
            None => Index::Made(make_index(&frames, &bases)),
        };
        Some(Self { frames, index, bases })
    }

    fn section(&self) -> EhFrame<Bytes<'_>> {
        eh_frame(&self.frames)
    }

    /// The entry of the function that an address is in.
    fn entry(&self, address: u64) -> Option<FrameDescriptionEntry<Bytes<'_>>> {
        let offset = match &self.index {
            Index::Header(header) => {
                let entry = look_up(header, address)?;
                usize::try_from(entry.checked_sub(self.frames.address)?).ok()?
            }
            Index::Made(entries) => {
                let behind = entries.partition_point(|(start, _)| *start <= address);
                entries.get(behind.checked_sub(1)?)?.1
            }
        };
        if offset >= self.frames.bytes.len() {
            return None;
        }
        let entry = self.section().fde_from_offset(&self.bases, offset.into(), EhFrame::cie_from_offset).ok()?;
        entry.contains(address).then_some(entry)
    }
}

fn eh_frame(section: &Section) -> EhFrame<Bytes<'_>> {
    let mut frames = EhFrame::new(&section.bytes, LittleEndian);
    frames.set_address_size(8);
    frames
}

/// Bytes of `.eh_frame_hdr` before its table.
const HEADER_BYTES: usize = 12;

/// Whether the header has a table in the one encoding that linkers make: version 1, the address of `.eh_frame` and the
/// number of entries in 4 bytes, and pairs of addresses relative to the header, 4 bytes each (Linux Standard Base 5.0,
/// section 10.6.2).
fn has_table(header: &Section) -> bool {
    const VERSION: u8 = 1;
    const COUNT_ENCODING: u8 = gimli::DW_EH_PE_udata4.0;
    const TABLE_ENCODING: u8 = gimli::DW_EH_PE_datarel.0 | gimli::DW_EH_PE_sdata4.0;
    let address_bytes = |encoding: u8| matches!(encoding & 0xf, 0x3 | 0xb);
    matches!(header.bytes[..], [VERSION, encoding, COUNT_ENCODING, TABLE_ENCODING, ..] if address_bytes(encoding))
}

/// The address of the last entry whose function begins at or before `address`.
fn look_up(header: &Section, address: u64) -> Option<u64> {
    let count = u32::from_le_bytes(header.bytes.get(8..HEADER_BYTES)?.try_into().ok()?) as usize;
    let (pairs, _) = header.bytes.get(HEADER_BYTES..)?.as_chunks::<8>();
    let pairs = &pairs[..count.min(pairs.len())];
    let word = |bytes: [u8; 4]| header.address.wrapping_add_signed(i32::from_le_bytes(bytes).into());
    let function = |&[a, b, c, d, ..]: &[u8; 8]| word([a, b, c, d]);
    let behind = pairs.partition_point(|pair| function(pair) <= address);
    let [.., a, b, c, d] = *pairs.get(behind.checked_sub(1)?)?;
    Some(word([a, b, c, d]))
}

/// Static programs may have no header.
fn make_index(section: &Section, bases: &BaseAddresses) -> Vec<(u64, usize)> {
    let frames = eh_frame(section);
    let mut entries = frames.entries(bases);
    let mut index = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(entry) = entry else { continue };
        if let Ok(entry) = entry.parse(EhFrame::cie_from_offset) {
            index.push((entry.initial_address(), entry.offset()));
        }
    }
    index.sort_unstable();
    index
}

/// Executes call frame information.
#[derive(Debug, Default)]
pub struct Unwinder {
    context: UnwindContext<usize>,
}

impl Unwinder {
    /// From a function to its caller. `lookup` is an address of the function in its file's own terms, `pc` the same
    /// place in the process's. The registers become the caller's if there is one.
    pub fn step(
        &mut self,
        cfi: &Cfi,
        lookup: u64,
        pc: u64,
        registers: &mut Registers,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Step {
        let Some(entry) = cfi.entry(lookup) else { return Step::Unknown };
        let section = cfi.section();
        let Ok(row) = entry.unwind_info_for_address(&section, &cfi.bases, &mut self.context, lookup) else {
            return Step::Unknown;
        };
        if matches!(row.register(RIP), Some(RegisterRule::Undefined)) {
            return Step::Root;
        }
        registers.set(RIP, pc);
        let mut rules = Rules { section, entry: &entry, row, frame: registers, read: &mut read };
        let Some(caller) = rules.caller() else { return Step::Unknown };
        let Some(address) = caller.get(RIP) else { return Step::Unknown };
        *registers = caller;
        if entry.is_signal_trampoline() { Step::Interrupted { address } } else { Step::Caller { address } }
    }
}

/// The rules that hold at one place, and what they work on.
struct Rules<'a, 'data, Read> {
    section: EhFrame<Bytes<'data>>,
    entry: &'a FrameDescriptionEntry<Bytes<'data>>,
    row: &'a UnwindTableRow<usize>,
    frame: &'a Registers,
    read: &'a mut Read,
}

impl<Read: FnMut(u64) -> Option<u64>> Rules<'_, '_, Read> {
    /// The caller's registers; `None` without its stack pointer.
    fn caller(&mut self) -> Option<Registers> {
        let cfa = match self.row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => self.frame.get(*register)?.wrapping_add_signed(*offset),
            CfaRule::Expression(expression) => self.evaluate(expression, None)?,
        };
        let mut caller = Registers::default();
        for register in (0..REGISTERS).map(Register) {
            let value = match self.row.register(register) {
                Some(rule) => self.apply(&rule, register, cfa),
                None if register == RSP => Some(cfa),
                None if PRESERVED.contains(&register) => self.frame.get(register),
                None => None,
            };
            caller.put(register, value);
        }
        Some(caller)
    }

    fn apply(&mut self, rule: &RegisterRule<usize>, register: Register, cfa: u64) -> Option<u64> {
        match rule {
            RegisterRule::SameValue => self.frame.get(register),
            RegisterRule::Offset(offset) => (self.read)(cfa.wrapping_add_signed(*offset)),
            RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
            RegisterRule::Register(other) => self.frame.get(*other),
            RegisterRule::Expression(expression) => {
                let address = self.evaluate(expression, Some(cfa))?;
                (self.read)(address)
            }
            RegisterRule::ValExpression(expression) => self.evaluate(expression, Some(cfa)),
            _ => None,
        }
    }

    fn evaluate(&mut self, expression: &UnwindExpression<usize>, initial: Option<u64>) -> Option<u64> {
        let Expression(code) = expression.get(&self.section).ok()?;
        let mut evaluation = Evaluation::new(code, self.entry.cie().encoding());
        evaluation.set_max_iterations(MAX_OPERATIONS);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut result = evaluation.evaluate().ok()?;
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.frame.get(register)?)).ok()?
                }
                EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                    evaluation.resume_with_memory(Value::Generic((self.read)(address)?)).ok()?
                }
                _ => return None,
            };
        }
        match evaluation.as_result().last()?.location {
            Location::Address { address } => Some(address),
            _ => None,
        }
    }
}
