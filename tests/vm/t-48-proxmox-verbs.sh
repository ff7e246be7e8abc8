#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A chain of four that Proxmox VE made, on LVs, goes through snapshot, delete both ways and revert under load, and stays one.
# timeout: 600
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io

disk=vm-103-disk-0.qcow2
top=/dev/pve/$disk
snap_lv() { echo "snap_${disk%.qcow2}_$1.qcow2"; }

# pve_activate: all that is called as the volume or a snapshot of it, as Proxmox VE does it.
pve_activate() {
	lvchange -q -aey --select "vg_name=\"pve\" && lv_name=~'^(${disk%.qcow2}|snap_${disk%.qcow2}_.+)\\.qcow2\$'" > /dev/null
	udevadm settle
}

# pve_valid SNAP...: Proxmox VE's rules, oldest snapshot first; the volume is not served.
pve_valid() {
	local wanted=$disk below image i names=("$@") lvs
	for ((i = $# - 1; i >= 0; i--)); do wanted+=" $(snap_lv "${names[i]}")"; done
	pve_activate
	qemu-img info --backing-chain --output=json $top > info.json || fail "qemu-img info"
	[[ $(jq -r '[.[].filename | sub(".*/"; "")] | join(" ")' info.json) == "$wanted" ]] ||
		fail "the chain is $(jq -r '[.[].filename] | join(" ")' info.json), expected $wanted"
	below=$(jq -r '[.[] | ."backing-filename" // "-"] | join(" ")' info.json)
	[[ "$disk $below" == "$wanted -" ]] || fail "headers name $below"
	[[ $(jq -r '[.[] | ."backing-filename-format" // "-"] | unique | join(" ")' info.json) == "- qcow2" ]] || fail "backing formats"
	lvs=$(lvs --noheadings -o lv_name pve | tr -d ' ' | sort | tr '\n' ' ')
	[[ $lvs == "$(tr ' ' '\n' <<< "$wanted" | sort | tr '\n' ' ')" ]] || fail "LVs: $lvs"
	for image in $wanted; do
		[[ $(lvs --noheadings -o lv_tags "pve/$image" | tr -d ' ') == "pve-vm-103,pve-$disk" ]] ||
			fail "tags of $image: $(lvs --noheadings -o lv_tags "pve/$image")"
		big_enough "$image"
		clean_image "/dev/pve/$image"
	done
}

# big_enough LV: as Proxmox VE measures it.
big_enough() {
	local kib options=()
	kib=$(($(qemu-img info --output=json -f qcow2 "/dev/pve/$1" | jq '."virtual-size"') / 1024))
	[[ $(qemu-img info --output=json -f qcow2 "/dev/pve/$1" | jq -r '."backing-filename" // ""') == "" ]] ||
		options=(-o extended_l2=on,cluster_size=128k)
	(($(blockdev --getsize64 "/dev/pve/$1") >= $(pve_measure $kib "${options[@]}") * 1024)) || fail "$1 is too small"
}

inactive() { [[ $(lvs --noheadings -o lv_active pve | grep -c active) == 0 ]] || { lvs pve; fail "LVs are left active by $1"; }; }

step "Proxmox VE's chain: one disk, three snapshots"
mkvg pve 448
old_data pve
pve_create pve $disk 24576
n=0
for snap in first second third; do
	fill_layer $top $n
	qemu-img convert -f qcow2 -O raw $top content.$snap
	pve_snapshot pve $disk $snap
	n=$((n + 1))
done
vgchange -q -an pve > /dev/null
udevadm settle
chain_up vm103 pve/$disk

step "snapshot, delete by commit and by stream, under fio verify"
fio --name=load --filename="$dev" --rw=randrw --bs=4k-64k --size=16M --direct=1 --ioengine=libaio --iodepth=4 --verify=crc32c \
	--verify_backlog=64 --verify_state_save=0 --time_based --runtime=8 --minimal > fio.out 2>&1 &
load=$!
qchainctl snapshot vm103 fourth || fail "snapshot"
qchainctl delete vm103 second --commit || fail "delete second"
qchainctl delete vm103 fourth --stream || fail "delete fourth"
wait $load || { cat fio.out; fail "fio verify"; }
layers=$(qchainctl tree vm103 --json | jq -r '[.layers[] | .snapshot // "-"] | join(" ")')
[[ $layers == "- third first" ]] || fail "tree shows $layers"
save_device "$dev" shown
chain_down vm103
inactive down
pve_valid first third
qemu_sees $top shown
for snap in first third; do qemu_sees "/dev/pve/$(snap_lv $snap)" content.$snap; done

step "killed between two renames, and daemon with it: up goes on"
chain_up vm103 pve/$disk
QCHAIN_CRASH_POINT=proxmox.renamed qchainctl snapshot vm103 fifth 2> /dev/null && fail "it was not killed"
[[ ! -e $top ]] || fail "$top is there between the renames"
crash vm103
qchainctl up vm103 || fail "up"
save_device "$dev" again
same shown again "the device after that"

step "Proxmox VE goes on with it, and we with that"
chain_down vm103
pve_valid first third fifth
fill_layer $top 3
qemu-img convert -f qcow2 -O raw $top content.sixth
pve_snapshot pve $disk sixth
fill_layer $top 4

step "revert, served and not"
chain_up vm103 pve/$disk
qchainctl revert vm103 sixth || fail "revert to the newest"
save_device "$dev" shown
same content.sixth shown "the device"
chain_down vm103
pve_valid first third fifth sixth
if [[ -n $QCHAIN_FULL ]]; then # else on files, in tests/control/proxmox.py
	vgchange -q -an pve > /dev/null
	udevadm settle
	qchainctl revert $disk third pve --drop-snapshots || fail "revert, not served"
	qchainctl delete $disk first pve || fail "delete, not served"
	inactive revert
	pve_valid third
	qemu_sees $top content.third
fi
pass
