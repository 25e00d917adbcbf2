// SPDX-License-Identifier: Apache-2.0
//
// main > run > Layer<11>::step .. Layer<0>::step > one of
//   sort_60  > qsort (libc) > compare_60 > hot_60
//   find_30  > bsearch (libc or its inline twin) > compare_30 > std::function > lambda > hot_30
//   catch_10 > throwing frames, then a destructor during unwinding, then the catch block > hot_10
// and in each hot_N the calls inlined_outer > inlined_inner, which holds the loop.
#include "truth.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

#define INLINED inline __attribute__((always_inline))

namespace {

struct Turn {
	int branch;
	uint64_t until_ns;
};

INLINED uint64_t inlined_inner(uint64_t x)
{
	for (int i = 0; i < CHUNK; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	return x;
}

INLINED uint64_t inlined_outer(uint64_t seed, uint64_t until_ns)
{
	uint64_t x = 88172645463325252u + seed;

	do
		x = inlined_inner(x);
	while (cpu_ns() < until_ns);
	return x;
}

NOIPA uint64_t hot_60(uint64_t until_ns) { return inlined_outer(60, until_ns); }
NOIPA uint64_t hot_30(uint64_t until_ns) { return inlined_outer(30, until_ns); }
NOIPA uint64_t hot_10(uint64_t until_ns) { return inlined_outer(10, until_ns); }

volatile uint64_t keep;

struct Item {
	uint64_t key;
	const Turn *turn;
};

NOIPA int compare_60(const void *a, const void *b)
{
	const Item *x = static_cast<const Item *>(a), *y = static_cast<const Item *>(b);

	keep = keep + hot_60(x->turn->until_ns);
	return x->key < y->key ? -1 : 1;
}

NOIPA uint64_t sort_60(const Turn &t)
{
	Item items[2] = { { 2, &t }, { 1, &t } };

	qsort(items, 2, sizeof(items[0]), compare_60);
	return items[0].key;
}

template <typename F> NOIPA uint64_t apply(F f, const Turn &t) { return f(t) + 1; }

NOIPA int compare_30(const void *key, const void *item)
{
	const Turn *t = static_cast<const Turn *>(key);
	std::function<uint64_t(const Turn &)> f = [](const Turn &turn) { return hot_30(turn.until_ns) + 3; };

	keep = keep + apply(f, *t);
	return *static_cast<const char *>(item) == 0 ? 0 : 1;
}

NOIPA uint64_t find_30(const Turn &t)
{
	const char items[1] = { 0 };

	return bsearch(&t, items, 1, 1, compare_30) != nullptr;
}

struct Guard {
	uint64_t until_ns;
	~Guard() { release(); }
	NOIPA void release() { keep = keep + hot_10(until_ns); }
};

NOIPA uint64_t deep_10(int depth, uint64_t until_ns)
{
	if (depth == 0) {
		keep = keep + hot_10(until_ns);
		throw std::runtime_error("known answer " + std::to_string(keep % 10));
	}
	Guard g{ until_ns };
	return deep_10(depth - 1, until_ns) + 1;
}

// A third of the time below the throw, a third in destructors that run while
// the exception travels, a third in the handler.
NOIPA uint64_t catch_10(const Turn &t)
{
	uint64_t now = cpu_ns(), third = (t.until_ns - std::min(now, t.until_ns)) / 3;

	try {
		deep_10(1, now + third);
	} catch (const std::runtime_error &e) {
		keep = keep + hot_10(t.until_ns) + static_cast<uint64_t>(e.what()[0]);
	}
	return keep;
}

template <int N> struct Layer {
	static NOIPA uint64_t step(const Turn &t)
	{
		uint64_t r = Layer<N - 1>::step(t);
		return r * 5 + N;
	}
};

template <> struct Layer<0> {
	static NOIPA uint64_t step(const Turn &t)
	{
		uint64_t r;

		switch (t.branch) {
		case 0:
			r = sort_60(t);
			break;
		case 1:
			r = find_30(t);
			break;
		default:
			r = catch_10(t);
		}
		return r + 1;
	}
};

NOIPA uint64_t run(plan *p)
{
	uint64_t ns, sum = 0;
	int b;

	while ((b = plan_turn(p, &ns)) >= 0) {
		uint64_t start = cpu_ns();

		sum += Layer<11>::step(Turn{ b, start + ns });
		p->used_ns[b] += cpu_ns() - start;
	}
	return sum;
}

} // namespace

int main(int argc, char **argv)
{
	double seconds;

	plan_options(argc, argv, &seconds);
	plan p = plan_60_30_10(seconds);
	keep = keep + run(&p);
	plan_print(&p);
	return 0;
}
