#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A successor waits for its dead predecessor's I/O: with a slow disk below, an old write must not land on a newer one.
# timeout: 240
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq dmsetup qemu-img qemu-io

delay_ms=8000

# table READ_MS WRITE_MS
table() { echo "0 $(blockdev --getsz "$disk") delay $disk 0 $1 $disk 0 $2"; }

set_delay() {
	table 0 "$1" | dmsetup load slow
	dmsetup suspend slow
	dmsetup resume slow
}

in_flight() { (($(awk '{ print $1 + $2 }' "/sys/block/$slow/inflight") > 0)); }

step "a VG on a disk whose writes can be delayed"
modprobe dm-delay
disk=$(free_ramdisk)
table 0 0 | dmsetup create slow
at_exit dmsetup remove --retry slow
wait_block /dev/mapper/slow 20
slow=$(basename "$(readlink -f /dev/mapper/slow)")
# LVM must see the PV once only, and not through a device whose daemon is dead.
lvm_conf <<< 'devices { global_filter = [ "r|^/dev/ram|", "r|^/dev/ublkb|" ] }'
pvcreate -q -y --setphysicalvolumesize 132m /dev/mapper/slow > /dev/null
vgcreate -q vg /dev/mapper/slow > /dev/null
at_exit rmvg vg
mkchain vg c 32m 40m 2
chain_up disk vg/c-1
for letter in a b; do head -c 64k /dev/zero | tr '\0' $letter > $letter; done
# Mapped before, so that the write that is to be late goes in place.
dd if=b of="$dev" bs=64k seek=20 oflag=direct conv=fsync,notrunc status=none

step "kill -9 with a write in the disk's queue"
set_delay $delay_ms
dd if=a of="$dev" bs=64k seek=20 oflag=direct conv=notrunc status=none &
writer=$!
wait_for 20 "the write to reach the slow disk" in_flight
killed=${EPOCHREALTIME/./}
pid=$(chain_json disk .pid)
kill -9 "$pid"

step "the successor waits"
timeout 60 qchainctl up disk > up.out 2>&1 || { cat up.out; fail "not recovered"; }
waited=$(((${EPOCHREALTIME/./} - killed) / 1000))
echo "it took over $waited ms after the kill"
((waited > delay_ms - 3000)) || fail "it took over after $waited ms, but the dead daemon's write may land $delay_ms ms after its start"
wait $writer || fail "the write was failed"

step "what is written now stays"
dd if=b of="$dev" bs=64k seek=20 oflag=direct conv=notrunc status=none
wait_for 60 "all I/O to end" eval '! in_flight'
set_delay 0
dd if="$dev" of=back bs=64k skip=20 count=1 iflag=direct status=none
same b back "the newer write"
save_device "$dev" shown
chain_down disk
qemu_sees /dev/vg/c-1 shown
clean_image /dev/vg/c-1
pass
