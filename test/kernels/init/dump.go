package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// dumpOf starts a program, waits for its first line and a bit, so that its
// threads are where they wait, and dumps it.
func dumpOf(command []string) error {
	c := exec.Command(command[0], command[1:]...)
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("wait for %s: %w", command[0], err)
	}
	time.Sleep(200 * time.Millisecond)
	d := exec.Command("/bin/kalypso-agent", "dump", "-o", "json", "-p", strconv.Itoa(c.Process.Pid))
	d.Stdout, d.Stderr = os.Stdout, os.Stderr
	err = d.Run()
	_ = in.Close()
	_ = c.Process.Kill() // its threads wait for ever
	_ = c.Wait()
	if err != nil {
		return errors.Join(errors.New("dump"), err)
	}
	return nil
}
