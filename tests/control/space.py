#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchainctl space: what layers hold, what only they hold, what a delete gives back."""

import os
import sys

from falselvm import FalseVg
from harness import expect_equal, main

MIB = 1 << 20
PVE = ("-o", "extended_l2=on,cluster_size=128k,preallocation=metadata")


def write(place, path, *ranges):
    """@ranges: (MiB, MiB) from, length."""
    words = [word for start, length in ranges for word in ("-c", f"write -q {start}M {length}M")]
    place.run("qemu-io", "-f", "qcow2", *words, path)


def layers_of(vg, name):
    result, calls = vg.ask("space")
    expect_equal([call for call in calls if not call.startswith("lvs ")], [], "calls of lvm beside lvs")
    chain = [chain for chain in result["chains"] if chain["name"] == name][0]
    return chain, {layer["lv"]: layer for layer in chain["layers"]}


def expect_space(layer, held, only, way=None):
    what = layer["lv"]
    expect_equal((layer["held"] / MIB, layer["only"] / MIB), (held, only), f"{what}: MiB held, and only there")
    expect_equal(layer["delete-way"], way, f"{what}: way of a delete")


def test_chain(place):
    """A snapshot holds alone what was overwritten or zeroed since."""
    vg = FalseVg(place)
    base = vg.add("base")
    write(place, base, (0, 4))
    middle = vg.add("middle", "base")
    write(place, middle, (0, 1), (8, 2))
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -z 3M 512k", middle)
    top = vg.add("top", "middle")
    write(place, top, (9, 1))
    chain, layers = layers_of(vg, "top")
    expect_space(layers["base"], 4, 1.5, "stream")
    expect_space(layers["middle"], 3, 1, "commit")
    expect_space(layers["top"], 1, 1)
    expect_equal(chain["held"], 8 * MIB, "held by the chain")
    expect_equal(layers["base"]["delete-returns"], layers["base"]["size"], "bytes that the delete of base returns")
    expect_equal(layers["middle"]["delete-returns"], layers["top"]["size"], "bytes that the delete of middle returns")


def test_branches(place):
    """What one branch still shows is not only there; what two stand on cannot be merged away."""
    vg = FalseVg(place)
    write(place, vg.add("base"), (0, 4))
    write(place, vg.add("a", "base"), (0, 2))
    write(place, vg.add("b", "base"), (1, 3))
    _, layers = layers_of(vg, "a")
    expect_space(layers["base"], 4, 1)
    expect_equal(layers["base"]["delete-returns"], None, "bytes that a delete returns")


def test_preallocated(place):
    """As Proxmox VE makes overlays: all is mapped, and only what was written is held."""
    vg = FalseVg(place)
    write(place, vg.add("snap_vm-1-disk-0_a.qcow2", tags="pve-vm-1"), (0, 4))
    write(place, vg.add("vm-1-disk-0.qcow2", "snap_vm-1-disk-0_a.qcow2", "pve-vm-1", options=PVE), (2, 1))
    _, layers = layers_of(vg, "vm-1-disk-0")
    expect_space(layers["vm-1-disk-0.qcow2"], 1, 1)
    expect_space(layers["snap_vm-1-disk-0_a.qcow2"], 4, 1, "commit")


def test_broken(place):
    """What an image holds can be told although what it stands on is not there."""
    vg = FalseVg(place)
    vg.add("gone")
    write(place, vg.add("top", "gone"), (0, 2))
    vg.rows = [row for row in vg.rows if row["lv_name"] != "gone"]
    os.unlink(vg.path("gone"))
    _, layers = layers_of(vg, "top")
    expect_space(layers["top"], 2, 2)


def test_unknown(place):
    """What is not active is not counted, nor what it may hide of the layer below; raw counts whole."""
    vg = FalseVg(place)
    vg.add("raw", content=b"x" * 3 * MIB)
    write(place, vg.add("vm-1-disk-0.qcow2", "raw", "pve-vm-1", backing_format="raw"), (0, 1))
    vg.add("vm-2-disk-0.qcow2", None, "pve-vm-2", active=False)
    _, layers = layers_of(vg, "vm-1-disk-0")
    expect_space(layers["raw"], 3, 1, "commit")
    _, layers = layers_of(vg, "vm-2-disk-0")
    expect_equal((layers["vm-2-disk-0.qcow2"]["held"], layers["vm-2-disk-0.qcow2"]["state"]), (None, "inactive"),
                 "an LV that is not active")
    text = place.ctl("space", "vg").stdout.splitlines()
    expect_equal(text[0], "VG vg: 1 GiB, 512 MiB free", "the first line")


if __name__ == "__main__":
    sys.exit(main("space", sys.modules[__name__]))
