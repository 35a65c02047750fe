//! Tokens, keys and rules that change while callers call, and tokens that expire.

use std::fs;

use onced::access::Action;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, SessionRequest};
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

use super::callers::{Issuer, NAMESPACE, authorized, bearer, rule, write_tokens};
use super::*;
use crate::support::recorded::info;

/// A server that takes the tokens of a directory, JWTs too.
struct Scene {
    directory: tempfile::TempDir,
    config: Config,
    server: TestServer,
}

impl Scene {
    async fn new() -> (Self, Vec<String>, Issuer) {
        let directory = tempfile::tempdir().unwrap();
        let tokens = write_tokens(&directory.path().join("tokens"), &["worker", "other"]);
        let issuer = Issuer::new(&directory.path().join("jwks"));
        let mut config = Config::default();
        config.access.tokens = Some(directory.path().join("tokens"));
        config.access.jwks = Some(directory.path().join("jwks"));
        config.access.jwt_issuer = Some("issuer".to_owned());
        config.access.jwt_audience = Some("onced".to_owned());
        let rule = |identities: &[&str]| rule(identities, &[NAMESPACE], &[Action::Begin, Action::Lookup]);
        config.rules.insert("workers".to_owned(), rule(&["token:worker", "jwt:worker"]));
        config.rules.insert("others".to_owned(), rule(&["token:other"]));
        let server = start(config.clone()).await;
        (Self { directory, config, server }, tokens, issuer)
    }

    async fn api(&self, token: &str) -> IdempotencyServiceClient<crate::support::server::Connection> {
        let connection = authorized(self.server.connect().await, bearer(token));
        IdempotencyServiceClient::with_origin(connection, self.server.origin())
    }

    /// Claims a key, with a watch of it, and a session.
    async fn streams(&self, token: &str) -> Streams {
        let mut api = self.api(token).await;
        let request_id = uuid::Uuid::new_v4().to_string();
        let (namespace, key) = (NAMESPACE.to_owned(), "k".to_owned());
        let lock_ttl = Some(prost_types::Duration { seconds: 3_600, nanos: 0 });
        api.begin(v1::BeginRequest { namespace, key, request_id, lock_ttl, ..Default::default() })
            .await
            .unwrap();
        let watch = v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: "k".to_owned() };
        let mut watch = api.watch(watch).await.unwrap().into_inner();
        watch.message().await.unwrap().expect("a state");
        let (calls, sent) = tokio::sync::mpsc::unbounded_channel();
        let sent = tokio_stream::wrappers::UnboundedReceiverStream::new(sent);
        let answers = api.session(sent).await.unwrap().into_inner();
        Streams { watch, calls, answers }
    }
}

struct Streams {
    watch: Streaming<v1::WatchResponse>,
    calls: tokio::sync::mpsc::UnboundedSender<SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
}

impl Streams {
    fn send(&self, id: u64, wait: i64) {
        let wait = Some(prost_types::Duration { seconds: wait, nanos: 0 });
        let call = v1::LookupRequest { namespace: NAMESPACE.to_owned(), key: "k".to_owned(), wait };
        self.calls.send(SessionRequest { id, timeout: None, call: Some(Call::Lookup(call)) }).unwrap();
    }

    async fn answer(&mut self) -> Result<v1::SessionResponse, tonic::Status> {
        let answer = tokio::time::timeout(HANGS, self.answers.message()).await.expect("no answer");
        answer.map(|answer| answer.expect("an answer"))
    }
}

#[track_caller]
fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().expect("a reason").reason
}

#[tokio::test]
async fn a_session_and_a_watch_end_when_their_token_expires_and_calls_that_wait_are_told() {
    let (scene, _, issuer) = Scene::new().await;
    // The server grants 30 s, which are over soon.
    let mut streams = scene.streams(&issuer.token("worker", -27)).await;
    streams.send(1, 0);
    assert!(matches!(streams.answer().await.unwrap().answer, Some(Answer::Lookup(_))));
    streams.send(2, 6);
    let ended = tokio::time::timeout(HANGS, streams.watch.message()).await.expect("the watch goes on");
    assert_eq!(reason(&ended.unwrap_err()), "CREDENTIALS_EXPIRED");
    // Told at once, while the other one waits on.
    streams.send(3, 0);
    let late = streams.answer().await.unwrap();
    assert_eq!((late.id, refused(late)), (3, "CREDENTIALS_EXPIRED".to_owned()));
    let open = streams.answer().await.unwrap();
    assert_eq!((open.id, refused(open)), (2, "CREDENTIALS_EXPIRED".to_owned()));
    let ended = streams.answer().await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::Unauthenticated, "CREDENTIALS_EXPIRED".to_owned()));
}

/// The reason of an answer that is an error.
#[track_caller]
fn refused(answer: v1::SessionResponse) -> String {
    match answer.answer {
        Some(Answer::Error(status)) => info(&status).reason,
        other => panic!("no error: {other:?}"),
    }
}

/// A Begin that waits for so many seconds.
fn begin(key: &str, seconds: i64) -> v1::BeginRequest {
    v1::BeginRequest {
        namespace: NAMESPACE.to_owned(),
        key: key.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        wait: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    }
}

fn release(key: &str, fencing_token: u64) -> v1::ReleaseRequest {
    let (namespace, key, reason) = (NAMESPACE.to_owned(), key.to_owned(), String::new());
    v1::ReleaseRequest { namespace, key, fencing_token, disposition: v1::Disposition::Retry.into(), reason }
}

#[tokio::test]
async fn who_is_taken_out_of_the_rules_while_its_calls_wait_is_told_nothing_and_gets_no_claim() {
    let (scene, tokens, _) = Scene::new().await;
    let mut streams = scene.streams(&tokens[0]).await;
    let mut other = scene.api(&tokens[1]).await;
    let claim = async |other: &mut IdempotencyServiceClient<_>, seconds| match other
        .begin(begin("free", seconds))
        .await
        .unwrap()
        .into_inner()
        .result
    {
        Some(v1::begin_response::Result::Claim(claim)) => claim,
        none => panic!("no claim: {none:?}"),
    };
    let held = claim(&mut other, 0).await;
    streams.send(1, 30);
    for (id, key) in [(2, "k"), (3, "free")] {
        let call = Some(Call::Begin(begin(key, 30)));
        streams.calls.send(SessionRequest { id, timeout: None, call }).unwrap();
    }
    // A session looks who calls in the order of its calls: when this one is answered, the others wait.
    streams.send(4, 0);
    assert_eq!(streams.answer().await.unwrap().id, 4);

    let mut config = scene.config.clone();
    config.rules.remove("workers");
    reload(&scene.server, &config);
    let (namespace, result) = (NAMESPACE.to_owned(), v1::outcome::Result::Response("secret".into()));
    let outcome = Some(v1::Outcome { result: Some(result), ..Default::default() });
    let (key, retention) = ("k".to_owned(), None);
    let complete = v1::CompleteRequest { namespace, key, fencing_token: 1, outcome, retention };
    other.complete(complete).await.unwrap();
    other.release(release("free", held.fencing_token)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(refused(streams.answer().await.unwrap()), "ACCESS_DENIED");
    }
    // The claim that came of waiting was the second, and is given back.
    assert_eq!(claim(&mut other, 30).await.attempt, 3);
}

#[tokio::test]
async fn a_session_and_a_watch_are_refused_once_their_token_is_taken_back() {
    let (scene, tokens, _) = Scene::new().await;
    let mut streams = scene.streams(&tokens[0]).await;
    // What else changes is none of its business.
    reload(&scene.server, &scene.config);
    streams.send(1, 0);
    assert!(matches!(streams.answer().await.unwrap().answer, Some(Answer::Lookup(_))));
    let renewed = write_tokens(&scene.directory.path().join("tokens"), &["worker"]);
    reload(&scene.server, &scene.config);
    streams.send(2, 0);
    assert_eq!(refused(streams.answer().await.unwrap()), "CREDENTIALS_INVALID");
    scene.api(&renewed[0]).await.release(release("k", 1)).await.unwrap();
    let ended = tokio::time::timeout(HANGS, streams.watch.message()).await.expect("nothing is told");
    assert_eq!(reason(&ended.unwrap_err()), "CREDENTIALS_INVALID");
}

#[tokio::test]
async fn rules_hold_for_sessions_and_watches_that_are_open_as_they_are_now() {
    let (scene, tokens, _) = Scene::new().await;
    let mut streams = scene.streams(&tokens[0]).await;
    let mut config = scene.config.clone();
    config.rules.get_mut("workers").unwrap().actions = vec![Action::Begin];
    reload(&scene.server, &config);
    streams.send(1, 0);
    let Some(Answer::Error(status)) = streams.answer().await.unwrap().answer else { panic!("it was served") };
    assert_eq!(info(&status).reason, "ACCESS_DENIED");
    // The next state is not told.
    scene.api(&tokens[0]).await.release(release("k", 1)).await.unwrap();
    let ended = tokio::time::timeout(HANGS, streams.watch.message()).await.expect("nothing is told");
    assert_eq!(reason(&ended.unwrap_err()), "ACCESS_DENIED");
}

#[tokio::test]
async fn a_client_reads_its_token_again_when_it_is_refused() {
    let (scene, tokens, _) = Scene::new().await;
    let file = scene.directory.path().join("mine");
    fs::write(&file, &tokens[0]).unwrap();
    let client = client(&scene.server, "").token_file(&file).build().unwrap();
    client.begin(begin("one", 0)).await.unwrap();
    let mut watch = client.watch(NAMESPACE, "one");
    watch.next().await.unwrap().expect("a state");

    let renewed = write_tokens(&scene.directory.path().join("tokens"), &["worker"]);
    reload(&scene.server, &scene.config);
    let refused = client.begin(begin("two", 0)).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::CredentialsInvalid), "{refused}");
    fs::write(&file, &renewed[0]).unwrap();
    client.begin(begin("two", 0)).await.unwrap();
    client.watch(NAMESPACE, "two").next().await.unwrap().expect("a state");
}

#[tokio::test]
async fn a_watch_of_a_client_goes_on_with_a_fresh_token_when_its_own_expires() {
    let (scene, tokens, issuer) = Scene::new().await;
    let file = scene.directory.path().join("mine");
    fs::write(&file, issuer.token("worker", -28)).unwrap();
    let by_file = client(&scene.server, "").token_file(&file).build().unwrap();
    let mut api = scene.api(&tokens[0]).await;
    let request_id = uuid::Uuid::new_v4().to_string();
    let (namespace, key) = (NAMESPACE.to_owned(), "k".to_owned());
    // So long that nothing changes by itself.
    let lock_ttl = Some(prost_types::Duration { seconds: 3_600, nanos: 0 });
    api.begin(v1::BeginRequest { namespace, key, request_id, lock_ttl, ..Default::default() }).await.unwrap();
    let mut watch = by_file.watch(NAMESPACE, "k");
    watch.next().await.unwrap().expect("a state");
    fs::write(&file, issuer.token("worker", 600)).unwrap();
    // Opened again, it repeats the state.
    let repeated = tokio::time::timeout(HANGS, watch.next()).await.expect("it waits on");
    repeated.unwrap().expect("a state");
}

#[tokio::test]
async fn a_file_that_is_broken_changes_nothing() {
    let (scene, tokens, issuer) = Scene::new().await;
    let call = async |token: &str| {
        let client = client(&scene.server, "").token(token).build().unwrap();
        let lookup = LookupRequest { namespace: NAMESPACE.to_owned(), key: "absent".to_owned(), wait: None };
        client.lookup(lookup).await.unwrap_err().reason()
    };
    for (file, broken) in [("tokens", "nonsense"), ("jwks", "{}")] {
        let path = scene.directory.path().join(file);
        let before = fs::read(&path).unwrap();
        fs::write(&path, broken).unwrap();
        let told = reloaded(&scene.server, &scene.config);
        assert!(told.len() == 1 && told[0].text.contains(file), "{told:?}");
        assert_eq!(call(&tokens[0]).await, Some(ErrorReason::RecordNotFound));
        assert_eq!(call(&issuer.token("worker", 60)).await, Some(ErrorReason::RecordNotFound));
        fs::write(&path, before).unwrap();
    }
    // Nor does it keep another file from being taken, or the rules.
    fs::write(scene.directory.path().join("jwks"), "{}").unwrap();
    let fewer = write_tokens(&scene.directory.path().join("tokens"), &["worker"]);
    let mut config = scene.config.clone();
    config.rules.remove("others");
    assert!(!reloaded(&scene.server, &config).is_empty());
    assert_eq!(call(&tokens[0]).await, Some(ErrorReason::CredentialsInvalid));
    assert_eq!(call(&fewer[0]).await, Some(ErrorReason::RecordNotFound));
    assert_eq!(call(&issuer.token("worker", 60)).await, Some(ErrorReason::RecordNotFound));
    config.rules.remove("workers");
    config.rules.insert("nobody".to_owned(), rule(&["token:nobody"], &["*"], &Action::ALL));
    assert!(!reloaded(&scene.server, &config).is_empty());
    assert_eq!(call(&fewer[0]).await, Some(ErrorReason::AccessDenied));
    Issuer::new(&scene.directory.path().join("jwks"));
    reload(&scene.server, &scene.config);
    let issuer = Issuer::new(&scene.directory.path().join("jwks"));
    reload(&scene.server, &scene.config);
    // A key that is gone from the file takes its tokens with it, also those that were remembered.
    let old = issuer.token("worker", 60);
    assert_eq!(call(&old).await, Some(ErrorReason::RecordNotFound));
    Issuer::new(&scene.directory.path().join("jwks"));
    reload(&scene.server, &scene.config);
    assert_eq!(call(&old).await, Some(ErrorReason::CredentialsInvalid));
}
