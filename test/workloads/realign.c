/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main > run > aligned_a > aligned_b > aligned_c > hot_60 | hot_30 | hot_10
 *
 * Frames that gcc re-aligns: their CFA is not a register plus a number but a
 * value read from the stack (DW_CFA_def_cfa_expression), because the distance
 * to the caller is only known at run time. aligned_b has a size that is only
 * known at run time as well; the whole file is built with -mstackrealign.
 */
#include "truth.h"

#include <alloca.h>

#define HOT(n)                                                            \
	static NOIPA uint64_t hot_##n(uint64_t until_ns)                  \
	{                                                                 \
		_Alignas(64) volatile uint64_t x[8];                      \
		x[0] = 88172645463325252u + n;                            \
		do                                                        \
			x[0] = work(x[0]);                                \
		while (cpu_ns() < until_ns);                              \
		return x[0];                                              \
	}
HOT(60)
HOT(30)
HOT(10)

static NOIPA uint64_t aligned_c(int branch, uint64_t until_ns)
{
	_Alignas(32) volatile char box[96];
	uint64_t r;

	box[branch] = 1;
	if (branch == 0)
		r = hot_60(until_ns);
	else if (branch == 1)
		r = hot_30(until_ns);
	else
		r = hot_10(until_ns);
	return r + (uint64_t)box[branch];
}

static NOIPA uint64_t aligned_b(int branch, uint64_t until_ns)
{
	_Alignas(64) volatile char box[64];
	volatile char *more = alloca(16 + (until_ns & 255));

	more[branch] = 1;
	box[branch] = 2;
	uint64_t r = aligned_c(branch, until_ns);
	return r + (uint64_t)more[branch] + (uint64_t)box[branch];
}

static NOIPA uint64_t aligned_a(int branch, uint64_t until_ns)
{
	_Alignas(128) volatile char box[128];

	box[branch] = 3;
	return aligned_b(branch, until_ns) + (uint64_t)box[branch];
}

static NOIPA uint64_t run(struct plan *p)
{
	uint64_t ns, sum = 0;
	int b;

	while ((b = plan_turn(p, &ns)) >= 0) {
		uint64_t start = cpu_ns();

		sum += aligned_a(b, start + ns);
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
