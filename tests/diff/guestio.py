#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random guest I/O over several NBD connections, each answer compared with the model."""

import asyncio
import errno
from dataclasses import dataclass

import nbdclient as nbd
from content import FILLS, SECTOR, Mismatch, make_data, is_zero
from chainspec import KIB, MIB, align_out

KINDS = ("read",) * 30 + ("write",) * 34 + ("zero",) * 12 + ("trim",) * 10 + \
        ("status",) * 8 + ("flush",) * 4 + ("beyond",) * 2 + ("cache",) * 1 + ("hangup",) * 1
BURST_KINDS = ("write",) * 6 + ("zero", "zero", "trim", "read")
WINDOW_MAX = 16
COMPARE_CHUNK = 2 * MIB
NBD_LENGTH_MAX = 32 * MIB
PLAIN_CONNECTION = 2


@dataclass
class Op:
    """One request that the guest will make."""
    number: int
    kind: str
    connection: int
    offset: int
    length: int
    flags: int
    fill: str

    def __str__(self):
        return (f"{self.number} {self.kind} {self.offset}+{self.length} flags={self.flags:#x} "
                f"fill={self.fill} connection={self.connection}")


def draw_ops(dice, count, first_number, size, hot, cluster_size, burst_at_end=False):
    """Requests for one session, in the order in which they are started.

    A burst at the end comes on top of count.
    """
    rng = dice.random
    places = []
    while len(places) < count:
        if rng.random() < 0.1:
            places += draw_burst(dice, size, hot, cluster_size)
        else:
            places.append(draw_single(dice, size, hot, cluster_size))
    places = places[:count]
    if burst_at_end:
        places += draw_burst(dice, size, hot, cluster_size)
    ops = []
    for number, (kind, offset, length) in enumerate(places, first_number):
        flags = draw_flags(rng, kind)
        ops.append(Op(number, kind, rng.randrange(64), offset, length, flags, rng.choice(FILLS)))
    return ops


def draw_single(dice, size, hot, cluster_size):
    """Kind and range of one request."""
    kind = dice.random.choice(KINDS)
    longest = 4 * MIB if kind in ("zero", "trim", "status") else MIB
    offset, length = dice.place(size, hot, longest)
    if kind in ("zero", "trim", "write") and dice.chance(0.3):
        offset, length = align_out(offset, length, cluster_size, size)
    return kind, offset, length


def draw_burst(dice, size, hot, cluster_size):
    """Neighbours that together fill one or two clusters, to be in flight at once."""
    rng = dice.random
    offset, length = dice.place(size, hot, SECTOR)
    start, length = align_out(offset, length, cluster_size * rng.choice((1, 1, 2)), size)
    sectors = length // SECTOR
    cuts = sorted(rng.sample(range(1, sectors), min(rng.randrange(1, WINDOW_MAX), sectors - 1)))
    edges = [0, *cuts, sectors]
    burst = [(rng.choice(BURST_KINDS), start + first * SECTOR, min((last - first) * SECTOR, MIB))
             for first, last in zip(edges, edges[1:])]
    rng.shuffle(burst)
    return burst


def draw_flags(rng, kind):
    flags = 0
    if kind in ("write", "zero", "trim") and rng.random() < 0.15:
        flags |= nbd.CMD_FLAG_FUA
    if kind == "zero" and rng.random() < 0.5:
        flags |= nbd.CMD_FLAG_NO_HOLE
    if kind == "read" and rng.random() < 0.2:
        flags |= nbd.CMD_FLAG_DF
    if kind == "status" and rng.random() < 0.3:
        flags |= nbd.CMD_FLAG_REQ_ONE
    return flags


class GuestSession:
    """Connections to one running server, with what the model knows about it."""

    def __init__(self, server, model, traits, log):
        self._server = server
        self._model = model
        self._traits = traits
        self._log = log
        self._clients = []
        self.notes = set()

    # ---- connecting -------------------------------------------------------

    async def open(self, connections, read_only=False):
        """Connect; several connections only where the server offers multi-conn."""
        first = await nbd.NbdClient.connect(self._server.socket_path)
        self._clients = [first]
        self._check_export(first, read_only)
        if not first.has(nbd.FLAG_CAN_MULTI_CONN):
            self.notes.add("multi-conn is not offered")
            connections = 1
        for number in range(1, connections):
            # With enough connections, one is an old client with simple replies.
            structured = number != PLAIN_CONNECTION
            client = await nbd.NbdClient.connect(self._server.socket_path, structured=structured)
            self._clients.append(client)

    def _check_export(self, client, read_only):
        if client.size != len(self._model):
            raise Mismatch(f"export has {client.size} bytes, expected {len(self._model)}")
        if client.has(nbd.FLAG_READ_ONLY) != read_only:
            raise Mismatch(f"export is {'' if read_only else 'not '}expected to be read-only")
        wanted = {"structured replies": client.structured,
                  "base:allocation": client.offers(nbd.BASE_ALLOCATION),
                  "qemu:allocation-depth": client.offers(nbd.ALLOCATION_DEPTH)}
        if not read_only:
            wanted["flush"] = client.has(nbd.FLAG_SEND_FLUSH)
            wanted["FUA"] = client.has(nbd.FLAG_SEND_FUA)
            wanted["trim"] = client.has(nbd.FLAG_SEND_TRIM)
            wanted["write zeroes"] = client.has(nbd.FLAG_SEND_WRITE_ZEROES)
        self.notes |= {f"{name} is not offered" for name, offered in wanted.items() if not offered}

    async def close(self):
        for client in self._clients:
            await client.close()

    async def abandon(self):
        for client in self._clients:
            await client.abandon()

    # ---- running requests -------------------------------------------------

    async def run(self, ops, window, kill_at_end=False):
        """Start ops in order, many at once, never two that overlap.

        With kill_at_end, the server is killed as soon as the last one was started;
        then the model is left with the doubts of what was in flight.
        """
        running = {}
        try:
            for op in ops:
                await self._wait_for_room(running, op, window)
                running[asyncio.create_task(self._perform(op))] = op
            if kill_at_end:
                await self._kill(running)
            else:
                await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _wait_for_room(self, running, op, window):
        start, end = self._locked_range(op)
        while len(running) >= window or any(
                start < other_end and other_start < end
                for other_start, other_end in map(self._locked_range, running.values())):
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del running[task]
                task.result()

    def _locked_range(self, op):
        """Bytes that no other request may touch while this one is in flight."""
        if op.kind in ("flush", "beyond", "hangup"):
            return 0, 0
        if op.kind in ("zero", "trim") and self._traits.zero_unit > 1:
            start, length = align_out(op.offset, op.length, self._traits.zero_unit,
                                      len(self._model))
            return start, start + length
        return op.offset, op.offset + op.length

    async def _kill(self, running):
        await asyncio.sleep(self._traits.kill_delay)
        self._server.kill()
        results = await asyncio.gather(*running, return_exceptions=True)
        for op, result in zip(list(running.values()), results):
            if isinstance(result, nbd.NbdDisconnected):
                self._log(f"in flight at the kill: {op}")
                if op.kind in ("write", "zero", "trim"):
                    self._model.doubt(op.offset, self._new_content(op))
            elif isinstance(result, BaseException):
                raise result
        running.clear()

    async def _perform(self, op):
        self._log(f"start {op}")
        client = self._clients[op.connection % len(self._clients)]
        perform = getattr(self, f"_do_{op.kind}")
        try:
            await perform(client, op)
        except nbd.NbdDisconnected:
            raise
        except (nbd.NbdError, nbd.NbdProtocolError, Mismatch) as error:
            raise Mismatch(f"request [{op}]: {error}") from error
        self._log(f"done {op.number}")

    def _new_content(self, op):
        if op.kind == "write":
            return make_data("guest", op.number, op.offset, op.length, op.fill)
        return bytes(op.length)

    # ---- the kinds of request ---------------------------------------------

    async def _do_read(self, client, op):
        flags = op.flags if client.has(nbd.FLAG_SEND_DF) else op.flags & ~nbd.CMD_FLAG_DF
        data = await client.read(op.offset, op.length, flags)
        self._model.expect(op.offset, data, "read")

    async def _do_write(self, client, op):
        data = self._new_content(op)
        await client.write(op.offset, data, self._fua(client, op.flags))
        self._model.put(op.offset, data)
        await self._expect_own(client, op)

    async def _expect_own(self, client, op):
        """What was just written belongs to the active layer: depth 1."""
        if op.number % 4 or not client.offers(nbd.ALLOCATION_DEPTH):
            return
        extents = await self._status(client, nbd.ALLOCATION_DEPTH, op.offset, op.length)
        for offset, length, depth in extents:
            if depth != 1:
                raise Mismatch(f"allocation depth of {offset}+{length} is {depth} "
                               f"after a write, expected 1")

    async def _do_zero(self, client, op):
        if not client.has(nbd.FLAG_SEND_WRITE_ZEROES):
            return
        await client.write_zeroes(op.offset, op.length, self._fua(client, op.flags))
        self._model.put(op.offset, bytes(op.length))

    async def _do_trim(self, client, op):
        """After a trim each sector is unchanged or zero; look which, and take it over."""
        if not client.has(nbd.FLAG_SEND_TRIM):
            return
        flags = op.flags | (nbd.CMD_FLAG_FUA if self._traits.trim_needs_fua else 0)
        await client.trim(op.offset, op.length, self._fua(client, flags))
        data = await client.read(op.offset, op.length)
        self._model.settle(op.offset, data, bytes(op.length), "trim")

    async def _do_flush(self, client, op):
        if client.has(nbd.FLAG_SEND_FLUSH):
            await client.flush()

    async def _do_status(self, client, op):
        await self._check_zero_claims(client, op.offset, op.length, op.flags)

    async def _do_beyond(self, client, op):
        """Requests past the end must be refused, and change nothing."""
        offset = len(self._model) - SECTOR * (op.number % 2)
        allowed = (errno.EINVAL, errno.ENOSPC)
        await expect_refusal("read past the end", allowed, client.read, offset, 2 * SECTOR)
        await expect_refusal("write past the end", allowed, client.write, offset, bytes(2 * SECTOR))

    async def _do_cache(self, client, op):
        if client.has(nbd.FLAG_SEND_CACHE) and self._traits.cache_works:
            await client.cache(op.offset, op.length)

    async def _do_hangup(self, client, op):
        """A client that goes away with reads in flight must not disturb the others."""
        passing = await nbd.NbdClient.connect(self._server.socket_path)
        reads = [asyncio.create_task(passing.read(op.offset, op.length)) for _ in range(4)]
        await asyncio.sleep(0)
        await passing.abandon()
        await asyncio.gather(*reads, return_exceptions=True)

    @staticmethod
    def _fua(client, flags):
        return flags if client.has(nbd.FLAG_SEND_FUA) else flags & ~nbd.CMD_FLAG_FUA

    # ---- block status -----------------------------------------------------

    async def _status(self, client, context, offset, length, flags=0):
        """Extents (offset, length, state) of one context that cover a range exactly."""
        extents = []
        end = offset + length
        while offset < end:
            part = await client.block_status(offset, min(end - offset, NBD_LENGTH_MAX), flags)
            found = part.get(context)
            if not found:
                raise Mismatch(f"block status at {offset}: nothing about {context}")
            if flags & nbd.CMD_FLAG_REQ_ONE and len(found) != 1:
                raise Mismatch(f"block status at {offset} with REQ_ONE: {len(found)} extents")
            for extent, state in found:
                if extent == 0 or extent % SECTOR or offset + extent > len(self._model):
                    raise Mismatch(f"block status at {offset}: extent of {extent} bytes")
                if offset < end:
                    extents.append((offset, min(extent, end - offset), state))
                offset += extent
        return extents

    async def _check_zero_claims(self, client, offset, length, flags=0):
        """Whatever base:allocation calls zero is zero in the model."""
        if not client.offers(nbd.BASE_ALLOCATION):
            return
        extents = await self._status(client, nbd.BASE_ALLOCATION, offset, length, flags)
        for start, size, state in extents:
            if state & nbd.STATE_ZERO and not is_zero(self._model.content[start:start + size]):
                raise Mismatch(f"block status says zero for {start}+{size}, which holds data")

    async def check_depths(self, oracle_map):
        """Before the first write: depths agree with qemu-img map."""
        client = self._clients[0]
        if not client.offers(nbd.ALLOCATION_DEPTH):
            return
        extents = await self._status(client, nbd.ALLOCATION_DEPTH, 0, len(self._model))
        for offset, length, depth in extents:
            if depth == 0 and not is_zero(self._model.content[offset:offset + length]):
                raise Mismatch(f"allocation depth of {offset}+{length} is 0, but there is data")
        for entry in oracle_map:
            if entry["data"] and not entry["zero"]:
                check_depth_of(extents, entry)

    # ---- the whole device -------------------------------------------------

    async def read_all(self):
        """The whole content, read over all connections at once."""
        size = len(self._model)
        chunks = [(offset, min(COMPARE_CHUNK, size - offset))
                  for offset in range(0, size, COMPARE_CHUNK)]
        reads = [self._clients[number % len(self._clients)].read(offset, length)
                 for number, (offset, length) in enumerate(chunks)]
        return b"".join(await asyncio.gather(*reads))

    async def compare_all(self, what):
        """The whole device and the whole block status against the model."""
        self._model.expect(0, await self.read_all(), what)
        await self._check_zero_claims(self._clients[-1], 0, len(self._model))

    async def check_refuses_writes(self):
        """A read-only export must refuse everything that changes it."""
        client = self._clients[0]
        allowed = (errno.EPERM, errno.EINVAL, errno.EROFS)
        await expect_refusal("write to a read-only export", allowed, client.write, 0, bytes(SECTOR))
        await expect_refusal("zeroes to a read-only export", allowed,
                             client.write_zeroes, 0, SECTOR)
        await expect_refusal("trim of a read-only export", allowed, client.trim, 0, SECTOR)


async def expect_refusal(name, allowed, request, *arguments):
    """The request must fail, with one of the allowed errors."""
    try:
        await request(*arguments)
    except nbd.NbdError as error:
        if error.errno not in allowed:
            raise Mismatch(f"{name}: error {error.errno}, expected one of {allowed}") from error
        return
    raise Mismatch(f"{name}: was not refused")


def check_depth_of(extents, entry):
    """One data extent of qemu-img map: NBD counts layers from 1, qemu-img from 0."""
    start, end = entry["start"], entry["start"] + entry["length"]
    for offset, length, depth in extents:
        if offset < end and start < offset + length and depth != entry["depth"] + 1:
            raise Mismatch(f"allocation depth of {offset}+{length} is {depth}, "
                           f"qemu-img map has layer {entry['depth']} (from 0) at {start}")
