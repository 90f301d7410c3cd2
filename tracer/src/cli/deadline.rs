//! Ends the program when it cannot end itself: its output blocks in a reader that does not read, so the loop
//! sees neither signals nor timers. The kernel takes the probes out when we exit, however that is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::capture::or_never;

/// How long the loop has to notice that it is to end.
const GRACE: Duration = Duration::from_millis(500);

/// Watches, in a thread of its own, for Ctrl-C, SIGTERM and the end of `duration`. `noticed` is set by a loop that
/// ends by itself.
pub fn watch(duration: Option<Duration>, noticed: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = or_never(duration.map(tokio::time::sleep)) => {}
            }
            // A second signal, or a loop that is stuck, ends it at once.
            tokio::select! {
                _ = interrupt.recv() => exit(),
                _ = terminate.recv() => exit(),
                () = tokio::time::sleep(GRACE) => {}
            }
            if !noticed.load(Relaxed) {
                exit();
            }
            tokio::select! {
                _ = interrupt.recv() => exit(),
                _ = terminate.recv() => exit(),
            }
        });
    });
}

fn exit() {
    super::say("ended at once, while the output or a look into a process took too long: the last lines are missing");
    // SAFETY: ends the process at once, without touching the locks that the blocked thread holds.
    unsafe { libc::_exit(0) }
}
