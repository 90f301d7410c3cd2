//! Which layout a build has: by where its tags are, and where that leaves several, by values that are known.

use tracer_common::record::is_socket_tag;

use super::{
    Subject,
    context::Found,
    cxx,
    epoll::Entry,
    image::at,
    layouts::{Layout, OBJECT_CTX, SIGNALER_R},
    socket::MAX_TYPE,
};

/// Sockets and poll entries that are looked at.
const SAMPLES: usize = 16;

/// The layout that fits best; `None`: the build is not known.
pub fn layout<'a>(subject: &Subject<'a>, entries: &[Entry], found: &Found, sockets: &[u64]) -> Option<&'a Layout> {
    let version = found.version(subject);
    let sockets: Vec<u64> = sockets.iter().copied().take(SAMPLES).collect();
    let candidates = subject.layouts.iter().filter(|layout| fits(subject, found, &sockets, layout));
    let judged = candidates.filter_map(|layout| {
        let known = version.is_some_and(|version| layout.fits(version));
        let agreeing = known_values(subject, found, &sockets, layout)? + engines(subject, entries, layout);
        Some((known, agreeing, layout))
    });
    // Of several that agree equally, the first, which is the most usual.
    let best = judged.reduce(|best, next| if (next.0, next.1) > (best.0, best.1) { next } else { best });
    best.map(|(.., layout)| layout)
}

/// Whether the tags are where the layout says: that of the context, and of every socket.
fn fits(subject: &Subject<'_>, found: &Found, sockets: &[u64], layout: &Layout) -> bool {
    let tagged = sockets.iter().filter(|socket| has_tag(subject, **socket, layout)).count();
    // Some may have been freed meanwhile, not most.
    layout.ctx_tag == found.tag
        && (tagged + 1 >= sockets.len() || 2 * tagged >= sockets.len())
        && (tagged > 0 || sockets.is_empty())
}

/// How many values are what they must be; `None`: too few for the layout to be that of this build.
fn known_values(subject: &Subject<'_>, found: &Found, sockets: &[u64], layout: &Layout) -> Option<u32> {
    let image = subject.image;
    let i32 = |address: u64| image.u32(address).map(|word| word as i32);
    let io_threads = i32(at(found.address, layout.ctx_io_thread_count));
    let threads = cxx::vector(image, at(found.address, layout.ctx_io_threads)).map(|threads| threads.len() as i32);
    let term_fd = i32(at(found.address, layout.ctx_term_mailbox + layout.mailbox_signaler + SIGNALER_R));
    // The process that made the context can be another one: its parent. A number it is in any case.
    let pid = layout.ctx_pid.and_then(|offset| i32(at(found.address, offset)));
    let mut agreeing = u32::from(io_threads.is_some() && io_threads == threads)
        + u32::from(term_fd.is_some_and(is_fd))
        + 2 * u32::from(pid == Some(subject.own_pid as i32));
    let mut sound = 0;
    for socket in sockets {
        let kind = image.u32(at(*socket, layout.opt_type)).map(|word| word as u8);
        let values = [
            kind.is_some_and(|kind| kind <= MAX_TYPE),
            image.u64(at(*socket, OBJECT_CTX)) == Some(found.address),
            cxx::tree(image, at(*socket, layout.own_owned)).is_some(),
            cxx::tree(image, at(*socket, layout.socket_endpoints)).is_some(),
        ];
        let right = values.iter().filter(|value| **value).count();
        agreeing += right as u32;
        sound += usize::from(right == values.len());
    }
    // Some may be changing under the reader, not most.
    (2 * sound >= sockets.len()).then_some(agreeing)
}

fn is_fd(number: i32) -> bool {
    (0..1 << 20).contains(&number)
}

/// How many poll entries, of some from everywhere, are those of engines that know their fd, their entry and a socket.
fn engines(subject: &Subject<'_>, entries: &[Entry], layout: &Layout) -> u32 {
    let is_engine = |entry: &&Entry| {
        let word = |offset: u64| subject.image.u64(at(entry.events, offset));
        word(layout.engine_s).map(|word| word as i32) == Some(entry.fd)
            && word(layout.engine_handle) == Some(entry.address)
            && word(layout.engine_socket).is_some_and(|socket| has_tag(subject, socket, layout))
    };
    entries.iter().step_by(entries.len().div_ceil(SAMPLES).max(1)).filter(is_engine).count() as u32
}

/// Whether a socket's tag is where the layout says.
fn has_tag(subject: &Subject<'_>, socket: u64, layout: &Layout) -> bool {
    subject.image.u32(at(socket, layout.socket_tag)).is_some_and(is_socket_tag)
}
