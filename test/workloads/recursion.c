/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main > run > recurse x 900 > hot_60 | hot_30 | hot_10: the same return
 * address 899 times, which must neither be folded nor taken for a loop.
 */
#include "truth.h"

#define DEPTH 900

#define HOT(n)                                                \
	static NOIPA uint64_t hot_##n(uint64_t until_ns)      \
	{                                                     \
		uint64_t x = 88172645463325252u + n;          \
		do                                            \
			x = work(x);                          \
		while (cpu_ns() < until_ns);                  \
		return x;                                     \
	}
HOT(60)
HOT(30)
HOT(10)

static NOIPA uint64_t recurse(int left, int branch, uint64_t until_ns)
{
	uint64_t r;

	if (left > 1)
		r = recurse(left - 1, branch, until_ns);
	else if (branch == 0)
		r = hot_60(until_ns);
	else if (branch == 1)
		r = hot_30(until_ns);
	else
		r = hot_10(until_ns);
	return r * 3 + (uint64_t)left;
}

static NOIPA uint64_t run(struct plan *p)
{
	uint64_t ns, sum = 0;
	int b;

	while ((b = plan_turn(p, &ns)) >= 0) {
		uint64_t start = cpu_ns();

		sum += recurse(DEPTH, b, start + ns);
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
