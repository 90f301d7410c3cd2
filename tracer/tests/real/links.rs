//! The three ways in which the kernel can be asked to run our programs give the same.

use zmqtrace::cli::args::DEFAULT_CLASSES;

use crate::{
    kernels::version,
    support::{Tracer, Workload},
    truth,
};

/// What a kind of link needs, as (major, minor) of the kernel.
const KINDS: [(&str, (u32, u32)); 3] = [("session", (6, 13)), ("multi", (6, 6)), ("perf", (5, 15))];

#[test]
fn every_kind_of_link_sees_the_same_calls() {
    for (kind, since) in KINDS {
        if version() < since {
            eprintln!("left out: --link {kind} needs Linux {since:?}");
            continue;
        }
        let mut workload = Workload::c("calls", &[]);
        let tracer = Tracer::attach("trace", &workload, &["--json", "--link", kind]);
        let done = workload.go();
        workload.finish();
        truth::assert_same(&truth::calls(&done, DEFAULT_CLASSES), &tracer.finish().ok().of_type("call"), 32);
    }
}

#[test]
fn every_kind_of_link_counts_the_same() {
    for (kind, since) in KINDS {
        if version() < since {
            eprintln!("left out: --link {kind} needs Linux {since:?}");
            continue;
        }
        let mut workload = Workload::c("flood", &["--count", "20000"]);
        let tracer = Tracer::attach("stat", &workload, &["--json", "--link", kind]);
        workload.go();
        let rows = tracer.interrupt().ok().of_type("stat");
        workload.finish();
        let counts: Vec<_> = rows.iter().map(|row| row["count"].as_u64()).collect();
        assert_eq!(counts, [Some(20_000); 2], "{kind}");
    }
}
