//! Fetches what will be read of many objects together: a system call for a thousand of them instead of one for each.
//! What it misses is read when it is needed, so this only saves time.

use super::{
    Detail, Watched,
    context::Reader,
    image::{Image, at},
    layouts::{OBJECT_CTX, PIPE_IN, PIPE_OUT},
};

/// Poll entries, and the first word of what they belong to.
pub fn entries(image: &Image<'_>, watched: &[Watched]) {
    image.prefetch(watched.iter().map(|watched| (watched.data, 24)));
    image.prefetch(watched.iter().filter_map(|watched| Some((image.u64(at(watched.data, 16))?, 8))));
}

impl Reader<'_> {
    /// Sockets, and all that belongs to their connections.
    pub fn prefetch(&self, sockets: &[u64]) {
        let (layout, image) = (self.layout, self.subject.image);
        image.prefetch(sockets.iter().map(|socket| (*socket, layout.socket_monitor_events + 8)));
        self.prefetch_mailboxes(sockets);

        // Of an engine what stands at its end, which of one that is none does no harm.
        let end = layout.engine_metadata.min(layout.engine_session).min(layout.engine_s);
        let ends = self.entries.iter().map(|entry| (at(entry.events, end), layout.engine_socket + 8 - end));
        image.prefetch(ends);
        let word = |base: u64, offset: u64| image.u64(at(base, offset)).filter(|word| *word != 0);
        let engines: Vec<u64> = self
            .entries
            .iter()
            .filter(|entry| word(entry.events, layout.engine_handle) == Some(entry.address))
            .map(|entry| entry.events)
            .collect();

        let sessions: Vec<u64> = engines.iter().filter_map(|engine| word(*engine, layout.engine_session)).collect();
        let members = layout.session_socket + 8 - layout.own_owner;
        image.prefetch(sessions.iter().map(|session| (at(*session, OBJECT_CTX), 8)));
        image.prefetch(sessions.iter().map(|session| (at(*session, layout.own_owner), members)));
        let pipes: Vec<u64> = sessions.iter().filter_map(|session| word(*session, layout.session_pipe)).collect();
        image.prefetch(pipes.iter().map(|pipe| (*pipe, layout.pipe_conflate + 1)));
        let peers: Vec<u64> = pipes.iter().filter_map(|pipe| word(*pipe, layout.pipe_peer)).collect();
        image.prefetch(peers.iter().map(|pipe| (*pipe, layout.pipe_conflate + 1)));
        if self.detail == Detail::All {
            let queues = pipes.iter().flat_map(|pipe| [word(*pipe, PIPE_IN), word(*pipe, PIPE_OUT)]).flatten();
            image.prefetch(queues.map(|queue| (queue, 40)).collect::<Vec<_>>());
            self.prefetch_metadata(&engines);
        }
    }

    fn prefetch_mailboxes(&self, sockets: &[u64]) {
        let (layout, image) = (self.layout, self.subject.image);
        if layout.has_mailbox_pointer() {
            let mailboxes = sockets.iter().filter_map(|socket| image.u64(at(*socket, layout.socket_mailbox)));
            let mailboxes: Vec<u64> = mailboxes.collect();
            image.prefetch(mailboxes.iter().map(|mailbox| (at(*mailbox, layout.mailbox_signaler), 8)));
        }
    }

    /// What the peers said of themselves: a tree of a handful of nodes, two levels below its root.
    fn prefetch_metadata(&self, engines: &[u64]) {
        /// A node with its two strings.
        const NODE_BYTES: u64 = 96;
        let (layout, image) = (self.layout, self.subject.image);
        let metadata = engines.iter().filter_map(|engine| image.u64(at(*engine, layout.engine_metadata)));
        let trees: Vec<u64> =
            metadata.filter(|metadata| *metadata != 0).map(|metadata| at(metadata, layout.metadata_dict)).collect();
        image.prefetch(trees.iter().map(|tree| (*tree, 48)));
        let mut level: Vec<u64> = trees.iter().filter_map(|tree| image.u64(at(*tree, 16))).collect();
        for _ in 0..3 {
            level.retain(|node| *node != 0);
            image.prefetch(level.iter().map(|node| (*node, NODE_BYTES)));
            let children = level.iter().flat_map(|node| [image.u64(at(*node, 16)), image.u64(at(*node, 24))]);
            level = children.flatten().collect();
        }
    }
}
