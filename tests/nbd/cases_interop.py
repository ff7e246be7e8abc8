# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD cases: the clients that people use."""

import json
import os

import nbdclient as nbd
from nbdsuite import DATA_BYTES, MIB, case, equal, true, tool

NBDSH_SCRIPT = """
import os
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:allocation-depth")
h.set_full_info(True)
h.connect_unix("{socket}")
assert h.get_size() == {size}
assert h.can_multi_conn() and h.can_fua() and h.can_flush() and h.can_df()
assert h.get_structured_replies_negotiated()
assert h.get_canonical_export_name() == "vm1"
for length in (512, 4096, 65536, 1 << 20, (1 << 20) + 512, 32 << 20):
    data = os.urandom(length)
    h.pwrite(data, 8192, nbd.CMD_FLAG_FUA)
    assert h.pread(length, 8192) == data
    assert h.pread_structured(length, 8192, lambda *a: 0, nbd.CMD_FLAG_DF) == data
h.flush()
seen = []
h.block_status(1 << 20, 0, lambda m, o, e, err: seen.append((m, sum(e[::2]))))
assert len(seen) == 2 and all(0 < n <= 1 << 20 for _, n in seen), seen
cookies = [h.aio_pread(nbd.Buffer(65536), i * 65536) for i in range(200)]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
h.set_strict_mode(0)
for fn, word in ((lambda: h.pread(512, 1), "aligned"), (lambda: h.pread(512, 1 << 40), "end"),
                 (lambda: h.cache(512, 0), "unknown")):
    try:
        fn()
        raise SystemExit("not refused: " + word)
    except nbd.Error as error:
        assert error.errnum == 22, error
assert h.pread(512, 0)
h.shutdown()
"""


@case
def nbdinfo(suite):
    """nbdinfo understands all that is offered."""
    program = tool("nbdinfo")
    with suite.server() as server:
        for export in ("", "vm1"):
            text = suite.run(program, "--json", server.uri(export))
            info = json.loads(text)
            equal("protocol", info["protocol"], "newstyle-fixed")
            true("structured", info["structured"])
            export, = info["exports"]
            equal("size", export["export-size"], server.size)
            equal("contexts", export["contexts"], [nbd.BASE_ALLOCATION, nbd.ALLOCATION_DEPTH])
            for key in ("can_flush", "can_fua", "can_multi_conn", "can_df"):
                true(key, export[key])
            equal("maximum", export["block_size_maximum"], 32 * MIB)
        listed = json.loads(suite.run(program, "--json", "--list", server.uri()))
        equal("list", [e["export-name"] for e in listed["exports"]], ["vm1"])
        true("unknown export", "opt_go" in suite.run(program, server.uri("x"), accept=(1,)))


@case
def nbdinfo_map(suite):
    """nbdinfo --map covers the whole export, in both contexts."""
    program = tool("nbdinfo")
    with suite.server() as server:
        for context in (nbd.BASE_ALLOCATION, nbd.ALLOCATION_DEPTH):
            text = suite.run(program, f"--map={context}", "--json", server.uri())
            extents = json.loads(text)
            equal("length", sum(e["length"] for e in extents), server.size)


@case
def nbdsh(suite):
    """libnbd's shell: data, flags, status, requests under way, errors."""
    program = tool("nbdsh")
    with suite.server() as server:
        script = NBDSH_SCRIPT.format(socket=server.socket, size=server.size)
        suite.run(program, "-c", script)


@case
def nbdcopy(suite):
    """nbdcopy out and in, over several connections."""
    program = tool("nbdcopy")
    with suite.server() as server:
        out = os.path.join(suite.directory, "out.raw")
        suite.run(program, server.uri(), out)
        suite.run("cmp", out, server.file)
        with open(out, "r+b") as file:
            file.write(suite.random.randbytes(5 * MIB))
        suite.run(program, "--flush", out, server.uri())
        again = os.path.join(suite.directory, "again.raw")
        suite.run(program, "--connections=1", server.uri(), again)
        suite.run("cmp", out, again)


@case
def qemu_img(suite):
    """qemu-img: info, map, compare, convert from and to the export."""
    program = tool("qemu-img")
    with suite.server() as server:
        info = json.loads(suite.run(program, "info", "--output=json", server.uri("vm1")))
        equal("size", info["virtual-size"], DATA_BYTES)
        extents = json.loads(suite.run(program, "map", "--output=json", "-f", "raw", server.uri()))
        equal("map", sum(e["length"] for e in extents), DATA_BYTES)
        suite.run(program, "compare", "-f", "raw", "-F", "raw", server.uri(), server.file)
        out = os.path.join(suite.directory, "out.qcow2")
        suite.run(program, "convert", "-f", "raw", "-O", "qcow2", "-m", "16", "-W",
                  server.uri(), out)
        suite.run(program, "compare", "-f", "qcow2", "-F", "raw", out, server.file)
        suite.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 3M", "-c", "write -z 9M 2M", out)
        suite.run(program, "convert", "-n", "-f", "qcow2", "-O", "raw", "-m", "16", "-W", out,
                  server.uri())
        suite.run(program, "compare", "-f", "qcow2", "-F", "raw", out, server.uri())


@case
def qemu_io(suite):
    """qemu-io: patterns, FUA, flush, aio, vectors."""
    program = tool("qemu-io")
    commands = ("write -P 1 0 64k", "read -P 1 0 64k", "write -f -P 2 64k 64k", "flush",
                "read -P 2 64k 64k", "aio_write -P 3 1M 2M", "aio_flush", "read -P 3 1M 2M",
                "writev -P 4 4M 4k 8k 12k", "readv -P 4 4M 8k 8k 8k", "write -P 5 8M 30M",
                "read -P 5 8M 30M", "write -z 8M 1M", "read -P 0 8M 1M")
    with suite.server() as server:
        argv = [x for command in commands for x in ("-c", command)]
        text = suite.run(program, "-f", "raw", *argv, server.uri())
        true(f"no failure in {text}", "fail" not in text.lower() and "error" not in text.lower())


@case
def qemu_io_read_only(suite):
    """A read-only export is one for QEMU too."""
    program = tool("qemu-io")
    with suite.server(read_only=True) as server:
        suite.run(program, "-r", "-f", "raw", "-c", "read 0 1M", server.uri())
        suite.run(program, "-f", "raw", "-c", "write 0 1M", server.uri(), accept=(1,))
