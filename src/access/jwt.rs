//! JSON Web Tokens, of issuers whose keys are in a file (JWKS, RFC 7517). Less is taken than the standard has: there is
//! no algorithm but those below, each key is for the algorithms of its own kind alone, and no key is ever a secret. So
//! neither a token without a signature nor one that is signed by a public key can be expressed. The signatures
//! themselves are checked by ring, as those of TLS are.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lru::LruCache;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Caller, Unproven, Unusable};
use crate::record::Timestamp;

/// The setting that names the file.
pub(super) const SETTING: &str = "access.jwks";
/// The longest token.
const TOKEN_MAX_BYTES: usize = 8 << 10;
/// How far the clock of an issuer may be from this one.
const LEEWAY: Duration = Duration::from_secs(30);
/// The shortest RSA key, in bytes.
const RSA_MIN_BYTES: usize = 256;
/// How many tokens are remembered to be good. To check a signature costs more than to serve many a call.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);

/// How tokens may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Ps256,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Algorithm::Rs256),
            "PS256" => Some(Algorithm::Ps256),
            "ES256" => Some(Algorithm::Es256),
            "ES384" => Some(Algorithm::Es384),
            "EdDSA" => Some(Algorithm::EdDsa),
            _ => None,
        }
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Public {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Public {
    /// Whether a signature of this kind was made by it. An algorithm of another kind is never asked for.
    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let rsa = |n, e, parameters: &RsaParameters| {
            RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
        };
        let plain = |key: &[u8], algorithm: &'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        match (self, algorithm) {
            (Public::Rsa { n, e }, Algorithm::Rs256) => rsa(n, e, &RSA_PKCS1_2048_8192_SHA256),
            (Public::Rsa { n, e }, Algorithm::Ps256) => rsa(n, e, &RSA_PSS_2048_8192_SHA256),
            (Public::P256(key), Algorithm::Es256) => plain(key, &ECDSA_P256_SHA256_FIXED),
            (Public::P384(key), Algorithm::Es384) => plain(key, &ECDSA_P384_SHA384_FIXED),
            (Public::Ed25519(key), Algorithm::EdDsa) => plain(key, &ED25519),
            _ => false,
        }
    }
}

/// A key of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// The one algorithm that it is for, if its issuer says so.
    algorithm: Option<Algorithm>,
    public: Public,
}

/// The issuer whose tokens are taken.
#[derive(Debug)]
pub struct Issuer {
    keys: Vec<Key>,
    name: String,
    audience: String,
    /// Tokens that were found to be good, by their hash.
    good: Mutex<LruCache<[u8; 32], Caller>>,
}

impl Issuer {
    /// The issuer of this name, whose tokens for this audience are signed by the keys of a file.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no key that can be used.
    pub fn load(file: &Path, name: &str, audience: &str) -> Result<Self, Unusable> {
        let text = fs::read(file).map_err(|error| Unusable::unread(SETTING, file, &error))?;
        Self::of(&text, name, audience).map_err(|why| Unusable::of(SETTING, file, why))
    }

    /// The same, of what the file holds.
    pub(super) fn of(text: &[u8], name: &str, audience: &str) -> Result<Self, String> {
        let keys = keys(text)?;
        let good = Mutex::new(LruCache::new(REMEMBERED));
        Ok(Self { keys, name: name.to_owned(), audience: audience.to_owned(), good })
    }

    /// Who a token says that it is.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, Unproven> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(Unproven::Invalid("is over 8192 bytes"));
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let remembered = self.good.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        let caller = match remembered {
            Some(caller) => caller,
            None => {
                let caller = self.read(token, now)?;
                self.good.lock().unwrap_or_else(PoisonError::into_inner).put(hash, caller.clone());
                caller
            }
        };
        if caller.until.is_some_and(|until| until <= now) { Err(Unproven::Expired) } else { Ok(caller) }
    }

    fn read(&self, token: &str, now: Timestamp) -> Result<Caller, Unproven> {
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Unproven::Invalid("is no JWT: it has not three parts"));
        };
        let signed = &token.as_bytes()[..header.len() + 1 + claims.len()];
        let header = object(header)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| Unproven::Invalid("is no JWT: its signature is no base64"))?;
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(Algorithm::named);
        let algorithm = algorithm.ok_or(Unproven::Invalid(
            "is signed in a way that is not taken: only RS256, PS256, ES256, ES384 and EdDSA are",
        ))?;
        if header.contains_key("crit") {
            return Err(Unproven::Invalid("asks for extensions (crit) that this server does not know"));
        }
        let verifies = |key: &Key| {
            key.algorithm.is_none_or(|only| only == algorithm)
                && key.public.verifies(algorithm, signed, &signature)
        };
        let mut named = self.named(header.get("kid"))?.peekable();
        if named.peek().is_none() {
            return Err(Unproven::Invalid("is signed by a key that is not in the file of access.jwks"));
        }
        if !named.any(verifies) {
            return Err(Unproven::Invalid("is not signed by the key that it names"));
        }
        self.claimed(&object(claims)?, now)
    }

    /// The keys that a token may be signed by: those of the id that it names, or the only one there is.
    fn named(&self, id: Option<&Value>) -> Result<impl Iterator<Item = &Key>, Unproven> {
        let id = match id {
            Some(Value::String(id)) => Some(id.as_str()),
            Some(_) => return Err(Unproven::Invalid("has a key id (kid) that is no text")),
            None if self.keys.len() == 1 => None,
            None => return Err(Unproven::Invalid("names no key (kid), and there are several")),
        };
        Ok(self.keys.iter().filter(move |key| id.is_none() || key.id.as_deref() == id))
    }

    /// Whom the claims of a token are about, once its signature was found to be good.
    fn claimed(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Caller, Unproven> {
        if claims.get("iss").and_then(Value::as_str) != Some(&self.name) {
            return Err(Unproven::Invalid("is of another issuer (iss) than access.jwt_issuer"));
        }
        let is_audience = |value: &Value| value.as_str() == Some(&self.audience);
        let for_us = match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(is_audience),
            Some(one) => is_audience(one),
            None => false,
        };
        if !for_us {
            return Err(Unproven::Invalid("is for another audience (aud) than access.jwt_audience"));
        }
        let until = claims
            .get("exp")
            .and_then(time)
            .ok_or(Unproven::Invalid("does not say when it expires (exp)"))?;
        let until = until.plus(LEEWAY);
        if until <= now {
            return Err(Unproven::Expired);
        }
        if let Some(from) = claims.get("nbf") {
            let from = time(from).ok_or(Unproven::Invalid("has a beginning (nbf) that is no time"))?;
            if from > now.plus(LEEWAY) {
                return Err(Unproven::Invalid("is not valid yet (nbf)"));
            }
        }
        let subject = claims.get("sub").and_then(Value::as_str).and_then(|sub| Caller::of_jwt(sub, until));
        subject.ok_or(Unproven::Invalid("does not say whom it is about (sub)"))
    }
}

fn object(part: &str) -> Result<Map<String, Value>, Unproven> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok();
    let value = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    value.ok_or(Unproven::Invalid("is no JWT: a part of it is no JSON object in base64"))
}

/// A time in seconds since the epoch, with a fraction or without.
fn time(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64().filter(|seconds| (0.0..1e11).contains(seconds))?;
    let since_epoch = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Timestamp::from_micros(0).plus(since_epoch))
}

/// The keys of a file that tokens may be signed by. Those that are for other things, or of kinds that are not known,
/// are left out.
fn keys(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: Value = serde_json::from_slice(text).map_err(|error| format!("is no JSON: {error}"))?;
    let all = set.get("keys").and_then(Value::as_array).ok_or("is no JWKS: it has no list called keys")?;
    let mut keys = Vec::new();
    for (index, key) in all.iter().enumerate() {
        keys.extend(
            read(key)
                .map_err(|why| format!("holds a key that cannot be used, number {}: {why}", index + 1))?,
        );
    }
    if keys.is_empty() {
        return Err(
            "holds no key that tokens may be signed by: of type RSA, EC (P-256, P-384) or OKP (Ed25519)"
                .into(),
        );
    }
    Ok(keys)
}

fn read(key: &Value) -> Result<Option<Key>, String> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let bytes = |name: &str| {
        let bytes = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        bytes.ok_or_else(|| format!("{name} is missing, or no base64"))
    };
    let exactly = |name: &str, len: usize| {
        let found = bytes(name)?;
        if found.len() == len { Ok(found) } else { Err(format!("{name} has not {len} bytes")) }
    };
    let point = |len| Ok::<_, String>([vec![4], exactly("x", len)?, exactly("y", len)?].concat());
    if key.get("d").or(key.get("k")).is_some() {
        return Err(
            "it is a secret one (d, k), by which whoever reads the file signs tokens; leave its public part"
                .into(),
        );
    }
    if text("use").is_some_and(|what| what != "sig") {
        return Ok(None);
    }
    let algorithm = match text("alg").map(Algorithm::named) {
        Some(None) => return Ok(None),
        Some(algorithm) => algorithm,
        None => None,
    };
    let public = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            let zeros = n.iter().take_while(|&&byte| byte == 0).count();
            if n.len() - zeros < RSA_MIN_BYTES {
                return Err(format!("it has fewer than {} bits", RSA_MIN_BYTES * 8));
            }
            Public::Rsa { n: n[zeros..].to_vec(), e }
        }
        (Some("EC"), Some("P-256")) => Public::P256(point(32)?),
        (Some("EC"), Some("P-384")) => Public::P384(point(48)?),
        (Some("OKP"), Some("Ed25519")) => Public::Ed25519(exactly("x", 32)?),
        _ => return Ok(None),
    };
    Ok(Some(Key { id: text("kid").map(str::to_owned), algorithm, public }))
}

#[cfg(test)]
mod tests;
