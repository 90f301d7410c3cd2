// Calls that do not simply return in the order in which they began. `--how`:
//   jump       a blocked receive is left by siglongjmp from a signal handler; deeper functions go on
//   altstack   a signal handler on a stack of its own, above the thread's, sends while a receive is pending
//   coroutine  two coroutines block in zmq_poll and end in the order in which they began
// The process must live through all of it, traced or not.
#include "sockets.h"
#include "truth.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { ROUNDS = 10, STACK_BYTES = 256 << 10 };

static void *push, *pull, *blocked; // nobody sends to `blocked`
static struct totals sent, received;
static sigjmp_buf out;

// Lower on the stack than the receive that was abandoned.
static __attribute__((noinline)) void deeper(int levels)
{
    volatile char room[4096];
    room[0] = 0;
    if (levels > 0) {
        deeper(levels - 1);
        room[1] = room[0];
        return;
    }
    char buffer[8];
    counted(&sent, zmq_send(push, "deep", 4, 0));
    counted(&received, zmq_recv(pull, buffer, sizeof buffer, 0));
}

static void jump_out(int signal)
{
    (void)signal;
    siglongjmp(out, 1);
}

static void send_from_handler(int signal)
{
    (void)signal;
    counted(&sent, zmq_send(push, "sig", 3, ZMQ_DONTWAIT));
}

static pthread_t main_thread;
static pid_t main_tid;

static void *interrupt_main(void *unused)
{
    await_asleep(main_tid);
    check(pthread_kill(main_thread, SIGUSR1) == 0);
    return unused;
}

// Blocks the main thread in zmq_recv, by an interrupted call's EINTR or for ever, and has it interrupted.
static void block_and_be_interrupted(void)
{
    pthread_t other;
    check(pthread_create(&other, NULL, interrupt_main, NULL) == 0);
    char buffer[8];
    int result = zmq_recv(blocked, buffer, sizeof buffer, 0);
    check(result == -1 && errno == EINTR);
    check(pthread_join(other, NULL) == 0);
}

static void jump(void)
{
    for (volatile int round = 0; round < ROUNDS; round++) {
        if (sigsetjmp(out, 1) == 0)
            block_and_be_interrupted();
        deeper(8);
    }
}

static void altstack(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        block_and_be_interrupted();
        char buffer[8];
        counted(&received, zmq_recv(pull, buffer, sizeof buffer, 0));
    }
}

static ucontext_t main_context, coroutines[2];
static atomic_int switches;

// Inside the first one's poll: to the second. Inside the second one's: back, so that the first poll ends first.
static void switch_coroutines(int signal)
{
    (void)signal;
    int from = atomic_fetch_add(&switches, 1);
    if (from < 2)
        swapcontext(&coroutines[from], &coroutines[1 - from]);
}

static void *interrupt_twice(void *unused)
{
    for (int i = 0; i < 2; i++) {
        while (atomic_load(&switches) < i)
            sched_yield();
        await_asleep(main_tid);
        check(pthread_kill(main_thread, SIGUSR1) == 0);
    }
    return unused;
}

static void poll_once(int self)
{
    zmq_pollitem_t item = {.socket = blocked, .events = ZMQ_POLLIN};
    check(zmq_poll(&item, 1, -1) == -1 && errno == EINTR);
    sent.count++;
    swapcontext(&coroutines[self], self == 0 ? &coroutines[1] : &main_context);
}

static void run_on(ucontext_t *coroutine, char *stack, void (*job)(void), int argument)
{
    check(getcontext(coroutine) == 0);
    coroutine->uc_stack = (stack_t){.ss_sp = stack, .ss_size = STACK_BYTES};
    coroutine->uc_link = &main_context;
    makecontext(coroutine, job, 1, argument);
}

static void poll_in_two_coroutines(char *stacks)
{
    sent.call = "zmq_poll", sent.handle = NULL;
    for (int i = 0; i < 2; i++)
        run_on(&coroutines[i], stacks + (1 - i) * STACK_BYTES, (void (*)(void))poll_once, i);
    pthread_t other;
    check(pthread_create(&other, NULL, interrupt_twice, NULL) == 0);
    check(swapcontext(&main_context, &coroutines[0]) == 0);
    check(pthread_join(other, NULL) == 0);
}

int main(int argc, char **argv)
{
    const char *how = "jump";
    parse_options(argc, argv, (const struct option_spec[]){{"how", TEXT, &how}, {0}});
    void *context = zmq_ctx_new();
    check(context);
    push = zmq_socket(context, ZMQ_PUSH), pull = zmq_socket(context, ZMQ_PULL), blocked = zmq_socket(context, ZMQ_PULL);
    check(push && pull && blocked);
    check(zmq_bind(pull, "inproc://work") == 0 && zmq_connect(push, "inproc://work") == 0);
    sent = new_totals("zmq_send", push), received = new_totals("zmq_recv", pull);
    main_thread = pthread_self();
    main_tid = gettid();
    bool jumps = strcmp(how, "jump") == 0, alternates = strcmp(how, "altstack") == 0;
    check(jumps || alternates || strcmp(how, "coroutine") == 0);
    // Above the main thread's stack nothing can be mapped: the work is done on a stack of our own, below another.
    char *stacks = mmap(NULL, 3 * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(stacks != MAP_FAILED);
    stack_t handler_stack = {.ss_sp = stacks + 2 * STACK_BYTES, .ss_size = STACK_BYTES};
    check(!alternates || sigaltstack(&handler_stack, NULL) == 0);
    struct sigaction action = {.sa_handler = jumps ? jump_out : alternates ? send_from_handler : switch_coroutines,
                               .sa_flags = alternates ? SA_ONSTACK : 0};
    check(sigaction(SIGUSR1, &action, NULL) == 0);
    ready("\"push\":\"%p\",\"pull\":\"%p\"", push, pull);

    await_line("go");
    if (jumps || alternates) {
        run_on(&coroutines[0], stacks, jumps ? jump : altstack, 0);
        check(swapcontext(&main_context, &coroutines[0]) == 0);
    } else {
        poll_in_two_coroutines(stacks);
    }
    done_begin();
    print_totals((struct totals[]){sent, received}, 2);
    json_end();
    await_eof();
    check(zmq_close(push) == 0 && zmq_close(pull) == 0 && zmq_close(blocked) == 0 && zmq_ctx_term(context) == 0);
    return 0;
}
