#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Online merges beside random I/O of several clients and snapshots, against a model: snapshots while a
merge runs, and two merges at once; with kill -9 too, also at the crash points of a commit of the active
layer."""

import os
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "control")]

from harness import WAIT_S, Failure, Qmp, expect, wait_until
from runner import main
from snapshots import Case, LAST


# Steps of a commit of the active layer, as ublk-target/target/chain-handover.c and chain-pivot.c name them.
POINTS = ("unwiped", "between", "open", "scan", "choose", "fence", "settle", "copy", "durable", "unmap", "gone",
          "publish", "closed", "pivot")
REPEATED = POINTS[4:12]


class MergeCase(Case):
    """As Case, but what is taken is merged again, while the clients go on."""

    acts = 12

    def __init__(self, *words):
        super().__init__(*words)
        self.jobs = 0
        self.beside = 0  # snapshots and merges while a job ran
        self.possible = []  # chains, while jobs run

    def told(self):
        return f"{self.jobs} merges, {self.beside} things beside one"

    def start_job(self, qmp, command, **arguments):
        self.jobs += 1
        name = f"job{self.jobs}"
        if self.random.random() < 0.5:
            arguments["speed"] = self.random.choice([1, 4, 16]) << 20
        answer = qmp.command(command, **{"job-id": name, "auto-dismiss": False, **arguments})
        died = answer is None and "QCHAIN_CRASH_POINT" in self.environment
        expect(answer == {"return": {}} or died, f"{command} {arguments}: {answer}")
        return name

    def find_job(self, qmp, name):
        rows = [row for row in qmp.command("query-jobs")["return"] if row["id"] == name]
        return rows[0] if rows else None

    def wait_job(self, qmp, name):
        """To its end, perhaps disturbed; True: it has done its work."""
        cancelled = False
        fate = self.random.random()
        if fate < 0.2:
            qmp.command("job-pause", id=name)
            qmp.command("block-job-set-speed", device=name, speed=0)
            qmp.command("job-resume", id=name)
        elif fate < 0.35:
            self.stopped.wait(self.random.random() * 0.1)
            cancelled = "return" in qmp.command("job-cancel", id=name)
        wait_until(lambda: self.find_job(qmp, name)["status"] == "concluded", f"{name} has ended")
        row = self.find_job(qmp, name)
        expect("error" not in row or cancelled, f"{name}: {row}")
        expect(qmp.command("job-dismiss", id=name) == {"return": {}}, "dismiss")
        return "error" not in row

    # ---- beside a job ------------------------------------------------------------

    def take_snapshot(self, qmp):
        name = f"l{self.made + 1}.qcow2"
        self.possible += [chain + [name] for chain in self.possible]
        super().take_snapshot(qmp)

    def snapshots_beside(self, qmp, gone=()):
        """None, or some, while a job runs; True: some. Then the job makes layers of @gone go that were active."""
        many = self.random.choice((0, 0, 0, 1, 2))
        if many:
            self.possible += [[layer for layer in chain if layer not in gone] for chain in self.possible]
        for _ in range(many):
            self.stopped.wait(self.random.random() * 0.03)
            self.take_snapshot(qmp)
        self.beside += many
        return many > 0

    def drop(self, layers):
        """These are merged, says a job that has ended well."""
        self.layers = [layer for layer in self.layers if layer not in layers]

    def lose(self, layers):
        """What these held, and what stood on them, is gone at once."""
        self.snapshots = [snapshot for snapshot in self.snapshots
                          if snapshot[0] in self.layers and snapshot[0] not in layers]

    def move_snapshots(self, top, base):
        self.snapshots += [(base, *ticks) for layer, *ticks in self.snapshots if layer == top]

    def end_jobs(self, qmp):
        self.possible = []
        self.check_tree(qmp)

    # ---- one job -------------------------------------------------------------------

    def start_stream(self, qmp, into, keep):
        """(job, layers that go); @keep: layers that stay below."""
        words = {"base-node": self.layers[keep - 1]} if keep else {}
        gone = self.layers[keep:into]
        return self.start_job(qmp, "block-stream", device=self.layers[into], **words), gone

    def stream(self, qmp):
        """Into the active layer, or one below it; all images stay what they were."""
        into = len(self.layers) - 1
        if self.random.random() < 0.5:
            self.wait_sealed(qmp)
            into = self.random.randrange(1, into + 1)
        keep = self.random.randrange(0, into + 1)
        self.possible = [list(self.layers), self.layers[:keep] + self.layers[into:]]
        name, gone = self.start_stream(qmp, into, keep)
        self.snapshots_beside(qmp)
        if self.kill and self.random.random() < 0.3:
            return LAST
        if self.wait_job(qmp, name):
            self.drop(gone)
        self.end_jobs(qmp)
        return None

    def commit(self, qmp):
        """Layers below the active one."""
        self.wait_sealed(qmp)
        top = self.random.randrange(1, len(self.layers) - 1)
        base = self.random.randrange(0, top)
        self.possible = [list(self.layers), self.layers[:base + 1] + self.layers[top + 1:]]
        self.lose(self.layers[base:top])
        gone = self.layers[base + 1:top + 1]
        top, base = self.layers[top], self.layers[base]
        name = self.start_job(qmp, "block-commit", device=self.layers[-1],
                              **{"top-node": top, "base-node": base})
        self.snapshots_beside(qmp)
        if self.kill and self.random.random() < 0.3:
            return LAST
        if self.wait_job(qmp, name):
            self.drop(gone)
            self.move_snapshots(top, base)
        self.end_jobs(qmp)
        return None

    # ---- two at once -----------------------------------------------------------------

    def two_merges(self, qmp):
        """A commit of the lower layers, and a merge above that has no layer of it."""
        self.wait_sealed(qmp)
        top = self.random.randrange(1, len(self.layers) - 3)
        base = self.random.randrange(0, top)
        above = self.layers[top + 1]
        lower = self.layers[base + 1:top + 1]
        upper = self.layers[top + 2:-1]  # all but the last can go up, or down into the first
        up = len(upper) < 2 or self.random.random() < 0.5
        upper = upper if up else upper[1:]
        self.possible = [[layer for layer in self.layers if layer not in gone]
                         for gone in ([], lower, upper, lower + upper)]
        top, base = self.layers[top], self.layers[base]
        self.lose(self.layers[self.layers.index(base):self.layers.index(top)])
        first = self.start_job(qmp, "block-commit", device=self.layers[-1],
                               **{"top-node": top, "base-node": base})
        second = self.start_upper(qmp, above, upper, up)
        self.check_conflict(qmp, top)
        self.snapshots_beside(qmp)
        self.beside += 1
        if self.kill and self.random.random() < 0.5:
            return LAST
        done = [self.wait_job(qmp, name) for name in (first, second)]
        if done[0]:
            self.drop(lower)
            self.move_snapshots(top, base)
        if done[1]:
            self.drop(upper)
        if done[1] and not up:
            self.move_snapshots(upper[-1], self.upper_base)
        self.end_jobs(qmp)
        return None

    def start_upper(self, qmp, above, upper, up):
        if up:
            at = self.layers.index(upper[-1]) if upper else self.layers.index(above)
            return self.start_job(qmp, "block-stream", device=self.layers[at + 1],
                                  **{"base-node": above})
        self.upper_base = self.layers[self.layers.index(upper[0]) - 1]
        self.lose([self.upper_base] + upper[:-1])
        return self.start_job(qmp, "block-commit", device=self.layers[-1],
                              **{"top-node": upper[-1], "base-node": self.upper_base})

    def check_conflict(self, qmp, layer):
        """A merge of a layer that another one has is refused with the name of that."""
        answer = qmp.command("block-stream", **{"job-id": "third", "device": layer})
        expect("error" in answer and ("must share no layer" in answer["error"]["desc"] or
                                      "Cannot find" in answer["error"]["desc"]), f"a third merge: {answer}")

    # ---- the active layer ----------------------------------------------------------------

    def forget_layers(self):
        """Nothing may stand on the new top, not even what is in no chain any more."""
        for name in os.listdir(self.folder):
            if name.startswith("l") and name not in self.layers:
                os.unlink(self.path(name))

    def is_as_long(self, name):
        """As the device: it may become the active layer (rule D4)."""
        return True

    def ready(self, qmp, name):
        return self.find_job(qmp, name)["status"] in ("ready", "concluded")

    def leave_ready(self, qmp, name, layers):
        """Disturbed or completed; True: the base is the active layer."""
        fate = self.random.random()
        if fate < 0.2:
            self.stopped.wait(self.random.random() * 0.1)
            qmp.command("job-cancel", id=name)
        wait_until(lambda: self.ready(qmp, name), f"{name} is ready")
        if fate < 0.4:
            self.stopped.wait(self.random.random() * 0.05)
        if 0.2 < fate < 0.3:
            qmp.command("block-job-cancel", device=name, force=self.random.random() < 0.5)
        elif fate >= 0.2:
            expect(qmp.command("job-complete", id=name) == {"return": {}}, "job-complete")
        wait_until(lambda: self.find_job(qmp, name)["status"] == "concluded", f"{name} has ended")
        row = self.find_job(qmp, name)
        expect("error" not in row or fate < 0.3, f"{name}: {row}")
        expect(qmp.command("job-dismiss", id=name) == {"return": {}}, "dismiss")
        return len(self.shown_layers(qmp)) == layers

    def shown_layers(self, qmp):
        nodes = qmp.command("query-named-block-nodes")["return"]
        return [os.path.basename(node["file"]) for node in nodes][::-1]

    def until_dead(self, qmp, name):
        """A crash point ends the daemon; where it does not come to that, the test does."""
        try:
            wait_until(lambda: self.ready(qmp, name), f"{name} is ready")
            qmp.command("job-complete", id=name)
            wait_until(lambda: self.find_job(qmp, name)["status"] == "concluded", f"{name} has ended")
        except (TypeError, OSError):
            pass  # no answer any more

    def commit_active(self, qmp):
        """Into any layer below. What reads the same all the time is checked by clients, and in the end."""
        self.wait_sealed(qmp)
        base = self.random.randrange(0, len(self.layers) - 1)
        if not self.is_as_long(self.layers[base]):
            return self.commit(qmp) if len(self.layers) > 2 else None
        kept, old = self.layers[:base + 1], self.layers[-1]
        self.lose(self.layers[base:])
        self.possible = [list(self.layers), kept + [old]]
        name = self.start_job(qmp, "block-commit", device=old, **{"base-node": kept[-1]})
        if self.random.random() < 0.3 and self.random.random() < 0.5:
            wait_until(lambda: self.ready(qmp, name), f"{name} is ready")
        gone = self.layers[len(kept):]
        if self.snapshots_beside(qmp, gone):
            return self.commit_below(qmp, name, gone, kept[-1])
        if self.kill and "QCHAIN_CRASH_POINT" in self.environment:
            self.until_dead(qmp, name)
            return LAST
        if self.kill and self.random.random() < 0.3:
            return LAST
        if self.leave_ready(qmp, name, len(kept)):
            self.layers = kept
            self.possible = []
            self.forget_layers()
            if self.kill:
                return LAST  # the intent log has entries of both, until now
        else:
            self.see_layers(qmp)
        self.wait_sealed(qmp)
        self.end_jobs(qmp)
        return None

    def see_layers(self, qmp):
        """Layers between may have gone."""
        self.layers = self.shown_layers(qmp)
        expect(self.layers in self.possible, f"the chain is {self.layers}")

    def commit_below(self, qmp, name, gone, base):
        """A snapshot came: what is left is a commit of a layer below the active one."""
        if self.kill and self.random.random() < 0.5:
            return LAST
        if self.wait_job(qmp, name):
            self.drop(gone)
            self.move_snapshots(gone[-1], base)
        else:
            self.see_layers(qmp)
        self.end_jobs(qmp)
        return None

    async def session(self, count):
        if self.kill and self.random.random() < 0.7:
            point = self.random.choice(POINTS)
            number = f":{self.random.randint(1, 4)}" if point in REPEATED else ""
            self.environment["QCHAIN_CRASH_POINT"] = f"commit.{point}{number}"
        try:
            await super().session(count)
        finally:
            self.environment.pop("QCHAIN_CRASH_POINT", None)

    def may_die(self):
        return "QCHAIN_CRASH_POINT" in self.environment

    def has_died(self):
        """At a crash point, in whatever came there."""
        if not self.kill or not self.may_die():
            return False
        try:
            return self.child.wait(WAIT_S) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def act(self, qmp):
        try:
            return self.merge_or_snapshot(qmp)
        except (OSError, TypeError, Failure):
            if not self.has_died():
                raise
            return LAST

    def merge_or_snapshot(self, qmp):
        fate = self.random.random()
        if len(self.layers) > 4 and self.random.random() < 0.5:
            return self.two_merges(qmp)
        if len(self.layers) > 1 and fate < 0.2:
            return self.commit_active(qmp)
        if len(self.layers) > 2 and fate < 0.6:
            return self.commit(qmp)
        if len(self.layers) > 1 and fate > 0.7:
            return self.stream(qmp)
        return super().act(qmp)

    def settle_layers(self):
        """After a kill: the headers say which chain it is; an overlay that nobody has heard of goes."""
        unused = f"l{self.made}.qcow2"
        if unused not in self.layers and os.path.exists(self.path(unused)):
            os.unlink(self.path(unused))
        if not self.possible:
            return
        seen = self.seen_layers()
        expect(seen in self.possible, f"the chain is {seen}, must be one of {self.possible}")
        self.layers = seen
        self.possible = []


if __name__ == "__main__":
    sys.exit(main(MergeCase, "tests/online/merges.py", __doc__))
