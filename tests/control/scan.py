#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchainctl scan: chains of all managers in a VG, and what is broken in them."""

import os
import sys

from falselvm import FalseVg
from harness import expect, expect_equal, main

UUIDS = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(16)]
NO_PARENT = "00000000-0000-0000-0000-000000000000"


def chain_of(result, name):
    found = [chain for chain in result["chains"] if chain["name"] == name]
    expect(len(found) == 1, f"chains called {name}: {len(found)}, all: {[c['name'] for c in result['chains']]}")
    return found[0]


def layers(chain):
    return [image["lv"] for image in chain["images"]]


def only_problem(chain, lv, words, mend):
    expect(len(chain["problems"]) == 1, f"{chain['name']}: problems {chain['problems']}")
    problem = chain["problems"][0]
    expect_equal(problem["lv"], lv, "the broken LV")
    expect(words in problem["problem"], f"{words!r} is not in: {problem['problem']}")
    expect_equal(problem["mend"], mend, "what mends it")


def test_proxmox(place):
    vg = FalseVg(place)
    vg.add("vm-103-disk-0.qcow2", "snap_vm-103-disk-0_be_fore.qcow2", "pve-vm-103")
    vg.add("snap_vm-103-disk-0_be_fore.qcow2", "snap_vm-103-disk-0_a.qcow2", "pve-vm-103")
    vg.add("snap_vm-103-disk-0_a.qcow2", None, "pve-vm-103")
    # killed between its lvrename and its lvcreate
    vg.add("snap_vm-104-disk-1_b.qcow2", "snap_vm-104-disk-1_a.qcow2", "pve-vm-104")
    vg.add("snap_vm-104-disk-1_a.qcow2", None, "pve-vm-104")
    # .. and between lvcreate and qemu-img create
    vg.add("snap_vm-105-disk-0_a.qcow2", None, "pve-vm-105")
    vg.add("vm-105-disk-0.qcow2", tags="pve-vm-105", content=False)
    vg.add("del-vm-106-disk-0.qcow2", None, "pve-vm-106")
    # raw, whatever the guest has written on it
    vg.add("vm-107-disk-0", "vm-103-disk-0.qcow2", "pve-vm-107")
    result, _ = vg.ask("scan")
    chain = chain_of(result, "vm-103-disk-0")
    expect_equal(chain["owner"], "proxmox", "owner")
    expect_equal(layers(chain), ["vm-103-disk-0.qcow2", "snap_vm-103-disk-0_be_fore.qcow2",
                                 "snap_vm-103-disk-0_a.qcow2"], "layers")
    expect_equal([image["snapshot"] for image in chain["images"]], [None, "be_fore", "a"], "snapshots")
    expect_equal(chain["problems"], [], "problems")
    only_problem(chain_of(result, "vm-104-disk-1"), "snap_vm-104-disk-1_b.qcow2", "there is no vm-104-disk-1.qcow2",
                 "lvrename vg snap_vm-104-disk-1_b.qcow2 vm-104-disk-1.qcow2")
    problems = chain_of(result, "vm-105-disk-0")["problems"]
    expect_equal([p["mend"] for p in problems],
                 ["lvrename vg vm-105-disk-0.qcow2 vm-105-disk-0.qcow2.old && "
                  "lvrename vg snap_vm-105-disk-0_a.qcow2 vm-105-disk-0.qcow2", None], "what mends it")
    only_problem(chain_of(result, "vm-106-disk-0"), "del-vm-106-disk-0.qcow2", "to be removed",
                 "lvremove vg/del-vm-106-disk-0.qcow2")
    expect_equal(len(result["chains"]), 4, "number of chains")


def test_incus(place):
    vg = FalseVg(place, locked=True)
    vg.add("virtual-machines_web--1.block", "/dev/vg/virtual-machines_web--1-snap--0.block")
    vg.add("virtual-machines_web--1-snap--0.block")
    vg.add("virtual-machines_db-snap0.block", "/dev/mapper/vg-gone")
    result, _ = vg.ask("scan")
    expect_equal(result["shared"], True, "shared")
    chain = chain_of(result, "virtual-machines_web-1")
    expect_equal((chain["owner"], layers(chain)), ("incus", ["virtual-machines_web--1.block",
                                                             "virtual-machines_web--1-snap--0.block"]), "chain")
    expect_equal(chain["images"][1]["snapshot"], "snap-0", "snapshot")
    expect_equal(chain["problems"], [], "problems")
    problems = chain_of(result, "virtual-machines_db")["problems"]
    expect("missing: /dev/mapper/vg-gone" in problems[0]["problem"], f"problems: {problems}")
    expect_equal(problems[1]["mend"], "lvrename vg virtual-machines_db-snap0.block virtual-machines_db.block", "mend")


def test_cloudstack(place):
    vg = FalseVg(place, locked=True)
    template = f"template-{UUIDS[0]}"
    vg.add(template)
    vg.add(UUIDS[1], f"/dev/vg/{template}")
    vg.add(UUIDS[2], f"/dev/mapper/vg-template--{UUIDS[0].replace('-', '--')}")
    vg.add(UUIDS[3], f"/dev/vg/template-{UUIDS[4]}")
    result, _ = vg.ask("scan")
    chain = chain_of(result, UUIDS[1])
    expect_equal((chain["owner"], layers(chain)), ("cloudstack", [UUIDS[1], UUIDS[2], template]), "chain")
    expect_equal([image["stands-on"] for image in chain["images"]], [template, template, None], "what stands on what")
    only_problem(chain_of(result, UUIDS[3]), UUIDS[3], f"missing: /dev/vg/template-{UUIDS[4]}",
                 f"qchainctl rebase --unsafe vg/{UUIDS[3]} --backing vg/BASE")


def test_ovirt(place):
    vg = FalseVg(place)
    vg.add("metadata", content=False)
    vg.add(UUIDS[1], f"../img-a/{UUIDS[0]}", f"IU_img-a,PU_{UUIDS[0]},MD_4")
    vg.add(UUIDS[0], None, f"IU_img-a,PU_{NO_PARENT},MD_3")
    vg.add(UUIDS[2], None, f"IU_img-b,PU_{UUIDS[0]},MD_5")
    vg.add(UUIDS[3], tags="OVIRT_VOL_INITIALIZING,IU_img-c", content=False)
    vg.add(UUIDS[4], f"../img-d/{UUIDS[5]}", f"IU_img-d,PU_{UUIDS[5]},MD_6")
    vg.add(UUIDS[6], None, f"IU__remove_me_img-e,PU_{NO_PARENT},MD_7")
    # a raw disk: no chain, whatever the tags
    vg.add(UUIDS[7], tags=f"IU_img-f,PU_{NO_PARENT}", content=False)
    result, _ = vg.ask("scan")
    chain = chain_of(result, "img-a")
    expect_equal((chain["owner"], layers(chain), chain["problems"]), ("ovirt", [UUIDS[1], UUIDS[0]], []), "chain")
    only_problem(chain_of(result, "img-b"), UUIDS[2], "its tag names another volume",
                 f"lvchange --deltag PU_{UUIDS[0]} --addtag PU_{NO_PARENT} vg/{UUIDS[2]}")
    only_problem(chain_of(result, "img-c"), UUIDS[3], "OVIRT_VOL_INITIALIZING", f"lvremove vg/{UUIDS[3]}")
    only_problem(chain_of(result, "img-d"), UUIDS[4], "missing", f"qchainctl rebase --unsafe vg/{UUIDS[4]} --backing vg/BASE")
    only_problem(chain_of(result, "img-e"), UUIDS[6], "removal", f"lvremove vg/{UUIDS[6]}")
    expect_equal(len(result["chains"]), 5, "number of chains")


def test_ours(place):
    vg = FalseVg(place)
    device = f"qchain.device=web:7:{vg.uuid('web.1.qcow2')}"
    vg.add("web.1.qcow2", "web", f"{device},qchain.snapshot=1:monday:{vg.uuid('web')},"
           f"qchain.job=commit0:commit:failed:{vg.uuid('web.1.qcow2')}:{vg.uuid('web')},"
           f"qchain.job-error=commit0:I/O,qchain.dead={vg.uuid('web.0.qcow2')}")
    vg.add("web", None)
    vg.add("web.0.qcow2", "web")
    vg.add("web.2.qcow2", "web.1.qcow2", "qchain.new=web")
    result, _ = vg.ask("scan")
    chain = chain_of(result, "web")
    expect_equal((chain["owner"], chain["images"][-1]["snapshot"]), ("qchain", "monday"), "chain")
    expect_equal({(p["lv"], p["mend"]) for p in chain["problems"]},
                 {(lv, "qchainctl up web vg") for lv in ("web.0.qcow2", "web.1.qcow2", "web.2.qcow2")}, "problems")
    # a raw top: its guest has written a header
    vg.add("disk", "web.1.qcow2", f"qchain.device=db:1:{vg.uuid('disk')},qchain.format=raw")
    expect_equal(layers(chain_of(vg.ask("scan")[0], "web")), layers(chain), "with a raw top beside them")
    text = place.ctl("scan", "vg").stdout
    expect("VG vg: 2 chains, 3 problems" in text and "! web.2.qcow2: a snapshot of web was begun" in text, text)


def test_plain(place):
    """Made by hand: a loop, no format, marked dirty and corrupt, a broken header, a name that is none."""
    vg = FalseVg(place)
    vg.add("a", "b")
    vg.add("b", "a")
    vg.add("on-raw", "raw", backing_format="raw")
    # what an overlay calls raw is not read as an image
    vg.add("raw", "a")
    vg.add("outside", "/dev/null")
    vg.add("nbd", "nbd://host/a")
    for name, offset, data in (("marked", 79, b"\x03"), ("broken", 20, b"\xff\xff\xff\xff")):
        path = vg.add(name)
        with open(path, "r+b") as image:
            image.seek(offset)
            image.write(data)
    path = vg.add("no-format", "raw")
    place.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "raw", path)
    with open(path, "r+b") as image:
        header = image.read(4096)
        image.seek(header.index(b"\xe2\x79\x2a\xca"))
        image.write(b"\x00\x00\x01\x23")
    vg.add("swap", content=False)
    result, _ = vg.ask("scan")
    only_problem(chain_of(result, "b"), "a", "a loop", "qchainctl rebase --unsafe vg/a --backing vg/BASE")
    expect_equal(layers(chain_of(result, "on-raw")), ["on-raw", "no-format", "raw"], "layers on a raw LV")
    only_problem(chain_of(result, "on-raw"), "no-format", "format of its backing",
                 "qchainctl rebase --unsafe vg/no-format --backing vg/raw --backing-format qcow2")
    only_problem(chain_of(result, "nbd"), "nbd", "not followed", "qchainctl rebase --unsafe vg/nbd --backing vg/BASE")
    expect_equal(chain_of(result, "outside")["problems"], [], "problems of an image that stands outside")
    expect_equal([p["mend"] for p in chain_of(result, "marked")["problems"]],
                 ["qchainctl check --repair vg/marked"] * 2, "what mends a marked image")
    only_problem(chain_of(result, "broken"), "broken", "not valid", "qchainctl check vg/broken")
    expect("swap" not in str(result), "an LV without an image is listed")


def test_inactive(place):
    """Not looked at, then with --activate: shared, and inactive again; one is active elsewhere."""
    vg = FalseVg(place, locked=True)
    vg.add("vm-1-disk-0.qcow2", "snap_vm-1-disk-0_a.qcow2", "pve-vm-1", active=False)
    vg.add("snap_vm-1-disk-0_a.qcow2", None, "pve-vm-1", active=False)
    vg.add("vm-2-disk-0.qcow2", None, "pve-vm-2", active=False, elsewhere=True)
    vg.add("vm-3-disk-0", None, "pve-vm-3", active=False)
    vg.add("root", active=False)
    vg.add(UUIDS[1], f"../i/{UUIDS[0]}", f"IU_i,PU_{UUIDS[0]}", active=False)
    vg.add(UUIDS[0], None, f"IU_i,PU_{NO_PARENT}", active=False)
    result, calls = vg.ask("scan")
    expect(not any("lvchange" in call for call in calls), f"scan changed something: {calls}")
    expect_equal(result["not-looked-at"], 1, "LVs that nothing is known of")
    chain = chain_of(result, "vm-1-disk-0")
    expect_equal([image["stands-on"] for image in chain["images"]], [None, None], "links without headers")
    expect_equal({image["state"] for image in chain["images"]}, {"inactive"}, "states")
    expect_equal(layers(chain_of(result, "i")), [UUIDS[1], UUIDS[0]], "layers by oVirt's tags")
    result, calls = vg.ask("scan", "--activate")
    chain = chain_of(result, "vm-1-disk-0")
    expect_equal(layers(chain), ["vm-1-disk-0.qcow2", "snap_vm-1-disk-0_a.qcow2"], "layers")
    expect_equal([image["stands-on"] for image in chain["images"]], ["snap_vm-1-disk-0_a.qcow2", None], "links")
    expect_equal(chain_of(result, "vm-2-disk-0")["images"][0]["state"], "elsewhere", "state")
    changed = {call.split()[-1] for call in calls if call.startswith("lvchange")}
    expect_equal(changed, {f"vg/{name}" for name in ("vm-1-disk-0.qcow2", "snap_vm-1-disk-0_a.qcow2",
                                                      "vm-2-disk-0.qcow2", UUIDS[1])}, "LVs that were activated")
    expect(not os.listdir(vg.path("")), f"still active: {os.listdir(vg.path(''))}")


def test_served(place):
    """A chain that is served here: its name, and that of what it stands on."""
    vg = FalseVg(place)
    top = vg.add("top", "base")
    vg.add("base")
    place.ctl("up", "vm", top, "--no-ublk", "--nbd", place.path("nbd"))
    result, _ = vg.ask("scan")
    images = chain_of(result, "top")["images"]
    expect_equal([(image["state"], image["device"]) for image in images], [("serving", "vm")] * 2, "served images")
    expect_equal(images[0]["used-by"], f"vm, serving as {place.path('nbd')}", "who uses it")
    place.ctl("down", "vm")
    images = chain_of(vg.ask("scan")[0], "top")["images"]
    expect_equal([image["state"] for image in images], ["active"] * 2, "states after down")


def test_mended(place):
    """What scan says mends it does."""
    vg = FalseVg(place)
    broken = vg.add("broken", "gone")
    vg.add("base")
    expect(chain_of(vg.ask("scan")[0], "broken")["problems"], "no problem is seen")
    place.ctl("rebase", "--unsafe", broken, "--backing", vg.path("base"))
    chain = chain_of(vg.ask("scan")[0], "broken")
    expect_equal((layers(chain), chain["problems"]), (["broken", "base"], []), "the chain afterwards")


if __name__ == "__main__":
    sys.exit(main("scan", sys.modules[__name__]))
