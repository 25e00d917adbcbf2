/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main > run > hot_60 | hot_30 | hot_10 > clock_gettime > (vDSO)
 *
 * Nearly all time is spent in code that no file holds: the kernel maps it into
 * every process.
 */
#include "truth.h"

#define HOT(n)                                                                  \
	static NOIPA uint64_t hot_##n(uint64_t until_ns)                        \
	{                                                                       \
		uint64_t x = n;                                                 \
		do                                                              \
			for (int i = 0; i < 5000; i++)                          \
				x += clock_ns(CLOCK_MONOTONIC);                 \
		while (cpu_ns() < until_ns);                                    \
		return x;                                                       \
	}
HOT(60)
HOT(30)
HOT(10)

static NOIPA uint64_t run(struct plan *p)
{
	uint64_t ns, sum = 0;
	int b;

	while ((b = plan_turn(p, &ns)) >= 0) {
		uint64_t start = cpu_ns();

		if (b == 0)
			sum += hot_60(start + ns);
		else if (b == 1)
			sum += hot_30(start + ns);
		else
			sum += hot_10(start + ns);
		p->used_ns[b] += cpu_ns() - start;
	}
	return sum;
}

int main(int argc, char **argv)
{
	double seconds;

	plan_options(argc, argv, &seconds);
	struct plan p = plan_60_30_10(seconds);
	volatile uint64_t keep = run(&p);
	(void)keep;
	plan_print(&p);
	return 0;
}
