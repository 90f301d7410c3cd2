"""A plain service that goes on running: REQ/REP round trips and a PUB/SUB feed, a few when asked to.

It takes lines `step N` instead of `go`: each does N round trips, publishes N updates and prints a
done line with the totals of that step. Between them it waits, as most programs do when somebody
attaches to them.
"""

import sys
import threading

import zmq

from workload import bind_resolved, connect_fully, die, handle, ready, say, total


def answer(server):
    """A thread of its own, blocked in zmq_msg_recv nearly always."""
    try:
        while True:
            server.send(b"done " + server.recv())
    except zmq.ContextTerminated:
        server.close(linger=0)


def step(count, client, publisher, subscriber):
    for i in range(count):
        client.send(b"job %06d" % i)
        client.recv()
        publisher.send(b"jobs %06d" % i)
        subscriber.recv()


def main():
    context = zmq.Context()
    server, client = context.socket(zmq.REP), context.socket(zmq.REQ)
    publisher, subscriber = context.socket(zmq.XPUB), context.socket(zmq.SUB)
    requests, feed = bind_resolved(server), bind_resolved(publisher)
    connect_fully(client, requests)
    subscriber.subscribe(b"jobs")
    subscriber.connect(feed)
    publisher.recv()  # the subscription: from here on nothing is published to nobody
    server_handle = handle(server)
    threading.Thread(target=answer, args=(server,)).start()
    ready(
        endpoints=[requests, feed],
        client=handle(client),
        server=server_handle,
        publisher=handle(publisher),
        subscriber=handle(subscriber),
    )

    for line in sys.stdin:
        word, number = line.split()
        if word != "step":
            die(f'expected "step N", got {line!r}')
        count = int(number)
        step(count, client, publisher, subscriber)
        say(
            done=True,
            totals=[
                total("zmq_msg_send", client, count, len(b"job 000000")),
                total("zmq_msg_recv", client, count, len(b"done job 000000")),
                total("zmq_msg_recv", server, count, len(b"job 000000")),
                total("zmq_msg_send", server, count, len(b"done job 000000")),
                total("zmq_msg_send", publisher, count, len(b"jobs 000000")),
                total("zmq_msg_recv", subscriber, count, len(b"jobs 000000")),
            ],
        )

    for socket in (client, publisher, subscriber):
        socket.close(linger=0)
    context.term()  # ends the server's thread by ETERM and waits until it has closed its socket


if __name__ == "__main__":
    main()
