#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains on volumes with logical blocks of 4096 bytes, alone and mixed with blocks of 512: sizes told, content, deaths, merges."""

import asyncio
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import harness
import nbdclient
from full import Volume
from harness import expect, expect_equal

BLOCK = 4096
SIZE = 16 << 20
FIRST_PATTERN = 1 << 20  # what qemu-io has written into each base
OPTIONS = {"seed": 1}


def volume(place, name, block=BLOCK):
    return Volume(place, name, SIZE * 2, block)


def start(place, *words):
    child = place.start("--qmp", place.path("qmp"), "--export", f"nbd,socket={place.path('nbd')}", *words)
    place.wait_ready(child, place.path("nbd"))
    return child


def stop(child):
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")


async def scribble(place, model, seed):
    """Random writes, zeroes and discards of whole blocks, some flushed; @model holds what the device must show."""
    client = await nbdclient.NbdClient.connect(place.path("nbd"))
    rng = random.Random(seed)
    expect_equal(client.block_sizes[0], BLOCK, "least block size told to the client")
    for n in range(300):
        length = BLOCK * rng.randint(1, 24)
        offset = BLOCK * rng.randrange((SIZE - length) // BLOCK)
        kind = rng.choice(("write", "write", "write", "zeroes", "trim", "flush"))
        if kind == "write":
            model[offset:offset + length] = data = bytes([n % 255 + 1]) * length
            await client.write(offset, data)
        elif kind == "zeroes":
            model[offset:offset + length] = bytes(length)
            await client.write_zeroes(offset, length)
        elif kind == "trim":
            await client.trim(offset, length)
            model[offset:offset + length] = await client.read(offset, length)
        else:
            await client.flush()
    await client.close()


async def compare(place, model):
    client = await nbdclient.NbdClient.connect(place.path("nbd"))
    for offset in range(0, SIZE, 1 << 20):
        expect(await client.read(offset, 1 << 20) == model[offset:offset + (1 << 20)], f"content at {offset} differs")
    await client.close()


def chain(place, top, base, *options):
    """Images on both volumes; returns the content."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", base.path, str(SIZE))
    place.run("qemu-io", "-f", "qcow2", "-c", f"write -q -P 9 0 {FIRST_PATTERN}", base.path)
    place.ctl("create", top.path, "--backing", base.path, "--backing-format", "qcow2", *options)
    return bytearray(bytes([9]) * FIRST_PATTERN + bytes(SIZE - FIRST_PATTERN))


def live(place, top, base, *options):
    """Written, killed, taken over, ended; QEMU sees the same, and a commit puts it into the base."""
    seed = OPTIONS["seed"]
    model = chain(place, top, base, *options)
    words = ("--allow-backing", os.path.dirname(base.path), "--intent-log", place.path("log"), top.path)
    child = start(place, *words)
    asyncio.run(scribble(place, model, seed))
    child.kill()
    child.wait()
    child = start(place, *words)
    asyncio.run(compare(place, model))
    asyncio.run(scribble(place, model, seed + 1))
    stop(child)
    with open(place.path("model"), "wb") as file:
        file.write(model)
    for step in ("as it was left", "after the commit"):
        place.run("qemu-img", "check", "-q", "-f", "qcow2", top.path)
        place.run("qemu-img", "check", "-q", "-f", "qcow2", base.path)
        expect("identical" in place.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", place.path("model"),
                                        top.path).stdout, f"QEMU sees something else {step}")
        place.ctl("check", top.path)
        if step == "as it was left":
            place.ctl("commit", top.path, "--assume-unshared", "--allow-backing", os.path.dirname(base.path))


def test_blocks_of_4096(place):
    """Both images on blocks of 4096."""
    with volume(place, "top") as top, volume(place, "base") as base:
        live(place, top, base)


def test_mixed(place):
    """Only one image is on large blocks: the device has the larger ones, and subclusters fit them."""
    with volume(place, "top") as top, volume(place, "base", 512) as base:
        live(place, top, base, "--cluster-size", "128k", "--extended-l2")
    with volume(place, "top", 512) as top, volume(place, "base") as base:
        live(place, top, base, "--cluster-size", "4k")


def test_small_clusters(place):
    """Clusters smaller than a block cannot be written one by one: read-only, with the reason (rule A5)."""
    async def look(model):
        client = await nbdclient.NbdClient.connect(place.path("nbd"))
        expect(client.has(nbdclient.FLAG_READ_ONLY), "the export is for writing")
        await client.close()
        await compare(place, model)
    with volume(place, "top") as top, volume(place, "base") as base:
        model = chain(place, top, base, "--cluster-size", "2k")
        child = start(place, "--allow-backing", os.path.dirname(base.path), top.path)
        asyncio.run(look(model))
        stop(child)
        expect("2048 bytes are smaller than the logical block" in place.output(), place.output())


def test_half_blocks(place):
    """A request of 512 bytes is refused; the next one of a whole block is not."""
    async def ask():
        client = await nbdclient.NbdClient.connect(place.path("nbd"))
        for request in (client.write(512, b"x" * 512), client.read(BLOCK, 512)):
            try:
                await request
            except nbdclient.NbdError:
                continue
            raise harness.Failure("half a block was taken")
        await client.write(0, b"y" * BLOCK)
        expect_equal(await client.read(0, BLOCK), b"y" * BLOCK, "content")
        await client.close()
    with volume(place, "top") as top, volume(place, "base") as base:
        chain(place, top, base)
        child = start(place, "--allow-backing", os.path.dirname(base.path), top.path)
        asyncio.run(ask())
        stop(child)


def add_options(parser):
    parser.add_argument("--seed", type=int, default=OPTIONS["seed"])


def other_action(arguments):
    """None; but the option is taken here."""
    OPTIONS.update(seed=arguments.seed)
    print(f"blocks: seed {arguments.seed}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(harness.main("blocks", sys.modules["__main__"], add_options))
