#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The house rules that a machine can check; warns at the target, fails at the limit.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=0
checks=0
sources=$(find ublk-target ctl include tests -name '*.[ch]' | sort)

bad() {
	echo "style: $*"
	failed=$((failed + 1))
}

check() {
	checks=$((checks + 1))
}

# Functions: 70 lines at most, from the line of "{" in column 0 to "}".
check
while read -r line; do bad "$line"; done < <(awk '
	FNR == 1 { start = 0 }
	/^{/ { start = FNR }
	/^}/ { if (start && FNR - start > 71)
		printf "%s:%d: function of %d lines, 70 are allowed\n", FILENAME, start, FNR - start - 1
	       start = 0 }' $sources)

check
for f in $sources; do
	n=$(wc -l <"$f")
	[ "$n" -le 1000 ] || bad "$f: $n lines, 1000 are allowed"
done

# LICENSE: each file names its license, the public headers both.
check
for f in $sources $(find ublk-target ctl tests .ci \( -name Kbuild -o -name '*.py' -o -name '*.sh' \)) Makefile; do
	head -2 "$f" | grep -q 'SPDX-License-Identifier: GPL-2.0-or-later' || bad "$f:1: no SPDX line"
done
for f in $(find include -name '*.h'); do
	head -1 "$f" | grep -q 'OR MIT' || bad "$f:1: the headers in include/ are GPL-2.0-or-later OR MIT"
done

# What begins with #! is started by its name.
check
for f in $(grep -rlE '^#!' --include='*.py' --include='*.sh' tests .ci); do
	[ -x "$f" ] || ! head -1 "$f" | grep -q '^#!' || bad "$f: begins with #! and is not executable"
done

check
while read -r line; do bad "$line"; done < <(mandoc -T lint -W warning docs/man/*.[58])

# Lines: 100 columns, a tab counts 8.
check
while read -r line; do bad "$line"; done < <(
	for f in $sources; do
		expand "$f" | awk -v f="$f" 'length($0) > 100 {
			printf "%s:%d: %d columns, 100 are allowed\n", f, NR, length($0) }'
	done)

check
while read -r line; do bad "$line: white space at the end"; done < <(grep -nE '[[:space:]]+$' $sources | cut -d: -f1,2)

# Basenames are unique, so that a name in a message finds its file.
check
while read -r name; do bad "$name: two files of this name"; done < <(
	find ublk-target ctl -name '*.c' -printf '%f\n' | grep -vx main.c | sort | uniq -d)

# Includes never point up: transport > target > map > qcow2 > meta > io > lib.
rank() {
	case $1 in
	transport | control) echo 7 ;; target | job) echo 6 ;; map | chain) echo 5 ;;
	image | refcount | edit) echo 4 ;; meta) echo 3 ;; io | loop | copier | throttle) echo 2 ;;
	request) echo 2 ;; *) echo 1 ;;
	esac
}
check
for room in io:2 meta:3 qcow2:4 map:5 target:6 job:6 transport:7 control:7 lib:1 lvm:2; do
	for f in ublk-target/"${room%:*}"/*.[ch]; do
		[ -e "$f" ] || continue
		while read -r h; do
			[ "$(rank "$h")" -le "${room#*:}" ] ||
				bad "$f: includes qchain/$h.h, which is a room above"
		done < <(sed -n 's/^#include <qchain\/\(.*\)\.h>.*/\1/p' "$f")
	done
done

echo "style: $((checks > failed ? checks - failed : 0)) passed, $failed failed"
[ "$failed" = 0 ]
