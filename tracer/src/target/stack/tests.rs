use std::{
    fs::File,
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use blazesym::symbolize::Symbolizer;

use super::{cfi::Cfi, *};
use crate::target::elf::Elf;

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.rotate_right(self.0.count_ones()) ^ self.0 >> 29
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn own_unwinder() -> Unwinder {
    Unwinder::new(std::process::id()).expect("our own mappings")
}

/// Steps from random places with random registers over random memory.
fn step_at_random(cfi: &Cfi, places: &[u64], random: &mut Random) -> usize {
    let mut unwinder = cfi::Unwinder::default();
    let mut callers = 0;
    for place in places {
        let mut registers = Frame::default();
        for register in [RSP, RBP] {
            registers.set(register, random.next() >> random.below(64));
        }
        let mut words = Random(random.next());
        let step = unwinder
            .step(cfi, *place, *place, &mut registers, |address| (!address.is_multiple_of(7)).then(|| words.next()));
        callers += usize::from(matches!(step, Step::Caller { .. }));
    }
    callers
}

/// Damaged copies of a real program. Bytes are changed where it hurts: in the headers, in what the call frame
/// information is, and in the symbols.
#[test]
fn damaged_files_are_survived() {
    let path = std::env::temp_dir().join(format!("zmqtrace-stack-{}", std::process::id()));
    let sound = std::fs::read("/bin/true").expect("every system has it");
    let whole = File::open("/bin/true").expect("every system has it");
    let Ok(elf) = Elf::open(&whole) else { panic!("/bin/true is no program") };
    let section = |name: &[u8]| {
        let bytes = elf.section(name).expect("it has that").bytes;
        let start = memchr::memmem::find(&sound, &bytes).expect("it lies in the file");
        start..start + bytes.len()
    };
    let text = elf.section_address(b".text").expect("code")..;
    let text = text.start..text.start + elf.section(b".text").expect("code").bytes.len() as u64;
    let hurts = [section(b".eh_frame"), section(b".eh_frame_hdr"), section(b".dynsym"), section(b".dynstr"), 5..0x400];

    let mut random = Random(7);
    let places = |random: &mut Random| -> Vec<u64> {
        (0..50).map(|_| text.start + random.below((text.end - text.start) as usize) as u64).collect()
    };
    let sound_callers = step_at_random(&Cfi::read(&elf).expect("it has that"), &places(&mut random), &mut random);
    assert!(sound_callers > 10, "{sound_callers} callers in the undamaged file");
    let mut read = 0;
    for round in 0..1500 {
        let mut damaged = sound.clone();
        let range = &hurts[round % hurts.len()];
        for _ in 0..=random.below(30) {
            damaged[range.start + random.below(range.len())] = random.next() as u8;
        }
        if round % 50 == 0 {
            damaged.truncate(random.below(damaged.len()));
        }
        // A new file each time, as another one may still be mapped.
        let _ = std::fs::remove_file(&path);
        File::create(&path).expect("a scratch file").write_all(&damaged).expect("room for it");
        let file = File::open(&path).expect("the scratch file");
        let places = places(&mut random);
        if let Some(cfi) = Elf::open(&file).ok().as_ref().and_then(Cfi::read) {
            read += 1;
            step_at_random(&cfi, &places, &mut random);
        }
        for debug_syms in [false, true] {
            let _ = symbols::look_up(&Symbolizer::new(), path.clone(), &places, debug_syms);
        }
    }
    let _ = std::fs::remove_file(path);
    assert!(read > 500, "damage this small leaves most files readable: {read}");
}

/// Registers and stacks that no program would have: bounded, and never said to be complete.
#[test]
fn garbage_registers_end_soon() {
    let mut unwinder = own_unwinder();
    let mut random = Random(11);
    let code = garbage_registers_end_soon as *const () as u64;
    let stack = vec![0u8; 1 << 16];
    for round in 0..3000 {
        let pc = if round % 2 == 0 { code + random.below(1 << 16) as u64 } else { random.next() };
        let sp = match round % 3 {
            0 => stack.as_ptr() as u64 + random.below(stack.len()) as u64,
            1 => random.next(),
            _ => u64::MAX - random.below(300) as u64,
        };
        let addresses = unwinder.walk(pc, sp, (round % 5 > 0).then(|| random.next()));
        assert!(addresses.iter().len() <= MAX_FRAMES);
    }
}

/// A stack full of return addresses into a function leads up to its end or to the limit.
#[test]
fn a_stack_that_never_ends_is_cut() {
    let mut unwinder = own_unwinder();
    let code = own_unwinder as *const () as u64;
    for offset in 1..200 {
        let stack = vec![code + offset; (MAX_STACK_BYTES / 8) + 4096];
        let start = stack.as_ptr() as u64;
        let addresses = unwinder.walk(code + offset, start + RED_ZONE_BYTES, Some(start + 4096));
        assert!(addresses.truncated, "{addresses:?}");
        assert!(addresses.iter().len() <= MAX_FRAMES);
    }
}

#[test]
fn a_stack_is_read_to_the_end_of_its_mapping_and_no_further() {
    let memory = Memory::new(std::process::id());
    // Two pages of which the second cannot be read.
    // SAFETY: a new mapping at an address of the kernel's choice, and a change of half of it.
    let start = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(std::ptr::null_mut(), 2 * PAGE_BYTES, libc::PROT_READ, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::mprotect(start.add(PAGE_BYTES), PAGE_BYTES, libc::PROT_NONE), 0);
        start as u64
    };
    let mut stack = StackReader::new(&memory, start + RED_ZONE_BYTES + 16);
    assert_eq!(stack.read_u64(start + 16), Some(0), "the red zone");
    assert_eq!(stack.read_u64(start), None, "below it");
    assert_eq!(stack.read_u64(start + PAGE_BYTES as u64 - 8), Some(0));
    assert_eq!(stack.read_u64(start + PAGE_BYTES as u64 - 4), None);
    assert_eq!(stack.read_u64(start + PAGE_BYTES as u64), None);
    assert_eq!(stack.read_u64(u64::MAX), None);
    assert!(StackReader::new(&memory, u64::MAX).read_u64(u64::MAX).is_none());
    // SAFETY: our own mapping, which nothing refers to any more.
    unsafe { libc::munmap(start as *mut _, 2 * PAGE_BYTES) };
}

#[test]
fn a_thread_that_runs_or_is_not_there_has_no_stack() {
    let mut unwinder = own_unwinder();
    let (sender, receiver) = std::sync::mpsc::channel();
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: no arguments.
            sender.send(unsafe { libc::gettid() } as u32).expect("the test listens");
            while !stop.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        let tid = receiver.recv().expect("it says so");
        assert_eq!(unwinder.unwind(tid, None), None);
        stop.store(true, Relaxed);
    });
    assert_eq!(unwinder.unwind(0, None), None);
}

#[test]
fn addresses_without_code_stay_without_names() {
    let mut unwinder = own_unwinder();
    let frames = [1u64, 0, u64::MAX].map(|address| CodeAddress { address, exact: false }).to_vec();
    let named = unwinder.symbolise(&[Addresses { frames, truncated: true }, Addresses::default()], true);
    assert_eq!(named.len(), 2);
    assert!(named[0].frames.iter().all(|frame| frame.function.is_none() && frame.module.is_none()));
    assert_eq!(named[0].frames.iter().map(|frame| frame.address).collect::<Vec<_>>(), [1, 0, u64::MAX]);
    assert!(named[0].truncated && named[1].frames.is_empty());
}
