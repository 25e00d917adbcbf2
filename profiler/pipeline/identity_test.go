package pipeline

import (
	"math"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mover burns CPU time in cgroups: "move A B" as one process that goes from one to
// the other, "again A B" as two with the same PID, "short DIR N" as N processes of
// 40 ms, each in a cgroup that is made for it and gone when it has ended.
const mover = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) { perror(what); _exit(1); }

static void enter(const char *dir)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, "0", 1) != 1)
		die(path);
	close(fd);
}

static volatile unsigned long sum;

static void burn(int ms)
{
	struct timespec t, from;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
	do {
		for (int i = 0; i < 20000; i++)
			sum += i * i;
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	} while ((t.tv_sec - from.tv_sec) * 1000 + (t.tv_nsec - from.tv_nsec) / 1000000 < ms);
}

static void run(pid_t *pid, const char *dir, int ms)
{
	struct clone_args args = {.exit_signal = SIGCHLD};
	if (*pid) {
		args.set_tid = (__u64)pid;
		args.set_tid_size = 1;
	}
	pid_t got = syscall(SYS_clone3, &args, sizeof(args));
	if (got < 0)
		die("clone3");
	if (!got) {
		enter(dir);
		burn(ms);
		_exit(0);
	}
	*pid = got;
	if (waitpid(got, NULL, 0) != got)
		die("wait");
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[1], "move")) {
		enter(argv[2]);
		burn(300);
		enter(argv[3]);
		burn(600);
	} else if (!strcmp(argv[1], "again")) {
		pid_t pid = 0;
		run(&pid, argv[2], 300);
		run(&pid, argv[3], 600);
	} else {
		for (int i = 0; i < atoi(argv[3]); i++) {
			char dir[4096];
			pid_t pid = 0;
			snprintf(dir, sizeof(dir), "%s/short-%d", argv[2], i);
			if (mkdir(dir, 0755))
				die(dir);
			run(&pid, dir, 40);
			while (rmdir(dir)) /* until the kernel has put the task away */
				usleep(100);
		}
	}
	return 0;
}
`

// TestIdentityIsThatOfTheSample: a sample is its process's and cgroup's as they
// were when it was taken, whatever has the PID, or is left of the cgroup, when the
// agent looks.
func TestIdentityIsThatOfTheSample(t *testing.T) {
	const hz = 999
	program := compile(t, "mover", mover)
	for name, h := range map[string][2]string{"version 2": {"cgroup2", ""}, "version 1": {"cgroup", ",cpu,"}} {
		for _, tt := range []struct {
			name string
			args func(g podGroup) []string
			want map[string]float64 // seconds by the cgroup's last name
		}{
			{"a process that moves", func(g podGroup) []string { return []string{"move", g.mkdir("a"), g.mkdir("b")} }, map[string]float64{"a": 0.3, "b": 0.6}},
			{"a PID that is given again", func(g podGroup) []string { return []string{"again", g.mkdir("a"), g.mkdir("b")} }, map[string]float64{"a": 0.3, "b": 0.6}},
			{"cgroups of 40 ms", func(g podGroup) []string { return []string{"short", g.parent, "8"} }, map[string]float64{
				"short-0": 0.04, "short-1": 0.04, "short-2": 0.04, "short-3": 0.04, "short-4": 0.04, "short-5": 0.04, "short-6": 0.04, "short-7": 0.04}},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				g := kubelet(t, h[0], h[1])
				_, got, stop := serve(t, func(c *ServiceConfig) { c.Frequency, c.Window = hz, MaxWindow })
				if text, err := exec.Command(program, tt.args(g)...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, text)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				seconds, wrong, exes := map[string]float64{}, map[string]uint64{}, map[string]bool{}
				for _, seg := range got.all() {
					for _, p := range seg.Profiles {
						for _, x := range p.Samples {
							if x.Process.Comm != "mover" {
								continue
							}
							if name := filepath.Base(x.Process.Cgroup); strings.HasPrefix(x.Process.Cgroup, g.path()) && tt.want[name] > 0 {
								seconds[name] += float64(x.Count) * p.Period().Seconds()
								exes[x.Process.Exe] = true
							} else {
								wrong[x.Process.Cgroup] += x.Count
							}
						}
					}
				}
				t.Logf("%v; elsewhere %v; %v", seconds, wrong, exes)
				for name, want := range tt.want {
					if math.Abs(seconds[name]-want) > 0.02+0.15*want {
						t.Errorf("%.3f s of %s, want %.3f", seconds[name], name, want)
					}
				}
				for cgroup, n := range wrong { // before and between, it is where the test is
					if strings.HasPrefix(cgroup, g.path()) || cgroup == "" || n > hz/20 {
						t.Errorf("%d samples are said to be of %q", n, cgroup)
					}
				}
			})
		}
	}
}
