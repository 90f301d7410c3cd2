"""N requests and replies through zmq.asyncio: one REQ and one REP socket on one event loop.

pyzmq tries a receive only when zmq_getsockopt(ZMQ_EVENTS) has said that it would succeed, and a send
first with DONTWAIT: none of these calls blocks, and none fails here.
"""

import argparse
import asyncio

import zmq
import zmq.asyncio

from workload import await_eof, await_go, bind_resolved, connect_fully, handle, ready, say, total

options = argparse.ArgumentParser()
options.add_argument("--count", type=int, default=1000)
options.add_argument("--size", type=int, default=64)
options = options.parse_args()


async def ask(socket):
    for _ in range(options.count):
        await socket.send(bytes(options.size))
        await socket.recv()


async def answer(socket):
    for _ in range(options.count):
        await socket.send(await socket.recv())


async def echo(client, server):
    # The same libzmq sockets, seen through asyncio.
    await asyncio.gather(
        ask(zmq.asyncio.Socket(client)), answer(zmq.asyncio.Socket(server))
    )


def main():
    context = zmq.Context()
    server, client = context.socket(zmq.REP), context.socket(zmq.REQ)
    endpoint = bind_resolved(server)
    connect_fully(client, endpoint)
    ready(endpoint=endpoint, client=handle(client), server=handle(server))

    await_go()
    asyncio.run(echo(client, server))
    say(
        done=True,
        totals=[
            total(call, socket, options.count, options.size)
            for socket in (client, server)
            for call in ("zmq_msg_send", "zmq_msg_recv")
        ],
    )
    await_eof()
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
