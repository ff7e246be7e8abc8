#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A script written against qemu-storage-daemon works against qchaind: same replies, same events, same order."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import harness
from harness import Failure, Qmp, Skip, expect, expect_equal, listens, wait_until
from nbdclient import NbdClient

GOLDEN = os.path.join(harness.HERE, "qsd-golden.json")
LAYERS = ("base", "mid", "top")
MIB = 1 << 20
# Of a reply or an event, what is not the same in two runs of one program.
NOT_COMPARED = ("timestamp", "offset", "len", "current-progress", "total-progress")
# Keys of answers that are ours.
OUR_KEYS = ("socket", "read-only", "size", "connections", "turned-away", "rate", "seconds-left")
WORDS = "words"


# ---- the two daemons -----------------------------------------------------------------


def make_images(place):
    """
    In a folder of their own: base <- mid <- top with data in each, apart from the others', and an overlay of top.
    What a stream moves is more than one chunk: at a low speed the second one waits, however fast the first one was.
    """
    os.mkdir(place.path("made"))
    for index, name in enumerate(LAYERS + ("over",)):
        below = ["-b", LAYERS[index - 1] + ".qcow2", "-F", "qcow2"] if index else []
        place.run("qemu-img", "create", "-q", "-f", "qcow2", *below, f"made/{name}.qcow2", "4M")
        if name in LAYERS:
            place.run("qemu-io", "-f", "qcow2", "-c", f"write -P {index + 1} {index * 1536}k 1M", f"made/{name}.qcow2")
    for name, size in (("copy", "4M"), ("short", "2M")):
        place.run("qemu-img", "create", "-q", "-f", "qcow2", f"made/{name}.qcow2", size)


def start_over(place, start):
    """All as it was made; the overlay only when the chain is served: nobody serves what has one read-write."""
    if not os.path.exists(place.path("made")):
        make_images(place)
    for name in os.listdir(place.folder):
        if name != "made":
            os.unlink(place.path(name))
    for name in LAYERS + ("copy", "short"):
        shutil.copy(place.path(f"made/{name}.qcow2"), place.folder)
    child = start(place)
    shutil.copy(place.path("made/over.qcow2"), place.folder)
    return child


def start_qsd(place):
    words = ["qemu-storage-daemon"]
    for index, name in enumerate(LAYERS):
        below = f",backing={LAYERS[index - 1]}.qcow2" if index else ""
        words += ["--blockdev", f"driver=file,node-name={name}-file,filename={name}.qcow2",
                  "--blockdev", f"driver=qcow2,node-name={name}.qcow2,file={name}-file{below}"]
    words += ["--chardev", f"socket,path={place.path('qmp')},server=on,wait=off,id=c", "--monitor", "chardev=c"]
    child = subprocess.Popen(words, cwd=place.folder, stdin=subprocess.DEVNULL)
    place.children.append(child)
    wait_until(lambda: listens(child, place.path("qmp")), "qemu-storage-daemon listens")
    return child


def start_qchaind(place):
    child = place.start("--qmp", place.path("qmp"), place.path("top.qcow2"))
    wait_until(lambda: listens(child, place.path("qmp")) or child.poll() is not None, "qchaind listens")
    expect(child.poll() is None, f"qchaind ended at start: {place.output()}")
    return child


# ---- scripts ---------------------------------------------------------------------------


def call(command, **arguments):
    """One command; _ in the names of arguments stands for -."""
    return ("call", command, {key.replace("_", "-"): value for key, value in arguments.items()})


def status(job, *wanted):
    """Wait until the event says that @job has this status."""
    return ("status", job, wanted)


def event(name):
    return ("event", name, None)


def connect(name):
    """A client of the NBD export @name, that stays."""
    return ("connect", name, None)


def ours(step, error):
    """We refuse, on purpose, what QEMU does; @error: a part of the text that says why."""
    return step + (error,)


def words(step):
    """Ours say more, or come from another order of looking; the class of the error is the same."""
    return step + (WORDS,)


def commit(job="j", **more):
    return call("block-commit", **{"device": "top.qcow2", "job_id": job, **more})


def stream(job="j", **more):
    return call("block-stream", **{"device": "top.qcow2", "job_id": job, **more})


def backup(job="j", **more):
    return call("blockdev-backup", **{"device": "top.qcow2", "job_id": job, "target": "copy.qcow2", "sync": "full",
                                      **more})


def target(name="copy.qcow2"):
    return call("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": name})


def overlay(name="over.qcow2", **more):
    return call("blockdev-add", **{"driver": "qcow2", "node_name": name, "backing": None,
                                   "file": {"driver": "file", "filename": "over.qcow2"}, **more})


def export(identifier, node, **more):
    return call("block-export-add", **{"type": "nbd", "id": identifier, "node_name": node, **more})


SERVER = call("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}})
GONE = status("j", "null")

SCRIPTS = {
    "snapshot": [overlay(), call("blockdev-snapshot", node="top.qcow2", overlay="over.qcow2"),
                 ours(call("blockdev-del", node_name="over.qcow2"), "is a layer of the chain")],
    "snapshot of a named file": [
        call("blockdev-add", driver="file", node_name="f", filename="over.qcow2"), overlay(file="f"),
        call("blockdev-snapshot", node="top.qcow2", overlay="over.qcow2")],
    "transaction": [
        overlay(), call("transaction", actions=[
            {"type": "blockdev-snapshot", "data": {"node": "top.qcow2", "overlay": "over.qcow2"}}])],
    "errors of nodes": [
        call("blockdev-snapshot", node="top.qcow2", overlay="none"),
        call("blockdev-snapshot", node="none", overlay="over.qcow2"),
        call("blockdev-snapshot", overlay="over.qcow2"), overlay("top.qcow2"),
        call("blockdev-del", node_name="none"), call("blockdev-add", node_name="x"),
        call("blockdev-add", driver="qcow2", node_name="x"),
        call("blockdev-add", driver="qcow2", node_name="x", file="none"),
        call("blockdev-add", driver="nope", node_name="x"),
        words(call("blockdev-add", driver="qcow2", node_name="x", file={"driver": "file", "filename": "none.qcow2"})),
        overlay(), overlay(), call("blockdev-del", node_name="over.qcow2"),
        call("blockdev-del", node_name="over.qcow2")],
    "commit": [commit(top_node="mid.qcow2", base_node="base.qcow2"), GONE, call("query-jobs"),
               call("query-block-jobs")],
    "commit, by file names": [commit(top="mid.qcow2", base="base.qcow2"), GONE],
    "commit, step by step": [
        commit(top_node="mid.qcow2", auto_finalize=False, auto_dismiss=False), status("j", "pending"),
        call("query-jobs"), call("query-block-jobs"), call("job-dismiss", id="j"), call("job-complete", id="j"),
        call("job-finalize", id="j"), status("j", "concluded"), call("query-jobs"), call("job-cancel", id="j"),
        call("job-finalize", id="j"), call("job-dismiss", id="j"), GONE, call("job-dismiss", id="j")],
    "commit of the active layer": [
        commit(auto_dismiss=False), status("j", "ready"), call("query-jobs"), call("query-block-jobs"),
        call("job-complete", id="j"), status("j", "concluded"), call("query-jobs"),
        call("job-dismiss", id="j"), GONE],
    "commit of the active layer, old words": [
        commit(base_node="mid.qcow2"), event("BLOCK_JOB_READY"), call("block-job-complete", device="j"), GONE],
    "commit of the active layer, given up": [
        commit(base_node="mid.qcow2", auto_dismiss=False), status("j", "ready"), call("block-job-cancel", device="j"),
        status("j", "concluded"), call("query-jobs"), call("block-job-dismiss", id="j"), GONE],
    "commit of the active layer, by force": [
        commit(base_node="mid.qcow2", auto_dismiss=False), status("j", "ready"),
        call("block-job-cancel", device="j", force=True), status("j", "concluded"), call("query-jobs"),
        call("job-dismiss", id="j"), GONE],
    "commit of the active layer, standby": [
        commit(base_node="mid.qcow2"), status("j", "ready"), call("job-pause", id="j"), status("j", "standby"),
        call("job-complete", id="j"), call("job-resume", id="j"), GONE],
    "stream": [stream(base_node="base.qcow2"), GONE],
    "stream of all": [stream(), GONE],
    "stream down to a bottom": [stream(bottom="mid.qcow2"), GONE],
    "stream into the middle": [stream(device="mid.qcow2"), GONE],
    "stream, step by step": [
        stream(auto_finalize=False, auto_dismiss=False), status("j", "pending"), call("block-job-finalize", id="j"),
        status("j", "concluded"), call("query-jobs"), call("block-job-dismiss", id="j"), GONE],
    "paused and cancelled": [
        stream(speed=65536, auto_dismiss=False), status("j", "running"), call("job-pause", id="j"),
        status("j", "paused"), call("job-pause", id="j"), call("query-block-jobs"),
        call("block-job-set-speed", device="j", speed=131072), call("block-job-cancel", device="j"),
        call("job-resume", id="j"), status("j", "running"), call("job-resume", id="j"), call("job-complete", id="j"),
        call("job-dismiss", id="j"), call("job-finalize", id="j"), call("job-cancel", id="j"),
        status("j", "concluded"), call("query-jobs"), call("job-dismiss", id="j"), GONE],
    "cancelled, old words": [
        stream(speed=65536), status("j", "running"), call("block-job-pause", device="j"), status("j", "paused"),
        call("block-job-resume", device="j"), call("block-job-cancel", device="j"), GONE],
    "backup": [
        target(), backup(), GONE, call("query-jobs"), backup("k"), status("k", "null"),
        call("blockdev-del", node_name="copy.qcow2")],
    "backup of the active layer alone": [target(), backup(sync="top"), GONE],
    "backup, step by step": [
        target(), backup(auto_finalize=False, auto_dismiss=False), status("j", "pending"), call("query-jobs"),
        call("query-block-jobs"), call("job-complete", id="j"), call("job-finalize", id="j"),
        status("j", "concluded"), call("query-jobs"), call("job-dismiss", id="j"), GONE],
    "backup, cancelled": [
        target(), backup(speed=65536, auto_dismiss=False), status("j", "running"),
        call("block-job-set-speed", device="j", speed=131072), call("blockdev-del", node_name="copy.qcow2"),
        call("job-complete", id="j"), call("job-dismiss", id="j"),
        call("job-cancel", id="j"), status("j", "concluded"), call("query-jobs"), call("job-dismiss", id="j"), GONE,
        call("blockdev-del", node_name="copy.qcow2")],
    "backup, cancelled in old words": [
        target(), backup(speed=65536), status("j", "running"), call("block-job-cancel", device="j"), GONE],
    "errors of backups": [
        backup(), target(), target("short.qcow2"), backup(target="short.qcow2"), backup(device="none"),
        backup(target="none"), backup(sync="nope"), backup(job="-"), backup(speed=-1), backup(on_target_error="nope"),
        backup(on_source_error="nope"), backup(unknown=1), call("blockdev-backup", job_id="j", target="copy.qcow2"),
        call("blockdev-backup", job_id="j", device="top.qcow2", sync="full"),
        call("blockdev-backup", job_id="j", device="top.qcow2", target="copy.qcow2")],
    "errors of merges": [
        commit(device="none"), commit(top_node="none"), commit(base_node="none"), commit(base="none"),
        commit(top="none"), commit(top_node="mid.qcow2", base_node="mid.qcow2"), commit(job="-"), commit(job=""),
        commit(speed=-1), commit(on_error="nope"), commit(top="mid.qcow2", top_node="mid.qcow2"),
        commit(base="base.qcow2", base_node="base.qcow2"), call("block-commit", job_id="j"),
        commit(auto_dismiss="no"), commit(unknown=1),
        commit(base_node="mid.qcow2", backing_file="base.qcow2"),
        stream(device="none"), stream(base_node="none"), stream(base="none"), stream(bottom="none"),
        stream(base="base.qcow2", base_node="base.qcow2"), stream(base="base.qcow2", bottom="mid.qcow2"),
        stream(base_node="base.qcow2", bottom="mid.qcow2"), stream(base_node="top.qcow2"), stream(speed=-1),
        stream(job="1"), stream(on_error="nope"),
        words(call("block-stream", device="top.qcow2"))],
    "names of jobs": [
        stream(speed=65536, auto_dismiss=False), status("j", "running"),
        words(stream(device="mid.qcow2")), call("job-cancel", id="j"), status("j", "concluded"), words(stream()),
        call("job-dismiss", id="j"), GONE],
    "exports": [
        export("a", "top.qcow2"), SERVER, SERVER, export("a", "none"), export("a", "top.qcow2", name="n"),
        export("a", "top.qcow2", name="m"), call("query-block-exports"), call("block-export-del", id="b"),
        call("block-export-del", id="a"), event("BLOCK_EXPORT_DELETED"), call("query-block-exports"),
        call("block-export-del", id="a"), export("a", "base.qcow2", name="n"), call("query-block-exports"),
        call("block-export-del", id="a", mode="hard"), event("BLOCK_EXPORT_DELETED"), call("nbd-server-stop"),
        call("nbd-server-stop"), export("a", "top.qcow2")],
    "an export in use": [
        SERVER, export("a", "top.qcow2", name="n", writable=True), connect("n"),
        call("block-export-del", id="a"), call("query-block-exports"),
        call("block-export-del", id="a", mode="hard"), event("BLOCK_EXPORT_DELETED"), call("query-block-exports")],
    "errors of exports": [
        SERVER, call("block-export-add", id="a", node_name="top.qcow2"), export("a", "top.qcow2", type="nope"),
        call("block-export-add", type="nbd", node_name="top.qcow2"), call("block-export-add", type="nbd", id="a"),
        export("-", "top.qcow2"), export("a", "top.qcow2", unknown=1), export("a", "top.qcow2", writable="yes"),
        ours(export("a", "base.qcow2", writable=True), "for reading only"), call("block-export-del"),
        call("block-export-del", id="a", mode="soft"),
        call("nbd-server-start", addr={"type": "nope", "data": {"path": "nbd"}}), call("nbd-server-start")],
    "an export follows a snapshot": [
        SERVER, export("a", "top.qcow2", name="n", writable=True), overlay(),
        call("blockdev-snapshot", node="top.qcow2", overlay="over.qcow2"), call("query-block-exports"),
        call("block-export-del", id="a"), event("BLOCK_EXPORT_DELETED"),
        export("b", "top.qcow2", name="m"), call("query-block-exports")],
    "a merge beside an export": [
        SERVER, export("a", "base.qcow2", name="n"), stream(base_node="base.qcow2"), GONE,
        call("query-block-exports"), call("block-export-del", id="a"), event("BLOCK_EXPORT_DELETED")],
    "sizes and thresholds": [
        call("block_resize", node_name="top.qcow2", size=8 * MIB), call("block_resize", node_name="none", size=1),
        call("block_resize", size=1), call("block_resize", node_name="top.qcow2", size=-1),
        call("block-set-write-threshold", node_name="none", write_threshold=1)],
}


# ---- running one ---------------------------------------------------------------------


class QsdQmp(Qmp):
    """qemu-storage-daemon greets once more who comes while it sets its monitor up."""

    def reply(self):
        while True:
            line = super().reply()
            if line != self.greeting:
                return line


class Script:
    """One script on one connection; what was answered, and what was said in between."""

    def __init__(self, place, qmp):
        self.place = place
        self.qmp = qmp
        self.seen = 0  # events that a wait has looked at
        self.answers = []
        self.loop = asyncio.new_event_loop()  # of clients
        self.clients = []

    def until(self, matches, what):
        """Until there is an event that no wait before this one has taken."""
        while True:
            while self.seen < len(self.qmp.events):
                self.seen += 1
                if matches(self.qmp.events[self.seen - 1]):
                    return
            line = self.qmp.read()
            expect(line is not None and "event" in line, f"{what} is waited for, there is {line}")
            self.qmp.events.append(line)

    def step(self, kind, name, more):
        if kind == "call":
            self.answers.append(self.qmp.command(name, **more))
        elif kind == "status":
            self.until(lambda e: e["event"] == "JOB_STATUS_CHANGE" and e["data"]["id"] == name
                       and e["data"]["status"] in more, f"{name} {more}")
        elif kind == "event":
            self.until(lambda e: e["event"] == name, name)
        else:
            self.clients.append(self.loop.run_until_complete(NbdClient.connect(self.place.path("nbd"), name)))

    def run(self, steps):
        for step in steps:
            self.step(*step[:3])
        self.qmp.command("query-version")
        self.qmp.close()
        for client in self.clients:
            self.loop.run_until_complete(client.abandon())
        self.loop.close()
        return without({"answers": self.answers, "events": self.qmp.events}, self.place)


def without(value, place):
    """@value without what differs between runs."""
    if isinstance(value, dict):
        return {key: without(item, place) for key, item in value.items() if key not in NOT_COMPARED}
    if isinstance(value, list):
        return [without(item, place) for item in value]
    return value.replace(place.folder + "/", "") if isinstance(value, str) else value


def without_ours(value):
    if isinstance(value, dict):
        return {key: without_ours(item) for key, item in value.items() if key not in OUR_KEYS}
    return [without_ours(item) for item in value] if isinstance(value, list) else value


def run_script(place, start, steps):
    child = start_over(place, start)
    try:
        return Script(place, (QsdQmp if start is start_qsd else Qmp)(place.path("qmp"))).run(steps)
    finally:
        child.kill()
        child.wait()


# ---- comparing ------------------------------------------------------------------------------


def compare_answer(what, note, golden, got):
    """@note: None: all of the answer; WORDS: the class of an error; else a part of our refusal."""
    if note is None:
        expect_equal(without_ours(got), golden, what)
    elif note == WORDS:
        expect_equal(got["error"]["class"], golden["error"]["class"], what)
    else:
        expect("return" in golden and note in got["error"]["desc"], f"{what} is {got}, expected {note}")


def compare(name, steps, golden, got):
    calls = [step for step in steps if step[0] == "call"]
    for step, theirs, mine in zip(calls, golden["answers"], got["answers"], strict=True):
        compare_answer(f"{name}: answer to {step[1]} {step[2]}", step[3] if len(step) > 3 else None, theirs, mine)
    expect_equal(got["events"], made_only(without_drains(steps, golden["events"])), f"{name}: events")


def is_state(event_of, status_of):
    return event_of["event"] == "JOB_STATUS_CHANGE" and event_of["data"]["status"] == status_of


def without_drains(steps, events):
    """Where nobody pauses a job, without QEMU's own pauses: it rests while a node is put in for it."""
    if any(step[1] in ("job-pause", "block-job-pause") for step in steps):
        return events
    left = []
    for one in events:
        if is_state(one, "running") and left and is_state(left[-1], "paused"):
            left.pop()
        else:
            left.append(one)
    return left


def made_only(events):
    """Without jobs that were made and found to be impossible: we look first."""
    left = []
    for one in events:
        if one["data"].get("status") == "null" and left and left[-1]["data"].get("status") == "created":
            left.pop()
        else:
            left.append(one)
    return left


def run_all(place, start):
    return {name: run_script(place, start, steps) for name, steps in SCRIPTS.items()}


def test_recorded(place):
    """Against what qemu-storage-daemon has answered."""
    with open(GOLDEN, encoding="utf-8") as file:
        golden = json.load(file)["scripts"]
    expect_equal(list(golden), list(SCRIPTS), "scripts (record them again)")
    wrong = []
    for name, steps in SCRIPTS.items():
        try:
            compare(name, steps, golden[name], run_script(place, start_qchaind, steps))
        except Failure as reason:
            wrong.append(str(reason))
    expect(not wrong, "\n     ".join([f"{len(wrong)} scripts differ:"] + wrong))


def test_live(place):
    """Against the qemu-storage-daemon of this machine: is what was recorded still what it says?"""
    if not shutil.which("qemu-storage-daemon"):
        raise Skip("qemu-storage-daemon is not installed (Debian: qemu-system-common)")
    with open(GOLDEN, encoding="utf-8") as file:
        golden = json.load(file)["scripts"]
    for name, got in run_all(place, start_qsd).items():
        for one in (got, golden[name]):
            one["events"] = without_drains(SCRIPTS[name], one["events"])
        expect_equal(got, golden[name], f"{name}, of the daemon that is installed")


# ---- exports ---------------------------------------------------------------------------------


def content(place, name="nbd", export=""):
    place.run("qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd+unix:///{export}?socket={place.path(name)}",
              place.path("raw"))
    with open(place.path("raw"), "rb") as raw:
        return raw.read()


def image_content(place, name):
    place.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", place.path(name), place.path("raw"))
    with open(place.path("raw"), "rb") as raw:
        return raw.read()


def asked(qmp, step):
    return qmp.command(step[1], **step[2])


def done(qmp, step):
    expect_equal(asked(qmp, step), {"return": {}}, f"answer to {step[1]} {step[2]}")


def at(place, name):
    return {"type": "unix", "path": place.path(name)}


def start_again(place):
    child = start_over(place, start_qchaind)
    return child, Qmp(place.path("qmp"))


def test_exports_of_nodes(place):
    """Each node shows what its image shows; the device is written meanwhile, and moves on."""
    child, qmp = start_again(place)
    shows = {name: image_content(place, f"{name}.qcow2") for name in LAYERS}
    for name in LAYERS:
        done(qmp, export(name, f"{name}.qcow2", addr=at(place, f"{name}.sock"), writable=name == "top"))
    for name in LAYERS:
        expect(content(place, f"{name}.sock", f"{name}.qcow2") == shows[name], f"export of {name}")
    place.run("qemu-io", "-f", "raw", "-c", "write -P 9 1k 3M", f"nbd+unix:///?socket={place.path('top.sock')}")
    done(qmp, overlay())
    done(qmp, call("blockdev-snapshot", node="top.qcow2", overlay="over.qcow2"))
    done(qmp, export("snap", "top.qcow2", addr=at(place, "snap.sock")))  # at once: it may be being sealed
    shows["snap"] = content(place, "top.sock")
    place.run("qemu-io", "-f", "raw", "-c", "write -P 8 2k 1M", f"nbd+unix:///?socket={place.path('top.sock')}")
    done(qmp, stream("s", device="over.qcow2"))
    wait_until(lambda: not qmp.command("query-jobs")["return"], "the stream has ended")
    for name in ("base", "mid", "snap"):
        expect(content(place, f"{name}.sock") == shows[name], f"export of {name} after a snapshot and a stream")
    wrote = place.run("qemu-io", "-f", "raw", "-c", "write 0 512", f"nbd+unix:///?socket={place.path('mid.sock')}",
                      status=None)
    expect_equal(wrote.returncode, 1, f"status of a write to a snapshot ({wrote.stdout}{wrote.stderr})")
    expect_equal([(row["id"], row["node-name"]) for row in qmp.command("query-block-exports")["return"]],
                 [("base", "base.qcow2"), ("mid", "mid.qcow2"), ("top", "over.qcow2"), ("snap", "top.qcow2")], "exports")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect(not any(name.endswith(".sock") for name in os.listdir(place.folder)), "sockets are left")


def test_export_keeps_layers(place):
    """What an export shows is not written: a commit into it is refused, and works when it has gone (rule D3)."""
    child, qmp = start_again(place)
    shows = image_content(place, "mid.qcow2")
    done(qmp, export("a", "mid.qcow2", addr=at(place, "a.sock")))
    for words_of in ({"top_node": "mid.qcow2"}, {"base_node": "mid.qcow2"}, {}):
        answer = asked(qmp, commit(**words_of))
        expect("export 'a'" in answer.get("error", {}).get("desc", ""), f"commit {words_of}: {answer}")
    expect("export 'a'" in asked(qmp, stream(device="mid.qcow2"))["error"]["desc"], "a stream into it")
    expect(content(place, "a.sock") == shows, "the export")
    done(qmp, call("block-export-del", id="a"))
    done(qmp, commit(top_node="mid.qcow2"))
    expect("job j" in asked(qmp, export("a", "base.qcow2", addr=at(place, "a.sock")))["error"]["desc"]
           if qmp.command("query-jobs")["return"] else True, "an export while a merge runs")
    wait_until(lambda: not qmp.command("query-jobs")["return"], "the commit has ended")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")


def test_one_socket_each(place):
    child, qmp = start_again(place)
    done(qmp, SERVER)
    done(qmp, export("a", "top.qcow2"))
    expect("shows export 'a'" in asked(qmp, export("b", "base.qcow2"))["error"]["desc"], "a second one")
    for addr in ({"type": "inet"}, {"type": "unix"}, {"path": "x"}, at(place, "no/such/place")):
        expect("error" in asked(qmp, export("b", "base.qcow2", addr=addr)), f"addr {addr}")
    done(qmp, call("block-export-del", id="a"))
    done(qmp, export("b", "base.qcow2"))
    for number in range(15):
        done(qmp, export(f"n{number}", "mid.qcow2", addr=at(place, f"n{number}.sock")))
    expect("too many" in asked(qmp, export("c", "mid.qcow2", addr=at(place, "c.sock")))["error"]["desc"], "too many")
    done(qmp, call("nbd-server-stop"))
    expect_equal(len(qmp.command("query-block-exports")["return"]), 15, "exports")
    done(qmp, call("quit"))
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")


def record(place):
    """Write the transcript of the qemu-storage-daemon that is installed."""
    version = place.run("qemu-storage-daemon", "--version").stdout.splitlines()[0]
    with open(GOLDEN, "w", encoding="utf-8") as golden:
        json.dump({"recorded-from": version, "scripts": run_all(place, start_qsd)}, golden, indent=1)
        golden.write("\n")


def extra(parser):
    parser.add_argument("--record", action="store_true",
                        help=f"write {os.path.basename(GOLDEN)} anew from qemu-storage-daemon")


def other_action(arguments):
    if arguments.record:
        with tempfile.TemporaryDirectory(prefix="qc-") as folder:
            record(harness.Place("/nonexistent", folder))
    return arguments.record


if __name__ == "__main__":
    sys.exit(harness.main("qsd", sys.modules[__name__], extra))
