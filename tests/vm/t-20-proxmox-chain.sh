#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A chain of four LVs as Proxmox VE makes it, on a VG full of old data: a block device that file systems live on, images that QEMU accepts.
# timeout: 300
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io mkfs.ext4 mkfs.xfs

disk=vm-103-disk-0.qcow2
top=/dev/pve/$disk

# files_on KIND CHECK...: a file system of this kind holds files, and its own checker finds nothing.
files_on() {
	local kind=$1
	shift
	mkdir -p mnt
	mount -t "$kind" "$dev" mnt
	cp "$TMPDIR/data" mnt/data
	mkdir mnt/many
	(cd mnt/many && for ((i = 0; i < 200; i++)); do echo "$kind $i" > "file-$i"; done)
	umount mnt
	"$@" > fsck.out 2>&1 || { cat fsck.out; fail "$* on $dev"; }
	mount -t "$kind" "$dev" mnt
	same "$TMPDIR/data" mnt/data "$kind: file read back"
	[[ $(cat mnt/many/file-* | sort -u | wc -l) == 200 ]] || fail "$kind: small files are missing"
	umount mnt
}

step "Proxmox VE's chain: one disk, three snapshots"
mkvg pve 224
old_data pve
pve_create pve $disk 49152
fill_layer $top 0
n=0
for snap in first second third; do
	pve_snapshot pve $disk $snap
	n=$((n + 1))
	[[ $snap == third ]] || fill_layer $top $n
done
lvs --noheadings -o lv_name,lv_size,lv_tags pve
qemu-img convert -f qcow2 -O raw $top before
sums /dev/pve/snap_* > sums.before

step "up: the device shows what QEMU shows"
chain_up vm103 pve/$disk
[[ $(blockdev --getsize64 "$dev") == 50331648 ]] || fail "$dev has another size than the disk"
save_device "$dev" shown
same before shown "what $dev shows"
[[ $(readlink -f /dev/qchain/vm103) == "$dev" ]] || fail "/dev/qchain/vm103 is not $dev"
qchainctl list
qchainctl tree vm103 | tee tree
layers=$(qchainctl tree vm103 --json | jq -r '[.layers[].file | sub(".*/"; "")] | join(" ")')
[[ $layers == "$disk snap_vm-103-disk-0_third.qcow2 snap_vm-103-disk-0_second.qcow2 snap_vm-103-disk-0_first.qcow2" ]] ||
	fail "tree shows the layers $layers"

step "ext4 on it"
dd if=/dev/urandom of=data bs=1M count=6 status=none
mkfs.ext4 -q -F "$dev"
files_on ext4 e2fsck -fn "$dev"

step "xfs on it"
mkfs.xfs -q -f --unsupported "$dev"
files_on xfs xfs_repair -n "$dev"

step "down: QEMU shows what the device showed, and finds nothing wrong"
save_device "$dev" shown
chain_down vm103
qemu_sees $top shown
for image in /dev/pve/*; do clean_image "$image"; done
sums /dev/pve/snap_* > sums.after
same sums.before sums.after "backing LVs were changed"
pass
