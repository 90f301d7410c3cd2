// Two copies of libzmq in one process, loaded by path: `twolibs A.so B.so`. The paths must be two
// files (the loader maps one file only once). Each copy moves its own number of messages.
#include "dynamic.h"
#include "truth.h"

enum { COPIES = 2 };

// One copy's entry points, typed as zmq.h declares them; nothing links libzmq itself.
struct library {
    const char *path;
    typeof(zmq_ctx_new) *ctx_new;
    typeof(zmq_ctx_term) *ctx_term;
    typeof(zmq_socket) *socket;
    typeof(zmq_bind) *bind;
    typeof(zmq_connect) *connect;
    typeof(zmq_send) *send;
    typeof(zmq_recv) *recv;
    typeof(zmq_close) *close;
    typeof(zmq_version) *version;
    void *context, *push, *pull;
    struct totals sent, received;
};

static void load(struct library *library, const char *path)
{
    void *file = open_library(path, RTLD_NOW);
    *library = (struct library){
        .path = path,
        .ctx_new = symbol(file, "zmq_ctx_new"),
        .ctx_term = symbol(file, "zmq_ctx_term"),
        .socket = symbol(file, "zmq_socket"),
        .bind = symbol(file, "zmq_bind"),
        .connect = symbol(file, "zmq_connect"),
        .send = symbol(file, "zmq_send"),
        .recv = symbol(file, "zmq_recv"),
        .close = symbol(file, "zmq_close"),
        .version = symbol(file, "zmq_version"),
    };
}

static void set_up(struct library *library)
{
    check((library->context = library->ctx_new()) != NULL);
    check((library->push = library->socket(library->context, ZMQ_PUSH)) != NULL);
    check((library->pull = library->socket(library->context, ZMQ_PULL)) != NULL);
    check(library->bind(library->pull, "inproc://pipe") == 0);
    check(library->connect(library->push, "inproc://pipe") == 0);
    library->sent = new_totals("zmq_send", library->push);
    library->received = new_totals("zmq_recv", library->pull);
}

// As `counted`, without zmq_strerror, which would need a libzmq of our own.
static void count(struct totals *totals, int ret)
{
    check(ret >= 0);
    totals->count++;
    totals->bytes += ret;
}

static void move_messages(struct library *library, long messages)
{
    char buffer[16];
    for (long i = 0; i < messages; i++) {
        count(&library->sent, library->send(library->push, "message", 7, 0));
        count(&library->received, library->recv(library->pull, buffer, sizeof buffer, 0));
    }
}

int main(int argc, char **argv)
{
    long messages[COPIES] = {3, 5};
    int first = parse_options(argc, argv,
                              (const struct option_spec[]){{"count-a", INTEGER, &messages[0]},
                                                           {"count-b", INTEGER, &messages[1]},
                                                           {0}});
    if (argc - first != COPIES)
        die("usage: twolibs [--count-a N] [--count-b N] A.so B.so");
    struct library libraries[COPIES];
    for (int i = 0; i < COPIES; i++) {
        load(&libraries[i], argv[first + i]);
        set_up(&libraries[i]);
    }
    if (libraries[0].send == libraries[1].send)
        die("both paths are the same file");

    printf("{\"ready\":true,\"pid\":%d,\"libraries\":[", getpid());
    for (int i = 0; i < COPIES; i++) {
        struct library *library = &libraries[i];
        int major, minor, patch;
        library->version(&major, &minor, &patch);
        printf("%s{\"version\":\"%d.%d.%d\",\"push\":\"%p\",\"pull\":\"%p\"", i ? "," : "", major,
               minor, patch, library->push, library->pull);
        print_text("path", library->path, strlen(library->path));
        putchar('}');
    }
    putchar(']');
    json_end();

    await_line("go");
    for (int i = 0; i < COPIES; i++)
        move_messages(&libraries[i], messages[i]);
    done_begin();
    print_totals((struct totals[]){libraries[0].sent, libraries[0].received, libraries[1].sent,
                                   libraries[1].received},
                 2 * COPIES);
    json_end();
    await_eof();
    for (int i = 0; i < COPIES; i++) {
        struct library *library = &libraries[i];
        check(library->close(library->push) == 0 && library->close(library->pull) == 0);
        check(library->ctx_term(library->context) == 0);
    }
    return 0;
}
