//! What becomes of the headers of a request and of an answer on their way through.

use std::net::IpAddr;

use http::header::{
    CONNECTION, EXPECT, Entry, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// What the upstream is told of its claim: a number that is larger with each attempt, for resources that remember
/// the highest one they saw; and which attempt this is.
pub const FENCING_TOKEN: HeaderName = HeaderName::from_static("onced-fencing-token");
pub const ATTEMPT: HeaderName = HeaderName::from_static("onced-attempt");
/// What the upstream may say of its answer.
pub const OUTCOME: HeaderName = HeaderName::from_static("onced-outcome");
/// What marks an answer that was stored before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What is of one connection, and goes no further (RFC 9110, 7.6.1). Trailers do, so `trailer` stays.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Whether a request asks to speak something else from now on. HTTP/2 is no such thing: it may be left at that.
pub fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    let mut protocols = values(headers, &UPGRADE);
    protocols.any(|protocol| !protocol.eq_ignore_ascii_case("h2c") && !protocol.is_empty())
}

/// Why it is not clear which host a request is for, if that is so: its readers might each take another one.
pub fn host_unclear(headers: &HeaderMap, uri: &Uri) -> Option<&'static str> {
    if headers.get_all(HOST).iter().count() > 1 {
        return Some("it has more than one Host header");
    }
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    let with_user = [authority, host].into_iter().flatten().any(|host| host.contains(&b'@'));
    with_user.then_some("its host holds a user or a password")
}

/// Makes those of a request what the upstream is to see. Before anything else reads them: what a caller has struck by
/// its Connection header is not there for the key and the scope either.
pub fn of_request(headers: &mut HeaderMap, uri: &Uri, peer: IpAddr) {
    let trailers = values(headers, &TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    strike_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    // The caller is told to go on as soon as its body is read.
    headers.remove(EXPECT);
    strike_ours(headers);
    // The target counts where it names a host (RFC 9112, 3.2.2); HTTP/2 has it there alone.
    if let Some(host) = uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        headers.insert(HOST, host);
    }
    forwarded(headers, peer);
}

/// Makes those of an answer what the caller is to see.
pub fn of_response(headers: &mut HeaderMap) {
    strike_hop_by_hop(headers);
}

/// Says who asked, and for what. What stands there already is from a proxy in front, or from a caller that may lie:
/// only who is in front can tell.
fn forwarded(headers: &mut HeaderMap, peer: IpAddr) {
    let before: Vec<_> = headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    let mut chain = before.join(&b", "[..]);
    if !chain.is_empty() {
        chain.extend(b", ");
    }
    chain.extend(peer.to_canonical().to_string().bytes());
    if let Ok(chain) = HeaderValue::from_bytes(&chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    if let Some(host) = headers.get(HOST).cloned()
        && let Entry::Vacant(none) = headers.entry(FORWARDED_HOST)
    {
        none.insert(host);
    }
    if let Entry::Vacant(none) = headers.entry(FORWARDED_PROTO) {
        none.insert(HeaderValue::from_static("http"));
    }
}

/// Strikes what only the proxy may say: also with underscores, which many services do not tell from dashes.
fn strike_ours(headers: &mut HeaderMap) {
    let is_ours = |name: &&HeaderName| {
        let name = name.as_str().replace('_', "-");
        name == FENCING_TOKEN.as_str() || name == ATTEMPT.as_str()
    };
    let ours: Vec<_> = headers.keys().filter(is_ours).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

fn strike_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<_> =
        values(headers, &CONNECTION).filter_map(|name| name.parse::<HeaderName>().ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The members of a list, over all headers of the name.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn requested(pairs: &[(&str, &str)], uri: &str) -> HeaderMap {
        let mut headers = headers(pairs);
        of_request(&mut headers, &uri.parse().unwrap(), "10.0.0.9".parse().unwrap());
        headers
    }

    #[test]
    fn what_is_of_one_connection_goes_no_further() {
        let seen = requested(
            &[
                ("connection", "close, X-Own"),
                ("connection", "keep-alive"),
                ("x-own", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "gzip, trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("proxy-authorization", "secret"),
                ("trailer", "digest"),
                ("authorization", "theirs"),
                ("onced-fencing-token", "99"),
                ("onced-attempt", "99"),
                ("onced_fencing_token", "99"),
                ("Onced-Fencing_Token", "99"),
                ("onced_attempt", "99"),
                ("onced_other", "theirs"),
                ("host", "shop"),
            ],
            "/orders",
        );
        let expected = headers(&[
            ("te", "trailers"),
            ("trailer", "digest"),
            ("authorization", "theirs"),
            ("onced_other", "theirs"),
            ("host", "shop"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-host", "shop"),
            ("x-forwarded-proto", "http"),
        ]);
        assert_eq!(seen, expected);
    }

    #[test]
    fn who_is_in_front_has_said_who_asked() {
        let said = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-proto", "https"),
        ];
        let seen = requested(&said, "http://inner:80/orders");
        assert_eq!(seen["x-forwarded-for"], "1.2.3.4, 10.0.0.1, 10.0.0.9");
        assert_eq!(seen["x-forwarded-host"], "shop.example");
        assert_eq!(seen["x-forwarded-proto"], "https");
        assert_eq!(seen["host"], "inner:80");
    }

    #[test]
    fn a_request_is_for_one_host() {
        let unclear = |pairs: &[(&str, &str)], uri: &str| {
            host_unclear(&headers(pairs), &uri.parse().unwrap()).is_some()
        };
        assert!(!unclear(&[], "/") && !unclear(&[("host", "shop")], "/"));
        assert!(!unclear(&[("host", "shop")], "http://shop:80/"));
        assert!(unclear(&[("host", "shop"), ("host", "shop")], "/"));
        assert!(unclear(&[("host", "me@shop")], "/"));
        assert!(unclear(&[("host", "shop")], "http://me:pw@shop/"));
    }

    #[test]
    fn an_upgrade_is_seen_unless_it_is_to_http2() {
        assert!(asks_for_upgrade(&headers(&[("upgrade", "websocket")])));
        assert!(asks_for_upgrade(&headers(&[("upgrade", "h2c, foo/2")])));
        assert!(!asks_for_upgrade(&headers(&[("upgrade", "H2C")])));
        assert!(!asks_for_upgrade(&headers(&[])));
    }
}
