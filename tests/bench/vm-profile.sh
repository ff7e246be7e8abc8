#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Where the time of the rows of the VM goes: system calls, switches and samples of perf for each request. No bar.
# timeout: 420
source "${0%/*}/vm-lib.sh"
need_build qchaind qchainctl
need_cmd fio jq qemu-nbd qemu-img perf
writes=20000 size_mb=512
calls=(io_uring_enter write read pread64 io_submit io_getevents ppoll)
events=context-switches,cpu-migrations$(printf ',syscalls:sys_enter_%s' "${calls[@]}")

# counted NAME DEVICE OPTION...: what all processes did for each request, and where they were.
counted() {
	local name=$1 path=$2
	shift 2
	perf stat -a -x, -e "$events,cpu-clock" -o stat.out fio --name=bench --allow_file_create=0 --filename="$path" \
		--direct=1 --ioengine=libaio --iodepth=$queue_depth --output-format=json "$@" > fio.json 2> fio.err
	jq -r --arg name "$name" '.jobs[0] | "COUNT \($name): \(.read.total_ios + .write.total_ios) requests, \(.read.iops + .write.iops | floor) a second"' fio.json
	awk -F, -v n="$(jq '[.jobs[0] | .read, .write | .total_ios] | add' fio.json)" \
		'$3 != "" { printf "COUNT   %-36s %8.2f\n", $3, $1 / n }' stat.out
}

# sampled NAME DEVICE OPTION...: the same by perf's clock.
sampled() {
	local name=$1 path=$2
	shift 2
	perf record -q -a -e cpu-clock -F 499 -o perf.data fio --name=bench --allow_file_create=0 --filename="$path" \
		--direct=1 --ioengine=libaio --iodepth=$queue_depth "$@" > /dev/null
	perf report -q -i perf.data --sort comm 2> /dev/null | sed -n 1,12p | sed "s/^/PERF $name: /"
	perf report -q -i perf.data --sort comm,sym 2> /dev/null | sed -n 1,60p | sed "s/^/PERF $name: /"
}

reads() { "$1" "$2" "$3" --rw=randread --bs=4k --norandommap --time_based --runtime=$seconds; }
allocate() { "$1" "$2" "$3" --rw=randwrite --bs=4k --number_ios=$writes --randrepeat=1; }

step "reads"
cut raw $size_mb
dd if=/dev/zero bs=1M count=$size_mb status=none | tr '\0' U |
	dd of=/dev/mapper/raw bs=1M iflag=fullblock oflag=direct status=none
make_chain deep "$depth"
serve deep "$top" "" --read-only && deep=$dev
make_chain one 1
base=$top
serve one "$base" "" --read-only && one=$dev
serve raw /dev/mapper/raw "" --read-only --format raw && raw=$dev
loop=$(losetup -r --direct-io=on --show -f /dev/mapper/raw)
at_exit losetup -d "$loop"
for i in "$deep" "$one" "$raw"; do
	dd if="$i" of=/dev/null bs=1M iflag=direct status=none
done
for what in deep one raw loop; do
	reads counted "$what reads" "${!what}"
done
reads counted "bare reads" /dev/mapper/raw
for what in deep one raw; do
	reads sampled "$what reads" "${!what}"
done

step "writes"
cut overlay $((size_mb + 64))
overlay=/dev/mapper/overlay
fresh() {
	qemu-img create -q -f qcow2 -F qcow2 -b "${base##*/}" -o extended_l2=on,cluster_size=128k "$overlay"
}
for how in counted sampled; do
	fresh
	rm -f /run/bench-intent.log
	qchaind --name write --export ublk --intent-log /run/bench-intent.log --allow-backing /dev --daemonize "$overlay"
	allocate $how "ublk allocating" "$(qchainctl status write --json | jq -r .device)"
	allocate $how "ublk again" "$(qchainctl status write --json | jq -r .device)"
	qchainctl down write
done
for how in counted sampled; do
	fresh
	qemu-nbd -c /dev/nbd0 -f qcow2 --cache=none --aio=native "$overlay"
	wait_for 10 "nbd0 to have a size" nbd_ready /dev/nbd0
	allocate $how "qemu-nbd allocating" /dev/nbd0
	allocate $how "qemu-nbd again" /dev/nbd0
	nbd_off /dev/nbd0
done
pass
