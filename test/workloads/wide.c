/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main > wide_function_number_N for every N in turn, in no order: a program
 * that is hot all over. How many functions there are is said to the assembler.
 *
 *   gcc -O2 -DWIDE=300000 -o wide wide.c wide.S
 *   wide [-seconds S]
 */
#include "truth.h"

extern uint64_t (*const wide_table[])(uint64_t);
extern const uint64_t wide_count;

int main(int argc, char **argv)
{
	double seconds;

	plan_options(argc, argv, &seconds);
	uint64_t end = cpu_ns() + (uint64_t)(seconds * 1e9), sum = 0;
	/* A stride that has no factor in common with the count reaches all. */
	uint64_t stride = wide_count * 5 / 8 | 1, i = 0;

	while (stride % 3 == 0 || stride % 5 == 0)
		stride += 2;
	while (cpu_ns() < end) {
		for (int k = 0; k < 16; k++) {
			sum += wide_table[i](5000);
			i = (i + stride) % wide_count;
		}
	}
	volatile uint64_t keep = sum;
	(void)keep;
	printf("{\"cpu_seconds\":%.6f,\"shares\":{}}\n", rusage_seconds(RUSAGE_SELF));
	return 0;
}
