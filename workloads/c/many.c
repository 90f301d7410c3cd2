// Many sockets: `--sockets N` PUB sockets send `--count` messages each. With `--reuse`, one after the other, each
// closed before the next is made, so that addresses are reused by sockets of other types.
#include "sockets.h"
#include "truth.h"

int main(int argc, char **argv)
{
    long sockets = 900, count = 10;
    bool reuse = false;
    parse_options(argc, argv,
                  (const struct option_spec[]){
                      {"sockets", INTEGER, &sockets}, {"count", INTEGER, &count}, {"reuse", FLAG, &reuse}, {0}});
    check(sockets > 0 && sockets <= 1000 && count > 0);
    void *context = zmq_ctx_new();
    check(context);
    static void *all[1000];
    for (long i = 0; !reuse && i < sockets; i++)
        check((all[i] = zmq_socket(context, ZMQ_PUB)) != NULL);
    ready("\"context\":\"%p\"", context);

    await_line("go");
    const int types[] = {ZMQ_PUB, ZMQ_XPUB};
    const char *names[] = {"PUB", "XPUB"};
    struct totals sent = new_totals("zmq_send", NULL);
    for (long i = 0; i < sockets; i++) {
        void *socket = reuse ? zmq_socket(context, types[i % 2]) : all[i];
        check(socket);
        for (long n = 0; n < count; n++)
            counted(&sent, zmq_send(socket, names[reuse ? i % 2 : 0], reuse ? 3 + i % 2 : 3, 0));
        if (reuse)
            check(zmq_close(socket) == 0);
    }
    done_begin();
    print_totals(&sent, 1);
    json_end();
    await_eof();
    for (long i = 0; !reuse && i < sockets; i++)
        check(zmq_close(all[i]) == 0);
    check(zmq_ctx_term(context) == 0);
    return 0;
}
