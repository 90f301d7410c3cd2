// What a workload did, stated by itself: every call with its arguments, result and times (log_*),
// or totals of calls for floods. Kept in memory, printed in the done line.
//
// log_send(socket, ...) is zmq_send(socket, ...) that is written down, and so on. The log itself uses
// only the accessors zmq_msg_data, zmq_msg_size and zmq_msg_more; those are in no list of calls.
#pragma once
#include "protocol.h"

#include <pthread.h>
#include <sys/uio.h>
#include <zmq.h>

// What is not known or does not apply is -1 (a number) or NULL, and null in JSON.
struct call {
    const char *name;
    pid_t tid;
    const void *handle; // the socket or context that was passed
    intptr_t ret;
    bool returns_pointer;
    int err;
    ssize_t size; // of the message, also where a receive cut it
    int flags;
    int more;
    char *payload;
    size_t payload_bytes;
    char *args;
    int64_t start_ns, end_ns;
};

static struct {
    pthread_mutex_t lock;
    struct call *calls;
    size_t count, capacity;
} call_log = {.lock = PTHREAD_MUTEX_INITIALIZER};

static inline struct call new_call(const char *name, const void *handle)
{
    return (struct call){.name = name, .handle = handle, .size = -1, .flags = -1, .more = -1};
}

static inline void set_payload(struct call *call, const void *data, size_t bytes)
{
    call->payload = malloc(bytes + 1);
    check(call->payload);
    if (bytes) // an empty message may have no data at all
        memcpy(call->payload, data, bytes);
    call->payload_bytes = bytes;
}

__attribute__((format(printf, 2, 3))) static inline void set_args(struct call *call,
                                                                  const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    check(vasprintf(&call->args, format, arguments) >= 0);
    va_end(arguments);
}

// Runs `assignment` ("ret = zmq_...") and takes the time just around it, and the errno it left.
#define TIMED(call, assignment)                                                                    \
    do {                                                                                           \
        (call)->start_ns = now_ns();                                                               \
        assignment;                                                                                \
        (call)->end_ns = now_ns();                                                                 \
        (call)->err = errno;                                                                       \
    } while (0)

// Enters a call that has returned. Leaves errno as libzmq left it.
static inline void log_call(struct call *call, intptr_t ret, bool failed)
{
    int err = call->err;
    call->tid = gettid();
    call->ret = ret;
    call->err = failed ? err : 0;
    pthread_mutex_lock(&call_log.lock);
    if (call_log.count == call_log.capacity) {
        call_log.capacity = call_log.capacity ? 2 * call_log.capacity : 256;
        call_log.calls = realloc(call_log.calls, call_log.capacity * sizeof *call);
        check(call_log.calls);
    }
    call_log.calls[call_log.count++] = *call;
    pthread_mutex_unlock(&call_log.lock);
    errno = err;
}

static inline int log_int(struct call *call, int ret)
{
    log_call(call, ret, ret == -1);
    return ret;
}

static inline void *log_pointer(struct call *call, void *ret)
{
    call->returns_pointer = true;
    log_call(call, (intptr_t)ret, !ret);
    return ret;
}

#define ok(expression) check((expression) >= 0)

// The call must fail with this errno.
#define fails(expression, wanted) check((expression) == -1 && errno == (wanted))

// Contexts.

static inline void *log_ctx_new(void)
{
    struct call call = new_call("zmq_ctx_new", NULL);
    void *context;
    TIMED(&call, context = zmq_ctx_new());
    return log_pointer(&call, context);
}

static inline void *log_init(int io_threads)
{
    struct call call = new_call("zmq_init", NULL);
    set_args(&call, "io_threads=%d", io_threads);
    void *context;
    TIMED(&call, context = zmq_init(io_threads));
    return log_pointer(&call, context);
}

static inline int log_ctx_set(void *context, int option, int value)
{
    struct call call = new_call("zmq_ctx_set", context);
    set_args(&call, "option=%d value=%d", option, value);
    int ret;
    TIMED(&call, ret = zmq_ctx_set(context, option, value));
    return log_int(&call, ret);
}

// zmq_ctx_shutdown, zmq_ctx_term, zmq_close and others of one argument.
#define DEFINE_LOGGED_CALL(function)                                                               \
    static inline int log_##function(void *handle)                                                 \
    {                                                                                              \
        struct call call = new_call("zmq_" #function, handle);                                     \
        int ret;                                                                                   \
        TIMED(&call, ret = zmq_##function(handle));                                                \
        return log_int(&call, ret);                                                                \
    }
DEFINE_LOGGED_CALL(ctx_shutdown)
DEFINE_LOGGED_CALL(ctx_term)
DEFINE_LOGGED_CALL(ctx_destroy)
DEFINE_LOGGED_CALL(term)
DEFINE_LOGGED_CALL(close)

// Sockets and endpoints.

static inline void *log_socket(void *context, int type)
{
    struct call call = new_call("zmq_socket", context);
    set_args(&call, "type=%d", type);
    void *socket;
    TIMED(&call, socket = zmq_socket(context, type));
    return log_pointer(&call, socket);
}

#define DEFINE_LOGGED_ENDPOINT_CALL(function)                                                      \
    static inline int log_##function(void *socket, const char *endpoint)                           \
    {                                                                                              \
        struct call call = new_call("zmq_" #function, socket);                                     \
        set_args(&call, "endpoint=%s", endpoint);                                                  \
        int ret;                                                                                   \
        TIMED(&call, ret = zmq_##function(socket, endpoint));                                      \
        return log_int(&call, ret);                                                                \
    }
DEFINE_LOGGED_ENDPOINT_CALL(bind)
DEFINE_LOGGED_ENDPOINT_CALL(connect)
DEFINE_LOGGED_ENDPOINT_CALL(unbind)
DEFINE_LOGGED_ENDPOINT_CALL(disconnect)

static inline int log_socket_monitor(void *socket, const char *endpoint, int events)
{
    struct call call = new_call("zmq_socket_monitor", socket);
    set_args(&call, "endpoint=%s events=%d", endpoint ? endpoint : "NULL", events);
    int ret;
    TIMED(&call, ret = zmq_socket_monitor(socket, endpoint, events));
    return log_int(&call, ret);
}

// The option's value is the call's payload, as bytes; numbers are also in args.
static inline int log_option(struct call *call, void *socket, int option, const void *value,
                             size_t size)
{
    call->size = size;
    set_payload(call, value, size);
    int ret;
    TIMED(call, ret = zmq_setsockopt(socket, option, value, size));
    return log_int(call, ret);
}

static inline int log_setsockopt(void *socket, int option, const void *value, size_t size)
{
    struct call call = new_call("zmq_setsockopt", socket);
    set_args(&call, "option=%d", option);
    return log_option(&call, socket, option, value, size);
}

static inline int log_setsockopt_int(void *socket, int option, int value)
{
    struct call call = new_call("zmq_setsockopt", socket);
    set_args(&call, "option=%d value=%d", option, value);
    return log_option(&call, socket, option, &value, sizeof value);
}

// For the options of 64 bits, of either sign.
static inline int log_setsockopt_int64(void *socket, int option, int64_t value)
{
    struct call call = new_call("zmq_setsockopt", socket);
    set_args(&call, "option=%d value=%ld", option, value);
    return log_option(&call, socket, option, &value, sizeof value);
}

static inline int log_getsockopt(void *socket, int option, void *value, size_t *size)
{
    struct call call = new_call("zmq_getsockopt", socket);
    set_args(&call, "option=%d", option);
    int ret;
    TIMED(&call, ret = zmq_getsockopt(socket, option, value, size));
    if (ret == 0) {
        call.size = *size;
        set_payload(&call, value, *size);
    }
    return log_int(&call, ret);
}

// Sending. Size, flags and payload are what was passed, also where the call fails.

static inline struct call new_send(const char *name, void *socket, const void *data, size_t size,
                                   int flags)
{
    struct call call = new_call(name, socket);
    call.size = size;
    call.flags = flags;
    call.more = (flags & ZMQ_SNDMORE) != 0;
    set_payload(&call, data, size);
    return call;
}

static inline int log_send(void *socket, const void *data, size_t size, int flags)
{
    struct call call = new_send("zmq_send", socket, data, size, flags);
    int ret;
    TIMED(&call, ret = zmq_send(socket, data, size, flags));
    return log_int(&call, ret);
}

static inline int log_send_const(void *socket, const void *data, size_t size, int flags)
{
    struct call call = new_send("zmq_send_const", socket, data, size, flags);
    int ret;
    TIMED(&call, ret = zmq_send_const(socket, data, size, flags));
    return log_int(&call, ret);
}

static inline int log_msg_send(zmq_msg_t *message, void *socket, int flags)
{
    struct call call =
        new_send("zmq_msg_send", socket, zmq_msg_data(message), zmq_msg_size(message), flags);
    int ret;
    TIMED(&call, ret = zmq_msg_send(message, socket, flags));
    return log_int(&call, ret);
}

static inline int log_sendmsg(void *socket, zmq_msg_t *message, int flags)
{
    struct call call =
        new_send("zmq_sendmsg", socket, zmq_msg_data(message), zmq_msg_size(message), flags);
    int ret;
    TIMED(&call, ret = zmq_sendmsg(socket, message, flags));
    return log_int(&call, ret);
}

// Receiving. Size and payload are null where nothing came.

static inline struct call new_receive(const char *name, void *socket, int flags)
{
    struct call call = new_call(name, socket);
    call.flags = flags;
    return call;
}

static inline int log_recv(void *socket, void *buffer, size_t size, int flags)
{
    struct call call = new_receive("zmq_recv", socket, flags);
    set_args(&call, "len=%zu", size);
    int ret;
    TIMED(&call, ret = zmq_recv(socket, buffer, size, flags));
    if (ret >= 0) {
        call.size = ret;
        set_payload(&call, buffer, (size_t)ret < size ? (size_t)ret : size);
    }
    return log_int(&call, ret);
}

static inline void set_received(struct call *call, zmq_msg_t *message, int ret)
{
    if (ret == -1)
        return;
    call->size = zmq_msg_size(message);
    call->more = zmq_msg_more(message);
    set_payload(call, zmq_msg_data(message), zmq_msg_size(message));
}

static inline int log_msg_recv(zmq_msg_t *message, void *socket, int flags)
{
    struct call call = new_receive("zmq_msg_recv", socket, flags);
    int ret;
    TIMED(&call, ret = zmq_msg_recv(message, socket, flags));
    set_received(&call, message, ret);
    return log_int(&call, ret);
}

static inline int log_recvmsg(void *socket, zmq_msg_t *message, int flags)
{
    struct call call = new_receive("zmq_recvmsg", socket, flags);
    int ret;
    TIMED(&call, ret = zmq_recvmsg(socket, message, flags));
    set_received(&call, message, ret);
    return log_int(&call, ret);
}

// All parts in one call: size and payload are those of the parts joined.

static inline void set_parts(struct call *call, const struct iovec *parts, size_t count)
{
    char *joined = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&joined, &size);
    check(stream);
    for (size_t i = 0; i < count; i++)
        fwrite(parts[i].iov_base, 1, parts[i].iov_len, stream);
    fclose(stream);
    call->size = call->payload_bytes = size;
    call->payload = joined;
}

static inline int log_sendiov(void *socket, struct iovec *parts, size_t count, int flags)
{
    struct call call = new_call("zmq_sendiov", socket);
    call.flags = flags;
    set_parts(&call, parts, count);
    set_args(&call, "count=%zu", count);
    int ret;
    TIMED(&call, ret = zmq_sendiov(socket, parts, count, flags));
    return log_int(&call, ret);
}

static inline int log_recviov(void *socket, struct iovec *parts, size_t *count, int flags)
{
    struct call call = new_receive("zmq_recviov", socket, flags);
    size_t room = *count;
    int ret;
    TIMED(&call, ret = zmq_recviov(socket, parts, count, flags));
    set_args(&call, "room=%zu count=%zu", room, *count);
    if (ret >= 0)
        set_parts(&call, parts, *count);
    return log_int(&call, ret);
}

// Messages.

static inline int log_msg_init(zmq_msg_t *message)
{
    struct call call = new_call("zmq_msg_init", NULL);
    int ret;
    TIMED(&call, ret = zmq_msg_init(message));
    return log_int(&call, ret);
}

static inline int log_msg_init_size(zmq_msg_t *message, size_t size)
{
    struct call call = new_call("zmq_msg_init_size", NULL);
    call.size = size;
    int ret;
    TIMED(&call, ret = zmq_msg_init_size(message, size));
    return log_int(&call, ret);
}

static inline int log_msg_init_data(zmq_msg_t *message, void *data, size_t size,
                                    zmq_free_fn *free_data, void *hint)
{
    struct call call = new_call("zmq_msg_init_data", NULL);
    call.size = size;
    int ret;
    TIMED(&call, ret = zmq_msg_init_data(message, data, size, free_data, hint));
    return log_int(&call, ret);
}

static inline int log_msg_close(zmq_msg_t *message)
{
    struct call call = new_call("zmq_msg_close", NULL);
    int ret;
    TIMED(&call, ret = zmq_msg_close(message));
    return log_int(&call, ret);
}

// Polling and proxies.

// `items` in args: the socket's handle or the fd, events asked for, events returned.
static inline char *poll_items(const zmq_pollitem_t *items, int count)
{
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    check(stream);
    for (int i = 0; i < count; i++) {
        fputs(i ? "," : "", stream);
        if (items[i].socket)
            fprintf(stream, "%p", items[i].socket);
        else
            fprintf(stream, "%d", items[i].fd);
        fprintf(stream, ":%d:%d", items[i].events, items[i].revents);
    }
    fclose(stream);
    return text;
}

static inline void set_poll_args(struct call *call, const zmq_pollitem_t *items, int count,
                                 long timeout_ms)
{
    char *text = poll_items(items, items ? count : 0);
    set_args(call, "nitems=%d timeout_ms=%ld items=%s", count, timeout_ms, text);
    free(text);
}

static inline int log_poll(zmq_pollitem_t *items, int count, long timeout_ms)
{
    struct call call = new_call("zmq_poll", NULL);
    int ret;
    TIMED(&call, ret = zmq_poll(items, count, timeout_ms));
    set_poll_args(&call, items, count, timeout_ms);
    return log_int(&call, ret);
}

static inline int log_proxy(void *frontend, void *backend, void *capture)
{
    struct call call = new_call("zmq_proxy", frontend);
    set_args(&call, "backend=%p capture=%#lx", backend, (uintptr_t)capture);
    int ret;
    TIMED(&call, ret = zmq_proxy(frontend, backend, capture));
    return log_int(&call, ret);
}

static inline int log_proxy_steerable(void *frontend, void *backend, void *capture, void *control)
{
    struct call call = new_call("zmq_proxy_steerable", frontend);
    set_args(&call, "backend=%p capture=%#lx control=%p", backend, (uintptr_t)capture,
             control);
    int ret;
    TIMED(&call, ret = zmq_proxy_steerable(frontend, backend, capture, control));
    return log_int(&call, ret);
}

// Totals.

struct totals {
    const char *call;
    const void *handle;
    uint64_t count; // calls, those that failed too
    uint64_t eagain;
    uint64_t bytes;
};

static inline struct totals new_totals(const char *call, const void *handle)
{
    return (struct totals){.call = call, .handle = handle};
}

// Counts a send or receive by its result; any failure but EAGAIN ends the program.
static inline int counted(struct totals *totals, int ret)
{
    totals->count++;
    if (ret >= 0)
        totals->bytes += ret;
    else if (errno == EAGAIN)
        totals->eagain++;
    else
        die("%s: %s", totals->call, zmq_strerror(errno));
    return ret;
}

// Printing.

static inline const char *errno_name(int err)
{
    switch (err) {
    case EFSM: return "EFSM";
    case ENOCOMPATPROTO: return "ENOCOMPATPROTO";
    case ETERM: return "ETERM";
    case EMTHREAD: return "EMTHREAD";
    case ENOTSUP: return "ENOTSUP"; // glibc calls this number EOPNOTSUPP
    default: return strerrorname_np(err);
    }
}

// Bytes other than printable ASCII, and the backslash, as \xNN.
static inline void print_json_text(const char *text, size_t bytes)
{
    putchar('"');
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = text[i];
        if (byte < 0x20 || byte > 0x7e || byte == '\\')
            printf("\\\\x%02x", byte);
        else
            printf(byte == '"' ? "\\%c" : "%c", byte);
    }
    putchar('"');
}

static inline void print_number(const char *name, long value, bool known)
{
    if (known)
        printf(",\"%s\":%ld", name, value);
    else
        printf(",\"%s\":null", name);
}

static inline void print_text(const char *name, const char *text, size_t bytes)
{
    printf(",\"%s\":", name);
    if (text)
        print_json_text(text, bytes);
    else
        printf("null");
}

static inline void print_address(const char *name, const void *address)
{
    printf(address ? ",\"%s\":\"%p\"" : ",\"%s\":null", name, address);
}

static inline void print_call(const struct call *call)
{
    printf("{\"call\":\"%s\",\"tid\":%d", call->name, call->tid);
    print_address("handle", call->handle);
    if (call->returns_pointer)
        print_address("ret", (void *)call->ret);
    else
        print_number("ret", call->ret, true);
    const char *name = call->err ? errno_name(call->err) : NULL;
    print_text("errno", name, name ? strlen(name) : 0);
    print_number("size", call->size, call->size >= 0);
    print_number("flags", call->flags, call->flags >= 0);
    printf(",\"more\":%s", call->more < 0 ? "null" : call->more ? "true" : "false");
    print_text("payload", call->payload, call->payload_bytes);
    print_text("args", call->args, call->args ? strlen(call->args) : 0);
    printf(",\"start_ns\":%ld,\"end_ns\":%ld}", call->start_ns, call->end_ns);
}

// Prints and forgets all calls so far. They stand in the order in which they returned, for each thread.
static inline void print_calls(void)
{
    printf(",\"calls\":[");
    pthread_mutex_lock(&call_log.lock);
    for (size_t i = 0; i < call_log.count; i++) {
        fputs(i ? "," : "", stdout);
        print_call(&call_log.calls[i]);
        free(call_log.calls[i].payload);
        free(call_log.calls[i].args);
    }
    free(call_log.calls);
    call_log.calls = NULL;
    call_log.count = call_log.capacity = 0;
    pthread_mutex_unlock(&call_log.lock);
    putchar(']');
}

static inline void print_totals(const struct totals *totals, size_t count)
{
    printf(",\"totals\":[");
    for (size_t i = 0; i < count; i++) {
        printf("%s{\"call\":\"%s\"", i ? "," : "", totals[i].call);
        print_address("handle", totals[i].handle);
        printf(",\"count\":%lu,\"errors\":{", totals[i].count);
        if (totals[i].eagain)
            printf("\"EAGAIN\":%lu", totals[i].eagain);
        printf("},\"bytes\":%lu}", totals[i].bytes);
    }
    putchar(']');
}
