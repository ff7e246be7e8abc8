#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds, runs the tests by tier, keeps a log of each runner, sums their closing lines.
# What failed, and why, is said again at the very end.
#
# usage: O=build [SEED=N] tests/check.sh check|check-fast|check-full [TIER...]
# tiers: native sanitizers simulation fuzzing system
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

mode=${1:-check}
shift
O=${O:-build}
build=$(realpath -m "$O")
logs=$build/check
passed=0 failed=0 skipped=0
summary=() tiers=() failures=()
# One seed for the whole run: the commit, so that a run can be repeated.
seed=${SEED:-$((16#$(git rev-parse --short=7 HEAD 2>/dev/null || echo 1)))}
jobs=$(nproc)
# A runner's limit is for a hang, not for a slow machine.
slack=1
mkdir -p "$logs"
# The jobs of a make above are not ours to use.
unset MAKEFLAGS MFLAGS MAKELEVEL

case $mode in
check-fast) diff_count=30 kill_count=8 san_count=0 sim_count=0 fuzz_seconds=0 all=(native) ;;
check) diff_count=200 kill_count=40 san_count=30 deep_count=1 sim_count=20 fuzz_seconds=10
	all=(native sanitizers simulation fuzzing system) ;;
check-full) diff_count=1000 kill_count=300 san_count=300 deep_count=4 sim_count=1000 fuzz_seconds=600 slack=10
	all=(native sanitizers simulation fuzzing system) ;;
*) echo "check.sh: mode $mode, expected check, check-fast or check-full" >&2; exit 2 ;;
esac
(($#)) && all=("$@")

# The last "N passed, N failed[, N skipped]" of a log, as three numbers.
closing_line() {
	grep -aE '[0-9]+ passed, [0-9]+ failed' "$1" | tail -1
}

# causes LOG: the lines that say what went wrong, the first few of them; else the last ones.
causes() {
	local found
	found=$(grep -aE '(^|[^a-z])(FAIL|FAILED|not ok)\b|Sanitizer:|runtime error:|: error:|FAILED|^style: .*:|[Aa]ssert|Traceback|^[A-Za-z.]*Error: ' "$1" |
		grep -avE '[0-9]+ passed, [0-9]+ failed' | head -12)
	[ -n "$found" ] || found=$(tail -5 "$1")
	printf '%s\n' "${found:-(it says nothing)}" | cut -c1-600
}

# add NAME LOG STATUS LIMIT: count a runner; one that says nothing counts as one test.
add() {
	local name=$1 log=$2 status=$3 line p f s
	line=$(closing_line "$log")
	p=$(sed -n 's/.*[^0-9]\([0-9]\+\) passed.*/\1/p' <<<" $line")
	f=$(sed -n 's/.* \([0-9]\+\) failed.*/\1/p' <<<"$line")
	s=$(sed -n 's/.* \([0-9]\+\) skipped.*/\1/p' <<<"$line")
	if [ -z "$line" ]; then
		p=0 f=0 s=0
		case $status in 0) p=1 ;; 77) s=1 ;; *) f=1 ;; esac
		line="$name: $p passed, $f failed, $s skipped"
	elif [ "$status" != 0 ] && [ "$status" != 77 ] && [ "${f:-0}" = 0 ]; then
		f=1
	fi
	case $status in
	0 | 1 | 77) ;;
	124 | 137) line="$line (ended: no end within $4 s)" ;;
	*) line="$line (exit status $status)" ;;
	esac
	passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0})) skipped=$((skipped + ${s:-0}))
	summary+=("$line")
	[ "${f:-0}" = 0 ] || failures+=("$name: $line"$'\n'"$(causes "$log" | sed 's/^/    /')")
}

# run NAME LIMIT COMMAND...: one runner with its limit in seconds, its output to a log, its end
# to the terminal.
run() {
	local name=$1 limit=$(($2 * slack)) log=$logs/$1.log start=$SECONDS status count=${#failures[@]}
	shift 2
	timeout -k 20 "$limit" "$@" >"$log" 2>&1 </dev/null
	status=$?
	add "$name" "$log" "$status" "$limit"
	printf '  %-24s %4d s  %s\n' "$name" $((SECONDS - start)) "${summary[-1]}"
	if ((${#failures[@]} > count)); then
		causes "$log" | sed 's/^/    /'
		echo "    whole log: $log"
		return 1
	fi
}

tier() {
	tier_start=$SECONDS
	tier_name=$1
	echo "== $1"
}

tier_end() {
	local line
	line=$(printf '%s: %d.%d minutes' "$tier_name" $(((SECONDS - tier_start) / 60)) \
		$(((SECONDS - tier_start) % 60 / 6)))
	tiers+=("$line")
	echo "== $line"
}

run_units() {
	local dir=$1 prefix=$2 t
	for t in "$dir"/tests/*-test; do
		run "$prefix$(basename "$t")" 180 "$t"
	done
}

native() {
	tier "native"
	run style 120 .ci/check-style.sh
	run_units "$build" unit-
	run tools 400 tests/images/tools.py --qchainctl "$build/qchainctl"
	run broken 300 tests/images/broken.py --qchaind "$build/qchaind"
	run nbd 300 tests/nbd/protocol.py --qchaind "$build/qchaind"
	run door 200 tests/door/door.py --qchaind "$build/qchaind"
	run qmp 120 tests/control/qmp.py --build "$build"
	run full 120 tests/control/full.py --build "$build"
	run options 120 tests/control/options.py --build "$build"
	run lifecycle 200 tests/control/lifecycle.py --build "$build"
	run records 120 tests/control/records.py --build "$build"
	run diff 900 tests/diff/diff.py --count $diff_count --seed $seed --jobs "$jobs" \
		--qchaind "$build/qchaind"
	run diff-kill 400 tests/diff/diff.py --kill --count $kill_count --seed $((seed + 100000)) \
		--jobs "$jobs" --qchaind "$build/qchaind"
	run diff-small-cache 300 tests/diff/diff.py --count $((kill_count / 2)) \
		--seed $((seed + 200000)) --jobs "$jobs" --qchaind "$build/qchaind" \
		--extra-args='--cache-size 4K'
	run offline 900 tests/diff/offline.py --count $((diff_count / 2)) \
		--seed $((seed + 500000)) --jobs "$jobs" --qchainctl "$build/qchainctl"
	run offline-kill 400 tests/diff/offline.py --kill --count $kill_count \
		--seed $((seed + 600000)) --jobs "$jobs" --qchainctl "$build/qchainctl"
	run online 400 tests/online/snapshots.py --count $((kill_count / 2)) --seed $seed \
		--build "$build"
	run online-kill 400 tests/online/snapshots.py --kill --count $((kill_count / 2)) \
		--seed $((seed + 100000)) --build "$build"
	[ "$mode" = check-fast ] || native_long
	tier_end
}

native_long() {
	run diff-selftest 400 tests/diff/selftest.py
	for cache in 48M 4K; do
		run diff-1000-layers-$cache 400 tests/diff/diff.py --deep 1000 --count "$deep_count" \
			--seed $((seed + 700000)) --jobs "$jobs" --timeout 300 \
			--qchaind "$build/qchaind" --extra-args="--cache-size $cache"
	done
	run bench-smoke 300 env O="$O" tests/bench/bench.sh --smoke
}

sanitizers() {
	tier "sanitizers"
	run build-asan 600 make -j"$jobs" O="$build/asan" CC=clang SAN=address,undefined all units
	run_units "$build/asan" asan-
	run asan-broken 400 tests/images/broken.py --qchaind "$build/asan/qchaind"
	run asan-nbd 400 tests/nbd/protocol.py --qchaind "$build/asan/qchaind"
	run asan-diff 500 tests/diff/diff.py --count $san_count --seed $((seed + 300000)) \
		--jobs "$jobs" --qchaind "$build/asan/qchaind"
	run build-tsan 600 make -j"$jobs" O="$build/tsan" CC=clang SAN=thread \
		"$build"/tsan/{qchaind,tests/{loop,grace,map}-test}
	for t in loop grace map; do
		run "tsan-$t" 200 "$build/tsan/tests/$t-test"
	done
	run tsan-diff 400 tests/diff/diff.py --count $((san_count / 3)) --seed $((seed + 400000)) \
		--jobs "$jobs" --qchaind "$build/tsan/qchaind"
	tier_end
}

simulation() {
	tier "simulation"
	run sim 400 "$build/chain-sim" $((seed % 1000000)) $sim_count
	tier_end
}

fuzzing() {
	tier "fuzzing"
	run build-fuzz 400 make -j"$jobs" O="$build/fuzz" CC=clang \
		SAN=address,undefined,fuzzer-no-link fuzzers
	run fuzz 300 env O="$build/fuzz" tests/fuzz/run.sh "$fuzz_seconds"
	tier_end
}

system() {
	tier "system (VM, two kernels)"
	run vm-6.12 900 env QCHAIN_BUILD="$build" tests/vm/check.sh 6.12
	run vm-7 900 env QCHAIN_BUILD="$build" tests/vm/check.sh 7
	tier_end
}

# The end of the output, also in a file: what failed and why, then the sum.
finish() {
	echo
	printf '%s\n' "${summary[@]}"
	{
		echo
		((${#tiers[@]})) && printf '%s\n' "${tiers[@]}"
		printf 'total: %d minutes, seed %d\n' $((SECONDS / 60)) "$seed"
		((${#failures[@]})) && printf 'FAILED %s\n' "${failures[@]}"
		echo "$passed passed, $failed failed, $skipped skipped"
	} | tee "$logs/end"
	[ "$failed" = 0 ]
	exit
}

echo "check: seed $seed, logs in $logs"
run build 600 make -j"$jobs" O="$build" all units || finish
for name in "${all[@]}"; do
	$name
done
finish
