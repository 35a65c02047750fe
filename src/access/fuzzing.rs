//! What fuzzing enters here.

use std::sync::Arc;

use tokio_rustls::rustls::pki_types::CertificateDer;

use super::jwt::Issuer;
use super::{Caller, Gate, Tokens};
use crate::record::Timestamp;

const KEYS: &str = r#"{"keys":[
    {"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    {"kty":"EC","crv":"P-256","kid":"2","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
]}"#;

/// Bytes as a header that says who calls, as a certificate, and as a file of keys.
pub fn credentials(data: &[u8]) {
    let issuer = Issuer::of(KEYS.as_bytes(), "issuer", "onced").ok().map(Arc::new);
    let gate = Gate { tokens: Some(Arc::new(Tokens::default())), issuer, ..Gate::default() };
    let identified = gate.identify(None, &[data], Timestamp::from_micros(0));
    assert!(identified.is_err(), "nobody has signed anything");
    Caller::of_certificate(&CertificateDer::from(data));
    let _ = Issuer::of(data, "issuer", "onced");
}

/// A token of the server's own, JWTs that nobody has signed, and keys.
pub fn all_credentials() -> Vec<Vec<u8>> {
    // {"alg":"EdDSA","kid":"1"} and {"alg":"ES256","kid":"2"}, with {"iss":"issuer","aud":"onced","sub":"a","exp":9e9}.
    let claims = "eyJpc3MiOiJpc3N1ZXIiLCJhdWQiOiJvbmNlZCIsInN1YiI6ImEiLCJleHAiOjllOX0";
    let signature = "A".repeat(86);
    let jwt = |header: &str| format!("Bearer {header}.{claims}.{signature}").into_bytes();
    vec![
        b"Bearer onced_11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".to_vec(),
        jwt("eyJhbGciOiJFZERTQSIsImtpZCI6IjEifQ"),
        jwt("eyJhbGciOiJFUzI1NiIsImtpZCI6IjIifQ"),
        KEYS.as_bytes().to_vec(),
    ]
}
