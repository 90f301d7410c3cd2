"""What pyzmq's operations become in libzmq, said in libzmq's terms.

The free callback of a zero-copy message makes pyzmq send 8 bytes on a hidden PUSH socket, from the
thread in which libzmq lets the message go. That is in the truth; the hidden PULL socket at the other
end is read by a thread of pyzmq's own, which is not (`tid` is the thread that is).
"""

import os
import sys
import threading

import zmq
from zmq.utils.garbage import gc as zero_copy_keeper

from workload import CallLog, await_eof, await_go, handle, ready, say

log = CallLog()


def send(socket, data, flags=0, **how):
    """One message part, whatever the operation: `how` may have copy=False."""
    result = log.run(socket.send, data, flags, **how)
    entered_send(socket, data, flags, result)
    return result


def entered_send(socket, data, flags, result):
    ret = result if isinstance(result, zmq.ZMQError) else len(data)
    more = bool(flags & zmq.SNDMORE)
    log.enter("zmq_msg_send", handle(socket), ret, len(data), flags, more, data)


def entered_recv(socket, data, more, flags=0):
    log.enter("zmq_msg_recv", handle(socket), len(data), len(data), flags, more, data)


def entered_rcvmore(socket, more):
    entered_option(
        "zmq_getsockopt", socket, zmq.RCVMORE, int(more).to_bytes(4, sys.byteorder)
    )


def entered_option(call, socket, option, value, number=None):
    args = f"option={int(option)}" + ("" if number is None else f" value={number}")
    log.enter(call, handle(socket), 0, size=len(value), payload=value, args=args)


def recv(socket, expected, more=False):
    assert log.run(socket.recv) == expected
    entered_recv(socket, expected, more)


def recv_fails(socket, flags, wanted):
    error = log.run(socket.recv, flags)
    assert isinstance(error, zmq.ZMQError) and error.errno == wanted, error
    log.enter("zmq_msg_recv", handle(socket), error, flags=flags)


def sends_and_receives(push, pull):
    for data in (b"", b"hello", b"x" * 33, b"y" * 1000, b"\0\xff\n binary"):
        send(push, data)
        recv(pull, data)
    send(push, b"small enough to copy", copy=False)
    recv(pull, b"small enough to copy")

    log.run(push.send_string, "text é")
    entered_send(push, "text é".encode(), 0, None)
    assert log.run(pull.recv_string) == "text é"
    entered_recv(pull, "text é".encode(), False)

    parts = [b"one", b"", b"three"]
    log.run(push.send_multipart, parts)
    for i, part in enumerate(parts):
        entered_send(push, part, 0 if i == 2 else zmq.SNDMORE, None)
    assert log.run(pull.recv_multipart) == parts
    for i, part in enumerate(parts):
        entered_recv(pull, part, i < 2)
        entered_rcvmore(pull, i < 2)

    send(push, b"as a frame", zmq.NOBLOCK)
    frame = log.run(pull.recv, copy=False)
    assert frame.bytes == b"as a frame"
    entered_recv(pull, frame.bytes, False)
    entered_rcvmore(pull, False)

    if hasattr(pull, "recv_into"):  # pyzmq 26.4
        for room in (100, 4):
            send(push, b"into a buffer")
            buffer = bytearray(room)
            size = log.run(pull.recv_into, buffer)
            data = bytes(buffer[:size])
            log.enter(
                "zmq_recv", handle(pull), size, size, 0, payload=data, args=f"len={room}"
            )
    recv_fails(pull, zmq.NOBLOCK, zmq.EAGAIN)


def zero_copy(push, pull):
    data = b"shared with libzmq"
    send(push, data, copy=False)
    assert log.run(pull.recv) == data
    entered_recv(pull, data, False)
    keeper = hex(zero_copy_keeper._push.underlying)
    log.enter("zmq_msg_send", keeper, 8, 8, 0, False)  # its content is a memory address


def polls(push, pull):
    reader, writer = os.pipe()
    poller = zmq.Poller()
    poller.register(pull, zmq.POLLIN)
    poller.register(reader, zmq.POLLIN)

    def poll(timeout_ms, pull_ready, fd_ready):
        ready_now = log.run(poller.poll, timeout_ms)
        assert len(ready_now) == pull_ready + fd_ready
        items = f"{handle(pull)}:1:{pull_ready},{reader}:1:{fd_ready}"
        timeout = -1 if timeout_ms is None else timeout_ms
        args = f"nitems=2 timeout_ms={timeout} items={items}"
        log.enter("zmq_poll", None, len(ready_now), args=args)

    poll(0, 0, 0)
    poll(20, 0, 0)
    send(push, b"ready")
    poll(None, 1, 0)
    os.write(writer, b"x")
    poll(1000, 1, 1)
    recv(pull, b"ready")
    os.close(reader)
    os.close(writer)


def request_out_of_turn(request, reply):
    recv_fails(request, 0, zmq.EFSM)
    send(request, b"question")
    error = send(request, b"question")
    assert isinstance(error, zmq.ZMQError) and error.errno == zmq.EFSM, error
    recv(reply, b"question")
    send(reply, b"answer")
    recv(request, b"answer")


def subscriptions(publisher, subscriber):
    """The publisher is an XPUB, so that it sees each subscription and no message comes too early."""
    for topic in (b"news", b"\0\xff", b""):
        log.run(subscriber.setsockopt, zmq.SUBSCRIBE, topic)
        entered_option("zmq_setsockopt", subscriber, zmq.SUBSCRIBE, topic)
        recv(publisher, b"\1" + topic)
    log.run(subscriber.subscribe, "text")
    entered_option("zmq_setsockopt", subscriber, zmq.SUBSCRIBE, b"text")
    recv(publisher, b"\1text")
    value = (1234).to_bytes(4, sys.byteorder)
    log.run(subscriber.setsockopt, zmq.RCVHWM, 1234)
    entered_option("zmq_setsockopt", subscriber, zmq.RCVHWM, value, number=1234)
    assert log.run(subscriber.getsockopt, zmq.RCVHWM) == 1234
    entered_option("zmq_getsockopt", subscriber, zmq.RCVHWM, value)
    send(publisher, b"news flash")
    recv(subscriber, b"news flash")


def main():
    context = zmq.Context()

    def pair(bound, connected, **options):
        ends = context.socket(connected, **options), context.socket(bound)
        ends[1].bind(f"inproc://{len(pairs)}")
        ends[0].connect(f"inproc://{len(pairs)}")
        pairs.append(ends)
        return ends

    pairs = []
    copying = pair(zmq.PULL, zmq.PUSH)
    sharing = pair(zmq.PULL, zmq.PUSH, copy_threshold=0)  # else short messages are copied anyway
    requests = pair(zmq.REP, zmq.REQ)
    subscriber, publisher = pair(zmq.XPUB, zmq.SUB)
    # The first zero-copy message makes the hidden sockets and their thread.
    sharing[0].send(b"first", copy=False)
    sharing[1].recv()

    ready(tid=threading.get_native_id())
    await_go()
    sends_and_receives(*copying)
    zero_copy(*sharing)
    polls(*copying)
    request_out_of_turn(*requests)
    subscriptions(publisher, subscriber)
    say(done=True, calls=log.calls)

    await_eof()
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
