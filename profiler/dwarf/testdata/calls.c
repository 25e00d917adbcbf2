#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "calls.h"

volatile int sink;

static inline int twice(int v)
{
	return mix(v, 2) + mix(v, 3);
}

static int visit(int key)
{
	if (key % 3 == 0)
		return twice(key);
	return mix(key, 1);
}

/* Cold code of its own: GCC moves it to work.cold, so work has two ranges. */
__attribute__((noinline, cold)) static void complain(const char *what)
{
	fprintf(stderr, "%s\n", what);
	abort();
}

__attribute__((noinline)) int work(int n)
{
	struct node *root = NULL;
	int values[16], sum = 0;

	for (int i = 0; i < n; i++) {
		values[i & 15] = insert(&root, (i * 7919) % 1000);
		if (values[i & 15] < 0)
			complain("negative");
		if ((i & 15) == 15)
			sum += fold(values, 16);
	}
	return sum + walk(root, visit);
}

__attribute__((noinline)) int never_called(int n)
{
	return twice(n) + work(n);
}

int main(int argc, char **argv)
{
	char buf[64];

	memset(buf, argc, sizeof(buf));
	printf("%d %d\n", work(argc * 100), fold((const int *)buf, 16));
	return 0;
}
