#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Like a reboot: down, VG inactive, all of /run gone; up activates what it needs, the data is there, down leaves it inactive.
# timeout: 180
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io mkfs.ext4

active() { lvs --noheadings -o lv_active vg | grep -c active || true; }

mkvg vg 128
mkchain vg c 32m 40m 3
for lv in c-0 c-1 c-2; do lvchange --setautoactivation n vg/$lv; done

step "first life: a file system with files"
chain_up disk vg/c-2
mkfs.ext4 -q -F "$dev"
mkdir mnt
mount "$dev" mnt
dd if=/dev/urandom of=data bs=1M count=8 status=none
cp data mnt/data
umount mnt
save_device "$dev" model
chain_down disk
[[ $(active) == 3 ]] || fail "$(active) LVs are active after down, expected 3: they were active before"

step "as after a reboot"
vgchange -q -an vg > /dev/null || fail "an LV is still in use"
[[ $(active) == 0 ]] || fail "not inactive"
rm -rf /run/qchain
vgchange -q -aay vg > /dev/null
[[ $(active) == 0 ]] || fail "LVs were activated, the test does not test"

step "second life: up activates the LVs itself"
chain_up disk vg/c-2
[[ $(active) == 3 ]] || fail "$(active) LVs are active, expected 3"
save_device "$dev" shown
same model shown "content of the second life"
e2fsck -fn "$dev" > fsck.out 2>&1 || { cat fsck.out; fail "e2fsck"; }
mount "$dev" mnt
same data mnt/data "file of the first life"
touch mnt/second
umount mnt
save_device "$dev" model
chain_down disk
[[ $(active) == 0 ]] || fail "down left $(active) LVs active that up had activated"

step "a name that is not served; a failed up leaves nothing"
must_fail qchainctl up other vg/none
[[ ! -e /run/qchain/other ]] || fail "/run/qchain/other was left"
must_fail qchainctl down disk
[[ $(active) == 0 ]] || fail "a failed up left $(active) LVs active"

step "the name is enough: the record knows the top"
chain_up disk
[[ $(chain_json disk .top) == /dev/vg/c-2 ]] || fail "another top"
chain_down disk
[[ $(active) == 0 ]] || fail "down left $(active) LVs active"
vgchange -q -ay vg > /dev/null
wait_block /dev/vg/c-2 30
qemu_sees /dev/vg/c-2 model
clean_image /dev/vg/c-2
pass
