#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Stopping a ublk device: refused while it is used, with the users' names; by force in the middle of I/O.
# timeout: 240
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/ublk-lib.sh"
need_build ublk-bringup
need_cmd fio dmsetup losetup mkswap addpart

# refused TEXT: stopping has to be refused with TEXT in the reason; it goes on serving.
refused() {
	local n
	n=$(count ^busy)
	kill -TERM "$pid"
	wait_for 30 "an answer" answered $((n + 1))
	tail -n 1 "$log"
	tail -n 1 "$log" | grep -q "^busy.*$1" || fail "expected a refusal with '$1'"
	dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct status=none
}

up used linear "$(free_ramdisk)"

step "a process"
exec 9< "$dev"
refused "process $$ (bash)"
exec 9<&-

step "a mount"
mkfs.ext4 -q -F "$dev" 64M
mkdir -p "$TMPDIR/mnt"
mount "$dev" "$TMPDIR/mnt"
refused "mounted on $TMPDIR/mnt"
umount "$TMPDIR/mnt"

step "swap"
mkswap -q "$dev" 16384 > /dev/null
swapon "$dev"
refused "swap on $dev"
swapoff "$dev"

step "a loop device"
loop=$(losetup --show -f "$dev")
refused "held by ${loop#/dev/}"
losetup -d "$loop"

step "device-mapper, on a partition"
addpart "$dev" 1 2048 65536
wait_block "${dev}p1" 10
echo "0 65536 linear ${dev}p1 0" | dmsetup create upper
refused "held by dm-[0-9]* (upper)"
dmsetup remove --retry upper
udevadm settle

step "nobody"
down

step "a number that is taken"
up one --id 5 zero 1048576
[[ $dev == /dev/ublkb5 ]] || fail "not the number asked for"
ublk-bringup --id 5 zero 1048576 > "$TMPDIR/no" 2>&1 || true
grep 'error ublkb5: the number is taken' "$TMPDIR/no" || fail "taken twice"
down

step "by force, in the middle of I/O"
up force linear "$(free_ramdisk)"
fio --name=busy --allow_file_create=0 --filename="$dev" --size=256M --direct=1 --ioengine=io_uring --iodepth=32 \
	--rw=randrw --bs=16k --time_based --runtime=60 --minimal > "$TMPDIR/fio.out" 2>&1 &
fio=$!
wait_for 30 "fio to write" wrote "$dev" 100
kill -INT "$pid"
wait_for 30 "the device to stop" grep -q ^stopped "$log"
cat "$log"
wait_dead "$fio" 30
if wait "$fio"; then fail "fio saw no error"; fi
wait_dead "$pid" 10
wait_gone "$dev" 10
wait_gone "${dev/ublkb/ublkc}" 10

step "no driver"
modprobe -r ublk_drv
ublk-bringup zero 1048576 > "$TMPDIR/no" 2>&1 || true
modprobe ublk_drv
grep 'error /dev/ublk-control: .*modprobe ublk_drv.*nbd' "$TMPDIR/no" || fail "no advice"
pass
