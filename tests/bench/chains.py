# SPDX-License-Identifier: GPL-2.0-or-later
"""The images that are measured. They live on tmpfs and go when their rows are done."""

import os
import random
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import mapimage  # noqa: E402  (needs the path above)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 64 * KIB
CLUSTER_BITS = 16
SEED = 2205


class Folder:
    """One folder of images; each is built at its first use."""

    def __init__(self, path):
        self.path = path
        self._built = {}

    def __enter__(self):
        shutil.rmtree(self.path, ignore_errors=True)
        os.makedirs(self.path)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def once(self, name, build):
        """What build(folder of its own) returns, made once."""
        if name not in self._built:
            own = os.path.join(self.path, name)
            os.makedirs(own)
            self._built[name] = build(own)
        return self._built[name]

    def clear(self):
        for name in self._built:
            shutil.rmtree(os.path.join(self.path, name), ignore_errors=True)
        self._built = {}

    def raw(self, size):
        """A raw file full of data."""
        return self.once(f"raw-{size}", lambda own: _raw(own, size))

    def chain(self, size, depth):
        """Every cluster allocated, each in a layer drawn at random; path of the top."""
        return self.once(f"chain-{size}-{depth}", lambda own: make_spread(own, size, depth, "layer-{:04}.qcow2"))

    def scattered(self, size, clusters):
        """An empty base and an overlay with so many clusters, each alone; path of the overlay."""
        return self.once(f"scattered-{size}", lambda own: _scattered(own, size, clusters))

    def sparse_runs(self, size, depth, clusters, span):
        """@clusters in all layers together, in random runs of 1 to 4 below @span; no data."""
        return self.once(f"runs-{size}-{depth}",
                         lambda own: _sparse_runs(own, size, depth, clusters, span))

    def overlay(self, base, *options):
        """A fresh overlay, made anew at each call."""
        path = os.path.join(os.path.dirname(base), "overlay.qcow2")
        words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
                 "-b", os.path.basename(base)]
        if options:
            words += ["-o", ",".join(options)]
        if os.path.exists(path):
            os.unlink(path)
        subprocess.run([*words, path], check=True)
        return path


def _raw(own, size):
    path = os.path.join(own, "disk.raw")
    block = bytes([0x55]) * MIB
    with open(path, "wb") as image:
        for _ in range(size // MIB):
            image.write(block)
    return path


def _write_layers(own, size, layers, data, name="layer-{:04}.qcow2"):
    """@layers: the runs of each, base first."""
    below = None
    for index, runs in enumerate(layers):
        path = os.path.join(own, name.format(index))
        mapimage.write_image(path, size, runs, below and os.path.basename(below), CLUSTER_BITS,
                             data(index))
        below = path
    for path in {os.path.join(own, name.format(0)), below}:
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
    return below


def make_spread(own, size, depth, name):
    """A chain with every cluster allocated; path of the top. name: of layer number {}."""
    rng = random.Random(SEED + depth)
    clusters = [[] for _ in range(depth)]
    for cluster in range(size // CLUSTER):
        clusters[rng.randrange(depth)].append(cluster)
    return _write_layers(own, size, [mapimage.runs_of(c) for c in clusters],
                         lambda index: 1 + index % 255, name)


def _scattered(own, size, clusters):
    # every second one may be taken, so that none stand together
    places = random.Random(SEED).sample(range(0, size // CLUSTER, 2), clusters)
    return _write_layers(own, size, [[], mapimage.runs_of(sorted(places))], lambda index: 1 + index)


def _sparse_runs(own, size, depth, clusters, span):
    rng = random.Random(SEED)
    layers = []
    for _ in range(depth):
        mapped = set()
        while len(mapped) < clusters // depth:
            start = rng.randrange(span // CLUSTER - 4)
            mapped.update(range(start, start + rng.randint(1, 4)))
        layers.append(mapimage.runs_of(sorted(mapped)))
    return _write_layers(own, size, layers, lambda index: None)
