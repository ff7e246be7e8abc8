#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The host does not read the guest's disk: with the shipped udev rule and LVM filter no VG, md array or mount of the guest appears.
# timeout: 300
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io mdadm sfdisk udevadm mkfs.ext4

# Debian 12's own rules do not look at ublk devices, newer ones do. Make these look.
newer_udev() {
	local rule
	for rule in 60-block 60-persistent-storage; do
		sed 's/|zd\*"/|zd*|ublkb*"/' "/lib/udev/rules.d/$rule.rules" > "/etc/udev/rules.d/$rule.rules"
		grep -q 'ublkb' "/etc/udev/rules.d/$rule.rules" || fail "$rule.rules: not changed, the test does not test"
		at_exit rm "/etc/udev/rules.d/$rule.rules"
	done
	udevadm control --reload
}

# What ships: a udev rule, which has to come before udev's own 60-*.rules, and a fragment of lvm.conf.
install_shipped() {
	cp "$QCHAIN_SRC/debian/59-qchain.rules" /etc/udev/rules.d/
	at_exit rm /etc/udev/rules.d/59-qchain.rules
	udevadm control --reload
	lvm_filter
}

settled() { udevadm settle -t 60; }

# seen: all that the host knows of volumes, arrays, mounts and signatures.
seen() {
	echo "VGs: $(vgs --noheadings -o vg_name | tr -d ' ' | sort | tr '\n' ' ')"
	echo "PVs: $(pvs --noheadings -o pv_name | tr -d ' ' | sort | tr '\n' ' ')"
	echo "LVs: $(lvs --noheadings -o vg_name,lv_name | sort | tr -s ' \n' ' ')"
	echo "md: $(grep -c ^md /proc/mdstat || true)"
	echo "mounts: $(cut -d ' ' -f 2 /proc/mounts | grep -c -v "^$TMPDIR" || true)"
	echo "links: $(find /dev/disk -lname '*ublk*' 2> /dev/null | sort | tr '\n' ' ')"
	echo "md devices: $(find /dev -maxdepth 1 -name 'md*' | tr '\n' ' ')"
}

drop_md() {
	mdadm --stop --scan > /dev/null 2>&1 || true
	settled
}

both_up() {
	chain_up pv vg/pv-0 "$@"
	pv=$dev
	chain_up md vg/md-0 "$@"
	md=$dev
	settled
}

modprobe -a md_mod raid1
at_exit drop_md
newer_udev
mkvg vg 160
mkchain vg pv 48m 56m 1
mkchain vg md 48m 56m 1

step "two guests' disks: one is a PV, the other has partitions with an md member and a file system"
both_up --scan
pvcreate -q -y "$pv" > /dev/null
vgcreate -q guestvg "$pv" > /dev/null
lvcreate -q -y -L 16m -n guestlv guestvg > /dev/null
mkfs.ext4 -q -F /dev/guestvg/guestlv
vgchange -q -an guestvg > /dev/null
printf 'label: gpt\nsize=20MiB\nsize=20MiB\n' | sfdisk -q "$md"
settled
wait_block "${md}p2" 30
mkfs.ext4 -q -F -L guestfs "${md}p2"
mdadm --create /dev/md/guest --run --force --homehost=any --level=1 --raid-devices=1 --metadata=1.2 "${md}p1" 2> /dev/null
settled
drop_md
chain_down md
chain_down pv

step "without protection the host takes it all: the test tests"
both_up --scan
seen > all
cat all
chain_json md .device > /dev/null
grep -q guestvg all || fail "the guest's VG is not seen even with --scan"
wait_for 20 "md to assemble the guest's array" grep -q ^md /proc/mdstat
find /dev/disk/by-label -name guestfs | grep -q . || fail "blkid did not look at the guest's file system"
drop_md
vgchange -q -an guestvg > /dev/null
chain_down md
chain_down pv
settled

step "with the shipped rule and filter, without --scan: nothing new"
install_shipped
settled
seen > before
both_up
seen > after
diff before after || fail "the host has read the guests' disks"
grep -q guestvg after && fail "the guest's VG is seen"
udevadm info --query=property "$pv" > properties
if grep -E '^ID_(FS|PART_TABLE)_' properties; then fail "udev has looked for signatures on $pv"; fi
exec 9<> "$pv"
exec 9>&-
settled
seen > after
diff before after || fail "the host has read a guest's disk after it was closed by a writer"
if (($(ublk_features) & 0x40000)); then
	[[ ! -e ${md}p1 ]] || fail "the kernel has looked for partitions"
fi
chain_down md
chain_down pv

step "with --scan the rule lets udev look"
both_up --scan
udevadm info --query=property "$pv" | grep -q '^ID_FS_TYPE=LVM2_member' || fail "udev did not look at $pv, which is up with --scan"
wait_block "${md}p2" 20
drop_md
chain_down md
chain_down pv
pass
