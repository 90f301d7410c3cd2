"""Round trips between a REQ and a REP socket: reqrep.c in Python."""

import argparse
import statistics
import threading
import time

import zmq

from workload import another_phase, await_go, bind_resolved, connect_fully, handle, ready, say, total

options = argparse.ArgumentParser()
options.add_argument("--role", choices=["both", "client", "server"], default="both")
options.add_argument("--endpoint", default="tcp://127.0.0.1:*")
options.add_argument("--count", type=int, default=1000)
options.add_argument("--size", type=int, default=64)
options.add_argument("--phases", action="store_true")
options = options.parse_args()


def ask(socket, round_trips_ns):
    message = bytes(options.size)
    for _ in range(options.count):
        start_ns = time.perf_counter_ns()
        socket.send(message)
        socket.recv()
        round_trips_ns.append(time.perf_counter_ns() - start_ns)


def answer(socket):
    for _ in range(options.count):
        socket.send(socket.recv())


def main():
    context = zmq.Context()
    server = client = None
    endpoint, members = options.endpoint, {}
    if options.role != "client":
        server = context.socket(zmq.REP)
        endpoint = bind_resolved(server, endpoint)
        members["server"] = {"handle": handle(server)}
    if options.role != "server":
        client = context.socket(zmq.REQ)
        connect_fully(client, endpoint)
        members["client"] = {"handle": handle(client)}
    ready(endpoint=endpoint, **members)

    await_go()
    while True:
        round_trips_ns = []
        jobs = []
        if client:
            jobs.append(threading.Thread(target=ask, args=(client, round_trips_ns)))
        if server:
            jobs.append(threading.Thread(target=answer, args=(server,)))
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

        truth = {
            "totals": [
                total(call, socket, options.count, options.size)
                for socket in (client, server)
                if socket
                for call in ("zmq_msg_send", "zmq_msg_recv")
            ]
        }
        if client:
            truth["round_trip_ns"] = {
                "min": min(round_trips_ns),
                "median": int(statistics.median(round_trips_ns)),
                "mean": int(statistics.mean(round_trips_ns)),
            }
        say(done=True, **truth)
        if not another_phase(options.phases):
            break
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
