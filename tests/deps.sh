#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs the Debian packages that building and testing need; does nothing when all are there.
#
# usage: tests/deps.sh [PACKAGE]...    further packages, of one target only
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(build-essential pkg-config clang libclang-rt-dev
	liburing-dev liburcu-dev libjson-c-dev zlib1g-dev libzstd-dev libdevmapper-dev
	libseccomp-dev nettle-dev
	libcunit1-dev python3 python3-libnbd libnbd-bin qemu-utils fio lvm2
	e2fsprogs xfsprogs debootstrap mandoc git "$@")

# clang's runtime is named after its version.
clang_runtime() {
	local v
	v=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -1)
	echo "libclang-rt-${v:-14}-dev"
}

missing() {
	local p
	for p in "$@"; do
		dpkg-query -W -f='${Status}\n' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
	done
}

wanted() {
	local p
	for p in "${packages[@]}"; do
		[ "$p" = libclang-rt-dev ] && p=$(clang_runtime)
		echo "$p"
	done
	sed 's/[[:space:]]*#.*//; /^$/d' tests/vm/packages.txt
}

install_packages() {
	local try
	for try in 1 2 3; do
		apt-get -q update >/dev/null 2>&1 || true
		# shellcheck disable=SC2046
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
			$(missing $(wanted)) >/tmp/qchain-deps.$$ 2>&1 && return 0
		echo "deps: try $try failed" >&2
		sleep $((try * 5))
	done
	tail -20 /tmp/qchain-deps.$$ >&2
	return 1
}

if ! command -v apt-get >/dev/null; then
	echo "deps: no apt-get here; needed are: $(wanted | tr '\n' ' ')" >&2
	exit 0
fi
# shellcheck disable=SC2046
need=$(missing $(wanted) | tr '\n' ' ')
if [ -z "${need// /}" ]; then
	exit 0
fi
if [ "$(id -u)" != 0 ]; then
	echo "deps: not installed: $need; run as root once, or: apt-get install $need" >&2
	exit 1
fi
echo "deps: installing $need"
install_packages
rm -f /tmp/qchain-deps.$$
