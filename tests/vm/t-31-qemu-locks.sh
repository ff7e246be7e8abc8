#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# QEMU and qchaind keep each other away from an image on an LV: whoever has it, the other is refused, and is told why.
# timeout: 180
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io qemu-nbd

# refused_up TEXT ARG...: qchainctl up has to refuse with TEXT in its reason.
refused_up() {
	local text=$1
	shift
	if qchainctl up "$@" > up.out 2>&1; then fail "up $* succeeded, expected a refusal"; fi
	cat up.out
	grep -qi "$text" up.out || fail "expected '$text' in the refusal"
	[[ ! -e /run/qchain/$1 ]] || fail "/run/qchain/$1 was left"
}

# hold OPTION... IMAGE: qemu-nbd has the image open; sets holder.
hold() {
	rm -f nbd.sock
	qemu-nbd -t -k "$TMPDIR/nbd.sock" -f qcow2 "$@" &
	holder=$!
	wait_path nbd.sock 30
}

release() {
	kill $holder
	wait $holder || true
}

mkvg vg 128
mkchain vg c 32m 40m 2

step "served by qchaind: QEMU is refused"
chain_up disk vg/c-1
for image in c-1 c-0; do
	if qemu-io -f qcow2 -c 'write -q 0 512' /dev/vg/$image > qemu.out 2>&1; then fail "QEMU wrote $image, which is served"; fi
	cat qemu.out
	grep -qi 'lock' qemu.out || fail "expected QEMU to speak of a lock"
done
must_fail quiet qemu-img check -q -r all -f qcow2 /dev/vg/c-1
must_fail quiet lvremove -q -f -y vg/c-1
qemu-img info -U -f qcow2 /dev/vg/c-1 > /dev/null || fail "qemu-img info -U must work"
chain_down disk
qemu-io -f qcow2 -c 'write -q -P 0x55 0 512' /dev/vg/c-1 || fail "a lock was left"

step "QEMU writes the active layer: qchaind is refused"
hold /dev/vg/c-1
refused_up 'c-1.*\(lock\|in use\|busy\|open\)' disk vg/c-1
release

step "QEMU writes the base: qchaind is refused"
hold /dev/vg/c-0
refused_up 'c-0.*\(lock\|in use\|busy\|open\)' disk vg/c-1
release

step "QEMU reads the base: both may"
hold -r /dev/vg/c-0
chain_up disk vg/c-1
[[ $(head -c 1 "$dev" | od -An -tx1 | tr -d ' ') == 55 ]] || fail "wrong data"
release
chain_down disk
clean_image /dev/vg/c-1
pass
