// A thread named "worker" blocks in one call, and the main thread lets it go after --ms milliseconds
// or, with --ms 0, at the line `release`. Then a line {"blocked":true} says first that it is blocked.
#include "truth.h"

static struct {
    const char *call;
    void *context;
    void *worker_socket, *main_socket; // ends of one inproc pipe
    int filled; // messages in the pipe that a send blocks on
    _Atomic pid_t worker_tid; // negated once it is through the gate
    pthread_mutex_t gate; // held by the main thread until `go`
} blocked = {.call = "recv", .gate = PTHREAD_MUTEX_INITIALIZER};

static bool is(const char *call)
{
    return strcmp(blocked.call, call) == 0;
}

static void *work(void *unused)
{
    check(pthread_setname_np(pthread_self(), "worker") == 0);
    blocked.worker_tid = gettid();
    pthread_mutex_lock(&blocked.gate);
    pthread_mutex_unlock(&blocked.gate);
    blocked.worker_tid = -gettid(); // from here on it sleeps only in the call

    char buffer[16];
    zmq_msg_t message;
    zmq_pollitem_t item = {.socket = blocked.worker_socket, .events = ZMQ_POLLIN};
    if (is("recv"))
        check(log_recv(blocked.worker_socket, buffer, sizeof buffer, 0) == 7);
    else if (is("msg_recv")) {
        check(zmq_msg_init(&message) == 0);
        check(log_msg_recv(&message, blocked.worker_socket, 0) == 7);
        check(zmq_msg_close(&message) == 0);
    } else if (is("send"))
        check(log_send(blocked.worker_socket, "blocked", 7, 0) == 7);
    else if (is("poll"))
        check(log_poll(&item, 1, -1) == 1);
    else
        check(log_ctx_term(blocked.context) == 0);
    return unused;
}

static void release(void)
{
    char buffer[16];
    if (is("send")) {
        for (int i = 0; i < blocked.filled + 1; i++) // the last one is the worker's
            check(log_recv(blocked.main_socket, buffer, sizeof buffer, 0) >= 0);
    } else if (is("ctx_term"))
        check(log_close(blocked.main_socket) == 0);
    else
        check(log_send(blocked.main_socket, "release", 7, 0) == 7);
}

static void set_up(void)
{
    check((blocked.context = zmq_ctx_new()) != NULL);
    if (is("ctx_term")) {
        check((blocked.main_socket = zmq_socket(blocked.context, ZMQ_PULL)) != NULL);
        return;
    }
    int worker_type = is("send") ? ZMQ_PUSH : ZMQ_PULL, main_type = is("send") ? ZMQ_PULL : ZMQ_PUSH;
    blocked.worker_socket = zmq_socket(blocked.context, worker_type);
    blocked.main_socket = zmq_socket(blocked.context, main_type);
    check(blocked.worker_socket && blocked.main_socket);
    int mark = 1;
    check(zmq_setsockopt(blocked.worker_socket, ZMQ_SNDHWM, &mark, sizeof mark) == 0);
    check(zmq_setsockopt(blocked.main_socket, ZMQ_RCVHWM, &mark, sizeof mark) == 0);
    check(zmq_bind(blocked.main_socket, "inproc://blocked") == 0);
    check(zmq_connect(blocked.worker_socket, "inproc://blocked") == 0);
    if (is("send")) {
        while (zmq_send(blocked.worker_socket, "fill", 4, ZMQ_DONTWAIT) >= 0)
            blocked.filled++;
        check(errno == EAGAIN);
    }
}

int main(int argc, char **argv)
{
    long ms = 100;
    parse_options(argc, argv,
                  (const struct option_spec[]){
                      {"call", TEXT, &blocked.call}, {"ms", INTEGER, &ms}, {0}});
    if (!is("recv") && !is("msg_recv") && !is("send") && !is("poll") && !is("ctx_term"))
        die("--call is recv, msg_recv, send, poll or ctx_term");

    set_up();
    pthread_mutex_lock(&blocked.gate);
    pthread_t worker;
    check(pthread_create(&worker, NULL, work, NULL) == 0);
    while (!blocked.worker_tid)
        sched_yield();
    pid_t tid = blocked.worker_tid;
    ready("\"worker_tid\":%d,\"call\":\"zmq_%s\",\"handle\":\"%p\"", tid, blocked.call,
          is("ctx_term") ? blocked.context : blocked.worker_socket);

    await_line("go");
    pthread_mutex_unlock(&blocked.gate);
    while (blocked.worker_tid > 0)
        sched_yield();
    await_asleep(tid);
    if (ms)
        sleep_until_ns(now_ns() + ms * INT64_C(1000000));
    else {
        printf("{\"blocked\":true,\"tid\":%d", tid);
        json_end();
        await_line("release");
    }
    release();
    check(pthread_join(worker, NULL) == 0);
    done_begin();
    print_calls();
    json_end();

    await_eof();
    if (!is("ctx_term")) {
        check(zmq_close(blocked.worker_socket) == 0 && zmq_close(blocked.main_socket) == 0);
        check(zmq_ctx_term(blocked.context) == 0);
    }
    return 0;
}
