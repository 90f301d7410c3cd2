// A large process: --sockets N, half of them PULLs, half of them PUSHes, with --connections M between
// them over tcp, each of which has both of its ends (and fds) in here. The line `measure` moves
// --rounds rounds of messages, one over each connection, and says how many a second: the ratio of two
// of these figures is what being watched costs. With --traffic such rounds go on all the time, except
// while measuring. --io-threads N.
#include "census.h"

#include <dirent.h>
#include <sys/resource.h>

static long sockets = 1000, connections = 2000, rounds = 100, io_threads = 1;
static bool traffic;

struct pull {
    void *socket;
    char endpoint[256];
    int listener_fd;
    int *fds; // of its connections
    long fd_count;
};

static void *context;
static long half;   // the number of PULLs, and of PUSHes
static long degree; // connections of each socket
static struct pull *pulls;
static void **pushes;
static _Atomic bool quiet; // the traffic is to end
static pthread_t carrier;

static void raise_limit(rlim_t fds)
{
    struct rlimit limit;
    check(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur >= fds)
        return;
    limit.rlim_cur = fds;
    if (limit.rlim_max < fds)
        limit.rlim_max = fds; // which needs to be root
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        die("%lu fds are too many here: %m", fds);
}

static void *new_socket(int type)
{
    void *socket = zmq_socket(context, type);
    int none = 0;
    check(socket && zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none) == 0);
    return socket;
}

// One message over each connection: a PUSH gives each of its connections one in turn.
static long pass_round(void)
{
    char message[64] = "";
    for (long i = 0; i < half; i++)
        for (long n = 0; n < degree; n++)
            check(zmq_send(pushes[i], message, sizeof message, 0) == sizeof message);
    for (long i = 0; i < half; i++)
        for (long n = 0; n < degree; n++)
            check(zmq_recv(pulls[i].socket, message, sizeof message, 0) == sizeof message);
    return half * degree;
}

static void set_up(void)
{
    raise_limit(2 * connections + 4 * sockets + 100); // mailboxes of old releases have two fds each
    check((context = zmq_ctx_new()) != NULL);
    check(zmq_ctx_set(context, ZMQ_MAX_SOCKETS, sockets) == 0);
    check(zmq_ctx_set(context, ZMQ_IO_THREADS, io_threads) == 0);
    check((pulls = calloc(half, sizeof *pulls)) && (pushes = calloc(half, sizeof *pushes)));
    int backlog = degree + 1;
    for (long i = 0; i < half; i++) {
        size_t size = sizeof pulls[i].endpoint;
        pulls[i].socket = new_socket(ZMQ_PULL);
        check(zmq_setsockopt(pulls[i].socket, ZMQ_BACKLOG, &backlog, sizeof backlog) == 0);
        check(zmq_bind(pulls[i].socket, "tcp://127.0.0.1:*") == 0);
        check(zmq_getsockopt(pulls[i].socket, ZMQ_LAST_ENDPOINT, pulls[i].endpoint, &size) == 0);
        check((pulls[i].fds = calloc(degree, sizeof(int))) != NULL);
    }
    for (long i = 0; i < half; i++) {
        pushes[i] = new_socket(ZMQ_PUSH);
        for (long n = 0; n < degree; n++)
            check(zmq_connect(pushes[i], pulls[(i + n) % half].endpoint) == 0);
    }
    pass_round(); // when it has passed, all connections are up
}

static int port_of(const char *address)
{
    return atoi(strrchr(address, ':') + 1);
}

// Enters an fd with the PULL whose port it has, if it is a listener or an accepted connection.
static void enter_fd(int fd, struct pull *const *by_port)
{
    char local[128], remote[128];
    struct stat file;
    if (fstat(fd, &file) != 0 || !S_ISSOCK(file.st_mode))
        return;
    address_of(getsockname, fd, local);
    address_of(getpeername, fd, remote);
    if (strncmp(local, "127.0.0.1:", 10) != 0 || !by_port[port_of(local)])
        return;
    struct pull *pull = by_port[port_of(local)];
    if (!remote[0])
        pull->listener_fd = fd;
    else {
        check(pull->fd_count < degree);
        pull->fds[pull->fd_count++] = fd;
    }
}

// Which fds belong to which PULL is known by their ports; monitors would double the sockets.
static void find_fds(void)
{
    static struct pull *by_port[1 << 16];
    for (long i = 0; i < half; i++)
        by_port[port_of(pulls[i].endpoint)] = &pulls[i];
    DIR *fds = opendir("/proc/self/fd");
    check(fds);
    for (struct dirent *entry; (entry = readdir(fds));)
        enter_fd(atoi(entry->d_name), by_port);
    closedir(fds);
    for (long i = 0; i < half; i++)
        check(pulls[i].fd_count == degree);
}

static void *carry(void *unused)
{
    while (!quiet)
        pass_round();
    return unused;
}

static void start_traffic(void)
{
    quiet = false;
    check(pthread_create(&carrier, NULL, carry, NULL) == 0);
}

static void stop_traffic(void)
{
    quiet = true;
    check(pthread_join(carrier, NULL) == 0);
}

static void measure(void)
{
    long messages = 0;
    int64_t begin_ns = now_ns();
    for (long i = 0; i < rounds; i++)
        messages += pass_round();
    double seconds = (now_ns() - begin_ns) / 1e9;
    printf("{\"measure\":true,\"messages\":%ld,\"seconds\":%.6f,\"msgs_per_s\":%.0f", messages,
           seconds, messages / seconds);
    json_end();
}

static void print_pull(const struct pull *pull)
{
    printf("{\"handle\":\"%p\",\"type\":\"PULL\",\"mailbox_fd\":%d,\"connection_count\":%ld",
           pull->socket, mailbox_fd(pull->socket), degree);
    printf(",\"endpoints\":[{\"endpoint\":\"%s\",\"role\":\"bind\",\"fd\":%d}],\"fds\":",
           pull->endpoint, pull->listener_fd);
    LIST(f, pull->fd_count, printf("%d", pull->fds[f]));
    putchar('}');
}

static void print_push(void *push)
{
    printf(",{\"handle\":\"%p\",\"type\":\"PUSH\",\"mailbox_fd\":%d,\"connection_count\":%ld}", push,
           mailbox_fd(push), degree);
}

static void state(void)
{
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    printf("{\"ready\":true,\"pid\":%d,\"libzmq\":\"%d.%d.%d\"", getpid(), major, minor, patch);
    printf(",\"sockets\":%ld,\"connections\":%ld", 2 * half, half * degree);
    printf(",\"contexts\":[{\"handle\":\"%p\",\"io_threads\":%ld,\"max_sockets\":%ld", context,
           io_threads, sockets);
    printf(",\"sockets\":[");
    for (long i = 0; i < half; i++) {
        fputs(i ? "," : "", stdout);
        print_pull(&pulls[i]);
    }
    for (long i = 0; i < half; i++)
        print_push(pushes[i]);
    printf("]}]");
    json_end();
}

int main(int argc, char **argv)
{
    parse_options(argc, argv,
                  (const struct option_spec[]){{"sockets", INTEGER, &sockets},
                                               {"connections", INTEGER, &connections},
                                               {"rounds", INTEGER, &rounds},
                                               {"io-threads", INTEGER, &io_threads},
                                               {"traffic", FLAG, &traffic},
                                               {0}});
    half = sockets / 2;
    if (half < 1 || sockets % 2 || connections < half || connections % half || rounds < 1)
        die("--sockets is even, and --connections a multiple of the half of it");
    degree = connections / half;
    if (degree > half)
        die("there are only %ld other sockets to connect to", half);

    set_up();
    find_fds();
    state();
    if (traffic)
        start_traffic();
    char line[64];
    while (read_line(line, sizeof line)) {
        if (strcmp(line, "measure") != 0)
            die("expected the line \"measure\", got \"%s\"", line);
        if (traffic)
            stop_traffic();
        measure();
        if (traffic)
            start_traffic();
    }
    if (traffic)
        stop_traffic();

    for (long i = 0; i < half; i++)
        check(zmq_close(pushes[i]) == 0 && zmq_close(pulls[i].socket) == 0);
    check(zmq_ctx_term(context) == 0);
    return 0;
}
