//! What callers do with one key: begin, complete, renew, release, lookup, watch.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use onced_client::v1::{
    BeginRequest, Checkpoint, CompleteRequest, Disposition, LookupRequest, ReleaseRequest, RenewRequest,
};
use onced_client::{Error, lasting_owner, wire};
use serde_json::json;
use uuid::Uuid;

use super::connect::ClientArgs;
use super::exit::Exit;
use super::input::{self, DURATION, FingerprintArgs, OnLapseArg, OutcomeArgs};
use super::output::{self, Problem, Report};

#[derive(Debug, Args)]
pub struct BeginArgs {
    /// The name of the operation, such as an order id
    #[arg(long)]
    key: String,

    /// The id of this attempt, a UUID: repeating a begin with it gets the same claim [default: a new one]
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,

    /// Who asks; shown to everyone else who wants the key, and the same when a begin is repeated [default: user
    /// and host]
    #[arg(long)]
    owner: Option<String>,

    #[command(flatten)]
    fingerprint: FingerprintArgs,

    /// How long the claim lives without a renew, 2s to 1h [default: 30s]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    ttl: Option<Duration>,

    /// How long to wait while somebody else holds the key [default: do not wait]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    wait: Option<Duration>,

    /// How long the outcome is kept, at least, 1min to 31d [default: 24h]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    retention: Option<Duration>,

    /// What becomes of the claim if it is not renewed [default: take-over]
    #[arg(long, value_enum)]
    on_lapse: Option<OnLapseArg>,

    /// If the key is completed, write the response to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    client: ClientArgs,
}

pub async fn begin(args: BeginArgs) -> Exit {
    let json = args.client.json;
    output::finish(json, try_begin(args).await)
}

async fn try_begin(args: BeginArgs) -> Result<Report, Problem> {
    let connect = &args.client.connect;
    let request_id = args.request_id.unwrap_or_else(Uuid::new_v4).to_string();
    let request = BeginRequest {
        namespace: connect.namespace.clone(),
        key: args.key.clone(),
        request_id: request_id.clone(),
        fingerprint: args.fingerprint.read().map_err(Problem::Usage)?,
        owner: args.owner.unwrap_or_else(lasting_owner),
        lock_ttl: args.ttl.map(wire),
        wait: args.wait.map(wire),
        retention: args.retention.map(wire),
        on_lapse: args.on_lapse.map_or(0, |on_lapse| onced_client::v1::OnLapse::from(on_lapse).into()),
    };
    let flags = connect.flags();
    let begun =
        connect.client()?.begin(request).await.map_err(|error| with_request_id(error, &request_id))?;
    let again = format!("--key {}{flags}", input::quoted(&args.key));
    Ok(output::begun(&begun, &request_id, &again).writing(args.output))
}

/// Whoever does not know what became of a begin needs its request id to repeat it.
fn with_request_id(error: Error, request_id: &str) -> Problem {
    match error {
        error if error.is_unavailable() => Problem::BeginUnknown(error, request_id.to_owned()),
        error => error.into(),
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("result").required(true))]
pub struct CompleteArgs {
    #[command(flatten)]
    claim: ClaimArgs,

    #[command(flatten)]
    outcome: OutcomeArgs,

    /// How long the outcome is kept, at least, 1min to 31d [default: as begin asked]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    retention: Option<Duration>,

    #[command(flatten)]
    client: ClientArgs,
}

/// The claim that a command acts on.
#[derive(Debug, Args)]
pub struct ClaimArgs {
    /// The key
    #[arg(long)]
    key: String,

    /// The fencing token that begin printed
    #[arg(long)]
    token: u64,
}

pub async fn complete(args: CompleteArgs) -> Exit {
    let json = args.client.json;
    output::finish(json, try_complete(args).await)
}

async fn try_complete(args: CompleteArgs) -> Result<Report, Problem> {
    let request = CompleteRequest {
        namespace: args.client.connect.namespace.clone(),
        key: args.claim.key,
        fencing_token: args.claim.token,
        outcome: args.outcome.read().map_err(Problem::Usage)?,
        retention: args.retention.map(wire),
    };
    let answer = args.client.connect.client()?.complete(request).await?;
    Ok(output::stored(&answer))
}

#[derive(Debug, Args)]
pub struct RenewArgs {
    #[command(flatten)]
    claim: ClaimArgs,

    /// Save this file, at most 64 KiB, for whoever takes over; - is standard input
    #[arg(long, value_name = "FILE", requires = "sequence")]
    checkpoint: Option<PathBuf>,

    /// The place of the checkpoint in the work, from 1: only a higher one than the last is saved
    #[arg(long, requires = "checkpoint", value_name = "NUMBER")]
    sequence: Option<u64>,

    #[command(flatten)]
    client: ClientArgs,
}

pub async fn renew(args: RenewArgs) -> Exit {
    let json = args.client.json;
    output::finish(json, try_renew(args).await)
}

async fn try_renew(args: RenewArgs) -> Result<Report, Problem> {
    let checkpoint = match (args.checkpoint, args.sequence) {
        (Some(file), Some(sequence)) => {
            Some(Checkpoint { sequence, data: input::read(&file).map_err(Problem::Usage)?.into() })
        }
        _ => None,
    };
    let request = RenewRequest {
        namespace: args.client.connect.namespace.clone(),
        key: args.claim.key,
        fencing_token: args.claim.token,
        checkpoint,
    };
    let answer = args.client.connect.client()?.renew(request).await?;
    let left = onced_client::duration(answer.lock_expires_in.as_ref());
    Ok(Report::new(
        json!({ "lock_expires_in_ms": output::millis(left) }),
        format!("renewed: the lock lives for {} more", output::time(left)),
        Vec::new(),
        Exit::Done,
    ))
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DispositionArg {
    /// Nothing happened, or it is safe to do again: the next one to ask gets the key
    Retry,
    /// What happened is unknown: nobody runs the key until it is resolved
    InDoubt,
}

#[derive(Debug, Args)]
pub struct ReleaseArgs {
    #[command(flatten)]
    claim: ClaimArgs,

    /// What the claim leaves behind
    #[arg(long, value_enum, default_value = "retry")]
    disposition: DispositionArg,

    /// Why, for people
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,

    #[command(flatten)]
    client: ClientArgs,
}

pub async fn release(args: ReleaseArgs) -> Exit {
    let json = args.client.json;
    output::finish(json, try_release(args).await)
}

async fn try_release(args: ReleaseArgs) -> Result<Report, Problem> {
    let (disposition, state, text) = match args.disposition {
        DispositionArg::Retry => {
            (Disposition::Retry, "available", "released: the next one to ask gets the key")
        }
        DispositionArg::InDoubt => {
            (Disposition::InDoubt, "in_doubt", "in doubt: nobody runs the key until it is resolved")
        }
    };
    let request = ReleaseRequest {
        namespace: args.client.connect.namespace.clone(),
        key: args.claim.key,
        fencing_token: args.claim.token,
        disposition: disposition.into(),
        reason: args.reason,
    };
    args.client.connect.client()?.release(request).await?;
    Ok(Report::new(json!({ "state": state }), text, Vec::new(), Exit::Done))
}

#[derive(Debug, Args)]
pub struct LookupArgs {
    /// The key
    #[arg(long)]
    key: String,

    /// How long to wait for the outcome [default: do not wait]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    wait: Option<Duration>,

    /// If the key is completed, write the response to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    client: ClientArgs,
}

pub async fn lookup(args: LookupArgs) -> Exit {
    let json = args.client.json;
    output::finish(json, try_lookup(args).await)
}

async fn try_lookup(args: LookupArgs) -> Result<Report, Problem> {
    let namespace = args.client.connect.namespace.clone();
    let request = LookupRequest { namespace, key: args.key, wait: args.wait.map(wire) };
    let record = args.client.connect.client()?.lookup(request).await?;
    Ok(output::record(&record).writing(args.output))
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The key
    #[arg(long)]
    key: String,

    #[command(flatten)]
    client: ClientArgs,
}

pub async fn watch(args: WatchArgs) -> Exit {
    let json = args.client.json;
    match try_watch(args).await {
        Ok(exit) => exit,
        Err(problem) => output::finish(json, Err(problem)),
    }
}

async fn try_watch(args: WatchArgs) -> Result<Exit, Problem> {
    let mut watch = args.client.connect.client()?.watch(&args.client.connect.namespace, &args.key);
    let mut last = None;
    while let Some(record) = watch.next().await? {
        // A stream that was opened again starts with a state that was printed before.
        if last.as_ref() != Some(&record) {
            let exit = output::finish(args.client.json, Ok(output::record(&record).on_one_line()));
            // Nobody reads any more: nothing is left to do.
            if exit == Exit::Failed {
                return Ok(exit);
            }
        }
        last = Some(record);
    }
    Ok(Exit::Done)
}
