#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Breaks one rule at a time (include/qchain/mutant.h) and lets the simulator find it, each within a minute.
#   mutants.sh CHAIN-SIM [NAME]...     CHAIN-SIM was built with -DQCHAIN_MUTANTS
# MUTANT_SHARE=N: each N-th only, which ones is drawn from SEED. MUTANT_RARE=0: without the one that takes longer.
set -uo pipefail
cd "${0%/*}/../.." || exit 1

sim=$1
shift
limit=${MUTANT_SECONDS:-60}
mapfile -t names < <(sed -n 's/^\tMUTANT_\([A-Z0-9_]*\),.*/\1/p' include/qchain/mutant.h)
# The table of the docs names the same ones.
documented() {
	sed -n '/^| mutant | breaks/,$p' docs/crash-consistency.md | grep -o '[A-Z][A-Z0-9]*_[A-Z0-9_]*'
}
if ! diff <(printf '%s\n' "${names[@]}" | grep -v '^NONE$\|^NR$' | sort) <(documented | sort); then
	echo "docs/crash-consistency.md: the mutants of include/qchain/mutant.h (<) and those of its table (>) differ"
	exit 1
fi
# Where the hunt begins for those that not each seed shows. With -f, and next to nothing that fails, a life is short, and of
# one kind of work: a fifth of a second for each seed.
short='-f 100000'
declare -A first=([NAME_WITH_FIELDS]=23 [REPLAY_UNCLAIMED]=23 [FLUSH_TOP_ONLY]="-w overwrites 1" [HOLE_BEFORE_HEADER]=26
	[BASE_REUSED_EARLY]=62 [BASE_UNFLUSHED]=12 [MERGE_UNSEALED]=76 [ACK_BEFORE_LOG]=1 [LOG_DROPPED_EARLY]=1
	[BASE_FILLS_FROM_DEVICE]=2 [HAND_NOT_DURABLE]=1
	[FUA_IN_PLACE]="$short 69" [FREE_EARLY]="$short 1" [NO_STEP_2]="$short 22" [FLUSH_UNCOMMITTED]="$short 37"
	[STALE_FOLD]="$short 27" [OLD_FILLS_NEW]="$short 9" [SEAL_EARLY]="$short 9" [COPY_OVER_GUEST]="$short 17"
	[CLOSE_BEFORE_GRACE]="$short 18" [BASE_DOOR]="$short 3"
	[LAYERS_SHARED]="$short 11" [STREAM_UNRESTED]="$short 3" [HAND_UNSETTLED]="$short 159"
	[HAND_UNRESTED]="$short 12" [HANDED_FORGOTTEN]="$short 1062"
	[HAND_UNFLUSHED]="-e -w active 1" [L1_WITH_HEADER]="-e -w resize 7" [GROWS_UNZEROED]="-e -w resize 1"
	[SIZE_TOLD_EARLY]="-e -w resize 1")
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

# run_seed MUTANT SEED OPTION...
run_seed() {
	MUTANT=$1 timeout -k 5 "$limit" "$sim" "${@:3}" "$2" 1 "$folder" >"$folder/log" 2>&1
}

# Seeds one after the other, until one fails that passes unbroken, or the time is over.
hunt() {
	local start=$SECONDS options seed line
	read -ra options <<<"${first[${names[$1]}]:-0}"
	seed=${options[-1]}
	unset 'options[-1]'
	while ((SECONDS - start < limit)); do
		if ! run_seed "$1" "$seed" "${options[@]}"; then
			line=$(grep -a -m1 FAIL "$folder/log")
			run_seed 0 "$seed" "${options[@]}" || { echo "seed $seed fails unbroken, too"; return 1; }
			echo "caught by ${options[*]}${options:+ }seed $seed after $((SECONDS - start)) s: $line"
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
	[[ ${names[i]} != "$rare" || ${MUTANT_RARE:-1} = 1 ]] || continue
	if line=$(hunt $i); then
		caught=$((caught + 1))
	else
		missed=$((missed + 1))
	fi
	echo "mutant ${names[i]}: $line"
done
echo "sim-mutants: $caught passed, $missed failed"
[ $missed = 0 ]
