# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD cases: the handshake of well-behaved and of confused clients."""

import struct

import nbdclient as nbd
from nbdsuite import case, equal, true
from nbdwire import info_data, queries, string

OPT_EXPORT_NAME = 1
OPT_PEEK_EXPORT = 4
OPT_STARTTLS = 5
OPT_EXTENDED_HEADERS = 11
ERR_UNSUP = 0x80000001
ERR_INVALID = 0x80000003
ERR_UNKNOWN = 0x80000006
ERR_TOO_BIG = 0x80000009
INFO_NAME = 1
INFO_DESCRIPTION = 2
BOTH_CONTEXTS = {b"base:allocation", b"qemu:allocation-depth"}


def infos(replies):
    """{information type: payload} of an answer to INFO or GO."""
    return {struct.unpack_from(">H", data)[0]: data[2:] for kind, data in replies
            if kind == nbd.REP_INFO}


def contexts(replies):
    """Names in an answer to LIST_META_CONTEXT or SET_META_CONTEXT."""
    return {data[4:] for kind, data in replies if kind == nbd.REP_META_CONTEXT}


@case
def greeting_and_flags(suite):
    """Unknown client flags end the connection, known ones do not."""
    with suite.server() as server:
        for flags in (0, 1, 2, 3):
            with server.wire(flags=flags) as wire:
                wire.send(nbd.OPTION.pack(nbd.OPTS_MAGIC, OPT_EXPORT_NAME, 0))
                size, _ = struct.unpack(">QH", wire.recv(10))
                equal("size", size, server.size)
        for flags in (4, 1 << 31, 0xffffffff):
            with server.wire(flags=flags) as wire:
                true(f"closed after flags {flags:#x}", wire.is_closed())


@case
def export_name(suite):
    """EXPORT_NAME with and without zeroes, both names, and one that is not ours."""
    with suite.server() as server:
        for name in (b"", b"vm1"):
            for flags, padding in ((1, 124), (3, 0)):
                with server.wire(flags=flags) as wire:
                    wire.send(nbd.OPTION.pack(nbd.OPTS_MAGIC, OPT_EXPORT_NAME, len(name)) + name)
                    wire.recv(10)
                    equal("padding", wire.recv(padding), bytes(padding))
                    equal("read", wire.call(nbd.CMD_READ, 0, 512).error, 0)
        for name in (b"other", b"vm1\0", b"v", b"x" * 4096, b"x" * 4097):
            with server.wire() as wire:
                wire.send(nbd.OPTION.pack(nbd.OPTS_MAGIC, OPT_EXPORT_NAME, len(name)) + name)
                true(f"closed after {len(name)} bytes of name", wire.is_closed())


@case
def without_fixed_newstyle(suite):
    """A client that does not speak fixed newstyle may only name an export."""
    with suite.server() as server:
        with server.wire(flags=0) as wire:
            wire.send(nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_LIST, 0))
            true("closed", wire.is_closed())


@case
def list_exports(suite):
    """LIST names the export and describes it; data is refused."""
    with suite.server() as server, server.wire() as wire:
        replies = wire.option(nbd.OPT_LIST)
        equal("types", [kind for kind, _ in replies], [nbd.REP_SERVER, nbd.REP_ACK])
        true("name", replies[0][1].startswith(string("vm1")))
        equal("with data", wire.option_end(nbd.OPT_LIST, b"x"), ERR_INVALID)
        equal("ABORT", wire.option(nbd.OPT_ABORT), [(nbd.REP_ACK, b"")])
        true("closed after ABORT", wire.is_closed())


@case
def abort_with_data(suite):
    """ABORT is honoured whatever comes with it."""
    with suite.server() as server, server.wire() as wire:
        equal("ABORT", wire.option_end(nbd.OPT_ABORT, b"bye"), nbd.REP_ACK)
        true("closed", wire.is_closed())


@case
def info_and_go(suite):
    """INFO and GO give the same; asked-for information is there."""
    asked = info_data("vm1", INFO_NAME, INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE, 77)
    with suite.server() as server, server.wire() as wire:
        first = infos(wire.option(nbd.OPT_INFO, asked))
        again = infos(wire.option(nbd.OPT_GO, asked))
        equal("GO after INFO", again, first)
        size, flags = struct.unpack(">QH", first[nbd.INFO_EXPORT])
        equal("size", size, server.size)
        for flag in (nbd.FLAG_HAS_FLAGS, nbd.FLAG_SEND_FLUSH, nbd.FLAG_SEND_FUA,
                     nbd.FLAG_CAN_MULTI_CONN):
            true(f"flag {flag:#x}", flags & flag)
        for flag in (nbd.FLAG_READ_ONLY, nbd.FLAG_SEND_DF, nbd.FLAG_SEND_CACHE,
                     nbd.FLAG_SEND_FAST_ZERO):
            true(f"no flag {flag:#x}", not flags & flag)
        equal("name", first[INFO_NAME], b"vm1")
        least, preferred, most = struct.unpack(">III", first[nbd.INFO_BLOCK_SIZE])
        true("minimum", least in (512, 4096))
        true("preferred", preferred >= least and preferred & (preferred - 1) == 0)
        equal("payload", most, 32 << 20)
        equal("in transmission", wire.call(nbd.CMD_FLUSH).error, 0)


@case
def info_malformed(suite):
    """Data of INFO that is cut, too long or lies about its lengths."""
    good = info_data("vm1", nbd.INFO_BLOCK_SIZE)
    bad = [b"", b"\0\0", string("vm1"), good[:-1], good + b"\0", good[:-4] + b"\0\2",
           struct.pack(">I", 0xffffffff) + b"vm1\0\0", struct.pack(">I", 0x7fffffff),
           struct.pack(">I", 4097) + bytes(4097) + b"\0\0",
           string("vm1") + b"\xff\xff" + bytes(8)]
    with suite.server() as server, server.wire() as wire:
        for data in bad:
            equal(f"{data[:12]!r}", wire.option_end(nbd.OPT_INFO, data), ERR_INVALID)
        for name in ("other", "vm1\0", "VM1"):
            equal(name, wire.option_end(nbd.OPT_GO, info_data(name)), ERR_UNKNOWN)
        equal("still good", wire.option_end(nbd.OPT_GO, good), nbd.REP_ACK)


@case
def unknown_options(suite):
    """TLS and what we do not know is refused, with or without data; then go on."""
    with suite.server() as server, server.wire() as wire:
        for option in (0, OPT_PEEK_EXPORT, OPT_STARTTLS, OPT_EXTENDED_HEADERS, 12, 0xffffffff):
            for data in (b"", b"data" * 1000):
                equal(f"option {option}", wire.option_end(option, data), ERR_UNSUP)
        wire.negotiate()
        equal("flush", wire.call(nbd.CMD_FLUSH).error, 0)


@case
def long_options(suite):
    """Data longer than any option has is skipped, and the next option works."""
    with suite.server() as server, server.wire() as wire:
        for length in (16384, 16385, 32768, 1 << 20, 3 << 20):
            expected = ERR_UNSUP if length <= 16384 else ERR_TOO_BIG
            equal(f"{length} bytes", wire.option_end(99, bytes(length)), expected)
        equal("GO", wire.option_end(nbd.OPT_GO, info_data("")), nbd.REP_ACK)


@case
def pipelined_options(suite):
    """Options sent without waiting are answered one after the other."""
    one = nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_LIST, 0)
    with suite.server() as server, server.wire() as wire:
        wire.send(one * 500)
        for _ in range(500):
            equal("end", wire.option_replies(nbd.OPT_LIST)[-1][0], nbd.REP_ACK)
        wire.negotiate()


@case
def byte_by_byte(suite):
    """A handshake and a write that arrive in single bytes."""
    with suite.server() as server, server.wire(greet=False) as wire:
        wire.greeting()
        stream = struct.pack(">I", 3)
        stream += nbd.OPTION.pack(nbd.OPTS_MAGIC, nbd.OPT_GO, len(info_data("vm1")))
        for byte in stream + info_data("vm1"):
            wire.send(bytes([byte]))
        equal("GO", wire.option_replies(nbd.OPT_GO)[-1][0], nbd.REP_ACK)
        request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_WRITE, 7, 512, 512)
        for byte in request + b"\x5a" * 512:
            wire.send(bytes([byte]))
        equal("write", wire.reply().error, 0)
        equal("read", wire.call(nbd.CMD_READ, 512, 512).data, b"\x5a" * 512)


@case
def structured_reply(suite):
    """STRUCTURED_REPLY once, without data; DF is offered only then."""
    with suite.server() as server, server.wire() as wire:
        equal("with data", wire.option_end(nbd.OPT_STRUCTURED_REPLY, b"x"), ERR_INVALID)
        equal("first", wire.option_end(nbd.OPT_STRUCTURED_REPLY), nbd.REP_ACK)
        equal("second", wire.option_end(nbd.OPT_STRUCTURED_REPLY), ERR_INVALID)
        export = infos(wire.option(nbd.OPT_INFO, info_data("")))[nbd.INFO_EXPORT]
        true("DF", struct.unpack(">QH", export)[1] & nbd.FLAG_SEND_DF)


@case
def meta_context_list(suite):
    """LIST_META_CONTEXT: everything, by namespace, by name, unknown ones."""
    wanted = [
        ((), BOTH_CONTEXTS),
        (("base:",), {b"base:allocation"}),
        (("qemu:",), {b"qemu:allocation-depth"}),
        (("base:allocation", "base:", "base:allocation"), {b"base:allocation"}),
        (("base:nothing", "x-other:", "nonsense", ""), set()),
        (("qemu:dirty-bitmap:x", "qemu:allocation-depth"), {b"qemu:allocation-depth"}),
    ]
    with suite.server() as server, server.wire() as wire:
        early = wire.option_end(nbd.OPT_LIST_META_CONTEXT, queries(""))
        equal("before structured replies", early, ERR_INVALID)
        wire.option(nbd.OPT_STRUCTURED_REPLY)
        for names, expected in wanted:
            replies = wire.option(nbd.OPT_LIST_META_CONTEXT, queries("vm1", *names))
            equal(f"{names}", contexts(replies), expected)
            equal("end", replies[-1][0], nbd.REP_ACK)
        unknown = wire.option_end(nbd.OPT_LIST_META_CONTEXT, queries("other"))
        equal("unknown export", unknown, ERR_UNKNOWN)


@case
def meta_context_set(suite):
    """SET_META_CONTEXT: wildcards select nothing, the last one counts."""
    with suite.server() as server, server.wire() as wire:
        early = wire.option_end(nbd.OPT_SET_META_CONTEXT, queries("", "base:allocation"))
        equal("before structured replies", early, ERR_INVALID)
        wire.option(nbd.OPT_STRUCTURED_REPLY)
        for names, expected in (((), 0), (("base:", "qemu:"), 0), (("base:allocation",), 1),
                                (("base:allocation", "qemu:allocation-depth"), 2)):
            replies = wire.option(nbd.OPT_SET_META_CONTEXT, queries("", *names))
            equal(f"{names}", len(contexts(replies)), expected)
        bad = wire.option_end(nbd.OPT_SET_META_CONTEXT, queries("", "base:allocation") + b"x")
        equal("malformed", bad, ERR_INVALID)
        wire.structured = True
        wire.option(nbd.OPT_GO, info_data(""))
        reply = wire.call(nbd.CMD_BLOCK_STATUS, 0, 4096)
        equal("status after a failed SET", reply.error, 22)


@case
def meta_context_malformed(suite):
    """Query lists that are cut, or count more than there is."""
    good = queries("vm1", "base:allocation")
    bad = [b"", good[:3], good[:7], good[:9], good[:-1], good + b"\0",
           string("vm1") + struct.pack(">I", 0xffffffff),
           string("vm1") + struct.pack(">II", 1, 0xffffffff),
           string("vm1") + struct.pack(">I", 3) + string("base:"),
           struct.pack(">I", 0xfffffffe) + good]
    with suite.server() as server, server.wire() as wire:
        wire.option(nbd.OPT_STRUCTURED_REPLY)
        for option in (nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT):
            for data in bad:
                equal(f"{data!r}", wire.option_end(option, data), ERR_INVALID)
            equal("good", wire.option_end(option, good), nbd.REP_ACK)
