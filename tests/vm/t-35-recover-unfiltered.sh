#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A dead daemon's device must not hold up qchainctl on a host without our LVM filter: it is recovered, and other chains come up.
# timeout: 200
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl
need_cmd jq qemu-img qemu-io

mkvg vg 128
mkchain vg a 24m 28m 2
mkchain vg b 24m 28m 2
chain_up a vg/a-1
first=$dev
save_device "$first" model
crash a

step "another chain comes up while one is dead"
timeout 40 qchainctl up b vg/b-1 > up.out 2>&1 || { cat up.out; other_failed=1; }

step "the dead one is taken over"
timeout 80 qchainctl up a > up.out 2>&1 || { cat up.out; fail "not recovered: lvm waits for the very device that is to be recovered"; }
save_device "$first" shown
same model shown "after recovery"
[[ -z ${other_failed:-} ]] || fail "a dead chain keeps another one from coming up: lvm waits for its device"
chain_down a
chain_down b
pass
