#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# up --offload: plain data and zeroes by device-mapper; no daemon when that is all; layers are held, down leaves nothing.
# timeout: 180
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io dmsetup

# Whatever state it is in at the end of a test.
offload_end() {
	[[ ! -e /dev/mapper/$1 ]] || dmsetup remove "$1"
	chain_end "$1"
}

offload_up() {
	local name=$1
	at_exit offload_end "$name"
	dev=$(qchainctl up "$@" --read-only --offload) || fail "qchainctl up $* --offload"
	[[ $dev == /dev/mapper/$name ]] || fail "up says '$dev', expected /dev/mapper/$name"
	wait_block "$dev" 10
	[[ $(readlink -f "/dev/qchain/$name") == $(readlink -f "$dev") ]] || fail "/dev/qchain/$name leads elsewhere"
}

offload_down() {
	qchainctl down "$@" || fail "qchainctl down $*"
	[[ ! -e /dev/mapper/$1 && ! -e /run/qchain/$1 && ! -e /dev/qchain/$1 ]] || fail "$1 has left something behind"
	! dmsetup info "$1" > /dev/null 2>&1 || fail "$1 is still there"
}

# shows FILE DEVICE WHAT
shows() {
	save_device "$2" shown
	same "$1" shown "$3"
	rm shown
}

must_say() {
	local words=$1
	shift
	if "$@" > refused 2>&1; then fail "not refused: $*"; fi
	grep -q -- "$words" refused || { cat refused; fail "$*: does not say '$words'"; }
}

mkvg vg 128
mkchain vg c 16m 20m 4
qemu-io -f qcow2 -c 'write -q -P 0x44 3M 100k' /dev/vg/c-3
qemu-img convert -f qcow2 -O raw /dev/vg/c-3 model
sums /dev/vg/c-0 /dev/vg/c-1 /dev/vg/c-3 > sums.before

step "all of it maps: no daemon"
offload_up gold vg/c-3
[[ $(dmsetup info -c --noheadings -o uuid gold) == QCHAIN-gold ]] || fail "no UUID QCHAIN-gold"
[[ $(blockdev --getro "$dev") == 1 ]] || fail "$dev is not read-only"
! pgrep -x qchaind > /dev/null || fail "a qchaind runs"
dmsetup table gold | awk '$3 != "linear" && $3 != "zero" { exit 1 }' || fail "a table of something else"
shows model "$dev" "mapped content"
chain_is gold .state mapped || fail "status does not say mapped"
chain_is gold .offload.rest 0 || fail "status: something is left for a daemon"
qchainctl list | grep -q 'gold  *mapped  *16 MiB .*/dev/mapper/gold ' || { qchainctl list; fail "list does not show it"; }
[[ $(qchainctl tree gold --json | jq -c '[.layers[].file]') == '["/dev/vg/c-3","/dev/vg/c-2","/dev/vg/c-1","/dev/vg/c-0"]' ]] || fail "tree"
qchainctl scan vg --json | jq -e '[.. | ."used-by"? // empty] | any(contains("gold, mapped"))' > /dev/null || fail "scan does not say who uses it"
must_say "mapped already" qchainctl up gold vg/c-3 --read-only --offload
must_say "is mapped by the kernel" qchainctl snapshot gold monday

step "nobody writes to, merges or removes a layer meanwhile"
at_exit chain_end writer
must_say "dm-[0-9]* (gold)" qchainctl up writer vg/c-3
[[ ! -e /run/qchain/writer ]] || fail "a refused up has left its folder"
must_say "dm-[0-9]* (gold)" qchainctl commit vg/c-3
must_say "used by another device" lvremove -q -f -y vg/c-1

step "down, while it is open"
exec 9< "$dev"
must_say "process $$ (" qchainctl down gold
qchainctl down gold --deferred 2> deferred
grep -q 'goes when it is closed' deferred || fail "down --deferred says nothing"
chain_is gold .state mapped || fail "it is gone though it is open"
exec 9<&-
wait_gone /dev/mapper/gold 10
chain_is gold .state dead || fail "status does not say dead"
offload_down gold

step "compressed clusters: the daemon's, and only they"
qemu-io -f qcow2 -c 'write -q -c -P 0x77 2M 64k' -c 'write -q -c -P 0x78 6M 64k' /dev/vg/c-2
qemu-img convert -f qcow2 -O raw /dev/vg/c-3 model
offload_up packed vg/c-3 --offload-targets 1000
chain_is packed .offload.rest 131072 || fail "not just two clusters are left for the daemon"
shows model "$dev" "content with compressed clusters"
step "its daemon dies, and another takes over below"
pid=$(chain_json packed .pid)
kill -9 "$pid"
wait_dead "$pid" 10
chain_is packed .state recoverable || fail "not recoverable"
qchainctl up packed > /dev/null || fail "not taken over"
shows model "$dev" "content after the takeover"
offload_down packed

! pgrep -x qchaind > /dev/null || fail "its daemon is still there"

sums /dev/vg/c-0 /dev/vg/c-1 /dev/vg/c-3 > sums.after
same sums.before sums.after "LVs were changed by an offloaded life"
pass
