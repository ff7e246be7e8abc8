#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# make bench: measures ours and the peers, writes report and charts; see docs/benchmarks.md.
#
# usage: O=build tests/bench/bench.sh [ARGUMENT OF bench.py]...
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/deps.sh gnuplot-nox qemu-system-common
build=$(realpath -m "${O:-build}")
# shellcheck disable=SC2086
exec python3 tests/bench/bench.py --build "$build" ${ROUNDS:+--rounds "$ROUNDS"} "$@" ${BENCH:-}
