//! Plays one scenario: sets its stage, takes its steps, and clears all away.

mod commands;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::direct::Direct;
use crate::expect::{Vars, check, fill, fill_text, short};
use crate::fingerprints::Vectors;
use crate::proxy::Proxy;
use crate::scenario::{At, Scenario, Seen, Setup, Step};
use crate::server::{House, SESSIONS, Server, WAITING};
use crate::{HANGS, POLL};

/// How often something is looked at that comes to be as expected, or hangs.
const LOOKS: u128 = HANGS.as_millis() / POLL.as_millis();

/// What all scenarios of a run have in common.
pub struct Theatre {
    pub house: House,
    /// The command lines of the agents `a` and `b`.
    pub agents: [String; 2],
    pub vectors: Vectors,
}

/// Why a scenario failed, for people.
pub struct Failure {
    /// None: while the stage was set, or cleared.
    pub step: Option<(usize, String)>,
    pub why: anyhow::Error,
    /// What those concerned said last, by who they are.
    pub accounts: Vec<(String, String)>,
}

/// A scenario that is being played.
pub struct Stage<'a> {
    theatre: &'a Theatre,
    dir: PathBuf,
    vars: Vars,
    servers: BTreeMap<String, Server>,
    proxies: BTreeMap<String, Proxy>,
    agents: BTreeMap<String, Agent>,
    /// The agent of each client, and of each run.
    clients: BTreeMap<String, String>,
    runs: BTreeMap<String, String>,
    /// Runs whose end is nobody's business.
    left: BTreeSet<String>,
    /// Commands whose answers are still to come: the agent, and the number.
    pending: BTreeMap<String, (String, u64)>,
}

/// Plays a scenario on a store, in a directory of its own.
pub async fn play(
    scenario: &Scenario,
    theatre: &Theatre,
    store: impl Fn(&str) -> String,
    dir: &Path,
) -> Result<(), Box<Failure>> {
    let (dir, vars) = (dir.to_owned(), Vars::new());
    let mut stage = Stage {
        theatre,
        dir,
        vars,
        servers: BTreeMap::new(),
        proxies: BTreeMap::new(),
        agents: BTreeMap::new(),
        clients: BTreeMap::new(),
        runs: BTreeMap::new(),
        left: BTreeSet::new(),
        pending: BTreeMap::new(),
    };
    if let Err(why) = stage.set(scenario, &store).await {
        return Err(stage.failed(None, why));
    }
    for (index, step) in scenario.steps.iter().enumerate() {
        if let Err(why) = stage.take(step).await {
            let step = (index + 1, scenario.texts.get(index).cloned().unwrap_or_default());
            return Err(stage.failed(Some(step), why));
        }
    }
    if let Err(why) = stage.clear().await {
        return Err(stage.failed(None, why));
    }
    Ok(())
}

impl Stage<'_> {
    /// Starts the servers and the proxies.
    async fn set(&mut self, scenario: &Scenario, store: &impl Fn(&str) -> String) -> Result<()> {
        let house = &self.theatre.house;
        self.vars.insert("dir".to_owned(), self.dir.display().to_string());
        for name in ["ca.crt", "other-ca.crt", "caller.crt", "caller.key"] {
            self.vars.insert(name.to_owned(), house.certificates.path(name).display().to_string());
        }
        for token in &house.tokens {
            self.vars.insert(format!("token.{}", token.name), token.text.clone());
        }
        for (name, setup) in &scenario.servers {
            let mut server = Server::new(name, store(name), &self.dir, setup.clone());
            let started = server.start(house, None).await;
            let address = server.address().map(str::to_owned);
            self.servers.insert(name.clone(), server);
            started?;
            self.vars.insert(name.clone(), address?);
        }
        for (name, server) in &scenario.proxies {
            let target = self.vars.get(server).context("a server that was started")?.clone();
            let proxy = Proxy::start(target).await?;
            self.vars.insert(name.clone(), proxy.address().to_owned());
            self.proxies.insert(name.clone(), proxy);
        }
        Ok(())
    }

    /// Ends all, after a look at what nobody waited for.
    async fn clear(&mut self) -> Result<()> {
        for proxy in self.proxies.values() {
            proxy.clear();
        }
        for agent in self.agents.values() {
            let surplus = agent.surplus(|run| self.left.contains(run));
            ensure!(surplus.is_empty(), "there is an event too much: {}", short(&json!(surplus)));
        }
        for (name, agent) in &mut self.agents {
            agent.end().await.with_context(|| format!("agent {name}"))?;
        }
        for server in self.servers.values_mut() {
            server.end().await?;
        }
        Ok(())
    }

    fn failed(&self, step: Option<(usize, String)>, why: anyhow::Error) -> Box<Failure> {
        let agents = self.agents.iter().map(|(name, agent)| (format!("agent {name}"), agent.account()));
        let servers = self.servers.iter().map(|(name, server)| (format!("server {name}"), server.log_tail()));
        Box::new(Failure { step, why, accounts: agents.chain(servers).collect() })
    }

    /// Takes a step.
    async fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Connect(_)
            | Step::Run(_)
            | Step::Finish { .. }
            | Step::Checkpoint { .. }
            | Step::Claim { .. }
            | Step::Cancel { .. }
            | Step::Counts { .. }
            | Step::Close { .. }
            | Step::Answer { .. }
            | Step::Fingerprints { .. }
            | Step::Kill { .. } => self.command(step).await,
            Step::Started { run, expect } => self.event(run, "started", expect).await,
            Step::Ended { run, expect } => self.event(run, "ended", expect).await,
            Step::Lost { run, why } => self.event(run, "lost", &json!({"why": why})).await,
            Step::Leave { run } => {
                self.left.insert(run.clone());
                Ok(())
            }
            Step::Record { .. }
            | Step::Begin(_)
            | Step::Complete { .. }
            | Step::Renew { .. }
            | Step::Release { .. }
            | Step::Resolve { .. }
            | Step::Delete { .. } => self.direct(step).await,
            Step::Waiting { server, calls } => self.metric(server, WAITING, |count| count == *calls).await,
            Step::Sessions { server, at_least } => {
                self.metric(server, SESSIONS, |count| count >= *at_least).await
            }
            Step::Stop { server, by } => self.server(server)?.stop(*by).await,
            Step::Start { server, setup } => self.restart(server, setup.as_ref()).await,
            Step::Plan(plan) => {
                self.proxy(&plan.proxy)?.plan(plan.clone());
                Ok(())
            }
            Step::Clear { proxy } => {
                self.proxy(proxy)?.clear();
                Ok(())
            }
            Step::Seen(seen) => self.seen(seen).await,
            Step::Write { file, text } => {
                // Whole or not at all, for whoever reads it meanwhile.
                let (path, half) = (self.dir.join(file), self.dir.join(format!("{file}.new")));
                std::fs::write(&half, fill_text(text, &self.vars)?)?;
                Ok(std::fs::rename(half, path)?)
            }
            Step::Pause { ms, why } => {
                ensure!(!why.is_empty(), "a pause has a reason");
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                Ok(())
            }
            Step::Either { of } => Box::pin(self.either(of)).await,
        }
    }

    async fn either(&mut self, lists: &[Vec<Step>]) -> Result<()> {
        let mut why = Vec::new();
        for list in lists {
            let (first, rest) = list.split_first().context("an empty list of steps")?;
            match self.take(first).await {
                Err(error) => why.push(format!("{error:#}")),
                Ok(()) => {
                    for step in rest {
                        self.take(step).await.with_context(|| format!("at {step:?}"))?;
                    }
                    return Ok(());
                }
            }
        }
        bail!("none of these came true: {}", why.join("; "))
    }

    async fn direct(&mut self, step: &Step) -> Result<()> {
        let at = match step {
            Step::Record { at, .. }
            | Step::Complete { at, .. }
            | Step::Renew { at, .. }
            | Step::Release { at, .. }
            | Step::Resolve { at, .. }
            | Step::Delete { at, .. } => at,
            Step::Begin(begin) => &begin.at,
            other => bail!("{other:?} is no call of the driver"),
        };
        let at = &At { key: fill_text(&at.key, &self.vars)?, ..at.clone() };
        let house = &self.theatre.house;
        let calls = Direct::connect(self.server(&at.server)?, house).await?;
        let token = |token: &str| fill_text(token, &self.vars);
        match step {
            Step::Record { expect, until, .. } => self.record(&calls, at, expect, *until).await,
            Step::Begin(begin) => check(&begin.expect, &calls.begin(begin).await?, &mut self.vars),
            Step::Complete { token: of, outcome, .. } => {
                calls.complete(at, &token(of)?, fill(outcome, &self.vars)?).await
            }
            Step::Renew { token: of, sequence, data, .. } => {
                calls.renew(at, &token(of)?, *sequence, data).await
            }
            Step::Release { token: of, rule, .. } => calls.release(at, &token(of)?, *rule).await,
            Step::Resolve { token: of, outcome, .. } => calls.resolve(at, &token(of)?, outcome.clone()).await,
            Step::Delete { token: of, .. } => calls.delete(at, &token(of)?).await,
            other => bail!("{other:?} is no call of the driver"),
        }
    }

    /// Looks at a record: now, or until it is as expected.
    async fn record(&mut self, calls: &Direct, at: &At, expect: &Value, until: bool) -> Result<()> {
        let mut looks = if until { LOOKS } else { 1 };
        loop {
            looks -= 1;
            let record = calls.record(at).await?;
            let checked = check(expect, &record, &mut self.vars);
            if checked.is_ok() || looks == 0 {
                return checked.with_context(|| format!("the record is {}", short(&record)));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a server tells such a number.
    async fn metric(&mut self, server: &str, name: &str, is_so: impl Fn(u64) -> bool) -> Result<()> {
        let server = self.server(server)?;
        let mut last = 0;
        for _ in 0..LOOKS {
            last = server.metric(name).await?;
            if is_so(last) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("{name} never comes to that, it is {last}")
    }

    async fn seen(&mut self, seen: &Seen) -> Result<()> {
        let proxy = self.proxy(&seen.proxy)?;
        let now = proxy.seen(&seen.call);
        if let Some(exactly) = seen.exactly {
            ensure!(now == exactly, "expected {exactly} calls of {}, there were {now}", seen.call);
        }
        let least = seen.at_least.unwrap_or(0);
        let until = async {
            while proxy.seen(&seen.call) < least {
                tokio::time::sleep(POLL).await;
            }
        };
        let waited = tokio::time::timeout(HANGS, until).await;
        waited
            .ok()
            .with_context(|| format!("of {least} calls of {}, {} came", seen.call, proxy.seen(&seen.call)))?;
        let begins = proxy.begins();
        if let Some(expected) = seen.request_ids {
            let ids: BTreeSet<&str> = begins.iter().map(|begin| begin.request_id.as_str()).collect();
            ensure!(ids.len() == expected, "expected {expected} request ids, there were {ids:?}");
        }
        if let Some(expected) = &seen.waits {
            let waits = begins.iter().map(|begin| onced_client::duration(begin.wait.as_ref()).as_millis());
            let waits: Vec<u128> = waits.take(expected.len()).collect();
            let expected: Vec<u128> = expected.iter().map(|&wait| wait.into()).collect();
            ensure!(waits == expected, "expected waits of {expected:?} ms, there were {waits:?}");
        }
        Ok(())
    }

    async fn restart(&mut self, server: &str, setup: Option<&Setup>) -> Result<()> {
        let house = &self.theatre.house;
        self.server(server)?.start(house, setup.cloned()).await
    }

    fn server(&mut self, name: &str) -> Result<&mut Server> {
        self.servers.get_mut(name).with_context(|| format!("no server is called {name}"))
    }

    fn proxy(&self, name: &str) -> Result<&Proxy> {
        self.proxies.get(name).with_context(|| format!("no proxy is called {name}"))
    }
}
