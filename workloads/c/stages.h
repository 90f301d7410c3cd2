// The log of messages of stages.c: one record a message and end of it. ../README.md has it under "Log of messages".
#pragma once
#include "sockets.h"

enum { SENT, RECEIVED };

struct record {
    int64_t before_ns; // CLOCK_MONOTONIC just before the call that moved the first part,
    int64_t after_ns;  // and just after the one that moved the last
    uint32_t size;     // of all parts
    uint32_t number;   // by its sender, from 1; 0: the receiver cannot know it
    uint16_t sender;   // which one
    uint16_t parts;
    uint8_t socket;    // index in the ready line
    uint8_t direction; // SENT, RECEIVED
    uint16_t unused;
};

_Static_assert(sizeof(struct record) == 32, "it is written as it is");

// Of one thread. What it writes is there, so that no page fault lies in the measured time.
struct log {
    struct record *records;
    size_t count, capacity;
};

static inline struct log new_log(size_t capacity)
{
    struct log log = {.records = malloc(capacity * sizeof(struct record)), .capacity = capacity};
    check(log.records || !capacity);
    memset(log.records, 1, capacity * sizeof(struct record));
    return log;
}

static inline struct record *log_message(struct log *log, struct record record)
{
    check(log->count < log->capacity);
    log->records[log->count] = record;
    return &log->records[log->count++];
}

static inline void write_log(FILE *file, const struct log *log)
{
    check(fwrite(log->records, sizeof(struct record), log->count, file) == log->count);
}

// The first eight bytes of a message: who sent it, which one it is, and whether it is the last although more
// were due. The lowest byte comes first and is the topic.

struct mark {
    uint32_t number;
    uint16_t sender;
    char topic;
    bool last;
};

static inline void write_mark(char *bytes, struct mark mark)
{
    uint64_t word = (uint8_t)mark.topic | (uint64_t)mark.number << 8 | (uint64_t)mark.sender << 40 |
                    (uint64_t)mark.last << 63;
    memcpy(bytes, &word, sizeof word);
}

static inline struct mark read_mark(const char *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return (struct mark){.number = word >> 8, .sender = word >> 40, .topic = word, .last = word >> 63};
}

// How long messages are: `64`, `1,100,70000` in turn, or `mixed`, 1 byte to 1 MB, each power of two as often.
struct sizes {
    bool mixed;
    size_t count;
    uint32_t list[16];
};

static inline struct sizes parse_sizes(const char *text)
{
    struct sizes sizes = {.mixed = strcmp(text, "mixed") == 0};
    while (!sizes.mixed && *text) {
        char *end;
        check(sizes.count < 16);
        sizes.list[sizes.count++] = strtoul(text, &end, 10);
        if (end == text || (*end && *end != ','))
            die("\"%s\" is not a list of sizes", text);
        text = end + (*end == ',');
    }
    return sizes;
}

static inline uint32_t size_of(const struct sizes *sizes, uint32_t number)
{
    if (!sizes->mixed)
        return sizes->list[(number - 1) % sizes->count];
    uint64_t noise = number * UINT64_C(0x9e3779b97f4a7c15);
    uint32_t power = UINT32_C(1) << (noise >> 32) % 21;
    uint32_t size = power + (noise >> 40) % power;
    return size < 1048576 ? size : 1048576;
}

static inline uint32_t largest(const struct sizes *sizes)
{
    uint32_t most = sizes->mixed ? 1048576 : 0;
    for (size_t i = 0; i < sizes->count; i++)
        most = sizes->list[i] > most ? sizes->list[i] : most;
    return most;
}

// The first part takes what the division leaves.
static inline uint32_t size_of_part(uint32_t size, long parts, long part)
{
    return size / parts + (part == 0 ? size % parts : 0);
}
