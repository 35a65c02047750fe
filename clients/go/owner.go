package onced

import (
	"fmt"
	"os"
	"strings"
	"unicode"
)

// The longest default owner, in characters. A server takes 256 bytes.
const ownerMaxRunes = 64

// defaultOwner is the user, host and process id of this process, such as "deploy@web-3:4711".
func defaultOwner() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if user := os.Getenv("USER"); user != "" {
		host = user + "@" + host
	}
	return printable(fmt.Sprintf("%s:%d", host, os.Getpid()))
}

func printable(owner string) string {
	kept := []rune(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(owner, "")))
	return string(kept[:min(len(kept), ownerMaxRunes)])
}
