//! What operators do: list, resolve, delete.

use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use onced_client::v1::{
    DeleteRequest, ListRequest, RecordState, RecordSummary, ResolveRequest, ResolveRetry, resolve_request,
};
use onced_client::{duration, wire};
use serde_json::{Value, json};

use super::connect::ClientArgs;
use super::exec;
use super::exit::Exit;
use super::input::{self, DURATION, OutcomeArgs};
use super::output::{self, Problem, Report, at, at_text, millis, plain, time};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateArg {
    /// Somebody holds the key
    InProgress,
    /// Released or lapsed: the next one to ask gets the key
    Available,
    /// Nobody may run it until it is resolved
    InDoubt,
    /// It has its outcome
    Completed,
}

impl From<StateArg> for RecordState {
    fn from(arg: StateArg) -> Self {
        match arg {
            StateArg::InProgress => RecordState::InProgress,
            StateArg::Available => RecordState::Available,
            StateArg::InDoubt => RecordState::InDoubt,
            StateArg::Completed => RecordState::Completed,
        }
    }
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only records in this state
    #[arg(long, value_enum)]
    state: Option<StateArg>,

    /// Stop after so many records [default: all]
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,

    /// How many records to ask for at a time, up to 1000
    #[arg(long, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    page_size: u32,

    #[command(flatten)]
    client: ClientArgs,
}

/// Prints page by page, so that a large namespace neither waits nor fills the memory. With `--json` each
/// record is a line of its own.
pub async fn list(args: ListArgs) -> Exit {
    let json = args.client.json;
    match try_list(args).await {
        Ok(exit) => exit,
        Err(problem) => output::finish(json, Err(problem)),
    }
}

async fn try_list(args: ListArgs) -> Result<Exit, Problem> {
    let client = args.client.connect.client()?;
    let mut request = ListRequest {
        namespace: args.client.connect.namespace.clone(),
        state: args.state.map_or(RecordState::Unspecified, RecordState::from).into(),
        page_size: args.page_size,
        page_token: String::new(),
    };
    let (mut left, mut listed) = (args.limit.unwrap_or(usize::MAX), 0_usize);
    while left > 0 {
        let page = client.list(request.clone()).await?;
        for summary in page.records.iter().take(left) {
            let report = Report::new(summary_json(summary), summary_line(summary), Vec::new(), Exit::Done);
            if output::finish(args.client.json, Ok(report)) != Exit::Done {
                return Ok(Exit::Failed);
            }
            listed += 1;
        }
        left = left.saturating_sub(page.records.len());
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if listed == 0 && !args.client.json {
        output::say(&format!("no such records in namespace {}", args.client.connect.namespace));
    }
    Ok(Exit::Done)
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("result").required(true))]
pub struct ResolveArgs {
    /// The key
    #[arg(long)]
    key: String,

    /// The fencing token of the record in doubt, as list and lookup print it
    #[arg(long)]
    token: u64,

    /// The work did not happen, or is safe to do again: the next one to ask gets the key
    #[arg(long, group = "result")]
    retry: bool,

    /// The command of an exec ended like this, without output: every other invocation exits so
    #[arg(long, value_name = "CODE", group = "result")]
    exit_code: Option<u8>,

    #[command(flatten)]
    outcome: OutcomeArgs,

    /// How long the outcome is kept, at least, 1min to 31d [default: as begin asked]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    retention: Option<Duration>,

    #[command(flatten)]
    client: ClientArgs,
}

pub async fn resolve(args: ResolveArgs) -> Exit {
    let json = args.client.json;
    output::finish(json, try_resolve(args).await)
}

async fn try_resolve(args: ResolveArgs) -> Result<Report, Problem> {
    let ended = args.exit_code.map(exec::result_of);
    let resolution = match args.outcome.read().map_err(Problem::Usage)?.or(ended) {
        Some(outcome) => resolve_request::Resolution::Outcome(outcome),
        None => resolve_request::Resolution::Retry(ResolveRetry {}),
    };
    let request = ResolveRequest {
        namespace: args.client.connect.namespace.clone(),
        key: args.key,
        fencing_token: args.token,
        resolution: Some(resolution),
        retention: args.retention.map(wire),
    };
    let summary = args.client.connect.client()?.resolve(request).await?;
    let facts = vec![
        ("key", plain(&summary.key)),
        ("state", state_name(&summary).to_owned()),
        ("token", summary.fencing_token.to_string()),
    ];
    Ok(Report::new(summary_json(&summary), "resolved", facts, Exit::Done))
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The key
    #[arg(long)]
    key: String,

    /// The fencing token of the record to remove, as list and lookup print it
    #[arg(long)]
    token: u64,

    /// Remove it even while a claim is held: its holder goes on, and another one may start
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    client: ClientArgs,
}

pub async fn delete(args: DeleteArgs) -> Exit {
    let json = args.client.json;
    output::finish(json, try_delete(args).await)
}

async fn try_delete(args: DeleteArgs) -> Result<Report, Problem> {
    let request = DeleteRequest {
        namespace: args.client.connect.namespace.clone(),
        key: args.key,
        fencing_token: args.token,
        force: args.force,
    };
    args.client.connect.client()?.delete(request).await?;
    Ok(Report::new(json!({ "state": "absent" }), "deleted: the key is new again", Vec::new(), Exit::Done))
}

fn state_name(summary: &RecordSummary) -> &'static str {
    match summary.state() {
        RecordState::Unspecified => "unknown",
        RecordState::InProgress => "in_progress",
        RecordState::Available => "available",
        RecordState::InDoubt => "in_doubt",
        RecordState::Completed => "completed",
    }
}

fn summary_json(summary: &RecordSummary) -> Value {
    json!({
        "key": summary.key,
        "state": state_name(summary),
        "owner": summary.owner,
        "attempt": summary.attempt,
        "fencing_token": summary.fencing_token,
        "since": at(summary.since),
        "lock_expires_in_ms": summary.lock_expires_in.as_ref().map(|left| millis(duration(Some(left)))),
        "reason": summary.reason,
        "expires_at": at(summary.expires_at),
    })
}

/// One line: state, key, and what tells records apart, in columns where they fit.
fn summary_line(summary: &RecordSummary) -> String {
    let mut line = format!(
        "{:<11}  {:<24}  token {:<8}  attempt {}  {}  {}",
        state_name(summary),
        plain(&summary.key).replace('\n', "\\n"),
        summary.fencing_token,
        summary.attempt,
        at_text(summary.since),
        plain(&summary.owner).replace('\n', "\\n"),
    );
    if let Some(left) = &summary.lock_expires_in {
        line += &format!("  lapses in about {}", time(duration(Some(left))));
    }
    if !summary.reason.is_empty() {
        line += &format!("  ({})", plain(&summary.reason).replace('\n', "\\n"));
    }
    line
}
