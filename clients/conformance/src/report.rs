//! What people see of a run.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::play::Failure;
use crate::scenario::{Scenario, Store};

#[derive(Default)]
pub struct Report(Mutex<State>);

#[derive(Default)]
struct State {
    planned: usize,
    passed: usize,
    failed: Vec<String>,
    /// What is being played.
    under_way: Vec<String>,
}

impl Report {
    /// How many there are.
    pub fn plan(&self, scenarios: usize) {
        self.state().planned = scenarios;
    }

    pub fn begins(&self, scenario: &Scenario, store: Store) {
        let mut state = self.state();
        state.under_way.push(title(scenario, store));
        state.show();
    }

    pub fn ends(&self, scenario: &Scenario, store: Store, played: Result<(), Box<Failure>>, took: Duration) {
        let mut state = self.state();
        let title = title(scenario, store);
        state.under_way.retain(|other| *other != title);
        match played {
            Ok(()) => {
                state.passed += 1;
                state.line(&format!("ok      {title} ({:.1} s)", took.as_secs_f64()));
            }
            Err(failure) => {
                state.line(&account(&title, scenario, &failure));
                state.failed.push(title);
            }
        }
        state.show();
    }

    /// The end of it: whether all passed.
    pub fn close(&self) -> bool {
        let state = self.state();
        let (passed, planned) = (state.passed, state.planned);
        match &state.failed[..] {
            [] => state.line(&format!("{passed} of {planned} passed")),
            failed => state.line(&format!("{passed} of {planned} passed; failed: {}", failed.join(", "))),
        }
        passed == planned && planned > 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A line that stays.
    fn line(&self, text: &str) {
        let clear = if std::io::stdout().is_terminal() { "\r\x1b[K" } else { "" };
        println!("{clear}{text}");
    }

    /// How far it has come, where somebody watches.
    fn show(&self) {
        if std::io::stdout().is_terminal() {
            let done = self.passed + self.failed.len();
            let failed = if self.failed.is_empty() {
                String::new()
            } else {
                format!(", {} failed", self.failed.len())
            };
            print!("\r\x1b[K{done} of {}{failed}: {}", self.planned, self.under_way.join(", "));
            // Who does not see it misses nothing.
            let _ = std::io::stdout().flush();
        }
    }
}

fn title(scenario: &Scenario, store: Store) -> String {
    format!("{} on {store}", scenario.name)
}

fn account(title: &str, scenario: &Scenario, failure: &Failure) -> String {
    let mut text = format!("FAILED  {title}\n  {}\n", scenario.shows);
    match &failure.step {
        Some((number, step)) => text.push_str(&format!("  at step {number}: {step}\n")),
        None => text.push_str("  before the first step or after the last one\n"),
    }
    text.push_str(&format!("  {:#}\n", failure.why));
    for (who, said) in &failure.accounts {
        text.push_str(&format!("  {who}:\n"));
        for line in said.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}
