// Package crash is where the story kills and suspends workers: at points that it names in CRASH, such as
// "kill:credited:order-3 stop:rated:order-7". Nobody else sets that.
package crash

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Here ends or suspends this process if CRASH says so of the point, for the first attempt at the message.
func Here(point, message string, first bool) {
	if !first {
		return
	}
	for action, signal := range map[string]syscall.Signal{"kill": syscall.SIGKILL, "stop": syscall.SIGSTOP} {
		if slices.Contains(strings.Fields(os.Getenv("CRASH")), action+":"+point+":"+message) {
			slog.Warn(action, "point", point, "message", message)
			_ = syscall.Kill(os.Getpid(), signal)
			time.Sleep(100 * time.Millisecond) // Until the signal is there. The time that it is suspended counts.
		}
	}
}
