// Ends with calls in flight: one thread is blocked in zmq_recv, another sends. After the end of
// stdin the process goes the way that --how names:
//   return  in good order: the context is shut down, the threads join, main returns
//   exit    exit(0) from the main thread, while the other two are inside libzmq
//   signal  SIGKILL to itself, likewise
//   exec    becomes `--how return`, which says ready again; this happens right after the done line
//   thread  before the done line 2000 threads come, send one message each and go, and the blocked
//           thread is cancelled inside its call; then like return
#include "sockets.h"
#include "truth.h"

#include <signal.h>

static const char *how = "return";
static long count = 1000, short_lived = 2000;

static void *context;
static void *in, *in_peer;   // the receiver's socket; in_peer never sends
static void *out, *out_peer; // the sender's socket, and the one that it sends to
static struct totals sent;
static struct call blocked; // the receive that is in flight
static _Atomic pid_t receiver_tid;
static _Atomic bool counted_all;

static bool is(const char *way)
{
    return strcmp(how, way) == 0;
}

static void *receive(void *unused)
{
    blocked = new_call("zmq_recv", in);
    blocked.tid = gettid();
    blocked.start_ns = now_ns();
    receiver_tid = blocked.tid;
    char buffer[16];
    fails(zmq_recv(in, buffer, sizeof buffer, 0), ETERM);
    return unused;
}

// Sends what is counted, and then on and on: who kills the process finds it in the middle of it.
static void *send_on(void *unused)
{
    for (long i = 0; i < count; i++)
        counted(&sent, zmq_send(out, "counted", 7, 0));
    counted_all = true;
    while (is("exit") || is("signal") || is("exec")) {
        char buffer[16];
        check(zmq_send(out, "more", 4, 0) >= 0);
        check(zmq_recv(out_peer, buffer, sizeof buffer, 0) >= 0); // so that the queue does not grow
    }
    return unused;
}

static void *send_one(void *unused)
{
    counted(&sent, zmq_send(out, "counted", 7, 0));
    return unused;
}

static void *new_pair_socket(void)
{
    void *socket = zmq_socket(context, ZMQ_PAIR);
    int unlimited = 0;
    check(socket && zmq_setsockopt(socket, ZMQ_SNDHWM, &unlimited, sizeof unlimited) == 0);
    check(zmq_setsockopt(socket, ZMQ_RCVHWM, &unlimited, sizeof unlimited) == 0);
    return socket;
}

static void set_up(void)
{
    check((context = zmq_ctx_new()) != NULL);
    in = new_pair_socket(), in_peer = new_pair_socket();
    out = new_pair_socket(), out_peer = new_pair_socket();
    check(zmq_bind(in, "inproc://in") == 0 && zmq_connect(in_peer, "inproc://in") == 0);
    check(zmq_bind(out_peer, "inproc://out") == 0 && zmq_connect(out, "inproc://out") == 0);
    sent = new_totals("zmq_send", out);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv,
                  (const struct option_spec[]){{"how", TEXT, &how},
                                               {"count", INTEGER, &count},
                                               {"short-lived", INTEGER, &short_lived},
                                               {0}});
    if (!is("return") && !is("exit") && !is("signal") && !is("exec") && !is("thread"))
        die("--how is return, exit, signal, exec or thread");

    set_up();
    ready("\"how\":\"%s\",\"recv_handle\":\"%p\",\"send_handle\":\"%p\"", how, in, out);
    await_line("go");

    pthread_t receiver, sender;
    check(pthread_create(&receiver, NULL, receive, NULL) == 0);
    while (!receiver_tid)
        sched_yield();
    await_asleep(receiver_tid);
    if (is("thread")) {
        for (long i = 0; i < short_lived; i++) {
            check(pthread_create(&sender, NULL, send_one, NULL) == 0);
            check(pthread_join(sender, NULL) == 0);
        }
        void *result;
        check(pthread_cancel(receiver) == 0 && pthread_join(receiver, &result) == 0);
        check(result == PTHREAD_CANCELED);
    } else {
        check(pthread_create(&sender, NULL, send_on, NULL) == 0);
        while (!counted_all)
            sched_yield();
    }

    done_begin();
    print_totals(&sent, 1);
    printf(",\"in_flight\":[{\"call\":\"zmq_recv\",\"tid\":%d,\"handle\":\"%p\",\"start_ns\":%ld}]",
           blocked.tid, in, blocked.start_ns);
    json_end();

    if (is("exec")) {
        execl("/proc/self/exe", argv[0], "--how", "return", NULL);
        die("exec: %m");
    }
    await_eof();
    if (is("signal"))
        kill(getpid(), SIGKILL);
    if (is("exit"))
        exit(0);

    check(zmq_ctx_shutdown(context) == 0);
    if (is("return"))
        check(pthread_join(sender, NULL) == 0 && pthread_join(receiver, NULL) == 0);
    check(zmq_close(in) == 0 && zmq_close(in_peer) == 0);
    check(zmq_close(out) == 0 && zmq_close(out_peer) == 0);
    check(zmq_ctx_term(context) == 0);
    return 0;
}
