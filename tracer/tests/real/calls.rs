//! `trace` on a program that makes every call, in both forms of output.

use std::collections::HashMap;

use serde_json::Value;
use tracer_common::function::Class;
use zmqtrace::cli::args::DEFAULT_CLASSES;

use crate::{
    support::{Finished, Tracer, Workload, assert_matches, scratch},
    truth,
};

/// Runs `calls` under several tracers at once. Returns its truth and what each of them said.
fn trace_calls<const N: usize>(arguments: [&[&str]; N]) -> (Value, [Finished; N]) {
    let mut workload = Workload::c("calls", &[]);
    let tracers = arguments.map(|arguments| Tracer::attach("trace", &workload, arguments));
    let done = workload.go();
    workload.finish();
    (done, tracers.map(|tracer| tracer.finish().ok()))
}

/// The calls of a JSON stream, without the accessors that the workload's log uses.
fn reported(finished: &Finished) -> Vec<Value> {
    finished.of_type("call").into_iter().filter(|call| !truth::is_accessor(call)).collect()
}

#[test]
fn every_call_appears_once_in_order_with_all_that_is_known_of_it() {
    let (done, [finished]) = trace_calls([&["--json", "-e", "all", "-s", "4096"]]);
    truth::assert_same(&truth::calls(&done, &Class::ALL), &reported(&finished), 4096);
}

#[test]
fn by_default_message_helpers_and_getsockopt_are_left_out() {
    let (done, [finished]) = trace_calls([&["--json"]]);
    truth::assert_same(&truth::calls(&done, DEFAULT_CLASSES), &finished.of_type("call"), 32);
}

#[test]
fn classes_select_calls() {
    let (done, [options, polls, sockets_and_endpoints]) =
        trace_calls([&["--json", "-e", "option"], &["--json", "-e", "poll"], &["--json", "-e", "socket,endpoint"]]);
    truth::assert_same(&truth::calls(&done, &[Class::Option, Class::Getsockopt]), &options.of_type("call"), 32);
    truth::assert_same(&truth::calls(&done, &[Class::Poll]), &polls.of_type("call"), 32);
    let both = truth::calls(&done, &[Class::Socket, Class::Endpoint]);
    truth::assert_same(&both, &sockets_and_endpoints.of_type("call"), 32);
}

#[test]
fn payloads_are_cut_where_asked_and_not_copied_with_0() {
    let (done, [none, five, inline, data]) =
        trace_calls([&["--json", "-s", "0"], &["--json", "-s", "5"], &["--json", "-s", "64"], &["--json", "-s", "65"]]);
    let truth = truth::calls(&done, DEFAULT_CLASSES);
    truth::assert_same(&truth, &none.of_type("call"), 0);
    truth::assert_same(&truth, &five.of_type("call"), 5);
    truth::assert_same(&truth, &inline.of_type("call"), 64);
    truth::assert_same(&truth, &data.of_type("call"), 65);
}

/// The one line that contains a text.
#[track_caller]
fn line<'lines>(finished: &'lines Finished, part: &str) -> &'lines str {
    finished.stdout.iter().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no line contains {part}"))
}

const TIME: &str = r"\d\d:\d\d:\d\d\.\d{6}";
const WHO: &str = r"calls\[\d+/\d+\]";

#[test]
fn lines_have_straces_form() {
    let (done, [finished]) = trace_calls([&["-e", "ctx,socket,endpoint,option,send,recv,poll,proxy,msg"]]);
    let lines = [
        ("zmq_ctx_new", r"zmq_ctx_new\(\) = ctx#~1 <0\.\d{6}>"),
        ("zmq_ctx_set", r"zmq_ctx_set\(ctx#~1, ZMQ_IO_THREADS, 2\) = 0 <0\.\d{6}>"),
        ("9999, 1", r"zmq_ctx_set\(ctx#~1, 9999, 1\) = -1 EINVAL \(Invalid argument\) <0\.\d{6}>"),
        ("ZMQ_REP", r"zmq_socket\(ctx#~1, ZMQ_REP\) = REP#3 <0\.\d{6}>"),
        ("EMFILE", r"zmq_socket\(ctx#~1, ZMQ_PUSH\) = NULL EMFILE \(Too many open files\) <0\.\d{6}>"),
        (
            "zmq_poll(",
            r"zmq_poll\(\[\{PULL#2, ZMQ_POLLIN\}\], 1, -1\) = -1 ETERM \(Context was terminated\) <0\.\d{6}>",
        ),
        ("SNDHWM", r"zmq_setsockopt\(DEALER#4, ZMQ_SNDHWM=5\) = 0 <0\.\d{6}>"),
        ("MAXMSGSIZE", r"zmq_setsockopt\(DEALER#4, ZMQ_MAXMSGSIZE=5000000000\) = 0 <0\.\d{6}>"),
        ("ROUTING_ID", r#"zmq_setsockopt\(DEALER#4, ZMQ_ROUTING_ID="dealer-1"\) = 0 <0\.\d{6}>"#),
        ("getsockopt(DEALER", r"zmq_getsockopt\(DEALER#4, ZMQ_SNDHWM=5\) = 0 <0\.\d{6}>"),
        ("zmq_bind", r#"zmq_bind\(PULL#5, "tcp://127\.0\.0\.1:\*"\) = 0 <0\.\d{6}>"#),
        (
            "pigeon",
            r#"zmq_connect\(PUSH#7, "carrier-pigeon://roof"\) = -1 EPROTONOSUPPORT \(Protocol not supported\) <.*>"#,
        ),
        ("33, 0) =", r#"zmq_send\(PUSH#9, "abcdefghijklmnopqrstuvwxyzabcdef"\.\.\., 33, 0\) = 33 <0\.\d{6}>"#),
        ("binary", r#"zmq_send\(PUSH#9, "\\x00\\xff\\x80 binary \\"\\n\\x7f", 14, ZMQ_DONTWAIT\) = 14 <0\.\d{6}>"#),
        ("|", r#"zmq_send\(PUSH#9, "", 0, ZMQ_DONTWAIT\|ZMQ_SNDMORE\) = 0 <0\.\d{6}>"#),
        ("0123\"", r#"zmq_recv\(PULL#8, "0123", 4, 0\) = 10 <0\.\d{6}>"#),
        (
            "EAGAIN",
            r"zmq_recv\(PULL#8, 0x[0-9a-f]+, 20000, ZMQ_DONTWAIT\) = -1 EAGAIN \(Resource temporarily unavailable\) <.*>",
        ),
        ("\"sendmsg\"", r#"zmq_sendmsg\(PUSH#11, "sendmsg", 0\) = 7 <0\.\d{6}>"#),
        (
            "EFSM",
            r"zmq_recv\(REQ#15, NULL, 0, 0\) = -1 EFSM \(Operation cannot be accomplished in current state\) <.*>",
        ),
        ("ENOTSOCK", r#"zmq_send\(NULL, "x", 1, 0\) = -1 ENOTSOCK \(Socket operation on non-socket\) <.*>"#),
        (
            "Timeout",
            r"zmq_poll\(\[\{PAIR#19, ZMQ_POLLIN\}, \{fd=\d+, ZMQ_POLLIN\}\], 2, 0\) = 0 \(Timeout\) <0\.\d{6}>",
        ),
        (
            "revents=",
            r"zmq_poll\(\[\{PAIR#19, ZMQ_POLLIN\}, \{fd=\d+, ZMQ_POLLIN\}\], 2, -1\) = 1 \(\[\{fd=\d+, revents=ZMQ_POLLIN\}\]\) <.*>",
        ),
        (
            "EVENT_ALL",
            r#"zmq_socket_monitor\(PULL#20, "tcp://127\.0\.0\.1:\*", ZMQ_EVENT_ALL\) = -1 EPROTONOSUPPORT .*"#,
        ),
        ("zmq_proxy(", r"zmq_proxy\(PULL#23, PUSH#24, NULL\) = -1 ETERM \(Context was terminated\) <.*>"),
        ("steerable", r"zmq_proxy_steerable\(PULL#27, PUSH#28, NULL, PAIR#32\) = 0 <.*>"),
    ];
    for (part, pattern) in lines {
        assert_matches(line(&finished, part), &format!("{TIME} {WHO} {pattern}"));
    }
    // One line a call, then the end of the process.
    let calls = finished.stdout.iter().filter(|line| !line.contains(" zmq_msg_"));
    let truth = truth::calls(&done, &Class::ALL);
    let expected = truth.iter().filter(|call| !call["call"].as_str().is_some_and(|name| name.starts_with("zmq_msg_")));
    assert_eq!(calls.count(), expected.count() + 1);
    assert_matches(finished.stdout.last().expect("lines"), r"\+\+\+ calls\[\d+\] ended \+\+\+");
    assert!(finished.stdout.iter().all(|line| !line.contains('\x1b')), "no colours but on a terminal");
}

#[test]
fn z_shows_successes_and_capital_z_failures() {
    let (done, [good, bad, bad_text]) = trace_calls([&["--json", "-z"], &["--json", "-Z"], &["-Z"]]);
    let (failed, succeeded): (Vec<_>, Vec<_>) =
        truth::calls(&done, DEFAULT_CLASSES).into_iter().partition(|call| !call["errno"].is_null());
    assert_eq!(summary(&good.of_type("call")), summary(&succeeded));
    assert_eq!(summary(&bad.of_type("call")), summary(&failed));
    assert!(failed.len() > 10 && succeeded.len() > 100, "the workload has changed");
    // And the end of the process.
    assert_eq!(bad_text.stdout.len(), failed.len() + 1);
}

/// Call and error, each thread for itself.
fn summary(calls: &[Value]) -> HashMap<u64, Vec<(String, Option<String>)>> {
    let mut threads: HashMap<_, Vec<_>> = HashMap::new();
    for call in calls {
        let name = call["call"].as_str().expect("calls have names").to_owned();
        let tid = call["tid"].as_u64().expect("calls have threads");
        threads.entry(tid).or_default().push((name, truth::errno(call).map(Into::into)));
    }
    threads
}

#[test]
fn times_are_shown_as_asked() {
    let cases: [(&[&str], &str); 6] = [
        (&["-t"], r"\d\d:\d\d:\d\d calls.* <0\.\d{6}>"),
        (&["-tt"], r"\d\d:\d\d:\d\d\.\d{6} calls.* <0\.\d{6}>"),
        (&["-ttt"], r"\d{10}\.\d{6} calls.* <0\.\d{6}>"),
        (&["-r"], r"\d+\.\d{6} calls.* <0\.\d{6}>"),
        (&["-T"], r"\d\d:\d\d:\d\d\.\d{6} calls.* <0\.\d{9}>"),
        (&["-r", "-T"], r"\d+\.\d{6} calls.* <0\.\d{9}>"),
    ];
    let (_, finished) = trace_calls(cases.map(|(arguments, _)| arguments));
    for (finished, (_, pattern)) in finished.iter().zip(cases) {
        for line in finished.stdout.iter().filter(|line| !line.starts_with("+++")) {
            assert_matches(line, pattern);
        }
    }
}

#[test]
fn capital_x_dumps_whole_payloads() {
    let (_, [dump, cut]) = trace_calls([&["-X"], &["-X", "-s", "5"]]);
    let after = |finished: &Finished, call: &str| {
        let lines = finished.stdout.iter().skip_while(|line| !line.contains(call)).skip(1);
        lines.take_while(|line| line.starts_with(" | ")).cloned().collect::<Vec<_>>()
    };
    let binary = ["", " | 00000  00 ff 80 20 62 69 6e 61  72 79 20 22 0a 7f        ... binary \"..   |"];
    assert_eq!(after(&dump, "zmq_send(PUSH#9, \"\\x00\\xff"), binary[1..]);
    // 1000 bytes are 63 lines of 16.
    assert_eq!(after(&dump, ", 1000, 0) ").len(), 63);
    assert_eq!(
        after(&cut, ", 1000, 0) "),
        [" | 00000  61 62 63 64 65                                    abcde            |"]
    );
    assert_eq!(after(&dump, "zmq_close"), [""; 0], "no payload, no dump");
}

#[test]
fn output_goes_to_a_file() {
    let path = scratch("calls.txt");
    let (_, [to_file, to_stdout]) = trace_calls([&["-o", path.to_str().expect("UTF-8")], &["-r"]]);
    assert!(to_file.stdout.is_empty());
    let file = std::fs::read_to_string(&path).expect("the file was written");
    let calls = |line: &str| {
        let from = line.find("calls[").expect("each line names the process");
        let to = line.rfind(" <").unwrap_or(line.len());
        line[from..to].to_owned()
    };
    let expected: Vec<_> = to_stdout.stdout.iter().map(|line| calls(line)).collect();
    assert_eq!(file.lines().map(calls).collect::<Vec<_>>(), expected);
    std::fs::remove_file(path).expect("the file is there");
}

#[test]
fn narrowing_by_socket_endpoint_and_contents_shows_the_lines_that_match() {
    let (_, [all, by_type, by_name, by_endpoint, by_port, by_contents, by_two]) = trace_calls([
        &["--json"],
        &["--json", "--socket", "push"],
        &["--json", "--socket", "REQ#15"],
        &["--json", "--endpoint", "inproc://order"],
        &["--json", "--port", "1"],
        &["--json", "--contains", "news"],
        &["--json", "--socket", "XPUB", "--contains", "news"],
    ]);
    let all = all.of_type("call");
    let socket = |call: &Value| call["socket"].as_str().unwrap_or_default().to_owned();
    let pick =
        |keep: &dyn Fn(&Value) -> bool| summary(&all.iter().filter(|call| keep(call)).cloned().collect::<Vec<_>>());
    let shown = |finished: &Finished| summary(&finished.of_type("call"));

    let expected = pick(&|call| socket(call).starts_with("PUSH#"));
    assert!(expected.values().map(Vec::len).sum::<usize>() > 20, "the workload has changed");
    assert_eq!(shown(&by_type), expected);
    assert_eq!(shown(&by_name), pick(&|call| socket(call) == "REQ#15"));
    // From bind and connect on.
    let order = pick(&|call| ["REQ#15", "REP#16"].contains(&socket(call).as_str()) && call["call"] != "zmq_socket");
    assert_eq!(shown(&by_endpoint), order);
    assert_eq!(shown(&by_port), HashMap::new(), "no socket has port 1, though many have a 1 in theirs");
    let news = |call: &Value| call["payload"].as_str().is_some_and(|text| text.contains("news"));
    assert_eq!(shown(&by_contents), pick(&news));
    assert_eq!(shown(&by_two), pick(&|call| socket(call).starts_with("XPUB#") && news(call)));
}

/// A reused address is a new socket, also where neither zmq_socket nor zmq_close is asked for: the payload says
/// of what type the socket is.
#[test]
fn sockets_at_reused_addresses_have_their_own_names_whatever_is_traced() {
    let mut workload = Workload::c("many", &["--reuse", "--sockets", "200", "--count", "2"]);
    let tracer = Tracer::attach("trace", &workload, &["--json", "-e", "send"]);
    workload.go();
    let calls = tracer.interrupt().ok().of_type("call");
    workload.finish();
    assert_eq!(calls.len(), 400);
    for call in calls {
        assert_eq!(call["call"], "zmq_send");
        let (socket, payload) = (call["socket"].as_str(), call["payload"].as_str());
        let kind = socket.and_then(|socket| socket.split_once('#')).map(|(kind, _)| kind);
        // A socket that was gone when it was looked at has no type, rather than a wrong one.
        assert!(kind == Some("?") || kind == payload, "{call}");
    }
}

/// The moment in front of a line is the moment of the call, not later by what attaching took.
#[test]
fn moments_are_those_of_the_calls() {
    let realtime_us = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        since.as_micros() as i64
    };
    let mut workload = Workload::c("flood", &["--count", "10"]);
    let tracer = Tracer::attach("trace", &workload, &["-ttt"]);
    let before_us = realtime_us();
    workload.go();
    let after_us = realtime_us();
    let lines = tracer.interrupt().ok().stdout;
    workload.finish();
    let sends: Vec<_> = lines.iter().filter(|line| line.contains("zmq_send")).collect();
    assert_eq!(sends.len(), 10);
    for line in sends {
        let (seconds, rest) = line.split_once('.').expect("seconds");
        let moment_us: i64 = format!("{seconds}{}", &rest[..6]).parse().expect("a moment");
        // A millisecond for what lies between the readings of two clocks.
        assert!((before_us - 1000..=after_us + 1000).contains(&moment_us), "{before_us} {moment_us} {after_us}");
    }
}
