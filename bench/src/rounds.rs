//! Many callers at once, in rounds: in each, every way is measured once.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::load::{self, Cost, Measured, Plan};
use crate::options::Options;
use crate::progress::Progress;
use crate::stats::{figure, median};
use crate::ways::Kind;

/// What was measured of a way, round by round.
pub struct Row {
    pub way: Kind,
    pub rounds: Vec<Measured>,
}

pub async fn measure(
    options: &Options,
    rounds: usize,
    plan: &Plan,
    ways: &[Kind],
) -> anyhow::Result<Vec<Row>> {
    let progress = Progress::new();
    let mut rows: Vec<Row> = ways.iter().map(|&way| Row { way, rounds: Vec::new() }).collect();
    for round in 1..=rounds {
        // Whatever changes with time changes alike for all of them.
        fastrand::shuffle(&mut rows);
        for row in &mut rows {
            let name = row.way.name();
            let line = format!("{} callers, round {round} of {rounds}: {name}", plan.callers);
            progress.show(&line);
            // Each starts with nothing stored, and nothing else running.
            let open = row.way.open_alone(options).await.with_context(|| name.clone())?;
            let tell = |rate| progress.show(&format!("{line}, {} pairs/s", figure(rate)));
            let plan = Plan { warm_up: plan.warm_up.max(row.way.settles_in()), ..*plan };
            row.rounds.push(load::measure(&plan, &open, tell).await.with_context(|| name.clone())?);
        }
    }
    rows.sort_by_key(|row| ways.iter().position(|&way| way == row.way));
    Ok(rows)
}

impl Row {
    /// Pairs per second.
    pub fn rates(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| round.pairs_per_second).collect()
    }

    /// How many times as fast as another way, round by round.
    pub fn ratios(&self, baseline: &Row) -> Vec<f64> {
        self.rates().iter().zip(baseline.rates()).map(|(rate, base)| rate / base).collect()
    }

    /// The latency that this share of pairs does not exceed, in milliseconds: the median of the rounds.
    pub fn quantile(&self, share: f64) -> f64 {
        self.median_of(|round| round.latencies.quantile(share))
    }

    /// What each process used: the medians of the rounds.
    pub fn costs(&self) -> BTreeMap<&'static str, Cost> {
        let names = self.rounds.iter().flat_map(|round| round.costs.keys());
        let of =
            |name, value: fn(&Cost) -> f64| self.median_of(|round| round.costs.get(name).map_or(0.0, value));
        names
            .map(|&name| {
                let (cpu, memory) = (of(name, |cost| cost.cpu), of(name, |cost| cost.memory));
                (name, Cost { cpu, memory })
            })
            .collect()
    }

    /// Bytes written to the disk per pair: the median of the rounds.
    pub fn written(&self) -> Option<f64> {
        let rounds: Option<Vec<f64>> = self.rounds.iter().map(|round| round.written).collect();
        rounds.map(|rounds| median(&rounds))
    }

    fn median_of(&self, value: impl Fn(&Measured) -> f64) -> f64 {
        median(&self.rounds.iter().map(value).collect::<Vec<_>>())
    }
}
