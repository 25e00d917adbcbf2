/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rusage COMMAND...: runs it with its output thrown away and prints the CPU
 * time it and its children used. For programs that do not print a truth.
 */
#include "truth.h"

#include <fcntl.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
	int status;
	pid_t pid;

	if (argc < 2) {
		fprintf(stderr, "usage: rusage COMMAND...\n");
		return 2;
	}
	pid = fork();
	if (pid < 0) {
		perror("fork");
		return 1;
	}
	if (pid == 0) {
		int null = open("/dev/null", O_WRONLY);

		dup2(null, 1);
		dup2(null, 2);
		execvp(argv[1], argv + 1);
		_exit(127);
	}
	if (waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "rusage: %s ended with status %d\n", argv[1], status);
		return 1;
	}
	printf("{\"cpu_seconds\":%.6f,\"own_cpu_seconds\":%.6f,\"shares\":{}}\n",
	       rusage_seconds(RUSAGE_CHILDREN), rusage_seconds(RUSAGE_SELF));
	return 0;
}
