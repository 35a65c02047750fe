//! Steps that are for agents: what they are told, and what they tell.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{LOOKS, Stage};
use crate::POLL;
use crate::agent::Agent;
use crate::expect::{check, fill, short};
use crate::scenario::Step;

impl Stage<'_> {
    /// Commands that are more than asked and answered.
    pub(super) async fn command(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Connect(connect) => {
                self.clients.insert(connect.client.clone(), connect.agent.clone());
                let fields = serde_json::to_value(connect)?;
                self.ask(&connect.agent, "connect", fields, &Value::Null, connect.refused.as_ref()).await
            }
            Step::Run(run) => {
                let agent = self.agent_of_client(&run.client)?;
                self.runs.insert(run.run.clone(), agent.clone());
                self.ask(&agent, "run", serde_json::to_value(run)?, &Value::Null, None).await
            }
            Step::Claim { run, expect, until } => {
                let agent = self.agent_of_run(run)?;
                let mut looks = if *until { LOOKS } else { 1 };
                loop {
                    looks -= 1;
                    let asked = self.ask(&agent, "claim", json!({"run": run}), expect, None).await;
                    if asked.is_ok() || looks == 0 {
                        return asked;
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
            Step::Close { client, patience, named } => {
                let agent = self.agent_of_client(client)?;
                let fields = json!({"client": client, "patience": patience});
                let sent = self.agent(&agent)?.send("close", fields).await?;
                self.pending.insert(named.clone(), (agent, sent));
                Ok(())
            }
            Step::Answer { of } => {
                let (agent, sent) = self.pending.remove(of).with_context(|| format!("{of} was asked for"))?;
                self.answered(&agent, sent, &Value::Null, None).await
            }
            Step::Fingerprints { agent } => {
                let vectors = &self.theatre.vectors;
                vectors.try_on(self.agent(agent)?).await
            }
            Step::Kill { agent } => self.agent(agent)?.kill().await,
            other => self.simple_command(other).await,
        }
    }

    async fn simple_command(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Finish { run, value, fail, message, final_error, panic, refused } => {
                let ends = json!({"fail": fail, "message": message, "final": final_error, "panic": panic});
                let mut fields = json!({"run": run});
                // A value may be null.
                for (name, end) in ends.as_object().into_iter().flatten().filter(|(_, end)| !end.is_null()) {
                    fields[name] = end.clone();
                }
                if let Some(value) = value {
                    fields["value"] = value.clone();
                }
                let agent = self.agent_of_run(run)?;
                self.ask(&agent, "finish", fields, &Value::Null, refused.as_ref()).await
            }
            Step::Checkpoint { run, data, refused } => {
                let agent = self.agent_of_run(run)?;
                let fields = json!({"run": run, "data": data});
                self.ask(&agent, "checkpoint", fields, &Value::Null, refused.as_ref()).await
            }
            Step::Cancel { run } => {
                self.left.insert(run.clone());
                let agent = self.agent_of_run(run)?;
                self.ask(&agent, "cancel", json!({"run": run}), &Value::Null, None).await
            }
            Step::Counts { client, expect } => {
                let agent = self.agent_of_client(client)?;
                self.ask(&agent, "counts", json!({"client": client}), expect, None).await
            }
            other => bail!("{other:?} is no command"),
        }
    }

    async fn ask(
        &mut self,
        agent: &str,
        what: &str,
        fields: Value,
        expect: &Value,
        refused: Option<&Value>,
    ) -> Result<()> {
        let fields = fill(&fields, &self.vars)?;
        let sent = self.agent(agent)?.send(what, fields).await?;
        self.answered(agent, sent, expect, refused).await
    }

    async fn answered(
        &mut self,
        agent: &str,
        sent: u64,
        expect: &Value,
        refused: Option<&Value>,
    ) -> Result<()> {
        match (self.agent(agent)?.answer(sent).await?, refused) {
            (Ok(ok), None) => check(expect, &ok, &mut self.vars),
            (Err(error), Some(refused)) => {
                ensure!(
                    error["kind"].is_string() && error["message"].is_string(),
                    "{error} has no kind or message"
                );
                check(refused, &error, &mut self.vars)
            }
            (Err(error), None) => bail!("it is refused: {}", short(&error)),
            (Ok(ok), Some(_)) => bail!("it is not refused, but answered {}", short(&ok)),
        }
    }

    pub(super) async fn event(&mut self, run: &str, name: &str, expect: &Value) -> Result<()> {
        let agent = self.agent_of_run(run)?;
        loop {
            let event = self.agent(&agent)?.event(run).await?;
            // A loss is told once its time has come, whatever else goes on.
            let is_loss = event["event"] == "lost";
            if is_loss && (name != "lost" || check(expect, &event, &mut self.vars.clone()).is_err()) {
                continue;
            }
            let checked = match event["event"] == name {
                true => check(expect, &event, &mut self.vars),
                false => Err(anyhow::anyhow!("expected {name}")),
            };
            if let Err(error) = checked {
                let error = error.context(format!("{run} told {}", short(&event)));
                // For the other lists of an `either`.
                self.agent(&agent)?.unhear(run, event);
                return Err(error);
            }
            return Ok(());
        }
    }

    /// An agent, which is started when it is first needed.
    fn agent(&mut self, name: &str) -> Result<&mut Agent> {
        if !self.agents.contains_key(name) {
            let [first, second] = &self.theatre.agents;
            let command = if name == "a" { first } else { second };
            self.agents.insert(name.to_owned(), Agent::start(name, command, &self.dir)?);
        }
        self.agents.get_mut(name).context("it was started")
    }

    fn agent_of_client(&self, client: &str) -> Result<String> {
        self.clients.get(client).cloned().with_context(|| format!("the client {client} was not connected"))
    }

    fn agent_of_run(&self, run: &str) -> Result<String> {
        self.runs.get(run).cloned().with_context(|| format!("nothing runs that is called {run}"))
    }
}
