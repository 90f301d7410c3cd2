//! `latency` against what programs log of each of their messages: with every pattern and transport, nearly all are
//! matched, none with another one, and their stamps lie where the programs say.

use crate::{
    stages::{Program, Report, Truth, Watch, go, nearly_all, now_ns, run},
    support::{Tracer, Workload, signal},
};

/// One process with all ends, of which all must be found.
#[track_caller]
fn assert_within_one(arguments: &[&str]) -> (Report, Truth, Program) {
    let mut program = Program::c(arguments);
    let (report, truth) = run(&mut [&mut program], &[]);
    truth.assert_all(&report);
    assert_wires(&report, !arguments.contains(&"inproc"));
    (report, truth, program)
}

/// A process for each role.
#[track_caller]
fn assert_between_two(arguments: &[&str], of_sender: &[&str]) -> (Report, Truth) {
    let [mut receiver, mut sender] = Program::pair(arguments, of_sender);
    let (report, truth) = run(&mut [&mut receiver, &mut sender], &[]);
    truth.assert_all(&report);
    assert_wires(&report, true);
    (report, truth)
}

/// What went over a wire has stamps of that.
#[track_caller]
fn assert_wires(report: &Report, expected: bool) {
    for message in
        report.messages.iter().filter(|message| message.send_enter_ns.is_some() && message.recv_return_ns.is_some())
    {
        assert_eq!(message.wire_tx_ns.is_some(), expected, "{message:?}");
        assert_eq!(message.wire_rx_ns.is_some(), expected, "{message:?}");
        assert!(!expected || message.connection.is_some(), "{message:?}");
    }
}

#[test]
fn a_stream_over_each_transport() {
    for transport in ["tcp", "ipc", "inproc"] {
        let (report, _, _) = assert_within_one(&["--transport", transport, "--count", "20000"]);
        let stages = if transport == "inproc" {
            vec!["send_call", "end_to_end"]
        } else {
            vec!["send_call", "send_queue", "network", "recv_queue", "end_to_end"]
        };
        for stage in stages {
            let rows = report.rows(stage);
            assert_eq!(rows.len(), 1, "{stage} over {transport}: {rows:?}");
            assert!(nearly_all(rows[0].count as usize, 20000), "{stage} over {transport}: {rows:?}");
            assert!(rows[0].p50_ns <= rows[0].max_ns);
        }
    }
}

#[test]
fn a_stream_between_two_processes() {
    for transport in ["tcp", "ipc"] {
        assert_between_two(&["--transport", transport, "--count", "20000"], &[]);
    }
}

#[test]
fn a_million_messages_of_64_bytes() {
    let arguments = ["--count", "1000000"];
    let [mut receiver, mut sender] = Program::pair(&arguments, &["--rate", "200000"]);
    let (report, truth) = run(&mut [&mut receiver, &mut sender], &["--buffer", "64"]);
    assert_eq!(truth.received(), 1_000_000);
    truth.assert_all(&report);
}

#[test]
fn messages_with_the_same_contents() {
    assert_within_one(&["--identical", "--count", "20000"]);
    assert_within_one(&["--identical", "--count", "20000", "--transport", "ipc"]);
    assert_between_two(&["--identical", "--count", "20000"], &[]);
}

#[test]
fn messages_of_1_byte_to_1_megabyte() {
    assert_between_two(&["--size", "mixed", "--count", "1000"], &[]);
    assert_within_one(&["--size", "mixed", "--count", "1000", "--transport", "ipc"]);
    assert_within_one(&["--size", "mixed", "--count", "300", "--transport", "inproc"]);
}

#[test]
fn messages_of_several_parts_are_one() {
    for transport in ["tcp", "ipc", "inproc"] {
        let arguments = ["--parts", "5", "--size", "40,1300,70000,100", "--count", "2000", "--transport", transport];
        // Bytes of a unix socket have no numbers: a moment at which its queue is empty must come.
        let paced: &[&str] = if transport == "ipc" { &["--rate", "1000"] } else { &[] };
        let (report, _, _) = assert_within_one(&[&arguments[..], paced].concat());
        assert!(report.messages.iter().all(|message| message.parts == Some(5)));
    }
}

#[test]
fn one_sender_and_eight_receivers() {
    for transport in ["tcp", "ipc", "inproc"] {
        let arguments = ["--receivers", "8", "--count", "16000", "--transport", transport];
        let (report, _, _) = assert_within_one(&arguments);
        assert_eq!(report.rows("end_to_end").len(), 8, "a row for each pair");
    }
    assert_between_two(&["--receivers", "8", "--count", "16000"], &[]);
}

#[test]
fn eight_senders_and_one_receiver() {
    let (report, _, _) = assert_within_one(&["--senders", "8", "--count", "2000"]);
    assert_eq!(report.rows("end_to_end").len(), 8, "a row for each pair");
    assert_between_two(&["--senders", "8", "--count", "2000"], &[]);
}

/// The last of the three wants half of it: what is not sent to it is not missed.
#[test]
fn a_publisher_with_three_subscribers() {
    for transport in ["tcp", "ipc", "inproc"] {
        let mut program =
            Program::c(&["--pattern", "pub", "--receivers", "3", "--count", "4000", "--transport", transport]);
        let (report, truth) = run(&mut [&mut program], &[]);
        let both = truth.assert_sound(&report.messages);
        assert_eq!(truth.received(), 10_000);
        assert!(nearly_all(both, 10_000), "{both}: {:?}", report.coverage);
        let mut counts: Vec<_> = report.rows("end_to_end").iter().map(|row| row.count).collect();
        counts.sort_unstable();
        assert_eq!(counts.len(), 3, "a row for each pair: {counts:?}");
        assert!(counts[0] <= 2000 && counts[1] > 3990, "{counts:?}");
    }
}

/// Subscriptions are no messages of the publisher's stream.
#[test]
fn a_publisher_that_receives_subscriptions() {
    let [mut receiver, mut sender] = Program::pair(&["--pattern", "xpub", "--receivers", "3", "--count", "4000"], &[]);
    let pids = [receiver.pid(), sender.pid()];
    let watch = Watch::attach(&pids, &[]);
    go(&mut [&mut receiver, &mut sender]);
    let report = watch.interrupt();
    let truth = Truth::of(&[&receiver, &sender]);
    let published: Vec<_> =
        report.messages.iter().filter(|message| message.from_pid == Some(sender.pid())).cloned().collect();
    let both = truth.assert_sound(&published);
    assert!(nearly_all(both, truth.received()), "{both}: {:?}", report.coverage);
}

/// From both ends: requests and answers.
#[test]
fn dealers_and_a_router() {
    for transport in ["tcp", "ipc", "inproc"] {
        let arguments = ["--pattern", "dealer", "--senders", "4", "--count", "2000", "--transport", transport];
        let (report, _, _) = assert_within_one(&arguments);
        assert_eq!(report.rows("end_to_end").len(), 8, "each pair, both ways");
    }
    assert_between_two(&["--pattern", "dealer", "--senders", "3", "--count", "2000", "--parts", "3"], &[]);
}

/// A round trip is at least the server's time, and contains both messages.
#[test]
fn requests_and_replies() {
    for transport in ["tcp", "ipc", "inproc"] {
        let arguments = ["--pattern", "req", "--count", "2000", "--transport", transport];
        let (report, _, program) = assert_within_one(&arguments);
        let (trips, services) = (report.rows("round_trip"), report.rows("service"));
        assert_eq!((trips.len(), services.len()), (1, 1), "{:?}", report.stages);
        assert_eq!(trips[0].from_socket.as_deref(), Some(program.name(0)));
        assert_eq!(services[0].from_socket.as_deref(), Some(program.name(1)));
        assert!(nearly_all(trips[0].count as usize, 2000) && nearly_all(services[0].count as usize, 2000));
        assert!(trips[0].to_socket.is_none() || trips[0].to_socket.as_deref() == Some(program.name(1)));
        let one_way = report.rows("end_to_end").iter().map(|row| row.p50_ns).min().expect("two rows");
        assert!(trips[0].p50_ns >= one_way, "{:?}", report.stages);
        assert!(trips[0].p50_ns >= services[0].p50_ns, "{:?}", report.stages);
    }
    assert_between_two(&["--pattern", "req", "--senders", "3", "--count", "1000"], &[]);
}

#[test]
fn pairs_within_a_process_and_between_two() {
    for transport in ["tcp", "ipc", "inproc"] {
        assert_within_one(&["--pattern", "pair", "--count", "10000", "--transport", transport]);
    }
    assert_between_two(&["--pattern", "pair", "--count", "10000"], &[]);
}

/// Which frame is a message's last is encrypted, too: counts tell.
#[test]
fn what_is_encrypted() {
    assert_between_two(&["--curve", "--count", "20000"], &[]);
    assert_between_two(&["--curve", "--count", "20000", "--receivers", "3"], &[]);
    assert_between_two(&["--curve", "--count", "5000", "--parts", "4", "--size", "40,1300,70000"], &[]);
    assert_between_two(&["--curve", "--count", "20000", "--parts", "7", "--size", "70", "--transport", "ipc"], &[]);
    assert_between_two(&["--curve", "--count", "3000", "--pattern", "dealer", "--senders", "3", "--parts", "3"], &[]);
    assert_between_two(&["--curve", "--count", "2000", "--pattern", "req", "--senders", "2"], &[]);
    assert_between_two(&["--curve", "--count", "1000", "--pattern", "req", "--parts", "3"], &[]);
}

/// No call of a program moves what a proxy forwards: of each message the one end is known, and the wire.
#[test]
fn a_proxy_in_between() {
    for transport in ["tcp", "ipc"] {
        let arguments = ["--transport", transport, "--count", "5000"];
        let mut receiver = Program::c(&[&arguments[..], &["--role", "receiver"]].concat());
        let mut proxy =
            Workload::c("stages", &[&arguments[..], &["--role", "proxy", "--endpoint", &receiver.endpoint()]].concat());
        let endpoint = proxy.ready["endpoint"].as_str().expect("an endpoint").to_owned();
        let mut sender = Program::c(&[&arguments[..], &["--role", "sender", "--endpoint", &endpoint]].concat());
        let watch = Watch::attach(&[receiver.pid(), proxy.pid(), sender.pid()], &[]);
        go(&mut [&mut receiver, &mut sender]);
        let report = watch.interrupt();
        let truth = Truth::of(&[&receiver, &sender]);
        assert_eq!(truth.assert_sound(&report.messages), 0, "no connection joins them");
        let onward = report.messages.iter().filter(|message| message.from_pid == Some(sender.pid())).count();
        let arriving = report.messages.iter().filter(|message| message.to_pid == Some(receiver.pid())).count();
        assert!(nearly_all(onward, 5000) && nearly_all(arriving, 5000), "{onward} {arriving}: {:?}", report.coverage);
        for message in &report.messages {
            assert!(message.wire_tx_ns.is_some() && message.wire_rx_ns.is_some(), "{message:?}");
            let ends = (message.from_pid, message.to_pid);
            let proxy = Some(proxy.pid());
            assert!(
                ends == (Some(sender.pid()), proxy) || ends == (proxy, Some(receiver.pid())),
                "nobody else has to do with it: {message:?}"
            );
        }
        proxy.close();
    }
}

/// What is still on its way is not received any more.
fn stop(receiver: &mut Program, sender: &mut Program) {
    for program in [sender, receiver] {
        program.workload.say("stop");
        program.workload.answer("done");
    }
}

/// While messages flow: how many of what was received a second after attaching, and later, have both ends.
#[track_caller]
fn attach_late(arguments: &[&str]) -> (usize, usize, Report) {
    let arguments = [arguments, &["--count", "400000", "--until-told"]].concat();
    let [mut receiver, mut sender] = Program::pair(&arguments, &["--rate", "20000"]);
    receiver.workload.say("go");
    sender.workload.say("go");
    let watch = Watch::attach(&[receiver.pid(), sender.pid()], &["--duration", "2.5"]);
    let attached_ns = now_ns();
    let report = watch.finish();
    stop(&mut receiver, &mut sender);
    let truth = Truth::of(&[&receiver, &sender]);
    truth.assert_sound(&report.messages);
    // What was on its way when it ended is not counted.
    let last_ns = report.messages.iter().filter_map(|message| message.recv_return_ns).max().unwrap_or(attached_ns);
    let (from_ns, to_ns) = (attached_ns + 1_000_000_000, last_ns.saturating_sub(100_000_000));
    let matched = report.messages.iter().filter(|message| {
        let within = |record: &crate::stages::Record| record.before_ns >= from_ns && record.after_ns <= to_ns;
        message.send_enter_ns.is_some() && truth.receiver(message).is_some_and(|(_, record)| within(record))
    });
    (matched.count(), truth.received_within(from_ns, to_ns), report)
}

#[test]
fn attached_late_to_a_busy_tcp_connection() {
    for arguments in [
        &["--size", "64"][..],
        &["--identical"],
        &["--size", "20,300,9000"],
        &["--curve", "--size", "64"],
        &["--curve", "--parts", "3"],
    ] {
        let (matched, received, report) = attach_late(arguments);
        assert!(received > 5000, "{received} in the time that counts");
        assert!(nearly_all(matched, received), "{matched} of {received}: {:?}", report.coverage);
    }
}

/// Where nothing numbers the bytes it must first be known where the two stand; what is said is right, at once or late.
#[test]
fn attached_late_to_a_busy_ipc_connection() {
    let (matched, received, report) = attach_late(&["--transport", "ipc"]);
    let coverage = &report.coverage;
    assert!(received > 5000, "{received} in the time that counts");
    // At this rate the receiver finds its socket drained all the time.
    assert!(nearly_all(matched, received), "{matched} of {received}: {coverage:?}");
}

/// Several attach and leave while it goes on: each is right.
#[test]
fn attached_again_and_again() {
    let arguments = ["--count", "400000", "--until-told"];
    let [mut receiver, mut sender] = Program::pair(&arguments, &["--rate", "20000"]);
    receiver.workload.say("go");
    sender.workload.say("go");
    let pids = [receiver.pid(), sender.pid()];
    let reports: Vec<_> = (0..3).map(|_| Watch::attach(&pids, &["--duration", "0.5"]).finish()).collect();
    stop(&mut receiver, &mut sender);
    let truth = Truth::of(&[&receiver, &sender]);
    for report in reports {
        truth.assert_sound(&report.messages);
    }
}

/// What waits while the receiver does something else has come: the time is its queue's.
#[test]
fn a_receiver_that_pauses() {
    for transport in ["tcp", "ipc"] {
        let arguments = ["--transport", transport, "--count", "1200", "--pause-receiver-ms", "300"];
        let (report, _) = assert_between_two(&arguments, &["--rate", "2000"]);
        // Those that came in the first half of the pause.
        let waited: Vec<_> = report
            .messages
            .iter()
            .filter_map(|message| {
                let (sent, received) = (message.send_enter_ns?, message.recv_return_ns?);
                let (tx, rx) = (message.wire_tx_ns?, message.wire_rx_ns?);
                (received - sent > 150_000_000).then_some((received - rx, rx - tx, tx - sent))
            })
            .collect();
        assert!(waited.len() > 100, "{} of them", waited.len());
        for (recv_queue, network, before) in waited {
            assert!(recv_queue > 10 * (network + before), "{recv_queue} {network} {before}");
        }
    }
}

/// The sender disconnects and connects again in mid-stream: an end of a connection is no end of the truth.
#[test]
fn reconnects_in_mid_stream() {
    for transport in ["tcp", "ipc"] {
        let arguments = ["--transport", transport, "--count", "4000", "--reconnect-every", "200"];
        assert_between_two(&arguments, &[]);
    }
    assert_between_two(&["--pattern", "dealer", "--count", "2000", "--reconnect-every", "100"], &[]);
    for often in ["100", "1"] {
        assert_between_two(&["--pattern", "req", "--count", "1000", "--reconnect-every", often], &[]);
    }
}

/// A peer is killed with half of a message sent: that one is nobody's, those before are whole.
#[test]
fn a_peer_killed_in_mid_message() {
    let mut receiver = Program::c(&["--role", "receiver", "--count", "5000"]);
    let arguments = ["--endpoint", &receiver.endpoint(), "--count", "500", "--die-in-message"];
    let mut peer = Workload::c("rawpeer", &arguments);
    let watch = Watch::attach(&[receiver.pid()], &[]);
    receiver.workload.say("go");
    assert_eq!(peer.go()["sent"], 500);
    assert!(!peer.end().success(), "it kills itself");
    // The receiver takes turns between what has come: when the second one's last is there, the first one's are, too.
    let endpoint = receiver.endpoint();
    let arguments = ["--endpoint", &endpoint, "--count", "4500"];
    let mut next = Workload::c("rawpeer", &arguments);
    next.go();
    receiver.workload.answer("done");
    let report = watch.interrupt();
    let truth = Truth::of(&[&receiver]);
    assert_eq!(truth.received(), 5000);
    truth.assert_sound(&report.messages);
    let arrived = report.messages.iter().filter(|message| message.recv_return_ns.is_some()).count();
    assert!(nearly_all(arrived, 5000) && report.coverage.received == 5000, "{arrived}: {:?}", report.coverage);
    next.close();
}

/// The same with libzmq at both ends and the kill at any moment: what was received was sent in this order.
#[test]
fn a_sender_that_is_killed_at_full_speed() {
    let arguments = ["--size", "300000", "--count", "100000"];
    let mut receiver = Program::c(&[&arguments[..], &["--role", "receiver", "--until-told"]].concat());
    let endpoint = receiver.endpoint();
    let mut sender = Program::c(&[&arguments[..], &["--role", "sender", "--endpoint", &endpoint]].concat());
    let watch = Watch::attach(&[receiver.pid(), sender.pid()], &["--duration", "1"]);
    receiver.workload.say("go");
    sender.workload.say("go");
    let sending = Watch::attach(&[sender.pid()], &["--duration", "0.2"]).finish();
    assert!(!sending.messages.is_empty(), "it sends");
    signal(sender.pid(), libc::SIGKILL);
    let report = watch.finish();
    receiver.workload.say("stop");
    receiver.workload.answer("done");
    let truth = Truth::of(&[&receiver]);
    let mut joined: Vec<_> = report
        .messages
        .iter()
        .filter_map(|message| {
            let (_, received) = truth.receiver(message)?;
            Some((received.number, message.send_enter_ns?))
        })
        .collect();
    joined.sort_unstable();
    assert!(joined.len() > 10, "{}: {:?}", joined.len(), report.coverage);
    assert!(joined.is_sorted_by_key(|(_, sent_ns)| *sent_ns), "in the order in which they were sent");
}

/// The stages that one side can see.
#[test]
fn only_the_sender_is_traced() {
    for transport in ["tcp", "ipc"] {
        let [mut receiver, mut sender] = Program::pair(&["--count", "5000", "--transport", transport], &[]);
        let watch = Watch::attach(&[sender.pid()], &[]);
        go(&mut [&mut receiver, &mut sender]);
        let report = watch.interrupt();
        let truth = Truth::of(&[&receiver, &sender]);
        assert_eq!(truth.assert_sound(&report.messages), 0);
        assert!(nearly_all(report.messages.len(), 5000), "{}: {:?}", report.messages.len(), report.coverage);
        for message in &report.messages {
            assert!(message.send_enter_ns.is_some() && message.wire_tx_ns.is_some(), "{message:?}");
            assert!(message.wire_rx_ns.is_none() && message.recv_return_ns.is_none(), "{message:?}");
        }
        assert_eq!(report.rows("send_queue").len(), 1);
        assert!(report.rows("end_to_end").is_empty() && report.rows("network").is_empty());
    }
}

/// The stages that the other side can see.
#[test]
fn only_the_receiver_is_traced() {
    for transport in ["tcp", "ipc"] {
        let [mut receiver, mut sender] = Program::pair(&["--count", "5000", "--transport", transport], &[]);
        let watch = Watch::attach(&[receiver.pid()], &[]);
        go(&mut [&mut receiver, &mut sender]);
        let report = watch.interrupt();
        let truth = Truth::of(&[&receiver, &sender]);
        assert_eq!(truth.assert_sound(&report.messages), 0);
        assert!(nearly_all(report.messages.len(), 5000), "{}: {:?}", report.messages.len(), report.coverage);
        for message in &report.messages {
            assert!(message.recv_return_ns.is_some() && message.wire_rx_ns.is_some(), "{message:?}");
            assert!(message.send_enter_ns.is_none() && message.wire_tx_ns.is_none(), "{message:?}");
        }
        assert_eq!(report.rows("recv_queue").len(), 1);
        assert!(report.rows("end_to_end").is_empty() && report.rows("network").is_empty());
    }
}

#[test]
fn pyzmq_with_threads_and_with_asyncio() {
    for arguments in [
        &["--count", "3000"][..],
        &["--count", "3000", "--asyncio"],
        &["--count", "1000", "--pattern", "req"],
        &["--count", "1000", "--pattern", "req", "--asyncio"],
        &["--count", "1000", "--parts", "3", "--size", "900"],
    ] {
        let Some(mut program) = Program::python(arguments) else { return };
        let (report, truth) = run(&mut [&mut program], &[]);
        let truth = truth.by_python();
        let both = truth.assert_sound(&report.messages);
        assert!(nearly_all(both, truth.received()), "{both} of {}: {:?}", truth.received(), report.coverage);
    }
}

/// Another libzmq at the other end, in another language.
#[test]
fn from_pyzmq_to_c() {
    let mut receiver = Program::c(&["--role", "receiver", "--count", "3000"]);
    let arguments = ["--role", "sender", "--count", "3000", "--endpoint", &receiver.endpoint()];
    let Some(mut sender) = Program::python(&arguments) else { return };
    let (report, truth) = run(&mut [&mut receiver, &mut sender], &[]);
    truth.assert_all(&report);
}

/// `--slower-than` leaves the same messages, only fewer.
#[test]
fn slow_ones_alone() {
    let arguments = ["--count", "1000", "--pause-receiver-ms", "200"];
    let [mut receiver, mut sender] = Program::pair(&arguments, &["--rate", "2000"]);
    let (report, truth) = run(&mut [&mut receiver, &mut sender], &["--slower-than", "50ms"]);
    let both = truth.assert_sound(&report.messages);
    assert!(both > 50 && both < 900, "{both}");
    for message in &report.messages {
        let whole = message.recv_return_ns.zip(message.send_enter_ns).map(|(end, start)| end - start);
        assert!(whole.is_none_or(|ns| ns > 50_000_000), "{message:?}");
    }
    assert_eq!(report.coverage.received, 1000, "all are counted");
}

/// Tables meanwhile and bars: what they count adds up to what there was.
#[test]
fn intervals_and_bars_add_up() {
    let [mut receiver, mut sender] = Program::pair(&["--count", "3000"], &["--rate", "3000"]);
    let pids = format!("{},{}", receiver.pid(), sender.pid());
    let arguments = ["latency", "--json", "--interval", "200ms", "-p", &pids];
    let tracer = Tracer::start(arguments).attached();
    go(&mut [&mut receiver, &mut sender]);
    let rows = tracer.interrupt().ok().objects();
    let count = |interval: bool| -> u64 {
        let rows = rows.iter().filter(|row| row["stage"] == "end_to_end" && row["interval"] == interval);
        rows.map(|row| row["count"].as_u64().expect("a count")).sum()
    };
    let intervals = rows.iter().filter(|row| row["type"] == "latency_coverage" && row["interval"] == true).count();
    assert!(intervals >= 3, "{intervals} within a second");
    assert!(count(true) <= count(false), "{} {}", count(true), count(false));
    assert!(nearly_all(count(false) as usize, 3000), "{}", count(false));

    let [mut receiver, mut sender] = Program::pair(&["--count", "3000"], &[]);
    let pids = format!("{},{}", receiver.pid(), sender.pid());
    let tracer = Tracer::start(["latency", "--histogram", "-p", &pids]).attached();
    go(&mut [&mut receiver, &mut sender]);
    let finished = tracer.interrupt().ok();
    let lines = finished.stdout.iter().map(|line| line.trim()).skip_while(|line| *line != "end_to_end").skip(1);
    let bars = lines.take_while(|line| line.starts_with("< "));
    let counted: u64 = bars.map(|bar| bar.rsplit(' ').next().and_then(|it| it.parse::<u64>().ok()).expect(bar)).sum();
    assert!(nearly_all(counted as usize, 3000), "{counted}: {:?}", finished.stdout);
}
