// Processes that are easily got wrong. --case:
//   inproc     has no connection outside of itself
//   closed     has a context whose sockets are all closed
//   untouched  has a context that never had a socket: it has no thread and no fd either
//   shutdown   zmq_ctx_shutdown was called, and the sockets are still there
//   fork       has a child (`child`) that inherited memory and fds but none of libzmq's threads
#include "census.h"

#include <sys/wait.h>

static const char *which = "inproc";
static struct world *world;

static bool is(const char *name)
{
    return strcmp(which, name) == 0;
}

// A pipe with a message that waits in it.
static void add_pipeline(const char *endpoint)
{
    struct specimen *pull = make(world, ZMQ_PULL, "pull"), *push = make(world, ZMQ_PUSH, "push");
    link_up(push, pull, listen_at(pull, endpoint));
    say(push, "unread", 6, 0);
    pull->rx_queue++;
    pull->bytes_held += 6;
    if (is_inproc(endpoint)) {
        push->tx_queue++;
        push->bytes_held += 6;
    }
}

static void add_inproc_pair(void)
{
    struct specimen *left = make(world, ZMQ_PAIR, "left"), *right = make(world, ZMQ_PAIR, "right");
    link_up(left, right, listen_at(right, "inproc://pair"));
}

static void open_and_close(void)
{
    for (int type = ZMQ_PAIR; type <= ZMQ_STREAM; type++)
        close_fully(zmq_socket(world->context, type));
}

static void set_up(void)
{
    world = add_world(zmq_ctx_new());
    if (is("inproc")) {
        add_pipeline("inproc://pipeline");
        add_inproc_pair();
    } else if (is("closed"))
        open_and_close();
    else if (!is("untouched")) {
        add_barriers(world);
        add_pipeline("tcp://127.0.0.1:*");
    }
    settle();
    unwatch_all();
    if (is("shutdown")) {
        check(zmq_ctx_shutdown(world->context) == 0);
        world->terminating = true;
    }
}

// The child, which waits until the pipe is closed.
static pid_t start_child(int *until)
{
    int ends[2];
    check(pipe2(ends, O_CLOEXEC) == 0);
    pid_t child = fork();
    check(child >= 0);
    if (child == 0) {
        char byte;
        close(ends[1]);
        check(read(ends[0], &byte, 1) == 0);
        _exit(0);
    }
    close(ends[0]);
    *until = foreign_fd(ends[1]);
    return child;
}

int main(int argc, char **argv)
{
    parse_options(argc, argv, (const struct option_spec[]){{"case", TEXT, &which}, {0}});
    if (!is("inproc") && !is("closed") && !is("untouched") && !is("shutdown") && !is("fork"))
        die("--case is inproc, closed, untouched, shutdown or fork");
    set_up();
    int until = UNKNOWN;
    pid_t child = is("fork") ? start_child(&until) : 0;
    printf("{\"ready\":true,\"pid\":%d", getpid());
    print_number("child", child, child != 0);
    print_census();
    printf(",\"blocked\":[]");
    json_end();

    await_eof();
    int status;
    if (child) {
        close(until);
        check(waitpid(child, &status, 0) == child && status == 0);
    }
    for (size_t s = 0; s < zoo.specimen_count; s++)
        check(zmq_close(zoo.specimens[s].socket) == 0);
    check(zmq_ctx_term(world->context) == 0);
    return 0;
}
