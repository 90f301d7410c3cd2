// Hangs before anybody looks: each of its threads is blocked in one call, for ever, and the ready
// line comes when all of them are asleep. --only THREAD: just that one. --mutual tcp|ipc: two
// processes that both wait to receive from each other; `peer` is what the other one states of itself.
// At the end of stdin all of them are let go.
#include "census.h"
#include "sleepers.h"

#include <sys/wait.h>

enum { HOUR_MS = 3600000 };

static struct world *world;

// The threads. Each has its own functions, whose names must be on its stack.

static void let_go(int ret)
{
    check(ret == -1 && errno == ETERM);
}

ON_THE_STACK static int wait_for_order(void *socket)
{
    char order[64];
    int ret = zmq_recv(socket, order, sizeof order, 0);
    let_go(ret);
    return ret;
}

ON_THE_STACK static void serve_customers(struct sleeper *self)
{
    let_go(wait_for_order(self->sockets[0]));
}

ON_THE_STACK static int take_parcel(void *socket)
{
    zmq_msg_t parcel;
    check(zmq_msg_init(&parcel) == 0);
    int ret = zmq_msg_recv(&parcel, socket, 0);
    let_go(ret);
    check(zmq_msg_close(&parcel) == 0);
    errno = ETERM;
    return ret;
}

ON_THE_STACK static void unload_truck(struct sleeper *self)
{
    let_go(take_parcel(self->sockets[0]));
}

ON_THE_STACK static int ask_price(void *socket)
{
    char price[64];
    int ret = zmq_recv(socket, price, sizeof price, 0);
    let_go(ret);
    return ret;
}

ON_THE_STACK static void quote(struct sleeper *self)
{
    let_go(ask_price(self->sockets[0]));
}

ON_THE_STACK static int ship_order(void *socket)
{
    int ret = zmq_send(socket, "order", 5, 0);
    let_go(ret);
    return ret;
}

ON_THE_STACK static void run_shipping(struct sleeper *self)
{
    let_go(ship_order(self->sockets[0]));
}

ON_THE_STACK static int push_sample(void *socket)
{
    int ret = zmq_send(socket, "sample", 6, 0);
    let_go(ret);
    return ret;
}

ON_THE_STACK static void collect_samples(struct sleeper *self)
{
    let_go(push_sample(self->sockets[0]));
}

ON_THE_STACK static int watch_all(const struct sleeper *self)
{
    zmq_pollitem_t items[MAX_WAITED + 1] = {{.fd = self->fd, .events = ZMQ_POLLIN}};
    int count = 1;
    for (; self->sockets[count - 1]; count++)
        items[count] =
            (zmq_pollitem_t){.socket = self->sockets[count - 1], .events = ZMQ_POLLIN};
    int ret = zmq_poll(items, count, -1);
    let_go(ret);
    return ret;
}

ON_THE_STACK static void run_event_loop(struct sleeper *self)
{
    let_go(watch_all(self));
}

ON_THE_STACK static void run_broker(struct sleeper *self)
{
    let_go(zmq_proxy(self->sockets[0], self->sockets[1], NULL));
}

ON_THE_STACK static int end_session(void *context)
{
    int ret = zmq_ctx_term(context);
    check(ret == 0);
    return ret;
}

ON_THE_STACK static void shut_down(struct sleeper *self)
{
    check(end_session(self->context) == 0);
}

// Their sockets.

static struct specimen *new_socket(int type, const char *name)
{
    return make(world, type, name);
}

static void set_up_customers(struct sleeper *self)
{
    struct specimen *pull = new_socket(ZMQ_PULL, "orders");
    link_up(new_socket(ZMQ_PUSH, "shop"), pull, listen_at(pull, "tcp://127.0.0.1:*"));
    self->sockets[0] = pull->socket;
}

static void set_up_truck(struct sleeper *self)
{
    self->sockets[0] = new_socket(ZMQ_PAIR, "parcels")->socket;
}

// Its request lies unread at a REP that nobody serves.
static void set_up_quotes(struct sleeper *self)
{
    struct specimen *rep = new_socket(ZMQ_REP, "prices"), *req = new_socket(ZMQ_REQ, "quotes");
    link_up(req, rep, listen_at(rep, "tcp://127.0.0.1:*"));
    say(req, "tea?", 4, 0);
    rep->rx_queue = 1;
    rep->bytes_held = 4;
    self->sockets[0] = req->socket;
}

static void set_up_patient(struct sleeper *self)
{
    struct specimen *pull = new_socket(ZMQ_PULL, "patience");
    set_int(pull, ZMQ_RCVTIMEO, HOUR_MS);
    self->timeout_ms = HOUR_MS;
    self->sockets[0] = pull->socket;
}

static void set_up_shipping(struct sleeper *self)
{
    self->sockets[0] = new_socket(ZMQ_PUSH, "shipping")->socket;
}

// Fills the queues up to both high-water marks.
static void set_up_samples(struct sleeper *self)
{
    struct specimen *push = new_socket(ZMQ_PUSH, "samples");
    struct specimen *pull = new_socket(ZMQ_PULL, "archive");
    set_int(push, ZMQ_SNDHWM, 2);
    set_int(pull, ZMQ_RCVHWM, 3);
    join(push, pull, listen_at(pull, "inproc://samples"));
    while (zmq_send(push->socket, "sample", 6, ZMQ_DONTWAIT) == 6)
        push->tx_queue++;
    check(errno == EAGAIN);
    pull->rx_queue = push->tx_queue;
    push->bytes_held = pull->bytes_held = 6 * push->tx_queue;
    self->sockets[0] = push->socket;
}

static void set_up_event_loop(struct sleeper *self)
{
    self->sockets[0] = new_socket(ZMQ_SUB, "poll-sub")->socket;
    self->sockets[1] = new_socket(ZMQ_PULL, "poll-pull")->socket;
    self->sockets[2] = new_socket(ZMQ_ROUTER, "poll-router")->socket;
    int ends[2];
    check(pipe2(ends, O_CLOEXEC) == 0);
    self->fd = foreign_fd(ends[0]);
    foreign_fd(ends[1]);
}

static void set_up_broker(struct sleeper *self)
{
    struct specimen *front = new_socket(ZMQ_ROUTER, "broker-front");
    struct specimen *back = new_socket(ZMQ_DEALER, "broker-back");
    listen_at(front, "tcp://127.0.0.1:*");
    listen_at(back, "inproc://workers");
    self->sockets[0] = front->socket;
    self->sockets[1] = back->socket;
}

// A context of its own, with a socket that nobody closes.
static void set_up_end(struct sleeper *self)
{
    struct world *session = add_world(zmq_ctx_new());
    make(session, ZMQ_DEALER, "forgotten");
    session->terminating = true;
    self->context = session->context;
}

#define THREAD(set_up_, name, call_, run_, ...)                                                    \
    {                                                                                              \
        .set_up = set_up_, .sleeper = {.thread = name,                                             \
                                       .call = call_,                                              \
                                       .run = run_,                                                \
                                       .functions = {__VA_ARGS__} }                                \
    }

static struct {
    void (*set_up)(struct sleeper *);
    struct sleeper sleeper;
} threads[] = {
    THREAD(set_up_customers, "customers", "zmq_recv", serve_customers, "wait_for_order",
           "serve_customers"),
    THREAD(set_up_truck, "truck", "zmq_msg_recv", unload_truck, "take_parcel", "unload_truck"),
    THREAD(set_up_quotes, "quotes", "zmq_recv", quote, "ask_price", "quote"),
    THREAD(set_up_patient, "patient", "zmq_recv", serve_customers, "wait_for_order",
           "serve_customers"),
    THREAD(set_up_shipping, "shipping", "zmq_send", run_shipping, "ship_order", "run_shipping"),
    THREAD(set_up_samples, "samples", "zmq_send", collect_samples, "push_sample",
           "collect_samples"),
    THREAD(set_up_event_loop, "event-loop", "zmq_poll", run_event_loop, "watch_all",
           "run_event_loop"),
    THREAD(set_up_broker, "broker", "zmq_proxy", run_broker, "run_broker"),
    THREAD(set_up_end, "end", "zmq_ctx_term", shut_down, "end_session", "shut_down"),
};
enum { THREADS = sizeof threads / sizeof *threads };

static void close_sockets(const struct world *of)
{
    int none = 0;
    for (size_t s = 0; s < zoo.specimen_count; s++) {
        void *socket = zoo.specimens[s].socket;
        if (zoo.specimens[s].world == of) {
            zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none); // ETERM where it comes too late
            check(zmq_close(socket) == 0);
        }
    }
}

static void state(const struct sleeper *asleep, size_t count, const char *peer)
{
    printf("{\"ready\":true,\"pid\":%d", getpid());
    print_census();
    print_sleepers(asleep, count);
    if (peer)
        printf(",\"peer\":%s", peer);
    json_end();
}

static void hang(const char *only)
{
    struct sleeper chosen[THREADS];
    size_t count = 0;
    add_barriers(world);
    for (size_t i = 0; i < THREADS; i++) {
        if (only && strcmp(only, threads[i].sleeper.thread) != 0)
            continue;
        threads[i].set_up(&threads[i].sleeper);
        chosen[count++] = threads[i].sleeper;
    }
    if (!count)
        die("--only: there is no thread \"%s\"", only);
    settle();
    unwatch_all();
    for (size_t i = 0; i < count; i++)
        start_sleeper(&chosen[i]);
    state(chosen, count, NULL);

    await_eof();
    check(zmq_ctx_shutdown(world->context) == 0);
    if (zoo.world_count > 1)
        close_sockets(&zoo.worlds[1]);
    for (size_t i = 0; i < count; i++)
        check(pthread_join(chosen[i].id, NULL) == 0);
    close_sockets(world);
    check(zmq_ctx_term(world->context) == 0);
}

// Two processes.

static struct specimen elsewhere = {.type = ZMQ_DEALER}; // the other one's socket

// Greets the other side, and waits for its next message, which does not come.
static void wait_mutually(struct specimen *dealer, const struct endpoint *at, int fd, pid_t other,
                          FILE *from_peer)
{
    struct connection *connection = add_connection(dealer, at, fd, READY);
    connection->peer = &elsewhere;
    connection->peer_pid = other;
    say(dealer, "hello", 5, 0);
    hear(dealer, "hello", 5);
    while (!kernel_is_empty())
        sched_yield();
    unwatch_all();
    struct sleeper waiter = {.thread = "waiter",
                             .call = "zmq_recv",
                             .run = serve_customers,
                             .functions = {"wait_for_order", "serve_customers"},
                             .sockets = {dealer->socket}};
    start_sleeper(&waiter);
    char *peer = NULL;
    size_t size = 0;
    check(!from_peer || getline(&peer, &size, from_peer) > 0);
    if (peer)
        peer[strcspn(peer, "\n")] = '\0';
    state(&waiter, 1, peer);

    await_eof();
    check(zmq_ctx_shutdown(world->context) == 0 && pthread_join(waiter.id, NULL) == 0);
    close_sockets(world);
    check(zmq_ctx_term(world->context) == 0);
}

// Its stdin and stdout are pipes to the first one.
static void be_second(void)
{
    char endpoint[256];
    check(read_line(endpoint, sizeof endpoint));
    world = add_world(zmq_ctx_new());
    struct specimen *dealer = make(world, ZMQ_DEALER, "second");
    struct endpoint *to = begin_connect(dealer, endpoint);
    to->fd = await_event(dealer, ZMQ_EVENT_CONNECTED);
    wait_mutually(dealer, to, to->fd, getppid(), NULL);
}

static void be_first(const char *wildcard, pid_t second, FILE *to_peer, FILE *from_peer)
{
    world = add_world(zmq_ctx_new());
    struct specimen *dealer = make(world, ZMQ_DEALER, "first");
    const struct endpoint *at = listen_at(dealer, wildcard);
    fprintf(to_peer, "%s\n", at->name);
    fflush(to_peer);
    int accepted = await_event(dealer, ZMQ_EVENT_ACCEPTED);
    foreign_fd(fileno(to_peer)), foreign_fd(fileno(from_peer));
    wait_mutually(dealer, at, accepted, second, from_peer);
    fclose(to_peer); // the end of its stdin
    int status;
    check(waitpid(second, &status, 0) == second && status == 0);
}

// Forks before there is any libzmq in use.
static void wait_for_each_other(const char *transport)
{
    char abstract[64];
    snprintf(abstract, sizeof abstract, "ipc://@zmqtrace-hung-%d", getpid());
    int down[2], up[2];
    check(pipe2(down, O_CLOEXEC) == 0 && pipe2(up, O_CLOEXEC) == 0);
    pid_t second = fork();
    check(second >= 0);
    if (second == 0) {
        check(dup2(down[0], STDIN_FILENO) >= 0 && dup2(up[1], STDOUT_FILENO) >= 0);
        close(down[0]), close(down[1]), close(up[0]), close(up[1]);
        be_second();
        return;
    }
    close(down[0]), close(up[1]);
    be_first(strcmp(transport, "ipc") == 0 ? abstract : "tcp://127.0.0.1:*", second,
             fdopen(down[1], "w"), fdopen(up[0], "r"));
}

int main(int argc, char **argv)
{
    const char *only = NULL, *mutual = NULL;
    parse_options(
        argc, argv,
        (const struct option_spec[]){{"only", TEXT, &only}, {"mutual", TEXT, &mutual}, {0}});
    if (mutual && strcmp(mutual, "tcp") != 0 && strcmp(mutual, "ipc") != 0)
        die("--mutual is tcp or ipc");
    if (mutual)
        wait_for_each_other(mutual);
    else {
        world = add_world(zmq_ctx_new());
        hang(only);
    }
    return 0;
}
