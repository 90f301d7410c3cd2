// Round trips between a REQ and a REP socket, each in its own thread: both in one process, or client
// and server as two processes. --threads-idle adds threads that block in zmq_recv for ever, as a
// large program has them when a tracer attaches.
#include "sockets.h"
#include "truth.h"

static long count = 1000, size = 64, idle_threads = 0;

// A phase runs between two barriers, which the main thread shares with the workers.
static pthread_barrier_t started, finished;
static bool stopping;

struct worker {
    void *socket; // NULL: this process does not have the role
    void (*job)(struct worker *, char *buffer);
    struct totals sent, received;
    int64_t *round_trips_ns; // of the client
    pthread_t thread;
    pid_t tid;
};

static void ask(struct worker *worker, char *buffer)
{
    for (long i = 0; i < count; i++) {
        int64_t start_ns = now_ns();
        counted(&worker->sent, zmq_send(worker->socket, buffer, size, 0));
        counted(&worker->received, zmq_recv(worker->socket, buffer, size, 0));
        worker->round_trips_ns[i] = now_ns() - start_ns;
    }
}

static void answer(struct worker *worker, char *buffer)
{
    for (long i = 0; i < count; i++) {
        counted(&worker->received, zmq_recv(worker->socket, buffer, size, 0));
        counted(&worker->sent, zmq_send(worker->socket, buffer, size, 0));
    }
}

static void *run(void *argument)
{
    struct worker *worker = argument;
    char *buffer = calloc(1, size + 1);
    check(buffer);
    worker->tid = gettid();
    pthread_barrier_wait(&finished); // the thread id is known
    for (;;) {
        pthread_barrier_wait(&started);
        if (stopping)
            break;
        worker->job(worker, buffer);
        pthread_barrier_wait(&finished);
    }
    free(buffer);
    return NULL;
}

static void start(struct worker *worker)
{
    if (worker->socket)
        check(pthread_create(&worker->thread, NULL, run, worker) == 0);
}

static void stop(struct worker *worker)
{
    if (!worker->socket)
        return;
    check(pthread_join(worker->thread, NULL) == 0);
    check(zmq_close(worker->socket) == 0);
    free(worker->round_trips_ns);
}

struct idler {
    void *socket;
    pthread_t thread;
    _Atomic pid_t tid;
};

static void *idle(void *argument)
{
    struct idler *idler = argument;
    idler->tid = gettid();
    fails(zmq_recv(idler->socket, NULL, 0, 0), ETERM);
    check(zmq_close(idler->socket) == 0);
    return NULL;
}

// Returns when all of them are blocked.
static struct idler *start_idlers(void *context)
{
    struct idler *idlers = calloc(idle_threads + 1, sizeof *idlers);
    check(idlers);
    for (long i = 0; i < idle_threads; i++) {
        check((idlers[i].socket = zmq_socket(context, ZMQ_PAIR)) != NULL);
        check(pthread_create(&idlers[i].thread, NULL, idle, &idlers[i]) == 0);
        while (!idlers[i].tid)
            sched_yield();
        await_asleep(idlers[i].tid);
    }
    return idlers;
}

static int by_size(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void print_round_trips(int64_t *ns)
{
    double sum = 0;
    for (long i = 0; i < count; i++)
        sum += ns[i];
    qsort(ns, count, sizeof *ns, by_size);
    printf(",\"round_trip_ns\":{\"min\":%ld,\"median\":%ld,\"mean\":%.0f}", ns[0], ns[count / 2],
           sum / count);
}

static void reset(struct worker *worker)
{
    worker->sent = new_totals("zmq_send", worker->socket);
    worker->received = new_totals("zmq_recv", worker->socket);
}

static void print_truth(struct worker *client, struct worker *server)
{
    struct totals totals[] = {client->sent, client->received, server->sent, server->received};
    done_begin();
    if (client->socket && server->socket)
        print_totals(totals, 4);
    else
        print_totals(client->socket ? totals : totals + 2, 2);
    if (client->socket)
        print_round_trips(client->round_trips_ns);
    json_end();
}

static void print_role(const char *role, const struct worker *worker)
{
    if (worker->socket)
        printf(",\"%s\":{\"handle\":\"%p\",\"tid\":%d}", role, worker->socket, worker->tid);
}

int main(int argc, char **argv)
{
    const char *role = "both", *endpoint = "tcp://127.0.0.1:*";
    bool phases = false;
    parse_options(argc, argv,
                  (const struct option_spec[]){{"role", TEXT, &role},
                                               {"endpoint", TEXT, &endpoint},
                                               {"count", INTEGER, &count},
                                               {"size", INTEGER, &size},
                                               {"threads-idle", INTEGER, &idle_threads},
                                               {"phases", FLAG, &phases},
                                               {0}});
    bool both = strcmp(role, "both") == 0;
    bool with_client = both || strcmp(role, "client") == 0;
    bool with_server = both || strcmp(role, "server") == 0;
    if ((!with_client && !with_server) || count <= 0 || size < 0 || idle_threads < 0)
        die("--role is both, client or server; --count is positive");

    void *context = zmq_ctx_new();
    check(context);
    struct worker client = {.job = ask}, server = {.job = answer};
    char resolved[256];
    snprintf(resolved, sizeof resolved, "%s", endpoint);
    if (with_server) {
        check((server.socket = zmq_socket(context, ZMQ_REP)) != NULL);
        bind_resolved(server.socket, endpoint, resolved);
    }
    if (with_client) {
        check((client.socket = zmq_socket(context, ZMQ_REQ)) != NULL);
        connect_fully(context, client.socket, resolved);
        check((client.round_trips_ns = calloc(count, sizeof(int64_t))) != NULL);
    }
    struct idler *idlers = start_idlers(context);

    int parties = 1 + with_client + with_server;
    pthread_barrier_init(&started, NULL, parties);
    pthread_barrier_init(&finished, NULL, parties);
    start(&client);
    start(&server);
    pthread_barrier_wait(&finished);
    printf("{\"ready\":true,\"pid\":%d,\"endpoint\":\"%s\"", getpid(), resolved);
    print_role("client", &client);
    print_role("server", &server);
    json_end();

    await_line("go");
    do {
        reset(&client);
        reset(&server);
        pthread_barrier_wait(&started);
        pthread_barrier_wait(&finished);
        print_truth(&client, &server);
    } while (another_phase(phases));

    stopping = true;
    pthread_barrier_wait(&started);
    stop(&client);
    stop(&server);
    check(zmq_ctx_shutdown(context) == 0); // wakes the idle threads
    for (long i = 0; i < idle_threads; i++)
        check(pthread_join(idlers[i].thread, NULL) == 0);
    free(idlers);
    check(zmq_ctx_term(context) == 0);
    return 0;
}
