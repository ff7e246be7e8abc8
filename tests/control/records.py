#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The device record of chains on files (rule D1): what it says, and what `up` and qchaind refuse."""

import json
import os
import shutil
import sys

import harness
from harness import expect, expect_equal
from lifecycle import nothing_left, one_line, up


def record_of(place, name="seven"):
    with open(place.path(f"{name}.qchain"), encoding="utf-8") as record:
        return json.load(record)


def write_record(place, name, top, snapshots=(), **more):
    with open(place.path(f"{name}.qchain"), "w", encoding="utf-8") as record:
        json.dump({"device": name, "sequence": 7, "top": top, "snapshots": [
            {"name": snap, "image": image} for snap, image in snapshots], **more}, record)


def refuse(place, words, *wanted):
    """qchainctl fails with one line that holds each of @wanted."""
    done = place.ctl(*words, status=1)
    line = one_line(done.stderr, "qchainctl: ", words)
    for text in wanted:
        expect(text in line, f"{words}: {text!r} is not in {line}")


def refuse_daemon(place, image, *wanted):
    done = place.run(place.program("qchaind"), "--export", f"nbd,socket={place.path('d.sock')}", image, status=1)
    for text in wanted:
        expect(text in done.stderr, f"{text!r} is not in {done.stderr}")


def up_words(name, *more):
    return ["up", name, *more, "--no-ublk", "--nbd", f"{name}.sock"]


def test_first_up(place):
    """It makes the record; down keeps it; then the directory is enough."""
    place.make_chain()
    up(place)
    wanted = {"device": "seven", "sequence": 1, "top": "top.qcow2", "snapshots": []}
    expect_equal(record_of(place), wanted, "record")
    place.ctl("down", "seven")
    nothing_left(place)
    expect_equal(record_of(place), wanted, "record after down")
    place.ctl(*up_words("seven", "./"))
    expect_equal(place.ctl_json("list")[0]["top"], place.path("top.qcow2"), "top")
    place.ctl("down", "seven")
    expect_equal(record_of(place), wanted, "record after another up")
    refuse(place, up_words("eight", "./"), "eight: ", "no record", "expected its TOP")


def test_read_only_up(place):
    """It makes none, whatever the image is."""
    place.make_chain()
    place.ctl(*up_words("seven", "./base.qcow2", "--read-only"))
    place.ctl("down", "seven")
    expect(not os.path.exists(place.path("seven.qchain")), "a record was made")


def test_failed_up(place):
    """Nothing is recorded of an image that cannot be served."""
    place.make_chain()
    os.unlink(place.path("base.qcow2"))
    refuse(place, up_words("seven", "./top.qcow2"), "base.qcow2")
    expect(not os.path.exists(place.path("seven.qchain")), "a record was made")
    nothing_left(place)


def test_backing_refused(place):
    """What an image beside it stands on is not written, by nobody; also when it is raw, or linked to."""
    place.make_chain()
    refuse(place, up_words("seven", "./base.qcow2"), "is the backing image of", "top.qcow2", "--read-only")
    refuse_daemon(place, place.path("base.qcow2"), "is the backing image of", "top.qcow2")
    nothing_left(place)
    os.mkdir(place.path("links"))
    os.symlink(place.path("base.qcow2"), place.path("links/other"))
    refuse_daemon(place, place.path("links/other"), "top.qcow2")
    place.run("qemu-img", "create", "-q", "-f", "raw", place.path("raw.img"), "1M")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", place.path("raw.img"), "-F", "raw",
              place.path("over.qcow2"))
    refuse(place, up_words("eight", "./raw.img", "--format", "raw"), "over.qcow2")
    os.unlink(place.path("over.qcow2"))
    place.ctl(*up_words("eight", "./raw.img", "--format", "raw"))
    place.ctl("down", "eight")


def test_sealed_refused(place):
    """A record knows, also when the overlay is not there to be seen."""
    place.make_chain()
    write_record(place, "seven", "top.qcow2", [("monday", "base.qcow2")])
    os.rename(place.path("top.qcow2"), place.path("away"))
    shutil.copy(place.path("base.qcow2"), place.path("top.qcow2"))
    os.unlink(place.path("away"))
    for words in (up_words("seven", "./base.qcow2"), up_words("eight", "./base.qcow2")):
        refuse(place, words, "snapshot monday of device seven", "qchainctl up seven")
    refuse_daemon(place, place.path("base.qcow2"), "snapshot monday of device seven")
    place.ctl(*up_words("eight", "./base.qcow2", "--read-only"))
    place.ctl("down", "eight")
    nothing_left(place)


def test_other_device(place):
    """One image has one name, and a name has one top."""
    place.make_chain()
    write_record(place, "seven", "top.qcow2")
    refuse(place, up_words("eight", "./top.qcow2"), "is the top of device seven")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("more.qcow2"), "1M")
    refuse(place, up_words("seven", "./more.qcow2"), "seven: is the name of a device whose top is", "top.qcow2",
           "no overlay of it")


def test_overlay_from_outside(place):
    """What was put on the top while the device was down is the top; a start that fails takes nothing."""
    place.make_chain()
    write_record(place, "seven", "top.qcow2", [("monday", "base.qcow2")])
    place.ctl("create", "./more.qcow2", "--backing", "./top.qcow2")
    refuse(place, up_words("seven", "./top.qcow2"), "is the backing image of", "more.qcow2")
    refuse(place, ["up", "seven", "./more.qcow2", "--no-ublk", "--nbd", "/tmp/" + "x" * 120], "seven")
    expect_equal(record_of(place)["top"], "top.qcow2", "top after a failed start")
    place.ctl(*up_words("seven", "./more.qcow2"))
    expect_equal(record_of(place)["top"], "more.qcow2", "top")
    expect_equal(record_of(place)["snapshots"], [{"name": "monday", "image": "base.qcow2"}], "snapshots")
    place.ctl("down", "seven")
    nothing_left(place)


def test_snapshots_outlive_offline_verbs(place):
    """What a record calls a snapshot is not changed unawares: not by commit, not by resize."""
    place.make_chain()
    write_record(place, "seven", "top.qcow2", [("monday", "base.qcow2")])
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", place.path("top.qcow2"))
    with open(place.path("base.qcow2"), "rb") as image:
        before = image.read()
    refuse(place, ["commit", "./top.qcow2"], "holds snapshot monday of device seven", "--drop-snapshots")
    refuse(place, ["resize", "./base.qcow2", "32M"], "holds snapshot monday of device seven")
    with open(place.path("base.qcow2"), "rb") as image:
        expect(image.read() == before, "the snapshot was changed")
    place.ctl("resize", "./top.qcow2", "32M")
    expect_equal(len(record_of(place)["snapshots"]), 1, "snapshots")
    place.ctl("commit", "./top.qcow2", "--drop-snapshots")
    expect_equal(record_of(place)["snapshots"], [], "snapshots after the commit")
    expect_equal(record_of(place)["top"], "top.qcow2", "top")


def test_renamed(place):
    """An image that is gone is named, and what to do."""
    place.make_chain()
    write_record(place, "seven", "gone.qcow2")
    refuse(place, up_words("seven", "./"), "gone.qcow2", ".qchain")


def test_copied_directory(place):
    """Record and images go along; the copy is a device of its own."""
    place.make_chain()
    up(place)
    place.ctl("down", "seven")
    os.mkdir(place.path("copy"))
    for name in ("top.qcow2", "base.qcow2", "seven.qchain"):
        shutil.copy(place.path(name), place.path("copy"))
    place.ctl(*up_words("seven", "./copy"))
    expect_equal(place.ctl_json("list")[0]["top"], place.path("copy/top.qcow2"), "top")
    place.ctl("down", "seven")


def test_broken_records(place):
    """One that cannot be read may be the one that matters."""
    place.make_chain()
    for text in ("", "{", "[]", '{"device": "other", "sequence": 1, "top": "t", "snapshots": []}',
                 '{"device": "nine", "sequence": 1, "top": "../t", "snapshots": []}',
                 '{"device": "nine", "sequence": 1, "top": "t", "snapshots": [{"name": "a"}]}'):
        with open(place.path("nine.qchain"), "w", encoding="utf-8") as record:
            record.write(text)
        refuse(place, up_words("seven", "./top.qcow2"), "nine.qchain")
        refuse_daemon(place, place.path("top.qcow2"), "nine.qchain")
    nothing_left(place)


def test_unreadable_neighbour(place):
    """What may stand on it stops the first up, until somebody says that it does not."""
    place.make_chain()
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", 'json:{"driver":"null-co"}', "-F", "raw",
              place.path("odd.qcow2"), "1M")
    refuse(place, up_words("seven", "./top.qcow2"), "odd.qcow2", "--assume-unshared")
    place.ctl(*up_words("seven", "./top.qcow2", "--assume-unshared"))
    place.ctl("down", "seven")
    place.ctl(*up_words("seven", "./top.qcow2"))
    place.ctl("down", "seven")
    nothing_left(place)


if __name__ == "__main__":
    sys.exit(harness.main("records", sys.modules["__main__"]))
