//! A few sockets of a program with libzmq linked in, by the crate `zmq`, stated in full: see ../../README.md,
//! "Census". It has no way to end a monitor, so those of tcp and ipc sockets stay. A thread is blocked in a receive.

use std::ffi::c_int;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, RawFd};
use std::thread;

use serde_json::{Value, json};
use zmq::{Context, Socket, SocketEvent, SocketType};

/// A socket and what is known of it.
struct Specimen {
    name: String,
    socket: Socket,
    kind: SocketType,
    /// Among all calls of zmq_socket.
    order: u32,
    /// Receives what its monitor says, and its own order.
    events: Option<(Socket, u32)>,
    topics: Vec<&'static str>,
    endpoints: Vec<Value>,
    connections: Vec<Value>,
    tx_queue: u32,
    rx_queue: u32,
    bytes_held: usize,
}

struct Zoo {
    context: Context,
    sockets_made: u32,
    specimens: Vec<Specimen>,
}

/// Index of a specimen.
type Id = usize;

impl Zoo {
    fn socket(&mut self, kind: SocketType) -> Socket {
        self.sockets_made += 1;
        self.context.socket(kind).expect("zmq_socket")
    }

    fn make(&mut self, kind: SocketType, name: &str) -> Id {
        let socket = self.socket(kind);
        self.specimens.push(Specimen {
            name: name.to_owned(),
            socket,
            kind,
            order: self.sockets_made,
            events: None,
            topics: Vec::new(),
            endpoints: Vec::new(),
            connections: Vec::new(),
            tx_queue: 0,
            rx_queue: 0,
            bytes_held: 0,
        });
        self.specimens.len() - 1
    }

    fn watch(&mut self, id: Id) {
        let endpoint = format!("inproc://events-{id}");
        let events = i32::from(SocketEvent::ALL.to_raw());
        self.specimens[id].socket.monitor(&endpoint, events).expect("zmq_socket_monitor");
        self.sockets_made += 1; // libzmq's own end
        let receiver = self.socket(zmq::PAIR);
        receiver.connect(&endpoint).expect("a monitor's endpoint is there at once");
        self.specimens[id].events = Some((receiver, self.sockets_made));
    }

    /// The fd that the next event of this kind tells.
    fn await_event(&self, id: Id, wanted: SocketEvent) -> RawFd {
        let (events, _) = self.specimens[id].events.as_ref().expect("it is watched");
        loop {
            let parts = events.recv_multipart(0).expect("an event");
            let (kind, value) = parts[0].split_at(2);
            if kind == wanted.to_raw().to_ne_bytes() {
                return RawFd::from_ne_bytes(value.try_into().expect("a value has four bytes"));
            }
        }
    }

    /// Joins two new sockets by an endpoint, a message of `hello` included, and returns them: binder, connecter.
    fn couple(&mut self, endpoint: &str, bind: (SocketType, &str), connect: (SocketType, &str)) -> (Id, Id) {
        let (binder, connecter) = (self.make(bind.0, bind.1), self.make(connect.0, connect.1));
        let has_fds = !endpoint.starts_with("inproc:");
        if has_fds {
            self.watch(binder);
            self.watch(connecter);
        }
        self.specimens[binder].socket.bind(endpoint).expect("zmq_bind");
        let resolved = self.specimens[binder].socket.get_last_endpoint().expect("an endpoint").expect("ASCII");
        let listener = has_fds.then(|| self.await_event(binder, SocketEvent::LISTENING));
        self.specimens[connecter].socket.connect(&resolved).expect("zmq_connect");
        let connected = has_fds.then(|| self.await_event(connecter, SocketEvent::CONNECTED));
        let accepted = has_fds.then(|| self.await_event(binder, SocketEvent::ACCEPTED));
        self.enter(binder, &resolved, "bind", listener, accepted, connecter);
        self.enter(connecter, &resolved, "connect", connected, connected, binder);
        self.greet(binder, connecter);
        (binder, connecter)
    }

    fn enter(&mut self, id: Id, endpoint: &str, role: &str, fd: Option<RawFd>, connection: Option<RawFd>, peer: Id) {
        let transport = endpoint.split(':').next();
        let mut entry = json!({"transport": transport, "role": role, "endpoint": endpoint, "state": "ready",
            "peer_handle": self.handle(peer), "peer_type": type_name(self.specimens[peer].kind)});
        if let Some(fd) = connection {
            entry["fd"] = fd.into();
            if transport == Some("tcp") {
                let [local, remote] = addresses(fd);
                entry["local"] = local.to_string().into();
                entry["remote"] = remote.to_string().into();
            }
        }
        self.specimens[id].connections.push(entry);
        self.specimens[id].endpoints.push(json!({"endpoint": endpoint, "role": role, "fd": fd}));
    }

    /// When the first message has come, the handshake is done at both ends.
    fn greet(&mut self, binder: Id, connecter: Id) {
        let (left, right) = (&self.specimens[binder], &self.specimens[connecter]);
        match right.kind {
            zmq::SUB => {
                right.socket.set_subscribe(b"hello").expect("ZMQ_SUBSCRIBE");
                left.socket.recv_bytes(0).expect("its XPUB is told"); // from here on nothing is lost
                left.socket.send("hello", 0).expect("zmq_send");
                right.socket.recv_bytes(0).expect("zmq_recv");
                self.specimens[connecter].topics.push("hello");
            }
            zmq::DEALER => {
                right.socket.send("hello", 0).expect("zmq_send");
                let parts = left.socket.recv_multipart(0).expect("zmq_recv");
                self.specimens[binder].connections[0]["peer_identity"] = escaped(&parts[0]).into();
            }
            _ => {
                right.socket.send("hello", 0).expect("zmq_send");
                left.socket.recv_bytes(0).expect("zmq_recv");
            }
        }
    }

    /// Sends a message that the other one does not receive. Where it travels there may be one: that it has come is all
    /// that can be asked without receiving.
    fn leave(&mut self, from: Id, to: Id, bytes: usize, same_queue: bool) {
        self.specimens[from].socket.send(vec![b'x'; bytes], 0).expect("zmq_send");
        self.specimens[to].rx_queue += 1;
        self.specimens[to].bytes_held += bytes;
        if same_queue {
            self.specimens[from].tx_queue += 1;
            self.specimens[from].bytes_held += bytes;
        } else {
            self.specimens[to].socket.poll(zmq::POLLIN, -1).expect("zmq_poll");
        }
    }

    fn handle(&mut self, id: Id) -> String {
        handle(&mut self.specimens[id].socket)
    }

    fn truth(&mut self, id: Id) -> Value {
        let specimen = &mut self.specimens[id];
        let socket = &mut specimen.socket;
        let mut truth = json!({
            "handle": handle(socket), "name": specimen.name, "order": specimen.order, "type": type_name(specimen.kind),
            "mailbox_fd": socket.get_fd().expect("ZMQ_FD"), "options": options(socket),
            "monitor": specimen.events.is_some(), "endpoints": specimen.endpoints,
            "connections": specimen.connections, "tx_queue": specimen.tx_queue, "rx_queue": specimen.rx_queue,
            "bytes_held": specimen.bytes_held,
        });
        if specimen.kind == zmq::SUB {
            specimen.topics.sort_unstable();
            truth["subscriptions"] = json!(specimen.topics);
        }
        truth
    }
}

/// What the receiver of a monitor's events is.
fn events_truth(name: &str, events: &mut Socket, order: u32) -> Value {
    json!({"handle": handle(events), "name": format!("{name}-events"), "order": order, "type": "PAIR",
        "mailbox_fd": events.get_fd().expect("ZMQ_FD"), "options": options(events), "monitor": false})
}

fn handle(socket: &mut Socket) -> String {
    format!("{:p}", socket.as_mut_ptr())
}

fn type_name(kind: SocketType) -> String {
    format!("{kind:?}")
}

fn options(socket: &Socket) -> Value {
    json!({
        "sndhwm": socket.get_sndhwm().expect("an option"),
        "rcvhwm": socket.get_rcvhwm().expect("an option"),
        "linger": socket.get_linger().expect("an option"),
        "sndtimeo": socket.get_sndtimeo().expect("an option"),
        "rcvtimeo": socket.get_rcvtimeo().expect("an option"),
        "reconnect_ivl": socket.get_reconnect_ivl().expect("an option"),
        "reconnect_ivl_max": socket.get_reconnect_ivl_max().expect("an option"),
        "immediate": socket.is_immediate().expect("an option"),
        "ipv6": socket.is_ipv6().expect("an option"),
        "conflate": socket.is_conflate().expect("an option"),
        "tcp_keepalive": socket.get_tcp_keepalive().expect("an option"),
        "heartbeat_ivl": socket.get_heartbeat_ivl().expect("an option"),
        "handshake_ivl": socket.get_handshake_ivl().expect("an option"),
        "maxmsgsize": socket.get_maxmsgsize().expect("an option"),
        "backlog": socket.get_backlog().expect("an option"),
        "affinity": socket.get_affinity().expect("an option"),
        "routing_id": escaped(&socket.get_identity().expect("an option")),
    })
}

/// Bytes other than printable ASCII, and the backslash, as \xNN.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if (b' '..=b'~').contains(&byte) && byte != b'\\' {
            text.push(byte.into());
        } else {
            write!(text, "\\x{byte:02x}").expect("a string takes all");
        }
    }
    text
}

/// Of a tcp connection: its own and the other side's.
fn addresses(fd: RawFd) -> [SocketAddr; 2] {
    // SAFETY: a monitor has said that it is an open fd; it goes back to its owner, libzmq, below.
    let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
    let both = [stream.local_addr(), stream.peer_addr()].map(|address| address.expect("it is connected"));
    let _ = stream.into_raw_fd();
    both
}

// The thread that waits for a message that comes only when the zoo closes. It must be found under its functions.

#[inline(never)]
fn wait_for_order(socket: &Socket) -> usize {
    let order = socket.recv_msg(0).expect("zmq_msg_recv");
    order.len()
}

#[inline(never)]
fn serve_customers(socket: &Socket) {
    assert_eq!(wait_for_order(socket), "closed".len());
}

fn thread_id() -> c_int {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Whether a thread of ours is asleep in poll(2), which is what libzmq waits in.
fn is_asleep_in_poll(tid: c_int) -> bool {
    let read = |file| std::fs::read_to_string(format!("/proc/self/task/{tid}/{file}")).expect("it is our thread");
    read("stat").rsplit(')').next().is_some_and(|rest| rest.starts_with(" S")) && read("syscall").starts_with("7 ")
}

fn main() {
    let mut zoo = Zoo { context: Context::new(), sockets_made: 0, specimens: Vec::new() };
    let abstract_name = format!("ipc://@zmqtrace-rust-{}", std::process::id());

    let (pull, push) = zoo.couple("tcp://127.0.0.1:*", (zmq::PULL, "pull-tcp"), (zmq::PUSH, "push-tcp"));
    zoo.leave(push, pull, 100, false);
    let (pull, push) = zoo.couple(&abstract_name, (zmq::PULL, "pull-ipc"), (zmq::PUSH, "push-ipc"));
    zoo.leave(push, pull, 20, false);
    let (right, left) = zoo.couple("inproc://pair", (zmq::PAIR, "pair-right"), (zmq::PAIR, "pair-left"));
    for bytes in [0, 33, 34, 1000] {
        zoo.leave(left, right, bytes, true);
    }
    zoo.couple("tcp://127.0.0.1:*", (zmq::ROUTER, "router"), (zmq::DEALER, "dealer"));
    zoo.couple("tcp://127.0.0.1:*", (zmq::XPUB, "xpub"), (zmq::SUB, "sub"));
    let idle = zoo.make(zmq::REQ, "idle-req");
    let tuned = &zoo.specimens[idle].socket;
    tuned.set_sndhwm(7).expect("an option");
    tuned.set_linger(1234).expect("an option");
    tuned.set_identity(b"rust-\x01").expect("an option");

    let orders = zoo.make(zmq::PULL, "pull-orders");
    zoo.specimens[orders].socket.bind("inproc://orders").expect("zmq_bind");
    zoo.specimens[orders].endpoints.push(json!({"endpoint": "inproc://orders", "role": "bind", "fd": null}));

    let mut sockets: Vec<_> = (0..zoo.specimens.len()).map(|id| zoo.truth(id)).collect();
    let mut monitors = 0;
    for specimen in &mut zoo.specimens {
        if let Some((events, order)) = &mut specimen.events {
            sockets.push(events_truth(&specimen.name, events, *order));
            monitors += 1;
        }
    }

    let waited_for = zoo.handle(orders);
    let socket = zoo.specimens.remove(orders).socket;
    let (sender, receiver) = std::sync::mpsc::channel();
    let customers = thread::Builder::new().name("customers".to_owned());
    let customers = customers.spawn(move || {
        sender.send(thread_id()).expect("the main thread listens");
        serve_customers(&socket);
    });
    let tid = receiver.recv().expect("the thread says who it is");
    while !is_asleep_in_poll(tid) {
        thread::yield_now();
    }

    let (major, minor, patch) = zmq::version();
    let ready = json!({
        "ready": true, "pid": std::process::id(), "libzmq": format!("{major}.{minor}.{patch}"),
        "contexts": [{"io_threads": zoo.context.get_io_threads().expect("an option"),
            "unlisted_sockets": monitors, "sockets": sockets}],
        "other_fds": [],
        "blocked": [{"tid": tid, "thread": "customers", "call": "zmq_msg_recv", "sockets": [waited_for],
            "timeout_ms": -1, "functions": ["rust_zoo::wait_for_order", "rust_zoo::serve_customers"]}],
    });
    println!("{ready}");

    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).expect("stdin can be read");
    let closing = zoo.context.socket(zmq::PUSH).expect("zmq_socket");
    closing.connect("inproc://orders").expect("zmq_connect");
    closing.send("closed", 0).expect("zmq_send");
    customers.expect("a thread can be made").join().expect("it went well");
    drop(closing);
    // Dropping the rest would wait for what is queued.
    for specimen in &zoo.specimens {
        specimen.socket.set_linger(0).expect("an option");
    }
}
