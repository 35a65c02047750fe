//! What a request says: its key, whose that is, and what it asks for.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::body::{Read, Whole, read};
use super::refusal::Refusal;
use super::{Body, Options, Wire, grpc};
use crate::fingerprint::digest;
use crate::once::Once;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest key that onced takes, in bytes; and what a scope in front of it takes.
const MAX_KEY_BYTES: usize = 512;
const SCOPE_BYTES: usize = 33;

/// A request, and the run that it asks for. One with a key has been read to its end.
pub(super) struct Asked {
    pub request: Request<Body>,
    /// None: it has nothing to do with keys.
    pub once: Option<Once>,
}

impl Options {
    /// Reads a request.
    pub(super) async fn ask(&self, request: Request<Body>) -> Result<Asked, Refusal> {
        let (mut parts, body) = request.into_parts();
        if !self.wire.takes_keys(&parts) {
            return Ok(Asked { request: Request::from_parts(parts, body), once: None });
        }
        let streams = self.wire.streams(&parts);
        let Some(key) = key(&parts.headers)? else {
            if self.key_optional || streams {
                return Ok(Asked { request: Request::from_parts(parts, body), once: None });
            }
            return Err(Refusal::KeyMissing);
        };
        if streams {
            return Err(Refusal::Streams);
        }
        let key = self.scoped(key, &parts)?;
        let body = self.read(body).await?;
        let fingerprint = match &self.wire {
            Wire::Http { .. } => {
                let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
                let head = [b"http\0", parts.method.as_str().as_bytes(), b"\0", target.as_bytes(), b"\0"];
                digest(head.into_iter().chain([&body.data[..]]))
            }
            Wire::Grpc { .. } => {
                let message = grpc::only_message(&body.data).ok_or(Refusal::Streams)?;
                // The answer is stored as it is, for callers who may not know how it was compressed.
                parts.headers.remove("grpc-accept-encoding");
                digest([&b"grpc\0"[..], parts.uri.path().as_bytes(), b"\0", message])
            }
        };
        let once = Some(self.once(key).fingerprint(fingerprint));
        Ok(Asked { request: Request::from_parts(parts, body.into_body()), once })
    }

    fn once(&self, key: String) -> Once {
        let mut once = self.client.once(key).namespace(&self.namespace).wait(self.wait);
        once = once.on_lapse(self.on_lapse).on_failure(self.rule);
        if let Some(ttl) = self.lock_ttl {
            once = once.lock_ttl(ttl);
        }
        if let Some(retention) = self.retention {
            once = once.retention(retention);
        }
        if let Some(after) = self.fail_open {
            once = once.fail_open(after);
        }
        once
    }

    /// The key as onced has it.
    fn scoped(&self, key: String, parts: &Parts) -> Result<String, Refusal> {
        let Some(scope) = &self.scope else { return Ok(key) };
        let scope = scope(parts).filter(|scope| !scope.is_empty()).ok_or(Refusal::ScopeMissing)?;
        if key.len() > MAX_KEY_BYTES - SCOPE_BYTES {
            return Err(Refusal::KeyInvalid);
        }
        Ok(scoped(&scope, &key))
    }

    async fn read(&self, body: Body) -> Result<Whole, Refusal> {
        let max_bytes = match &self.wire {
            Wire::Http { .. } => self.max_request_bytes,
            Wire::Grpc { .. } => self.max_request_bytes.saturating_add(grpc::FRAME_BYTES),
        };
        match read(body, max_bytes).await {
            Read::Whole(body) => Ok(body),
            Read::TooLarge(..) => Err(Refusal::RequestTooLarge(self.max_request_bytes)),
            Read::Broken(..) => Err(Refusal::RequestBroken),
        }
    }
}

impl Wire {
    fn takes_keys(&self, parts: &Parts) -> bool {
        match self {
            Wire::Http { methods, .. } => methods.contains(&parts.method),
            Wire::Grpc { methods: Some(methods), streaming } => {
                [methods, streaming].iter().any(|names| names.iter().any(|name| name == parts.uri.path()))
            }
            // Health and reflection are asked by machines, which have no keys.
            Wire::Grpc { methods: None, .. } => !parts.uri.path().starts_with("/grpc."),
        }
    }

    /// Whether it is known of a method that it streams.
    fn streams(&self, parts: &Parts) -> bool {
        match self {
            Wire::Http { .. } => false,
            Wire::Grpc { streaming, .. } => streaming.iter().any(|name| name == parts.uri.path()),
        }
    }
}

/// The value of a header that is there once.
pub(super) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The key of a request, if it has one.
fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    if !headers.contains_key(KEY) {
        return Ok(None);
    }
    let value = only(headers, &KEY).and_then(|value| value.to_str().ok()).ok_or(Refusal::KeyInvalid)?;
    parse(value).map(Some).ok_or(Refusal::KeyInvalid)
}

/// The key that a header holds: a string of structured fields (RFC 9651, 4.2.5), or the bare text.
fn parse(value: &str) -> Option<String> {
    let value = value.trim_matches([' ', '\t']);
    let key = match value.strip_prefix('"') {
        Some(quoted) => unquoted(quoted)?,
        None => value.to_owned(),
    };
    let printable = key.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    (printable && (1..=MAX_KEY_BYTES).contains(&key.len())).then_some(key)
}

fn unquoted(quoted: &str) -> Option<String> {
    let mut key = String::new();
    let mut rest = quoted.chars();
    loop {
        match rest.next()? {
            '"' => return rest.as_str().is_empty().then_some(key),
            '\\' => key.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other => key.push(other),
        }
    }
}

/// The key of a scope: by a digest, so that whatever the scope is, it is neither too long nor to be read by all.
fn scoped(scope: &str, key: &str) -> String {
    let digest = digest([scope.as_bytes()]);
    let mut scoped: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    scoped.push(':');
    scoped.push_str(key);
    scoped
}

#[cfg(test)]
#[cfg(feature = "json")]
mod tests {
    use crate::http::body::full;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::client::Client;
    use crate::fingerprint::vectors::{data, hex, text, vectors};
    use crate::http::OnceLayer;

    #[test]
    fn keys_are_read_as_in_every_language() {
        for entry in vectors("keys") {
            assert_eq!(parse(text(&entry, "header")).as_deref(), Some(text(&entry, "key")), "{entry}");
        }
        for entry in vectors("keys_refused") {
            // What is not ASCII comes as bytes, and is no text.
            let value = HeaderValue::from_bytes(text(&entry, "header").as_bytes());
            let key = value.ok().and_then(|value| value.to_str().ok().and_then(parse));
            assert_eq!(key, None, "{entry}");
        }
    }

    #[test]
    fn a_key_of_a_scope_is_the_same_in_every_language() {
        for entry in vectors("scope") {
            assert_eq!(scoped(text(&entry, "scope"), text(&entry, "key")), text(&entry, "stored"), "{entry}");
        }
    }

    fn request(method: &str, target: &str, body: Vec<u8>) -> Request<Body> {
        let body = full(body);
        Request::builder().method(method).uri(target).header("idempotency-key", "k").body(body).unwrap()
    }

    async fn asked(layer: &OnceLayer, request: Request<Body>) -> Result<Asked, Refusal> {
        layer.0.ask(request).await
    }

    #[tokio::test]
    async fn the_fingerprint_of_a_request_is_the_same_in_every_language() {
        let layer = OnceLayer::new(Client::connect("127.0.0.1:1").unwrap());
        for entry in vectors("http") {
            let request = request(text(&entry, "method"), text(&entry, "target"), data(&entry, "body"));
            let Ok(Asked { request, once: Some(once) }) = asked(&layer, request).await else {
                panic!("{entry}")
            };
            assert_eq!(hex(once.fingerprint_of()), text(&entry, "digest"), "{entry}");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, data(&entry, "body"));
        }
    }

    #[tokio::test]
    async fn what_a_request_lacks_is_told() {
        let layer = OnceLayer::new(Client::connect("127.0.0.1:1").unwrap()).max_request_bytes(3);
        let without = |layer: OnceLayer| async move {
            let mut request = request("POST", "/", Vec::new());
            request.headers_mut().remove("idempotency-key");
            asked(&layer, request).await
        };
        assert!(matches!(without(layer.clone()).await, Err(Refusal::KeyMissing)));
        assert!(matches!(without(layer.clone().key_optional()).await, Ok(Asked { once: None, .. })));
        assert!(matches!(asked(&layer, request("GET", "/", Vec::new())).await, Ok(Asked { once: None, .. })));
        let long = request("POST", "/", vec![0; 4]);
        assert!(matches!(asked(&layer, long).await, Err(Refusal::RequestTooLarge(3))));
        let mut twice = request("POST", "/", Vec::new());
        twice.headers_mut().append("idempotency-key", HeaderValue::from_static("k"));
        assert!(matches!(asked(&layer, twice).await, Err(Refusal::KeyInvalid)));

        let layer = layer.scope_header(HeaderName::from_static("x-account"));
        assert!(matches!(asked(&layer, request("POST", "/", Vec::new())).await, Err(Refusal::ScopeMissing)));
        for (length, fits) in [(479, true), (480, false)] {
            let mut scoped = request("POST", "/", Vec::new());
            scoped.headers_mut().insert("x-account", HeaderValue::from_static("a"));
            scoped.headers_mut().insert("idempotency-key", "x".repeat(length).parse().unwrap());
            assert_eq!(
                matches!(asked(&layer, scoped).await, Ok(Asked { once: Some(_), .. })),
                fits,
                "{length}"
            );
        }
    }
}
