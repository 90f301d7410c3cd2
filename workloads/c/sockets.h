// Endpoints that never collide, and connections that are known to be up.
#pragma once
#include "protocol.h"

#include <zmq.h>

// Binds to an endpoint, which may be a wildcard ("tcp://127.0.0.1:*", "ipc://*"), and stores the one
// that came of it. libzmq makes and removes the folder of an ipc wildcard itself, but in the current
// directory, and so with a relative name, when the environment names no place for it.
static inline void bind_resolved(void *socket, const char *endpoint, char resolved[256])
{
    size_t size = 256;
    check(setenv("TMPDIR", P_tmpdir, 0) == 0);
    check(zmq_bind(socket, endpoint) == 0);
    check(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, resolved, &size) == 0);
}

static inline const char *wildcard_endpoint(const char *transport)
{
    if (strcmp(transport, "tcp") == 0)
        return "tcp://127.0.0.1:*";
    if (strcmp(transport, "ipc") == 0)
        return "ipc://*";
    if (strcmp(transport, "inproc") == 0)
        return "inproc://workload";
    die("unknown transport %s", transport);
}

// Before 4.3 the best that a monitor tells is that the transport is connected.
static inline int connected_event(void)
{
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    return major > 4 || (major == 4 && minor >= 3) ? ZMQ_EVENT_HANDSHAKE_SUCCEEDED
                                                   : ZMQ_EVENT_CONNECTED;
}

// Connects and returns when the ZMTP handshake is done (inproc has none: it is done at once).
static inline void connect_fully(void *context, void *socket, const char *endpoint)
{
    if (strncmp(endpoint, "inproc:", 7) == 0) {
        check(zmq_connect(socket, endpoint) == 0);
        return;
    }
    // The name of an earlier one is taken until the reaper has been there.
    static _Atomic unsigned monitors;
    char monitor_endpoint[64];
    snprintf(monitor_endpoint, sizeof monitor_endpoint, "inproc://handshake-%u", monitors++);
    check(zmq_socket_monitor(socket, monitor_endpoint, connected_event()) == 0);
    void *monitor = zmq_socket(context, ZMQ_PAIR);
    check(monitor && zmq_connect(monitor, monitor_endpoint) == 0);
    check(zmq_connect(socket, endpoint) == 0);
    char event[6], address[256]; // u16 event, u32 value; then the endpoint as a second part
    check(zmq_recv(monitor, event, sizeof event, 0) == sizeof event);
    check(zmq_recv(monitor, address, sizeof address, 0) >= 0);
    check(zmq_socket_monitor(socket, NULL, 0) == 0);
    check(zmq_close(monitor) == 0);
}
