"""A small live.c: sockets, connections and their fds that come and go, as monitors tell of them.

Between them the program closes files of its own, which have the same fds before and after.
"""

import argparse
import time

import zmq
from zmq.utils.monitor import recv_monitor_message

from workload import await_eof, await_go, bind_resolved, handle, ready, say

KINDS = {
    zmq.EVENT_LISTENING: "listening",
    zmq.EVENT_ACCEPTED: "accepted",
    zmq.EVENT_CONNECTED: "connected",
}


class Watched:
    """A socket and its monitor."""

    def __init__(self, context, kind, log):
        self.socket = context.socket(kind)
        self.socket.linger = 0
        self.handle = handle(self.socket)
        self.monitor = self.socket.get_monitor_socket(sum(KINDS))
        self.log = log
        self.note("mailbox", self.socket.FD)

    def note(self, event, fd=-1):
        ns = time.monotonic_ns()
        self.log.append({"handle": self.handle, "event": event, "fd": fd, "ns": ns})

    def await_event(self, wanted):
        event = recv_monitor_message(self.monitor)
        assert event["event"] == wanted, event
        self.note(KINDS[wanted], event["value"])

    def close(self):
        self.note("close")
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()


def couple(context, endpoint, log):
    bound, connected = Watched(context, zmq.PULL, log), Watched(context, zmq.PUSH, log)
    endpoint = bind_resolved(bound.socket, endpoint)
    bound.await_event(zmq.EVENT_LISTENING)
    connected.socket.connect(endpoint)
    connected.await_event(zmq.EVENT_CONNECTED)
    bound.await_event(zmq.EVENT_ACCEPTED)
    connected.socket.send(b"hello")
    bound.socket.recv()
    return connected, bound


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    contexts, log, foreign = [zmq.Context(), zmq.Context(2)], [], []
    kept = [couple(context, "tcp://127.0.0.1:*", log) for context in contexts]
    ready()
    await_go()
    for i in range(rounds):
        for socket in kept[i % 2]:
            socket.close()
        with open("/dev/null", "rb") as file:
            from_ns = time.monotonic_ns()
            foreign.append({"fd": file.fileno(), "from_ns": from_ns, "to_ns": time.monotonic_ns()})
        endpoint = "ipc://*" if i % 3 else "tcp://127.0.0.1:*"
        kept[i % 2] = couple(contexts[i % 2], endpoint, log)
    say(done=True, fd_events=log, foreign=foreign)
    await_eof()
    for socket in kept[0] + kept[1]:
        socket.close()
    for context in contexts:
        context.term()


if __name__ == "__main__":
    main()
