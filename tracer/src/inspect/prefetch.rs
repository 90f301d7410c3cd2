//! Fetches what will be read of many objects together: a system call for a thousand of them instead of one for each.
//! What it misses is read when it is needed, so this only saves time.

use super::{
    Detail, Watched,
    context::Reader,
    cxx,
    image::{Image, at},
    layouts::{OBJECT_CTX, PIPE_IN, PIPE_OUT},
};

/// Sockets and poll entries whose belongings are fetched together: what they need fits into the image. Those beyond
/// are read when they are needed, lest a look's budget goes before anything is read.
const MOST: usize = 4096;
/// A node of a tree, with its strings.
const NODE_BYTES: u64 = 96;
/// An endpoint that is longer than what fits into a string itself.
const NAME_BYTES: u64 = 48;

/// Poll entries, and the first word of what they belong to.
pub fn entries(image: &Image<'_>, watched: &[Watched]) {
    let watched = &watched[..watched.len().min(MOST)];
    image.prefetch(watched.iter().map(|watched| (watched.data, 24)));
    image.prefetch(watched.iter().filter_map(|watched| Some((image.u64(at(watched.data, 16))?, 8))));
}

impl Reader<'_> {
    /// Sockets, and all that belongs to their connections.
    pub fn prefetch(&self, sockets: &[u64]) {
        let (layout, image) = (self.layout, self.subject.image);
        let sockets = &sockets[..sockets.len().min(MOST)];
        let entries = &self.entries[..self.entries.len().min(MOST)];
        image.prefetch(sockets.iter().map(|socket| (*socket, layout.socket_monitor_events + 8)));
        let pipes = sockets.iter().filter_map(|socket| image.u64(at(*socket, layout.socket_pipes)));
        let pipes: Vec<u64> = pipes.filter(|pipes| *pipes != 0).collect();
        image.prefetch(pipes.into_iter().map(|pipes| (pipes, 64)));
        self.prefetch_mailboxes(sockets);
        self.prefetch_owned(sockets);

        // Of an engine what stands at its end, which of one that is none does no harm.
        let end = layout.engine_metadata.min(layout.engine_session).min(layout.engine_s);
        let ends = entries.iter().map(|entry| (at(entry.events, end), layout.engine_socket + 8 - end));
        image.prefetch(ends);
        let word = |base: u64, offset: u64| image.u64(at(base, offset)).filter(|word| *word != 0);
        let engines: Vec<u64> = entries
            .iter()
            .filter(|entry| word(entry.events, layout.engine_handle) == Some(entry.address))
            .map(|entry| entry.events)
            .collect();

        let sessions: Vec<u64> = engines.iter().filter_map(|engine| word(*engine, layout.engine_session)).collect();
        self.prefetch_own(&sessions);
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

    /// The listeners and sessions that sockets own or have endpoints of, and the endpoints' names.
    fn prefetch_owned(&self, sockets: &[u64]) {
        let (layout, image) = (self.layout, self.subject.image);
        let word = |base: u64, offset: u64| image.u64(at(base, offset)).filter(|word| *word != 0);
        let trees = |offset: u64| sockets.iter().map(move |socket| at(*socket, offset));
        let endpoints = self.prefetch_trees(trees(layout.socket_endpoints).chain(trees(layout.socket_inprocs)));
        let owned = self.prefetch_trees(trees(layout.own_owned));
        image.prefetch(endpoints.iter().filter_map(|node| Some((word(*node, cxx::NODE_VALUE)?, NAME_BYTES))));
        let value = cxx::NODE_VALUE + cxx::string_bytes(layout.strings);
        let owners = endpoints.iter().filter_map(|node| word(*node, value));
        let owners: Vec<u64> = owners.chain(owned.iter().filter_map(|node| word(*node, cxx::NODE_VALUE))).collect();
        self.prefetch_own(&owners);
        self.prefetch_trees(owners.iter().map(|owner| at(*owner, layout.own_owned)));
    }

    /// Listeners, sessions and connecters.
    fn prefetch_own(&self, objects: &[u64]) {
        let (layout, image) = (self.layout, self.subject.image);
        let members = layout.session_socket + 8 - layout.own_owner;
        image.prefetch(objects.iter().map(|object| (at(*object, OBJECT_CTX), 8)));
        image.prefetch(objects.iter().map(|object| (at(*object, layout.own_owner), members)));
    }

    /// Small trees: their heads, and the nodes of three levels, which are returned.
    fn prefetch_trees(&self, trees: impl Iterator<Item = u64>) -> Vec<u64> {
        const LEVELS: usize = 3;
        let image = self.subject.image;
        let trees: Vec<u64> = trees.collect();
        image.prefetch(trees.iter().map(|tree| (*tree, 48)));
        let mut nodes = Vec::new();
        let mut level: Vec<u64> = trees.iter().filter_map(|tree| image.u64(at(*tree, 16))).collect();
        for _ in 0..LEVELS {
            level.retain(|node| *node != 0);
            image.prefetch(level.iter().map(|node| (*node, NODE_BYTES)));
            let children = level.iter().flat_map(|node| [image.u64(at(*node, 16)), image.u64(at(*node, 24))]);
            let children = children.flatten().collect();
            nodes.append(&mut level);
            level = children;
        }
        nodes
    }

    /// What the peers said of themselves: a map of a handful of strings.
    fn prefetch_metadata(&self, engines: &[u64]) {
        let (layout, image) = (self.layout, self.subject.image);
        let metadata = engines.iter().filter_map(|engine| image.u64(at(*engine, layout.engine_metadata)));
        let metadata = metadata.filter(|metadata| *metadata != 0);
        self.prefetch_trees(metadata.map(|metadata| at(metadata, layout.metadata_dict)));
    }
}
