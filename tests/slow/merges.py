#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Merges on devices that take a millisecond of a clock that counts round trips: how many of them.

usage: merges.py --build DIR
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import mapimage  # noqa: E402  (needs the path above)

SIZE = 2 << 30
CLUSTER_BITS = 16
CLUSTERS = 4096
LIMIT_S = 120


def scattered():
    """No two of them stand together."""
    return sorted(random.Random(2205).sample(range(0, SIZE >> CLUSTER_BITS, 2), CLUSTERS))


def make_chain(folder, layers):
    """@layers: which clusters each maps, base first; path of the top."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    below = None
    for number, clusters in enumerate(layers):
        path = os.path.join(folder, f"layer-{number}.qcow2")
        mapimage.write_image(path, SIZE, mapimage.runs_of(clusters), below and os.path.basename(below),
                             CLUSTER_BITS, None)
        below = path
    return below


def milliseconds(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    said = re.search(r"slow: (\d+) ms", done.stderr)
    if done.returncode or not said:
        sys.exit(f"{' '.join(words)}: status {done.returncode}: {done.stderr}")
    return int(said[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    build = parser.parse_args().build
    # with 32 copies at once it was 902, 386 and 919; without reading ahead the first two 166 and 192
    cases = [("offline commit", [[], scattered()], ["slow-qchainctl", "commit"], 140),
             ("stream", [scattered(), []], ["slow-merge", "stream"], 165),
             ("commit", [[], scattered(), []], ["slow-merge", "commit"], 330)]
    missed = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for name, layers, words, most in cases:
            top = make_chain(os.path.join(folder, "chain"), layers)
            took = milliseconds(os.path.join(build, words[0]), *words[1:], top)
            for number in range(len(layers)):
                subprocess.run(["qemu-img", "check", "-q", os.path.join(folder, "chain", f"layer-{number}.qcow2")],
                               check=True)
            print(f"{'pass' if took <= most else 'FAIL'} {name}: {took} ms, at most {most}")
            missed += took > most
    print(f"slow: {len(cases) - missed} passed, {missed} failed")
    sys.exit(missed != 0)


if __name__ == "__main__":
    main()
