#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds with gcc and clang of another Debian release, in a root of its own, and runs the unit tests there.
#
# usage: tests/build-on.sh SUITE     for example trixie, which is Debian 13
set -euo pipefail
cd "$(dirname "$0")/.." || exit 2
suite=${1:?usage: tests/build-on.sh SUITE}
packages=build-essential,pkg-config,clang,liburing-dev,liburcu-dev,libjson-c-dev
packages+=,zlib1g-dev,libzstd-dev,libdevmapper-dev,libseccomp-dev,nettle-dev,libcunit1-dev

if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
	echo "build-on: skipped: needs root and debootstrap"
	exit 77
fi
root=$(mktemp -d /var/tmp/qchain-build-on.XXXXXX)
trap 'rm -rf "$root"' EXIT

debootstrap --variant=minbase --include="$packages" "$suite" "$root" \
	"${QCHAIN_MIRROR:-http://deb.debian.org/debian}" >"$root.log" 2>&1 ||
	{ tail -5 "$root.log"; echo "build-on: FAILED: no $suite from the archive"; exit 1; }
rm -f "$root.log"
mkdir "$root/src"
git ls-files -z | tar -c --null -T - | tar -x -C "$root/src"

# Its mounts end with it.
unshare -m sh -euc '
	mount -t proc proc "$0/proc"
	mount --rbind /sys "$0/sys"
	mount --rbind /dev "$0/dev"
	mount -t tmpfs tmpfs "$0/dev/shm"
	exec chroot "$0" sh -euc "
		cd /src
		cc --version | head -1
		make -j$(nproc) all units
		make -j$(nproc) O=clang CC=clang all units
		make check-unit"' "$root"
