#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Merges of a served chain as jobs: events, refusals, errors of sources, ends before the end."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import harness
from full import Volume
from harness import Qmp, expect, expect_equal, wait_until

MIB = 1 << 20


# ---- chains ------------------------------------------------------------------------


def create(place, name, backing=None, size="8M", options=""):
    words = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if backing:
        words += ["-b", backing, "-F", "qcow2"]
    if options:
        words += ["-o", options]
    place.run(*words, place.path(name), size)


def volume_image(place, volume):
    place.run("qemu-img", "create", "-q", "-f", "qcow2", volume.path, "8M")
    return volume.path


def write(place, name, *commands):
    words = [word for command in commands for word in ("-c", command)]
    place.run("qemu-io", "-f", "qcow2", *words, place.path(name))


def content(place, name="top.qcow2"):
    place.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", place.path(name), place.path("raw"))
    with open(place.path("raw"), "rb") as raw:
        return raw.read()


def make_chain(place, mid="8M", options=""):
    """base <- mid <- top, each with data of its own; returns what top shows."""
    create(place, "base.qcow2")
    create(place, "mid.qcow2", "base.qcow2", mid)
    create(place, "top.qcow2", "mid.qcow2", options=options)
    write(place, "base.qcow2", "write -P 1 0 8M")
    write(place, "mid.qcow2", "write -P 2 1M 2M", "write -z 3584k 130k", "write -P 4 3M 1k")
    write(place, "top.qcow2", "write -P 3 1500k 100k")
    return content(place)


def break_compressed(place, name, at):
    """A compressed cluster whose data is no stream: reading it is an I/O error."""
    write(place, name, f"write -c -P 9 {at} 64k")
    with open(place.path(name), "r+b") as image:
        data = image.read()
        image.seek(40)
        l1 = int.from_bytes(data[40:48], "big")
        l2 = int.from_bytes(data[l1:l1 + 8], "big") & 0x00fffffffffffe00
        entry = int.from_bytes(data[l2 + at // 65536 * 8:l2 + at // 65536 * 8 + 8], "big")
        expect(entry >> 62 & 1, "the cluster is not compressed")
        image.seek(entry & ((1 << 54) - 1))
        image.write(b"\xff" * 16)


def chain_of(place):
    info = json.loads(place.run("qemu-img", "info", "-U", "--backing-chain", "--output=json",
                                place.path("top.qcow2")).stdout)
    return [os.path.basename(image["filename"]) for image in info]


def names(qmp):
    return [node["node-name"] for node in qmp.command("query-named-block-nodes")["return"]]


def stop(place, child, shows, chain):
    """Clean end; then the images are judged."""
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect_equal(chain_of(place), chain, "the chain")
    expect(content(place) == shows, "the device shows something else than before")
    for name in ("base.qcow2", "mid.qcow2", "top.qcow2"):
        place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(name))


# ---- jobs ------------------------------------------------------------------------------


def stream(qmp, **words):
    words = {key.replace("_", "-"): value for key, value in words.items()}
    return qmp.command("block-stream", **{"job-id": "s", "device": "top.qcow2", **words})


def row(qmp):
    rows = qmp.command("query-jobs")["return"]
    return rows[0] if rows else None


def wait_status(qmp, *wanted):
    wait_until(lambda: (row(qmp) or {"status": "null"})["status"] in wanted, f"the job is {wanted}")


def events(qmp):
    """All so far: what a job said before its state was seen comes before the next answer."""
    qmp.command("query-version")
    return qmp.events


def said(qmp):
    """What was said of jobs so far: states, and events of block jobs."""
    words = []
    for event in events(qmp):
        if event["event"] == "JOB_STATUS_CHANGE":
            words.append(event["data"]["status"])
        elif event["event"].startswith("BLOCK_JOB_"):
            words.append(event["event"])
    return words


def expect_said(qmp, wanted, skip=None):
    """The end of what is said, or all but the first @skip words; the last may come just after the job has gone."""
    wait_until(lambda: said(qmp)[-1:] == wanted[-1:], f"{wanted[-1]} is said")
    expect_equal(said(qmp)[-len(wanted) if skip is None else skip:], wanted, "what is said")


def test_stream(place):
    """As qemu-storage-daemon: states, events, and the chain afterwards."""
    shows = make_chain(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(stream(qmp, base_node="base.qcow2"), {"return": {}}, "answer")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    expect_said(qmp, ["created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded",
                      "null"], 0)
    done = [event["data"] for event in events(qmp) if event["event"] == "BLOCK_JOB_COMPLETED"][0]
    expect_equal((done["device"], done["type"], done["len"], done["offset"]),
                 ("s", "stream", done["offset"], done["len"]), "data of BLOCK_JOB_COMPLETED")
    expect(0 < done["len"] < 3 * MIB, f"{done['len']} bytes were moved")
    expect_equal(names(qmp), ["top.qcow2", "base.qcow2"], "nodes")
    stop(place, child, shows, ["top.qcow2", "base.qcow2"])


def test_stream_all(place):
    """No base: the active layer stands alone, and what was zero is not copied."""
    shows = make_chain(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(stream(qmp), {"return": {}}, "answer")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    expect_equal(names(qmp), ["top.qcow2"], "nodes")
    stop(place, child, shows, ["top.qcow2"])


def test_finalize(place):
    """Nothing is given up before job-finalize; job-dismiss ends it."""
    shows = make_chain(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    stream(qmp, base="base.qcow2", auto_finalize=False, auto_dismiss=False)
    wait_status(qmp, "pending")
    expect_equal(names(qmp), ["top.qcow2", "mid.qcow2", "base.qcow2"], "nodes while pending")
    expect_equal(chain_of(place), ["top.qcow2", "mid.qcow2", "base.qcow2"], "chain while pending")
    expect_equal(qmp.command("job-finalize", id="s"), {"return": {}}, "job-finalize")
    wait_status(qmp, "concluded")
    expect_equal(names(qmp), ["top.qcow2", "base.qcow2"], "nodes")
    expect_equal(qmp.command("job-dismiss", id="s"), {"return": {}}, "job-dismiss")
    expect("BLOCK_JOB_PENDING" in said(qmp), "no BLOCK_JOB_PENDING")
    stop(place, child, shows, ["top.qcow2", "base.qcow2"])


def test_shorter_layer(place):
    """What lies beyond the end of the merged layer is zero, whatever the base has there (D4)."""
    shows = make_chain(place, mid="5M")
    expect_equal(shows[6 * MIB:6 * MIB + 512], bytes(512), "beyond the end of mid")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    stream(qmp, base_node="base.qcow2")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    stop(place, child, shows, ["top.qcow2", "base.qcow2"])


def test_version_2(place):
    """No zero flag: zeroes are written."""
    shows = make_chain(place, mid="5M", options="compat=0.10")
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    stream(qmp, bottom="mid.qcow2")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    stop(place, child, shows, ["top.qcow2", "base.qcow2"])


def test_cancel(place):
    """Given up in the middle: chain and header are as they were; the job says so."""
    shows = make_chain(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    stream(qmp, speed=MIB, auto_dismiss=False)
    wait_status(qmp, "running")
    busy = qmp.command("quit")
    expect("cancel" in busy.get("error", {}).get("desc", ""), f"quit while it runs: {busy}")
    second = qmp.command("block-stream", **{"job-id": "t", "device": "top.qcow2"})
    expect("top.qcow2: job s works on it" in second.get("error", {}).get("desc", ""), f"a second one: {second}")
    longer = qmp.command("block_resize", **{"node-name": "top.qcow2", "size": 16 * MIB})
    expect("job s (stream)" in longer.get("error", {}).get("desc", ""), f"resize: {longer}")
    expect_equal(qmp.command("job-cancel", id="s"), {"return": {}}, "job-cancel")
    wait_status(qmp, "concluded")
    expect_said(qmp, ["aborting", "BLOCK_JOB_CANCELLED", "concluded"])
    expect_equal(names(qmp), ["top.qcow2", "mid.qcow2", "base.qcow2"], "nodes")
    stop(place, child, shows, ["top.qcow2", "mid.qcow2", "base.qcow2"])


def test_read_error(place):
    """Of a source: the job ends, rests or ends later, as on-error says; the chain stays."""
    make_chain(place)
    break_compressed(place, "mid.qcow2", 4 * MIB)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    for on_error, action in ((None, "report"), ("report", "report"), ("ignore", "ignore"),
                             ("enospc", "report"), ("stop", "stop")):
        qmp.events.clear()
        words = {"on_error": on_error} if on_error else {}
        expect_equal(stream(qmp, base_node="base.qcow2", auto_dismiss=False, **words),
                     {"return": {}}, "answer")
        wait_status(qmp, "concluded", "paused")
        errors = [event["data"] for event in events(qmp) if event["event"] == "BLOCK_JOB_ERROR"]
        expect_equal(errors[0], {"device": "s", "operation": "read", "action": action}, "event")
        if action == "stop":
            expect_equal(row(qmp)["status"], "paused", "state")
            block = qmp.command("query-block-jobs")["return"][0]
            expect_equal((block["io-status"], block["paused"]), ("failed", True), "io-status")
            qmp.command("job-resume", id="s")
            wait_until(lambda: said(qmp).count("BLOCK_JOB_ERROR") > 1, "it has tried again")
            wait_status(qmp, "paused")
            qmp.command("job-cancel", id="s")
            wait_status(qmp, "concluded")
        expect("error" in row(qmp), f"no error in {row(qmp)}")
        qmp.command("job-dismiss", id="s")
        expect_equal(names(qmp), ["top.qcow2", "mid.qcow2", "base.qcow2"], "nodes")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect_equal(chain_of(place), ["top.qcow2", "mid.qcow2", "base.qcow2"], "the chain")



# ---- commit ------------------------------------------------------------------------------


SNAPS = ("base", "sn1", "sn2", "sn3", "top")
# Layers that go (the first and the last one), and who receives: the six cases of a chain.
CASES = (("sn1", "sn3", "base"), ("sn1", "sn2", "base"), ("sn1", "sn1", "base"), ("sn2", "sn2", "sn1"),
         ("sn3", "sn3", "sn2"), ("sn2", "sn3", "sn1"))


def make_snaps(place, raw=False):
    """base <- sn1 <- sn2 <- sn3 <- top, each with data of its own, on and beside the others'."""
    for index, name in enumerate(SNAPS):
        below = SNAPS[index - 1] + ".qcow2" if index else None
        options = "cluster_size=" + ("64k", "4k", "64k,extended_l2=on", "16k", "64k")[index]
        if raw and index == 0:
            with open(place.path("base.raw"), "wb") as base:
                base.write(b"r" * (8 * MIB))
            continue
        words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options]
        if below:
            below, form = ("base.raw", "raw") if raw and index == 1 else (below, "qcow2")
            words += ["-b", below, "-F", form]
        place.run(*words, place.path(name + ".qcow2"), "8M")
        write(place, name + ".qcow2", f"write -P {index + 1} {index * 700}k 1500k",
              f"write -z {5 + index % 2}M {300 + index}k", f"write -P {index + 11} {7000 + index * 9}k 5k")
    if not raw:
        write(place, "base.qcow2", "write -c -P 33 6M 192k")
    return {name: content(place, name + ".qcow2") for name in SNAPS[1:]}


# What receives, and what stays below it ("": nothing): what lies between goes.
INTO = (("sn3", "base"), ("sn3", "sn1"), ("sn2", "base"), ("sn3", ""), ("sn2", ""), ("sn1", ""))


def start_over(place):
    for name in os.listdir(place.folder):
        if name.endswith((".qcow2", ".raw")) or name in ("nbd", "qmp"):
            os.unlink(place.path(name))


def test_stream_into(place):
    """Into a layer below the active one: all layers, those that went too, show what they did before."""
    for into, base in INTO:
        start_over(place)
        shows = make_snaps(place, raw=base == "base")
        child = place.start_chain()
        qmp = Qmp(place.path("qmp"))
        words = {"base_node": "base.raw" if base == "base" else base + ".qcow2"} if base else {}
        expect_equal(stream(qmp, device=into + ".qcow2", **words), {"return": {}}, "answer")
        wait_until(lambda: row(qmp) is None, "the job is gone")
        expect_said(qmp, ["BLOCK_JOB_COMPLETED", "concluded", "null"])
        place.run("qemu-io", "-f", "raw", "-c", "read 0 8M", f"nbd+unix:///?socket={place.path('nbd')}")
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        left = SNAPS[:SNAPS.index(base) + 1 if base else 0] + SNAPS[SNAPS.index(into):]
        files = [words["base_node"] if name == base else name + ".qcow2" for name in left]
        expect_equal(chain_of(place), files[::-1], f"the chain, into {into} from {base or 'nothing'}")
        for name in SNAPS[1:]:
            expect(content(place, name + ".qcow2") == shows[name], f"{name} shows something else than before")
            place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(name + ".qcow2"))


def test_stream_into_cancel(place):
    """Given up in the middle: the chain is as it was, the layer locked no longer, and it can be done again."""
    shows = make_snaps(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(stream(qmp, device="sn2.qcow2", speed=MIB), {"return": {}}, "answer")
    states = [node["state"] for node in qmp.command("query-named-block-nodes")["return"]]
    expect_equal(states, ["active"] + ["sealed"] * 4, "states")
    locked = place.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", place.path("sn2.qcow2"), status=None)
    expect("lock" in locked.stderr + locked.stdout, f"what receives is not locked: {locked.stderr}")
    qmp.command("job-cancel", id="s")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    expect_equal(chain_of(place), [name + ".qcow2" for name in SNAPS[::-1]], "the chain")
    wait_until(lambda: "return" in stream(qmp, device="sn2.qcow2"), "a second one begins")
    wait_until(lambda: row(qmp) is None, "the second one is gone")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect_equal(chain_of(place), ["top.qcow2", "sn3.qcow2", "sn2.qcow2"], "the chain")
    for name in SNAPS[1:]:
        expect(content(place, name + ".qcow2") == shows[name], f"{name} shows something else than before")


def test_ctl_rebase(place):
    """qchainctl rebase NAME: onto a layer further down, then on none; what is no layer needs the chain down."""
    shows = make_snaps(place)
    place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "seven.sock")
    done = place.ctl("rebase", "--backing", "sn1.qcow2", "seven")
    expect(f"stands on {place.path('sn1.qcow2')} now\nseven: no layer any more: " in done.stdout,
           f"report {done.stdout}")
    place.ctl("rebase", "-u", "--backing", "none", "seven", status=2)
    wrong = place.ctl("rebase", "--backing", "sn3.qcow2", "seven", status=1)
    expect("no layer of seven" in wrong.stderr, wrong.stderr)
    place.ctl("rebase", "--backing", "none", "seven")
    expect_equal(len(place.ctl_json("tree", "seven")["layers"]), 1, "layers")
    place.ctl("down", "seven")
    expect_equal(chain_of(place), ["top.qcow2"], "the chain")
    for name in SNAPS[1:]:
        expect(content(place, name + ".qcow2") == shows[name], f"{name} shows something else than before")


def test_ctl_stream_into(place):
    """qchainctl stream NAME --into LAYER, by the name of a snapshot."""
    shows = make_snaps(place)
    place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "seven.sock")
    done = place.ctl("stream", "seven", "--into", "sn3.qcow2", "--base", "sn1.qcow2")
    expect(done.stdout.startswith(f"seven: {place.path('sn3.qcow2')} has the data of 1 layer below it") and
           f"stands on {place.path('sn1.qcow2')} now\n" in done.stdout, f"report {done.stdout}")
    layers = [os.path.basename(layer["file"]) for layer in place.ctl_json("tree", "seven")["layers"]]
    expect_equal(layers, ["top.qcow2", "sn3.qcow2", "sn1.qcow2", "base.qcow2"], "layers")
    wrong = place.ctl("stream", "seven", "--into", "sn3.qcow2", "--base", "top.qcow2", status=1)
    expect("is not below" in wrong.stderr, wrong.stderr)
    place.ctl("down", "seven")
    for name in SNAPS[1:]:
        expect(content(place, name + ".qcow2") == shows[name], f"{name} shows something else than before")


def commit(qmp, top, base, **words):
    words = {key.replace("_", "-"): value for key, value in words.items()}
    return qmp.command("block-commit", **{"job-id": "c", "device": "top.qcow2", "top-node": top,
                                          "base-node": base, **words})


def judge_commit(place, first, last, base, shows, base_file):
    """The chain lacks what was merged, all that is above shows the same, the base what last showed."""
    left = [name for name in SNAPS if not SNAPS.index(first) <= SNAPS.index(name) <= SNAPS.index(last)]
    files = [base_file if name == "base" else name + ".qcow2" for name in left]
    expect_equal(chain_of(place), files[::-1], "the chain")
    for name, file in zip(left, files):
        if SNAPS.index(name) > SNAPS.index(last):
            expect(content(place, file) == shows[name], f"{name} shows something else than before")
        if file.endswith(".qcow2"):
            place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(file))
    if base_file.endswith(".raw") and base == "base":
        with open(place.path(base_file), "rb") as raw:
            found = raw.read()
    else:
        found = content(place, base + ".qcow2")
    expect(found == shows[last], f"{base} shows something else than {last} did")


def test_commit_cases(place):
    """The six cases of a chain; the device shows the same, the base what the top showed."""
    for first, last, base in CASES:
        for name in os.listdir(place.folder):
            if name.endswith(".qcow2"):
                os.unlink(place.path(name))
        shows = make_snaps(place)
        child = place.start_chain()
        qmp = Qmp(place.path("qmp"))
        expect_equal(commit(qmp, last + ".qcow2", base + ".qcow2"), {"return": {}}, "answer")
        wait_until(lambda: row(qmp) is None, "the job is gone")
        expect_said(qmp, ["BLOCK_JOB_COMPLETED", "concluded", "null"])
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        judge_commit(place, first, last, base, shows, "base.qcow2")


def test_commit_shorter(place):
    """A base that is shorter than what comes down into it grows, and shows nothing of a longer one below it (D4)."""
    for options in ("cluster_size=4k", "cluster_size=64k,extended_l2=on", "compat=0.10"):
        start_over(place)
        create(place, "bottom.qcow2", size="16M")
        write(place, "bottom.qcow2", "write -P 9 0 16M")
        create(place, "base.qcow2", "bottom.qcow2", str(3 * MIB + 512), options)
        create(place, "mid.qcow2", "base.qcow2", "8M")
        create(place, "top.qcow2", "mid.qcow2", "12M")
        write(place, "base.qcow2", f"write -P 1 {3 * MIB - 512} 1k")
        write(place, "mid.qcow2", "write -P 2 5M 1k", "write -P 3 8191k 1k")
        middle, shows = content(place, "mid.qcow2"), content(place)
        child = place.start_chain()
        qmp = Qmp(place.path("qmp"))
        place.run("qemu-io", "-f", "raw", "-c", "read 0 12M", f"nbd+unix:///?socket={place.path('nbd')}")
        expect_equal(commit(qmp, "mid.qcow2", "base.qcow2"), {"return": {}}, "answer")
        wait_until(lambda: row(qmp) is None, "the job is gone")
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        expect_equal(chain_of(place), ["top.qcow2", "base.qcow2", "bottom.qcow2"], "the chain")
        expect(content(place, "base.qcow2") == middle, f"{options}: the base does not show what the merged layer did")
        expect(content(place) == shows, f"{options}: the device shows something else than before")
        for name in ("base.qcow2", "top.qcow2"):
            place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(name))


def make_raw_chain(place, options):
    """A raw base that ends inside a granule, and longer overlays; what mid and the top show."""
    start_over(place)
    with open(place.path("base.raw"), "wb") as base:
        base.truncate(2 * MIB + 512)
    place.run("qemu-io", "-f", "raw", "-c", "write -P 1 1M 1049088", place.path("base.raw"))
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", options,
              place.path("low.qcow2"), "4M")
    create(place, "mid.qcow2", "low.qcow2", "5M", options)
    create(place, "top.qcow2", "mid.qcow2", "6M", options)
    write(place, "low.qcow2", "write -P 2 3M 1k")
    write(place, "mid.qcow2", "write -P 3 5119k 1k")
    return content(place, "mid.qcow2"), content(place)


def old_data(place, size):
    """What a volume has that is made longer."""
    with open(place.path("base.raw"), "r+b") as base:
        end = base.seek(0, os.SEEK_END)
        base.write(b"\xee" * (size - end))


def judge_raw(place, middle, shows, what):
    with open(place.path("base.raw"), "rb") as base:
        expect(base.read() == middle, f"{what}: the base is not what the merged layers showed")
    expect(content(place) == shows, f"{what}: the device shows something else than before")
    place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path("top.qcow2"))


RAW_OPTIONS = ("cluster_size=64k", "cluster_size=64k,extended_l2=on", "compat=0.10")


def test_commit_shorter_raw(place):
    """A raw base gets longer; a device that dies in between, and a volume full of old data, are never seen (D4)."""
    for options in RAW_OPTIONS:
        for point in (None, "commit.covered", "commit.lengthened"):
            middle, shows = make_raw_chain(place, options)
            if point:
                place.environment["QCHAIN_CRASH_POINT"] = point
                child = place.start_chain()
                Qmp(place.path("qmp")).send('{"execute": "block-commit", "arguments": {"job-id": "j", "device": '
                                            '"top.qcow2", "top-node": "mid.qcow2", "base-node": "base.raw"}}')
                expect_equal(child.wait(harness.WAIT_S), -9, point)
                del place.environment["QCHAIN_CRASH_POINT"]
            if point == "commit.covered":
                old_data(place, 5 * MIB)
            expect(content(place) == shows, f"{point}: the device shows something else than before")
            child = place.start_chain()
            qmp = Qmp(place.path("qmp"))
            place.run("qemu-io", "-f", "raw", "-c", "read 0 6M", f"nbd+unix:///?socket={place.path('nbd')}")
            expect_equal(commit(qmp, "mid.qcow2", "base.raw"), {"return": {}}, "answer")
            wait_until(lambda: row(qmp) is None, "the job is gone")
            place.run("qemu-io", "-f", "raw", "-c", "read -P 0 2097664 512", f"nbd+unix:///?socket={place.path('nbd')}")
            qmp.close()
            child.terminate()
            expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
            judge_raw(place, middle, shows, f"{options}, {point}")


def test_commit_shorter_raw_refused(place):
    """One that the active layer stands on is not grown while it is served, and what is not raw says itself what it is."""
    make_raw_chain(place, RAW_OPTIONS[0])
    place.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw", place.path("top.qcow2"))
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    for answer in (commit(qmp, "top.qcow2", "base.raw"),
                   qmp.command("qchain-cover", **{"node-name": "base.raw", "size": 5 * MIB})):
        expect("raw, what grows in use must be qcow2" in answer.get("error", {}).get("desc", ""), f"{answer}")
    answer = qmp.command("qchain-cover", **{"node-name": "top.qcow2", "size": 5 * MIB})
    expect("is not raw" in answer.get("error", {}).get("desc", ""), f"{answer}")
    expect_equal([node["state"] for node in qmp.command("query-named-block-nodes")["return"]], ["active", "sealed"], "states")


def test_commit_shorter_raw_offline(place):
    """The same with nobody serving it, of a middle layer and of the active one."""
    for options in RAW_OPTIONS:
        for point in (None, "commit.covered"):
            for top in ("mid.qcow2", "low.qcow2"):
                middle, shows = make_raw_chain(place, options)
                if top == "low.qcow2":
                    middle = content(place, "low.qcow2")
                words = [place.program("qchainctl"), "commit", "./top.qcow2", "--top", top, "--base", "base.raw"]
                if point:
                    place.run(*words, status=-9, environment=dict(place.environment, QCHAIN_CRASH_POINT=point))
                    old_data(place, len(middle))
                    expect(content(place) == shows, f"{point}: the device shows something else than before")
                place.run(*words)
                judge_raw(place, middle, shows, f"{options}, {top}, {point}")
        middle, shows = make_raw_chain(place, options)
        place.ctl("commit", "./top.qcow2", "--base", "base.raw")
        judge_raw(place, shows, shows, f"{options}, all")


def test_commit_raw(place):
    """Into a raw base."""
    shows = make_snaps(place, raw=True)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(commit(qmp, "sn2.qcow2", "base.raw"), {"return": {}}, "answer")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    judge_commit(place, "sn1", "sn2", "base", shows, "base.raw")


def test_commit_fill(place):
    """The rest of a compressed cluster of the base is the base's own, not what the active layer has there."""
    create(place, "base.qcow2", options="extended_l2=on,cluster_size=128k")
    create(place, "mid.qcow2", "base.qcow2", options="cluster_size=4k")
    create(place, "top.qcow2", "mid.qcow2")
    write(place, "base.qcow2", "write -c -P 33 1M 128k", "write -c -P 34 2M 128k")
    write(place, "mid.qcow2", "write -P 2 1M 4k", "write -P 3 2080k 8k")
    write(place, "top.qcow2", "write -P 9 1024k 64k", "write -z 2048k 64k")
    middle, shows = content(place, "mid.qcow2"), content(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(commit(qmp, "mid.qcow2", "base.qcow2"), {"return": {}}, "answer")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect(content(place, "base.qcow2") == middle, "the base does not show what the merged layer showed")
    expect(content(place, "mid.qcow2") == middle, "the merged layer shows something else than before")
    expect(content(place) == shows, "the device shows something else than before")


def test_commit_cancel(place):
    """Given up in the middle: what is above the base shows the same, and it can be done again."""
    shows = make_snaps(place)
    child = place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(commit(qmp, "sn2.qcow2", "base.qcow2", speed=MIB), {"return": {}}, "answer")
    states = [node["state"] for node in qmp.command("query-named-block-nodes")["return"]]
    expect_equal(states, ["active", "sealed", "merging", "merging", "merging"], "states")
    locked = place.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", place.path("base.qcow2"), status=None)
    expect("lock" in locked.stderr + locked.stdout, f"the base is not locked: {locked.stderr}")
    qmp.command("job-cancel", id="c")
    wait_until(lambda: row(qmp) is None, "the job is gone")
    expect_equal(len(names(qmp)), 5, "nodes")
    wait_until(lambda: "merging" not in
               [node["state"] for node in qmp.command("query-named-block-nodes")["return"]] and
               "return" in commit(qmp, "sn2.qcow2", "base.qcow2"), "a second one begins")
    wait_until(lambda: row(qmp) is None, "the second one is gone")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    judge_commit(place, "sn1", "sn2", "base", shows, "base.qcow2")


def test_commit_base_lost(place):
    """The base cannot be written any more: the job fails, and after it nothing else, flushes least of all."""
    lose_base(place, "sn1.qcow2")


def test_active_commit_base_lost(place):
    """While layers between are merged first: what the base was to get is above it, and in no log any more."""
    lose_base(place, "top.qcow2", "--intent-log", place.path("log"))


def lose_base(place, committed, *options):
    def guest(*commands):
        words = [word for command in commands for word in ("-c", command)]
        return place.run("qemu-io", "-f", "raw", *words, f"nbd+unix:///?socket={place.path('nbd')}", status=None).stdout

    volume = Volume(place, "volume", 16 * MIB)
    try:
        create(place, "sn1.qcow2", volume_image(place, volume))
        create(place, "top.qcow2", "sn1.qcow2")
        write(place, "sn1.qcow2", "write -P 1 0 4M")
        place.start_chain("--allow-backing", "/dev", *options)
        guest("read 6M 64k")  # what is above the base is in the map now
        qmp = Qmp(place.path("qmp"))
        started = commit(qmp, committed, os.path.basename(volume.path), speed=MIB,
                         on_error="report")
        expect_equal(started, {"return": {}}, "answer")
        wait_until(lambda: row(qmp)["current-progress"] > 0, "something is copied")
        volume.grow(512)
        wait_until(lambda: row(qmp) is None, "the job is gone")
        wait_until(lambda: "metadata could not be written" in place.output(), "the base is given up")
        expect("failed" not in guest("write -P 7 6M 64k", "flush"), "write or flush")
        if options:
            wait_until(lambda: qmp.command("query-status")["return"]["intent-log"]["entries"] == 0, "no entries", 10)
    finally:
        for child in place.children:
            child.kill()
            child.wait()
        volume.remove()


def test_full(place):
    """What receives runs full: the job rests, says why, and goes on when the volume has grown."""
    for start, receives in ((commit, "base.qcow2"), (stream, "top.qcow2")):
        volume = Volume(place, "volume", 2 * MIB)
        link = place.path(receives)
        try:
            for name, below in (("base.qcow2", None), ("mid.qcow2", "base.qcow2"), ("top.qcow2", "mid.qcow2")):
                if os.path.lexists(place.path(name)):
                    os.unlink(place.path(name))
                if name == receives:
                    os.symlink(volume.path, link)
                create(place, name, below)
            write(place, "mid.qcow2", "write -P 2 0 4M")
            child = place.start_chain("--allow-backing", "/dev", "--allow-backing", place.folder)
            qmp = Qmp(place.path("qmp"))
            answer = commit(qmp, "mid.qcow2", names(qmp)[2]) if start == commit else \
                qmp.command("block-stream", **{"job-id": "c", "device": names(qmp)[0], "base-node": "base.qcow2"})
            expect_equal(answer, {"return": {}}, "answer")
            wait_until(lambda: row(qmp)["status"] == "paused", "the job rests")
            block = qmp.command("query-block-jobs")["return"][0]
            expect_equal((block["io-status"], block["paused"]), ("nospace", True), f"{receives}: io-status")
            volume.grow(16 * MIB)
            wait_until(lambda: row(qmp) is None, "the job is gone")
            expect_said(qmp, ["BLOCK_JOB_COMPLETED", "concluded", "null"])
            child.terminate()
            expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
            expect_equal(content(place)[:4 * MIB], b"\2" * (4 * MIB), f"{receives}: content")
        finally:
            for child in place.children:
                child.kill()
                child.wait()
            volume.remove()


COMMIT_REFUSED = (
    ({"device": "nope"}, "Device 'nope' not found"),
    ({"top_node": "nope"}, "Cannot find device='' nor node-name='nope'"),
    ({"base_node": "nope"}, "Cannot find device='' nor node-name='nope'"),
    ({"top": "sn1.qcow2"}, "'top-node' and 'top' are mutually exclusive"),
    ({"base": "sn1.qcow2"}, "'base-node' and 'base' are mutually exclusive"),
    ({"top_node": "sn1.qcow2", "base_node": "sn1.qcow2"}, "cannot commit an image into itself"),
    ({"top_node": "sn1.qcow2", "base_node": "sn2.qcow2"}, "is not below"),
    ({"top_node": "top.qcow2", "backing_file": "base.qcow2"},
     "'backing-file' specified, but 'top' is the active layer"),
)


def test_commit_refused(place):
    """Wrong arguments; and a base that somebody else has open."""
    make_snaps(place)
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    for words, text in COMMIT_REFUSED:
        given = {"device": "top.qcow2", "top_node": "sn2.qcow2", "base_node": "base.qcow2", **words}
        given = {key.replace("_", "-"): value for key, value in given.items()}
        answer = qmp.command("block-commit", **{"job-id": "c", **given})
        expect(text in answer.get("error", {}).get("desc", ""), f"{given}: {answer}")
    reader = place.start("--read-only", "--qmp", place.path("qmp2"), "--export",
                         f"nbd,socket={place.path('nbd2')}", place.path("sn1.qcow2"))
    place.wait_ready(reader, place.path("nbd2"))
    answer = commit(qmp, "sn2.qcow2", "base.qcow2")
    expect("in use" in answer.get("error", {}).get("desc", ""), f"a base that is exposed: {answer}")
    expect_equal(row(qmp), None, "jobs")


REFUSED = (
    ({"device": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
    ({"base_node": "nope"}, "Cannot find device='' nor node-name='nope'"),
    ({"base": "nope"}, "Can't find 'nope' in the backing chain"),
    ({"base": "base.qcow2", "base_node": "base.qcow2"},
     "'base' and 'base-node' cannot be specified at the same time"),
    ({"base_node": "top.qcow2"}, "Node 'top.qcow2' is not a backing image of 'top.qcow2'"),
    ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ({"on_error": "never"}, "Parameter 'on-error' does not accept value 'never'"),
    ({"job_id": "0x"}, "Invalid job ID '0x'"),
    ({"device": "mid.qcow2", "base_node": "top.qcow2"}, "Node 'top.qcow2' is not a backing image of 'mid.qcow2'"),
    ({"device": "mid.qcow2", "base_node": "mid.qcow2"}, "Node 'mid.qcow2' is not a backing image of 'mid.qcow2'"),
    ({"base_node": "base.qcow2", "backing_file": "x" * 1024}, "at most 1023"),
)


def test_refused(place):
    """Wrong arguments; nothing is left of them."""
    make_chain(place)
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    for words, text in REFUSED:
        answer = stream(qmp, **words)
        expect(answer.get("error", {}).get("desc", "").startswith(text) or
               text in answer.get("error", {}).get("desc", ""), f"{words}: {answer}")
        expect_equal(answer["error"]["class"], "GenericError", f"class of {words}")
    answer = qmp.command("block-stream", device="top.qcow2")
    expect_equal(answer["error"]["desc"], "An explicit job ID is required for this node", "no id")
    expect_equal(row(qmp), None, "jobs")


def test_no_room(place):
    """A name that has no room in the first cluster is refused before anything is copied (B5)."""
    make_chain(place, options="cluster_size=512")
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    answer = stream(qmp, base_node="base.qcow2", backing_file="./" * 180 + "base.qcow2")
    expect("has no free room" in answer.get("error", {}).get("desc", ""), f"answer: {answer}")
    expect_equal(row(qmp), None, "jobs")


def test_verb(place):
    """qchainctl stream NAME: waits, prints what it did; --detach, --json, and refusals."""
    shows = make_chain(place)
    place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "nbd")
    wrong = place.ctl("stream", "seven", "--base", "nope", status=1)
    expect("nope: no layer of seven" in wrong.stderr, wrong.stderr)
    wrong = place.ctl("stream", "seven", "--into", "nope", status=1)
    expect("nope: no layer of seven" in wrong.stderr, wrong.stderr)
    wrong = place.ctl("stream", "./top.qcow2", "--detach", status=2)
    expect("not a served chain" in wrong.stderr, wrong.stderr)
    done = place.ctl("stream", "seven", "--base", place.path("base.qcow2"))
    expect("has the data of 1 layer below it" in done.stdout, done.stdout)
    expect_equal(chain_of(place), ["top.qcow2", "base.qcow2"], "the chain")
    expect_equal(place.ctl("stream", "seven", "--detach").stdout, "stream0\n", "the id of the job")
    place.ctl("job", "wait", "seven", "stream0")
    expect_equal(chain_of(place), ["top.qcow2"], "the chain")
    found = json.loads(place.ctl("stream", "seven", "--json").stdout)
    expect_equal((found["name"], found["layers"], found["moved"]), ("seven", 0, 0), "report")
    place.ctl("down", "seven")
    expect(content(place) == shows, "the device shows something else than before")


def test_commit_verb(place):
    """qchainctl commit NAME: layers below the active one; snapshots that it spoils have to be named."""
    shows = make_snaps(place)
    place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "nbd")
    for words, text in ((["seven", "--top", "nope"], "nope: no layer of seven"),
                        (["seven", "--top", "base.qcow2"], "no layer below it"),
                        (["seven", "--top", "sn1.qcow2", "--base", "sn2.qcow2"], "no layer below it")):
        wrong = place.ctl("commit", *words, status=1)
        expect(text in wrong.stderr and wrong.stderr.count("\n") == 1, f"{words}: {wrong.stderr}")
    wrong = place.ctl("commit", "./top.qcow2", "--detach", status=2)
    expect("not a served chain" in wrong.stderr, wrong.stderr)
    create(place, "other.qcow2", "sn1.qcow2")
    wrong = place.ctl("commit", "seven", "--top", "sn2.qcow2", status=1)
    expect("other.qcow2" in wrong.stderr, f"another image stands on the base: {wrong.stderr}")
    os.unlink(place.path("other.qcow2"))
    done = place.ctl("commit", "seven", "--top", "sn2.qcow2")
    expect("has the data of 1 layer up to" in done.stdout, done.stdout)
    expect_equal(chain_of(place), ["top.qcow2", "sn3.qcow2", "sn1.qcow2", "base.qcow2"], "the chain")
    place.ctl("snapshot", "seven", "now")
    wrong = place.ctl("commit", "seven", "--top", "top.1.qcow2", "--base", "now", status=1)
    expect("holds snapshot now of device seven" in wrong.stderr, wrong.stderr)
    place.ctl("snapshot", "seven", "later")
    wrong = place.ctl("commit", "seven", "--top", "later", "--base", "now", status=1)
    expect("holds snapshot now of device seven" in wrong.stderr, wrong.stderr)
    place.ctl("commit", "seven", "--top", "later", "--base", "now", "--drop-snapshots")
    held = {layer["snapshot"] for layer in place.ctl_json("tree", "seven")["layers"]}
    expect("now" not in held, f"snapshots of the tree: {held}")
    with open(place.path("seven.qchain"), encoding="utf-8") as record:
        expect_equal([one["name"] for one in json.load(record)["snapshots"]], ["later"], "snapshots of the record")
    os.unlink(place.path("sn2.qcow2"))  # merged; it still stands on sn1
    found = place.ctl_json("commit", "seven", "--top", "sn3.qcow2", "--base", "base.qcow2")
    expect_equal((found["name"], found["layers"]), ("seven", 2), "report")
    place.ctl("down", "seven")
    expect(content(place, "top.2.qcow2") == shows["top"], "the device shows something else than before")
    for name in ("base.qcow2", "top.qcow2", "top.2.qcow2"):
        place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(name))


if __name__ == "__main__":
    sys.exit(harness.main("merge", sys.modules["__main__"]))
