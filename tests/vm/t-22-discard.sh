#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Discard and zeroing: never an older layer's data, exact edges for zeroing, clusters given back and used again, fstrim.
# timeout: 240
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img qemu-io blkdiscard fstrim mkfs.ext4

# zero_model OFFSET LENGTH: in multiples of 512.
zero_model() { dd if=/dev/zero of=model bs=512 seek=$(($1 / 512)) count=$(($2 / 512)) conv=notrunc status=none; }

as_model() {
	save_device "$dev" shown
	same model shown "$1"
}

clusters() { qemu-img check --output=json -f qcow2 "$1" | jq '."allocated-clusters"'; }

step "a chain of three, full of data below"
mkvg vg 200
old_data vg
mkchain vg c 48m 52m 1
qemu-io -f qcow2 -c 'write -q -P 0x77 0 40M' /dev/vg/c-0
mklv vg c-1 32m
qemu-img create -q -f qcow2 -F qcow2 -b c-0 /dev/vg/c-1
qemu-io -f qcow2 -c 'write -q -P 0x78 4M 4M' /dev/vg/c-1
chain_up disk vg/c-1
queue=/sys/block/${dev##*/}/queue
(($(cat "$queue/discard_max_bytes") && $(cat "$queue/write_zeroes_max_bytes"))) || fail "no discard or no write zeroes offered"
granularity=$(cat "$queue/discard_granularity")
echo "discard granularity $granularity"
save_device "$dev" model

step "parts are discarded: zeroes, not the base's data"
for range in "1048576 2097152" "4194304 1048576" "7340032 2097152" "20971520 $granularity"; do
	# shellcheck disable=SC2086
	set -- $range
	blkdiscard -o "$1" -l "$2" "$dev"
	zero_model "$1" "$2"
done
as_model "after discarding parts"

step "parts are zeroed, to the sector"
for range in "512 512" "131584 66560" "5242368 1024" "9437184 3146240" "33553920 1024"; do
	# shellcheck disable=SC2086
	set -- $range
	blkdiscard -z -o "$1" -l "$2" "$dev"
	zero_model "$1" "$2"
done
as_model "after zeroing parts"
chain_down disk
qemu_sees /dev/vg/c-1 model
clean_image /dev/vg/c-1

step "discarded space is used again: 96 MiB through an LV of 32 MiB"
chain_up disk vg/c-1
blkdiscard "$dev"
truncate -s 0 model && truncate -s 48M model
as_model "after discarding all"
for ((i = 0; i < 6; i++)); do
	timeout 60 dd if=/dev/urandom of="$dev" bs=1M count=16 seek=$((i % 3 * 16)) oflag=direct conv=fsync status=none ||
		fail "round $i: no space, what was discarded is not used again (full: $(chain_json disk .status.metadata.full))"
	timeout 60 blkdiscard -o $((i % 3 * 16 << 20)) -l 16M "$dev"
done
as_model "after discarding again"
chain_down disk
clean_image /dev/vg/c-1

step "fstrim after a file was deleted"
chain_up disk vg/c-1
mkfs.ext4 -q -F -E nodiscard -O ^has_journal "$dev"
mkdir mnt
mount "$dev" mnt
dd if=/dev/urandom of=mnt/big bs=1M count=16 conv=fsync status=none
rm mnt/big
sync -f mnt
fstrim -v mnt | tee trim
(($(grep -o '([0-9]* bytes)' trim | tr -dc 0-9) > 10000000)) || fail "fstrim gave back too little"
umount mnt
save_device "$dev" model
chain_down disk
qemu_sees /dev/vg/c-1 model
clean_image /dev/vg/c-1
echo "$(clusters /dev/vg/c-1) clusters in use"
(($(clusters /dev/vg/c-1) < 128)) || fail "$(clusters /dev/vg/c-1) clusters of c-1 are in use after fstrim, expected less than 128"
pass
