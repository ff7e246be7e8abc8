#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds the small initramfs of the test VM: busybox, the modules needed to mount the host's files, and initramfs-init.
#
# usage: mkinitramfs.sh KERNELDIR OUT [MODULE...]
# KERNELDIR is what fetch-kernel.sh printed; the modules default to those which mount the root.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")

kernel=$1 out=$2
shift 2
modules=("$@")
((${#modules[@]})) || modules=(overlay)
release=$(cat "$kernel/release")
tree=$kernel/lib/modules/$release

# module_files NAME: the .ko.xz files of a module, its dependencies first; nothing when built in.
module_files() {
	local name=${1//-/_} line
	line=$(awk -F: -v name="$name" '{
		file = $1; sub(/.*\//, "", file); sub(/\.ko.*/, "", file); gsub(/-/, "_", file)
		if (file == name) print
	}' "$tree/modules.dep")
	if [[ -z $line ]]; then
		tr - _ < "$tree/modules.builtin" | grep -q "/$name.ko" && return
		echo "mkinitramfs: $release has no module $1" >&2
		return 1
	fi
	# modules.dep lists the nearest dependency first.
	tr ' ' '\n' <<< "${line#*:}" | sed '/^$/d' | tac
	echo "${line%%:*}"
}

add_modules() {
	local files='' file target
	for file in "${modules[@]}"; do
		files+=$(module_files "$file")$'\n'
	done
	while read -r file; do
		target=$(basename "${file%.xz}")
		case $file in
		*.xz) xz -dc "$tree/$file" > "$root/modules/$target" ;;
		*) cp "$tree/$file" "$root/modules/$target" ;;
		esac
		echo "$target" >> "$root/modules/order"
	done < <(awk 'NF && !seen[$0]++' <<< "$files")
}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,dev,proc,modules,host,rw,root}
: > "$root/modules/order"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount mkdir insmod cat sed switch_root sleep; do
	ln -s busybox "$root/bin/$applet"
done
install -m 755 "$here/initramfs-init" "$root/init"
add_modules
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) > "$out"
