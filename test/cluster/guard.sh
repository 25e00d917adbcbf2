#!/bin/sh
# Ends a cluster once stdin ends, which it does when its owner closes it or dies:
#   guard.sh STATE CGROUP...
# Every process of the cluster, containers included, is in the first cgroup; the
# others are what kubelets made in other hierarchies. Mounts and networks go with
# the processes.
set -u
# The owner may be gone, and with it whoever reads what is written here.
trap '' PIPE HUP INT TERM
state=$1
shift
cat >/dev/null

members=$1
tries=0
while pids=$(find "$members" -name cgroup.procs -exec cat {} + 2>/dev/null) && [ -n "$pids" ]; do
	# cgroup.kill is cgroup2's, since Linux 5.14.
	if [ -e "$members/cgroup.kill" ]; then
		echo 1 >"$members/cgroup.kill"
	else
		# shellcheck disable=SC2086 # a list of numbers
		kill -KILL $pids 2>/dev/null
	fi
	tries=$((tries + 1))
	[ "$tries" -lt 300 ] || { echo "processes do not end: $pids" >&2; exit 1; }
	sleep 0.1
done
# What has ended is no member any more, and holds its cgroup for a moment yet.
tries=0
for group; do
	while [ -d "$group" ] && ! find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; do
		tries=$((tries + 1))
		[ "$tries" -lt 300 ] || { echo "$group cannot be removed" >&2; break; }
		sleep 0.1
	done
done

root=$(dirname "$state")
exec 9<"$root"
flock 9
rm -rf --one-file-system "$state"
# The last one also removes the folders that were made on the machine, children
# first. In other clusters something is mounted on them.
if [ -z "$(find "$root" -mindepth 1 -maxdepth 1 -type d)" ]; then
	sort -r "$root/made" | xargs -r rmdir --ignore-fail-on-non-empty
	rm -f "$root/made"
	rmdir "$root"
fi
