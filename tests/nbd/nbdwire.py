#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD byte by byte: a blocking client that can also say what no client should."""

import os
import socket
import struct

from nbdclient import (
    BASE_ALLOCATION, ALLOCATION_DEPTH, CHUNK, CHUNK_BLOCK_STATUS, CHUNK_ERROR,
    CHUNK_FLAG_DONE, CHUNK_NONE, CHUNK_OFFSET_DATA, CMD_DISC, INFO_BLOCK_SIZE, INFO_EXPORT,
    NBD_MAGIC, OPTION, OPTION_REPLY, OPTS_MAGIC, OPT_GO, OPT_REPLY_MAGIC,
    OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_FLAG_ERROR, REP_INFO,
    REP_META_CONTEXT, REQUEST, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC)

TIMEOUT_S = 30


class WireError(Exception):
    """The server said something that the protocol does not allow."""


def string(text):
    """A counted string as options carry it."""
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack(">I", len(data)) + data


def queries(export, *names):
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return string(export) + struct.pack(">I", len(names)) + b"".join(map(string, names))


def info_data(export, *infos):
    """The data of INFO and GO."""
    return string(export) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


class Reply:
    """The whole answer to one request."""

    def __init__(self, cookie):
        self.cookie = cookie
        self.error = 0
        self.message = ""
        self.data = None
        self.status = {}
        self.chunks = []


class Wire:
    """One connection, raw."""

    def __init__(self, path, greet=True, flags=3):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(path)
        self.size = 0
        self.flags = 0
        self.block_sizes = None
        self.structured = False
        self.contexts = {}
        self.lengths = {}  # of reads under way, simple replies do not tell
        self.next_cookie = 1
        if greet:
            self.greeting()
            self.send(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def close(self):
        self.sock.close()

    # ---- bytes ------------------------------------------------------------

    def send(self, data):
        self.sock.sendall(data)

    def recv(self, length):
        """Exactly that many bytes."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = self.sock.recv_into(view)
            if not count:
                raise EOFError(f"closed, {len(view)} of {length} bytes missing")
            view = view[count:]
        return bytes(data)

    def is_closed(self):
        """Whether nothing comes any more: waits for the end of the stream."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    # ---- handshake --------------------------------------------------------

    def greeting(self):
        magic, options, flags = struct.unpack(">QQH", self.recv(18))
        if magic != NBD_MAGIC or options != OPTS_MAGIC or flags != 3:
            raise WireError(f"greeting {magic:#x} {options:#x} {flags:#x}")

    def option(self, option, data=b"", length=None):
        """Send one option, return its replies, the last one included."""
        length = len(data) if length is None else length
        self.send(OPTION.pack(OPTS_MAGIC, option, length) + data)
        return self.option_replies(option)

    def option_replies(self, option):
        replies = []
        while True:
            magic, answered, kind, length = OPTION_REPLY.unpack(self.recv(OPTION_REPLY.size))
            if magic != OPT_REPLY_MAGIC or answered != option:
                raise WireError(f"reply to option {option}: {magic:#x} {answered}")
            replies.append((kind, self.recv(length)))
            if kind == REP_ACK or kind & REP_FLAG_ERROR:
                return replies

    def option_end(self, option, data=b"", length=None):
        """The type of the last reply alone."""
        return self.option(option, data, length)[-1][0]

    def negotiate(self, structured=True, contexts=(BASE_ALLOCATION, ALLOCATION_DEPTH),
                  export=""):
        """Up to transmission, as a good client does it."""
        if structured:
            self.structured = self.option_end(OPT_STRUCTURED_REPLY) == REP_ACK
        if structured and contexts:
            for kind, data in self.option(OPT_SET_META_CONTEXT, queries(export, *contexts)):
                if kind == REP_META_CONTEXT:
                    self.contexts[struct.unpack_from(">I", data)[0]] = data[4:].decode()
        replies = self.option(OPT_GO, info_data(export, INFO_BLOCK_SIZE))
        if replies[-1][0] != REP_ACK:
            raise WireError(f"GO was refused: {replies[-1]}")
        for kind, data in replies:
            if kind == REP_INFO:
                self.take_info(data)
        return self

    def take_info(self, data):
        info, = struct.unpack_from(">H", data)
        if info == INFO_EXPORT:
            _, self.size, self.flags = struct.unpack(">HQH", data)
        elif info == INFO_BLOCK_SIZE:
            self.block_sizes = struct.unpack(">HIII", data)[1:]

    # ---- transmission -----------------------------------------------------

    def submit(self, command, offset=0, length=0, data=b"", flags=0, cookie=None):
        """Send a request, do not wait; returns its cookie."""
        if cookie is None:
            cookie = self.next_cookie
            self.next_cookie += 1
        if command == 0:
            self.lengths[cookie] = length
        header = REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)
        self.send(header + data if len(data) < 65536 else header)
        if len(data) >= 65536:
            self.send(data)
        return cookie

    def reply(self):
        """The next whole reply; chunks of different requests must not be mixed here."""
        reply = None
        while True:
            magic, = struct.unpack(">I", self.recv(4))
            if magic == SIMPLE_REPLY_MAGIC:
                return self.simple_reply()
            if magic != STRUCTURED_REPLY_MAGIC or not self.structured:
                raise WireError(f"reply magic {magic:#x}")
            flags, kind, cookie, length = CHUNK.unpack(self.recv(CHUNK.size))
            reply = reply or Reply(cookie)
            if cookie != reply.cookie:
                raise WireError("chunks of two replies are mixed")
            self.take_chunk(reply, kind, self.recv(length))
            if flags & CHUNK_FLAG_DONE:
                return reply

    def simple_reply(self):
        error, cookie = struct.unpack(">IQ", self.recv(12))
        reply = Reply(cookie)
        reply.error = error
        length = self.lengths.pop(cookie, None)
        if length is not None and self.structured:
            raise WireError("read was answered by a simple reply")
        if length is not None and not error:
            reply.data = self.recv(length)
        return reply

    def take_chunk(self, reply, kind, payload):
        reply.chunks.append(kind)
        if kind == CHUNK_ERROR:
            reply.error, length = struct.unpack_from(">IH", payload)
            reply.message = payload[6:6 + length].decode()
            if len(payload) != 6 + length:
                raise WireError("error chunk: length is not that of its message")
        elif kind == CHUNK_OFFSET_DATA:
            reply.data = payload[8:]
        elif kind == CHUNK_BLOCK_STATUS:
            context, = struct.unpack_from(">I", payload)
            reply.status[self.contexts[context]] = list(struct.iter_unpack(">II", payload[4:]))
        elif kind != CHUNK_NONE:
            raise WireError(f"chunk type {kind}")

    def call(self, command, offset=0, length=0, data=b"", flags=0):
        """Send a request and wait for its reply; no other may be under way."""
        cookie = self.submit(command, offset, length, data, flags)
        reply = self.reply()
        if reply.cookie != cookie:
            raise WireError(f"reply to {reply.cookie}, expected {cookie}")
        return reply

    def disconnect(self):
        self.submit(CMD_DISC)
