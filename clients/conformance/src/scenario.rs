//! A scenario, as its file has it. Whatever a file holds that is not here is a mistake in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// What is played, and what it is to show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// That of its file.
    #[serde(skip)]
    pub name: String,
    /// A sentence that says what every library does.
    pub shows: String,
    #[serde(default = "every_store")]
    pub stores: Vec<Store>,
    /// By name. One that is called `s`, unless told otherwise. On etcd they share their records; on the embedded store
    /// each has its own.
    #[serde(default = "one_server")]
    pub servers: BTreeMap<String, Setup>,
    /// By name, with the server that it stands in front of.
    #[serde(default)]
    pub proxies: BTreeMap<String, String>,
    pub steps: Vec<Step>,
    /// The steps as they are written.
    #[serde(skip)]
    pub texts: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    Embedded,
    Etcd,
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Store::Embedded => "embedded",
            Store::Etcd => "etcd",
        })
    }
}

/// How a server is set up.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Setup {
    /// Flags of `onced serve`.
    pub args: Vec<String>,
    /// The certificate that it shows: `server`, or `stranger`, which is of another name.
    pub tls: Option<String>,
    /// Whether callers have to show one.
    pub asks_for_certificates: bool,
    /// The tokens that it takes, of those called `one` and `two`.
    pub tokens: Vec<String>,
}

/// The steps as they are taken: those of a `repeat` one time after the other, each with its number for `${i}`.
fn unrolled(steps: Vec<Value>) -> Result<Vec<Value>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Repeat {
        #[serde(rename = "do")]
        _name: String,
        times: u32,
        steps: Vec<Value>,
    }
    let mut taken = Vec::new();
    for step in steps {
        if step["do"] != "repeat" {
            taken.push(step);
            continue;
        }
        let repeat: Repeat = serde_json::from_value(step).context("a repeat")?;
        let round = serde_json::to_string(&repeat.steps)?;
        for i in 0..repeat.times {
            let round: Vec<Value> = serde_json::from_str(&round.replace("${i}", &i.to_string()))?;
            taken.extend(round);
        }
    }
    Ok(taken)
}

/// Tells a field that is `null` from one that is not there.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// One step. Strings may hold `${NAME}`: what was saved by that name, or one of the driver's own (README.md).
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    // Commands of an agent. They are answered before the next step, but `close`, whose answer `answer` waits for.
    Connect(Connect),
    Run(Box<Run>),
    Finish {
        run: String,
        #[serde(default, deserialize_with = "given")]
        value: Option<Value>,
        fail: Option<String>,
        message: Option<String>,
        #[serde(rename = "final")]
        final_error: Option<Value>,
        panic: Option<String>,
        #[serde(default)]
        refused: Option<Value>,
    },
    Checkpoint {
        run: String,
        data: Value,
        refused: Option<Value>,
    },
    Claim {
        run: String,
        expect: Value,
        /// Whether it comes to that, sooner or later.
        #[serde(default)]
        until: bool,
    },
    Cancel {
        run: String,
    },
    Counts {
        client: String,
        expect: Value,
    },
    Close {
        client: String,
        patience: u64,
        #[serde(rename = "as")]
        named: String,
    },
    /// Waits for the answer of a command that was given a name.
    Answer {
        of: String,
    },
    /// Holds what the agent makes of each of the vectors against them.
    Fingerprints {
        #[serde(default = "agent_a")]
        agent: String,
    },
    /// kill -9.
    Kill {
        agent: String,
    },

    // Events of a run. A step waits for its event; any other one of that run in its place is a mistake.
    Started {
        run: String,
        #[serde(default)]
        expect: Value,
    },
    Lost {
        run: String,
        why: String,
    },
    Ended {
        run: String,
        expect: Value,
    },
    /// Whether and how this run ends is its language's own affair.
    Leave {
        run: String,
    },

    // What the driver does at a server by itself, as a caller of the bare API, or an operator.
    Record {
        #[serde(default)]
        at: At,
        expect: Value,
        /// Whether it comes to that, sooner or later.
        #[serde(default)]
        until: bool,
    },
    Begin(Begin),
    Complete {
        #[serde(default)]
        at: At,
        token: String,
        outcome: Value,
    },
    Renew {
        #[serde(default)]
        at: At,
        token: String,
        sequence: u64,
        data: String,
    },
    Release {
        #[serde(default)]
        at: At,
        token: String,
        rule: Rule,
    },
    Resolve {
        #[serde(default)]
        at: At,
        token: String,
        /// None: it may be tried again.
        outcome: Option<Value>,
    },
    Delete {
        #[serde(default)]
        at: At,
        token: String,
    },

    // Servers and proxies.
    /// Waits until so many calls wait at a server.
    Waiting {
        #[serde(default = "server_s")]
        server: String,
        calls: u64,
    },
    /// Waits until so many sessions, or more, are open at a server.
    Sessions {
        #[serde(default = "server_s")]
        server: String,
        at_least: u64,
    },
    Stop {
        #[serde(default = "server_s")]
        server: String,
        by: By,
    },
    /// At the address that it had, and set up as it was unless told otherwise.
    Start {
        #[serde(default = "server_s")]
        server: String,
        setup: Option<Setup>,
    },
    /// What befalls the calls of a method from now on, ahead of what was said before.
    Plan(Plan),
    /// Nothing befalls calls any more, answers that are held go their way, and calls are counted anew.
    Clear {
        #[serde(default = "proxy_p")]
        proxy: String,
    },
    /// How many calls of a method have come to a proxy.
    Seen(Seen),

    /// Writes a file in `${dir}`, at once.
    Write {
        file: String,
        text: String,
    },
    /// Time has to pass, for a reason.
    Pause {
        ms: u64,
        why: String,
    },
    /// The first list whose first step comes true is played.
    Either {
        of: Vec<Vec<Step>>,
    },
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    #[serde(default = "agent_a", skip_serializing)]
    pub agent: String,
    #[serde(default = "client_c")]
    pub client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(skip_serializing)]
    pub refused: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub run: String,
    #[serde(default = "client_c")]
    pub client: String,
    #[serde(default = "key_k")]
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_ttl: Option<u64>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub wait: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_lapse: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
}

/// A record, by a server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct At {
    pub server: String,
    pub namespace: String,
    pub key: String,
}

impl Default for At {
    fn default() -> Self {
        Self { server: server_s(), namespace: "default".to_owned(), key: key_k() }
    }
}

/// A Begin of the driver's own, which nobody renews.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    #[serde(default)]
    pub at: At,
    #[serde(default = "driver")]
    pub owner: String,
    /// In milliseconds.
    #[serde(default = "half_a_minute")]
    pub lock_ttl: u64,
    pub expect: Value,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    Retry,
    InDoubt,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Kill,
    Term,
    /// It is there and does nothing: its system takes connections, and nobody answers.
    Freeze,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    #[serde(default = "proxy_p")]
    pub proxy: String,
    /// A method, such as `Begin`; none: any.
    pub call: Option<String>,
    /// How many are let through before.
    #[serde(default)]
    pub after: u64,
    /// How many it befalls; none: all of them.
    #[serde(default = "once")]
    pub times: Option<u64>,
    pub fate: Fate,
}

/// What befalls a call.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fate {
    /// It is carried out; its answer is lost, and the client's connection with it.
    Lose,
    /// It is carried out; its answer comes when the proxy is cleared.
    Hold,
    /// It is not carried out, and the client's connection is lost.
    Cut,
    /// It is not carried out, but answered so.
    Refuse {
        /// A status code of gRPC, as a number.
        code: i32,
        /// With it, the answer is one of onced.
        reason: Option<String>,
        /// `grpc-retry-pushback-ms`.
        pushback: Option<String>,
    },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    #[serde(default = "proxy_p")]
    pub proxy: String,
    pub call: String,
    /// Waits until there are so many.
    pub at_least: Option<u64>,
    /// There are so many now.
    pub exactly: Option<u64>,
    /// The Begins among them have so many request ids.
    pub request_ids: Option<usize>,
    /// The first Begins asked to wait so long, in milliseconds.
    pub waits: Option<Vec<u64>>,
}

fn every_store() -> Vec<Store> {
    vec![Store::Embedded, Store::Etcd]
}

fn one_server() -> BTreeMap<String, Setup> {
    BTreeMap::from([(server_s(), Setup::default())])
}

fn agent_a() -> String {
    "a".to_owned()
}

fn client_c() -> String {
    "c".to_owned()
}

fn key_k() -> String {
    "k".to_owned()
}

fn server_s() -> String {
    "s".to_owned()
}

fn proxy_p() -> String {
    "p".to_owned()
}

fn driver() -> String {
    "driver".to_owned()
}

fn half_a_minute() -> u64 {
    30_000
}

fn once() -> Option<u64> {
    Some(1)
}

impl Scenario {
    /// Reads one from its text.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut whole: Value = serde_json::from_str(text)?;
        if let Some(steps) = whole["steps"].as_array_mut() {
            *steps = unrolled(std::mem::take(steps))?;
        }
        let texts = whole["steps"].as_array().into_iter().flatten().map(Value::to_string).collect();
        let mut scenario: Self = serde_json::from_value(whole)?;
        name.clone_into(&mut scenario.name);
        scenario.texts = texts;
        for (proxy, server) in &scenario.proxies {
            if !scenario.servers.contains_key(server) {
                bail!("the proxy {proxy} stands in front of {server}, which is no server of it");
            }
        }
        Ok(scenario)
    }

    /// For how long it does nothing, in milliseconds.
    pub fn pauses(&self) -> u64 {
        self.steps.iter().map(|step| if let Step::Pause { ms, .. } = step { *ms } else { 0 }).sum()
    }

    /// Reads all of a directory, in the order of their names.
    pub fn read_all(directory: &Path) -> Result<Vec<Self>> {
        let entries = std::fs::read_dir(directory)
            .with_context(|| format!("the scenarios in {}", directory.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        let read = |file: PathBuf| {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let text = std::fs::read_to_string(&file)?;
            Self::parse(&name, &text).with_context(|| format!("{}", file.display()))
        };
        files.into_iter().map(read).collect()
    }
}
