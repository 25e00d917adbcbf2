/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main > run > level_(900-N) .. level_899 > bottom > hot_60 | hot_30 | hot_10
 *
 * N levels, each a function of its own with a frame size of its own, and with
 * the frame pointer used as an ordinary register: 36 by default (40 frames
 * from main), at most 900.
 *
 *   chain [-seconds S] [-unlink] [N]
 */
#include "truth.h"

struct walk {
	uint64_t seed[6];
	uint64_t until_ns;
	int branch;
};

typedef uint64_t step_fn(struct walk *w);

#define LEVELS 900
static step_fn *const steps[LEVELS + 1];

/* The values read before the call and used after it live in callee-saved
 * registers, rbp among them. */
#define L(n)                                                                  \
	static NOIPA uint64_t level_##n(struct walk *w)                       \
	{                                                                     \
		volatile char pad[1 + (1##n % 13) * 8];                       \
		uint64_t a = w->seed[0], b = w->seed[1], c = w->seed[2];      \
		pad[0] = (char)w->branch;                                     \
		uint64_t r = steps[1##n - 1000 + 1](w);                       \
		return (r + a) * (b | 1) + c + (uint64_t)pad[0] + 1##n;       \
	}
#define D(p) L(p##0) L(p##1) L(p##2) L(p##3) L(p##4) L(p##5) L(p##6) L(p##7) L(p##8) L(p##9)
#define C(p) D(p##0) D(p##1) D(p##2) D(p##3) D(p##4) D(p##5) D(p##6) D(p##7) D(p##8) D(p##9)
#define ALL C(0) C(1) C(2) C(3) C(4) C(5) C(6) C(7) C(8)
ALL
#undef L

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

static NOIPA uint64_t bottom(struct walk *w)
{
	uint64_t r;

	switch (w->branch) {
	case 0:
		r = hot_60(w->until_ns);
		break;
	case 1:
		r = hot_30(w->until_ns);
		break;
	default:
		r = hot_10(w->until_ns);
	}
	return r + w->seed[3];
}

#define L(n) level_##n,
static step_fn *const steps[LEVELS + 1] = { ALL bottom };

static NOIPA uint64_t run(struct plan *p, int depth)
{
	struct walk w = { .seed = { 1, 2, 3, 4, 5, 6 } };
	uint64_t ns, sum = 0;

	while ((w.branch = plan_turn(p, &ns)) >= 0) {
		uint64_t start = cpu_ns();

		w.until_ns = start + ns;
		sum += steps[LEVELS - depth](&w);
		p->used_ns[w.branch] += cpu_ns() - start;
	}
	return sum;
}

int main(int argc, char **argv)
{
	double seconds;
	const char *levels = plan_options(argc, argv, &seconds);
	int depth = levels ? atoi(levels) : 36;

	if (depth < 1 || depth > LEVELS) {
		fprintf(stderr, "chain: %d levels, want 1 to %d\n", depth, LEVELS);
		return 2;
	}
	struct plan p = plan_60_30_10(seconds);
	volatile uint64_t keep = run(&p, depth);
	(void)keep;
	plan_print(&p);
	return 0;
}
