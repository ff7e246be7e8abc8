#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# down --force while writes wait for space: they fail, the chain ends, the image is clean. The last test: a hang here is one in the kernel.
# timeout: 120
# kernel: 7
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img

mkvg vg 128
mkchain vg c 48m 56m 1
mklv vg c-1 16m
qemu-img create -q -f qcow2 -F qcow2 -b c-0 /dev/vg/c-1
chain_up disk vg/c-1
dmesg_allow 'dev ublkb'

step "writes wait for space"
dd if=/dev/urandom of="$dev" bs=64k count=512 oflag=direct status=none 2> /dev/null &
writer=$!
wait_for 60 "status to say full" chain_is disk .status.metadata.full true

step "down refuses, down --force ends it"
must_fail quiet qchainctl down disk
kill -0 $writer || fail "the writer has ended, its write must wait"
timeout 40 qchainctl down --force disk || fail "down --force does not end while writes wait"
wait_dead $writer 20
if wait $writer; then fail "the writer saw no error"; fi
wait_gone "$dev" 10
[[ ! -e /run/qchain/disk && -z $(pidof qchaind) ]] || fail "left behind"
clean_image /dev/vg/c-1
pass
