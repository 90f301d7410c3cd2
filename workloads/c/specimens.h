// Sockets about which everything is known, because the program made each of them step by step: what
// they are bound and connected to, by which fds, how far each connection is, what their queues hold.
// census.h prints it.
//
// The fds come from socket monitors. A monitor brings two more PAIR sockets; they are gone again
// before a program is ready, except where it keeps them.
#pragma once
#include "truth.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

enum {
    MAX_CONTEXTS = 4,
    MAX_IO_THREADS = 2, // of a context
    MAX_SPECIMENS = 160,
    MAX_ENDPOINTS = 6, // of a socket
    MAX_CONNECTIONS = 6,
    MAX_FOREIGN_FDS = 32,
    // Longer than any event takes to come, however busy the machine is.
    EVENT_DEADLINE_MS = 60000,
};

enum { UNKNOWN = -1 }; // a queue or an fd that the program cannot know, or that is not there

enum role { BIND, CONNECT };

// The words of the contract for the state of a connection.
#define WAITING "waiting"       // between two attempts
#define CONNECTING "connecting" // connect(2) has not completed
#define HANDSHAKE "handshake"
#define READY "ready"
#define PENDING "pending" // inproc, and nobody has bound the name

struct text {
    char *data;
    size_t size;
};

struct endpoint {
    char name[256];
    enum role role;
    int fd; // of a bind, the listener's
};

struct specimen;

struct connection {
    const struct endpoint *endpoint;
    int fd;
    const char *state; // NULL: it changes all the time
    const struct specimen *peer; // NULL: not a socket that we know
    pid_t peer_pid;              // 0: this process, or not known
    struct text peer_identity;   // data is NULL: not known
};

struct specimen {
    const char *name;
    struct world *world;
    void *socket;
    int type;
    int order;    // among all calls of zmq_socket in this process
    void *events; // receives what its monitor says; NULL: no monitor
    int events_order;
    bool keep_monitor;
    bool connections_known;
    struct endpoint endpoints[MAX_ENDPOINTS];
    size_t endpoint_count;
    struct connection connections[MAX_CONNECTIONS];
    size_t connection_count;
    struct text *topics;
    size_t topic_count;
    long tx_queue, rx_queue; // whole messages, over all connections
    long bytes_held;         // bytes of all their parts
};

// A context. Each of its I/O threads has a tcp connection of its own whose only purpose is to show
// that the thread has done all that it had been given before.
struct world {
    void *context;
    int io_threads;
    bool terminating;
    struct specimen *barriers[MAX_IO_THREADS][2];
};

static struct {
    struct world worlds[MAX_CONTEXTS];
    size_t world_count;
    struct specimen specimens[MAX_SPECIMENS];
    size_t specimen_count;
    int sockets_made;
    int foreign_fds[MAX_FOREIGN_FDS]; // open, and not libzmq's
    size_t foreign_fd_count;
} zoo;

static inline struct text copy_text(const void *data, size_t size)
{
    struct text text = {malloc(size + 1), size};
    check(text.data);
    memcpy(text.data, data, size);
    return text;
}

static inline int foreign_fd(int fd)
{
    check(fd >= 0 && zoo.foreign_fd_count < MAX_FOREIGN_FDS);
    zoo.foreign_fds[zoo.foreign_fd_count++] = fd;
    return fd;
}

static inline bool libzmq_at_least(int wanted_major, int wanted_minor)
{
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    return major > wanted_major || (major == wanted_major && minor >= wanted_minor);
}

// Making and closing.

static inline struct world *add_world(void *context)
{
    check(context && zoo.world_count < MAX_CONTEXTS);
    struct world *world = &zoo.worlds[zoo.world_count++];
    *world = (struct world){.context = context, .io_threads = zmq_ctx_get(context, ZMQ_IO_THREADS)};
    check(world->io_threads > 0 && world->io_threads <= MAX_IO_THREADS);
    return world;
}

// Enters a socket that is there.
static inline struct specimen *add_specimen(struct world *world, void *socket, int type,
                                            const char *name)
{
    check(socket && zoo.specimen_count < MAX_SPECIMENS);
    struct specimen *specimen = &zoo.specimens[zoo.specimen_count++];
    *specimen = (struct specimen){.name = name,
                                  .world = world,
                                  .socket = socket,
                                  .type = type,
                                  .order = ++zoo.sockets_made,
                                  .connections_known = true};
    return specimen;
}

static inline struct specimen *make(struct world *world, int type, const char *name)
{
    return add_specimen(world, zmq_socket(world->context, type), type, name);
}

static inline int mailbox_fd(void *socket)
{
    int fd;
    size_t size = sizeof fd;
    check(zmq_getsockopt(socket, ZMQ_FD, &fd, &size) == 0);
    return fd;
}

// A socket that was closed is gone when the reaper thread has destroyed it and its mailbox's fd.
struct closed {
    int fd;
    struct stat mailbox;
};

static inline struct closed begin_close(void *socket)
{
    struct closed closed = {.fd = mailbox_fd(socket)};
    check(fstat(closed.fd, &closed.mailbox) == 0 && zmq_close(socket) == 0);
    return closed;
}

// All eventfds have one inode, so no other thread may be making sockets meanwhile. An end of an
// inproc connection waits for the other one to be closed.
static inline void await_closed(const struct closed *closed)
{
    struct stat now;
    while (fstat(closed->fd, &now) == 0 && now.st_ino == closed->mailbox.st_ino &&
           now.st_dev == closed->mailbox.st_dev)
        sched_yield();
}

static inline void close_fully(void *socket)
{
    struct closed closed = begin_close(socket);
    await_closed(&closed);
}

// Options.

static inline void set_int(struct specimen *specimen, int option, int value)
{
    check(zmq_setsockopt(specimen->socket, option, &value, sizeof value) == 0);
}

// An option that older releases lack.
static inline void try_int(struct specimen *specimen, int option, int value)
{
    if (zmq_setsockopt(specimen->socket, option, &value, sizeof value) != 0)
        check(errno == EINVAL);
}

static inline void set_bytes(struct specimen *specimen, int option, const void *data, size_t size)
{
    check(zmq_setsockopt(specimen->socket, option, data, size) == 0);
}

static inline void note_topic(struct specimen *specimen, const void *topic, size_t size)
{
    specimen->topics =
        realloc(specimen->topics, (specimen->topic_count + 1) * sizeof *specimen->topics);
    check(specimen->topics);
    specimen->topics[specimen->topic_count++] = copy_text(topic, size);
}

static inline void subscribe(struct specimen *specimen, const void *topic, size_t size)
{
    set_bytes(specimen, ZMQ_SUBSCRIBE, topic, size);
    note_topic(specimen, topic, size);
}

// Monitors.

static inline void watch(struct specimen *specimen)
{
    if (specimen->events)
        return;
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "inproc://events-%p", specimen->socket);
    check(zmq_socket_monitor(specimen->socket, endpoint, ZMQ_EVENT_ALL) == 0);
    specimen->events = zmq_socket(specimen->world->context, ZMQ_PAIR);
    int deadline_ms = EVENT_DEADLINE_MS;
    check(specimen->events && zmq_setsockopt(specimen->events, ZMQ_RCVTIMEO, &deadline_ms,
                                             sizeof deadline_ms) == 0);
    check(zmq_connect(specimen->events, endpoint) == 0);
    zoo.sockets_made += 2;
    specimen->events_order = zoo.sockets_made;
}

// The value of the next event of this kind: the fd, where it has one.
static inline int await_event(struct specimen *specimen, int wanted)
{
    for (;;) {
        struct __attribute__((packed)) {
            uint16_t kind;
            int32_t value;
        } event;
        char endpoint[256];
        if (zmq_recv(specimen->events, &event, sizeof event, 0) != sizeof event)
            die("%s: no event %d: %s", specimen->name, wanted, zmq_strerror(errno));
        check(zmq_recv(specimen->events, endpoint, sizeof endpoint, 0) >= 0);
        if (event.kind == wanted)
            return event.value;
    }
}

static inline int poll_events(void *socket)
{
    int events;
    size_t size = sizeof events;
    check(zmq_getsockopt(socket, ZMQ_EVENTS, &events, &size) == 0);
    return events;
}

static inline void drain(void *socket)
{
    char buffer[256];
    while (zmq_recv(socket, buffer, sizeof buffer, ZMQ_DONTWAIT) >= 0)
        ;
    check(errno == EAGAIN);
}

// Ends the monitor, and returns when both of its sockets are gone. POLLOUT ends when ours has learnt
// that libzmq's is closing. Drained by then, ours cannot go before libzmq's: it waits for its answer.
static inline void unwatch(struct specimen *specimen)
{
    if (!specimen->events)
        return;
    check(zmq_socket_monitor(specimen->socket, NULL, 0) == 0);
    do
        drain(specimen->events);
    while (poll_events(specimen->events) & ZMQ_POLLOUT);
    drain(specimen->events);
    close_fully(specimen->events);
    specimen->events = NULL;
}

// Ends those of the monitors that nobody wants to keep.
static inline void unwatch_all(void)
{
    for (size_t s = 0; s < zoo.specimen_count; s++)
        if (!zoo.specimens[s].keep_monitor)
            unwatch(&zoo.specimens[s]);
}

// Endpoints and connections.

static inline bool is_inproc(const char *endpoint)
{
    return strncmp(endpoint, "inproc:", 7) == 0;
}

static inline struct endpoint *add_endpoint(struct specimen *specimen, const char *name,
                                            enum role role)
{
    check(specimen->endpoint_count < MAX_ENDPOINTS && strlen(name) < 256);
    struct endpoint *endpoint = &specimen->endpoints[specimen->endpoint_count++];
    *endpoint = (struct endpoint){.role = role, .fd = UNKNOWN};
    strcpy(endpoint->name, name);
    return endpoint;
}

static inline struct connection *add_connection(struct specimen *specimen,
                                                const struct endpoint *endpoint, int fd,
                                                const char *state)
{
    check(specimen->connection_count < MAX_CONNECTIONS);
    struct connection *connection = &specimen->connections[specimen->connection_count++];
    *connection = (struct connection){.endpoint = endpoint, .fd = fd, .state = state};
    return connection;
}

// Binds, to a wildcard or a name; returns the endpoint that came of it.
static inline struct endpoint *listen_at(struct specimen *specimen, const char *name)
{
    if (!is_inproc(name))
        watch(specimen);
    char resolved[256];
    size_t size = sizeof resolved;
    check(zmq_bind(specimen->socket, name) == 0);
    check(zmq_getsockopt(specimen->socket, ZMQ_LAST_ENDPOINT, resolved, &size) == 0);
    struct endpoint *endpoint = add_endpoint(specimen, resolved, BIND);
    if (!is_inproc(name))
        endpoint->fd = await_event(specimen, ZMQ_EVENT_LISTENING);
    return endpoint;
}

// zmq_connect, without waiting for what comes of it.
static inline struct endpoint *begin_connect(struct specimen *specimen, const char *name)
{
    if (!is_inproc(name))
        watch(specimen);
    check(zmq_connect(specimen->socket, name) == 0);
    return add_endpoint(specimen, name, CONNECT);
}

// Connects one to an endpoint of the other, and notes the fds of both ends. The connection is not
// ready until something has passed: see greet.
static inline void join(struct specimen *from, struct specimen *to, const struct endpoint *at)
{
    struct endpoint *endpoint = begin_connect(from, at->name);
    bool has_fds = !is_inproc(at->name);
    if (has_fds)
        endpoint->fd = await_event(from, ZMQ_EVENT_CONNECTED);
    int accepted = has_fds ? await_event(to, ZMQ_EVENT_ACCEPTED) : UNKNOWN;
    add_connection(from, endpoint, endpoint->fd, READY)->peer = to;
    add_connection(to, at, accepted, READY)->peer = from;
}

// The first messages. When one has been received, the handshake is done at both ends, which monitors
// tell only since 4.3.

static inline void say(struct specimen *specimen, const void *data, size_t size, int flags)
{
    check(zmq_send(specimen->socket, data, size, flags) == (int)size);
}

// Receives one part that must be this.
static inline void hear(struct specimen *specimen, const void *data, size_t size)
{
    char buffer[256];
    int heard = zmq_recv(specimen->socket, buffer, sizeof buffer, 0);
    if (heard != (int)size || memcmp(buffer, data, size) != 0)
        die("%s: %d bytes where a message of %zu was due", specimen->name, heard, size);
}

static inline void pass_greeting(struct specimen *from, struct specimen *to)
{
    say(from, "hello", 5, 0);
    hear(to, "hello", 5);
}

// A ROUTER and a STREAM name the peer before its message.
static inline void hear_identity(struct specimen *router)
{
    char identity[256];
    int size = zmq_recv(router->socket, identity, sizeof identity, 0);
    check(size > 0 && router->connection_count > 0);
    router->connections[router->connection_count - 1].peer_identity = copy_text(identity, size);
}

// A publisher drops what nobody has subscribed to yet, so it repeats its greeting until it is heard: slowly, since it
// also drops what is beyond the high-water mark, and the last one must not be.
// The topic stays: unsubscribing would be one more message on its way.
static inline void greet_subscriber(struct specimen *publisher, struct specimen *subscriber)
{
    char topic[128], heard[128];
    int size =
        snprintf(topic, sizeof topic, "hello %s to %s", publisher->name, subscriber->name);
    subscribe(subscriber, topic, size);
    zmq_pollitem_t item = {.socket = subscriber->socket, .events = ZMQ_POLLIN};
    do
        say(publisher, topic, size, 0);
    while (zmq_poll(&item, 1, 1) == 0);
    strcat(topic, "!"); // the last one
    say(publisher, topic, size + 1, 0);
    while (zmq_recv(subscriber->socket, heard, sizeof heard, 0) != size + 1)
        ;
}

// After join(from, to).
static inline void greet(struct specimen *from, struct specimen *to)
{
    switch (from->type) {
    case ZMQ_PULL: pass_greeting(to, from); break;
    case ZMQ_REQ:
        pass_greeting(from, to);
        pass_greeting(to, from);
        break;
    case ZMQ_SUB: greet_subscriber(to, from); break;
    case ZMQ_XSUB:
        say(from, "\1news.", 6, 0); // 1: subscribe
        note_topic(from, "news.", 5);
        hear(to, "\1news.", 6);
        break;
    default:
        say(from, "hello", 5, 0);
        if (to->type == ZMQ_ROUTER)
            hear_identity(to);
        hear(to, "hello", 5);
    }
}

static inline void link_up(struct specimen *from, struct specimen *to, const struct endpoint *at)
{
    join(from, to, at);
    greet(from, to);
}

// A monitor that stays: its events' receiver becomes one of the specimens.
static inline void keep_monitor(struct specimen *watched, const char *name)
{
    struct specimen *receiver = add_specimen(watched->world, watched->events, ZMQ_PAIR, name);
    zoo.sockets_made--; // it was counted when it was made
    receiver->order = watched->events_order;
    watched->keep_monitor = true;
    receiver->rx_queue = receiver->bytes_held = UNKNOWN;
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "inproc://events-%p", watched->socket);
    add_connection(receiver, add_endpoint(receiver, endpoint, CONNECT), UNKNOWN, READY);
}

// Connections that show that I/O threads have caught up.

static inline void add_barriers(struct world *world)
{
    for (int i = 0; i < world->io_threads; i++) {
        struct specimen **ends = world->barriers[i];
        for (int end = 0; end < 2; end++) {
            char *name;
            check(asprintf(&name, "barrier-%d-%s", i, end ? "connect" : "bind") > 0);
            ends[end] = make(world, ZMQ_PAIR, name);
            uint64_t affinity = UINT64_C(1) << i;
            set_bytes(ends[end], ZMQ_AFFINITY, &affinity, sizeof affinity);
        }
        link_up(ends[1], ends[0], listen_at(ends[0], "tcp://127.0.0.1:*"));
    }
}

static inline void pass_barriers(void)
{
    for (size_t w = 0; w < zoo.world_count; w++)
        for (int i = 0; i < zoo.worlds[w].io_threads; i++)
            if (zoo.worlds[w].barriers[i][0])
                pass_greeting(zoo.worlds[w].barriers[i][0], zoo.worlds[w].barriers[i][1]);
}

// Whether the kernel holds no byte of any connection, neither way.
static inline bool kernel_is_empty(void)
{
    for (size_t s = 0; s < zoo.specimen_count; s++) {
        const struct specimen *specimen = &zoo.specimens[s];
        for (size_t c = 0; c < specimen->connection_count; c++) {
            const struct connection *connection = &specimen->connections[c];
            int unread, unacknowledged;
            if (connection->fd == UNKNOWN || !connection->state ||
                strcmp(connection->state, READY) != 0)
                continue;
            check(ioctl(connection->fd, SIOCINQ, &unread) == 0);
            check(ioctl(connection->fd, SIOCOUTQ, &unacknowledged) == 0);
            if (unread || unacknowledged)
                return false;
        }
    }
    return true;
}

// Returns when all that was sent to a socket has reached its queue. The first barrier: the I/O
// threads have written it (all that is sent here fits into one write). An empty kernel: they have read
// it. The last one: they have put it into the queue. The sockets themselves are not asked, since SUB
// and ROUTER take a message out of their queue to answer.
static inline void settle(void)
{
    do
        pass_barriers();
    while (!kernel_is_empty());
    pass_barriers();
}
