//! Reads what the kernel side counted for `stat`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::maps::{Array, MapData};
use tracer_common::{
    limits::MAX_TOTALS,
    record::{CallTotals, Loss as Reason, TotalsKey},
};

use super::sys;
use crate::event::{CallResult, FunctionId, Loss, Totals, TotalsRow};

/// The totals of all sockets, functions and outcomes.
#[derive(Debug)]
pub struct TotalsReader {
    map: OwnedFd,
    keys: Vec<TotalsKey>,
    values: Vec<CallTotals>,
}

impl TotalsReader {
    pub fn new(map: OwnedFd) -> Self {
        Self { map, keys: Vec::new(), values: Vec::new() }
    }

    /// All rows, sorted.
    pub fn read(&mut self, ts_ns: u64) -> io::Result<Totals> {
        let mut len = self.keys.len().max(64);
        let count = loop {
            // SAFETY: integers only, for which zero is a value.
            self.keys.resize(len, unsafe { std::mem::zeroed() });
            // SAFETY: as above.
            self.values.resize(len, unsafe { std::mem::zeroed() });
            match sys::lookup_batch(self.map.as_fd(), &mut self.keys, &mut self.values) {
                Ok((count, true)) => break count,
                // With room for all and more the kernel would have said that it is complete.
                Ok((count, false)) if len > 4 * MAX_TOTALS as usize => break count,
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
                Err(error) => return Err(error),
            }
            len *= 2;
        };
        let rows = self.keys[..count].iter().zip(&self.values[..count]);
        let mut rows: Vec<_> = rows.filter_map(|(key, totals)| row(key, totals)).collect();
        rows.sort_by_key(|row| (row.pid, row.library, row.handle, row.generation, row.function, row.result));
        Ok(Totals { ts_ns, rows })
    }
}

fn row(key: &TotalsKey, totals: &CallTotals) -> Option<TotalsRow> {
    let result = match key.errno {
        0 => CallResult::Ok,
        -1 => CallResult::Failed,
        errno => CallResult::Errno(errno),
    };
    let buckets = totals.buckets.iter().zip(0u16..).filter(|(count, _)| **count != 0);
    Some(TotalsRow {
        pid: key.tgid,
        library: key.library,
        handle: key.handle,
        generation: key.generation,
        function: FunctionId::from_index(key.function)?,
        result,
        count: totals.buckets.iter().sum(),
        total_ns: totals.total_ns,
        max_ns: totals.max_ns,
        bytes: totals.bytes,
        messages: totals.messages,
        parts_unknown: totals.parts_unknown,
        buckets: buckets.map(|(count, index)| (index, *count)).collect(),
    })
}

/// What was lost until now, by the kernel side's counters.
pub fn read_loss(counters: &Array<MapData, u64>, ts_ns: u64) -> Loss {
    let count = |reason: Reason| counters.get(&(reason as u32), 0).unwrap_or(0);
    Loss {
        ts_ns,
        ring_full: count(Reason::RingFull),
        data_ring_full: count(Reason::DataRingFull),
        thread_table_full: count(Reason::ThreadTableFull),
        totals_full: count(Reason::TotalsFull),
        nested_too_deep: count(Reason::TooDeep),
        life_ring_full: count(Reason::LifeRingFull),
        other_stack: count(Reason::OtherStack),
        fd_ring_full: count(Reason::FdRingFull),
        fd_table_full: count(Reason::FdTableFull),
        wire_ring_full: count(Reason::WireRingFull),
        stream_table_full: count(Reason::StreamTableFull),
        pipe_table_full: count(Reason::PipeTableFull),
        unreadable: 0,
        stragglers: 0,
    }
}
