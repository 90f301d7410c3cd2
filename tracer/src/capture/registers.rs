//! Registers of threads that sleep, and since when they do: a BPF iterator over tasks, which the kernel runs when it
//! is read. Nothing is attached to the target.
//!
//! It is loaded without the rest of the BPF object: no map but the constants, no parse of all the kernel's types.

use std::{
    collections::HashMap,
    io::Read as _,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::Duration,
};

use tracer_common::record::{TaskLayout, TaskRecord};

use super::{
    btf,
    program::{self, LoadError},
    sys::{self, ProgramKind},
};
use crate::{error::Error, target::stack::Registers};

/// How long the reader sleeps before it reads. Longer than the slack of timers (50 us), so that it really leaves its
/// CPU.
const PAUSE: Duration = Duration::from_micros(100);
/// What is read at a time, bytes.
const PIECE_BYTES: usize = 32 << 10;

/// The loaded iterator. Linux 5.15 and later; needs CAP_BPF and CAP_PERFMON.
#[derive(Debug)]
pub struct Reader {
    program: OwnedFd,
}

impl Reader {
    /// Loads it.
    ///
    /// # Errors
    /// When the kernel lacks type information, iterators over tasks or `bpf_task_pt_regs` (Linux 5.15), or
    /// privileges are missing. Stacks can be had without: fewer are complete, and since when threads sleep is not
    /// known.
    pub fn load() -> Result<Self, Error> {
        let types = btf::task_iterator()?;
        let kind = ProgramKind::TaskIterator { btf_id: types.function };
        let program = program::load_alone("task_registers", kind, &[("TASK_LAYOUT", bytes_of(&types.layout))]);
        let program = program.map_err(|error: LoadError| bpf_error("load the iterator over tasks", &error))?;
        Ok(Self { program })
    }

    /// The registers of every thread of process `pid`, by tid. Those of a thread that runs are of no meaning.
    ///
    /// When threads last ran is known to about 0.1 ms; what the scheduler's clock and CLOCK_MONOTONIC drift apart
    /// while a thread sleeps (some 0.001 %, more while NTP adjusts the latter) is added to that. Threads of real-time
    /// policies are said to sleep since they last began to run.
    ///
    /// # Errors
    /// The kernel's. A process that has ended has no threads: that is no error.
    pub fn read(&self, pid: u32) -> Result<HashMap<u32, Registers>, Error> {
        let failed = |error: &dyn std::fmt::Display| bpf_error("iterate over tasks", error);
        let mut tasks = match sys::iterate_tasks(self.program.as_fd(), Some(pid)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(HashMap::new()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG)) => {
                sys::iterate_tasks(self.program.as_fd(), None)
            }
            iterator => iterator,
        }
        .map_err(|error| failed(&error))?;
        // The kernel side tells when this thread was given its CPU by both clocks: a moment ago.
        thread::sleep(PAUSE);
        let mut bytes = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match tasks.read(&mut piece).map_err(|error| failed(&error))? {
                0 => break,
                len => bytes.extend_from_slice(&piece[..len]),
            }
        }
        let records: Vec<TaskRecord> = bytes.chunks_exact(size_of::<TaskRecord>()).map(record).collect();
        Ok(registers(&records, pid))
    }
}

/// The records of one process. Kernels before 6.1 have sent those of all.
fn registers(records: &[TaskRecord], pid: u32) -> HashMap<u32, Registers> {
    let clocks = Clocks::compare(records);
    let of_process = records.iter().filter(|record| record.tgid == pid);
    let registers = |record: &TaskRecord| Registers {
        ip: record.ip,
        sp: record.sp,
        bp: record.bp,
        last_ran_ns: clocks.and_then(|clocks| clocks.last_ran_ns(record)),
        times_run: (record.times_run > 0).then_some(record.times_run),
    };
    of_process.map(|record| (record.tid, registers(record))).collect()
}

/// How far CLOCK_MONOTONIC is ahead of the scheduler's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clocks {
    ahead_ns: u64,
}

impl Clocks {
    /// Each record has the reader's arrival by the scheduler's clock and a later moment by the other: the least
    /// difference is nearest to the truth.
    fn compare(records: &[TaskRecord]) -> Option<Self> {
        let known = records.iter().filter(|record| record.reader_arrival_ns > 0);
        // Wrapping, since either clock may be ahead.
        let ahead = known.map(|record| record.now_ns.wrapping_sub(record.reader_arrival_ns) as i64);
        ahead.min().map(|ahead| Self { ahead_ns: ahead as u64 })
    }

    fn last_ran_ns(self, record: &TaskRecord) -> Option<u64> {
        if record.arrival_ns == 0 {
            return None;
        }
        let arrival_ns = record.arrival_ns.wrapping_add(self.ahead_ns);
        let left_ns = arrival_ns.checked_add(record.ran_ns).filter(|left_ns| *left_ns <= record.now_ns);
        // A duration that makes no sense is none, such as that of a thread whose policy was changed.
        Some(left_ns.unwrap_or(arrival_ns).min(record.now_ns))
    }
}

fn record(bytes: &[u8]) -> TaskRecord {
    // SAFETY: of that size, as `chunks_exact` sees to, and any bytes are a record: it holds integers only.
    unsafe { bytes.as_ptr().cast::<TaskRecord>().read_unaligned() }
}

fn bytes_of(layout: &TaskLayout) -> &[u8] {
    // SAFETY: plain integers without padding (see the test of sizes in tracer-common).
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(layout).cast(), size_of::<TaskLayout>()) }
}

fn bpf_error(action: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::Bpf { action: action.into(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskRecord = TaskRecord {
        tid: 12,
        tgid: 10,
        ip: 1,
        sp: 2,
        bp: 3,
        times_run: 7,
        arrival_ns: 1_000,
        ran_ns: 30,
        reader_arrival_ns: 5_000,
        now_ns: 5_500,
    };

    #[test]
    fn the_scheduler_s_clock_becomes_clock_monotonic() {
        let later = TaskRecord { tid: 13, now_ns: 5_900, ..TASK };
        let other = TaskRecord { tid: 20, tgid: 20, now_ns: 5_400, ..TASK };
        let registers = registers(&[TASK, later, other], 10);
        assert_eq!(registers.len(), 2);
        // The least difference is the other process's: 400.
        let expected = Registers { ip: 1, sp: 2, bp: 3, last_ran_ns: Some(1_430), times_run: Some(7) };
        assert_eq!(registers[&12], expected);
    }

    #[test]
    fn the_scheduler_s_clock_may_be_ahead() {
        let task = TaskRecord { reader_arrival_ns: 9_000, arrival_ns: 8_000, ..TASK };
        assert_eq!(registers(&[task], 10)[&12].last_ran_ns, Some(8_000 + 30 - 3_500));
    }

    #[test]
    fn what_the_kernel_does_not_say_is_not_known() {
        let task = TaskRecord { arrival_ns: 0, times_run: 0, ..TASK };
        let found = registers(&[task], 10)[&12];
        assert_eq!((found.last_ran_ns, found.times_run), (None, None));
        let task = TaskRecord { reader_arrival_ns: 0, ..TASK };
        assert_eq!(registers(&[task], 10)[&12].last_ran_ns, None);
        assert!(registers(&[], 10).is_empty());
    }

    #[test]
    fn a_duration_that_makes_no_sense_is_none() {
        let task = TaskRecord { ran_ns: u64::MAX, ..TASK };
        assert_eq!(registers(&[task], 10)[&12].last_ran_ns, Some(1_500));
        let task = TaskRecord { arrival_ns: u64::MAX, ..TASK };
        assert!(registers(&[task], 10)[&12].last_ran_ns.is_some());
    }
}
