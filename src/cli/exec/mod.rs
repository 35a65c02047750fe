//! `onced exec`: runs a command once across hosts.

mod capture;
mod child;
mod replay;
mod signals;

use std::cell::Cell;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use onced_client::clock::Clock;
use onced_client::v1::InDoubt;
use onced_client::{Claim, Code, Completion, ErrorReason, Failure, OnFailure, Once, OnceError, Outcome};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::connect::ConnectArgs;
use super::input::{self, DURATION, Fingerprint, OnLapseArg};
use super::output::{self, say};
use capture::Captured;
use child::{Ended, Job};
use signals::{Caught, Signals};

/// The exit code for failures of onced itself, as `env`, `timeout` and `docker run` have it.
pub const OWN_FAILURE: u8 = 125;

const EXIT_HELP: &str = "\
Exit codes:
  the command's own, here and for every other invocation; 128 + N if signal N ended it
  125  onced failed: no claim, no outcome, or the claim was lost; standard error says which
  126  the command cannot be executed (the key is free again)
  127  the command was not found (the key is free again)
  130, 143  interrupted by Ctrl-C or SIGTERM (the key is free again; in doubt with a hold)
    2  bad usage

The command gets ONCED_KEY, ONCED_NAMESPACE, ONCED_FENCING_TOKEN and ONCED_ATTEMPT. Give the token to what \
the command changes, so that it can refuse a host that was suspended and has been taken over. The command \
has ended when it and all that write to its output have. If onced itself is killed, the command may go on \
while another host takes over.";

#[derive(Debug, Args)]
#[command(after_help = EXIT_HELP)]
pub struct ExecArgs {
    /// The name of the run: once for each key
    #[arg(long)]
    key: String,

    #[command(flatten)]
    connect: ConnectArgs,

    /// How soon another host takes over if this one dies, 2s to 1h [default: 30s]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    ttl: Option<Duration>,

    /// How long to wait while another host runs the command [default: until it is done]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    wait: Option<Duration>,

    /// How long the output is kept for others, at least, 1min to 31d [default: 24h]
    #[arg(long, value_parser = input::duration, value_name = DURATION)]
    retention: Option<Duration>,

    /// What becomes of the key if this host dies or is interrupted
    #[arg(long, value_enum, default_value = "take-over")]
    on_lapse: OnLapseArg,

    /// What becomes of the key if the command exits with another code than 0
    #[arg(long, value_enum, default_value = "store")]
    on_failure: OnFailureArg,

    /// What becomes of output over the limit, 1 MiB unless the server says less
    #[arg(long, value_enum, default_value = "error")]
    on_overflow: OnOverflowArg,

    /// What tells this run from others, in hexadecimal digits [default: a digest of the command line]
    #[arg(long, value_name = "HEX", conflicts_with = "no_fingerprint")]
    fingerprint: Option<Fingerprint>,

    /// Let the same key stand for other command lines, too
    #[arg(long)]
    no_fingerprint: bool,

    /// Who asks; shown to everyone else who wants the key [default: user, host and process id]
    #[arg(long)]
    owner: Option<String>,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnFailureArg {
    /// It ran once, and that is its result: every other invocation gets it
    Store,
    /// The key is free: the next invocation runs the command again
    Release,
    /// The key is in doubt until an operator resolves it
    Hold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOverflowArg {
    /// Every invocation fails with a clear error; the command is not run again
    Error,
    /// The head of the output is stored, marked as such
    Truncate,
}

/// Runs the command, or prints what it printed elsewhere.
pub async fn run(args: ExecArgs) -> u8 {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot listen for signals: {error}")),
    };
    let once = match once(&args) {
        Ok(once) => once,
        Err(error) => return fail(&error.to_string()),
    };
    // Set once the key is ours.
    let token = Cell::new(None);
    let ended = Cell::new(None);
    let (to_child, for_child) = mpsc::unbounded_channel();
    let run = once.run(|claim| {
        token.set(Some(claim.fencing_token()));
        work(&args, claim, for_child, &ended)
    });
    // Signals end the wait for another host. While the command runs they are the command's; after it, the
    // first one does not yet keep its result from being stored.
    let interrupted = async {
        let mut patient = true;
        loop {
            let caught = signals.next().await;
            if token.get().is_some() && to_child.send(caught).is_ok() {
                continue;
            }
            if token.get().is_none() || !patient {
                return caught;
            }
            patient = false;
            say("the command has ended, and onced is told how; once more gives up on that");
        }
    };
    tokio::select! {
        biased;
        result = run => finish(&args, result, ended.take(), token.get()),
        caught = interrupted => caught.exit_code(),
    }
}

fn once(args: &ExecArgs) -> Result<Once, onced_client::Error> {
    let client = args.connect.client()?;
    let mut once = client
        .once(&args.key)
        .namespace(&args.connect.namespace)
        .on_lapse(args.on_lapse.into())
        .fingerprint(fingerprint(args));
    once = match args.wait {
        Some(wait) => once.wait(wait),
        None => once.wait_without_end(),
    };
    if let Some(ttl) = args.ttl {
        once = once.lock_ttl(ttl);
    }
    if let Some(retention) = args.retention {
        once = once.retention(retention);
    }
    if let Some(owner) = &args.owner {
        once = once.owner(owner);
    }
    if std::io::stderr().is_terminal() {
        let clock = Clock::system();
        let since = clock.now();
        once = once.on_wait(move |holder| {
            let time = Duration::from_secs(clock.now().since(since).as_secs());
            let (owner, attempt) = (&holder.owner, holder.attempt);
            say(&format!("waiting for {owner} (attempt {attempt}), {} so far", output::time(time)));
        });
    }
    Ok(once)
}

fn fingerprint(args: &ExecArgs) -> Bytes {
    match &args.fingerprint {
        Some(Fingerprint(bytes)) => bytes.clone(),
        None if args.no_fingerprint => Bytes::new(),
        None => digest(&args.command),
    }
}

/// A digest of a command line. Lengths keep `a b` and `ab` apart.
fn digest(command: &[OsString]) -> Bytes {
    let mut digest = Sha256::new_with_prefix("onced exec 1");
    for argument in command {
        digest.update((argument.len() as u64).to_be_bytes());
        digest.update(argument.as_bytes());
    }
    digest.finalize().to_vec().into()
}

/// The work of the one that got the key.
async fn work(
    args: &ExecArgs,
    claim: Claim,
    signals: mpsc::UnboundedReceiver<Caught>,
    told: &Cell<Option<Ended>>,
) -> Result<Outcome, Failure> {
    let job = Job {
        key: &args.key,
        namespace: &args.connect.namespace,
        command: &args.command,
        truncate: args.on_overflow == OnOverflowArg::Truncate,
    };
    let (ended, captured) = job.run(&claim, signals).await;
    told.set(Some(ended));
    match ended {
        // Nothing ran, so there is nothing to hold.
        Ended::NotStarted(_) => Err(Failure::retry("the command cannot be started")),
        Ended::Interrupted(caught) => Err(stopped(args, &format!("interrupted by {}", caught.name()))),
        Ended::Lost(lost) => Err(stopped(args, &lost.to_string())),
        Ended::Exited(code) if code != 0 && args.on_failure == OnFailureArg::Release => {
            Err(Failure::retry(format!("the command exited with {code}")))
        }
        Ended::Exited(code) if code != 0 && args.on_failure == OnFailureArg::Hold => {
            Err(Failure::in_doubt(format!("the command exited with {code}")))
        }
        Ended::Exited(code) => Ok(outcome(args, code, captured)),
    }
}

/// The command was stopped in the middle.
fn stopped(args: &ExecArgs, why: &str) -> Failure {
    let hold = args.on_lapse == OnLapseArg::Hold || args.on_failure == OnFailureArg::Hold;
    if hold { Failure::in_doubt(why) } else { Failure::retry(why) }
}

fn outcome(args: &ExecArgs, code: u8, captured: Captured) -> Outcome {
    if captured.over && args.on_overflow == OnOverflowArg::Error {
        let (all, limit) = (captured.all_bytes, captured.limit_bytes);
        let message = format!(
            "the command ran and exited with {code}, but it printed {all} bytes and at most about {limit} can be \
             stored; --on-overflow truncate would have stored the head"
        );
        return Outcome::error(Code::OutOfRange, message)
            .with_metadata("exit_code", code.to_string())
            .with_metadata("output_bytes", all.to_string());
    }
    replay::encode(code, captured)
}

/// Tells how it ended, and with which code to exit.
fn finish(
    args: &ExecArgs,
    result: Result<Completion, OnceError>,
    ended: Option<Ended>,
    token: Option<u64>,
) -> u8 {
    let error = match (result, ended) {
        (Ok(completion), Some(Ended::Exited(code))) if completion.outcome.final_error().is_none() => {
            return if completion.ran_here { code } else { replay::print(&completion) };
        }
        (Ok(completion), _) => return replay::print(&completion),
        (Err(error), _) => error,
    };
    match (&error, ended) {
        (OnceError::Failed { error, rule, released }, Some(ended)) => {
            say(&format!("{error}: {}", given_back(args, *rule, released, token)));
            exit_code(ended)
        }
        (OnceError::ClaimLost { lost, .. }, ended) => {
            say(&format!("{lost}; another host may run the command, and this run does not count"));
            ended.filter(|ended| matches!(ended, Ended::Interrupted(_))).map_or(OWN_FAILURE, exit_code)
        }
        (OnceError::NotStored { cause, .. }, Some(Ended::Exited(code))) => fail(&format!(
            "the command ran and exited with {code}, but its result is not known to be stored: {cause}\n\
             Unless it is, the command may run again once the lock has ended."
        )),
        (OnceError::InDoubt(in_doubt), _) => fail(&doubtful(args, in_doubt)),
        (OnceError::InProgress(holder), _) => {
            fail(&format!("{} is still running the command, and the wait is over", holder.owner))
        }
        (OnceError::NotBegun(cause), _) if cause.reason() == Some(ErrorReason::FingerprintMismatch) => fail(
            "the key stands for another command line; take another key for this one, or let the same key stand \
             for any with --no-fingerprint, in every invocation. If the first one was a mistake, onced delete \
             forgets it (onced list has its token)",
        ),
        (OnceError::NotBegun(cause), _) if cause.is_unavailable() => {
            let look = cause.refusal().and_then(output::where_to_look);
            fail(&look.map_or_else(|| error.to_string(), |look| format!("{error}\n{look}")))
        }
        _ => fail(&error.to_string()),
    }
}

fn given_back(
    args: &ExecArgs,
    rule: OnFailure,
    released: &Result<(), onced_client::Error>,
    token: Option<u64>,
) -> String {
    match (released, rule) {
        (Ok(()), OnFailure::Retry) => "the key is free again".to_owned(),
        (Ok(()), OnFailure::InDoubt) => {
            format!("the key is in doubt, and nobody may run the command.\n{}", ways_out(args, token))
        }
        (Err(error), _) => format!("the claim could not be given back and ends by itself ({error})"),
    }
}

fn exit_code(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(code) | Ended::NotStarted(code) => code,
        Ended::Interrupted(caught) => caught.exit_code(),
        Ended::Lost(_) => OWN_FAILURE,
    }
}

fn doubtful(args: &ExecArgs, in_doubt: &InDoubt) -> String {
    format!(
        "in doubt: what {} did is unknown ({}), and nobody may run the command until that is known.\n{}",
        in_doubt.owner,
        in_doubt.reason,
        ways_out(args, Some(in_doubt.fencing_token)),
    )
}

/// The outcome of a command that is known to have ended with `code`, and nothing more.
pub fn result_of(code: u8) -> Outcome {
    replay::encode(code, Captured::default())
}

/// The commands that settle a key in doubt.
fn ways_out(args: &ExecArgs, token: Option<u64>) -> String {
    let token = token.map_or("TOKEN".to_owned(), |token| token.to_string());
    let (key, flags) = (input::quoted(&args.key), args.connect.flags());
    let resolve = format!("onced resolve --key {key} --token {token}{flags}");
    format!(
        "Find out what happened, then let it run again, or tell everyone the result:\n  {resolve} --retry\n  \
         {resolve} --exit-code 0\n  {resolve} --error CODE --message TEXT"
    )
}

fn fail(text: &str) -> u8 {
    say(text);
    OWN_FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_that_differ_have_other_fingerprints() {
        let digest = |command: &[&str]| digest(&command.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(digest(&["a", "b"]), digest(&["a", "b"]));
        assert_ne!(digest(&["a", "b"]), digest(&["ab"]));
        assert_ne!(digest(&["a", "b"]), digest(&["a b"]));
        assert_ne!(digest(&["a"]), digest(&["a", ""]));
    }
}
