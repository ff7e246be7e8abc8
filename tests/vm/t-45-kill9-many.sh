#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kill -9 of qchaind many times in a row, idle, under load, snapshots, merges, and full; nobody takes over but the guard, fio sees nothing.
# timeout: 3000
# kernel: 6.12
# QCHAIN_KILLS=200 tests/vm/run-vm.sh ...: about that many, else 6.
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq fio qemu-img

kills=${QCHAIN_KILLS:-6}
share=$((kills / 6)) # of a mode; under load two
((share)) || fail "QCHAIN_KILLS=$kills, expected 6 at least"
export QCHAIN_RESTARTS=10000
run=/run/qchain/disk

pid_of() { jq .pid $run/state.json; }
restarts() { jq '.restarts.count // 0' $run/state.json; }
count_is() { [[ $(restarts) == "$1" ]]; }

# nap MS: at most that long, at random: where in its work the daemon is hit.
nap() { sleep "$(printf '0.%03d' $((RANDOM % $1)))"; }

# die MODE: one kill; the next daemon is there afterwards, as far as the record tells.
die() {
	local before
	before=$(restarts)
	case $1 in
	load) nap 300 ;;
	snapshot) qchainctl snapshot disk "s$before" --size 24M > verb.out 2>&1 & nap 999 ;;
	merge) qchainctl stream disk > verb.out 2>&1 & nap 600 ;;
	esac
	kill -9 "$(pid_of)"
	wait_for 60 "the guard to bring the daemon back ($1)" count_is $((before + 1))
	[[ $1 != snapshot && $1 != merge ]] || wait $! || true # cut off, or done before
}

start_fio() {
	fio --name=many --allow_file_create=0 --filename="$dev" --size=12M --direct=1 --ioengine=io_uring --iodepth=16 --rw=randwrite \
		--bsrange=4k-32k --time_based --runtime=2900 --verify=crc32c --verify_fatal=1 --verify_backlog=64 > fio.out 2>&1 &
	fio=$!
}

end_fio() {
	kill -INT $fio
	wait $fio || true # its status tells of the signal
	{ grep -q 'err= 0' fio.out && ! grep 'verify:' fio.out; } || { cat fio.out; fail "fio saw errors or wrong data"; }
}

wrote() { (($(awk '{ print $5 }' "/sys/block/${dev##*/}/stat") >= $1)); }
writes() { awk '{ print $5 }' "/sys/block/${dev##*/}/stat"; }

declare -A extra=([load]=$share)
lvm_filter
mkvg vg $((kills * 8 + 256))
qchainctl create vg/disk.qcow2 --size 16M
chain_up disk vg/disk.qcow2
guard=$(jq .guard $run/state.json)

step "idle"
for ((n = 0; n < share; n++)); do die idle; done

start_fio
for mode in load snapshot merge; do
	step "$mode"
	for ((n = 0; n < share + ${extra[$mode]:-0}; n++)); do
		is_dead $fio && { cat fio.out; fail "fio has ended"; }
		wait_for 60 "fio to write" wrote $(($(writes) + 50))
		die $mode
	done
done
wait_for 60 "fio to write" wrote $(($(writes) + 100))
end_fio
[[ $(jq .guard $run/state.json) == "$guard" ]] || fail "another guard"
qchainctl status disk | grep -A1 guard
save_device "$dev" shown
top=$(chain_json disk .top)
chain_down disk
is_dead "$guard" || fail "the guard is still there"
vgchange -q -ay vg > /dev/null
qemu_sees "$top" shown
clean_image "$top"
vgchange -q -an vg > /dev/null

step "full: what waits for space waits on, and ends when there is some"
mkvg small 120
qchainctl create small/disk.qcow2 --size 32M
lvreduce -q -f -y -L 16m small/disk.qcow2 > /dev/null
run=/run/qchain/full
chain_up full small/disk.qcow2
dd if=/dev/urandom of=data bs=1M count=24 status=none
dd if=data of="$dev" bs=64k oflag=direct conv=notrunc status=none &
writer=$!
for ((n = 0; n < share; n++)); do
	wait_for 60 "status to say full" chain_is full .status.metadata.full true
	die full
done
wait_for 60 "status to say full" chain_is full .status.metadata.full true
is_dead $writer && fail "the writes must wait"
lvextend -q -L 44m small/disk.qcow2 > /dev/null
wait $writer || fail "a write was failed"
dd if="$dev" of=back bs=1M count=24 iflag=direct status=none
same data back "what was written to a full volume"
chain_down full
clean_image /dev/small/disk.qcow2
pass
