#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Process 1 of the test VM: starts udev and the block modules, runs the test scripts one by one, powers off.
#
# usage: guest.sh CONF, by initramfs-init. CONF is written by run-vm.sh.
# What happens is reported to run-vm.sh on a virtio-serial port, one line per event:
#   BOOT RELEASE | BEGIN NAME LIMIT | PASS NAME SEC | SKIP NAME SEC REASON | FAIL NAME SEC REASON | DONE
set -uo pipefail
# shellcheck disable=SC1090
source "$1"

dirty='BUG[: ]|WARNING:|Oops|Kernel panic|general protection fault|blocked for more than'
dirty+='|unable to handle|Call Trace|stack segment|UBSAN|KASAN|KFENCE|refcount_t:|corruption|self-detected stall'
dirty+='|detected stalls'
work=/run/qchain-vm
state=$work/state
port=/dev/virtio-ports/qchain.report
stuck='' left=''

power_off() {
	[[ -z ${QCHAIN_RW:-} ]] || timeout 20 sync -f "$QCHAIN_RW"
	echo o > /proc/sysrq-trigger
	while :; do sleep 10; done
}

report() { echo "$*" >> "$port"; }

mount_all() {
	mkdir -p /dev/pts /dev/shm
	mount -t sysfs sysfs /sys
	mount -t devpts devpts /dev/pts
	mount -t tmpfs tmpfs /dev/shm
	mount -t tmpfs -o mode=755 tmpfs /run
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
	mkdir -p /run/lock/lvm /run/lvm /run/udev $work /sys/fs/cgroup/test
	if [[ -n ${QCHAIN_RW:-} ]]; then
		mkdir -p "$QCHAIN_RW"
		mount -t virtiofs rwdir "$QCHAIN_RW" || return 1
	fi
}

load_modules() {
	local tree
	tree=/lib/modules/$(uname -r)
	mkdir -p "$tree"
	mount --bind "$QCHAIN_KERNEL_DIR/lib/modules/$(uname -r)" "$tree" || return 1
	modprobe -a ublk_drv dm-mod loop || return 1
	modprobe nbd nbds_max=4 || return 1
	load_ramdisks
}

# Sparse: a RAM disk uses memory for what was written to it only.
load_ramdisks() { modprobe brd rd_nr=4 rd_size=16777216 max_part=0; }

start_system() {
	stty -F /dev/console -onlcr 2>/dev/null
	echo qchain-vm > /proc/sys/kernel/hostname
	mount_all && load_modules || return 1
	busybox ip link set lo up
	/lib/systemd/systemd-udevd --daemon 2>/dev/null
	udevadm trigger && udevadm settle -t 60
	for ((i = 0; i < 100; i++)); do
		[[ -e $port ]] && return
		sleep 0.1
	done
	port=$(grep -ls qchain.report /sys/class/virtio-ports/*/name)
	port=/dev/$(basename "$(dirname "$port")")
}

leftover_ublk() { (cd /sys/class/ublk-char 2>/dev/null && ls); }

delete_ublk() {
	local id
	for id in $(leftover_ublk); do
		timeout 30 "$QCHAIN_VM_RUN/ublkctl" del "${id#ublkc}"
	done
}

remove_leftovers() {
	local mnt
	tac /proc/mounts | while read -r _ mnt _; do
		case $mnt in
		$work/* | /mnt | /mnt/*) timeout 20 umount "$mnt" || timeout 5 umount -l "$mnt" ;;
		esac
	done
	timeout 60 vgchange -qq -an > /dev/null 2>&1
	timeout 60 dmsetup remove_all > /dev/null 2>&1
	delete_ublk
	losetup -D
	udevadm settle -t 30
	timeout 30 modprobe -r brd && load_ramdisks && udevadm settle -t 30
	rm -rf $work/tmp $state /run/qchain /dev/qchain
}

# Ends what is left of a test. I/O to a ublk device without a daemon waits for recovery, its deletion
# ends it. What cannot be killed then sits in the kernel: the boot is spoilt.
kill_leftovers() {
	local group=/sys/fs/cgroup/test i
	for ((i = 0; i < 200; i++)); do
		grep -q 'populated 0' $group/cgroup.events && return 0
		((i != 50)) || delete_ublk
		echo 1 > $group/cgroup.kill
		sleep 0.1
	done
	while read -r i; do
		echo "cannot be killed: $i $(tr '\0' ' ' < "/proc/$i/cmdline")"
		cat "/proc/$i/stack"
	done < $group/cgroup.procs
	return 1
}

time_limit() {
	local own
	own=$(sed -n 's/^# timeout: *\([0-9]\+\)$/\1/p' "$1" | head -n 1)
	echo "${own:-$QCHAIN_VM_TIMEOUT}"
}

# log_since MARK: the kernel log after the line with MARK; all of it when MARK is empty.
log_since() { dmesg | awk -v mark="$1" 'mark == "" || seen { print } index($0, mark) { seen = 1 }'; }

# dirty_dmesg MARK: the bad lines of the kernel log after MARK, less those which the test said it expects.
dirty_dmesg() {
	local allow=$state/dmesg-allow
	log_since "$1" | grep -E "$dirty" |
		if [[ -s $allow ]]; then grep -vE -f "$allow"; else cat; fi
}

run_script() {
	local script=$1 limit=$2 tee_pid rc
	mkfifo $state/out
	tee $state/log < $state/out &
	tee_pid=$!
	(
		echo $BASHPID > /sys/fs/cgroup/test/cgroup.procs
		cd $work/tmp && exec timeout -k 10 "$limit" bash "$script"
	) > $state/out 2>&1 < /dev/null &
	wait $!
	rc=$?
	left=$(leftover_ublk | tr '\n' ' ')
	kill_leftovers || stuck="left a process that cannot be killed"
	[[ -z $stuck ]] || kill $tee_pid
	wait $tee_pid
	return $rc
}

# verdict RC LIMIT MARK: one line for the report.
verdict() {
	local rc=$1 bad
	bad=$(dirty_dmesg "$3")
	if [[ -n $bad ]]; then
		log_since "$3" >&2
		echo "FAIL dmesg: ${bad%%$'\n'*}"
	elif [[ -n $stuck ]]; then
		echo "FAIL $stuck"
	elif ((rc == 124 || rc == 137)); then
		echo "FAIL time limit of $2 s"
	elif ((rc == 77)); then
		echo "SKIP $(tail -n 1 $state/log)"
	elif ((rc)); then
		echo "FAIL exit status $rc"
	elif [[ -n $left ]]; then
		echo "FAIL left behind: $left"
	else
		echo "PASS"
	fi
}

run_test() {
	local script=$1 name limit mark start rc result
	name=$(basename "$script" .sh)
	limit=$(time_limit "$script")
	mark="qchain-vm: begin $name $RANDOM"
	mkdir -p $work/tmp $state
	mount -t tmpfs -o size=50% tmpfs $work/tmp
	report "BEGIN $name $limit"
	echo "=== $name"
	echo "$mark" > /dev/kmsg
	start=$SECONDS
	run_script "$script" "$limit"
	rc=$?
	result=$(verdict $rc "$limit" "$mark")
	echo "=== $name: $result"
	remove_leftovers
	report "${result%% *} $name $((SECONDS - start))${result#"${result%% *}"}"
}

run_shell() {
	echo "Shell in the VM: tests are run by 'bash SCRIPT', exit powers off, Ctrl-A X ends QEMU at once."
	mkdir -p $work/tmp $state
	stty -F /dev/console onlcr rows "${QCHAIN_VM_ROWS:-24}" cols "${QCHAIN_VM_COLS:-80}"
	cd "$QCHAIN_SRC" && setsid -c bash -l < /dev/ttyS0 > /dev/ttyS0 2>&1
}

boot_check() {
	local bad
	bad=$(dirty_dmesg '')
	[[ -z $bad ]] || report "FAIL boot 0 dmesg: ${bad%%$'\n'*}"
}

main() {
	local script
	trap power_off EXIT
	export PATH=$QCHAIN_BUILD:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	export HOME=/root LC_ALL=C TERM=${QCHAIN_VM_TERM:-dumb} TMPDIR=$work/tmp
	export QCHAIN_SECCOMP=kill # a call that the filter refuses ends the daemon
	export QCHAIN_SRC QCHAIN_BUILD QCHAIN_KERNEL QCHAIN_RW QCHAIN_VM_RUN QCHAIN_KILLS QCHAIN_FULL
	start_system || { echo "guest: cannot start the system"; return; }
	report "BOOT $(uname -r)"
	boot_check
	for script in "${QCHAIN_VM_SCRIPTS[@]}"; do
		if [[ -n $stuck ]]; then
			report "FAIL $(basename "$script" .sh) 0 not run, an earlier test $stuck"
		else
			run_test "$script"
		fi
	done
	[[ -z ${QCHAIN_VM_SHELL:-} ]] || run_shell
	report DONE
}

main
