#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The disk under the LVs fails reads, then writes, then is gone: guests see errors or right data, events tell, nothing acknowledged is lost.
# timeout: 200
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io dmsetup

disk=$(free_ramdisk)
sectors=$((160 * 2048))

# below TARGET...: what the disk does from now on.
below() {
	dmsetup suspend --noflush --nolockfs sick
	echo "0 $sectors $*" | dmsetup load sick
	dmsetup resume sick
}
well() { below linear "$disk" 0; }

# fio_at NAME OPTION...: 8 MiB from 16 MiB on, each block with its place and a checksum.
fio_at() {
	local name=$1
	shift
	fio --name="$name" --allow_file_create=0 --filename="$dev" --offset=16M --size=8M --bs=16k --direct=1 --ioengine=io_uring \
		--iodepth=8 --verify=crc32c --verify_fatal=1 --minimal "$@" > "$name.out" 2>&1
}

# told OPERATION: an event of a guest's request.
told() { grep '"BLOCK_IO_ERROR"' events | grep '"report"' | grep -v node-name | grep -q "\"operation\": *\"$1\""; }

dmesg_allow 'ublkb|dm-[0-9]+|Buffer I/O error|flakey'
# LVM must not see the same volume beside it.
lvm_conf <<< "devices { global_filter = [ \"r|^$disk\$|\" ] }"
echo "0 $sectors linear $disk 0" | dmsetup create sick
at_exit dmsetup remove --retry sick
pvcreate -q -y /dev/mapper/sick > /dev/null
vgcreate -q vg /dev/mapper/sick > /dev/null
at_exit rmvg vg
at_exit well
mkchain vg c 32m 48m 2
chain_up disk vg/c-1 --warm off
"$QCHAIN_SRC/tests/vm/qmpwatch.py" /run/qchain/disk/qmp.sock > events &
wait_for 30 "QMP" grep -q return events
fio_at written --rw=write --do_verify=0 --end_fsync=1 || { cat written.out; fail "fio"; }

step "reads fail: each is told, and the device lives on"
below flakey "$disk" 0 0 86400 1 error_reads
must_fail quiet dd if="$dev" of=/dev/null bs=64k skip=256 count=16 iflag=direct status=none
wait_for 20 "the event of a read" told read
well
fio_at again --rw=read || { cat again.out; fail "wrong data, or errors, after the disk is well"; }
chain_is disk .status.metadata.failed false || fail "reads that failed ended writing"

step "writes fail: a guest's, and then those of tables: read-only, for good"
below flakey "$disk" 0 0 86400 1 error_writes
must_fail quiet dd if=/dev/urandom of="$dev" bs=64k seek=256 count=4 oflag=direct status=none
must_fail quiet dd if=/dev/urandom of="$dev" bs=64k seek=32 count=4 oflag=direct conv=fsync status=none
wait_for 20 "the event of a write" told write
wait_for 60 "the device to be read-only" chain_is disk .status.metadata.failed true
grep '"BLOCK_IO_ERROR"' events | grep -q node-name || { cat events; fail "no event says that tables were not written"; }
well
must_fail quiet dd if=/dev/urandom of="$dev" bs=64k seek=300 count=1 oflag=direct status=none
timeout 60 dd if="$dev" of=/dev/null bs=1M iflag=direct status=none || fail "what is there cannot be read any more"
must_fail quiet qchainctl down disk
wait_gone "$dev" 20

step "what was flushed is there"
qemu-img check -f qcow2 /dev/vg/c-1 > check.out 2>&1 || (($? == 3)) || { cat check.out; fail "qemu-img check"; }
chain_up disk vg/c-1
fio --name=flushed --allow_file_create=0 --filename="$dev" --offset=16640k --size=7808k --bs=16k --direct=1 --ioengine=io_uring --rw=read \
	--verify=crc32c --verify_fatal=1 --minimal > flushed.out 2>&1 || { cat flushed.out; fail "flushed data is lost"; }

step "the disk is gone: errors, and status answers"
below error
must_fail quiet timeout 60 dd if="$dev" of=/dev/null bs=64k skip=256 count=1 iflag=direct status=none
timeout 30 qchainctl status disk > status.out || fail "status does not answer"
well
timeout 60 dd if="$dev" of=/dev/null bs=1M iflag=direct status=none || fail "reads go on failing"
chain_down disk
clean_image /dev/vg/c-1
pass
