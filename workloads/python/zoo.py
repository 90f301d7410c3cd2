"""A few sockets of a Python program, stated in full: see ../README.md, "Census".

One thread is blocked in a receive under nested functions, another runs an asyncio loop that waits for
two sockets. Both are so when the ready line comes. The line `truth` states all again.
"""

import asyncio
import fcntl
import os
import socket as sockets
import struct
import sys
import tempfile
import termios
import threading

import zmq
import zmq.asyncio

from workload import die, escaped, handle, ready, say

OPTIONS = {
    "sndhwm": zmq.SNDHWM,
    "rcvhwm": zmq.RCVHWM,
    "linger": zmq.LINGER,
    "sndtimeo": zmq.SNDTIMEO,
    "rcvtimeo": zmq.RCVTIMEO,
    "reconnect_ivl": zmq.RECONNECT_IVL,
    "reconnect_ivl_max": zmq.RECONNECT_IVL_MAX,
    "tcp_keepalive": zmq.TCP_KEEPALIVE,
    "tcp_keepalive_cnt": zmq.TCP_KEEPALIVE_CNT,
    "tcp_keepalive_idle": zmq.TCP_KEEPALIVE_IDLE,
    "tcp_keepalive_intvl": zmq.TCP_KEEPALIVE_INTVL,
    "heartbeat_ivl": zmq.HEARTBEAT_IVL,
    "heartbeat_timeout": zmq.HEARTBEAT_TIMEOUT,
    "handshake_ivl": zmq.HANDSHAKE_IVL,
    "connect_timeout": zmq.CONNECT_TIMEOUT,
    "mechanism": zmq.MECHANISM,
    "maxmsgsize": zmq.MAXMSGSIZE,
    "backlog": zmq.BACKLOG,
    "affinity": zmq.AFFINITY,
    "sndbuf": zmq.SNDBUF,
    "rcvbuf": zmq.RCVBUF,
    "tos": zmq.TOS,
}
TRUTHS = {"immediate": zmq.IMMEDIATE, "ipv6": zmq.IPV6, "conflate": zmq.CONFLATE}

SYS_POLL, SYS_EPOLL_WAIT = 7, 232  # x86_64


class Specimen:
    """A socket and what is known of it."""

    def __init__(self, zoo, kind, name):
        self.socket = zoo.new_socket(kind)
        self.handle = handle(self.socket)
        self.order = zoo.sockets_made
        self.name = name
        self.monitor = None
        self.topics = []
        self.endpoints = []
        self.connections = []
        self.tx_queue = self.rx_queue = self.bytes_held = 0

    def subscribe(self, topic):
        self.socket.subscribe(topic)
        self.topics.append(topic)

    def await_event(self, wanted):
        """The fd that the next event of this kind tells."""
        while True:
            event, value = struct.unpack("=Hi", self.monitor.recv_multipart()[0])
            if event == wanted:
                return value

    def unwatch(self):
        """Ends the monitor and waits until both of its sockets are gone.

        POLLOUT ends when ours has learnt that libzmq's is closing. Drained by then, ours cannot go
        before libzmq's. It is gone with its mailbox's fd.
        """
        if not self.monitor:
            return
        monitor, self.monitor = self.monitor, None
        mailbox = monitor.fd
        self.socket.disable_monitor()
        while monitor.events & zmq.POLLOUT:
            drain(monitor)
        drain(monitor)
        monitor.close()
        while is_open(mailbox):
            os.sched_yield()

    def truth(self):
        truth = {
            "handle": self.handle,
            "name": self.name,
            "order": self.order,
            "type": zmq.SocketType(self.socket.type).name,
            "mailbox_fd": self.socket.fd,
            "options": options(self.socket),
            "monitor": False,
            "endpoints": self.endpoints,
            "connections": self.connections,
            "tx_queue": self.tx_queue,
            "rx_queue": self.rx_queue,
            "bytes_held": self.bytes_held,
        }
        if self.socket.type == zmq.SUB:
            truth["subscriptions"] = [escaped(topic) for topic in sorted(self.topics)]
        return truth


def options(socket):
    values = {name: socket.get(number) for name, number in OPTIONS.items()}
    values |= {name: bool(socket.get(number)) for name, number in TRUTHS.items()}
    return values | {"routing_id": escaped(socket.get(zmq.ROUTING_ID))}


def drain(socket):
    try:
        while True:
            socket.recv(zmq.DONTWAIT)
    except zmq.Again:
        pass


def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False


def address(name):
    """As the contract writes it: 127.0.0.1:4711, [::1]:4711, /path, @abstract."""
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(name, bytes):
        return "@" + escaped(name[1:])
    return name or None


def addresses(fd):
    """Both sides of a connection that libzmq owns."""
    with sockets.socket(fileno=os.dup(fd)) as connection:
        return address(connection.getsockname()), address(connection.getpeername())


class Zoo:
    def __init__(self):
        self.context = zmq.Context(io_threads=2)
        self.context.set(zmq.MAX_SOCKETS, 300)
        self.sockets_made = 0
        self.specimens = []
        self.other = sockets.socketpair()  # not libzmq's
        self.folder = tempfile.TemporaryDirectory(prefix="zmqtrace-zoo-")

    def new_socket(self, kind):
        self.sockets_made += 1
        return self.context.socket(kind)

    def make(self, kind, name):
        specimen = Specimen(self, kind, name)
        self.specimens.append(specimen)
        return specimen

    def watch(self, specimen):
        if not specimen.monitor:
            specimen.monitor = specimen.socket.get_monitor_socket()
            self.sockets_made += 2

    def listen(self, specimen, endpoint):
        has_fds = not endpoint.startswith("inproc:")
        if has_fds:
            self.watch(specimen)
        specimen.socket.bind(endpoint)
        resolved = specimen.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        fd = specimen.await_event(zmq.EVENT_LISTENING) if has_fds else None
        specimen.endpoints.append({"endpoint": resolved, "role": "bind", "fd": fd})
        return resolved

    def join(self, source, target, endpoint):
        """Connects, and notes the fds of both ends; a message must follow before they are ready."""
        has_fds = not endpoint.startswith("inproc:")
        if has_fds:
            self.watch(source)
        source.socket.connect(endpoint)
        connected = source.await_event(zmq.EVENT_CONNECTED) if has_fds else None
        accepted = target.await_event(zmq.EVENT_ACCEPTED) if has_fds else None
        source.endpoints.append({"endpoint": endpoint, "role": "connect", "fd": connected})
        self.enter(source, endpoint, "connect", connected, target)
        self.enter(target, endpoint, "bind", accepted, source)

    def enter(self, specimen, endpoint, role, fd, peer):
        connection = {
            "transport": endpoint.split(":")[0],
            "role": role,
            "endpoint": endpoint,
            "state": "ready",
            "peer_handle": peer.handle,
            "peer_type": zmq.SocketType(peer.socket.type).name,
        }
        if fd is not None:
            connection["fd"] = fd
            connection["local"], connection["remote"] = addresses(fd)
        specimen.connections.append(connection)

    def leave(self, source, target, *parts):
        """Sends a message that the other one does not receive."""
        source.socket.send_multipart(parts)
        size = sum(map(len, parts))
        same_queue = target.endpoints[0]["fd"] is None
        for specimen in (source, target) if same_queue else (target,):
            specimen.bytes_held += size
        target.rx_queue += 1
        source.tx_queue += same_queue

    def settle(self):
        """Returns when what was sent has reached the receivers' queues.

        The barriers, one an I/O thread, show that the threads have done all that came before; then
        the kernel must hold nothing. Asking the receivers would take messages out of some queues.
        """
        self.pass_barriers()
        while not self.kernel_is_empty():
            self.pass_barriers()
        self.pass_barriers()

    def pass_barriers(self):
        for left, right in self.barriers:
            left.socket.send(b"")
            right.socket.recv()

    def kernel_is_empty(self):
        fds = [c["fd"] for s in self.specimens for c in s.connections if "fd" in c]
        return all(
            fcntl.ioctl(fd, request, bytes(4)) == bytes(4)
            for fd in fds
            for request in (termios.FIONREAD, termios.TIOCOUTQ)  # SIOCINQ, SIOCOUTQ
        )

    def couple(self, endpoint, binder, connecter):
        """Two new sockets, joined."""
        target, source = self.make(*binder), self.make(*connecter)
        self.join(source, target, self.listen(target, endpoint))
        return source, target


def fill(zoo):
    zoo.barriers = []
    for i in range(2):
        ends = [zoo.make(zmq.PAIR, f"barrier-{i}-{side}") for side in ("bind", "connect")]
        for end in ends:
            end.socket.set(zmq.AFFINITY, 1 << i)
        zoo.join(ends[1], ends[0], zoo.listen(ends[0], "tcp://127.0.0.1:*"))
        zoo.barriers.append(ends)

    for transport, endpoint in {
        "tcp": "tcp://127.0.0.1:*",
        "ipc": f"ipc://{zoo.folder.name}/pipeline",
        "inproc": "inproc://pipeline",
    }.items():
        push, pull = zoo.couple(
            endpoint, (zmq.PULL, f"pull-{transport}"), (zmq.PUSH, f"push-{transport}")
        )
        zoo.leave(push, pull, b"x" * 20)
        zoo.leave(push, pull, b"x" * 500)
        zoo.leave(push, pull, b"many", b"", b"parts" * 50)

    dealer, router = zoo.make(zmq.DEALER, "dealer"), zoo.make(zmq.ROUTER, "router")
    dealer.socket.set(zmq.ROUTING_ID, b"dealer-\x01")
    zoo.join(dealer, router, zoo.listen(router, "tcp://127.0.0.1:*"))
    dealer.socket.send(b"hello")
    router.socket.recv_multipart()
    router.connections[0]["peer_identity"] = escaped(b"dealer-\x01")

    subscriber, publisher = zoo.make(zmq.SUB, "sub"), zoo.make(zmq.XPUB, "xpub")
    for topic in (b"a", b"ab", b"abc", b"\0\xff"):
        subscriber.subscribe(topic)
    zoo.join(subscriber, publisher, zoo.listen(publisher, "tcp://127.0.0.1:*"))
    for _ in subscriber.topics:
        publisher.socket.recv()

    tuned = zoo.make(zmq.REQ, "tuned-idle-req").socket
    for option, value in {
        zmq.SNDHWM: 5,
        zmq.RCVHWM: 6,
        zmq.LINGER: 700,
        zmq.SNDTIMEO: 800,
        zmq.RCVTIMEO: 900,
        zmq.HEARTBEAT_IVL: 10000,
        zmq.IMMEDIATE: 1,
        zmq.MAXMSGSIZE: 1 << 33,
        zmq.ROUTING_ID: b"tuned",
    }.items():
        tuned.set(option, value)


def is_asleep(tid, call):
    """Whether a thread of this process sleeps in this system call."""
    with open(f"/proc/self/task/{tid}/stat") as stat:
        asleep = stat.read().rsplit(")")[1].startswith(" S")
    with open(f"/proc/self/task/{tid}/syscall") as syscall:
        return asleep and syscall.read().startswith(f"{call} ")


def name_of(tid):
    with open(f"/proc/self/task/{tid}/comm") as comm:
        return comm.read().rstrip("\n")


class Customers:
    """A thread that waits for a message that nobody will send."""

    def __init__(self, specimen):
        self.handle = specimen.handle
        self.socket = specimen.socket
        self.thread = threading.Thread(target=self.serve_customers)
        self.thread.start()
        while not is_asleep(self.thread.native_id, SYS_POLL):
            os.sched_yield()

    def serve_customers(self):
        try:
            self.wait_for_order()
        except zmq.ContextTerminated:
            self.socket.close()

    def wait_for_order(self):
        return self.socket.recv()

    def truth(self):
        return {
            "tid": self.thread.native_id,
            "thread": name_of(self.thread.native_id),
            "call": "zmq_msg_recv",
            "sockets": [self.handle],
            "timeout_ms": -1,
            "python": ["wait_for_order", "serve_customers"],
        }


class Loop:
    """A thread with an asyncio loop that waits for two sockets."""

    def __init__(self, specimens):
        self.handles = [specimen.handle for specimen in specimens]
        self.sockets = [zmq.asyncio.Socket(specimen.socket) for specimen in specimens]
        self.waiting = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self.serve(),))
        self.thread.start()
        self.waiting.wait()
        while not is_asleep(self.thread.native_id, SYS_EPOLL_WAIT):
            os.sched_yield()

    async def serve(self):
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        receives = [socket.recv() for socket in self.sockets]  # futures: they have begun
        self.loop.call_soon(self.waiting.set)
        await self.end.wait()
        for receive in receives:
            receive.cancel()
        for socket in self.sockets:
            socket.close()

    def stop(self):
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join()

    def truth(self):
        tid = self.thread.native_id
        return {"tid": tid, "thread": name_of(tid), "sockets": self.handles}


def main():
    zoo = Zoo()
    fill(zoo)
    zoo.settle()
    for specimen in zoo.specimens:
        specimen.unwatch()
    orders = zoo.make(zmq.PULL, "pull-orders")
    awaited = [zoo.make(zmq.PULL, "loop-pull"), zoo.make(zmq.SUB, "loop-sub")]
    # Their options, while no other thread uses them.
    used_elsewhere = {specimen.name: specimen.truth() for specimen in (orders, *awaited)}
    customers = Customers(orders)
    loop = Loop(awaited)

    def truth():
        return {
            "libzmq": zmq.zmq_version(),
            "contexts": [
                {
                    "handle": hex(zoo.context.underlying),
                    "io_threads": zoo.context.get(zmq.IO_THREADS),
                    "max_sockets": zoo.context.get(zmq.MAX_SOCKETS),
                    "max_msgsz": zoo.context.get(zmq.MAX_MSGSZ),
                    "ipv6": bool(zoo.context.get(zmq.IPV6)),
                    "blocky": bool(zoo.context.get(zmq.BLOCKY)),
                    "terminating": False,
                    "unlisted_sockets": 0,
                    "sockets": [
                        used_elsewhere.get(specimen.name) or specimen.truth()
                        for specimen in zoo.specimens
                    ],
                }
            ],
            "other_fds": [other.fileno() for other in zoo.other],
            "blocked": [customers.truth()],
            "loops": [loop.truth()],
        }

    ready(**truth())
    for line in sys.stdin:
        if line != "truth\n":
            die(f'expected the line "truth", got {line!r}')
        say(truth=True, pid=os.getpid(), **truth())

    loop.stop()
    for specimen in zoo.specimens:
        if specimen.name not in used_elsewhere:
            specimen.socket.close(linger=0)
    zoo.context.term()  # ends the thread's receive by ETERM and waits until it has closed its socket
    zoo.folder.cleanup()


if __name__ == "__main__":
    main()
