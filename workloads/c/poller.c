// The draft calls zmq_poller_* and zmq_ppoll, of a libzmq that is built with them and loaded by path:
// `poller FILE`. The addon.node of Node's zeromq package is such a file. Link with -rdynamic.
#define ZMQ_BUILD_DRAFT_API
#include "dynamic.h"
#include "truth.h"

#include <signal.h>

static struct {
    typeof(zmq_ctx_new) *ctx_new;
    typeof(zmq_ctx_term) *ctx_term;
    typeof(zmq_socket) *socket;
    typeof(zmq_bind) *bind;
    typeof(zmq_connect) *connect;
    typeof(zmq_send) *send;
    typeof(zmq_recv) *recv;
    typeof(zmq_close) *close;
    typeof(zmq_poller_new) *poller_new;
    typeof(zmq_poller_destroy) *poller_destroy;
    typeof(zmq_poller_add) *poller_add;
    typeof(zmq_poller_modify) *poller_modify;
    typeof(zmq_poller_remove) *poller_remove;
    typeof(zmq_poller_add_fd) *poller_add_fd;
    typeof(zmq_poller_remove_fd) *poller_remove_fd;
    typeof(zmq_poller_wait) *poller_wait;
    typeof(zmq_poller_wait_all) *poller_wait_all;
    int (*ppoll)(zmq_pollitem_t *, int, long, const void *); // not yet in the header of 4.3.4
} zmq;

// The addon has Node's functions looked up when they are first called (RTLD_LAZY), which is never,
// but keeps the address of this one in its data, so the loader wants it at once.
void napi_create_type_error(void);
void napi_create_type_error(void)
{
    die("not a Node process");
}

static void load(const char *path)
{
    void *file = open_library(path, RTLD_LAZY);
#define LOAD(function) zmq.function = symbol(file, "zmq_" #function)
    LOAD(ctx_new);
    LOAD(ctx_term);
    LOAD(socket);
    LOAD(bind);
    LOAD(connect);
    LOAD(send);
    LOAD(recv);
    LOAD(close);
    LOAD(poller_new);
    LOAD(poller_destroy);
    LOAD(poller_add);
    LOAD(poller_modify);
    LOAD(poller_remove);
    LOAD(poller_add_fd);
    LOAD(poller_remove_fd);
    LOAD(poller_wait);
    LOAD(poller_wait_all);
    LOAD(ppoll);
}

// A call on a poller; `handle` is the poller. The arguments of the log entry follow.
#define LOGGED(function, ret, expression, poller, ...)                                             \
    do {                                                                                           \
        struct call call = new_call("zmq_" #function, poller);                                     \
        TIMED(&call, ret = (expression));                                                          \
        set_args(&call, __VA_ARGS__);                                                              \
        log_int(&call, ret);                                                                       \
    } while (0)

static void *poller_new(void)
{
    struct call call = new_call("zmq_poller_new", NULL);
    void *poller;
    TIMED(&call, poller = zmq.poller_new());
    check(log_pointer(&call, poller));
    return poller;
}

static int poller_add(void *poller, void *socket, void *user_data, short events)
{
    int ret;
    LOGGED(poller_add, ret, zmq.poller_add(poller, socket, user_data, events), poller,
           "socket=%p events=%d", socket, events);
    return ret;
}

static int poller_modify(void *poller, void *socket, short events)
{
    int ret;
    LOGGED(poller_modify, ret, zmq.poller_modify(poller, socket, events), poller,
           "socket=%p events=%d", socket, events);
    return ret;
}

static int poller_remove(void *poller, void *socket)
{
    int ret;
    LOGGED(poller_remove, ret, zmq.poller_remove(poller, socket), poller, "socket=%p", socket);
    return ret;
}

static int poller_add_fd(void *poller, int fd, void *user_data, short events)
{
    int ret;
    LOGGED(poller_add_fd, ret, zmq.poller_add_fd(poller, fd, user_data, events), poller,
           "fd=%d events=%d", fd, events);
    return ret;
}

static int poller_remove_fd(void *poller, int fd)
{
    int ret;
    LOGGED(poller_remove_fd, ret, zmq.poller_remove_fd(poller, fd), poller, "fd=%d", fd);
    return ret;
}

static int poller_wait(void *poller, zmq_poller_event_t *event, long timeout_ms)
{
    int ret;
    LOGGED(poller_wait, ret, zmq.poller_wait(poller, event, timeout_ms), poller, "timeout_ms=%ld",
           timeout_ms);
    return ret;
}

static int poller_wait_all(void *poller, zmq_poller_event_t *events, int room, long timeout_ms)
{
    int ret;
    LOGGED(poller_wait_all, ret, zmq.poller_wait_all(poller, events, room, timeout_ms), poller,
           "n_events=%d timeout_ms=%ld", room, timeout_ms);
    return ret;
}

static int poller_destroy(void **poller)
{
    void *destroyed = *poller;
    int ret;
    LOGGED(poller_destroy, ret, zmq.poller_destroy(poller), destroyed, "poller_p=%p",
           (void *)poller);
    return ret;
}

static int ppoll_items(zmq_pollitem_t *items, int count, long timeout_ms, const sigset_t *mask)
{
    struct call call = new_call("zmq_ppoll", NULL);
    int ret;
    TIMED(&call, ret = zmq.ppoll(items, count, timeout_ms, mask));
    set_poll_args(&call, items, count, timeout_ms);
    return log_int(&call, ret);
}

static void wait_for_sockets(void *push, void *pull, int fd, int fd_writer)
{
    void *poller = poller_new();
    zmq_poller_event_t events[3];
    check(poller_add(poller, pull, "pull", ZMQ_POLLIN) == 0);
    fails(poller_add(poller, pull, "twice", ZMQ_POLLIN), EINVAL);
    check(poller_add_fd(poller, fd, "fd", ZMQ_POLLIN) == 0);
    fails(poller_wait(poller, events, 0), EAGAIN);
    fails(poller_wait(poller, events, 20), EAGAIN);

    check(zmq.send(push, "ping", 4, 0) == 4);
    check(poller_wait(poller, events, -1) == 0);
    check(events[0].socket == pull && events[0].events == ZMQ_POLLIN);
    check(write(fd_writer, "x", 1) == 1);
    check(poller_wait_all(poller, events, 3, 1000) == 2);

    check(poller_modify(poller, pull, ZMQ_POLLOUT) == 0);
    check(poller_remove_fd(poller, fd) == 0);
    fails(poller_wait_all(poller, events, 3, 0), EAGAIN);
    check(poller_remove(poller, pull) == 0);
    check(poller_destroy(&poller) == 0);
}

static void poll_with_mask(void *pull, int fd)
{
    sigset_t mask;
    sigemptyset(&mask);
    zmq_pollitem_t items[] = {{.socket = pull, .events = ZMQ_POLLIN},
                              {.fd = fd, .events = ZMQ_POLLIN}};
    check(ppoll_items(items, 2, 1000, &mask) == 2);
    char buffer[16];
    check(zmq.recv(pull, buffer, sizeof buffer, 0) == 4);
    check(read(fd, buffer, 1) == 1);
    check(ppoll_items(items, 2, 20, &mask) == 0);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        die("usage: poller FILE (a library that exports zmq_poller_new and zmq_ppoll)");
    load(argv[1]);
    void *context = zmq.ctx_new();
    check(context);
    void *push = zmq.socket(context, ZMQ_PUSH), *pull = zmq.socket(context, ZMQ_PULL);
    check(push && pull);
    check(zmq.bind(pull, "inproc://poller") == 0 && zmq.connect(push, "inproc://poller") == 0);
    int fds[2];
    check(pipe(fds) == 0);
    ready("\"push\":\"%p\",\"pull\":\"%p\",\"fd\":%d", push, pull, fds[0]);

    await_line("go");
    wait_for_sockets(push, pull, fds[0], fds[1]);
    poll_with_mask(pull, fds[0]);
    done_begin();
    print_calls();
    json_end();
    await_eof();
    check(zmq.close(push) == 0 && zmq.close(pull) == 0 && zmq.ctx_term(context) == 0);
    return 0;
}
