//! What moved through the queues between two samples of them. This also counts what no call shows: the messages that
//! `zmq_proxy` moves.

use std::collections::{BTreeMap, HashMap};

use crate::event::{Event, Pipes, Queues, Snapshot};

/// One connection's queues in one sample, with what moved since the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// CLOCK_MONOTONIC.
    pub ts_ns: u64,
    /// Process.
    pub pid: u32,
    /// The socket's address.
    pub handle: u64,
    /// Of the socket.
    pub generation: u32,
    /// The connection's fd.
    pub fd: Option<i32>,
    /// As they are now.
    pub pipes: Pipes,
    /// Messages that the socket has written since.
    pub tx_written: u64,
    /// Messages that the connection has taken out since.
    pub tx_read: u64,
    /// Messages that the connection has brought since.
    pub rx_written: u64,
    /// Messages that the socket has taken out since.
    pub rx_read: u64,
}

impl Flow {
    /// Whether anything moved.
    pub const fn has_moved(&self) -> bool {
        self.tx_written | self.tx_read | self.rx_written | self.rx_read != 0
    }
}

/// Compares each sample with the one before.
#[derive(Debug, Default)]
pub struct Flows {
    /// By process and address of the pipe.
    before: HashMap<(u32, u64), Pipes>,
}

impl Flows {
    /// What the next event shows. A snapshot is a sample, too, to compare the first one with.
    pub fn event(&mut self, event: &Event) -> Vec<Flow> {
        match event {
            Event::Snapshot(snapshot) => {
                self.begin(snapshot);
                Vec::new()
            }
            Event::Queues(queues) => self.compare(queues),
            Event::Exec(end) | Event::ProcessExit(end) => {
                self.before.retain(|(pid, _), _| *pid != end.pid);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn begin(&mut self, snapshot: &Snapshot) {
        let sockets = snapshot.contexts.iter().flat_map(|context| &context.sockets);
        for pipes in sockets.flat_map(|socket| &socket.connections).filter_map(|connection| connection.pipes) {
            self.before.entry((snapshot.pid, pipes.handle)).or_insert(pipes);
        }
    }

    fn compare(&mut self, queues: &Queues) -> Vec<Flow> {
        let pid = queues.pid;
        let flow = |queue: &crate::event::Queue| {
            let now = queue.pipes;
            let before = self.before.get(&(pid, now.handle)).filter(|before| before.is_before(&now));
            // A pipe that is new has moved what it counts.
            let since = |count: fn(&Pipes) -> u64| count(&now).saturating_sub(before.map_or(0, count));
            Flow {
                ts_ns: queues.ts_ns,
                pid,
                handle: queue.handle,
                generation: queue.generation,
                fd: queue.fd,
                pipes: now,
                tx_written: since(|pipes| pipes.tx_written),
                tx_read: since(|pipes| pipes.tx_read),
                rx_written: since(|pipes| pipes.rx_written),
                rx_read: since(|pipes| pipes.rx_read),
            }
        };
        let flows = queues.queues.iter().map(flow).collect();
        self.before.retain(|(of, _), _| *of != pid);
        self.before.extend(queues.queues.iter().map(|queue| ((pid, queue.pipes.handle), queue.pipes)));
        flows
    }
}

impl Pipes {
    /// Whether these can be earlier counts of the same pipe: what was read stays so, while what was written can be taken
    /// back. Else its address was used again.
    const fn is_before(&self, now: &Self) -> bool {
        self.tx_read <= now.tx_read && self.rx_read <= now.rx_read
    }
}

/// What moved through a socket's queues, and how full they were, over all samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Messages that the socket has sent, whoever called for it.
    pub sent: u64,
    /// Messages that it has received, likewise.
    pub received: u64,
    /// The most that waited to be sent on one connection, and that one's high-water mark.
    pub most_to_send: (u64, i32),
    /// The most that waited to be received on one connection, and that one's high-water mark.
    pub most_to_receive: (u64, i32),
    /// What waits to be sent now, on all connections.
    pub to_send: u64,
    /// What waits to be received now, on all connections.
    pub to_receive: u64,
    sampled_ns: u64,
}

/// Sums up the samples by socket: process, address, generation.
#[derive(Debug, Default)]
pub struct MovedBySocket {
    flows: Flows,
    sockets: BTreeMap<(u32, u64, u32), Moved>,
}

impl MovedBySocket {
    /// Takes in the next event.
    pub fn event(&mut self, event: &Event) {
        for flow in self.flows.event(event) {
            let moved = self.sockets.entry((flow.pid, flow.handle, flow.generation)).or_default();
            if moved.sampled_ns != flow.ts_ns {
                *moved = Moved { to_send: 0, to_receive: 0, sampled_ns: flow.ts_ns, ..*moved };
            }
            let pipes = flow.pipes;
            moved.sent += flow.tx_written;
            moved.received += flow.rx_read;
            moved.to_send += pipes.tx_queue();
            moved.to_receive += pipes.rx_queue();
            if pipes.tx_queue() >= moved.most_to_send.0 {
                moved.most_to_send = (pipes.tx_queue(), pipes.tx_hwm);
            }
            if pipes.rx_queue() >= moved.most_to_receive.0 {
                moved.most_to_receive = (pipes.rx_queue(), pipes.rx_hwm);
            }
        }
    }

    /// Every socket that had a connection.
    pub fn sockets(&self) -> impl Iterator<Item = ((u32, u64, u32), Moved)> + '_ {
        self.sockets.iter().map(|(socket, moved)| (*socket, *moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Queue;

    fn sample(handle: u64, counts: [u64; 4]) -> Event {
        let [tx_written, tx_read, rx_written, rx_read] = counts;
        let (tx_hwm, rx_hwm, tx_full, rx_full) = (1000, 1000, false, false);
        let pipes = Pipes { handle, tx_written, tx_read, tx_hwm, tx_full, rx_written, rx_read, rx_hwm, rx_full };
        let queue = Queue { handle: 1, generation: 0, fd: None, pipes };
        Event::Queues(Queues { ts_ns: 0, pid: 7, queues: vec![queue] })
    }

    #[test]
    fn what_moved_is_the_difference() {
        let mut flows = Flows::default();
        flows.event(&sample(0x10, [10, 5, 0, 0]));
        let flow = flows.event(&sample(0x10, [30, 30, 1, 0])).remove(0);
        assert_eq!((flow.tx_written, flow.tx_read, flow.rx_written, flow.rx_read), (20, 25, 1, 0));
        assert!(flow.has_moved());
        assert!(!flows.event(&sample(0x10, [30, 30, 1, 0])).remove(0).has_moved());
    }

    #[test]
    fn a_new_pipe_at_a_used_address_counts_from_nothing() {
        let mut flows = Flows::default();
        flows.event(&sample(0x10, [100, 100, 0, 0]));
        let flow = flows.event(&sample(0x10, [3, 2, 0, 0])).remove(0);
        assert_eq!((flow.tx_written, flow.tx_read), (3, 2));
    }
}
