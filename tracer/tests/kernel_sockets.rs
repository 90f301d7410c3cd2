//! What the kernel says of real sockets: of this test's own, and of processes in other network namespaces.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener, UnixStream},
        },
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use zmqtrace::target::{
    fds::{fds, owners},
    net::{Address, KernelSockets, Loss, Socket, network_namespace, network_namespaces},
};

fn inode(socket: &impl AsRawFd) -> u64 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("an fd");
    let link = link.to_string_lossy().into_owned();
    link.trim_start_matches("socket:[").trim_end_matches(']').parse().expect("a socket")
}

fn own() -> KernelSockets {
    let sockets = KernelSockets::read([std::process::id()]);
    assert!(sockets.shortfalls().is_empty(), "{:?}", sockets.shortfalls());
    sockets
}

fn found<'all>(sockets: &'all KernelSockets, socket: &impl AsRawFd) -> &'all Socket {
    sockets.get(inode(socket)).expect("the socket is in the table")
}

fn tcp_pair(address: &str) -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).expect("bind");
    let connected = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let (accepted, _) = listener.accept().expect("accept");
    (listener, connected, accepted)
}

/// Waits until data that was written has arrived: on loopback the kernel may do so a little later.
fn wait_for_bytes(socket: &TcpStream, count: usize) {
    let mut buffer = vec![0; count];
    while socket.peek(&mut buffer).expect("data") < count {}
}

#[test]
fn tcp_sockets_have_addresses_states_and_queues() {
    for (address, is_ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
        let (listener, mut connected, accepted) = tcp_pair(address);
        connected.write_all(&[1; 1000]).expect("write");
        wait_for_bytes(&accepted, 1000);
        let waiting = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let sockets = own();

        let at = |address: SocketAddr| Some(Address::Tcp(address));
        let (local, remote) = (accepted.local_addr().expect("local"), accepted.peer_addr().expect("remote"));
        assert_eq!(local.is_ipv6(), is_ipv6);
        let socket = found(&sockets, &accepted);
        assert_eq!((&socket.local, &socket.remote), (&at(local), &at(remote)));
        assert_eq!((socket.state, socket.rx_bytes, socket.tx_bytes), ("ESTABLISHED", Some(1000), Some(0)));
        assert_eq!((socket.retransmits, socket.total_retransmits), (Some(0), Some(0)));

        let end = sockets.other_end(socket).expect("the other end");
        assert_eq!((end.inode, &end.local), (inode(&connected), &at(remote)));
        assert!(end.rtt_us.is_some_and(|rtt_us| (1..1_000_000).contains(&rtt_us)), "{end:?}");
        assert!(end.snd_cwnd.is_some_and(|segments| segments > 0), "{end:?}");
        assert!(end.snd_wnd.is_some_and(|bytes| bytes > 0), "{end:?}");
        assert_eq!(end.to_event().state, "ESTABLISHED");

        let socket = found(&sockets, &listener);
        assert_eq!((socket.state, &socket.local, &socket.remote), ("LISTEN", &at(local), &None));
        assert_eq!(socket.rx_bytes, Some(1), "one waits to be accepted");
        let end = sockets.other_end(found(&sockets, &waiting)).expect("the end that waits to be accepted");
        assert_eq!(end.inode, 0, "no process has it");
    }
}

#[test]
fn ipv4_through_an_ipv6_socket_is_ipv4() {
    let listener = TcpListener::bind("[::]:0").expect("bind");
    let port = listener.local_addr().expect("an address").port();
    let connected = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let (accepted, _) = listener.accept().expect("accept");
    let sockets = own();
    let socket = found(&sockets, &accepted);
    assert_eq!(socket.local.as_ref().map(ToString::to_string), Some(format!("127.0.0.1:{port}")));
    assert_eq!(sockets.other_end(socket).map(|end| end.inode), Some(inode(&connected)));
    assert_eq!(sockets.other_end(found(&sockets, &connected)).map(|end| end.inode), Some(inode(&accepted)));
}

#[test]
fn a_full_tcp_connection_shows_its_closed_window_and_a_closed_one_its_state() {
    let (_listener, connected, accepted) = tcp_pair("127.0.0.1:0");
    connected.set_nonblocking(true).expect("non-blocking");
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_full = || {
        while (&connected).write(&[1; 65536]).is_ok() {}
        let sockets = own();
        let (socket, end) = (found(&sockets, &connected), found(&sockets, &accepted));
        assert!(socket.tx_bytes.is_some_and(|bytes| bytes > 0), "{socket:?}");
        socket.snd_wnd == Some(0) && end.rx_bytes.is_some_and(|bytes| bytes > 0)
    };
    while !is_full() {
        assert!(Instant::now() < deadline, "the window never closes");
    }

    let (_listener, connected, accepted) = tcp_pair("127.0.0.1:0");
    drop(accepted);
    assert_eq!((&connected).read(&mut [0]).expect("the end"), 0);
    let sockets = own();
    let socket = found(&sockets, &connected);
    assert_eq!(socket.state, "CLOSE_WAIT");
    assert_eq!(sockets.other_end(socket).map(|end| (end.inode, end.state.starts_with("FIN_WAIT"))), Some((0, true)));
}

#[test]
fn unix_sockets_have_paths_peers_and_queues() {
    let path = std::env::temp_dir().join(format!("zmqtrace-{}.ipc", std::process::id()));
    let listener = UnixListener::bind(&path).expect("bind");
    let mut connected = UnixStream::connect(&path).expect("connect");
    let (accepted, _) = listener.accept().expect("accept");
    std::fs::remove_file(&path).expect("remove");
    connected.write_all(&[1; 1000]).expect("write");
    let name = format!("zmqtrace {}", std::process::id());
    let hidden = UnixListener::bind_addr(&UnixAddress::from_abstract_name(&name).expect("a name")).expect("bind");
    let (left, right) = UnixStream::pair().expect("a pair");
    let (datagrams, _end) = UnixDatagram::pair().expect("a pair");
    let sockets = own();

    let text = |address: &Option<Address>| address.as_ref().map(ToString::to_string);
    let path = Some(path.display().to_string());
    let socket = found(&sockets, &listener);
    assert_eq!((socket.state, text(&socket.local), socket.peer_inode), ("LISTEN", path.clone(), None));
    let socket = found(&sockets, &accepted);
    assert_eq!((socket.state, socket.peer_inode), ("ESTABLISHED", Some(inode(&connected))));
    assert_eq!((text(&socket.local), text(&socket.remote)), (path.clone(), None));
    assert_eq!((socket.rx_bytes, socket.tx_bytes), (Some(1000), Some(0)));
    let socket = found(&sockets, &connected);
    assert_eq!((text(&socket.local), text(&socket.remote)), (None, path));
    assert_eq!((socket.rx_bytes, socket.tx_bytes), (Some(0), Some(1000)));
    assert_eq!(sockets.other_end(socket).map(|end| end.inode), Some(inode(&accepted)));

    assert_eq!(text(&found(&sockets, &hidden).local), Some(format!("@{name}")));
    assert_eq!(sockets.other_end(found(&sockets, &left)).map(|end| end.inode), Some(inode(&right)));
    assert_eq!(sockets.get(inode(&datagrams)), None, "only stream sockets");

    drop(right);
    let sockets = own();
    let socket = found(&sockets, &left);
    assert_eq!((socket.state, socket.peer_inode), ("ESTABLISHED", None), "its peer has gone");
}

#[test]
fn a_table_that_takes_many_datagrams_is_read_to_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    let pair = |_| (TcpStream::connect(address).expect("connect"), listener.accept().expect("accept").0);
    let pairs: Vec<_> = (0..300).map(pair).collect();
    let sockets = own();
    for (connected, accepted) in &pairs {
        let end = sockets.other_end(found(&sockets, connected));
        assert_eq!(end.map(|end| end.inode), Some(inode(accepted)));
    }
}

#[test]
fn fds_and_owners_are_found() {
    let (listener, connected, accepted) = tcp_pair("127.0.0.1:0");
    let duplicate = connected.try_clone().expect("dup");
    // SAFETY: takes an integer, returns a new fd.
    let event_poll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    let inherited = OwnedFd::from(accepted.try_clone().expect("dup"));
    let mut holder = Command::new("sleep").arg("1000").stdin(inherited).spawn().expect("sleep");

    let own = fds(std::process::id()).expect("our fds");
    assert!(own.event_polls.contains(&event_poll));
    for socket in [listener.as_raw_fd(), connected.as_raw_fd(), duplicate.as_raw_fd()] {
        assert!(own.sockets.contains_key(&socket));
    }
    assert_eq!(own.sockets[&connected.as_raw_fd()], inode(&connected));
    assert!(!own.sockets.contains_key(&event_poll));

    let owners = owners(&HashSet::from([inode(&connected), inode(&accepted), 1]));
    let (ours, theirs) = (std::process::id(), holder.id());
    let both = [(ours, connected.as_raw_fd()), (ours, duplicate.as_raw_fd())];
    assert!(both.iter().all(|owner| owners[&inode(&connected)].contains(owner)), "{owners:?}");
    assert!(owners[&inode(&accepted)].contains(&(ours, accepted.as_raw_fd())));
    assert!(owners[&inode(&accepted)].contains(&(theirs, 0)), "inherited: {owners:?}");
    assert!(!owners.contains_key(&1));

    holder.kill().expect("kill");
    holder.wait().expect("wait");
    assert!(fds(theirs).is_err(), "it has ended");
    // SAFETY: our own fd, which nothing uses any more.
    unsafe { libc::close(event_poll) };
}

/// This test program again as a child, most often in a network namespace of its own, doing [`CHILD`].
struct Again {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

const CHILD: &str = "in_a_namespace_of_its_own";
const ROLE: &str = "ZMQTRACE_TEST_ROLE";

impl Again {
    fn start(role: &str) -> Self {
        Self::start_by(&["unshare", "-n"], role)
    }

    fn start_by(launcher: &[&str], role: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(program);
        command.args([CHILD, "--exact", "--ignored", "--nocapture"]).env(ROLE, role);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux, and root");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, output }
    }

    /// What it says next.
    fn word(&mut self) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("its output") > 0 {
            if let Some(word) = line.strip_prefix("SAYS ") {
                return word.trim().into();
            }
            line.clear();
        }
        panic!("it ended");
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"\n").expect("it lives");
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        // Each ends with its input.
        self.child.stdin.take();
        _ = self.child.wait();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip of iproute2");
    assert!(status.success(), "ip {arguments}");
}

/// Until a line comes, or the input ends.
fn wait_for_input() {
    _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
#[ignore = "what the children of the other tests do"]
fn in_a_namespace_of_its_own() {
    let say = |word: String| println!("\nSAYS {word}");
    match std::env::var(ROLE).as_deref() {
        Ok("loopback") => {
            ip("link set lo up");
            let (listener, mut connected, accepted) = tcp_pair("127.0.0.1:0");
            connected.write_all(&[1; 1000]).expect("write");
            wait_for_bytes(&accepted, 1000);
            let port = listener.local_addr().expect("an address").port();
            say(format!("{port} {} {}", inode(&connected), inode(&accepted)));
            wait_for_input();
        }
        Ok("server") => {
            say("here".into());
            wait_for_input();
            ip("addr add 10.99.0.2/24 dev inner");
            ip("link set inner up");
            let listener = TcpListener::bind("10.99.0.2:5555").expect("bind");
            say("listens".into());
            // Beside, so that it also ends when nobody connects.
            std::thread::spawn(move || {
                let (accepted, _) = listener.accept().expect("accept");
                say(inode(&accepted).to_string());
                loop {
                    std::thread::park();
                }
            });
            wait_for_input();
        }
        Ok("client") => {
            let mut server = Again::start("server");
            server.word();
            ip(&format!("link add outer type veth peer name inner netns {}", server.child.id()));
            ip("addr add 10.99.0.1/24 dev outer");
            ip("link set outer up");
            server.go_on();
            server.word();
            let connected = TcpStream::connect("10.99.0.2:5555").expect("connect");
            let accepted = server.word();
            say(format!("{} {} {accepted}", server.child.id(), inode(&connected)));
            wait_for_input();
        }
        Ok(pid) => {
            let sockets = KernelSockets::read([pid.parse().expect("a pid")]);
            let full = sockets.iter().find(|socket| socket.rx_bytes == Some(1000)).expect("the socket");
            let losses = sockets.shortfalls().iter();
            let from_proc = losses.filter(|shortfall| {
                matches!(&shortfall.loss, Loss::FromProc(error) if error.raw_os_error() == Some(libc::EPERM))
            });
            say(format!("{} {} {}", full.inode, u8::from(full.snd_wnd.is_some()), from_proc.count()));
        }
        Err(_) => {}
    }
}

fn numbers(words: &str) -> Vec<u64> {
    words.split(' ').map(|word| word.parse().expect("a number")).collect()
}

#[test]
fn another_network_namespace_is_read_and_ours_is_kept() {
    let namespace = || File::open("/proc/thread-self/ns/net").and_then(|file| file.metadata()).expect("ours").ino();
    let before = (namespace(), network_namespace(std::process::id()).expect("ours"));
    let mut child = Again::start("loopback");
    let [port, connected, accepted] = numbers(&child.word())[..] else { panic!("three numbers") };

    // Without its namespace, its sockets are not there.
    assert_eq!(own().get(accepted), None);
    let sockets = KernelSockets::read([std::process::id(), child.child.id()]);
    assert!(sockets.shortfalls().is_empty(), "{:?}", sockets.shortfalls());
    let socket = sockets.get(accepted).expect("the socket");
    assert_eq!(socket.namespace, network_namespace(child.child.id()).expect("its namespace"));
    assert_eq!(socket.local.as_ref().map(ToString::to_string), Some(format!("127.0.0.1:{port}")));
    assert_eq!((socket.state, socket.rx_bytes), ("ESTABLISHED", Some(1000)));
    assert!(socket.snd_wnd.is_some(), "by sock_diag");
    assert_eq!(sockets.other_end(socket).map(|end| end.inode), Some(connected));
    assert_eq!(network_namespaces().get(&socket.namespace), Some(&child.child.id()));

    assert_eq!((namespace(), network_namespace(std::process::id()).expect("ours")), before);
}

#[test]
fn without_the_right_to_enter_a_namespace_its_tables_come_from_proc() {
    let mut child = Again::start("loopback");
    let [_, _, accepted] = numbers(&child.word())[..] else { panic!("three numbers") };
    let launcher = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    let mut reader = Again::start_by(&launcher, &child.child.id().to_string());
    assert_eq!(numbers(&reader.word()), [accepted, 0, 3], "the socket, no window, three tables");
}

#[test]
fn a_connection_between_namespaces_has_its_other_end() {
    let mut client = Again::start("client");
    let [server, connected, accepted] = numbers(&client.word())[..] else { panic!("three numbers") };
    let client_pid = client.child.id();

    let sockets = KernelSockets::read([client_pid]);
    let socket = sockets.get(connected).expect("the socket");
    assert_eq!(sockets.other_end(socket), None, "the server's namespace is not read");

    let sockets = KernelSockets::read(network_namespaces().into_values());
    let socket = sockets.get(connected).expect("the socket");
    assert_eq!(sockets.other_end(socket).map(|end| end.inode), Some(accepted));
    let owners = owners(&HashSet::from([accepted]));
    assert_eq!(owners[&accepted].iter().map(|(pid, _)| u64::from(*pid)).collect::<Vec<_>>(), [server]);
}

#[test]
fn a_process_that_is_not_there_is_stated() {
    // Above the largest pid_max.
    let sockets = KernelSockets::read([u32::MAX / 4]);
    assert_eq!((sockets.iter().count(), sockets.shortfalls().len()), (0, 1));
}

/// `cargo test --release --test kernel_sockets -- --ignored --nocapture measure`; needs `ulimit -n 10000`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let time = |what: &str, run: &mut dyn FnMut() -> usize| {
        let mut took_ms: Vec<f64> = Vec::new();
        let mut count = 0;
        for _ in 0..10 {
            let start = Instant::now();
            count = run();
            took_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        took_ms.sort_by(f64::total_cmp);
        println!("{what}: {count} in {:.1} ms (median), {:.1} to {:.1} ms", took_ms[5], took_ms[0], took_ms[9]);
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    let pairs: Vec<_> = (0..2000)
        .map(|_| (TcpStream::connect(address).expect("connect"), listener.accept().expect("accept")))
        .collect();
    let more: Vec<_> = (0..1000).map(|_| File::open("/dev/null").expect("open")).collect();
    time("fds", &mut || fds(std::process::id()).map_or(0, |fds| fds.sockets.len()));
    time("all tables", &mut || own().iter().count());
    println!("processes: {}", std::fs::read_dir("/proc").into_iter().flatten().count());
    time("owners of one", &mut || owners(&HashSet::from([inode(&pairs[0].0)])).len());
    let all: HashSet<u64> = pairs.iter().map(|(connected, _)| inode(connected)).collect();
    time("owners of 2000", &mut || owners(&all).len());
    time("namespaces", &mut || network_namespaces().len());
    drop(more);
}
