//! Streams of events as a capture would yield them, made by a model of sockets, pipes, encoders and connections that
//! knows which message is which.

use std::collections::{HashMap, VecDeque};

use tracer_common::wire::ADDRESS_BITS;

use super::*;
use crate::event::{
    Data, End, EndReason, Frames, FunctionId, Inside, Outcome, Pipe, ProcessEnd, Socket, Start, Stream, SystemCall,
};

const SENDER: u32 = 100;
const RECEIVER: u32 = 200;
const PULL: i32 = 7;
/// Before anything happens.
const START_NS: u64 = 1_000_000_000;

/// A generator of numbers that are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What is true of a message to one receiver.
#[derive(Debug, Clone, Copy, Default)]
struct Truth {
    enter_ns: u64,
    tx_ns: Option<u64>,
    rx_ns: Option<u64>,
    received_ns: Option<u64>,
}

/// A connection, or an inproc pair of pipes.
struct Link {
    tx_handle: u64,
    rx_handle: u64,
    tx_pid: u32,
    rx_pid: u32,
    pipes: [u64; 2],
    inodes: [u64; 2],
    fds: [i32; 2],
    /// tcp: sequence number of byte 0.
    isn: Option<u32>,
    is_inproc: bool,
    /// Whether this side's events are seen.
    traced: [bool; 2],
    /// Bytes sent, bytes received and messages sent before observation began.
    late: Option<(u64, u64, u64)>,
    /// Messages that were counted by the pipes before this connection.
    earlier: [u64; 2],
    queue: VecDeque<Model>,
    written: u64,
    taken: u64,
    /// Ends of messages and of their last frames' predecessors, by byte.
    ends: Vec<(u64, u64, usize)>,
    /// Of each model that was taken: whether it was the last part.
    lasts: Vec<bool>,
    /// Whether the last part that was taken was one.
    is_whole: bool,
    /// Bytes of the handshake.
    base: u64,
    encoded: u64,
    under_way: Option<(Model, u64)>,
    sent: u64,
    read: u64,
    put: u64,
    arrived: VecDeque<Model>,
    received: u64,
}

#[derive(Clone)]
struct Model {
    truth: usize,
    frames: Vec<u64>,
    /// Whether it is no part of a message that encryption hides the parts of.
    is_last: bool,
    /// Whether it is no part at all, but a command.
    is_command: bool,
}

struct Sim {
    now: u64,
    events: Vec<Event>,
    sequences: HashMap<u32, u32>,
    links: Vec<Link>,
    truths: Vec<Truth>,
    /// The most bytes of a system call's runs in one event.
    most_runs: usize,
    /// When the last send returned: its thread makes one call after the other.
    sent_ns: u64,
}

impl Sim {
    fn new() -> Self {
        let start = Event::Start(Start { ts_ns: START_NS, realtime_ns: START_NS, totals: false });
        let (sequences, links, truths) = (HashMap::new(), Vec::new(), Vec::new());
        Self { now: START_NS, events: vec![start], sequences, links, truths, most_runs: usize::MAX, sent_ns: 0 }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1_000;
        self.now
    }

    fn socket(&mut self, pid: u32, handle: u64, socket_type: i32) {
        let (ts_ns, id) = (self.now, Some(handle as u32));
        self.events.push(Event::Socket(Socket { ts_ns, pid, library: 0, handle, generation: 0, socket_type, id }));
    }

    /// A connection from one socket to another; `isn` of tcp.
    fn link(&mut self, tx_handle: u64, rx_handle: u64, isn: Option<u32>) -> usize {
        let number = self.links.len() as u64 + 1;
        self.links.push(Link {
            tx_handle,
            rx_handle,
            tx_pid: SENDER,
            rx_pid: RECEIVER,
            pipes: [0x1000 + number, 0x2000 + number],
            inodes: [10 + number, 5000 + number],
            fds: [number as i32, number as i32],
            isn,
            is_inproc: false,
            traced: [true; 2],
            late: None,
            earlier: [0; 2],
            queue: VecDeque::new(),
            written: 0,
            taken: 0,
            ends: Vec::new(),
            lasts: Vec::new(),
            is_whole: true,
            base: 0,
            encoded: 0,
            under_way: None,
            sent: 0,
            read: 0,
            put: 0,
            arrived: VecDeque::new(),
            received: 0,
        });
        self.links.len() - 1
    }

    /// Both ends are met, from their start or not.
    fn meet(&mut self, link: usize, from_start: bool) {
        let ts_ns = self.tick();
        let it = &self.links[link];
        let (a, b) = (format!("tcp://127.0.0.1:{}", 40_000 + it.inodes[0]), "tcp://127.0.0.1:5555".to_owned());
        for side in 0..2 {
            if !it.traced[side] {
                continue;
            }
            let pid = [it.tx_pid, it.rx_pid][side];
            let (local, remote) = if side == 0 { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
            let is_tcp = it.isn.is_some();
            let rests =
                side == 0 && it.late.is_some() && it.sent == it.encoded && it.under_way.is_none() && it.is_whole;
            let (pipe, peer, handle) = (it.pipes[0], 0, it.tx_handle);
            let count = it.earlier[0] + it.taken;
            if rests {
                self.events.push(Event::Pipe(Pipe { ts_ns, pid, handle, pipe, peer, inode: None }));
            }
            self.events.push(Event::Stream(Stream {
                ts_ns,
                pid,
                fd: it.fds[side],
                inode: it.inodes[side],
                peer_inode: (!is_tcp).then_some(it.inodes[1 - side]),
                local: is_tcp.then_some(local),
                remote: is_tcp.then_some(remote),
                from_start,
                sent: rests.then_some(PipeCount { pipe, count, unsure: false, whole: true }),
            }));
            if it.is_inproc {
                self.events.pop();
                let (pipe, peer) = (it.pipes[side], it.pipes[1 - side]);
                let handle = [it.tx_handle, it.rx_handle][side];
                self.events.push(Event::Pipe(Pipe { ts_ns, pid, handle, pipe, peer, inode: None }));
            }
        }
    }

    /// What went before is not seen.
    fn forget(&mut self, link: usize) {
        self.events.truncate(1);
        self.sequences.clear();
        let it = &mut self.links[link];
        let (tx, rx) = (it.tx_handle, it.rx_handle);
        it.late = Some((it.sent, it.read, it.ends.iter().filter(|(end, ..)| *end <= it.sent).count() as u64));
        self.socket(SENDER, tx, PUSH);
        self.socket(RECEIVER, rx, PULL);
        for truth in &mut self.truths {
            truth.enter_ns = 0;
        }
    }

    #[allow(clippy::too_many_arguments)] // As the call has.
    fn call(
        &mut self,
        pid: u32,
        name: &str,
        handle: u64,
        size: u64,
        more: bool,
        pipes: Vec<PipeCount>,
        (entry_ns, return_ns): (u64, u64),
    ) {
        let tid = pid + handle as u32;
        let next = self.sequences.entry(tid).or_default();
        let sequence = *next;
        *next += 1;
        self.events.push(Event::Call(Call {
            pid,
            tid,
            sequence,
            function: FunctionId::from_name(name).expect("in the table"),
            library: 0,
            generation: 0,
            entry_ns,
            args: [handle, 0, 0, 0, 0, 0],
            size: Some(size),
            more: Some(more),
            data: Data::default(),
            pipes,
            outcome: Some(Outcome { return_ns, ret: size as i64, failed: false, errno: None }),
        }));
    }

    /// The program sends a message of these frames to all of `links` at once; it returns `late_ns` later.
    fn send_late(&mut self, links: &[usize], frames: &[u64], late_ns: u64) {
        self.now = self.now.max(self.sent_ns);
        let mut entry_ns = self.tick();
        let first_ns = entry_ns;
        let (pid, handle) = (self.links[links[0]].tx_pid, self.links[links[0]].tx_handle);
        for frame in &frames[..frames.len() - 1] {
            self.call(pid, "zmq_send", handle, *frame, true, Vec::new(), (entry_ns, entry_ns + 300));
            entry_ns = self.tick();
        }
        let mut counts = Vec::new();
        for link in links {
            let it = &mut self.links[*link];
            it.written += 1;
            let model = Model { truth: self.truths.len(), frames: frames.to_vec(), is_last: true, is_command: false };
            if it.is_inproc {
                it.arrived.push_back(model)
            } else {
                it.queue.push_back(model)
            }
            counts.push(PipeCount { pipe: it.pipes[0], count: it.written, unsure: false, whole: false });
            self.truths.push(Truth { enter_ns: first_ns, ..Truth::default() });
        }
        let last = frames[frames.len() - 1];
        self.sent_ns = entry_ns + 300 + late_ns;
        self.call(pid, "zmq_send", handle, last, false, counts, (entry_ns, entry_ns + 300 + late_ns));
    }

    fn send(&mut self, links: &[usize], frames: &[u64]) {
        self.send_late(links, frames, 0);
    }

    /// Both ends agree on encryption, as the last thing before the first message.
    fn encrypt(&mut self, link: usize) {
        let (ts_ns, it) = (self.now, &self.links[link]);
        for (pid, inode) in [(it.tx_pid, it.inodes[0]), (it.rx_pid, it.inodes[1])] {
            let content = CommandContent::Greeting {
                version: (3, 1),
                mechanism: Some("CURVE".into()),
                as_server: false,
                socket_type: None,
            };
            let direction = Direction::Send;
            self.events.push(Event::Command(Command { ts_ns, pid, tid: 1, fd: 1, inode, direction, content }));
        }
        self.greet(link);
    }

    /// The program sends a message of which nobody but it sees the parts.
    fn send_encrypted(&mut self, link: usize, parts: &[u64]) {
        let first = self.truths.len();
        let calls = self.events.len();
        self.send(&[link], parts);
        let it = &mut self.links[link];
        it.queue.pop_back();
        let truth = self.truths[first];
        self.truths.truncate(first);
        for (nth, part) in parts.iter().enumerate() {
            let is_last = nth + 1 == parts.len();
            let model = Model { truth: self.truths.len(), frames: vec![*part], is_last, is_command: false };
            it.queue.push_back(model);
            self.truths.push(if is_last { truth } else { Truth::default() });
        }
        assert_eq!(self.events.len() - calls, parts.len());
    }

    /// libzmq sends a command, which looks like a part.
    fn command(&mut self, link: usize) {
        let model = Model { truth: self.truths.len(), frames: vec![13], is_last: false, is_command: true };
        self.truths.push(Truth::default());
        let at = usize::from(!self.links[link].queue.is_empty());
        self.links[link].queue.insert(at, model);
    }

    /// Something happens to an encrypted connection.
    fn step_encrypted(&mut self, chance: &mut Chance, link: usize, most_parts: u64) {
        match chance.below(8) {
            0..3 => {
                let parts: Vec<_> = (0..=chance.below(most_parts)).map(|_| chance.below(90)).collect();
                self.send_encrypted(link, &parts);
            }
            3..5 => _ = self.write(link, 300, if chance.below(3) > 0 { u64::MAX } else { chance.below(200) + 1 }),
            5..7 => _ = self.read(link, chance.below(600) + 1),
            _ => _ = self.receive(link),
        }
    }

    /// The sender's I/O thread encodes up to `batch` bytes if it has none left, and writes at most `limit`.
    fn write(&mut self, link: usize, batch: u64, limit: u64) -> bool {
        let entry_ns = self.tick();
        let ts_ns = self.tick();
        let it = &mut self.links[link];
        if it.encoded == it.sent {
            let mut room = batch;
            while room > 0 {
                if it.under_way.is_none() {
                    let Some(model) = it.queue.pop_front() else { break };
                    it.taken += u64::from(model.is_last);
                    it.lasts.push(model.is_last);
                    it.is_whole = if model.is_command { it.is_whole } else { model.is_last };
                    let length: u64 = model.frames.iter().map(|frame| frame + 2).sum();
                    let last = model.frames[model.frames.len() - 1] + 2;
                    let start = it.ends.last().map_or(it.base, |(end, ..)| *end);
                    it.ends.push((start + length, start + length - last, model.truth));
                    it.under_way = Some((model, length));
                }
                let Some((model, left)) = &mut it.under_way else { break };
                let now = room.min(*left);
                (it.encoded, room, *left) = (it.encoded + now, room - now, *left - now);
                if *left == 0 {
                    let _ = model;
                    it.under_way = None;
                }
            }
        }
        let wanted = it.encoded - it.sent;
        let moved = wanted.min(limit);
        if moved == 0 {
            return false;
        }
        let before = it.sent;
        it.sent += moved;
        let after = it.sent;
        let (mut runs, mut last, mut messages, mut total): (Vec<(u32, u32)>, u64, u32, u64) =
            (Vec::new(), before, 0, 0);
        let mut inside = Inside::Nothing;
        for (end, last_frame, truth) in &it.ends {
            // Of the frame in which observation began it is not known whether it ends a message.
            if it.late.is_some_and(|(sent, ..)| *last_frame < sent && sent < *end) {
                if *end > before && *end <= after {
                    self.truths[*truth].tx_ns = Some(entry_ns);
                } else if *end > after {
                    inside = Inside::Unknown;
                }
                continue;
            }
            total += u64::from(*end <= after);
            if *end > before && *end <= after {
                self.truths[*truth].tx_ns = Some(entry_ns);
                messages += 1;
                let bytes = (*end - last) as u32;
                last = *end;
                match runs.last_mut() {
                    Some((same, count)) if *same == bytes => *count += 1,
                    _ => runs.push((bytes, 1)),
                }
            }
            let start = last_start(&it.ends, *end);
            if start < after && *end > after {
                inside = if after > *last_frame { Inside::LastPart } else { Inside::Part };
            }
        }
        // A message counts as taken once its last frame is.
        let is_part_under_way = it.under_way.as_ref().is_some_and(|(model, left)| {
            *left > model.frames[model.frames.len() - 1] + 2
                || (*left == model.frames[model.frames.len() - 1] + 2 && model.frames.len() > 1)
        });
        let taken = it.earlier[0] + it.taken - u64::from(is_part_under_way);
        let (late_bytes, _, late_messages) = it.late.unwrap_or_default();
        let wire = Wire {
            ts_ns,
            entry_ns: Some(entry_ns),
            pid: it.tx_pid,
            tid: it.tx_pid + 50,
            call: SystemCall(44),
            fd: it.fds[0],
            inode: it.inodes[0],
            handle: Some(it.tx_handle),
            direction: Direction::Send,
            ret: moved as i64,
            wanted,
            sequence: it.isn.map(|isn| isn.wrapping_add(after as u32)),
            position: before - late_bytes,
            from_start: it.late.is_none(),
            gap: false,
            frames: None,
            pipe: Some(PipeCount {
                pipe: it.pipes[0],
                count: taken,
                unsure: false,
                whole: !is_part_under_way && it.is_whole,
            }),
        };
        let is_traced = it.traced[0];
        let mut pieces: Vec<_> = runs.chunks(self.most_runs.min(runs.len().max(1))).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        let mut counted = 0;
        for (index, piece) in pieces.iter().enumerate() {
            let continues = index + 1 < pieces.len();
            counted += piece.iter().map(|(_, count)| count).sum::<u32>();
            let frames = Frames {
                frames: messages,
                messages: if continues { counted + 1 } else { messages },
                commands: 0,
                total_messages: if continues { 0 } else { total - late_messages },
                inside,
                ends: piece.to_vec(),
                continues,
            };
            if is_traced {
                self.events.push(Event::Wire(Wire { frames: Some(frames), ..wire.clone() }));
            }
        }
        true
    }

    /// The receiver's I/O thread reads at most `limit` bytes.
    fn read(&mut self, link: usize, limit: u64) -> bool {
        let ts_ns = self.tick();
        let it = &mut self.links[link];
        let moved = (it.sent - it.read).min(limit);
        if moved == 0 {
            return false;
        }
        let (before, put) = (it.read, it.put);
        it.read += moved;
        let after = it.read;
        let mut messages = 0;
        for ((end, _, truth), is_last) in it.ends.iter().zip(&it.lasts) {
            if *end > before && *end <= after {
                self.truths[*truth].rx_ns = Some(ts_ns);
                it.put += u64::from(*is_last);
                messages += 1;
                it.arrived.push_back(Model { truth: *truth, frames: vec![1], is_last: *is_last, is_command: false });
            }
        }
        let (_, late_bytes, _) = it.late.unwrap_or_default();
        // Observation begins between two messages here.
        let wire = Wire {
            ts_ns,
            entry_ns: None,
            pid: it.rx_pid,
            tid: it.rx_pid + 50,
            call: SystemCall(45),
            fd: it.fds[1],
            inode: it.inodes[1],
            handle: Some(it.rx_handle),
            direction: Direction::Receive,
            ret: moved as i64,
            wanted: limit,
            sequence: it.isn.map(|isn| isn.wrapping_add(after as u32)),
            position: before - late_bytes,
            from_start: it.late.is_none(),
            gap: false,
            frames: Some(Frames {
                frames: messages,
                messages,
                commands: 0,
                total_messages: it.put,
                inside: Inside::Nothing,
                ends: Vec::new(),
                continues: false,
            }),
            pipe: Some(PipeCount { pipe: it.pipes[1], count: it.earlier[1] + put, unsure: false, whole: false }),
        };
        if it.traced[1] {
            self.events.push(Event::Wire(wire));
        }
        true
    }

    /// Both ends greet each other.
    fn greet(&mut self, link: usize) {
        let it = &mut self.links[link];
        (it.base, it.encoded) = (64, 64);
        while self.write(link, 0, u64::MAX) || self.read(link, 100) {}
    }

    /// The connection breaks, and another one is made: what was on its way is lost. The receiver's new pipe is where the
    /// old one was; the sender's is the same one if it has connected, else a new one at the same place, too.
    fn reconnect(&mut self, link: usize, isn: Option<u32>, has_connected: bool, greets: bool) -> usize {
        while self.receive(link) {}
        let again = self.link(self.links[link].tx_handle, self.links[link].rx_handle, isn);
        let now = self.tick();
        let old = &mut self.links[link];
        let next_life = |pipe: u64| pipe + (1 << ADDRESS_BITS);
        let [tx_pipe, rx_pipe] = old.pipes;
        let pipes = [if has_connected { tx_pipe } else { next_life(tx_pipe) }, next_life(rx_pipe)];
        let fds = old.fds;
        let (queue, taken) = (std::mem::take(&mut old.queue), old.earlier[0] + old.taken);
        let written = old.written;
        let new = &mut self.links[again];
        (new.pipes, new.fds) = (pipes, fds);
        if has_connected {
            (new.queue, new.earlier[0], new.written) = (queue, taken, written);
            connected(self, SENDER, fds[0], 1);
        }
        self.now = now.max(self.now);
        self.meet(again, true);
        if greets {
            self.greet(again);
        }
        again
    }

    /// The receiving program takes the next message.
    fn receive(&mut self, link: usize) -> bool {
        let entry_ns = self.tick();
        let it = &mut self.links[link];
        let Some(index) = it.arrived.iter().position(|model| model.is_last) else { return false };
        let Some(model) = it.arrived.drain(..=index).next_back() else { return false };
        it.received += 1;
        let return_ns = entry_ns + 200;
        self.truths[model.truth].received_ns = Some(return_ns);
        let (pid, handle, pipe, is_traced) = (it.rx_pid, it.rx_handle, it.pipes[1], it.traced[1]);
        let counts = vec![PipeCount { pipe, count: it.earlier[1] + it.received, unsure: false, whole: false }];
        if is_traced {
            self.call(pid, "zmq_recv", handle, 8, false, counts, (entry_ns, return_ns));
        }
        true
    }

    /// All that is on its way arrives.
    fn drain(&mut self, link: usize) {
        while self.write(link, 8192, u64::MAX) || self.read(link, 8192) || self.receive(link) {}
    }

    fn end(&mut self) {
        let ts_ns = self.tick() + SECOND_NS;
        self.events.push(Event::End(End { ts_ns, sampled_ns: ts_ns, reason: EndReason::Asked }));
    }

    /// What comes of the events: the messages, and the coverage.
    fn run(&mut self) -> (Vec<Message>, Latency) {
        self.end();
        self.events.sort_by_key(Event::ts_ns);
        run(&self.events)
    }

    /// Each message that is said to be matched must be what it truly is.
    #[track_caller]
    fn check(&self, messages: &[Message]) -> usize {
        let truths: HashMap<(u64, u64), &Truth> =
            self.truths.iter().filter_map(|truth| Some(((truth.enter_ns, truth.received_ns?), truth))).collect();
        let mut whole = 0;
        for message in messages {
            if let (Some(enter_ns), Some(received_ns)) = (message.send_enter_ns, message.recv_return_ns) {
                let truth = truths.get(&(enter_ns, received_ns)).unwrap_or_else(|| {
                    let by_send = self.truths.iter().filter(|truth| truth.enter_ns == enter_ns);
                    let by_receive = self.truths.iter().filter(|truth| truth.received_ns == Some(received_ns));
                    panic!("wrong match: {message:?}; true: {:?}", by_send.chain(by_receive).collect::<Vec<_>>())
                });
                if message.wire_tx_ns.is_some() || message.wire_rx_ns.is_some() {
                    assert_eq!((message.wire_tx_ns, message.wire_rx_ns), (truth.tx_ns, truth.rx_ns), "{message:?}");
                }
                whole += 1;
            }
        }
        whole
    }

    /// Of the same events some get lost, one in so many: what is said then is right, too.
    fn check_with_losses(&self, events: &[Event], losses: &[u64], chance: &mut Chance) {
        for loss in losses {
            let can_be = |event: &Event| matches!(event, Event::Call(_) | Event::Wire(_) | Event::Pipe(_));
            let some: Vec<_> =
                events.iter().filter(|event| !can_be(event) || chance.below(*loss) != 0).cloned().collect();
            let (messages, _) = run(&some);
            self.check(&messages);
        }
    }
}

fn last_start(ends: &[(u64, u64, usize)], end: u64) -> u64 {
    let at = ends.partition_point(|(other, ..)| *other < end);
    at.checked_sub(1).map_or(0, |before| ends[before].0)
}

fn run(events: &[Event]) -> (Vec<Message>, Latency) {
    let mut world = World::default();
    let mut latency = Latency::new(Narrow::default(), false, true);
    let mut messages = Vec::new();
    for event in events {
        world.apply(event);
        latency.event(&world, event);
        messages.extend(latency.take_messages());
    }
    let Coverage { sent, received } = latency.coverage();
    assert_eq!((sent.open(), received.open()), (0, 0), "all have a fate at the end: {sent:?} {received:?}");
    (messages, latency)
}

fn unmatched(fates: &Fates) -> Vec<(Reason, u64)> {
    fates.unmatched.iter().map(|(reason, count)| (*reason, *count)).collect()
}

/// A PUSH and a PULL, met from the start.
fn pair(isn: Option<u32>) -> (Sim, usize) {
    let mut sim = Sim::new();
    sim.socket(SENDER, 1, PUSH);
    sim.socket(RECEIVER, 2, PULL);
    let link = sim.link(1, 2, isn);
    sim.meet(link, true);
    (sim, link)
}

#[test]
fn one_message_has_all_stages() {
    let (mut sim, link) = pair(Some(7));
    sim.send(&[link], &[10]);
    sim.drain(link);
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 1);
    let stages: Vec<_> = messages[0].stages().collect();
    assert_eq!(
        stages,
        [
            (Stage::SendCall, 300),
            (Stage::SendQueue, 700),
            (Stage::Network, 4_000),
            (Stage::RecvQueue, 4_200),
            (Stage::EndToEnd, 9_200)
        ]
    );
    assert_eq!((messages[0].number, messages[0].size, messages[0].parts), (1, Some(10), Some(1)));
    assert_eq!(latency.coverage().sent.matched, 1);
    let (pair, stages) = latency.histograms().pairs().next().expect("a pair");
    assert_eq!(latency.socket_name(SocketId { pid: SENDER, handle: 1, generation: 0 }), "PUSH#1");
    assert!(latency.admits_pair(pair));
    assert_eq!(stages[&Stage::EndToEnd].mean_ns(), 9_200);
}

#[test]
fn batches_partial_writes_and_records_of_one_call() {
    for most_runs in [usize::MAX, 3] {
        let (mut sim, link) = pair(Some(u32::MAX - 3_000));
        sim.most_runs = most_runs;
        for size in 0..200 {
            sim.send(&[link], &[10 + size * 7 % 50]);
        }
        sim.send(&[link], &[100_000]);
        while sim.write(link, 8192, 3_001) {
            sim.read(link, 777);
        }
        sim.drain(link);
        let (messages, latency) = sim.run();
        assert_eq!(sim.check(&messages), 201, "{:?}", latency.coverage());
    }
}

#[test]
fn late_attach_to_tcp() {
    let (mut sim, link) = pair(Some(123));
    for _ in 0..100 {
        sim.send(&[link], &[64]);
        sim.drain(link);
    }
    sim.forget(link);
    sim.meet(link, false);
    for _ in 0..100 {
        sim.send(&[link], &[64]);
        sim.drain(link);
    }
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 100, "{:?}", latency.coverage());
    assert_eq!(messages[0].number, 101);
}

/// A connection that rests: the receiver's end is met when it reads, the sender's was long before.
#[test]
fn the_first_message_after_a_pause() {
    let (mut sim, link) = pair(Some(1));
    sim.forget(link);
    sim.meet(link, false);
    sim.now += 20 * SECOND_NS;
    sim.send(&[link], &[64]);
    sim.drain(link);
    sim.end();
    let read = sim.events.iter().find_map(|event| match event {
        Event::Wire(wire) if wire.pid == RECEIVER => Some(wire.ts_ns),
        _ => None,
    });
    for event in &mut sim.events {
        if let Event::Stream(stream) = event
            && stream.pid == RECEIVER
        {
            stream.ts_ns = read.expect("it was read");
            // It has accepted on a socket for both families.
            stream.local = Some("tcp://[::ffff:127.0.0.1]:5555".into());
            stream.remote = stream.remote.as_ref().map(|remote| remote.replace("127.0.0.1", "[::ffff:127.0.0.1]"));
        }
    }
    sim.events.sort_by_key(Event::ts_ns);
    // The end is told of before the system call that met it.
    let (messages, latency) = run(&sim.events);
    assert_eq!(sim.check(&messages), 1, "{:?}", latency.coverage());
}

#[test]
fn lost_records_make_no_wrong_match() {
    let (mut sim, link) = pair(Some(5));
    for _ in 0..50 {
        sim.send(&[link], &[64]);
    }
    sim.drain(link);
    for _ in 0..200 {
        sim.send(&[link], &[64]);
        sim.drain(link);
    }
    sim.end();
    sim.events.sort_by_key(Event::ts_ns);
    // Each single one.
    let all = sim.events.len();
    for lost in 1..all.min(400) {
        let mut events = sim.events.clone();
        if matches!(events[lost], Event::Socket(_) | Event::Stream(_) | Event::End(_)) {
            continue;
        }
        let what = events.remove(lost);
        let (messages, latency) = run(&events);
        let whole = sim.check(&messages);
        let least = match what {
            Event::Wire(_) => 250 - 51,
            // The next message of the thread might lack a part.
            _ => 248,
        };
        assert!(whole >= least, "{whole} of 250 without {what:?}: {:?}", latency.coverage());
    }
}

#[test]
fn published_to_three_of_which_one_does_not_want_it() {
    let mut sim = Sim::new();
    sim.socket(SENDER, 1, PUB);
    let links: Vec<_> = (0..3)
        .map(|nth| {
            sim.socket(RECEIVER, 2 + nth, SUB);
            sim.link(1, 2 + nth, Some(nth as u32 * 1000))
        })
        .collect();
    for link in &links {
        sim.meet(*link, true);
    }
    for round in 0..10 {
        let to: &[usize] = if round % 2 == 0 { &links } else { &links[..2] };
        sim.send(to, &[20]);
        links.iter().for_each(|link| sim.drain(*link));
    }
    // Nobody wants this one.
    let at = (sim.tick(), sim.tick());
    sim.call(SENDER, "zmq_send", 1, 5, false, Vec::new(), at);
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 25, "{:?}", latency.coverage());
    let Coverage { sent, received } = latency.coverage();
    assert_eq!((sent.all, sent.matched, received.all), (26, 25, 25));
    assert_eq!(unmatched(&sent), [(Reason::Filtered, 1)]);
}

#[test]
fn eight_peers_with_the_same_contents() {
    let mut sim = Sim::new();
    let mut links = Vec::new();
    sim.socket(RECEIVER, 20, PULL);
    for nth in 0..8 {
        sim.socket(SENDER, 1 + nth, PUSH);
        links.push(sim.link(1 + nth, 20, Some(0)));
        sim.meet(links[nth as usize], true);
    }
    let mut chance = Chance(3);
    for _ in 0..2_000 {
        let link = links[chance.below(8) as usize];
        match chance.below(4) {
            0 => sim.send(&[link], &[8]),
            1 => _ = sim.write(link, 8192, u64::MAX),
            2 => _ = sim.read(link, 8192),
            _ => _ = sim.receive(link),
        }
    }
    links.iter().for_each(|link| sim.drain(*link));
    let (messages, latency) = sim.run();
    let sent = latency.coverage().sent;
    assert_eq!((sim.check(&messages) as u64, sent.matched), (sent.all, sent.all), "{:?}", latency.coverage());
}

#[test]
fn parts_are_one_message() {
    let (mut sim, link) = pair(Some(9));
    for _ in 0..20 {
        sim.send(&[link], &[5, 300, 7]);
        sim.write(link, 100, u64::MAX);
        sim.write(link, 100, u64::MAX);
        sim.read(link, 50);
    }
    sim.drain(link);
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 20, "{:?}", latency.coverage());
    assert_eq!((messages[0].size, messages[0].parts), (Some(312), Some(3)));
}

#[test]
fn a_part_that_was_lost_spoils_its_message() {
    let (mut sim, link) = pair(Some(9));
    for _ in 0..3 {
        sim.send(&[link], &[5, 300, 7]);
        sim.drain(link);
    }
    sim.end();
    let first_of_second = sim
        .events
        .iter()
        .enumerate()
        .filter(|(_, event)| matches!(event, Event::Call(call) if call.more == Some(true)))
        .nth(2);
    let index = first_of_second.expect("there are six").0;
    sim.events.remove(index);
    let (messages, latency) = run(&sim.events);
    assert_eq!(sim.check(&messages), 2);
    assert_eq!(unmatched(&latency.coverage().sent), [(Reason::Lost, 1)]);
}

#[test]
fn inproc_needs_no_wire() {
    for told_late in [false, true] {
        let mut sim = Sim::new();
        sim.socket(SENDER, 1, PUSH);
        sim.socket(SENDER, 2, PULL);
        let link = sim.link(1, 2, None);
        sim.links[link].is_inproc = true;
        sim.links[link].rx_pid = SENDER;
        if !told_late {
            sim.meet(link, true);
        }
        for nth in 0..50 {
            // Half of the sends return after the receive.
            sim.send_late(&[link], &[10], if nth % 2 == 0 { 50_000 } else { 0 });
            sim.drain(link);
        }
        if told_late {
            sim.meet(link, true);
        }
        let (messages, latency) = sim.run();
        assert_eq!(sim.check(&messages), 50, "{:?}", latency.coverage());
        assert!(messages.iter().all(|message| message.wire_tx_ns.is_none()));
    }
}

fn connected(sim: &mut Sim, pid: u32, fd: i32, handle: u64) {
    use crate::event::{Change, FdChange, FdPart, FdSocket};
    let socket = FdSocket { handle, generation: 0, library: 0, socket_type: Some(PUSH), id: None };
    let (part, role) = (FdPart::Connection, Some(Role::Connect));
    let change = Change::Added { socket, part, role, local: None, remote: None };
    sim.events.push(Event::Fd(FdChange { ts_ns: sim.now, pid, tid: 1, fd, change }));
}

/// A PUSH that has connected keeps its pipe; the PULL that has accepted gets a new one, at the address of the old one.
#[test]
fn the_same_pipe_over_another_connection() {
    let (mut sim, link) = pair(Some(9));
    connected(&mut sim, SENDER, 1, 1);
    for _ in 0..20 {
        sim.send(&[link], &[30]);
        sim.drain(link);
    }
    let again = sim.link(1, 2, Some(77));
    let (pipes, written) = (sim.links[link].pipes, sim.links[link].written);
    sim.links[again].pipes = [pipes[0], pipes[1] + (1 << ADDRESS_BITS)];
    sim.links[again].earlier = [written, 0];
    sim.links[again].written = written;
    sim.tick();
    connected(&mut sim, SENDER, 2, 1);
    // Sent while there was no connection.
    sim.send(&[again], &[30]);
    sim.meet(again, true);
    for _ in 0..20 {
        sim.send(&[again], &[30]);
        sim.drain(again);
    }
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 41, "{:?}", latency.coverage());
}

#[test]
fn unix_from_the_start() {
    let (mut sim, link) = pair(None);
    for _ in 0..30 {
        sim.send(&[link], &[30]);
        sim.send(&[link], &[300]);
        sim.drain(link);
    }
    let (messages, _) = sim.run();
    assert_eq!(sim.check(&messages), 60);
}

#[test]
fn unix_once_it_was_drained() {
    let (mut sim, link) = pair(None);
    for _ in 0..5 {
        sim.send(&[link], &[30]);
        sim.write(link, 8192, u64::MAX);
    }
    sim.forget(link);
    sim.meet(link, false);
    // What was sent before is received now: both count from different bytes.
    sim.links[link].late = Some((0, 0, 0));
    let sent = sim.links[link].sent;
    while sim.read(link, 8192) || sim.receive(link) {}
    for event in &mut sim.events {
        if let Event::Wire(wire) = event {
            wire.from_start = false;
        }
    }
    for _ in 0..10 {
        sim.send(&[link], &[30]);
        sim.drain(link);
    }
    sim.end();
    for event in &mut sim.events {
        if let Event::Wire(wire) = event {
            wire.from_start = false;
            if wire.direction == Direction::Receive {
                wire.entry_ns = Some(wire.ts_ns - 500);
            }
            if wire.direction == Direction::Send {
                wire.position -= sent;
                let frames = wire.frames.as_mut().expect("they are known");
                frames.total_messages -= 5;
            }
        }
    }
    let (messages, latency) = run(&sim.events);
    let whole = sim.check(&messages);
    // The first and second send tell where both are; what was sent before those is matched afterwards.
    assert_eq!(whole, 10, "{:?}", latency.coverage());
}

/// A send that was under way when a read found the socket empty: nothing can be said of where both are.
#[test]
fn unix_with_a_send_under_way_is_not_synchronised() {
    let (mut sim, link) = pair(None);
    sim.forget(link);
    sim.meet(link, false);
    sim.links[link].late = Some((0, 0, 0));
    for _ in 0..10 {
        sim.send(&[link], &[30]);
        sim.write(link, 8192, u64::MAX);
        sim.read(link, 20);
        sim.send(&[link], &[30]);
        sim.write(link, 8192, u64::MAX);
        sim.read(link, 20);
    }
    sim.drain(link);
    for event in &mut sim.events {
        if let Event::Wire(wire) = event {
            wire.wanted = wire.ret as u64;
        }
    }
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 0);
    let Coverage { sent, received } = latency.coverage();
    assert_eq!(unmatched(&sent), [(Reason::NotSynchronised, 20)]);
    assert_eq!(unmatched(&received), [(Reason::NotSynchronised, 20)]);
}

/// Only the receiver is seen, from its first receives on, of which something is missing.
#[track_caller]
fn assert_received(change: impl Fn(&mut [&mut Wire])) {
    let mut sim = Sim::new();
    sim.socket(RECEIVER, 2, PULL);
    let link = sim.link(1, 2, Some(5));
    sim.links[link].traced[0] = false;
    sim.links[link].late = Some((0, 0, 0));
    sim.meet(link, false);
    for _ in 0..10 {
        sim.send(&[link], &[30]);
        sim.send(&[link], &[40]);
        sim.drain(link);
    }
    sim.end();
    sim.events.retain(|event| !matches!(event, Event::Call(call) if call.pid == SENDER));
    let wires = sim.events.iter_mut().filter_map(|event| if let Event::Wire(wire) = event { Some(wire) } else { None });
    change(&mut wires.collect::<Vec<_>>());
    let (messages, latency) = run(&sim.events);
    let received = latency.coverage().received;
    assert_eq!((received.all, unmatched(&received)), (20, vec![(Reason::PeerNotTraced, 20)]));
    let found: Vec<_> = messages.iter().map(|message| (message.number, message.wire_rx_ns)).collect();
    let truth: Vec<_> = (1..).zip(sim.truths.iter().map(|truth| truth.rx_ns)).collect();
    assert_eq!(found, truth);
}

/// What a walk has kept back since it joined is in the counts of the system call that made it sure.
#[test]
fn messages_of_a_walk_that_has_just_joined() {
    assert_received(|wires| {
        let held = wires[0].frames.take().expect("it has frames");
        let frames = wires[1].frames.as_mut().expect("it has frames");
        frames.frames += held.frames;
        frames.messages += held.messages;
    });
}

/// When the system call that ended the handshake has returned libzmq has not made the pipe yet.
#[test]
fn messages_that_came_with_the_end_of_the_handshake() {
    assert_received(|wires| {
        // Of what goes on from the connection's start the walk says what ended.
        wires.iter_mut().for_each(|wire| wire.from_start = true);
        wires[0].pipe = None;
    });
}

#[test]
fn one_side_says_what_it_can() {
    for side in 0..2 {
        let mut sim = Sim::new();
        sim.socket(SENDER, 1, PUSH);
        sim.socket(RECEIVER, 2, PULL);
        let link = sim.link(1, 2, Some(5));
        sim.links[link].traced[1 - side] = false;
        sim.meet(link, true);
        for _ in 0..10 {
            sim.send(&[link], &[30]);
            sim.drain(link);
        }
        sim.end();
        if side == 1 {
            sim.events.retain(|event| !matches!(event, Event::Call(call) if call.pid == SENDER));
        }
        let (messages, latency) = run(&sim.events);
        assert_eq!(messages.len(), 10);
        let Coverage { sent, received } = latency.coverage();
        let fates = if side == 0 { sent } else { received };
        assert_eq!((fates.all, unmatched(&fates)), (10, vec![(Reason::PeerNotTraced, 10)]));
        let stages: Vec<_> = messages[0].stages().map(|(stage, _)| stage).collect();
        let remote = match side {
            0 => &messages[0].pair.to,
            _ => &messages[0].pair.from,
        };
        assert!(matches!(remote, Party::Remote(_)), "{remote:?}");
        let expected: &[_] = if side == 0 { &[Stage::SendCall, Stage::SendQueue] } else { &[Stage::RecvQueue] };
        assert_eq!(stages, expected);
    }
}

#[test]
fn a_wire_alone_says_how_long_its_bytes_took() {
    let (mut sim, link) = pair(Some(5));
    for _ in 0..10 {
        sim.send(&[link], &[30]);
        sim.drain(link);
    }
    sim.end();
    sim.events.retain(|event| !matches!(event, Event::Call(_)));
    for event in &mut sim.events {
        if let Event::Wire(wire) = event {
            (wire.handle, wire.pipe) = (None, None);
        }
    }
    let (messages, latency) = run(&sim.events);
    assert_eq!((messages.len(), latency.wire_only()), (10, 10));
    assert_eq!(messages[0].stages().collect::<Vec<_>>(), [(Stage::Network, 4_000)]);
}

#[test]
fn what_cannot_be_is_not_reported() {
    let (mut sim, link) = pair(Some(5));
    for _ in 0..10 {
        sim.send(&[link], &[30]);
        sim.drain(link);
    }
    // As if the fourth had been sent after it was received.
    let late = sim.now + 10;
    let mut sends = sim.events.iter_mut().filter_map(|event| match event {
        Event::Call(call) if call.pid == SENDER => Some(call),
        _ => None,
    });
    let call = sends.nth(3).expect("there are ten");
    call.entry_ns = late;
    let (messages, latency) = sim.run();
    assert_eq!(messages.len(), 9);
    let Coverage { sent, received } = latency.coverage();
    assert_eq!(unmatched(&sent), [(Reason::Contradiction, 1)]);
    assert_eq!(unmatched(&received), [(Reason::Contradiction, 1)]);
}

#[test]
fn sequence_numbers_wrap() {
    // The pipe has moved more than 2^32 bytes between two looks.
    let (mut sim, link) = pair(Some(u32::MAX - 50));
    for _ in 0..100 {
        sim.send(&[link], &[30_000]);
        sim.drain(link);
    }
    let (messages, _) = sim.run();
    assert_eq!(sim.check(&messages), 100);
}

#[test]
fn a_conflating_socket_is_said_to_be() {
    let (mut sim, link) = pair(Some(5));
    let mut set = match &{
        let at = (sim.tick(), sim.tick());
        sim.call(SENDER, "zmq_setsockopt", 1, 4, false, Vec::new(), at);
        sim.events.pop().expect("just pushed")
    } {
        Event::Call(call) => call.clone(),
        other => panic!("{other:?}"),
    };
    set.args[1] = ZMQ_CONFLATE;
    set.data.bytes = bytes::Bytes::from_static(&[1, 0, 0, 0]);
    sim.events.push(Event::Call(set));
    sim.send(&[link], &[30]);
    sim.drain(link);
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 0);
    assert_eq!(unmatched(&latency.coverage().sent), [(Reason::Conflated, 1)]);
}

#[test]
fn requests_and_their_replies() {
    let mut sim = Sim::new();
    sim.socket(SENDER, 1, REQ);
    sim.socket(SENDER, 2, REP);
    for (handle, name) in [(1, "zmq_send"), (2, "zmq_recv"), (2, "zmq_send"), (1, "zmq_recv")] {
        let at = (sim.tick(), sim.tick());
        sim.call(SENDER, name, handle, 5, false, Vec::new(), at);
    }
    let (_, latency) = sim.run();
    let stages: Vec<_> = latency
        .histograms()
        .pairs()
        .flat_map(|(_, stages)| stages.iter().map(|(stage, times)| (*stage, times.mean_ns())))
        .collect();
    assert_eq!(stages, [(Stage::RoundTrip, 7_000), (Stage::Service, 1_000)]);
}

#[test]
fn a_sender_that_has_ended_is_still_matched() {
    let (mut sim, link) = pair(Some(5));
    for _ in 0..10 {
        sim.send(&[link], &[30]);
    }
    sim.write(link, 8192, u64::MAX);
    let ts_ns = sim.tick();
    sim.events.push(Event::ProcessExit(ProcessEnd { ts_ns, pid: SENDER }));
    sim.drain(link);
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 10, "{:?}", latency.coverage());
}

#[test]
fn what_is_under_way_at_the_end() {
    let (mut sim, link) = pair(Some(5));
    for _ in 0..3 {
        sim.send(&[link], &[30]);
        sim.write(link, 8192, u64::MAX);
    }
    sim.read(link, 32);
    sim.receive(link);
    let (messages, latency) = sim.run();
    assert_eq!(sim.check(&messages), 1);
    assert_eq!(unmatched(&latency.coverage().sent), [(Reason::InFlight, 2)]);
}

#[test]
fn memory_is_bounded() {
    let mut matching = Matching::default();
    let mut pipes = Pipes::default();
    let socket = SocketId { pid: 1, handle: 1, generation: 0 };
    let count = PipeCount { pipe: 9, count: 0, unsure: false, whole: false };
    let pipe = pipes.called(socket, Direction::Send, &count, 0);
    const MANY: u64 = 5 << 18;
    for number in 1..=MANY {
        let moved =
            Moved { socket, enter_ns: number, return_ns: number, size: None, parts: 1, frames: Some(1), flaw: None };
        matching.sent(Number { pipe, number }, moved);
    }
    assert!(matching.waiting() <= 1 << 20, "{}", matching.waiting());
    matching.end(|_, _| Reason::Lost, &pipes);
    let sent = matching.coverages.sum(|_| true).sent;
    assert_eq!(sent.all, MANY);
    assert_eq!(sent.open(), 0);
    assert!(sent.unmatched[&Reason::Evicted] > 1 << 18);
}

/// A receiver that is seen, but reads nothing.
#[test]
fn system_calls_that_wait_are_bounded() {
    let (mut sim, link) = pair(Some(5));
    for _ in 0..9_000 {
        sim.send(&[link], &[8]);
        sim.write(link, 8192, u64::MAX);
    }
    let mut world = World::default();
    let mut latency = Latency::default();
    for event in &sim.events {
        world.apply(event);
        latency.event(&world, event);
    }
    assert_eq!(latency.streams.waiting(), 1 << 13);
    sim.end();
    let (_, latency) = run(&sim.events);
    // Those that were evicted may still wait to be received, as far as is known.
    assert_eq!(latency.coverage().sent.unmatched.values().sum::<u64>(), 9_000);
}

/// Random sends, batches, cuts, reads and receives over several connections, in a random order within a millisecond,
/// with and without loss: never a wrong match, and all of them where nothing is lost.
#[test]
fn whatever_happens_no_match_is_wrong() {
    for seed in 0..60 {
        let mut chance = Chance(seed);
        let mut sim = Sim::new();
        sim.most_runs = [usize::MAX, 2, 5][chance.below(3) as usize];
        let is_published = chance.below(3) == 0;
        let is_unix = chance.below(3) == 0;
        sim.socket(SENDER, 1, if is_published { PUB } else { PUSH });
        let links: Vec<_> = (0..3)
            .map(|nth| {
                sim.socket(RECEIVER, 2 + nth, if is_published { SUB } else { PULL });
                let isn = (!is_unix).then(|| (chance.below(1 << 31) as u32) << 1);
                let link = sim.link(1, 2 + nth, isn);
                sim.meet(link, true);
                link
            })
            .collect();
        for _ in 0..3_000 {
            let link = links[chance.below(3) as usize];
            match chance.below(8) {
                0..3 => {
                    let to: Vec<_> = if is_published {
                        let wanted = chance.below(8);
                        links.iter().copied().filter(|link| wanted >> link & 1 == 1).collect()
                    } else {
                        vec![link]
                    };
                    let parts: Vec<_> = (0..=chance.below(3)).map(|_| chance.below(200)).collect();
                    if !to.is_empty() {
                        sim.send_late(&to, &parts, chance.below(3) * 20_000);
                    }
                }
                3..5 => _ = sim.write(link, 500, if chance.below(2) == 0 { u64::MAX } else { chance.below(400) + 1 }),
                5..7 => _ = sim.read(link, chance.below(900) + 1),
                _ => _ = sim.receive(link),
            }
        }
        links.iter().for_each(|link| sim.drain(*link));
        sim.end();
        // What is complete within the window of the capture may come in any order, but for that of each thread.
        let mut events: Vec<_> = std::mem::take(&mut sim.events);
        events.sort_by_key(Event::ts_ns);
        let mut last_of_thread: HashMap<(u32, u32), u64> = HashMap::new();
        events.sort_by_cached_key(|event| {
            let (pid, tid) = match event {
                Event::Call(call) => (call.pid, call.tid),
                Event::Wire(wire) => (wire.pid, wire.tid),
                _ => return event.ts_ns(),
            };
            let last = last_of_thread.entry((pid, tid)).or_default();
            *last = (event.ts_ns() + chance.below(2) * chance.below(3) * 1_500).max(*last);
            *last
        });
        let (messages, latency) = run(&events);
        let whole = sim.check(&messages);
        let Coverage { sent, received } = latency.coverage();
        if sim.most_runs == usize::MAX {
            assert_eq!(
                (whole as u64, sent.matched, received.matched),
                (sent.all, sent.all, received.all),
                "{seed}: {sent:?} {received:?}"
            );
        }
        sim.check_with_losses(&events, &[2, 10, 60], &mut chance);
    }
}

/// Connections that break at any moment, with queues whose addresses are used again at once.
#[test]
fn numbers_that_begin_anew_make_no_wrong_match() {
    let mut matched = [0, 0];
    for seed in 0..200 {
        let mut chance = Chance(1000 + seed);
        let (mut sim, mut link) = pair((seed % 2 == 0).then_some(seed as u32));
        let (has_connected, greets) = (seed % 3 != 0, seed % 5 != 0);
        if has_connected {
            connected(&mut sim, SENDER, 1, 1);
        }
        for _ in 0..600 {
            match chance.below(40) {
                0 => {
                    link = sim.reconnect(link, sim.links[link].isn.map(|isn| isn ^ 0x8765_4321), has_connected, greets)
                }
                1..16 => sim.send(&[link], &[chance.below(100)]),
                16..24 => _ = sim.write(link, 300, if chance.below(3) > 0 { u64::MAX } else { chance.below(200) + 1 }),
                24..32 => _ = sim.read(link, chance.below(600) + 1),
                _ => _ = sim.receive(link),
            }
        }
        sim.drain(link);
        sim.end();
        sim.events.sort_by_key(Event::ts_ns);
        let (messages, _) = run(&sim.events);
        matched[0] += sim.check(&messages);
        matched[1] += sim.truths.iter().filter(|truth| truth.received_ns.is_some()).count();
        sim.check_with_losses(&sim.events, &[2, 3, 10, 40], &mut chance);
    }
    assert!(matched[0] * 1000 >= matched[1] * 990, "{matched:?}");
}

/// Observation begins at any moment of a busy connection: in the midst of frames, with messages on their way.
#[test]
fn attached_at_any_moment() {
    for seed in 0..200 {
        let mut chance = Chance(5 + seed);
        let (mut sim, link) = pair(Some(chance.below(1 << 31) as u32 * 2));
        let mut later = 0;
        for step in 0..800 {
            if step == 300 {
                sim.forget(link);
                sim.meet(link, false);
                later = sim.truths.len();
            }
            match chance.below(8) {
                0..3 => {
                    let parts: Vec<_> = (0..=chance.below(2)).map(|_| chance.below(200)).collect();
                    sim.send(&[link], &parts);
                }
                3..5 => _ = sim.write(link, 500, if chance.below(2) == 0 { u64::MAX } else { chance.below(400) + 1 }),
                5..7 => _ = sim.read(link, chance.below(900) + 1),
                _ => _ = sim.receive(link),
            }
        }
        sim.drain(link);
        sim.end();
        sim.events.sort_by_key(Event::ts_ns);
        let (messages, latency) = run(&sim.events);
        let whole = sim.check(&messages);
        assert_eq!(whole, sim.truths.len() - later, "{seed}: {:?}", latency.coverage());
        sim.check_with_losses(&sim.events, &[2, 10, 60], &mut chance);
    }
}

/// An encrypted connection, to which all kinds of things happen in so many steps, and what is found of its messages: how
/// many wholly, and the fates of those sent.
fn encrypted(seed: u64, chance: &mut Chance, steps: u32, has_commands: bool) -> (Sim, u64, Fates) {
    let (mut sim, link) = pair(seed.is_multiple_of(2).then_some(seed as u32));
    sim.encrypt(link);
    let most_parts = seed % 3 + 1;
    for step in 0..steps {
        sim.step_encrypted(chance, link, most_parts);
        if has_commands && step % 100 == 50 {
            sim.command(link);
        }
    }
    sim.drain(link);
    sim.end();
    sim.events.sort_by_key(Event::ts_ns);
    let (messages, latency) = run(&sim.events);
    let whole = sim.check(&messages) as u64;
    let Coverage { sent, .. } = latency.coverage();
    (sim, whole, sent)
}

/// Encryption hides which frames are parts: what is not certain is not matched, the rest is.
#[test]
fn encrypted_parts_make_no_wrong_match() {
    for seed in 0..200 {
        let mut chance = Chance(77 + seed);
        let (sim, whole, sent) = encrypted(seed, &mut chance, 500, false);
        assert_eq!(whole, sent.all, "{seed}: {sent:?}");
        sim.check_with_losses(&sim.events, &[2, 10, 40], &mut chance);
    }
}

/// Commands look like parts: where there is one it is not certain which frames end messages, and later it is again.
#[test]
fn encrypted_commands_make_no_wrong_match() {
    for seed in 0..200 {
        let (_, whole, sent) = encrypted(seed, &mut Chance(99 + seed), 900, true);
        assert_eq!(whole, sent.matched);
        assert!(whole < sent.all && whole * 10 > sent.all * 5, "{seed}: {sent:?}");
        assert_eq!(sent.unmatched.keys().collect::<Vec<_>>(), [&Reason::Ambiguous], "{seed}: {sent:?}");
    }
}

/// A pipe that was not known before may have been changed by an earlier call.
#[test]
fn unsure_counts_are_believed_only_where_they_are_alone() {
    let (mut sim, link) = pair(Some(5));
    sim.send(&[link], &[10]);
    sim.send(&[link], &[10]);
    sim.drain(link);
    sim.end();
    let unsure = |pid: u32, which: usize| {
        move |event: &mut Event| {
            let Event::Call(call) = event else { return false };
            if call.pid != pid {
                return false;
            }
            call.pipes[which].unsure = true;
            true
        }
    };
    let mut events = sim.events.clone();
    events.iter_mut().find_map(|event| unsure(SENDER, 0)(event).then_some(()));
    events.sort_by_key(Event::ts_ns);
    assert_eq!(sim.check(&run(&events).0), 2, "a PUSH sends to one");
    // A PUB may have sent it to any.
    for event in &mut events {
        if let Event::Socket(socket) = event
            && socket.handle == 1
        {
            socket.socket_type = PUB;
        }
    }
    let (messages, latency) = run(&events);
    assert_eq!(sim.check(&messages), 1);
    assert_eq!(unmatched(&latency.coverage().sent), [(Reason::Ambiguous, 1)]);
}

/// What `tests/real/replay.rs` makes reports of: a bit of everything. ZMQTRACE_UPDATE=1 writes it anew.
#[test]
fn the_recording_is_what_the_model_makes() {
    use crate::event::Process;
    let mut sim = Sim::new();
    for (pid, name) in [(SENDER, "orders"), (RECEIVER, "desk")] {
        let (ts_ns, name) = (sim.now, name.to_owned());
        let (libraries, is_target) = (Vec::new(), true);
        sim.events.push(Event::Process(Process { ts_ns, pid, name, libraries, is_target }));
    }
    for (pid, handle, socket_type) in [
        (SENDER, 1, PUSH),
        (RECEIVER, 2, PULL),
        (SENDER, 3, PUB),
        (RECEIVER, 4, SUB),
        (RECEIVER, 5, SUB),
        (SENDER, 6, REQ),
        (RECEIVER, 7, REP),
        (SENDER, 8, PAIR),
        (SENDER, 9, PAIR),
        (SENDER, 10, PUSH),
    ] {
        sim.socket(pid, handle, socket_type);
    }
    let jobs = sim.link(1, 2, Some(u32::MAX - 2_000));
    let published = [sim.link(3, 4, None), sim.link(3, 5, None)];
    let (request, reply) = (sim.link(6, 7, Some(1)), sim.link(7, 6, Some(2)));
    (sim.links[reply].tx_pid, sim.links[reply].rx_pid) = (RECEIVER, SENDER);
    // One connection and one queue, both ways.
    let [own, other] = sim.links[request].inodes;
    sim.links[reply].inodes = [other, own];
    let [own, other] = sim.links[request].pipes;
    sim.links[reply].pipes = [other, own];
    let inside = sim.link(8, 9, None);
    (sim.links[inside].is_inproc, sim.links[inside].rx_pid) = (true, SENDER);
    let away = sim.link(10, 11, Some(3));
    sim.links[away].traced[1] = false;
    for link in [jobs, published[0], published[1], request, inside, away] {
        sim.meet(link, true);
    }
    for round in 0..20 {
        for size in 0..5 {
            sim.send(&[jobs], &[10 + size * 20]);
        }
        sim.send(&[jobs], &[8, 2_000]);
        sim.write(jobs, 8192, 1_500);
        sim.read(jobs, 1_000);
        // The receiver pauses once.
        sim.now += if round == 10 { 5_000_000 } else { 0 };
        sim.drain(jobs);
        sim.send(if round % 4 == 0 { &published[..1] } else { &published }, &[30]);
        published.iter().for_each(|link| sim.drain(*link));
        sim.send(&[request], &[0, 12]);
        sim.drain(request);
        sim.now += 40_000;
        sim.send(&[reply], &[0, 5]);
        sim.drain(reply);
        sim.send_late(&[inside], &[3], 10_000);
        sim.drain(inside);
        sim.send(&[away], &[40]);
        sim.drain(away);
        if round == 9 {
            sim.now += 2 * SECOND_NS;
            sim.events.push(Event::Tick(crate::event::Tick { ts_ns: sim.now }));
        }
    }
    let at = (sim.tick(), sim.tick());
    sim.call(SENDER, "zmq_send", 3, 5, false, Vec::new(), at);
    sim.send(&[jobs], &[10]);
    sim.end();
    sim.events.sort_by_key(Event::ts_ns);
    // One record was lost, and one stamp is wrong.
    let mut writes = sim.events.iter().enumerate().filter(
        |(_, event)| matches!(event, Event::Wire(wire) if wire.inode == 11 && wire.direction == Direction::Send),
    );
    let lost = writes.nth(12).expect("there are more").0;
    sim.events.remove(lost);
    let late_ns = sim.now;
    let mut sends = sim.events.iter_mut().filter_map(|event| match event {
        Event::Call(call) if call.pid == SENDER && call.args[0] == 3 => Some(call),
        _ => None,
    });
    sends.nth(3).expect("there are more").entry_ns = late_ns;
    let text: String =
        sim.events.iter().map(|event| serde_json::to_string(event).expect("serialises") + "\n").collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/latency.jsonl");
    if std::env::var_os("ZMQTRACE_UPDATE").is_some() {
        std::fs::write(path, &text).expect("the data can be written");
    }
    let saved = std::fs::read_to_string(path).expect("the events are there");
    assert_eq!(text.lines().count(), saved.lines().count());
    for (number, (made, saved)) in text.lines().zip(saved.lines()).enumerate() {
        assert_eq!(made, saved, "line {}", number + 1);
    }
    run(&sim.events);
}
