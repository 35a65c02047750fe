//! Whether the answers of one key can be explained: is there an order of its operations, each taking effect at
//! one moment between being sent and being answered, in which the specification gives these answers?
//!
//! The search is that of Wing, Gong and Lowe: it goes from state to state, at each trying what may come next, and
//! never visits a point, the set of operations that are done and the state, twice.
//!
//! - Times are lower bounds. A change comes no earlier than its call was sent, and than the change before; a lapse
//!   no earlier than the lock's end. All that bounds it from above is the first answer that is still to come.
//! - A try that was not answered may have taken effect unseen, at any time after it was sent. So may an answered
//!   one, before its answer: the server tries anew when it does not know what became of its write. Those effects
//!   are tried as well, where they change what others see.
//! - The updates of a watch take effect in their order.
//! - What agrees and changes nothing is taken at once: whatever is possible while it is pending is possible after
//!   it. And a point is left as soon as an answer is out of reach for good (`is_hopeless`). These two keep it small.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use crate::Bounds;
use crate::operation::{Answer, Begin, Call, Claim, Operation, Resolution, Time};
use crate::promises::token;
use crate::spec::{Record, State};
use crate::told::Told;

/// What came of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Explained,
    /// There is none; this is how far one gets.
    Impossible(String),
    /// The search was given up after so many points.
    Undecided(usize),
}

/// Searches an order for the operations of one key.
pub fn search(operations: &[Operation], bounds: &Bounds) -> Verdict {
    let search = Search { locks_end_early: bounds.locks_end_early, ..Search::of(operations) };
    let start = Point {
        done: Set::default(),
        left: search.answered,
        given_back: 0,
        since: Time::ZERO,
        state: State::default(),
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![(start, None)];
    let mut furthest: Option<(Point, Path)> = None;
    while let Some((mut point, mut path)) = open.pop() {
        let is_hopeless = search.is_hopeless(&point);
        if !is_hopeless {
            search.take_what_changes_nothing(&mut point, &mut path);
        }
        if point.left == 0 {
            return Verdict::Explained;
        }
        if furthest.as_ref().is_none_or(|(best, _)| point.left < best.left) {
            furthest = Some((point.clone(), path.clone()));
        }
        if is_hopeless {
            continue;
        }
        for (step, next) in search.steps(&point) {
            if seen.contains(&next) {
                continue;
            }
            if seen.len() == bounds.points_max {
                return Verdict::Undecided(bounds.points_max);
            }
            seen.insert(next.clone());
            open.push((next, Some(Rc::new(Stride { step, before: path.clone() }))));
        }
    }
    Verdict::Impossible(furthest.map_or_else(String::new, |(point, path)| search.explain(&point, path)))
}

/// Where the search is.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Point {
    /// The answered operations that have taken effect.
    done: Set,
    /// How many have not.
    left: usize,
    /// How many claims were given back. Each was the end of a try; which one makes no difference worth its price.
    given_back: usize,
    /// The last change came no earlier.
    since: Time,
    state: State,
}

/// What may come next.
#[derive(Clone, Copy)]
enum Step {
    /// An operation, as it was answered.
    Answered(usize),
    /// A try of an operation, unseen.
    Unseen(usize),
    GiveBack(usize),
    Lapse,
    Expiry,
}

/// The way to a point, for people.
type Path = Option<Rc<Stride>>;

struct Stride {
    step: Step,
    before: Path,
}

/// The operations of a key, in the order of being sent, and what the search wants to know of them.
struct Search<'a> {
    operations: Vec<(usize, &'a Operation)>,
    /// Of each, the one here that it takes effect after, if there is one.
    after: Vec<Option<usize>>,
    /// How many were answered.
    answered: usize,
    /// What was told of attempts.
    told: Vec<ToldOf<'a>>,
    /// Which operations need the record to have a token, in the order of those.
    tokens: Vec<(u64, usize)>,
    /// Which delete the record that has a token.
    deletes: Vec<(u64, usize)>,
    /// The shortest retention that anybody asked for.
    retention_min: Duration,
    /// When each try of a Begin was sent of which its caller heard nothing.
    lost_begins: Vec<Time>,
    /// Whether a lock may lapse at any time.
    locks_end_early: bool,
}

/// An attempt that somebody was told of.
struct ToldOf<'a> {
    operation: usize,
    answered: Time,
    attempt: u64,
    owner: &'a str,
    /// If it was told to its holder.
    claim: Option<(&'a Claim, &'a Begin)>,
}

impl<'a> Search<'a> {
    fn of(operations: &'a [Operation]) -> Self {
        let mut operations: Vec<_> = operations.iter().enumerate().collect();
        operations.sort_by_key(|(_, it)| it.span().0);
        let mut places = vec![0; operations.len()];
        operations.iter().enumerate().for_each(|(i, (number, _))| places[*number] = i);
        let after = operations.iter().map(|(_, it)| it.after.map(|number| places[number])).collect();
        let each = || operations.iter().enumerate().map(|(i, (_, it))| (i, *it));
        let mut tokens: Vec<_> = each().filter_map(|(i, it)| Some((token(it)?, i))).collect();
        tokens.sort_unstable();
        let deletes = each().filter_map(|(i, it)| match it.call {
            Call::Delete { token, .. } => Some((token, i)),
            _ => None,
        });
        let retentions = each().filter_map(|(_, it)| match &it.call {
            Call::Begin(begin) => Some(begin.retention),
            Call::Complete { retention, .. }
            | Call::Resolve { resolution: Resolution::Outcome(_, retention), .. } => *retention,
            _ => None,
        });
        let begins = each().filter(|(_, it)| it.begin().is_some());
        let mut lost_begins: Vec<_> =
            begins.flat_map(|(_, it)| it.unknown_tries()).map(|it| it.sent).collect();
        lost_begins.sort_unstable();
        Self {
            after,
            answered: each().filter(|(_, it)| it.span().1.is_some()).count(),
            told: each().filter_map(|(i, it)| ToldOf::by(i, it)).collect(),
            tokens,
            deletes: deletes.collect(),
            retention_min: retentions.min().unwrap_or_default(),
            lost_begins,
            locks_end_early: false,
            operations,
        }
    }

    /// The answered operations that have not taken effect, of which one is to be the next, with the time by which
    /// it has to be: the first answer among them.
    fn candidates(&self, point: &Point) -> (Vec<usize>, Time) {
        let mut due = Time::MAX;
        let mut candidates = Vec::new();
        for (i, (_, operation)) in self.operations.iter().enumerate() {
            let (sent, answered) = operation.span();
            if sent > due {
                break;
            }
            let has_turn = self.after[i].is_none_or(|before| point.done.has(before));
            if let Some(answered) = answered.filter(|_| has_turn && !point.done.has(i)) {
                due = due.min(answered);
                candidates.push(i);
            }
        }
        candidates.retain(|&i| self.operations[i].1.span().0 <= due);
        (candidates, due)
    }

    fn take_what_changes_nothing(&self, point: &mut Point, path: &mut Path) {
        loop {
            let (candidates, due) = self.candidates(point);
            let mut taken = false;
            for i in candidates {
                if self.answer(i, point, due).is_some_and(|next| next.state == point.state) {
                    point.done.add(i);
                    point.left -= 1;
                    *path = Some(Rc::new(Stride { step: Step::Answered(i), before: path.take() }));
                    taken = true;
                }
            }
            if !taken {
                return;
            }
        }
    }

    /// Whether there is certainly no way on. Tokens only grow, so what needs a lower one than the record's never
    /// comes; and as long as the record lives, so do attempts, each of one claim and one owner.
    fn is_hopeless(&self, point: &Point) -> bool {
        let record = point.state.record.as_ref();
        let lowest = record.and_then(|it| it.token).unwrap_or(point.state.token_floor + 1);
        let mut too_low = self.tokens.iter().take_while(|(token, _)| *token < lowest);
        let is_past = |told: &ToldOf<'_>| {
            record.is_some_and(|it| told.is_past(it))
                && !point.done.has(told.operation)
                && !self.may_end(point, lowest, told.answered)
        };
        too_low.any(|(_, i)| !point.done.has(*i)) || self.told.iter().any(is_past)
    }

    /// Whether the record may expire by then, or be deleted; `lowest` is the lowest token it may still have.
    fn may_end(&self, point: &Point, lowest: u64, by: Time) -> bool {
        let mut deletes = self.deletes.iter().filter(|(token, i)| {
            let (_, delete) = self.operations[*i];
            let may_come = delete.unknown_tries().next().is_some() || delete.span().1 >= Some(point.since);
            may_come && *token >= lowest && delete.first_sent() <= by
        });
        let kept_until = point.state.record.as_ref().and_then(|it| it.kept_until);
        let may_expire = |at: Time| at <= by;
        kept_until.is_some_and(may_expire)
            || may_expire(point.since + self.retention_min)
            || deletes.next().is_some()
    }

    /// The point after an operation, if there it is answered as it was.
    fn answer(&self, i: usize, point: &Point, due: Time) -> Option<Point> {
        let (_, operation) = self.operations[i];
        let from = takes_effect_from(operation).max(point.since);
        let (told, mut state) = point.state.after(&operation.call, from);
        if from > due || !state.agrees(told, operation.answer.as_ref()?) {
            return None;
        }
        let mut done = point.done.clone();
        done.add(i);
        Some(Point { done, left: point.left - 1, since: from, state, ..*point })
    }

    /// What may come next; what is most likely comes last, to be tried first.
    fn steps(&self, point: &Point) -> Vec<(Step, Point)> {
        let (candidates, due) = self.candidates(point);
        let mut steps = self.unseen(point, due);
        let at = |from: Time, state| Point { state, since: from.max(point.since), ..point.clone() };
        let in_time = |(from, state)| (from <= due).then(|| at(from, state));
        steps.extend(point.state.expiry().and_then(in_time).map(|next| (Step::Expiry, next)));
        let lapse = point
            .state
            .lapse()
            .map(|(at, state)| (if self.locks_end_early { Time::ZERO } else { at }, state));
        steps.extend(lapse.and_then(in_time).map(|next| (Step::Lapse, next)));
        let lost_tries = self.lost_begins.partition_point(|sent| *sent <= due);
        if let Some((i, state)) = point.state.give_back().filter(|_| point.given_back < lost_tries) {
            steps.push((
                Step::GiveBack(i),
                Point { given_back: point.given_back + 1, ..at(Time::ZERO, state) },
            ));
        }
        for i in candidates.into_iter().rev() {
            steps.extend(self.answer(i, point, due).map(|next| (Step::Answered(i), next)));
        }
        steps
    }

    /// The effects that tries may have without anybody having been told.
    fn unseen(&self, point: &Point, due: Time) -> Vec<(Step, Point)> {
        let mut steps = Vec::new();
        for (i, (_, operation)) in self.operations.iter().enumerate() {
            let Some(unseen) = self.unseen_try(operation, point, due) else { continue };
            let from = unseen.from.max(point.since);
            let (told, mut state) = point.state.after(&operation.call, from);
            if unseen.is_late {
                // It ran from when the call was sent, and is owed to nobody. (To know how long would make points many.)
                state.lock_may_be_over();
            }
            if state.looks_like(&point.state) {
                continue;
            }
            if told == (Told::Claim { resumed: false }) {
                if self.explains_nothing(point, &state) {
                    continue;
                }
                if unseen.may_be_given_back {
                    state.not_received(i, from);
                }
            }
            steps.push((Step::Unseen(i), Point { state, since: from, ..point.clone() }));
        }
        steps
    }

    /// Whether an unseen claim follows on another one, and nobody is told of any as late as that. One alone may
    /// be why a holder is refused.
    fn explains_nothing(&self, point: &Point, next: &State) -> bool {
        let (Some(before), Some(after)) = (&point.state.record, &next.record) else { return false };
        let told = self.told.iter().filter(|told| !point.done.has(told.operation)).map(|told| told.attempt);
        before.token.is_none() && after.attempt > 1 + told.max().unwrap_or(0)
    }

    fn unseen_try(&self, operation: &Operation, point: &Point, due: Time) -> Option<Unseen> {
        if operation.first_sent() > due || !point.state.may_change(&operation.call) {
            return None;
        }
        if let Some(lost) = operation.unknown_tries().next().filter(|lost| lost.sent <= due) {
            return Some(Unseen { from: lost.sent, may_be_given_back: true, is_late: false });
        }
        let (sent, answered) = operation.span();
        // After that, what it wrote before and took for lost finds another revision than it expects; but the
        // claim of an absent key finds none, if the record was removed.
        let before_its_answer = answered? >= point.since;
        let late = matches!(operation.call, Call::Begin(_)) && point.state.record.is_none();
        (sent <= due && (before_its_answer || late)).then_some(Unseen {
            from: sent,
            may_be_given_back: false,
            is_late: !before_its_answer,
        })
    }

    /// How far one gets, and why not on.
    fn explain(&self, point: &Point, path: Path) -> String {
        const LAST_SHOWN: usize = 6;
        let mut before = Vec::new();
        let mut path = path;
        while let Some(stride) = path.take() {
            if before.len() < LAST_SHOWN {
                before.push(format!("\n  {}", self.name(stride.step)));
            }
            path.clone_from(&stride.before);
        }
        before.reverse();
        let done = self.answered - point.left;
        let (candidates, due) = self.candidates(point);
        let stuck = candidates.into_iter().map(|i| {
            let (number, operation) = self.operations[i];
            let (told, _) = point.state.after(&operation.call, takes_effect_from(operation));
            format!("\n  #{number} {operation}; here it would be told {told}")
        });
        format!(
            "no order of its operations explains their answers. {done} of {} are explained, the last ones by\
             {}\nThe record is then: {}. None of these can be the next, and one has to be by {due:?}:{}",
            self.answered,
            before.concat(),
            point.state,
            stuck.collect::<String>(),
        )
    }

    fn name(&self, step: Step) -> String {
        let name = |i: usize| format!("#{} {}", self.operations[i].0, self.operations[i].1);
        match step {
            Step::Answered(i) => name(i),
            Step::Unseen(i) => format!("(unseen) {}", name(i)),
            Step::GiveBack(i) => format!("(given back, for nobody received it) {}", name(i)),
            Step::Lapse => "(the lock lapses)".to_owned(),
            Step::Expiry => "(the record expires)".to_owned(),
        }
    }
}

/// What a try may do unseen.
struct Unseen {
    from: Time,
    /// Whether the server may find that nobody received its answer.
    may_be_given_back: bool,
    /// Whether its call had been answered by then.
    is_late: bool,
}

/// When an answered operation took effect, at the earliest. A claim tells how long it waited before that.
fn takes_effect_from(operation: &Operation) -> Time {
    operation.span().0 + operation.claim().map(|claim| claim.waited).unwrap_or_default()
}

impl<'a> ToldOf<'a> {
    fn by(i: usize, operation: &'a Operation) -> Option<Self> {
        let (attempt, owner, claim) = match (operation.answer.as_ref()?, &operation.call) {
            (Answer::Claim(claim), Call::Begin(begin)) => (claim.attempt, &begin.owner, Some((claim, begin))),
            (
                Answer::Completed { attempt, owner, .. }
                | Answer::InProgress { attempt, owner }
                | Answer::InDoubt { attempt, owner, .. }
                | Answer::Available { attempt, owner },
                _,
            ) => (*attempt, owner, None),
            _ => return None,
        };
        Some(Self { operation: i, answered: operation.span().1?, attempt, owner, claim })
    }

    /// Whether this cannot be told of a record any more.
    fn is_past(&self, record: &Record) -> bool {
        let is_another = |(claim, begin): (&Claim, &Begin)| match record.token {
            Some(token) => token != claim.token,
            None => !claim.resumed || record.request_id != begin.request_id,
        };
        self.attempt < record.attempt
            || (self.attempt == record.attempt
                && (*self.owner != *record.owner || self.claim.is_some_and(is_another)))
    }
}

/// A set of small numbers.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

impl Set {
    fn has(&self, i: usize) -> bool {
        self.0.get(i / 64).is_some_and(|word| word & (1 << (i % 64)) != 0)
    }

    fn add(&mut self, i: usize) {
        if self.0.len() <= i / 64 {
            self.0.resize(i / 64 + 1, 0);
        }
        self.0[i / 64] |= 1 << (i % 64);
    }
}
