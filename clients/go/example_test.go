package onced_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"onced.dev/go/onced"
)

type Receipt struct{ Number int }

func charge(context.Context, uint64) (Receipt, error) {
	return Receipt{Number: 1}, nil
}

// The code below is that of README.md.
func Example() {
	ctx := context.Background()
	digest := onced.FingerprintBytes([]byte("order 17"))

	client := onced.MustNew("") // ONCED_SERVER, or else 127.0.0.1:7411
	done, err := onced.Run(ctx, client, "order-17", func(ctx context.Context, claim *onced.Claim) (Receipt, error) {
		return charge(ctx, claim.FencingToken())
	}, onced.Namespace("shop"), onced.Fingerprint(digest))
	fmt.Println(done.Value, done.RanHere, err)
	// Output: {1} true <nil>
}

func TestTheExampleIsThatOfTheReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```go\n")
	shown, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("README.md has no example")
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	indented := "\t" + strings.ReplaceAll(strings.TrimSpace(shown), "\n", "\n\t") + "\n"
	if !strings.Contains(string(source), indented) {
		t.Errorf("the example of README.md is not the one that is tested:\n%s", shown)
	}
}
