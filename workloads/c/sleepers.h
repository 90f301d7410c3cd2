// Threads that are blocked in one call for as long as the program wants, under functions of known
// names: the functions are not inlined, not cloned, and do something after the call that they make,
// which keeps them from handing their frame on to it.
#pragma once
#include "truth.h"

#define ON_THE_STACK __attribute__((noipa))

enum { MAX_SLEEPERS = 16, MAX_WAITED = 4 };

struct sleeper {
    const char *thread; // its name
    const char *call;
    void (*run)(struct sleeper *); // the outermost of the functions
    const char *functions[MAX_WAITED]; // innermost first
    void *sockets[MAX_WAITED];
    void *context; // that zmq_ctx_term waits for
    int fd;        // that zmq_poll waits for besides; 0: none
    int timeout_ms; // 0: it waits for ever
    pthread_t id;
    _Atomic pid_t tid;
};

static inline void *fall_asleep(void *argument)
{
    struct sleeper *sleeper = argument;
    check(pthread_setname_np(pthread_self(), sleeper->thread) == 0);
    sleeper->tid = gettid();
    sleeper->run(sleeper);
    return NULL;
}

// Whether a thread of this process is inside poll(2), which is what libzmq waits in.
static inline bool is_in_poll(pid_t tid)
{
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    FILE *file = fopen(path, "r");
    check(file && fgets(line, sizeof line, file));
    fclose(file);
    return strncmp(line, "7 ", 2) == 0;
}

// Starts it and returns when it is asleep in its call. Nothing may be on its way to its sockets.
static inline void start_sleeper(struct sleeper *sleeper)
{
    check(pthread_create(&sleeper->id, NULL, fall_asleep, sleeper) == 0);
    while (!sleeper->tid)
        sched_yield();
    do // the first looks of zmq_poll do not wait: only a thread that sleeps is in the last one
        await_asleep(sleeper->tid);
    while (!is_in_poll(sleeper->tid));
}

static inline void print_handles(const char *name, void *const *handles)
{
    printf(",\"%s\":[", name);
    for (int i = 0; i < MAX_WAITED && handles[i]; i++)
        printf("%s\"%p\"", i ? "," : "", handles[i]);
    putchar(']');
}

static inline void print_sleeper(const struct sleeper *sleeper)
{
    printf("{\"tid\":%d,\"thread\":\"%s\",\"call\":\"%s\"", sleeper->tid, sleeper->thread,
           sleeper->call);
    print_handles("sockets", sleeper->sockets);
    if (sleeper->context)
        print_address("context", sleeper->context);
    if (sleeper->fd)
        printf(",\"fds\":[%d]", sleeper->fd);
    printf(",\"timeout_ms\":%d,\"functions\":[",
           sleeper->timeout_ms ? sleeper->timeout_ms : -1);
    for (int i = 0; i < MAX_WAITED && sleeper->functions[i]; i++)
        printf("%s\"%s\"", i ? "," : "", sleeper->functions[i]);
    printf("]}");
}

static inline void print_sleepers(const struct sleeper *sleepers, size_t count)
{
    printf(",\"blocked\":[");
    for (size_t i = 0; i < count; i++) {
        fputs(i ? "," : "", stdout);
        print_sleeper(&sleepers[i]);
    }
    putchar(']');
}
