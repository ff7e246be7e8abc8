#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A ublk device outlives its server: kill -9 under load, a new server takes over, no user notices.
# timeout: 420
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/ublk-lib.sh"
need_build ublk-bringup
need_cmd fio jq

# again ARG...: a successor, until the I/O of the dead one lets it have the disk.
again() {
	for ((try = 0; try < 50; try++)); do
		log=$TMPDIR/again.log
		: > "$log"
		ublk-bringup --recover "${dev#/dev/ublkb}" "$@" > "$log" 2>&1 &
		pid=$!
		wait_for 60 "the device to be taken over" came_up
		grep -q ^ready "$log" && return
		grep -qi 'busy\|in use\|held' "$log" || break
		sleep 0.2
	done
	cat "$log"
	fail "cannot take over $dev"
}

crash() {
	kill -9 "$pid"
	wait "$pid" 2> /dev/null || true
}

for mode in $(modes); do
	opt=()
	[[ $mode == copy ]] && opt=(--copy)
	disk=$(free_ramdisk)

	step "$mode mode: crashes under fio with verification"
	up first "${opt[@]}" --tag 4711 --depth 64 linear "$disk"
	server_mode=$(status mode)
	fio --name=crash --allow_file_create=0 --filename="$dev" --size=64M --direct=1 --ioengine=io_uring \
		--iodepth=32 --rw=randwrite --bs=16k --time_based --runtime=400 --verify=crc32c \
		--verify_fatal=1 --verify_backlog=256 > "$TMPDIR/fio.out" 2>&1 &
	fio=$!
	for ((n = 0; n < 5; n++)); do
		wait_for 60 "fio to write" wrote "$dev" $((n * 500 + 500))
		died=$SECONDS
		crash
		[[ -b $dev ]] || fail "$dev went with its server"
		again --tag 4711 linear "$disk"
		echo "taken over after $((SECONDS - died)) s, $(wrote_nr "$dev") writes before"
		[[ $(status recovered) == true && $(status tag) == 4711 ]] || fail "status after recovery"
		[[ $(status depth) == 64 && $(status mode) == "$server_mode" ]] ||
			fail "another geometry after recovery"
	done
	wait_for 60 "fio to write" wrote "$dev" $(($(wrote_nr "$dev") + 500))
	kill -INT $fio
	wait $fio || true # its status tells of the signal
	{ grep -q 'err= 0' "$TMPDIR/fio.out" && ! grep 'verify:' "$TMPDIR/fio.out"; } ||
		{ cat "$TMPDIR/fio.out"; fail "fio saw errors or wrong data"; }
	[[ $(status failed-tags) == 0 ]] || fail "$(status failed-tags) tags failed"

	step "$mode mode: a mounted file system waits for the successor"
	mkfs.ext4 -q -F "$dev" 256M
	mkdir -p "$TMPDIR/mnt"
	mount "$dev" "$TMPDIR/mnt"
	dd if=/dev/urandom of="$TMPDIR/data" bs=1M count=16 status=none
	crash
	(cp "$TMPDIR/data" "$TMPDIR/mnt/data" && sync -f "$TMPDIR/mnt" && touch "$TMPDIR/copied") &
	copier=$!
	sleep 1
	[[ ! -e $TMPDIR/copied ]] || fail "written without a server"

	step "$mode mode: who may not take over"
	for ((try = 0; try < 20; try++)); do # the disk may still be the dead one's
		ublk-bringup --recover "${dev#/dev/ublkb}" --tag 4712 linear "$disk" > "$TMPDIR/no" 2>&1 || true
		grep -q 'tag 1267' "$TMPDIR/no" && break
		sleep 0.2
	done
	grep 'error.*tag 1267), expected tag 1268' "$TMPDIR/no" || { cat "$TMPDIR/no"; fail "not refused"; }
	ublk-bringup --recover "${dev#/dev/ublkb}" zero 4096 > "$TMPDIR/no" 2>&1 || true
	grep 'error.*chain only 4096' "$TMPDIR/no" || { cat "$TMPDIR/no"; fail "smaller target not refused"; }
	ublk-bringup --recover 77 zero 4096 > "$TMPDIR/no" 2>&1 || true
	grep 'error ublkb77: no such device' "$TMPDIR/no" || { cat "$TMPDIR/no"; fail "ublkb77"; }
	again --tag 4711 linear "$disk"
	wait "$copier" || fail "copying failed"
	ublk-bringup --recover "${dev#/dev/ublkb}" zero 17179869184 > "$TMPDIR/no" 2>&1 || true
	grep "error.*is served by process $pid" "$TMPDIR/no" || { cat "$TMPDIR/no"; fail "live one taken"; }
	umount "$TMPDIR/mnt"
	mount "$dev" "$TMPDIR/mnt"
	cmp "$TMPDIR/data" "$TMPDIR/mnt/data" || fail "file differs"
	umount "$TMPDIR/mnt"
	down
	rm "$TMPDIR/copied"
done
pass
