//! AWS Powertools for Python: a library, in programs that call a function for us.

use std::path::PathBuf;

use super::{find, version};
use crate::child::Child;

const PROGRAM: &str = include_str!("../../peers/powertools.py");
const VERSION: &str = "from importlib.metadata import version; \
    from aws_lambda_powertools.utilities.idempotency.persistence import cache; \
    print('aws-lambda-powertools', version('aws-lambda-powertools'), 'redis-py', version('redis'))";

/// A program, as a Lambda would run it: one of many, that share nothing but Redis.
pub struct Powertools {
    pub child: Child,
}

impl Powertools {
    pub async fn start(redis_port: u16) -> anyhow::Result<Self> {
        let child = Child::start(&find("python3")?, |dir| {
            let socket = dir.join("socket").display().to_string();
            ["-c", PROGRAM, &socket, &redis_port.to_string()].map(str::to_owned).to_vec()
        })?;
        let this = Self { child };
        this.child.ready("powertools.py", async || this.child.output().contains("ready")).await?;
        Ok(this)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.child.dir().join("socket")
    }
}

pub fn find_version() -> anyhow::Result<String> {
    version(&find("python3")?, &["-c", VERSION])
}
