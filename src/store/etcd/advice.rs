//! How failures are told: with their causes, and with what to do about them, for whoever reads it at night.

use super::dial::EtcdLogin;
use super::keyspace::Keyspace;

/// Goes after the texts of failures, at the start as later.
#[derive(Debug)]
pub(super) struct Advice {
    prefix: String,
    /// `None`: nobody.
    user: Option<String>,
}

impl Advice {
    /// Advice for whoever uses this keyspace as this user.
    pub(super) fn new(keyspace: &Keyspace, login: Option<&EtcdLogin>) -> Self {
        let user = login.map(|login| login.user.clone());
        Self { prefix: keyspace.prefix().to_owned(), user }
    }

    /// The text of a failure, and what to do about it where that is known.
    pub(super) fn after(&self, text: String) -> String {
        let has = |part: &str| text.contains(part);
        let Self { prefix, user } = self;
        if has("does not have the store") {
            text + "; if that is meant to be so, restart onced"
        } else if has("authentication failed") {
            text + "; check --etcd-user and its password (a new one takes effect after a restart of onced)"
        } else if has("user name is empty") && user.is_some() {
            text + "; it asks who calls only since now, and the next call logs in"
        } else if has("user name is empty") {
            text + "; it wants to know who calls: give --etcd-user and --etcd-password-file"
        } else if has("permission denied") {
            let user = user.as_deref().unwrap_or("USER");
            text + &format!(
                "; the user needs a role that may read and write all below the prefix: etcdctl role add onced; \
                 etcdctl role grant-permission onced readwrite {prefix}/ --prefix; \
                 etcdctl user grant-role {user} onced"
            )
        } else if has("space exceeded") {
            text + "; it is full: compact and defragment it, then disarm its alarm (etcdctl alarm disarm)"
        } else if has("no leader") {
            text + "; unless it is just choosing one, it has lost its quorum: start the members that are down, or \
                    mend the network between them"
        } else {
            text
        }
    }
}

/// The text of an error, and what hides in its sources: "Connection refused".
pub(super) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<tonic::Status>() {
        // By itself it shows its sources as a debugger would.
        Some(status) => format!("{:?}: {}", status.code(), status.message()),
        None => error.to_string(),
    };
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_in_words() {
        let mut status = tonic::Status::unknown("h2 protocol error");
        let cause = std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the stream is closed");
        status.set_source(std::sync::Arc::new(cause));
        assert_eq!(with_causes(&status), "Unknown: h2 protocol error: the stream is closed");
    }

    #[test]
    fn the_commands_that_grant_a_role_can_be_pasted() {
        let keyspace = Keyspace::new("/a/b/").unwrap();
        let login = EtcdLogin { user: "bob".to_owned(), password: "secret".to_owned() };
        let told = Advice::new(&keyspace, Some(&login)).after("etcdserver: permission denied".to_owned());
        assert!(told.contains("role grant-permission onced readwrite a/b/ --prefix; "), "{told}");
        assert!(told.ends_with("user grant-role bob onced"), "{told}");
    }
}
