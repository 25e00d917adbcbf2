/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts itself again and again, one process after the other; each uses 50 ms
 * of CPU time in main > child > hot_child and ends. "cpu_seconds" is what
 * wait4 says of the children, "own_cpu_seconds" is the parent's.
 *
 *   shortlived [-seconds S]
 */
#define _GNU_SOURCE
#include "truth.h"

#include <spawn.h>
#include <sys/wait.h>

#define CHILD_NS 50000000u

extern char **environ;

static NOIPA uint64_t hot_child(uint64_t until_ns)
{
	uint64_t x = 88172645463325252u;

	do
		x = work(x);
	while (cpu_ns() < until_ns);
	return x;
}

static NOIPA int child(void)
{
	volatile uint64_t keep = hot_child(CHILD_NS);

	return keep == 0;
}

int main(int argc, char **argv)
{
	double seconds, used = 0;
	const char *role = plan_options(argc, argv, &seconds);
	int processes = 0;

	if (role && !strcmp(role, "child"))
		return child();
	while (used < seconds) {
		char *args[] = { argv[0], "child", NULL };
		struct rusage u;
		pid_t pid;
		int status;

		if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, args, environ)) {
			perror("posix_spawn");
			return 1;
		}
		if (wait4(pid, &status, 0, &u) != pid || status) {
			fprintf(stderr, "shortlived: child %d ended with status %d\n", pid, status);
			return 1;
		}
		used += (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
			(double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
		processes++;
	}
	printf("{\"cpu_seconds\":%.6f,\"own_cpu_seconds\":%.6f,\"processes\":%d,\"shares\":{\"hot_child\":1}}\n",
	       used, rusage_seconds(RUSAGE_SELF), processes);
	return 0;
}
