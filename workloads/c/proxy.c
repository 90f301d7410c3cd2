// Messages that no call of the program moves: --count of them go by zmq_proxy from PUSH over PULL and PUSH to PULL.
#include "sockets.h"
#include "truth.h"

#include <pthread.h>

static void *context, *frontend, *backend;

static void *forward(void *unused)
{
    check(zmq_proxy(frontend, backend, NULL) == -1 && errno == ETERM);
    check(zmq_close(frontend) == 0 && zmq_close(backend) == 0);
    return unused;
}

int main(int argc, char **argv)
{
    long count = 1000;
    parse_options(argc, argv, (const struct option_spec[]){{"count", INTEGER, &count}, {0}});
    check((context = zmq_ctx_new()) != NULL);
    void *source = zmq_socket(context, ZMQ_PUSH), *sink = zmq_socket(context, ZMQ_PULL);
    check((frontend = zmq_socket(context, ZMQ_PULL)) && (backend = zmq_socket(context, ZMQ_PUSH)) && source && sink);
    char in[256], out[256];
    bind_resolved(frontend, "tcp://127.0.0.1:*", in);
    bind_resolved(sink, "tcp://127.0.0.1:*", out);
    connect_fully(context, source, in);
    connect_fully(context, backend, out);
    pthread_t proxy;
    check(pthread_create(&proxy, NULL, forward, NULL) == 0);
    ready("\"source\":\"%p\",\"frontend\":\"%p\",\"backend\":\"%p\",\"sink\":\"%p\"", source, frontend, backend, sink);

    await_line("go");
    char buffer[16];
    for (long i = 0; i < count; i++) {
        check(zmq_send(source, "forwarded", 9, 0) == 9);
        check(zmq_recv(sink, buffer, sizeof buffer, 0) == 9);
    }
    done_begin();
    printf(",\"count\":%ld", count);
    json_end();
    await_eof();
    check(zmq_close(source) == 0 && zmq_close(sink) == 0);
    check(zmq_ctx_term(context) == 0 && pthread_join(proxy, NULL) == 0);
    return 0;
}
