/* SPDX-License-Identifier: Apache-2.0 */
/* The shared library that plt.c calls into. */
#include <stdint.h>

uint64_t tiny_60(uint64_t x) { return x ^ (x << 13); }
uint64_t tiny_30(uint64_t x) { return x ^ (x >> 7); }
uint64_t tiny_10(uint64_t x) { return x ^ (x << 17); }
