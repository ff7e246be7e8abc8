#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds, runs the tests by tier, keeps a log of each runner, sums their closing lines.
# What failed, and why, is said again at the very end.
#
# usage: O=build [SEED=N] [JOBS=N] [SAN=...] tests/check.sh check|check-fast|check-full [TIER...]
# tiers: native sanitizers simulation fuzzing system; with SAN (address,undefined or thread) the
# native one, of programs that are built with these sanitizers, in a folder of their own
#
# To add a runner, add a line to the function of its tier:
#	run NAME LIMIT COMMAND...	one processor is enough, others run beside it
#	alone NAME LIMIT COMMAND...	it uses all processors ("$jobs"), or needs quiet
# They start in the order of the lines, as many at once as there are processors; so the
# long ones come first. Tiers follow each other, each has a budget of minutes below.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

mode=${1:-check}
shift
O=${O:-build}
san=${SAN:-}
unset SAN
case $san in
'') ;;
address,undefined) O=$O/asan ;;
thread) O=$O/tsan ;;
*) echo "check.sh: SAN=$san, expected address,undefined or thread" >&2; exit 2 ;;
esac
build=$(realpath -m "$O")
logs=$build/check
passed=0 failed=0 skipped=0
summary=() tiers=() failures=()
# What runs, by process: name, limit in seconds, start.
declare -A running_name=() running_limit=() running_start=()
declare -A budget=([native]=12 [sanitizers]=6 [simulation]=1 [fuzzing]=1 [system]=10)
# One seed for the whole run: the commit, so that a run can be repeated.
seed=${SEED:-$((16#$(git rev-parse --short=7 HEAD 2>/dev/null || echo 1)))}
jobs=${JOBS:-$(nproc)}
# A runner's limit is for a hang, not for a slow machine.
slack=1
mkdir -p "$logs"
# A system call that the daemon's filter refuses ends it: found here, not in production.
export QCHAIN_SECCOMP=kill
# The jobs of a make above are not ours to use.
unset MAKEFLAGS MFLAGS MAKELEVEL

case $mode in
check-fast) diff_count=30 kill_count=8 san_count=0 sim_count=0 fault_stride=1 mutant_share=1 fuzz_seconds=0 all=(native) ;;
check) diff_count=200 kill_count=40 verb_count=20 death_count=20 san_count=30 deep_count=1 sim_count=20 fault_stride=15 mutant_share=4 fuzz_seconds=5
	all=(native sanitizers simulation fuzzing system) ;;
check-full) diff_count=1000 kill_count=300 verb_count=300 death_count=200 san_count=300 deep_count=4 sim_count=1000 fault_stride=1 mutant_share=1 fuzz_seconds=600 slack=10
	all=(native sanitizers simulation fuzzing system) ;;
*) echo "check.sh: mode $mode, expected check, check-fast or check-full" >&2; exit 2 ;;
esac
# Sanitizers take several times as long, and make system calls of their own.
[ -z "$san" ] || { all=(native) slack=5 QCHAIN_SECCOMP=off; }
(($#)) && all=("$@")

# The last "N passed, N failed[, N skipped]" of a log, as three numbers.
closing_line() {
	grep -aE '[0-9]+ passed, [0-9]+ failed' "$1" | tail -1
}

# causes LOG: the lines that say what went wrong, the first few of them; else the last ones.
causes() {
	local found
	found=$(grep -aE '(^|[^a-z])(FAIL|FAILED|not ok)\b|Sanitizer:|runtime error:|: error:|FAILED|^style: .*:|[Aa]ssert|Traceback|^[A-Za-z.]*Error: |^ +#[0-4] ' "$1" |
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

# start NAME LIMIT COMMAND...: in the background, with its limit, its output to a log.
start() {
	local name=$1 limit=$(($2 * slack))
	shift 2
	timeout -k 20 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null &
	running_name[$!]=$name running_limit[$!]=$limit running_start[$!]=$SECONDS
}

# reap: waits for the first runner that ends, its closing line to the terminal.
reap() {
	local pid status name log count=${#failures[@]}
	wait -n -p pid "${!running_name[@]}"
	status=$?
	name=${running_name[$pid]}
	log=$logs/$name.log
	add "$name" "$log" "$status" "${running_limit[$pid]}"
	printf '  %-24s %4d s  %s\n' "$name" $((SECONDS - running_start[$pid])) "${summary[-1]}"
	unset "running_name[$pid]" "running_limit[$pid]" "running_start[$pid]"
	((${#failures[@]} > count)) || return 0
	causes "$log" | sed 's/^/    /'
	echo "    whole log: $log"
}

# reap_to COUNT: until at most that many run.
reap_to() {
	while ((${#running_name[@]} > $1)); do
		reap
	done
}

run() {
	reap_to $((jobs - 1))
	start "$@"
}

alone() {
	reap_to 0
	start "$@"
	reap_to 0
}

# Interrupted: timeout passes the signal on to what it runs.
stop_all() {
	trap - INT TERM
	((${#running_name[@]})) && kill "${!running_name[@]}" 2>/dev/null
	wait
	exit 130
}
trap stop_all INT TERM

# in_minutes SECONDS: with one decimal.
in_minutes() {
	printf '%d.%d' $(($1 / 60)) $(($1 % 60 / 6))
}

run_tier() {
	local name=$1 start=$SECONDS over=''
	echo "== $name"
	"$name"
	reap_to 0
	((SECONDS - start <= budget[$name] * slack * 60)) || over=', over its budget'
	tiers+=("$name: $(in_minutes $((SECONDS - start))) minutes of $((budget[$name] * slack))$over")
	echo "== ${tiers[-1]}"
}

run_units() {
	local dir=$1 prefix=$2 t
	for t in "$dir"/tests/*-test; do
		run "$prefix$(basename "$t")" 180 "$t"
	done
}

# I/O on tmpfs does not go through io_uring: half of the chains are in /var/tmp.
native() {
	[ "$mode" = check-fast ] || native_verbs
	run nbd 300 tests/nbd/protocol.py --qchaind "$build/qchaind"
	run tools 400 tests/images/tools.py --qchainctl "$build/qchainctl"
	run lifecycle 200 tests/control/lifecycle.py --build "$build"
	run takeover 120 tests/control/takeover.py --build "$build"
	run snapshot 200 tests/control/snapshot.py --build "$build"
	run online-kill 400 tests/online/snapshots.py --kill --count $((kill_count / 4)) \
		--seed $((seed + 100000)) --build "$build"
	run online 400 tests/online/snapshots.py --count $((kill_count / 4)) --seed $seed \
		--build "$build"
	run merges 400 tests/online/merges.py --count $((kill_count / 4)) --seed $seed \
		--build "$build"
	run merges-kill 400 tests/online/merges.py --kill --count $((kill_count / 4)) \
		--seed $((seed + 100000)) --build "$build"
	run merges-chains 400 tests/online/chains.py --count $((kill_count / 2)) --seed $seed \
		--build "$build"
	run broken 300 tests/images/broken.py --qchaind "$build/qchaind"
	run style 120 .ci/check-style.sh
	run merge 120 tests/control/merge.py --build "$build"
	run slow-merges 120 tests/slow/merges.py --build "$build"
	run rename 120 tests/control/rename.py --build "$build"
	run points 30 tests/control/points.py --build "$build"
	run resize 120 tests/control/resize.py --build "$build"
	run scan 120 tests/control/scan.py --build "$build"
	run space 120 tests/control/space.py --build "$build"
	run backup 120 tests/control/backup.py --build "$build"
	run backups 400 tests/online/backups.py --count $((kill_count / 8)) --seed $seed \
		--build "$build"
	run backups-kill 400 tests/online/backups.py --kill --count $((kill_count / 8)) \
		--seed $((seed + 100000)) --build "$build"
	run records 120 tests/control/records.py --build "$build"
	run options 120 tests/control/options.py --build "$build"
	run corrupt 120 tests/control/corrupt.py --build "$build"
	run known-bugs 120 tests/control/known_bugs.py --build "$build"
	run qmp 120 tests/control/qmp.py --build "$build"
	run qsd 120 tests/control/qsd.py --build "$build"
	run full 120 tests/control/full.py --build "$build"
	run blocks 120 tests/control/blocks.py --build "$build" --seed $seed
	run door 200 tests/door/door.py --qchaind "$build/qchaind"
	run_units "$build" unit-
	alone diff 900 tests/diff/diff.py --count $diff_count --seed $seed --jobs "$jobs" \
		--qchaind "$build/qchaind"
	alone diff-kill 400 env TMPDIR=/var/tmp tests/diff/diff.py --kill --count $kill_count --seed $((seed + 100000)) \
		--jobs "$jobs" --qchaind "$build/qchaind"
	alone diff-small-cache 300 env TMPDIR=/var/tmp tests/diff/diff.py --count $((kill_count / 2)) \
		--seed $((seed + 200000)) --jobs "$jobs" --qchaind "$build/qchaind" \
		--extra-args='--cache-size 4K'
	alone offline 900 tests/diff/offline.py --count $((diff_count / 2)) \
		--seed $((seed + 500000)) --jobs "$jobs" --qchainctl "$build/qchainctl"
	alone offline-kill 400 env TMPDIR=/var/tmp tests/diff/offline.py --kill --count $kill_count \
		--seed $((seed + 600000)) --jobs "$jobs" --qchainctl "$build/qchainctl"
	[ "$mode" = check-fast ] || native_long
}

# Whole verbs under load, killed at each of their steps: too long for the daily loop.
native_verbs() {
	run alive 200 tests/control/alive.py --build "$build" --kills "$death_count" --seed $seed
	run delete 200 env TMPDIR=/dev/shm tests/control/delete.py --build "$build"
	run revert 200 env TMPDIR=/dev/shm tests/control/revert.py --build "$build"
	run proxmox 300 env TMPDIR=/dev/shm tests/control/proxmox.py --build "$build" --kills 1 --seed $seed \
		snapshot delete revert merges snapshot_killed commit_killed merge_killed
	run resizes 400 tests/online/resizes.py --count $((kill_count / 4)) --seed $seed \
		--build "$build"
	run resizes-kill 400 tests/online/resizes.py --kill --count $((kill_count / 4)) \
		--seed $((seed + 100000)) --build "$build"
	run export 120 env TMPDIR=/dev/shm tests/control/export.py --build "$build" --seed $seed
	run active 120 tests/control/active.py --build "$build"
	run jobs 200 tests/control/jobs.py --build "$build"
	run units 60 tests/control/units.py
	run tab 120 tests/control/tab.py --build "$build"
	run shrink 120 tests/control/shrink.py --build "$build" snapshot damaged held_to_the_end crash_before_lvreduce
	run fill 200 tests/control/fill.py --build "$build"
	run thin 200 tests/control/thin.py --build "$build" grows full_group fail crash_after_the_extension files \
		chunk_alone not_active
}

native_long() {
	[ "$mode" != check-full ] || alone build-on-13 300 tests/build-on.sh trixie
	alone verbs 900 tests/online/verbs.py --count "$verb_count" --seed $seed --jobs "$jobs" \
		--build "$build"
	alone verbs-kill 900 tests/online/verbs.py --kill --count $((verb_count / 2)) \
		--seed $((seed + 100000)) --jobs "$jobs" --build "$build"
	[ "$mode" != check-full ] || run shrink-all 300 tests/control/shrink.py --build "$build"
	[ "$mode" != check-full ] || run thin-kill 900 tests/control/thin.py --build "$build" --kills 30 --seed $seed
	[ "$mode" != check-full ] || run proxmox-kill 900 env TMPDIR=/dev/shm tests/control/proxmox.py \
		--build "$build" --kills 15 --seed $((seed + 1))
	alone diff-selftest 400 tests/diff/selftest.py
	for cache in 48M 4K; do
		alone diff-1000-layers-$cache 400 tests/diff/diff.py --deep 1000 --count "$deep_count" \
			--seed $((seed + 700000)) --jobs "$jobs" --timeout 300 \
			--qchaind "$build/qchaind" --extra-args="--cache-size $cache"
	done
	alone bench-smoke 300 env O="$O" tests/bench/bench.sh --smoke
}

sanitizers() {
	local -x QCHAIN_SECCOMP=off # their own calls are others
	alone build-asan 600 make -j"$jobs" O="$build/asan" CC=clang SAN=address,undefined all units
	alone build-tsan 600 make -j"$jobs" O="$build/tsan" CC=clang SAN=thread \
		"$build"/tsan/{qchaind,tests/{loop,grace,map}-test}
	run asan-broken 400 tests/images/broken.py --qchaind "$build/asan/qchaind"
	run asan-nbd 400 tests/nbd/protocol.py --qchaind "$build/asan/qchaind"
	run asan-merges 400 tests/online/merges.py --build "$build/asan" --count $((san_count / 4)) \
		--seed $((seed + 800000))
	run tsan-backups 400 tests/online/backups.py --build "$build/tsan" --count $((san_count / 10)) \
		--seed $((seed + 900000))
	run tsan-merges 400 tests/online/merges.py --build "$build/tsan" --count $((san_count / 6)) \
		--seed $((seed + 900000))
	for t in loop grace map; do
		run "tsan-$t" 200 "$build/tsan/tests/$t-test"
	done
	run_units "$build/asan" asan-
	alone asan-diff 500 env TMPDIR=/var/tmp tests/diff/diff.py --count $san_count --seed $((seed + 300000)) \
		--jobs "$jobs" --qchaind "$build/asan/qchaind"
	alone tsan-diff 400 tests/diff/diff.py --count $((san_count / 3)) --seed $((seed + 400000)) \
		--jobs "$jobs" --qchaind "$build/tsan/qchaind"
}

# All kinds of work of the simulator's; in `check` three of them, which the seed says.
works_of_sim() {
	local all n=3 i
	mapfile -t all < <(sed -n 's/^\t{ "\([a-z0-9-]*\)", make_[^=]*$/\1/p' tests/sim/sim-work.c)
	[ "$mutant_share" != 1 ] || n=${#all[@]}
	for ((i = 0; i < n; i++)); do
		echo "${all[(seed * 3 + i) % ${#all[@]}]}"
	done
}

# run_mutants NAME SEED: half of this run's share, so that two go beside each other.
run_mutants() {
	run "$1" 900 env SEED="$2" MUTANT_SHARE=$((mutant_share * 2)) MUTANT_RARE=$((mutant_share == 1)) \
		tests/sim/mutants.sh "$build/mutants/chain-sim"
}

simulation() {
	local work
	run sim 400 "$build/chain-sim" $((seed % 1000000)) $((sim_count / 2))
	run sim-more 400 "$build/chain-sim" $((seed % 1000000 + sim_count / 2)) $((sim_count / 2))
	while read -ra kept; do
		run "sim-seed-${kept[-1]}" 200 "$build/chain-sim" "${kept[@]}" 1
	done < <(sed -n 's/ *#.*//; /./p' tests/sim/seeds)
	run sim-every 400 "$build/chain-sim" -e $((seed % 1000000)) $((sim_count / 10))
	for work in $(works_of_sim); do
		run "sim-every-$work" 400 "$build/chain-sim" -e -w "$work" $((seed % 1000000)) 1
	done
	run sim-faults 400 "$build/chain-sim" -f $fault_stride $((seed % 1000000)) 7
	alone build-mutants 400 make -j"$jobs" O="$O" mutants
	run_mutants sim-mutants "$seed"
	run_mutants sim-mutants-more $((seed + mutant_share))
}

fuzzing() {
	alone build-fuzz 400 make -j"$jobs" O="$build/fuzz" CC=clang \
		SAN=address,undefined,fuzzer-no-link fuzzers
	alone fuzz 300 env O="$build/fuzz" tests/fuzz/run.sh "$fuzz_seconds"
}

# A VM keeps about one processor busy: both at once. Each test in it has a limit of its own.
system() {
	local which=()
	if [ "$mode" = check-full ]; then
		which=(--all)
		export QCHAIN_KILLS=200
	fi
	run vm-6.12 2700 env QCHAIN_BUILD="$build" tests/vm/check.sh "${which[@]}" 6.12
	run vm-7 2700 env QCHAIN_BUILD="$build" tests/vm/check.sh "${which[@]}" 7
}

# The end of the output, also in a file: what failed and why, then the sum.
finish() {
	echo
	printf '%s\n' "${summary[@]}"
	{
		echo
		((${#tiers[@]})) && printf '%s\n' "${tiers[@]}"
		printf 'total: %s minutes, seed %d\n' "$(in_minutes $SECONDS)" "$seed"
		((${#failures[@]})) && printf 'FAILED %s\n' "${failures[@]}"
		echo "$passed passed, $failed failed, $skipped skipped"
	} | tee "$logs/end"
	[ "$failed" = 0 ]
	exit
}

echo "check: seed $seed, logs in $logs"
alone build 600 make -j"$jobs" O="$build" ${san:+CC=clang SAN="$san"} all units
((failed == 0)) || finish
for name in "${all[@]}"; do
	run_tier "$name"
done
finish
