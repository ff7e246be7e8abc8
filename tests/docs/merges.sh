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

# The picture without the columns that say the same everywhere.
tree() { qchainctl tree vm | sed -n 's/  -  \([a-z]*\) *[0-9.]* [A-Z]iB *\([0-9.]* [MKi]*B\).*/  \1  \2/; 2,$p'; }

# show TITLE VERB ARGUMENT...
show() {
	local title=$1
	shift
	make_chain
	printf '## %s\n\n    # qchainctl %s\n' "$title" "$*"
	tree > "$work/before"
	qchainctl "$@" 2>&1 | sed "s#$work/images/##g; s/^/    /"
	tree > "$work/after"
	qchainctl down vm
	echo
	# both pictures stand on the same ground
	while (($(wc -l < "$work/after") < $(wc -l < "$work/before"))); do
		{ echo; cat "$work/after"; } > "$work/longer"
		mv "$work/longer" "$work/after"
	done
	paste -d '\t' "$work/before" "$work/after" |
		awk -F '\t' '{ line = sprintf("    %-38s %s", $1, $2); sub(/ +$/, "", line); print line }'
	echo
}

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
