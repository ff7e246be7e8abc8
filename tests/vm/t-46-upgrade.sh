#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# qchainctl upgrade under fio with verification and on a mounted file system: another program serves the device, no user notices.
# timeout: 240
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io mkfs.ext4
export QCHAIN_RESTARTS=10

exe() { readlink "/proc/$(chain_json disk .pid)/exe"; }
writes() { awk '{ print $5 }' "/sys/block/${dev##*/}/stat"; }
wrote() { (($(writes) >= $1)); }

lvm_filter
mkvg vg 160
mkchain vg c 48m 52m 2 extended_l2=on,cluster_size=128k
chain_up disk vg/c-1
for version in 1 2; do
	mkdir "$TMPDIR/$version"
	cp "$QCHAIN_BUILD/qchaind" "$QCHAIN_BUILD/qchainctl" "$TMPDIR/$version"
done

step "under fio"
fio --name=upgrade --allow_file_create=0 --filename="$dev" --size=40M --direct=1 --ioengine=io_uring --iodepth=16 --rw=randwrite \
	--bsrange=4k-32k --time_based --runtime=200 --verify=crc32c --verify_fatal=1 --verify_backlog=64 > fio.out 2>&1 &
fio=$!
for version in 1 2 1; do
	wait_for 60 "fio to write" wrote $(($(writes) + 50))
	"$TMPDIR/$version/qchainctl" upgrade disk || fail "upgrade"
	[[ $(exe) == "$TMPDIR/$version/qchaind" ]] || fail "$(exe) serves it"
	[[ $(chain_json disk .device) == "$dev" ]] || fail "another device"
done
wait_for 60 "fio to write" wrote $(($(writes) + 50))
kill -INT $fio
wait $fio || true # its status tells of the signal
{ grep -q 'err= 0' fio.out && ! grep 'verify:' fio.out; } || { cat fio.out; fail "fio saw errors or wrong data"; }
qchainctl status disk | grep -A1 guard

step "with a mounted file system"
mkfs.ext4 -q -F "$dev"
mkdir mnt
mount "$dev" mnt
dd if=/dev/urandom of=data bs=1M count=8 status=none
cp data mnt/data
"$TMPDIR/2/qchainctl" upgrade disk --json | jq '."pause-ms"'
same data mnt/data "the file"
umount mnt
save_device "$dev" shown
chain_down disk
qemu_sees /dev/vg/c-1 shown
clean_image /dev/vg/c-1
pass
