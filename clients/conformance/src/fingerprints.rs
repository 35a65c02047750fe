//! What an agent makes of the vectors, held against them.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::agent::Agent;

/// The parts of `vectors/fingerprints.json` that agents are asked about.
pub struct Vectors {
    commands: Vec<Command>,
}

struct Command {
    fields: Value,
    /// None: it is refused.
    digest: Option<String>,
}

impl Vectors {
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("the vectors in {}", file.display()))?;
        Self::parse(&serde_json::from_str(&text)?)
    }

    fn parse(vectors: &Value) -> Result<Self> {
        let mut commands = Vec::new();
        for (section, kind, has_digest) in [
            ("bytes", "bytes", true),
            ("json", "json", true),
            ("json_refused", "json", false),
            ("fields", "fields", true),
            ("fields_refused", "fields", false),
        ] {
            let cases = vectors[section].as_array().with_context(|| format!("the vectors of {section}"))?;
            ensure!(!cases.is_empty(), "there are no vectors of {section}");
            for case in cases {
                let mut fields = json!({"kind": kind});
                for name in ["data", "text", "pointers"] {
                    if let Some(value) = case.get(name) {
                        fields[name] = value.clone();
                    }
                }
                let digest = case["digest"].as_str().map(str::to_owned);
                ensure!(digest.is_some() == has_digest, "{section}: {case} has a digest or is refused");
                commands.push(Command { fields, digest });
            }
        }
        Ok(Self { commands })
    }

    /// Asks an agent for each, and tells all that is wrong.
    pub async fn try_on(&self, agent: &mut Agent) -> Result<()> {
        let mut wrong = Vec::new();
        for Command { fields, digest } in &self.commands {
            let sent = agent.send("fingerprint", fields.clone()).await?;
            match (agent.answer(sent).await?, digest) {
                (Ok(answer), Some(digest)) if answer["digest"] == digest.as_str() => {}
                (Err(error), None) if error["kind"] == "unfit" => {}
                (Ok(answer), Some(digest)) => {
                    wrong.push(format!("{fields}: expected {digest}, got {answer}"))
                }
                (Ok(answer), None) => wrong.push(format!("{fields}: it is refused, got {answer}")),
                (Err(error), _) => wrong.push(format!("{fields}: got the error {error}")),
            }
        }
        if !wrong.is_empty() {
            bail!("{} of {} are wrong:\n{}", wrong.len(), self.commands.len(), wrong.join("\n"));
        }
        Ok(())
    }
}
