#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Prints docs/merges.md: every kind of merge on a served chain, with the tree before and after it.
#
# usage: tests/docs/merges.sh [BUILD] > docs/merges.md
set -euo pipefail
build=$(realpath "${1:-build}")
work=$(mktemp -d)
export QCHAIN_RUN_DIR=$work/run
trap '"$build/qchainctl" down vm > "$work/down" 2>&1 || true; rm -rf "$work"' EXIT
mkdir "$work/images"
cd "$work/images"

qchainctl() { "$build/qchainctl" "$@"; }

# Each image holds 40 MiB, of which 20 MiB hide what the one below holds.
make_chain() {
	local name below='' number=0
	rm -f ./*
	for name in base sn1 sn2 sn3 active; do
		qemu-img create -q -f qcow2 ${below:+-F qcow2 -b "$below"} "$name.qcow2" 1G
		number=$((number + 1))
		qemu-io -f qcow2 -c "write -q -P $number $((number * 20))M 40M" "$name.qcow2"
		below=$name.qcow2
	done
	qchainctl up vm ./active.qcow2 --no-ublk --nbd "$work/nbd.sock" > /dev/null
}

# The same bytes in snapshots sn1 to sn3, as the verb takes them.
make_snapshots() {
	local number
	rm -f ./*
	qchainctl create ./disk.qcow2 --size 1G > /dev/null
	qchainctl up vm ./disk.qcow2 --no-ublk --nbd "$work/nbd.sock" > /dev/null
	for number in 1 2 3 4; do
		qemu-io -f raw -c "write -q -P $number $((number * 20))M 40M" -c flush "nbd+unix:///?socket=$work/nbd.sock"
		((number == 4)) || qchainctl snapshot vm "sn$number" > /dev/null
	done
}

# The picture without the columns that say the same everywhere; images of no snapshot have no name of one.
tree() {
	qchainctl tree vm | sed -n 's# *\(-\|[0-9.]* [A-Z]iB\) *\([0-9.]* [MKi]*B\)  /.*#  \2#; 2,$p' |
		if [ "$1" = make_chain ]; then sed 's/  -  \([a-z]\)/  \1/'; else cat; fi
}

# make_longer FILE OTHER: empty lines above, until it is as long as OTHER.
make_longer() {
	while (($(wc -l < "$1") < $(wc -l < "$2"))); do
		{ echo; cat "$1"; } > "$work/longer"
		mv "$work/longer" "$1"
	done
}

# show_on MAKE TITLE VERB ARGUMENT...
show_on() {
	local make=$1 title=$2 width=38
	[ "$make" = make_chain ] || width=42
	shift 2
	"$make"
	printf '## %s\n\n    # qchainctl %s\n' "$title" "$*"
	tree "$make" > "$work/before"
	qchainctl "$@" 2>&1 | sed "s#$work/images/##g; s/^/    /"
	tree "$make" > "$work/after"
	qchainctl down vm
	echo
	# both pictures stand on the same ground
	make_longer "$work/after" "$work/before"
	make_longer "$work/before" "$work/after"
	paste -d '\t' "$work/before" "$work/after" |
		awk -F '\t' -v width=$width '{ line = sprintf("    %-*s %s", width, $1, $2); sub(/ +$/, "", line); print line }'
	echo
}

show() { show_on make_chain "$@"; }

cat <<-'EOF'
	# Merges

	Every kind of merge, on a chain that is served; made by `tests/docs/merges.sh`. On the left
	the tree before, on the right after it. Each image holds 40 MiB, 20 of which lie over data
	of the image below: what is hidden is not moved, but that the layers between the active one
	and its base go down before it. Images are shown with what they take.

	A commit changes what lies below, a stream leaves it as it is. Which of both deletes a
	snapshot for fewer bytes is what `qchainctl delete` works out; see [howto.md](howto.md).

EOF
show "Commit: all overlays below the active layer into the base" commit vm --top sn3.qcow2 --base base.qcow2
show "Commit: the older two into the base" commit vm --top sn2.qcow2 --base base.qcow2
show "Commit: the oldest into the base" commit vm --top sn1.qcow2 --base base.qcow2
show "Commit: one into the one below it" commit vm --top sn2.qcow2 --base sn1.qcow2
show "Commit: the newest into the one below it" commit vm --top sn3.qcow2 --base sn2.qcow2
show "Commit: the newer two into the oldest" commit vm --top sn3.qcow2 --base sn1.qcow2
show "Commit: the active layer into a layer below it, which becomes the active one" commit vm --base sn2.qcow2
show "Stream: down to a base, into the active layer" stream vm --base sn1.qcow2
show "Stream: everything into the active layer" stream vm
show "Stream: into a layer of the middle" stream vm --into sn3.qcow2 --base sn1.qcow2

cat <<-'EOF'
	## Snapshots that go

	The same bytes, in snapshots that `qchainctl snapshot` has taken; the image of the oldest is
	the base.

EOF
show_on make_snapshots "Delete: what was written since goes down into it" delete vm sn2 --commit
show_on make_snapshots "Delete: what it keeps goes up" delete vm sn2 --stream
show_on make_snapshots "Delete: the newest, into which the active layer goes" delete vm sn3 --commit
show_on make_snapshots "Revert: what came after is dropped" revert vm sn1 --drop-snapshots
show_on make_snapshots "Revert: what came after stays" revert vm sn2 --keep before
