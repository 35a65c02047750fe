//! How commands print: for people, or JSON for scripts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use onced_client::v1::{self, CompleteResponse, Completed};
use onced_client::{Begun, Code, Error, ErrorReason, Outcome, Record, Refusal, duration};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use super::exit::Exit;
use crate::rpc::code_name;

/// The longest response that is shown among other facts, in bytes.
const SHOWN_MAX_BYTES: usize = 4 << 10;

/// What to look at when no server answers.
const IS_IT_THERE: &str = "is onced running there? --server or ONCED_SERVER names another";
/// When one took the call, and was never heard of again.
const IS_IT_STUCK: &str =
    "it took the call, and it or the store behind it hangs: the log of onced says which";
/// When its store is away.
const IS_ITS_STORE_WELL: &str = "onced runs, and its store does not answer it: look at the store (with etcd: does it \
                                 run, and has it a leader?); the log of onced says what failed";

/// What a command has to say.
#[derive(Debug)]
pub struct Report {
    json: Value,
    title: String,
    facts: Vec<(&'static str, String)>,
    exit: Exit,
    one_line: bool,
    response: Option<Bytes>,
    output: Option<PathBuf>,
}

impl Report {
    /// A title, with a fact on each line below it.
    pub fn new(
        json: Value,
        title: impl Into<String>,
        facts: Vec<(&'static str, String)>,
        exit: Exit,
    ) -> Self {
        Self { json, title: title.into(), facts, exit, one_line: false, response: None, output: None }
    }

    /// Writes the response, if there is one, to `output` as well.
    pub fn writing(mut self, output: Option<PathBuf>) -> Self {
        self.output = output;
        self
    }

    /// All of it on one line, for a stream of reports.
    pub fn on_one_line(mut self) -> Self {
        self.one_line = true;
        self
    }

    fn text(&self) -> String {
        let facts = self.facts.iter().filter(|(_, value)| !value.is_empty());
        if !self.one_line {
            let line = |text, (name, value): &(_, String)| format!("{text}\n  {name:<11} {value}");
            return facts.fold(self.title.clone(), line);
        }
        let facts: Vec<_> =
            facts.map(|(name, value)| format!("{name} {}", value.replace('\n', "\\n"))).collect();
        if facts.is_empty() { self.title.clone() } else { format!("{}: {}", self.title, facts.join(", ")) }
    }
}

/// Why a command did nothing.
#[derive(Debug)]
pub enum Problem {
    /// An argument makes no sense.
    Usage(String),
    /// A call failed, and what to do about it.
    Call(Error, Option<String>),
    /// What became of a Begin with this request id is unknown.
    BeginUnknown(Error, String),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let advice = match &error {
            Error::Unavailable { last, .. } => where_to_look(last).map(str::to_owned),
            Error::Refused(refusal) if refusal.reason == Some(ErrorReason::ClaimLost) => {
                what_is_there(&refusal.metadata)
            }
            _ => None,
        };
        Problem::Call(error, advice)
    }
}

/// Where to look when a call ran out of time, by what its last attempt ended with.
pub fn where_to_look(last: &Refusal) -> Option<&'static str> {
    match (last.reason, last.code) {
        (Some(ErrorReason::StoreUnavailable), _) => Some(IS_ITS_STORE_WELL),
        (Some(ErrorReason::DeadlineExceeded), _) | (None, Code::DeadlineExceeded) => Some(IS_IT_STUCK),
        // It says enough by itself.
        (Some(_), _) => None,
        (None, _) => Some(IS_IT_THERE),
    }
}

/// What a server that refused a token said of the record as it is now.
fn what_is_there(metadata: &BTreeMap<String, String>) -> Option<String> {
    let (state, token) = (metadata.get("state")?, metadata.get("fencing_token")?);
    Some(format!("the key is now: {}, token {token}", state.replace('_', " ")))
}

/// Prints what a command came to, and says how to exit.
pub fn finish(as_json: bool, result: Result<Report, Problem>) -> Exit {
    let report = match result {
        Ok(report) => report,
        Err(problem) => return complain(as_json, &problem),
    };
    let mut exit = report.exit;
    let mut response_took_stdout = false;
    if let (Some(path), Some(response)) = (&report.output, &report.response) {
        response_took_stdout = path == Path::new("-");
        let written = if response_took_stdout { put(response) } else { std::fs::write(path, response) };
        if let Err(error) = written {
            say(&format!("cannot write {}: {error}", path.display()));
            exit = Exit::Failed;
        }
    }
    let text = if as_json { report.json.to_string() } else { report.text() };
    if response_took_stdout {
        let _ = writeln!(io::stderr(), "{text}");
    } else if put(format!("{text}\n").as_bytes()).is_err() {
        exit = Exit::Failed;
    }
    exit
}

fn complain(as_json: bool, problem: &Problem) -> Exit {
    let (exit, message, advice, json) = match problem {
        Problem::Usage(message) => {
            (Exit::Usage, message.clone(), None, json!({ "error": { "message": message } }))
        }
        Problem::Call(error, advice) => {
            let json = json!({ "error": error_json(error) });
            (Exit::of_error(error), error.to_string(), advice.clone(), json)
        }
        Problem::BeginUnknown(error, request_id) => {
            let look =
                error.refusal().and_then(where_to_look).map(|look| format!("{look}; ")).unwrap_or_default();
            let advice = format!("{look}repeat it with --request-id {request_id}");
            let json = json!({ "error": error_json(error), "request_id": request_id });
            (Exit::of_error(error), error.to_string(), Some(advice), json)
        }
    };
    if as_json {
        let _ = put(format!("{json}\n").as_bytes());
    } else {
        say(&message);
        if let Some(advice) = advice {
            say(&advice);
        }
    }
    exit
}

fn error_json(error: &Error) -> Value {
    let mut facts = Map::new();
    if let Some(refusal) = error.refusal() {
        facts.insert("code".to_owned(), code_name(refusal.code).into());
        facts.insert("reason".to_owned(), reason_name(refusal).into());
        facts.insert("metadata".to_owned(), json!(refusal.metadata));
    }
    facts.insert("message".to_owned(), error.to_string().into());
    Value::Object(facts)
}

/// The name of the reason that a server gave, if one did.
pub fn reason_name(refusal: &Refusal) -> Option<&'static str> {
    refusal.reason.map(|reason| reason.as_str_name().trim_start_matches("ERROR_REASON_"))
}

/// Tells people something, on standard error. A reader that is gone is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "onced: {}", plain(text));
}

/// Prints text that is the whole of what a command came to.
pub fn print(text: &str) -> Exit {
    if put(text.as_bytes()).is_ok() { Exit::Done } else { Exit::Failed }
}

fn put(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// What a Begin was answered. `again` are the flags that name the key in a further command.
pub fn begun(begun: &Begun, request_id: &str, again: &str) -> Report {
    let exit = Exit::of_begun(begun);
    let mut report = match begun {
        Begun::Claim(claim) => claimed(claim, request_id, again, exit),
        Begun::Completed(it) => completed(it, exit),
        Begun::InProgress(it) => in_progress(it, exit),
        Begun::InDoubt(it) => in_doubt(it, exit),
    };
    report.json["request_id"] = request_id.into();
    report
}

/// What a Lookup was answered.
pub fn record(record: &Record) -> Report {
    let exit = Exit::of_record(record);
    match record {
        Record::Completed(it) => completed(it, exit),
        Record::InProgress(it) => in_progress(it, exit),
        Record::InDoubt(it) => in_doubt(it, exit),
        Record::Available(it) => Report::new(
            json!({ "state": "available", "owner": it.owner, "attempt": it.attempt, "since": at(it.since) }),
            "available: released or lapsed; the next one to ask gets the key",
            vec![
                ("last owner", plain(&it.owner)),
                ("attempts", it.attempt.to_string()),
                ("since", at_text(it.since)),
            ],
            exit,
        ),
    }
}

fn claimed(claim: &v1::Claim, request_id: &str, again: &str, exit: Exit) -> Report {
    let ttl = duration(claim.lock_ttl.as_ref());
    let checkpoint = claim.checkpoint.as_ref();
    let json = json!({
        "state": "claim",
        "fencing_token": claim.fencing_token,
        "attempt": claim.attempt,
        "lock_ttl_ms": millis(ttl),
        "waited_ms": millis(duration(claim.waited.as_ref())),
        "checkpoint": checkpoint.map(|it| json!({ "sequence": it.sequence, "data": bytes_json(&it.data) })),
        "resumed": claim.resumed,
        "max_outcome_bytes": claim.max_outcome_bytes,
    });
    let token = claim.fencing_token;
    let title =
        if claim.resumed { "claimed again: the key is still yours" } else { "claimed: the key is yours" };
    let mut facts = vec![
        ("token", token.to_string()),
        ("attempt", claim.attempt.to_string()),
        ("lock TTL", time(ttl)),
        ("request id", request_id.to_owned()),
    ];
    if let Some(checkpoint) = checkpoint {
        facts.push(("checkpoint", format!("{} {}", checkpoint.sequence, shown(&checkpoint.data))));
    }
    facts.push(("then", format!("onced complete {again} --token {token} --response TEXT")));
    facts.push(("or", format!("onced renew | release {again} --token {token}")));
    Report::new(json, title, facts, exit)
}

fn completed(it: &Completed, exit: Exit) -> Report {
    let mut json = completed_json(it);
    let mut facts = Vec::new();
    if let Some(outcome) = &it.outcome {
        json["outcome"] = outcome_json(outcome);
        facts.extend(outcome_facts(outcome));
    }
    facts.extend(completed_facts(it));
    let response = it.outcome.as_ref().and_then(Outcome::response_bytes).cloned();
    Report { response, ..Report::new(json, "completed", facts, exit) }
}

/// What a Complete was answered.
pub fn stored(answer: &CompleteResponse) -> Report {
    let completed = answer.completed.clone().unwrap_or_default();
    let mut json = completed_json(&completed);
    json["repeated"] = answer.repeated.into();
    let title = if answer.repeated { "completed before, with the same outcome" } else { "completed" };
    Report::new(json, title, completed_facts(&completed), Exit::Done)
}

fn completed_json(it: &Completed) -> Value {
    json!({
        "state": "completed",
        "owner": it.owner,
        "attempt": it.attempt,
        "fencing_token": it.fencing_token,
        "completed_at": at(it.completed_at),
        "expires_at": at(it.expires_at),
    })
}

fn completed_facts(it: &Completed) -> Vec<(&'static str, String)> {
    vec![
        ("owner", plain(&it.owner)),
        ("attempt", it.attempt.to_string()),
        ("token", it.fencing_token.to_string()),
        ("completed", at_text(it.completed_at)),
        ("kept until", at_text(it.expires_at)),
    ]
}

fn in_progress(it: &v1::InProgress, exit: Exit) -> Report {
    let (left, again) = (duration(it.lock_expires_in.as_ref()), duration(it.retry_after.as_ref()));
    Report::new(
        json!({
            "state": "in_progress",
            "owner": it.owner,
            "attempt": it.attempt,
            "began_at": at(it.began_at),
            "lock_expires_in_ms": millis(left),
            "retry_after_ms": millis(again),
        }),
        "in progress: somebody else holds the key",
        vec![
            ("owner", plain(&it.owner)),
            ("attempt", it.attempt.to_string()),
            ("began", at_text(it.began_at)),
            ("lapses in", format!("about {} unless renewed", time(left))),
        ],
        exit,
    )
}

fn in_doubt(it: &v1::InDoubt, exit: Exit) -> Report {
    Report::new(
        json!({
            "state": "in_doubt",
            "owner": it.owner,
            "attempt": it.attempt,
            "fencing_token": it.fencing_token,
            "since": at(it.since),
            "reason": it.reason,
        }),
        "in doubt: nobody may run the key until it is resolved (onced resolve)",
        vec![
            ("last owner", plain(&it.owner)),
            ("attempt", it.attempt.to_string()),
            ("token", it.fencing_token.to_string()),
            ("since", at_text(it.since)),
            ("reason", plain(&it.reason)),
        ],
        exit,
    )
}

fn outcome_json(outcome: &Outcome) -> Value {
    let mut json = json!({ "content_type": outcome.content_type, "metadata": outcome.metadata });
    if let Some(response) = outcome.response_bytes() {
        json["response"] = bytes_json(response);
    }
    if let Some(error) = outcome.final_error() {
        json["error"] = json!({ "code": code_name(Code::from(error.code)), "message": error.message });
    }
    json
}

fn outcome_facts(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(response) = outcome.response_bytes() {
        facts.push(("response", shown(response)));
    }
    if let Some(error) = outcome.final_error() {
        facts.push(("error", format!("{}: {}", code_name(Code::from(error.code)), plain(&error.message))));
    }
    if !outcome.content_type.is_empty() {
        facts.push(("type", plain(&outcome.content_type)));
    }
    facts
        .extend(outcome.metadata.iter().map(|(name, value)| ("metadata", plain(&format!("{name}={value}")))));
    facts
}

/// Bytes in JSON: always in base64, and as text if they are text.
fn bytes_json(bytes: &[u8]) -> Value {
    let mut json = json!({ "base64": STANDARD.encode(bytes) });
    if let Ok(text) = std::str::from_utf8(bytes) {
        json["utf8"] = text.into();
    }
    json
}

fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok("") => "(empty)".to_owned(),
        Ok(text) if bytes.len() <= SHOWN_MAX_BYTES => plain(text.trim_end_matches('\n')),
        _ => format!("({} bytes; --output FILE writes them)", bytes.len()),
    }
}

/// `text` without what a terminal would act on: it may come from anybody.
pub fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, c| {
        if c.is_control() && c != '\n' {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
        plain
    })
}

/// A time as people read it.
pub fn time(time: Duration) -> String {
    let whole = if time.as_secs() == 0 {
        Duration::from_millis(millis(time))
    } else {
        Duration::from_secs(time.as_secs())
    };
    humantime::format_duration(whole).to_string()
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A point in time in JSON; null if there is none.
pub fn at(time: Option<Timestamp>) -> Option<String> {
    let time = SystemTime::try_from(time?).ok()?;
    // Years that cannot be written are not shown.
    let year_10000 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
    let known = time >= SystemTime::UNIX_EPOCH && time < year_10000;
    known.then(|| humantime::format_rfc3339_millis(time).to_string())
}

/// A point in time for people; empty if there is none.
pub fn at_text(time: Option<Timestamp>) -> String {
    at(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_printed_can_command_a_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\r\n"), "a\\u{1b}[31mb\\r\n");
    }

    #[test]
    fn bytes_are_base64_and_text_if_they_are_text() {
        assert_eq!(bytes_json(b"hi"), json!({ "base64": "aGk=", "utf8": "hi" }));
        assert_eq!(bytes_json(&[0xff]), json!({ "base64": "/w==" }));
        assert_eq!(shown(&[0xff]), "(1 bytes; --output FILE writes them)");
    }

    #[test]
    fn times_that_cannot_be_written_are_left_out() {
        assert_eq!(at(Some(Timestamp { seconds: 0, nanos: 0 })).as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(at(Some(Timestamp { seconds: i64::MAX, nanos: 0 })), None);
        assert_eq!(at(Some(Timestamp { seconds: -1, nanos: 0 })), None);
        assert_eq!(at(None), None);
    }
}
