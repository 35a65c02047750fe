//! A run, whose work waits to be told how it ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use onced_client::codec::{Binary, Codec, Json, Text};
use onced_client::v1::OnLapse;
use onced_client::{Claim, Client, Code, Failure, OnFailure, Once};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};

use crate::commands::bytes_of;
use crate::told::{completion, failure, loss};
use crate::{Agent, Refused};

/// How a run is started.
#[derive(Deserialize)]
pub struct RunCommand {
    run: String,
    client: String,
    key: String,
    namespace: Option<String>,
    fingerprint: Option<Value>,
    lock_ttl: Option<u64>,
    #[serde(default, deserialize_with = "given")]
    wait: Option<Option<u64>>,
    retention: Option<u64>,
    on_lapse: Option<String>,
    on_failure: Option<String>,
    owner: Option<String>,
    fail_open: Option<u64>,
    codec: Option<String>,
}

/// Tells a wait without end from one that is not spoken of.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// How the work is to end.
pub enum Finish {
    Value(Value),
    Fail(Failure),
    Panic(String),
}

impl Finish {
    pub fn of(command: &Value) -> Result<Self, Refused> {
        let message = command["message"].as_str().unwrap_or_default().to_owned();
        if let Some(value) = command.get("value") {
            return Ok(Self::Value(value.clone()));
        }
        if let Some(text) = command["panic"].as_str() {
            return Ok(Self::Panic(text.to_owned()));
        }
        if let Some(error) = command.get("final") {
            let code = error["code"].as_i64().and_then(|code| i32::try_from(code).ok());
            let code = Code::from_i32(code.ok_or_else(|| Refused::invalid("the code is a number"))?);
            return Ok(Self::Fail(Failure::permanent(code, error["message"].as_str().unwrap_or_default())));
        }
        Ok(Self::Fail(match command["fail"].as_str() {
            Some("plain") => Failure::from(message),
            Some("retry") => Failure::retry(message),
            Some("in_doubt") => Failure::in_doubt(message),
            Some(_) | None => return Err(Refused::invalid("that is no end of work")),
        }))
    }
}

/// A run that was started.
pub struct Running {
    claim: Mutex<Option<Claim>>,
    finish: Mutex<Option<oneshot::Sender<Finish>>>,
    caller: Mutex<Option<Caller>>,
}

/// The task of a run, and the one that tells of its end.
struct Caller {
    task: AbortHandle,
    telling: JoinHandle<()>,
}

impl Running {
    /// The claim of its work.
    pub fn claim(&self) -> Result<Claim, Refused> {
        locked(&self.claim).clone().ok_or_else(|| Refused::invalid("its work does not run"))
    }

    /// Ends its work.
    pub fn finish(&self, finish: Finish) -> Result<(), Refused> {
        let gone = || Refused::invalid("its work does not run any more");
        let sender = locked(&self.finish).take().ok_or_else(gone)?;
        sender.send(finish).map_err(|_| gone())
    }

    /// Drops its future, as callers in Rust give up. Returns when that has happened.
    pub async fn cancel(&self) {
        let caller = locked(&self.caller).take();
        if let Some(Caller { task, telling }) = caller {
            task.abort();
            // It does not panic, and nobody aborts it.
            let _ = telling.await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Values of a codec, as commands and events have them.
trait Spoken: Sized {
    fn heard(value: Value) -> Result<Self, Refused>;
    fn said(self) -> Value;
}

impl Spoken for Value {
    fn heard(value: Value) -> Result<Self, Refused> {
        Ok(value)
    }

    fn said(self) -> Value {
        self
    }
}

impl Spoken for Vec<u8> {
    fn heard(value: Value) -> Result<Self, Refused> {
        bytes_of(&value)
    }

    fn said(self) -> Value {
        Value::String(BASE64.encode(self))
    }
}

impl Spoken for String {
    fn heard(value: Value) -> Result<Self, Refused> {
        value.as_str().map(str::to_owned).ok_or_else(|| Refused::invalid("that is no text"))
    }

    fn said(self) -> Value {
        Value::String(self)
    }
}

/// Starts a run.
pub fn start(agent: &Agent, command: RunCommand) -> Result<Value, Refused> {
    let (client, name) = (agent.client(&command.client)?, command.run.clone());
    let codec = command.codec.clone();
    let once = once(&client, command)?;
    let (finish, finished) = oneshot::channel();
    let (claim, caller) = (Mutex::new(None), Mutex::new(None));
    let running = Arc::new(Running { claim, finish: Mutex::new(Some(finish)), caller });
    agent.add_run(&name, Arc::clone(&running));
    let stage = Stage { agent: agent.clone(), name, running: Arc::clone(&running), finished };
    let started = match codec.as_deref().unwrap_or("json") {
        "json" => stage.play::<_, Value>(once, Json),
        "bytes" => stage.play::<_, Vec<u8>>(once, Binary),
        "text" => stage.play::<_, String>(once, Text),
        unknown => return Err(Refused::invalid(format!("{unknown:?} is no codec"))),
    };
    *locked(&running.caller) = Some(started);
    Ok(json!({}))
}

fn once(client: &Client, command: RunCommand) -> Result<Once, Refused> {
    let mut once = client.once(command.key);
    if let Some(namespace) = command.namespace {
        once = once.namespace(namespace);
    }
    if let Some(fingerprint) = command.fingerprint {
        once = once.fingerprint(bytes_of(&fingerprint)?);
    }
    if let Some(ttl) = command.lock_ttl {
        once = once.lock_ttl(Duration::from_millis(ttl));
    }
    once = match command.wait {
        Some(Some(wait)) => once.wait(Duration::from_millis(wait)),
        Some(None) => once.wait_without_end(),
        None => once,
    };
    if let Some(retention) = command.retention {
        once = once.retention(Duration::from_millis(retention));
    }
    once = match command.on_lapse.as_deref() {
        Some("take_over") => once.on_lapse(OnLapse::TakeOver),
        Some("hold") => once.on_lapse(OnLapse::Hold),
        Some(unknown) => return Err(Refused::invalid(format!("{unknown:?} is nothing to do on a lapse"))),
        None => once,
    };
    once = match command.on_failure.as_deref() {
        Some("retry") => once.on_failure(OnFailure::Retry),
        Some("in_doubt") => once.on_failure(OnFailure::InDoubt),
        Some(unknown) => return Err(Refused::invalid(format!("{unknown:?} is no rule for failures"))),
        None => once,
    };
    if let Some(owner) = command.owner {
        once = once.owner(owner);
    }
    if let Some(after) = command.fail_open {
        once = once.fail_open(Duration::from_millis(after));
    }
    Ok(once)
}

/// Where a run is played.
struct Stage {
    agent: Agent,
    name: String,
    running: Arc<Running>,
    finished: oneshot::Receiver<Finish>,
}

impl Stage {
    /// Plays a run on a task of its caller's own, which a panic ends, too, and tells of its end.
    fn play<C, T>(self, once: Once, codec: C) -> Caller
    where
        C: Codec<T> + Send + Sync + 'static,
        T: Spoken + Send + 'static,
    {
        let (agent, name) = (self.agent.clone(), self.name.clone());
        let running = tokio::spawn(once.run_as(codec, move |claim| self.work(claim)));
        let task = running.abort_handle();
        let telling = tokio::spawn(async move {
            let mut ended = match running.await {
                Ok(Ok(done)) => completion(done, T::said),
                Ok(Err(error)) => failure(&error),
                // Whoever gives up is told nothing.
                Err(error) if error.is_cancelled() => return,
                Err(panic) => json!({"result": "failed", "message": panic.to_string()}),
            };
            (ended["event"], ended["run"]) = ("ended".into(), name.into());
            agent.says(ended);
        });
        Caller { task, telling }
    }

    /// The work: it ends when it is told to, and does not stop by itself when its claim is lost.
    async fn work<T: Spoken>(self, claim: Claim) -> Result<T, Failure> {
        *locked(&self.running.claim) = Some(claim.clone());
        self.agent.says(json!({
            "event": "started", "run": self.name, "token": claim.fencing_token().to_string(),
            "attempt": claim.attempt().to_string(), "protected": claim.protected(),
            "checkpoint": claim.checkpoint().map(|data| BASE64.encode(data)),
        }));
        let (agent, name) = (self.agent, self.name);
        let watching = tokio::spawn(async move {
            if let Some(lost) = claim.lost().await {
                agent.says(json!({"event": "lost", "run": name, "why": loss(lost)}));
            }
        });
        let finish = self.finished.await;
        watching.abort();
        match finish {
            Ok(Finish::Value(value)) => T::heard(value).map_err(|refused| Failure::from(refused.message)),
            Ok(Finish::Fail(failure)) => Err(failure),
            Ok(Finish::Panic(text)) => panic!("{text}"),
            Err(_) => Err(Failure::from("nobody is there to end it")),
        }
    }
}
