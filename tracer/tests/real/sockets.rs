//! `sockets` against what programs say of themselves: every context, socket, option, endpoint, connection with its fd,
//! queue and subscription of a zoo, with each libzmq from 4.1.5 on.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

use crate::{
    nesting::{find, system_libzmq},
    support::{Finished, Tracer, Workload, made, made_external, number, root, signal},
};

/// What `cargo xtask workloads` takes out of pyzmq's wheels.
pub const OLD_BUILDS: [&str; 9] =
    ["4.1.5", "4.1.6", "4.2.5", "4.3.1", "4.3.2", "4.3.3", "4.3.4", "4.3.5-old-abi", "4.3.5"];
const MECHANISMS: [&str; 4] = ["NULL", "PLAIN", "CURVE", "GSSAPI"];

/// One look at a process.
pub fn look(pid: u32) -> Finished {
    let finished = Tracer::start(["sockets", "--json", "-p", &pid.to_string()]).finish();
    assert_eq!(finished.status, 0, "{:?}", finished.stderr);
    finished
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Compares all that a census states with what was found, and collects what differs.
struct Comparison {
    by_handle: BTreeMap<String, Value>,
    contexts: BTreeMap<String, Value>,
    differences: Vec<String>,
}

impl Comparison {
    fn new(found: &Finished) -> Self {
        let by_handle = |kind| {
            let objects = found.of_type(kind).into_iter();
            objects.map(|object| (text(&object["handle"]).to_owned(), object)).collect::<BTreeMap<_, _>>()
        };
        Self { by_handle: by_handle("socket"), contexts: by_handle("context"), differences: Vec::new() }
    }

    fn is(&mut self, what: &str, expected: &Value, found: &Value) {
        if !expected.is_null() && expected != found {
            self.differences.push(format!("{what}: {found}, but it is {expected}"));
        }
    }

    fn census(mut self, census: &Value) {
        let pid = &census["pid"];
        let mut stated = 0;
        let mut ids = BTreeMap::new();
        for context in list(&census["contexts"]) {
            self.context(context);
            for socket in list(&context["sockets"]) {
                stated += 1;
                self.socket(pid, socket);
                let id = &self.by_handle.get(text(&socket["handle"])).unwrap_or(&Value::Null)["socket_id"];
                ids.insert(socket["order"].as_u64(), id.as_u64());
            }
        }
        assert!(stated > 0, "a census without sockets proves nothing");
        let ids: Vec<_> = ids.into_values().collect();
        assert!(ids.is_sorted() && ids.iter().all(Option::is_some), "numbers in the order of creation: {ids:?}");
        self.fds(census);
        assert!(self.differences.is_empty(), "{}: {}", census["libzmq"], self.differences.join("\n"));
    }

    fn context(&mut self, truth: &Value) {
        let sockets = list(&truth["sockets"]).len() as u64;
        let found = match truth["handle"].as_str() {
            Some(handle) => self.contexts.get(handle).cloned(),
            // A binding may hide it: then there is only one.
            None => self.contexts.values().next().cloned(),
        };
        let Some(found) = found else {
            self.differences.push(format!("context {} was not found", truth["handle"]));
            return;
        };
        for member in ["io_threads", "max_sockets", "max_msgsz", "ipv6", "blocky", "terminating"] {
            self.is(&format!("context's {member}"), &truth[member], &found[member]);
        }
        if let Some(unlisted) = truth["unlisted_sockets"].as_u64() {
            self.is("sockets of the context", &(sockets + unlisted).into(), &found["sockets"]);
        }
    }

    fn socket(&mut self, pid: &Value, truth: &Value) {
        let name = text(&truth["name"]);
        let Some(found) = self.by_handle.get(text(&truth["handle"])).cloned() else {
            self.differences.push(format!("{name} was not found"));
            return;
        };
        self.is(&format!("{name}'s pid"), pid, &found["pid"]);
        self.is(&format!("{name}'s type"), &truth["type"], &found["socket_type"]);
        for member in ["mailbox_fd", "subscriptions", "bytes_held"] {
            self.is(&format!("{name}'s {member}"), &truth[member], &found[member]);
        }
        for (option, value) in truth["options"].as_object().into_iter().flatten() {
            let value = match (option.as_str(), value.as_u64()) {
                ("mechanism", Some(number)) => MECHANISMS[number as usize].into(),
                _ => value.clone(),
            };
            self.is(&format!("{name}'s {option}"), &value, &found["options"][option]);
        }
        if let Some(monitored) = truth["monitor"].as_bool() {
            self.is(&format!("whether {name} is monitored"), &monitored.into(), &(!found["monitor"].is_null()).into());
        }
        if let Some(endpoints) = truth["endpoints"].as_array() {
            self.endpoints(name, endpoints, list(&found["endpoints"]));
        }
        if let Some(connections) = truth["connections"].as_array() {
            self.connections(name, connections, list(&found["connections"]));
        }
        for member in ["tx_queue", "rx_queue"] {
            let queues = list(&found["connections"]).iter().map(|connection| connection[member].as_u64().unwrap_or(0));
            self.is(&format!("{name}'s {member}"), &truth[member], &queues.sum::<u64>().into());
        }
        self.is(&format!("{name}'s layout"), &Value::Null, &Value::Null);
        assert!(found["layout"].is_string(), "{name} has a known layout: {found}");
    }

    fn endpoints(&mut self, name: &str, truth: &[Value], found: &[Value]) {
        let key = |endpoint: &Value| (text(&endpoint["role"]).to_owned(), text(&endpoint["endpoint"]).to_owned());
        let keys = |endpoints: &[Value]| endpoints.iter().map(key).collect::<Vec<_>>();
        let (mut expected, mut seen) = (keys(truth), keys(found));
        expected.sort();
        seen.sort();
        self.is(&format!("{name}'s endpoints"), &format!("{expected:?}").into(), &format!("{seen:?}").into());
        for endpoint in truth {
            let same: Vec<_> = found.iter().filter(|found| key(found) == key(endpoint)).collect();
            if !endpoint["fd"].is_null() && !same.iter().any(|found| found["fd"] == endpoint["fd"]) {
                self.differences.push(format!("{name}: the fd of {endpoint} is not in {same:?}"));
            }
        }
    }

    fn connections(&mut self, name: &str, truth: &[Value], found: &[Value]) {
        self.is(&format!("number of {name}'s connections"), &truth.len().into(), &found.len().into());
        for connection in truth {
            let same = found.iter().find(|found| match connection["fd"].as_i64() {
                Some(fd) => found["fd"] == fd,
                None => {
                    found["role"] == connection["role"]
                        && (connection["peer_handle"].is_null() || self.peer_handle(found) == connection["peer_handle"])
                        && (found["endpoint"] == connection["endpoint"])
                }
            });
            let Some(found) = same.cloned() else {
                self.differences.push(format!("{name} lacks {connection}, it has {found:?}"));
                continue;
            };
            let what = |member: &str| format!("{name}, connection {}: {member}", connection["fd"]);
            self.is(&what("mapping"), &"exact".into(), &found["mapping"]);
            for member in ["state", "endpoint", "role", "peer_type", "peer_identity", "peer_pid"] {
                self.is(&what(member), &connection[member], &found[member]);
            }
            for member in ["local", "remote"] {
                let address = connection[member].as_str().map(normalised);
                self.is(&what(member), &address.into(), &found[member]);
            }
            let peer = self.peer_handle(&found);
            self.is(&what("peer"), &connection["peer_handle"], &peer);
        }
    }

    /// The socket that a connection names as its peer, by its address.
    fn peer_handle(&self, connection: &Value) -> Value {
        let peer = &connection["peer_socket"];
        let of_pid = |socket: &&Value| socket["pid"] == connection["peer_pid"] && socket["socket"] == *peer;
        self.by_handle.values().find(of_pid).map_or(Value::Null, |socket| socket["handle"].clone())
    }

    /// No fd is claimed that is not ZeroMQ's, and none by two sockets.
    fn fds(&mut self, census: &Value) {
        let others: BTreeSet<_> = list(&census["other_fds"]).iter().filter_map(Value::as_i64).collect();
        let mut claimed = BTreeSet::new();
        for socket in self.by_handle.values().filter(|socket| socket["pid"] == census["pid"]) {
            let listeners = list(&socket["endpoints"]).iter().filter(|endpoint| endpoint["role"] == "bind");
            let connections = list(&socket["connections"]).iter();
            for fd in listeners.chain(connections).filter_map(|part| part["fd"].as_i64()) {
                if others.contains(&fd) || !claimed.insert(fd) {
                    self.differences.push(format!("fd {fd} is not {}'s, or not its alone", socket["socket"]));
                }
            }
        }
    }
}

/// An IPv4 address in IPv6's clothes is shown as what it is.
fn normalised(address: &str) -> String {
    match address.strip_prefix("[::ffff:").and_then(|rest| rest.split_once(']')) {
        Some((ipv4, port)) => format!("{ipv4}{port}"),
        None => address.to_owned(),
    }
}

fn assert_census(census: &Value) {
    let pid = census["pid"].as_u64().expect("a pid") as u32;
    Comparison::new(&look(pid)).census(census);
}

#[test]
fn everything_in_a_zoo() {
    let zoo = Workload::c("zoo", &[]);
    assert_census(&zoo.ready);
    zoo.finish();
}

#[test]
fn everything_in_a_zoo_of_each_release() {
    for version in OLD_BUILDS {
        let Some(folder) = made_external(&format!("libzmq/{version}")) else { return };
        let mut command = Command::new(made("workloads/zoo"));
        let zoo = Workload::start(command.env("LD_LIBRARY_PATH", folder));
        let release = version.trim_end_matches("-old-abi");
        assert_eq!(zoo.ready["libzmq"], release);
        let found = look(zoo.pid());
        for context in found.of_type("context") {
            assert!(text(&context["layout"]).starts_with(release), "{version}: {}", context["layout"]);
        }
        Comparison::new(&found).census(&zoo.ready);
        zoo.finish();
    }
}

#[test]
fn everything_in_a_python_program() {
    let Some(zoo) = Workload::python("zoo.py", &[]) else { return };
    assert_census(&zoo.ready);
    zoo.finish();
}

#[test]
fn everything_in_a_rust_program_with_libzmq_linked_in() {
    let zoo = Workload::start(&mut Command::new(root().join("target/workloads/rust/release/rust-zoo")));
    assert_census(&zoo.ready);
    zoo.finish();
}

/// Sockets and connections come and go while the process is looked at; what stays must be told right each time.
#[test]
fn everything_while_sockets_come_and_go() {
    // In a network of its own: a socket that looks for a peer which is gone might find another test's at its port.
    let script = format!("ip link set lo up && exec {}", made("workloads/zoo").display());
    let mut zoo = Workload::start(Command::new("unshare").args(["-n", "sh", "-c", &script]));
    zoo.say("churn");
    zoo.answer("churn");
    for _ in 0..50 {
        let found = look(zoo.pid());
        let mut census = zoo.ready.clone();
        // What comes and goes is not listed.
        for context in census["contexts"].as_array_mut().expect("contexts") {
            context["unlisted_sockets"] = Value::Null;
        }
        Comparison::new(&found).census(&census);
        // Of what comes and goes, too, nothing is made up: memory of one that is gone may be another one's by now.
        for socket in found.of_type("socket") {
            assert_eq!(socket["layout"], found.objects()[0]["layout"], "{socket}");
            for endpoint in list(&socket["endpoints"]) {
                let name = text(&endpoint["endpoint"]);
                assert!(name.is_empty() || name.contains("://"), "{socket}");
            }
        }
    }
    zoo.say("truth");
    let truth = zoo.answer("truth");
    assert!(
        truth["churned"].as_u64().is_some_and(|couples| couples > 50),
        "nothing came and went: {}",
        truth["churned"]
    );
    assert_census(&truth);
    zoo.finish();
}

/// Every thread that is said to be blocked, with the objects that it is said to block: by thread.
fn blocked(found: &Finished) -> BTreeMap<u64, (Value, BTreeSet<String>)> {
    let mut threads: BTreeMap<u64, (Value, BTreeSet<String>)> = BTreeMap::new();
    for object in found.objects().iter().filter(|object| !object["blocked"].is_null()) {
        for thread in list(&object["blocked"]) {
            let tid = thread["tid"].as_u64().expect("a thread has a number");
            let known = threads.entry(tid).or_insert_with(|| (thread.clone(), BTreeSet::new()));
            known.1.insert(text(&object["handle"]).to_owned());
        }
    }
    threads
}

/// Whether `wanted` are among the functions of a stack, in this order, innermost first.
fn stack_has(stack: &Value, wanted: &Value) -> bool {
    let mut functions = list(stack).iter().filter_map(|frame| frame["function"].as_str());
    // Python's methods come with their class.
    let is = |function: &str, wanted: &str| function == wanted || function.ends_with(&format!(".{wanted}"));
    list(wanted).iter().all(|wanted| functions.any(|function| is(function, text(wanted))))
}

/// Compares threads that a census says are blocked.
#[track_caller]
fn assert_blocked(census: &Value, found: &Finished) {
    let threads = blocked(found);
    let stated = list(&census["blocked"]);
    assert!(!stated.is_empty(), "a census without blocked threads proves nothing");
    for truth in stated {
        let tid = truth["tid"].as_u64().expect("a number");
        let (thread, objects) = threads.get(&tid).unwrap_or_else(|| panic!("{truth} was not found in {threads:?}"));
        for member in ["thread", "call", "timeout_ms"] {
            assert!(truth[member].is_null() || truth[member] == thread[member], "{member} of {truth}: {thread}");
        }
        let handles = list(&truth["sockets"]).iter().chain([&truth["context"]]).filter_map(Value::as_str);
        assert_eq!(*objects, handles.map(str::to_owned).collect(), "{truth}");
        assert!(truth["fds"].is_null() || truth["fds"] == thread["fds"], "{truth}: {thread}");
        assert!(stack_has(&thread["stack"], &truth["functions"]), "{truth}: {}", thread["stack"]);
        assert_eq!(thread["stack_truncated"], false, "{thread}");
        assert!(thread["since_ns"].as_u64().is_some_and(|since_ns| since_ns > 0), "{thread}");
    }
    let tids: BTreeSet<_> =
        stated.iter().chain(list(&census["loops"])).filter_map(|truth| truth["tid"].as_u64()).collect();
    assert_eq!(threads.keys().copied().collect::<BTreeSet<_>>(), tids, "no other thread is blocked");
}

#[test]
fn threads_that_hung_before_we_came() {
    let hung = Workload::c("hung", &[]);
    let found = look(hung.pid());
    assert_blocked(&hung.ready, &found);
    Comparison::new(&found).census(&hung.ready);
    hung.finish();
}

#[test]
fn threads_that_hung_in_other_builds() {
    for version in OLD_BUILDS {
        let Some(folder) = made_external(&format!("libzmq/{version}")) else { return };
        let mut command = Command::new(made("workloads/hung"));
        let hung = Workload::start(command.env("LD_LIBRARY_PATH", folder));
        assert_blocked(&hung.ready, &look(hung.pid()));
        hung.finish();
    }
}

#[test]
fn two_processes_that_wait_for_each_other() {
    for transport in ["tcp", "ipc"] {
        let hung = Workload::c("hung", &["--mutual", transport]);
        let peer = hung.ready["peer"].clone();
        let peer_pid = peer["pid"].as_u64().expect("the other has a number");
        let found = look(hung.pid());
        assert_blocked(&hung.ready, &found);
        Comparison::new(&found).census(&hung.ready);
        let both = Tracer::start(["sockets", "--json", "-p", &format!("{},{peer_pid}", hung.pid())]).finish();
        for census in [&hung.ready, &peer] {
            let own: Vec<_> =
                both.of_type("socket").into_iter().filter(|socket| socket["pid"] == census["pid"]).collect();
            let other = if census == &peer { &hung.ready["pid"] } else { &peer["pid"] };
            let connections = own.iter().flat_map(|socket| list(&socket["connections"]));
            let mut seen = 0;
            for connection in connections.filter(|connection| connection["peer_pid"] == *other) {
                assert_eq!(connection["peer_type"], "DEALER");
                assert!(text(&connection["peer_socket"]).starts_with("DEALER#"), "{connection}");
                seen += 1;
            }
            assert_eq!(seen, 1, "{transport}: {own:?}");
        }
        hung.finish();
    }
}

#[test]
fn threads_of_a_python_program_and_its_event_loop() {
    let Some(zoo) = Workload::python("zoo.py", &[]) else { return };
    let found = look(zoo.pid());
    assert_blocked(&zoo.ready, &found);
    let threads = blocked(&found);
    for truth in list(&zoo.ready["loops"]) {
        let (thread, objects) = &threads[&truth["tid"].as_u64().expect("a number")];
        assert_eq!((thread["call"].clone(), text(&thread["system_call"])), (Value::Null, "epoll_wait"));
        let handles: BTreeSet<_> = list(&truth["sockets"]).iter().map(|handle| text(handle).to_owned()).collect();
        assert_eq!(*objects, handles, "{truth}");
    }
    if cfg!(feature = "python") {
        for truth in list(&zoo.ready["blocked"]) {
            let (thread, _) = &threads[&truth["tid"].as_u64().expect("a number")];
            assert!(stack_has(&thread["python_stack"], &truth["python"]), "{truth}: {}", thread["python_stack"]);
        }
    }
    zoo.finish();
}

#[test]
fn sockets_of_two_libzmqs_in_one_process() {
    let Some(environment) = made_external("venv/lib") else { return };
    let wheel = find(&environment, "libzmq-").expect("the pyzmq wheel has a libzmq");
    let twolibs = Workload::c("twolibs", &[&system_libzmq(), &wheel]);
    let found = look(twolibs.pid());
    let sockets = found.of_type("socket");
    let mut layouts = BTreeSet::new();
    for library in list(&twolibs.ready["libraries"]) {
        let prefixes: Vec<bool> = ["push", "pull"]
            .iter()
            .map(|end| {
                let socket = sockets.iter().find(|socket| socket["handle"] == library[end]);
                let socket = socket.unwrap_or_else(|| panic!("{end} of {library} was not found"));
                assert_eq!(text(&socket["socket_type"]), end.to_uppercase());
                layouts.insert(text(&socket["layout"]).to_owned());
                text(&socket["socket"]).starts_with("b:")
            })
            .collect();
        assert_eq!(prefixes[0], prefixes[1], "both sockets of a copy are named alike");
    }
    assert_eq!(layouts, BTreeSet::from(["4.3.4".to_owned(), "4.3.5".to_owned()]));
    assert!(sockets.iter().any(|socket| text(&socket["socket"]).starts_with("b:")));
}

#[test]
fn peers_in_other_network_namespaces() {
    let start = |script: String| {
        let script = format!("echo '{{\"ready\":true}}' && read line && {script}");
        Workload::start(Command::new("unshare").args(["-n", "sh", "-c", &script]))
    };
    let reqrep = made("workloads/reqrep");
    let up = |device: &str, address: &str| format!("ip addr add {address}/24 dev {device} && ip link set {device} up");
    let mut server = start(format!(
        "{} && exec {} --role server --endpoint 'tcp://10.99.3.1:*'",
        up("zmqa", "10.99.3.1"),
        reqrep.display()
    ));
    let mut client = start(format!(
        "{} && read endpoint && exec {} --role client --endpoint $endpoint",
        up("zmqb", "10.99.3.2"),
        reqrep.display()
    ));
    let (server_pid, client_pid) = (server.pid().to_string(), client.pid().to_string());
    let link =
        ["link", "add", "zmqa", "netns", &server_pid, "type", "veth", "peer", "name", "zmqb", "netns", &client_pid];
    let linked = Command::new("ip").args(link).status().expect("ip runs");
    assert!(linked.success(), "the two networks can be linked");
    server.say("up");
    let endpoint = text(&server.answer("ready")["endpoint"]).to_owned();
    client.say("up");
    client.say(&endpoint);
    client.answer("ready");

    for (own, other, peer) in [(client.pid(), server.pid(), "REP#1"), (server.pid(), client.pid(), "REQ#1")] {
        let sockets = look(own).of_type("socket");
        let connections: Vec<_> = sockets.iter().flat_map(|socket| list(&socket["connections"])).collect();
        assert_eq!(connections.len(), 1, "{sockets:?}");
        assert_eq!(connections[0]["peer_pid"], other, "{connections:?}");
        assert_eq!(connections[0]["peer_socket"], peer, "{connections:?}");
    }
}

/// What `zmq_proxy` moves passes no call; the queues count it.
#[test]
fn messages_that_a_proxy_moves_are_counted() {
    let mut proxy = Workload::c("proxy", &["--count", "3000"]);
    let stat = Tracer::attach("stat", &proxy, &["--json", "--queues", "20ms"]);
    let queues = Tracer::start(["sockets", "--json", "--queues", "20ms", "-p", &proxy.pid().to_string()]);
    // The first look is there: what moves from now on is printed.
    while queues.object()["handle"] != proxy.ready["sink"] {}
    let count = number(&proxy.go(), "count");
    let moved = stat.interrupt().ok().of_type("queue_total");
    for (name, sent, received) in
        [("source", count, 0), ("frontend", 0, count), ("backend", count, 0), ("sink", 0, count)]
    {
        let socket = moved.iter().find(|socket| socket["handle"] == proxy.ready[name]).expect("all are in the table");
        assert_eq!((number(socket, "sent"), number(socket, "received")), (sent, received), "{name}: {socket}");
    }
    // The samples of the other one add up, too: up to its last one.
    let mut written = 0;
    while written < count {
        let object = queues.object();
        if object["type"] == "queue" && object["handle"] == proxy.ready["backend"] {
            written += number(&object, "tx_written");
        }
    }
    assert_eq!(written, count);
    proxy.finish();
    let ended = queues.finish();
    assert_eq!(ended.status, 0, "{:?}", ended.stderr);
}

#[test]
fn every_process_of_the_machine() {
    let (flood, hung) = (Workload::c("flood", &["--count", "1"]), Workload::c("hung", &["--mutual", "tcp"]));
    let finished = Tracer::start(["sockets", "-a", "--json"]).finish();
    assert_eq!(finished.status, 0, "{:?}", finished.stderr);
    let pids: BTreeSet<_> = finished.of_type("socket").iter().map(|socket| number(socket, "pid")).collect();
    for pid in [u64::from(flood.pid()), u64::from(hung.pid()), number(&hung.ready["peer"], "pid")] {
        assert!(pids.contains(&pid), "{pid} is not in {pids:?}");
    }
    let graph = Tracer::start(["sockets", "-p", &hung.pid().to_string(), "--dot"]).finish();
    assert_eq!((graph.status, graph.stdout[0].as_str()), (0, "digraph zeromq {"));
    let edge = |line: &&String| line.contains(" -> ") && line.contains(&number(&hung.ready["peer"], "pid").to_string());
    assert_eq!(graph.stdout.iter().filter(edge).count(), 1, "{:?}", graph.stdout);
    hung.finish();
}

#[test]
fn watching_goes_on_until_the_target_ends() {
    let mut service = Workload::c("flood", &["--count", "1"]);
    let watch = Tracer::start(["sockets", "--watch", "10ms", "-p", &service.pid().to_string()]);
    for _ in 0..3 {
        while !watch.line().starts_with("--- at ") {}
    }
    service.end();
    let finished = watch.finish();
    assert_eq!(finished.status, 0, "{:?}", finished.stderr);
    assert!(finished.stdout.iter().any(|line| line.ends_with("ended +++")), "{:?}", finished.stdout.last());
    // And Ctrl-C ends it, too.
    let other = Workload::c("blocked", &[]);
    let watch = Tracer::start(["sockets", "--watch", "1h", "-p", &other.pid().to_string()]);
    while !watch.line().starts_with("--- at ") {}
    signal(watch.pid(), libc::SIGINT);
    assert_eq!(watch.finish().status, 0);
}

#[test]
fn everything_in_corners() {
    for case in ["inproc", "shutdown"] {
        let corner = Workload::c("corners", &["--case", case]);
        assert_census(&corner.ready);
        corner.finish();
    }
}

#[test]
fn a_context_whose_sockets_are_all_closed() {
    let corner = Workload::c("corners", &["--case", "closed"]);
    let found = look(corner.pid());
    let mut comparison = Comparison::new(&found);
    comparison.context(&corner.ready["contexts"][0]);
    assert!(comparison.differences.is_empty(), "{:?}", comparison.differences);
    assert_eq!(found.of_type("context").len(), 1);
    assert!(found.of_type("socket").is_empty());
    corner.finish();
}

/// A child has copies of its parent's contexts, of which no socket works: they are told as what they are.
#[test]
fn a_forks_child_only_inherits() {
    let parent = Workload::c("corners", &["--case", "fork"]);
    let child = parent.ready["child"].as_u64().expect("a pid") as u32;
    let found = look(child);
    let contexts: Vec<_> = found.of_type("context").into_iter().filter(|context| context["pid"] == child).collect();
    assert_eq!(contexts.len(), list(&parent.ready["contexts"]).len());
    for context in contexts {
        assert_eq!((&context["inherited"], &context["owner_pid"]), (&true.into(), &parent.ready["pid"]));
    }
    assert!(found.of_type("socket").iter().all(|socket| socket["pid"] != child), "{:?}", found.stdout);
    assert_census(&parent.ready);
    parent.finish();
}

/// No symbols are needed: what leads to libzmq are the kernel's lists.
#[test]
fn sockets_of_a_stripped_program() {
    let mut workload = Workload::c("static-stripped", &[]);
    let found = look(workload.pid());
    let contexts = found.of_type("context");
    assert!(!contexts.is_empty() && contexts.iter().all(|context| context["layout"].is_string()), "{contexts:?}");
    let sockets = found.of_type("socket");
    assert!(!sockets.is_empty());
    for socket in &sockets {
        assert!(socket["socket_type"].is_string() && socket["socket_id"].is_u64(), "{socket}");
        for connection in list(&socket["connections"]) {
            assert_eq!(connection["mapping"], "exact", "{socket}");
        }
    }
    workload.go();
    workload.finish();
}

/// libzmq starts a context's threads, and with them what it can be found by, at its first socket.
#[test]
fn a_context_that_never_had_a_socket_is_not_seen() {
    let corner = Workload::c("corners", &["--case", "untouched"]);
    let found = look(corner.pid());
    assert_eq!((found.of_type("context"), found.of_type("socket")), (vec![], vec![]));
    corner.finish();
}

/// A thread that runs between two of our reads must not be shown with the socket of one wait and the stack of the next.
#[test]
fn threads_that_wait_now_here_now_there_are_told_right() {
    let restless = Workload::c("traps", &["--case", "restless"]);
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        let sockets = look(restless.pid()).of_type("socket");
        for socket in &sockets {
            for thread in list(&socket["blocked"]) {
                let (call, function) = match text(&socket["socket_type"]) {
                    "PULL" => ("zmq_recv", "take"),
                    _ => ("zmq_poll", "look"),
                };
                assert_eq!(thread["call"], call, "{}: {thread}", socket["socket"]);
                assert!(stack_has(&thread["stack"], &serde_json::json!([function])), "{}: {thread}", socket["socket"]);
                seen.insert(call);
            }
        }
    }
    assert_eq!(seen.len(), 2, "both were seen: {seen:?}");
    restless.finish();
}

/// libzmq's counters take the name that a ZAP handler gives to a peer for a message that is never received.
#[test]
fn credentials_are_no_messages() {
    let server = Workload::c("traps", &["--case", "credentials"]);
    let sockets = look(server.pid()).of_type("socket");
    let pull = sockets.iter().find(|socket| socket["handle"] == server.ready["pull"]).expect("it is there");
    assert_eq!(pull["connections"][0]["rx_queue"], 0, "{pull}");
    assert_eq!((&pull["options"]["mechanism"], &pull["bytes_held"]), (&"PLAIN".into(), &0.into()));
    server.finish();
}

#[test]
fn a_proxy_that_was_called_through_a_pointer() {
    let workload = Workload::c("traps", &["--case", "pointer"]);
    let threads = blocked(&look(workload.pid()));
    let (thread, sockets) = &threads[&number(&workload.ready, "tid")];
    assert_eq!((text(&thread["call"]), sockets.len()), ("zmq_proxy", 2), "{thread}");
    workload.finish();
}

/// A queue is full when libzmq says so: it compares with what the reader has confirmed.
#[test]
fn a_queue_can_be_full_below_its_mark() {
    let workload = Workload::c("traps", &["--case", "mark"]);
    let sockets = look(workload.pid()).of_type("socket");
    let push = sockets.iter().find(|socket| socket["handle"] == workload.ready["push"]).expect("it is there");
    let connection = &push["connections"][0];
    assert_eq!((&connection["tx_full"], &connection["tx_queue"]), (&true.into(), &workload.ready["left"]), "{push}");
    assert!(number(connection, "tx_queue") < number(connection, "tx_hwm"), "{push}");
    workload.finish();
}

#[test]
fn a_stopped_process_is_said_to_be() {
    let zoo = Workload::c("zoo", &[]);
    let is_stopped = || look(zoo.pid()).objects()[0]["stopped"] == true;
    assert!(!is_stopped());
    signal(zoo.pid(), libc::SIGSTOP);
    // The signal is sent, and acted on a little later.
    assert!((0..200).any(|_| is_stopped()));
    let text = Tracer::start(["sockets", "-p", &zoo.pid().to_string()]).finish();
    assert!(text.stdout.iter().any(|line| line.contains("STOPPED by a signal")), "{:?}", text.stdout);
    signal(zoo.pid(), libc::SIGCONT);
    assert!((0..200).any(|_| !is_stopped()));
    zoo.finish();
}
