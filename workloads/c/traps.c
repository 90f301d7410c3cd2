// What is easily misread from outside. `--case`:
//   restless     threads that wait now in zmq_recv on a PULL (`take`), now in zmq_poll on a SUB (`look`), 1 ms each
//   credentials  a PLAIN server whose ZAP handler names the user: libzmq counts that as a message; all were received
//   pointer      zmq_proxy called through a pointer: it has no frame, and nothing says its name
//   mark         a PUSH that would block with fewer messages in its queue than the high-water mark
#include "sockets.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 4, MESSAGES = 5, MARK = 10, TAKEN = 3 };

static void *context;
static atomic_bool ending;
static _Atomic pid_t waiting_tid;

static __attribute__((noinline)) int take(void *pull)
{
    char buffer[8];
    int size = zmq_recv(pull, buffer, sizeof buffer, 0);
    __asm__ volatile("" ::: "memory"); // no tail call
    return size;
}

static __attribute__((noinline)) int look(void *sub)
{
    zmq_pollitem_t item = {.socket = sub, .events = ZMQ_POLLIN};
    int ready = zmq_poll(&item, 1, 1);
    __asm__ volatile("" ::: "memory");
    return ready;
}

static void *alternate(void *unused)
{
    void *pull = zmq_socket(context, ZMQ_PULL), *sub = zmq_socket(context, ZMQ_SUB);
    int ms = 1;
    check(pull && sub && zmq_setsockopt(pull, ZMQ_RCVTIMEO, &ms, sizeof ms) == 0);
    while (!ending)
        check(take(pull) == -1 && errno == EAGAIN && look(sub) == 0);
    check(zmq_close(pull) == 0 && zmq_close(sub) == 0);
    return unused;
}

static void restless(void)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        check(pthread_create(&threads[i], NULL, alternate, NULL) == 0);
    ready(NULL);
    await_eof();
    ending = true;
    for (int i = 0; i < THREADS; i++)
        check(pthread_join(threads[i], NULL) == 0);
}

// One request of ZAP (rfc.zeromq.org/spec/27): version, request id and more; the answer names the user.
static void *authenticate(void *zap)
{
    char id[64], buffer[256];
    int id_size = 0, more = 1;
    size_t size = sizeof more;
    for (int part = 0; more; part++) {
        int part_size = zmq_recv(zap, part == 1 ? id : buffer, part == 1 ? sizeof id : sizeof buffer, 0);
        check(part_size >= 0 && zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &size) == 0);
        if (part == 1)
            id_size = part_size;
    }
    check(zmq_send(zap, "1.0", 3, ZMQ_SNDMORE) == 3 && zmq_send(zap, id, id_size, ZMQ_SNDMORE) == id_size);
    check(zmq_send(zap, "200", 3, ZMQ_SNDMORE) == 3 && zmq_send(zap, "OK", 2, ZMQ_SNDMORE) == 2);
    check(zmq_send(zap, "somebody", 8, ZMQ_SNDMORE) == 8 && zmq_send(zap, "", 0, 0) == 0);
    return NULL;
}

static void credentials(void)
{
    void *zap = zmq_socket(context, ZMQ_REP), *pull = zmq_socket(context, ZMQ_PULL), *push = zmq_socket(context, ZMQ_PUSH);
    check(zap && pull && push && zmq_bind(zap, "inproc://zeromq.zap.01") == 0);
    pthread_t handler;
    check(pthread_create(&handler, NULL, authenticate, zap) == 0);
    int yes = 1;
    check(zmq_setsockopt(pull, ZMQ_PLAIN_SERVER, &yes, sizeof yes) == 0);
    check(zmq_setsockopt(pull, ZMQ_ZAP_DOMAIN, "all", 3) == 0);
    check(zmq_setsockopt(push, ZMQ_PLAIN_USERNAME, "somebody", 8) == 0);
    check(zmq_setsockopt(push, ZMQ_PLAIN_PASSWORD, "secret", 6) == 0);
    char endpoint[256], buffer[8];
    bind_resolved(pull, "tcp://127.0.0.1:*", endpoint);
    check(zmq_connect(push, endpoint) == 0);
    for (int i = 0; i < MESSAGES; i++)
        check(zmq_send(push, "message", 7, 0) == 7 && zmq_recv(pull, buffer, sizeof buffer, 0) == 7);
    check(pthread_join(handler, NULL) == 0);
    ready("\"pull\":\"%p\"", pull);
    await_eof();
    check(zmq_close(zap) == 0 && zmq_close(pull) == 0 && zmq_close(push) == 0);
}

static int (*volatile by_pointer)(void *, void *, void *) = zmq_proxy;

static void *forward(void *unused)
{
    void *frontend = zmq_socket(context, ZMQ_PULL), *backend = zmq_socket(context, ZMQ_PUSH);
    check(frontend && backend && zmq_bind(frontend, "inproc://front") == 0 && zmq_bind(backend, "inproc://back") == 0);
    waiting_tid = gettid(); // from here on it sleeps only in the call
    check(by_pointer(frontend, backend, NULL) == -1 && errno == ETERM);
    check(zmq_close(frontend) == 0 && zmq_close(backend) == 0);
    return unused;
}

static void pointer(void)
{
    pthread_t proxy;
    check(pthread_create(&proxy, NULL, forward, NULL) == 0);
    while (!waiting_tid)
        sched_yield();
    await_asleep(waiting_tid);
    ready("\"tid\":%d", waiting_tid);
    await_eof();
    check(zmq_ctx_shutdown(context) == 0 && pthread_join(proxy, NULL) == 0);
}

static void mark(void)
{
    void *pull = zmq_socket(context, ZMQ_PULL), *push = zmq_socket(context, ZMQ_PUSH);
    int hwm = MARK;
    check(pull && push && zmq_setsockopt(push, ZMQ_SNDHWM, &hwm, sizeof hwm) == 0);
    check(zmq_setsockopt(pull, ZMQ_RCVHWM, &hwm, sizeof hwm) == 0);
    check(zmq_bind(pull, "inproc://mark") == 0 && zmq_connect(push, "inproc://mark") == 0);
    while (zmq_send(push, "message", 7, ZMQ_DONTWAIT) == 7)
        ;
    check(errno == EAGAIN);
    char buffer[8];
    for (int i = 0; i < TAKEN; i++) // too few to be confirmed
        check(zmq_recv(pull, buffer, sizeof buffer, 0) == 7);
    check(zmq_send(push, "message", 7, ZMQ_DONTWAIT) == -1 && errno == EAGAIN);
    ready("\"push\":\"%p\",\"left\":%d", push, 2 * MARK - TAKEN);
    await_eof();
    int none = 0;
    check(zmq_setsockopt(push, ZMQ_LINGER, &none, sizeof none) == 0);
    check(zmq_close(push) == 0 && zmq_close(pull) == 0);
}

int main(int argc, char **argv)
{
    const char *name = "restless";
    parse_options(argc, argv, (const struct option_spec[]){{"case", TEXT, &name}, {0}});
    check((context = zmq_ctx_new()) != NULL);
    if (strcmp(name, "restless") == 0)
        restless();
    else if (strcmp(name, "credentials") == 0)
        credentials();
    else if (strcmp(name, "pointer") == 0)
        pointer();
    else if (strcmp(name, "mark") == 0)
        mark();
    else
        die("--case is restless, credentials, pointer or mark");
    check(zmq_ctx_term(context) == 0);
    return 0;
}
