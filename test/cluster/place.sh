#!/bin/sh
# Makes the namespaces that it is started in look like a machine of its own:
#   place.sh STATE NAME FOLDER...
set -eu
state=$1
own=$1/$2
hostname "$2"
shift 2
mount --make-rshared /
# Where the controller manager's provisioner puts volumes: one folder for all
# nodes, as a file system on the network would be.
mount --bind "$state/volumes" /tmp/hostpath_pv
for dir; do
	mkdir -p "$own$dir"
	mount --bind "$own$dir" "$dir"
done
# A kubelet sets these for the whole machine: it gets copies to write to.
for file in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	mkdir -p "$own/sysctl/${file%/*}"
	cat "/proc/sys/$file" >"$own/sysctl/$file"
	mount --bind "$own/sysctl/$file" "/proc/sys/$file"
done
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
