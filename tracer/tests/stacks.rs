//! Programs whose calls do not return in the order in which they began: the target lives, and what is not
//! reported is stated.
//!
//! A test program of its own, so that nothing else is traced meanwhile: where several processes are probed in
//! the same library, the kernel (seen on 6.18) arms the return probes of all for each of them.

#[path = "real/support.rs"]
#[allow(dead_code)]
mod support;

use serde_json::Value;

use crate::support::{Tracer, Workload, number};

/// Calls of the truth's totals that were reported, those that were not as stated, and all that there were.
fn trace(how: &str) -> (u64, u64, u64) {
    let mut workload = Workload::c("stacks", &["--how", how]);
    // A session link can leave a return alone; the others cannot.
    let tracer = Tracer::attach("trace", &workload, &["--json", "--link", "session"]);
    let done = workload.go();
    let finished = tracer.interrupt();
    assert_eq!(finished.status, 0);
    workload.finish();
    let totals = done["totals"].as_array().expect("totals");
    let is_counted =
        |call: &Value| totals.iter().any(|total| total["call"] == call["call"] && total["handle"] == call["handle"]);
    let reported = finished.of_type("call").iter().filter(|call| is_counted(call)).count() as u64;
    let truth = totals.iter().map(|total| number(total, "count")).sum();
    let lost = number(&finished.of_type("lost")[0], "events");
    (reported, lost, truth)
}

#[test]
fn calls_that_return_in_another_order_are_survived_and_stated() {
    // Left by longjmp: hides no later call in silence.
    let (reported, lost, truth) = trace("jump");
    assert_eq!((truth, reported + lost), (20, 20), "{reported} reported, {lost} lost");
    // A signal handler on its own stack that sends; the receives are on the thread's own.
    let (reported, lost, truth) = trace("altstack");
    assert_eq!((truth, reported + lost), (20, 20), "{reported} reported, {lost} lost");
    assert!(reported >= 10, "{reported} reported");
    // Two coroutines, of which the first ends first.
    let (reported, lost, truth) = trace("coroutine");
    assert_eq!((truth, reported + lost), (2, 2), "{reported} reported, {lost} lost");
}
