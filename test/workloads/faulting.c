/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process whose memory cannot be read for as long as it lives, as that of one
 * that hangs with the lock of its address space: right above the stack of a
 * thread that waits lie pages that nobody will ever bring (userfaultfd(2), which
 * takes root). Prints "ready".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK (256 << 10)
#define NEVER (64 << 10)

static void *wait_forever(void *unused)
{
	puts("ready");
	fflush(stdout);
	pause();
	return unused;
}

int main(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register never = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *stack = mmap(NULL, STACK + NEVER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	pthread_attr_t attr;
	pthread_t t;

	never.range.start = (unsigned long)stack + STACK;
	never.range.len = NEVER;
	if (stack == MAP_FAILED || fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &never)) {
		perror("faulting");
		return 1;
	}
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, stack, STACK);
	if (pthread_create(&t, &attr, wait_forever, NULL)) {
		perror("pthread_create");
		return 1;
	}
	pthread_join(t, NULL);
	return 0;
}
