//! Where in a function to put its probe.
//!
//! The kernel emulates some instructions and must single-step all others, which costs 12 us a hit
//! instead of 0.8 (x86_64, Linux 6.18). `push` and branches are emulated, `endbr64`, `test` and
//! `sub rsp` are not. So the probe goes to the first emulated instruction that is still in the function's
//! opening, where arguments, stack pointer and return address are as they were at entry.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};

/// How far into a function to look, bytes.
const WINDOW_BYTES: usize = 32;

/// Offset of the probe from the start of the function whose first bytes are `code`. `size` is the
/// function's (0: unknown); all of it must be in `code` for branches back into the opening to be seen.
pub fn probe_offset(code: &[u8], size: u64) -> u64 {
    let opening = skip_endbr64(code);
    let mut infos = InstructionInfoFactory::new();
    for instruction in Decoder::with_ip(64, code, 0, DecoderOptions::NONE).iter() {
        if instruction.is_invalid() || instruction.ip() as usize > WINDOW_BYTES {
            break;
        }
        if is_emulated(&instruction) {
            let offset = instruction.ip();
            return if is_branch_target(code, size, opening, offset) { opening } else { offset };
        }
        if !keeps_entry_state(&instruction, &mut infos) {
            break;
        }
    }
    opening
}

/// `endbr64` is never a branch target within a function, so to skip it is always right.
fn skip_endbr64(code: &[u8]) -> u64 {
    if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) { 4 } else { 0 }
}

/// `arch/x86/kernel/uprobes.c`: `push_setup_xol_ops`, `branch_setup_xol_ops`, and one-byte nop.
fn is_emulated(instruction: &Instruction) -> bool {
    match instruction.code() {
        Code::Push_r64 | Code::Nopd | Code::Nopq | Code::Nopw => true,
        Code::Call_rel32_64 | Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => true,
        _ => instruction.is_jcc_short_or_near(),
    }
}

/// Whether all that a probe reads is unchanged behind this instruction.
fn keeps_entry_state(instruction: &Instruction, infos: &mut InstructionInfoFactory) -> bool {
    const PROBED: [Register; 7] =
        [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9, Register::RSP];
    if instruction.mnemonic() == Mnemonic::Endbr64 {
        return true;
    }
    if instruction.flow_control() != FlowControl::Next {
        return false;
    }
    let info = infos.info(instruction);
    let writes = |access: OpAccess| {
        !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
    };
    let registers_kept = info
        .used_registers()
        .iter()
        .all(|used| !writes(used.access()) || !PROBED.contains(&used.register().full_register()));
    // A store could hit the return address or a buffer that is about to be copied.
    registers_kept && info.used_memory().iter().all(|used| !writes(used.access()))
}

/// Whether the function jumps to somewhere behind `opening`, up to `offset`: a loop whose head is there
/// would hit the probe again. Unknown counts as yes.
fn is_branch_target(code: &[u8], size: u64, opening: u64, offset: u64) -> bool {
    if offset == opening {
        return false;
    }
    if size == 0 || size as usize > code.len() {
        return true;
    }
    Decoder::with_ip(64, &code[..size as usize], 0, DecoderOptions::NONE).iter().any(|instruction| {
        let near = instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
        near && (opening + 1..=offset).contains(&instruction.near_branch_target())
            || instruction.flow_control() == FlowControl::IndirectBranch
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_is_taken_as_it_is() {
        assert_eq!(probe_offset(&[0x41, 0x57, 0x41, 0x56, 0xc3], 5), 0); // push r15; push r14; ret
    }

    #[test]
    fn endbr64_is_skipped() {
        assert_eq!(probe_offset(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3], 6), 4);
        assert_eq!(probe_offset(&[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x83, 0xec, 0x08, 0xc3], 9), 4); // sub rsp, 8
    }

    #[test]
    fn a_test_before_a_branch_is_skipped() {
        // test rdi, rdi; je +1; ret; ret
        assert_eq!(probe_offset(&[0x48, 0x85, 0xff, 0x74, 0x01, 0xc3, 0xc3], 7), 3);
    }

    #[test]
    fn a_loop_into_the_opening_keeps_the_probe_at_the_start() {
        // test rdi, rdi; je +1; ret; jmp back to the je
        assert_eq!(probe_offset(&[0x48, 0x85, 0xff, 0x74, 0x01, 0xc3, 0xeb, 0xfb], 8), 0);
    }

    #[test]
    fn a_changed_argument_or_stack_pointer_ends_the_opening() {
        assert_eq!(probe_offset(&[0x31, 0xf6, 0x55, 0xc3], 4), 0); // xor esi, esi; push rbp
        assert_eq!(probe_offset(&[0x48, 0x83, 0xec, 0x18, 0x55, 0xc3], 6), 0); // sub rsp, 24; push rbp
    }

    #[test]
    fn garbage_is_survived() {
        assert_eq!(probe_offset(&[], 0), 0);
        assert_eq!(probe_offset(&[0x06; 8], 8), 0);
    }
}
