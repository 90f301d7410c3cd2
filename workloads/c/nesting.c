// Calls inside calls. libzmq's own (zmq_sendmsg makes a zmq_msg_send, zmq_poll a zmq_getsockopt, ...)
// are not the program's and not in its truth. The sends that the free callback of a zero-copy
// message makes, inside zmq_msg_close and inside zmq_recv, are.
#include "truth.h"

enum { POLLED = 20 };

static void *new_socket(void *context, int type)
{
    void *socket = log_socket(context, type);
    check(socket);
    return socket;
}

// A push and a pull socket, joined by an inproc endpoint.
struct pipe {
    void *push, *pull;
};

static struct pipe new_pipe(void *context, const char *endpoint)
{
    struct pipe pipe = {new_socket(context, ZMQ_PUSH), new_socket(context, ZMQ_PULL)};
    ok(log_bind(pipe.pull, endpoint));
    ok(log_connect(pipe.push, endpoint));
    return pipe;
}

static void close_pipe(struct pipe pipe)
{
    ok(log_close(pipe.push));
    ok(log_close(pipe.pull));
}

static void sendmsg_and_recvmsg(void *context)
{
    struct pipe pipe = new_pipe(context, "inproc://sendmsg");
    zmq_msg_t message;
    ok(log_msg_init_size(&message, 5));
    memcpy(zmq_msg_data(&message), "outer", 5);
    check(log_sendmsg(pipe.push, &message, 0) == 5);
    ok(log_msg_init(&message));
    check(log_recvmsg(pipe.pull, &message, 0) == 5);
    ok(log_msg_close(&message));
    close_pipe(pipe);
}

static void poll_many(void *context)
{
    struct pipe pipe = new_pipe(context, "inproc://poll");
    zmq_pollitem_t items[POLLED] = {{.socket = pipe.pull, .events = ZMQ_POLLIN}};
    for (int i = 1; i < POLLED; i++)
        items[i] = (zmq_pollitem_t){.socket = new_socket(context, ZMQ_PULL), .events = ZMQ_POLLIN};
    check(log_poll(items, POLLED, 0) == 0);
    ok(log_send(pipe.push, "ready", 5, 0));
    check(log_poll(items, POLLED, -1) == 1 && items[0].revents == ZMQ_POLLIN);
    char buffer[16];
    check(log_recv(pipe.pull, buffer, sizeof buffer, 0) == 5);
    for (int i = 1; i < POLLED; i++)
        ok(log_close(items[i].socket));
    close_pipe(pipe);
}

static void monitor(void *context)
{
    void *socket = new_socket(context, ZMQ_REP);
    ok(log_socket_monitor(socket, "inproc://monitor", ZMQ_EVENT_ALL));
    void *events = new_socket(context, ZMQ_PAIR);
    ok(log_connect(events, "inproc://monitor")); // without it the next call would block for ever
    ok(log_bind(socket, "tcp://127.0.0.1:*")); // sends an event from inside
    ok(log_socket_monitor(socket, NULL, 0));
    ok(log_close(events));
    ok(log_close(socket));
}

static void send_freed(void *data, void *push)
{
    ok(log_send(push, data, 5, 0));
}

static void send_zero_copy(void *push, void *announce)
{
    static char data[] = "freed";
    zmq_msg_t message;
    ok(log_msg_init_data(&message, data, 5, send_freed, announce));
    check(log_msg_send(&message, push, 0) == 5);
}

// inproc hands over the sender's memory itself, so the receiver's last use of it calls the callback.
static void free_callbacks(void *context)
{
    struct pipe zero_copy = new_pipe(context, "inproc://zero-copy");
    struct pipe freed = new_pipe(context, "inproc://freed");
    char buffer[16];

    send_zero_copy(zero_copy.push, freed.push);
    zmq_msg_t message;
    ok(log_msg_init(&message));
    check(log_msg_recv(&message, zero_copy.pull, 0) == 5);
    fails(log_recv(freed.pull, buffer, sizeof buffer, ZMQ_DONTWAIT), EAGAIN);
    ok(log_msg_close(&message)); // the callback sends in here
    check(log_recv(freed.pull, buffer, sizeof buffer, ZMQ_DONTWAIT) == 5);

    send_zero_copy(zero_copy.push, freed.push);
    check(log_recv(zero_copy.pull, buffer, sizeof buffer, 0) == 5); // and in here
    check(log_recv(freed.pull, buffer, sizeof buffer, ZMQ_DONTWAIT) == 5);
    close_pipe(freed);
    close_pipe(zero_copy);
}

int main(void)
{
    ready(NULL);
    await_line("go");
    void *context = log_init(1); // nests zmq_ctx_new and zmq_ctx_set
    check(context);
    sendmsg_and_recvmsg(context);
    poll_many(context);
    monitor(context);
    free_callbacks(context);
    ok(log_term(context)); // nests zmq_ctx_term

    done_begin();
    print_calls();
    json_end();
    await_eof();
    return 0;
}
