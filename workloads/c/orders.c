// The demo: a small shop in one process, its parts joined by tcp, until stdin ends.
//
//   shop-1..3     --REQ/REP-->   desk       --PUSH/PULL-->   packer-1, packer-2
//   packer-N      --REQ/REP-->   stock-N    (stock-2 now and then answers late, so packer-2 blocks)
//   prices        --PUB/SUB-->   screen
#include "sockets.h"
#include "truth.h"

enum { SHOPS = 3, PACKERS = 2, SHOP_PAUSE_MS = 40, PRICE_PAUSE_MS = 100 };

static long late_ms = 400, late_every = 20;

struct part {
    const char *name;
    void (*run)(struct part *);
    void *first, *second; // its sockets, left to right in the picture
    bool late;
    uint64_t sent; // messages
    pthread_t thread;
};

// False when the shop closes, which every call in flight learns as ETERM.
static bool still_open(int ret)
{
    check(ret >= 0 || errno == ETERM);
    return ret >= 0;
}

__attribute__((format(printf, 3, 4))) static bool say(struct part *part, void *socket,
                                                      const char *format, ...)
{
    char text[128];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!still_open(zmq_send(socket, text, size, 0)))
        return false;
    part->sent++;
    return true;
}

static bool hear(void *socket, char text[128])
{
    int size = zmq_recv(socket, text, 127, 0);
    if (size >= 0)
        text[size] = '\0';
    return still_open(size);
}

static void pause_ms(long ms)
{
    sleep_until_ns(now_ns() + ms * 1000000);
}

static void shop(struct part *self)
{
    char reply[128];
    for (int order = 1;; order++) {
        if (!say(self, self->first, "order %d of %s: tea", order, self->name) ||
            !hear(self->first, reply))
            return;
        pause_ms(SHOP_PAUSE_MS);
    }
}

static void desk(struct part *self)
{
    char order[128];
    while (hear(self->first, order) && say(self, self->second, "pack %s", order) &&
           say(self, self->first, "accepted"))
        ;
}

static void packer(struct part *self)
{
    char order[128], reply[128];
    while (hear(self->first, order) && say(self, self->second, "reserve for %s", order) &&
           hear(self->second, reply))
        ;
}

static void stock(struct part *self)
{
    char request[128];
    for (long n = 1; hear(self->first, request); n++) {
        if (self->late && n % late_every == 0)
            pause_ms(late_ms); // somebody looks for it by hand
        if (!say(self, self->first, "reserved"))
            return;
    }
}

static void prices(struct part *self)
{
    for (int tick = 0; say(self, self->first, "price.tea %d", 300 + tick % 20); tick++)
        pause_ms(PRICE_PAUSE_MS);
}

static void screen(struct part *self)
{
    char price[128];
    while (hear(self->first, price))
        ;
}

static void *run(void *argument)
{
    struct part *part = argument;
    check(pthread_setname_np(pthread_self(), part->name) == 0);
    part->run(part);
    check(zmq_close(part->first) == 0 && (!part->second || zmq_close(part->second) == 0));
    return NULL;
}

static void *new_socket(void *context, int type)
{
    void *socket = zmq_socket(context, type);
    int none = 0;
    check(socket && zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none) == 0);
    return socket;
}

static void *bound(void *context, int type, char endpoint[256])
{
    void *socket = new_socket(context, type);
    bind_resolved(socket, "tcp://127.0.0.1:*", endpoint);
    return socket;
}

static void *connected(void *context, int type, const char *endpoint)
{
    void *socket = new_socket(context, type);
    if (type == ZMQ_SUB)
        check(zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "price.", 6) == 0);
    connect_fully(context, socket, endpoint);
    return socket;
}

int main(int argc, char **argv)
{
    parse_options(argc, argv,
                  (const struct option_spec[]){{"late-ms", INTEGER, &late_ms},
                                               {"late-every", INTEGER, &late_every},
                                               {0}});
    if (late_ms < 0 || late_every <= 0)
        die("--late-every is positive, --late-ms not negative");

    void *context = zmq_ctx_new();
    check(context);
    char orders[256], packing[256], feed[256], shelf[PACKERS][256];
    struct part parts[] = {
        {.name = "desk", .run = desk},
        {.name = "prices", .run = prices},
        {.name = "screen", .run = screen},
        {.name = "stock-1", .run = stock},
        {.name = "stock-2", .run = stock, .late = true},
        {.name = "packer-1", .run = packer},
        {.name = "packer-2", .run = packer},
        {.name = "shop-1", .run = shop},
        {.name = "shop-2", .run = shop},
        {.name = "shop-3", .run = shop},
    };
    enum { PARTS = sizeof parts / sizeof *parts, STOCK = 3, PACKER = 5, SHOP = 7 };
    parts[0].first = bound(context, ZMQ_REP, orders);
    parts[0].second = bound(context, ZMQ_PUSH, packing);
    parts[1].first = bound(context, ZMQ_PUB, feed);
    parts[2].first = connected(context, ZMQ_SUB, feed);
    for (int i = 0; i < PACKERS; i++) {
        parts[STOCK + i].first = bound(context, ZMQ_REP, shelf[i]);
        parts[PACKER + i].first = connected(context, ZMQ_PULL, packing);
        parts[PACKER + i].second = connected(context, ZMQ_REQ, shelf[i]);
    }
    for (int i = 0; i < SHOPS; i++)
        parts[SHOP + i].first = connected(context, ZMQ_REQ, orders);
    ready("\"desk\":\"%s\",\"packing\":\"%s\",\"prices\":\"%s\",\"stock\":[\"%s\",\"%s\"]", orders,
          packing, feed, shelf[0], shelf[1]);

    await_line("go");
    for (int i = 0; i < PARTS; i++)
        check(pthread_create(&parts[i].thread, NULL, run, &parts[i]) == 0);
    await_eof();
    check(zmq_ctx_shutdown(context) == 0);
    for (int i = 0; i < PARTS; i++)
        check(pthread_join(parts[i].thread, NULL) == 0);
    check(zmq_ctx_term(context) == 0);

    done_begin();
    printf(",\"sent\":{");
    for (int i = 0; i < PARTS; i++)
        printf("%s\"%s\":%lu", i ? "," : "", parts[i].name, parts[i].sent);
    putchar('}');
    json_end();
    return 0;
}
