#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchaind's command line, and up, down, list, status and tree, with NBD exports only."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import harness
from harness import Qmp, expect, expect_equal, wait_until

sys.path.insert(0, os.path.join(harness.HERE, "..", "lib"))
from qemutools import file_digest  # noqa: E402

LIST_KEYS = {"name", "device", "state", "top", "size", "restarts", "exports", "jobs"}
LAYER_KEYS = {"node-name", "file", "snapshot", "state", "virtual-size", "actual-size", "depth"}


# ---- helpers -------------------------------------------------------------------


def one_line(text, start, what):
    """An error is one line, with the program's name in front."""
    lines = [line for line in text.splitlines() if "process: protection not permitted" not in line]
    expect(len(lines) == 1 and lines[0].startswith(start), f"{what} prints {text!r}, expected one line "
           f"that begins with {start!r}")
    return lines[0]


def up(place, name="seven", top="./top.qcow2", sock="seven.sock", *more, status=0):
    return place.ctl("up", name, top, "--no-ublk", "--nbd", sock, *more, status=status)


def states(place):
    return {row["name"]: row["state"] for row in place.ctl_json("list")}


def kill_daemon(place, name="seven"):
    pid = place.ctl_json("status", name)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: states(place).get(name) == "dead", "the daemon is dead")
    return pid


def nothing_left(place):
    """No process, no folder, no socket."""
    expect_equal(place.daemon_pids(), [], "daemons that are left")
    left = os.listdir(place.path("run")) if os.path.isdir(place.path("run")) else []
    expect_equal([name for name in left if not name.startswith(".")], [], "folders that are left")
    expect_equal([name for name in os.listdir(place.folder) if name.endswith(".sock")], [],
                 "sockets that are left")


def guest_io(place, sock, *commands):
    words = [word for command in commands for word in ("-c", command)]
    output = place.run("qemu-io", "-f", "raw", *words, f"nbd+unix:///?socket={place.path(sock)}").stdout
    expect("fail" not in output.lower(), output)


def is_locked(path):
    """Does any process hold a lock on the file?"""
    inode = f":{os.stat(path).st_ino} "
    with open("/proc/locks", encoding="ascii") as locks:
        return any(inode in line for line in locks)


class NbdUser:
    """A client that is connected and does nothing."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(harness.WAIT_S)
        self.socket.connect(path)
        self.socket.recv(18)

    def close(self):
        self.socket.close()


# ---- qchaind's command line --------------------------------------------------------


def test_daemon_wrong_arguments(place):
    for words in (["--bogus", "x"], ["--name"], ["--export", "foo", "x"], ["--export", "nbd", "x"],
                  ["--export", "nbd,sock=1", "x"], ["--export", "nbd,socket", "x"],
                  ["--export", "nbd,socket=", "x"], ["--export", "nbd,socket=/x,", "x"],
                  ["--export", "nbd,socket=/x,read-only=maybe", "x"],
                  ["--export", "nbd,socket=/x,id=3", "x"], ["--export", "ublk,recover=on", "x"],
                  ["--export", "ublk,depth=0", "x"], ["--export", "ublk,id=-1", "x"],
                  ["--export", "ublk,queues=9999", "x"], ["--cache-size", "3z", "x"],
                  ["--format", "vmdk", "x"], ["--backing-format", "json", "x"], ["--on-full", "x", "x"],
                  ["--name", "a/b", "x"], ["--name", "..", "x"], ["--name", "", "x"],
                  ["--name", "n" * 64, "x"], ["x"], [], ["--name", "n", "x", "y"], ["--name", "n"],
                  ["--daemonize", "--export", "nbd,socket=/x", "x"], ["--read-only=yes", "x"],
                  ["--export", "nbd,socket=/x"] * 17 + ["x"], ["--qmp", "", "x"]):
        done = place.run(place.program("qchaind"), *words, status=2)
        line = one_line(done.stderr, "qchaind: ", words)
        expect(line.endswith("; see qchaind --help"), f"{words}: {line}")
        expect_equal(done.stdout, "", f"output of {words}")


def test_daemon_help(place):
    done = place.run(place.program("qchaind"), "--help")
    expect("Examples:" in done.stdout and "--export" in done.stdout, done.stdout)
    expect_equal(done.stderr, "", "errors of --help")
    expect(place.run(place.program("qchaind"), "--version").stdout.startswith("qchaind "), "no version")


def test_daemon_cannot_open(place):
    """One clear line, exit status 1, nothing left."""
    place.make_chain()
    sock = place.path("nbd")
    for words in (["./nothing"], ["./top.qcow2", "--export", f"nbd,socket={place.path('no/such')}"],
                  ["./top.qcow2", "--export", f"nbd,socket={'/tmp/' + 'x' * 120}"],
                  ["./top.qcow2", "--qmp", "/tmp/" + "x" * 120], ["./top.qcow2", "--snapshot", "none"],
                  ["."], ["/dev/null"]):
        done = place.run(place.program("qchaind"), "--export", f"nbd,socket={sock}", *words, status=1)
        one_line(done.stderr, "qchaind: ", words)
        expect(not os.path.exists(sock), f"{words}: the socket is left behind")
    place.check_images()


def test_daemon_background(place):
    """--daemonize returns when the export is usable; what fails is told by the caller."""
    place.make_chain()
    words = [place.program("qchaind"), "--daemonize", "--qmp", "qmp", "--export", "nbd,socket=seven.sock",
             "top.qcow2"]
    expect_equal(place.run(*words).stderr, "", "errors")
    guest_io(place, "seven.sock", "write -P 7 0 64k")
    expect("serving" in open(place.path("qchaind.log"), encoding="utf-8").read(), "nothing in the log")
    expect_equal(os.stat(place.path("qchaind.log")).st_mode & 0o777, 0o600, "mode of the log")
    client = Qmp(place.path("qmp"))
    pid = client.command("query-status")["return"]["pid"]
    expect_equal(os.readlink(f"/proc/{pid}/cwd"), "/", "working directory")
    failed = place.run(*words[:4], "--export", "nbd,socket=eight.sock", "top.qcow2",
                       "--qmp", "qmp2", status=1)
    one_line(failed.stderr, "qchaind: ", "a second writer")
    client.command("quit")
    client.until_end()
    nothing_left(place)


def test_daemon_waits(place):
    """--wait: until the image is free; a signal ends the wait."""
    place.make_chain()
    holder = subprocess.Popen(["qemu-io", "-f", "qcow2", "-c", "sleep 600000", place.path("top.qcow2")],
                              stdout=subprocess.DEVNULL)
    place.children.append(holder)
    wait_until(lambda: is_locked(place.path("top.qcow2")), "qemu-io holds the image")
    words = ["--export", f"nbd,socket={place.path('seven.sock')}", place.path("top.qcow2")]
    child = place.start("--wait", *words)
    wait_until(lambda: place.output() != "", "a first word")
    expect(child.poll() is None, f"it does not wait: {place.output()}")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 1, "exit status after a signal")
    expect("ended by a signal" in place.output(), place.output())
    child = place.start("--wait", *words)
    holder.kill()
    holder.wait()
    place.wait_ready(child, place.path("seven.sock"))
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")


# ---- up and down ---------------------------------------------------------------------


def test_up_down(place):
    place.make_chain()
    done = up(place)
    expect_equal(done.stdout, place.path("seven.sock") + "\n", "output of up")
    expect_equal(done.stderr, "", "errors of up")
    guest_io(place, "seven.sock", "write -P 7 0 1M", "flush", "read -P 7 0 1M")
    expect_equal(os.stat(place.path("run/seven")).st_mode & 0o777, 0o700, "mode of the folder")
    expect_equal(place.ctl("down", "seven").stdout, "", "output of down")
    nothing_left(place)
    place.check_images()
    place.run("qemu-io", "-f", "qcow2", "-c", "read -P 7 0 1M", place.path("top.qcow2"))


def test_up_json(place):
    place.make_chain()
    row = place.ctl_json("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "seven.sock", "--read-only")
    expect_equal(set(row), LIST_KEYS | {"recovered"}, "keys")
    expect_equal((row["name"], row["state"], row["device"], row["top"], row["size"], row["recovered"]),
                 ("seven", "serving", None, place.path("top.qcow2"), 16 << 20, False), "values")
    expect_equal(row["exports"][0]["read-only"], True, "read-only")
    expect_equal(place.ctl_json("down", "seven"), {"name": "seven", "before": "serving"}, "answer of down")


def test_up_failures(place):
    """A start that fails says why in one line and leaves nothing."""
    place.make_chain()
    for words in (["./nothing"], ["./top.qcow2", "--snapshot", "none"],
                  ["./top.qcow2", "--nbd", "/tmp/" + "x" * 120]):
        done = place.ctl("up", "seven", words[0], "--no-ublk", "--nbd", "seven.sock", *words[1:], status=1)
        expect("seven: " in one_line(done.stderr, "qchainctl: ", words), done.stderr)
        nothing_left(place)
    done = place.ctl("up", "seven", status=1)
    expect("was not served before" in done.stderr, done.stderr)
    nothing_left(place)


def test_tree_sizes(place):
    """Of a file, tree shows what it takes on disk, as du does: holes do not count."""
    place.make_chain()
    place.run("truncate", "-s", "64M", place.path("top.qcow2"))
    up(place)
    for layer in place.ctl_json("tree", "seven")["layers"]:
        expect_equal(layer["actual-size"], os.stat(layer["file"]).st_blocks * 512, layer["file"])
    place.ctl("down", "seven")


def test_paths(place):
    """Relative names count from where the command stands; odd characters are kept."""
    place.make_chain()
    odd = "a, b,c.sock"
    up(place, "seven", "./top.qcow2", odd)
    guest_io_path = place.path(odd).replace(" ", "%20").replace(",", "%2C")
    place.run("qemu-io", "-f", "raw", "-c", "read 0 512", f"nbd+unix:///?socket={guest_io_path}")
    place.ctl("down", "seven")
    nothing_left(place)


def test_wrong_arguments(place):
    place.make_chain()
    for words in (["up"], ["up", "a b", "./top.qcow2"], ["up", "-x", "n", "./top.qcow2"],
                  ["up", "n", "top.qcow2"], ["up", "n", "./top.qcow2", "x"],
                  ["up", "n", "./top.qcow2", "--no-ublk"], ["up", "n", "./top.qcow2", "--nbd"],
                  ["up", "n", "./top.qcow2", "--format", "foo"], ["up", "n", "./top.qcow2", "--cache-size", "x"],
                  ["up", "..", "./top.qcow2"], ["up", "n", ""], ["down"], ["down", "n", "m"],
                  ["down", "n/m"], ["down", "--forse", "n"], ["list", "n"], ["list", "--yaml"],
                  ["status"], ["tree"], ["tree", "n", "m"], ["status", "n", "--json=x"]):
        done = place.ctl(*words, status=2)
        one_line(done.stderr, f"qchainctl {words[0]}: ", words)
    for words in (["down", "n"], ["status", "n"], ["tree", "n"]):
        done = place.ctl(*words, status=1)
        one_line(done.stderr, "qchainctl: n: no chain of this name", words)
    nothing_left(place)


def test_help(place):
    """All verbs, as qchainctl --help lists them."""
    verbs = re.findall(r"^  ([a-z]+) +\S", place.ctl("--help").stdout, re.M)
    expect(len(verbs) > 20, verbs)
    for verb in verbs:
        shown = place.ctl(verb, "--help").stdout
        expect(f"Usage: qchainctl {verb} " in shown and "Examples:" in shown, f"{verb}: {shown}")
        expect("--json" in shown, f"{verb} has no --json")


def test_names_of_nobody(place):
    """Every verb about a served chain: a name that none can have, then one that none has."""
    for verb, *more in (["down"], ["upgrade"], ["status"], ["tree"], ["events"], ["snapshot", "s"],
                        ["expose", "s"], ["unexpose", "s"], ["rename", "m"], ["delete", "s"], ["revert", "s"]):
        for name in ("", "../n", "n/m", "a b"):
            done = place.ctl(verb, name, *more, status=2)
            one_line(done.stderr, f"qchainctl {verb}: {name}", (verb, name))
        one_line(place.ctl(verb, "n", *more, status=1).stderr, "qchainctl: n", verb)
    for sub in (["list", "../n"], ["wait", "../n", "j"], ["set-speed", "../n", "j", "1M"]):
        one_line(place.ctl("job", *sub, status=2).stderr, "qchainctl job: ../n: not a name", sub)
    nothing_left(place)


def test_name_clash(place):
    place.make_chain()
    up(place)
    pid = place.ctl_json("status", "seven")["pid"]
    done = up(place, "seven", "./base.qcow2", "other.sock", status=1)
    expect(f"process {pid}" in done.stderr and "seven.sock" in done.stderr, done.stderr)
    done = up(place, "eight", "./top.qcow2", "other.sock", status=1)
    expect("is the top of device seven" in done.stderr, done.stderr)
    done = up(place, "eight", "./top.qcow2", "other.sock", "--read-only", status=1)
    expect(f"pid {pid}" in done.stderr, done.stderr)
    expect_equal(states(place), {"seven": "serving"}, "states")
    place.ctl("down", "seven")
    nothing_left(place)


def test_race(place):
    """Ten at once: one serves, the others say who does."""
    place.make_chain()
    words = [place.program("qchainctl"), "up", "seven", "./top.qcow2", "--no-ublk", "--nbd"]
    children = [subprocess.Popen(words + [f"{n}.sock"], cwd=place.folder, env=place.environment,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for n in range(10)]
    ended = [child.communicate(timeout=harness.WAIT_S) + (child.returncode,) for child in children]
    expect_equal(sorted(status for _, _, status in ended), [0] + [1] * 9, "exit statuses")
    for _, errors, status in ended:
        expect(status == 0 or "served already by process" in errors, errors)
    place.ctl("down", "seven")
    nothing_left(place)


def test_down_in_use(place):
    place.make_chain()
    up(place)
    user = NbdUser(place.path("seven.sock"))
    done = place.ctl("down", "seven", status=1)
    expect("nbd0: in use by 1 client," in done.stderr, done.stderr)
    expect_equal(states(place), {"seven": "serving"}, "states")
    user.close()
    wait_until(lambda: place.ctl("down", "seven", status=None).returncode == 0, "nobody uses it")
    up(place)
    user = NbdUser(place.path("seven.sock"))
    place.ctl("down", "seven", "--force")
    nothing_left(place)
    place.check_images()


# ---- list, status, tree --------------------------------------------------------------------


def test_list(place):
    expect_equal(place.ctl_json("list"), [], "list of nothing")
    expect_equal(place.ctl("list").stdout, "", "output of nothing")
    place.make_chain()
    up(place)
    up(place, "base", "./base.qcow2", "base.sock", "--read-only")
    rows = place.ctl_json("list")
    expect_equal([row["name"] for row in rows], ["base", "seven"], "names")
    for row in rows:
        expect_equal(set(row), LIST_KEYS, "keys")
        expect_equal(row["state"], "serving", "state")
    lines = place.ctl("list").stdout.splitlines()
    expect_equal(lines[0].split(), ["NAME", "STATE", "SIZE", "RESTARTS", "DEVICE", "TOP"], "headings")
    expect_equal(lines[2].split(), ["seven", "serving", "16", "MiB", "0", place.path("seven.sock"),
                                    place.path("top.qcow2")], "row")
    place.ctl("down", "base")
    place.ctl("down", "seven")
    nothing_left(place)


def test_status(place):
    place.make_chain()
    up(place)
    report = place.ctl_json("status", "seven")
    expect_equal(set(report), LIST_KEYS | {"pid", "guard", "grower", "restarted", "status", "waiting", "hang", "snapshots",
                                           "offload"}, "keys")
    expect_equal(report["waiting"], None, "waiting")
    expect_equal(report["status"]["status"], "running", "status")
    with open(f"/proc/{report['pid']}/comm", encoding="ascii") as comm:
        expect_equal(comm.read().strip(), "qchaind", "process")
    text = place.ctl("status", "seven").stdout
    for word in ("seven", "serving", str(report["pid"]), place.path("seven.sock"), "16 MiB"):
        expect(word in text, f"{word} is not in {text}")


def test_status_of_a_start_that_waits(place):
    """While an image is held by somebody else, status says which, by whom, and for how long (rule A2)."""
    place.make_chain()
    up(place, "seven", "./top.qcow2", "seven.sock", "--wait")
    kill_daemon(place)
    holder = subprocess.Popen(["qemu-io", "-f", "qcow2", place.path("top.qcow2")], stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL)
    wait_until(lambda: is_locked(place.path("top.qcow2")), "qemu-io holds the image")
    starter = subprocess.Popen([place.program("qchainctl"), "up", "seven"], cwd=place.folder,
                               env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: place.ctl_json("status", "seven")["waiting"], "status says what the start waits for")
    waiting = place.ctl_json("status", "seven")["waiting"]
    expect("top.qcow2" in waiting["reason"] and str(holder.pid) in waiting["reason"], waiting)
    with open(f"/proc/{waiting['pid']}/comm", encoding="ascii") as comm:
        expect_equal(comm.read().strip(), "qchaind", "the process that waits")
    text = place.ctl("status", "seven").stdout
    expect("start waits" in text and "top.qcow2" in text, text)
    holder.communicate()
    expect_equal((starter.wait(harness.WAIT_S), starter.communicate()[0]), (0, place.path("seven.sock") + "\n"), "up")
    expect_equal(place.ctl_json("status", "seven")["waiting"], None, "waiting after the start")
    expect("waiting.json" not in os.listdir(place.path("run/seven")), "waiting.json is left behind")
    place.ctl("down", "seven")
    nothing_left(place)


def test_tree(place):
    place.make_chain()
    up(place)
    tree = place.ctl_json("tree", "seven")
    expect_equal(set(tree), {"name", "layers"}, "keys")
    for layer in tree["layers"]:
        expect_equal(set(layer), LAYER_KEYS, "keys of a layer")
    expect_equal([(layer["node-name"], layer["file"], layer["state"], layer["depth"],
                   layer["virtual-size"]) for layer in tree["layers"]],
                 [("top.qcow2", place.path("top.qcow2"), "active", 0, 16 << 20),
                  ("base.qcow2", place.path("base.qcow2"), "sealed", 1, 16 << 20)], "layers")
    lines = place.ctl("tree", "seven").stdout.splitlines()
    expect_equal([line.split()[:2] for line in lines[1:]],
                 [["*", "top.qcow2"], ["|"], ["o", "base.qcow2"]], "picture")


# ---- after a death ----------------------------------------------------------------------------


def test_killed(place):
    """kill -9: it is shown as dead, `up` starts it again, what was flushed is there."""
    place.make_chain()
    up(place, "seven", "./top.qcow2", "seven.sock", "--cache-size", "32M")
    guest_io(place, "seven.sock", "write -P 9 1M 2M", "flush")
    pid = kill_daemon(place)
    rows = place.ctl_json("list")
    expect_equal((rows[0]["state"], rows[0]["size"], rows[0]["exports"]), ("dead", None, []), "row")
    expect("dead" in place.ctl("status", "seven").stdout, "status does not say so")
    expect("qchainctl up seven" in place.ctl("tree", "seven", status=1).stderr, "no next step")
    done = place.ctl("up", "seven")
    expect_equal(done.stdout, place.path("seven.sock") + "\n", "output of up")
    expect("its daemon had ended" in done.stderr, done.stderr)
    expect(place.ctl_json("status", "seven")["pid"] != pid, "the same process")
    guest_io(place, "seven.sock", "read -P 9 1M 2M")
    with open(place.path("run/seven/state.json"), encoding="utf-8") as record:
        expect_equal(json.load(record)["options"], ["--cache-size", "32M"], "options")
    place.ctl("down", "seven")
    nothing_left(place)
    place.check_images()


def test_killed_and_changed(place):
    """With its TOP again the new options count; another TOP is refused."""
    place.make_chain()
    up(place)
    kill_daemon(place)
    done = up(place, "seven", "./base.qcow2", "other.sock", status=1)
    expect(place.path("top.qcow2") in done.stderr and "down seven" in done.stderr, done.stderr)
    row = json.loads(up(place, "seven", "./top.qcow2", "other.sock", "--read-only", "--json").stdout)
    expect_equal((row["recovered"], row["exports"][0]["read-only"]), (True, True), "answer")
    place.ctl("down", "seven")
    os.unlink(place.path("seven.sock"))  # of the killed one, which used another name
    nothing_left(place)


def test_killed_and_cannot_start(place):
    """A new start that fails leaves it dead, with its record."""
    place.make_chain()
    up(place)
    kill_daemon(place)
    os.rename(place.path("base.qcow2"), place.path("away"))
    done = place.ctl("up", "seven", status=1)
    expect("base.qcow2" in one_line(done.stderr, "qchainctl: seven: ", "up"), done.stderr)
    up(place, "seven", "./top.qcow2", "other.sock", status=1)
    expect_equal(states(place), {"seven": "dead"}, "states")
    os.rename(place.path("away"), place.path("base.qcow2"))
    expect_equal(place.ctl("up", "seven").stdout, place.path("seven.sock") + "\n", "output of up")
    place.ctl("down", "seven")
    nothing_left(place)


def test_killed_and_down(place):
    place.make_chain()
    up(place)
    kill_daemon(place)
    done = place.ctl("down", "seven")
    expect("recovered to end it" in done.stderr, done.stderr)
    nothing_left(place)
    up(place)
    kill_daemon(place)
    expect_equal(place.ctl_json("down", "seven"), {"name": "seven", "before": "dead"}, "answer")


def test_ended_by_hand(place):
    """Who ends the daemon himself finds the chain as dead, and starts it again."""
    place.make_chain()
    up(place)
    os.kill(place.ctl_json("status", "seven")["pid"], signal.SIGTERM)
    wait_until(lambda: states(place) == {"seven": "dead"}, "the daemon has ended")
    place.check_images()
    place.ctl("up", "seven")
    place.ctl("down", "seven")
    nothing_left(place)


def test_stopped(place):
    """A daemon that does not answer is neither dead nor served by anybody else."""
    place.make_chain()
    up(place)
    pid = place.ctl_json("status", "seven")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        expect_equal(states(place), {"seven": "unresponsive"}, "states")
        done = up(place, status=1)
        expect("served already" in done.stderr, done.stderr)
    finally:
        os.kill(pid, signal.SIGCONT)
    place.ctl("down", "seven")
    nothing_left(place)


def test_without_qchainctl(place):
    """A daemon that was started by hand is shown, and ended, too."""
    place.make_chain()
    child = place.start("--name", "hand", "--export", f"nbd,socket={place.path('hand.sock')}",
                        place.path("top.qcow2"))
    place.wait_ready(child, place.path("hand.sock"))
    row = place.ctl_json("list")[0]
    expect_equal((row["name"], row["state"], row["top"]), ("hand", "serving", place.path("top.qcow2")), "row")
    place.ctl("down", "hand")
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    nothing_left(place)
    child = place.start("--name", "hand", "--export", f"nbd,socket={place.path('hand.sock')}",
                        place.path("top.qcow2"))
    place.wait_ready(child, place.path("hand.sock"))
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    nothing_left(place)


def test_broken_record(place):
    """A record that nobody can read is named, not guessed."""
    place.make_chain()
    up(place)
    pid = place.ctl_json("status", "seven")["pid"]
    with open(place.path("run/seven/state.json"), "w", encoding="utf-8") as record:
        record.write('{"name": ')
    for words in (["status", "seven"], ["down", "seven"], ["up", "seven"]):
        done = place.ctl(*words, status=1)
        expect("state.json" in done.stderr, done.stderr)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the daemon has ended")


# ---- layers that were left open -------------------------------------------------------------


MARK = 1 << 63  # autoclear bit: open in qchaind, or not closed by it
CLUSTER = 65536


def read_be64(path, at):
    with open(path, "rb") as image:
        image.seek(at)
        return int.from_bytes(image.read(8), "big")


def write_be64(path, at, value):
    with open(path, "r+b") as image:
        image.seek(at)
        image.write(value.to_bytes(8, "big"))


def leave_open(path):
    write_be64(path, 88, read_be64(path, 88) | MARK)


def is_marked(path):
    return bool(read_be64(path, 88) & MARK)


def test_sealed_late(place):
    """A layer below the top that was left open is sealed at the next start; one with errors keeps its mark."""
    place.make_chain()
    base = place.path("base.qcow2")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", base)
    l2 = read_be64(base, read_be64(base, 40)) & ~MARK
    for damaged in (False, True):
        leave_open(base)
        if damaged:
            write_be64(base, l2 + 8, read_be64(base, l2))  # counted once, used twice
        up(place)
        expect_equal(is_marked(base), damaged, f"the mark of the base, damaged {damaged}")
        guest_io(place, "seven.sock", "read -P 5 0 64k")
        with open(place.path("run/seven/qchaind.log"), encoding="utf-8") as log:
            expect((f"{base}: not closed cleanly and cannot be repaired" in log.read()) == damaged,
                   "what the log says")
        place.ctl("down", "seven")
        nothing_left(place)


def make_dirty(place):
    """As QEMU leaves an image with lazy refcounts when it is killed: none of 16 clusters is counted."""
    top = place.path("top.qcow2")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,extended_l2=on", top, "16M")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 4 0 1M", "-c", "abort", top, status=None)
    expect_equal(read_be64(top, 72) & 1, 1, "the dirty bit")
    return top


def test_dirty(place):
    """Repaired, with new refcount tables, before it is served; read-only it is not touched."""
    top = make_dirty(place)
    before = file_digest(top)
    up(place, "seven", "./top.qcow2", "seven.sock", "--read-only")
    place.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 4 0 1M", f"nbd+unix:///?socket={place.path('seven.sock')}")
    place.ctl("down", "seven")
    expect_equal(file_digest(top), before, "the image after it was served read-only")
    up(place)
    guest_io(place, "seven.sock", "read -P 4 0 1M", "write -P 5 2M 64k", "read -P 4 0 1M")
    place.ctl("down", "seven")
    place.run("qemu-img", "check", "-q", "-f", "qcow2", top)


def test_dirty_and_wrong(place):
    """What no repair can know is an error that is left, however many others were repaired."""
    top = make_dirty(place)
    l2 = read_be64(top, read_be64(top, 40)) & ~MARK
    write_be64(top, l2 + 16 * 40 + 8, 1 << 32 | 1)  # a subcluster that is allocated and zero
    write_be64(top, l2 + 16 * 40, read_be64(top, l2))
    done = up(place, status=1)
    expect("cannot be repaired (" in done.stderr and "qchainctl check --repair" in done.stderr, done.stderr)
    left = int(done.stderr.split("cannot be repaired (")[1].split()[0])
    expect(0 < left < 16, f"{left} errors left")
    nothing_left(place)


# ---- warming ------------------------------------------------------------------------------


def warming_of(place):
    return place.ctl_json("status", "seven")["status"]["warming"]


def warmed(place, *options):
    """State of the warming at its end, and how many windows of the map are loaded then."""
    up(place, "seven", "./top.qcow2", "seven.sock", *options)
    wait_until(lambda: warming_of(place)["state"] != "running", "the warming ends")
    status = place.ctl_json("status", "seven")["status"]
    place.ctl("down", "seven")
    return status["warming"]["state"], status["metadata"]["windows-loaded"]


def test_the_map_is_warm_before_it_is_asked_for(place):
    """Nobody reads, all windows are loaded; a small cache is not filled to the brim."""
    place.make_chain(size="1G")
    expect_equal(warmed(place), ("done", 32), "warming")
    state, windows = warmed(place, "--cache-size", "4K")
    expect_equal(state, "cache full", "warming with a small cache")
    expect(0 < windows < 32, f"{windows} windows loaded")
    expect_equal(warmed(place, "--warm", "off"), ("off", 0), "without warming")
    place.ctl("up", "seven", place.path("top.qcow2"), "--warm", "maybe", status=2)


# ---- an active layer that was left open -----------------------------------------------------


def refcount_at(path, cluster):
    """Where the refcount of a cluster is, in an image with one 16-bit refcount block."""
    return read_be64(path, read_be64(path, 48)) + 2 * cluster


def put_refcount(path, cluster, value):
    with open(path, "r+b") as image:
        image.seek(refcount_at(path, cluster))
        image.write(value.to_bytes(2, "big"))


def leak(path, count):
    """Clusters at the end that are counted and not used; returns the end."""
    end = os.path.getsize(path) + CLUSTER - 1 & ~(CLUSTER - 1)
    os.truncate(path, end + count * CLUSTER)
    for n in range(count):
        put_refcount(path, end // CLUSTER + n, 1)
    return end


def scan_of(place):
    return place.ctl_json("status", "seven")["status"]["leak-scan"]


def test_leaks_are_found_beside_serving(place):
    """What was leaked is free, what the guest writes stays; the mark goes at the end."""
    place.make_chain()
    top = place.path("top.qcow2")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", top)
    leak(top, 20)
    leave_open(top)
    up(place)
    guest_io(place, "seven.sock", "write -P 6 1M 2M", "read -P 5 0 1M")
    wait_until(lambda: not scan_of(place)["running"], "the scan ends")
    scan = scan_of(place)
    expect_equal((scan["freed-clusters"], scan["percent"]), (20, 100), "what status says of the scan")
    expect("leak scan" in place.ctl("status", "seven").stdout, "status does not show it")
    guest_io(place, "seven.sock", "read -P 6 1M 2M")
    place.ctl("down", "seven")
    nothing_left(place)
    expect(not is_marked(top), "the mark is left")
    place.check_images()
    up(place)
    expect_equal(scan_of(place), {"running": False, "percent": 0, "freed-clusters": 0}, "a clean image is not scanned")
    place.ctl("down", "seven")


def test_scan_finds_damage(place):
    """An entry that nobody counts: the device turns read-only, the image is marked as corrupt."""
    place.make_chain()
    top = place.path("top.qcow2")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 128k", top)
    end = leak(top, 1)
    put_refcount(top, end // CLUSTER - 1, 0)  # of the last cluster of data
    leave_open(top)
    up(place)
    wait_until(lambda: place.ctl_json("status", "seven")["status"]["metadata"]["failed"], "the damage is found")
    scan = scan_of(place)
    expect_equal((scan["running"], scan["freed-clusters"]), (False, 0), "the scan")
    guest_io(place, "seven.sock", "read -P 5 0 128k")
    place.ctl("down", "seven")
    expect(is_marked(top) and read_be64(top, 72) & 2, "the image is not marked")
    done = up(place, status=1)
    expect("cannot be repaired" not in done.stderr and "corrupt" in done.stderr, done.stderr)
    place.ctl("check", "--repair=all", "--force", top)
    place.check_images()


if __name__ == "__main__":
    sys.exit(harness.main("lifecycle", sys.modules["__main__"]))
