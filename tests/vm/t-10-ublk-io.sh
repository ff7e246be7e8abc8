#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A ublk device over the small targets: comes up, moves data in each mode the kernel has, goes away without a trace.
# timeout: 280
source "${0%/*}/lib.sh"
source "${0%/*}/ublk-lib.sh"
need_build ublk-bringup
need_cmd fio blkdiscard jq

step "zero: comes up, has the size and limits of its target"
up zero zero 268435456
[[ $(blockdev --getsize64 "$dev") == 268435456 ]] || fail "size of $dev is not 268435456"
[[ $(cat "/sys/block/${dev##*/}/queue/write_cache") == "write back" ]] || fail "no volatile cache"
[[ $(cat "/sys/block/${dev##*/}/queue/fua") == 0 ]] || fail "FUA is offered"
[[ $(cat "/sys/block/${dev##*/}/queue/max_hw_sectors_kb") == $(($(status max-request-bytes) / 1024)) ]] ||
	fail "max_hw_sectors_kb does not fit the status"
status mode && status features
expected=copy
ublk_has 0x880 && expected=zero-copy
[[ $(status mode) == "$expected" ]] || fail "mode is $(status mode), expected $expected"
dd if="$dev" of=/dev/null bs=1M count=64 iflag=direct status=none
dd if=/dev/zero of="$dev" bs=1M count=64 oflag=direct conv=fsync status=none
blkdiscard "$dev"
blkdiscard -z -o 1M -l 8M "$dev"
down

for mode in $(modes); do
	opt=()
	[[ $mode == copy ]] && opt=(--copy)
	step "linear, $mode mode: fio writes and verifies"
	disk=$(free_ramdisk)
	blockdev --flushbufs "$disk"
	up linear "${opt[@]}" linear "$disk"
	verify "$dev" 48
	step "linear, $mode mode: buffered, odd and long requests"
	dd if=/dev/urandom of="$TMPDIR/data" bs=1M count=24 status=none
	dd if="$TMPDIR/data" of="$dev" bs=3M oflag=direct conv=fsync status=none
	cmp -n $((24 << 20)) "$TMPDIR/data" "$dev" || fail "buffered read differs"
	cmp -n $((24 << 20)) "$TMPDIR/data" "$disk" || fail "what reached the disk differs"
	dd if="$dev" of="$TMPDIR/back" bs=24M count=1 iflag=direct,fullblock status=none
	cmp "$TMPDIR/data" "$TMPDIR/back" || fail "direct read differs"
	for ((i = 0; i < 40; i++)); do
		off=$((RANDOM % 40000)) len=$((RANDOM % 600 + 1))
		dd if="$dev" of="$TMPDIR/back" bs=512 skip=$off count=$len iflag=direct status=none
		cmp -n $((len * 512)) -i $((off * 512)):0 "$TMPDIR/data" "$TMPDIR/back" ||
			fail "$len sectors at $off differ"
	done
	step "linear, $mode mode: a file system"
	mkfs.ext4 -q -F "$dev" 256M
	mkdir -p "$TMPDIR/mnt"
	mount "$dev" "$TMPDIR/mnt"
	cp "$TMPDIR/data" "$TMPDIR/mnt/data"
	umount "$TMPDIR/mnt"
	mount "$dev" "$TMPDIR/mnt"
	cmp "$TMPDIR/data" "$TMPDIR/mnt/data" || fail "file differs"
	umount "$TMPDIR/mnt"
	[[ $(status failed-tags) == 0 ]] || fail "$(status failed-tags) tags failed"
	down
done

step "error: requests fail, the device still stops"
up error error 67108864
must_fail dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct status=none
must_fail dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct status=none
dmesg_allow 'I/O error, dev ublkb'
dmesg_allow 'Buffer I/O error on dev ublkb'
down
pass
