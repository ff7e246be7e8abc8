#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# qchaind cannot be made to wait for its own device: locked in memory, an I/O flusher in every thread, and dirty pages go out when memory is short.
# timeout: 240
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io fallocate

# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE: what prctl(PR_SET_IO_FLUSHER) sets.
flusher_flags=$((0x00080000 | 0x00100000))

kib() { awk -v key="$1:" '$1 == key { print $2 }' "$2"; }

mkvg vg 320
mkchain vg c 128m 144m 2
chain_up disk vg/c-1
pid=$(chain_json disk .pid)

step "what protects it"
locked=$(kib VmLck "/proc/$pid/status")
size=$(kib VmSize "/proc/$pid/status")
echo "VmLck $locked kB of VmSize $size kB, VmRSS $(kib VmRSS "/proc/$pid/status") kB"
((locked * 10 > size * 8)) || fail "only $locked kB of $size kB are locked"
[[ $(cat "/proc/$pid/oom_score_adj") == -1000 ]] || fail "oom_score_adj is $(cat "/proc/$pid/oom_score_adj"), expected -1000"
threads=0
for stat in /proc/"$pid"/task/*/stat; do
	line=$(cat "$stat")
	# shellcheck disable=SC2086
	set -- ${line##*) }
	((($7 & flusher_flags) == flusher_flags)) || fail "thread ${line%%)*}) has flags $(printf %x "$7"), not those of an I/O flusher"
	threads=$((threads + 1))
done
echo "$threads threads"

step "96 MiB of dirty pages with little memory left"
echo 60 > /proc/sys/vm/dirty_ratio
echo 50 > /proc/sys/vm/dirty_background_ratio
at_exit eval 'echo 20 > /proc/sys/vm/dirty_ratio; echo 10 > /proc/sys/vm/dirty_background_ratio'
echo 1 > /proc/sys/vm/drop_caches
hog=$(($(kib MemAvailable /proc/meminfo) - 420 * 1024))
((hog > 0)) || fail "no memory to take away"
mkdir hog
mount -t tmpfs -o size=90% tmpfs hog
at_exit umount hog
fallocate -l "${hog}k" hog/memory
grep -E 'MemAvailable|MemFree' /proc/meminfo
fio --name=src --filename=data --size=96M --rw=write --bs=1M --ioengine=sync --minimal > /dev/null
exec 8<> "$dev" # the last close would write everything
timeout 120 dd if=data of="$dev" bs=1M conv=notrunc status=none || fail "buffered writes do not end"
grep -E 'Dirty|Writeback:|MemAvailable' /proc/meminfo
(($(kib Dirty /proc/meminfo) > 8192)) || fail "only $(kib Dirty /proc/meminfo) kB are dirty, the test does not test"
timeout 120 sync "$dev" || fail "dirty pages are not written"
exec 8>&-
kill -0 "$pid" || fail "qchaind has ended"
rm hog/memory
blockdev --flushbufs "$dev"
cmp -n $((96 << 20)) data "$dev" || fail "wrong data"
[[ $(chain_json disk .status.metadata.failed) == false ]] || fail "it has failed"
chain_down disk
clean_image /dev/vg/c-1
pass
