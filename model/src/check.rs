//! Runs a model through all of its states, and says what came of it.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use onced::clock::Clock;
use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// A model that can tell its steps.
pub trait Tell: Model {
    /// A step in words.
    fn tell(&self, state: &Self::State, action: &Self::Action) -> String;
}

/// What came of a run.
#[derive(Debug)]
pub struct Figures {
    /// States that differ.
    pub states: usize,
    /// How many steps, at most, it took to reach one: its shortest way, or little more.
    pub depth: usize,
    pub time: Duration,
    /// The promises that were checked.
    pub promises: usize,
    /// The promise that was broken, and the way there.
    pub broken: Option<(&'static str, Vec<String>)>,
    /// What never happened, though it should.
    pub missing: Vec<&'static str>,
}

/// Looks at every state there is; or, once a promise is broken, for the shortest way there. If a promise is `sought`,
/// the others may be broken. `progress` hears of states and depth now and then.
pub fn check<M>(
    model: M,
    sought: Option<&'static str>,
    threads: usize,
    progress: impl Fn(usize, usize),
) -> Figures
where
    M: Tell + Clone + Send + Sync + 'static,
    M::State: Clone + PartialEq + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq,
{
    let clock = Clock::system();
    let began = clock.now();
    let mut figures = search(&model, sought, threads, None, &progress);
    let mut last = figures.broken.clone();
    while let Some((_, path)) = last {
        last = search(&model, sought, threads, Some(path.len()), &progress).broken;
        figures.broken = last.clone().or(figures.broken);
    }
    figures.time = clock.now().since(began);
    figures
}

/// Looks at the states that are less than `steps` from the start. Ends soon after the first broken promise.
fn search<M>(
    model: &M,
    sought: Option<&'static str>,
    threads: usize,
    steps: Option<usize>,
    progress: &impl Fn(usize, usize),
) -> Figures
where
    M: Tell + Clone + Send + Sync + 'static,
    M::State: Clone + PartialEq + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq,
{
    let end = sought.map_or(HasDiscoveries::AnyFailures, |one| HasDiscoveries::AnyOf(BTreeSet::from([one])));
    let search = model.clone().checker().threads(threads).finish_when(end);
    let mut checker = match steps {
        // The state at the start counts, and those at the bound are not looked at any more.
        Some(steps) => search.target_max_depth(steps + 1),
        None => search,
    }
    .spawn_bfs();
    let threads = checker.handles();
    while threads.iter().any(|thread| !thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(5));
        progress(checker.unique_state_count(), checker.max_depth());
    }
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
    let mut found = checker.discoveries();
    let promises = promises(model);
    let events = names(model, Expectation::Sometimes);
    let missing = events.into_iter().filter(|name| !found.contains_key(name)).collect();
    let broken = promises
        .iter()
        .filter(|name| sought.is_none_or(|one| one == **name))
        .filter_map(|&name| Some((name, found.remove(name)?.into_vec())))
        .min_by_key(|(_, path)| path.len())
        .map(|(name, path)| {
            let step = |(state, action): &(_, Option<_>)| Some(model.tell(state, action.as_ref()?));
            (name, path.iter().filter_map(step).collect())
        });
    Figures {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time: Duration::ZERO,
        promises: promises.len(),
        broken,
        missing,
    }
}

/// What a model promises.
pub fn promises<M: Model>(model: &M) -> Vec<&'static str> {
    names(model, Expectation::Always)
}

fn names<M: Model>(model: &M, kind: Expectation) -> Vec<&'static str> {
    let properties = model.properties().into_iter();
    properties.filter(|property| property.expectation == kind).map(|property| property.name).collect()
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9} states, depth {:>2}, {:>6.2} s", self.states, self.depth, self.time.as_secs_f64())?;
        match &self.broken {
            None => write!(f, ", {} promises kept", self.promises)?,
            Some((name, path)) => write!(f, ", broken after {} steps: {name}", path.len())?,
        }
        for name in &self.missing {
            write!(f, ", never seen: {name}")?;
        }
        Ok(())
    }
}
