#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Snapshots with frozen file systems need no repair, also through LVM on the device; thaw after a kill; groups.
# timeout: 600
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd mkfs.ext4 e2fsck mkfs.xfs xfs_repair

# writer DIR: files that come, grow and go, until DIR.stop appears.
writer() {
	local i=0
	while [[ ! -e $TMPDIR/${1##*/}.stop ]]; do
		i=$((i + 1))
		dd if=/dev/zero of="$1/f$((i % 20))" bs=4k count=$((i % 50 + 1)) status=none conv=fsync
		rm -f "$1/f$(((i + 7) % 20))"
		sleep 0.2 # the rest of the test needs the processor, too
	done
}

# sees_clean NAME TOP COMMAND...: the sealed layer TOP, read-only; COMMAND DEVICE is satisfied.
sees_clean() {
	local top=$1
	shift
	chain_up look "$top" --read-only
	"$@" "$dev" > look.out 2>&1 || { cat look.out; fail "$*: $top is not clean"; }
	chain_down look
}

ext4_clean() {
	! dumpe2fs -h "$1" 2> /dev/null | grep -q needs_recovery || { echo "the journal was not empty"; return 1; }
	e2fsck -fn "$1"
}

# xfs_clean LAYER: freezing leaves XFS with one record in its log, on purpose; all else is in its place:
# files can be read without recovery, and recovery, on an overlay, leaves nothing to repair.
xfs_clean() {
	chain_up look "$1" --read-only
	mount -o ro,norecovery,nouuid "$dev" /mnt/look
	find /mnt/look -type f -exec cat {} + > /dev/null || fail "$1: a file cannot be read"
	umount /mnt/look
	chain_down look
	lvchange -q -ay -K "$1" > /dev/null
	qchainctl create vg/look.qcow2 --backing "$1" || fail "create"
	chain_up look vg/look.qcow2
	mount -o nouuid "$dev" /mnt/look
	umount /mnt/look
	xfs_repair -n "$dev" > look.out 2>&1 || { cat look.out; fail "$1: xfs_repair -n"; }
	chain_down look
	lvremove -q -f -y vg/look.qcow2 > /dev/null
}

mkvg vg 6000
for name in a b; do
	qchainctl create vg/$name.qcow2 --size 400M || fail "create"
	chain_up $name vg/$name.qcow2
	declare "dev_$name=$dev"
done
mkdir -p /mnt/a /mnt/b /mnt/look
mkfs.ext4 -q -F "$dev_a"
mkfs.xfs -q -f "$dev_b"
mount "$dev_a" /mnt/a
mount "$dev_b" /mnt/b
writer /mnt/a &
writer /mnt/b &

step "ext4 and xfs, frozen, by themselves and as a group"
qchainctl snapshot a one --freeze || fail "snapshot of a"
qchainctl snapshot b one --freeze || fail "snapshot of b"
qchainctl snapshot --group a b two --freeze || fail "snapshot of both"
touch /mnt/a/alive /mnt/b/alive b.stop

step "qchainctl dies while they are frozen: they thaw"
QCHAIN_CRASH_POINT=snapshot.frozen qchainctl snapshot a three --freeze && fail "not killed"
timeout 10 touch /mnt/a/thawed || fail "still frozen"
qchainctl snapshot a three || fail "snapshot after that"

step "one file system lies in a file on the other: given up in time, both go on"
qchainctl create /mnt/a/inner.qcow2 --size 40M || fail "create"
chain_up inner /mnt/a/inner.qcow2
mkfs.ext4 -q -F "$dev"
mkdir /mnt/inner
mount "$dev" /mnt/inner
timeout 60 qchainctl snapshot --group a inner four --freeze 2> refused && fail "frozen, one in the other"
grep -q "did not freeze within" refused || { cat refused; fail "no word of why"; }
timeout 20 touch /mnt/inner/alive /mnt/a/alive || fail "still frozen"
umount /mnt/inner
chain_down inner

touch a.stop
wait
umount /mnt/a /mnt/b

step "the snapshots need no repair"
chain_down a
chain_down b
for lv in a.qcow2 a.1.qcow2; do sees_clean vg/$lv ext4_clean; done
for lv in b.qcow2 b.1.qcow2; do xfs_clean vg/$lv; done
pass
