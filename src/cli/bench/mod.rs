//! `onced bench`: load for a running server, each of whose answers is checked.

mod calls;
mod drive;
mod report;
mod sample;
mod scenario;
mod tally;
mod zipf;

use std::time::Duration;

use clap::{Args, ValueEnum};
use onced_client::{Code, Error, ErrorReason, Refusal};
use tokio::signal::unix::{SignalKind, signal};

use super::connect::ClientArgs;
use super::exit::Exit;
use super::input::{self, DURATION};
use super::output::{self, Problem, Report, say, time, where_to_look};
use calls::{Calls, Mode};
use drive::Progress;
use scenario::{LOCK_MARGIN, Plan};

use crate::record::limits::{LOCK_TTL_MAX, OUTCOME_MAX_BYTES};

/// The most callers of one load, and connections of it: a process has files for about as many.
const CALLERS_MAX: usize = 100_000;
const CONNECTIONS_MAX: usize = 1_000;
/// The most callers of one key.
const DUPLICATES_MAX: usize = 10_000;
/// The most keys that are completed before the load.
const KEYS_MAX: usize = 10_000_000;
/// The largest payload: encoded, an outcome takes a byte that says what it is, and three for its length.
const PAYLOAD_MAX: usize = OUTCOME_MAX_BYTES - 4;
/// The shortest time to measure: what ends late counts too, and would be most of it in a shorter one.
const DURATION_MIN: Duration = Duration::from_millis(100);

const AFTER_HELP: &str = "\
Closed loop (without --rate): each caller begins the next one when its last one has ended. Open loop (--rate): they \
begin at fixed times, whatever the server does, and what must wait for a free caller counts as slow from the time it \
should have begun at. What is still due at the end is told as not sent, and counts as having taken until then.

The records are real, in --namespace, under keys that no other run uses; they go away by themselves. Failed calls are \
not sent again. After the load up to 1000 of its keys, spread over it, are begun once more, to see that they hold their \
outcomes; so are up to 1000 of those of which calls failed. Ctrl-C ends the load early and tells what was measured; a \
second one does not wait for the last answers.

Exit codes:
   0  nothing but what was promised was seen (calls may have failed: they are told, and so is what is unknown)
   1  a key was executed twice or never, or an outcome was not what was stored; or nothing was measured
  others as of onced --help, if there could be no load";

/// What the callers do, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Begin and Complete of a key of its own
    Unique,
    /// Begin of a new key by several callers at once: one completes it, the others wait for its outcome
    Duplicates,
    /// Begin of a key that was completed before the load
    Replays,
    /// Of each some, by --shares
    Mix,
}

/// Put a load on a running server, check each answer, and tell how long they took.
///
/// Each key is to be executed once, and each duplicate to be told the outcome that was stored, byte for byte: the exit
/// code is 1 if that is not so, whatever the figures say.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
#[command(mut_arg("timeout", |arg| arg.help("How long each call may take, waiting for an outcome included; locks live 5s longer than twice that")))]
pub struct BenchArgs {
    /// What the callers do
    #[arg(value_enum, default_value = "unique")]
    scenario: Scenario,

    /// How calls are sent
    #[arg(long, value_enum, default_value = "unary")]
    mode: Mode,

    /// Callers, each of which does one thing at a time: the most that is under way at once
    #[arg(long, default_value = "64", value_name = "COUNT", value_parser = count(1, CALLERS_MAX))]
    callers: usize,

    /// Connections, spread over the servers
    #[arg(long, default_value = "2", value_name = "COUNT", value_parser = count(1, CONNECTIONS_MAX))]
    connections: usize,

    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = long_enough, value_name = DURATION)]
    duration: Duration,

    /// How long to load before that
    #[arg(long, default_value = "1s", value_parser = input::duration, value_name = DURATION)]
    warm_up: Duration,

    /// Open loop: how many keys are begun, or replayed, per second
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,

    /// How large an outcome is
    #[arg(long, default_value = "256", value_name = "BYTES", value_parser = count(0, PAYLOAD_MAX))]
    payload: usize,

    /// How long the work takes, between Begin and Complete
    #[arg(long, default_value = "0s", value_parser = input::duration, value_name = DURATION)]
    work: Duration,

    /// duplicates, mix: how many begin one key at once, for each of the callers
    #[arg(long, default_value = "10", value_name = "COUNT", value_parser = count(1, DUPLICATES_MAX))]
    duplicates: usize,

    /// duplicates, mix: whether each key is begun by so many, or by up to so many
    #[arg(long, value_enum, default_value = "fixed")]
    spread: Spread,

    /// replays, mix: how many keys there are to replay
    #[arg(long, default_value = "1000", value_name = "COUNT", value_parser = count(1, KEYS_MAX))]
    keys: usize,

    /// How uneven it is which key is replayed, and how many begin one: the exponent of Zipf's law, 0 for even
    #[arg(long, default_value = "1", value_name = "EXPONENT", value_parser = exponent)]
    zipf: f64,

    /// mix: of a hundred, or any other sum, how many are of which scenario
    #[arg(long, default_value = "70,5,25", value_name = "UNIQUE,DUPLICATES,REPLAYS", value_parser = shares)]
    shares: Shares,

    /// What its keys begin with
    #[arg(long, default_value = "bench")]
    prefix: String,

    /// How long records are kept beyond what the load needs; most servers take no less than 1min
    #[arg(long, default_value = "2min", value_parser = input::duration, value_name = DURATION)]
    retention: Duration,

    #[command(flatten)]
    client: ClientArgs,
}

/// How many callers a key has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Spread {
    /// Each as many
    Fixed,
    /// By --zipf, most of them few
    Zipf,
}

/// Of a mix; one of them is not zero.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    unique: u32,
    duplicates: u32,
    replays: u32,
}

fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(format!("write a whole number from {least} to {most}")),
    }
}

fn long_enough(text: &str) -> Result<Duration, String> {
    let duration = input::duration(text)?;
    if duration < DURATION_MIN {
        return Err(format!("write {} or more", time(DURATION_MIN)));
    }
    Ok(duration)
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("write a number from 0.001 to 1000000".to_owned()),
    }
}

fn exponent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(exponent) if (0.0..=10.0).contains(&exponent) => Ok(exponent),
        _ => Err("write a number from 0 to 10".to_owned()),
    }
}

fn shares(text: &str) -> Result<Shares, String> {
    let shares: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
    match shares.as_deref() {
        Ok(&[unique, duplicates, replays]) if [unique, duplicates, replays] != [0, 0, 0] => {
            Ok(Shares { unique, duplicates, replays })
        }
        _ => Err("write three whole numbers with commas between, such as 70,5,25".to_owned()),
    }
}

/// Runs the load, and tells what came of it.
pub async fn run(args: BenchArgs) -> Exit {
    output::finish(args.client.json, try_run(&args).await)
}

async fn try_run(args: &BenchArgs) -> Result<Report, Problem> {
    let connect = &args.client.connect;
    let longest = LOCK_TTL_MAX.saturating_sub(LOCK_MARGIN) / 2;
    if connect.timeout > longest {
        let (most, sent) = (time(longest), time(connect.timeout));
        let margin = time(LOCK_MARGIN);
        let text = format!(
            "--timeout must be {most} at most, as locks live {margin} longer than twice that: not {sent}"
        );
        return Err(Problem::Usage(text));
    }
    let client = connect.client()?;
    let calls = Calls::connect(&client, args.connections, args.mode, connect.timeout).await;
    let mut plan = Plan::new(args, calls.map_err(no_load)?);
    let (progress, began) = (Progress::new(), plan.clock.now());
    // One key in any case: what nobody may do here, or nobody can, is told before anything else.
    plan.prepare(1, &progress).await.map_err(no_load)?;
    let keys = plan.keys();
    let (start, namespace, kept) = (keys.start.clone(), &keys.namespace, time(keys.longest_retention));
    say(&format!("writes records to namespace {namespace}, keys {start}…, kept for {kept}"));
    plan.prepare(plan.to_replay(args), &progress).await.map_err(no_load)?;
    if plan.clock.now().since(began) > args.retention {
        let text = "it took longer to complete the keys to be replayed than they are kept: ask for fewer --keys, or a \
                    longer --retention";
        return Err(Problem::Usage(text.to_owned()));
    }
    // Until here it ends the process, and there was nothing to tell.
    let unheard = |error| Problem::Usage(format!("cannot listen for signals: {error}"));
    let mut interrupts = signal(SignalKind::interrupt()).map_err(unheard)?;
    let loaded = drive::load(plan, args, &mut interrupts, &progress).await;
    let loaded = loaded.map_err(|error| Problem::Usage(error.to_string()))?;
    Ok(report::of(args, &start, &loaded))
}

/// Why there can be no load, and which flag to change.
fn no_load(refusal: Refusal) -> Problem {
    let advice = match (refusal.reason, refusal.code) {
        (Some(ErrorReason::TtlOutOfRange), _) => {
            Some("locks live somewhat longer than twice --timeout: shorten it")
        }
        (Some(ErrorReason::RetentionOutOfRange), _) => Some(
            "records are kept for the load, its last calls, and --retention: change that, or shorten --duration",
        ),
        (Some(ErrorReason::OutcomeTooLarge), _) => Some("choose a smaller --payload"),
        (_, Code::Unavailable | Code::DeadlineExceeded) => where_to_look(&refusal),
        _ => None,
    };
    Problem::Call(Error::Refused(Box::new(refusal)), advice.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use onced_client::Outcome;

    use super::*;

    #[test]
    fn the_largest_payload_is_the_largest_outcome() {
        let outcome = Outcome::response(vec![0; PAYLOAD_MAX]);
        assert_eq!(outcome.encoded_bytes(), OUTCOME_MAX_BYTES as u64);
    }
}
