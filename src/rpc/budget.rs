//! What the calls of one connection may take up. Bytes that the server keeps: a request from its first byte until the
//! call is answered, an answer until its last byte has left. Places at work: until the work ends, which goes on when
//! its caller has reset the call. Who sends much and ends nothing, asks for much and reads nothing, or resets all that
//! it sends is refused here, and costs other connections nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failure::{Failure, Limit};
use super::layers::limit::shed;

/// The budget of one connection.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    bytes: usize,
    held: AtomicUsize,
    /// As at the server, calls of holders have places of their own.
    active: Places,
    holders: Places,
}

#[derive(Debug)]
struct Places {
    limit: Limit,
    free: Arc<Semaphore>,
}

/// Some bytes of a budget, free again when dropped.
#[derive(Debug)]
pub struct Hold {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes, so many calls at work, and so many of holders beside; none of it is taken.
    pub fn new(bytes: usize, active: usize, holders: usize) -> Self {
        let active = Places::new(Limit::Connection(active));
        let holders = Places::new(Limit::Streams(holders));
        Self(Arc::new(Account { bytes, held: AtomicUsize::new(0), active, holders }))
    }

    /// A place for a call to be at work.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn place(&self, of_holder: bool) -> Result<OwnedSemaphorePermit, Failure> {
        let Account { active, holders, .. } = &*self.0;
        let Places { limit, free } = if of_holder { holders } else { active };
        Arc::clone(free).try_acquire_owned().map_err(|_| shed(*limit))
    }

    /// Nothing yet.
    pub fn hold_none(&self) -> Hold {
        Hold { budget: self.clone(), bytes: 0 }
    }
}

/// Without a connection there is nothing to bound.
impl Default for Budget {
    fn default() -> Self {
        Self::new(usize::MAX, usize::MAX, usize::MAX)
    }
}

impl Places {
    fn new(limit: Limit) -> Self {
        Self { limit, free: Arc::new(Semaphore::new(limit.size().min(Semaphore::MAX_PERMITS))) }
    }
}

impl Hold {
    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so many bytes from here on. If there is no room for more, it stays as it was.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Failure> {
        let Account { bytes: limit, held, .. } = &*self.budget.0;
        match bytes.checked_sub(self.bytes) {
            None => {
                held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
            Some(more) => {
                let sum = |held: usize| held.checked_add(more).filter(|sum| sum <= limit);
                held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum)
                    .map_err(|_| shed(Limit::Bytes(*limit)))?;
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// All that it holds; it goes on with nothing.
    pub fn take(&mut self) -> Hold {
        let none = self.budget.hold_none();
        std::mem::replace(self, none)
    }

    /// Holds what the other one held, too. Both must be of one budget.
    pub fn join(&mut self, mut other: Hold) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.held.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(budget: &Budget) -> usize {
        budget.0.held.load(Ordering::Relaxed)
    }

    #[test]
    fn what_is_held_is_free_again_once_it_is_dropped() {
        let budget = Budget::new(10, 0, 0);
        let (mut one, mut other) = (budget.hold_none(), budget.hold_none());
        one.resize(6).unwrap();
        assert_eq!(other.resize(5), Err(Failure::Overloaded(Limit::Bytes(10))));
        assert_eq!(other.bytes(), 0);
        other.resize(4).unwrap();
        one.resize(3).unwrap();
        assert_eq!(held(&budget), 7);
        let taken = other.take();
        drop(other);
        one.join(taken);
        assert_eq!((one.bytes(), held(&budget)), (7, 7));
        drop(one);
        assert_eq!(held(&budget), 0);
    }

    #[test]
    fn a_place_is_free_again_once_it_is_dropped_and_holders_have_their_own() {
        let budget = Budget::new(0, 1, 2);
        let place = budget.place(false).unwrap();
        assert_eq!(budget.place(false).unwrap_err(), Failure::Overloaded(Limit::Connection(1)));
        let _of_holders = [(); 2].map(|()| budget.place(true).unwrap());
        assert_eq!(budget.place(true).unwrap_err(), Failure::Overloaded(Limit::Streams(2)));
        drop(place);
        let _again = budget.place(false).unwrap();
    }

    #[test]
    fn no_size_overflows_it() {
        let budget = Budget::default();
        let (mut one, mut other) = (budget.hold_none(), budget.hold_none());
        one.resize(usize::MAX).unwrap();
        other.resize(1).unwrap_err();
    }
}
