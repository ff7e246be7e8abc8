#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Reads of 64 KiB and 1 MiB with zero copy and in copy mode, of one image.
# timeout: 420
source "${0%/*}/vm-lib.sh"
need_build qchaind qchainctl
need_cmd fio jq
need_ublk_feature 0x800 "automatic buffer registration"

make_chain one 1
serve zero-copy "$top" "" --read-only && zero_copy=$dev
serve copy "$top" ",zero-copy=off" --read-only && copy=$dev
for i in "$zero_copy" "$copy"; do
	dd if="$i" of=/dev/null bs=1M iflag=direct status=none
done
for ((round = 1; round <= rounds; round++)); do
	step "round $round"
	for bs in 64k 1m; do
		for mode in zero_copy copy; do
			fio_sample $round "$mode $bs" "${!mode}" --rw=read --bs=$bs --time_based \
				--runtime=$seconds
		done
	done
done
pass
