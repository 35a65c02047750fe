package main

import (
	"context"
	"fmt"
	"time"
)

const account = "account-1"

// What the orders o-01 to o-17 are to come to: 10 points each.
const orders = 17

// perform delivers everything, and injects the deaths.
func (p *play) perform(ctx context.Context) {
	p.batches(ctx)
	p.killed(ctx, 2, "o-13", "before its effect")
	p.killed(ctx, 3, "o-14", "between its effect and its ack")
	p.suspended(ctx)
	p.slow(ctx)
	p.away(ctx)
	p.publishedAgain(ctx)
	p.poison(ctx)
	p.reused(ctx)
	if p.kind == onceOnly {
		p.nameless(ctx)
	}
}

func (p *play) order(ctx context.Context, id string) {
	p.publish(ctx, id, account, 1000)
}

func (p *play) sofar(ctx context.Context, id string) string {
	return fmt.Sprintf("%s: %s, %s", id, some(p.count("rated", id), "rating"), some(p.credits(ctx, id), "credit"))
}

func (p *play) batches(ctx context.Context) {
	for i := 1; i <= 12; i++ {
		p.order(ctx, fmt.Sprintf("o-%02d", i))
	}
	dropped := p.publish(ctx, "o-12", account, 1000)
	for i := 1; i <= 12; i++ {
		p.untilSettled(fmt.Sprintf("o-%02d", i), 1)
	}
	died := p.until("kill", "o-03", 1)[0].Worker
	p.tell("1. Twelve orders, in batches. %s is killed when it has credited o-03, with its batch. %s", died, p.sofar(ctx, "o-03"))
	p.expect(dropped, "the broker did not drop what was published twice within its window")
}

func (p *play) killed(ctx context.Context, number int, id, where string) {
	p.order(ctx, id)
	died := p.until("kill", id, 1)[0].Worker
	p.untilSettled(id, 1)
	p.tell("%d. %s is killed at work on %s, %s. %s", number, died, id, where, p.sofar(ctx, id))
}

// suspended stops a worker between its rating and its effect, for longer than its lock lives.
func (p *play) suspended(ctx context.Context) {
	const id = "o-15"
	open := p.hold(id, 2)
	defer open()
	p.order(ctx, id)
	stopped := p.until("stop", id, 1)[0].Worker
	switch p.kind {
	case nothing:
		open()
		p.untilSettled(id, 1)
		p.resume(stopped)
		p.until("credited", id, 2)
	case guardFirst:
		p.untilSettled(id, 1)
		p.resume(stopped)
		p.until("credited", id, 1)
	case onceOnly:
		p.until("rated", id, 2) // Another worker has taken over, and is at work.
		p.resume(stopped)
		p.until("refused by the ledger", id, 1)
		p.expect(p.credits(ctx, id) == 0, "a stale worker credited %s", id)
		open()
		p.untilSettled(id, 1)
	}
	p.tell("4. %s is suspended before its effect, and resumed when another has taken o-15. %s", stopped, p.sofar(ctx, id))
	if p.kind == onceOnly {
		p.tell("   The ledger had seen the newer token, and refused %s", stopped)
	}
}

// slow is at work until it was delivered again, and something came of that.
func (p *play) slow(ctx context.Context) {
	const id = "o-16"
	open := p.hold(id, 1)
	defer open()
	p.order(ctx, id)
	switch p.kind {
	case nothing:
		p.until("rated", id, 2)
	case guardFirst:
		p.until("skipped", id, 1)
	case onceOnly:
		p.until("later", id, 1)
		p.expect(p.credits(ctx, id) == 0, "%s was credited while its rating was held", id)
	}
	open()
	switch p.kind {
	case nothing:
		p.until("credited", id, 2)
	default:
		p.until("credited", id, 1)
		p.untilSettled(id, 1)
	}
	p.tell("5. o-16 takes longer than the broker waits, and is delivered again meanwhile. %s", p.sofar(ctx, id))
}

func (p *play) away(ctx context.Context) {
	const id = "o-17"
	p.order(ctx, id)
	p.untilSettled(id, 1)
	p.tell("6. The rating service is away at first. %s", p.sofar(ctx, id))
}

func (p *play) publishedAgain(ctx context.Context) {
	const id = "o-12"
	before, rated := p.settled(id), p.count("rated", id)
	p.publishAnew(ctx, id, account)
	p.untilSettled(id, before+1)
	p.expect(p.kind == nothing || p.count("rated", id) == rated, "%s was rated again", id)
	p.tell("7. o-12 is published again, after the broker's window for duplicates. %s", p.sofar(ctx, id))
}

// poison can never be credited: its account is not there. It is published twice.
func (p *play) poison(ctx context.Context) {
	const id = "o-18"
	p.publish(ctx, id, "account-9", 1000)
	switch p.kind {
	case nothing:
		p.until("failed", id, 5) // As often as the broker delivers it.
	default:
		p.untilSettled(id, 1)
	}
	p.publishAnew(ctx, id, "account-9")
	switch p.kind {
	case nothing:
		p.until("failed", id, 10)
		p.tell("8. o-18 can never be credited, and is published twice. %s, then it is dropped", some(p.count("rated", id), "rating"))
	default:
		p.untilSettled(id, 2)
		p.tell("8. o-18 can never be credited, and is published twice. %s", some(p.count("rated", id), "rating"))
	}
	if p.kind == onceOnly {
		for _, e := range p.all("terminated", id) {
			p.expect(e.Error == `account: there is no "account-9"`, "o-18 ended with %q", e.Error)
		}
		p.tell("   Terminated both times: %s", p.all("terminated", id)[0].Error)
	}
}

// reused is another order under an id that was used.
func (p *play) reused(ctx context.Context) {
	const id = "o-04"
	before := p.settled(id)
	p.publish(ctx, id, account, 7700)
	p.untilSettled(id, before+1)
	credited := p.number(ctx, "select count(*) from credits where message = $1 and points = 77", id)
	p.tell("9. Another order comes under the id o-04. %s", some(credited, "credit"))
	if p.kind == onceOnly {
		refusals := p.all("terminated", id)
		p.expect(len(refusals) == 1 && credited == 0, "the other order of o-04 was credited: %d", credited)
		p.tell("   Terminated: %s", refusals[0].Error)
	}
}

func (p *play) nameless(ctx context.Context) {
	p.publish(ctx, "", account, 1000)
	p.tell("10. A message without an id. Terminated: %s", p.until("terminated", "", 1)[0].Error)
}

// A tally is what a play came to.
type tally struct {
	once, twice, never, points, ratings, poison int
}

func (p *play) tally(ctx context.Context) tally {
	var t tally
	for i := 1; i <= orders; i++ {
		id := fmt.Sprintf("o-%02d", i)
		switch p.credits(ctx, id) {
		case 0:
			t.never++
		case 1:
			t.once++
		default:
			t.twice++
		}
		t.ratings += p.count("rated", id)
	}
	t.points = p.number(ctx, "select coalesce(sum(points), 0) from credits where points = 10")
	t.poison = p.count("rated", "o-18")
	return t
}

// check holds what came of it against what was told.
func (p *play) check(ctx context.Context, t tally) {
	switch p.kind {
	case nothing:
		for _, id := range []string{"o-03", "o-12", "o-14", "o-15", "o-16"} {
			p.expect(p.credits(ctx, id) >= 2, "%s has %s", id, some(p.credits(ctx, id), "credit"))
		}
		p.expect(t.poison == 10, "the poison was tried %s", some(t.poison, "time"))
	case guardFirst:
		for _, id := range []string{"o-13", "o-17"} {
			p.expect(p.credits(ctx, id) == 0, "%s has %s", id, some(p.credits(ctx, id), "credit"))
		}
	case onceOnly:
		p.expect(t.once == orders && t.points == 10*orders, "of %d orders %d were credited once, and the points are %d", orders, t.once, t.points)
		balance := p.number(ctx, "select points from accounts where id = $1", account)
		p.expect(balance == 10*orders, "the account has %d points", balance)
		p.expect(t.poison == 1, "the poison was tried %s", some(t.poison, "time"))
		for id, ratings := range map[string]int{"o-14": 1, "o-16": 1} {
			p.expect(p.count("rated", id) == ratings, "%s has %s", id, some(p.count("rated", id), "rating"))
		}
		for i := 1; i <= orders; i++ {
			for _, e := range p.all("acknowledged", fmt.Sprintf("o-%02d", i)) {
				p.expect(e.KeptUntil.Sub(e.Time) > 24*time.Hour-time.Minute, "%s is kept until %v", e.Message, e.KeptUntil)
			}
		}
		for _, id := range []string{"o-12", "o-14"} {
			acks := p.all("acknowledged", id)
			p.expect(!acks[len(acks)-1].RanHere, "%s was not replayed", id)
		}
	}
}

func some(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
