#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Fetches QEMU 10 (bookworm-backports) and virtiofsd (bookworm) with all their libraries, and prints their directory.
#
# usage: fetch-qemu.sh [DIR]
# Result: DIR/current/{bin/qemu,bin/virtiofsd,root/...}; DIR defaults to $QCHAIN_CACHE/vm/qemu.
# The programs run with the C library and the libraries of that directory, so nothing is
# installed on the host, and nothing that is installed there matters.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=apt-root.sh
source "$here/apt-root.sh"
backports=bookworm-backports

# The packages that apt would install on an empty system, less those which are no library or data.
qemu_packages() {
	apt-get "${apt_opts[@]}" install -s -t "$backports" --no-install-recommends qemu-system-x86 |
		awk '$1 == "Inst" { sub(/^\(/, "", $3); print $2 "=" $3 }' |
		grep -E '^(lib|qemu-|seabios|ipxe-)'
}

# wrapper NAME PROGRAM [ARG...]: a start script that uses the libraries beside it only.
wrapper() {
	local file=$1 program=$2
	shift 2
	cat > "$file" <<-EOF
		#!/bin/sh
		top=\$(dirname "\$(readlink -f "\$0")")/../root
		export QEMU_MODULE_DIR="\$top/usr/lib/x86_64-linux-gnu/qemu"
		exec "\$top/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \\
			--library-path "\$top/lib/x86_64-linux-gnu:\$top/usr/lib/x86_64-linux-gnu" \\
			"\$top/$program" $* "\$@"
	EOF
	chmod 755 "$file"
}

unpack_qemu() {
	local tmp=$1 deb
	mkdir -p "$tmp/root" "$tmp/bin"
	for deb in "$tmp"/debs/*.deb; do
		dpkg-deb -x "$deb" "$tmp/root"
	done
	# Only this one file of 7.2: later packages have no virtiofsd, and trixie's needs a newer libc.
	dpkg-deb --fsys-tarfile "$tmp"/debs72/qemu-system-common_*.deb |
		tar -x -C "$tmp/root" ./usr/lib/qemu/virtiofsd
	rm -rf "$tmp/debs" "$tmp/debs72" "$tmp/root/usr/share/doc"
	wrapper "$tmp/bin/qemu" usr/bin/qemu-system-x86_64 \
		-L "\"\$top/usr/share/qemu\"" -L "\"\$top/usr/share/seabios\"" -L "\"\$top/usr/lib/ipxe/qemu\""
	wrapper "$tmp/bin/virtiofsd" usr/lib/qemu/virtiofsd
	"$tmp/bin/qemu" --version >&2
	"$tmp/bin/virtiofsd" --version > /dev/null
}

fetch_qemu() {
	local dir=$1 version tmp packages
	apt_root_init qemu bookworm "$backports"
	apt_update
	version=$(candidate qemu-system-x86 "$backports")
	[[ $version == *:1[0-9].* ]] || die "$backports: qemu-system-x86 is '$version', must be 10 or later"
	version=${version#*:}	# a colon would split the library path
	[[ -e $dir/$version/bin/qemu && -e $dir/current ]] && return 0
	mapfile -t packages < <(qemu_packages)
	tmp=$(mktemp -d "$dir/new.XXXXXX")
	chmod 755 "$tmp"
	apt_download "$tmp/debs" "${packages[@]}"
	apt_download "$tmp/debs72" qemu-system-common/bookworm
	unpack_qemu "$tmp"
	commit_dir "$tmp" "$dir" "$version"
}

fetch_or_cached "${1:-$QCHAIN_CACHE/vm/qemu}" fetch_qemu
