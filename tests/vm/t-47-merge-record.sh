#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Merges on LVs: in the tags before they write, finished after kill -9, and after down with an empty /run.
# timeout: 400
# kernel: 6.12
source "${0%/*}/lib.sh"
source "${0%/*}/chain-lib.sh"
need_build qchaind qchainctl

tags() { lvs --noheadings -o lv_tags "vg/$1" | tr -d ' '; }
snapshots() { qchainctl tree disk --json | jq -r '[.layers[] | .snapshot // "-"] | join(" ")'; }
settled() { [[ $(tags disk.3.qcow2) != *qchain.job* ]]; }

mkvg vg 512
old_data vg
qchainctl create vg/disk.qcow2 --size 64M || fail "create"
chain_up disk vg/disk.qcow2
fill() { fio --name=fill --filename="$dev" --rw=write --bs=1M --offset="$1" --size=16M --direct=1 --minimal > /dev/null || fail "fio"; }
fill 0
for snap in one two three; do
	qchainctl snapshot disk $snap || fail "snapshot"
	fill $((RANDOM % 3 * 16))M
done
save_device "$dev" now
[[ $(snapshots) == "- three two one" ]] || fail "tree shows $(snapshots)"

step "kill -9 of both before anything was written: forgotten"
QCHAIN_CRASH_POINT=merge.unbegun qchainctl commit disk --top two --base one --drop-snapshots && fail "not killed"
[[ $(tags disk.3.qcow2) == *qchain.job=commit0:commit:planned:* ]] || fail "$(tags disk.3.qcow2)"
crash disk
chain_up disk
settled || fail "$(tags disk.3.qcow2)"
[[ $(snapshots) == "- three two one" ]] || fail "tree shows $(snapshots)"

step "kill -9 of both while it writes, and an empty /run: up NAME goes on"
QCHAIN_CRASH_POINT=merge.started qchainctl commit disk --top two --base one --drop-snapshots --speed 64k && fail "not killed"
[[ $(tags disk.3.qcow2) == *qchain.job=commit0:commit:writing:* ]] || fail "$(tags disk.3.qcow2)"
[[ $(tags disk.3.qcow2) != *:one:* ]] || fail "the snapshot of the base is not forgotten: $(tags disk.3.qcow2)"
crash disk
qchainctl job list disk | grep -q "commit of" || fail "job list does not show it"
qchainctl list | grep -q "merging commit0" || fail "list does not show it"
chain_up disk
wait_for 60 "the commit has ended" settled
[[ $(snapshots) == "- three two" ]] || fail "tree shows $(snapshots)"
save_device "$dev" shown
same now shown "device"

step "a commit that was cancelled is kept in the tags until it is finished"
lvremove -q -f -y vg/disk.1.qcow2 > /dev/null # merged; its header still names the base
qchainctl commit disk --top three --base two --drop-snapshots --detach --speed 64k || fail "commit"
qchainctl job cancel disk commit0 2> err
grep -q "is not undone" err || fail "$(cat err)"
[[ $(tags disk.3.qcow2) == *qchain.job-error=commit0:cancelled* ]] || fail "$(tags disk.3.qcow2)"
chain_down disk
rm -rf /run/qchain
qchainctl job list disk | grep -q "failed .*cancelled" || fail "$(qchainctl job list disk)"
chain_up disk
qchainctl job resume disk commit0 || fail "resume"
wait_for 60 "the commit has ended" settled
[[ $(snapshots) == "- three" ]] || fail "tree shows $(snapshots)"
save_device "$dev" shown
same now shown "device"
chain_down disk
vgchange -q -ay vg > /dev/null
for lv in disk.qcow2 disk.3.qcow2; do clean_image /dev/vg/$lv; done
