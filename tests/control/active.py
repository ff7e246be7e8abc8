#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commit of the active layer of a served chain: states and events, refusals, errors, the verb and its records."""

import json
import os
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import harness
from full import Volume
from harness import Qmp, expect, expect_equal, wait_until
from lifecycle import kill_daemon
from merge import MIB, chain_of, content, create, expect_said, make_chain, names, row, volume_image, wait_status, write


def commit(qmp, **words):
    words = {key.replace("_", "-"): value for key, value in words.items()}
    return qmp.command("block-commit", **{"job-id": "c", "device": "top.qcow2", **words})


def guest(place, *commands):
    words = [word for command in commands for word in ("-c", command)]
    return place.run("qemu-io", "-f", "raw", *words, f"nbd+unix:///?socket={place.path('nbd')}", status=None).stdout


def stop(place, child, top, shows, others=()):
    """Clean end; @top shows what the device did, and all that is left is free of errors. Returns its content."""
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    found = content(place, top)
    expect(shows is None or found == shows, "the device shows something else than before")
    for name in (top, *others):
        place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(name))
    return found


def is_image(place, name):
    if not os.path.exists(place.path(name)):
        return False
    with open(place.path(name), "rb") as image:
        return image.read(4) == b"QFI\xfb"


# ---- QMP -----------------------------------------------------------------------------------


def test_complete(place):
    """As qemu-storage-daemon: it becomes ready, waits for job-complete, and the base is the active layer."""
    shows = make_chain(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(commit(qmp, base_node="base.qcow2"), {"return": {}}, "answer")
    wait_status(qmp, "ready")
    expect_said(qmp, ["created", "running", "ready", "BLOCK_JOB_READY"], 0)
    expect_equal(names(qmp), ["top.qcow2", "base.qcow2"], "nodes while it is ready")
    guest(place, "write -P 9 1600k 300k", "flush")
    expect_equal(qmp.command("block-job-complete", device="c"), {"return": {}}, "block-job-complete")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    expect_said(qmp, ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"], 4)
    expect_equal(names(qmp), ["base.qcow2"], "nodes")
    expect(not is_image(place, "mid.qcow2"), "the layer between still has its header")
    expect_equal(chain_of(place), ["top.qcow2", "base.qcow2"], "the chain of the old top")
    guest(place, "write -P 8 5M 1M", "flush")
    expected = bytearray(shows)
    expected[1600 * 1024:1900 * 1024] = bytes([9]) * (300 * 1024)
    expected[5 * MIB:6 * MIB] = bytes([8]) * MIB
    stop(place, child, "base.qcow2", bytes(expected), ["top.qcow2"])
    expect(content(place, "top.qcow2") == bytes(expected), "the old top shows something else")


def test_cancel_ready(place):
    """Cancelled when it is ready, without force: it ends well, and the active layer stays."""
    shows = make_chain(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    commit(qmp, base_node="base.qcow2", auto_dismiss=False)
    wait_status(qmp, "ready")
    expect_equal(qmp.command("block-job-cancel", device="c"), {"return": {}}, "block-job-cancel")
    wait_status(qmp, "concluded")
    expect("error" not in row(qmp), f"{row(qmp)}")
    expect_equal(names(qmp), ["top.qcow2", "base.qcow2"], "nodes")
    stop(place, child, "top.qcow2", shows, ["base.qcow2"])


def test_speed(place):
    """It is kept where all the data is one piece, by the batch that follows the first, too."""
    create(place, "base.qcow2")
    create(place, "top.qcow2", "base.qcow2")
    write(place, "top.qcow2", "write -P 2 0 8M")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    commit(qmp, speed=1024)
    wait_until(lambda: row(qmp)["current-progress"] > 0, "something was copied")
    copied = row(qmp)["current-progress"]
    for _ in range(4):
        guest(place, "write -P 3 7M 64k", "flush")
    expect_equal((row(qmp)["current-progress"], row(qmp)["status"]), (copied, "running"), "progress")
    qmp.command("block-job-set-speed", device="c", speed=0)
    wait_status(qmp, "ready")
    stop(place, child, "top.qcow2", None, ["base.qcow2"])


def test_cancel(place):
    """In the middle: the device shows the same, goes on, and it can be begun again."""
    create(place, "base.qcow2")
    create(place, "top.qcow2", "base.qcow2")
    write(place, "base.qcow2", "write -P 1 0 8M")
    write(place, "top.qcow2", "write -P 2 1M 6M")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    commit(qmp, speed=2 * MIB)
    wait_until(lambda: row(qmp)["current-progress"] > 0, "something was copied")
    longer = qmp.command("block_resize", **{"node-name": "top.qcow2", "size": 16 * MIB})
    expect("job c (commit)" in longer.get("error", {}).get("desc", ""), f"resize: {longer}")
    states = {node["node-name"]: node["state"] for node in qmp.command("query-named-block-nodes")["return"]}
    expect_equal(states, {"top.qcow2": "merging", "base.qcow2": "merging"}, "states")
    guest(place, "write -P 3 1M 64k", "write -P 4 6M 64k", "flush")
    expect_equal(qmp.command("job-cancel", id="c"), {"return": {}}, "job-cancel")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    guest(place, "write -P 5 1088k 1000", "write -P 6 100k 1000", "flush")
    expect_equal(names(qmp), ["top.qcow2", "base.qcow2"], "nodes")
    wait_until(lambda: "return" in commit(qmp), "a second one begins")
    wait_status(qmp, "ready")
    qmp.command("job-complete", id="c")
    wait_until(lambda: row(qmp) is None, "the second one is gone")
    shows = stop(place, child, "base.qcow2", None)
    for at, byte in ((0, 1), (100 << 10, 6), (1 << 20, 3), (1088 << 10, 5), (2 << 20, 2), (6 << 20, 4), (7 << 20, 1)):
        expect_equal(shows[at], byte, f"byte at {at}")


def test_merge_below(place):
    """While it is ready layers below the base go: writes go to the base as before, and are there after the pivot."""
    for name, below in (("low", None), ("mid", "low"), ("base", "mid"), ("top", "base")):
        create(place, f"{name}.qcow2", below and f"{below}.qcow2")
        write(place, f"{name}.qcow2", f"write -P {len(name)} 0 4M")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    commit(qmp, base_node="base.qcow2")
    wait_status(qmp, "ready")
    expect_equal(qmp.command("block-stream", **{"job-id": "s", "device": "mid.qcow2"}), {"return": {}}, "stream below")
    wait_until(lambda: names(qmp) == ["top.qcow2", "base.qcow2", "mid.qcow2"], "the lowest layer is gone")
    guest(place, "write -P 8 1M 1M", "write -P 9 5M 1M", "flush")
    qmp.command("job-complete", id="c")
    wait_until(lambda: names(qmp) == ["base.qcow2", "mid.qcow2"], "the base is the active layer")
    guest(place, "write -P 7 2M 64k", "flush")
    shows = stop(place, child, "base.qcow2", None)
    for at, byte in ((0, 3), (1 * MIB, 8), (2 * MIB - 1, 8), (2 * MIB, 7), (3 * MIB, 3), (5 * MIB, 9), (7 * MIB, 0)):
        expect_equal(shows[at], byte, f"byte at {at}")


def test_finalize(place):
    """The pivot waits for job-finalize."""
    shows = make_chain(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    commit(qmp, auto_finalize=False, auto_dismiss=False)
    wait_status(qmp, "ready")
    qmp.command("job-complete", id="c")
    wait_status(qmp, "pending")
    expect_equal(names(qmp), ["top.qcow2", "base.qcow2"], "nodes while pending")
    expect_equal(qmp.command("job-finalize", id="c"), {"return": {}}, "job-finalize")
    wait_status(qmp, "concluded")
    expect_equal(names(qmp), ["base.qcow2"], "nodes")
    stop(place, child, "base.qcow2", shows)


def test_pause(place):
    """At rest nothing is fenced: writes go on; ready, it stands by."""
    create(place, "base.qcow2")
    create(place, "top.qcow2", "base.qcow2")
    write(place, "top.qcow2", "write -P 2 0 8M")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    commit(qmp, speed=2 * MIB)
    qmp.command("job-pause", id="c")
    wait_status(qmp, "paused")
    for at in range(8):
        expect("failed" not in guest(place, f"write -P {at + 10} {at}M 1M"), f"write at {at} MiB")
    qmp.command("block-job-set-speed", device="c", speed=0)
    qmp.command("job-resume", id="c")
    wait_status(qmp, "ready")
    qmp.command("job-pause", id="c")
    wait_status(qmp, "standby")
    qmp.command("job-resume", id="c")
    wait_status(qmp, "ready")
    qmp.command("job-complete", id="c")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    stop(place, child, "base.qcow2", b"".join(bytes([at + 10]) * MIB for at in range(8)))


def test_full_base(place):
    """The base's volume is full: the job rests, the guest goes on; after growth it goes on, too."""
    volume = Volume(place, "volume", 5 * MIB)
    try:
        create(place, "top.qcow2", volume_image(place, volume))
        write(place, "top.qcow2", "write -P 2 0 8M")
        child = place.start_chain("--allow-backing", "/dev")
        qmp = Qmp(place.path("qmp"))
        expect_equal(commit(qmp), {"return": {}}, "answer")
        wait_status(qmp, "paused", "concluded")
        expect_equal(row(qmp)["io-status"], "nospace", "io-status")
        expect("failed" not in guest(place, "write -P 3 7M 64k", "write -P 4 0 64k", "flush"), "the guest's writes")
        volume.grow(16 * MIB)
        wait_status(qmp, "ready")
        qmp.command("job-complete", id="c")
        wait_until(lambda: row(qmp) is None, "the job is gone")
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        place.run("qemu-img", "check", "-q", "-f", "qcow2", volume.path)
        place.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.path, place.path("raw"))
        with open(place.path("raw"), "rb") as raw:
            shows = raw.read()
        expect_equal([shows[at] for at in (0, 65536, 7 * MIB, 8 * MIB - 1)], [4, 2, 3, 2], "content")
    finally:
        for one in place.children:
            one.kill()
            one.wait()
        volume.remove()


def test_shorter(place):
    """A base that is shorter than the device grows before, and shows nothing of a longer one below it (D4)."""
    create(place, "base.qcow2", size="16M")
    create(place, "mid.qcow2", "base.qcow2", size=str(4 * MIB + 512))
    create(place, "top.qcow2", "mid.qcow2", size="8M")
    write(place, "base.qcow2", "write -P 7 0 16M")
    write(place, "top.qcow2", "write -P 2 3M 64k", "write -P 3 6M 512")
    shows = content(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    guest(place, "read 0 8M")
    expect_equal(commit(qmp, base_node="mid.qcow2"), {"return": {}}, "answer")
    wait_status(qmp, "ready")
    guest(place, "write -P 4 7M 64k", "flush")
    qmp.command("job-complete", id="c")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    shows = shows[:7 * MIB] + b"\4" * 65536 + shows[7 * MIB + 65536:]
    stop(place, child, "mid.qcow2", shows)


def test_converges(place):
    """A guest that rewrites everything all the time: each region is copied once, and no more (1.1 times at most)."""
    create(place, "base.qcow2", size="64M")
    create(place, "top.qcow2", "base.qcow2", size="64M")
    write(place, "top.qcow2", "write -P 1 0 64M")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    over = threading.Event()

    def rewrite():
        while not over.is_set():
            guest(place, *(f"write -P 2 {at * 4}M 4M" for at in range(16)))
    writers = [threading.Thread(target=rewrite) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        commit(qmp, speed=32 * MIB)
        wait_status(qmp, "ready")
        copied = row(qmp)["total-progress"]
    finally:
        over.set()
        for writer in writers:
            writer.join()
    expect(60 * MIB <= copied <= 64 * MIB * 1.1, f"{copied} bytes were copied of {64 * MIB}")
    qmp.command("job-complete", id="c")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    stop(place, child, "base.qcow2", bytes([2]) * (64 * MIB))


def test_refused(place):
    """A base that is longer; internal snapshots, which need what is below."""
    create(place, "base.qcow2", size="16M")
    create(place, "mid.qcow2", "base.qcow2", size="4M")
    create(place, "top.qcow2", "mid.qcow2", size="8M")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    answer = commit(qmp, base_node="base.qcow2")
    expect("is longer (16777216 bytes) than the device (8388608)" in answer.get("error", {}).get("desc", ""),
           f"answer: {answer}")
    expect_equal(row(qmp), None, "jobs")
    child.terminate()
    child.wait(harness.WAIT_S)
    create(place, "mid.qcow2", "base.qcow2", size="8M")
    place.run("qemu-img", "snapshot", "-c", "inside", place.path("top.qcow2"))
    place.start_chain()
    answer = commit(Qmp(place.path("qmp")), base_node="mid.qcow2")
    expect("internal snapshots" in answer.get("error", {}).get("desc", ""), f"answer: {answer}")


def test_refused_raw(place):
    """A raw base is as long as its container, which an lvextend may have made longer than the device."""
    make_chain_on(place, "base.raw")
    place.start_chain()
    os.truncate(place.path("base.raw"), 9 * MIB)
    answer = commit(Qmp(place.path("qmp")), base_node="base.raw")
    expect("is longer (9437184 bytes) than the device (8388608)" in answer.get("error", {}).get("desc", ""),
           f"answer: {answer}")


# ---- the verb --------------------------------------------------------------------------------


def record(place):
    with open(place.path("seven.qchain"), encoding="utf-8") as file:
        return json.load(file)


def up(place):
    place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "nbd")


BASES = ("base.qcow2", "base.raw")


def start_over(place):
    for name in os.listdir(place.folder):
        if name.endswith((".qcow2", ".raw", ".qchain")):
            os.unlink(place.path(name))


def make_chain_on(place, base):
    """As make_chain(), but the base may be raw."""
    start_over(place)
    shows = make_chain(place)
    if base.endswith(".raw"):
        place.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", place.path("base.qcow2"), place.path(base))
        place.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base, "-F", "raw", place.path("mid.qcow2"))
        os.unlink(place.path("base.qcow2"))
    return shows


def content_of(place, base):
    if not base.endswith(".raw"):
        place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(base))
        return content(place, base)
    with open(place.path(base), "rb") as raw:
        return raw.read()


def up_again(place, *words):
    """As what the record says: neither top nor format is given."""
    place.ctl("up", "seven", *words, "--no-ublk", "--nbd", "nbd")


def judge_verb(place, shows, base="base.qcow2"):
    """The base is the top in both records, and is served again by name; nothing is left of the old one."""
    raw = "raw" if base.endswith(".raw") else None
    expect_equal((record(place)["top"], record(place).get("format"), "dead" in record(place), "jobs" in record(place)),
                 (base, raw, False, False), "the record")
    expect(not is_image(place, "top.qcow2") and not is_image(place, "mid.qcow2"), "headers of the old layers")
    expect_equal([layer["node-name"] for layer in place.ctl_json("tree", "seven")["layers"]], [base], "tree")
    guest(place, "write -P 7 6M 64k", "flush")
    place.ctl("down", "seven")
    up_again(place, place.path(""))
    place.ctl("down", "seven")
    expect(content_of(place, base) == shows[:6 * MIB] + bytes([7]) * 65536 + shows[6 * MIB + 65536:],
           "the device shows something else than before")


def test_verb(place):
    """qchainctl commit NAME: the active layer by default; it completes by itself, and the record follows."""
    for base in BASES:
        shows = make_chain_on(place, base)
        up(place)
        done = place.ctl("commit", "seven", "--base", base)
        expect("is the active layer now" in done.stdout, done.stdout)
        judge_verb(place, shows, base)


def test_verb_raw(place):
    """A raw image is the top: it stays raw for whoever serves it next, also when it begins as an image does."""
    shows = make_chain_on(place, "base.raw")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/hostname", "-F", "raw",
              place.path("fake.qcow2"), "8M")
    up(place)
    place.ctl("commit", "seven", "--base", "base.raw")
    guest(place, f"write -s {place.path('fake.qcow2')} 0 64k", "flush")
    os.unlink(place.path("fake.qcow2"))
    kill_daemon(place)
    up_again(place)
    wrong = place.ctl("resize", "seven", "16M", status=1)
    expect("must be qcow2; take a snapshot, whose overlay can grow" in wrong.stderr, wrong.stderr)
    place.ctl("down", "seven")
    expect(is_image(place, "base.raw"), "what the guest has written")
    wrong = place.ctl("up", "seven", "./base.raw", "--format", "qcow2", "--no-ublk", "--nbd", "nbd", status=1)
    expect("is raw, says the record of device seven" in wrong.stderr, wrong.stderr)
    up_again(place, place.path(""))
    place.ctl("snapshot", "seven", "one")
    guest(place, "write -P 7 0 64k", "flush")
    kill_daemon(place)
    up_again(place)
    expect("failed" not in guest(place, "read -P 7 0 64k", "read -P 1 64k 64k"), "the overlay is served as raw")
    expect_equal(place.ctl_json("delete", "seven", "one", "--commit")["way"], "commit", "way")
    judge_verb(place, bytes([7]) * 65536 + shows[65536:], "base.raw")


def test_verb_detached(place):
    """--detach: a process of its own completes it; `job wait` waits for the same."""
    shows = make_chain(place)
    up(place)
    name = place.ctl("commit", "seven", "--base", "base.qcow2", "--detach").stdout.strip()
    wait_until(lambda: record(place)["top"] == "base.qcow2" and "dead" not in record(place), "it is done")
    place.ctl("job", "wait", "seven", name, status=None)
    judge_verb(place, shows)


CTL_POINTS = ("merge.planned", "merge.begun", "merge.started", "pivot.unrecorded", "pivot.recorded", "retire.wiped",
              "retire.removed")


def test_verb_killed(place):
    """qchainctl dies at each step, then the daemon: `up` finds a chain that reads the same, and goes on."""
    for number, point in enumerate(CTL_POINTS * 2):
        base = BASES[number >= len(CTL_POINTS)]
        shows = make_chain_on(place, base)
        up(place)
        place.run(place.program("qchainctl"), "commit", "seven", "--base", base, status=-9,
                  environment=dict(place.environment, QCHAIN_CRASH_POINT=point))
        kill_daemon(place)
        if is_image(place, "top.qcow2") and "mid.qcow2" not in chain_of(place):
            os.unlink(place.path("mid.qcow2"))  # killed before its header was wiped
        up_again(place)
        jobs = place.ctl_json("job", "list", "seven")
        for job in jobs:
            place.ctl("job", "wait", "seven", job["id"], status=None)
        if record(place)["top"] != base:
            place.ctl("commit", "seven", "--base", base)
        judge_verb(place, shows, base)


def test_verb_refused(place):
    """A snapshot that would be lost; another image that stands on the base."""
    make_chain(place)
    up(place)
    place.ctl("snapshot", "seven", "now")
    wrong = place.ctl("commit", "seven", status=1)
    expect("holds snapshot now of device seven" in wrong.stderr, wrong.stderr)
    create(place, "other.qcow2", "base.qcow2")
    wrong = place.ctl("commit", "seven", "--base", "base.qcow2", "--drop-snapshots", status=1)
    expect("other.qcow2" in wrong.stderr, wrong.stderr)
    os.unlink(place.path("other.qcow2"))
    place.ctl("commit", "seven", "--base", "base.qcow2", "--drop-snapshots")
    expect_equal((record(place)["top"], record(place)["snapshots"]), ("base.qcow2", []), "the record")
    wrong = place.ctl("commit", "seven", status=1)
    expect("no layer below it" in wrong.stderr, wrong.stderr)


if __name__ == "__main__":
    sys.exit(harness.main("active", sys.modules["__main__"]))
