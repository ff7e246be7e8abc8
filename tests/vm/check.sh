#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# All system tests on both kernels, one boot each. usage: check.sh [NAME...], NAME as 6.12 or 7 or a test's number or name
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
kernels=() wanted=() tests=() failed=0

for arg in "$@"; do
	case $arg in
	6.12 | 7) kernels+=("$arg") ;;
	*) wanted+=("$arg") ;;
	esac
done
((${#kernels[@]})) || kernels=(6.12 7)

is_wanted() {
	local word
	((${#wanted[@]})) || return 0
	for word in "${wanted[@]}"; do [[ ${1##*/} == *"$word"* ]] && return 0; done
	return 1
}

for test in "$here"/../door/t-*.sh "$here"/t-*.sh; do
	if is_wanted "$test"; then tests+=("$test"); fi
done
((${#tests[@]})) || { echo "check: no test fits: ${wanted[*]}" >&2; exit 2; }
log=$(mktemp -d "${TMPDIR:-/tmp}/qchain-check.XXXXXX")
trap 'rm -rf "$log"' EXIT

# is_done LOG TEST: it passed or was skipped.
is_done() { grep -qE "^vm-[^ ]*: (pass|skip) $(basename "$2" .sh) " "$1"; }

kernel_crash() { grep -m1 -oE '(BUG: (kernel|unable)|Oops: |Kernel panic)[^]]*' "$1"; }

# boot KERNEL TEST...: one boot. What has not passed when the kernel has crashed gets another boot,
# once, and that is said: a rare bug of the kernel is not ours, a test that brings it down each time fails.
boot() {
	local kernel=$1 crash test rest=()
	shift
	"$here/run-vm.sh" --kernel "$kernel" "$@" 2>&1 | tee "$log/$kernel" && return
	crash=$(kernel_crash "$log/$kernel") || return
	for test in "$@"; do is_done "$log/$kernel" "$test" || rest+=("$test"); done
	((${#rest[@]})) || return
	grep -vE "^vm-$kernel: (FAIL|[0-9]+ passed)" "$log/$kernel" > "$log/first"
	echo "vm-$kernel: the kernel crashed ($crash): another boot for ${#rest[@]} tests that have not passed" |
		tee -a "$log/first"
	"$here/run-vm.sh" --kernel "$kernel" "${rest[@]}" 2>&1 | tee "$log/second"
	cat "$log/first" "$log/second" > "$log/$kernel"
}

# sum KERNEL: the closing line of all its boots.
sum() {
	local file=$log/$1 passed failed skipped
	grep -qE "^vm-$1: [0-9]+ passed, " "$file" || { echo "vm-$1: 0 passed, 1 failed, 0 skipped" && return; }
	passed=$(grep -cE "^vm-$1: pass " "$file")
	skipped=$(grep -cE "^vm-$1: skip " "$file")
	failed=$((${#tests[@]} - passed - skipped))
	# also what failed beside the tests: the kernel's log at boot, for instance
	((failed)) || failed=$(grep -cE "^vm-$1: FAIL" "$file")
	echo "vm-$1: $passed passed, $failed failed, $skipped skipped"
}

for kernel in "${kernels[@]}"; do boot "$kernel" "${tests[@]}"; done
echo
for kernel in "${kernels[@]}"; do
	grep -E "^vm-$kernel: (FAIL|the kernel crashed)" "$log/$kernel"
	line=$(sum "$kernel")
	echo "$line"
	[[ $line == *" 0 failed,"* ]] || failed=1
done
exit $failed
