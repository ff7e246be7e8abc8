#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# status names what is waited for: requests by stage and image, the grace that waits for them (rule C2), queues whose tags run low (rule E2).
# timeout: 240
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq dmsetup fio qemu-img qemu-io

chain=disk
status() { qchainctl status $chain --json | jq -r "$1"; }
has() { [[ $(status "$1" 2> /dev/null) == true ]]; }

step "a base on a disk that can be stopped, below an overlay on another"
mkvg vg 200
mkchain vg c 48m 56m 2
# Suspended, not delayed: udev, qemu-img and the start read it dozens of times, each would be late.
echo "0 $(blockdev --getsz /dev/vg/c-0) linear /dev/vg/c-0 0" | dmsetup create held
at_exit dmsetup remove --retry held
wait_block /dev/mapper/held 20
qemu-img rebase -q -u -f qcow2 -F qcow2 -b /dev/mapper/held /dev/vg/c-1
chain_up disk vg/c-1 --allow-backing /dev/mapper/held
at_exit dmsetup resume held

step "a read of the base is under way"
# Loads the window first, which reads the base.
dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct status=none
udevadm settle -t 30
dmsetup suspend held
dd if="$dev" of=/dev/null bs=64k count=1 iflag=direct status=none &
reader=$!
wait_for 30 "status to name the read and its image" \
	has '[.status.requests.oldest[] | select(.operation == "read" and .stage == "I/O" and (.image // "" | test("held|dm-")))] | length > 0'
qchainctl status disk

step "a durable discard, whose cluster is free only then, makes a grace wait for it"
dd if=/dev/zero of="$dev" bs=64k seek=300 count=1 oflag=direct conv=notrunc status=none
{ blkdiscard -f -o $((300 * 65536)) -l 65536 "$dev" && sync "$dev"; } &
discard=$!
wait_for 30 "a grace to wait" has '.status.grace.waiting and (.status.grace.loops | length) > 0 and .status.requests."grace-waits" > 0'
has '[.status.requests.oldest[] | select(."grace-waits" and .operation == "read")] | length > 0' ||
	{ qchainctl status disk --json; fail "status does not name the request that the grace waits for"; }
qchainctl status disk > shown
grep "grace waits since" shown || fail "no line about the grace"
is_dead $reader && fail "the read ended while the disk was stopped"
dmsetup resume held
wait $reader || fail "the read failed"
wait $discard || fail "the discard failed"
wait_for 30 "the grace to end" has '.status.grace.waiting | not'
chain_down disk

step "writes that wait for space take more than three quarters of a queue's tags"
mklv vg c-2 16m
qemu-img create -q -f qcow2 -F qcow2 -b c-1 /dev/vg/c-2 && qemu-img rebase -q -u -f qcow2 -F qcow2 -b c-0 /dev/vg/c-1
chain=full
chain_up full vg/c-2
"$QCHAIN_SRC/tests/vm/qmpwatch.py" /run/qchain/full/qmp.sock > events &
wait_for 30 "QMP" grep -q return events
fio --name=full --allow_file_create=0 --filename="$dev" --size=48M --direct=1 --ioengine=io_uring --iodepth=120 --cpus_allowed=0 \
	--rw=randwrite --bs=64k --minimal > fio.out 2>&1 &
fio=$!
wait_for 90 "status to name a queue that runs low" has '[.status.queues[] | select(.low)] | length > 0'
qchainctl status full
wait_for 10 "the event" grep -q QCHAIN_QUEUE_LOW events
timeout 20 dd if="$dev" of=/dev/null bs=64k count=8 iflag=direct status=none || fail "reads wait while tags are free"
timeout 20 sync "$dev" || fail "a flush waits for parked writes"
lvextend -q -L 60m vg/c-2 > /dev/null
wait_dead $fio 120
wait $fio || { cat fio.out; fail "fio saw errors"; }
wait_for 20 "status to say that nothing waits" has '.status.queues == [] and (.status.metadata.full | not)'
chain_down full
clean_image /dev/vg/c-2
pass
