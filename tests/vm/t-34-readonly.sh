#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# --read-only changes not a byte of any LV, also not of one that is locked by LVM; --snapshot shows an internal snapshot by name.
# timeout: 180
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io

must_be_ro() {
	[[ $(blockdev --getro "$dev") == 1 ]] || fail "$dev is not read-only"
	must_fail quiet dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct status=none
	must_fail quiet blkdiscard "$dev"
}

mkvg vg 128
mkchain vg c 32m 40m 2
qemu-img convert -f qcow2 -O raw /dev/vg/c-1 model
sums /dev/vg/* > sums.before

step "--read-only"
chain_up disk vg/c-1 --read-only
must_be_ro
save_device "$dev" shown
same model shown "read-only content"
[[ $(chain_json disk '.status."read-only"') == true ]] || fail "status does not say read-only"
step "two readers of one chain"
chain_up second vg/c-1 --read-only
save_device "$dev" shown
same model shown "content of the second reader"
must_fail qchainctl up third vg/c-1
chain_down second
chain_down disk
sums /dev/vg/* > sums.after
same sums.before sums.after "LVs were changed by a read-only life"

step "LVs that LVM has made read-only"
lvchange -q -pr vg/c-1 vg/c-0 > /dev/null
chain_up disk vg/c-1 --read-only
save_device "$dev" shown
same model shown "content of read-only LVs"
chain_down disk
lvchange -q -prw vg/c-1 vg/c-0 > /dev/null

step "an internal snapshot"
qemu-img snapshot -c monday /dev/vg/c-1
qemu-io -f qcow2 -c 'write -q -P 0x66 0 4M' /dev/vg/c-1
qemu-img snapshot -c tuesday /dev/vg/c-1
qemu-io -f qcow2 -c 'write -q -P 0x67 1M 4M' -c 'write -q -z 6M 1M' /dev/vg/c-1
sums /dev/vg/* > sums.before
for snap in monday tuesday; do
	qemu-img convert -f qcow2 -O raw -l snapshot.name=$snap /dev/vg/c-1 model.$snap
	chain_up $snap vg/c-1 --snapshot $snap
	must_be_ro
	save_device "$dev" shown
	same model.$snap shown "snapshot $snap"
	chain_down $snap
done
must_fail cmp -s model.monday model.tuesday
if qchainctl up other vg/c-1 --snapshot sunday > up.out 2>&1; then fail "a snapshot that is not there was served"; fi
cat up.out
grep -q sunday up.out || fail "the refusal does not name the snapshot"
sums /dev/vg/* > sums.after
same sums.before sums.after "LVs were changed by looking at a snapshot"

step "written with snapshots in the image: they keep their content"
qemu-img convert -f qcow2 -O raw /dev/vg/c-1 model
chain_up disk vg/c-1
dd if=/dev/urandom of=data bs=512 count=1501 status=none
dd if=data of="$dev" bs=512 seek=1000 oflag=direct conv=notrunc status=none
dd if=data of=model bs=512 seek=1000 conv=notrunc status=none
save_device "$dev" shown
same model shown "after writing"
chain_down disk
clean_image /dev/vg/c-1
for snap in monday tuesday; do
	qemu-img convert -f qcow2 -O raw -l snapshot.name=$snap /dev/vg/c-1 shown
	same model.$snap shown "snapshot $snap after writing"
done
pass
