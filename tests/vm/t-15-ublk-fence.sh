#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A write of the dead server is still in the disk below: the successor waits for it (rule A2), the newer data stays.
# timeout: 200
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/ublk-lib.sh"
need_build ublk-bringup
need_cmd dmsetup

delay_ms=6000
disk=$(free_ramdisk)
echo "0 131072 delay $disk 0 0 $disk 0 $delay_ms" | dmsetup create slow
at_exit dmsetup remove --retry slow

# block CHAR: 64 KiB of it, in a file.
block() { head -c 65536 /dev/zero | tr '\0' "$1" > "$TMPDIR/$1"; }
block A
block B

step "A is on its way into the slow disk when its server dies"
up slow linear /dev/mapper/slow
dd if="$TMPDIR/A" of="$dev" bs=64k oflag=direct status=none &
writer=$!
in_flight() { awk '{ exit !($2 > 0) }' "/sys/block/${dev#/dev/}/inflight"; }
wait_for 10 "A to be under way" in_flight
sleep 1 # from our queue to the disk's
kill -9 "$pid"
wait "$pid" 2> /dev/null || true
died=$(date +%s%N)

step "the successor overwrites it with B as soon as it can"
for ((try = 0; try < 100; try++)); do
	log=$TMPDIR/again.log
	ublk-bringup --recover "${dev#/dev/ublkb}" linear /dev/mapper/slow > "$log" 2>&1 &
	pid=$!
	wait_for 90 "a successor" came_up
	grep -q ^ready "$log" && break
	tail -n 1 "$log"
	sleep 0.3
done
grep -q ^ready "$log" || fail "no successor"
echo "took over $((($(date +%s%N) - died) / 1000000)) ms after the death"
wait "$writer" || fail "A failed"
dd if="$TMPDIR/B" of="$dev" bs=64k oflag=direct status=none
cmp "$TMPDIR/B" "$disk" -n 65536 || fail "not B"
sleep $((delay_ms / 1000 + 1)) # whatever else was on its way
cmp "$TMPDIR/B" "$disk" -n 65536 || fail "a write of the dead server came later"
down
pass
