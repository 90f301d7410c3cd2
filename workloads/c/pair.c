// What one zmq_send costs its thread: sends over an inproc pair without a high-water mark, timed by
// the thread's CPU clock in batches. Receives drain the queue between batches, outside the clock.
// empty_call is the same for a function that does nothing: the bare cost of a probe.
#include "sockets.h"
#include "truth.h"

// Stays a real call to a real symbol.
void empty_call(void);
__attribute__((noipa)) void empty_call(void)
{
    __asm__ volatile("");
}

int main(int argc, char **argv)
{
    long count = 100000, size = 64, batch = 1000;
    bool phases = false;
    parse_options(argc, argv,
                  (const struct option_spec[]){{"count", INTEGER, &count},
                                               {"size", INTEGER, &size},
                                               {"batch", INTEGER, &batch},
                                               {"phases", FLAG, &phases},
                                               {0}});
    if (count <= 0 || size < 0 || batch <= 0)
        die("--count and --batch are positive");

    void *context = zmq_ctx_new();
    check(context);
    void *left = zmq_socket(context, ZMQ_PAIR), *right = zmq_socket(context, ZMQ_PAIR);
    check(left && right);
    int unlimited = 0;
    check(zmq_setsockopt(left, ZMQ_SNDHWM, &unlimited, sizeof unlimited) == 0);
    check(zmq_setsockopt(right, ZMQ_RCVHWM, &unlimited, sizeof unlimited) == 0);
    check(zmq_bind(right, "inproc://pair") == 0);
    check(zmq_connect(left, "inproc://pair") == 0);
    char *buffer = calloc(1, size + 1);
    check(buffer);
    ready("\"send_handle\":\"%p\",\"recv_handle\":\"%p\",\"empty_call\":\"%p\"", left, right,
          (void *)empty_call);

    await_line("go");
    do {
        struct totals sent = new_totals("zmq_send", left), received = new_totals("zmq_recv", right);
        int64_t sends_ns = 0;
        for (long done = 0; done < count; done += batch) {
            long in_batch = count - done < batch ? count - done : batch;
            int64_t start_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
            for (long i = 0; i < in_batch; i++)
                counted(&sent, zmq_send(left, buffer, size, ZMQ_DONTWAIT));
            sends_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_ns;
            for (long i = 0; i < in_batch; i++)
                counted(&received, zmq_recv(right, buffer, size, 0));
        }
        int64_t start_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        for (long i = 0; i < count; i++)
            empty_call();
        int64_t empty_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_ns;

        done_begin();
        print_totals((struct totals[]){sent, received}, 2);
        printf(",\"sends\":%ld,\"ns_per_send\":%.2f", count, (double)sends_ns / count);
        printf(",\"empty_calls\":%ld,\"ns_per_empty_call\":%.2f", count, (double)empty_ns / count);
        json_end();
    } while (another_phase(phases));

    free(buffer);
    check(zmq_close(left) == 0 && zmq_close(right) == 0 && zmq_ctx_term(context) == 0);
    return 0;
}
