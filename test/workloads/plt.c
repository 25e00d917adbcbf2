/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main > run > hot_60 | hot_30 | hot_10 > (PLT stub) > tiny_60 | ..
 *
 * The hot functions call a function of three instructions in a shared library
 * (pltlib.c) over and over, so that many samples fall on the stub's
 * instructions, whose CFA is an expression of the program counter.
 */
#include "truth.h"

uint64_t tiny_60(uint64_t x);
uint64_t tiny_30(uint64_t x);
uint64_t tiny_10(uint64_t x);

#define HOT(n)                                                \
	static NOIPA uint64_t hot_##n(uint64_t until_ns)      \
	{                                                     \
		uint64_t x = 88172645463325252u + n;          \
		do                                            \
			for (int i = 0; i < CHUNK; i++)       \
				x = tiny_##n(x);              \
		while (cpu_ns() < until_ns);                  \
		return x;                                     \
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
