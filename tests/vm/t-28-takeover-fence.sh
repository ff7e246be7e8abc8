#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A successor waits for its dead predecessor's I/O: where one cluster is slow on disk, an old write must not land on a newer one.
# timeout: 240
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq dmsetup qemu-img qemu-io

delay_ms=12000
guest=$((20 * 65536))

# slow_table SECTOR: the whole disk; writes to the 64 KiB at SECTOR are late. All else is fast, recovery included.
slow_table() {
	local end=$(($1 + 128))
	echo "0 $1 linear $disk 0"
	echo "$1 128 delay $disk $1 0 $disk $1 $delay_ms"
	echo "$end $((sectors - end)) linear $disk $end"
}

load_table() {
	dmsetup load slow
	dmsetup suspend slow
	dmsetup resume slow
}

in_flight() { dmsetup status slow | awk '$3 == "delay" { exit !($4 + $5 + $6) }'; }
all_landed() { ! in_flight; }

step "a VG on a disk that can be made slow in one place"
modprobe dm-delay
disk=$(free_ramdisk)
sectors=$(blockdev --getsz "$disk")
echo "0 $sectors linear $disk 0" | dmsetup create slow
at_exit dmsetup remove --retry slow
wait_block /dev/mapper/slow 20
# LVM must see the PV once only, and not through a device whose daemon is dead.
lvm_conf <<< 'devices { global_filter = [ "r|^/dev/ram|", "r|^/dev/ublkb|" ] }'
pvcreate -q -y --setphysicalvolumesize 132m /dev/mapper/slow > /dev/null
vgcreate -q vg /dev/mapper/slow > /dev/null
at_exit rmvg vg
mkchain vg c 32m 40m 2
chain_up disk vg/c-1
for letter in a b; do printf "%65536s" "" | tr ' ' $letter > "data.$letter"; done
# Mapped before, so that the write that is to be late goes in place.
dd if=data.b of="$dev" bs=64k seek=20 oflag=direct conv=fsync,notrunc status=none
host=$(qemu-img map -U --output=json -f qcow2 /dev/vg/c-1 |
	jq ".[] | select(.start <= $guest and .start + .length > $guest) | .offset + $guest - .start")
start=$(dmsetup table vg-c--1 | awk '{ print $5 }')
echo "the cluster is at byte $host of the LV, which begins at sector $start"
slow_table $((start + host / 512)) | load_table

step "kill -9 with a write in the disk's queue"
dd if=data.a of="$dev" bs=64k seek=20 oflag=direct conv=notrunc status=none &
writer=$!
wait_for 10 "the write to reach the slow disk" in_flight
pid=$(jq .pid /run/qchain/disk/state.json)
kill -9 "$pid"
killed=${EPOCHREALTIME/./}

step "the successor waits"
timeout 60 qchainctl up disk > up.out 2>&1 &
starter=$!
wait_for 10 "status to say what the start waits for" chain_is disk ".waiting != null" true
qchainctl status disk
qchainctl status disk | grep -q "start waits.*c-1" || fail "status does not say what is waited for"
wait $starter || { cat up.out; fail "not recovered"; }
waited=$(((${EPOCHREALTIME/./} - killed) / 1000))
echo "it took over $waited ms after the kill"
((waited > delay_ms - 4000)) || fail "it took over after $waited ms, but the dead daemon's write may land $delay_ms ms after its start"
wait $writer || fail "the write was failed"

step "what is written now stays"
wait_for 60 "all I/O to end" all_landed
echo "0 $sectors linear $disk 0" | load_table
dd if=data.b of="$dev" bs=64k seek=20 oflag=direct conv=notrunc status=none
dd if="$dev" of=back bs=64k skip=20 count=1 iflag=direct status=none
same data.b back "the newer write"
save_device "$dev" shown
chain_down disk
qemu_sees /dev/vg/c-1 shown
clean_image /dev/vg/c-1
pass
