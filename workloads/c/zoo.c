// Every kind of socket, option, endpoint, connection and queue in one process, stated in full: see
// ../README.md, "Census". Once it is ready it stands still, but for a thread that makes and closes
// further sockets, from the line `churn` (or from the start: --churn N, at most N sockets at once)
// until the next line. The lines `truth` and `still` end that, and `truth` states all again.
// --version prints libzmq's and ends.
#include "census.h"
#include "sleepers.h"

#include <dirent.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum {
    HOUR_MS = 3600000,
    DEFAULT_CHURN = 16,
    MAX_CHURN = 256,
    MANY_TOPICS = 300,
};

static char folder[] = P_tmpdir "/zmqtrace-zoo-XXXXXX"; // for ipc paths

// Nobody binds it until the end.
#define PENDING_ENDPOINT "inproc://nobody"

static const char *in_folder(const char *name)
{
    static char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "ipc://%s/%s", folder, name);
    return endpoint;
}

// Messages that stay in queues.

// Whether the sender's queue and the receiver's are one. With nobody there it is the sender's.
static bool share_queues(const struct specimen *from, const struct specimen *to)
{
    for (size_t c = 0; c < from->connection_count; c++)
        if (from->connections[c].peer == to)
            return !to || is_inproc(from->connections[c].endpoint->name);
    die("%s is not connected to %s", from->name, to ? to->name : "anybody else");
}

static void count_left(struct specimen *from, struct specimen *to, long bytes, bool whole)
{
    if (share_queues(from, to)) {
        from->tx_queue += whole;
        from->bytes_held += bytes;
    }
    if (to) {
        to->rx_queue += whole;
        to->bytes_held += bytes;
    }
}

// Sends one part of this many bytes, which the other (NULL: there is none) does not receive.
static void leave(struct specimen *from, struct specimen *to, size_t bytes, int flags)
{
    static char content[8192];
    check(bytes <= sizeof content);
    memset(content, 'a' + bytes % 26, bytes);
    say(from, content, bytes, flags);
    count_left(from, to, bytes, !(flags & ZMQ_SNDMORE));
}

// At and around what a zmq_msg_t holds in itself: 33 bytes, in 4.1 45.
static void leave_sizes(struct specimen *from, struct specimen *to)
{
    const size_t sizes[] = {0, 1, 33, 34, 45, 46, 1000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        leave(from, to, sizes[i], 0);
}

static void leave_multipart(struct specimen *from, struct specimen *to)
{
    leave(from, to, 3, ZMQ_SNDMORE);
    leave(from, to, 0, ZMQ_SNDMORE);
    leave(from, to, 200, 0);
}

static void free_content(void *content, void *unused)
{
    (void)unused;
    free(content);
}

// Messages around memory of the program's: with a function that frees it, and constant.
static void leave_own_memory(struct specimen *from, struct specimen *to)
{
    static char constant[] = "a constant that libzmq does not copy, and does not free either";
    void *allocated = calloc(1, 5000);
    zmq_msg_t messages[2];
    check(allocated && zmq_msg_init_data(&messages[0], allocated, 5000, free_content, NULL) == 0);
    check(zmq_msg_init_data(&messages[1], constant, sizeof constant, NULL, NULL) == 0);
    for (int i = 0; i < 2; i++) {
        long bytes = zmq_msg_size(&messages[i]);
        check(zmq_msg_send(&messages[i], from->socket, 0) == bytes);
        count_left(from, to, bytes, true);
    }
}

// Sockets that are not libzmq's.

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

// Bound to a port; does not listen if the backlog is UNKNOWN.
static int raw_bound(int backlog, char endpoint[64])
{
    int fd = foreign_fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    check(bind(fd, (struct sockaddr *)&address, size) == 0);
    check(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    check(backlog == UNKNOWN || listen(fd, backlog) == 0);
    snprintf(endpoint, 64, "tcp://127.0.0.1:%d", ntohs(address.sin_port));
    return fd;
}

static int raw_connected(const char *endpoint)
{
    int fd = foreign_fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    struct sockaddr_in address = loopback(atoi(strrchr(endpoint, ':') + 1));
    check(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

// Fds that look a little like ZeroMQ's: a tcp connection, and an epoll that watches an eventfd and
// a pipe.
static void add_foreign_fds(void)
{
    char endpoint[64];
    int listener = raw_bound(1, endpoint), ends[2];
    raw_connected(endpoint);
    foreign_fd(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    int epoll = foreign_fd(epoll_create1(EPOLL_CLOEXEC));
    int event = foreign_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    check(pipe2(ends, O_CLOEXEC) == 0);
    foreign_fd(ends[0]), foreign_fd(ends[1]);
    struct epoll_event interest = {.events = EPOLLIN, .data.fd = event};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &interest) == 0);
    interest.data.fd = ends[0];
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &interest) == 0);
}

static bool ipv6_works(void)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool works = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0)
        close(fd);
    return works;
}

// The exhibits.

static void idle_sockets(struct world *world)
{
    static const char *const names[] = {"idle-pair", "idle-pub",    "idle-sub",    "idle-req",
                                        "idle-rep",  "idle-dealer", "idle-router", "idle-pull",
                                        "idle-push", "idle-xpub",   "idle-xsub",   "idle-stream"};
    for (int type = ZMQ_PAIR; type <= ZMQ_STREAM; type++)
        make(world, type, names[type]);
}

static void pipelines(struct world *world)
{
    static const char *const names[][2] = {{"pull-tcp", "push-tcp"},
                                           {"pull-ipc", "push-ipc"},
                                           {"pull-inproc", "push-inproc"}};
    const char *endpoints[] = {"tcp://127.0.0.1:*", in_folder("pipeline"), "inproc://pipeline"};
    for (int i = 0; i < 3; i++) {
        struct specimen *pull = make(world, ZMQ_PULL, names[i][0]);
        struct specimen *push = make(world, ZMQ_PUSH, names[i][1]);
        set_int(pull, ZMQ_RCVHWM, 20 + i);
        set_int(push, ZMQ_SNDHWM, 30 + i);
        link_up(push, pull, listen_at(pull, endpoints[i]));
        leave_sizes(push, pull);
        leave_multipart(push, pull);
        if (is_inproc(endpoints[i]))
            leave_own_memory(push, pull);
        else if (i == 1)
            keep_monitor(push, "push-ipc-events");
    }
}

// No call is made on the bound socket after the bind: libzmq has not yet told it of its connection.
static void untouched_pull(struct world *world)
{
    struct specimen *pull = make(world, ZMQ_PULL, "pull-untouched");
    struct specimen *push = make(world, ZMQ_PUSH, "push-to-untouched");
    join(push, pull, listen_at(pull, "tcp://127.0.0.1:*"));
    leave(push, pull, 10, 0);
    leave(push, pull, 100, 0);
}

// One socket with several endpoints, three connections to the first of them, known identities.
static void router_and_dealers(struct world *world)
{
    struct specimen *router = make(world, ZMQ_ROUTER, "router");
    set_bytes(router, ZMQ_ROUTING_ID, "the-router", 10);
    listen_at(router, "tcp://127.0.0.1:*");
    listen_at(router, in_folder("router"));
    listen_at(router, "inproc://router");
    static const struct {
        const char *name;
        int endpoint;
        struct text id;
    } dealers[] = {{"dealer-named", 0, {"dealer-1", 8}},
                   {"dealer-binary", 0, {"\x80\xff\x01 \"\\", 6}},
                   {"dealer-anonymous", 0, {"", 0}},
                   {"dealer-ipc", 1, {"dealer-4", 8}},
                   {"dealer-inproc", 2, {"dealer-5", 8}}};
    enum { DEALERS = sizeof dealers / sizeof *dealers };
    struct specimen *made[DEALERS];
    for (int i = 0; i < DEALERS; i++) {
        made[i] = make(world, ZMQ_DEALER, dealers[i].name);
        if (dealers[i].id.size)
            set_bytes(made[i], ZMQ_ROUTING_ID, dealers[i].id.data, dealers[i].id.size);
        link_up(made[i], router, &router->endpoints[dealers[i].endpoint]);
    }
    for (int i = 0; i < DEALERS; i++) { // of all but the anonymous one: a request, two replies
        if (!dealers[i].id.size)
            continue;
        leave(made[i], router, 50, 0);
        for (int reply = 0; reply < 2; reply++) {
            say(router, dealers[i].id.data, dealers[i].id.size, ZMQ_SNDMORE);
            leave(router, made[i], 60 + reply, 0);
        }
    }
}

static void requests(struct world *world)
{
    struct specimen *rep = make(world, ZMQ_REP, "rep");
    struct specimen *answered = make(world, ZMQ_REQ, "req-answered");
    struct specimen *waiting = make(world, ZMQ_REQ, "req-waiting");
    set_bytes(answered, ZMQ_ROUTING_ID, "req-1", 5);
    const struct endpoint *endpoint = listen_at(rep, "tcp://127.0.0.1:*");
    link_up(answered, rep, endpoint);
    link_up(waiting, rep, endpoint);
    leave(waiting, rep, 40, 0);
    keep_monitor(rep, "rep-events");
}

// All shapes that a set of topics has: nested ones, bytes that are no text, one subscribed to twice
// and given up once, one given up.
static void subscribe_to_shapes(struct specimen *sub)
{
    subscribe(sub, "abc", 3);
    subscribe(sub, "a", 1);
    subscribe(sub, "ab", 2);
    subscribe(sub, "\0\1\xff", 3);
    subscribe(sub, "twice", 5);
    set_bytes(sub, ZMQ_SUBSCRIBE, "twice", 5);
    set_bytes(sub, ZMQ_UNSUBSCRIBE, "twice", 5);
    set_bytes(sub, ZMQ_SUBSCRIBE, "gone", 4);
    set_bytes(sub, ZMQ_UNSUBSCRIBE, "gone", 4);
}

static void feeds(struct world *world)
{
    struct specimen *pub = make(world, ZMQ_PUB, "pub"), *pub_ipc = make(world, ZMQ_PUB, "pub-ipc");
    const struct endpoint *tcp = listen_at(pub, "tcp://127.0.0.1:*");
    const struct endpoint *ipc = listen_at(pub_ipc, in_folder("feed"));

    struct specimen *shapes = make(world, ZMQ_SUB, "sub-shapes");
    subscribe_to_shapes(shapes);
    link_up(shapes, pub, tcp);

    struct specimen *many = make(world, ZMQ_SUB, "sub-300");
    char topic[32];
    for (int i = 0; i < MANY_TOPICS; i++)
        subscribe(many, topic, snprintf(topic, sizeof topic, "topic.%d.", i * i));
    link_up(many, pub_ipc, ipc);

    struct specimen *two = make(world, ZMQ_SUB, "sub-two-feeds");
    link_up(two, pub, tcp);
    link_up(two, pub_ipc, ipc);

    struct specimen *unread = make(world, ZMQ_SUB, "sub-unread");
    subscribe(unread, "zz", 2);
    link_up(unread, pub, tcp);
    leave(pub, unread, 25, 0); // 25 letters z
    leave(pub, unread, 25 + 26, 0);

    struct specimen *pub_all = make(world, ZMQ_PUB, "pub-inproc");
    struct specimen *all = make(world, ZMQ_SUB, "sub-all");
    subscribe(all, "", 0);
    link_up(all, pub_all, listen_at(pub_all, "inproc://feed"));
    leave(pub_all, all, 30, 0);
    leave(pub_all, all, 300, 0);

    struct specimen *xpub = make(world, ZMQ_XPUB, "xpub"), *xsub = make(world, ZMQ_XSUB, "xsub");
    link_up(xsub, xpub, listen_at(xpub, "tcp://127.0.0.1:*"));
}

static void pair_with_both_queues(struct world *world)
{
    struct specimen *left = make(world, ZMQ_PAIR, "pair-left");
    struct specimen *right = make(world, ZMQ_PAIR, "pair-right");
    link_up(left, right, listen_at(right, "inproc://pair"));
    for (int i = 0; i < 3; i++)
        leave(left, right, 20 * i, 0);
    leave(right, left, 77, 0);
}

// A STREAM names each new peer in a message without content.
static void hear_of_connection(struct specimen *stream)
{
    hear_identity(stream);
    hear(stream, "", 0);
}

static void streams(struct world *world)
{
    struct specimen *server = make(world, ZMQ_STREAM, "stream-bind");
    const struct endpoint *at = listen_at(server, "tcp://127.0.0.1:*");
    raw_connected(at->name);
    add_connection(server, at, await_event(server, ZMQ_EVENT_ACCEPTED), READY);
    hear_of_connection(server);

    struct specimen *client = make(world, ZMQ_STREAM, "stream-connect");
    char endpoint[64];
    raw_bound(1, endpoint);
    struct endpoint *to = begin_connect(client, endpoint);
    to->fd = await_event(client, ZMQ_EVENT_CONNECTED);
    add_connection(client, to, to->fd, READY);
    hear_of_connection(client);
}

static void many_endpoints(struct world *world)
{
    char abstract[64];
    snprintf(abstract, sizeof abstract, "ipc://@zmqtrace-zoo-%d", getpid());
    const char *endpoints[] = {"tcp://127.0.0.1:*", in_folder("many"), abstract, "inproc://many"};
    static const char *const names[] = {"push-many-tcp", "push-many-ipc", "push-many-abstract",
                                        "push-many-inproc"};
    struct specimen *pull = make(world, ZMQ_PULL, "pull-many");
    for (int i = 0; i < 4; i++)
        link_up(make(world, ZMQ_PUSH, names[i]), pull, listen_at(pull, endpoints[i]));
    // The same socket connects, too.
    struct specimen *push = make(world, ZMQ_PUSH, "push-bound");
    link_up(pull, push, listen_at(push, "tcp://127.0.0.1:*"));
}

static void conflating_pair(struct world *world)
{
    struct specimen *pull = make(world, ZMQ_PULL, "pull-conflate");
    struct specimen *push = make(world, ZMQ_PUSH, "push-conflate");
    set_int(pull, ZMQ_CONFLATE, 1);
    set_int(push, ZMQ_CONFLATE, 1);
    link_up(push, pull, listen_at(pull, "tcp://127.0.0.1:*"));
    // Their queues count what they have dropped.
    pull->rx_queue = push->tx_queue = pull->bytes_held = push->bytes_held = UNKNOWN;
}

// Connections that do not come to be ready.

// A port that refuses; the next attempt is an hour away.
static void refused(struct world *world)
{
    struct specimen *push = make(world, ZMQ_PUSH, "push-refused");
    set_int(push, ZMQ_RECONNECT_IVL, HOUR_MS);
    char endpoint[64];
    raw_bound(UNKNOWN, endpoint);
    struct endpoint *to = begin_connect(push, endpoint);
    await_event(push, ZMQ_EVENT_CONNECT_RETRIED);
    add_connection(push, to, UNKNOWN, WAITING);
    leave_sizes(push, NULL);
    leave_multipart(push, NULL);
}

// Of all our tcp sockets the one whose connect(2) is under way.
static int connecting_fd(void)
{
    DIR *fds = opendir("/proc/self/fd");
    check(fds);
    int found = UNKNOWN;
    for (struct dirent *entry; (entry = readdir(fds));) {
        struct tcp_info info;
        socklen_t size = sizeof info;
        int fd = atoi(entry->d_name);
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
            info.tcpi_state == TCP_SYN_SENT)
            found = fd;
    }
    closedir(fds);
    return found;
}

// A listener whose queue is full, so that the kernel drops what asks for more.
static void connecting(struct world *world)
{
    struct specimen *req = make(world, ZMQ_REQ, "req-connecting");
    set_int(req, ZMQ_RECONNECT_IVL, HOUR_MS);
    char endpoint[64];
    raw_bound(0, endpoint);
    raw_connected(endpoint); // a backlog of 0 has room for one
    struct endpoint *to = begin_connect(req, endpoint);
    await_event(req, ZMQ_EVENT_CONNECT_DELAYED);
    to->fd = connecting_fd();
    add_connection(req, to, to->fd, CONNECTING);
    int attempts = 127; // instead of giving up after two minutes
    check(setsockopt(to->fd, IPPROTO_TCP, TCP_SYNCNT, &attempts, sizeof attempts) == 0);
}

// Peers that accept or connect and never say a word.
static void silent_peers(struct world *world)
{
    struct specimen *dealer = make(world, ZMQ_DEALER, "dealer-silent-peer");
    set_int(dealer, ZMQ_HANDSHAKE_IVL, 0); // for ever
    char endpoint[64];
    raw_bound(1, endpoint);
    struct endpoint *to = begin_connect(dealer, endpoint);
    to->fd = await_event(dealer, ZMQ_EVENT_CONNECTED);
    add_connection(dealer, to, to->fd, HANDSHAKE);

    struct specimen *router = make(world, ZMQ_ROUTER, "router-silent-peer");
    set_int(router, ZMQ_HANDSHAKE_IVL, 0);
    const struct endpoint *at = listen_at(router, "tcp://127.0.0.1:*");
    raw_connected(at->name);
    add_connection(router, at, await_event(router, ZMQ_EVENT_ACCEPTED), HANDSHAKE);
}

static void pending(struct world *world)
{
    struct specimen *push = make(world, ZMQ_PUSH, "push-pending");
    add_connection(push, begin_connect(push, PENDING_ENDPOINT), UNKNOWN, PENDING);
    for (int i = 0; i < 3; i++)
        leave(push, NULL, 10 + 30 * i, 0);
}

// Tries again and again, ten times a second: nothing can be said of its fd or state.
static void retrying(struct world *world)
{
    struct specimen *dealer = make(world, ZMQ_DEALER, "dealer-retrying");
    char endpoint[64];
    raw_bound(UNKNOWN, endpoint);
    check(zmq_connect(dealer->socket, endpoint) == 0);
    add_connection(dealer, add_endpoint(dealer, endpoint, CONNECT), UNKNOWN, NULL);
}

// Options. The n-th set of values differs from the default and from the others everywhere.

static void tune(struct specimen *specimen, int n)
{
    set_int(specimen, ZMQ_SNDHWM, 100 + n);
    set_int(specimen, ZMQ_RCVHWM, 200 + n);
    set_int(specimen, ZMQ_LINGER, 300 + n);
    set_int(specimen, ZMQ_SNDTIMEO, 60400 + n);
    set_int(specimen, ZMQ_RCVTIMEO, 60500 + n);
    set_int(specimen, ZMQ_RECONNECT_IVL, 600 + n);
    set_int(specimen, ZMQ_RECONNECT_IVL_MAX, 700 + n);
    set_int(specimen, ZMQ_IMMEDIATE, n % 2);
    set_int(specimen, ZMQ_IPV6, n % 2);
    set_int(specimen, ZMQ_TCP_KEEPALIVE, n % 2);
    set_int(specimen, ZMQ_TCP_KEEPALIVE_CNT, 10 + n);
    set_int(specimen, ZMQ_TCP_KEEPALIVE_IDLE, 800 + n);
    set_int(specimen, ZMQ_TCP_KEEPALIVE_INTVL, 900 + n);
    try_int(specimen, ZMQ_HEARTBEAT_IVL, HOUR_MS + n);
    try_int(specimen, ZMQ_HEARTBEAT_TIMEOUT, HOUR_MS + 100 + n);
    set_int(specimen, ZMQ_HANDSHAKE_IVL, 40000 + n);
    try_int(specimen, ZMQ_CONNECT_TIMEOUT, 5000 + n);
    set_int(specimen, ZMQ_BACKLOG, 50 + n);
    set_int(specimen, ZMQ_SNDBUF, 60000 + n);
    set_int(specimen, ZMQ_RCVBUF, 70000 + n);
    set_int(specimen, ZMQ_TOS, 8 * n);
    int64_t maxmsgsize = INT64_C(5000000000) + n;
    set_bytes(specimen, ZMQ_MAXMSGSIZE, &maxmsgsize, sizeof maxmsgsize);
    uint64_t affinity = n % 4; // of two I/O threads
    set_bytes(specimen, ZMQ_AFFINITY, &affinity, sizeof affinity);
}

static void tuned_sockets(struct world *world)
{
    struct specimen *pull = make(world, ZMQ_PULL, "tuned-pull");
    struct specimen *push = make(world, ZMQ_PUSH, "tuned-push");
    struct specimen *req = make(world, ZMQ_REQ, "tuned-idle-req");
    struct specimen *sub = make(world, ZMQ_SUB, "tuned-idle-sub");
    tune(pull, 1), tune(push, 2), tune(req, 3), tune(sub, 4);
    set_bytes(req, ZMQ_ROUTING_ID, "a routing id of more than fifteen bytes", 39);
    set_int(sub, ZMQ_CONFLATE, 1);
    link_up(push, pull, listen_at(pull, "tcp://127.0.0.1:*"));
    leave(push, pull, 64, 0);
}

static void over_ipv6(struct world *world)
{
    struct specimen *pull = make(world, ZMQ_PULL, "pull-ipv6");
    struct specimen *push = make(world, ZMQ_PUSH, "push-ipv6");
    set_int(pull, ZMQ_IPV6, 1);
    set_int(push, ZMQ_IPV6, 1);
    link_up(push, pull, listen_at(pull, "tcp://[::1]:*"));
    leave(push, pull, 16, 0);
}

static void between_contexts(struct world *from, struct world *to)
{
    struct specimen *pull = make(to, ZMQ_PULL, "pull-cross");
    struct specimen *push = make(from, ZMQ_PUSH, "push-cross");
    link_up(push, pull, listen_at(pull, "tcp://127.0.0.1:*"));
    leave(push, pull, 99, 0);
}

// Security.

// Lets one client in.
static void answer_zap(struct specimen *zap)
{
    char id[256], other[256];
    int id_size = 0, more = 1;
    size_t size = sizeof more;
    for (int part = 0; more; part++) {
        int bytes = zmq_recv(zap->socket, part == 1 ? id : other, sizeof id, 0);
        check(bytes >= 0);
        id_size = part == 1 ? bytes : id_size;
        check(zmq_getsockopt(zap->socket, ZMQ_RCVMORE, &more, &size) == 0);
    }
    say(zap, "1.0", 3, ZMQ_SNDMORE);
    say(zap, id, id_size, ZMQ_SNDMORE);
    say(zap, "200", 3, ZMQ_SNDMORE);
    say(zap, "OK", 2, ZMQ_SNDMORE);
    say(zap, "", 0, ZMQ_SNDMORE); // user id
    say(zap, "", 0, 0);           // metadata
}

static void link_up_securely(struct specimen *client, struct specimen *server, struct specimen *zap)
{
    join(client, server, listen_at(server, "tcp://127.0.0.1:*"));
    answer_zap(zap);
    greet(client, server);
    leave(client, server, 80, 0);
}

static void plain(struct world *world, struct specimen *zap)
{
    struct specimen *server = make(world, ZMQ_PULL, "plain-server");
    struct specimen *client = make(world, ZMQ_PUSH, "plain-client");
    set_int(server, ZMQ_PLAIN_SERVER, 1);
    set_bytes(client, ZMQ_PLAIN_USERNAME, "zoo", 3);
    set_bytes(client, ZMQ_PLAIN_PASSWORD, "keeper", 6);
    link_up_securely(client, server, zap);
}

static void curve(struct world *world, struct specimen *zap)
{
    if (!zmq_has("curve"))
        return;
    char public[2][41], secret[2][41];
    for (int i = 0; i < 2; i++)
        check(zmq_curve_keypair(public[i], secret[i]) == 0);
    struct specimen *server = make(world, ZMQ_PULL, "curve-server");
    struct specimen *client = make(world, ZMQ_PUSH, "curve-client");
    set_int(server, ZMQ_CURVE_SERVER, 1);
    set_bytes(server, ZMQ_CURVE_SECRETKEY, secret[0], 41);
    set_bytes(client, ZMQ_CURVE_SERVERKEY, public[0], 41);
    set_bytes(client, ZMQ_CURVE_PUBLICKEY, public[1], 41);
    set_bytes(client, ZMQ_CURVE_SECRETKEY, secret[1], 41);
    link_up_securely(client, server, zap);
}

static void secure_sockets(struct world *world)
{
    struct specimen *zap = make(world, ZMQ_REP, "zap");
    listen_at(zap, "inproc://zeromq.zap.01");
    // Its peers are no sockets, but sessions of the servers.
    zap->connections_known = false;
    zap->tx_queue = zap->rx_queue = zap->bytes_held = UNKNOWN;
    plain(world, zap);
    curve(world, zap);
}

// A thread that waits for a message that nobody will send.

ON_THE_STACK static int wait_for_order(void *socket)
{
    char order[64];
    int size = zmq_recv(socket, order, sizeof order, 0);
    return size < 0 ? -errno : size;
}

ON_THE_STACK static void serve_customers(struct sleeper *self)
{
    check(wait_for_order(self->sockets[0]) == -ETERM); // when the zoo closes
}

static struct sleeper sleeper = {.thread = "customers",
                                 .call = "zmq_recv",
                                 .run = serve_customers,
                                 .functions = {"wait_for_order", "serve_customers"}};

// Sockets that come and go.

static struct {
    void *context;
    long limit; // sockets at once
    long cycles;
    bool running;
    _Atomic bool stop, under_way;
    pthread_t thread;
} churn;

struct couple {
    void *bound, *connected;
};

static void *short_lived(int type)
{
    void *socket = zmq_socket(churn.context, type);
    int none = 0;
    check(socket && zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none) == 0);
    check(type != ZMQ_SUB || zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0) == 0);
    return socket;
}

static struct couple new_couple(long n)
{
    static const int types[][2] = {
        {ZMQ_PULL, ZMQ_PUSH}, {ZMQ_PAIR, ZMQ_PAIR}, {ZMQ_ROUTER, ZMQ_DEALER}, {ZMQ_PUB, ZMQ_SUB}};
    char endpoints[3][64] = {"tcp://127.0.0.1:*"}, resolved[256];
    snprintf(endpoints[1], 64, "ipc://@zmqtrace-churn-%d-%ld", getpid(), n);
    snprintf(endpoints[2], 64, "inproc://churn-%ld", n);
    struct couple couple = {short_lived(types[n % 4][0]), short_lived(types[n % 4][1])};
    size_t size = sizeof resolved;
    check(zmq_bind(couple.bound, endpoints[n % 3]) == 0);
    check(zmq_getsockopt(couple.bound, ZMQ_LAST_ENDPOINT, resolved, &size) == 0);
    check(zmq_connect(couple.connected, resolved) == 0);
    char buffer[64];
    if (types[n % 4][1] != ZMQ_SUB) { // what reaches a subscriber in time is not known
        check(zmq_send(couple.connected, "churn", 5, 0) == 5);
        while (zmq_recv(couple.bound, buffer, sizeof buffer, 0) != 5) // perhaps an identity first
            ;
    }
    return couple;
}

// The oldest couple makes room for the next.
static void *make_and_close(void *unused)
{
    static struct couple couples[MAX_CHURN / 2];
    long room = churn.limit / 2, n = 0;
    for (; !churn.stop; n++) {
        struct couple *place = &couples[n % room];
        if (place->bound)
            check(zmq_close(place->bound) == 0 && zmq_close(place->connected) == 0);
        *place = new_couple(n);
        churn.under_way = n >= room;
    }
    churn.cycles = n;
    for (long i = 0; i < room && couples[i].bound; i++) {
        struct closed ends[] = {begin_close(couples[i].connected), begin_close(couples[i].bound)};
        await_closed(&ends[0]), await_closed(&ends[1]);
        couples[i] = (struct couple){0};
    }
    return unused;
}

static void start_churn(void)
{
    churn.stop = churn.under_way = false;
    churn.running = true;
    check(pthread_create(&churn.thread, NULL, make_and_close, NULL) == 0);
    while (!churn.under_way)
        sched_yield();
}

static void stop_churn(void)
{
    if (!churn.running)
        return;
    churn.stop = true;
    check(pthread_join(churn.thread, NULL) == 0);
    churn.running = false;
}

// The whole.

static void *new_context(int io_threads, int max_sockets)
{
    void *context = zmq_ctx_new();
    check(context && zmq_ctx_set(context, ZMQ_IO_THREADS, io_threads) == 0);
    check(zmq_ctx_set(context, ZMQ_MAX_SOCKETS, max_sockets) == 0);
    return context;
}

static struct world *plain_world(void)
{
    struct world *world = add_world(zmq_ctx_new());
    add_barriers(world);
    return world;
}

static struct world *tuned_world(bool ipv6)
{
    void *context = new_context(2, 500);
    check(zmq_ctx_set(context, ZMQ_IPV6, ipv6) == 0);
    // Both since 4.2.
    check(zmq_ctx_set(context, ZMQ_BLOCKY, false) == 0 || errno == EINVAL);
    check(zmq_ctx_set(context, ZMQ_MAX_MSGSZ, 1 << 20) == 0 || errno == EINVAL);
    struct world *world = add_world(context);
    add_barriers(world);
    return world;
}

static void set_up(void)
{
    check(mkdtemp(folder));
    add_foreign_fds();
    struct world *main_world = plain_world();
    bool ipv6 = ipv6_works();
    struct world *tuned = tuned_world(ipv6);
    struct world *secure = add_world(new_context(1, 100));
    add_barriers(secure);

    idle_sockets(main_world);
    pipelines(main_world);
    untouched_pull(main_world);
    router_and_dealers(main_world);
    requests(main_world);
    feeds(main_world);
    pair_with_both_queues(main_world);
    streams(main_world);
    many_endpoints(main_world);
    conflating_pair(main_world);
    refused(main_world);
    connecting(main_world);
    silent_peers(main_world);
    pending(main_world);
    tuned_sockets(tuned);
    if (ipv6)
        over_ipv6(tuned);
    between_contexts(tuned, main_world);
    secure_sockets(secure);

    settle();
    unwatch_all();
    sleeper.sockets[0] = make(main_world, ZMQ_PULL, "pull-orders")->socket;
    start_sleeper(&sleeper);
    retrying(main_world); // last: its new sockets could be taken for those that were just closed
    churn.context = main_world->context;
}

static void state(const char *kind)
{
    printf("{\"%s\":true,\"pid\":%d,\"churned\":%ld", kind, getpid(), churn.cycles);
    print_census();
    print_sleepers(&sleeper, 1);
    json_end();
}

static void obey(const char *word)
{
    stop_churn();
    if (strcmp(word, "truth") == 0)
        state("truth");
    else if (strcmp(word, "churn") == 0 || strcmp(word, "still") == 0) {
        if (word[0] == 'c')
            start_churn();
        printf("{\"%s\":true", word);
        json_end();
    } else
        die("unknown line \"%s\"", word);
}

// libzmq leaves the paths that ipc endpoints named.
static void remove_folder(void)
{
    DIR *entries = opendir(folder);
    check(entries);
    for (struct dirent *entry; (entry = readdir(entries));)
        check(entry->d_type == DT_DIR || unlinkat(dirfd(entries), entry->d_name, 0) == 0);
    closedir(entries);
    check(rmdir(folder) == 0);
}

// Up to 4.2 a context cannot be shut down while a connect waits for its bind (it ends in a crash).
static void bind_pending(void)
{
    void *pull = zmq_socket(zoo.worlds[0].context, ZMQ_PULL);
    check(pull && zmq_bind(pull, PENDING_ENDPOINT) == 0 && zmq_close(pull) == 0);
}

static void tear_down(void)
{
    bind_pending();
    int none = 0;
    for (size_t s = 0; s < zoo.specimen_count; s++) // what is queued need not leave
        if (zoo.specimens[s].tx_queue != 0)
            check(zmq_setsockopt(zoo.specimens[s].socket, ZMQ_LINGER, &none, sizeof none) == 0);
    for (size_t w = 0; w < zoo.world_count; w++)
        check(zmq_ctx_shutdown(zoo.worlds[w].context) == 0);
    check(pthread_join(sleeper.id, NULL) == 0);
    for (size_t s = 0; s < zoo.specimen_count; s++)
        check(zmq_close(zoo.specimens[s].socket) == 0);
    for (size_t w = 0; w < zoo.world_count; w++)
        check(zmq_ctx_term(zoo.worlds[w].context) == 0);
    remove_folder();
}

int main(int argc, char **argv)
{
    bool version = false;
    parse_options(argc, argv,
                  (const struct option_spec[]){
                      {"version", FLAG, &version}, {"churn", INTEGER, &churn.limit}, {0}});
    if (churn.limit < 0 || churn.limit > MAX_CHURN || churn.limit == 1)
        die("--churn is 2 to %d", MAX_CHURN);
    if (version) {
        int major, minor, patch;
        zmq_version(&major, &minor, &patch);
        printf("%d.%d.%d\n", major, minor, patch);
        return 0;
    }
    bool churns_at_once = churn.limit > 0;
    if (!churns_at_once)
        churn.limit = DEFAULT_CHURN;

    set_up();
    if (churns_at_once)
        start_churn();
    state("ready");
    char line[64];
    while (read_line(line, sizeof line))
        obey(line);
    stop_churn();
    tear_down();
    return 0;
}
