# SPDX-License-Identifier: GPL-2.0-or-later
"""A VG that lvm reports and that is files: what only looks at LVs is tested without device-mapper."""

import json
import os
import zlib

from harness import expect

# Reads the report, notes each call; an LV is there when it is active.
SCRIPT = """#!/bin/sh
echo "$*" >> "{folder}/calls"
for last; do :; done
case $1 in
lvs) cat "{folder}/report" ;;
lvconfig | lvmconfig) ;;
lvchange)
	case "$*" in
	*"--activate sy"*)
		[ ! -e "{folder}/elsewhere-${{last#*/}}" ] || {{ echo "  LV locked by other host: $last" >&2; exit 5; }}
		mv "{folder}/off/${{last#*/}}" "{folder}/dev/$last" ;;
	*"--activate n"*) mv "{folder}/dev/$last" "{folder}/off/${{last#*/}}" ;;
	*) exit 9 ;;
	esac ;;
*) exit 9 ;;
esac
"""


class FalseVg:
    """VG `vg`: add() LVs, write(), then run qchainctl with `environment`."""

    def __init__(self, place, locked=False):
        self.place = place
        self.folder = place.path("lvm")
        self.rows = []
        self.locked = locked
        for name in ("bin", "dev/vg", "off"):
            os.makedirs(os.path.join(self.folder, name))
        script = os.path.join(self.folder, "bin/lvm")
        with open(script, "w", encoding="utf-8") as out:
            out.write(SCRIPT.format(folder=self.folder))
        os.chmod(script, 0o700)
        place.environment["PATH"] = f"{self.folder}/bin:{os.environ['PATH']}"

    def path(self, name, active=True):
        return os.path.join(self.folder, "dev/vg" if active else "off", name)

    def uuid(self, name):
        return f"uuid-{zlib.crc32(name.encode()):08x}"

    def add(self, name, backing=None, tags="", size="16M", active=True, elsewhere=False, content=True, options=(),
            backing_format="qcow2"):
        """An LV with an image on it; @content False: zeroes, bytes: those."""
        path = self.path(name, active)
        if content is True:
            words = ["qemu-img", "create", "-q", "-f", "qcow2"]
            if backing:
                words += ["-u", "-b", backing, "-F", backing_format]
            self.place.run(*words, *options, path, size)
        else:
            with open(path, "wb") as out:
                out.write(content or bytes(65536))
        with open(path, "r+b") as out:
            out.truncate(max(os.path.getsize(path), 1 << 20))
        if elsewhere:
            with open(os.path.join(self.folder, f"elsewhere-{name}"), "wb"):
                pass
        self.rows.append({"vg_name": "vg", "lv_name": name, "lv_uuid": self.uuid(name),
                          "lv_size": str(os.path.getsize(path)), "lv_tags": tags,
                          "lv_active": "active" if active else "", "lv_device_open": "",
                          "lv_path": self.path(name), "vg_lock_type": "sanlock" if self.locked else "",
                          "vg_size": str(1 << 30), "vg_free": str(1 << 29)})
        return path

    def write(self):
        with open(os.path.join(self.folder, "report"), "w", encoding="utf-8") as out:
            json.dump({"report": [{"lv": self.rows}]}, out)

    def calls(self):
        """What was asked of lvm, but its configuration."""
        try:
            with open(os.path.join(self.folder, "calls"), encoding="utf-8") as calls:
                return [line.strip() for line in calls if not line.startswith("lvmconfig")]
        except FileNotFoundError:
            return []

    def ask(self, verb, *words):
        """One verb's JSON about the VG; there has to be one call of lvs."""
        self.write()
        before = len(self.calls())
        result = self.place.ctl_json(verb, "vg", *words)
        calls = self.calls()[before:]
        expect(sum(call.startswith("lvs ") for call in calls) == 1, f"calls of lvm: {calls}")
        expect(not any("--select" in call or " -S" in call for call in calls), f"a selection: {calls}")
        expect(len(result) == 1 and result[0]["vg"] == "vg", f"VGs: {result}")
        return result[0], calls
