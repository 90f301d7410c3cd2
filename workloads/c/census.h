// The truth about all specimens, as one JSON object. What a build of libzmq does not tell, or the
// program cannot know, is left out.
#pragma once
#include "specimens.h"

#include <arpa/inet.h>
#include <stddef.h>
#include <sys/un.h>

static const char *const type_names[] = {"PAIR",   "PUB",  "SUB",  "REQ",  "REP",  "DEALER",
                                         "ROUTER", "PULL", "PUSH", "XPUB", "XSUB", "STREAM"};

// Options by the names of the contract.
static const struct option {
    const char *name;
    int number;
    enum { NUMBER, TRUTH, NUMBER_64 } kind;
} socket_options[] = {
    {"sndhwm", ZMQ_SNDHWM, NUMBER},
    {"rcvhwm", ZMQ_RCVHWM, NUMBER},
    {"linger", ZMQ_LINGER, NUMBER},
    {"sndtimeo", ZMQ_SNDTIMEO, NUMBER},
    {"rcvtimeo", ZMQ_RCVTIMEO, NUMBER},
    {"reconnect_ivl", ZMQ_RECONNECT_IVL, NUMBER},
    {"reconnect_ivl_max", ZMQ_RECONNECT_IVL_MAX, NUMBER},
    {"immediate", ZMQ_IMMEDIATE, TRUTH},
    {"ipv6", ZMQ_IPV6, TRUTH},
    {"conflate", ZMQ_CONFLATE, TRUTH},
    {"tcp_keepalive", ZMQ_TCP_KEEPALIVE, NUMBER},
    {"tcp_keepalive_cnt", ZMQ_TCP_KEEPALIVE_CNT, NUMBER},
    {"tcp_keepalive_idle", ZMQ_TCP_KEEPALIVE_IDLE, NUMBER},
    {"tcp_keepalive_intvl", ZMQ_TCP_KEEPALIVE_INTVL, NUMBER},
    {"heartbeat_ivl", ZMQ_HEARTBEAT_IVL, NUMBER},
    {"heartbeat_timeout", ZMQ_HEARTBEAT_TIMEOUT, NUMBER},
    {"handshake_ivl", ZMQ_HANDSHAKE_IVL, NUMBER},
    {"connect_timeout", ZMQ_CONNECT_TIMEOUT, NUMBER},
    {"mechanism", ZMQ_MECHANISM, NUMBER},
    {"maxmsgsize", ZMQ_MAXMSGSIZE, NUMBER_64},
    {"backlog", ZMQ_BACKLOG, NUMBER},
    {"affinity", ZMQ_AFFINITY, NUMBER_64},
    {"sndbuf", ZMQ_SNDBUF, NUMBER},
    {"rcvbuf", ZMQ_RCVBUF, NUMBER},
    {"tos", ZMQ_TOS, NUMBER},
};

// Elements of a list, separated.
#define LIST(index, count, element)                                                                \
    do {                                                                                           \
        putchar('[');                                                                              \
        for (size_t index = 0; index < (size_t)(count); index++) {                                 \
            fputs(index ? "," : "", stdout);                                                       \
            element;                                                                               \
        }                                                                                          \
        putchar(']');                                                                              \
    } while (0)

static inline void print_truth(const char *name, bool value)
{
    printf(",\"%s\":%s", name, value ? "true" : "false");
}

// Addresses of fds: 127.0.0.1:4711, [::1]:4711, /path, @abstract; null for a socket without a name.

typedef int name_of(int fd, struct sockaddr *address, socklen_t *size);

static inline void format_address(const struct sockaddr_storage *address, socklen_t size,
                                  char text[128])
{
    char host[INET6_ADDRSTRLEN];
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        snprintf(text, 128, "%s:%d", host, ntohs(in->sin_port));
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)address;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        snprintf(text, 128, "[%s]:%d", host, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_un *un = (const void *)address;
        int bytes = size - offsetof(struct sockaddr_un, sun_path);
        if (bytes > 0 && un->sun_path[0] == '\0')
            snprintf(text, 128, "@%.*s", bytes - 1, un->sun_path + 1);
        else
            snprintf(text, 128, "%.*s", bytes > 0 ? bytes : 0, un->sun_path);
    }
}

// Empty when it has none.
static inline void address_of(name_of *which, int fd, char text[128])
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    text[0] = '\0';
    if (which(fd, (struct sockaddr *)&address, &size) == 0)
        format_address(&address, size, text);
    else
        check(errno == ENOTCONN); // connect(2) has not completed
}

static inline void print_address_of(const char *name, name_of *which, int fd)
{
    char text[128];
    address_of(which, fd, text);
    print_text(name, text[0] ? text : NULL, strlen(text));
}

static inline void print_option(void *socket, const struct option *option)
{
    union {
        int number;
        int64_t number_64;
    } value;
    size_t size = option->kind == NUMBER_64 ? sizeof value.number_64 : sizeof value.number;
    if (zmq_getsockopt(socket, option->number, &value, &size) != 0)
        check(errno == EINVAL);
    else if (option->kind == TRUTH)
        print_truth(option->name, value.number);
    else
        print_number(option->name, option->kind == NUMBER ? value.number : value.number_64, true);
}

static inline bool is_server(void *socket)
{
    const int mechanisms[] = {ZMQ_PLAIN_SERVER, ZMQ_CURVE_SERVER};
    for (int i = 0; i < 2; i++) {
        int server;
        size_t size = sizeof server;
        if (zmq_getsockopt(socket, mechanisms[i], &server, &size) == 0 && server)
            return true; // CURVE's is not known to builds without it
    }
    return false;
}

static inline void print_options(void *socket)
{
    char routing_id[256];
    size_t size = sizeof routing_id;
    check(zmq_getsockopt(socket, ZMQ_ROUTING_ID, routing_id, &size) == 0);
    printf(",\"options\":{\"routing_id\":");
    print_json_text(routing_id, size);
    print_truth("as_server", is_server(socket));
    for (size_t i = 0; i < sizeof socket_options / sizeof *socket_options; i++)
        print_option(socket, &socket_options[i]);
    putchar('}');
}

static inline int by_content(const void *left, const void *right)
{
    const struct text *a = left, *b = right;
    int order = memcmp(a->data, b->data, a->size < b->size ? a->size : b->size);
    return order ? order : (int)a->size - (int)b->size;
}

static inline void print_subscriptions(const struct specimen *specimen)
{
    if (specimen->type != ZMQ_SUB && specimen->type != ZMQ_XSUB)
        return;
    qsort(specimen->topics, specimen->topic_count, sizeof *specimen->topics, by_content);
    printf(",\"subscriptions\":");
    LIST(t, specimen->topic_count,
         print_json_text(specimen->topics[t].data, specimen->topics[t].size));
}

static inline const char *role_name(const struct endpoint *endpoint)
{
    return endpoint->role == BIND ? "bind" : "connect";
}

static inline void print_endpoint(const struct endpoint *endpoint)
{
    printf("{\"role\":\"%s\"", role_name(endpoint));
    print_text("endpoint", endpoint->name, strlen(endpoint->name));
    print_number("fd", endpoint->fd, endpoint->fd != UNKNOWN);
    putchar('}');
}

static inline void print_connection(const struct connection *connection)
{
    const char *name = connection->endpoint->name;
    printf("{\"transport\":\"%.*s\",\"role\":\"%s\"", (int)strcspn(name, ":"), name,
           role_name(connection->endpoint));
    print_text("endpoint", name, strlen(name));
    if (connection->state)
        print_text("state", connection->state, strlen(connection->state));
    if (connection->fd != UNKNOWN) {
        printf(",\"fd\":%d", connection->fd);
        print_address_of("local", getsockname, connection->fd);
        print_address_of("remote", getpeername, connection->fd);
    }
    if (connection->peer) {
        print_address("peer_handle", connection->peer->socket);
        printf(",\"peer_type\":\"%s\"", type_names[connection->peer->type]);
    }
    if (connection->peer_pid)
        print_number("peer_pid", connection->peer_pid, true);
    if (connection->peer_identity.data)
        print_text("peer_identity", connection->peer_identity.data, connection->peer_identity.size);
    putchar('}');
}

static inline void print_specimen(const struct specimen *specimen)
{
    printf("{\"handle\":\"%p\",\"name\":\"%s\",\"order\":%d,\"type\":\"%s\",\"mailbox_fd\":%d",
           specimen->socket, specimen->name, specimen->order, type_names[specimen->type],
           mailbox_fd(specimen->socket));
    print_options(specimen->socket);
    print_truth("monitor", specimen->events);
    print_subscriptions(specimen);
    printf(",\"endpoints\":");
    LIST(e, specimen->endpoint_count, print_endpoint(&specimen->endpoints[e]));
    if (specimen->connections_known) {
        printf(",\"connections\":");
        LIST(c, specimen->connection_count, print_connection(&specimen->connections[c]));
    }
    if (specimen->tx_queue != UNKNOWN)
        print_number("tx_queue", specimen->tx_queue, true);
    if (specimen->rx_queue != UNKNOWN)
        print_number("rx_queue", specimen->rx_queue, true);
    if (specimen->bytes_held != UNKNOWN)
        print_number("bytes_held", specimen->bytes_held, true);
    putchar('}');
}

// Its value, where this build has it.
static inline void print_context_option(void *context, const char *name, int option, bool truth)
{
    int value = zmq_ctx_get(context, option);
    if (value == -1)
        check(errno == EINVAL);
    else if (truth)
        print_truth(name, value);
    else
        print_number(name, value, true);
}

static inline void print_world(const struct world *world)
{
    printf("{\"handle\":\"%p\"", world->context);
    print_context_option(world->context, "io_threads", ZMQ_IO_THREADS, false);
    print_context_option(world->context, "max_sockets", ZMQ_MAX_SOCKETS, false);
    print_context_option(world->context, "max_msgsz", ZMQ_MAX_MSGSZ, false);
    print_context_option(world->context, "ipv6", ZMQ_IPV6, true);
    print_context_option(world->context, "blocky", ZMQ_BLOCKY, true);
    print_truth("terminating", world->terminating);
    const struct specimen *members[MAX_SPECIMENS];
    size_t count = 0, monitors = 0;
    for (size_t s = 0; s < zoo.specimen_count; s++) {
        if (zoo.specimens[s].world == world) {
            members[count++] = &zoo.specimens[s];
            monitors += zoo.specimens[s].events != NULL;
        }
    }
    // libzmq's own end of each monitor.
    print_number("unlisted_sockets", monitors, true);
    printf(",\"sockets\":");
    LIST(m, count, print_specimen(members[m]));
    putchar('}');
}

// Members of the object that is being printed.
static inline void print_census(void)
{
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    printf(",\"libzmq\":\"%d.%d.%d\",\"contexts\":", major, minor, patch);
    LIST(w, zoo.world_count, print_world(&zoo.worlds[w]));
    printf(",\"other_fds\":");
    LIST(f, zoo.foreign_fd_count, printf("%d", zoo.foreign_fds[f]));
}
