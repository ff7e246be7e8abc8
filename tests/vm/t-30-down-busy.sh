#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# down refuses while anybody uses the device and says who; once it is unused nothing is left behind; --force ends it in the middle of I/O.
# timeout: 180
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio dmsetup qemu-img qemu-io mkfs.ext4

# refused TEXT: down has to refuse with TEXT in its reason, and the chain goes on.
refused() {
	if qchainctl down disk > down.out 2>&1; then fail "down succeeded, expected a refusal with '$1'"; fi
	cat down.out
	grep -q "$1" down.out || fail "expected '$1' in the refusal"
	chain_is disk .state serving || fail "state $(chain_json disk .state) after a refusal"
	timeout 20 dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct status=none || fail "$dev does not answer after a refusal"
}

mkvg vg 128
mkchain vg c 32m 40m 2
ls /run > run.before
chain_up disk vg/c-1

step "a mount"
mkfs.ext4 -q -F "$dev"
mkdir mnt
mount "$dev" mnt
refused "mounted on $TMPDIR/mnt"
umount mnt

step "a process"
exec 9< "$dev"
refused "process $$ (bash)"
exec 9<&-

step "device-mapper"
echo "0 8192 linear $dev 0" | dmsetup create upper
refused "held by dm-[0-9]* (upper)"
dmsetup remove --retry upper
udevadm settle -t 30

step "a second up of the same name"
must_fail qchainctl up disk vg/c-1
must_fail qchainctl up disk2 vg/c-1
[[ ! -e /run/qchain/disk2 ]] || fail "the failed up left /run/qchain/disk2"
chain_is disk .state serving || fail "state $(chain_json disk .state)"

step "nobody: nothing is left"
save_device "$dev" shown
chain_down disk
[[ -z $(pidof qchaind) ]] || fail "a qchaind is left: $(pidof qchaind)"
[[ -z $(find /run/qchain -type f -o -type l -o -type s) ]] || fail "left in /run/qchain: $(find /run/qchain)"
[[ $(lvs --noheadings -o lv_device_open vg | tr -d ' \n') == "" ]] || fail "an LV is still open"
vgchange -q -an vg > /dev/null || fail "an LV is still in use"
vgchange -q -ay vg > /dev/null
wait_block /dev/vg/c-1 20
qemu_sees /dev/vg/c-1 shown

step "by force, in the middle of I/O"
chain_up disk vg/c-1
dmesg_allow 'dev ublkb'
fio --name=busy --allow_file_create=0 --filename="$dev" --size=24M --direct=1 --ioengine=io_uring --iodepth=16 --rw=randwrite --bs=16k \
	--time_based --runtime=60 --minimal > fio.out 2>&1 &
fio=$!
wait_for 30 "fio to write" eval '(($(awk "{ print \$5 }" "/sys/block/${dev##*/}/stat") >= 100))'
refused "process"
timeout 60 qchainctl down --force disk || fail "down --force"
wait_dead $fio 30
if wait $fio; then fail "fio saw no error"; fi
wait_gone "$dev" 10
[[ ! -e /run/qchain/disk ]] || fail "/run/qchain/disk is left"
clean_image /dev/vg/c-1
pass
