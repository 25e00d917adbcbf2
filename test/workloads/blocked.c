/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that wait, for a dump of a hung process:
 *
 *   start_thread > worker > level_(40-depth) .. level_39 > wait_futex | wait_sleep | wait_read | wait_epoll | spin
 *
 * THREADS of them, which wait in these four ways in turn and are named
 * "futex-0", "sleep-1", "read-2", "epoll-3", "futex-4" and so on; depth is 20 to
 * 40, by their number. With -spin N, N more threads run. Frames have sizes of
 * their own, and the frame pointer is an ordinary register.
 *
 *   blocked [-spin N] [-leave] [-wake MICROSECONDS] [-brief N] THREADS
 *
 * Prints "ready" when every thread is on its way into its last function, and
 * waits there for its own standard input to end: main > join > wait_input. With
 * -leave the main thread ends, and the others go on. With -wake each thread of
 * wait_sleep wakes and goes to sleep again every so often.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#ifdef __clang__
#define NOIPA __attribute__((noinline))
#else
#define NOIPA __attribute__((noipa))
#endif

#define LEVELS 40

static pthread_mutex_t locked = PTHREAD_MUTEX_INITIALIZER;
static int pipes[2], epoll;
static int ready;
static long wake_us;

static NOIPA int wait_futex(void)
{
	return pthread_mutex_lock(&locked);
}

static NOIPA int wait_sleep(void)
{
	struct timespec t = { .tv_sec = wake_us ? 0 : 3600, .tv_nsec = wake_us * 1000 };

	return nanosleep(&t, NULL);
}

static NOIPA int wait_read(void)
{
	char c;

	return (int)read(pipes[0], &c, 1);
}

static NOIPA int wait_epoll(void)
{
	struct epoll_event e;

	return epoll_wait(epoll, &e, 1, -1);
}

static NOIPA int spin(void)
{
	volatile uint64_t x = 88172645463325252u;

	for (;;) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	return 0;
}

static int (*const ways[])(void) = { wait_futex, wait_sleep, wait_read, wait_epoll, spin };
static const char *const names[] = { "futex", "sleep", "read", "epoll", "spin" };

struct job {
	pthread_t thread;
	int number, way, depth;
	uint64_t seed[4];
};

typedef uint64_t step_fn(struct job *j);
static step_fn *const steps[LEVELS + 1];

/* Values used after the call live in callee-saved registers, rbp among them. */
#define L(n)                                                        \
	static NOIPA uint64_t level_##n(struct job *j)              \
	{                                                           \
		volatile char pad[1 + (1##n % 13) * 8];             \
		uint64_t a = j->seed[0], b = j->seed[1];            \
		pad[0] = (char)j->number;                           \
		uint64_t r = steps[1##n - 100 + 1](j);              \
		return (r + a) * (b | 1) + (uint64_t)pad[0] + 1##n; \
	}
#define D(p) L(p##0) L(p##1) L(p##2) L(p##3) L(p##4) L(p##5) L(p##6) L(p##7) L(p##8) L(p##9)
#define ALL D(0) D(1) D(2) D(3)
ALL
#undef L

static NOIPA uint64_t bottom(struct job *j)
{
	if (!j->seed[3])
		__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
	return (uint64_t)ways[j->way]() + j->seed[2];
}

#define L(n) level_##n,
static step_fn *const steps[LEVELS + 1] = { ALL bottom };

static NOIPA void *worker(void *arg)
{
	struct job *j = arg;
	char name[16];

	snprintf(name, sizeof(name), "%s-%d", names[j->way], j->number);
	pthread_setname_np(pthread_self(), name);
	do {
		j->seed[3] = steps[LEVELS - j->depth](j) | 1;
		j->depth = 20 + (j->depth + 8) % 21;
	} while (wake_us && ways[j->way] == wait_sleep);
	return NULL;
}

static void *end_soon(void *arg)
{
	pthread_setname_np(pthread_self(), "brief");
	usleep((unsigned)(uintptr_t)arg);
	return NULL;
}

/* Threads that end, among those that stay. */
static void make_brief(pthread_attr_t *attr, int n)
{
	pthread_t t;

	while (n-- > 0) {
		if (pthread_create(&t, attr, end_soon, (void *)(uintptr_t)(rand() % 2000000)))
			break;
		pthread_detach(t);
	}
}

static NOIPA void wait_input(void)
{
	char c;

	while (read(0, &c, 1) > 0 || errno == EINTR)
		;
}

static NOIPA void join(int leave)
{
	if (leave)
		pthread_exit(NULL);
	wait_input();
	_exit(0);
}

int main(int argc, char **argv)
{
	int threads = 0, spinning = 0, leave = 0, brief = 0;
	pthread_attr_t small;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-spin") && i + 1 < argc)
			spinning = atoi(argv[++i]);
		else if (!strcmp(argv[i], "-wake") && i + 1 < argc)
			wake_us = atol(argv[++i]);
		else if (!strcmp(argv[i], "-leave"))
			leave = 1;
		else if (!strcmp(argv[i], "-brief") && i + 1 < argc)
			brief = atoi(argv[++i]);
		else
			threads = atoi(argv[i]);
	}
	if (pipe(pipes) || (epoll = epoll_create1(0)) < 0) {
		perror("blocked");
		return 1;
	}
	pthread_mutex_lock(&locked);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 << 10);
	for (int i = 0; i < threads + spinning; i++) {
		struct job *j = calloc(1, sizeof(*j));

		make_brief(&small, brief / (threads + spinning));
		j->number = i;
		j->way = i < threads ? i % 4 : 4;
		j->depth = 20 + i % 21;
		j->seed[0] = (uint64_t)i;
		if (pthread_create(&j->thread, &small, worker, j)) {
			perror("pthread_create");
			return 1;
		}
	}
	while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < threads + spinning)
		usleep(1000);
	puts("ready");
	fflush(stdout);
	join(leave);
	return 0;
}
