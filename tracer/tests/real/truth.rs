//! Compares what was traced with what a workload says that it did (`workloads/README.md`), call by call.

use std::collections::HashMap;

use serde_json::{Value, json};
use tracer_common::function::{Class, FUNCTIONS, Function};
use zmqtrace::constants;

/// The class of a call.
pub fn class(call: &Value) -> Class {
    row(call).class
}

fn row(call: &Value) -> &'static Function {
    let name = call["call"].as_str().expect("calls have names");
    FUNCTIONS.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name} is not in the table"))
}

/// Calls that are in no truth: the workloads' logs use them themselves.
pub fn is_accessor(call: &Value) -> bool {
    matches!(call["call"].as_str(), Some("zmq_msg_data" | "zmq_msg_size" | "zmq_msg_more"))
}

/// The list of calls in a done line, those of some classes.
pub fn calls(done: &Value, classes: &[Class]) -> Vec<Value> {
    let all = done["calls"].as_array().expect("the truth has calls");
    // A receive's successors are known from what was sent, so from all calls.
    with_more(all).into_iter().filter(|call| classes.contains(&class(call))).collect()
}

/// Fills in what the truth leaves open, whether more parts follow, from what the program sent.
fn with_more(calls: &[Value]) -> Vec<Value> {
    let mut calls = calls.to_vec();
    let mut under_way: Vec<(u64, String, bool)> = Vec::new();
    for call in &mut calls {
        if call["call"] == "zmq_sendiov" || call["call"] == "zmq_recviov" {
            // All parts, so none follows.
            call["more"] = json!(false);
            continue;
        }
        let (Some(size), Some(payload), Value::Null) =
            (call["size"].as_u64(), call["payload"].as_str(), &call["errno"])
        else {
            continue;
        };
        match class(call) {
            Class::Send => under_way.push((size, payload.into(), call["more"] == true)),
            Class::Recv => {
                let sent = under_way.iter().position(|sent| sent.0 == size && sent.1.starts_with(payload));
                let more = match sent {
                    Some(index) => under_way.remove(index).2,
                    // libzmq itself sends subscriptions, in one part, and events of monitors, in two: a
                    // number and its value, then the endpoint.
                    None => size == 6 && payload.starts_with("\\x08\\x00"),
                };
                if call["more"].is_null() {
                    call["more"] = json!(more);
                }
            }
            _ => {}
        }
    }
    calls
}

/// Asserts that `reported` are the calls of the truth: each once, each thread's in order, nothing else.
/// `limit` is `-s`.
#[track_caller]
pub fn assert_same(truth: &[Value], reported: &[Value], limit: usize) {
    let mut threads: HashMap<u64, std::vec::IntoIter<&Value>> = HashMap::new();
    for tid in truth.iter().map(tid) {
        threads
            .entry(tid)
            .or_insert_with(|| truth.iter().filter(|call| self::tid(call) == tid).collect::<Vec<_>>().into_iter());
    }
    let mut comparison = Comparison { limit, names: HashMap::new(), messages: HashMap::new() };
    for reported in reported {
        let Some(truth) = threads.get_mut(&tid(reported)).and_then(Iterator::next) else {
            panic!("this was reported, but the program did not call it: {reported}");
        };
        comparison.learn(reported);
        let differences = comparison.differences(truth, reported);
        assert!(differences.is_empty(), "{}\n   truth {truth}\nreported {reported}", differences.join("\n"));
    }
    for (tid, mut rest) in threads {
        if let Some(call) = rest.next() {
            panic!("thread {tid}: not reported, with {} after it: {call}", rest.len());
        }
    }
}

fn tid(call: &Value) -> u64 {
    call["tid"].as_u64().expect("calls have threads")
}

struct Comparison {
    limit: usize,
    /// Names of sockets by their addresses, as of now.
    names: HashMap<String, String>,
    /// Messages completed, by socket and class.
    messages: HashMap<(String, u8), u64>,
}

impl Comparison {
    fn learn(&mut self, reported: &Value) {
        if let (Some(handle), Some(name)) = (reported["handle"].as_str(), reported["socket"].as_str()) {
            self.names.insert(handle.into(), name.into());
        }
    }

    fn differences(&mut self, truth: &Value, reported: &Value) -> Vec<String> {
        let mut expected = vec![
            ("call", truth["call"].clone()),
            ("ret", ret(truth)),
            ("handle", handle(truth)),
            ("flags", flags(truth)),
            ("more", if moves_message(truth) { truth["more"].clone() } else { Value::Null }),
            ("size", size(truth)),
            ("ordinal", self.ordinal(truth, reported)),
        ];
        let payload = self.payload(truth, reported);
        expected.push(("payload", payload));
        let mut differences: Vec<_> = expected
            .iter()
            .filter(|(name, value)| reported[*name] != *value)
            .map(|(name, value)| format!("{name}: expected {value}, reported {}", reported[*name]))
            .collect();
        if errno(truth) != errno(reported) {
            differences.push(format!("errno: expected {}, reported {}", truth["errno"], reported["errno"]));
        }
        for (name, value) in self.args(truth) {
            if !fits(&value, &reported["args"][name]) {
                differences.push(format!("args.{name}: expected {value}, reported {}", reported["args"][name]));
            }
        }
        let (start_ns, end_ns) = (truth["start_ns"].as_u64(), truth["end_ns"].as_u64());
        let (entry_ns, duration_ns) = (reported["ts_ns"].as_u64(), reported["dur_ns"].as_u64());
        let within =
            start_ns <= entry_ns && entry_ns.zip(duration_ns).map(|(entry, duration)| entry + duration) <= end_ns;
        if !within || duration_ns.is_none() {
            differences.push("its time is not within the program's own".into());
        }
        differences
    }

    /// Which message of its socket and direction a part belongs to.
    fn ordinal(&mut self, truth: &Value, reported: &Value) -> Value {
        if !moves_message(truth) || !truth["errno"].is_null() {
            return Value::Null;
        }
        // Names are never used twice, addresses are.
        let socket = reported["socket"].as_str().unwrap_or_default().to_owned();
        let completed = self.messages.entry((socket, class(truth) as u8)).or_default();
        *completed += u64::from(truth["more"] == false);
        json!(*completed + u64::from(truth["more"] == true))
    }

    fn payload(&self, truth: &Value, reported: &Value) -> Value {
        let Some(payload) = truth["payload"].as_str().filter(|_| moves_message(truth)) else {
            // Not known to the truth: a pointer, in Python.
            let unknown = moves_message(truth) && truth["errno"].is_null();
            return if unknown { reported["payload"].clone() } else { Value::Null };
        };
        let bytes = unescape(payload);
        match truth["call"].as_str() {
            // Of several parts the first is shown.
            Some("zmq_sendiov" | "zmq_recviov") => {
                let first = b"one";
                assert!(bytes.starts_with(first), "the workload has changed: {truth}");
                json!(escape(&first[..first.len().min(self.limit)]))
            }
            _ => json!(escape(&bytes[..bytes.len().min(self.limit)])),
        }
    }

    /// The call's own arguments, as far as the truth tells them.
    fn args(&self, truth: &Value) -> Vec<(&'static str, Value)> {
        let name = truth["call"].as_str().unwrap_or_default();
        let text = truth["args"].as_str();
        let given = |wanted: &str| text.and_then(|text| argument(text, wanted));
        let number = |wanted: &str| given(wanted).and_then(|value| value.parse::<i64>().ok());
        let mut args = Vec::new();
        if let Some(endpoint) = given("endpoint") {
            args.push(("endpoint", if endpoint == "NULL" { Value::Null } else { json!(endpoint) }));
        }
        if let Some(ms) = number("timeout_ms") {
            args.push(("timeout_ms", json!(ms)));
        }
        if let Some(items) = given("items") {
            args.push((
                "items",
                items.split(',').filter(|item| !item.is_empty()).map(|item| self.item(item)).collect(),
            ));
        }
        for socket in ["backend", "capture", "control"] {
            if let Some(handle) = given(socket) {
                args.push((socket, if handle == "0" { Value::Null } else { self.name(handle) }));
            }
        }
        match name {
            "zmq_ctx_set" => {
                let option = number("option").expect("is given") as i32;
                args.push(("option", json!(constants::context_option(option))));
                args.push(("value", json!(number("value"))));
            }
            "zmq_init" => args.push(("value", json!(number("io_threads")))),
            "zmq_socket" => {
                let kind = number("type").expect("is given") as i32;
                let name = constants::socket_type(kind).map_or_else(|| kind.to_string(), Into::into);
                args.push(("socket_type", json!(name)));
            }
            "zmq_setsockopt" | "zmq_getsockopt" => {
                let option = number("option").expect("is given") as i32;
                let known = constants::socket_option(option);
                args.push(("option", json!(known.map_or_else(|| option.to_string(), |(name, _)| name.into()))));
                args.push(("value", option_value(option, truth["payload"].as_str())));
            }
            "zmq_msg_init_size" | "zmq_msg_init_data" => {
                args.push(("length", truth["size"].clone()));
            }
            "zmq_recv" => args.push(("room", json!(number("len")))),
            "zmq_sendiov" => args.push(("length", json!(number("count")))),
            "zmq_socket_monitor" => args.push(("events", json!(number("events")))),
            "zmq_poller_add_fd" | "zmq_poller_remove_fd" => args.push(("fd", json!(number("fd")))),
            _ => {}
        }
        if matches!(name, "zmq_poller_add" | "zmq_poller_modify" | "zmq_poller_add_fd") {
            args.push(("events", event_names(number("events").expect("is given"))));
        }
        args
    }

    /// `0x5581:1:0`: socket or fd, events, events that came.
    fn item(&self, item: &str) -> Value {
        let parts: Vec<_> = item.split(':').collect();
        let [object, events, revents] = parts[..] else { panic!("not a poll item: {item}") };
        let number = |text: &str| text.parse::<i64>().expect("a number");
        let mut item = json!({"events": event_names(number(events)), "revents": event_names(number(revents))});
        match object.strip_prefix("0x") {
            Some(_) => item["socket"] = self.name(object),
            None => item["fd"] = json!(number(object)),
        }
        item
    }

    fn name(&self, handle: &str) -> Value {
        json!(self.names.get(handle).map_or(UNKNOWN, String::as_str))
    }
}

/// Stands for the name of a socket that was there before us.
const UNKNOWN: &str = "?";

fn fits(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(text), Value::String(_)) if text == UNKNOWN => true,
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len() && expected.iter().zip(found).all(|(expected, found)| fits(expected, found))
        }
        (Value::Object(expected), Value::Object(found)) => {
            expected.len() == found.len()
                && expected.iter().all(|(name, value)| fits(value, found.get(name).unwrap_or(&Value::Null)))
        }
        _ => expected == found,
    }
}

fn moves_message(call: &Value) -> bool {
    matches!(class(call), Class::Send | Class::Recv)
}

/// `name=value`, up to the next space.
fn argument<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn ret(truth: &Value) -> Value {
    if truth["ret"].is_null() { json!("0x0") } else { truth["ret"].clone() }
}

/// The truth has what was passed. Of `zmq_socket` the reported handle is the new socket's.
fn handle(truth: &Value) -> Value {
    match truth["call"].as_str() {
        Some("zmq_socket") => truth["ret"].clone(),
        // It takes a pointer to the poller.
        Some("zmq_poller_destroy") => Value::Null,
        _ => truth["handle"].clone(),
    }
}

/// Of an option that is set, the size is that of the value.
fn size(truth: &Value) -> Value {
    if moves_message(truth) || class(truth) == Class::Getsockopt { truth["size"].clone() } else { Value::Null }
}

fn flags(truth: &Value) -> Value {
    match truth["flags"].as_u64() {
        None => Value::Null,
        Some(flags) => [(1, "DONTWAIT"), (2, "SNDMORE")]
            .into_iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|(_, name)| name)
            .collect(),
    }
}

/// Linux has two names for one number.
pub fn errno(call: &Value) -> Option<&str> {
    match call["errno"].as_str() {
        Some("EOPNOTSUPP") => Some("ENOTSUP"),
        name => name,
    }
}

fn event_names(events: i64) -> Value {
    let names = [(1, "POLLIN"), (2, "POLLOUT"), (4, "POLLERR"), (8, "POLLPRI")];
    names.into_iter().filter(|(bit, _)| events & bit != 0).map(|(_, name)| name).collect()
}

fn option_value(option: i32, bytes: Option<&str>) -> Value {
    use constants::OptionKind;
    let Some(text) = bytes else { return Value::Null };
    let bytes = unescape(text);
    match (constants::socket_option(option).map(|(_, kind)| kind), bytes.len()) {
        (Some(OptionKind::Secret), _) => Value::Null,
        (Some(OptionKind::Bytes), _) => json!(text),
        (_, 4) => json!(i32::from_ne_bytes(bytes.try_into().expect("4 bytes"))),
        (Some(OptionKind::Int64), 8) => json!(i64::from_ne_bytes(bytes.try_into().expect("8 bytes"))),
        (_, 8) => json!(u64::from_ne_bytes(bytes.try_into().expect("8 bytes"))),
        _ => json!(text),
    }
}

/// Bytes as the contract and the truth have them.
pub fn escape(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'\\' | ..=0x1f | 0x7f.. => format!("\\x{byte:02x}"),
        byte => char::from(*byte).to_string(),
    };
    bytes.iter().map(one).collect()
}

/// The reverse.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).expect("two digits"));
        bytes.extend(&part.as_bytes()[2..]);
    }
    bytes
}
