/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every C and C++ workload shares: a plan of CPU time per branch, and the
 * truth about it printed as one JSON line at the end.
 *
 * Branches take turns in rounds of 400 to 600 ms of CPU time. A turn is long
 * against the sampling period (10.3 ms at 97 Hz), so each turn gets its number
 * of samples to within one, and the shares of a recording of 7 s carry a
 * sampling error of about 0.3 points; turns shorter than the period would give
 * the binomial 1.9 points. The length of a round is random so that turns and
 * sampling clock cannot march in step.
 *
 * Time is the thread's CPU time: another process on the same core changes how
 * long a run takes, not what it measures.
 */
#ifndef KALYPSO_TRUTH_H
#define KALYPSO_TRUTH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* noipa: no inlining, cloning, merging of equal bodies, or guessing of results
 * across the call. clang has no noipa; noinline is what it needs here. */
#ifdef __clang__
#define NOIPA __attribute__((noinline))
#else
#define NOIPA __attribute__((noipa))
#endif

#define BRANCHES 3

/* About 0.2 ms of work between two readings of the CPU clock, which is a
 * system call of about 0.3 us. */
#define CHUNK 100000

struct plan {
	const char *name[BRANCHES];
	double share[BRANCHES];
	uint64_t used_ns[BRANCHES];
	double seconds; /* CPU seconds to spend in all */
	uint64_t random;
	uint64_t round_ns, planned_ns;
	int next;
};

static inline uint64_t clock_ns(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t cpu_ns(void)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static inline double rusage_seconds(int who)
{
	struct rusage u;

	getrusage(who, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* The hot work: a dependent chain of shifts that no compiler shortens. */
static inline __attribute__((always_inline)) uint64_t work(uint64_t x)
{
	for (int i = 0; i < CHUNK; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	return x;
}

/* The mean CPU time of a round. A recording that is short, of a program that gets
 * a part of a CPU, begins and ends in the middle of rounds that are long. */
static uint64_t plan_round_ns = 500000000u;

static inline struct plan plan_60_30_10(double seconds)
{
	struct plan p;

	memset(&p, 0, sizeof(p));
	p.name[0] = "hot_60";
	p.name[1] = "hot_30";
	p.name[2] = "hot_10";
	p.share[0] = 0.6;
	p.share[1] = 0.3;
	p.share[2] = 0.1;
	p.seconds = seconds;
	p.random = clock_ns(CLOCK_MONOTONIC) | 1;
	return p;
}

/* The branch whose turn it is and, in *ns, how much CPU time it is to use;
 * -1 when the plan is fulfilled. Plans end with whole rounds. What a turn
 * used too much is taken from the branch's next one. */
static inline int plan_turn(struct plan *p, uint64_t *ns)
{
	int b = p->next;

	if (b == 0) {
		if ((double)p->planned_ns >= p->seconds * 1e9)
			return -1;
		p->random = p->random * 6364136223846793005u + 1442695040888963407u;
		p->round_ns = plan_round_ns * 4 / 5 + (p->random >> 33) % (plan_round_ns * 2 / 5);
		p->planned_ns += p->round_ns;
	}
	double due = (double)p->planned_ns * p->share[b] - (double)p->used_ns[b];
	*ns = due > 1e6 ? (uint64_t)due : 1000000u;
	p->next = (b + 1) % BRANCHES;
	return b;
}

/* Options that every workload takes: -seconds N; -round MS, of those with a plan;
 * and -unlink, which removes the running executable. Returns the first other
 * argument. */
static inline const char *plan_options(int argc, char **argv, double *seconds)
{
	const char *other = NULL;

	*seconds = 6;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-seconds") && i + 1 < argc) {
			*seconds = atof(argv[++i]);
		} else if (!strcmp(argv[i], "-round") && i + 1 < argc) {
			plan_round_ns = strtoul(argv[++i], NULL, 10) * 1000000u;
		} else if (!strcmp(argv[i], "-unlink")) {
			if (unlink(argv[0])) {
				perror(argv[0]);
				exit(1);
			}
		} else if (!other) {
			other = argv[i];
		}
	}
	return other;
}

static inline void plan_print(const struct plan *p)
{
	double all = 0;

	for (int b = 0; b < BRANCHES; b++)
		all += (double)p->used_ns[b];
	printf("{\"cpu_seconds\":%.6f,\"shares\":{", rusage_seconds(RUSAGE_SELF));
	for (int b = 0; b < BRANCHES; b++)
		printf("%s\"%s\":%.5f", b ? "," : "", p->name[b], (double)p->used_ns[b] / all);
	printf("}}\n");
}

#endif
