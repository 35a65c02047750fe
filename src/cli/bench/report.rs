//! What is told of a load.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::super::exit::Exit;
use super::super::output::{Report, plain};
use super::BenchArgs;
use super::drive::Loaded;
use super::tally::{Checked, Kind, Times};

/// The shares of which the slowest one's time is told, in percent.
const QUANTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// What came of a load, and how the command ends.
pub fn of(args: &BenchArgs, start: &str, loaded: &Loaded) -> Report {
    let exit = if loaded.totals.checked.holds() && is_measured(loaded) { Exit::Done } else { Exit::Failed };
    Report::new(in_json(args, start, loaded), table(args, loaded), Vec::new(), exit)
}

/// Whether anything that the callers came for was due while it was measured, and done.
fn is_measured(loaded: &Loaded) -> bool {
    let wanted = |kind| matches!(kind, Kind::Pair | Kind::Duplicate | Kind::Replay);
    loaded.totals.times.iter().any(|(kind, times)| wanted(*kind) && times.done > 0)
}

fn table(args: &BenchArgs, loaded: &Loaded) -> String {
    let Loaded { totals, elapsed, unsent, unread, abandoned, .. } = loaded;
    let mut text = format!("{}, for {:.1} s\n\n", what(args), elapsed.as_secs_f64());
    let _ = write!(text, "{:<10} {:>10} {:>10}", "ms", "count", "a second");
    for quantile in QUANTILES {
        let _ = write!(text, " {:>9}", format!("{quantile} %"));
    }
    let _ = writeln!(text, " {:>9}", "slowest");
    for (kind, Times { micros, done, .. }) in timed(loaded) {
        let _ = write!(text, "{:<10} {done:>10} {:>10.0}", kind.name(), a_second(*done, *elapsed));
        for quantile in QUANTILES {
            let _ = write!(text, " {:>9.2}", millis(micros.value_at_percentile(quantile)));
        }
        let _ = writeln!(text, " {:>9.2}", millis(micros.max()));
    }
    text.push('\n');
    for (reason, failures) in &totals.failed {
        let _ = writeln!(text, "failed: {} with {reason}, first: {}", failures.count, plain(&failures.first));
    }
    if *unsent > 0 {
        let _ = writeln!(
            text,
            "NOT SENT: {unsent} that were due, since all callers were busy (more: --callers); the times above, and not \
             the counts, hold how long they had waited at the end"
        );
    }
    if *abandoned > 0 {
        let _ = writeln!(text, "not waited for: the last calls of {abandoned} callers");
    }
    let Checked { once, again, never, unknown, told, mismatched, .. } = totals.checked;
    let _ = writeln!(
        text,
        "keys: {once} executed once, {again} again, {never} never, {unknown} unknown as calls failed"
    );
    let _ = writeln!(text, "outcomes told to duplicates: {told}, {mismatched} of them not what was stored");
    if *unread > 0 {
        let _ = writeln!(text, "asked for once more after the load, and not answered: {unread} keys");
    }
    text + &verdict(args, loaded)
}

/// Whether the server kept its promises, as far as it was seen.
fn verdict(args: &BenchArgs, loaded: &Loaded) -> String {
    let Loaded { totals, elapsed, done, unsent, unread, .. } = loaded;
    if !totals.checked.holds() {
        return "A PROMISE WAS BROKEN: each key is to be executed once, and its outcome told to all others"
            .to_owned();
    }
    match (is_measured(loaded), args.rate) {
        (true, _) => match totals.checked.unknown + unread {
            0 => "all as promised".to_owned(),
            unknown => format!("nothing seen broken; {unknown} unknown"),
        },
        (false, Some(rate)) if *unsent > 0 && *done > 0 => format!(
            "NOTHING WAS MEASURED: {rate} a second were due, and about {:.0} a second were done, all of them overdue from \
             the warm-up: choose a --rate below what is done, or more --callers",
            a_second(*done, *elapsed)
        ),
        (false, _) => "NOTHING WAS MEASURED".to_owned(),
    }
}

/// Of what there are times.
fn timed(loaded: &Loaded) -> impl Iterator<Item = &(Kind, Times)> {
    loaded.totals.times.iter().filter(|(_, times)| !times.micros.is_empty())
}

/// What the load was.
fn what(args: &BenchArgs) -> String {
    let calls = format!("{}, {}", name(args.scenario), name(args.mode));
    let callers = format!("{} callers on {} connections", args.callers, args.connections);
    match args.rate {
        None => format!("{calls}, closed loop: {callers}"),
        Some(rate) => format!("{calls}, open loop: {rate} a second, {callers}"),
    }
}

fn in_json(args: &BenchArgs, start: &str, loaded: &Loaded) -> Value {
    let Loaded { totals, elapsed, done, unsent, unread, abandoned } = loaded;
    let measured =
        timed(loaded).map(|(kind, times)| (kind.name().to_owned(), times_in_json(times, *elapsed)));
    let failed = totals.failed.iter().map(|(reason, failures)| {
        (reason.clone(), json!({ "count": failures.count, "first": failures.first }))
    });
    let Checked { once, again, never, unknown, told, mismatched, asked_again } = totals.checked;
    json!({
        "scenario": name(args.scenario),
        "mode": name(args.mode),
        "callers": args.callers,
        "connections": args.connections,
        "rate": args.rate,
        "payload_bytes": args.payload,
        "namespace": args.client.connect.namespace,
        "keys_begin_with": start,
        "seconds": elapsed.as_secs_f64(),
        "keys_done": done,
        "measured": measured.collect::<Map<_, _>>(),
        "failed": failed.collect::<Map<_, _>>(),
        "not_sent": unsent,
        "not_waited_for": abandoned,
        "keys": { "executed_once": once, "executed_again": again, "never_executed": never, "unknown": unknown },
        "outcomes": { "told": told, "mismatched": mismatched },
        "asked_again": { "answered": asked_again, "not_answered": unread },
        "as_promised": totals.checked.holds(),
    })
}

fn times_in_json(Times { micros, done, .. }: &Times, elapsed: Duration) -> Value {
    let mut value = json!({
        "count": done,
        "per_second": a_second(*done, elapsed),
        "mean_ms": micros.mean() / 1e3,
        "max_ms": millis(micros.max()),
    });
    for quantile in QUANTILES {
        value[format!("p{quantile}_ms")] = millis(micros.value_at_percentile(quantile)).into();
    }
    value
}

fn a_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// How a value is written on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}
