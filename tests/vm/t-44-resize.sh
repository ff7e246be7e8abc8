#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A device in use grows: LV, image, ublk device where the kernel can, the file system on it; it gets another name; kill -9 on the way.
# timeout: 240
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl

bytes() { blockdev --getsize64 "$1"; }
lv_bytes() { lvs --noheadings --nosuffix --units b -o lv_size "vg/$1" | tr -d ' '; }
virtual() { qemu-img info -U --output=json -f qcow2 "/dev/vg/$1" | jq '."virtual-size"'; }
grown() { [[ $(bytes "$dev") == "$1" ]]; }

mkvg vg 512
old_data vg
# a base that is longer than the disk, and not empty there
mklv vg base 96M
qemu-img create -q -f qcow2 /dev/vg/base 80M
qemu-io -f qcow2 -c "write -q -P 7 60M 20M" /dev/vg/base
qchainctl create vg/disk.qcow2 --size 64M --backing vg/base --backing-format qcow2 || fail "create"
qemu-io -f qcow2 -c "write -q -z 0 64M" /dev/vg/disk.qcow2
chain_up disk vg/disk.qcow2
live=$(qchainctl status disk --json | jq -r '[.exports[].features[]?] | index("update-size") != null')
before=$(lv_bytes disk.qcow2)

step "a mounted ext4 grows under load (the kernel can grow the device: $live)"
mkfs.ext4 -q "$dev" || fail "mkfs"
mkdir -p mnt
mount "$dev" mnt
at_exit umount -l "$PWD/mnt"
head -c 4M /dev/urandom > mnt/file
sum=$(md5sum < mnt/file)
fio --name=load --filename=mnt/load --rw=randwrite --bs=4k-64k --size=8M --direct=1 --verify=crc32c --verify_backlog=64 \
	--verify_state_save=0 --minimal > fio.out 2>&1 &
load=$!
qchainctl resize disk 100M > answer || fail "resize"
cat answer
wait $load || { cat fio.out; fail "fio verify"; }
[[ $(virtual disk.qcow2) == $((100 << 20)) ]] || fail "the image has $(virtual disk.qcow2) bytes"
(($(lv_bytes disk.qcow2) > before)) || fail "the LV did not grow"
if [[ $live == true ]]; then
	grown $((100 << 20)) || fail "the device has $(bytes "$dev") bytes"
	resize2fs "$dev" > /dev/null 2>&1 || fail "resize2fs"
	(($(stat -f -c '%b * %S' mnt) > 80 << 20)) || fail "the file system did not grow"
else
	grep -q "stays at 64 MiB until qchainctl down" answer || fail "nothing is said of the device"
	grown $((64 << 20)) || fail "the device has $(bytes "$dev") bytes"
fi
[[ $(md5sum < mnt/file) == "$sum" ]] || fail "the file has changed"
umount mnt
e2fsck -fn "$dev" > fsck.out 2>&1 || { cat fsck.out; fail "fsck"; }

step "kill -9 of the daemon when the size is durable: the device grows when it is taken over"
pid=$(chain_json disk .pid)
chain_down disk
export QCHAIN_CRASH_POINT=resize.sized
chain_up disk vg/disk.qcow2
unset QCHAIN_CRASH_POINT
grown $((100 << 20)) || fail "the device has $(bytes "$dev") bytes"
must_fail qchainctl resize disk 128M
pid=$(jq .pid /run/qchain/disk/state.json)
wait_dead "$pid" 30
qchainctl up disk > /dev/null || fail "takeover"
[[ $live != true ]] || wait_for 10 "the device grows" grown $((128 << 20))
chain_down disk

step "what is new reads as zero, whatever LV and base hold"
chain_up disk vg/disk.qcow2
grown $((128 << 20)) || fail "the device has $(bytes "$dev") bytes"
cmp -n $((28 << 20)) -i $((100 << 20)):0 "$dev" /dev/zero || fail "old bytes appear"
step "another name while it is in use, killed half way"
for point in recorded linked; do
	QCHAIN_CRASH_POINT=rename.$point qchainctl rename disk other && fail "not killed at $point"
done
qchainctl rename disk other || fail "rename"
wait_for 10 "the link has the new name" test -e /dev/qchain/other -a ! -e /dev/qchain/disk
[[ $(readlink -f /dev/qchain/other) == "$dev" && ! -e /run/qchain/disk ]] || fail "links"
[[ $(lvs --noheadings -o lv_tags vg/disk.qcow2) == *qchain.device=other:* ]] || fail "tags"
at_exit chain_end other
crash other
qchainctl up other > /dev/null || fail "takeover under the new name"
dd if=/dev/urandom of="$dev" bs=1M seek=100 count=28 oflag=direct status=none || fail "the new space cannot be written"
save_device "$dev" now
chain_down other
qemu_sees /dev/vg/disk.qcow2 now
clean_image /dev/vg/disk.qcow2

# raw_chain: a raw base of 16 MiB on old data, and longer overlays that map little
raw_chain() {
	lvs vg/raw &> /dev/null && lvremove -q -f -y vg/raw vg/low.qcow2 vg/top.qcow2 > /dev/null
	mklv vg raw 16M
	fio --name=fill --allow_file_create=0 --filename=/dev/vg/raw --rw=write --bs=1M --direct=1 --ioengine=sync --minimal > /dev/null
	qchainctl create vg/low.qcow2 --size 24M --backing vg/raw --backing-format raw > /dev/null || fail "create"
	qchainctl create vg/top.qcow2 --size 24M --backing vg/low.qcow2 --backing-format qcow2 > /dev/null || fail "create"
	qemu-io -f qcow2 -c "write -q -P 3 22M 64k" /dev/vg/low.qcow2
	qemu-img convert -f qcow2 -O raw /dev/vg/top.qcow2 before
}

judge_raw() {
	qemu_sees /dev/vg/top.qcow2 before
	(($(lv_bytes raw) == 24 << 20)) || fail "the raw LV has $(lv_bytes raw) bytes"
	same before /dev/vg/raw "the raw base, $1"
	clean_image /dev/vg/top.qcow2
}

step "a raw base that is shorter gets longer, whatever its LV holds then; killed when that is so"
raw_chain
chain_up raw vg/top.qcow2
QCHAIN_CRASH_POINT=merge.covered qchainctl commit raw --top vg/low.qcow2 && fail "not killed"
lvextend -q -L 24M vg/raw > /dev/null || fail "lvextend"
dd if=/dev/vg/raw of=end bs=1M skip=16 iflag=direct status=none
grep -q "$old_text" end || fail "the new room of the LV has no old data"
crash raw
qemu-img convert -U -f qcow2 -O raw /dev/vg/top.qcow2 now
same before now "what a VM would see"
qchainctl up raw > /dev/null || fail "takeover"
qchainctl commit raw --top vg/low.qcow2 || fail "commit"
chain_down raw
judge_raw "served, killed"

step "the active layer goes down into the raw base, which is the device then, killed and by name"
dd if=/dev/zero of=/dev/vg/low.qcow2 bs=4k count=1 oflag=direct status=none # it stands on the base
chain_up raw vg/top.qcow2
qchainctl commit raw || fail "commit of the active layer"
[[ $(lvs --noheadings -o tags vg/raw) == *qchain.format=raw* ]] || fail "the record does not say that the top is raw"
crash raw
qchainctl up raw > /dev/null || fail "takeover"
dd if=/dev/urandom of=/dev/qchain/raw bs=1M count=1 oflag=direct status=none
blkdiscard -z -o 1M -l 4M /dev/qchain/raw || fail "zeroes"
save_device /dev/qchain/raw before
chain_down raw
same before /dev/vg/raw "the raw LV"
chain_up raw vg
save_device "$dev" now
same before now "the device, by name"
chain_down raw
raw_chain
qchainctl commit vg/top.qcow2 --top vg/low.qcow2 --base vg/raw || fail "commit"
judge_raw "not served"
pass
