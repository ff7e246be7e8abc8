#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Proves the VM itself: the kernel, ublk_drv, LVM and device-mapper, qcow2 on an LV. Nothing of qchain is used.
# timeout: 180
source "${0%/*}/lib.sh"

step "kernel $(uname -r), asked for $QCHAIN_KERNEL"
[[ $(uname -r) == "$QCHAIN_KERNEL".*-cloud-amd64 ]] || fail "not a $QCHAIN_KERNEL kernel"

step "ublk control device and features"
[[ -c /dev/ublk-control ]] || fail "/dev/ublk-control: no such device"
features=$(ublk_features)
echo "ublk features $features"
# bits 1 to 8: what Linux 6.12 has, user recovery, reissue, user copy and unprivileged devices among them
(((features & 0x1fe) == 0x1fe)) || fail "ublk features $features, must include 0x1fe"

step "a volume group of 256 MB and two LVs"
mkvg smoke 256
mklv smoke base 128m
mklv smoke top 128m
[[ $(lvs --noheadings -o lv_name smoke | tr -d ' \n') == basetop ]] || fail "lvs does not show both LVs"

step "a qcow2 chain on the LVs"
need_cmd qemu-img qemu-io
qemu-img create -q -f qcow2 /dev/smoke/base 64M
qemu-io -f qcow2 -c 'write -q -P 0x5a 1M 64k' /dev/smoke/base
qemu-img create -q -f qcow2 -F qcow2 -b /dev/smoke/base /dev/smoke/top
qemu-io -r -f qcow2 -c 'read -P 0x5a 1M 64k' /dev/smoke/top | grep -q '65536/65536' || fail "the base's data is not read through the overlay"
must_fail qemu-io -r -f qcow2 -c 'read -P 0x5b 1M 64k' /dev/smoke/top > /dev/null
qemu-img check -q -f qcow2 /dev/smoke/base

step "rename, snapshot and remove"
lvrename -q smoke top renamed > /dev/null
wait_block /dev/smoke/renamed 30
wait_gone /dev/smoke/top 30
dmsetup status smoke-renamed | grep -q linear || fail "device-mapper does not show the LV"

step "loop, nbd and the folder for test data"
[[ -e /dev/nbd0 ]] || fail "/dev/nbd0: no such device"
truncate -s 8M "$TMPDIR/disk"
loop=$(losetup --show -f "$TMPDIR/disk")
at_exit losetup -d "$loop"
dd if=/dev/zero of="$loop" bs=4096 count=16 oflag=direct status=none
pass
