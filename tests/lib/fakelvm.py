#!/usr/bin/python3 -SE
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands in for lvm: LVs of one VG are files in /dev/VG, tags and uuids are in a JSON file.

FAKE_LVM_STATE names that file; it is made by the test (class FakeVg). Each command is one
atomic change of it, as a commit of LVM's metadata is. No device-mapper, no root's LVM.
"""

import json
import os
import random
import re
import sys

EXTENT = 4 << 20


class FakeVg:
    """What a test has: a VG of its own name, gone with close()."""

    def __init__(self, place):
        self.name = f"qctest{os.getpid()}"
        self.dir = f"/dev/{self.name}"
        os.mkdir(self.dir)
        os.mkdir(f"{self.dir}.off")
        self.state = place.path("lvm.json")
        programs = place.path("bin")
        os.mkdir(programs)
        os.symlink(os.path.abspath(__file__), os.path.join(programs, "lvm"))
        place.environment.update(FAKE_LVM_STATE=self.state, PATH=f"{programs}:{os.environ['PATH']}")
        save(self.state, {"vg": self.name, "lvs": []})

    def lvs(self):
        return {lv["name"]: lv for lv in load(self.state)["lvs"]}

    def path(self, name):
        return os.path.join(self.dir, name)

    def clear(self):
        for folder in (self.dir, f"{self.dir}.off"):
            for name in os.listdir(folder):
                os.unlink(os.path.join(folder, name))
        save(self.state, {"vg": self.name, "lvs": []})

    def close(self):
        self.clear()
        os.rmdir(self.dir)
        os.rmdir(f"{self.dir}.off")


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def save(path, state):
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.rename(f"{path}.new", path)


def find(state, text):
    name = text.rsplit("/", 1)[-1]
    for lv in state["lvs"]:
        if lv["name"] == name:
            return lv
    sys.exit(f'  Failed to find logical volume "{text}"')


def path_of(state, lv, hidden=False):
    """An LV that is not active has no device: its file is elsewhere."""
    return f"/dev/{state['vg']}{'.off' if hidden else ''}/{lv['name']}"


def open_files():
    """(device, inode) of what processes have open below /dev/VG."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                link = f"/proc/{pid}/fd/{fd}"
                if os.readlink(link).startswith("/dev/qctest"):
                    there = os.stat(link)
                    found.add((there.st_dev, there.st_ino))
        except OSError:
            continue
    return found


def is_open(path, among=None):
    if not os.path.exists(path):
        return False
    there = os.stat(path)
    return (there.st_dev, there.st_ino) in (open_files() if among is None else among)


def size_of(text):
    return -(-int(text.rstrip("b")) // EXTENT) * EXTENT


def report(state):
    opened = open_files()
    rows = [{"vg_name": state["vg"], "lv_name": lv["name"], "lv_uuid": lv["uuid"], "lv_size": str(lv["size"]),
             "lv_tags": ",".join(lv["tags"]), "lv_active": "active" if lv["active"] else "",
             "lv_device_open": "open" if is_open(path_of(state, lv), opened) else ""} for lv in state["lvs"]]
    print(json.dumps({"report": [{"lv": rows}]}))


def create(state, options, words):
    if words != [state["vg"]] or any(lv["name"] == options["name"] for lv in state["lvs"]):
        sys.exit(f'  Logical Volume "{options["name"]}" already exists in volume group "{state["vg"]}"')
    lv = {"name": options["name"], "size": size_of(options["size"]), "tags": options["addtag"], "active": True,
          "uuid": "-".join("".join(random.choices("abcdefghijkmnpqrstuvwxyz0123456789", k=n)) for n in (6, 4, 4, 6))}
    with open(path_of(state, lv), "xb") as file:
        file.truncate(lv["size"])
    state["lvs"].append(lv)


def rename(state, options, words):
    lv, to = find(state, words[1]), words[2]
    if any(other["name"] == to for other in state["lvs"]):
        sys.exit(f'  Logical Volume "{to}" already exists in volume group "{state["vg"]}"')
    before = path_of(state, lv, not lv["active"])
    lv["name"] = to
    os.rename(before, path_of(state, lv, not lv["active"]))


def change(state, options, words):
    lv = find(state, words[0])
    active = options.get("activate")
    if active and (active != "n") != lv["active"]:
        if active == "n" and is_open(path_of(state, lv)):
            sys.exit(f"  Logical volume {words[0]} in use.")
        os.rename(path_of(state, lv, not lv["active"]), path_of(state, lv, lv["active"]))
        lv["active"] = active != "n"
    lv["tags"] = [tag for tag in lv["tags"] if tag not in options["deltag"]]
    lv["tags"] += [tag for tag in options["addtag"] if tag not in lv["tags"]]


def remove(state, options, words):
    lv = find(state, words[0])
    if is_open(path_of(state, lv)):
        sys.exit(f"  Logical volume {words[0]} contains a filesystem in use.")
    os.unlink(path_of(state, lv, not lv["active"]))
    state["lvs"].remove(lv)


def extend(state, options, words):
    lv = find(state, words[0])
    lv["size"] = size_of(options["size"])
    os.truncate(path_of(state, lv, not lv["active"]), lv["size"])


def parse(words):
    options, rest = {"addtag": [], "deltag": []}, []
    words = iter(words)
    for word in words:
        key = word.removeprefix("--")
        if key == word:
            rest.append(word)
        elif key in ("addtag", "deltag"):
            options[key].append(next(words))
        elif key not in ("yes", "ignoreactivationskip"):
            options[key] = next(words)
    return options, rest


def main():
    command, words = sys.argv[1], sys.argv[2:]
    if command == "lvmconfig":
        return
    path = os.environ["FAKE_LVM_STATE"]
    state = load(path)
    if command == "lvs":
        vgs = [word for word in words if re.fullmatch("[a-z0-9]+", word) and word not in ("json", "b")]
        if vgs and vgs[-1] != state["vg"]:
            sys.exit(f'  Volume group "{vgs[-1]}" not found')
        report(state)
        return
    options, rest = parse(words)
    {"lvcreate": create, "lvrename": rename, "lvchange": change, "lvremove": remove, "lvextend": extend}[command](
        state, options, rest)
    save(path, state)


if __name__ == "__main__":
    main()
