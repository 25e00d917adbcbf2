/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPU time inside signal handlers, in a second thread:
 *
 *   thread_main > run > raise_60 > (libc) > (signal frame) > on_usr1 > hot_60
 *       a synchronous signal; the handler's stack lies below the thread's
 *   thread_main > run > interrupted_30 > (signal frame) > on_alarm > hot_30
 *       a timer that strikes at any instruction; the handler's stack lies in
 *       main's frame, above the thread's: the walk has to go down to go on
 *   thread_main > run > raise_10 > .. > on_usr2 > .. > on_usr1_nested > hot_10
 *       a signal within a signal
 */
#define _GNU_SOURCE
#include "truth.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#define ALT_BYTES (256 * 1024)

static char low_stack[ALT_BYTES];
static char *high_stack;
static volatile uint64_t until;
static volatile sig_atomic_t done;
static volatile uint64_t keep;

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

static NOIPA void on_usr1(int sig)
{
	keep += hot_60(until) + (uint64_t)sig;
}

static NOIPA void on_alarm(int sig)
{
	keep += hot_30(until) + (uint64_t)sig;
	done = 1;
}

static NOIPA void on_usr1_nested(int sig)
{
	keep += hot_10(until) + (uint64_t)sig;
}

static NOIPA void on_usr2(int sig)
{
	raise(SIGRTMIN);
	keep += (uint64_t)sig;
}

static NOIPA uint64_t raise_60(void)
{
	raise(SIGUSR1);
	return keep;
}

static NOIPA uint64_t interrupted_30(void)
{
	struct itimerval in_1ms = { .it_value = { .tv_usec = 1000 } };
	uint64_t turns = 0;

	done = 0;
	setitimer(ITIMER_REAL, &in_1ms, NULL);
	while (!done)
		turns++;
	return turns;
}

static NOIPA uint64_t raise_10(void)
{
	raise(SIGUSR2);
	return keep;
}

static void use_stack(char *base)
{
	stack_t s = { .ss_sp = base, .ss_size = ALT_BYTES };

	if (sigaltstack(&s, NULL)) {
		perror("sigaltstack");
		exit(1);
	}
}

static NOIPA uint64_t run(struct plan *p)
{
	uint64_t ns, sum = 0;
	int b;

	while ((b = plan_turn(p, &ns)) >= 0) {
		uint64_t start = cpu_ns();

		use_stack(b == 1 ? high_stack : low_stack);
		until = start + ns;
		if (b == 0)
			sum += raise_60();
		else if (b == 1)
			sum += interrupted_30();
		else
			sum += raise_10();
		p->used_ns[b] += cpu_ns() - start;
	}
	return sum;
}

static NOIPA void *thread_main(void *plan)
{
	sigset_t alarm;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	keep += run(plan);
	return NULL;
}

static void handle(int sig, void (*handler)(int), int flags)
{
	struct sigaction a = { .sa_flags = flags };

	a.sa_handler = handler;
	if (sigaction(sig, &a, NULL)) {
		perror("sigaction");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	char stack[ALT_BYTES];
	double seconds;
	pthread_t t;
	sigset_t alarm;

	plan_options(argc, argv, &seconds);
	struct plan p = plan_60_30_10(seconds);

	high_stack = stack;
	handle(SIGUSR1, on_usr1, SA_ONSTACK);
	handle(SIGALRM, on_alarm, SA_ONSTACK);
	handle(SIGUSR2, on_usr2, SA_ONSTACK);
	handle(SIGRTMIN, on_usr1_nested, SA_ONSTACK);
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL);
	if (pthread_create(&t, NULL, thread_main, &p)) {
		perror("pthread_create");
		return 1;
	}
	pthread_join(t, NULL);
	plan_print(&p);
	return 0;
}
