#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Two chains over one base are served and written at once; each sees its own data only, the base stays as it was.
# timeout: 180
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io

mkvg vg 200
old_data vg
mkchain vg base 40m 48m 2
for name in left right; do
	mklv vg $name 48m
	qemu-img create -q -f qcow2 -F qcow2 -b base-1 -o extended_l2=on,cluster_size=128k /dev/vg/$name
done
sums /dev/vg/base-* > sums.before

step "both up"
chain_up left vg/left
left=$dev
chain_up right vg/right
right=$dev
[[ $left != "$right" ]] || fail "both are $left"
[[ $(qchainctl list --json | jq -r '[.[].name] | join(" ")') == "left right" ]] || fail "list does not show both"

step "both written at once"
for dev in "$left" "$right"; do
	fio --name="${dev##*/}" --allow_file_create=0 --filename="$dev" --size=8M --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite \
		--bs=4k --randrepeat=0 --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > "fio.${dev##*/}" 2>&1 &
	jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job" || { cat fio.ublk*; fail "fio found errors or wrong data"; }; done
save_device "$left" shown.left
save_device "$right" shown.right
must_fail cmp -s shown.left shown.right

step "their base is not to be had while it is in use"
must_fail qchainctl up base vg/base-1

step "one goes, the other stays"
chain_down left
save_device "$right" again
same shown.right again "right, after left went"
chain_down right
for name in left right; do
	qemu_sees /dev/vg/$name shown.$name
	clean_image /dev/vg/$name
done
sums /dev/vg/base-* > sums.after
same sums.before sums.after "base LVs were changed"
pass
