/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main > run > turn_60 | turn_30 | turn_10 > leaf_60 | leaf_30 | leaf_10
 *
 * The leaves call nothing and have no frame, and nearly all of the time is
 * theirs: on arm64 the caller of a leaf is in LR and nowhere else, signed where
 * it is built with -mbranch-protection=pac-ret+leaf.
 *
 *   leaf [-seconds S] [-unlink]
 */
#include "truth.h"

#define LEAF(n)                                                    \
	static NOIPA uint64_t leaf_##n(uint64_t x)                 \
	{                                                          \
		return work(x + n);                                \
	}                                                          \
	static NOIPA uint64_t turn_##n(uint64_t until_ns)          \
	{                                                          \
		uint64_t x = 88172645463325252u;                   \
		do                                                 \
			x = leaf_##n(x);                           \
		while (cpu_ns() < until_ns);                       \
		return x;                                          \
	}
LEAF(60)
LEAF(30)
LEAF(10)

static NOIPA uint64_t run(struct plan *p)
{
	uint64_t ns, sum = 0;
	int branch;

	while ((branch = plan_turn(p, &ns)) >= 0) {
		uint64_t start = cpu_ns(), until = start + ns;

		switch (branch) {
		case 0:
			sum += turn_60(until);
			break;
		case 1:
			sum += turn_30(until);
			break;
		default:
			sum += turn_10(until);
		}
		p->used_ns[branch] += cpu_ns() - start;
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
