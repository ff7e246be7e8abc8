# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Helpers of vm-*.sh, the end-to-end measurements: devices on one RAM disk, servers, samples.
# They run in the VM as the system tests do; a sample is one line "BENCH {json}".
source "${0%/*}/../vm/lib.sh"

size_mb=128 depth=64 rounds=5 seconds=3 queue_depth=32
# shellcheck disable=SC1091
[[ ! -e $QCHAIN_BUILD/bench/vm-settings ]] || source "$QCHAIN_BUILD/bench/vm-settings"

disk=$(free_ramdisk)
disk_used=1 # MiB of it that devices were cut from
servers=()

# --- devices ---

# cut NAME MB: a device-mapper device of that size on the RAM disk.
cut() {
	dmsetup create "$1" --table "0 $(($2 * 2048)) linear $disk $((disk_used * 2048))"
	disk_used=$((disk_used + $2))
	wait_block "/dev/mapper/$1" 30
}

# delayed: all I/O of the devices that were cut takes a millisecond more, from now on.
delayed() {
	local name table
	dmsetup table | while IFS=': ' read -r name table; do
		read -ra table <<< "$table"
		dmsetup reload "$name" --table "0 ${table[1]} delay ${table[3]} ${table[4]} 1"
		dmsetup resume "$name"
	done
}

# make_chain NAME LAYERS [ROOM_MB]: devices NAME-000 (base) to the top, every cluster allocated in one of them.
make_chain() {
	"${0%/*}/vm-chain.py" "$TMPDIR/$1" "$1" $((size_mb << 20)) "$2" "$disk" "$disk_used" "${3:-1}" > chain.out
	read -r top disk_used < chain.out
}

# --- servers ---

# serve NAME TOP EXPORT-OPTION [ARGUMENT...]: qchaind with a ublk device; sets dev.
serve() {
	local name=$1 path=$2 export=$3
	shift 3
	qchaind --name "$name" --export "ublk$export" --allow-backing /dev --daemonize "$@" "$path"
	dev=$(qchainctl status "$name" --json | jq -r .device)
	[[ $dev == /dev/ublkb* ]] || fail "$name: no device, but '$dev'"
	wait_block "$dev" 10
	servers+=("$name")
	at_exit qchainctl down "$name"
}

# serve_nbd N AIO TOP [OPTION...]: qemu-nbd behind the kernel's client, /dev/nbdN.
serve_nbd() {
	local node=/dev/nbd$1 aio=$2 path=$3
	shift 3
	qemu-nbd -c "$node" -f qcow2 --cache=none --aio="$aio" "$@" "$path"
	at_exit nbd_off "$node"
	wait_for 10 "$node to have a size" nbd_ready "$node"
}

nbd_ready() { (($(blockdev --getsize64 "$1") > 0)); }

nbd_off() {
	qemu-nbd -d "$1" > /dev/null
	wait_for 20 "$1 to be free" nbd_free "$1"
}

nbd_free() { [[ ! -e /sys/block/${1##*/}/pid ]]; }

# --- samples ---

# sample ROUND CONTESTANT JSON-OBJECT
sample() { printf 'BENCH {"round": %d, "contestant": "%s", "sample": %s}\n' "$1" "$2" "$3"; }

# fio_sample ROUND CONTESTANT DEVICE OPTION...: reads IOPS, latency and CPU time of everybody.
fio_sample() {
	local round=$1 contestant=$2 path=$3 before after
	shift 3
	before=$(busy_ticks)
	fio --name=bench --allow_file_create=0 --filename="$path" --direct=1 --ioengine=libaio \
		--iodepth=$queue_depth --output-format=json "$@" > fio.json 2> fio.err ||
		{ cat fio.err fio.json >&2; fail "fio on $path"; }
	after=$(busy_ticks)
	sample "$round" "$contestant" "$(jq -c --argjson ticks $((after - before)) '.jobs[0] |
		(if .read.total_ios > 0 then .read else .write end) |
		{iops: .iops, p50_us: (.clat_ns.percentile["50.000000"] / 1000),
		 p99_us: (.clat_ns.percentile["99.000000"] / 1000),
		 cpu_us: ($ticks * 10000 / .total_ios)}' fio.json)"
}

# All processors' time that was not idle, in 1/100 s.
busy_ticks() { awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }

random_reads() {
	fio_sample "$1" "$2" "$3" --rw=randread --bs=4k --norandommap --time_based --runtime=$seconds
}

# wall_sample ROUND CONTESTANT COMMAND...: the whole life of a program.
wall_sample() {
	local round=$1 contestant=$2 start
	shift 2
	start=${EPOCHREALTIME/[.,]/}
	"$@" > wall.out 2>&1 || { cat wall.out >&2; fail "$*"; }
	sample "$round" "$contestant" "{\"wall_s\": $((${EPOCHREALTIME/[.,]/} - start))e-6}"
}
