//! Takes the images anew.

use std::{cell::RefCell, collections::BTreeMap, fs, process::Command};

use zmqtrace::{
    inspect::{
        self,
        image::{BLOCK_BYTES, Block, Source},
    },
    target::{Memory, Process, fds},
};

use super::{
    replay::assert_expected,
    saved::{Head, IMAGES, Saved},
};
use crate::support::{Workload, made};

/// Memory that notes what is read of it.
struct Recorder<'a> {
    memory: &'a Memory,
    blocks: RefCell<BTreeMap<u64, Block>>,
}

impl Source for Recorder<'_> {
    fn read_blocks(&self, addresses: &[u64], blocks: &mut [Block]) -> usize {
        let read = self.memory.read_blocks(addresses, blocks);
        self.blocks.borrow_mut().extend(addresses.iter().copied().zip(blocks.iter().copied()).take(read));
        read
    }
}

fn workload(name: &str) -> Workload {
    let mut command = match name.split_once('-') {
        Some(("rust", _)) => Command::new(made("workloads/rust/release/rust-zoo")),
        Some((program, variant)) => {
            let mut command = Command::new(made("workloads").join(program));
            match program {
                "corners" => command.args(["--case", variant]),
                _ => command.env("LD_LIBRARY_PATH", made(&format!("libzmq/{variant}"))),
            };
            command
        }
        None => Command::new(made("workloads").join(name)),
    };
    Workload::start(&mut command)
}

/// What looks at a process need, noted. It stands still.
pub fn record(pid: u32) -> Saved {
    let process = Process::open_to_inspect(pid).expect("it can be looked into");
    let fdinfo = |fd: &i32| fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).expect("the process stands still");
    let event_polls = fds::fds(pid).expect("the process stands still").event_polls;
    let head = Head {
        own_pid: process.own_pid,
        versions: process.libraries.iter().map(|library| library.version).collect(),
        watched: event_polls.iter().flat_map(|fd| inspect::parse_fdinfo(&fdinfo(fd))).collect(),
        files: process.file_mappings(),
    };
    let memory = Memory::new(pid);
    let recorder = Recorder { memory: &memory, blocks: RefCell::default() };
    let mut saved = Saved { head, blocks: BTreeMap::new() };
    let live = saved.looks(&recorder);
    saved.blocks = recorder.blocks.into_inner();
    assert_eq!(saved.looks(&saved), live, "the saved image says what the process did");
    saved
}

/// Makes zero what no look depends on: it is most of the blocks, and holds what is nobody's business.
fn reduce(saved: &mut Saved) {
    /// Smaller pieces are not tried.
    const PIECE_BYTES: usize = 32;
    let expected = saved.looks(saved);
    let addresses: Vec<u64> = saved.blocks.keys().copied().collect();
    for address in addresses {
        let mut pieces = vec![(0, BLOCK_BYTES)];
        while let Some((start, len)) = pieces.pop() {
            let block = saved.blocks.get_mut(&address).expect("it was there");
            let before = *block;
            block[start..start + len].fill(0);
            if *block == before || saved.looks(saved) == expected {
                continue;
            }
            saved.blocks.insert(address, before);
            if len > PIECE_BYTES {
                pieces.extend([(start, len / 2), (start + len / 2, len / 2)]);
            }
        }
        if saved.blocks[&address] == [0; BLOCK_BYTES] {
            let block = saved.blocks.remove(&address).expect("it was there");
            if saved.looks(saved) != expected {
                saved.blocks.insert(address, block);
            }
        }
    }
}

/// Does nothing unless it is asked for: images would differ each time.
#[test]
fn images_are_taken_anew_when_asked_for() {
    if std::env::var("ZMQTRACE_UPDATE").is_ok_and(|what| what == "images") {
        for name in IMAGES {
            let workload = workload(name);
            // Of two processes, the one that is easily got wrong.
            let pid = workload.ready["child"].as_u64().map_or(workload.pid(), |pid| pid as u32);
            let mut saved = record(pid);
            reduce(&mut saved);
            saved.save(name);
            assert_expected(name);
        }
    }
}
