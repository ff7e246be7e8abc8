#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the seeds of the fuzz targets: small images by qemu-img, whole sessions by hand.

usage: corpus.py FOLDER     fills FOLDER/image, chain, nbd, qmp and text
"""
import json
import os
import struct
import subprocess
import sys
import tempfile

IMAGES = [
    ("plain", "cluster_size=512", "96K", ["write -P 5 0 20K"], None),
    ("v2", "cluster_size=512,compat=0.10", "64K", ["write -P 5 3K 20K"], None),
    ("extl2", "cluster_size=16K,extended_l2=on", "128K", ["write -P 6 1K 5K", "write -z 32K 16K"], None),
    ("zero", "cluster_size=512", "64K", ["write -P 1 0 8K", "write -z 2K 2K", "discard 6K 1K"], None),
    ("backed", "cluster_size=1024", "64K", ["write -P 7 5K 2K"], "b"),
    ("backed-extl2", "cluster_size=16K,extended_l2=on", "96K", ["write -P 7 5K 2K"], "b"),
    ("lazy", "cluster_size=1K,lazy_refcounts=on", "64K", ["write -P 7 5K 2K"], None),
    ("rc1", "cluster_size=512,refcount_bits=1", "64K", ["write -P 7 5K 9K"], None),
    ("rc64", "cluster_size=512,refcount_bits=64", "64K", ["write -P 7 5K 9K"], None),
]


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def make_images(tmp):
    with open(os.path.join(tmp, "b"), "wb") as f:
        f.truncate(65536)
    for name, options, size, commands, backing in IMAGES:
        path = os.path.join(tmp, name)
        extra = ["-b", backing, "-F", "raw"] if backing else []
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *extra, path, size)
        for command in commands:
            run("qemu-io", "-f", "qcow2", "-c", command, path)
        yield name, path
    for algorithm in ("zlib", "zstd"):
        path = os.path.join(tmp, "compressed-" + algorithm)
        run("qemu-img", "convert", "-c", "-O", "qcow2",
            "-o", "cluster_size=1K,compression_type=" + algorithm, os.path.join(tmp, "plain"), path)
        yield "compressed-" + algorithm, path
    path = os.path.join(tmp, "snapshots")
    run("qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=512", os.path.join(tmp, "plain"), path)
    run("qemu-img", "snapshot", "-c", "one", path)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1K 3K", path)
    run("qemu-img", "snapshot", "-c", "two", path)
    yield "snapshots", path
    path = os.path.join(tmp, "bitmaps")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=1K", path, "64K")
    run("qemu-img", "bitmap", "--add", path, "first")
    run("qemu-img", "bitmap", "--add", "--disable", path, "second")
    yield "bitmaps", path


REQUESTS = bytes([9,
                  0x81, 0, 10, 8, 0x80, 0, 10, 8, 0x84, 0, 20, 9, 0x85, 0, 30, 30, 0x8d, 3, 90, 3,
                  0x83, 0, 0, 0, 0x86, 0, 0, 63, 0x91, 1, 5, 1, 0x80, 0, 5, 63])


def nbd_sessions():
    flags = struct.pack(">I", 3)

    def option(number, data=b""):
        return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data

    def go(name=b""):
        return option(7, struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, 3))

    def meta(number, *queries):
        data = struct.pack(">I", 0) + struct.pack(">I", len(queries))
        for q in queries:
            data += struct.pack(">I", len(q)) + q
        return option(number, data)

    def request(kind, offset, length, flag=0, data=b""):
        return struct.pack(">IHHQQI", 0x25609513, flag, kind, 7, offset, length) + data

    end = request(2, 0, 0)
    yield "list", flags + option(3) + option(2)
    yield "info", flags + option(6, struct.pack(">I", 4) + b"fuzz" + struct.pack(">H", 0)) + option(2)
    yield "export-name", flags + option(1, b"fuzz") + request(0, 0, 4096) + end
    yield "simple", flags + go() + request(0, 0, 4096) + request(1, 512, 512, 1, b"x" * 512) + end
    yield "structured", (flags + option(8) + meta(10, b"base:allocation", b"qemu:allocation-depth") + go(b"fuzz") +
                         request(7, 0, 1 << 20) + request(7, 0, 65536, 8) + request(0, 4096, 512, 4) +
                         request(3, 0, 0) + request(4, 0, 1 << 30, 1) + request(6, 512, 4096, 18) + end)
    yield "meta-list", flags + option(8) + meta(9) + meta(9, b"base:", b"qemu:") + option(5) + option(99) + option(2)
    yield "bad", flags + go() + request(0, 1 << 40, 4096) + request(99, 0, 1) + request(0, 1, 1) + b"noise"


QMP = [
    [{"execute": "qmp_capabilities"}, {"execute": "query-status", "id": 7}],
    [{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}],
    [{"execute": "query-status"}, {"execute": "qmp_capabilities"}, {"execute": "nope"}],
    [{"execute": "qmp_capabilities"}, {"execute": "query-named-block-nodes", "arguments": {"flat": True}},
     {"execute": "query-block-exports"}, {"execute": "query-blockstats"}, {"execute": "query-version"},
     {"execute": "query-commands"}, {"execute": "query-jobs"}, {"execute": "quit", "id": {"a": [1, 2]}}],
    [{"execute": "qmp_capabilities"}, {"execute": "job-cancel", "arguments": {"id": "x"}},
     {"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": "o", "file": {
         "driver": "file", "filename": "/nowhere"}}},
     {"execute": "block-commit", "arguments": {"device": "x", "speed": -1}}],
    [5], [[]], [{}], [{"execute": 5}],
]

TEXT = ["20G", "1.5G", "0x10", "18446744073709551616", "nbd,socket=/x,name=a,,b,read-only=on", "ublk,id=3,queues=2",
        json.dumps({"report": [{"lv": [{"vg_name": "vg", "lv_name": "lv", "lv_uuid": "u-1", "lv_size": "4194304",
                                        "lv_tags": "a,b", "lv_active": "active", "lv_device_open": "open"}]}]}),
        '{"report":[]}', '{"report":[{"lv":[{}]}]}', "vm-103_disk.0", "on", "two"]


def put(folder, kind, name, data):
    os.makedirs(os.path.join(folder, kind), exist_ok=True)
    with open(os.path.join(folder, kind, name), "wb") as f:
        f.write(data)


def main():
    folder = sys.argv[1]
    with tempfile.TemporaryDirectory() as tmp:
        for name, path in make_images(tmp):
            with open(path, "rb") as f:
                data = f.read()
            put(folder, "image", name, data)
            put(folder, "chain", name, REQUESTS + data)
    for name, data in nbd_sessions():
        put(folder, "nbd", name, b"\0" + data)
        put(folder, "nbd", name + "-ro", b"\1" + data)
    for i, lines in enumerate(QMP):
        put(folder, "qmp", "session-%d" % i, "\n".join(json.dumps(x) for x in lines).encode() + b"\n")
    put(folder, "qmp", "broken", b'{"execute": "qmp_capabilities"}\n{"execute": "query-st\n{]\n\xff\xfe\n')
    for i, text in enumerate(TEXT):
        put(folder, "text", "text-%d" % i, text.encode())


main()
