#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The LV runs full under fio: writes wait, reads go on, status and an event say so; lvextend, and fio ends without an error.
# timeout: 240
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io

start_fio() {
	fio --name=full --allow_file_create=0 --filename="$dev" --size=48M --direct=1 --ioengine=io_uring --iodepth=16 --rw=randwrite --bs=64k \
		--verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > fio.out 2>&1 &
	fio=$!
}

mkvg vg 200
mkchain vg c 48m 56m 1
mklv vg c-1 24m
qemu-img create -q -f qcow2 -F qcow2 -b c-0 /dev/vg/c-1
chain_up disk vg/c-1
"$QCHAIN_SRC/tests/vm/qmpwatch.py" /run/qchain/disk/qmp.sock > events &
wait_for 30 "QMP" grep -q return events

step "48 MiB of writes into an LV of 24 MiB"
start_fio
wait_for 90 "status to say full" chain_is disk .status.metadata.full true
qchainctl status disk
kill -0 $fio || { cat fio.out; fail "fio ended, its writes must wait"; }

step "reads go on"
timeout 20 dd if="$dev" of=/dev/null bs=64k count=64 iflag=direct status=none || fail "reads wait too"
kill -0 $fio || { cat fio.out; fail "fio ended, its writes must wait"; }

step "lvextend: the writes go on by themselves"
lvextend -q -L 60m vg/c-1 > /dev/null
wait_dead $fio 120
wait $fio || { cat fio.out; fail "fio saw errors or wrong data"; }
wait_for 20 "status to say that there is space" chain_is disk .status.metadata.full false
qchainctl status disk | grep state
save_device "$dev" shown
chain_down disk
qemu_sees /dev/vg/c-1 shown
clean_image /dev/vg/c-1

step "--on-full fail: the writes fail, the device lives on"
mklv vg c-2 16m
qemu-img create -q -f qcow2 -F qcow2 -b c-0 /dev/vg/c-2
chain_up failing vg/c-2 --on-full fail
dmesg_allow 'dev ublkb'
must_fail timeout 60 dd if=/dev/urandom of="$dev" bs=64k count=512 oflag=direct status=none
timeout 20 dd if="$dev" of=/dev/null bs=64k count=64 iflag=direct status=none || fail "reads fail too"
save_device "$dev" shown
chain_down failing
qemu_sees /dev/vg/c-2 shown
clean_image /dev/vg/c-2

step "the event of the first time"
grep '"BLOCK_IO_ERROR"' events | grep -q '"nospace": *true' || { cat events; fail "no event BLOCK_IO_ERROR with nospace"; }
pass
