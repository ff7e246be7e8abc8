#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Snapshots of a device in use on LVs: under fio verify, names and tags, what is refused, kill -9 of qchainctl, reboot.
# timeout: 600
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl

tags() { lvs --noheadings -o lv_tags "vg/$1" | tr -d ' '; }
lv_names() { lvs --noheadings -o lv_name vg | tr -d ' ' | sort | tr '\n' ' '; }
snapshots() { qchainctl tree disk --json | jq -r '[.layers[] | .snapshot // "-"] | join(" ")'; }
sealed() { [[ $(qchainctl tree disk --json | jq -r '[.layers[] | select(.state == "sealing")] | length') == 0 ]]; }

mkvg vg 512
old_data vg
qchainctl create vg/disk.qcow2 --size 64M || fail "create"
chain_up disk vg/disk.qcow2
[[ $(tags disk.qcow2) == *qchain.device=disk:1:* ]] || fail "no record: $(tags disk.qcow2)"

step "three snapshots under fio verify"
fio --name=base --filename="$dev" --rw=write --bs=1M --size=32M --direct=1 --verify=crc32c --do_verify=0 \
	--verify_state_save=0 --minimal > /dev/null || fail "fio"
save_device "$dev" first
qchainctl snapshot disk one || fail "snapshot"
fio --name=load --filename="$dev" --rw=randrw --bs=4k-64k --size=32M --offset=0 --direct=1 --ioengine=libaio --iodepth=8 \
	--verify=crc32c --verify_backlog=64 --verify_state_save=0 --loops=2 --minimal > fio.out 2>&1 &
load=$!
qchainctl snapshot disk two || fail "snapshot under load"
qchainctl snapshot disk three --size 80M --json > answer || fail "snapshot under load"
wait $load || { cat fio.out; fail "fio verify"; }
[[ $(jq -r .top answer) == /dev/vg/disk.3.qcow2 ]] || fail "$(cat answer)"
[[ $(snapshots) == "- three two one" ]] || fail "tree shows $(snapshots)"
wait_for 30 "all is sealed" sealed
save_device "$dev" now

step "tags: one record, on the top, with all names"
[[ $(tags disk.3.qcow2) == *qchain.device=disk:4:* ]] || fail "$(tags disk.3.qcow2)"
[[ $(tags disk.3.qcow2 | tr , '\n' | grep -c qchain.snapshot=) == 3 ]] || fail "$(tags disk.3.qcow2)"
for lv in disk.qcow2 disk.1.qcow2 disk.2.qcow2; do
	[[ $(tags $lv) != *qchain.[dsn]* ]] || fail "$lv has $(tags $lv)"
done
[[ -z $(lvs --noheadings -o lv_autoactivation vg/disk.3.qcow2 | tr -d ' ' | grep enabled) ]] || fail "auto-activation is on"

step "down; the old top is not written, the snapshot is what it was"
chain_down disk
vgchange -q -ay vg > /dev/null
qemu_sees /dev/vg/disk.qcow2 first
qemu_sees /dev/vg/disk.3.qcow2 now
for lv in disk.qcow2 disk.1.qcow2 disk.2.qcow2 disk.3.qcow2; do clean_image /dev/vg/$lv; done
must_fail qchainctl up disk vg/disk.qcow2
must_fail qchainctl up other vg/disk.1.qcow2
must_fail qchaind --export nbd,socket="$TMPDIR/s" /dev/vg/disk.qcow2
vgchange -q -an vg > /dev/null || fail "an LV is in use"
must_fail qchainctl up other vg/disk.qcow2
[[ $(lvs --noheadings -o lv_active vg | grep -c active) == 0 ]] || fail "LVs are left active"
chain_up old vg/disk.qcow2 --read-only
save_device "$dev" shown
same first shown "snapshot one"
chain_down old

step "up by the name alone, after a reboot"
rm -rf /run/qchain
chain_up disk
[[ $(chain_json disk .top) == /dev/vg/disk.3.qcow2 ]] || fail "another top"
save_device "$dev" shown
same now shown "device"
[[ $(snapshots) == "- three two one" ]] || fail "tree shows $(snapshots)"

step "kill -9 of qchainctl at each crash point; the next one clears up"
names=$(lv_names)
points=(formatted recorded) # all of them natively, in tests/control/snapshot.py
[[ -z $QCHAIN_FULL ]] || points=(created formatted unrecorded recorded noted)
for point in "${points[@]}"; do
	QCHAIN_CRASH_POINT=snapshot.$point qchainctl snapshot disk four && fail "not killed at $point"
	[[ $(lv_names) != "$names" ]] || fail "nothing to clear up at $point"
	must_fail qchainctl snapshot disk one
	[[ $(lv_names) == "$names" ]] || fail "left after $point: $(lv_names)"
	[[ $(tags disk.3.qcow2) == *qchain.device=disk:* ]] || fail "no record after $point"
done
QCHAIN_CRASH_POINT=snapshot.recorded qchainctl snapshot disk four && fail "not killed"
crash disk
chain_up disk
save_device "$dev" shown
same now shown "device after kill -9 of both"
qchainctl snapshot disk five || fail "snapshot after a crash"
chain_down disk

step "unknown neighbours stop the first up only"
lvcreate -q -y -an -L 4m -n strange vg > /dev/null
lvcreate -q -y -Wn -Zn -L 16m -n second vg > /dev/null
qemu-img create -q -f qcow2 /dev/vg/second 8M
chain_up second vg/second
[[ $(lvs --noheadings -o lv_active vg/strange) != *active* ]] || fail "the look left an LV active"
chain_down second

step "a volume of Proxmox VE keeps its naming"
mkvg pve 256
pve_create pve vm-103-disk-0.qcow2 32768
pve_snapshot pve vm-103-disk-0.qcow2 test
must_fail qchainctl up vm pve/snap_vm-103-disk-0_test.qcow2
chain_up vm pve/vm-103-disk-0.qcow2
must_fail qchainctl snapshot vm 1st 2> err
grep -q "Proxmox VE" err || fail "$(cat err)"
chain_down vm
[[ $(lvs --noheadings -o lv_tags pve/vm-103-disk-0.qcow2) != *qchain* ]] || fail "tags were added"
pass
