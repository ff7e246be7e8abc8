#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Merges on devices that take a millisecond: offline commit and qemu-img commit, online stream and qemu-storage-daemon's.
# timeout: 600
source "${0%/*}/vm-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-storage-daemon

step "images"
size_mb=64
make_chain c 2 $((2 * size_mb)) # the base takes the overlay's clusters
base=/dev/mapper/c-000
dd if=$base of=base.saved bs=1M status=none
dd if="$top" of=top.saved bs=1M status=none
delayed

# restored: both layers as they were.
restored() {
	dd if=base.saved of=$base bs=4M oflag=direct status=none
	dd if=top.saved of="$top" bs=4M oflag=direct status=none
}

# streamed ROUND CONTESTANT COMMAND...: a server with a QMP socket ./qmp; the seconds of its block-stream.
streamed() {
	local round=$1 contestant=$2 server
	shift 2
	rm -f qmp
	"$@" > server.out 2>&1 &
	server=$!
	wait_for 20 "a QMP socket" test -S qmp
	sample "$round" "$contestant" "{\"wall_s\": $("${0%/*}/vm-stream.py" qmp top)}"
	kill "$server"
	wait "$server" || { cat server.out; fail "$1"; }
	qemu-img check -q -f qcow2 "$top"
}

for ((round = 1; round <= rounds; round++)); do
	step "round $round"
	restored
	wall_sample $round "commit, ours" qchainctl commit --allow-backing /dev "$top"
	restored
	wall_sample $round "commit, qemu-img" qemu-img commit -q -f qcow2 -t none "$top"
	restored
	streamed $round "stream, ours" qchaind --qmp qmp --export nbd,socket=nbd.sock --allow-backing /dev "$top"
	restored
	streamed $round "stream, qemu-storage-daemon" qemu-storage-daemon --chardev socket,id=c,path=qmp,server=on,wait=off \
		--monitor chardev=c --blockdev "driver=host_device,node-name=file,filename=$top,cache.direct=on,aio=native" \
		--blockdev driver=qcow2,node-name=top,file=file,cache.direct=on
done
pass
