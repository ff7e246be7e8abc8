#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Breaks one rule at a time (include/qchain/mutant.h) and lets the simulator find it, each within a minute.
#   mutants.sh CHAIN-SIM [NAME]...     CHAIN-SIM was built with -DQCHAIN_MUTANTS
# MUTANT_SHARE=N: each N-th only, which ones is drawn from SEED.
set -uo pipefail
cd "${0%/*}/../.." || exit 1

sim=$1
shift
limit=${MUTANT_SECONDS:-60}
mapfile -t names < <(sed -n 's/^\tMUTANT_\([A-Z0-9_]*\),.*/\1/p' include/qchain/mutant.h)
# Where the hunt begins for those that few seeds show.
declare -A first=([CLOSE_BEFORE_GRACE]=94 [BASE_REUSED_EARLY]=26 [NAME_WITH_FIELDS]=9 [REPLAY_UNCLAIMED]=17
	[OLD_FILLS_NEW]=75 [FLUSH_TOP_ONLY]=35 [HOLE_BEFORE_HEADER]=19 [BASE_UNFLUSHED]=8
	[COPY_OVER_GUEST]=137 [MERGE_UNSEALED]=76)
# No seed of a minute shows it for sure: hunted in whole runs only.
rare=FILL_BEFORE_GRACE
caught=0
missed=0
folder=$(mktemp -d /dev/shm/qchain-mutants-XXXXXX)
trap 'rm -rf "$folder"' EXIT

wanted() {
	local name=$1
	shift
	[ $# = 0 ] && return
	while [ $# -gt 0 ]; do
		[ "$1" = "$name" ] && return
		shift
	done
	return 1
}

run_seed() {
	MUTANT=$1 timeout -k 5 "$limit" "$sim" "$2" 1 "$folder" >"$folder/log" 2>&1
}

# Seeds one after the other, until one fails that passes unbroken, or the time is over.
hunt() {
	local start=$SECONDS seed=${first[${names[$1]}]:-0} line
	while ((SECONDS - start < limit)); do
		if ! run_seed "$1" "$seed"; then
			line=$(grep -a -m1 FAIL "$folder/log")
			run_seed 0 "$seed" || { echo "seed $seed fails unbroken, too"; return 1; }
			echo "caught by seed $seed after $((SECONDS - start)) s: $line"
			return 0
		fi
		seed=$((seed + 1))
	done
	echo "NOT CAUGHT by seeds up to $((seed - 1))"
	return 1
}

for ((i = 1; i < ${#names[@]}; i++)); do
	[ "${names[i]}" = NR ] && break
	wanted "${names[i]}" "$@" || continue
	(((i + ${SEED:-0}) % ${MUTANT_SHARE:-1} == 0)) || continue
	[[ ${names[i]} != "$rare" || ${MUTANT_SHARE:-1} = 1 ]] || continue
	if line=$(hunt $i); then
		caught=$((caught + 1))
	else
		missed=$((missed + 1))
	fi
	echo "mutant ${names[i]}: $line"
done
echo "sim-mutants: $caught passed, $missed failed"
[ $missed = 0 ]
