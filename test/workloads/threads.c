/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 64 threads worker-00 .. worker-63, each start_thread > worker > hot_worker.
 * The even ones use three times the CPU time of the odd ones. The truth holds
 * every thread's share under its name.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <pthread.h>

#define THREADS 64

struct job {
	pthread_t thread;
	uint64_t budget_ns, used_ns, result;
	char name[16];
};

static NOIPA uint64_t hot_worker(uint64_t until_ns)
{
	uint64_t x = 88172645463325252u;

	do
		x = work(x);
	while (cpu_ns() < until_ns);
	return x;
}

static NOIPA void *worker(void *arg)
{
	struct job *j = arg;

	pthread_setname_np(pthread_self(), j->name);
	j->result = hot_worker(j->budget_ns);
	j->used_ns = cpu_ns();
	return NULL;
}

int main(int argc, char **argv)
{
	static struct job jobs[THREADS];
	double seconds, all = 0;

	plan_options(argc, argv, &seconds);
	for (int i = 0; i < THREADS; i++) {
		struct job *j = &jobs[i];

		snprintf(j->name, sizeof(j->name), "worker-%02d", i);
		j->budget_ns = (uint64_t)(seconds * 1e9 * (i % 2 ? 1 : 3) / (THREADS * 2));
		if (pthread_create(&j->thread, NULL, worker, j)) {
			perror("pthread_create");
			return 1;
		}
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(jobs[i].thread, NULL);
		all += (double)jobs[i].used_ns;
	}
	printf("{\"cpu_seconds\":%.6f,\"shares\":{", rusage_seconds(RUSAGE_SELF));
	for (int i = 0; i < THREADS; i++)
		printf("%s\"%s\":%.5f", i ? "," : "", jobs[i].name, (double)jobs[i].used_ns / all);
	printf("}}\n");
	return 0;
}
