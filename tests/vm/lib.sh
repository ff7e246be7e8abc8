# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Helpers for the system test scripts t-*.sh: verdicts, waiting with a deadline, volume groups on RAM disks.
#
# A test starts with:   source "${0%/*}/lib.sh"
# It ends by pass, fail or skip; whatever it registered with at_exit is undone first, last one first.
set -euo pipefail

[[ -n ${QCHAIN_VM_RUN:-} ]] || { echo "this test runs in the VM: tests/vm/run-vm.sh $0" >&2; exit 1; }

vm_state=/run/qchain-vm/state
exit_commands=()

# --- verdicts ---

step() { printf -- '--- [%s s] %s\n' "$SECONDS" "$*"; }
# shellcheck disable=SC2120
pass() { echo "pass${*:+: $*}"; exit 0; }
fail() { echo "fail: $*" >&2; exit 1; }
skip() { echo "$*"; exit 77; }

# at_exit COMMAND ARG...: runs when the test ends, however it ends.
at_exit() { exit_commands+=("$(printf '%q ' "$@")"); }

run_exit_commands() {
	local rc=$? i
	set +e
	for ((i = ${#exit_commands[@]} - 1; i >= 0; i--)); do
		eval "${exit_commands[i]}" || echo "at_exit: failed: ${exit_commands[i]}" >&2
	done > /dev/null
	exit "$rc"
}
trap run_exit_commands EXIT
trap 'echo "${BASH_SOURCE[0]##*/}:$LINENO: failed: $BASH_COMMAND" >&2' ERR
set -E

# dmesg_allow REGEX: kernel log lines that this test causes on purpose.
dmesg_allow() { echo "$1" >> $vm_state/dmesg-allow; }

# --- what a test needs ---

# need_cmd NAME...: skips where a program of another package is not installed.
need_cmd() {
	local name
	for name in "$@"; do
		command -v "$name" > /dev/null || skip "no $name on this machine"
	done
}

# need_build NAME...: fails where a program of ours was not built.
need_build() {
	local name
	for name in "$@"; do
		[[ -x $QCHAIN_BUILD/$name ]] || fail "$QCHAIN_BUILD/$name: not built"
	done
}

# need_ublk_feature MASK WHAT: skips where ublk_drv does not offer the feature bits.
need_ublk_feature() {
	(($(ublk_features) & $1)) || skip "ublk_drv of $(uname -r) has no $2"
}

ublk_features() { "$QCHAIN_VM_RUN/ublkctl" features; }

# --- waiting: poll a condition until a deadline, never sleep blindly ---

# wait_for SEC WHAT COMMAND ARG...: until COMMAND succeeds; fails the test after SEC seconds.
wait_for() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		((SECONDS < end)) || fail "waited too long for $what"
		sleep 0.1
	done
}

wait_path() { wait_for "$2" "$1" test -e "$1"; }
wait_block() { wait_for "$2" "block device $1" test -b "$1"; }
wait_gone() { wait_for "$2" "$1 to go" test ! -e "$1"; }

is_dead() { ! kill -0 "$1" 2>/dev/null; }
wait_dead() { wait_for "$2" "process $1 to end" is_dead "$1"; }

# must_fail COMMAND ARG...: the command has to refuse.
must_fail() {
	if "$@"; then fail "succeeded but must not: $*"; fi
}

# --- storage ---

free_ramdisk() {
	local disk
	for disk in /dev/ram[0-9]*; do
		pvs "$disk" > /dev/null 2>&1 || { echo "$disk"; return; }
	done
	fail "no RAM disk left, $disk is the last"
}

# mkvg NAME SIZE_MB [PVSIZE_OPTION...]: a volume group on a RAM disk; memory is used by what is written only.
mkvg() {
	local name=$1 size_mb=$2 disk
	disk=$(free_ramdisk)
	shift 2
	# 1 MiB in front is LVM's own, so that SIZE_MB can be used up by LVs.
	pvcreate -q -y --setphysicalvolumesize "$((size_mb + 4))m" "$disk" > /dev/null
	vgcreate -q "$@" "$name" "$disk" > /dev/null
	at_exit rmvg "$name"
}

rmvg() { vgremove -q -f -y "$1" > /dev/null; }

# mklv VG NAME SIZE [LVCREATE_OPTION...]: SIZE as lvcreate takes it ("64m"); LVs hold old data, so nothing is wiped.
mklv() {
	local vg=$1 name=$2 size=$3
	shift 3
	lvcreate -q -y -Wn -Zn -L "$size" -n "$name" "$@" "$vg" 2>&1 > /dev/null |
		sed '/not zeroed/d' >&2
	wait_block "/dev/$vg/$name" 30
}

# fill_garbage DEVICE [MB]: what a new LV may be full of.
fill_garbage() {
	dd if=/dev/urandom of="$1" bs=1M ${2:+count="$2"} oflag=direct status=none || true
}
