#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Proves the door on real LVs: which backing images a VG allows, what holds a device, and the lvm room with device-mapper.
# timeout: 400
# kernel: 6.12
source "$QCHAIN_SRC/tests/vm/lib.sh"

need_cmd qemu-img qemu-io qemu-nbd
need_build tests/door-probe tests/lvm-test
probe=$QCHAIN_BUILD/tests/door-probe

# opens OPTION... TOP: it must open and close.
opens() { "$probe" "$@" < /dev/null > /dev/null || fail "not opened: $*"; }

# refused WORDS OPTION... TOP: it must be refused with these words.
refused() {
	local words=$1 text
	shift
	text=$("$probe" "$@" < /dev/null 2>&1) && fail "opened but must not: $*"
	[[ $text == *"$words"* ]] || fail "expected '$words' in: $text"
}

step "a chain of bare LV names in one VG, names with hyphens"
mkvg vg-a 256
mkvg vg-b 64
for lv in base mid-1 top other; do mklv vg-a "$lv" 16m; done
mklv vg-b far 16m
qemu-img create -q -f qcow2 /dev/vg-a/base 8M
qemu-img create -q -f qcow2 -F qcow2 -b base /dev/vg-a/mid-1
qemu-img create -q -f qcow2 -F qcow2 -b mid-1 /dev/vg-a/top
opens /dev/vg-a/top
opens --read-only /dev/vg-a/top
refused "an LV must be active" /dev/mapper/vg--a-top # bare names are beside the name given
qemu-img rebase -u -F qcow2 -b /dev/vg-a/mid-1 /dev/vg-a/top
qemu-img rebase -u -F qcow2 -b /dev/mapper/vg--a-base /dev/vg-a/mid-1
opens /dev/mapper/vg--a-top

step "links as vdsm makes them"
mkdir -p img1 img2
ln -s /dev/vg-a/top img1/top
ln -s /dev/vg-a/mid-1 img2/mid
qemu-img rebase -u -F qcow2 -b ../img2/mid /dev/vg-a/top
opens "$TMPDIR/img1/top"

step "another VG, a file, a disk: refused unless allowed"
qemu-img create -q -f qcow2 /dev/vg-b/far 8M
qemu-img rebase -u -F qcow2 -b /dev/vg-b/far /dev/vg-a/top
refused "/dev/vg-b/far), must be an LV of the active layer's VG" /dev/vg-a/top
opens --allow-backing /dev/vg-b /dev/vg-a/top
opens --allow-backing /dev/vg-b/far /dev/vg-a/top
opens --allow-backing /dev/mapper/vg--b-far /dev/vg-a/top
refused "/dev/vg-b/far" --allow-backing /dev/vg-a --allow-backing /dev/vg /dev/vg-a/top
qemu-img create -q -f qcow2 file 8M
qemu-img rebase -u -F qcow2 -b "$TMPDIR/file" /dev/vg-a/top
refused "$TMPDIR/file" /dev/vg-a/top
opens --allow-backing "$TMPDIR" /dev/vg-a/top
disk=$(vgs --noheadings -o pv_name vg-a | tr -d ' ')
qemu-img rebase -u -F raw -b "$disk" /dev/vg-a/top
refused "$disk" /dev/vg-a/top
qemu-img create -q -f qcow2 -F qcow2 -b /dev/vg-a/base "$TMPDIR/on-lv" 8M
refused "must be a file below" "$TMPDIR/on-lv"
opens --allow-backing /dev/vg-a "$TMPDIR/on-lv"

step "two chains over one LV"
qemu-img create -q -f qcow2 -F qcow2 -b base /dev/vg-a/other
qemu-img rebase -u -F qcow2 -b base /dev/vg-a/top
mkfifo hold
"$probe" /dev/vg-a/top < hold > opened &
holder=$!
exec 9> hold
wait_for 20 "the first chain" grep -q open opened
opens /dev/vg-a/other
refused "pid $holder" /dev/vg-a/top
refused "pid $holder" /dev/vg-a/base
must_fail lvremove -q -f -y vg-a/top
lvextend -q -L 32m vg-a/top > /dev/null # suspends and resumes below the holder
exec 9>&-
wait_dead "$holder" 20
opens /dev/vg-a/top

step "a PV and an LV below another device"
refused "is held by another device" --format raw "$disk"
dmsetup create held --table "0 2048 linear /dev/vg-a/other 0"
at_exit dmsetup remove held
refused "is held by another device (dm-" /dev/vg-a/other
opens --read-only /dev/vg-a/other

step "the lvm room"
QCHAIN_TEST_DM=1 "$QCHAIN_BUILD/tests/lvm-test" || fail "lvm-test"

# It runs outside the VM, too; here Python alone takes a minute.
if [[ -n $QCHAIN_FULL ]]; then
	step "the whole door test"
	"$QCHAIN_SRC/tests/door/door.py" --probe "$probe" || fail "door.py"
fi
pass
