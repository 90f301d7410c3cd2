//! Where a thread's `errno` lies, as a distance from its thread pointer.
//!
//! The C library says so itself: `__errno_location` is `mov GOT(%rip), %rax; add %fs:0, %rax` in a shared
//! glibc, `mov $imm, %rax; add %fs:0, %rax` in a static one, `mov %fs:0, %rax; add $imm, %rax` in musl.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::{
    MappedFile, Memory,
    elf::{Elf, Table},
};

/// The distance, from the first mapped file that defines `__errno_location`.
pub fn offset(files: &[MappedFile], memory: &Memory) -> Option<i64> {
    files.iter().find_map(|mapped| {
        let elf = Elf::open(&mapped.file).ok()?;
        let function = [Table::Dynamic, Table::Full]
            .into_iter()
            .find_map(|table| elf.symbols(table)?.function("__errno_location"))?;
        let bias = mapped.load_bias(&elf)?;
        evaluate(&elf.code(function.address, 64), function.address.wrapping_add(bias), |address| {
            memory.read_u64(address).ok()
        })
    })
}

/// Runs the function on paper: its result minus the thread pointer.
fn evaluate(code: &[u8], address: u64, read: impl Fn(u64) -> Option<u64>) -> Option<i64> {
    let (mut value, mut has_thread_pointer) = (0i64, false);
    for instruction in Decoder::with_ip(64, code, address, DecoderOptions::NONE).iter().take(8) {
        let writes_rax = instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RAX;
        let is_thread_pointer =
            instruction.segment_prefix() == Register::FS && instruction.memory_displacement64() == 0;
        match instruction.mnemonic() {
            Mnemonic::Endbr64 | Mnemonic::Push | Mnemonic::Pop | Mnemonic::Nop => {}
            Mnemonic::Ret => return has_thread_pointer.then_some(value),
            Mnemonic::Mov if writes_rax && is_thread_pointer => (value, has_thread_pointer) = (0, true),
            Mnemonic::Add if writes_rax && is_thread_pointer => has_thread_pointer = true,
            Mnemonic::Mov if writes_rax => value = operand(&instruction, &read)?,
            Mnemonic::Add if writes_rax => value = value.checked_add(operand(&instruction, &read)?)?,
            Mnemonic::Lea if writes_rax && instruction.memory_base() == Register::RAX => {
                value = value.checked_add(instruction.memory_displacement64() as i64)?;
            }
            Mnemonic::Sub if writes_rax => value = value.checked_sub(operand(&instruction, &read)?)?,
            _ => return None,
        }
    }
    None
}

fn operand(instruction: &Instruction, read: &impl Fn(u64) -> Option<u64>) -> Option<i64> {
    if instruction.is_ip_rel_memory_operand() {
        return read(instruction.ip_rel_memory_address()).map(|word| word as i64);
    }
    match instruction.op1_kind() {
        OpKind::Immediate8
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some(instruction.immediate(1) as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_glibc() {
        // mov 0x1000(%rip), %rax; add %fs:0, %rax; ret
        let code = [0x48, 0x8b, 0x05, 0, 0x10, 0, 0, 0x64, 0x48, 0x03, 0x04, 0x25, 0, 0, 0, 0, 0xc3];
        let read = |address| (address == 0x5000 + 7 + 0x1000).then_some(-128i64 as u64);
        assert_eq!(evaluate(&code, 0x5000, read), Some(-128));
    }

    #[test]
    fn static_glibc() {
        // endbr64; mov $-64, %rax; add %fs:0, %rax; ret
        let code = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0xc7, 0xc0, 0xc0, 0xff, 0xff, 0xff, 0x64, 0x48, 0x03, 0x04, 0x25, 0, 0, 0, 0,
            0xc3,
        ];
        assert_eq!(evaluate(&code, 0, |_| None), Some(-64));
    }

    #[test]
    fn musl() {
        // mov %fs:0, %rax; add $52, %rax; ret
        let code = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x83, 0xc0, 0x34, 0xc3];
        assert_eq!(evaluate(&code, 0, |_| None), Some(52));
    }

    #[test]
    fn anything_else_is_not_guessed() {
        assert_eq!(evaluate(&[0x31, 0xc0, 0xc3], 0, |_| None), None); // xor eax, eax; ret
        assert_eq!(evaluate(&[0x48, 0xc7, 0xc0, 1, 0, 0, 0, 0xc3], 0, |_| None), None); // no thread pointer
        assert_eq!(evaluate(&[], 0, |_| None), None);
    }
}
