// A PUSH/PULL program with libzmq inside the executable: found through .symtab, and not at all once
// stripped. libzmq3-dev depends on the packages of what its libzmq.a needs. From this file's parent:
//
//   gcc -O2 -g -Wall -Wextra -Werror -o static c/static.c -l:libzmq.a -l:libstdc++.so.6 -lnorm -lpgm-5.3 -lgssapi_krb5 -lsodium -lbsd -lpthread -lm
//   strip -o static-stripped static
#include "sockets.h"
#include "truth.h"

int main(int argc, char **argv)
{
    long count = 10;
    parse_options(argc, argv, (const struct option_spec[]){{"count", INTEGER, &count}, {0}});
    void *context = zmq_ctx_new();
    check(context);
    void *push = zmq_socket(context, ZMQ_PUSH), *pull = zmq_socket(context, ZMQ_PULL);
    check(push && pull);
    char endpoint[256];
    bind_resolved(pull, "tcp://127.0.0.1:*", endpoint);
    connect_fully(context, push, endpoint);
    ready("\"endpoint\":\"%s\",\"push\":\"%p\",\"pull\":\"%p\"", endpoint, push, pull);

    await_line("go");
    char buffer[16];
    for (long i = 0; i < count; i++) {
        check(log_send(push, "static", 6, 0) == 6);
        check(log_recv(pull, buffer, sizeof buffer, 0) == 6);
    }
    zmq_msg_t message;
    check(zmq_msg_init_size(&message, 7) == 0);
    memcpy(zmq_msg_data(&message), "message", 7);
    check(log_msg_send(&message, push, 0) == 7);
    check(log_recv(pull, buffer, sizeof buffer, 0) == 7);
    done_begin();
    print_calls();
    json_end();
    await_eof();
    check(zmq_close(push) == 0 && zmq_close(pull) == 0 && zmq_ctx_term(context) == 0);
    return 0;
}
