#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A pipelining NBD client on asyncio: fixed newstyle, structured replies, block status."""

import asyncio
import errno
import os
import struct

# Handshake
NBD_MAGIC = 0x4E42444D41474943
OPTS_MAGIC = 0x49484156454F5054
OPT_REPLY_MAGIC = 0x3E889045565A9
HANDSHAKE_FIXED_NEWSTYLE = 1
HANDSHAKE_NO_ZEROES = 2

OPT_ABORT = 2
OPT_LIST = 3
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_FLAG_ERROR = 1 << 31

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

# Transmission flags of an export
FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_ROTATIONAL = 1 << 4
FLAG_SEND_TRIM = 1 << 5
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_SEND_DF = 1 << 7
FLAG_CAN_MULTI_CONN = 1 << 8
FLAG_SEND_RESIZE = 1 << 9
FLAG_SEND_CACHE = 1 << 10
FLAG_SEND_FAST_ZERO = 1 << 11

# Commands and their flags
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4

# Chunks of a structured reply
CHUNK_FLAG_DONE = 1
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR = (1 << 15) + 1
CHUNK_ERROR_OFFSET = (1 << 15) + 2

# base:allocation
STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"

REQUEST = struct.Struct(">IHHQQI")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
CHUNK = struct.Struct(">HHQI")


class NbdProtocolError(Exception):
    """The server said something that the protocol does not allow."""


class NbdError(Exception):
    """The server answered a request or an option with an error."""

    def __init__(self, number, text):
        super().__init__(f"{text}: {errno.errorcode.get(number, number)}")
        self.errno = number


class NbdDisconnected(ConnectionError):
    """The connection ended before the request was answered."""


class Request:
    """One request in flight and what has come back for it so far."""

    def __init__(self, command, flags, offset, length):
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.error = 0
        self.pieces = []
        self.buffer = bytearray(length) if command == CMD_READ else None
        self.status = {}
        self.done = asyncio.get_running_loop().create_future()

    def add_piece(self, offset, length, data):
        """Note one data chunk (or a hole when data is None) of a read."""
        start = offset - self.offset
        if self.buffer is None or start < 0 or length == 0 or start + length > self.length:
            raise NbdProtocolError(f"chunk {offset}+{length} is outside of its request")
        self.pieces.append((start, length))
        if data is not None:
            self.buffer[start:start + length] = data

    def check_complete(self):
        """Every byte of a successful read must have come exactly once."""
        if self.command != CMD_READ or self.error:
            return
        if self.flags & CMD_FLAG_DF and len(self.pieces) > 1:
            raise NbdProtocolError("read with DF was answered in several pieces")
        position = 0
        for start, length in sorted(self.pieces):
            if start != position:
                raise NbdProtocolError(f"read at {self.offset}: gap or overlap at {start}")
            position += length
        if position != self.length:
            raise NbdProtocolError(f"read {self.offset}+{self.length}: {position} bytes came")


class NbdClient:
    """One connection. Any number of requests may be in flight at once."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer
        self._pending = {}
        self._next_cookie = 1
        self._receiver = None
        self._broken = None
        self.structured = False
        self.size = 0
        self.flags = 0
        self.block_sizes = (1, 4096, 0xFFFFFFFF)
        self.contexts = {}

    # ---- connecting -------------------------------------------------------

    @classmethod
    async def connect(cls, path, export="", structured=True,
                      contexts=(BASE_ALLOCATION, ALLOCATION_DEPTH)):
        """Connect to a unix socket and enter transmission with NBD_OPT_GO."""
        try:
            client = await cls._open(path)
            if structured:
                client.structured = await client._negotiate_structured()
            if client.structured and contexts:
                await client._set_contexts(export, contexts)
            await client._go(export)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise NbdDisconnected(f"server closed the connection early ({error})") from error
        client._receiver = asyncio.create_task(client._receive_all())
        return client

    @classmethod
    async def list_exports(cls, path):
        """Return the names of the exports that the server lists."""
        client = await cls._open(path)
        names = []
        async for kind, data in client._option(OPT_LIST, b""):
            if kind == REP_SERVER:
                length, = struct.unpack_from(">I", data)
                names.append(data[4:4 + length].decode())
        client._writer.write(OPTION.pack(OPTS_MAGIC, OPT_ABORT, 0))
        client._writer.close()
        return names

    @classmethod
    async def _open(cls, path):
        reader, writer = await asyncio.open_unix_connection(path, limit=4 << 20)
        client = cls(reader, writer)
        magic, options, flags = struct.unpack(">QQH", await reader.readexactly(18))
        if magic != NBD_MAGIC or options != OPTS_MAGIC:
            raise NbdProtocolError("greeting has the wrong magic")
        if not flags & HANDSHAKE_FIXED_NEWSTYLE:
            raise NbdProtocolError("server does not offer fixed newstyle")
        client._no_zeroes = bool(flags & HANDSHAKE_NO_ZEROES)
        writer.write(struct.pack(">I", flags & (HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES)))
        return client

    async def _option(self, option, data):
        """Send one option; yield (kind, data) of each reply before the closing ACK."""
        self._writer.write(OPTION.pack(OPTS_MAGIC, option, len(data)) + data)
        while True:
            header = await self._reader.readexactly(OPTION_REPLY.size)
            magic, answered, kind, length = OPTION_REPLY.unpack(header)
            payload = await self._reader.readexactly(length)
            if magic != OPT_REPLY_MAGIC or answered != option:
                raise NbdProtocolError(f"reply to option {option} is malformed")
            if kind & REP_FLAG_ERROR:
                text = payload.decode("utf-8", "replace")
                raise NbdError(kind & ~REP_FLAG_ERROR, f"option {option}: {text}")
            if kind == REP_ACK:
                return
            yield kind, payload

    async def _negotiate_structured(self):
        try:
            async for _ in self._option(OPT_STRUCTURED_REPLY, b""):
                pass
        except NbdError:
            return False
        return True

    async def _set_contexts(self, export, names):
        data = _string(export) + struct.pack(">I", len(names)) + b"".join(map(_string, names))
        async for kind, reply in self._option(OPT_SET_META_CONTEXT, data):
            if kind == REP_META_CONTEXT:
                number, = struct.unpack_from(">I", reply)
                self.contexts[number] = reply[4:].decode()

    async def _go(self, export):
        wanted = struct.pack(">HH", 1, INFO_BLOCK_SIZE)
        seen_export = False
        async for kind, reply in self._option(OPT_GO, _string(export) + wanted):
            if kind != REP_INFO:
                continue
            info, = struct.unpack_from(">H", reply)
            if info == INFO_EXPORT:
                _, self.size, self.flags = struct.unpack(">HQH", reply)
                seen_export = True
            elif info == INFO_BLOCK_SIZE:
                self.block_sizes = struct.unpack(">HIII", reply)[1:]
        if not seen_export:
            raise NbdProtocolError("NBD_OPT_GO was acknowledged without NBD_INFO_EXPORT")

    def has(self, flag):
        """Whether the export offers a transmission flag (FLAG_...)."""
        return bool(self.flags & flag)

    def offers(self, context):
        """Whether the server agreed to a metadata context."""
        return context in self.contexts.values()

    # ---- requests ---------------------------------------------------------

    async def read(self, offset, length, flags=0):
        request = await self._request(CMD_READ, flags, offset, length)
        return request.buffer

    async def write(self, offset, data, flags=0):
        await self._request(CMD_WRITE, flags, offset, len(data), data)

    async def write_zeroes(self, offset, length, flags=0):
        await self._request(CMD_WRITE_ZEROES, flags, offset, length)

    async def trim(self, offset, length, flags=0):
        await self._request(CMD_TRIM, flags, offset, length)

    async def cache(self, offset, length):
        await self._request(CMD_CACHE, 0, offset, length)

    async def flush(self):
        await self._request(CMD_FLUSH, 0, 0, 0)

    async def block_status(self, offset, length, flags=0):
        """Return {context name: [(length, flags), ...]} from offset on."""
        request = await self._request(CMD_BLOCK_STATUS, flags, offset, length)
        return request.status

    async def _request(self, command, flags, offset, length, data=b""):
        if self._broken:
            raise NbdDisconnected(str(self._broken))
        cookie = self._next_cookie
        self._next_cookie += 1
        request = Request(command, flags, offset, length)
        self._pending[cookie] = request
        # One call, so that requests of several tasks never mix. No drain():
        # the caller bounds what is in flight.
        header = REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)
        self._writer.write(header + bytes(data))
        await request.done
        if request.error:
            raise NbdError(request.error, f"command {command} at {offset}+{length}")
        return request

    async def close(self):
        """Say goodbye (NBD_CMD_DISC) and close."""
        if not self._broken:
            self._writer.write(REQUEST.pack(REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0))
        await self.abandon()

    async def abandon(self):
        """Close without a goodbye."""
        if self._receiver:
            self._receiver.cancel()
            await asyncio.gather(self._receiver, return_exceptions=True)
        self._writer.close()

    # ---- replies ----------------------------------------------------------

    async def _receive_all(self):
        try:
            while True:
                await self._receive_one()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self._fail_all(NbdDisconnected(f"server closed the connection ({error})"))
        except asyncio.CancelledError:
            self._fail_all(NbdDisconnected("connection was closed"))
            raise
        except Exception as error:
            self._fail_all(error)

    def _fail_all(self, error):
        self._broken = error
        for request in self._pending.values():
            if not request.done.done():
                request.done.set_exception(error)
                request.done.exception()  # nobody may be waiting any more
        self._pending.clear()

    async def _receive_one(self):
        magic, = struct.unpack(">I", await self._reader.readexactly(4))
        if magic == SIMPLE_REPLY_MAGIC:
            await self._receive_simple()
        elif magic == STRUCTURED_REPLY_MAGIC and self.structured:
            await self._receive_chunk()
        else:
            raise NbdProtocolError(f"reply magic {magic:#x} not expected")

    def _find(self, cookie):
        request = self._pending.get(cookie)
        if request is None:
            raise NbdProtocolError(f"reply to cookie {cookie} which is not in flight")
        return request

    def _finish(self, cookie):
        request = self._pending.pop(cookie)
        request.check_complete()
        if not request.done.done():
            request.done.set_result(None)

    async def _receive_simple(self):
        error, cookie = struct.unpack(">IQ", await self._reader.readexactly(12))
        request = self._find(cookie)
        request.error = error
        if request.command == CMD_READ:
            if self.structured:
                raise NbdProtocolError("read was answered by a simple reply")
            if not error:
                data = await self._reader.readexactly(request.length)
                request.add_piece(request.offset, request.length, data)
        self._finish(cookie)

    async def _receive_chunk(self):
        header = await self._reader.readexactly(CHUNK.size)
        flags, kind, cookie, length = CHUNK.unpack(header)
        request = self._find(cookie)
        payload = await self._reader.readexactly(length)
        self._take_chunk(request, kind, payload)
        if flags & CHUNK_FLAG_DONE:
            self._finish(cookie)

    def _take_chunk(self, request, kind, payload):
        if kind == CHUNK_OFFSET_DATA:
            offset, = struct.unpack_from(">Q", payload)
            request.add_piece(offset, len(payload) - 8, memoryview(payload)[8:])
        elif kind == CHUNK_OFFSET_HOLE:
            offset, length = struct.unpack(">QI", payload)
            request.add_piece(offset, length, None)
        elif kind == CHUNK_BLOCK_STATUS:
            self._take_status(request, payload)
        elif kind in (CHUNK_ERROR, CHUNK_ERROR_OFFSET):
            request.error, = struct.unpack_from(">I", payload)
        elif kind != CHUNK_NONE:
            raise NbdProtocolError(f"chunk type {kind} not known")

    def _take_status(self, request, payload):
        number, = struct.unpack_from(">I", payload)
        name = self.contexts.get(number)
        if request.command != CMD_BLOCK_STATUS or name is None or name in request.status:
            raise NbdProtocolError(f"block status of context {number} not expected")
        request.status[name] = list(struct.iter_unpack(">II", payload[4:]))


def _string(text):
    data = os.fsencode(text)
    return struct.pack(">I", len(data)) + data
