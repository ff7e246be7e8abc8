#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Snapshots deleted both ways and reverted to on LVs, in use and not; branches, tags, refusals.
# timeout: 600
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd mkfs.ext4

tags() { lvs --noheadings -o lv_tags "vg/$1" | tr -d ' '; }
lv_names() { lvs --noheadings -o lv_name vg | tr -d ' ' | sort | tr '\n' ' '; }
snapshots() { qchainctl tree disk --json | jq -r '[.layers[] | .snapshot // "-"] | join(" ")'; }
image_of() { qchainctl status disk --json | jq -r ".snapshots[] | select(.name == \"$1\") | .file"; }
top_of() { chain_json disk .top; }

# inactive WHEN: no LV is active.
inactive() { [[ $(lvs --noheadings -o lv_active vg | grep -c active) == 0 ]] || { lvs vg; fail "LVs are left active by $1"; }; }

# put N: some of the device is written with byte N.
put() { fio --name=put --filename="$dev" --rw=randwrite --bs=64k --size=32M --io_size=4M --randseed="$1" --direct=1 --buffer_pattern="$1" --minimal > /dev/null; }

# snap NAME N: a snapshot, whose content is kept in the file NAME; then N is written.
snap() {
	save_device "$dev" "$1"
	qchainctl snapshot disk "$1" > /dev/null || fail "snapshot $1"
	put "$2"
}

# shows NAME: the device shows what the file NAME has.
shows() {
	save_device "$dev" shown
	same "$1" shown "the device, which should be $1"
}

# holds NAME...: the snapshots do, in QEMU's eyes; and all LVs are clean.
holds() {
	local name
	for name in "$@"; do qemu_sees "$(image_of "$name")" "$name"; done
}

mkvg vg 512
qchainctl create vg/disk.qcow2 --size 32M || fail "create"
udevadm settle
vgchange -q -an vg > /dev/null # what `up` activates, `down` deactivates
udevadm settle
chain_up disk vg/disk.qcow2
put 1
snap a 2
snap b 3
snap c 4
[[ $(snapshots) == "- c b a" ]] || fail "tree shows $(snapshots)"

step "deleted under fio verify: by commit and by stream"
fio --name=load --filename="$dev" --rw=randrw --bs=4k-64k --size=32M --direct=1 --ioengine=libaio --iodepth=4 --verify=crc32c \
	--verify_backlog=64 --verify_state_save=0 --loops=2 --minimal > fio.out 2>&1 &
load=$!
qchainctl delete disk b || fail "delete b"
qchainctl delete disk c --wipe || fail "delete c"
wait $load || { cat fio.out; fail "fio verify"; }
[[ $(snapshots) == "- a" ]] || fail "tree shows $(snapshots)"
[[ $(lv_names) == "disk.3.qcow2 disk.qcow2 " ]] || fail "LVs: $(lv_names)"
[[ $(tags disk.3.qcow2) == *qchain.device=disk:*qchain.snapshot=1:a:* ]] || fail "tags: $(tags disk.3.qcow2)"
[[ $(tags disk.3.qcow2) != *qchain.dead* ]] || fail "tags: $(tags disk.3.qcow2)"
holds a

step "a mounted device is not reverted"
mkfs.ext4 -q -F "$dev"
mount "$dev" /mnt
must_fail qchainctl revert disk a 2> err
grep -q "in use" err || fail "$(cat err)"
umount /mnt
[[ $(lv_names) == "disk.3.qcow2 disk.qcow2 " ]] || fail "LVs after a refusal: $(lv_names)"

step "reverted, the old branch kept; and back, not served"
save_device "$dev" old
qchainctl revert disk a --keep old || fail "revert"
shows a
put 5
snap d 6
save_device "$dev" new
holds a old d
chain_down disk
inactive down
qchainctl revert disk old --keep new || fail "revert, not served"
inactive revert
chain_up disk
shows old
must_fail qchainctl delete disk a
qchainctl delete disk new || fail "delete of a branch"
qchainctl delete disk d || fail "delete of a branch"
qchainctl delete disk a || fail "delete a"
holds old
chain_down disk

if [[ -n $QCHAIN_FULL ]]; then # else on files, in tests/control/delete.py
	step "deleted, not served: both ways, LVs not active"
	chain_up disk
	put 7
	snap e 8
	snap f 9
	save_device "$dev" now
	chain_down disk
	qchainctl delete disk f --commit || fail "delete f"
	qchainctl delete disk e --stream || fail "delete e"
	inactive delete
	chain_up disk
	shows now
	holds old
	chain_down disk
fi

[[ $(lv_names | wc -w) == 2 ]] || fail "LVs are left: $(lv_names)"
vgchange -q -ay vg > /dev/null
for lv in $(lv_names); do clean_image "/dev/vg/$lv"; done
pass
