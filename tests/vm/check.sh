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

# The closing line of each boot is said again at the end.
for kernel in "${kernels[@]}"; do
	"$here/run-vm.sh" --kernel "$kernel" "${tests[@]}" 2>&1 | tee "$log/$kernel" || failed=1
done
echo
for kernel in "${kernels[@]}"; do
	grep -E "^vm-$kernel: FAIL" "$log/$kernel"
	grep -E "^vm-$kernel: [0-9]+ passed, " "$log/$kernel" || { echo "vm-$kernel: 0 passed, 1 failed, 0 skipped"; failed=1; }
done
exit $failed
