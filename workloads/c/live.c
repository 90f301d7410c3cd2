// Sockets, connections and their fds that come and go on several threads and contexts, as monitors tell of them, among
// fds that are not libzmq's: see ../README.md. Fd numbers pass from one socket to the next at once.
#include "sockets.h"

#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum {
    CONTEXTS = 2,
    IO_THREADS = 2,
    THREADS = 4,
    MAX_ROUNDS = 2000,
    EVENTS_PER_ROUND = 64,
    // Longer than any event takes to come, however busy the machine is.
    EVENT_DEADLINE_MS = 60000,
};

static long rounds = 60;

// What happened, as it became known.

struct event {
    void *socket;
    const char *what;
    int fd;
    int64_t ns; // when the program heard of it
};

// A time in which a fd was open and not libzmq's.
struct foreign {
    int fd;
    int64_t from_ns, to_ns;
};

struct worker {
    pthread_t thread;
    int number;
    void *context;
    struct event *events;
    size_t event_count;
    struct foreign *foreign;
    size_t foreign_count;
    struct couple *kept;
};

static struct event *new_event(struct worker *self)
{
    check(self->event_count < (size_t)(rounds + 1) * EVENTS_PER_ROUND);
    return &self->events[self->event_count++];
}

// Sockets with monitors.

struct watched {
    struct worker *worker;
    void *socket, *monitor;
};

struct couple {
    struct watched bound, connected;
    char endpoint[256];
    int greetings;
};

static void set_int(void *socket, int option, int value)
{
    check(zmq_setsockopt(socket, option, &value, sizeof value) == 0);
}

static struct watched open_watched(struct worker *worker, int type)
{
    struct watched watched = {worker, zmq_socket(worker->context, type), NULL};
    check(watched.socket);
    set_int(watched.socket, ZMQ_LINGER, 0);
    set_int(watched.socket, ZMQ_RECONNECT_IVL, 1);
    if (type == ZMQ_SUB)
        check(zmq_setsockopt(watched.socket, ZMQ_SUBSCRIBE, "", 0) == 0);
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "inproc://events-%p", watched.socket);
    check(zmq_socket_monitor(watched.socket, endpoint, ZMQ_EVENT_ALL) == 0);
    watched.monitor = zmq_socket(worker->context, ZMQ_PAIR);
    check(watched.monitor && zmq_connect(watched.monitor, endpoint) == 0);
    set_int(watched.monitor, ZMQ_RCVTIMEO, EVENT_DEADLINE_MS);
    return watched;
}

// Takes note of the next event, if it is one of a fd, and returns its kind; 0: there is none.
static int next_event(const struct watched *watched, int flags)
{
    static const struct {
        int kind;
        const char *name;
    } names[] = {{ZMQ_EVENT_LISTENING, "listening"},
                 {ZMQ_EVENT_ACCEPTED, "accepted"},
                 {ZMQ_EVENT_CONNECTED, "connected"},
                 {ZMQ_EVENT_DISCONNECTED, "disconnected"}};
    struct __attribute__((packed)) {
        uint16_t kind;
        int32_t value;
    } event;
    char endpoint[256];
    int size = zmq_recv(watched->monitor, &event, sizeof event, flags);
    if (size < 0 && errno == EAGAIN && flags == ZMQ_DONTWAIT)
        return 0;
    check(size == sizeof event && zmq_recv(watched->monitor, endpoint, sizeof endpoint, 0) >= 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (event.kind == names[i].kind)
            *new_event(watched->worker) =
                (struct event){watched->socket, names[i].name, event.value, now_ns()};
    return event.kind;
}

static void note_events(const struct watched *watched)
{
    while (next_event(watched, ZMQ_DONTWAIT))
        ;
}

static void close_watched(struct watched *watched)
{
    note_events(watched);
    *new_event(watched->worker) = (struct event){watched->socket, "close", -1, now_ns()};
    check(zmq_socket_monitor(watched->socket, NULL, 0) == 0);
    check(zmq_close(watched->monitor) == 0);
    check(zmq_close(watched->socket) == 0);
    *watched = (struct watched){0};
}

// Another socket may have its part in the event, which it does only inside of calls.
static void await_event_with(const struct watched *watched, int wanted, void *other)
{
    zmq_pollitem_t item = {.socket = watched->monitor, .events = ZMQ_POLLIN};
    int events;
    size_t size = sizeof events;
    do {
        while (other && zmq_poll(&item, 1, 1) == 0)
            check(zmq_getsockopt(other, ZMQ_EVENTS, &events, &size) == 0);
    } while (next_event(watched, 0) != wanted);
}

static void await_event(const struct watched *watched, int wanted)
{
    await_event_with(watched, wanted, NULL);
}

// Returns when a message has passed, and so when both engines are in place. It is sent again and again: a publisher drops
// what comes before the subscription, and a connection made to a listener that is about to close takes messages with it.
static void greet(struct couple *couple)
{
    int type;
    size_t size = sizeof type;
    check(zmq_getsockopt(couple->connected.socket, ZMQ_TYPE, &type, &size) == 0);
    bool to_connected = type == ZMQ_SUB;
    void *from = to_connected ? couple->bound.socket : couple->connected.socket;
    void *to = to_connected ? couple->connected.socket : couple->bound.socket;
    zmq_pollitem_t item = {.socket = to, .events = ZMQ_POLLIN};
    int greeting = ++couple->greetings, heard = 0;
    do {
        check(zmq_send(from, &greeting, sizeof greeting, ZMQ_DONTWAIT) >= 0 || errno == EAGAIN);
        while (heard != greeting && zmq_poll(&item, 1, 1) > 0) // a ROUTER names the peer first
            check(zmq_recv(to, &heard, sizeof heard, 0) >= 0);
    } while (heard != greeting);
    note_events(&couple->connected);
    note_events(&couple->bound);
}

static void bind_watched(struct couple *couple)
{
    bind_resolved(couple->bound.socket, couple->endpoint, couple->endpoint);
    await_event(&couple->bound, ZMQ_EVENT_LISTENING);
}

static void connect_watched(struct couple *couple)
{
    check(zmq_connect(couple->connected.socket, couple->endpoint) == 0);
    await_event(&couple->connected, ZMQ_EVENT_CONNECTED);
    await_event(&couple->bound, ZMQ_EVENT_ACCEPTED);
    greet(couple);
}

static const int types[][2] = {{ZMQ_PULL, ZMQ_PUSH},
                               {ZMQ_DEALER, ZMQ_DEALER},
                               {ZMQ_ROUTER, ZMQ_DEALER},
                               {ZMQ_PUB, ZMQ_SUB}};

static struct couple new_couple(struct worker *worker, long round)
{
    struct couple couple = {.endpoint = "tcp://127.0.0.1:*"};
    const int *pair = types[round / 2 % 4];
    if (round % 2)
        snprintf(couple.endpoint, sizeof couple.endpoint, "ipc://@zmqtrace-live-%d-%d-%ld", getpid(),
                 worker->number, round);
    couple.bound = open_watched(worker, pair[0]);
    couple.connected = open_watched(worker, pair[1]);
    bind_watched(&couple);
    connect_watched(&couple);
    return couple;
}

// The connection is lost with the bound socket; another one binds the name, and libzmq connects again. Only by ipc:
// nobody else takes the name meanwhile.
static void reconnect(struct couple *couple, const int *pair)
{
    struct worker *worker = couple->bound.worker;
    close_watched(&couple->bound);
    await_event(&couple->connected, ZMQ_EVENT_DISCONNECTED);
    couple->bound = open_watched(worker, pair[0]);
    while (zmq_bind(couple->bound.socket, couple->endpoint) != 0)
        check(errno == EADDRINUSE && sched_yield() == 0); // the reaper has not closed the old one yet
    await_event(&couple->bound, ZMQ_EVENT_LISTENING);
    await_event(&couple->connected, ZMQ_EVENT_CONNECTED);
    await_event(&couple->bound, ZMQ_EVENT_ACCEPTED);
    greet(couple);
}

// The program itself ends the connection and makes it anew.
static void connect_again(struct couple *couple)
{
    check(zmq_disconnect(couple->connected.socket, couple->endpoint) == 0);
    await_event_with(&couple->bound, ZMQ_EVENT_DISCONNECTED, couple->connected.socket);
    connect_watched(couple);
}

static void close_couple(struct couple *couple)
{
    close_watched(&couple->connected);
    close_watched(&couple->bound);
}

// Fds that are not libzmq's, and that look like it as far as they can.

static void note_foreign(struct worker *self, int fd, int64_t from_ns)
{
    check(fd >= 0);
    self->foreign[self->foreign_count++] = (struct foreign){fd, from_ns, now_ns()};
    check(close(fd) == 0);
}

static void use_foreign_fds(struct worker *self)
{
    int file = open("/dev/null", O_RDWR | O_CLOEXEC);
    int64_t file_ns = now_ns();

    // An epoll whose data is a fd, and one with libzmq's kind of entry, whose object is not.
    static const uint64_t no_object[512];
    int poll = epoll_create1(EPOLL_CLOEXEC), event = eventfd(0, EFD_CLOEXEC);
    int64_t poll_ns = now_ns();
    struct {
        int fd;
        struct epoll_event event;
        const void *object;
    } entry = {event, {.events = EPOLLIN, .data.ptr = &entry}, no_object};
    struct epoll_event interest = {.events = EPOLLIN, .data.fd = file};
    check(epoll_ctl(poll, EPOLL_CTL_ADD, event, &interest) == 0);
    check(epoll_ctl(poll, EPOLL_CTL_DEL, event, &interest) == 0);
    check(epoll_ctl(poll, EPOLL_CTL_ADD, event, &entry.event) == 0);
    check(epoll_ctl(poll, EPOLL_CTL_MOD, event, &entry.event) == 0);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    check(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    check(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(connect(client, (struct sockaddr *)&address, size) == 0);
    struct linger at_once = {.l_onoff = 1}; // else each round would leave a port in use for a minute
    check(setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    int served = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    int64_t sockets_ns = now_ns();

    check(epoll_ctl(poll, EPOLL_CTL_DEL, event, &entry.event) == 0);
    note_foreign(self, file, file_ns);
    note_foreign(self, event, poll_ns);
    note_foreign(self, poll, poll_ns);
    note_foreign(self, client, sockets_ns); // first: who closes first keeps the port
    note_foreign(self, served, sockets_ns);
    note_foreign(self, listener, sockets_ns);
}

enum { FOREIGN_PER_ROUND = 6 };

static void *work(void *argument)
{
    struct worker *self = argument;
    for (long round = 0; round < rounds; round++) {
        close_couple(self->kept);
        *self->kept = new_couple(self, round);
        if (round % 4 == 1)
            reconnect(self->kept, types[round / 2 % 4]);
        if (round % 4 == 2)
            connect_again(self->kept);
        use_foreign_fds(self);
    }
    return NULL;
}

static void print_truth(struct worker *workers)
{
    done_begin();
    const char *comma = "";
    printf(",\"fd_events\":[");
    for (int w = 0; w < THREADS; w++)
        for (size_t i = 0; i < workers[w].event_count; i++, comma = ",") {
            const struct event *event = &workers[w].events[i];
            printf("%s{\"handle\":\"%p\",\"event\":\"%s\",\"fd\":%d,\"ns\":%" PRId64 "}", comma,
                   event->socket, event->what, event->fd, event->ns);
        }
    comma = "";
    printf("],\"foreign\":[");
    for (int w = 0; w < THREADS; w++)
        for (size_t i = 0; i < workers[w].foreign_count; i++, comma = ",") {
            const struct foreign *foreign = &workers[w].foreign[i];
            printf("%s{\"fd\":%d,\"from_ns\":%" PRId64 ",\"to_ns\":%" PRId64 "}", comma, foreign->fd,
                   foreign->from_ns, foreign->to_ns);
        }
    printf("]");
    json_end();
}

int main(int argc, char **argv)
{
    parse_options(argc, argv, (const struct option_spec[]){{"rounds", INTEGER, &rounds}, {0}});
    if (rounds < 1 || rounds > MAX_ROUNDS)
        die("--rounds is 1 to %d", MAX_ROUNDS);
    void *contexts[CONTEXTS];
    for (int c = 0; c < CONTEXTS; c++) {
        contexts[c] = zmq_ctx_new();
        check(contexts[c] && zmq_ctx_set(contexts[c], ZMQ_IO_THREADS, IO_THREADS) == 0);
    }
    static struct worker workers[THREADS];
    static struct couple kept[THREADS];
    for (int w = 0; w < THREADS; w++) {
        workers[w] = (struct worker){.number = w, .context = contexts[w % CONTEXTS], .kept = &kept[w]};
        workers[w].events = calloc((rounds + 1) * EVENTS_PER_ROUND, sizeof *workers[w].events);
        workers[w].foreign = calloc(rounds * FOREIGN_PER_ROUND, sizeof *workers[w].foreign);
        check(workers[w].events && workers[w].foreign);
        kept[w] = new_couple(&workers[w], MAX_ROUNDS + w);
    }
    ready(NULL);
    await_line("go");
    for (int w = 0; w < THREADS; w++)
        check(pthread_create(&workers[w].thread, NULL, work, &workers[w]) == 0);
    for (int w = 0; w < THREADS; w++)
        check(pthread_join(workers[w].thread, NULL) == 0);
    print_truth(workers);
    await_eof();
    for (int w = 0; w < THREADS; w++)
        close_couple(&kept[w]);
    for (int c = 0; c < CONTEXTS; c++)
        check(zmq_ctx_term(contexts[c]) == 0);
    return 0;
}
