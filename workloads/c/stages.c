// Messages of which it is known when each was sent and received: for what is said of the stages between. Senders and
// receivers of one pattern, in one process, or each role as a process of its own that is told the other's endpoints.
#include "stages.h"

#include <pthread.h>

// Identities and all: more than anybody asks for.
enum { MOST_PARTS = 64, MOST_SOCKETS = 64 };

enum answers {
    NONE,
    EACH,     // before the next request
    WINDOW,   // with several requests under way
};

static const struct pattern {
    const char *name;
    int sends, receives;
    enum answers answers;
    int frontend, backend; // of a proxy
} patterns[] = {
    {"push", ZMQ_PUSH, ZMQ_PULL, NONE, ZMQ_PULL, ZMQ_PUSH},
    {"pub", ZMQ_PUB, ZMQ_SUB, NONE, ZMQ_XSUB, ZMQ_XPUB},
    {"xpub", ZMQ_XPUB, ZMQ_SUB, NONE, ZMQ_XSUB, ZMQ_XPUB},
    {"dealer", ZMQ_DEALER, ZMQ_ROUTER, WINDOW, ZMQ_ROUTER, ZMQ_DEALER},
    {"req", ZMQ_REQ, ZMQ_REP, EACH, ZMQ_ROUTER, ZMQ_DEALER},
    {"pair", ZMQ_PAIR, ZMQ_PAIR, NONE, ZMQ_PAIR, ZMQ_PAIR},
};

enum { REQUESTS_UNDER_WAY = 64 };

static const struct pattern *pattern;
static struct sizes sizes;
static long count = 1000, parts = 1, rate = 0, senders = 1, receivers = 1;
static long pause_ms = 0, reconnect_every = 0, hwm = -1, first_sender = 0;
static const char *identity;
static bool identical, curve, plain, sender_binds, until_told, late;
static void *context;

// What a stop line sets: the next message is the last.
static _Atomic bool told;

struct end {
    void *socket;
    pthread_t thread;
    int index;
    uint16_t sender; // which one of the senders it is
    uint64_t sent, received, sent_bytes, received_bytes;
};

static struct end ends[MOST_SOCKETS];
static int end_count;
static struct end *sending[MOST_SOCKETS], *receiving[MOST_SOCKETS];
static struct log sent_logs[MOST_SOCKETS], received_log;

static char endpoints[MOST_SOCKETS][256];
static int endpoint_count;

static pthread_barrier_t started;

// Sockets.

static char server_public[41], server_secret[41], client_public[41], client_secret[41];

static void use_curve(void *socket, bool is_server)
{
    int yes = 1;
    if (is_server) {
        check(zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof yes) == 0);
        check(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, server_secret, 40) == 0);
        return;
    }
    check(zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server_public, 40) == 0);
    check(zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, client_public, 40) == 0);
    check(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, client_secret, 40) == 0);
}

static void use_plain(void *socket, bool is_server)
{
    if (is_server)
        check(zmq_setsockopt(socket, ZMQ_PLAIN_SERVER, &(int){1}, sizeof(int)) == 0);
    else
        check(zmq_setsockopt(socket, ZMQ_PLAIN_USERNAME, "stages", 6) == 0
              && zmq_setsockopt(socket, ZMQ_PLAIN_PASSWORD, "secret", 6) == 0);
}

// Lets in whoever asks (RFC 27), until the context is shut down.
static void *let_in(void *zap)
{
    char id[256], other[256];
    int id_size = 0, more = 0;
    size_t size = sizeof more;
    for (int part = 0;; part = more ? part + 1 : 0) {
        int bytes = zmq_recv(zap, part == 1 ? id : other, sizeof id, 0);
        if (bytes == -1) {
            check(errno == ETERM && zmq_close(zap) == 0);
            return NULL;
        }
        id_size = part == 1 ? bytes : id_size;
        check(zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &size) == 0);
        if (!more)
            check(zmq_send(zap, "1.0", 3, ZMQ_SNDMORE) == 3 && zmq_send(zap, id, id_size, ZMQ_SNDMORE) == id_size
                  && zmq_send(zap, "200", 3, ZMQ_SNDMORE) == 3 && zmq_send(zap, "OK", 2, ZMQ_SNDMORE) == 2
                  && zmq_send(zap, "", 0, ZMQ_SNDMORE) == 0 && zmq_send(zap, "", 0, 0) == 0);
    }
}

static pthread_t start_letting_in(void)
{
    void *zap = zmq_socket(context, ZMQ_REP);
    pthread_t thread;
    check(zap && zmq_bind(zap, "inproc://zeromq.zap.01") == 0);
    check(pthread_create(&thread, NULL, let_in, zap) == 0);
    return thread;
}

static void *new_socket(int type, bool binds)
{
    void *socket = zmq_socket(context, type);
    check(socket);
    int mark = hwm;
    check(zmq_setsockopt(socket, ZMQ_SNDHWM, &mark, sizeof mark) == 0);
    check(zmq_setsockopt(socket, ZMQ_RCVHWM, &mark, sizeof mark) == 0);
    if (identity)
        check(zmq_setsockopt(socket, ZMQ_ROUTING_ID, identity, strlen(identity)) == 0);
    if (curve)
        use_curve(socket, binds);
    if (plain)
        use_plain(socket, binds);
    return socket;
}

static struct end *new_end(int type, bool binds)
{
    check(end_count < MOST_SOCKETS);
    struct end *end = &ends[end_count];
    *end = (struct end){.socket = new_socket(type, binds), .index = end_count};
    end_count++;
    return end;
}

static void bind_next(void *socket, const char *transport)
{
    char wildcard[64];
    snprintf(wildcard, sizeof wildcard, "%s", wildcard_endpoint(transport));
    if (strcmp(transport, "inproc") == 0)
        snprintf(wildcard, sizeof wildcard, "inproc://stages-%d", endpoint_count);
    bind_resolved(socket, wildcard, endpoints[endpoint_count++]);
}

static void connect_to_all(void *socket)
{
    for (int i = 0; i < endpoint_count; i++)
        connect_fully(context, socket, endpoints[i]);
}

static void parse_endpoints(const char *text)
{
    while (*text) {
        size_t length = strcspn(text, ",");
        check(length < sizeof endpoints[0] && endpoint_count < MOST_SOCKETS);
        memcpy(endpoints[endpoint_count++], text, length);
        text += length + (text[length] == ',');
    }
}

static bool publishes(void)
{
    return pattern->receives == ZMQ_SUB;
}

// The last of several subscribers wants every second message.
static void subscribe(struct end *end, int nth)
{
    bool half = receivers > 1 && nth == receivers - 1;
    check(zmq_setsockopt(end->socket, ZMQ_SUBSCRIBE, "b", half ? 1 : 0) == 0);
}

static char topic_of(uint32_t number)
{
    return publishes() ? number % 2 ? 'a' : 'b' : 'm';
}

static size_t expected(void)
{
    return publishes() ? (receivers > 1 ? (receivers - 1) * count + count / 2 : count) : senders * count;
}

// Nobody tells a PUB who has subscribed: so it sends until all have received, and then what ends that.
static void warm_up(void)
{
    for (int i = 0; i < receivers; i++)
        for (char byte = 0; zmq_recv(receiving[i]->socket, &byte, 1, ZMQ_DONTWAIT) == -1; sched_yield()) {
            check(errno == EAGAIN);
            check(zmq_send(sending[0]->socket, "b", 1, 0) == 1);
        }
    check(zmq_send(sending[0]->socket, "b end", 5, 0) == 5);
    for (int i = 0; i < receivers; i++)
        for (char bytes[5]; zmq_recv(receiving[i]->socket, bytes, sizeof bytes, 0) != 5;)
            ;
}

// A SUB that was bound subscribes when its program next looks at it.
static void await_subscriptions(void)
{
    char subscription[2];
    for (int heard = 0; heard < receivers; sched_yield()) {
        int events;
        size_t size = sizeof events;
        for (int i = 0; receiving[i]; i++)
            check(zmq_getsockopt(receiving[i]->socket, ZMQ_EVENTS, &events, &size) == 0);
        if (zmq_recv(sending[0]->socket, subscription, sizeof subscription, receiving[0] ? ZMQ_DONTWAIT : 0) >= 1)
            heard++;
        else
            check(errno == EAGAIN);
    }
}

// Messages.

struct message {
    zmq_msg_t parts[MOST_PARTS];
    int count;
    int payload; // index of the first part that the sender has sent
};

// False: the context was shut down.
static bool receive(struct end *end, struct log *log, struct message *message, bool *last)
{
    struct record record = {.socket = end->index, .direction = RECEIVED, .before_ns = now_ns()};
    message->count = 0;
    for (bool more = true; more; more = zmq_msg_more(&message->parts[message->count - 1])) {
        check(message->count < MOST_PARTS);
        zmq_msg_t *part = &message->parts[message->count];
        check(zmq_msg_init(part) == 0);
        if (zmq_msg_recv(part, end->socket, 0) == -1) {
            check(errno == ETERM);
            return false;
        }
        message->count++;
    }
    record.after_ns = now_ns();
    message->payload = pattern->receives == ZMQ_ROUTER && end == receiving[0];
    for (int i = message->payload; i < message->count; i++)
        record.size += zmq_msg_size(&message->parts[i]);
    record.parts = message->count - message->payload;
    zmq_msg_t *first = &message->parts[message->payload];
    if (!identical && zmq_msg_size(first) >= 8) {
        struct mark mark = read_mark(zmq_msg_data(first));
        record.number = mark.number;
        record.sender = mark.sender;
        *last |= mark.last;
    }
    log_message(log, record);
    end->received++;
    end->received_bytes += record.size;
    return true;
}

static void close_parts(struct message *message)
{
    for (int i = 0; i < message->count; i++)
        check(zmq_msg_close(&message->parts[i]) == 0);
}

// Sends a message back to where it came from.
static void answer(struct end *end, struct log *log, struct message *message)
{
    struct record *request = &log->records[log->count - 1];
    struct record record = *request;
    record.direction = SENT;
    record.before_ns = now_ns();
    for (int i = 0; i < message->count; i++)
        check(zmq_msg_send(&message->parts[i], end->socket, i < message->count - 1 ? ZMQ_SNDMORE : 0) >= 0);
    record.after_ns = now_ns();
    log_message(log, record);
    end->sent++;
    end->sent_bytes += record.size;
}

static void send_message(struct end *end, struct log *log, char *buffer, uint32_t number, bool last)
{
    struct record record = {.socket = end->index,
                            .direction = SENT,
                            .size = size_of(&sizes, number),
                            .number = number,
                            .sender = end->sender,
                            .parts = parts};
    if (!identical && size_of_part(record.size, parts, 0) >= 8)
        write_mark(buffer, (struct mark){number, end->sender, topic_of(number), last});
    record.before_ns = now_ns();
    for (long i = 0; i < parts; i++) {
        uint32_t size = size_of_part(record.size, parts, i);
        check(zmq_send(end->socket, buffer, size, i < parts - 1 ? ZMQ_SNDMORE : 0) == (int)size);
    }
    record.after_ns = now_ns();
    log_message(log, record);
    end->sent++;
    end->sent_bytes += record.size;
}

static void reconnect(struct end *end)
{
    for (int i = 0; i < endpoint_count; i++) {
        check(zmq_disconnect(end->socket, endpoints[i]) == 0);
        check(zmq_connect(end->socket, endpoints[i]) == 0);
    }
}

static void *send_all(void *argument)
{
    struct end *end = argument;
    struct log *log = &sent_logs[end->sender - first_sender];
    char *buffer = calloc(1, largest(&sizes) + 8);
    check(buffer);
    pthread_barrier_wait(&started);
    int64_t start_ns = now_ns();
    long under_way = 0, window = pattern->answers == WINDOW ? REQUESTS_UNDER_WAY : 1;
    struct message message;
    bool last = false, ignored = false;
    for (uint32_t number = 1; !last; number++) {
        if (rate)
            sleep_until_ns(start_ns + (int64_t)((number - 1) * 1e9 / rate));
        bool reconnects = reconnect_every && number > 1 && (number - 1) % reconnect_every == 0;
        if (reconnects && under_way == 0)
            reconnect(end);
        last = number == (uint32_t)count || told;
        // Where all are due the receiver counts: over several connections the last one may overtake others.
        send_message(end, log, buffer, number, last && number < (uint32_t)count);
        if (pattern->answers == NONE)
            continue;
        // None is under way when the connection goes.
        bool drains = last || (reconnect_every && number % reconnect_every == 0);
        for (under_way++; under_way == window || (drains && under_way); under_way--) {
            check(receive(end, log, &message, &ignored));
            close_parts(&message);
        }
    }
    free(buffer);
    return NULL;
}

// All receivers in one thread.
static void *receive_all(void *unused)
{
    zmq_pollitem_t items[MOST_SOCKETS] = {0};
    for (int i = 0; i < receivers; i++)
        items[i] = (zmq_pollitem_t){.socket = receiving[i]->socket, .events = ZMQ_POLLIN};
    pthread_barrier_wait(&started);
    struct message message;
    long finished = 0;
    for (size_t done = 0; done < expected() && finished < senders;) {
        if (receivers > 1 && zmq_poll(items, receivers, -1) == -1) {
            check(errno == ETERM);
            return unused;
        }
        for (int i = 0; i < receivers; i++) {
            if (receivers > 1 && !items[i].revents)
                continue;
            bool last = false;
            if (!receive(receiving[i], &received_log, &message, &last))
                return unused;
            if (pattern->answers != NONE)
                answer(receiving[i], &received_log, &message);
            close_parts(&message);
            // Where there are several receivers the last one is not everybody's.
            finished += last && receivers == 1 && !until_told;
            if (++done == expected() / 2 && pause_ms)
                sleep_until_ns(now_ns() + pause_ms * 1000000);
        }
    }
    return unused;
}

static void *frontend, *backend;

static void *forward(void *unused)
{
    check(zmq_proxy(frontend, backend, NULL) == -1 && errno == ETERM);
    check(zmq_close(frontend) == 0 && zmq_close(backend) == 0);
    return unused;
}

// From now on the endpoint is the proxy's.
static pthread_t start_proxy(const char *transport)
{
    backend = new_socket(pattern->backend, false);
    connect_to_all(backend);
    frontend = new_socket(pattern->frontend, true);
    endpoint_count = 0;
    if (strcmp(transport, "inproc") == 0) {
        snprintf(endpoints[0], sizeof endpoints[0], "inproc://proxy");
        check(zmq_bind(frontend, endpoints[endpoint_count++]) == 0);
    } else
        bind_next(frontend, transport);
    pthread_t thread;
    check(pthread_create(&thread, NULL, forward, NULL) == 0);
    return thread;
}

// What is said.

static const char *type_name(void *socket)
{
    static const char *const names[] = {"PAIR", "PUB",    "SUB",  "REQ",  "REP", "DEALER",
                                        "ROUTER", "PULL", "PUSH", "XPUB", "XSUB"};
    int type;
    size_t size = sizeof type;
    check(zmq_getsockopt(socket, ZMQ_TYPE, &type, &size) == 0);
    return names[type];
}

static void print_endpoints(void)
{
    printf(",\"endpoint\":\"");
    for (int i = 0; i < endpoint_count; i++)
        printf("%s%s", i ? "," : "", endpoints[i]);
    putchar('"');
}

static void print_ready(void)
{
    printf("{\"ready\":true,\"pid\":%d", getpid());
    print_endpoints();
    if (curve)
        printf(",\"server_key\":\"%s\"", server_public);
    if (frontend)
        printf(",\"proxy\":{\"frontend\":\"%p\",\"backend\":\"%p\"}", frontend, backend);
    printf(",\"sockets\":[");
    for (int i = 0; i < end_count; i++)
        printf("%s{\"handle\":\"%p\",\"type\":\"%s\"}", i ? "," : "", ends[i].socket, type_name(ends[i].socket));
    putchar(']');
    json_end();
}

static void print_done(const char *log_path)
{
    size_t records = received_log.count;
    for (int i = 0; i < MOST_SOCKETS; i++)
        records += sent_logs[i].count;
    if (log_path) {
        FILE *file = fopen(log_path, "w");
        check(file);
        for (int i = 0; i < MOST_SOCKETS; i++)
            write_log(file, &sent_logs[i]);
        write_log(file, &received_log);
        check(fclose(file) == 0);
    }
    done_begin();
    printf(",\"records\":%zu,\"sockets\":[", records);
    for (int i = 0; i < end_count; i++)
        printf("%s{\"handle\":\"%p\",\"sent\":%lu,\"sent_bytes\":%lu,\"received\":%lu,\"received_bytes\":%lu}",
               i ? "," : "", ends[i].socket, ends[i].sent, ends[i].sent_bytes, ends[i].received,
               ends[i].received_bytes);
    putchar(']');
    json_end();
}

int main(int argc, char **argv)
{
    const char *pattern_name = "push", *role = "both", *transport = "tcp", *endpoint = NULL, *size = "64";
    const char *log_path = NULL, *server_key = NULL;
    long io_threads = 1;
    bool with_proxy = false;
    parse_options(argc, argv,
                  (const struct option_spec[]){{"pattern", TEXT, &pattern_name},
                                               {"role", TEXT, &role},
                                               {"transport", TEXT, &transport},
                                               {"endpoint", TEXT, &endpoint},
                                               {"size", TEXT, &size},
                                               {"log", TEXT, &log_path},
                                               {"server-key", TEXT, &server_key},
                                               {"identity", TEXT, &identity},
                                               {"count", INTEGER, &count},
                                               {"parts", INTEGER, &parts},
                                               {"rate", INTEGER, &rate},
                                               {"senders", INTEGER, &senders},
                                               {"first-sender", INTEGER, &first_sender},
                                               {"receivers", INTEGER, &receivers},
                                               {"pause-receiver-ms", INTEGER, &pause_ms},
                                               {"reconnect-every", INTEGER, &reconnect_every},
                                               {"hwm", INTEGER, &hwm},
                                               {"io-threads", INTEGER, &io_threads},
                                               {"identical", FLAG, &identical},
                                               {"curve", FLAG, &curve},
                                               {"plain", FLAG, &plain},
                                               {"sender-binds", FLAG, &sender_binds},
                                               {"until-told", FLAG, &until_told},
                                               {"late", FLAG, &late},
                                               {"proxy", FLAG, &with_proxy},
                                               {0}});
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (strcmp(patterns[i].name, pattern_name) == 0)
            pattern = &patterns[i];
    sizes = parse_sizes(size);
    bool both = strcmp(role, "both") == 0, sends = both || strcmp(role, "sender") == 0;
    bool receives = both || strcmp(role, "receiver") == 0, is_proxy = strcmp(role, "proxy") == 0;
    if (!pattern || (!sends && !receives && !is_proxy))
        die("--pattern is push, pub, xpub, dealer, req or pair; --role both, sender, receiver or proxy");
    if (count <= 0 || parts <= 0 || parts >= MOST_PARTS || senders + receivers + 2 > MOST_SOCKETS)
        die("that many messages, parts or sockets it cannot have");
    bool awaits = is_proxy || (sends && !receives && !sender_binds) || (receives && !sends && sender_binds);
    if (awaits != (endpoint != NULL))
        die("--endpoint is for a process that connects");
    if (publishes() && (identical || senders != 1))
        die("subscribers tell messages of one publisher by their topics");
    if (strcmp(pattern_name, "pub") == 0 && !both)
        die("a PUB of its own does not know when its subscribers are there: take xpub");
    if (late && publishes())
        die("a publisher needs its subscribers before");
    if (pattern->sends == ZMQ_XPUB && (with_proxy || is_proxy))
        die("through a proxy an XPUB does not hear of each subscriber");
    if (hwm < 0) // what a ROUTER or PUB drops would not be missed by anybody
        hwm = pattern->receives == ZMQ_SUB || pattern->receives == ZMQ_ROUTER ? 0 : 1000;

    check((context = zmq_ctx_new()) != NULL);
    check(zmq_ctx_set(context, ZMQ_IO_THREADS, io_threads) == 0);
    if (curve) {
        check(zmq_curve_keypair(server_public, server_secret) == 0);
        check(zmq_curve_keypair(client_public, client_secret) == 0);
        if (server_key)
            snprintf(server_public, sizeof server_public, "%s", server_key);
    }
    pthread_t zap = 0;
    if (plain)
        zap = start_letting_in();
    if (endpoint)
        parse_endpoints(endpoint);

    for (int i = 0; sends && i < senders; i++) {
        int yes = 1;
        sending[i] = new_end(pattern->sends, sender_binds);
        sending[i]->sender = first_sender + i;
        if (pattern->sends == ZMQ_XPUB) // hears of the same topic from each
            check(zmq_setsockopt(sending[i]->socket, ZMQ_XPUB_VERBOSE, &yes, sizeof yes) == 0);
        sent_logs[i] = new_log(pattern->answers == NONE ? count : 2 * count);
    }
    for (int i = 0; receives && i < receivers; i++) {
        receiving[i] = new_end(pattern->receives, !sender_binds);
        if (publishes())
            subscribe(receiving[i], i);
    }
    if (receives)
        received_log = new_log(pattern->answers == NONE ? expected() : 2 * expected());

    struct end **binders = sender_binds ? sending : receiving, **connecters = sender_binds ? receiving : sending;
    for (int i = 0; binders[i]; i++)
        bind_next(binders[i]->socket, transport);
    pthread_t proxy = 0;
    if (is_proxy || with_proxy)
        proxy = start_proxy(transport);
    for (int i = 0; connecters[i] && !late; i++)
        connect_to_all(connecters[i]->socket);
    bool waits = pattern->sends == ZMQ_XPUB && sends;
    if (waits && both)
        await_subscriptions();
    if (pattern->sends == ZMQ_PUB)
        warm_up();

    pthread_t receiver;
    pthread_barrier_init(&started, NULL, 1 + receives + (sends ? senders : 0));
    for (int i = 0; sends && i < senders; i++)
        check(pthread_create(&sending[i]->thread, NULL, send_all, sending[i]) == 0);
    if (receives)
        check(pthread_create(&receiver, NULL, receive_all, NULL) == 0);
    print_ready();

    if (!is_proxy) {
        await_line("go");
        for (int i = 0; connecters[i] && late; i++)
            connect_to_all(connecters[i]->socket);
        if (waits && !both)
            await_subscriptions();
        pthread_barrier_wait(&started);
        if (until_told) {
            await_line("stop");
            told = true;
            if (!sends)
                check(zmq_ctx_shutdown(context) == 0);
        }
        for (int i = 0; sends && i < senders; i++)
            check(pthread_join(sending[i]->thread, NULL) == 0);
        if (receives)
            check(pthread_join(receiver, NULL) == 0);
        print_done(log_path);
    }
    await_eof();

    for (int i = 0; i < end_count; i++) {
        // What nobody takes any more may be left, where a peer was killed. After a shutdown it cannot be set.
        int linger = 0;
        check(zmq_setsockopt(ends[i].socket, ZMQ_LINGER, &linger, sizeof linger) == 0 || errno == ETERM);
    }
    check(zmq_ctx_shutdown(context) == 0);
    if (is_proxy || with_proxy)
        check(pthread_join(proxy, NULL) == 0);
    if (plain)
        check(pthread_join(zap, NULL) == 0);
    for (int i = 0; i < end_count; i++)
        check(zmq_close(ends[i].socket) == 0);
    check(zmq_ctx_term(context) == 0);
    return 0;
}
