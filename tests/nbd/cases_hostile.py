# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD cases: clients that break the protocol, vanish, or do not read."""

import socket
import struct
import time

import nbdclient as nbd
from nbdsuite import GIB, MIB, case, equal, true
from nbdwire import Wire, info_data

HANDSHAKE_SECONDS = 10
MAX_CONNECTIONS = 64


def request(command, offset=0, length=0, flags=0, cookie=1, magic=nbd.REQUEST_MAGIC):
    return nbd.REQUEST.pack(magic, flags, command, cookie, offset, length)


@case
def wrong_magic(suite):
    """A wrong magic, of an option or a request, ends that connection only."""
    with suite.server() as server:
        good = server.open()
        with server.wire() as wire:
            wire.send(struct.pack(">QII", 0x1122334455667788, nbd.OPT_LIST, 0))
            true("closed in the handshake", wire.is_closed())
        with server.open() as wire:
            wire.send(request(nbd.CMD_READ, 0, 512, magic=0x12560953))
            true("closed in transmission", wire.is_closed())
        with server.open() as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            true("closed after HTTP", wire.is_closed())
        equal("the other client", good.call(nbd.CMD_READ, 0, 512).error, 0)
        good.close()


@case
def huge_lengths(suite):
    """Lengths near 4 GiB cost the server nothing."""
    with suite.server() as server:
        before = memory_kib(server)
        wires = []
        for option in (nbd.OPT_GO, nbd.OPT_SET_META_CONTEXT, 99):
            wire = server.wire()
            wire.send(nbd.OPTION.pack(nbd.OPTS_MAGIC, option, 0xffffffff) + bytes(1000))
            wires.append(wire)
        for length in (0xffffffff, 0xfffffe00, 1 << 31):
            wire = server.open()
            wire.send(request(nbd.CMD_WRITE, 0, length) + bytes(100000))
            wires.append(wire)
        server.alive()
        true("memory", memory_kib(server) < before + 16 * 1024)
        for wire in wires:
            wire.close()
        server.alive()


def memory_kib(server):
    with open(f"/proc/{server.pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


@case
def vanish_in_handshake(suite):
    """Clients that go away at each byte of a handshake."""
    stream = struct.pack(">I", 3)
    stream += nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_LIST, 0)
    stream += nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_GO, len(info_data("vm1"))) + info_data("vm1")
    with suite.server() as server:
        for length in range(len(stream) + 1):
            with server.wire(greet=False) as wire:
                wire.send(stream[:length])
        server.alive()
        server.wait_until_idle()


@case
def vanish_in_request(suite):
    """Clients that go away in a header, in a payload, or with requests under way."""
    streams = [request(nbd.CMD_READ, 0, 4 * MIB)[:n] for n in (1, 4, 27, 28)]
    streams += [request(nbd.CMD_WRITE, 0, length) + bytes(sent)
                for length, sent in ((4096, 0), (4096, 4095), (4096, 4096), (3 * MIB, 100000),
                                     (3 * MIB, 2 * MIB + 5), (64 * MIB, 100000))]
    streams.append(b"".join(request(nbd.CMD_READ, i * 4096, 4096, cookie=i) for i in range(500)))
    streams.append(request(nbd.CMD_FLUSH) * 100 + request(nbd.CMD_BLOCK_STATUS, 0, GIB))
    with suite.server() as server:
        for _ in range(10):
            for stream in streams:
                for structured in (True, False):
                    with server.open(structured=structured) as wire:
                        wire.send(stream)
            server.wait_until_idle()
            server.alive()


@case
def reset_in_replies(suite):
    """Clients that close with megabytes of replies unread."""
    with suite.server() as server:
        for _ in range(10):
            with server.open() as wire:
                for i in range(30):
                    wire.submit(nbd.CMD_READ, i * MIB, MIB)
                wire.recv(100000)
        server.alive()
        server.wait_until_idle()


@case
def half_closed(suite):
    """A client that only stops sending still gets its replies."""
    with suite.server() as server, server.open() as wire:
        for i in range(20):
            wire.submit(nbd.CMD_READ, i * MIB, MIB)
        wire.sock.shutdown(socket.SHUT_WR)
        for _ in range(20):
            equal("length", len(wire.reply().data), MIB)
        true("closed", wire.is_closed())


@case
def slow_readers(suite):
    """Clients that never read do not slow down the others, on any loop."""
    with suite.server() as server:
        slow = [server.open() for _ in range(8)]
        for wire in slow:
            wire.send(b"".join(request(nbd.CMD_READ, 0, 8 * MIB, cookie=i) for i in range(64)))
        time.sleep(0.5)
        begin = time.monotonic()
        for _ in range(8):
            with server.open() as wire:
                for i in range(50):
                    equal("read", wire.call(nbd.CMD_READ, i * 4096, 4096).error, 0)
        true("fast enough", time.monotonic() - begin < 10)
        for wire in slow:
            wire.close()
        server.wait_until_idle()


@case
def idle_connections(suite):
    """Open connections without requests disturb nobody."""
    with suite.server() as server:
        idle = [server.open() for _ in range(30)]
        for _ in range(20):
            server.alive()
        for wire in idle:
            equal("idle one", wire.call(nbd.CMD_READ, 0, 512).error, 0)
            wire.close()


@case
def too_many_connections(suite):
    """Connection 65 is turned away at once; when one ends there is room again."""
    with suite.server() as server:
        server.wait_until_idle()
        wires = [server.open() for _ in range(MAX_CONNECTIONS)]
        with server.wire(greet=False) as wire:
            true("one too many", wire.is_closed())
        for wire in wires:
            equal("flush", wire.call(nbd.CMD_FLUSH).error, 0)
        equal("connections", server.status()["connections"], MAX_CONNECTIONS)
        wires.pop().close()
        while server.status()["connections"] == MAX_CONNECTIONS:
            suite.deadline.left()
        server.alive()
        for wire in wires:
            wire.close()


@case
def handshake_time_limit(suite):
    """Silence, single bytes and endless options end after the time limit."""
    with suite.server() as server:
        begin = time.monotonic()
        silent, dripping, endless = (server.wire() for _ in range(3))
        agreed = server.open()
        endless.send(nbd.OPTION.pack(nbd.OPTS_MAGIC, 99, 0xffffffff))
        ended = set()
        while len(ended) < 3 and time.monotonic() - begin < HANDSHAKE_SECONDS + 8:
            for name, wire, data in (("dripping", dripping, b"I"), ("endless", endless, bytes(999)),
                                     ("silent", silent, b"")):
                ended |= {name} if has_ended(wire, data) else set()
            time.sleep(0.2)
        took = time.monotonic() - begin
        equal("ended", ended, {"silent", "dripping", "endless"})
        true(f"time {took:.1f} s", took > HANDSHAKE_SECONDS - 1)
        equal("transmission has no limit", agreed.call(nbd.CMD_FLUSH).error, 0)
        agreed.close()


def has_ended(wire, data):
    wire.sock.settimeout(0.01)
    try:
        wire.send(data)
        return not wire.sock.recv(1)
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def mangled(rng, stream):
    """@stream with some bytes changed, removed or doubled."""
    data = bytearray(stream)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(data))
        what = rng.randrange(4)
        if what == 0:
            data[place] = rng.choice((0, 0x7f, 0x80, 0xff, rng.randrange(256)))
        elif what == 1:
            del data[place:place + rng.randrange(1, 9)]
        elif what == 2:
            data[place:place] = data[place:place + rng.randrange(1, 30)]
        else:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        data = data or bytearray(1)
    return bytes(data)


def throw(path, stream):
    """Send all of it to a fresh connection, whatever the server does."""
    with Wire(path, greet=False) as wire:
        wire.sock.settimeout(0.02)
        try:
            wire.send(stream)
            while wire.sock.recv(1 << 16):
                pass
        except (TimeoutError, ConnectionError):
            pass


@case
def mangled_handshakes(suite):
    """A good handshake with random damage, hundreds of times."""
    option = nbd.OPTION
    stream = struct.pack(">I", 3)
    for number, data in ((nbd.OPT_STRUCTURED_REPLY, b""), (nbd.OPT_LIST, b""),
                         (nbd.OPT_SET_META_CONTEXT,
                          b"\0\0\0\3vm1\0\0\0\1\0\0\0\17base:allocation"),
                         (nbd.OPT_INFO, info_data("vm1", 0, 1, 2, 3)),
                         (nbd.OPT_GO, info_data("", 3))):
        stream += option.pack(nbd.OPTS_MAGIC, number, len(data)) + data
    stream += request(nbd.CMD_READ, 0, 4096) + request(nbd.CMD_DISC)
    with suite.server() as server:
        for _ in range(400):
            throw(server.socket, mangled(suite.random, stream))
        server.alive()
        server.wait_until_idle()


@case
def mangled_requests(suite):
    """Good requests with random damage after a good handshake."""
    hello = struct.pack(">I", 3)
    hello += nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_STRUCTURED_REPLY, 0)
    data = b"\0\0\0\0\0\0\0\1\0\0\0\17base:allocation"
    hello += nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_SET_META_CONTEXT, len(data)) + data
    hello += nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_GO, 6) + info_data("")
    stream = b"".join((
        request(nbd.CMD_READ, 512, 65536, cookie=1),
        request(nbd.CMD_WRITE, 4096, 4096, cookie=2), bytes(4096),
        request(nbd.CMD_FLUSH, cookie=3),
        request(nbd.CMD_TRIM, 0, MIB, cookie=4),
        request(nbd.CMD_WRITE_ZEROES, 0, MIB, nbd.CMD_FLAG_FUA, cookie=5),
        request(nbd.CMD_BLOCK_STATUS, 0, MIB, cookie=6),
        request(nbd.CMD_WRITE, MIB, 3 * MIB, cookie=7), bytes(3 * MIB),
        request(nbd.CMD_READ, MIB, 3 * MIB, nbd.CMD_FLAG_DF, cookie=8)))
    small = stream[:28 * 2 + 4096 + 28 * 5]
    with suite.server("zero") as server:
        for i in range(300):
            throw(server.socket, hello + mangled(suite.random, stream if i % 10 == 0 else small))
        server.alive()
        server.wait_until_idle()
