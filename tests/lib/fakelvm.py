#!/usr/bin/python3 -SE
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands in for lvm: LVs of one VG are files in /dev/VG, tags and uuids are in a JSON file.

FAKE_LVM_STATE names that file; it is made by the test (class FakeVg). Each command is one
atomic change of it, as a commit of LVM's metadata is. No device-mapper, no root's LVM.

With `devices` LVs are loop devices, which have an end as LVs do, and are full of old data where
nobody has written; QCHAIN_SYS leads to what the kernel would say of them.
"""

import fcntl
import json
import os
import random
import re
import subprocess
import sys
import time

EXTENT = 4 << 20
OLD_DATA = b"QCHAIN-OLD-DATA " * 65536


class FakeVg:
    """What a test has: a VG of its own name, gone with close()."""

    def __init__(self, place, devices=False, size=1 << 40):
        self.name = f"qctest{os.getpid()}"
        self.dir = f"/dev/{self.name}"
        self.size = size
        self.devices = place.path("devices") if devices else None
        if devices:
            os.mkdir(self.devices)
            place.environment["QCHAIN_SYS"] = self.devices
        os.mkdir(self.dir)
        os.mkdir(f"{self.dir}.off")
        self.state = place.path("lvm.json")
        programs = place.path("bin")
        os.mkdir(programs)
        os.symlink(os.path.abspath(__file__), os.path.join(programs, "lvm"))
        place.environment.update(FAKE_LVM_STATE=self.state, PATH=f"{programs}:{os.environ['PATH']}")
        self.forget()

    def forget(self):
        save(self.state, {"vg": self.name, "devices": self.devices, "size": self.size, "lvs": []})

    def lvs(self):
        return {lv["name"]: lv for lv in load(self.state)["lvs"]}

    def resize(self, size):
        """As if a PV had come, or gone."""
        with locked(self.state):
            save(self.state, load(self.state) | {"size": size})

    def pause_reduce(self, pause):
        """Every lvreduce from now on takes until @pause is False."""
        name = f"{self.state}.pause"
        if pause:
            save(name, None)
        else:
            os.unlink(name)

    def path(self, name):
        return os.path.join(self.dir, name)

    def clear(self):
        for lv in self.lvs().values():
            detach(lv)
        for folder in (self.dir, f"{self.dir}.off"):
            for name in os.listdir(folder):
                os.unlink(os.path.join(folder, name))
        self.forget()

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


def locked(path):
    """A file that is locked as long as it is open; `with` closes it."""
    file = open(f"{path}.lock", "w", encoding="utf-8")  # pylint: disable=consider-using-with
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


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
                if os.readlink(link).startswith(("/dev/qctest", "/dev/loop")):
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


def free_bytes(state):
    return state["size"] - sum(lv["size"] for lv in state["lvs"])


def check_free(state, more):
    if more > free_bytes(state):
        sys.exit(f"  Insufficient free space: {more // EXTENT} extents needed, but only "
                 f"{free_bytes(state) // EXTENT} available")


# ---- loop devices


def fill(path, size):
    """The file gets that long; what is new has been somebody else's."""
    with open(path, "ab") as file:
        while file.tell() < size:
            file.write(OLD_DATA[:size - file.tell()])


def attach(state, lv, path):
    lv["file"] = os.path.join(state["devices"], lv["uuid"])
    fill(lv["file"], lv["size"])
    lv["loop"] = subprocess.run(["losetup", "-f", "--show", lv["file"]], stdout=subprocess.PIPE, text=True,
                                check=True).stdout.strip()
    number = os.stat(lv["loop"]).st_rdev
    lv["sys"] = os.path.join(state["devices"], "dev/block", f"{os.major(number)}:{os.minor(number)}", "dm")
    os.makedirs(lv["sys"], exist_ok=True)
    for key, text in (("uuid", "LVM-" + f"{state['vg']:-<32}{lv['uuid']:-<32}"), ("name", f"{state['vg']}-{lv['name']}")):
        with open(os.path.join(lv["sys"], key), "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
    os.symlink(lv["loop"], path)


def detach(lv):
    if lv.get("loop"):
        subprocess.run(["losetup", "-d", lv["loop"]], check=False)
        for name in ("uuid", "name"):
            os.unlink(os.path.join(lv["sys"], name))
        os.unlink(lv["file"])


# ---- commands


def report(state):
    opened = open_files()
    rows = [{"vg_name": state["vg"], "lv_name": lv["name"], "lv_uuid": lv["uuid"], "lv_size": str(lv["size"]),
             "lv_tags": ",".join(lv["tags"]), "lv_active": "active" if lv["active"] else "",
             "lv_device_open": "open" if is_open(path_of(state, lv), opened) else "", "vg_size": str(state["size"]),
             "vg_free": str(free_bytes(state)), "vg_extent_size": str(EXTENT)} for lv in state["lvs"]]
    print(json.dumps({"report": [{"lv": rows}]}))


def create(state, options, words):
    if words != [state["vg"]] or any(lv["name"] == options["name"] for lv in state["lvs"]):
        sys.exit(f'  Logical Volume "{options["name"]}" already exists in volume group "{state["vg"]}"')
    lv = {"name": options["name"], "size": size_of(options["size"]), "tags": options["addtag"], "active": True,
          "uuid": "-".join("".join(random.choices("abcdefghijkmnpqrstuvwxyz0123456789", k=n)) for n in (6, 4, 4, 6))}
    check_free(state, lv["size"])
    if state["devices"]:
        attach(state, lv, path_of(state, lv))
    else:
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
    detach(lv)
    state["lvs"].remove(lv)


def extend(state, options, words):
    lv, size = find(state, words[0]), size_of(options["size"])
    check_free(state, size - lv["size"])
    lv["size"] = size
    if lv.get("loop"):
        fill(lv["file"], size)
        subprocess.run(["losetup", "-c", lv["loop"]], check=True)
    else:
        os.truncate(path_of(state, lv, not lv["active"]), size)


def reduce(state, options, words):
    """Takes as long as there is a file PAUSE beside the state."""
    while os.path.exists(os.environ["FAKE_LVM_STATE"] + ".pause"):
        time.sleep(0.005)
    lv, size = find(state, words[0]), size_of(options["size"])
    if size >= lv["size"]:
        sys.exit(f"  New size given ({size // EXTENT} extents) not less than existing size")
    path = lv.get("file") or path_of(state, lv, not lv["active"])
    os.truncate(path, size)
    if lv.get("loop"):
        subprocess.run(["losetup", "-c", lv["loop"]], check=True)
    lv["size"] = size


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
    with locked(path):
        run(command, words, path)


def run(command, words, path):
    state = load(path)
    if command == "lvs":
        vgs = [word for word in words if re.fullmatch("[a-z0-9]+", word) and word not in ("json", "b")]
        if vgs and vgs[-1] != state["vg"]:
            sys.exit(f'  Volume group "{vgs[-1]}" not found')
        report(state)
        return
    options, rest = parse(words)
    {"lvcreate": create, "lvrename": rename, "lvchange": change, "lvremove": remove, "lvextend": extend,
     "lvreduce": reduce}[command](state, options, rest)
    save(path, state)


if __name__ == "__main__":
    main()
