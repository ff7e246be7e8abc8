#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs the fuzz targets: all seeds first, then SECONDS of new inputs each.
#
# usage: O=build/fuzz tests/fuzz/run.sh SECONDS [TARGET...]
set -uo pipefail
cd "$(dirname "$0")/../.."

O=${O:-build/fuzz}
seconds=${1:?seconds for each target}
shift
targets=("$@")
[ $# -gt 0 ] || targets=(text header image chain qmp nbd)
passed=0 failed=0

# Servers keep a connection's memory where only the kernel sees it for a moment.
options_of() {
	case $1 in
	nbd | qmp) echo -detect_leaks=0 -max_len=20000 ;;
	header) echo -max_len=16384 ;;
	*) echo -max_len=100000 ;;
	esac
}

seeds_of() {
	case $1 in
	header) echo tests/fuzz/corpus/image ;;
	*) echo tests/fuzz/corpus/"$1" ;;
	esac
}

# fuzz NAME: the seeds, then new inputs; finds are kept for a replay.
fuzz() {
	local name=$1 log=$O/fuzz-$1.log finds=$O/finds new=$O/new-$1 status
	mkdir -p "$finds" "$new"
	# shellcheck disable=SC2046
	"$O/fuzz-$name" $(options_of "$name") -max_total_time="$seconds" -timeout=60 \
		-rss_limit_mb=3000 -print_final_stats=1 -artifact_prefix="$finds/$name-" \
		"$new" "$(seeds_of "$name")" >"$log" 2>&1
	status=$?
	printf '%-6s %s runs, %s per second, seed %s\n' "$name" \
		"$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
		"$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")" \
		"$(sed -n 's/^INFO: Seed: //p' "$log")"
	if [ "$status" = 0 ]; then
		passed=$((passed + 1))
		return
	fi
	failed=$((failed + 1))
	echo "FAIL fuzz-$name: status $status"
	grep -E 'ERROR|SUMMARY|Test unit written|ALARM' "$log" | head -5
	echo "  repeat: $O/fuzz-$name $finds/$name-*; whole log: $log"
}

export ASAN_OPTIONS=quarantine_size_mb=4:allocator_release_to_os_interval_ms=-1
for t in "${targets[@]}"; do
	fuzz "$t"
done
echo "fuzz: $passed passed, $failed failed"
[ "$failed" = 0 ]
