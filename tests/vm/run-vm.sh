#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Boots one VM with a real Debian kernel on this machine's own files and runs system test scripts in it, one after the other.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
src=$(readlink -f "$here/../..")
export QCHAIN_CACHE=${QCHAIN_CACHE:-/var/cache/qchain}

usage() {
	cat <<-EOF
		usage: run-vm.sh [--kernel 6.12|7] [--mem 3G] [--smp 2] [--timeout SEC] [--rw DIR] [--shell] SCRIPT...

		  --kernel KIND   6.12 (default) or 7, the newest Debian cloud kernel of that kind
		  --mem SIZE      memory of the VM (3G)
		  --smp N         processors of the VM (2)
		  --timeout SEC   limit of a script without a line "# timeout: SEC" (300)
		  --rw DIR        DIR is the host's own in the VM, what is written there stays
		  --shell         after the scripts, an interactive shell in the VM

		QCHAIN_BUILD    build directory, first in PATH in the VM (CHECKOUT/build)
		QCHAIN_CACHE    where kernels and QEMU are kept ($QCHAIN_CACHE)
		QCHAIN_FULL     1: tests do what takes long, too
		QCHAIN_REFRESH  1: look for newer kernels now, not once a day
		QCHAIN_RESULTS  file to which the lines of results are appended too, alone:
		                on the output they stand between those of the console
	EOF
}

die() { echo "run-vm: $*" >&2; exit 1; }

kernel=6.12 mem=3G smp=2 limit=300 rw='' shell='' scripts=()
run='' helpers=() qemu='' report_lines=0 kernel_dir='' qemu_dir=''
passed=0 failed=0 skipped=0

parse_args() {
	while (($#)); do
		case $1 in
		--kernel) kernel=${2:?} && shift ;;
		--mem) mem=${2:?} && shift ;;
		--smp) smp=${2:?} && shift ;;
		--timeout) limit=${2:?} && shift ;;
		--rw) rw=${2:?} && shift ;;
		--shell) shell=1 ;;
		-h | --help) usage && exit 0 ;;
		-*) usage >&2 && exit 2 ;;
		*) scripts+=("$(readlink -e "$1")") || die "$1: no such script" ;;
		esac
		shift
	done
	[[ -n $shell ]] || ((${#scripts[@]})) || { usage >&2 && exit 2; }
	[[ $limit =~ ^[0-9]+$ ]] || die "--timeout '$limit' is not a number of seconds"
	[[ -z $rw ]] || rw=$(readlink -e "$rw") || die "--rw: no such directory"
	((EUID == 0)) || die "must be root, virtiofsd needs it"
}

# These folders are the VM's own; what the host has there cannot be seen in it.
check_visible() {
	local path
	for path in "$@"; do
		case $path/ in
		/dev/* | /proc/* | /run/* | /sys/*) die "$path: not visible in the VM, must not be below ${path%"${path#/*/}"}" ;;
		esac
	done
}

# fetched DIR SCRIPT [KIND]: the directory that SCRIPT keeps in DIR; the archive is asked once a day.
fetched() {
	local dir=$1 script=$2
	shift 2
	if [[ -z ${QCHAIN_REFRESH:-} && -n $(find "$dir/fetched" -mmin -1440 2>/dev/null) ]]; then
		readlink -e "$dir/current" && return
	fi
	"$here/$script" "$@" "$dir"
}

# shellcheck disable=SC2034
write_conf() {
	local name size
	size=$({ stty size < /dev/tty; } 2>/dev/null || true)
	[[ $size =~ ^[1-9] ]] || size="24 80"
	QCHAIN_SRC=$src QCHAIN_BUILD=$(readlink -m "${QCHAIN_BUILD:-$src/build}")
	check_visible "$src" "$QCHAIN_BUILD" "$run" "$kernel_dir" ${rw:+"$rw"}
	QCHAIN_KERNEL=$kernel QCHAIN_KERNEL_DIR=$kernel_dir QCHAIN_RW=$rw QCHAIN_VM_RUN=$run
	QCHAIN_VM_TIMEOUT=$limit QCHAIN_VM_SHELL=$shell QCHAIN_VM_TERM=${TERM:-dumb}
	QCHAIN_KILLS=${QCHAIN_KILLS:-} QCHAIN_FULL=${QCHAIN_FULL:-}
	QCHAIN_VM_ROWS=${size% *} QCHAIN_VM_COLS=${size#* } QCHAIN_VM_SCRIPTS=(${scripts[@]+"${scripts[@]}"})
	for name in QCHAIN_SRC QCHAIN_BUILD QCHAIN_KERNEL QCHAIN_KERNEL_DIR QCHAIN_RW QCHAIN_VM_RUN \
		QCHAIN_VM_TIMEOUT QCHAIN_VM_SHELL QCHAIN_VM_TERM QCHAIN_VM_ROWS QCHAIN_VM_COLS \
		QCHAIN_VM_SCRIPTS QCHAIN_KILLS QCHAIN_FULL; do
		declare -p "$name"
	done > "$run/conf"
}

prepare() {
	kernel_dir=$(fetched "$QCHAIN_CACHE/vm/kernel-$kernel" fetch-kernel.sh "$kernel")
	qemu_dir=$(fetched "$QCHAIN_CACHE/vm/qemu" fetch-qemu.sh)
	run=$(mktemp -d "${TMPDIR:-/tmp}/qchain-vm.XXXXXX")
	chmod 755 "$run"
	write_conf
	cp "$here/guest.sh" "$run/"
	"${CC:-cc}" -O1 -Wall -o "$run/ublkctl" "$here/ublkctl.c"
	"$here/mkinitramfs.sh" "$kernel_dir" "$run/initrd"
	: > "$run/report"
	mkfifo "$run/console"
}

# start_virtiofsd NAME DIR CACHE: serves DIR on the socket $run/NAME.
start_virtiofsd() {
	"$qemu_dir/bin/virtiofsd" --socket-path="$run/$1" -o "source=$2" -o sandbox=chroot \
		-o "cache=$3" > "$run/$1.log" 2>&1 &
	helpers+=($!)
	for ((i = 0; i < 100; i++)); do
		[[ -S $run/$1 ]] && return
		sleep 0.05
	done
	cat "$run/$1.log" >&2
	die "virtiofsd did not start"
}

# Without the flags for fast string instructions: kernel and C library then clear and copy memory by words and
# vectors, which the emulator does faster than "rep stosb" and "rep movsb", a byte at a time.
# shellcheck disable=SC2054
qemu_args() {
	args=(-nodefaults -display none -no-reboot -accel "tcg,thread=multi,tb-size=512" -cpu max,-erms,-fsrm
		-m "$mem" -smp "$smp"
		-object "memory-backend-memfd,id=mem,size=$mem,share=on" -numa node,memdev=mem
		-chardev "socket,id=fs0,path=$run/rootfs" -device vhost-user-fs-pci,chardev=fs0,tag=rootfs
		-device virtio-serial-pci -chardev "file,id=rep,path=$run/report"
		-device virtserialport,chardev=rep,name=qchain.report
		-device virtio-rng-pci
		-kernel "$kernel_dir/vmlinuz" -initrd "$run/initrd"
		-append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check log_buf_len=4M watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 qchain.run=$run")
	[[ -z $rw ]] || args+=(-chardev "socket,id=fs1,path=$run/rwdir"
		-device vhost-user-fs-pci,chardev=fs1,tag=rwdir)
}

start_vm() {
	local args
	start_virtiofsd rootfs / always
	[[ -z $rw ]] || start_virtiofsd rwdir "$rw" auto
	qemu_args
	if [[ -n $shell ]]; then
		"$qemu_dir/bin/qemu" "${args[@]}" -serial mon:stdio <&0 &
	else
		# The console goes through a pipe of its own: QEMU makes its output non-blocking.
		stdbuf -o0 tr -d '\r' < "$run/console" &
		console=$!
		"$qemu_dir/bin/qemu" "${args[@]}" -chardev stdio,id=con,signal=off -serial chardev:con \
			> "$run/console" < /dev/null 2>&1 &
	fi
	qemu=$!
}

say() {
	printf 'vm-%s: %s\n' "$kernel" "$*"
	[[ -z ${QCHAIN_RESULTS:-} ]] || printf '%s\n' "$*" >> "$QCHAIN_RESULTS"
}

# Reads new events, counts results, and sets how many seconds the VM may take to the next event.
read_report() {
	local event name rest i=0
	while read -r event name rest; do
		((++i > report_lines)) || continue
		deadline=$((SECONDS + 400))
		case $event in
		BOOT) say "Linux $name booted in $((SECONDS - started)) s" ;;
		BEGIN) deadline=$((SECONDS + rest + 60)) && where="in $name" ;;
		PASS) passed=$((passed + 1)) && say "pass $name (${rest%% *} s)" ;;
		SKIP) skipped=$((skipped + 1)) && say "skip $name (${rest%% *} s): ${rest#* }" ;;
		FAIL) failed=$((failed + 1)) && say "FAIL $name (${rest%% *} s): ${rest#* }" ;;
		DONE) deadline=$((SECONDS + 30)) && finished=1 ;;
		esac
	done < "$run/report"
	report_lines=$i
}

watch_vm() {
	deadline=$((SECONDS + ${QCHAIN_VM_BOOT_TIMEOUT:-180}))
	while kill -0 "$qemu" 2>/dev/null; do
		sleep 0.2
		read_report
		if [[ -z $shell ]] && ((SECONDS > deadline)); then
			say "the VM does not answer, ended"
			kill -9 "$qemu" || true
			break
		fi
	done
	wait "$qemu" || say "QEMU ended with status $?"
	[[ -n $shell ]] || wait "$console"
	read_report
}

# A script without a result: the VM died or hung in it or before.
count_missing() {
	local missing=$((${#scripts[@]} - passed - failed - skipped))
	[[ -n ${finished:-} && $missing -le 0 ]] && return
	((missing > 0)) || missing=1
	say "FAIL: the VM ended $where, $missing results are missing"
	failed=$((failed + missing))
}

# shellcheck disable=SC2317,SC2329
clean_up() {
	local pid
	for pid in ${qemu:+"$qemu"} ${helpers[@]+"${helpers[@]}"}; do
		kill "$pid" 2>/dev/null || true
	done
	wait
	[[ -z $run ]] || rm -rf "$run"
}

main() {
	local started deadline finished='' console='' where='before the first test'
	parse_args "$@"
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	prepare
	started=$SECONDS
	start_vm
	if [[ -n $shell ]]; then wait "$qemu" || true; fi
	watch_vm
	if [[ -z $shell ]] || ((${#scripts[@]})); then count_missing; fi
	say "$passed passed, $failed failed, $skipped skipped"
	((failed == 0))
}

main "$@"
