#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Random writes of all sizes by four jobs at once, verified by fio, by a second life of the daemon and by QEMU.
# timeout: 240
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io

# verified LABEL OPTION...: four jobs, each on its own quarter.
verified() {
	local label=$1
	shift
	fio --name="$label" --allow_file_create=0 --filename="$dev" --numjobs=4 --size=4M --offset_increment=12M --group_reporting \
		--direct=1 --ioengine=io_uring --iodepth=8 --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal "$@" \
		> fio.out 2>&1 || { cat fio.out; fail "fio ($label) found errors or wrong data"; }
}

mkvg vg 280
old_data vg
n=0
for opt in cluster_size=64k extended_l2=on,cluster_size=128k; do
	n=$((n + 1))
	step "$opt"
	mkchain vg "c$n" 48m 56m 2 $opt
	before=$(md5sum < "/dev/vg/c$n-0")
	chain_up "chain$n" "vg/c$n-1"
	verified small --rw=randwrite --bs=4k --fsync=32
	verified mixed --rw=randwrite --bsrange=512-128k --bs_unaligned=0 --blockalign=512 --fsync=64
	save_device "$dev" shown
	chain_down "chain$n"
	qemu_sees "/dev/vg/c$n-1" shown
	clean_image "/dev/vg/c$n-1"
	chain_up "chain$n" "vg/c$n-1"
	save_device "$dev" again
	same shown again "content after down and up"
	chain_down "chain$n"
	[[ $(md5sum < "/dev/vg/c$n-0") == "$before" ]] || fail "c$n-0: the base was changed"
done
pass
