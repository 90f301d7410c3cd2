//! Messages of a program without libzmq, by the crate `zeromq`: of them only the wire can be seen. Senders and receivers
//! of one pattern, in one process, or each role in a process of its own. See ../../../README.md.

use std::{process::exit, time::Duration};

use serde_json::{Value, json};
use zeromq::{PubSocket, PullSocket, PushSocket, RepSocket, ReqSocket, SubSocket, ZmqMessage, prelude::*};

struct Options {
    pattern: String,
    role: String,
    endpoint: Option<String>,
    count: u64,
    size: usize,
    parts: usize,
}

fn options() -> Options {
    let mut options =
        Options { pattern: "push".into(), role: "both".into(), endpoint: None, count: 1000, size: 64, parts: 1 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| die(&format!("{name} needs a value")));
        let number = || value.parse().unwrap_or_else(|_| die(&format!("{name}: {value} is not a number")));
        match name.as_str() {
            "--pattern" => options.pattern = value,
            "--role" => options.role = value,
            "--endpoint" => options.endpoint = Some(value),
            "--count" => options.count = number(),
            "--size" => options.size = number() as usize,
            "--parts" => options.parts = number() as usize,
            _ => die(&format!("unknown option {name}")),
        }
    }
    options
}

fn die(message: &str) -> ! {
    eprintln!("{message}");
    exit(1);
}

/// Messages and their bytes, all parts together.
#[derive(Default)]
struct Count {
    messages: u64,
    bytes: u64,
}

impl Count {
    fn enter(&mut self, message: &ZmqMessage) {
        self.messages += 1;
        self.bytes += message.iter().map(|part| part.len() as u64).sum::<u64>();
    }
}

#[derive(Default)]
struct Counts {
    sent: Count,
    received: Count,
}

impl Counts {
    fn json(&self) -> Value {
        json!({"done": true, "sent": self.sent.messages, "sent_bytes": self.sent.bytes,
            "received": self.received.messages, "received_bytes": self.received.bytes})
    }

    fn add(&mut self, other: &Self) {
        self.sent.messages += other.sent.messages;
        self.sent.bytes += other.sent.bytes;
        self.received.messages += other.received.messages;
        self.received.bytes += other.received.bytes;
    }
}

fn message(options: &Options, number: u64) -> ZmqMessage {
    let mut bytes = vec![0; options.size];
    let mark = number.to_le_bytes();
    let length = mark.len().min(bytes.len());
    bytes[..length].copy_from_slice(&mark[..length]);
    let mut message = ZmqMessage::from(bytes);
    for _ in 1..options.parts {
        message.push_back(vec![b'x'; options.size].into());
    }
    message
}

async fn send(socket: &mut impl SocketSend, counts: &mut Counts, message: ZmqMessage) {
    counts.sent.enter(&message);
    socket.send(message).await.unwrap_or_else(|error| die(&format!("send: {error}")));
}

async fn receive(socket: &mut impl SocketRecv, counts: &mut Counts) -> ZmqMessage {
    let message = socket.recv().await.unwrap_or_else(|error| die(&format!("recv: {error}")));
    counts.received.enter(&message);
    message
}

/// The sockets of the role, joined once the tracer is there: the receiver binds, the sender connects.
async fn open<S: Socket, R: Socket>(options: &Options) -> (Option<S>, Option<R>) {
    let mut endpoint = options.endpoint.clone();
    let (mut sender, mut receiver) = (None, None);
    if matches!(options.role.as_str(), "both" | "receiver") {
        let mut socket = R::new();
        endpoint = Some(bind(&mut socket, endpoint.as_deref()).await);
        receiver = Some(socket);
    }
    let endpoint = endpoint.unwrap_or_else(|| die("a sender alone needs an --endpoint"));
    ready_and_go(&endpoint).await;
    if matches!(options.role.as_str(), "both" | "sender") {
        let mut socket = S::new();
        connect(&mut socket, &endpoint).await;
        sender = Some(socket);
    }
    (sender, receiver)
}

async fn bind(socket: &mut impl Socket, endpoint: Option<&str>) -> String {
    let bound = socket.bind(endpoint.unwrap_or("tcp://127.0.0.1:0")).await;
    bound.unwrap_or_else(|error| die(&format!("bind: {error}"))).to_string()
}

async fn connect(socket: &mut impl Socket, endpoint: &str) {
    socket.connect(endpoint).await.unwrap_or_else(|error| die(&format!("connect: {error}")));
}

/// Reads a line from standard input.
async fn line() -> String {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    read.await.expect("it does not panic").unwrap_or_else(|error| die(&format!("stdin: {error}")))
}

async fn ready_and_go(endpoint: &str) {
    println!("{}", json!({"ready": true, "pid": std::process::id(), "endpoint": endpoint}));
    if line().await != "go\n" {
        die("expected the line \"go\"");
    }
}

/// The sockets stay until the end of standard input: what they hold is still to go.
async fn done(counts: &Counts) {
    println!("{}", counts.json());
    while !line().await.is_empty() {}
}

async fn one_way(options: &Options) {
    let (mut sender, mut receiver) = open::<PushSocket, PullSocket>(options).await;
    let (mut counts, mut received) = (Counts::default(), Counts::default());
    let sends = async {
        let Some(socket) = &mut sender else { return };
        for number in 1..=options.count {
            send(socket, &mut counts, message(options, number)).await;
        }
    };
    let receives = async {
        let Some(socket) = &mut receiver else { return };
        for _ in 0..options.count {
            receive(socket, &mut received).await;
        }
    };
    tokio::join!(sends, receives);
    counts.received = received.received;
    done(&counts).await;
}

async fn round_trips(options: &Options) {
    let (mut client, mut server) = open::<ReqSocket, RepSocket>(options).await;
    let (mut counts, mut served) = (Counts::default(), Counts::default());
    let asks = async {
        let Some(socket) = &mut client else { return };
        for number in 1..=options.count {
            send(socket, &mut counts, message(options, number)).await;
            receive(socket, &mut counts).await;
        }
    };
    let answers = async {
        let Some(socket) = &mut server else { return };
        for _ in 0..options.count {
            let request = receive(socket, &mut served).await;
            send(socket, &mut served, request).await;
        }
    };
    tokio::join!(asks, answers);
    counts.add(&served);
    done(&counts).await;
}

/// One at a time, since this crate's publisher drops what a subscriber does not take at once. That its peer has
/// subscribed is known by what arrives before all else, which counts as received.
async fn publish(options: &Options) {
    if options.role != "both" {
        die("a publisher of its own does not know when its subscribers are there");
    }
    let mut publisher = PubSocket::new();
    let endpoint = bind(&mut publisher, None).await;
    ready_and_go(&endpoint).await;
    let mut subscriber = SubSocket::new();
    connect(&mut subscriber, &endpoint).await;
    subscriber.subscribe("").await.unwrap_or_else(|error| die(&format!("subscribe: {error}")));
    let (mut counts, mut ignored) = (Counts::default(), Counts::default());
    loop {
        send(&mut publisher, &mut ignored, "there?".into()).await;
        let first = receive(&mut subscriber, &mut counts);
        if tokio::time::timeout(Duration::from_millis(1), first).await.is_ok() {
            break;
        }
    }
    send(&mut publisher, &mut ignored, "end".into()).await;
    while receive(&mut subscriber, &mut counts).await.get(0).is_some_and(|part| part.as_ref() != b"end") {}
    for number in 1..=options.count {
        send(&mut publisher, &mut ignored, message(options, number)).await;
        receive(&mut subscriber, &mut counts).await;
    }
    counts.sent = ignored.sent;
    done(&counts).await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let options = options();
    if !matches!(options.role.as_str(), "both" | "sender" | "receiver") || options.parts == 0 {
        die("--role is both, sender or receiver; a message has a part");
    }
    match options.pattern.as_str() {
        "push" => one_way(&options).await,
        "req" => round_trips(&options).await,
        "pub" => publish(&options).await,
        _ => die("--pattern is push, req or pub"),
    }
    exit(0); // the runtime would wait for its reader of standard input
}
