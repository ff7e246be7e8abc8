#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Requests of odd sizes, buffered bytes, and partitions: found by the kernel with --scan, left alone without it.
# timeout: 240
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io sfdisk mkfs.ext4

# put SECTOR SECTORS FLAGS: random data there, on the device and in the model.
put() {
	dd if=/dev/urandom of=piece bs=512 count="$2" status=none
	dd if=piece of="$dev" bs=$(($2 * 512)) seek=$(($1 * 512)) oflag="seek_bytes${3:+,$3}" conv=notrunc status=none
	dd if=piece of=model bs=512 seek="$1" conv=notrunc status=none
}

partitions() { find "/sys/block/${dev##*/}/" -maxdepth 1 -name "${dev##*/}p*" | wc -l; }

mkvg vg 160
old_data vg
mkchain vg c 40m 48m 3 extended_l2=on,cluster_size=128k
chain_up disk vg/c-2
save_device "$dev" model

step "direct requests of odd sizes, at odd places"
put 1 1 direct
put 255 3 direct
put 4095 2570 direct
put 16383 9001 direct
for ((i = 0; i < 25; i++)); do put $((RANDOM * 2 % 80000)) $((RANDOM % 300 + 1)) direct; done
dd if="$dev" of=shown bs=7681536 iflag=direct status=none
same model shown "direct reads of 7681536 bytes"

step "buffered bytes, no multiple of a sector"
for ((i = 0; i < 10; i++)); do
	at=$((RANDOM * 1000)) len=$((RANDOM + 1))
	dd if=/dev/urandom of=piece bs=$len count=1 status=none
	for out in "$dev" model; do
		dd if=piece of="$out" bs=$len oflag=seek_bytes seek=$at conv=notrunc status=none
	done
done
sync "$dev"
blockdev --flushbufs "$dev"
save_device "$dev" shown
same model shown "after buffered writes"
must_fail quiet dd if=piece of="$dev" bs=512 seek=81920 count=1 oflag=direct status=none
chain_down disk
qemu_sees /dev/vg/c-2 model

step "--scan: the kernel finds the partitions, udev makes their nodes"
chain_up disk vg/c-2 --scan
printf 'label: gpt\nsize=8MiB\nsize=16MiB\n' | sfdisk -q "$dev"
udevadm settle -t 30
wait_block "${dev}p2" 30
mkfs.ext4 -q -F "${dev}p2"
chain_down disk
chain_up disk vg/c-2 --scan
wait_block "${dev}p1" 30
wait_block "${dev}p2" 30
mkdir mnt
mount "${dev}p2" mnt
umount mnt
chain_down disk

step "without --scan: the host does not look"
chain_up disk vg/c-2
udevadm settle -t 30
if need=0x40000 && (($(ublk_features) & need)); then
	[[ $(partitions) == 0 ]] || fail "$(partitions) partitions of $dev were made without --scan"
else
	echo "this kernel looks for partitions whatever it is told: $(partitions) made"
fi
chain_down disk
clean_image /dev/vg/c-2
pass
