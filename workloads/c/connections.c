// Connections that are refused and tried again, made, of wrong types, lost and closed, one after the other: what the
// monitors tell of each.
#include "sockets.h"

#include <netinet/in.h>
#include <sys/socket.h>

static void *context;

struct watched {
    const char *name;
    void *socket, *events;
};

static const struct {
    int event;
    const char *name;
} event_names[] = {
    {ZMQ_EVENT_CONNECTED, "connected"},
    {ZMQ_EVENT_CONNECT_DELAYED, "connect_delayed"},
    {ZMQ_EVENT_CONNECT_RETRIED, "connect_retried"},
    {ZMQ_EVENT_LISTENING, "listening"},
    {ZMQ_EVENT_ACCEPTED, "accepted"},
    {ZMQ_EVENT_CLOSED, "closed"},
    {ZMQ_EVENT_DISCONNECTED, "disconnected"},
    {ZMQ_EVENT_MONITOR_STOPPED, "monitor_stopped"},
    {ZMQ_EVENT_HANDSHAKE_SUCCEEDED, "handshake_succeeded"},
    {ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL, "handshake_failed"},
    {ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL, "handshake_failed"},
    {ZMQ_EVENT_HANDSHAKE_FAILED_AUTH, "handshake_failed"},
};

// The list is printed as it grows, into memory.
static FILE *told;
static char *told_text;
static size_t told_size;

static struct watched watch(int type, const char *name)
{
    static int watched;
    struct watched socket = {.name = name, .socket = zmq_socket(context, type), .events = zmq_socket(context, ZMQ_PAIR)};
    check(socket.socket && socket.events);
    int retry_ms = 20, linger = 0;
    check(zmq_setsockopt(socket.socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms) == 0);
    check(zmq_setsockopt(socket.socket, ZMQ_LINGER, &linger, sizeof linger) == 0);
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "inproc://watched-%d", watched++);
    check(zmq_socket_monitor(socket.socket, endpoint, ZMQ_EVENT_ALL) == 0);
    check(zmq_connect(socket.events, endpoint) == 0);
    return socket;
}

// Returns what came next, 0 where nothing has.
static int hear(struct watched *watched, int flags)
{
    char event[6], endpoint[256];
    int size = zmq_recv(watched->events, event, sizeof event, flags);
    if (size == -1) {
        check(errno == EAGAIN);
        return 0;
    }
    check((size = zmq_recv(watched->events, endpoint, sizeof endpoint, 0)) >= 0 && size < (int)sizeof endpoint);
    uint16_t kind;
    int32_t value;
    memcpy(&kind, event, sizeof kind);
    memcpy(&value, event + 2, sizeof value);
    const char *name = "?";
    for (size_t i = 0; i < sizeof event_names / sizeof *event_names; i++)
        if (event_names[i].event == kind)
            name = event_names[i].name;
    fprintf(told, "%s{\"handle\":\"%p\",\"name\":\"%s\",\"event\":\"%s\",\"value\":%d,\"endpoint\":\"%.*s\",\"ns\":%ld}",
            ftell(told) ? "," : "", watched->socket, watched->name, name, value, size, endpoint, now_ns());
    return kind;
}

static void await_event(struct watched *watched, int wanted)
{
    while (!(hear(watched, 0) & wanted))
        ;
}

// Whatever else is told stands in the list, too: until the socket is gone.
static void close_watched(struct watched *watched)
{
    check(zmq_close(watched->socket) == 0);
    await_event(watched, ZMQ_EVENT_MONITOR_STOPPED);
    check(zmq_close(watched->events) == 0);
}

// A port at which nobody listens, and that nobody else gets.
static int reserve_port(char endpoint[64])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    check(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0);
    check(bind(fd, (struct sockaddr *)&address, size) == 0);
    check(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    snprintf(endpoint, 64, "tcp://127.0.0.1:%d", ntohs(address.sin_port));
    return fd;
}

static void refused_then_made_then_lost(int retries)
{
    char endpoint[64];
    int port = reserve_port(endpoint);
    struct watched push = watch(ZMQ_PUSH, "retrying"), pull = watch(ZMQ_PULL, "late");
    check(zmq_connect(push.socket, endpoint) == 0);
    for (int i = 0; i < retries; i++)
        await_event(&push, ZMQ_EVENT_CONNECT_RETRIED);
    check(zmq_bind(pull.socket, endpoint) == 0); // both allow the other
    close(port);
    await_event(&push, ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    await_event(&pull, ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    close_watched(&pull);
    await_event(&push, ZMQ_EVENT_DISCONNECTED);
    close_watched(&push);
}

// A handshake that fails.
static void of_wrong_types(const char *transport)
{
    char endpoint[256];
    struct watched push = watch(ZMQ_PUSH, "push"), pub = watch(ZMQ_PUB, "pub");
    bind_resolved(pub.socket, wildcard_endpoint(transport), endpoint);
    check(zmq_connect(push.socket, endpoint) == 0);
    await_event(&push, ZMQ_EVENT_DISCONNECTED); // that the handshake was it need not be told
    close_watched(&push);
    close_watched(&pub);
}

static void made_and_closed(const char *transport, int binds, int connects)
{
    char endpoint[256];
    struct watched binder = watch(binds, "binder"), connecter = watch(connects, "connecter");
    check(zmq_setsockopt(connecter.socket, ZMQ_ROUTING_ID, "who I am", 8) == 0);
    bind_resolved(binder.socket, wildcard_endpoint(transport), endpoint);
    check(zmq_connect(connecter.socket, endpoint) == 0);
    await_event(&binder, ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    await_event(&connecter, ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    close_watched(&connecter);
    await_event(&binder, ZMQ_EVENT_DISCONNECTED);
    close_watched(&binder);
}

int main(int argc, char **argv)
{
    long retries = 3;
    parse_options(argc, argv, (const struct option_spec[]){{"retries", INTEGER, &retries}, {0}});
    check((context = zmq_ctx_new()) != NULL);
    check((told = open_memstream(&told_text, &told_size)) != NULL);
    void *early = zmq_socket(context, ZMQ_PAIR); // the I/O threads are there
    check(early);
    ready(NULL);

    await_line("go");
    refused_then_made_then_lost(retries);
    of_wrong_types("tcp");
    of_wrong_types("ipc");
    made_and_closed("tcp", ZMQ_ROUTER, ZMQ_DEALER);
    made_and_closed("ipc", ZMQ_REP, ZMQ_REQ);
    check(fclose(told) == 0);
    done_begin();
    printf(",\"events\":[%s]", told_text);
    json_end();
    free(told_text);
    await_eof();
    check(zmq_close(early) == 0 && zmq_ctx_term(context) == 0);
    return 0;
}
