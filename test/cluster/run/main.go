// Command run has a test cluster for as long as it runs, for people:
//
//	go run ./test/cluster/run -simulated 3
//
// It prints the path of the kubeconfig. Ctrl-C ends the cluster.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/kalypso-dev/kalypso/test/cluster"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	var o cluster.Options
	flag.StringVar(&o.Name, "name", "hand", "name of the cluster")
	flag.IntVar(&o.Nodes, "nodes", 0, "real nodes")
	flag.IntVar(&o.Simulated, "simulated", 0, "simulated nodes")
	flag.StringVar(&o.CPU, "cpu", "", "CPUs of a simulated node (default 32)")
	flag.StringVar(&o.Memory, "memory", "", "memory of a simulated node (default 64Gi)")
	build := flag.Bool("build", false, "build the binaries, print their folder, and end")
	flag.Parse()
	o.Log = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *build {
		dir, err := cluster.Build(ctx, o.Log)
		if err == nil {
			fmt.Println(dir)
		}
		return err
	}
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return err
	}
	fmt.Println(c.Kubeconfig)
	<-ctx.Done()
	return c.Down()
}
