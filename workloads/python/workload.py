"""The protocol of ../README.md, and the log of the libzmq calls that pyzmq makes for a program."""

import errno
import json
import os
import sys
import threading
import time
import traceback

import zmq


def die(message):
    """At once, without waiting for other threads and contexts, which may never end now."""
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


sys.excepthook = lambda *error: die("".join(traceback.format_exception(*error)))
threading.excepthook = lambda error: sys.excepthook(*error[:3])


def say(**members):
    print(json.dumps(members, separators=(",", ":")), flush=True)


def ready(**members):
    say(ready=True, pid=os.getpid(), **members)


def await_go():
    line = sys.stdin.readline()
    if line != "go\n":
        die(f'expected the line "go", got {line!r}')


def another_phase(phases):
    """After a done line: another `go` (True) or the end of stdin (False)."""
    if not phases:
        await_eof()
        return False
    line = sys.stdin.readline()
    if line not in ("go\n", ""):
        die(f'expected the line "go", got {line!r}')
    return line != ""


def await_eof():
    for _ in sys.stdin:
        pass


def handle(socket):
    return hex(socket.underlying)


def bind_resolved(socket, endpoint="tcp://127.0.0.1:*"):
    socket.bind(endpoint)
    return socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()


def connect_fully(socket, endpoint):
    """Connects and returns when the ZMTP handshake is done."""
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    socket.connect(endpoint)
    monitor.recv_multipart()
    socket.disable_monitor()


def escaped(data):
    """Bytes other than printable ASCII, and the backslash, as \\xNN."""
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != ord("\\") else f"\\x{byte:02x}"
        for byte in data
    )


def total(call, socket, count, size):
    return {
        "call": call,
        "handle": handle(socket),
        "count": count,
        "errors": {},
        "bytes": count * size,
    }


class CallLog:
    """Every libzmq call but the zmq_msg_* that only make, fill and close messages."""

    # libzmq's own error numbers, which Python's errno module does not know.
    ERRNO_NAMES = {int(number): number.name for number in zmq.Errno} | errno.errorcode

    def __init__(self):
        self.calls = []

    def run(self, operation, *args, **kwargs):
        """Runs a pyzmq operation and returns its result, or the ZMQError it raised.

        The calls entered next were made by it and carry its times: pyzmq's own work is included.
        """
        self.start_ns = time.monotonic_ns()
        try:
            result = operation(*args, **kwargs)
        except zmq.ZMQError as error:
            result = error
        self.end_ns = time.monotonic_ns()
        return result

    def enter(self, call, handle, ret, size=None, flags=None, more=None, payload=None, args=None):
        """`ret` is what libzmq returned, or the ZMQError that pyzmq made of a failure."""
        failed = isinstance(ret, zmq.ZMQError)
        self.calls.append(
            {
                "call": call,
                "tid": threading.get_native_id(),
                "handle": handle,
                "ret": -1 if failed else ret,
                "errno": self.ERRNO_NAMES[ret.errno] if failed else None,
                "size": size,
                "flags": flags,
                "more": more,
                "payload": None if payload is None else escaped(payload),
                "args": args,
                "start_ns": self.start_ns,
                "end_ns": self.end_ns,
            }
        )
