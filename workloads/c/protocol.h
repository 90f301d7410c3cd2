// How a workload talks to the test that drives it: ready line, `go` on stdin, done line, end of
// stdin. ../README.md has the whole of it. Include this (or truth.h) before any other header.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // gettid, strerrorname_np
#endif

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// _exit, not exit: other threads may be inside libzmq, whose destructors must not run under them.
__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    _exit(1);
}

// Unlike assert, it is never compiled out: the condition may be the call itself.
#define check(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            die("%s:%d: %s: %m", __FILE__, __LINE__, #condition);                                  \
    } while (0)

static inline int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static inline int64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static inline void sleep_until_ns(int64_t when_ns)
{
    struct timespec when = {when_ns / 1000000000, when_ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
        ;
}

// What the program says.

static inline void json_end(void)
{
    puts("}");
    fflush(stdout);
}

// `fields` are further members of the object, such as "\"tid\":%d"; NULL for none.
__attribute__((format(printf, 1, 2))) static inline void ready(const char *fields, ...)
{
    printf("{\"ready\":true,\"pid\":%d", getpid());
    if (fields) {
        putchar(',');
        va_list arguments;
        va_start(arguments, fields);
        vprintf(fields, arguments);
        va_end(arguments);
    }
    json_end();
}

// The truth: done_begin(), then printf(",\"name\":value") as often as needed, then json_end().
static inline void done_begin(void)
{
    printf("{\"done\":true");
}

// What the program is told.

static inline bool read_line(char *line, int size)
{
    setvbuf(stdin, NULL, _IONBF, 0); // what is not yet asked for stays in the pipe, also for an exec
    if (!fgets(line, size, stdin))
        return false;
    line[strcspn(line, "\n")] = '\0';
    return true;
}

static inline void await_line(const char *wanted)
{
    char line[64];
    if (!read_line(line, sizeof line))
        die("stdin ended where the line \"%s\" was due", wanted);
    if (strcmp(line, wanted) != 0)
        die("expected the line \"%s\", got \"%s\"", wanted, line);
}

static inline void await_eof(void)
{
    char line[64];
    while (read_line(line, sizeof line))
        ;
}

// After a done line: another `go` (true) or the end of stdin (false).
static inline bool another_phase(bool phases)
{
    char line[64];
    if (!phases)
        await_eof();
    else if (read_line(line, sizeof line)) {
        if (strcmp(line, "go") != 0)
            die("expected the line \"go\", got \"%s\"", line);
        return true;
    }
    return false;
}

// Command line: every option is `--name VALUE`, or `--name` alone for a flag.

struct option_spec {
    const char *name;
    enum { INTEGER, REAL, TEXT, FLAG } kind;
    void *value; // long, double, const char * or bool
};

// `specs` ends with an entry without a name. Returns the index of the first argument after the options.
static inline int parse_options(int argc, char **argv, const struct option_spec *specs)
{
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        const struct option_spec *spec = specs;
        while (spec->name && strcmp(spec->name, argv[i] + 2) != 0)
            spec++;
        if (!spec->name)
            die("unknown option %s", argv[i]);
        if (spec->kind == FLAG) {
            *(bool *)spec->value = true;
            continue;
        }
        if (++i == argc)
            die("--%s needs a value", spec->name);
        char *end = "";
        if (spec->kind == INTEGER)
            *(long *)spec->value = strtol(argv[i], &end, 10);
        else if (spec->kind == REAL)
            *(double *)spec->value = strtod(argv[i], &end);
        else
            *(const char **)spec->value = argv[i];
        if (*end || !*argv[i])
            die("--%s: \"%s\" is not a number", spec->name, argv[i]);
    }
    return i;
}

// Spins until a thread of this process sleeps in the kernel. The caller knows that the one thing
// it can sleep in is the blocking call that is wanted.
static inline void await_asleep(pid_t tid)
{
    char path[64], stat[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    for (;; sched_yield()) {
        FILE *file = fopen(path, "r");
        check(file && fgets(stat, sizeof stat, file));
        fclose(file);
        if (strncmp(strrchr(stat, ')'), ") S", 3) == 0) // the name before it may hold anything
            return;
    }
}
