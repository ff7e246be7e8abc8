#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of devices: up --all, down --all, up NAME, and every way in which a line can be wrong."""

import json
import os
import signal
import sys

import harness
from harness import expect, expect_equal


def write_tab(place, *lines):
    with open(place.path("tab"), "w", encoding="utf-8") as tab:
        tab.write("".join(line + "\n" for line in lines))


def make_images(place, *names):
    for name in names:
        place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path(f"{name}.qcow2"), "4M")


def line(place, name, *more, where=None):
    options = ",".join(("no-ublk", f"nbd={place.path(name)}.sock", *more))
    return f"{name} {where or place.path(name + '.qcow2')} {options}"


def up_all(place, *more, status=0):
    return place.ctl("up", "--all", "--tab", "tab", *more, status=status)


def served(place):
    return [row["name"] for row in place.ctl_json("list") if row["state"] == "serving"]


def errors(done):
    """Of each line, by its number."""
    found = {}
    for text in done.stderr.splitlines():
        expect(text.startswith("qchainctl: tab:"), f"not an error of a line: {text}")
        number, said = text[len("qchainctl: tab:"):].split(": ", 1)
        expect(int(number) not in found, f"line {number} is told twice: {done.stderr}")
        found[int(number)] = said
    return found


def test_up_and_down(place):
    """A line for each; what is up already is as good; noauto by name only; down from the last line up."""
    make_images(place, "one", "two", "three", "other")
    write_tab(place, "# a comment", "", line(place, "one"), "\t" + line(place, "two", "after=one") + "  # why",
              line(place, "three", "noauto"))
    lines = up_all(place).stdout.splitlines()
    expect_equal(lines, [f"one: {place.path('one.sock')}", f"two: {place.path('two.sock')}"], "output of up --all")
    pid = place.ctl_json("status", "one")["pid"]
    expect_equal(sorted(up_all(place).stdout.splitlines()), sorted(lines), "output of the second up --all")
    expect_equal(place.ctl_json("status", "one")["pid"], pid, "process")
    place.ctl("up", "three", "--tab", "tab")
    place.ctl("up", "other", "./other.qcow2", "--no-ublk", "--nbd", "other.sock")
    expect_equal(served(place), ["one", "other", "three", "two"], "what is served")
    done = place.ctl("down", "--all").stdout.splitlines()
    expect_equal(done, [f"{name}: ended" for name in ("one", "other", "three", "two")], "output of down --all")
    expect_equal(served(place), [], "what is served in the end")


def test_json(place):
    make_images(place, "one")
    write_tab(place, line(place, "one"), line(place, "gone"))
    rows = {row["name"]: row for row in json.loads(up_all(place, "--json", status=1).stdout)}
    expect_equal((rows["one"]["state"], "error" in rows["gone"]), ("serving", True), "rows")
    rows = json.loads(place.ctl("down", "--all", "--json").stdout)
    expect_equal(rows, [{"name": "one", "before": "serving"}], "rows of down")
    expect_equal(json.loads(place.ctl("down", "--all", "--json").stdout), [], "rows of nothing")


def test_wrong_lines(place):
    """Each is told once, with its number and what to do; the others come up."""
    make_images(place, "one", "two")
    wrong = {
        "bad..": "NAME PLACE OPTIONS",
        "-x vg": "not a name for a chain",
        "one vg": "stands in line 1",
        "three ./x.qcow2": "not absolute",
        "four - foo": "not known here (foo)",
        "five - cache-size": "has no value",
        "six - cache-size=": "has no value",
        "seven - boot=1": "has a value (1)",
        "eight - scan=on": "has a value (on)",
        "nine - after=ten": "after=ten",
        "ten - after=ten": "after=ten",
        "eleven - all": "not known here (all)",
        "twelve - a b": "a word too many (b)",
        "thirteen - ,": "not known here ()",
    }
    write_tab(place, line(place, "one"), *wrong, line(place, "two"),
              line(place, "size", "cache-size=3z"), line(place, "gone", "after=two"),
              line(place, "upon", "after=gone"))
    done = up_all(place, status=1)
    found = errors(done)
    for number, (text, said) in enumerate(wrong.items(), 2):
        expect(said in found[number] and "; " in found[number], f"{text}: {found.get(number)}")
    last = len(wrong) + 2
    expect(found[last + 1].startswith("size: --cache-size: not a size (3z)"), found[last + 1])
    expect(found[last + 2].startswith("gone: ") and "not found" in found[last + 2], found[last + 2])
    expect("after gone, which is not up" in found[last + 3], found[last + 3])
    expect_equal(sorted(found), [*range(2, last), last + 1, last + 2, last + 3], f"lines that are told in {found}")
    expect_equal(served(place), ["one", "two"], "what came up")
    done = place.ctl("up", "four", "--tab", "tab", status=1)
    expect("tab:6: four: " in done.stderr and done.stderr.count("\n") == 1, done.stderr)
    place.ctl("down", "--all")


def test_no_table(place):
    expect("none: table of devices not opened" in place.ctl("up", "--all", "--tab", "none", status=1).stderr, "no file")
    for words in (("--all", "one"), ("--boot", "one"), ("one", "./x", "--tab", "tab"), ("--tab",)):
        place.ctl("up", *words, status=2)
    write_tab(place)
    expect_equal(up_all(place).stdout, "", "output of an empty table")


def test_boot(place):
    """--boot: those lines only; what they come after need not be one."""
    make_images(place, "one", "two")
    write_tab(place, line(place, "one"), line(place, "two", "boot", "after=one"))
    up_all(place, "--boot")
    expect_equal(served(place), ["two"], "what is served")
    up_all(place)
    expect_equal(served(place), ["one", "two"], "what is served")
    place.ctl("down", "--all")


def test_record_counts(place):
    """After a snapshot the record says what is the top, whatever the table said the first time; also after a death."""
    make_images(place, "one")
    write_tab(place, line(place, "one", where=place.folder))
    done = up_all(place, status=1)
    expect("one" in done.stderr, done.stderr)  # no record yet
    place.ctl("up", "one", "./one.qcow2", "--no-ublk", "--nbd", "one.sock")
    place.ctl("snapshot", "one", "monday")
    place.ctl("down", "one")
    up_all(place)
    seen = place.ctl_json("status", "one")
    expect_equal(os.path.basename(seen["top"]), "one.1.qcow2", "top")
    os.kill(seen["pid"], signal.SIGKILL)
    harness.wait_until(lambda: place.ctl_json("status", "one")["state"] == "dead", "the daemon is dead")
    up_all(place)
    expect_equal(os.path.basename(place.ctl_json("status", "one")["top"]), "one.1.qcow2", "top after a death")
    place.ctl("down", "--all")


def test_options_of_both(place):
    """What is typed counts before the line."""
    make_images(place, "one")
    write_tab(place, line(place, "one", "read-only"))
    place.ctl("up", "one", "--tab", "tab", "--nbd", "typed.sock")
    seen = place.ctl_json("status", "one")
    expect(seen["status"]["read-only"], "not read-only")
    expect(os.path.exists(place.path("typed.sock")) and not os.path.exists(place.path("one.sock")), "socket of the line")
    place.ctl("down", "--all")


if __name__ == "__main__":
    sys.exit(harness.main("tab", sys.modules[__name__]))
