# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Helpers for t-1x-ublk-*.sh: serve a target with ublk-bringup, ask it, stop it.

# ublk_has MASK: does the driver offer these features?
ublk_has() { (($(ublk_features) & $1)) && (($(ublk_features) & $1 == $1)); }

# modes: the driver's best, and copy mode where that is another and there is time: older kernels have no other.
modes() {
	echo default
	[[ -z $QCHAIN_FULL ]] || ! ublk_has 0x880 || echo copy
}

# up NAME ARG...: start ublk-bringup ARG... in the background; sets dev, pid, log.
up() {
	log=$TMPDIR/$1.log
	shift
	: > "$log"
	ublk-bringup "$@" > "$log" 2>&1 &
	pid=$!
	wait_for 60 "the device to be ready" came_up
	cat "$log"
	grep -q '^ready' "$log" || fail "it did not start"
	dev=$(sed -n 's/^ready //p' "$log")
	at_exit drop_device "$dev"
	wait_block "$dev" 10
}

# A quiesced device would keep everybody who looks at it waiting for ever. One
# that is served is deleted only when its server has closed it.
drop_device() {
	# shellcheck disable=SC2046
	[[ -z $(jobs -p) ]] || kill -9 $(jobs -p) 2> /dev/null || true
	umount -l "$TMPDIR/mnt" 2> /dev/null || true
	[[ ! -e ${1/ublkb/ublkc} ]] || timeout 20 "$QCHAIN_VM_RUN/ublkctl" del "${1#/dev/ublkb}"
}

came_up() { grep -qE '^(ready|error)' "$log" || is_dead "$pid"; }

# status KEY: one key of its status, as JSON or as plain text.
status() {
	local n
	n=$(count ^status)
	kill -USR1 "$pid"
	wait_for 10 "the status" has_status $((n + 1))
	sed -n 's/^status //p' "$log" | tail -n 1 | jq -cr --arg key "$1" '.[$key]'
}

has_status() { (($(count ^status) >= $1)); }

# down: stop it; the device and the process have to go.
down() {
	local n
	n=$(count ^busy)
	kill -TERM "$pid"
	wait_for 30 "the device to stop" answered $((n + 1))
	tail -n 1 "$log"
	grep -q ^stopped "$log" || fail "did not stop: $(tail -n 1 "$log")"
	wait "$pid" || { cat "$log"; fail "ended with status $?"; }
	[[ ! -e $dev && ! -e ${dev/ublkb/ublkc} ]] || fail "$dev is still there"
}

# count REGEX: lines of the server's log.
count() { grep -c "$1" "$log" || true; }

# answered N: it has stopped, or has refused that for the Nth time.
answered() { grep -q ^stopped "$log" || (($(count ^busy) >= $1)); }

# verify DEVICE MB: random writes of many sizes, then read back and compare.
verify() {
	fio --name=verify --allow_file_create=0 --filename="$1" --size="$2M" --direct=1 --ioengine=io_uring --iodepth=32 \
		--rw=randwrite --bsrange=512-256k --bs_unaligned=0 --blockalign=512 --fsync=64 \
		--verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > "$TMPDIR/fio.out" ||
		{ cat "$TMPDIR/fio.out" >&2; fail "fio found a difference"; }
}

# wrote_nr DEVICE: how many writes have ended on it; wrote DEVICE N: at least N?
wrote_nr() { awk '{ print $5 }' "/sys/block/${1#/dev/}/stat"; }
wrote() { (($(wrote_nr "$1") >= $2)); }
