#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs the tests by tier, keeps a log of each runner, sums their closing lines.
#
# usage: O=build tests/check.sh check|check-fast|check-full
set -uo pipefail
cd "$(dirname "$0")/.."

mode=${1:-check}
O=${O:-build}
build=$(realpath -m "$O")
logs=$build/check
passed=0 failed=0 skipped=0
summary=()
# One seed for the whole run: the commit, so that a run can be repeated.
seed=$((16#$(git rev-parse --short=7 HEAD 2>/dev/null || echo 1)))
jobs=$(nproc)
mkdir -p "$logs"

case $mode in
check-fast) diff_count=30 kill_count=8 san_count=0 sim_count=0 fuzz_seconds=0 vm=no ;;
check) diff_count=200 kill_count=40 san_count=30 sim_count=20 fuzz_seconds=10 vm=yes ;;
check-full) diff_count=1000 kill_count=300 san_count=300 sim_count=1000 fuzz_seconds=600 vm=yes ;;
*) echo "check.sh: mode $mode, expected check, check-fast or check-full" >&2; exit 2 ;;
esac

# The last "N passed, N failed[, N skipped]" of a log, as three numbers.
closing_line() {
	grep -E '[0-9]+ passed, [0-9]+ failed' "$1" | tail -1
}

# add NAME LOG STATUS: count a runner; one that says nothing counts as one test.
add() {
	local name=$1 log=$2 status=$3 line p f s
	line=$(closing_line "$log")
	p=$(sed -n 's/.*[^0-9]\([0-9]\+\) passed.*/\1/p' <<<" $line")
	f=$(sed -n 's/.* \([0-9]\+\) failed.*/\1/p' <<<"$line")
	s=$(sed -n 's/.* \([0-9]\+\) skipped.*/\1/p' <<<"$line")
	if [ -z "$line" ]; then
		if [ "$status" = 0 ]; then p=1 f=0; else p=0 f=1; fi
		line="$name: $p passed, $f failed"
	elif [ "$status" != 0 ] && [ "${f:-0}" = 0 ]; then
		f=1
		line="$line (and exit status $status)"
	fi
	passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0})) skipped=$((skipped + ${s:-0}))
	summary+=("$line")
}

# run NAME COMMAND...: one runner, its output to a log, its end to the terminal.
run() {
	local name=$1 log=$logs/$1.log start=$SECONDS status
	shift
	"$@" >"$log" 2>&1 </dev/null
	status=$?
	add "$name" "$log" "$status"
	printf '  %-24s %4d s  %s\n' "$name" $((SECONDS - start)) "${summary[-1]}"
	if [ "$status" != 0 ] && [ "$status" != 77 ]; then
		grep -E -i 'fail|error|not ok|expected' "$log" | tail -15 | sed 's/^/    /'
		echo "    whole log: $log"
	fi
}

tier() {
	tier_start=$SECONDS
	tier_name=$1
	echo "== $1"
}

tier_end() {
	printf '== %s: %d.%d minutes\n' "$tier_name" $(((SECONDS - tier_start) / 60)) \
		$(((SECONDS - tier_start) % 60 / 6))
}

run_units() {
	local dir=$1 prefix=$2 t
	for t in "$dir"/tests/*-test; do
		run "$prefix$(basename "$t")" timeout 300 "$t"
	done
}

native() {
	tier "native"
	run style .ci/check-style.sh
	run_units "$build" unit-
	run tools tests/images/tools.py --qchainctl "$build/qchainctl"
	run broken tests/images/broken.py --qchaind "$build/qchaind"
	run nbd tests/nbd/protocol.py --qchaind "$build/qchaind"
	run door tests/door/door.py --qchaind "$build/qchaind"
	run qmp tests/control/qmp.py --build "$build"
	run lifecycle tests/control/lifecycle.py --build "$build"
	run diff tests/diff/diff.py --count $diff_count --seed $seed --jobs "$jobs" \
		--qchaind "$build/qchaind"
	run diff-kill tests/diff/diff.py --kill --count $kill_count --seed $((seed + 100000)) \
		--jobs "$jobs" --qchaind "$build/qchaind"
	run diff-small-cache tests/diff/diff.py --count $((kill_count / 2)) \
		--seed $((seed + 200000)) --jobs "$jobs" --qchaind "$build/qchaind" \
		--extra-args='--cache-size 4K'
	[ "$mode" = check-fast ] || run diff-selftest tests/diff/selftest.py
	tier_end
}

sanitizers() {
	tier "sanitizers"
	run build-asan make -j"$jobs" O="$build/asan" CC=clang SAN=address,undefined all units
	run_units "$build/asan" asan-
	run asan-broken tests/images/broken.py --qchaind "$build/asan/qchaind"
	run asan-nbd tests/nbd/protocol.py --qchaind "$build/asan/qchaind"
	run asan-diff tests/diff/diff.py --count $san_count --seed $((seed + 300000)) \
		--jobs "$jobs" --qchaind "$build/asan/qchaind"
	run build-tsan make -j"$jobs" O="$build/tsan" CC=clang SAN=thread all units
	for t in loop grace map; do
		run "tsan-$t" timeout 300 "$build/tsan/tests/$t-test"
	done
	run tsan-diff tests/diff/diff.py --count $((san_count / 3)) --seed $((seed + 400000)) \
		--jobs "$jobs" --qchaind "$build/tsan/qchaind"
	tier_end
}

simulation() {
	tier "simulation"
	run sim timeout 600 "$build/chain-sim" $((seed % 1000000)) $sim_count
	tier_end
}

fuzzing() {
	tier "fuzzing"
	run build-fuzz make -j"$jobs" O="$build/fuzz" CC=clang \
		SAN=address,undefined,fuzzer-no-link fuzzers
	run fuzz env O="$build/fuzz" tests/fuzz/run.sh "$fuzz_seconds"
	tier_end
}

system() {
	tier "system (VM, two kernels)"
	run vm-6.12 env QCHAIN_BUILD="$build" tests/vm/check.sh 6.12
	run vm-7 env QCHAIN_BUILD="$build" tests/vm/check.sh 7
	tier_end
}

echo "check: seed $seed, logs in $logs"
native
[ "$san_count" = 0 ] || sanitizers
[ "$mode" = check-fast ] || simulation
[ "$mode" = check-fast ] || fuzzing
[ "$vm" = no ] || system

echo
printf '%s\n' "${summary[@]}"
printf 'total: %d minutes\n' $((SECONDS / 60))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
