"""Messages of which it is known when each was sent and received: stages.c in Python, with threads or asyncio."""

import argparse
import asyncio
import struct
import threading
import time

import zmq
import zmq.asyncio

from workload import await_eof, await_go, bind_resolved, connect_fully, handle, ready, say

options = argparse.ArgumentParser()
options.add_argument("--pattern", choices=["push", "req"], default="push")
options.add_argument("--role", choices=["both", "sender", "receiver"], default="both")
options.add_argument("--endpoint", default="tcp://127.0.0.1:*")
options.add_argument("--count", type=int, default=1000)
options.add_argument("--size", type=int, default=64)
options.add_argument("--parts", type=int, default=1)
options.add_argument("--asyncio", action="store_true")
options.add_argument("--log")
options = options.parse_args()

TYPES = {"push": (zmq.PUSH, zmq.PULL), "req": (zmq.REQ, zmq.REP)}[options.pattern]
ANSWERS = options.pattern == "req"
SENT, RECEIVED = 0, 1

# before_ns, after_ns, size, number, sender, parts, socket, direction, and two bytes of nothing.
RECORD = struct.Struct("<qqIIHHBBxx")


class End:
    """A socket, with what it moved."""

    def __init__(self, socket, index):
        self.socket = socket
        self.index = index
        self.records = []
        self.moved = {SENT: [0, 0], RECEIVED: [0, 0]}

    def enter(self, direction, before_ns, parts):
        after_ns = time.monotonic_ns()
        size = sum(map(len, parts))
        number = 0
        if len(parts[0]) >= 8:
            number = int.from_bytes(parts[0][1:5], "little")
        self.records.append(
            RECORD.pack(before_ns, after_ns, size, number, 0, len(parts), self.index, direction)
        )
        self.moved[direction][0] += 1
        self.moved[direction][1] += size

    def truth(self):
        (sent, sent_bytes), (received, received_bytes) = self.moved[SENT], self.moved[RECEIVED]
        return {
            "handle": handle(self.socket),
            "sent": sent,
            "sent_bytes": sent_bytes,
            "received": received,
            "received_bytes": received_bytes,
        }


def message(number):
    """The first part takes what the division leaves, and begins with the mark of stages.h."""
    size = options.size // options.parts
    first = bytearray(size + options.size % options.parts)
    if len(first) >= 8:
        mark = ord("m") | number << 8
        first[:8] = mark.to_bytes(8, "little")
    return [bytes(first)] + [bytes(size)] * (options.parts - 1)


class Threads:
    """Each end in a thread."""

    @staticmethod
    def send(end, parts):
        before_ns = time.monotonic_ns()
        end.socket.send_multipart(parts)
        end.enter(SENT, before_ns, parts)

    @staticmethod
    def receive(end):
        before_ns = time.monotonic_ns()
        parts = end.socket.recv_multipart()
        end.enter(RECEIVED, before_ns, parts)
        return parts

    def send_all(self, end):
        for number in range(1, options.count + 1):
            self.send(end, message(number))
            if ANSWERS:
                self.receive(end)

    def receive_all(self, end):
        for _ in range(options.count):
            parts = self.receive(end)
            if ANSWERS:
                self.send(end, parts)

    def run(self, sender, receiver):
        jobs = []
        if sender:
            jobs.append(threading.Thread(target=self.send_all, args=(sender,)))
        if receiver:
            jobs.append(threading.Thread(target=self.receive_all, args=(receiver,)))
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()


class Asyncio:
    """Each end in a task of one loop. A message is sent or received in the program's eyes when its future is done."""

    @staticmethod
    async def send(end, parts):
        before_ns = time.monotonic_ns()
        await end.socket.send_multipart(parts)
        end.enter(SENT, before_ns, parts)

    @staticmethod
    async def receive(end):
        before_ns = time.monotonic_ns()
        parts = await end.socket.recv_multipart()
        end.enter(RECEIVED, before_ns, parts)
        return parts

    async def send_all(self, end):
        for number in range(1, options.count + 1):
            await self.send(end, message(number))
            if ANSWERS:
                await self.receive(end)

    async def receive_all(self, end):
        for _ in range(options.count):
            parts = await self.receive(end)
            if ANSWERS:
                await self.send(end, parts)

    async def run_all(self, sender, receiver):
        # What was set up without a loop.
        for end in filter(None, (sender, receiver)):
            end.socket = zmq.asyncio.Socket(end.socket)
        jobs = [self.send_all(sender)] if sender else []
        jobs += [self.receive_all(receiver)] if receiver else []
        await asyncio.gather(*jobs)

    def run(self, sender, receiver):
        asyncio.run(self.run_all(sender, receiver))


def main():
    runner = Asyncio() if options.asyncio else Threads()
    context = zmq.Context()
    sender = receiver = None
    ends, endpoint = [], options.endpoint
    if options.role != "sender":
        receiver = End(context.socket(TYPES[1]), 0)
        endpoint = bind_resolved(receiver.socket, endpoint)
        ends.append(receiver)
    if options.role != "receiver":
        sender = End(context.socket(TYPES[0]), len(ends))
        connect_fully(sender.socket, endpoint)
        ends.append(sender)
    ready(
        endpoint=endpoint,
        sockets=[
            {"handle": handle(end.socket), "type": zmq.SocketType(end.socket.type).name}
            for end in ends
        ],
    )

    await_go()
    runner.run(sender, receiver)
    if options.log:
        with open(options.log, "wb") as file:
            for end in ends:
                file.write(b"".join(end.records))
    say(
        done=True,
        records=sum(len(end.records) for end in ends),
        sockets=[end.truth() for end in ends],
    )
    await_eof()
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
