//! Every call, as every role; and what those learn who may not make it.

use onced::access::{Action, ClientAuth};
use onced_client::v1;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use tonic::Code;

use super::callers::{
    CALLS, Issuer, NAMESPACE, authorized, bearer, health, make, reflection, rule, write_tokens,
};
use super::*;
use crate::support::recorded::info;
use crate::support::server::connect;

/// Its tokens, in their order.
const NAMES: [&str; 6] = ["worker", "reader", "operator", "elsewhere", "all", "nothing"];

/// A server with rules, and what callers have.
struct Scene {
    server: TestServer,
    store: Arc<Controlled>,
    tokens: Vec<String>,
    issuer: Issuer,
    certificates: Certificates,
    config: Config,
}

impl Scene {
    async fn new() -> Self {
        let certificates = Certificates::for_a_server();
        let tokens = write_tokens(&certificates.path("tokens"), &NAMES);
        let issuer = Issuer::new(&certificates.path("jwks"));
        let mut config = Config::default();
        config.access.tokens = Some(certificates.path("tokens"));
        config.access.jwks = Some(certificates.path("jwks"));
        config.access.jwt_issuer = Some("issuer".to_owned());
        config.access.jwt_audience = Some("onced".to_owned());
        for (name, rule) in [
            (
                "workers",
                rule(
                    &["token:worker", "jwt:worker-*", "spiffe://prod/worker"],
                    &[NAMESPACE],
                    &[Action::Begin],
                ),
            ),
            ("readers", rule(&["token:reader", "dns:reader.example"], &["ord*"], &[Action::Lookup])),
            ("operators", rule(&["token:operator"], &["*"], &[Action::Admin])),
            ("others", rule(&["token:elsewhere"], &["order", "orders-*"], &Action::ALL)),
            ("all", rule(&["token:all"], &["*"], &Action::ALL)),
        ]
        .map(|(name, rule)| (name.to_owned(), rule))
        {
            config.rules.insert(name, rule);
        }
        let store = Controlled::in_memory();
        let server = TestServer::start_with(Arc::clone(&store) as _, config.clone()).await;
        Self { server, store, tokens, issuer, certificates, config }
    }

    fn token(&self, name: &str) -> Option<String> {
        let at = NAMES.iter().position(|known| *known == name).unwrap();
        bearer(&self.tokens[at])
    }

    /// Makes a call with this header.
    async fn make(&self, header: Option<String>, call: &str, key: &str) -> Result<(), tonic_types::Status> {
        let connection = authorized(self.server.connect().await, header);
        let origin = self.server.origin();
        let made = make(&connection, &origin, call, key);
        tokio::time::timeout(HANGS, made).await.expect("it hangs")
    }

    /// A key that is completed, and one that is held.
    async fn fill(&self) {
        let connection = authorized(self.server.connect().await, self.token("all"));
        let mut api = IdempotencyServiceClient::with_origin(connection, self.server.origin());
        for key in ["completed", "held"] {
            let request_id = uuid::Uuid::new_v4().to_string();
            let (namespace, key) = (NAMESPACE.to_owned(), key.to_owned());
            let begin = v1::BeginRequest { namespace, key, request_id, ..v1::BeginRequest::default() };
            let begun = api.begin(begin.clone()).await.unwrap().into_inner().result;
            let Some(v1::begin_response::Result::Claim(claim)) = begun else { panic!("no claim") };
            if begin.key == "completed" {
                let result = Some(v1::outcome::Result::Response("secret".into()));
                let outcome = Some(v1::Outcome { result, ..v1::Outcome::default() });
                let v1::BeginRequest { namespace, key, .. } = begin;
                let fencing_token = claim.fencing_token;
                api.complete(v1::CompleteRequest { namespace, key, fencing_token, outcome, retention: None })
                    .await
                    .unwrap();
            }
        }
    }
}

#[tokio::test]
async fn each_role_may_make_its_calls_and_no_other_and_learns_nothing_of_the_key() {
    let scene = Scene::new().await;
    scene.fill().await;
    let all = Action::ALL;
    let roles: [(&str, _, &[Action]); 9] = [
        ("token:worker", scene.token("worker"), &[Action::Begin][..]),
        ("token:reader", scene.token("reader"), &[Action::Lookup]),
        ("token:operator", scene.token("operator"), &[Action::Admin]),
        ("token:elsewhere", scene.token("elsewhere"), &[]),
        ("token:nothing", scene.token("nothing"), &[]),
        ("token:all", scene.token("all"), &all),
        ("jwt:worker-7", bearer(&scene.issuer.token("worker-7", 60)), &[Action::Begin]),
        ("jwt:reader", bearer(&scene.issuer.token("reader", 60)), &[]),
        // By what it says it is no more than a JWT.
        ("jwt:token:all", bearer(&scene.issuer.token("token:all", 60)), &[]),
    ];
    // Those that may come last: a trip of theirs may end after their call has.
    for (allowed, (role, header, may)) in
        [false, true].iter().flat_map(|allowed| roles.iter().map(move |role| (*allowed, role)))
    {
        for (call, action) in CALLS {
            if may.contains(&action) != allowed {
                continue;
            }
            if allowed {
                let served = scene.make(header.clone(), call, "of-its-own").await;
                let code = served.map_or_else(|status| Code::from(status.code), |()| Code::Ok);
                assert!(
                    ![Code::PermissionDenied, Code::Unauthenticated].contains(&code),
                    "{role} {call}: {code:?}"
                );
                continue;
            }
            let trips = scene.store.trips();
            let mut told = Vec::new();
            for key in ["completed", "held", "absent"] {
                told.push(scene.make(header.clone(), call, key).await.expect_err("it was served"));
            }
            assert_eq!(scene.store.trips(), trips, "{role} {call}: the store was asked");
            assert!(told[0] == told[1] && told[1] == told[2], "{role} {call}: {told:?}");
            let info = info(&told[0]);
            assert_eq!(
                (
                    Code::from(told[0].code),
                    &*info.reason,
                    &*info.metadata["namespace"],
                    &*info.metadata["action"]
                ),
                (Code::PermissionDenied, "ACCESS_DENIED", NAMESPACE, action.name()),
                "{role} {call}"
            );
            assert_eq!(info.metadata["identity"], *role);
        }
    }
}

#[tokio::test]
async fn nobody_is_served_without_showing_who_they_are_and_none_learns_anything_of_the_key() {
    let scene = Scene::new().await;
    scene.fill().await;
    let expired = bearer(&scene.issuer.token("worker-7", -60));
    for (header, reason) in [
        (None, "CREDENTIALS_MISSING"),
        (bearer("onced_unheardof"), "CREDENTIALS_INVALID"),
        (bearer(""), "CREDENTIALS_INVALID"),
        (Some(scene.tokens[4].clone()), "CREDENTIALS_INVALID"),
        (Some(format!("Basic {}", scene.tokens[4])), "CREDENTIALS_INVALID"),
        (bearer("a.b.c"), "CREDENTIALS_INVALID"),
        (expired, "CREDENTIALS_EXPIRED"),
    ] {
        let trips = scene.store.trips();
        for (call, _) in CALLS {
            let mut told = Vec::new();
            for key in ["completed", "held", "absent"] {
                told.push(scene.make(header.clone(), call, key).await.expect_err("it was served"));
            }
            assert!(told[0] == told[1] && told[1] == told[2], "{call}: {told:?}");
            let found = (Code::from(told[0].code), info(&told[0]).reason);
            assert_eq!(found, (Code::Unauthenticated, reason.to_owned()), "{call}");
        }
        assert_eq!(scene.store.trips(), trips, "{reason}: the store was asked");
    }
}

#[tokio::test]
async fn health_asks_nobody_and_reflection_as_it_is_set() {
    let scene = Scene::new().await;
    let (nobody, origin) = (scene.server.connect().await, scene.server.origin());
    let somebody = authorized(nobody.clone(), scene.token("nothing"));
    let wrong = authorized(nobody.clone(), bearer("wrong"));
    for connection in [&nobody, &somebody, &wrong] {
        health(connection, &origin).await.unwrap();
        reflection(connection, &origin).await.unwrap();
    }
    let mut config = scene.config.clone();
    config.access.open_reflection = false;
    reload(&scene.server, &config);
    for connection in [&nobody, &wrong] {
        health(connection, &origin).await.unwrap();
        assert_eq!(reflection(connection, &origin).await.unwrap_err().code(), Code::Unauthenticated);
    }
    reflection(&somebody, &origin).await.unwrap();
}

#[tokio::test]
async fn certificates_say_who_calls_and_a_token_counts_more() {
    let scene = Scene::new().await;
    let certificates = &scene.certificates;
    certificates.sign_uri("worker", "spiffe://prod/worker", &["reader.example"]);
    certificates.sign("reader", &["a.example", "reader.example"]);
    certificates.sign("unnamed", &["127.0.0.1"]);
    let mut config = Config { tls: speaking_tls(certificates).tls, ..scene.config.clone() };
    config.tls.client_ca = Some(certificates.ca());
    config.tls.client_auth = ClientAuth::Optional;
    let server = start(config).await;
    let origin: http::Uri = format!("https://{}", server.address()).parse().unwrap();
    let code = async |name: Option<&str>, header: Option<String>, call: &str| {
        let identity = name.map(|name| certificates.identity(name));
        let stream = certificates.connect(server.address(), identity, &["h2"]).await.unwrap();
        let connection = authorized(crate::support::server::over(stream).await, header);
        let made = make(&connection, &origin, call, "k").await;
        made.map_or_else(|status| Code::from(status.code), |()| Code::Ok)
    };
    assert_eq!(code(Some("worker"), None, "Begin").await, Code::Ok);
    assert_eq!(code(Some("worker"), None, "Lookup").await, Code::PermissionDenied);
    assert_eq!(code(Some("reader"), None, "Lookup").await, Code::Ok);
    assert_eq!(code(Some("reader"), None, "Begin").await, Code::PermissionDenied);
    assert_eq!(code(Some("unnamed"), None, "Lookup").await, Code::Unauthenticated);
    assert_eq!(code(None, None, "Lookup").await, Code::Unauthenticated);
    assert_eq!(code(None, scene.token("reader"), "Lookup").await, Code::Ok);
    assert_eq!(code(Some("worker"), scene.token("reader"), "Begin").await, Code::PermissionDenied);
    assert_eq!(code(Some("worker"), scene.token("reader"), "Lookup").await, Code::Ok);
    assert_eq!(code(Some("worker"), bearer("wrong"), "Begin").await, Code::Unauthenticated);
}

/// Identities without rules, and neither.
#[tokio::test]
async fn without_rules_whoever_is_known_may_do_all_and_without_either_anybody() {
    let scene = Scene::new().await;
    let unruled = Config { rules: Default::default(), ..scene.config.clone() };
    reload(&scene.server, &unruled);
    for (call, _) in CALLS {
        let served = |result: Result<(), tonic_types::Status>| {
            let code = result.map_or_else(|status| Code::from(status.code), |()| Code::Ok);
            ![Code::PermissionDenied, Code::Unauthenticated].contains(&code)
        };
        assert!(served(scene.make(scene.token("nothing"), call, "k").await), "{call}");
        assert!(!served(scene.make(None, call, "k").await), "{call}");
        let open = start(Config::default()).await;
        for header in [None, bearer("anything")] {
            let connection = authorized(connect(open.address()).await, header);
            assert!(served(make(&connection, &open.origin(), call, "k").await), "{call}");
        }
    }
}

#[tokio::test]
async fn what_is_no_namespace_is_denied_without_being_repeated() {
    let scene = Scene::new().await;
    let connection = authorized(scene.server.connect().await, scene.token("reader"));
    let mut api = IdempotencyServiceClient::with_origin(connection, scene.server.origin());
    let namespace = "\u{1b}[31m".repeat(1_000);
    let lookup = v1::LookupRequest { namespace, key: "k".to_owned(), wait: None };
    let status = api.lookup(lookup).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().len() < 200 && !status.message().contains('\u{1b}'), "{status:?}");
}
