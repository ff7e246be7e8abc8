# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one measurement of one contestant: qchainctl bench, qemu-img bench, fio, the daemon."""

import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import nbdclient as nbd  # noqa: E402  (needs the path above)

START_LIMIT_S = 60
MEMORY_POLL_S = 0.02


class PeerError(Exception):
    """A contestant failed: its figure would mean nothing."""


def _peak_memory(pid, seen):
    """VmHWM of a running process, or what was seen last. ru_maxrss would count ours too."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return seen


def run(argv):
    """Run a program to its end; returns (output, wall seconds, CPU seconds, peak RSS bytes)."""
    argv = [str(arg) for arg in argv]
    with tempfile.TemporaryFile() as out:
        start = time.monotonic()
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=subprocess.STDOUT)
        ended = os.pidfd_open(child.pid)
        rss = 0
        while not select.select([ended], [], [], MEMORY_POLL_S)[0]:
            rss = _peak_memory(child.pid, rss)
        wall = time.monotonic() - start
        os.close(ended)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        output = out.read().decode(errors="replace")
    if child.returncode:
        raise PeerError(f"{' '.join(argv)}: status {child.returncode}: {output.strip()[-500:]}")
    return output, wall, usage.ru_utime + usage.ru_stime, rss


def ours(qchainctl, image, count, *options):
    """qchainctl bench: what its --json says."""
    output, wall, _, _ = run([qchainctl, "bench", "--json", "-c", count, *options, image])
    result = json.loads(output)
    return {"iops": result["iops"], "cpu_us": result["cpu_us_per_io"],
            "rss": result["rss_bytes"], "map": result["map_bytes"],
            "extents": result["extents"], "layers": result["layers"],
            "p50_us": result["lat_us"]["p50"], "p99_us": result["lat_us"]["p99"],
            "wall_s": wall}


def qemu_bench(engine, image, count, *options, fmt="qcow2"):
    """qemu-img bench with O_DIRECT; CPU and memory are those of the whole process."""
    output, wall, cpu, rss = run(["qemu-img", "bench", "-f", fmt, "-t", "none", "-i", engine,
                                  "-c", count, *options, image])
    seconds = float(re.search(r"completed in ([0-9.]+) seconds", output).group(1))
    return {"iops": count / max(seconds, 1e-3), "cpu_us": cpu * 1e6 / count, "rss": rss,
            "wall_s": wall}


def fio_read(path, depth, seconds):
    """fio on the raw file, io_uring: what the kernel and the file system give."""
    output, wall, cpu, rss = run(["fio", "--name=raw", f"--filename={path}", "--rw=randread",
                                  "--bs=4k", "--direct=1", "--ioengine=io_uring", "--norandommap",
                                  f"--iodepth={depth}", f"--runtime={seconds}", "--time_based",
                                  "--output-format=json"])
    job = json.loads(output[output.index("{"):])["jobs"][0]["read"]
    return {"iops": job["iops"], "cpu_us": cpu * 1e6 / max(job["total_ios"], 1), "rss": rss,
            "p50_us": job["clat_ns"]["percentile"]["50.000000"] / 1000, "wall_s": wall}


def process(argv):
    """The whole life of a program."""
    _, wall, cpu, rss = run(argv)
    return {"wall_s": wall, "cpu_us": cpu * 1e6, "rss": rss}


# ---- the first read from a daemon that is being started -----------------------------

def _connect(path, child, limit):
    """A connection as soon as the socket is there."""
    while time.monotonic() < limit:
        try:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            return sock
        except OSError:
            sock.close()
        if child.poll() is not None:
            raise PeerError(f"daemon ended with status {child.returncode}")
        time.sleep(0.0005)
    raise PeerError(f"{path}: no answer in {START_LIMIT_S} s")


def _receive(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise PeerError("daemon closed the connection")
        data += piece
    return data


def _read_once(sock, offset, length):
    """The shortest NBD handshake (NBD_OPT_EXPORT_NAME), then one read."""
    magic, opts, _ = struct.unpack(">QQH", _receive(sock, 18))
    if magic != nbd.NBD_MAGIC or opts != nbd.OPTS_MAGIC:
        raise PeerError("no NBD server")
    flags = nbd.HANDSHAKE_FIXED_NEWSTYLE | nbd.HANDSHAKE_NO_ZEROES
    sock.sendall(struct.pack(">I", flags) + struct.pack(">QII", nbd.OPTS_MAGIC, 1, 0))
    _receive(sock, 10)
    sock.sendall(struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, 1, offset, length))
    magic, error, _ = struct.unpack(">IIQ", _receive(sock, 16))
    if magic != nbd.SIMPLE_REPLY_MAGIC or error:
        raise PeerError(f"read failed: {error}")
    _receive(sock, length)


def first_read(argv, socket_path, offset):
    """Seconds from the start of a daemon to the answer of its first 4 KiB read."""
    if os.path.exists(socket_path):
        os.unlink(socket_path)
    start = time.monotonic()
    child = subprocess.Popen([str(arg) for arg in argv], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with _connect(socket_path, child, start + START_LIMIT_S) as sock:
            _read_once(sock, offset, 4096)
            wall = time.monotonic() - start
    finally:
        child.terminate()
        child.wait()
    return {"wall_s": wall}
