#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Backups of a chain that several clients write, beside snapshots and merges, against a model: each target
shows what the device showed at the instant of the start. With kill -9, too: it is that, or is marked."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "control")]

from harness import expect, wait_until
from merges import MergeCase
from runner import main
from snapshots import LAST

POINTS = ("settled", "flushed")


class BackupCase(MergeCase):
    """As MergeCase; between, or beside, what that does, backups."""

    acts = 8

    def __init__(self, *words):
        super().__init__(*words)
        self.backups = []  # (file, tick before, tick after, must be complete)
        self.after_kill = 0  # backups whose histories are cut

    def told(self):
        return f"{len(self.backups) + self.after_kill} backups, {super().told()}"

    def start_backup(self, qmp):
        """(job, file, tick before, tick after)"""
        number = len(self.backups) + self.after_kill + self.jobs
        name = f"b{number}.raw" if self.random.random() < 0.2 else f"b{number}.qcow2"
        driver = name.rpartition(".")[2]
        if driver == "raw":
            with open(self.path(name), "wb") as raw:
                raw.truncate(self.size)
        else:
            self.create(name, None)
        added = qmp.command("blockdev-add", **{"driver": driver, "node-name": name,
                                               "file": {"driver": "file", "filename": self.path(name)}})
        expect(added == {"return": {}}, f"blockdev-add: {added}")
        before = self.model.tick
        job = self.start_job(qmp, "blockdev-backup", device=self.layers[-1], target=name, sync="full")
        return job, name, before, self.model.tick

    def end_backup(self, qmp, job, name, before, after):
        done = self.wait_job(qmp, job)
        expect(qmp.command("blockdev-del", **{"node-name": name}) == {"return": {}}, f"blockdev-del of {name}")
        if done or name.endswith(".qcow2"):
            self.backups.append((name, before, after, done))

    def until_backup_is_dead(self, qmp, job):
        try:
            wait_until(lambda: self.find_job(qmp, job)["status"] == "concluded", f"{job} has ended")
        except (TypeError, OSError):
            pass

    def backup(self, qmp):
        one = self.start_backup(qmp)
        beside = self.random.random()
        if self.kill and (self.may_die() or self.random.random() < 0.4):
            self.stopped.wait(self.random.random() * 0.03)
            if self.may_die():
                self.until_backup_is_dead(qmp, one[0])
            self.backups.append((*one[1:], False))
            return LAST
        if beside < 0.5 and not self.may_die():
            self.merge_or_snapshot(qmp)
        self.end_backup(qmp, *one)
        return None

    def merge_or_snapshot(self, qmp):
        """Merges of this runner are not those that are killed."""
        kill, self.kill = self.kill, False
        try:
            return super().merge_or_snapshot(qmp)
        finally:
            self.kill = kill

    def act(self, qmp):
        return self.backup(qmp) if self.random.random() < 0.5 else self.merge_or_snapshot(qmp)

    async def session(self, count):
        if self.kill and self.random.random() < 0.4:
            self.environment["QCHAIN_CRASH_POINT"] = f"backup.{self.random.choice(POINTS)}"
        try:
            await super(MergeCase, self).session(count)
        finally:
            self.environment.pop("QCHAIN_CRASH_POINT", None)

    def is_marked(self, name):
        info = subprocess.run(["qemu-img", "info", self.path(name)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, check=False)
        return "nsupported" in info.stderr

    def check_backups(self):
        for name, before, after, done in self.backups:
            if not done and (name.endswith(".raw") or self.is_marked(name)):
                continue
            expect(not name.endswith(".qcow2") or not self.is_marked(name), f"{name}: is marked as unfinished")
            self.model.check_snapshot(self.content(name), before, after, name)
            if name.endswith(".qcow2"):
                check = subprocess.run(["qemu-img", "check", "-f", "qcow2", self.path(name)], check=False,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                expect(check.returncode == 0, f"{name}: qemu-img check: {check.stdout.strip()}")
        if self.kill:
            self.after_kill += len(self.backups)
            self.backups.clear()

    def check_all(self):
        super().check_all()
        self.check_backups()


if __name__ == "__main__":
    sys.exit(main(BackupCase, "tests/online/backups.py", __doc__))
