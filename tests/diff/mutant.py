#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for qchaind with one fault on purpose: qemu-nbd behind a proxy that spoils requests.

Called like qchaind; the variable MUTANT names the fault ("none" for none).
Only for selftest.py, which proves that the differential tester notices.
"""

import argparse
import asyncio
import os
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import nbdclient as nbd  # noqa: E402  (needs the path above)

SECTOR = 512
CHUNK = 1 << 18
SPOIL_EVERY = 7
NBD_LENGTH_MAX = 32 << 20


class Spoiler:
    """Changes one request in seven of the kind that the fault is about."""

    def __init__(self, fault):
        self._fault = fault
        self._seen = 0

    def spoil(self, flags, command, offset, length, data):
        """Return the request as it goes to the real server."""
        change = REQUEST_FAULTS.get(self._fault)
        if change is None or change[0] != command:
            return flags, command, offset, length, data
        self._seen += 1
        if self._seen % SPOIL_EVERY:
            return flags, command, offset, length, data
        if self._fault == "exit-early":
            os.kill(os.getpid(), signal.SIGKILL)
        return change[1](flags, command, offset, length, data)


def dropped(_flags, _command, _offset, _length, _data):
    return 0, nbd.CMD_FLUSH, 0, 0, b""


def moved(flags, command, offset, length, data):
    offset += -SECTOR if offset >= SECTOR else SECTOR
    return flags, command, offset, length, data


def cut_short(flags, command, offset, length, data):
    half = max(length // 2 // SECTOR * SECTOR, SECTOR)
    return flags, command, offset, half, data[:half]


def foreign_after_trim(_flags, _command, offset, length, _data):
    length = min(length, NBD_LENGTH_MAX)
    return 0, nbd.CMD_WRITE, offset, length, b"\xaa" * length


def status_of_elsewhere(flags, command, offset, length, data):
    return flags, command, 0 if offset else SECTOR, length, data


# Fault: (command, what becomes of it)
REQUEST_FAULTS = {
    "drop-write": (nbd.CMD_WRITE, dropped),
    "move-write": (nbd.CMD_WRITE, moved),
    "short-write": (nbd.CMD_WRITE, cut_short),
    "move-read": (nbd.CMD_READ, moved),
    "drop-zero": (nbd.CMD_WRITE_ZEROES, dropped),
    "short-zero": (nbd.CMD_WRITE_ZEROES, cut_short),
    "trim-shows-foreign-data": (nbd.CMD_TRIM, foreign_after_trim),
    "false-status": (nbd.CMD_BLOCK_STATUS, status_of_elsewhere),
    "exit-early": (nbd.CMD_WRITE, dropped),
    "hang": (nbd.CMD_WRITE, dropped),
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", required=True, help="nbd,socket=PATH")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--intent-log", help="not needed: every write goes to the image at once")
    parser.add_argument("top")
    return parser.parse_args()


def socket_path(arguments):
    return arguments.export.removeprefix("nbd,socket=")


class Proxy:
    """Accepts NBD clients and passes their bytes to the real server and back."""

    def __init__(self, real_socket, spoiler, hang):
        self._real_socket = real_socket
        self._spoiler = spoiler
        self._hang = hang
        self._writes = 0

    async def serve_client(self, reader, writer):
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._real_socket)
            back = asyncio.create_task(self._pass_back(server_reader, writer))
            await self._pass_handshake(reader, server_writer)
            while True:
                await self._pass_request(reader, server_writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            server_writer.close()
            await asyncio.gather(back, return_exceptions=True)
        finally:
            writer.close()

    async def _pass_back(self, reader, writer):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _pass_handshake(self, reader, server):
        server.write(await reader.readexactly(4))
        option = None
        while option != nbd.OPT_GO:
            header = await reader.readexactly(nbd.OPTION.size)
            _, option, length = nbd.OPTION.unpack(header)
            server.write(header + await reader.readexactly(length))

    async def _pass_request(self, reader, server):
        header = await reader.readexactly(nbd.REQUEST.size)
        magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack(header)
        data = await reader.readexactly(length) if command == nbd.CMD_WRITE else b""
        self._writes += command == nbd.CMD_WRITE
        if self._hang and self._writes >= SPOIL_EVERY:
            await asyncio.sleep(3600)
        flags, command, offset, length, data = self._spoiler.spoil(
            flags, command, offset, length, data)
        server.write(nbd.REQUEST.pack(magic, flags, command, cookie, offset, length) + data)
        await server.drain()


def real_command(socket, arguments):
    mode = ["-r"] if arguments.read_only else []
    return ["qemu-nbd", "-t", "-k", socket, "-f", "qcow2", "--discard=unmap", "--cache=writeback",
            "-e", "8", "-A", *mode, arguments.top]


async def run(arguments, fault):
    """Serve until SIGTERM; returns the exit status."""
    public = socket_path(arguments)
    private = public + ".real"
    # The real server must not outlive the proxy, however that ends.
    child = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", *real_command(private, arguments))
    while not os.path.exists(private) and child.returncode is None:
        await asyncio.sleep(0.005)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    proxy = Proxy(private, Spoiler(fault), fault == "hang" and not arguments.read_only)
    server = await asyncio.start_unix_server(proxy.serve_client, public)
    await stop.wait()
    server.close()
    child.terminate()
    return await child.wait()


# ---- faults of the images -------------------------------------------------

def image_format(path):
    with open(path, "rb") as image:
        return "qcow2" if image.read(4) == b"QFI\xfb" else "raw"


def write_at(path, offset, data):
    with open(path, "r+b") as image:
        image.seek(offset)
        image.write(data)


def read_at(path, offset, length):
    with open(path, "rb") as image:
        image.seek(offset)
        return image.read(length)


def refcount_entries(path):
    """Place, size in bytes, and first block of the refcounts (16 bits or wider)."""
    header = read_at(path, 0, 112)
    version, = struct.unpack_from(">I", header, 4)
    cluster_bits, = struct.unpack_from(">I", header, 20)
    table, = struct.unpack_from(">Q", header, 48)
    order = struct.unpack_from(">I", header, 96)[0] if version >= 3 else 4
    block, = struct.unpack(">Q", read_at(path, table, 8))
    return block, (1 << order) // 8, 1 << cluster_bits


def leak_a_cluster(path):
    """Give a reference to a cluster that nobody uses."""
    block, width, cluster = refcount_entries(path)
    if width < 1:
        return
    refcounts = read_at(path, block, cluster)
    for index in range(cluster // width):
        if not any(refcounts[index * width:(index + 1) * width]):
            write_at(path, block + index * width, (1).to_bytes(width, "big"))
            if os.path.getsize(path) < (index + 1) * cluster:
                os.truncate(path, (index + 1) * cluster)
            return


def break_a_refcount(path):
    """Take the only reference of the header away: an error for every checker."""
    block, width, _ = refcount_entries(path)
    if width >= 1:
        write_at(path, block, bytes(width))


def spoil_data(path, stamp=b"QCST"):
    """Change one byte of each stamped sector of an image that lies at a sector boundary."""
    with open(path, "rb") as image:
        content = image.read()
    for offset in range(0, len(content), SECTOR):
        if content[offset:offset + 4] == stamp:
            write_at(path, offset + 40, b"\xff")


def other_images(top):
    """The backing images of the case: everything beside and below the active layer."""
    folder = os.path.dirname(top)
    names = [os.path.join(where, name) for where, _, files in os.walk(folder) for name in files]
    return [name for name in names if name != top]


def grow_a_backing(top):
    for path in other_images(top)[:1]:
        with open(path, "ab") as image:
            image.write(b"\0")


def drop_the_backing(top):
    """Open the active layer as if it had no backing: the wrong base."""
    if read_at(top, 8, 8) != bytes(8):
        write_at(top, 8, bytes(12))


def spoil_all_backings(top):
    for path in other_images(top):
        spoil_data(path)


FAULTS_BEFORE = {"wrong-base": drop_the_backing, "spoilt-backing": spoil_all_backings}
FAULTS_AFTER = {"leak": leak_a_cluster, "broken-refcount": break_a_refcount,
                "spoilt-after-stop": spoil_data, "changed-backing": grow_a_backing}
FAULTS_READ_ONLY = {"read-only-changes-top": leak_a_cluster, "read-only-spoilt": spoil_data}


def apply(faults, fault, top):
    if fault in faults:
        faults[fault](top)


def main():
    arguments = parse_arguments()
    fault = os.environ.get("MUTANT", "none")
    if fault == "slow-start":
        time.sleep(3600)
    if fault == "forgetful":
        # No proxy: acknowledged writes wait in QEMU's write-back cache for a kill.
        os.execvp("qemu-nbd", real_command(socket_path(arguments), arguments))
    if arguments.read_only:
        apply(FAULTS_READ_ONLY, fault, arguments.top)
    else:
        apply(FAULTS_BEFORE, fault, arguments.top)
    status = asyncio.run(run(arguments, fault))
    if not arguments.read_only:
        apply(FAULTS_AFTER, fault, arguments.top)
    if fault == "sanitizer":
        print("==1==ERROR: AddressSanitizer: heap-use-after-free (made up)", file=sys.stderr)
    return 3 if fault == "bad-exit" else status


if __name__ == "__main__":
    sys.exit(main())
