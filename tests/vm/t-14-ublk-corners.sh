#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Corners of the ublk transport: threads, large blocks, odd memory, many tags, somebody else stopping, force under a mount.
# timeout: 300
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/ublk-lib.sh"
need_build ublk-bringup
need_cmd fio jq losetup taskset

queue_threads() { grep -l '^ublk[0-9]*-q' "/proc/$pid/task"/*/comm | cut -d/ -f5; }

step "queue threads: flagged for reclaim, on any processor"
up threads --queues 2 zero 1048576
queues=$(($(nproc) > 1 ? 2 : 1)) # no more than there are processors
[[ $(queue_threads | wc -l) == "$queues" ]] || fail "not $queues queue threads"
for tid in $(queue_threads); do
	flags=$(sed 's/.*) //' "/proc/$pid/task/$tid/stat" | cut -d' ' -f7)
	# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE
	(((flags & 0x180000) == 0x180000)) || fail "thread $tid has flags $flags"
	mask=$(taskset -p "$tid" | sed 's/.*: //')
	((0x$mask == (1 << $(nproc)) - 1)) || fail "thread $tid is bound to processors $mask"
done
down

step "blocks of 4096 bytes"
disk=$(free_ramdisk)
loop=$(losetup --show -f -b 4096 --direct-io=on "$disk")
at_exit losetup -D
up large linear "$loop"
[[ $(blockdev --getss "$dev") == 4096 ]] || fail "blocks of $(blockdev --getss "$dev") bytes"
fio --name=large --allow_file_create=0 --filename="$dev" --size=32M --direct=1 --ioengine=io_uring \
	--iodepth=16 --rw=randwrite --bsrange=4k-256k --blockalign=4k --verify=crc32c --do_verify=1 \
	--minimal > "$TMPDIR/fio.out" || fail "fio found a difference"
down
losetup -d "$loop"

step "memory at odd places, requests of many pieces"
up odd linear "$disk"
fio --name=odd --allow_file_create=0 --filename="$dev" --size=16M --direct=1 --ioengine=io_uring \
	--iodepth=16 --iomem_align=512 --rw=randwrite --bs=3584 --verify=crc32c --do_verify=1 \
	--minimal > "$TMPDIR/fio.out" || fail "fio found a difference"
down

step "as many tags as there can be"
up tags --queues 1 --depth 4096 linear "$disk"
fio --name=tags --allow_file_create=0 --filename="$dev" --size=64M --direct=1 --ioengine=io_uring \
	--iodepth=3000 --rw=randwrite --bs=4k --verify=crc32c --do_verify=1 \
	--minimal > "$TMPDIR/fio.out" || fail "fio found a difference"
[[ $(status failed-tags) == 0 ]] || fail "$(status failed-tags) tags failed"
down

step "as with a driver before 6.5: bare command numbers, copy mode, user recovery"
up old --old-driver --queues 1 linear "$disk"
[[ $(status mode) == copy ]] || fail "mode is $(status mode)"
[[ $(status features) == *user-recovery-reissue* && $(status features) != *user-copy* ]] ||
	fail "features are $(status features)"
verify "$dev" 16
kill -9 "$pid"
wait "$pid" 2> /dev/null || true
up old --old-driver --recover "${dev#/dev/ublkb}" linear "$disk"
verify "$dev" 16
down

step "stopped by somebody else"
up other zero 1048576
[[ $(status shutting-down) == false ]] || fail "shutting down?"
"$QCHAIN_VM_RUN/ublkctl" del "${dev#/dev/ublkb}" &
deleter=$!
wait_gone "$dev" 20
shutting_down() { [[ $(status shutting-down) == true ]]; }
wait_for 20 "the status to tell" shutting_down
down
wait $deleter

step "by force under a mounted file system: the server goes, the number stays until the last user"
up mounted linear "$disk"
mkfs.ext4 -q -F "$dev" 64M
mkdir -p "$TMPDIR/mnt"
mount "$dev" "$TMPDIR/mnt"
dd if=/dev/zero of="$TMPDIR/mnt/file" bs=1M count=4 status=none
dmesg_allow 'EXT4-fs|JBD2|Buffer I/O error'
kill -INT "$pid"
wait_for 40 "the server to end" is_dead "$pid"
cat "$log"
grep -q ^stopped "$log" || fail "not stopped"
umount "$TMPDIR/mnt" || umount -l "$TMPDIR/mnt"
wait_gone "${dev/ublkb/ublkc}" 20
pass
