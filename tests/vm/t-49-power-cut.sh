#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Power cuts: dm-log-writes below the VG tells what was durable at each flush; there, image, chain and file system are whole, and every synced file is there.
# timeout: 500
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img mkfs.ext4 e2fsck python3
modprobe -a dm-log-writes dm-snapshot

megabytes=400 cuts=${QCHAIN_FULL:+40}
cuts=${cuts:-3}
seed=$RANDOM
lvm_conf <<< 'devices { global_filter = [ "a|^/dev/mapper/logged$|", "a|^/dev/mapper/cut$|", "r|.*|" ] }'
sectors=$((megabytes * 2048))

# old_disk DISK: what the disk holds from former lives.
old_disk() {
	fio --name=old --allow_file_create=0 --filename="$1" --rw=write --bs=1M --size="${megabytes}M" --direct=1 --ioengine=sync \
		--buffer_pattern="\"$old_text\"" --minimal > /dev/null
}

mark() { dmsetup message logged 0 mark "$1"; }

# file N: a new file, durable when the mark is set.
file() {
	dd if=/dev/urandom of="mnt/f$1" bs=37k count=4 conv=fsync status=none
	(cd mnt && md5sum "f$1") > "sum.$1"
	mark "file-$1"
}

files() {
	local n
	for ((n = $1; n <= $2; n++)); do file "$n"; done
}

step "life of a device, $megabytes MiB below it, seed $seed"
old_disk /dev/ram0
old_disk /dev/ram2
dmsetup create logged --table "0 $sectors log-writes /dev/ram0 /dev/ram1"
wait_block /dev/mapper/logged 20
pvcreate -q -y /dev/mapper/logged > /dev/null
vgcreate -q vg /dev/mapper/logged > /dev/null
qchainctl create vg/disk.qcow2 --size 48M || fail "create"
chain_up disk vg/disk.qcow2
mkfs.ext4 -q -F "$dev"
mkdir mnt
mount "$dev" mnt
files 1 3
for snap in one two three; do
	qchainctl snapshot disk $snap > /dev/null || fail "snapshot $snap"
	files $(($(ls sum.* | wc -l) + 1)) $(($(ls sum.* | wc -l) + 2))
done
(file 10 && file 11) &
writer=$!
qchainctl delete disk two --commit > /dev/null || fail "delete two"
wait $writer
(file 12 && file 13) &
writer=$!
qchainctl delete disk three --stream > /dev/null || fail "delete three"
wait $writer
files 14 14
umount mnt
chain_down disk
vgchange -q -an vg > /dev/null || fail "an LV is in use"
dmsetup remove logged

# sound_image IMAGE: no error; what a cut has leaked may not be found yet.
sound_image() {
	local rc=0
	qemu-img check -f qcow2 "$1" > check.out 2>&1 || rc=$?
	((rc == 0 || rc == 3)) || { cat check.out; fail "$1: qemu-img check finds errors"; }
}

# verified MARK: what is there after the cut holds all that was durable at that mark.
verified() {
	local last=${1#file-} n
	rm -rf /run/qchain
	chain_up disk
	mount "$dev" mnt
	for ((n = 1; n <= last; n++)); do
		(cd mnt && md5sum --quiet -c "../sum.$n") || fail "f$n, which was synced, is not what it was"
	done
	umount mnt
	e2fsck -fn "$dev" > fsck.out 2>&1 || { cat fsck.out; fail "e2fsck"; }
	wait_for 60 "jobs to end" no_jobs
	chain_down disk
	vgchange -q -ay vg > /dev/null
	udevadm settle
	for lv in $(lvs --noheadings -o lv_name vg); do
		! head -c 3 "/dev/vg/$lv" | grep -q QFI || sound_image "/dev/vg/$lv"
	done
	vgchange -q -an vg > /dev/null || fail "an LV is in use"
}

no_jobs() { [[ $(qchainctl job list disk --json | jq '[.[] | select(.status != "concluded")] | length') == 0 ]]; }

replayed=0
"${0%/*}/log-writes.py" points /dev/ram1 $cuts $seed file- > points || fail "the log"
while read -r entry last; do
	step "cut behind entry $entry, after $last"
	"${0%/*}/log-writes.py" replay /dev/ram1 /dev/ram2 $replayed "$entry"
	replayed=$entry
	dmsetup create cut --table "0 $sectors snapshot /dev/ram2 /dev/ram3 N 8"
	wait_block /dev/mapper/cut 20
	verified "$last" < /dev/null
	dmsetup remove --retry cut
done < points
pass
