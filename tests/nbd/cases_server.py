# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD cases: the socket, starting and stopping."""

import os
import signal
import socket
import stat
import subprocess
import time

import nbdclient as nbd
from nbdsuite import MIB, Skip, case, equal, true
from nbdwire import Wire


def start_second(suite, server):
    """Another server on the same socket: (status, message)."""
    argv = suite.server_argv(server, False, "vm1")
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=suite.deadline.left(), check=False)
    return done.returncode, done.stdout


def wait_for_socket(suite, path):
    while True:
        try:
            Wire(path).close()
            return
        except (OSError, EOFError):
            suite.deadline.left()
            time.sleep(0.01)


@case
def socket_mode(suite):
    """The socket is for its owner alone, whatever the umask."""
    before = os.umask(0)
    try:
        with suite.server("zero") as server:
            mode = os.stat(server.socket).st_mode
            true("socket", stat.S_ISSOCK(mode))
            equal("mode", oct(mode & 0o777), oct(0o600))
    finally:
        os.umask(before)
    true("socket is gone", not os.path.exists(server.socket))


@case
def live_socket_refused(suite):
    """A second server on the socket of a live one is refused, and does no harm."""
    with suite.server("zero") as server:
        status, message = start_second(suite, server)
        true("status", status != 0)
        true(f"message {message!r}", server.socket in message and "in use" in message)
        server.alive()


@case
def stale_socket_replaced(suite):
    """The socket file of a dead server is replaced."""
    with suite.server("zero") as server:
        server.process.kill()
        true("socket stays", os.path.exists(server.socket))
        argv = suite.server_argv(server, False, "vm1")
        with subprocess.Popen(argv) as child:
            wait_for_socket(suite, server.socket)
            server.alive()
            child.terminate()
            equal("status", child.wait(suite.deadline.left()), 0)
        true("socket is gone", not os.path.exists(server.socket))


@case
def other_files_refused(suite):
    """A file that is no socket is neither replaced nor removed."""
    server = suite.server("zero")
    with open(server.socket, "w", encoding="ascii") as file:
        file.write("precious")
    status, message = start_second(suite, server)
    true("status", status != 0)
    true(f"message {message!r}", "no socket" in message)
    with open(server.socket, encoding="ascii") as file:
        equal("content", file.read(), "precious")


@case
def only_our_socket_is_removed(suite):
    """At the end, a socket that somebody else put there stays."""
    with suite.server("zero") as server:
        os.unlink(server.socket)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(server.socket)
            server.process.stop()
            true("socket stays", os.path.exists(server.socket))


@case
def starting_at_once(suite):
    """Of many servers on one stale socket exactly one gets it."""
    server = suite.server("zero")
    argv = suite.server_argv(server, False, "vm1")
    for _ in range(40):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(server.socket)
        children = [subprocess.Popen(argv, stderr=subprocess.DEVNULL) for _ in range(8)]
        try:
            while sum(child.poll() is None for child in children) > 1:
                suite.deadline.left()
                time.sleep(0.02)
            wait_for_socket(suite, server.socket)
            server.alive()
        finally:
            for child in children:
                child.terminate()
                child.wait()
        equal("servers", sorted(child.returncode for child in children), [0] + [1] * 7)
        true("socket is gone", not os.path.exists(server.socket))


@case
def stop_when_idle(suite):
    """Without force the export ends only when nobody is connected."""
    if not suite.is_bringup("zero"):
        raise Skip("needs nbd-bringup")
    with suite.server("zero") as server:
        wire = server.open()
        server.wait_for_connections(1)  # the one that found the server ready may still be seen
        server.signal(signal.SIGINT)
        while "in use by 1 clients" not in server.output():
            suite.deadline.left()
            time.sleep(0.01)
        equal("still served", wire.call(nbd.CMD_READ, 0, 4096).error, 0)
        wire.close()
        server.wait_until_idle()
        server.signal(signal.SIGINT)
        while not server.process.has_ended():
            suite.deadline.left()
            time.sleep(0.01)
        true("socket is gone", not os.path.exists(server.socket))


@case
def stop_by_force(suite):
    """A forced stop ends clients in all states, quickly."""
    with suite.server("zero") as server:
        wires = [server.wire(greet=False), server.wire(), server.open()]
        for data in (b"\x25\x60", nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_WRITE, 1, 0, MIB),
                     nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_WRITE, 1, 0, 9 * MIB) + bytes(MIB)):
            wires.append(server.open())
            wires[-1].send(data)
        begin = time.monotonic()
        server.process.stop()
        true("quick", time.monotonic() - begin < 5)
        for wire in wires[1:]:
            true("closed", wire.is_closed())
        for wire in wires:
            wire.close()


@case
def stop_with_slow_reader(suite):
    """A client that never reads cannot hold up a forced stop."""
    with suite.server("zero") as server:
        with server.open() as wire:
            for i in range(64):
                wire.submit(nbd.CMD_READ, i * MIB, MIB)
            time.sleep(0.2)
            server.process.stop()


@case
def stop_under_load(suite):
    """What was answered before the end is whole; the end is clean."""
    for _ in range(5):
        with suite.server() as server:
            wires = [server.open() for _ in range(4)]
            for wire in wires:
                for i in range(60):
                    wire.submit(nbd.CMD_READ, i * 65536, 65536)
            server.signal(signal.SIGTERM)
            for wire in wires:
                drain(wire)
                wire.close()
            while not server.process.has_ended():
                suite.deadline.left()
                time.sleep(0.01)


def drain(wire):
    """Whole replies, then the end."""
    count = 0
    try:
        while True:
            reply = wire.reply()
            equal("error", reply.error, 0)
            count += 1
    except EOFError as error:
        true(f"reply is whole: {error}", "4 of 4" in str(error))
    except ConnectionError:
        pass
    return count
