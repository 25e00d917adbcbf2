#ifndef CALLS_H
#define CALLS_H
extern volatile int sink;
struct node { struct node *left, *right; int key; };

static inline int mix(int a, int b)
{
	sink += a ^ b;
	return a * 31 + b;
}

static inline int fold(const int *v, int n)
{
	int sum = 0;
	for (int i = 0; i < n; i++)
		sum = mix(sum, v[i]);
	return sum;
}

int insert(struct node **root, int key);
int walk(const struct node *n, int (*visit)(int));
#endif
