//! Settings of a client.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::access::{Access, TokenSource};
use crate::client::{Client, DEFAULT_TIMEOUT, Inner, Runs};
use crate::clock::Clock;
use crate::error::Error;
use crate::transport::Transport;

/// The server when neither the program nor its environment names one: one beside it.
const DEFAULT_SERVER: &str = "127.0.0.1:7411";

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    servers: Vec<String>,
    timeout: Duration,
    owner: String,
    sessions: bool,
    clock: Clock,
    access: Access,
}

impl ClientBuilder {
    pub(crate) fn new(servers: &str) -> Self {
        let servers = [servers, &std::env::var("ONCED_SERVER").unwrap_or_default(), DEFAULT_SERVER];
        let servers = first_named(servers);
        Self {
            servers,
            timeout: DEFAULT_TIMEOUT,
            owner: crate::owner::default_owner(),
            sessions: true,
            clock: Clock::system(),
            access: Access::default(),
        }
    }

    /// How long a call is tried, beyond the wait it asks for. 30 s unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Who [`Client::once`] claims for: shown to duplicates and operators. User, host and process id unless
    /// told otherwise.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// Whether calls to a server go on one stream while there are many of them, which takes less than half of the CPU.
    /// They do unless told otherwise.
    #[must_use]
    pub fn sessions(mut self, sessions: bool) -> Self {
        self.sessions = sessions;
        self
    }

    /// The CA that signed the certificates of the servers, in PEM. Those that the system trusts unless told otherwise.
    #[must_use]
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.ca = Some(file.into());
        self
    }

    /// The certificate to show to servers, and its key, in PEM. They are read when the client is built.
    #[must_use]
    pub fn identity_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.access.identity = Some((cert.into(), key.into()));
        self
    }

    /// The file of the token that says who calls. It is read again when it is refused, and every few seconds.
    #[must_use]
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.token = Some(TokenSource::File(file.into()));
        self
    }

    /// The token that says who calls.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.access.token = Some(TokenSource::Text(token.into()));
        self
    }

    /// Sends the token also where it goes over a network without TLS, for all to read.
    #[must_use]
    pub fn allow_token_in_plaintext(mut self) -> Self {
        self.access.token_in_plaintext = true;
        self
    }

    /// The clock that locks are counted on; for tests.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The client.
    ///
    /// # Errors
    /// If an address or a file cannot be read, or if a token would go over a network without
    /// TLS.
    pub fn build(self) -> Result<Client, Error> {
        let transport = Transport::new(&self.servers, &self.access, self.clock)?;
        let Self { timeout, owner, sessions, .. } = self;
        if !sessions {
            transport.close_sessions();
        }
        Ok(Client(Arc::new(Inner { transport, timeout, owner, runs: Runs::default() })))
    }
}

/// The servers of the first of these that names any.
fn first_named(lists: [&str; 3]) -> Vec<String> {
    let named = |list: &str| -> Vec<String> {
        list.split(',').map(str::trim).filter(|server| !server.is_empty()).map(str::to_owned).collect()
    };
    lists.into_iter().map(named).find(|servers| !servers.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_those_of_the_program_or_its_environment_or_the_usual_one() {
        assert_eq!(first_named(["a:1, b:2,", "c:3", DEFAULT_SERVER]), ["a:1", "b:2"]);
        assert_eq!(first_named([" ", "c:3", DEFAULT_SERVER]), ["c:3"]);
        assert_eq!(first_named(["", "", DEFAULT_SERVER]), ["127.0.0.1:7411"]);
    }
}
