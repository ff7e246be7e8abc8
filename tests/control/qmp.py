#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP of qchaind: against transcripts of qemu-storage-daemon, and against rough clients."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import harness
import nbdclient
from harness import Failure, Qmp, Skip, expect, expect_equal, listens, wait_until

GOLDEN = os.path.join(harness.HERE, "qmp-golden.json")
MAX_MESSAGE = 1024 * 1024
MAX_CLIENTS = 16

# What is asked, and how much of QEMU's answer binds us: the whole of it, the class of
# the error (our parser has other words for broken JSON), or the keys and types.
WHOLE, CLASS, SHAPE = "whole", "class", "shape"
SCRIPT = (
    (WHOLE, '{"execute": "query-version"}'),
    (WHOLE, '{"execute": "query-version", "id": 5}'),
    (WHOLE, '{"execute": "nope", "id": "before"}'),
    (WHOLE, '{"execute": "qmp_capabilities", "arguments": {"enable": 3}}'),
    (CLASS, '{"execute": "qmp_capabilities", "arguments": {"enable": ["foo"]}}'),
    (WHOLE, '{"execute": "qmp_capabilities", "arguments": {"unknown": 3}}'),
    (WHOLE, '{"execute": "qmp_capabilities", "id": 7}'),
    (WHOLE, '{"execute": "qmp_capabilities", "id": {"a": 1}}'),
    (SHAPE, '{"execute": "query-version", "id": "x"}'),
    (SHAPE, '{"execute": "query-version", "id": null}'),
    (SHAPE, '{"execute": "query-version", "id": [1, {"b": 2.5}]}'),
    (WHOLE, '{"execute": "nope"}'),
    (WHOLE, '{"execute": "nope", "id": 1, "arguments": {"x": 1}}'),
    (WHOLE, '{"execute": 3}'),
    (WHOLE, '{"execute": null, "id": 2}'),
    (WHOLE, '{"exec": 3}'),
    (WHOLE, '{"exec": 3, "id": 3}'),
    (WHOLE, '{}'),
    (WHOLE, '{"id": 4}'),
    (WHOLE, '{"execute": "query-version", "arg": 3}'),
    (WHOLE, '{"execute": "query-version", "arguments": {"x": 1}}'),
    (WHOLE, '{"execute": "query-version", "arguments": []}'),
    (WHOLE, '{"execute": "query-version", "arguments": null}'),
    (SHAPE, '{"execute": "query-version", "arguments": {}}'),
    (WHOLE, '{"execute": "query-named-block-nodes", "arguments": {"flat": 1}}'),
    (WHOLE, '{"execute": "query-named-block-nodes", "arguments": {"flatt": true}}'),
    (WHOLE, '{"execute": "query-blockstats", "arguments": {"query-nodes": "yes"}}'),
    (WHOLE, '[1, 2]'),
    (WHOLE, '3'),
    (WHOLE, '"x"'),
    (WHOLE, 'null'),
    (WHOLE, "'single'"),
    (SHAPE, "{'execute': 'query-version'}"),
    (CLASS, '{a: 1}'),
    (CLASS, '}'),
    (CLASS, 'xyz'),
    (CLASS, '{"execute": "query-version" "id": 1}'),
    (SHAPE, '{"execute": "query-commands"}'),
    (SHAPE, '{"execute": "query-block-exports"}'),
    (SHAPE, '{"execute": "query-named-block-nodes", "arguments": {"flat": true}}'),
    (SHAPE, '{"execute": "query-blockstats", "arguments": {"query-nodes": true}}'),
    (SHAPE, '{"execute": "query-jobs"}'),
    (SHAPE, '{"execute": "query-block-jobs"}'),
    (WHOLE, '{"execute": "job-cancel", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "job-pause", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "job-resume", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "job-complete", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "job-finalize", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "job-dismiss", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "block-job-cancel", "arguments": {"device": "no-such"}}'),
    (WHOLE, '{"execute": "block-job-pause", "arguments": {"device": "no-such"}}'),
    (WHOLE, '{"execute": "block-job-resume", "arguments": {"device": "no-such"}}'),
    (WHOLE, '{"execute": "block-job-complete", "arguments": {"device": "no-such"}}'),
    (WHOLE, '{"execute": "block-job-finalize", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "block-job-dismiss", "arguments": {"id": "no-such"}}'),
    (WHOLE, '{"execute": "block-job-set-speed", "arguments": {"device": "no-such", "speed": 1}}'),
    (WHOLE, '{"execute": "block-job-set-speed", "arguments": {"device": "no-such"}}'),
    (WHOLE, '{"execute": "job-cancel"}'),
    (WHOLE, '{"execute": "job-pause", "arguments": {"device": "x"}}'),
    (WHOLE, '{"execute": "block-job-cancel", "arguments": {"device": "x", "force": 1}}'),
    (WHOLE, '{"execute": "quit", "id": "bye"}'),
)

# Keys of QEMU's answers that we do not have: of other drivers, or said elsewhere.
NOT_OURS = {"capabilities", "format-specific", "full-backing-filename", "driver-specific", "parent", "backing-image"}


# ---- transcripts ---------------------------------------------------------------


def converse(path):
    """Send the script, one request after the other; [[request, replies]...]."""
    client = Qmp(path, negotiate=False)
    exchange = [["", [client.greeting]]]
    for _, request in SCRIPT:
        client.send(request + "\n")
        exchange.append([request, [client.reply()]])
    client.close()
    return exchange


def record():
    """Write the transcript of qemu-storage-daemon on a chain of two layers."""
    place = harness.Place("/nonexistent", "/tmp/qc-golden")
    os.makedirs(place.folder, exist_ok=True)
    place.make_chain()
    child = subprocess.Popen(
        ["qemu-storage-daemon", "--blockdev", "driver=file,node-name=file,filename=top.qcow2",
         "--blockdev", "driver=qcow2,node-name=top.qcow2,file=file",
         "--nbd-server", "addr.type=unix,addr.path=nbd",
         "--export", "nbd,id=nbd0,node-name=top.qcow2,writable=on",
         "--chardev", f"socket,path={place.path('qmp')},server=on,wait=off,id=c", "--monitor", "chardev=c"],
        cwd=place.folder)
    wait_until(lambda: listens(child, place.path("qmp")), "qemu-storage-daemon listens")
    time.sleep(0.5)
    exchange = converse(place.path("qmp"))
    child.wait()
    shutil.rmtree(place.folder)
    version = subprocess.run(["qemu-storage-daemon", "--version"], stdout=subprocess.PIPE, text=True,
                             check=True).stdout.splitlines()[0]
    with open(GOLDEN, "w", encoding="utf-8") as golden:
        json.dump({"recorded-from": version, "exchange": exchange}, golden, indent=1)
        golden.write("\n")


def kind(value):
    """JSON's types: numbers are one, true and false are one."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def compare_shape(golden, ours, where):
    """All keys of @golden with their types; of lists, the first element."""
    expect_equal(kind(ours), kind(golden), f"type of {where}")
    if isinstance(golden, dict):
        for key, value in golden.items():
            if key in NOT_OURS:
                continue
            expect(key in ours, f"{where} lacks the key {key}")
            compare_shape(value, ours[key], f"{where}.{key}")
    elif isinstance(golden, list) and golden:
        expect(ours, f"{where} is empty")
        compare_shape(golden[0], ours[0], f"{where}[0]")


def first_of_driver(reply, driver):
    """Of a list of nodes only those that are layers."""
    nodes = [node for node in reply["return"] if node.get("drv") == driver and "backing_file" in node]
    return dict(reply, **{"return": nodes})


def compare(mode, request, golden, ours):
    if mode == WHOLE:
        expect_equal(ours, golden, f"answer to {request}")
    elif mode == CLASS:
        expect("error" in ours, f"{request} is answered with {ours}, expected an error")
        expect_equal(ours["error"]["class"], golden["error"]["class"], f"class of {request}")
    else:
        if "query-named-block-nodes" in request:
            golden, ours = first_of_driver(golden, "qcow2"), first_of_driver(ours, "qcow2")
        expect("return" in ours, f"{request} is answered with {ours}")
        compare_shape(golden, ours, request)
        expect_equal(ours.get("id"), golden.get("id"), f"id of {request}")
        expect_equal("id" in ours, "id" in golden, f"an id in the answer to {request}")


def test_golden(place):
    """The same questions as in the transcript of qemu-storage-daemon."""
    place.make_chain()
    child = place.start_chain()
    with open(GOLDEN, encoding="utf-8") as golden:
        exchange = json.load(golden)["exchange"]
    ours = converse(place.path("qmp"))
    expect_equal([request for _, request in SCRIPT], [request for request, _ in exchange[1:]],
                 "script of the transcript (record it again)")
    compare_shape(exchange[0][1][0], ours[0][1][0], "greeting")
    wrong = []
    for (mode, request), (_, golden), (_, got) in zip(SCRIPT, exchange[1:], ours[1:]):
        try:
            compare(mode, request, golden[0], got[0])
        except Failure as reason:
            wrong.append(str(reason))
    expect(not wrong, "\n     ".join([f"{len(wrong)} answers differ:"] + wrong))
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status after quit")


# ---- queries ---------------------------------------------------------------------


def test_query_status(place):
    place.make_chain()
    place.start_chain("--name", "seven")
    status = Qmp(place.path("qmp")).command("query-status")["return"]
    for key, value in {"status": "running", "running": True, "singlestep": False, "name": "seven",
                       "top": place.path("top.qcow2"), "virtual-size": 16 << 20,
                       "read-only": False}.items():
        expect_equal(status.get(key), value, f"key {key}")
    expect("nodes" not in status and "blockstats" not in status, f"too much in {list(status)}")


def test_query_commands(place):
    """Each command that is listed is there."""
    place.make_chain()
    place.start_chain()
    client = Qmp(place.path("qmp"))
    names = [entry["name"] for entry in client.command("query-commands")["return"]]
    for name in ("query-version", "query-commands", "query-status", "query-named-block-nodes",
                 "query-block-exports", "query-blockstats", "quit", "qmp_capabilities"):
        expect(name in names, f"{name} is not listed")
    for name in names:
        if name in ("quit", "qmp_capabilities"):
            continue
        answer = client.command(name)
        expect("return" in answer or answer["error"]["class"] == "GenericError", f"{name}: {answer}")


def test_query_exports(place):
    place.make_chain()
    place.start_chain("--name", "seven", "--export", f"nbd,socket={place.path('ro')},read-only=on")
    exports = Qmp(place.path("qmp")).command("query-block-exports")["return"]
    expect_equal([export["id"] for export in exports], ["nbd0", "nbd1"], "ids")
    for export in exports:
        expect_equal((export["type"], export["node-name"], export["shutting-down"]),
                     ("nbd", "top.qcow2", False), "export")
    expect_equal([export["read-only"] for export in exports], [False, True], "read-only")


def guest(place, *steps):
    """Run @steps, functions of a client, one after the other on one NBD connection."""
    async def run():
        client = await nbdclient.NbdClient.connect(place.path("nbd"))
        for step in steps:
            try:
                await step(client)
            except nbdclient.NbdError:
                pass
        await client.close()
    asyncio.run(run())


def stats_of(place, node=0):
    answer = Qmp(place.path("qmp")).command("query-blockstats", **{"query-nodes": True})
    return answer["return"][node]["stats"]


def test_blockstats(place):
    """What guests did, in QEMU's numbers, at the node of the active layer."""
    place.make_chain()
    place.start_chain()
    expect("idle_time_ns" not in stats_of(place), "idle time before the first request")
    guest(place, lambda c: c.write(65536, b"x" * 8192), lambda c: c.write(1 << 20, b"y" * 512),
          lambda c: c.write_zeroes(4096, 4096), lambda c: c.read(0, 65536), lambda c: c.read(8 << 20, 512),
          lambda c: c.read(512, 1024), lambda c: c.flush(), lambda c: c.trim(131072, 65536))
    first = stats_of(place)
    for key, value in {"wr_operations": 3, "wr_bytes": 8192 + 512 + 4096, "rd_operations": 3,
                       "rd_bytes": 65536 + 512 + 1024, "flush_operations": 1, "unmap_operations": 1,
                       "unmap_bytes": 65536, "wr_highest_offset": (1 << 20) + 512, "failed_wr_operations": 0,
                       "failed_rd_operations": 0, "invalid_wr_operations": 0, "wr_merged": 0}.items():
        expect_equal(first.get(key), value, key)
    for key in ("rd_total_time_ns", "wr_total_time_ns", "flush_total_time_ns", "idle_time_ns"):
        expect(first[key] > 0, f"{key} is {first[key]}")
    expect(first["wr_total_time_ns"] < harness.WAIT_S * 3e9, f"a write took {first['wr_total_time_ns']} ns")
    guest(place, lambda c: c.read(0, 512))
    again = stats_of(place)
    expect_equal((again["rd_operations"], again["wr_bytes"]), (4, first["wr_bytes"]), "a second client's counts")
    expect_equal(stats_of(place, 1)["rd_operations"], 0, "reads of a layer below")


def test_write_threshold(place):
    """Told once, when a cluster is taken beyond it; the answers are QEMU's."""
    def threshold(node, number):
        return client.command("block-set-write-threshold", **{"node-name": node, "write-threshold": number})

    def of_nodes():
        return [node["write_threshold"] for node in client.command("query-named-block-nodes")["return"]]

    place.make_chain()
    place.start_chain()
    client = Qmp(place.path("qmp"))
    expect_equal(threshold("nope", 1)["error"], {"class": "GenericError", "desc": "Device 'nope' not found"}, "no node")
    expect("takes no writes" in threshold("base.qcow2", 1)["error"]["desc"], "a sealed layer")
    expect("error" in threshold("top.qcow2", -1), "a negative one")
    expect_equal(threshold("top.qcow2", 1 << 20), {"return": {}}, "answer")
    expect_equal(of_nodes(), [1 << 20, 0], "write_threshold of the nodes")
    guest(place, lambda c: c.write(0, b"x" * 65536))
    expect_equal((of_nodes(), client.events), ([1 << 20, 0], []), "below it")
    guest(place, lambda c: c.write(1 << 20, b"x" * (1 << 20)), lambda c: c.write(4 << 20, b"x" * 65536))
    expect_equal(of_nodes(), [0, 0], "write_threshold once it was told")
    told = [event["data"] for event in client.events if event["event"] == "BLOCK_WRITE_THRESHOLD"]
    expect_equal(len(told), 1, "events")
    expect_equal((told[0]["node-name"], told[0]["write-threshold"]), ("top.qcow2", 1 << 20), "event")
    expect(0 < told[0]["amount-exceeded"] <= 1 << 20, f"amount: {told}")


# ---- rough clients ------------------------------------------------------------------


def test_pieces(place):
    """A request that comes byte by byte, and many in one piece."""
    place.make_chain()
    place.start_chain()
    client = Qmp(place.path("qmp"))
    for byte in b'{"execute":\r\n"query-version", "id":\t9}':
        client.send(bytes([byte]))
    expect_equal(client.reply()["id"], 9, "id")
    client.send("".join(f'{{"execute":"query-version","id":{n}}}' for n in range(1000)))
    expect_equal([client.reply()["id"] for _ in range(1000)], list(range(1000)), "order of replies")


def test_too_long(place):
    """More than the largest message is refused, the next line is answered."""
    place.make_chain()
    place.start_chain()
    client = Qmp(place.path("qmp"))
    client.send('{"execute": "query-version", "id": "' + "x" * (2 * MAX_MESSAGE) + '"}\n')
    expect("too long" in client.reply()["error"]["desc"], "a long message is not refused")
    expect("return" in client.command("query-version"), "no answer after a long message")
    fits = "y" * (MAX_MESSAGE - 8192)
    client.send(json.dumps({"execute": "query-version", "id": fits}) + "\n")
    expect_equal(client.reply()["id"], fits, "long id")


def test_broken_bytes(place):
    place.make_chain()
    place.start_chain()
    client = Qmp(place.path("qmp"))
    for broken in (b"\0", b'{"execute": "query-\0version"}', b'{"execute": "\xff\xfe"}', b"[" * 5000,
                   b'{"a":' * 2000, b'{"execute": "query-version", "id": "\xc3\x28"}', b"\x80\x81"):
        client.send(broken + b"\n")
        answer = client.reply()
        expect("error" in answer, f"{broken[:40]!r} is answered with {answer}")
        while True:
            answer = client.command("query-version")
            if "return" in answer:
                break


def test_garbage(place):
    """Whatever is sent, the daemon lives and answers the next client."""
    place.make_chain()
    child = place.start_chain()
    dice = random.Random(1)
    for _ in range(150):
        client = Qmp(place.path("qmp"))
        text = bytearray(dice.choice(SCRIPT)[1].replace("quit", "query-status").encode() * 3)
        for _ in range(dice.randrange(1, 8)):
            text[dice.randrange(len(text))] = dice.choice(b'{}[]",:\\\n\0\xff0ae-')
        client.send(bytes(text))
        client.socket.shutdown(socket.SHUT_WR)
        for line in client.until_end():
            expect("return" in line or "error" in line, f"{bytes(text)!r}: {line}")
        client.close()
    expect(child.poll() is None, "the daemon has ended")


def test_half_closed(place):
    """Who sends no more still gets all answers."""
    place.make_chain()
    place.start_chain()
    client = Qmp(place.path("qmp"))
    client.send('{"execute": "query-named-block-nodes"}\n' * 50)
    client.socket.shutdown(socket.SHUT_WR)
    expect_equal(len(client.until_end()), 50, "number of answers")


def memory_bytes(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def test_slow_client(place):
    """Who does not read is not read from; others do not notice, memory is bounded."""
    place.make_chain()
    child = place.start_chain()
    before = memory_bytes(child.pid)
    slow = Qmp(place.path("qmp"))
    slow.socket.settimeout(0.5)
    sent = 0
    request = b'{"execute": "query-named-block-nodes"}\n' * 100
    try:
        while sent < 64 << 20:
            sent += slow.socket.send(request)
    except TimeoutError:
        pass
    expect(sent < 64 << 20, "everything was taken from a client that does not read")
    expect("return" in Qmp(place.path("qmp")).command("query-version"), "another client has to wait")
    grown = memory_bytes(child.pid) - before
    expect(grown < 32 << 20, f"the daemon has grown by {grown} bytes")


def test_many_clients(place):
    place.make_chain()
    place.start_chain()
    clients = [Qmp(place.path("qmp")) for _ in range(MAX_CLIENTS)]
    extra = socket.socket(socket.AF_UNIX)
    extra.settimeout(harness.WAIT_S)
    extra.connect(place.path("qmp"))
    expect_equal(extra.recv(100), b"", "what a client too many gets")
    for client in clients:
        expect("return" in client.command("query-status"), "no answer")
    clients[3].close()
    wait_until(lambda: can_talk(place), "a place is free again")


def can_talk(place):
    try:
        client = Qmp(place.path("qmp"), negotiate=False)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    client.close()
    return client.greeting is not None


# ---- who may ----------------------------------------------------------------------


def test_permissions(place):
    """0600; and another user who gets through the door is sent away."""
    place.make_chain()
    place.start_chain()
    expect_equal(os.stat(place.path("qmp")).st_mode & 0o777, 0o600, "mode of the socket")
    if os.geteuid() != 0:
        raise Skip("needs root to be another user")
    os.chmod(place.folder, 0o755)
    os.chmod(place.path("qmp"), 0o666)
    code = ("import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "sys.exit(len(s.recv(10)))")
    done = place.run("/usr/bin/python3", "-c", code, place.path("qmp"), status=None, user=65534, group=65534)
    expect_equal((done.returncode, done.stderr), (0, ""), "what another user gets")


def test_socket_path(place):
    """A dead daemon's socket is replaced, a living one's is not, a file never."""
    place.make_chain()
    child = place.start_chain()
    second = place.run(place.program("qchaind"), "--qmp", place.path("qmp"), "--read-only",
                       place.path("base.qcow2"), "--export", f"nbd,socket={place.path('two')}", status=1)
    expect(f"process {child.pid}" in second.stderr, second.stderr)
    expect(not os.path.exists(place.path("two")), "a socket is left behind")
    child.kill()
    child.wait()
    os.unlink(place.path("nbd"))
    child = place.start_chain()
    expect("return" in Qmp(place.path("qmp")).command("query-version"), "no answer")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect(not os.path.exists(place.path("qmp")), "the socket is left behind")
    with open(place.path("qmp"), "w", encoding="ascii") as file:
        file.write("mine")
    place.run(place.program("qchaind"), "--qmp", place.path("qmp"), "--export",
              f"nbd,socket={place.path('nbd')}", place.path("top.qcow2"), status=1)
    expect(os.path.isfile(place.path("qmp")), "a file was removed")


# ---- the end --------------------------------------------------------------------------


def events_of(lines):
    return [line["event"] for line in lines if "event" in line]


def test_events_of_the_end(place):
    """Every client that has negotiated hears of the end, the others do not."""
    place.make_chain()
    child = place.start_chain()
    listener, silent, asker = (Qmp(place.path("qmp")), Qmp(place.path("qmp"), negotiate=False),
                               Qmp(place.path("qmp")))
    expect_equal(asker.command("quit"), {"return": {}}, "answer to quit")
    heard = listener.until_end()
    expect_equal(events_of(heard), ["BLOCK_EXPORT_DELETED", "SHUTDOWN"], "events")
    expect_equal(heard[0]["data"], {"id": "nbd0"}, "data of BLOCK_EXPORT_DELETED")
    expect_equal(heard[1]["data"], {"guest": False, "reason": "host-qmp-quit"}, "data of SHUTDOWN")
    for event in heard:
        expect_equal(sorted(event["timestamp"]), ["microseconds", "seconds"], "timestamp")
    expect_equal(silent.until_end(), [], "what a silent client hears")
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    place.check_images()


def test_quit_while_in_use(place):
    """Refused while an NBD client is connected, unless it is forced."""
    place.make_chain()
    child = place.start_chain()
    user = socket.socket(socket.AF_UNIX)
    user.settimeout(harness.WAIT_S)
    user.connect(place.path("nbd"))
    user.recv(18)
    client = Qmp(place.path("qmp"))
    answer = client.command("quit")
    expect("in use" in answer.get("error", {}).get("desc", ""), f"quit is answered with {answer}")
    expect("return" in client.command("query-version"), "no answer after a refused quit")
    expect_equal(client.command("quit", force=True), {"return": {}}, "answer to quit")
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    place.check_images()


def test_signals(place):
    """Any number of signals: one clean end."""
    place.make_chain()
    for numbers in ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)):
        child = place.start_chain()
        client = Qmp(place.path("qmp"))
        for number in numbers:
            child.send_signal(number)
        heard = client.until_end()
        expect_equal(heard[-1]["data"], {"guest": False, "reason": "host-signal"}, "last event")
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        expect(not os.path.exists(place.path("nbd")), "the NBD socket is left behind")
        place.check_images()


def test_questions_at_the_end(place):
    """Who keeps asking is answered, refused or cut off, and harms nobody."""
    place.make_chain()
    for _ in range(5):
        child = place.start_chain()
        clients = [Qmp(place.path("qmp")) for _ in range(4)]
        for client in clients:
            client.send('{"execute": "query-named-block-nodes"}{"execute": "query-status"}\n' * 20)
        child.terminate()
        for client in clients:
            for line in client.until_end():
                expect("return" in line or "event" in line or "shutting down" in line["error"]["desc"], line)
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")


def test_quit_and_gone(place):
    """Who asks for the end does not have to wait for it."""
    place.make_chain()
    for _ in range(5):
        child = place.start_chain()
        listener = Qmp(place.path("qmp"))
        client = Qmp(place.path("qmp"))
        client.send('{"execute": "query-named-block-nodes"}\n' * 20 + '{"execute": "quit"}\n')
        client.close()
        wait_until(lambda: child.poll() is not None or can_talk(place), "an answer or the end")
        try:
            listener.command("quit")
        except ConnectionError:
            pass  # it is on its way
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")


# ---- start --------------------------------------------------------------------------------


def add_options(parser):
    parser.add_argument("--record", action="store_true",
                        help=f"write {os.path.basename(GOLDEN)} anew from qemu-storage-daemon")


def other_action(arguments):
    if arguments.record:
        record()
    return arguments.record


if __name__ == "__main__":
    sys.exit(harness.main("qmp", sys.modules["__main__"], add_options))
