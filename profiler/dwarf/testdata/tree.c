#include <stdlib.h>
#include "calls.h"

static inline struct node *make(int key)
{
	struct node *n = calloc(1, sizeof(*n));

	if (n)
		n->key = key;
	return n;
}

int insert(struct node **root, int key)
{
	while (*root) {
		if (key == (*root)->key)
			return mix(key, key);
		root = key < (*root)->key ? &(*root)->left : &(*root)->right;
	}
	*root = make(key);
	return mix((*root)->key, 0);
}

int walk(const struct node *n, int (*visit)(int))
{
	if (!n)
		return 0;
	return walk(n->left, visit) + visit(n->key) + walk(n->right, visit);
}
