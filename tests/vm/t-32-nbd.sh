#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The same chain over NBD: libnbd's tools, QEMU, and the kernel's nbd.ko with a file system on it; ublk and NBD side by side.
# timeout: 240
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io nbdinfo nbdcopy nbd-client fio mkfs.ext4

sock=$TMPDIR/c.sock
uri="nbd+unix:///?socket=$sock"

nbd_off() { [[ ! -e /sys/block/nbd0/pid ]] || nbd-client -d /dev/nbd0 > /dev/null 2>&1; }

mkvg vg 160
old_data vg
mkchain vg c 40m 48m 3
qemu-img convert -f qcow2 -O raw /dev/vg/c-2 model

step "NBD only: what clients see"
at_exit chain_end disk
[[ $(qchainctl up disk vg/c-2 --no-ublk --nbd "$sock") == "$sock" ]] || fail "up does not print the socket"
[[ $(nbdinfo --size "$uri") == 41943040 ]] || fail "size $(nbdinfo --size "$uri")"
nbdinfo "$uri"
nbdcopy "$uri" shown
same model shown "nbdcopy"
qemu-img compare -q -f raw -F raw model "$uri" || fail "QEMU's client sees something else"
[[ $(nbdinfo --map "$uri" | awk '{ sum += $2 } END { print sum }') == 41943040 ]] || fail "nbdinfo --map does not cover the disk"

step "the kernel's client: fio, a file system"
at_exit nbd_off
nbd-client -unix "$sock" /dev/nbd0 > /dev/null
wait_for 20 "nbd0" eval '(($(blockdev --getsize64 /dev/nbd0) == 41943040))'
fio --name=nbd --allow_file_create=0 --filename=/dev/nbd0 --size=16M --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite --bs=16k --fsync=16 \
	--verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > fio.out 2>&1 || { cat fio.out; fail "fio found errors or wrong data"; }
mkfs.ext4 -q -F /dev/nbd0
mkdir mnt
mount /dev/nbd0 mnt
dd if=/dev/urandom of=mnt/data bs=1M count=4 status=none
cp mnt/data data
umount mnt
mount /dev/nbd0 mnt
same data mnt/data "file over NBD"
umount mnt
blkdiscard -o 20M -l 4M /dev/nbd0
nbd-client -d /dev/nbd0 > /dev/null 2>&1
nbdcopy "$uri" model
qchainctl down disk
[[ ! -e $sock ]] || fail "$sock is left"
qemu_sees /dev/vg/c-2 model
clean_image /dev/vg/c-2

step "ublk and NBD show one disk"
chain_up disk vg/c-2 --nbd "$sock"
dd if=data of="$dev" bs=1M count=4 seek=30 oflag=direct conv=notrunc,fsync status=none
nbdcopy "$uri" shown
dd if=data of=model bs=1M seek=30 conv=notrunc status=none
same model shown "written by ublk, read by NBD"
qemu-io -f raw -c 'write -q -P 0x99 512 70k' -c flush "$uri"
save_device "$dev" shown
qemu-io -f raw -c 'write -q -P 0x99 512 70k' model
same model shown "written by NBD, read by ublk"
chain_down disk
qemu_sees /dev/vg/c-2 model
clean_image /dev/vg/c-2
pass
