#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The demo, `make demo`: a real Debian on a chain of four qcow2 images on logical volumes, as a block device; says what it does, step by step.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
src=$(readlink -f "$here/../..")
build=$(readlink -m "${QCHAIN_BUILD:-$src/build}")
cache=${QCHAIN_CACHE:-/var/cache/qchain}/demo
image=$cache/bookworm.raw
vg=qchain-demo
work='' loop='' title=0

# --- talking ---

if [[ -t 1 || -n ${QCHAIN_VM_RUN:-} ]]; then bold=$'\e[1m' faint=$'\e[2m' plain=$'\e[0m'; else bold='' faint='' plain=''; fi

chapter() {
	title=$((title + 1))
	printf '\n%s%s. %s%s\n' "$bold" "$title" "$1" "$plain"
}

say() { printf '   %s\n' "$@"; }

# run COMMAND...: shows the command, then does it.
run() {
	printf '   %s$ %s%s\n' "$faint" "$*" "$plain"
	"$@" 2>&1 | sed 's/^/     /'
}

die() { echo "demo: $*" >&2; exit 1; }

# --- the Debian root file system, made once and kept ---

install_debian() {
	local tree=$1 try
	for try in 1 2 3; do
		rm -rf "$tree"
		debootstrap --variant=minbase bookworm "$tree" "${QCHAIN_DEBIAN:-http://deb.debian.org/debian}" \
			> "$cache/debootstrap.log" 2>&1 && return
		echo "demo: debootstrap, try $try of 3 failed: $(tail -n 1 "$cache/debootstrap.log")" >&2
		sleep $((try * 5))
	done
	die "no Debian root file system; see $cache/debootstrap.log"
}

make_image() {
	local tree=$cache/tree
	[[ ! -s $image ]] || return 0
	command -v debootstrap > /dev/null || die "debootstrap: not found, install it: apt-get install debootstrap"
	mkdir -p "$cache"
	say "First time: a Debian 12 root file system is fetched from Debian's archive (once, it is kept in $cache)."
	install_debian "$tree"
	rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
	truncate -s 512M "$image.new"
	mke2fs -q -F -t ext4 -L debian -d "$tree" "$image.new"
	mv "$image.new" "$image"
	rm -rf "$tree"
}

# --- where it runs ---

has_ublk() { [[ -e /dev/ublk-control ]] || modprobe -q ublk_drv 2> /dev/null && [[ -e /dev/ublk-control ]]; }

in_vm() {
	say "This machine's kernel ($(uname -r)) has no ublk driver, so the demo boots a small VM with Debian's own kernel" \
		"and goes on in there. It is an emulated machine: expect a tenth of the real speed."
	QCHAIN_BUILD=$build "$src/tests/vm/run-vm.sh" --kernel "${QCHAIN_KERNEL:-7}" --timeout 900 "$here/demo.sh" |
		if [[ -t 1 ]]; then cat; else sed -u 's/\x1b\[[0-9]*m//g'; fi
}

clean_up() {
	set +e
	cd /
	mountpoint -q "$work/mnt" && umount "$work/mnt"
	[[ ! -e /run/qchain/debian ]] || qchainctl down --force debian
	vgs "$vg" > /dev/null 2>&1 && vgremove -q -f -y "$vg" > /dev/null 2>&1
	[[ -z $loop ]] || losetup -d "$loop"
	[[ -z $work ]] || rm -rf "$work"
}

make_disk() {
	local disk
	! vgs "$vg" > /dev/null 2>&1 || die "VG $vg: exists already, must not; vgremove it"
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/qchain-demo.XXXXXX")
	trap clean_up EXIT
	cd "$work"
	mkdir mnt
	disk=/dev/ram0
	if [[ -z ${QCHAIN_VM_RUN:-} ]]; then
		truncate -s 2200M "$work/disk"
		loop=$(losetup --show -f "$work/disk")
		disk=$loop
	fi
	pvcreate -q -y --setphysicalvolumesize 2200m "$disk" > /dev/null
	run vgcreate "$vg" "$disk"
}

# --- the story ---

up() {
	run qchainctl up debian "$vg/$1"
	dev=$(readlink -f /dev/qchain/debian)
}

down() { run qchainctl down debian; }

# overlay NAME BACKING: a new empty layer, served and mounted.
overlay() {
	run qchainctl create "$vg/$1" --backing "$vg/$2" --extended-l2 --cluster-size 128K
	up "$1"
	mount "$dev" mnt
}

close_overlay() {
	umount mnt
	down
}

tell_base() {
	chapter "A Debian system on a qcow2 image"
	say "The image lives on a logical volume, debian.qcow2; the block device shows what is inside of it." \
		"We copy a whole Debian 12 disk onto that device, as one would restore a machine from a backup."
	run qchainctl create $vg/debian.qcow2 --size 512M
	up debian.qcow2
	run dd if="$image" of="$dev" bs=1M conv=sparse,fsync,notrunc oflag=direct status=none
	down
}

tell_overlays() {
	chapter "Three overlays, three changes"
	say "An overlay holds only what was changed since; everything else is read from the images below." \
		"Monday: the machine gets a name."
	overlay monday.qcow2 debian.qcow2
	echo qchain-demo > "mnt/etc/hostname"
	close_overlay
	say "Tuesday: 20 MB of data arrive."
	overlay tuesday.qcow2 monday.qcow2
	dd if=/dev/urandom of="mnt/srv/data" bs=1M count=20 status=none
	(cd "mnt/srv" && md5sum data > data.md5)
	close_overlay
	say "Wednesday: the documentation is thrown away."
	overlay wednesday.qcow2 tuesday.qcow2
	rm -rf "mnt/usr/share/doc"
	close_overlay
}

tell_mounted() {
	chapter "All four as one block device"
	say "Nobody changed the base or Monday or Tuesday: their checksums are taken now and compared at the end."
	(cd "/dev/$vg" && md5sum debian.qcow2 monday.qcow2 tuesday.qcow2) > "$work/sums"
	up wednesday.qcow2
	run qchainctl tree debian
	run mount "$dev" mnt
	run cat "mnt/etc/os-release"
	say "The changes of the three days:"
	run cat "mnt/etc/hostname"
	(cd "mnt/srv" && run md5sum -c data.md5)
	[[ ! -e mnt/usr/share/doc ]] || die "Wednesday's change is not seen"
	say "/usr/share/doc is gone, as it should be." "And a program that runs from the chain:"
	run chroot mnt dpkg -l bash apt libc6
	say "Now we write to it:"
	run sh -c "echo written through $dev > mnt/root/hello"
	run cat "mnt/root/hello"
}

tell_busy() {
	chapter "It cannot be pulled away"
	say "The device is mounted, so taking the chain down has to be refused:"
	printf '   %s$ qchainctl down debian%s\n' "$faint" "$plain"
	if qchainctl down debian > refused 2>&1; then die "down succeeded while the device was mounted"; fi
	sed 's/^/     /' refused
	run umount mnt
	down
	[[ ! -e $dev ]] || die "$dev is still there"
	say "$dev is gone."
}

tell_qemu() {
	local name
	chapter "QEMU agrees"
	for name in debian monday tuesday wednesday; do run qemu-img check -f qcow2 "/dev/$vg/$name.qcow2"; done
	say "QEMU reads the chain, and finds the file that we wrote:"
	qemu-img convert -f qcow2 -O raw "/dev/$vg/wednesday.qcow2" raw
	run debugfs -R 'cat /root/hello' raw
	debugfs -R 'cat /root/hello' raw 2> /dev/null | grep -q written || die "QEMU does not see what was written"
	e2fsck -fn raw > fsck 2>&1 || { cat fsck; die "the file system has errors"; }
	say "The file system has no errors. The layers below, unchanged:"
	(cd "/dev/$vg" && run md5sum -c "$work/sums")
}

story() {
	chapter "A volume group"
	say "Logical volumes are what virtual machines' disks usually live on; here on a small disk of $([[ -n ${QCHAIN_VM_RUN:-} ]] && echo RAM || echo "its own")."
	make_disk
	tell_base
	tell_overlays
	tell_mounted
	tell_busy
	tell_qemu
	printf '\n%sDone.%s Chains of qcow2 images on LVM, as a plain Linux block device, without QEMU running.\n' "$bold" "$plain"
}

main() {
	export PATH=$build:$PATH
	if [[ -n ${QCHAIN_VM_RUN:-} ]]; then
		story
		return
	fi
	printf '%sqchain: a chain of qcow2 images as a block device%s\n' "$bold" "$plain"
	((EUID == 0)) || die "must be root: block devices and volume groups are made"
	[[ -x $build/qchaind && -x $build/qchainctl ]] || die "$build: qchaind and qchainctl are not built; run make"
	make_image
	if has_ublk; then story; else in_vm; fi
}

main "$@"
