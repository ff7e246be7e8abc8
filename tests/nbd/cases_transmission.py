# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD cases: requests and their replies."""

import signal
import threading

import nbdclient as nbd
from nbdsuite import GIB, MIB, Skip, case, equal, true

EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28
MAX_PAYLOAD = 32 * MIB
ROUND_TRIP_BYTES = (512, 4096, 65536, MIB - 512, MIB, MIB + 512, 4 * MIB, 5 * MIB + 4608,
                    MAX_PAYLOAD)


def both_replies(server):
    """A connection with structured replies, then one with simple ones."""
    for structured in (True, False):
        with server.open(structured=structured) as wire:
            yield wire


def expect_error(wire, reply, error, what, word=""):
    """@reply failed as it must, with a message (that says @word) where there can be one."""
    equal(f"error of {what}", reply.error, error)
    if wire.structured:
        equal(f"chunks of {what}", reply.chunks, [nbd.CHUNK_ERROR])
        true(f"message of {what}: {reply.message!r}",
             len(reply.message) > 10 and word in reply.message)


@case
def round_trip(suite):
    """Writes of many sizes are read back, whole and in part."""
    with suite.server() as server:
        for wire in both_replies(server):
            for i, length in enumerate(ROUND_TRIP_BYTES):
                data = suite.random.randbytes(length)
                offset = (i * 4096 + 512) if length < MAX_PAYLOAD else MIB
                equal("write", wire.call(nbd.CMD_WRITE, offset, length, data).error, 0)
                true(f"{length} bytes", wire.call(nbd.CMD_READ, offset, length).data == data)
                if server.file and suite.is_bringup("data"):
                    equal("flush", wire.call(nbd.CMD_FLUSH).error, 0)
                    true("file", server.content(offset, length) == data)


@case
def read_content(suite):
    """All of the export is what lies below."""
    with suite.server() as server:
        for wire in both_replies(server):
            for offset in range(0, server.size, 16 * MIB):
                length = min(16 * MIB, server.size - offset)
                data = wire.call(nbd.CMD_READ, offset, length).data
                true(f"at {offset}", data == server.content(offset, length))


@case
def read_chunks(suite):
    """A structured read is one data chunk; of length 0 it is an empty reply."""
    with suite.server() as server, server.open() as wire:
        for flags in (0, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_FUA):
            for length in (512, 65536, 3 * MIB):
                reply = wire.call(nbd.CMD_READ, 4096, length, flags=flags)
                equal("chunks", reply.chunks, [nbd.CHUNK_OFFSET_DATA])
                equal("length", len(reply.data), length)
        equal("length 0", wire.call(nbd.CMD_READ, 0, 0).chunks, [nbd.CHUNK_NONE])


@case
def zero_lengths(suite):
    """Requests for nothing do nothing and do not fail."""
    with suite.server() as server:
        for wire in both_replies(server):
            for command in (nbd.CMD_READ, nbd.CMD_WRITE):
                for offset in (0, server.size):
                    equal(f"command {command}", wire.call(command, offset, 0).error, 0)


@case
def beyond_the_end(suite):
    """ENOSPC for writes, EINVAL for the rest; the stream stays in step."""
    with suite.server("zero") as server:
        size = server.size
        places = ((size, 512), (size - 512, 1024), (size + 512, 512), ((1 << 64) - 512, 512),
                  ((1 << 64) - 512, 1024), (1 << 63, 4096))
        wanted = ((nbd.CMD_READ, EINVAL), (nbd.CMD_WRITE, ENOSPC), (nbd.CMD_TRIM, EINVAL),
                  (nbd.CMD_WRITE_ZEROES, ENOSPC), (nbd.CMD_BLOCK_STATUS, EINVAL))
        for wire in both_replies(server):
            for command, error in wanted:
                for offset, length in places:
                    data = bytes(length) if command == nbd.CMD_WRITE else b""
                    reply = wire.call(command, offset, length, data)
                    expect_error(wire, reply, error, f"command {command} at {offset}+{length}",
                                 "beyond the end")
            equal("in step", wire.call(nbd.CMD_READ, size - 512, 512).error, 0)


@case
def unaligned(suite):
    """Neither offset nor length may leave the blocks."""
    with suite.server("zero") as server:
        for wire in both_replies(server):
            for command in (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
                for offset, length in ((1, 512), (0, 511), (256, 256), (513, 70000)):
                    data = bytes(length) if command == nbd.CMD_WRITE else b""
                    reply = wire.call(command, offset, length, data)
                    expect_error(wire, reply, EINVAL, f"command {command} at {offset}+{length}",
                                 "not aligned")


@case
def unknown_commands_and_flags(suite):
    """What was not agreed is refused, and only that."""
    refused = ((nbd.CMD_READ, nbd.CMD_FLAG_NO_HOLE), (nbd.CMD_READ, 1 << 15),
               (nbd.CMD_WRITE, nbd.CMD_FLAG_DF), (nbd.CMD_FLUSH, nbd.CMD_FLAG_REQ_ONE),
               (nbd.CMD_TRIM, nbd.CMD_FLAG_NO_HOLE),
               (nbd.CMD_WRITE_ZEROES, nbd.CMD_FLAG_FAST_ZERO),
               (nbd.CMD_BLOCK_STATUS, nbd.CMD_FLAG_DF), (nbd.CMD_WRITE_ZEROES, 1 << 5))
    with suite.server("zero") as server:
        for wire in both_replies(server):
            for command in (nbd.CMD_CACHE, 8, 9, 255, 0xffff):
                expect_error(wire, wire.call(command, 0, 512), EINVAL, f"command {command}")
            for command, flags in refused:
                length = 0 if command == nbd.CMD_FLUSH else 512
                data = bytes(length) if command == nbd.CMD_WRITE else b""
                reply = wire.call(command, 0, length, data, flags)
                expect_error(wire, reply, EINVAL, f"command {command} flags {flags:#x}")
            expect_error(wire, wire.call(nbd.CMD_FLUSH, 512, 0), EINVAL, "flush with offset")
        with server.open(structured=False) as wire:
            reply = wire.call(nbd.CMD_READ, 0, 512, flags=nbd.CMD_FLAG_DF)
            equal("DF without structured replies", reply.error, EINVAL)


@case
def fua_everywhere(suite):
    """FUA is accepted with every command."""
    with suite.server("zero") as server:
        for wire in both_replies(server):
            for command in (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES,
                            nbd.CMD_FLUSH):
                length = 0 if command == nbd.CMD_FLUSH else 4096
                data = bytes(length) if command == nbd.CMD_WRITE else b""
                reply = wire.call(command, 0, length, data, nbd.CMD_FLAG_FUA)
                equal(f"command {command}", reply.error, 0)


@case
def payload_too_long(suite):
    """More than 32 MiB is refused and skipped, not believed."""
    with suite.server() as server:
        for wire in both_replies(server):
            for length in (MAX_PAYLOAD + 512, 64 * MIB):
                reply = wire.call(nbd.CMD_WRITE, 0, length, bytes(length))
                expect_error(wire, reply, EINVAL, f"write of {length}")
            expect_error(wire, wire.call(nbd.CMD_READ, 0, 64 * MIB), EINVAL, "read")
            expect_error(wire, wire.call(nbd.CMD_READ, 0, 0xfffffe00), EINVAL, "read")
            equal("in step", wire.call(nbd.CMD_READ, 0, 512).error, 0)


@case
def trim_and_zeroes(suite):
    """Zeroes read as zeroes, also over gigabytes; trim is accepted."""
    with suite.server() as server:
        server.need(nbd.FLAG_SEND_WRITE_ZEROES, "write zeroes")
        with server.open() as wire:
            for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA):
                wire.call(nbd.CMD_WRITE, MIB, 4 * MIB, b"\xaa" * (4 * MIB))
                reply = wire.call(nbd.CMD_WRITE_ZEROES, MIB + 4096, 2 * MIB, flags=flags)
                equal("zeroes", reply.error, 0)
                data = wire.call(nbd.CMD_READ, MIB, 4 * MIB).data
                expected = b"\xaa" * 4096 + bytes(2 * MIB) + b"\xaa" * (2 * MIB - 4096)
                true("content", data == expected)
            if wire.flags & nbd.FLAG_SEND_TRIM:
                equal("trim", wire.call(nbd.CMD_TRIM, MIB, 4 * MIB).error, 0)


@case
def long_ranges(suite):
    """Trim, zeroes and status of nearly 4 GiB are cut, and each answered once."""
    with suite.server("zero") as server:
        for wire in both_replies(server):
            for command in (nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
                for length in (GIB, GIB + 4096, 4 * GIB - 512):
                    equal("range", wire.call(command, 4096, length).error, 0)
        with server.open() as wire:
            reply = wire.call(nbd.CMD_BLOCK_STATUS, 0, 4 * GIB - 512)
            equal("status", reply.status[nbd.BASE_ALLOCATION],
                  [(4 * GIB - 512, nbd.STATE_HOLE | nbd.STATE_ZERO)])
            equal("depth", reply.status[nbd.ALLOCATION_DEPTH], [(4 * GIB - 512, 0)])


@case
def block_status(suite):
    """Status covers what was asked, by the contexts that were set."""
    with suite.server() as server:
        for contexts in ((nbd.BASE_ALLOCATION,), (nbd.ALLOCATION_DEPTH,),
                         (nbd.BASE_ALLOCATION, nbd.ALLOCATION_DEPTH)):
            with server.open(contexts=contexts) as wire:
                for flags in (0, nbd.CMD_FLAG_REQ_ONE):
                    reply = wire.call(nbd.CMD_BLOCK_STATUS, 4096, 8 * MIB, flags=flags)
                    equal("contexts", set(reply.status), set(contexts))
                    for extents in reply.status.values():
                        true("one extent", not flags or len(extents) == 1)
                        length = sum(extent[0] for extent in extents)
                        true("length", 0 < length <= 8 * MIB and length % 512 == 0)
                reply = wire.call(nbd.CMD_BLOCK_STATUS, 0, 0)
                expect_error(wire, reply, EINVAL, "status of nothing")
        for options in ({"contexts": ()}, {"structured": False}):
            with server.open(**options) as wire:
                reply = wire.call(nbd.CMD_BLOCK_STATUS, 0, 4096)
                expect_error(wire, reply, EINVAL, "status without contexts")


@case
def read_only(suite):
    """A read-only export says so and refuses every write with EPERM."""
    with suite.server("zero", read_only=True) as server:
        for wire in both_replies(server):
            true("flag", wire.flags & nbd.FLAG_READ_ONLY)
            true("no trim", not wire.flags & (nbd.FLAG_SEND_TRIM | nbd.FLAG_SEND_WRITE_ZEROES))
            for command in (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
                data = bytes(4096) if command == nbd.CMD_WRITE else b""
                expect_error(wire, wire.call(command, 0, 4096, data), EPERM, f"{command}")
            equal("read", wire.call(nbd.CMD_READ, 0, 4096).error, 0)
            equal("flush", wire.call(nbd.CMD_FLUSH).error, 0)


@case
def storage_errors(suite):
    """Errors of the target become EIO, with the payload taken off the wire."""
    with suite.server("error") as server:
        for wire in both_replies(server):
            for length in (4096, 3 * MIB):
                expect_error(wire, wire.call(nbd.CMD_READ, 0, length), EIO, "read")
                reply = wire.call(nbd.CMD_WRITE, 0, length, bytes(length))
                expect_error(wire, reply, EIO, "write")
            expect_error(wire, wire.call(nbd.CMD_FLUSH), EIO, "flush")


def collect(wire, count, replies):
    for _ in range(count):
        reply = wire.reply()
        replies[reply.cookie] = reply


@case
def pipelined_requests(suite):
    """Thousands of requests without waiting: each is answered once and rightly."""
    count = 4000
    with suite.server() as server:
        for wire in both_replies(server):
            replies = {}
            reader = threading.Thread(target=collect, args=(wire, count, replies))
            reader.start()
            for i in range(count):
                offset = i * 4096 % server.size
                if i % 4 == 3:
                    wire.submit(nbd.CMD_WRITE, offset, 4096, server.content(offset, 4096))
                else:
                    wire.submit(nbd.CMD_READ, offset, 4096)
            reader.join()
            equal("replies", len(replies), count)
            for cookie, reply in replies.items():
                equal("error", reply.error, 0)
                offset = (cookie - 1) * 4096 % server.size
                true("data", reply.data in (None, server.content(offset, 4096)))


@case
def large_requests_pipelined(suite):
    """More than the memory of a connection is asked for at once."""
    with suite.server() as server:
        for wire in both_replies(server):
            replies = {}
            reader = threading.Thread(target=collect, args=(wire, 24, replies))
            reader.start()
            for i in range(24):
                offset = i * MIB
                if i % 3 == 2:
                    data = server.content(offset, 20 * MIB)
                    wire.submit(nbd.CMD_WRITE, offset, 20 * MIB, data)
                else:
                    wire.submit(nbd.CMD_READ, offset, 20 * MIB)
            reader.join()
            for cookie, reply in replies.items():
                equal("error", reply.error, 0)
                if reply.data is not None:
                    true("data", reply.data == server.content((cookie - 1) * MIB, 20 * MIB))


@case
def cookies(suite):
    """Cookies are opaque: any value, also twice the same one after the other."""
    with suite.server() as server, server.open() as wire:
        for cookie in (0, 1, 1, (1 << 64) - 1, 0x2560951367446698):
            wire.submit(nbd.CMD_READ, 0, 512, cookie=cookie)
            equal("cookie", wire.reply().cookie, cookie)


@case
def flush_of_all_connections(suite):
    """Written by one, flushed by another, read by a third, on other loops."""
    with suite.server() as server:
        wires = [server.open() for _ in range(6)]
        for i, wire in enumerate(wires):
            data = bytes([i + 1]) * MIB
            equal("write", wire.call(nbd.CMD_WRITE, i * MIB, MIB, data).error, 0)
        equal("flush", wires[3].call(nbd.CMD_FLUSH).error, 0)
        for i, wire in enumerate(reversed(wires)):
            data = wire.call(nbd.CMD_READ, i * MIB, MIB).data
            true(f"data of {i}", data == bytes([i + 1]) * MIB)
        for wire in wires:
            wire.close()


@case
def disconnect_with_requests(suite):
    """Requests sent before DISC are answered, then the connection ends."""
    with suite.server() as server:
        for wire in both_replies(server):
            for i in range(40):
                wire.submit(nbd.CMD_READ, i * 65536, 65536)
            wire.submit(nbd.CMD_WRITE, 0, 4096, bytes(4096))
            wire.disconnect()
            replies = {}
            collect(wire, 41, replies)
            true("closed", wire.is_closed())
        with server.open() as wire:
            equal("write arrived", wire.call(nbd.CMD_READ, 0, 4096).data, bytes(4096))


@case
def growing(suite):
    """The size is that of the moment of the request."""
    if not suite.is_bringup("zero"):
        raise Skip("only nbd-bringup grows on a signal")
    with suite.server("zero") as server, server.open() as wire:
        equal("before", wire.call(nbd.CMD_READ, server.size, 4096).error, EINVAL)
        server.signal(signal.SIGUSR2)
        while wire.call(nbd.CMD_READ, server.size, 4096).error:
            suite.deadline.left()
        with server.open() as other:
            equal("size for a new client", other.size, server.size + MIB)
