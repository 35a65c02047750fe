//! An agent process, as the driver speaks with it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::HANGS;
use crate::expect::short;
use crate::process::{Spoken, kill_all, speak, tail};

/// How many lines of what was said are told when a step failed.
const TOLD: usize = 12;

pub struct Agent {
    child: Child,
    /// None once it is to end.
    input: Option<ChildStdin>,
    said: Arc<Said>,
    reading: JoinHandle<()>,
    log: PathBuf,
    commands: u64,
}

/// What it has said.
#[derive(Default)]
struct Said {
    heard: Mutex<Heard>,
    /// Changes with each line.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Heard {
    /// By the number of the command. Taken by whoever waits for them.
    answers: BTreeMap<u64, Value>,
    /// By run.
    events: BTreeMap<String, VecDeque<Value>>,
    /// The last lines, of both sides.
    transcript: VecDeque<String>,
    /// Why there is no more.
    ended: Option<String>,
}

impl Agent {
    pub fn start(name: &str, command: &str, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("agent-{name}.log"));
        let Spoken { child, input, mut lines } = speak(command, &log)?;
        let said = Arc::new(Said::default());
        let hears = Arc::clone(&said);
        let reading = tokio::spawn(async move {
            loop {
                let line = lines.next_line().await;
                let going_on = hears.heard().hear(line);
                hears.changed.send_replace(());
                if !going_on {
                    return;
                }
            }
        });
        Ok(Self { child, input: Some(input), said, reading, log, commands: 0 })
    }

    /// Sends a command. Its number is for [`answer`](Self::answer).
    pub async fn send(&mut self, what: &str, fields: Value) -> Result<u64> {
        self.commands += 1;
        let mut command =
            Map::from_iter([("id".to_owned(), json!(self.commands)), ("do".to_owned(), json!(what))]);
        if let Value::Object(fields) = fields {
            command.extend(fields);
        }
        let command = Value::Object(command);
        self.said.heard().tell(format!("> {}", short(&command)));
        let input = self.input.as_mut().context("the agent was not ended")?;
        input.write_all(format!("{command}\n").as_bytes()).await.context("the agent does not listen")?;
        input.flush().await?;
        Ok(self.commands)
    }

    /// Waits for the answer to a command: what is ok, or the error.
    pub async fn answer(&self, command: u64) -> Result<Result<Value, Value>> {
        let answer = self.said.next(|heard| heard.answers.remove(&command)).await.context("no answer")?;
        match (answer.get("ok"), answer.get("error")) {
            (Some(ok), None) => Ok(Ok(ok.clone())),
            (None, Some(error)) => Ok(Err(error.clone())),
            (Some(_), Some(_)) | (None, None) => bail!("{answer} is not ok, nor an error"),
        }
    }

    /// Waits for the next event of a run.
    pub async fn event(&self, run: &str) -> Result<Value> {
        let next = |heard: &mut Heard| heard.events.get_mut(run).and_then(VecDeque::pop_front);
        self.said.next(next).await.with_context(|| format!("no event of {run}"))
    }

    /// Puts an event back, as if it had not been heard.
    pub fn unhear(&self, run: &str, event: Value) {
        self.said.heard().events.entry(run.to_owned()).or_default().push_front(event);
    }

    /// Events of these runs that nobody waited for, but those that tell of a loss.
    pub fn surplus(&self, is_left: impl Fn(&str) -> bool) -> Vec<Value> {
        let heard = self.said.heard();
        let all = heard.events.iter().filter(|(run, _)| !is_left(run)).flat_map(|(_, events)| events);
        all.filter(|event| event["event"] != "lost").cloned().collect()
    }

    /// kill -9.
    pub async fn kill(&mut self) -> Result<()> {
        kill_all(&self.child)?;
        self.child.wait().await?;
        self.input = None;
        Ok(())
    }

    /// Ends its input, and waits until it has ended.
    pub async fn end(&mut self) -> Result<()> {
        if self.input.take().is_none() {
            return Ok(());
        }
        let ended = tokio::time::timeout(HANGS, self.child.wait()).await;
        // Something that it started may be left.
        kill_all(&self.child)?;
        match ended {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => bail!("the agent ended with {}", status?),
            Err(_) => {
                self.kill().await?;
                bail!("the agent goes on without its input")
            }
        }
    }

    /// What was said last, for people.
    pub fn account(&self) -> String {
        let transcript: Vec<String> = self.said.heard().transcript.iter().cloned().collect();
        let said = format!("{}\n{}", transcript.join("\n"), tail(&self.log, TOLD));
        said.trim_end().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.reading.abort();
        // Ended already is as good.
        let _ = kill_all(&self.child);
    }
}

impl Said {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to take.
    async fn next(&self, mut take: impl FnMut(&mut Heard) -> Option<Value>) -> Result<Value> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                {
                    let mut heard = self.heard();
                    if let Some(taken) = take(&mut heard) {
                        return Ok(taken);
                    }
                    if let Some(why) = &heard.ended {
                        bail!("the agent says no more: {why}");
                    }
                }
                changed.changed().await?;
            }
        };
        tokio::time::timeout(HANGS, waiting)
            .await
            .map_err(|_| anyhow::anyhow!("nothing came for {HANGS:?}"))?
    }
}

impl Heard {
    /// Takes in a line. False if it is the last one.
    fn hear(&mut self, line: std::io::Result<Option<String>>) -> bool {
        let heard = match line {
            Ok(Some(line)) => self.sort(&line),
            Ok(None) => Err("its output ended".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match heard {
            Ok(()) => true,
            Err(why) => {
                self.ended = Some(why);
                false
            }
        }
    }

    fn sort(&mut self, line: &str) -> Result<(), String> {
        let said: Value =
            serde_json::from_str(line).map_err(|error| format!("{line:?} is no JSON: {error}"))?;
        self.tell(format!("< {}", short(&said)));
        match (said["event"].as_str(), said["run"].as_str(), said["id"].as_u64()) {
            (Some("started" | "lost" | "ended"), Some(run), None) => {
                self.events.entry(run.to_owned()).or_default().push_back(said);
            }
            (None, _, Some(id)) => {
                self.answers.insert(id, said);
            }
            _ => return Err(format!("{line} is neither an answer nor an event")),
        }
        Ok(())
    }

    fn tell(&mut self, line: String) {
        self.transcript.push_back(line);
        if self.transcript.len() > TOLD {
            self.transcript.pop_front();
        }
    }
}
