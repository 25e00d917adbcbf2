#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# mountns.sh BINARY ARGUMENT...: runs a copy of BINARY, with the libraries it
# needs, in a mount namespace of its own and chrooted into a tmpfs that nobody
# outside of it sees. Only /proc/PID/root leads to the executable.
set -eu
binary=$1
shift
if [ "${KALYPSO_IN_MOUNTNS:-}" != 1 ]; then
	KALYPSO_IN_MOUNTNS=1 exec unshare --mount --propagation private "$0" "$binary" "$@"
fi
root=$(mktemp -d)
mount -t tmpfs kalypso "$root"
mkdir -p "$root/hidden" "$root/tmp"
cp "$binary" "$root/hidden/"
for library in $(ldd "$binary" 2>/dev/null | grep -o '/[^ ]*'); do
	mkdir -p "$root$(dirname "$library")"
	cp -L "$library" "$root$library"
done
exec chroot "$root" "/hidden/$(basename "$binary")" "$@"
