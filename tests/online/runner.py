# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the cases of a kind, one seed after the other, and tells how to repeat what failed."""

import argparse
import os
import shutil
import tempfile
import traceback


class Runner:
    """Seeds one after the other."""

    def __init__(self, args, kind, script):
        self.args = args
        self.kind = kind
        self.script = script
        self.failed = 0

    def run_one(self, seed):
        folder = tempfile.mkdtemp(prefix="qchain-online-", dir="/dev/shm")
        case = self.kind(seed, os.path.abspath(self.args.build), folder, self.args.kill)
        try:
            case.run_case()
            print(f"ok {seed}: {case.told()}, {len(case.layers)} layers, "
                  f"{len(case.model.writes)} writes", flush=True)
        except Exception as error:
            self.failed += 1
            traceback.print_exc()
            again = " --kill" if self.args.kill else ""
            print(f"FAIL {seed}: {error}; again: {self.script} --build {self.args.build} "
                  f"--seed {seed} --count 1{again}", flush=True)
        finally:
            case.end()
            if self.args.keep and self.failed:
                print(f"kept {folder}")
            else:
                shutil.rmtree(folder)


def main(kind, script, text):
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--build", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--keep", action="store_true")
    runner = Runner(parser.parse_args(), kind, script)
    for seed in range(runner.args.seed, runner.args.seed + runner.args.count):
        runner.run_one(seed)
    print(f"{os.path.basename(script)[:-3]}: {runner.args.count - runner.failed} passed, {runner.failed} failed")
    return 1 if runner.failed else 0
