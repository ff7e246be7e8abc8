#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Commit of the active layer of a device in use on LVs: under fio verify, the record on another LV, reboot.
# timeout: 400
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl

tags() { lvs --noheadings -o lv_tags "vg/$1" | tr -d ' '; }
layers() { qchainctl tree disk --json | jq -r '[.layers[]."node-name"] | join(" ")'; }
has_header() { [[ $(head -c 3 "/dev/vg/$1" | tr -d "\0") == QFI ]]; }

load() { # a guest that rewrites half of it, twice, and checks it
	fio --name=load --filename="$dev" --rw=randrw --bs=4k-64k --size=24M --direct=1 --ioengine=libaio --iodepth=8 \
		--verify=crc32c --verify_backlog=64 --verify_state_save=0 --loops=2 --minimal > load.out 2>&1
}

mkvg vg 512
old_data vg
qchainctl create vg/disk.qcow2 --size 48M || fail "create"
chain_up disk vg/disk.qcow2
fio --name=base --filename="$dev" --rw=write --bs=1M --size=48M --direct=1 --minimal > /dev/null || fail "fio"
qchainctl snapshot disk one || fail "snapshot"
fio --name=mid --filename="$dev" --rw=randwrite --bs=64k --io_size=16M --size=48M --direct=1 --minimal > /dev/null || fail "fio"
qchainctl snapshot disk two || fail "snapshot"
[[ $(layers) == "disk.2.qcow2 disk.1.qcow2 disk.qcow2" ]] || fail "layers: $(layers)"

step "all of it into the base, under fio verify"
load &
load=$!
qchainctl commit disk --base vg/disk.qcow2 --drop-snapshots --json > answer || fail "commit"
echo "moved $(jq .moved answer) bytes"
wait $load || { cat load.out; fail "fio verify"; }
[[ $(layers) == disk.qcow2 ]] || fail "layers: $(layers)"
[[ $(tags disk.qcow2) == *qchain.device=disk:* ]] || fail "no record: $(tags disk.qcow2)"
for lv in disk.1.qcow2 disk.2.qcow2; do
	[[ $(tags $lv) != *qchain.* ]] || fail "$lv has $(tags $lv)"
	has_header $lv && fail "$lv still has a header"
done
save_device "$dev" now
chain_down disk
vgchange -q -ay vg > /dev/null
qemu_sees /dev/vg/disk.qcow2 now
clean_image /dev/vg/disk.qcow2
vgchange -q -an vg > /dev/null || fail "an LV is in use"

step "up by the name alone, after a reboot"
rm -rf /run/qchain
chain_up disk
[[ $(chain_json disk .top) == /dev/vg/disk.qcow2 ]] || fail "another top"
save_device "$dev" shown
same now shown "device"
chain_down disk
