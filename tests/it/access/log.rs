//! Who did what, as the log tells it.

use onced_client::v1;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use serde_json::Value;
use tonic::Code;
use tonic::transport::Channel;

use super::callers::{NAMESPACE, write_tokens};
use super::*;
use crate::support::exposition::Exposition;
use crate::support::onced::{ServerProcess, onced};

const KEY: &str = "key-to-be-kept-quiet";
const RULES: &str = "[access.rules.worker]\nidentities = [\"token:worker\"]\nnamespaces = [\"*\"]\nactions = [\"begin\"]\n\
                     [access.rules.operator]\nidentities = [\"token:operator\"]\nnamespaces = [\"*\"]\n\
                     actions = [\"admin\"]\n";
/// How often each call that is refused is made.
const TIMES: usize = 20;

fn by<Q>(token: &str, message: Q) -> tonic::Request<Q> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.set_timeout(HANGS);
    request
}

#[tokio::test]
async fn who_changed_what_and_who_was_turned_away_is_logged_without_asking_for_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let tokens = write_tokens(&path("tokens"), &["worker", "operator"]);
    let settings = format!("log_format = \"json\"\naccess.tokens = {:?}\n{RULES}", path("tokens"));
    std::fs::write(path("onced.toml"), settings).unwrap();
    let mut command = onced();
    command.env("ONCED_CONFIG", path("onced.toml")).env_remove("RUST_LOG");
    command.stderr(std::fs::File::create(path("log")).unwrap());
    let server = ServerProcess::start_as(command, "memory:");
    let address = format!("http://{}", server.address());
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut api = IdempotencyServiceClient::new(channel.clone());
    let mut admin = AdminServiceClient::new(channel);

    let (namespace, key) = (NAMESPACE.to_owned(), KEY.to_owned());
    let delete = v1::DeleteRequest { namespace, key, fencing_token: 1, force: true };
    admin.delete(by(&tokens[1], delete.clone())).await.unwrap();
    let watch = v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: KEY.to_owned() };
    for _ in 0..TIMES {
        let denied = api.watch(by(&tokens[0], watch.clone())).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
        let unknown = admin.delete(by("onced_nobodys", delete.clone())).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unauthenticated);
        admin.delete(by(&tokens[0], delete.clone())).await.unwrap_err();
    }
    let counted = Exposition::of(server.admin()).await;
    let ended = counted.value("onced_watches_ended_total", &["error_type=\"ACCESS_DENIED\""]);
    assert_eq!(ended, TIMES as f64);

    let told = || {
        let log = std::fs::read_to_string(path("log")).unwrap();
        assert!(!log.contains(KEY) && !log.contains("onced_nobodys") && !log.contains(&tokens[0]), "{log}");
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let of = |message: &str| told().into_iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
    let answered = of("answered");
    // Not those that were denied: anybody may try as often as they like.
    assert_eq!(answered.len(), 1, "{answered:?}");
    for (field, value) in [
        ("rpc", "Delete".into()),
        ("caller", "token:operator".into()),
        ("namespace", NAMESPACE.into()),
        ("reason", "OK".into()),
        ("fencing_token", 1.into()),
        ("to", Value::from("deleted by force")),
    ] {
        assert_eq!(answered[0][field], value, "{field}");
    }
    for message in ["a call was denied", "it is not known who calls"] {
        let lines = of(message);
        // One in five seconds: that there are as many takes a machine that stands still.
        assert!((1..TIMES).contains(&lines.len()), "{lines:?}");
        let peer = lines[0]["peer"].as_str().expect("a peer");
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    }
    let denied = &of("a call was denied")[0];
    assert_eq!((&denied["caller"], &denied["action"]), (&"token:worker".into(), &"lookup".into()));
}
