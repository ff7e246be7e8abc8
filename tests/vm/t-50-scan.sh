#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# One VG with chains of all managers, one of each broken: scan finds them and changes nothing, up serves them in place.
# timeout: 300
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io qemu-nbd

u() { printf '%08x-0000-4000-8000-000000000000' "$1"; }

# image LV BACKING [LVCREATE_OPTION...]: a qcow2 LV of 8 MiB with some data; BACKING as it stands in the header, "" none.
image() {
	local name=$1 backing=$2
	shift 2
	mklv vg "$name" 12m "$@"
	qemu-img create -q -f qcow2 ${backing:+-u -b "$backing" -F qcow2} "/dev/vg/$name" 8M
}

# fill LV PATTERN OFFSET: only while nothing below is asked for.
fill() { qemu-io -f qcow2 -c "write -q -P $2 $3 64k" "/dev/vg/$1"; }

scan() { qchainctl scan vg --json "$@" > scan.json; }

# found NAME FILTER EXPECTED: of the one chain that is called so.
found() {
	local is
	is=$(jq -r --arg name "$1" ".[0].chains[] | select(.name == \$name) | $2" scan.json)
	[[ $is == "$3" ]] || { cat scan.json; fail "$1: $2 is '$is', expected '$3'"; }
}

# serves NAME LV PATTERN: up shows what the base holds.
serves() {
	chain_up "$1" "vg/$2"
	dd if="$dev" bs=64k count=1 iflag=direct status=none | tr -d "$3" | wc -c | grep -qx 0 || fail "$1: $dev shows something else than its base"
	chain_down "$1"
}

step "five managers' chains, one of each broken"
mkvg vg 400
image web ""
chain_up web vg/web
qchainctl snapshot web monday
image web-broken web.gone
image snap_vm-103-disk-0_before.qcow2 "" --addtag pve-vm-103
image vm-103-disk-0.qcow2 snap_vm-103-disk-0_before.qcow2 --addtag pve-vm-103
image snap_vm-104-disk-0_x.qcow2 "" --addtag pve-vm-104
image virtual-machines_db--1-snap0.block ""; fill virtual-machines_db--1-snap0.block 0x43 0
image virtual-machines_db--1.block /dev/vg/virtual-machines_db--1-snap0.block
lvchange -q -ky vg/virtual-machines_db--1.block vg/virtual-machines_db--1-snap0.block > /dev/null
image virtual-machines_old-snap0.block /dev/vg/virtual-machines_gone.block
image "template-$(u 1)" ""
image "$(u 2)" "/dev/mapper/vg-template--$(u 1 | sed s/-/--/g)"
image "$(u 4)" "/dev/vg/template-$(u 9)"
image "$(u 5)" "" --addtag IU_img --addtag PU_00000000-0000-0000-0000-000000000000; fill "$(u 5)" 0x45 0
image "$(u 6)" "../img/$(u 5)" --addtag IU_img --addtag "PU_$(u 5)"
image "$(u 7)" "../loop/$(u 8)" --addtag IU_loop --addtag "PU_$(u 8)"
image "$(u 8)" "../loop/$(u 7)" --addtag IU_loop --addtag "PU_$(u 7)"
mklv vg swap 4m

step "scan finds them, who uses them, and what mends the broken ones"
qemu-nbd -f qcow2 -r --fork --pid-file="$PWD/nbd.pid" -k "$PWD/nbd.sock" /dev/vg/vm-103-disk-0.qcow2
qchainctl scan vg
scan
found web '[.owner, (.images[] | "\(.lv) \(.snapshot) \(.state) \(.device)")] | join(", ")' "qchain, web.1.qcow2 null serving web, web monday serving web"
found web-broken '.problems[0].mend' "qchainctl rebase --unsafe vg/web-broken --backing vg/BASE"
found vm-103-disk-0 '[.owner, .images[].lv] | join(" ")' "proxmox vm-103-disk-0.qcow2 snap_vm-103-disk-0_before.qcow2"
found vm-103-disk-0 '.images[0]."used-by"' "qemu-nbd, pid $(cat nbd.pid)"
found vm-104-disk-0 '.problems[0].mend' "lvrename vg snap_vm-104-disk-0_x.qcow2 vm-104-disk-0.qcow2"
found virtual-machines_db-1 '[.owner, .images[].lv] | join(" ")' "incus virtual-machines_db--1.block virtual-machines_db--1-snap0.block"
found virtual-machines_old '.problems | length' 2
found "$(u 2)" '[.owner, .images[].lv] | join(" ")' "cloudstack $(u 2) template-$(u 1)"
found "$(u 4)" '.problems[0].problem' "its backing image is missing: /dev/vg/template-$(u 9)"
found img '[.owner, .images[].lv, (.problems | length)] | join(" ")' "ovirt $(u 6) $(u 5) 0"
found loop '[.problems[].problem[0:6]] | join(" ")' "a loop"
[[ $(jq '.[0].chains | length' scan.json) == 10 ]] || fail "number of chains: $(jq -c '[.[0].chains[].name]' scan.json)"
qchainctl space vg
kill "$(cat nbd.pid)"
wait_dead "$(cat nbd.pid)" 30
chain_down web

step "a look at inactive ones only when asked for, and only at images"
lvchange -q -an vg > /dev/null
scan
found vm-103-disk-0 '[.images[].state] | join(" ")' "inactive inactive"
[[ -z $(dmsetup ls | grep '^vg-') ]] || fail "scan has activated something: $(dmsetup ls)"
scan --activate
found vm-103-disk-0 '[.images[]."stands-on"] | join(" ")' "snap_vm-103-disk-0_before.qcow2 "
[[ -z $(dmsetup ls | grep '^vg-') ]] || fail "scan left something active: $(dmsetup ls)"

step "up serves them as they are, from inactive LVs"
[[ -z $QCHAIN_FULL ]] || serves c virtual-machines_db--1.block C
serves e "$(u 6)" E
pass
