# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# A private apt root: fetch signed Debian packages, leave the host's apt configuration and packages alone.

QCHAIN_CACHE=${QCHAIN_CACHE:-/var/cache/qchain}
QCHAIN_MIRROR=${QCHAIN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt_opts=()

note() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { note "$*"; exit 1; }

# retry COMMAND...: three tries with a growing pause, because mirrors have bad moments.
retry() {
	local pause
	for pause in 2 5 0; do
		"$@" && return 0
		((pause == 0)) || { note "'$1' failed, next try in $pause s"; sleep "$pause"; }
	done
	return 1
}

# apt_root_init NAME SUITE...: an apt root of its own below the cache that knows only these
# suites and no installed package. Proxy settings of the host still hold; unsigned indexes
# and packages are refused whatever the host's configuration says.
apt_root_init() {
	local root="$QCHAIN_CACHE/apt/$1" suite
	shift
	[[ -r $keyring ]] || die "$keyring: missing, install debian-archive-keyring"
	mkdir -p "$root"/etc/apt/{apt.conf.d,preferences.d,sources.list.d,trusted.gpg.d} \
		"$root"/var/{lib/apt/lists/partial,cache/apt/archives/partial,lib/dpkg}
	: > "$root/var/lib/dpkg/status"
	for suite in "$@"; do
		echo "deb [arch=amd64 signed-by=$keyring] $QCHAIN_MIRROR $suite main"
	done > "$root/etc/apt/sources.list"
	apt_opts=(-qq -o "Dir=$root" -o "Dir::State::status=$root/var/lib/dpkg/status"
		-o APT::Architecture=amd64 -o APT::Architectures::=amd64
		-o APT::Update::Error-Mode=any -o APT::Get::AllowUnauthenticated=false
		-o Acquire::AllowInsecureRepositories=false -o Acquire::AllowWeakRepositories=false
		-o Acquire::AllowDowngradeToInsecureRepositories=false
		-o Acquire::http::Timeout=30 -o Acquire::Languages=none)
}

apt_update() { retry apt-get "${apt_opts[@]}" update >&2; }

# apt_download DIR PACKAGE...: apt checks each file's hash against the signed index.
apt_download() {
	local dir=$1
	shift
	mkdir -p "$dir"
	if ((EUID == 0)); then chown _apt "$dir" 2>/dev/null || true; fi
	(cd "$dir" && retry apt-get "${apt_opts[@]}" download "$@" >&2)
}

# candidate PACKAGE [SUITE]: the version that apt would download.
candidate() {
	apt-cache "${apt_opts[@]}" ${2:+-t "$2"} policy "$1" | awk '$1 == "Candidate:" { print $2 }'
}

# commit_dir TMP DIR VERSION: makes TMP the current version in DIR; one old version is kept,
# for a VM which may still be running from it.
commit_dir() {
	local tmp=$1 dir=$2 version=$3 old
	rm -rf "${dir:?}/$version"
	mv "$tmp" "$dir/$version"
	old=$(readlink "$dir/current" || true)
	ln -sfn "$version" "$dir/current"
	find "$dir" -mindepth 1 -maxdepth 1 -type d ! -name "$version" ! -name "${old:-$version}" \
		-exec rm -rf {} +
}

# fetch_or_cached DIR FUNCTION: runs FUNCTION under a lock; when it fails, what the cache has
# will do. Prints the directory that holds the result.
fetch_or_cached() {
	local dir=$1 function=$2 rc=0
	mkdir -p "$dir"
	exec 9> "$dir/lock"
	flock 9
	# Not "if FUNCTION": that would switch off errexit inside it.
	(set -e; "$function" "$dir") &
	wait $! || rc=$?
	if ((rc == 0)); then
		touch "$dir/fetched"
	elif [[ -e $dir/current ]]; then
		note "cannot fetch, using the cached $(readlink "$dir/current")"
	else
		die "cannot fetch, and $dir holds nothing yet"
	fi
	exec 9>&-
	readlink -f "$dir/current"
}
