#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# up --offload: random reads of a deep chain beside those of a plain device; loading a table of 100,000 targets beside dmsetup.
# timeout: 420
source "${0%/*}/vm-lib.sh"
need_build qchainctl
need_cmd dmsetup fio jq qemu-img
targets=100000

offload() {
	local name=$1 path=$2
	qchainctl up "$name" "$path" --read-only --offload --allow-backing /dev > /dev/null
	at_exit quiet_down "$name"
}

quiet_down() { [[ ! -e /run/qchain/$1 ]] || qchainctl down "$1"; }

step "images"
cut plain $size_mb
dd if=/dev/zero bs=1M count=$size_mb status=none | tr '\0' U |
	dd of=/dev/mapper/plain bs=1M iflag=fullblock oflag=direct status=none
make_chain deep "$depth"
offload deep "$top"
[[ $(qchainctl status deep --json | jq -r .state) == mapped ]] || fail "deep has a daemon"
cut odd $((targets * 4096 / 1048576 + 64))
cut even $((targets * 4096 / 1048576 + 1))
# Every second block of 4 KiB in the overlay, the others in the raw base: no two of them join.
python3 -c "import sys; [sys.stdout.buffer.write(b'U' * 4096 + bytes(4096)) for _ in range($targets // 2)]" > image
qemu-img create -q -f qcow2 -o cluster_size=4k /dev/mapper/odd $((targets * 4096))
qemu-img convert -n -S 4k -f raw -O qcow2 image /dev/mapper/odd
qemu-img rebase -q -u -f qcow2 -F raw -b /dev/mapper/even /dev/mapper/odd
rm image

for ((round = 1; round <= rounds; round++)); do
	step "round $round"
	random_reads $round offloaded /dev/mapper/deep
	random_reads $round plain /dev/mapper/plain
	offload many /dev/mapper/odd
	sample $round "load, ours" "$(qchainctl status many --json | jq -c '{wall_s: (.offload."load-us" / 1e6)}')"
	dmsetup table many > table
	(($(wc -l < table) >= targets)) || fail "$(wc -l < table) targets only"
	qchainctl down many
	wall_sample $round "load, dmsetup" dmsetup create -r copy table
	dmsetup remove copy
done
pass
