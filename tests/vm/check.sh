#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The system tests on both kernels, one boot each.
#
# usage: check.sh [--all] [NAME...], NAME as 6.12 or 7 or a test's number or name
# A test with a line "# kernel: KIND" looks at what does not differ between kernels: it runs on that
# one only, unless it is named or all are wanted. --all also sets QCHAIN_FULL: the long forms.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
kernels=() wanted=() tests=() all='' failed=0

for arg in "$@"; do
	case $arg in
	--all) all=1 && export QCHAIN_FULL=1 ;;
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

# tests_on KERNEL: sets here_tests.
tests_on() {
	local test only
	here_tests=()
	for test in "${tests[@]}"; do
		only=$(sed -n 's/^# kernel: *\([0-9.]\+\)$/\1/p' "$test")
		[[ -z $all && -z ${wanted[*]} && -n $only && $only != "$1" ]] || here_tests+=("$test")
	done
}

# is_done KERNEL TEST: it passed or was skipped.
is_done() { grep -qE "^(pass|skip) $(basename "$2" .sh) " "$log/$1.results"; }

kernel_crash() { grep -m1 -oE '(BUG: (kernel|unable)|Oops: |Kernel panic)[^]]*' "$1"; }

# boot_once KERNEL TEST...: the console to the terminal and a log; the results, which the console's
# lines could cut in two, to a file of their own.
#
# One processor is worth more than two where there are two VMs on two: emulated ones wait for each other.
# Linux 7 has two, for what only happens where queue and daemon really run side by side.
boot_once() {
	local kernel=$1 smp=2
	[[ $kernel == 7 || -n $all ]] || smp=1
	shift
	QCHAIN_RESULTS=$log/$kernel.results "$here/run-vm.sh" --kernel "$kernel" --smp "$smp" "$@" 2>&1 | tee "$log/$kernel"
}

# boot KERNEL TEST...: one boot. What has not passed when the kernel has crashed gets another boot,
# once, and that is said: a rare bug of the kernel is not ours, a test that brings it down each time fails.
boot() {
	local kernel=$1 crash test rest=()
	shift
	: > "$log/$kernel.results"
	boot_once "$kernel" "$@" && return
	crash=$(kernel_crash "$log/$kernel") || return
	for test in "$@"; do is_done "$kernel" "$test" || rest+=("$test"); done
	((${#rest[@]})) || return
	sed -i '/^FAIL/d' "$log/$kernel.results"
	echo "vm-$kernel: the kernel crashed ($crash): another boot for ${#rest[@]} tests that have not passed"
	boot_once "$kernel" "${rest[@]}"
}

# failures KERNEL: a line for what failed, also beside the tests (the kernel's log at boot), and for each test without a result.
failures() {
	local test here_tests
	sed -n "s/^FAIL/vm-$1: &/p" "$log/$1.results"
	tests_on "$1"
	for test in "${here_tests[@]}"; do
		grep -qE "^(pass|skip|FAIL) $(basename "$test" .sh) " "$log/$1.results" ||
			echo "vm-$1: FAIL $(basename "$test" .sh): no result"
	done
}

# sum KERNEL: the failures, and the closing line of all its boots.
sum() {
	local failures passed skipped
	failures=$(failures "$1")
	[[ -z $failures ]] || echo "$failures"
	passed=$(grep -c '^pass ' "$log/$1.results")
	skipped=$(grep -c '^skip ' "$log/$1.results")
	echo "vm-$1: $passed passed, $(grep -c . <<< "$failures") failed, $skipped skipped"
	[[ -z $failures ]]
}

for kernel in "${kernels[@]}"; do
	tests_on "$kernel"
	boot "$kernel" "${here_tests[@]}"
done
echo
for kernel in "${kernels[@]}"; do sum "$kernel" || failed=1; done
exit $failed
