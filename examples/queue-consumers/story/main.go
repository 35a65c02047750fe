// Story delivers the same orders to three kinds of workers, kills some of them in the middle, and counts the effects.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// The kinds of workers.
const (
	nothing    = "nothing"
	guardFirst = "guard"
	onceOnly   = "once"
)

func main() {
	plays := []*play{
		{kind: nothing, program: "naive", env: []string{"GUARD=none"}},
		{kind: guardFirst, program: "naive", env: []string{"GUARD=first"}},
		{kind: onceOnly, program: "worker"},
	}
	titles := []string{
		"WITHOUT ONCED, and with nothing against duplicates (naive)",
		"WITHOUT ONCED, each message marked as seen before its work (naive, GUARD=first)",
		"WITH ONCED (worker)",
	}
	ctx := context.Background()
	tallies := make([]tally, len(plays))
	var playing sync.WaitGroup
	// They have nothing in common but the servers.
	for i, p := range plays {
		playing.Add(1)
		go func() {
			defer playing.Done()
			tallies[i] = p.run(ctx)
		}()
	}
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		<-signals
		for _, p := range plays {
			p.kill()
		}
		os.Exit(1)
	}()
	playing.Wait()

	broken := false
	for i, p := range plays {
		fmt.Printf("%s\n%s\n", titles[i], p.account.String())
		broken = broken || len(p.broken) > 0
	}
	table(tallies)
	if broken {
		os.Exit(1)
	}
}

func (p *play) run(ctx context.Context) (t tally) {
	defer func() {
		if failed := recover(); failed != nil {
			p.expect(false, "%v", failed)
		}
	}()
	defer p.close()
	if err := p.open(ctx); err != nil {
		panic(err)
	}
	p.perform(ctx)
	p.close()
	t = p.tally(ctx)
	p.check(ctx, t)
	return t
}

func table(tallies []tally) {
	row := func(name string, of func(tally) int) {
		fmt.Printf("%-34s", name)
		for _, t := range tallies {
			fmt.Printf("%14d", of(t))
		}
		fmt.Println()
	}
	fmt.Printf("%-34s%14s%14s%14s\n", "", nothing, "guard first", "onced")
	row("orders to be credited", func(tally) int { return orders })
	row("credited once", func(t tally) int { return t.once })
	row("credited twice", func(t tally) int { return t.twice })
	row("lost", func(t tally) int { return t.never })
	row("points, of 170", func(t tally) int { return t.points })
	row("costly ratings", func(t tally) int { return t.ratings })
	row("tries of the poison message", func(t tally) int { return t.poison })
}
