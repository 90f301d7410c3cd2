// Every libzmq call at least once, with known arguments, in a fixed order for each thread: successes
// and typical failures. All of it happens after `go`.
#include "truth.h"

static void *new_socket(void *context, int type)
{
    void *socket = log_socket(context, type);
    check(socket);
    return socket;
}

static void bind_resolved(void *socket, const char *endpoint, char resolved[256])
{
    size_t size = 256;
    ok(log_bind(socket, endpoint));
    ok(log_getsockopt(socket, ZMQ_LAST_ENDPOINT, resolved, &size));
}

static void receive(void *socket, const void *expected, int size)
{
    char buffer[8192];
    check(log_recv(socket, buffer, sizeof buffer, 0) == size);
    check(memcmp(buffer, expected, size) == 0);
}

static void contexts(void)
{
    void *context = log_ctx_new();
    check(context);
    ok(log_ctx_set(context, ZMQ_IO_THREADS, 2));
    ok(log_ctx_set(context, ZMQ_MAX_SOCKETS, 2));
    fails(log_ctx_set(context, 9999, 1), EINVAL);
    check(!log_socket(context, 99) && errno == EINVAL);
    void *first = new_socket(context, ZMQ_PULL);
    void *second = new_socket(context, ZMQ_REP);
    check(!log_socket(context, ZMQ_PUSH) && errno == EMFILE);
    ok(log_close(second)); // its place is free again only when the reaper thread has been at it
    ok(log_ctx_shutdown(context));
    fails(log_recv(first, NULL, 0, 0), ETERM);
    zmq_pollitem_t item = {.socket = first, .events = ZMQ_POLLIN};
    fails(log_poll(&item, 1, -1), ETERM);
    check(!log_socket(context, ZMQ_PUSH) && errno == ETERM);
    ok(log_close(first));
    ok(log_ctx_term(context));
    fails(log_ctx_term(NULL), EFAULT);

    void *old_style = log_init(1);
    check(old_style);
    ok(log_term(old_style));
    void *destroyed = log_ctx_new();
    check(destroyed);
    ok(log_ctx_destroy(destroyed));
}

static void options(void *context)
{
    void *dealer = new_socket(context, ZMQ_DEALER);
    ok(log_setsockopt_int(dealer, ZMQ_SNDHWM, 5));
    ok(log_setsockopt_int(dealer, ZMQ_RCVHWM, 7));
    ok(log_setsockopt_int(dealer, ZMQ_LINGER, 0));
    ok(log_setsockopt_int(dealer, ZMQ_SNDTIMEO, 250));
    ok(log_setsockopt_int(dealer, ZMQ_RCVTIMEO, -1));
    ok(log_setsockopt_int64(dealer, ZMQ_MAXMSGSIZE, INT64_C(5000000000)));
    ok(log_setsockopt_int64(dealer, ZMQ_AFFINITY, 1));
    ok(log_setsockopt(dealer, ZMQ_ROUTING_ID, "dealer-1", 8));
    ok(log_setsockopt(dealer, ZMQ_PLAIN_USERNAME, "alice", 5));
    fails(log_setsockopt_int(dealer, 9999, 1), EINVAL);
    int value;
    size_t size = sizeof value;
    ok(log_getsockopt(dealer, ZMQ_SNDHWM, &value, &size));
    check(value == 5);
    fails(log_getsockopt(dealer, 9999, &value, &size), EINVAL);
    ok(log_close(dealer));
}

static void endpoints(void *context)
{
    char endpoint[256];
    void *pull = new_socket(context, ZMQ_PULL), *other = new_socket(context, ZMQ_PULL);
    void *push = new_socket(context, ZMQ_PUSH);
    bind_resolved(pull, "tcp://127.0.0.1:*", endpoint);
    fails(log_bind(other, endpoint), EADDRINUSE);
    fails(log_bind(other, "nonsense"), EINVAL);
    fails(log_connect(push, "carrier-pigeon://roof"), EPROTONOSUPPORT);
    ok(log_connect(push, endpoint));
    ok(log_disconnect(push, endpoint));
    fails(log_disconnect(push, endpoint), ENOENT);
    ok(log_unbind(pull, endpoint));
    fails(log_unbind(pull, endpoint), ENOENT);
    ok(log_close(push));
    ok(log_close(other));
    ok(log_close(pull));
}

// Sizes around the limits that matter: 33 bytes is the largest message that libzmq keeps inside
// zmq_msg_t, 64 what a tracer may keep of a payload without a second record, 8192 libzmq's read batch.
static void sends(void *push, void *pull)
{
    static const int sizes[] = {0, 5, 33, 34, 64, 65, 1000, 5000, 20000};
    static char text[20000], buffer[20000];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = 'a' + i % 26;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check(log_send(push, text, sizes[i], 0) == sizes[i]);
        check(log_recv(pull, buffer, sizeof buffer, 0) == sizes[i]);
        check(memcmp(buffer, text, sizes[i]) == 0);
    }
    ok(log_send(push, "\0\xff\x80 binary \"\n\x7f", 14, ZMQ_DONTWAIT));
    receive(pull, "\0\xff\x80 binary \"\n\x7f", 14);
    ok(log_send_const(push, "constant", 8, 0));
    receive(pull, "constant", 8);

    ok(log_send(push, "first", 5, ZMQ_SNDMORE));
    ok(log_send(push, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT));
    ok(log_send(push, "last", 4, 0));
    receive(pull, "first", 5);
    int more = 0;
    size_t size = sizeof more;
    ok(log_getsockopt(pull, ZMQ_RCVMORE, &more, &size));
    check(more);
    receive(pull, "", 0);
    receive(pull, "last", 4);

    // A receive that cuts: the result is the message's size, not the buffer's.
    ok(log_send(push, "0123456789", 10, 0));
    check(log_recv(pull, buffer, 4, 0) == 10);
    fails(log_recv(pull, buffer, sizeof buffer, ZMQ_DONTWAIT), EAGAIN);
}

static void count_free(void *data, void *hint)
{
    (void)data;
    __atomic_add_fetch((int *)hint, 1, __ATOMIC_SEQ_CST);
}

static void messages(void *push, void *pull)
{
    zmq_msg_t sent, received;
    ok(log_msg_init_size(&sent, 33));
    memset(zmq_msg_data(&sent), 'v', 33);
    check(log_msg_send(&sent, push, 0) == 33);
    ok(log_msg_init(&received));
    check(log_msg_recv(&received, pull, 0) == 33);
    ok(log_msg_close(&received));

    ok(log_msg_init_size(&sent, 3000));
    memset(zmq_msg_data(&sent), 'l', 3000);
    check(log_msg_send(&sent, push, ZMQ_SNDMORE) == 3000);
    ok(log_msg_init(&sent)); // an empty last part
    check(log_msg_send(&sent, push, ZMQ_DONTWAIT) == 0);
    ok(log_msg_init(&received));
    check(log_msg_recv(&received, pull, 0) == 3000);
    check(log_msg_recv(&received, pull, 0) == 0); // closes what it held before
    fails(log_msg_recv(&received, pull, ZMQ_DONTWAIT), EAGAIN);

    // No copy: libzmq sends the caller's memory, with and without a callback that frees it.
    static char data[100];
    memset(data, 'z', sizeof data);
    static int freed;
    ok(log_msg_init_data(&sent, data, sizeof data, count_free, &freed));
    check(log_msg_send(&sent, push, 0) == sizeof data);
    check(log_msg_recv(&received, pull, 0) == sizeof data);
    ok(log_msg_init_data(&sent, data, sizeof data, NULL, NULL));
    check(log_msg_send(&sent, push, 0) == sizeof data);
    check(log_msg_recv(&received, pull, 0) == sizeof data);
    ok(log_msg_close(&received));

    ok(log_msg_init_size(&sent, 7));
    memcpy(zmq_msg_data(&sent), "sendmsg", 7);
    check(log_sendmsg(push, &sent, 0) == 7);
    ok(log_msg_init(&received));
    check(log_recvmsg(pull, &received, 0) == 7);
    ok(log_msg_close(&received));

    struct iovec parts[] = {{"one", 3}, {"two!", 4}, {"three", 5}};
    ok(log_sendiov(push, parts, 3, ZMQ_SNDMORE));
    struct iovec came[4];
    size_t count = 4;
    check(log_recviov(pull, came, &count, 0) == 3 && count == 3);
    for (size_t i = 0; i < count; i++)
        free(came[i].iov_base);
    ok(log_msg_init_data(&sent, data, sizeof data, count_free, &freed));
    ok(log_msg_close(&sent)); // freed here, unsent
}

static void subscriptions(void *context)
{
    // XPUB shows each subscription as a message, so there is no slow joiner to wait for.
    void *publisher = new_socket(context, ZMQ_XPUB), *subscriber = new_socket(context, ZMQ_SUB);
    ok(log_bind(publisher, "inproc://feed"));
    ok(log_connect(subscriber, "inproc://feed"));
    ok(log_setsockopt(subscriber, ZMQ_SUBSCRIBE, "news", 4));
    receive(publisher, "\1news", 5);
    ok(log_setsockopt(subscriber, ZMQ_SUBSCRIBE, "\0\xff", 2));
    receive(publisher, "\1\0\xff", 3);
    ok(log_send(publisher, "news flash", 10, 0));
    ok(log_send(publisher, "weather", 7, 0)); // matches nothing: dropped, and still a success
    ok(log_send(publisher, "\0\xff\1", 3, 0));
    receive(subscriber, "news flash", 10);
    receive(subscriber, "\0\xff\1", 3);
    ok(log_setsockopt(subscriber, ZMQ_UNSUBSCRIBE, "news", 4));
    receive(publisher, "\0news", 5);
    ok(log_setsockopt(subscriber, ZMQ_SUBSCRIBE, "", 0));
    receive(publisher, "\1", 1);
    fails(log_recv(subscriber, NULL, 0, ZMQ_DONTWAIT), EAGAIN);
    fails(log_send(subscriber, "x", 1, 0), ENOTSUP);
    ok(log_close(subscriber));
    ok(log_close(publisher));
}

static void failures(void *context)
{
    void *push = new_socket(context, ZMQ_PUSH);
    fails(log_send(push, "nobody", 6, ZMQ_DONTWAIT), EAGAIN);
    ok(log_setsockopt_int(push, ZMQ_SNDTIMEO, 20));
    fails(log_send(push, "nobody", 6, 0), EAGAIN); // after 20 ms
    fails(log_recv(push, NULL, 0, 0), ENOTSUP);
    ok(log_close(push));

    void *request = new_socket(context, ZMQ_REQ), *reply = new_socket(context, ZMQ_REP);
    ok(log_bind(reply, "inproc://order"));
    ok(log_connect(request, "inproc://order"));
    fails(log_recv(request, NULL, 0, 0), EFSM);
    fails(log_send(reply, "early", 5, 0), EFSM);
    ok(log_send(request, "question", 8, 0));
    fails(log_send(request, "question", 8, 0), EFSM);
    receive(reply, "question", 8);
    ok(log_send(reply, "answer", 6, 0));
    receive(request, "answer", 6);
    ok(log_close(request));
    ok(log_close(reply));

    void *router = new_socket(context, ZMQ_ROUTER);
    ok(log_send(router, "unknown", 7, ZMQ_SNDMORE)); // not mandatory: dropped in silence
    ok(log_send(router, "lost", 4, 0));
    ok(log_setsockopt_int(router, ZMQ_ROUTER_MANDATORY, 1));
    fails(log_send(router, "unknown", 7, ZMQ_SNDMORE), EHOSTUNREACH);
    ok(log_close(router));

    // Neither is a socket. The second is readable where libzmq looks for its tag, so nothing is read
    // out of bounds, unlike with a context or a closed socket.
    static char not_a_socket[4096];
    fails(log_send(NULL, "x", 1, 0), ENOTSOCK);
    fails(log_recv(not_a_socket, NULL, 0, 0), ENOTSOCK);
    fails(log_close(not_a_socket), ENOTSOCK);
}

static void polls(void *context)
{
    void *left = new_socket(context, ZMQ_PAIR), *right = new_socket(context, ZMQ_PAIR);
    ok(log_bind(left, "inproc://poll"));
    ok(log_connect(right, "inproc://poll"));
    int fds[2];
    ok(pipe(fds));
    zmq_pollitem_t items[] = {{.socket = right, .events = ZMQ_POLLIN},
                              {.fd = fds[0], .events = ZMQ_POLLIN},
                              {.socket = left, .events = ZMQ_POLLIN | ZMQ_POLLOUT}};
    check(log_poll(items, 2, 0) == 0);
    check(log_poll(items, 2, 20) == 0);
    check(write(fds[1], "x", 1) == 1);
    check(log_poll(items, 2, -1) == 1 && items[1].revents == ZMQ_POLLIN);
    ok(log_send(left, "ping", 4, 0));
    check(log_poll(items, 3, 1000) == 3 && items[2].revents == ZMQ_POLLOUT);
    check(log_poll(NULL, 0, 0) == 0);
    fails(log_poll(NULL, 1, 0), EFAULT);
    receive(right, "ping", 4);
    close(fds[0]);
    close(fds[1]);
    ok(log_close(right));
    ok(log_close(left));
}

struct proxy {
    void *frontend, *backend, *control;
};

// The thread owns the sockets from its start to its end: pthread_create and pthread_join are the fences.
static void *run_proxy(void *argument)
{
    struct proxy *proxy = argument;
    if (proxy->control) {
        ok(log_proxy_steerable(proxy->frontend, proxy->backend, NULL, proxy->control));
        ok(log_close(proxy->control));
    } else
        fails(log_proxy(proxy->frontend, proxy->backend, NULL), ETERM);
    ok(log_close(proxy->frontend));
    ok(log_close(proxy->backend));
    return NULL;
}

static void proxies(bool steerable)
{
    void *context = log_ctx_new();
    check(context);
    struct proxy proxy = {new_socket(context, ZMQ_PULL), new_socket(context, ZMQ_PUSH), NULL};
    void *source = new_socket(context, ZMQ_PUSH), *sink = new_socket(context, ZMQ_PULL);
    void *control = NULL;
    ok(log_bind(proxy.frontend, "inproc://frontend"));
    ok(log_bind(proxy.backend, "inproc://backend"));
    ok(log_connect(source, "inproc://frontend"));
    ok(log_connect(sink, "inproc://backend"));
    if (steerable) {
        control = new_socket(context, ZMQ_PAIR);
        proxy.control = new_socket(context, ZMQ_PAIR);
        ok(log_bind(proxy.control, "inproc://control"));
        ok(log_connect(control, "inproc://control"));
    }
    pthread_t thread;
    check(pthread_create(&thread, NULL, run_proxy, &proxy) == 0);
    ok(log_send(source, "through", 7, 0));
    receive(sink, "through", 7); // the proxy runs: what ends it now finds it inside the call
    if (steerable)
        ok(log_send(control, "TERMINATE", 9, 0));
    else
        ok(log_ctx_shutdown(context));
    check(pthread_join(thread, NULL) == 0);
    if (steerable)
        ok(log_close(control));
    ok(log_close(source));
    ok(log_close(sink));
    ok(log_ctx_term(context));
}

static void monitors(void *context)
{
    void *pull = new_socket(context, ZMQ_PULL), *monitor = new_socket(context, ZMQ_PAIR);
    fails(log_socket_monitor(pull, "tcp://127.0.0.1:*", ZMQ_EVENT_ALL), EPROTONOSUPPORT);
    ok(log_socket_monitor(pull, "inproc://monitor", ZMQ_EVENT_LISTENING));
    ok(log_connect(monitor, "inproc://monitor"));
    char endpoint[256], event[6], address[256];
    bind_resolved(pull, "tcp://127.0.0.1:*", endpoint);
    check(log_recv(monitor, event, sizeof event, 0) == sizeof event);
    // Before 4.3 the event has port 0 here.
    check(log_recv(monitor, address, sizeof address, 0) >= 0);
    ok(log_socket_monitor(pull, NULL, 0));
    ok(log_close(monitor));
    ok(log_close(pull));
}

int main(void)
{
    ready(NULL);
    await_line("go");

    contexts();
    void *context = log_ctx_new();
    check(context);
    options(context);
    endpoints(context);
    char endpoint[256];
    void *pull = new_socket(context, ZMQ_PULL), *push = new_socket(context, ZMQ_PUSH);
    bind_resolved(pull, "tcp://127.0.0.1:*", endpoint);
    ok(log_connect(push, endpoint));
    sends(push, pull);
    ok(log_close(push));
    ok(log_close(pull));
    // inproc for the zero-copy messages: over tcp the I/O thread, not the receiver, would free them.
    pull = new_socket(context, ZMQ_PULL), push = new_socket(context, ZMQ_PUSH);
    ok(log_bind(pull, "inproc://messages"));
    ok(log_connect(push, "inproc://messages"));
    messages(push, pull);
    ok(log_close(push));
    ok(log_close(pull));
    subscriptions(context);
    failures(context);
    polls(context);
    monitors(context);
    proxies(false);
    proxies(true);
    ok(log_ctx_term(context));

    done_begin();
    print_calls();
    json_end();
    await_eof();
    return 0;
}
