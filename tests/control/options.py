#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong values for every option of every verb: one line that names it, nothing written.

The options are read from the verbs' --help, so a new one is tested from its first day.
"""

import os
import re
import sys

import harness
from harness import expect

VERBS = {
    "up": ["seven", "./top.qcow2", "--no-ublk", "--nbd", "./s"],
    "create": ["./new.qcow2", "--size", "1M"],
    "info": ["./top.qcow2"], "map": ["./top.qcow2"], "check": ["./base.qcow2"],
    "measure": ["./top.qcow2"], "compare": ["./top.qcow2", "./base.qcow2"],
    "commit": ["./top.qcow2"], "stream": ["./top.qcow2"], "rebase": ["./top.qcow2"],
    "resize": ["./base.qcow2", "64M"], "bench": ["./top.qcow2", "-c", "1"],
}

# No number, size, choice, folder, layer or image is written like this.
NEVER = ["", "x", "-1", "99999999999999999999", "9E", "a b", "1.3.4K", "./none", "4K,", "0x10", "\t", "%s%n"]

# What such an option may have all the same.
ALLOWED = {
    "--nbd": {value for value in NEVER if value},
    # these want no more than a number or a size
    "--seed": {"99999999999999999999"},
}

OPTION = re.compile(r"^ +(?:-\w, +)?(--[\w-]+) +(?:[A-Z][A-Z0-9]*|[a-z]+\|[a-z]+)\b", re.M)


def options_of(place, verb):
    found = OPTION.findall(place.ctl(verb, "--help").stdout)
    expect(found or verb in ("resize", "check"), f"no options found in {verb} --help")
    return found


def contents(place):
    found = {}
    for name in sorted(os.listdir(place.folder)):
        path = place.path(name)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                found[name] = file.read()
    return found


def check_refused(place, verb, option, value, before):
    words = [verb, *VERBS[verb], option, value]
    done = place.ctl(*words, status=None)
    said = done.stderr.rstrip("\n")
    expect(done.returncode in (1, 2), f"{words}: status {done.returncode}, {said!r}")
    expect(said.startswith("qchainctl"), f"{words}: {said!r}")
    expect("\n" not in said, f"{words}: more than one line: {said!r}")
    expect(option in said or value.strip() in said, f"{words}: neither option nor value named: {said!r}")
    expect(contents(place) == before, f"{words}: something was written")


def test_wrong_values(place):
    """Every option that has a value."""
    place.make_chain()
    before = contents(place)
    nr = 0
    for verb in VERBS:
        for option in options_of(place, verb):
            for value in NEVER:
                if value in ALLOWED.get(option, ()):
                    continue
                check_refused(place, verb, option, value, before)
                nr += 1
    expect(nr > 300, f"only {nr} cases")


def test_wrong_together(place):
    """Options that are right alone."""
    place.make_chain()
    before = contents(place)
    for words, named in (
            (["create", "./new.qcow2", "--size", "1M", "--thin"], "--thin"),
            (["create", "./new.qcow2", "--size", "1M", "--lv-size", "1G"], "--lv-size"),
            (["create", "vg/lv", "--size", "1M", "--thin", "--lv-size", "1G"], "--thin"),
            (["create", "vg/lv", "--size", "1M", "--lv-size", "0"], "--lv-size"),
            (["create", "./new.qcow2"], "--size"),
            (["check", "--repair", "--force-share", "./base.qcow2"], "--force-share"),
            (["check", "--repair=some", "./base.qcow2"], "--repair"),
            (["resize", "./top.qcow2", "0"], "qchainctl: ./top.qcow2: SIZE: 0 "),
            (["resize", "./top.qcow2", "9E"], "qchainctl: ./top.qcow2: SIZE: "),
            (["resize", "--shrink", "--", "./top.qcow2", "-5G"], "qchainctl: ./top.qcow2: SIZE: -5G "),
            (["bench", "--cache-size", "4095", "./top.qcow2"], "--cache-size"),
            (["bench", "--cache-size", "1025G", "./top.qcow2"], "--cache-size"),
            (["up", "seven", "./top.qcow2", "--offload"], "--read-only"),
            (["up", "seven", "./top.qcow2", "--read-only", "--offload-targets", "5"], "expected --offload"),
            (["up", "seven", "./top.qcow2", "--read-only", "--offload", "--nbd", "./s"], "--nbd"),
            (["up", "seven", "./top.qcow2", "--read-only", "--offload", "--no-ublk"], "--no-ublk"),
            (["measure", "--size", "1M", "./top.qcow2"], "--size")):
        done = place.ctl(*words, status=None)
        expect(done.returncode in (1, 2), f"{words}: status {done.returncode}")
        expect(named in done.stderr and done.stderr.count("\n") == 1, f"{words}: {done.stderr!r}")
        expect(contents(place) == before, f"{words}: something was written")


def test_offload_of_files(place):
    """Images that are files, on a host without ublk: neither the kernel nor a daemon can have them."""
    if os.path.exists("/dev/ublk-control"):
        return
    place.make_chain()
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 64k", place.path("top.qcow2"))
    before = contents(place)
    done = place.ctl("up", "seven", "./top.qcow2", "--read-only", "--offload", status=1)
    expect("not on a block device: " in done.stderr and "load ublk_drv" in done.stderr, done.stderr)
    expect(contents(place) == before, "something was written")
    done = place.ctl("up", "seven", "./top.qcow2", "--offload", "--snapshot", "monday", status=1)
    expect("--offload: not with --snapshot" in done.stderr, done.stderr)
    expect(place.ctl("list").stdout == "", "a refused up has left its folder")


def test_repair_alone(place):
    """check --repair without a kind repairs all, before and behind the image's name."""
    place.make_chain()
    for words in (["--repair", "./base.qcow2"], ["./base.qcow2", "--repair"],
                  ["--repair", "leaks", "./base.qcow2"], ["--repair=all", "./base.qcow2"]):
        place.ctl("check", *words)


if __name__ == "__main__":
    sys.exit(harness.main("options", sys.modules["__main__"]))
