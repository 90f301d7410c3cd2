// One thread pushes, one pulls, as fast as they can (or --rate messages a second), through one
// PUSH/PULL connection inside the process: for lost events, batching and the tracer's cost.
#include "sockets.h"
#include "truth.h"

static double seconds = 0;
static long count = 0, size = 64, rate = 0;
static bool phases = false;

// A phase runs between two barriers, which the main thread shares with both workers.
static pthread_barrier_t started, finished;
static bool stopping;

// Known to the puller before the last message is, so no message has to mark the end.
static _Atomic uint64_t last_message;

struct worker {
    void *socket;
    void (*job)(struct worker *, char *buffer);
    struct totals totals;
    pthread_t thread;
    pid_t tid;
};

static void push_all(struct worker *worker, char *message)
{
    int64_t start_ns = now_ns(), end_ns = start_ns + (int64_t)(seconds * 1e9);
    uint64_t sent = 0;
    for (bool last = false; !last;) {
        if (rate)
            sleep_until_ns(start_ns + (int64_t)(sent * 1e9 / rate));
        sent++;
        // The clock is looked at rarely when messages are not paced: it would cost as much as a send.
        last = count ? sent == (uint64_t)count : (rate || sent % 64 == 0) && now_ns() >= end_ns;
        if (last)
            last_message = sent;
        counted(&worker->totals, zmq_send(worker->socket, message, size, 0));
    }
}

static void pull_all(struct worker *worker, char *buffer)
{
    while (worker->totals.count != last_message)
        counted(&worker->totals, zmq_recv(worker->socket, buffer, size, 0));
}

static void *run(void *argument)
{
    struct worker *worker = argument;
    char *buffer = calloc(1, size + 1);
    check(buffer);
    worker->tid = gettid();
    pthread_barrier_wait(&finished); // the thread ids are known
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

int main(int argc, char **argv)
{
    const char *transport = "tcp";
    parse_options(argc, argv,
                  (const struct option_spec[]){{"seconds", REAL, &seconds},
                                               {"count", INTEGER, &count},
                                               {"size", INTEGER, &size},
                                               {"transport", TEXT, &transport},
                                               {"rate", INTEGER, &rate},
                                               {"phases", FLAG, &phases},
                                               {0}});
    if ((seconds > 0) == (count > 0) || size < 0 || rate < 0)
        die("give either --seconds or --count, and no negative number");

    void *context = zmq_ctx_new();
    check(context);
    struct worker pusher = {.socket = zmq_socket(context, ZMQ_PUSH), .job = push_all};
    struct worker puller = {.socket = zmq_socket(context, ZMQ_PULL), .job = pull_all};
    check(pusher.socket && puller.socket);
    char endpoint[256];
    bind_resolved(puller.socket, wildcard_endpoint(transport), endpoint);
    connect_fully(context, pusher.socket, endpoint);

    pthread_barrier_init(&started, NULL, 3);
    pthread_barrier_init(&finished, NULL, 3);
    check(pthread_create(&pusher.thread, NULL, run, &pusher) == 0);
    check(pthread_create(&puller.thread, NULL, run, &puller) == 0);
    pthread_barrier_wait(&finished);
    ready("\"endpoint\":\"%s\",\"push\":{\"handle\":\"%p\",\"tid\":%d},"
          "\"pull\":{\"handle\":\"%p\",\"tid\":%d}",
          endpoint, pusher.socket, pusher.tid, puller.socket, puller.tid);

    await_line("go");
    do {
        pusher.totals = new_totals("zmq_send", pusher.socket);
        puller.totals = new_totals("zmq_recv", puller.socket);
        last_message = UINT64_MAX;
        int64_t start_ns = now_ns();
        pthread_barrier_wait(&started);
        pthread_barrier_wait(&finished);
        double took = (now_ns() - start_ns) / 1e9;
        done_begin();
        print_totals((struct totals[]){pusher.totals, puller.totals}, 2);
        printf(",\"seconds\":%.6f,\"msgs_per_s\":%.0f", took, puller.totals.count / took);
        json_end();
    } while (another_phase(phases));

    stopping = true;
    pthread_barrier_wait(&started);
    check(pthread_join(pusher.thread, NULL) == 0 && pthread_join(puller.thread, NULL) == 0);
    check(zmq_close(pusher.socket) == 0 && zmq_close(puller.socket) == 0);
    check(zmq_ctx_term(context) == 0);
    return 0;
}
