#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The unit tests under valgrind's memcheck: no wrong access, nothing undefined, no leak at exit.
#
# usage: O=build [JOBS=N] tests/valgrind/run.sh [TEST]...      TEST: loop-test
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2

build=$(realpath -m "${O:-build}")
logs=$build/valgrind
mkdir -p "$logs"
tests=("$@")
(($#)) || mapfile -t tests < <(cd "$build/tests" && printf '%s\n' *-test)

# one TEST BUILD LOGS: its log, and a line that tells how it ended.
one() {
	local name=$1 build=$2 log=$3/$1.log status
	if [ "$name" = seccomp-test ]; then
		echo "skip    $name: valgrind does not know seccomp()"
		return
	fi
	LD_PRELOAD=$build/valgrind-uring.so timeout -k 10 900 valgrind -q --fair-sched=try \
		--leak-check=full --show-leak-kinds=definite,indirect \
		--errors-for-leak-kinds=definite,indirect --error-exitcode=99 \
		"$build/tests/$name" >"$log" 2>&1
	status=$?
	if [ "$status" = 0 ]; then
		echo "ok      $name"
	else
		echo "FAIL    $name: exit status $status, log $log"
		grep -a '^==' "$log" | head -12
	fi
}
export -f one

printf '%s\n' "${tests[@]}" |
	xargs -P "${JOBS:-$(nproc)}" -I{} bash -c 'one "$@"' - {} "$build" "$logs" | tee "$logs/end"
echo "valgrind: $(grep -c ^ok "$logs/end") passed, $(grep -c ^FAIL "$logs/end") failed," \
	"$(grep -c ^skip "$logs/end") skipped"
[ "$(grep -c '^ok\|^skip' "$logs/end")" = ${#tests[@]} ]
