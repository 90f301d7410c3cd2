//! Raw records of the ring buffer to events. The only place where both meet.

use std::collections::HashMap;

use aya::Pod;
use bytes::{Bytes, BytesMut};
use tracer_common::{
    fds::FdRecord,
    function::{Class, Cookie, Failure, Function, Returns},
    limits::{INLINE_DATA_BYTES, MAX_NESTED_FRAMES},
    record::{
        CALL_HEADER_BYTES, CallRecord, DATA_HEADER_BYTES, DataRecord, FLAG_DATA_APART, FLAG_DATA_FAULT, FLAG_DATA_LOST,
        FLAG_ERRNO_KNOWN, FLAG_MORE, FLAG_MORE_KNOWN, FLAG_SIZE_KNOWN, FLAG_TEXT_CUT, RecordKind, ThreadRecord,
    },
};

use super::{fds, wire};
use crate::event::{Call, Data, Event, FunctionId, Missing, Outcome, ProcessEnd, Thread, ThreadExit};
use crate::target::printable;

/// Bytes that payloads are copied into together, so that an event costs no allocation of its own.
const ARENA_BYTES: usize = 64 << 10;

/// Data of one thread that waits for its calls: more than can be in flight, so that only data whose call was lost
/// is pushed out.
const MAX_WAITING: usize = 2 * MAX_NESTED_FRAMES;

/// Turns records into events, in the order of the ring.
#[derive(Debug, Default)]
pub struct Decoder {
    arena: BytesMut,
    /// Data that came before its call: by thread, the sequences of calls and their data, oldest first.
    apart: HashMap<u32, Vec<(u32, Bytes)>>,
    /// Slots of threads that have made calls since [`take_slots`](Self::take_slots).
    slots: Vec<u32>,
    /// Records that made no sense.
    pub unreadable: u64,
    /// Whether the data of sends and receives says which pipes they used.
    pipes: bool,
}

impl Decoder {
    /// With `pipes`, the data of sends and receives says which pipes they used.
    pub fn new(pipes: bool) -> Self {
        Self { pipes, ..Self::default() }
    }

    /// The event that a record makes, if any.
    pub fn decode(&mut self, record: &[u8]) -> Option<Event> {
        let event = match record.first().copied().and_then(RecordKind::from_byte) {
            Some(RecordKind::Call) => {
                read(record, CALL_HEADER_BYTES).and_then(|call| self.call(&call)).map(Event::Call)
            }
            Some(RecordKind::Data) => {
                self.data(record);
                return None;
            }
            Some(RecordKind::Fd) => {
                read(record, size_of::<FdRecord>()).and_then(|record| fds::change(&record)).map(Event::Fd)
            }
            Some(RecordKind::Wire) => wire::wire(record).map(Event::Wire),
            Some(RecordKind::Stream) => wire::stream(record).map(Event::Stream),
            Some(RecordKind::Pipe) => wire::pipe(record).map(Event::Pipe),
            // What a subscriber sends besides its subscriptions is the program's own.
            Some(RecordKind::Command) => return wire::command(record).map(Event::Command),
            Some(kind) => read(record, size_of::<ThreadRecord>()).and_then(|thread| self.life(kind, &thread)),
            None => None,
        };
        if event.is_none() {
            self.unreadable += 1;
        }
        event
    }

    /// Where the new threads keep their calls in flight.
    pub fn take_slots(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.slots.drain(..)
    }

    /// A call that is still in flight, from its thread's slot.
    pub fn in_flight(&mut self, record: &CallRecord) -> Option<Call> {
        let function = FunctionId::from_index(record.function)?;
        Some(Call { outcome: None, ..self.entry(record, function) })
    }

    fn call(&mut self, record: &CallRecord) -> Option<Call> {
        let function = FunctionId::from_index(record.function)?;
        let row = function.row();
        let known = |flag| record.flags & flag != 0;
        let outcome = Outcome {
            return_ns: record.return_ns,
            ret: returned(row, record.ret),
            failed: row.failure != Failure::Never && Cookie::new(record.function.into(), 0, false).failed(record.ret),
            errno: known(FLAG_ERRNO_KNOWN).then_some(record.errno),
        };
        Some(Call { outcome: Some(outcome), ..self.entry(record, function) })
    }

    fn entry(&mut self, record: &CallRecord, function: FunctionId) -> Call {
        let known = |flag| record.flags & flag != 0;
        let bytes = if known(FLAG_DATA_APART) {
            self.apart_of(record)
        } else {
            Some(self.keep(&record.data[..(record.data_len as usize).min(INLINE_DATA_BYTES)]))
        };
        let missing = if known(FLAG_DATA_LOST) || bytes.is_none() {
            Some(Missing::Lost)
        } else if known(FLAG_DATA_FAULT) {
            Some(Missing::Unreadable)
        } else {
            known(FLAG_TEXT_CUT).then_some(Missing::Cut)
        };
        let bytes = bytes.unwrap_or_default();
        let carries_pipes = self.pipes && matches!(function.row().class, Class::Send | Class::Recv);
        let (pipes, bytes) = if carries_pipes { (wire::pipes(&bytes), Bytes::new()) } else { (Vec::new(), bytes) };
        Call {
            pid: record.tgid,
            tid: record.tid,
            sequence: record.sequence,
            function,
            library: record.library,
            generation: record.generation,
            entry_ns: record.entry_ns,
            args: record.args,
            size: known(FLAG_SIZE_KNOWN).then_some(record.size),
            more: known(FLAG_MORE_KNOWN).then_some(known(FLAG_MORE)),
            data: Data { bytes, missing },
            pipes,
            outcome: None,
        }
    }

    /// The data that came before this call; a call that has returned needs it no more.
    fn apart_of(&mut self, record: &CallRecord) -> Option<Bytes> {
        let waiting = self.apart.get_mut(&record.tid)?;
        let index = waiting.iter().position(|(sequence, _)| *sequence == record.sequence)?;
        let returned = record.return_ns != 0;
        Some(if returned { waiting.remove(index).1 } else { waiting[index].1.clone() })
    }

    fn data(&mut self, record: &[u8]) {
        let Some(header) = read::<DataRecord<0>>(record, DATA_HEADER_BYTES) else {
            self.unreadable += 1;
            return;
        };
        let data = &record[DATA_HEADER_BYTES..];
        let data = &data[..data.len().min(header.data_len as usize)];
        let bytes = self.keep(data);
        let waiting = self.apart.entry(header.tid).or_default();
        if waiting.len() == MAX_WAITING {
            waiting.remove(0);
        }
        waiting.push((header.sequence, bytes));
    }

    fn life(&mut self, kind: RecordKind, record: &ThreadRecord) -> Option<Event> {
        let (ts_ns, pid, tid) = (record.ts_ns, record.tgid, record.tid);
        match kind {
            RecordKind::ThreadStart => {
                self.slots.push(record.slot);
                let len = record.comm.iter().position(|byte| *byte == 0).unwrap_or(record.comm.len());
                let name = printable(&record.comm[..len]);
                Some(Event::Thread(Thread { ts_ns, pid, tid, name }))
            }
            RecordKind::ThreadExit => {
                self.apart.remove(&tid);
                Some(Event::ThreadExit(ThreadExit { ts_ns, pid, tid }))
            }
            RecordKind::ProcessExec => Some(Event::Exec(ProcessEnd { ts_ns, pid })),
            RecordKind::Call
            | RecordKind::Data
            | RecordKind::Fd
            | RecordKind::Wire
            | RecordKind::Stream
            | RecordKind::Command
            | RecordKind::Pipe => None,
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if self.arena.capacity() < bytes.len() {
            self.arena = BytesMut::with_capacity(ARENA_BYTES.max(bytes.len()));
        }
        self.arena.extend_from_slice(bytes);
        self.arena.split().freeze()
    }
}

/// Copies the `T` at the start of a record that must have at least `least` bytes of it; what is cut off
/// behind them reads as zero.
pub fn read<T: Pod>(record: &[u8], least: usize) -> Option<T> {
    if record.len() < least {
        return None;
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: copies no more than either holds; `Pod` means that any bytes are a value.
    unsafe {
        std::ptr::copy_nonoverlapping(record.as_ptr(), value.as_mut_ptr().cast(), record.len().min(size_of::<T>()));
        Some(value.assume_init())
    }
}

/// The return register as a value of the function's type.
fn returned(function: &Function, register: i64) -> i64 {
    match function.returns {
        Returns::Int => i64::from(register as i32),
        Returns::Unsigned => i64::from(register as u32),
        Returns::Size | Returns::Pointer => register,
        Returns::Void => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_any_content_and_length_are_survived() {
        let mut decoder = Decoder::default();
        let mut seed = 1u64;
        for len in 0..400 {
            for kind in 0..12u8 {
                let mut record: Vec<u8> = (0..len)
                    .map(|_| {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (seed >> 56) as u8
                    })
                    .collect();
                if let Some(first) = record.first_mut() {
                    *first = kind;
                }
                if let Some(Event::Call(call)) = decoder.decode(&record) {
                    assert!(call.data.bytes.len() <= 4096);
                }
            }
        }
        assert!(decoder.unreadable > 0);
    }

    /// The bytes of a plain record, as the ring has them.
    fn bytes_of<T: Pod>(record: &T) -> &[u8] {
        // SAFETY: `Pod` means that all bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
    }

    fn call(sequence: u32) -> CallRecord {
        // SAFETY: integers only, for which zero is a value.
        let mut call: CallRecord = unsafe { std::mem::zeroed() };
        call.kind = RecordKind::Call as u8;
        call.flags = FLAG_DATA_APART;
        call.tid = 7;
        call.sequence = sequence;
        call.return_ns = 1;
        call
    }

    fn data(sequence: u32) -> DataRecord<4> {
        let kind = RecordKind::Data as u8;
        DataRecord { kind, padding: [0; 3], data_len: 4, tid: 7, sequence, data: *b"data" }
    }

    #[test]
    fn data_finds_its_call_and_never_piles_up() {
        let mut decoder = Decoder::default();
        for sequence in 0..100 {
            assert_eq!(decoder.decode(bytes_of(&data(sequence))), None);
        }
        assert_eq!(decoder.apart[&7].len(), MAX_WAITING, "the calls of all but the last were lost");
        let missing_and_bytes = |event| match event {
            Some(Event::Call(call)) => (call.data.missing, call.data.bytes),
            other => panic!("{other:?}"),
        };
        let found = missing_and_bytes(decoder.decode(bytes_of(&call(99))));
        assert_eq!(found, (None, Bytes::from_static(b"data")));
        // What is gone is said to be, not shown as empty.
        let gone = missing_and_bytes(decoder.decode(bytes_of(&call(5))));
        assert_eq!(gone, (Some(Missing::Lost), Bytes::new()));
    }
}
