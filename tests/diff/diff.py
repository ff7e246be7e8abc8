#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Differential tester: random chains and random I/O, with QEMU's tools as the oracle.

Each case builds a chain of 1 to 12 images with qemu-img and qemu-io, serves it
with the server under test, does random NBD requests against a model, stops
the server, and asks qemu-img whether images and content are right. A case is
determined by its seed: case N of a run has the base seed plus N.

Exit status: 0 all passed, 1 a case failed, 2 wrong usage, 77 nothing could be tested.
"""

import argparse
import collections
import concurrent.futures
import os
import shlex
import shutil
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))

import chainspec  # noqa: E402  (needs the path above)
from diffcase import Settings, run_case  # noqa: E402

EXIT_USAGE = 2
EXIT_SKIP = 77
COUNT_DEFAULT = 200
OPS_DEFAULT = 250
TIMEOUT_DEFAULT_S = 120
QCHAIND_PLACES = ("qchaind", "ublk-target/qchaind", "build/qchaind", "build/ublk-target/qchaind")
NEEDED_TOOLS = ("qemu-img", "qemu-io")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--count", type=int, default=COUNT_DEFAULT, help="number of cases (default %(default)s)")
    add("--seed", type=int, help="base seed (default: from the git commit)")
    add("--jobs", type=int, default=os.cpu_count(), help="cases at once (default: CPUs)")
    add("--server", choices=("qchaind", "qemu-nbd"), default="qchaind",
        help="kind of server (default %(default)s)")
    add("--qchaind", metavar="PATH", help="the qchaind to test (default: $QCHAIND, then the build)")
    add("--kill", action="store_true", help="kill the server in the middle, start it again")
    add("--ops", type=int, default=OPS_DEFAULT, help="requests per case (default %(default)s)")
    add("--timeout", type=float, default=TIMEOUT_DEFAULT_S, metavar="SECONDS",
        help="limit of a case (default %(default)s)")
    add("--deep", type=int, default=0, metavar="LAYERS",
        help="chains of that many layers, most of them made without QEMU")
    add("--without", default="", metavar="FEATURES",
        help="leave these out of the chains, by comma: " + ", ".join(chainspec.FEATURES))
    add("--extra-args", default="", metavar="ARGS",
        help="more arguments for the server, one string")
    add("--keep", action="store_true", help="keep the folder of every case")
    return parser.parse_args()


def default_seed():
    """A number from the commit that is checked out, so that every commit tests other chains."""
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--verify", "-q", "HEAD"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int(done.stdout[:8], 16) if done.returncode == 0 else 1


def find_program(arguments):
    """Path of the server, or None."""
    if arguments.server == "qemu-nbd":
        return shutil.which("qemu-nbd")
    wanted = arguments.qchaind or os.environ.get("QCHAIND")
    places = [wanted] if wanted else [os.path.join(ROOT, place) for place in QCHAIND_PLACES]
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return os.path.abspath(place)
    return None


def temporary_folder():
    wanted = os.environ.get("TMPDIR")
    if wanted:
        return wanted
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"


def make_settings(arguments, program):
    without = tuple(name for name in arguments.without.split(",") if name)
    unknown = set(without) - set(chainspec.FEATURES)
    if unknown:
        print(f"diff: --without: {', '.join(sorted(unknown))} not known, expected some of "
              f"{', '.join(chainspec.FEATURES)}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    if arguments.server == "qemu-nbd" and arguments.kill:
        # A killed QEMU leaves wrong refcounts in such images, by design.
        without += ("lazy",)
    return Settings(server=arguments.server, program=program,
                    extra_args=shlex.split(arguments.extra_args), ops=arguments.ops,
                    kill=arguments.kill, keep=arguments.keep, timeout_s=arguments.timeout, deep=arguments.deep,
                    without=without, folder=temporary_folder())


def repeat_command(arguments, seed):
    """The command that runs exactly this case again."""
    words = [os.path.relpath(os.path.join(HERE, "diff.py")), "--seed", str(seed), "--count", "1",
             "--server", arguments.server, "--ops", str(arguments.ops)]
    if arguments.qchaind:
        words += ["--qchaind", arguments.qchaind]
    if arguments.kill:
        words.append("--kill")
    if arguments.timeout != TIMEOUT_DEFAULT_S:
        words += ["--timeout", str(arguments.timeout)]
    if arguments.deep:
        words += ["--deep", str(arguments.deep)]
    if arguments.without:
        words += ["--without", arguments.without]
    if arguments.extra_args:
        words.append(f"--extra-args={arguments.extra_args}")
    return shlex.join(words)


def report(result, arguments):
    """One line for a case that did not pass."""
    if result.status == "failed":
        print(f"FAIL seed {result.seed}: {result.reason} | kept: {result.kept} | "
              f"repeat: {repeat_command(arguments, result.seed)}", flush=True)
    elif result.status == "skipped":
        print(f"SKIP seed {result.seed}: {result.reason}", flush=True)


def run_all(arguments, settings, base_seed):
    """Run the cases in parallel; returns how many ended in which way."""
    totals = collections.Counter()
    notes = collections.Counter()
    with concurrent.futures.ProcessPoolExecutor(max_workers=max(1, arguments.jobs)) as pool:
        cases = [pool.submit(run_case, base_seed + index, settings)
                 for index in range(arguments.count)]
        try:
            for case in concurrent.futures.as_completed(cases):
                result = case.result()
                totals[result.status] += 1
                notes.update(result.notes)
                report(result, arguments)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for note, count in sorted(notes.items()):
        print(f"diff: note: {note} (in {count} cases)")
    return totals


def main():
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("diff: ended by SIGTERM"))
    missing = [tool for tool in NEEDED_TOOLS if not shutil.which(tool)]
    program = find_program(arguments)
    if missing or program is None:
        absent = ", ".join(missing) or arguments.qchaind or arguments.server
        print(f"diff: skipped: {absent} not found")
        return EXIT_SKIP
    settings = make_settings(arguments, program)
    base_seed = default_seed() if arguments.seed is None else arguments.seed
    print(f"diff: base seed {base_seed}, {arguments.count} cases, {program}", flush=True)
    totals = run_all(arguments, settings, base_seed)
    print(f"diff: {totals['passed']} passed, {totals['failed']} failed, "
          f"{totals['skipped']} skipped")
    if totals["failed"]:
        return 1
    return 0 if totals["passed"] else EXIT_SKIP


if __name__ == "__main__":
    sys.exit(main())
