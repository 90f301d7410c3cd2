//! What is made from the definitions, and what is copied from libzmq's.

use std::collections::BTreeMap;

use zmqtrace::constants;

use crate::support::Tracer;

#[test]
fn man_page_and_completions_are_made() {
    for (document, part) in [
        ("man", ".TH zmqtrace"),
        ("bash", "_zmqtrace()"),
        ("zsh", "#compdef zmqtrace"),
        ("fish", "complete -c zmqtrace"),
    ] {
        let finished = Tracer::start(["generate", document]).finish();
        assert_eq!(finished.status, 0, "{:?}", finished.stderr);
        assert!(
            finished.stdout.iter().any(|line| line.contains(part)),
            "no {part} in {document}: {:?}",
            finished.stdout
        );
    }
}

#[test]
fn help_lists_the_exit_statuses() {
    let finished = Tracer::start(["--help"]).finish();
    assert_eq!(finished.status, 0);
    for (status, when) in zmqtrace::error::EXIT_STATUSES {
        let named = |line: &&String| line.trim_start().starts_with(&format!("{status} "));
        assert!(finished.stdout.iter().any(|line| named(&line)), "{status} ({when}) is not in the help");
    }
}

/// `#define NAME NUMBER`, section by section.
fn header() -> BTreeMap<String, Vec<(String, i64)>> {
    let text = std::fs::read_to_string("/usr/include/zmq.h").expect("zmq.h is there: run `cargo xtask workloads`");
    let mut sections: BTreeMap<String, Vec<_>> = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("/*  ") {
            section = comment.trim_end_matches("*/").trim().into();
        }
        let mut words = line.split_whitespace();
        if let (Some("#define"), Some(name), Some(value)) = (words.next(), words.next(), words.next()) {
            let number = match value.strip_prefix("0x") {
                Some(digits) => i64::from_str_radix(digits, 16),
                None => value.parse(),
            };
            if let Ok(number) = number {
                sections.entry(section.clone()).or_default().push((name.into(), number));
            }
        }
    }
    sections
}

fn section<'header>(header: &'header BTreeMap<String, Vec<(String, i64)>>, name: &str) -> &'header [(String, i64)] {
    let found = header.get(name).unwrap_or_else(|| panic!("no section {name:?} in {:?}", header.keys()));
    assert!(!found.is_empty());
    found
}

#[test]
fn libzmqs_numbers_have_libzmqs_names() {
    let header = header();
    let options = section(&header, "Socket options.");
    let deprecated = section(&header, "Deprecated options and aliases").iter();
    assert!(options.len() > 60, "the header has another form: {}", options.len());
    for (name, number) in options.iter().chain(deprecated) {
        let known = constants::socket_option(*number as i32).map(|(name, _)| name);
        assert_eq!(known, Some(name.as_str()), "socket option {number}");
    }
    for (name, number) in section(&header, "Socket types.") {
        let known = constants::socket_type(*number as i32);
        assert_eq!(known, name.strip_prefix("ZMQ_"), "socket type {number}");
    }
    for (name, number) in section(&header, "Send/recv options.") {
        assert_eq!(constants::flags(constants::FLAGS, *number as u64), *name);
    }
    let events =
        header.values().flatten().filter(|(name, _)| name.starts_with("ZMQ_EVENT_") && name != "ZMQ_EVENT_ALL");
    let polls = header.values().flatten().filter(|(name, _)| name.starts_with("ZMQ_POLL") && !name.ends_with("DFLT"));
    let mut seen = 0;
    for (table, defines) in
        [(constants::MONITOR_EVENTS, events.collect::<Vec<_>>()), (constants::POLL_EVENTS, polls.collect())]
    {
        for (name, number) in defines {
            assert_eq!(constants::flags(table, *number as u64), *name);
            seen += 1;
        }
    }
    assert!(seen > 15, "the header has another form: {seen}");
}
