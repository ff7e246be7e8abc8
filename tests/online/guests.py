# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD clients that write at random beside whatever is done to a device; a model knows what it holds."""

import asyncio

from harness import Writer, expect, wait_until
from model import SECTOR
from nbdclient import FLAG_SEND_WRITE_ZEROES, NbdClient, NbdDisconnected

UNIT = 8  # sectors: half of the disk is owned by clients in turn, unit by unit
CLIENTS = 4


class Guests:
    """@kill: the daemon may die under them."""

    def __init__(self, random, model, sock, kill):
        self.random = random
        self.model = model
        self.sock = sock
        self.kill = kill
        self.running = True
        self.regions = []  # (first sector, sectors) of each growth
        self.first_sectors = model.sectors
        self.held = False  # no client begins a request
        self.resting = 0  # clients that do not, because of that
        self.connected = 0
        self.pause_s = 0  # between two requests of a client, at most

    def pick_range(self, client):
        """Sectors that only this client writes: units in turn, or a region of its own; what is new is shared, too."""
        regions = [(first, sectors) for first, sectors in self.regions if sectors >= CLIENTS]
        if regions and self.random.random() < 0.5:
            first, sectors = self.random.choice(regions)
            share = sectors // CLIENTS
            length = self.random.randint(1, min(share, 512))
            return first + client * share + self.random.randrange(0, share - length + 1), length
        half = self.first_sectors // 2
        if self.random.random() < 0.6:
            unit = self.random.randrange(half // UNIT // CLIENTS) * CLIENTS + client
            start = self.random.randrange(UNIT)
            return unit * UNIT + start, self.random.randint(1, UNIT - start)
        share = half // CLIENTS
        length = self.random.choice([n for n in (8, 128, 256, 512, 1024) if n <= share])
        start = self.random.randrange(0, share - length + 1, 8)
        return half + client * share + start, length

    async def rest(self):
        self.resting += 1
        while self.held and self.running:
            await asyncio.sleep(0.001)
        self.resting -= 1

    async def run_client(self, client):
        nbd = None
        try:
            nbd = await NbdClient.connect(self.sock)
            self.connected += 1
            while self.running:
                await (self.rest() if self.held else self.one_request(nbd, client))
                if self.pause_s:
                    await asyncio.sleep(self.random.random() * self.pause_s)
        except (NbdDisconnected, ConnectionError):
            if not self.kill:
                raise
        finally:
            if nbd:
                self.connected -= 1
                await nbd.abandon()

    async def one_request(self, nbd, client):
        kind = self.random.random()
        if kind < 0.1:
            await nbd.flush()
            return
        first, sectors = self.pick_range(client)
        if kind < 0.2:
            await self.check_read(nbd, first, sectors)
            return
        zero = kind < 0.3 and nbd.has(FLAG_SEND_WRITE_ZEROES)
        write = self.model.issue(first, sectors, zero)
        if zero:
            await nbd.write_zeroes(first * SECTOR, sectors * SECTOR)
        else:
            await nbd.write(first * SECTOR, write.data(), 1 if kind > 0.9 else 0)
        self.model.ack(write)

    async def check_read(self, nbd, first, sectors):
        """What a client reads of its own sectors is what it wrote last."""
        content = await nbd.read(first * SECTOR, sectors * SECTOR)
        for i in range(sectors):
            history = self.model.history.get(first + i)
            wanted = bytes(SECTOR)
            if history and not history[-1].zero:
                at = (first + i - history[-1].first) * SECTOR
                wanted = history[-1].data()[at:at + SECTOR]
            expect(content[i * SECTOR:(i + 1) * SECTOR] == wanted,
                   f"sector {first + i} reads back wrong")

    def read_device(self, size):
        """All that the device shows, flushed; on a connection of its own."""
        async def read():
            nbd = await NbdClient.connect(self.sock)
            await nbd.flush()
            parts = [bytes(await nbd.read(at, min(1 << 20, size - at))) for at in range(0, size, 1 << 20)]
            await nbd.abandon()
            return b"".join(parts)
        return asyncio.run(read())


class Crowd(Writer):
    """The clients of @guests, on a thread; hold() them for a look at something that stands still."""

    def __init__(self, guests):
        super().__init__()
        self.guests = guests
        guests.running = True
        self.start()

    async def write_all(self):
        done = await asyncio.gather(*[self.guests.run_client(number) for number in range(CLIENTS)],
                                    return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result

    def hold(self):
        self.guests.held = True
        wait_until(lambda: self.guests.resting == self.guests.connected or not self.is_alive(), "clients rest")
        expect(self.error is None, f"guest: {self.error!r}")

    def release(self):
        self.guests.held = False

    def end(self):
        self.guests.running = False
        super().end()
