//! What one namespace takes up at this server. No clock, no waiting: what happens is told, with the time.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;
use crate::record::{FencingToken, Key};

/// What a namespace takes up, shared by its calls.
#[derive(Debug, Default)]
pub struct Used(Mutex<Uses>);

#[derive(Debug, Default)]
struct Uses {
    /// When all that was begun is paid for at the rate of the namespace: the further ahead of now, the more was
    /// begun of late.
    paid_at: Moment,
    waiters: u32,
    /// Begins that may each become a claim.
    reserved: u32,
    /// The claims begun here that nobody has ended here, each with its token and when its lock lapses unless it is
    /// renewed.
    held: HashMap<Key, (FencingToken, Moment)>,
    /// The same claims by that time.
    lapses: BTreeSet<(Moment, Key)>,
}

/// What a Begin takes up as long as it may become a claim; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    used: Arc<Used>,
    /// What it paid for being begun.
    price: Duration,
    claim: bool,
}

/// A place to wait, free again when dropped.
#[derive(Debug)]
pub struct Waiter(Arc<Used>);

impl Used {
    fn lock(&self) -> MutexGuard<'_, Uses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing would be lost with it.
    pub fn is_idle(&self, now: Moment) -> bool {
        let mut uses = self.lock();
        uses.forget_lapsed(now);
        uses.waiters == 0 && uses.reserved == 0 && uses.held.is_empty() && uses.paid_at <= now
    }

    /// A place to wait, of so many.
    pub fn wait(self: &Arc<Self>, most: u32) -> Option<Waiter> {
        let mut uses = self.lock();
        let free = uses.waiters < most;
        if free {
            uses.waiters += 1;
        }
        free.then(|| Waiter(Arc::clone(self)))
    }

    /// Begins something, at so many a second, with a second's worth at once.
    ///
    /// # Errors
    /// How long until that is possible.
    pub fn begin(self: &Arc<Self>, per_second: Option<u32>, now: Moment) -> Result<Reservation, Duration> {
        let price = price(per_second);
        let mut uses = self.lock();
        if let Some(per_second) = per_second {
            let credit = price.saturating_mul(per_second.saturating_sub(1));
            let early = uses.paid_at.since(now + credit);
            if !early.is_zero() {
                return Err(early);
            }
        }
        uses.pay(price, now);
        Ok(Reservation { used: Arc::clone(self), price, claim: false })
    }

    /// Notes that a claim was begun whose Begin had given back what it reserved.
    pub fn begun(&self, per_second: Option<u32>, now: Moment) {
        self.lock().pay(price(per_second), now);
    }

    /// Notes that a claim is held from now on, or still is.
    pub fn held(&self, key: Key, token: FencingToken, lapses: Moment) {
        let mut uses = self.lock();
        uses.remove(&key);
        uses.lapses.insert((lapses, key.clone()));
        uses.held.insert(key, (token, lapses));
    }

    /// Notes that a claim was renewed, if it is one of these.
    pub fn renewed(&self, key: &Key, token: FencingToken, lapses: Moment) {
        if self.lock().held.get(key).is_some_and(|(held, _)| *held == token) {
            self.held(key.clone(), token, lapses);
        }
    }

    /// Notes that a claim has ended, if it is one of these.
    pub fn ended(&self, key: &Key, token: FencingToken) {
        let mut uses = self.lock();
        if uses.held.get(key).is_some_and(|(held, _)| *held == token) {
            uses.remove(key);
        }
    }
}

impl Uses {
    fn pay(&mut self, price: Duration, now: Moment) {
        self.paid_at = self.paid_at.max(now) + price;
    }

    fn remove(&mut self, key: &Key) {
        if let Some((_, lapses)) = self.held.remove(key) {
            self.lapses.remove(&(lapses, key.clone()));
        }
    }

    fn forget_lapsed(&mut self, now: Moment) {
        while self.lapses.first().is_some_and(|(lapses, _)| *lapses <= now) {
            if let Some((_, key)) = self.lapses.pop_first() {
                self.held.remove(&key);
            }
        }
    }
}

impl Reservation {
    /// Reserves a claim too, of so many; whether there was one left.
    pub fn claim(&mut self, most: u32, now: Moment) -> bool {
        let mut uses = self.used.lock();
        uses.forget_lapsed(now);
        let taken = uses.held.len().saturating_add(uses.reserved as usize);
        if taken >= most as usize {
            return false;
        }
        uses.reserved += 1;
        self.claim = true;
        true
    }

    /// It has become a claim: what it paid is spent.
    pub fn spend(mut self) {
        self.price = Duration::ZERO;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut uses = self.used.lock();
        uses.paid_at = uses.paid_at - self.price;
        if self.claim {
            uses.reserved -= 1;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}

/// What one Begin costs: its share of a second.
fn price(per_second: Option<u32>) -> Duration {
    per_second.map_or(Duration::ZERO, |per_second| Duration::from_secs(1) / per_second.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(1_000_000 + ms))
    }

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    const TOKEN: FencingToken = FencingToken(7);

    #[test]
    fn a_seconds_worth_may_begin_at_once_and_then_one_after_the_other() {
        let used = Arc::new(Used::default());
        let begin = |ms| used.begin(Some(4), at(ms)).map(Reservation::spend);
        assert_eq!([0, 0, 0, 0].map(begin), [Ok(()); 4]);
        assert_eq!(begin(0), Err(Duration::from_millis(250)));
        assert_eq!(begin(200), Err(Duration::from_millis(50)));
        assert_eq!(begin(250), Ok(()));
        assert_eq!(begin(250), Err(Duration::from_millis(250)));
        assert!(!used.is_idle(at(1_249)) && used.is_idle(at(1_250)));
        assert_eq!([9_000, 9_000, 9_000, 9_000].map(begin), [Ok(()); 4]);
        assert_eq!(begin(9_000), Err(Duration::from_millis(250)));
    }

    #[test]
    fn what_makes_no_claim_costs_nothing_and_a_late_claim_is_paid_for() {
        let used = Arc::new(Used::default());
        for _ in 0..100 {
            drop(used.begin(Some(1), at(0)).unwrap());
        }
        used.begun(Some(1), at(0));
        used.begun(Some(1), at(0));
        assert_eq!(used.begin(Some(1), at(0)).map(drop), Err(Duration::from_secs(2)));
        assert!(used.begin(Some(1), at(2_000)).is_ok());
        // Another rate holds from the next Begin on.
        assert!(used.begin(None, at(0)).is_ok());
    }

    #[test]
    fn claims_count_until_they_end_or_lapse() {
        let used = Arc::new(Used::default());
        let reserve = |ms| {
            let mut reservation = used.begin(None, at(ms)).unwrap();
            reservation.claim(2, at(ms)).then_some(reservation)
        };
        let (first, second) = (reserve(0).unwrap(), reserve(0).unwrap());
        assert!(reserve(0).is_none(), "two may become claims");
        used.held(key("a"), TOKEN, at(2_000));
        first.spend();
        drop(second);
        drop(reserve(0).unwrap());
        used.held(key("b"), TOKEN, at(3_000));
        assert!(reserve(1_999).is_none());
        used.renewed(&key("a"), TOKEN, at(4_000));
        used.renewed(&key("c"), TOKEN, at(9_000));
        used.renewed(&key("b"), FencingToken(6), at(9_000));
        assert!(reserve(2_999).is_none(), "the first is renewed");
        assert!(reserve(3_000).is_some(), "the second has lapsed");
        used.ended(&key("a"), FencingToken(6));
        used.held(key("d"), TOKEN, at(9_000));
        assert!(reserve(3_000).is_none(), "another claim has ended");
        used.ended(&key("a"), TOKEN);
        assert!(reserve(3_000).is_some());
        // The same key, taken over, counts once.
        used.held(key("d"), FencingToken(8), at(9_500));
        assert!(reserve(9_499).is_some());
        assert!(!used.is_idle(at(9_499)) && used.is_idle(at(9_500)));
    }

    #[test]
    fn waiters_have_so_many_places() {
        let used = Arc::new(Used::default());
        assert!(used.wait(0).is_none());
        let first = used.wait(1);
        assert!(first.is_some() && used.wait(1).is_none() && !used.is_idle(at(0)));
        drop(first);
        assert!(used.is_idle(at(0)));
        assert!(used.wait(1).is_some());
    }
}
