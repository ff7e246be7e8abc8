#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Devices that take a millisecond: write and flush into a fresh overlay; open and read a deep chain.
# timeout: 420
source "${0%/*}/vm-lib.sh"
need_build qchainctl
need_cmd jq qemu-img qemu-io
flushes=200 reads=256

step "images"
make_chain deep "$depth"
deep=$top
make_chain one 1
base=$top
cut overlay $((size_mb + 64))
overlay=/dev/mapper/overlay
delayed
# Each write far from the one before: all allocate.
spread=$(((size_mb * 16 * 618 / 1000 | 1) * 65536 + 4096))

fresh() { qemu-img create -q -f qcow2 -F qcow2 -b "${base##*/}" "$overlay"; }

# flushed ROUND CONTESTANT: what qemu-img bench said, as a sample.
flushed() {
	sample "$1" "$2" "$(sed -n "s/^Run completed in \(.*\) seconds.*/\1/p" bench.out |
		jq -c "{iops: ($flushes / .)}")"
}

# The offsets of 256 random reads, the same for both.
read_commands() {
	local i
	RANDOM=2205
	for ((i = 0; i < reads; i++)); do
		printf 'aio_read -q %d 4k\n' $(((RANDOM << 15 | RANDOM) % (size_mb * 256) * 4096))
	done
	echo aio_flush
}
read_commands > commands

qemu_reads() { qemu-io -r -n -i "$1" -f qcow2 "$deep" < commands; }

for ((round = 1; round <= rounds; round++)); do
	step "round $round"
	fresh
	sample $round "write and flush, ours" "$(qchainctl bench --json --allow-backing /dev -w -c $flushes -d 1 \
		--flush-interval 1 --pattern step -S $spread "$overlay" | jq -c '{iops, p50_us: .lat_us.p50}')"
	for aio in native io_uring; do
		fresh
		qemu-img bench -f qcow2 -t none -i $aio -w -c $flushes -d 1 --flush-interval 1 \
			-S $spread "$overlay" > bench.out
		flushed $round "write and flush, qemu $aio"
	done
	wall_sample $round "cold, ours" qchainctl bench --json --allow-backing /dev -c $reads -d 32 \
		--pattern random "$deep"
	for aio in native io_uring; do
		wall_sample $round "cold, qemu $aio" qemu_reads $aio
	done
done
pass
