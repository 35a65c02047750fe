//! What is told of a load.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::super::exit::Exit;
use super::super::output::{Report, plain};
use super::BenchArgs;
use super::drive::Loaded;
use super::tally::Checked;

/// The shares of which the slowest one's time is told, in percent.
const QUANTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// What came of a load, and how the command ends.
pub fn of(args: &BenchArgs, start: &str, loaded: &Loaded) -> Report {
    let exit = if loaded.totals.checked.holds() && is_measured(loaded) { Exit::Done } else { Exit::Failed };
    Report::new(in_json(args, start, loaded), table(args, loaded), Vec::new(), exit)
}

/// Whether anything was done while it was measured.
fn is_measured(loaded: &Loaded) -> bool {
    loaded.totals.times.iter().any(|(_, times)| !times.is_empty())
}

fn table(args: &BenchArgs, loaded: &Loaded) -> String {
    let Loaded { totals, elapsed, unsent, abandoned } = loaded;
    let mut text = format!("{}, for {:.1} s\n\n", what(args), elapsed.as_secs_f64());
    let _ = write!(text, "{:<10} {:>10} {:>10}", "ms", "count", "a second");
    for quantile in QUANTILES {
        let _ = write!(text, " {:>9}", format!("{quantile} %"));
    }
    let _ = writeln!(text, " {:>9}", "slowest");
    for (kind, times) in totals.times.iter().filter(|(_, times)| !times.is_empty()) {
        let _ = write!(text, "{:<10} {:>10} {:>10.0}", kind.name(), times.len(), a_second(times, *elapsed));
        for quantile in QUANTILES {
            let _ = write!(text, " {:>9.2}", millis(times.value_at_percentile(quantile)));
        }
        let _ = writeln!(text, " {:>9.2}", millis(times.max()));
    }
    text.push('\n');
    for (reason, failures) in &totals.failed {
        let _ = writeln!(text, "failed: {} with {reason}, first: {}", failures.count, plain(&failures.first));
    }
    if *unsent > 0 {
        let _ = writeln!(
            text,
            "NOT SENT: {unsent} that were due, since all callers were busy; they are missing above (more: --callers)"
        );
    }
    if *abandoned > 0 {
        let _ = writeln!(text, "not waited for: the last calls of {abandoned} callers");
    }
    let Checked { once, again, never, unknown, told, mismatched } = totals.checked;
    let _ = writeln!(
        text,
        "keys: {once} executed once, {again} again, {never} never, {unknown} unknown as calls failed"
    );
    let _ = writeln!(text, "outcomes told to duplicates: {told}, {mismatched} of them not what was stored");
    text += match (totals.checked.holds(), is_measured(loaded)) {
        (false, _) => {
            "A PROMISE WAS BROKEN: each key is to be executed once, and its outcome told to all others"
        }
        (true, false) => "NOTHING WAS MEASURED",
        (true, true) => "all as promised",
    };
    text
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
    let Loaded { totals, elapsed, unsent, abandoned } = loaded;
    let measured = totals.times.iter().filter(|(_, times)| !times.is_empty());
    let measured: Map<String, Value> =
        measured.map(|(kind, times)| (kind.name().to_owned(), times_in_json(times, *elapsed))).collect();
    let failed = totals.failed.iter().map(|(reason, failures)| {
        (reason.clone(), json!({ "count": failures.count, "first": failures.first }))
    });
    let Checked { once, again, never, unknown, told, mismatched } = totals.checked;
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
        "measured": measured,
        "failed": failed.collect::<Map<_, _>>(),
        "not_sent": unsent,
        "not_waited_for": abandoned,
        "keys": { "executed_once": once, "executed_again": again, "never_executed": never, "unknown": unknown },
        "outcomes": { "told": told, "mismatched": mismatched },
        "as_promised": totals.checked.holds(),
    })
}

fn times_in_json(times: &Histogram<u64>, elapsed: Duration) -> Value {
    let mut value = json!({
        "count": times.len(),
        "per_second": a_second(times, elapsed),
        "mean_ms": times.mean() / 1e3,
        "max_ms": millis(times.max()),
    });
    for quantile in QUANTILES {
        value[format!("p{quantile}_ms")] = millis(times.value_at_percentile(quantile)).into();
    }
    value
}

fn a_second(times: &Histogram<u64>, elapsed: Duration) -> f64 {
    times.len() as f64 / elapsed.as_secs_f64()
}

/// How a value is written on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}
