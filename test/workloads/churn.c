/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts itself again and again at a steady rate, without waiting for one to
 * end before the next: main > child > hot_short. "cpu_seconds" is what wait4
 * says of the children, "own_cpu_seconds" is the parent's. -seconds is the time
 * by the clock, not CPU time.
 *
 *   churn [-seconds S] RATE MICROSECONDS
 */
#define _GNU_SOURCE
#include "truth.h"

#include <errno.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static NOIPA uint64_t hot_short(uint64_t until_ns)
{
	uint64_t x = 88172645463325252u;

	do
		x = work(x);
	while (cpu_ns() < until_ns);
	return x;
}

static NOIPA int child(uint64_t ns)
{
	volatile uint64_t keep = hot_short(ns);

	return keep == 0;
}

/* Takes the children that have ended; with block, waits for all of them. */
static int reap(double *used, int block)
{
	struct rusage u;
	int status;
	pid_t pid;

	while ((pid = wait4(-1, &status, block ? 0 : WNOHANG, &u)) > 0) {
		if (status) {
			fprintf(stderr, "churn: child %d ended with status %d\n", pid, status);
			return -1;
		}
		*used += (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
			 (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
	}
	return pid < 0 && errno != ECHILD ? -1 : 0;
}

int main(int argc, char **argv)
{
	double seconds = 6, used = 0;
	int processes = 0, a = 1;

	if (argc == 3 && !strcmp(argv[1], "child"))
		return child(strtoull(argv[2], NULL, 10) * 1000);
	if (argc > 2 && !strcmp(argv[1], "-seconds")) {
		seconds = atof(argv[2]);
		a = 3;
	}
	if (argc != a + 2 || atoi(argv[a]) < 1) {
		fprintf(stderr, "usage: churn [-seconds S] RATE MICROSECONDS\n");
		return 2;
	}
	char self[4096];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (length < 0) {
		perror("/proc/self/exe");
		return 1;
	}
	self[length] = 0; /* not by the link: a process goes by the name that was executed */
	uint64_t gap = 1000000000u / (uint64_t)atoi(argv[a]);
	uint64_t begin = clock_ns(CLOCK_MONOTONIC), next = begin;

	while ((double)(next - begin) < seconds * 1e9) {
		char *args[] = { argv[0], "child", argv[a + 1], NULL };
		struct timespec at = { .tv_sec = (time_t)(next / 1000000000u), .tv_nsec = (long)(next % 1000000000u) };
		pid_t pid;

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
		if (posix_spawn(&pid, self, NULL, NULL, args, environ)) {
			perror("posix_spawn");
			return 1;
		}
		processes++;
		if (reap(&used, 0))
			return 1;
		next += gap;
		/* A machine that cannot keep up is not made to catch up. */
		if (clock_ns(CLOCK_MONOTONIC) > next + 1000000000u)
			next = clock_ns(CLOCK_MONOTONIC);
	}
	if (reap(&used, 1))
		return 1;
	printf("{\"cpu_seconds\":%.6f,\"own_cpu_seconds\":%.6f,\"processes\":%d,\"shares\":{\"hot_short\":1}}\n",
	       used, rusage_seconds(RUSAGE_SELF), processes);
	return 0;
}
