// A peer of a ZeroMQ socket that has no libzmq: it speaks ZMTP itself, in any version, and cuts what it writes where it
// likes. It connects to --endpoint, and once the handshake is done it is ready.
#include "stages.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { MORE = 1, LONG = 2, COMMAND = 4 };

static long count = 1000, parts = 1, chunk = 0, read_size = 65536, every = 0, stall = -1;
static struct sizes sizes;
static const char *type = "PUSH", *version = "3.1", *topic = NULL, *fails_with = NULL;
static bool pings, dies, late, plain;
static int connection;

static uint64_t written, writes, bytes_read, reads, pongs;

static void say_ready(void)
{
    ready("\"type\":\"%s\",\"zmtp\":\"%s\"", type, version);
    await_line("go");
}

// What is under way to the kernel. A frame is written in pieces of --chunk bytes, wherever these cut it. After --stall
// bytes it goes on when it is told to.

static void write_bytes(const void *data, size_t size)
{
    const char *bytes = data;
    while (size) {
        size_t piece = chunk && (size_t)chunk < size ? (size_t)chunk : size;
        if (stall >= 0 && written == (uint64_t)stall) {
            say_ready();
            stall = -1;
        } else if (stall >= 0 && written + piece > (uint64_t)stall)
            piece = stall - written;
        ssize_t ret = write(connection, bytes, piece);
        check(ret > 0);
        written += ret;
        writes++;
        bytes += ret;
        size -= ret;
    }
}

static void read_bytes(void *data, size_t size)
{
    for (char *bytes = data; size;) {
        size_t piece = (size_t)read_size < size ? (size_t)read_size : size;
        ssize_t ret = read(connection, bytes, piece);
        if (ret <= 0)
            die("the peer has closed: %m");
        bytes_read += ret;
        reads++;
        bytes += ret;
        size -= ret;
    }
}

// ZMTP. Versions 1 and 2 know no commands, version 1 no flag for long frames.

static int major_version(void)
{
    return version[0] - '0';
}

// Returns the header's length.
static size_t frame_header(unsigned char header[10], int flags, uint64_t size)
{
    if (major_version() == 1) {
        size_t length = 0;
        if (size + 1 < 255)
            header[length++] = size + 1; // the flags count
        else {
            header[length++] = 255;
            for (int shift = 56; shift >= 0; shift -= 8)
                header[length++] = (size + 1) >> shift;
        }
        header[length++] = flags & MORE;
        return length;
    }
    bool is_long = size > 255;
    size_t length = 0;
    header[length++] = flags | (is_long ? LONG : 0);
    for (int shift = is_long ? 56 : 0; shift >= 0; shift -= 8)
        header[length++] = size >> shift;
    return length;
}

static void write_frame(int flags, const void *body, size_t size)
{
    unsigned char *frame = malloc(size + 10);
    check(frame);
    size_t header = frame_header(frame, flags, size);
    if (size)
        memcpy(frame + header, body, size);
    write_bytes(frame, header + size);
    free(frame);
}

// Returns the body, which is the caller's to free.
static unsigned char *read_frame(int *flags, uint64_t *size)
{
    unsigned char byte, bytes[8];
    *size = 0;
    if (major_version() == 1) {
        read_bytes(&byte, 1);
        *size = byte;
        if (byte == 255) {
            read_bytes(bytes, 8);
            *size = 0;
            for (int i = 0; i < 8; i++)
                *size = *size << 8 | bytes[i];
        }
        --*size;
        read_bytes(&byte, 1);
        *flags = byte & MORE;
    } else {
        read_bytes(&byte, 1);
        *flags = byte;
        read_bytes(bytes, byte & LONG ? 8 : 1);
        for (int i = 0; i < (byte & LONG ? 8 : 1); i++)
            *size = *size << 8 | bytes[i];
    }
    unsigned char *body = malloc(*size + 1);
    check(body);
    read_bytes(body, *size);
    return body;
}

static void write_command(const char *name, const void *data, size_t size)
{
    char body[512];
    size_t length = strlen(name);
    check(1 + length + size <= sizeof body);
    body[0] = length;
    memcpy(body + 1, name, length);
    memcpy(body + 1 + length, data, size);
    write_frame(COMMAND, body, 1 + length + size);
}

// The command that says who this is: READY, of PLAIN's client INITIATE.
static void introduce(const char *name)
{
    char data[256];
    size_t length = 0, type_length = strlen(type);
    data[length++] = 11;
    memcpy(data + length, "Socket-Type", 11);
    length += 11;
    memcpy(data + length, "\0\0\0", 3);
    length += 3;
    data[length++] = type_length;
    memcpy(data + length, type, type_length);
    length += type_length;
    if (strcmp(type, "DEALER") == 0 || strcmp(type, "REQ") == 0) {
        memcpy(data + length, "\x08Identity\0\0\0\7rawpeer", 20);
        length += 20;
    }
    write_command(name, data, length);
}

static int type_number(void)
{
    static const char *const names[] = {"PAIR", "PUB",    "SUB",  "REQ",  "REP", "DEALER",
                                        "ROUTER", "PULL", "PUSH", "XPUB", "XSUB"};
    for (int i = 0; i < 11; i++)
        if (strcmp(names[i], type) == 0)
            return i;
    die("unknown type %s", type);
}

static void expect(const char *name)
{
    int flags;
    uint64_t size;
    unsigned char *body = read_frame(&flags, &size);
    size_t length = strlen(name);
    if (!(flags & COMMAND) || size < 1 + length || body[0] != length || memcmp(body + 1, name, length) != 0)
        die("no %s but a frame of %lu bytes with flags %d", name, size, flags);
    free(body);
}

static void shake_hands_3(void)
{
    unsigned char greeting[64] = {0xff, [8] = 1, [9] = 0x7f, [10] = 3, [11] = version[2] - '0'};
    strcpy((char *)greeting + 12, plain ? "PLAIN" : "NULL");
    write_bytes(greeting, sizeof greeting);
    read_bytes(greeting, sizeof greeting);
    if (fails_with) {
        char error[256];
        error[0] = strlen(fails_with);
        memcpy(error + 1, fails_with, error[0]);
        write_command("ERROR", error, 1 + error[0]);
        return;
    }
    if (plain) {
        write_command("HELLO", "\4name\6secret", 12);
        expect("WELCOME");
    }
    introduce(plain ? "INITIATE" : "READY");
    expect("READY");
}

// The signature, by which a libzmq sees that there are versions; then version, type, and the identity as a frame.
static void shake_hands_2(void)
{
    unsigned char greeting[12] = {0xff, [8] = 1, [9] = 0x7f, [10] = 1, [11] = type_number()}, theirs[12];
    write_bytes(greeting, sizeof greeting);
    read_bytes(theirs, 11); // it waits for our version before it sends the rest of its own
    read_bytes(theirs + 11, 1);
    int flags;
    uint64_t size;
    write_frame(0, "rawpeer", 7);
    free(read_frame(&flags, &size));
}

// An identity at once. What libzmq begins with looks like the long header of a frame and is one: of its own identity.
static void shake_hands_1(void)
{
    write_frame(0, "rawpeer", 7);
    unsigned char theirs[10], identity[255];
    read_bytes(theirs, sizeof theirs);
    if (theirs[0] != 0xff || theirs[8] == 0 || theirs[9] != 0x7f)
        die("the greeting is not libzmq's");
    read_bytes(identity, theirs[8] - 1);
}

static void open_connection(const char *endpoint)
{
    if (strncmp(endpoint, "ipc://", 6) == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        check(strlen(endpoint + 6) < sizeof address.sun_path);
        memcpy(address.sun_path, endpoint + 6, strlen(endpoint + 6));
        check((connection = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0);
        check(connect(connection, (struct sockaddr *)&address, sizeof address) == 0);
        return;
    }
    const char *port = strrchr(endpoint, ':');
    check(strncmp(endpoint, "tcp://127.0.0.1:", 16) == 0 && port);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port + 1)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;
    check((connection = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    check(setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0);
    check(connect(connection, (struct sockaddr *)&address, sizeof address) == 0);
}

static void shake_hands(void)
{
    switch (major_version()) {
    case 1: shake_hands_1(); break;
    case 2: shake_hands_2(); break;
    default: shake_hands_3(); break;
    }
}

// By a command in ZMTP 3.1, by a message before.
static void subscribe(bool on)
{
    char body[256];
    size_t length = strlen(topic);
    check(length < sizeof body);
    if (strcmp(version, "3.1") == 0) {
        write_command(on ? "SUBSCRIBE" : "CANCEL", topic, length);
        return;
    }
    body[0] = on;
    memcpy(body + 1, topic, length);
    write_frame(0, body, 1 + length);
}

static void ping(void)
{
    check(major_version() == 3);
    write_command("PING", "\0\144zmq", 5); // 10 s, and what the answer repeats
}

// Half of a frame, and then no more of anything.
static void die_in_message(void)
{
    unsigned char header[10];
    uint64_t size = 1 << 20;
    write_bytes(header, frame_header(header, 0, size));
    char *body = calloc(1, size / 2);
    check(body);
    write_bytes(body, size / 2);
    done_begin();
    printf(",\"sent\":%ld,\"bytes\":%lu", count, written);
    json_end();
    await_eof();
    raise(SIGKILL);
}

static void send_all(uint64_t *payload)
{
    char *buffer = calloc(1, largest(&sizes) + 8);
    check(buffer);
    for (uint32_t number = 1; number <= count; number++) {
        uint32_t size = size_of(&sizes, number);
        if (size_of_part(size, parts, 0) >= 8)
            write_mark(buffer, (struct mark){number, 0, 'm', false});
        for (long i = 0; i < parts; i++)
            write_frame(i < parts - 1 ? MORE : 0, buffer, size_of_part(size, parts, i));
        *payload += size;
        if (pings && every && number % every == 0)
            ping();
    }
    free(buffer);
}

// Reads until as many messages, and answers to pings, have come as are due.
static void receive_all(long due, uint64_t pongs_due, long *received, uint64_t *payload)
{
    while (*received < due || pongs < pongs_due) {
        int flags;
        uint64_t size;
        unsigned char *body = read_frame(&flags, &size);
        if (flags & COMMAND)
            pongs += size >= 5 && memcmp(body, "\4PONG", 5) == 0;
        else {
            *payload += size;
            *received += !(flags & MORE);
        }
        free(body);
    }
}

int main(int argc, char **argv)
{
    const char *endpoint = NULL, *size = "64";
    parse_options(argc, argv,
                  (const struct option_spec[]){{"endpoint", TEXT, &endpoint},
                                               {"type", TEXT, &type},
                                               {"zmtp", TEXT, &version},
                                               {"count", INTEGER, &count},
                                               {"size", TEXT, &size},
                                               {"parts", INTEGER, &parts},
                                               {"chunk", INTEGER, &chunk},
                                               {"read", INTEGER, &read_size},
                                               {"ping-every", INTEGER, &every},
                                               {"stall", INTEGER, &stall},
                                               {"subscribe", TEXT, &topic},
                                               {"error", TEXT, &fails_with},
                                               {"die-in-message", FLAG, &dies},
                                               {"late", FLAG, &late},
                                               {"plain", FLAG, &plain},
                                               {0}});
    sizes = parse_sizes(size);
    pings = every > 0;
    bool stalls = stall >= 0;
    bool receives = strcmp(type, "SUB") == 0 || strcmp(type, "PULL") == 0;
    if (!endpoint || (*version != '1' && *version != '2' && *version != '3'))
        die("give an --endpoint to connect to; --zmtp is 1.0, 2.0, 3.0 or 3.1");
    // Where the handshake is to be seen it waits.
    if (!late) {
        open_connection(endpoint);
        shake_hands();
    }
    if (!stalls)
        say_ready();
    if (late) {
        open_connection(endpoint);
        shake_hands();
    }
    long received = 0;
    uint64_t payload = 0;
    if (topic)
        subscribe(true);
    if (!fails_with && !receives)
        send_all(&payload);
    if (dies)
        die_in_message();
    if (receives && pings)
        ping();
    if (!fails_with)
        receive_all(receives ? count : 0, pings ? (receives ? 1 : count / every) : 0, &received, &payload);
    if (topic)
        subscribe(false);
    done_begin();
    printf(",\"sent\":%ld,\"received\":%ld,\"payload_bytes\":%lu,\"pongs\":%lu,\"bytes_written\":%lu,\"writes\":%lu,"
           "\"bytes_read\":%lu,\"reads\":%lu",
           receives || fails_with ? 0 : count, received, payload, pongs, written, writes, bytes_read, reads);
    json_end();
    await_eof();
    return 0;
}
