// Package testserver starts servers of onced for tests.
package testserver

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A Server is a process of its own, on a port of its own.
type Server struct {
	// HOST:PORT.
	Address string
	process *exec.Cmd
}

// Launch starts a server that keeps its records in memory. The environment variable ONCED_BINARY names the program.
func Launch(args ...string) (*Server, error) {
	binary := os.Getenv("ONCED_BINARY")
	if binary == "" {
		return nil, errors.New("set ONCED_BINARY to the program onced: these tests start it")
	}
	process := exec.Command(binary, append([]string{"serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--store", "memory:"}, args...)...)
	process.Stderr = os.Stderr
	process.Env = append(os.Environ(), "ONCED_LOG=warn")
	out, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	address, found := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !found {
		_ = process.Process.Kill()
		return nil, fmt.Errorf("the server did not start: %q, %v", line, errors.Join(err, process.Wait()))
	}
	return &Server{Address: address, process: process}, nil
}

// Start is Launch for one test, which ends the server.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	server, err := Launch(args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	return server
}

// Kill ends the server at once, as kill -9 does. Killing it again is fine.
func (s *Server) Kill() {
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
}
