#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every crash point that the source names is one at which a test kills."""

import os
import re
import sys

import harness
from harness import expect

ROOT = os.path.join(harness.HERE, "..", "..")
IN_SOURCE = re.compile(r'crash_point\("([a-z]+\.[a-z]+)"\)|\{ "(commit\.[a-z]+)", step_')


def texts(folder, *endings):
    for path, _, names in os.walk(os.path.join(ROOT, folder)):
        for name in names:
            if name.endswith(endings):
                with open(os.path.join(path, name), encoding="utf-8") as file:
                    yield file.read()


def points():
    found = set()
    for folder in ("ctl", "ublk-target"):
        for text in texts(folder, ".c"):
            found |= {one or other for one, other in IN_SOURCE.findall(text)}
    return found


def is_killed_at(point, text):
    """By its whole name; or by its last word, where a runner puts its family before it."""
    family, word = point.split(".")
    if re.search(rf"\b{family}\.{word}\b", text):
        return True
    return re.search(rf"\b{family}\.[{{$\"]", text) and re.search(rf"\b{word}\b", text)


def test_all(place):
    del place
    killing = [text for text in texts("tests", ".py", ".sh") if "QCHAIN_CRASH_POINT" in text and "IN_SOURCE" not in text]
    found = points()
    expect(len(found) > 60, f"only {len(found)} crash points in the source")
    missing = [point for point in sorted(found) if not any(is_killed_at(point, text) for text in killing)]
    expect(not missing, f"no test kills at {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(harness.main("points", sys.modules["__main__"]))
