#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Zero copy with user copy beside it: both on one request, from two threads, and when a buffer could not be registered.
# timeout: 240
source "${0%/*}/lib.sh"
source "${0%/*}/ublk-lib.sh"
need_build ublk-bringup
need_ublk_feature 0x800 "automatic buffer registration"
need_cmd fio jq
disk=$(free_ramdisk)

step "half of each request by the ring, half by user copy of another thread"
up mixed mixed "$disk"
[[ $(status mode) == zero-copy ]] || fail "mode is $(status mode)"
verify "$dev" 48
dd if=/dev/urandom of="$TMPDIR/data" bs=1M count=16 status=none
dd if="$TMPDIR/data" of="$dev" bs=5M oflag=direct conv=fsync status=none
cmp "$TMPDIR/data" "$disk" -n $((16 << 20)) || fail "what reached the disk differs"
dd if="$dev" of="$TMPDIR/back" bs=16M count=1 iflag=direct,fullblock status=none
cmp "$TMPDIR/data" "$TMPDIR/back" || fail "direct read differs"
[[ $(status failed-tags) == 0 && $(status fallbacks) == 0 ]] || fail "failed or fallen back"
down

step "most tags have no slot: their requests go through bounce buffers"
up few --slots 4 linear "$disk"
verify "$dev" 48
dd if="$TMPDIR/data" of="$dev" bs=5M oflag=direct conv=fsync status=none
cmp "$TMPDIR/data" "$disk" -n $((16 << 20)) || fail "what reached the disk differs"
dd if="$dev" of="$TMPDIR/back" bs=16M count=1 iflag=direct,fullblock status=none
cmp "$TMPDIR/data" "$TMPDIR/back" || fail "direct read differs"
fallbacks=$(status fallbacks)
echo "$fallbacks fallbacks"
((fallbacks > 100)) || fail "only $fallbacks requests fell back, the test does not test"
[[ $(status failed-tags) == 0 ]] || fail "$(status failed-tags) tags failed"
down
pass
