#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Random 4 KiB reads end to end: our devices on chains of 64 and 1 layers and on raw, loop, qemu-nbd.
# timeout: 420
source "${0%/*}/vm-lib.sh"
need_build qchaind qchainctl
need_cmd fio jq qemu-nbd

step "images"
cut raw $size_mb
dd if=/dev/zero bs=1M count=$size_mb status=none | tr '\0' U |
	dd of=/dev/mapper/raw bs=1M iflag=fullblock oflag=direct status=none
make_chain deep "$depth"
deep=$top
make_chain one 1
one=$top

step "servers"
serve deep "$deep" "" --read-only && deep=$dev
serve one "$one" "" --read-only && ours=$dev
serve raw /dev/mapper/raw "" --read-only --format raw && raw=$dev
loop=$(losetup -r --direct-io=on --show -f /dev/mapper/raw)
at_exit losetup -d "$loop"
serve_nbd 0 native "$one" -r
serve_nbd 1 io_uring "$one" -r
for i in "$deep" "$ours" "$raw"; do
	dd if="$i" of=/dev/null bs=1M iflag=direct status=none
done

for ((round = 1; round <= rounds; round++)); do
	step "round $round"
	random_reads $round "ublk depth $depth" "$deep"
	random_reads $round "ublk depth 1" "$ours"
	random_reads $round "ublk raw" "$raw"
	random_reads $round "loop" "$loop"
	random_reads $round "qemu-nbd native" /dev/nbd0
	random_reads $round "qemu-nbd io_uring" /dev/nbd1
done
pass
