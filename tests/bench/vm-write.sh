#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# 4 KiB random writes into a fresh overlay with extended L2: our device, user recovery on, and qemu-nbd.
# timeout: 420
source "${0%/*}/vm-lib.sh"
need_build qchaind qchainctl
need_cmd fio jq qemu-nbd qemu-img
writes=6000

make_chain one 1
base=$top
cut overlay $((size_mb + 64))
overlay=/dev/mapper/overlay

# What `qchainctl up` gives every device: a mapping is acknowledged when it is there (rule A1).
log=/run/bench-intent.log

fresh() {
	qemu-img create -q -f qcow2 -F qcow2 -b "${base##*/}" -o extended_l2=on,cluster_size=128k "$overlay"
}

# writes_to ROUND CONTESTANT DEVICE: each place at most once.
writes_to() {
	fio_sample "$1" "$2" "$3" --rw=randwrite --bs=4k --number_ios=$writes --randrepeat=1
}

for ((round = 1; round <= rounds; round++)); do
	step "round $round"
	fresh
	rm -f $log
	qchaind --name write --export ublk --intent-log $log --allow-backing /dev --daemonize "$overlay"
	writes_to $round ublk "$(qchainctl status write --json | jq -r .device)"
	qchainctl down write
	qemu-img check -q -f qcow2 "$overlay"
	for aio in native io_uring; do
		fresh
		qemu-nbd -c /dev/nbd0 -f qcow2 --cache=none --aio=$aio "$overlay"
		wait_for 10 "/dev/nbd0 to have a size" nbd_ready /dev/nbd0
		writes_to $round "qemu-nbd $aio" /dev/nbd0
		nbd_off /dev/nbd0
	done
done
pass
