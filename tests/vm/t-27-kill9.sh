#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kill -9 of qchaind under fio with verification, again and again; qchainctl up takes the device over, fio sees nothing of it.
# timeout: 240
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io mkfs.ext4

lvm_filter
mkvg vg 160
old_data vg
mkchain vg c 48m 52m 2 extended_l2=on,cluster_size=128k
chain_up disk vg/c-1

step "crashes under fio"
fio --name=crash --allow_file_create=0 --filename="$dev" --size=40M --direct=1 --ioengine=io_uring --iodepth=16 --rw=randwrite --bsrange=4k-32k \
	--time_based --runtime=18 --verify=crc32c --verify_fatal=1 --verify_backlog=128 --minimal > fio.out 2>&1 &
fio=$!
wrote() { (($(awk '{ print $5 }' "/sys/block/${dev##*/}/stat") >= $1)); }
wait_for 60 "fio to write" wrote 50
for ((n = 0; n < 4; n++)); do
	sleep 2
	is_dead $fio && break
	crash disk
	[[ -b $dev ]] || fail "$dev went with its daemon"
	chain_is disk .state recoverable || fail "state $(chain_json disk .state), expected recoverable"
	node=$(qchainctl up disk) || fail "qchainctl up disk does not recover it"
	[[ $node == "$dev" ]] || fail "recovered as $node, expected $dev"
done
((n >= 2)) || fail "only $n crashes in the time of fio"
echo "$n crashes"
wait $fio || { cat fio.out; fail "fio saw errors or wrong data"; }
save_device "$dev" shown

step "acknowledged, not flushed, then a crash: still there"
dd if=/dev/urandom of=data bs=512 count=2001 status=none
dd if=data of="$dev" bs=512 seek=3 count=2001 oflag=direct conv=notrunc status=none &
wait $!
crash disk
qchainctl up disk > /dev/null
dd if="$dev" of=back bs=512 skip=3 count=2001 iflag=direct status=none
same data back "acknowledged writes after a crash"

step "a mounted file system waits for the successor"
mkfs.ext4 -q -F "$dev"
mkdir mnt
mount "$dev" mnt
crash disk
(cp data mnt/data && sync -f mnt && touch copied) &
copier=$!
sleep 1
[[ ! -e copied ]] || fail "written without a daemon"
qchainctl up disk > /dev/null
wait $copier || fail "copying failed"
umount mnt
mount "$dev" mnt
same data mnt/data "the file"
umount mnt

step "a crash of an unused device; down ends it cleanly"
save_device "$dev" shown
crash disk
chain_is disk .state recoverable || fail "state $(chain_json disk .state), expected recoverable"
qchainctl down disk || fail "down of a dead chain"
[[ ! -e $dev && ! -e /run/qchain/disk ]] || fail "left behind"
qemu_sees /dev/vg/c-1 shown
clean_image /dev/vg/c-1
clean_image /dev/vg/c-0
pass
