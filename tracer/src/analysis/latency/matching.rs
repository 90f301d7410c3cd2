//! Joins what the program sent, what crossed the wire, and what the program received: by the numbers that pipes give
//! to messages, in whatever order the three come.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    Fates, Message, Pair, Party, Reason, SocketId, Stage,
    histograms::{Coverages, Histograms},
    pipes::{PipeId, Pipes},
};

/// Messages and crossings that wait for their counterparts, all together: about 100 MiB at the most. Beyond it the older
/// half is evicted.
const MAX_WAITING: usize = 1 << 19;

/// A message of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Number {
    /// Which pipe.
    pub pipe: PipeId,
    /// The how-manieth.
    pub number: u64,
}

/// What the program did with a message: sent or received it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// On which socket.
    pub socket: SocketId,
    /// Entry of the call of its first part.
    pub enter_ns: u64,
    /// Return of the call of its last part.
    pub return_ns: u64,
    /// Bytes of all parts.
    pub size: Option<u64>,
    /// Parts.
    pub parts: u32,
    /// Frames that it has on the wire at least; `None`: not known.
    pub frames: Option<u32>,
    /// Why it must not be reported.
    pub flaw: Option<Reason>,
}

/// What is known of one end of a crossing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is this message of the end's pipe.
    Numbered(Number),
    /// Calls are not seen at this end.
    NoCalls,
    /// The end is not known, and why.
    Unknown(Reason),
}

/// A message that crossed a connection, as far as that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing {
    /// Who sent it.
    pub from: Party,
    /// Who received it.
    pub to: Party,
    /// Both ends' addresses.
    pub connection: Option<Arc<str>>,
    /// The sender's end.
    pub tx: End,
    /// The receiver's end.
    pub rx: End,
    /// The send cannot have returned before: its pipe was made later.
    pub not_before_ns: u64,
    /// Entry of the system call that carried its last byte.
    pub tx_ns: Option<u64>,
    /// Exit of the one that returned it.
    pub rx_ns: Option<u64>,
    /// Its number on the connection, where the pipe gives none.
    pub index: u64,
}

#[derive(Debug)]
enum Waiting {
    /// A call waits for its crossing.
    Call(Moved),
    /// A crossing waits for its call.
    Crossing(u64),
}

#[derive(Debug)]
struct Flight {
    crossing: Crossing,
    sent: Option<Moved>,
    received: Option<Moved>,
    since_ns: u64,
}

/// The tables of what waits, and what has come of the rest.
#[derive(Debug, Default)]
pub struct Matching {
    sends: FxHashMap<Number, Waiting>,
    receives: FxHashMap<Number, Waiting>,
    flights: FxHashMap<u64, Flight>,
    last_flight: u64,
    /// Since the start.
    pub histograms: Histograms,
    /// Since the last interval, where intervals are wanted.
    pub interval: Option<Histograms>,
    /// What became of messages.
    pub coverages: Coverages,
    /// Messages that crossed between ends of which calls are not seen.
    pub wire_only: u64,
    /// Where single messages are wanted: those since they were last taken.
    pub messages: Option<Vec<Message>>,
}

impl Matching {
    /// The program has sent a message through a pipe.
    pub fn sent(&mut self, number: Number, moved: Moved) {
        self.coverages.of(moved.socket).sent.all += 1;
        match self.sends.remove(&number) {
            None => {
                self.sends.insert(number, Waiting::Call(moved));
            }
            Some(Waiting::Crossing(id)) => {
                if let Some(flight) = self.flights.get_mut(&id) {
                    flight.sent = Some(moved);
                    self.finish_if_complete(id);
                } else {
                    self.coverages.of(moved.socket).sent.unmatch(Reason::Evicted);
                }
            }
            Some(Waiting::Call(earlier)) => {
                // One number, two messages: the queue was emptied in between, or it is another queue. Neither is sure.
                for doubtful in [earlier, moved] {
                    self.coverages.of(doubtful.socket).sent.unmatch(Reason::Ambiguous);
                }
            }
        }
        self.bound();
    }

    /// Frames that a message has on the wire at least, while it waits to be found there.
    pub fn frames_of(&self, number: Number) -> Option<u32> {
        match self.sends.get(&number)? {
            Waiting::Call(moved) => moved.frames,
            Waiting::Crossing(_) => None,
        }
    }

    /// The program has received a message from a pipe.
    pub fn received(&mut self, number: Number, moved: Moved) {
        self.coverages.of(moved.socket).received.all += 1;
        match self.receives.remove(&number) {
            None => {
                self.receives.insert(number, Waiting::Call(moved));
            }
            Some(Waiting::Crossing(id)) => {
                if let Some(flight) = self.flights.get_mut(&id) {
                    flight.received = Some(moved);
                    self.finish_if_complete(id);
                } else {
                    self.coverages.of(moved.socket).received.unmatch(Reason::Evicted);
                }
            }
            Some(Waiting::Call(earlier)) => {
                for doubtful in [earlier, moved] {
                    self.coverages.of(doubtful.socket).received.unmatch(Reason::Ambiguous);
                }
            }
        }
        self.bound();
    }

    /// A message of which it is not known through which pipe it went.
    pub fn unnumbered(&mut self, moved: &Moved, is_sent: bool, reason: Reason) {
        let coverage = self.coverages.of(moved.socket);
        let fates = if is_sent { &mut coverage.sent } else { &mut coverage.received };
        fates.all += 1;
        fates.unmatch(reason);
    }

    /// A message has crossed.
    pub fn crossed(&mut self, crossing: Crossing, now_ns: u64) {
        let mut flight = Flight { crossing, sent: None, received: None, since_ns: now_ns };
        let id = self.last_flight + 1;
        if let End::Numbered(number) = flight.crossing.tx {
            match self.sends.remove(&number) {
                Some(Waiting::Call(moved)) => flight.sent = Some(moved),
                Some(Waiting::Crossing(other)) => return self.doubt(other, flight),
                None => {
                    self.sends.insert(number, Waiting::Crossing(id));
                }
            }
        }
        if let End::Numbered(number) = flight.crossing.rx {
            match self.receives.remove(&number) {
                Some(Waiting::Call(moved)) => flight.received = Some(moved),
                Some(Waiting::Crossing(other)) => {
                    if let End::Numbered(number) = flight.crossing.tx {
                        self.sends.remove(&number);
                    }
                    return self.doubt(other, flight);
                }
                None => {
                    self.receives.insert(number, Waiting::Crossing(id));
                }
            }
        }
        self.last_flight = id;
        self.flights.insert(id, flight);
        self.finish_if_complete(id);
        self.bound();
    }

    /// Two crossings claim the same message: neither is believed.
    fn doubt(&mut self, other: u64, flight: Flight) {
        if let Some(other) = self.remove_flight(other) {
            self.give_up(&other, Reason::Ambiguous);
        }
        self.give_up(&flight, Reason::Ambiguous);
    }

    fn remove_flight(&mut self, id: u64) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        let is_it = |waiting: &Waiting| matches!(waiting, Waiting::Crossing(of) if *of == id);
        if let End::Numbered(number) = flight.crossing.tx
            && self.sends.get(&number).is_some_and(is_it)
        {
            self.sends.remove(&number);
        }
        if let End::Numbered(number) = flight.crossing.rx
            && self.receives.get(&number).is_some_and(is_it)
        {
            self.receives.remove(&number);
        }
        Some(flight)
    }

    /// What was joined with a crossing is not matched.
    fn give_up(&mut self, flight: &Flight, reason: Reason) {
        if let Some(sent) = &flight.sent {
            self.coverages.of(sent.socket).sent.unmatch(reason);
        }
        if let Some(received) = &flight.received {
            self.coverages.of(received.socket).received.unmatch(reason);
        }
    }

    fn finish_if_complete(&mut self, id: u64) {
        let Some(flight) = self.flights.get(&id) else { return };
        let awaits_send = matches!(flight.crossing.tx, End::Numbered(_)) && flight.sent.is_none();
        let awaits_receive = matches!(flight.crossing.rx, End::Numbered(_)) && flight.received.is_none();
        if awaits_send || awaits_receive {
            return;
        }
        let Some(flight) = self.remove_flight(id) else { return };
        self.finish(&flight);
    }

    fn finish(&mut self, flight: &Flight) {
        let Flight { crossing, sent, received, .. } = flight;
        let flaw = sent.and_then(|sent| sent.flaw).or(received.and_then(|received| received.flaw));
        let number = match (crossing.tx, crossing.rx) {
            (End::Numbered(Number { number, .. }), _) | (_, End::Numbered(Number { number, .. })) => number,
            _ => crossing.index,
        };
        let party = |moved: &Option<Moved>, known: &Party| moved.map_or(known.clone(), |it| Party::Socket(it.socket));
        let message = Message {
            pair: Pair { from: party(sent, &crossing.from), to: party(received, &crossing.to) },
            connection: crossing.connection.clone(),
            number,
            size: sent.and_then(|sent| sent.size).or(received.and_then(|received| received.size)),
            parts: sent.map(|sent| sent.parts).or(received.map(|received| received.parts)),
            send_enter_ns: sent.map(|sent| sent.enter_ns),
            send_return_ns: sent.map(|sent| sent.return_ns),
            wire_tx_ns: crossing.tx_ns,
            wire_rx_ns: crossing.rx_ns,
            recv_return_ns: received.map(|received| received.return_ns),
        };
        if let Some(reason) = flaw {
            return self.give_up(flight, reason);
        }
        let differs = sent
            .zip(*received)
            .is_some_and(|(sent, received)| sent.return_ns < sent.enter_ns || received.return_ns < received.enter_ns);
        let is_of_another_pipe = sent.is_some_and(|sent| sent.return_ns < crossing.not_before_ns);
        if differs || is_of_another_pipe || !message.is_in_order() {
            return self.give_up(flight, Reason::Contradiction);
        }
        let reason = match (crossing.tx, crossing.rx) {
            (End::Numbered(_), End::Numbered(_)) => None,
            (End::NoCalls, End::NoCalls) => {
                self.wire_only += 1;
                None
            }
            (End::Unknown(reason), _) | (_, End::Unknown(reason)) => Some(reason),
            (End::NoCalls, _) | (_, End::NoCalls) => Some(Reason::NoCalls),
        };
        match reason {
            None => {
                if let Some(sent) = sent {
                    self.coverages.of(sent.socket).sent.matched += 1;
                }
                if let Some(received) = received {
                    self.coverages.of(received.socket).received.matched += 1;
                }
            }
            Some(reason) => {
                self.give_up(flight, reason);
                // One end's stages are right whatever is not known of the other; but a pair needs its name.
                if !matches!(reason, Reason::PeerNotTraced | Reason::NotSynchronised | Reason::NoCalls) {
                    return;
                }
            }
        }
        self.report(message);
    }

    /// A message whose stages are right.
    fn report(&mut self, message: Message) {
        for (stage, ns) in message.stages() {
            self.time(&message.pair, stage, ns);
        }
        if let Some(messages) = &mut self.messages {
            messages.push(message);
        }
    }

    /// Counts a time.
    pub fn time(&mut self, pair: &Pair, stage: Stage, ns: u64) {
        self.histograms.add(pair, stage, ns);
        if let Some(interval) = &mut self.interval {
            interval.add(pair, stage, ns);
        }
    }

    /// inproc: a message went from one socket's pipe to the other's, without a wire.
    pub fn passed(&mut self, sent: Number, received: Number, now_ns: u64) {
        let crossing = Crossing {
            from: Party::Unknown,
            to: Party::Unknown,
            connection: None,
            tx: End::Numbered(sent),
            rx: End::Numbered(received),
            not_before_ns: 0,
            tx_ns: None,
            rx_ns: None,
            index: 0,
        };
        self.crossed(crossing, now_ns);
    }

    /// Whether a message was received that no crossing was seen of.
    pub fn has_received(&self, number: Number) -> bool {
        matches!(self.receives.get(&number), Some(Waiting::Call(_)))
    }

    /// Gives up what can no longer be joined, since what came later is long there.
    pub fn settle(&mut self, pipes: &Pipes) {
        let mut lost = Vec::new();
        self.sends.retain(|number, waiting| {
            let Some(pipe) = pipes.get(number.pipe) else {
                lost.extend(Lost::of(waiting, true));
                return false;
            };
            let passed = match waiting {
                Waiting::Call(_) => &pipe.left,
                Waiting::Crossing(_) => &pipe.sent,
            };
            let is_lost = number.number <= passed.long_ago();
            if is_lost {
                lost.extend(Lost::of(waiting, true));
            }
            !is_lost
        });
        self.receives.retain(|number, waiting| {
            let Some(pipe) = pipes.get(number.pipe) else {
                lost.extend(Lost::of(waiting, false));
                return false;
            };
            let passed = match waiting {
                Waiting::Call(_) => &pipe.arrived,
                Waiting::Crossing(_) => &pipe.received,
            };
            let is_lost = number.number <= passed.long_ago();
            if is_lost {
                lost.extend(Lost::of(waiting, false));
            }
            !is_lost
        });
        for lost in lost {
            self.lose(lost, Reason::Lost);
        }
    }

    fn lose(&mut self, lost: Lost, reason: Reason) {
        match lost {
            Lost::Send(moved) => self.coverages.of(moved.socket).sent.unmatch(moved.flaw.unwrap_or(reason)),
            Lost::Receive(moved) => self.coverages.of(moved.socket).received.unmatch(moved.flaw.unwrap_or(reason)),
            Lost::Flight(id) => {
                if let Some(flight) = self.remove_flight(id) {
                    self.give_up(&flight, reason);
                }
            }
        }
    }

    /// Evicts the older half when there are too many.
    fn bound(&mut self) {
        if self.sends.len() + self.receives.len() > 2 * MAX_WAITING || self.flights.len() > MAX_WAITING {
            self.evict();
        }
    }

    fn evict(&mut self) {
        let age = |waiting: &Waiting| match waiting {
            Waiting::Call(moved) => moved.return_ns,
            Waiting::Crossing(id) => self.flights.get(id).map_or(0, |flight| flight.since_ns),
        };
        let mut ages: Vec<u64> = self.sends.values().chain(self.receives.values()).map(age).collect();
        let middle = ages.len() / 2;
        let limit_ns = *ages.select_nth_unstable(middle).1;
        let (mut lost, flights) = (Vec::new(), &self.flights);
        let is_old = |waiting: &Waiting| match waiting {
            Waiting::Call(moved) => moved.return_ns <= limit_ns,
            Waiting::Crossing(id) => flights.get(id).is_none_or(|flight| flight.since_ns <= limit_ns),
        };
        for (table, is_send) in [(&mut self.sends, true), (&mut self.receives, false)] {
            table.retain(|_, waiting| {
                let evicted = is_old(waiting);
                if evicted {
                    lost.extend(Lost::of(waiting, is_send));
                }
                !evicted
            });
        }
        for lost in lost {
            self.lose(lost, Reason::Evicted);
        }
    }

    /// The end: what still waits is under way, or its counterpart never came.
    pub fn end(&mut self, reason_of_receives: impl Fn(&Pipes, Number) -> Reason, pipes: &Pipes) {
        let sends = std::mem::take(&mut self.sends);
        let receives = std::mem::take(&mut self.receives);
        for (number, waiting) in sends {
            if let Waiting::Call(moved) = waiting {
                let reason = match pipes.get(number.pipe) {
                    Some(pipe) if number.number <= pipe.left.now => Reason::Lost,
                    // Neither a connection nor another socket was seen at the other end.
                    Some(pipe) if pipe.inode.is_none() && pipe.peer.is_none() => Reason::PipeUnknown,
                    _ => Reason::InFlight,
                };
                self.lose(Lost::Send(moved), reason);
            }
        }
        for (number, waiting) in receives {
            if let Waiting::Call(moved) = waiting {
                let reason = reason_of_receives(pipes, number);
                self.lose(Lost::Receive(moved), reason);
            }
        }
        for (_, flight) in std::mem::take(&mut self.flights) {
            // What was received and has no send: the send was not seen. What was sent waits to be received.
            let reason = if flight.received.is_some() { Reason::Lost } else { Reason::InFlight };
            self.give_up(&flight, reason);
        }
    }

    /// Numbers of what waits, for tests of the bounds.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.sends.len() + self.receives.len() + self.flights.len()
    }
}

enum Lost {
    Send(Moved),
    Receive(Moved),
    Flight(u64),
}

impl Lost {
    fn of(waiting: &Waiting, is_send: bool) -> Option<Self> {
        Some(match waiting {
            Waiting::Call(moved) if is_send => Self::Send(*moved),
            Waiting::Call(moved) => Self::Receive(*moved),
            Waiting::Crossing(id) => Self::Flight(*id),
        })
    }
}

impl Fates {
    /// Those that are neither matched nor given up yet.
    pub fn open(&self) -> u64 {
        self.all.saturating_sub(self.matched + self.unmatched.values().sum::<u64>())
    }
}
