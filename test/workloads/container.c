/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a copy of a static program the way containers run: in a mount namespace
 * of its own whose root is a file system that nobody outside of it sees, and
 * in which nothing but the program is. Needs root.
 *
 *   container FILE ARGUMENT...
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static void copy(const char *from, const char *to)
{
	struct stat st;
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_EXCL, 0755);

	check(in < 0 || fstat(in, &st), from);
	check(out < 0, to);
	for (off_t done = 0; done < st.st_size;)
		check(sendfile(out, in, &done, (size_t)(st.st_size - done)) <= 0, "copy");
	close(in);
	close(out);
}

int main(int argc, char **argv)
{
	char inside[PATH_MAX];

	if (argc < 3) {
		fprintf(stderr, "usage: container ROOT FILE ARGUMENT...\n");
		return 2;
	}
	check(unshare(CLONE_NEWNS), "unshare");
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
	check(mount("kalypso", argv[1], "tmpfs", 0, NULL), "mount");
	check(chdir(argv[1]), argv[1]);
	snprintf(inside, sizeof(inside), "/%s", basename(argv[2]));
	copy(argv[2], inside + 1);
	/* pivot_root(2): the old root lies on the new one, and is taken away. */
	check((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
	check(umount2(".", MNT_DETACH), "umount");
	check(chdir("/"), "/");
	execv(inside, argv + 2);
	perror(inside);
	return 1;
}
