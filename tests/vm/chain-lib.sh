# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Helpers for t-2x to t-4x: chains on LVs, also as Proxmox VE makes them; up and down by qchainctl; comparison with QEMU's view.

old_text=QCHAIN-OLD-DATA
# A daemon that a test kills stays dead, unless the test says otherwise.
export QCHAIN_RESTARTS=0

# --- volume groups ---

# old_data VG: all its free extents have been somebody else's disk; a new LV shows that.
old_data() {
	lvcreate -q -y -Wn -Zn -l 100%FREE -n junk "$1" 2>&1 > /dev/null | sed '/not zeroed/d' >&2
	wait_block "/dev/$1/junk" 30
	fio --name=junk --allow_file_create=0 --filename="/dev/$1/junk" --rw=write --bs=1M --direct=1 --ioengine=sync \
		--buffer_pattern="\"$old_text\"" --minimal > /dev/null
	head -c 4096 "/dev/$1/junk" | grep -q "$old_text" || fail "$1: no old data written"
	lvremove -q -f -y "$1/junk" > /dev/null
}

# lvm_conf: what is added to lvmlocal.conf on standard input counts to the end of the test.
lvm_conf() {
	cp /etc/lvm/lvmlocal.conf lvmlocal.conf
	at_exit cp "$TMPDIR/lvmlocal.conf" /etc/lvm/lvmlocal.conf
	cat >> /etc/lvm/lvmlocal.conf
}

# lvm_filter: the filter that ships, LVM does not look into our devices.
lvm_filter() { lvm_conf < "$QCHAIN_SRC/debian/qchain-lvm.conf"; }

# --- chains as Proxmox VE 9 makes them (facts of its LVMPlugin.pm): names, tags, options, sizes ---

pve_measure() {
	local kib=$1
	shift
	qemu-img measure --output=json --size "${kib}K" -O qcow2 "$@" | jq '."fully-allocated" / 1024 | floor'
}

pve_lvcreate() {
	local vg=$1 name=$2 kib=$3 vmid=${2#vm-}
	lvcreate -aly -Wy --yes --size "${kib}k" --name "$name" --setautoactivation n \
		--addtag "pve-vm-${vmid%%-*}" --addtag "@pve-$name" "$vg" > /dev/null
	wait_block "/dev/$vg/$name" 30
}

# pve_create VG NAME KIB: a new disk, such as vm-103-disk-0.qcow2.
pve_create() {
	pve_lvcreate "$1" "$2" "$(pve_measure "$3")"
	qemu-img create -q -o preallocation=metadata -f qcow2 -- "/dev/$1/$2" "${3}K"
}

# pve_snapshot VG NAME SNAP: what was NAME is the snapshot, a new NAME stands on it.
pve_snapshot() {
	local vg=$1 name=$2 snap=snap_${2%.qcow2}_$3.qcow2 kib
	lvrename -q "$vg" "$name" "$snap" > /dev/null
	wait_block "/dev/$vg/$snap" 30
	kib=$(($(qemu-img info --output=json -f qcow2 "/dev/$vg/$snap" | jq '."virtual-size"') / 1024))
	pve_lvcreate "$vg" "$name" "$(pve_measure $kib -o extended_l2=on,cluster_size=128k)"
	(cd "/dev/$vg" && qemu-img create -q -F qcow2 -b "$snap" -f qcow2 \
		-o extended_l2=on,cluster_size=128k,preallocation=metadata -- "/dev/$vg/$name")
}

# --- plain chains ---

# mkchain VG NAME SIZE LVSIZE DEPTH [OPTION]: LVs NAME-0 (base) to NAME-(DEPTH-1), with data in each layer but the top.
mkchain() {
	local vg=$1 name=$2 size=$3 lvsize=$4 depth=$5 opt=${6:-cluster_size=64k} i
	for ((i = 0; i < depth; i++)); do
		mklv "$vg" "$name-$i" "$lvsize"
		if ((i)); then
			qemu-img create -q -f qcow2 -F qcow2 -b "$name-$((i - 1))" -o "$opt" "/dev/$vg/$name-$i"
		else
			qemu-img create -q -f qcow2 -o "$opt" "/dev/$vg/$name-$i" "$size"
		fi
		((i + 1 == depth)) || fill_layer "/dev/$vg/$name-$i" "$i"
	done
}

# fill_layer IMAGE I: some data of layer I, aligned and not, over and beside that of other layers.
fill_layer() {
	local i=$2
	qemu-io -f qcow2 -c "write -q -P $((0x10 + i)) $((i * 512))k 1M" -c "write -q -P $((0x20 + i)) $((5000 + i * 77))k 3k" \
		-c "write -q -P $((0x30 + i)) 8M $((64 + i * 16))k" -c "write -q -z $((9 + i))M 64k" "$1"
}

# --- up and down ---

# chain_up NAME ARG...: qchainctl up; sets dev.
chain_up() {
	local name=$1
	at_exit chain_end "$name"
	dev=$(qchainctl up "$@") || fail "qchainctl up $*"
	[[ $dev == /dev/ublkb* ]] || fail "qchainctl up $* says '$dev', expected a device"
	wait_block "$dev" 10
	echo "$name is $dev"
}

# chain_down NAME: it has to end and leave nothing behind.
chain_down() {
	local name=$1 pid node
	pid=$(chain_json "$name" .pid)
	node=$(chain_json "$name" .device)
	qchainctl down "$name" || fail "qchainctl down $name"
	is_dead "$pid" || fail "process $pid of $name is still there"
	[[ ! -e $node && ! -e ${node/ublkb/ublkc} ]] || fail "$node is still there"
	[[ ! -e /run/qchain/$name && ! -e /dev/qchain/$name ]] || fail "/run/qchain/$name or /dev/qchain/$name is still there"
	[[ -z $(find /run/qchain/.device /run/qchain/.scan -name "${node##*/}" 2> /dev/null) ]] || fail "a mark of $node is left in /run/qchain"
}

# chain_end NAME: at the end of a test, whatever state it is in; never asks the daemon to end, which may not be able to.
chain_end() {
	local record=/run/qchain/$1/state.json pid id guard
	[[ -e $record ]] || return 0
	guard=$(jq '.guard // empty' "$record")
	[[ -z $guard ]] || kill -9 "$guard" || true
	pid=$(jq '.pid // empty' "$record")
	id=$(jq '."dev-id" // empty' "$record")
	[[ -z $pid ]] || kill -9 "$pid" || true
	[[ -z $id || ! -e /dev/ublkc$id ]] || timeout 20 "$QCHAIN_VM_RUN/ublkctl" del "$id"
	rm -rf "/run/qchain/$1"
}

# chain_json NAME FILTER: of qchainctl status.
chain_json() { qchainctl status "$1" --json | jq -r "$2"; }

chain_is() { [[ $(chain_json "$1" "$2" 2> /dev/null) == "$3" ]]; }

# crash NAME: kill -9 of its daemon.
crash() {
	local pid
	pid=$(chain_json "$1" .pid)
	kill -9 "$pid"
	wait_dead "$pid" 60
}

# --- content ---

# save_device DEVICE FILE: what the device shows, by direct reads.
save_device() { dd if="$1" of="$2" bs=1M iflag=direct status=none; }

# same FILE1 FILE2 WHAT: byte for byte; says where the first difference is.
same() {
	cmp "$1" "$2" > differ || fail "$3: $(cat differ)"
	rm differ
}

# qemu_sees IMAGE FILE: QEMU has to show FILE's content.
qemu_sees() {
	qemu-img compare -q -f raw -F qcow2 "$2" "$1" || fail "$1: qemu-img shows something else than the device did"
}

# clean_image IMAGE: no error for qemu-img check, and no leak.
clean_image() {
	qemu-img check -f qcow2 "$1" > check.out 2>&1 || { cat check.out; fail "$1: qemu-img check is not satisfied"; }
	rm check.out
}

quiet() { "$@" 2> /dev/null; }

sums() { md5sum "$@"; }
