#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Fetches the newest Debian cloud kernel of a kind for the test VM and prints the directory that holds it.
#
# usage: fetch-kernel.sh 6.12|7 [DIR]
# Result: DIR/current/{vmlinuz,release,lib/modules/RELEASE}; DIR defaults to $QCHAIN_CACHE/vm/kernel-KIND.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=apt-root.sh
source "$here/apt-root.sh"

kind=${1:-}
case $kind in
6.12) suite=bookworm-backports pattern='^linux-image-6\.12\.[0-9.]+\+[a-z0-9.]+-cloud-amd64$' ;;
7) suite=trixie-backports pattern='^linux-image-7\.[0-9.]+\+[a-z0-9.]+-cloud-amd64$' ;;
*) die "kernel kind '$kind' not known, must be 6.12 or 7" ;;
esac

newest_image() {
	apt-cache "${apt_opts[@]}" pkgnames linux-image- | grep -E "$pattern" | sort -V | tail -n 1
}

# The image package and, where it is split up, the parts that it only pulls in.
kernel_packages() {
	local release=${1#linux-image-}
	echo "$1"
	apt-cache "${apt_opts[@]}" depends "$1" |
		awk '$1 ~ /Depends:/ { print $2 }' | { grep -F -- "-$release" || true; }
}

unpack_kernel() {
	local debs=$1 out=$2 release=$3 deb top=$2/unpacked
	mkdir -p "$top"
	for deb in "$debs"/*.deb; do
		dpkg-deb -x "$deb" "$top"
	done
	mkdir -p "$out/lib/modules"
	[[ ! -d $top/lib/modules/$release ]] || mv "$top/lib/modules/$release" "$out/lib/modules/"
	[[ ! -d $top/usr/lib/modules/$release ]] || mv "$top/usr/lib/modules/$release" "$out/lib/modules/"
	if [[ -e $top/boot/vmlinuz-$release ]]; then
		mv "$top/boot/vmlinuz-$release" "$out/vmlinuz"
	else
		mv "$out/lib/modules/$release/vmlinuz" "$out/vmlinuz"
	fi
	rm -rf "$top"
	depmod -b "$out" "$release"
	echo "$release" > "$out/release"
}

fetch_kernel() {
	local dir=$1 image version release tmp packages
	apt_root_init "kernel-$kind" "$suite"
	apt_update
	image=$(newest_image)
	[[ -n $image ]] || die "$suite: no package matches $pattern"
	version=$(candidate "$image")
	version=${version#*:}
	[[ -e $dir/$version/release && -e $dir/current ]] && return 0
	release=${image#linux-image-}
	mapfile -t packages < <(kernel_packages "$image")
	tmp=$(mktemp -d "$dir/new.XXXXXX")
	chmod 755 "$tmp"
	apt_download "$tmp/debs" "${packages[@]}"
	unpack_kernel "$tmp/debs" "$tmp" "$release"
	rm -rf "$tmp/debs"
	commit_dir "$tmp" "$dir" "$version"
}

fetch_or_cached "${2:-$QCHAIN_CACHE/vm/kernel-$kind}" fetch_kernel
