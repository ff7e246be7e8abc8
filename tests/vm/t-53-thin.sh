#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A thin LV grows under fio --verify, in a VG that was full of old data; the VG runs full, gets another PV, and fio ends without an error; sealed, it is made smaller.
# timeout: 180
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img

lv_mb() { lvs --noheadings --units m --nosuffix -o lv_size "$1" | sed 's/ *\([0-9]*\).*/\1/'; }

mkvg vg 24
old_data vg
second=$(free_ramdisk)
fio --name=junk --allow_file_create=0 --filename="$second" --size=48M --rw=write --bs=1M --ioengine=sync \
	--buffer_pattern="\"$old_text\"" --minimal > /dev/null

step "from one chunk to all that the VG has"
qchainctl create vg/disk --size 64M --thin --chunk 4M
[[ $(lv_mb vg/disk) == 8 ]] || fail "vg/disk has $(lv_mb vg/disk) MiB, expected tables and one chunk"
chain_up disk vg/disk
"$QCHAIN_SRC/tests/vm/qmpwatch.py" /run/qchain/disk/qmp.sock > events &
wait_for 30 "QMP" grep -q return events
fio --name=thin --allow_file_create=0 --filename="$dev" --size=48M --direct=1 --ioengine=io_uring --iodepth=16 --rw=randwrite --bs=64k \
	--verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > fio.out 2>&1 &
fio=$!
wait_for 60 "status to say that the VG is full" chain_is disk .status.growth.state stuck
kill -0 $fio || { cat fio.out; fail "fio ended, its writes must wait"; }
qchainctl status disk | grep -A1 'LV grows'
[[ $(vgs --noheadings -o vg_free_count vg) -eq 0 ]] || fail "the VG has free extents: $(vgs vg)"

step "reads go on; the one that makes it larger is killed; another PV, and the writes go on by themselves"
timeout 20 dd if="$dev" of=/dev/null bs=64k count=64 iflag=direct status=none || fail "reads wait too"
kill -9 "$(chain_json disk .grower)"
pvcreate -q -y --setphysicalvolumesize 48m "$second" > /dev/null
vgextend -q vg "$second" > /dev/null
wait_dead $fio 90
wait $fio || { cat fio.out; fail "fio saw errors or wrong data"; }
wait_for 20 "status to say that it grows" chain_is disk .status.growth.state grows
echo "$(grep -c BLOCK_WRITE_THRESHOLD events) thresholds passed, the LV has $(lv_mb vg/disk) MiB"
(($(grep -c BLOCK_WRITE_THRESHOLD events) >= 2)) || { cat events; fail "no thresholds passed"; }
grep -q '"QCHAIN_VOLUME_GROWTH".*no free extent' events || { cat events; fail "no event that the VG is full"; }

step "what was there before is not shown"
save_device "$dev" shown
! grep -q "$old_text" shown || fail "the device shows old data"
chain_down disk
qemu_sees /dev/vg/disk shown
clean_image /dev/vg/disk

step "what was discarded goes back to the VG when a snapshot seals the LV, beside fio"
chain_up disk vg/disk
before=$(lv_mb vg/disk)
blkdiscard "$dev"
wait_for 20 "clusters to be free" chain_is disk '.status.metadata["to-reclaim"]' 0
fio --name=kept --allow_file_create=0 --filename="$dev" --size=6M --direct=1 --ioengine=io_uring --rw=write --bs=64k --end_fsync=1 --minimal > /dev/null
save_device "$dev" kept
fio --name=more --allow_file_create=0 --filename="$dev" --offset=32M --size=8M --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite \
	--bs=64k --loops=3 --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > fio.out 2>&1 &
fio=$!
qchainctl snapshot disk a
is_small() { (($(lv_mb vg/disk) <= 24)); }
wait_for 20 "the LV of the snapshot to get smaller" is_small
wait $fio || { cat fio.out; fail "fio saw errors or wrong data"; }
echo "the LV had $before MiB and has $(lv_mb vg/disk); $(blockdev --getsize64 /dev/vg/disk) bytes"
[[ $(lv_mb vg/disk) == $(($(blockdev --getsize64 /dev/vg/disk) >> 20)) ]] || fail "LVM and the kernel disagree"
cmp -n $((6 << 20)) "$dev" kept || fail "the device shows something else"
chain_down disk
clean_image /dev/vg/disk
lvchange -ay vg/disk.1.qcow2
clean_image /dev/vg/disk.1.qcow2
pass
