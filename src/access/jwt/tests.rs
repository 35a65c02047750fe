//! Tokens that are taken, and all the others.

use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use serde_json::json;

use super::*;

/// A key that nothing but these tests has ever used: ring makes no RSA keys.
const RSA: &str = "MIIEvgIBADANBgkqhkiG9w0BAQEFAASCBKgwggSkAgEAAoIBAQCVb4jQJ4/tM79NzeAwwfUCHrRnUImuusGFA9edeiiAvpDrI0D+\
     2l8WpB/skJ+7V7qPQS5sjbdkCvol7cmUx1GppVJkWDZ8c/gIDEHy932DtHSVhKHHXvHXucvHpZPufiheDQ5O280FRqJjLKLUPRuf\
     d+aGOpmFS3W+Y5GbeF0ljdl7y1BSMVeRTBG1HYVt9sHuWPml4M9LYnLOYj6krSTo0WuDCbPc/2Qj3Mp5n/bdOZJ0qpImfiFHnJOh\
     T/igfxXYVytfiEoip2jdHXNdWF46hDuZyqonZrKUBXq3gORWU2KVjdrqQfoawBv++AcXruzSVlftpXtIb7jDiEf8A1qzAgMBAAEC\
     ggEAAMRC1Ik4UAfjRAgH6jECxI2ScLKVTOlLeqU39Nozzv4rSmJrsdTMhsD8zWKPq6t9jN1DL+5+o3ndm49RaMP95woEFtyWxaNY\
     5NqQlAz4jPymBHgh8pCRBYGjn43rd0H8NiSlOeyQ+kG6u/1LvsfkJJwvwJOmm8GRWb1d62y24S1S5PaLlkQjOc6vIIL/gSNWIzMo\
     WWvu4Z8pIZfMRg/e8ArIPsweE2Ieww4fB+3ZWUUG35LjSLgKORwc6JcYz3o3o4lZzy4PmTumVronpZdfq7Kqdj8a3mtX5lWqE7CV\
     KrXtvE7GPOYk57oIL1lwxWc2t9BkyOs5eICVawYUIx4OwQKBgQDFs+7GBEjK2TrUV8Sh2d5WINYHlVplq9cLUepedVKYv078LLll\
     JY8RJk+oj6IGli4yFzjielmOP1z0+y4WipvZgaK6bh5FQT6JN0voAOeL/xczqMqvrL2NY8KNmmMUMMcJGIj058YTrLLmht2k2oVJ\
     0xIatfG4SulRYxhU4rcUowKBgQDBgAok19jcyurL75w35+LUISAjMv79rIp+F8NwyeSH1EbTp5eNiBUvEjK2xZ7j648+Z/J4pLSF\
     +XEDIEpwn1d47jtIxt/d00L13UdchEWPbZdg7EDyuEHcADO5J0YbeKMws0hVFaawC7WhYeJ0t1Y2mmw41Y8WRpQAIARM4STysQKB\
     gQCL1x4JinZCpSzrjblUElsl6Mv7STVLvSS6qRJyBeKKkKc50BjC5rIvmz21KQOeTRQX8j0WVRyLdV43GoQbBaf/Tabg34shyWiG\
     fkp+rEUbzS+IJthXMoRRQkMXDiEO4wGl+WjGcjq1J+7TCIo2VSr6cQXZRuDXToWCP+myATsmqQKBgQCD54eCtA0l/cFvAcjJJ26t\
     0mL4+7NtM6g46nQVN9tsaF1bvNwH4+Mk8k/V3gNBNXuxO+TDLuvMhEzwp5t3CHf1fNi29LL4oSH9Pjl+LMDKVBekP4jKrKZglVas\
     +cPFyEfeU+iT761wRpsrBvH7RFsl38C0QYhH1BbhuvGTgsrQEQKBgF1OHhl+V4jiAejcfj+ThEuUqOmLC0rko0o2vOdbFuG/asn4\
     ufk4okBj8O1hfUXkyUosR+QoOUc0RTe1TQ5w5rtkauQeWeuYjhRHtubQQAmLlANauquuycgM3YJk96wzlWFsIJdekC2XI3qBlWzK\
     xh722ljxV/cwW8qNyVY2hqEH";
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(0).plus(Duration::from_secs(seconds))
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Signs a message.
type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// What signs tokens, and what the file says of it.
struct Signer {
    sign: Sign,
    jwk: Value,
}

fn rsa(encoding: &'static dyn RsaEncoding) -> Signer {
    let pkcs8 = base64::engine::general_purpose::STANDARD.decode(RSA).unwrap();
    let key = RsaKeyPair::from_pkcs8(&pkcs8).unwrap();
    let public: ring::rsa::PublicKeyComponents<Vec<u8>> = key.public().into();
    let jwk = json!({ "kty": "RSA", "kid": "rsa", "n": base64(&public.n), "e": base64(&public.e) });
    let sign = move |message: &[u8]| {
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    };
    Signer { sign: Box::new(sign), jwk }
}

fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm, curve: &str) -> Signer {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
    let (x, y) = key.public_key().as_ref()[1..].split_at(key.public_key().as_ref().len() / 2);
    let jwk = json!({ "kty": "EC", "crv": curve, "kid": curve, "x": base64(x), "y": base64(y) });
    let sign = move |message: &[u8]| key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec();
    Signer { sign: Box::new(sign), jwk }
}

fn ed25519(id: &str) -> Signer {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": base64(key.public_key()) });
    Signer { sign: Box::new(move |message| key.sign(message).as_ref().to_vec()), jwk }
}

/// The claims of a token that is taken.
fn claims() -> Value {
    json!({ "iss": "https://issuer", "aud": "onced", "sub": "orders", "exp": NOW + 60, "nbf": NOW - 60 })
}

/// The same but for one; null leaves it out.
fn claims_but(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    format!("{signed}.{}", base64(sign(signed.as_bytes())))
}

fn loaded(keys: &Value) -> Result<Issuer, Unusable> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jwks.json");
    fs::write(&file, keys.to_string()).unwrap();
    Issuer::load(&file, "https://issuer", "onced")
}

fn issuer(signers: &[&Signer]) -> Issuer {
    loaded(&json!({ "keys": signers.iter().map(|signer| signer.jwk.clone()).collect::<Vec<_>>() })).unwrap()
}

fn taken(issuer: &Issuer, token: &str) -> Result<String, Unproven> {
    issuer.verify(token, at(NOW)).map(|caller| caller.to_string())
}

#[track_caller]
fn invalid(issuer: &Issuer, token: &str, why: &str) {
    match taken(issuer, token) {
        Err(Unproven::Invalid(told)) => assert!(told.contains(why), "{why}: {told}"),
        other => panic!("{why}: {other:?}"),
    }
}

#[test]
fn a_token_is_taken_by_each_algorithm_with_the_key_that_it_names() {
    let signers = [
        ("RS256", rsa(&RSA_PKCS1_SHA256)),
        ("PS256", rsa(&RSA_PSS_SHA256)),
        ("ES256", ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")),
        ("ES384", ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384")),
        ("EdDSA", ed25519("ed")),
    ];
    let issuer = issuer(&signers.iter().map(|(_, signer)| signer).collect::<Vec<_>>());
    for (algorithm, signer) in &signers {
        let header = json!({ "alg": algorithm, "kid": signer.jwk["kid"] });
        let good = token(&header, &claims(), &signer.sign);
        assert_eq!(taken(&issuer, &good), Ok("jwt:orders".to_owned()), "{algorithm}");
        // And again, as it is remembered.
        assert_eq!(taken(&issuer, &good), Ok("jwt:orders".to_owned()), "{algorithm}");
        let other = token(&header, &claims_but("sub", json!("root")), |_| (signer.sign)(b"something else"));
        invalid(&issuer, &other, "not signed by the key");
        for (other, _) in signers.iter().filter(|(other, _)| other != algorithm) {
            let header = json!({ "alg": other, "kid": signer.jwk["kid"] });
            invalid(&issuer, &token(&header, &claims(), &signer.sign), "not signed by the key");
        }
    }
}

#[test]
fn no_token_is_taken_without_a_signature_or_by_one_that_anybody_can_make() {
    let signer = rsa(&RSA_PKCS1_SHA256);
    let issuer = issuer(&[&signer]);
    for none in ["none", "None", "NONE", "nOnE", "", "HS384", "RS1", "rs256"] {
        let header = json!({ "alg": none, "kid": "rsa" });
        invalid(&issuer, &token(&header, &claims(), |_| Vec::new()), "in a way that is not taken");
    }
    invalid(
        &issuer,
        &token(&json!({ "kid": "rsa" }), &claims(), |_| Vec::new()),
        "in a way that is not taken",
    );
    // Everybody has the public key. Taken as a secret, in any of its forms, it would make everybody the issuer.
    let decoded = |name: &str| URL_SAFE_NO_PAD.decode(signer.jwk[name].as_str().unwrap()).unwrap();
    for secret in
        [decoded("n"), signer.jwk["n"].to_string().into_bytes(), signer.jwk.to_string().into_bytes()]
    {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let hmac = |message: &[u8]| hmac::sign(&key, message).as_ref().to_vec();
        let header = json!({ "alg": "HS256", "kid": "rsa" });
        invalid(&issuer, &token(&header, &claims(), hmac), "in a way that is not taken");
        let header = json!({ "alg": "RS256", "kid": "rsa" });
        invalid(&issuer, &token(&header, &claims(), hmac), "not signed by the key");
    }
    let header = json!({ "alg": "RS256", "kid": "rsa" });
    invalid(&issuer, &token(&header, &claims(), |_| Vec::new()), "not signed by the key");
}

#[test]
fn a_key_is_for_the_algorithm_that_it_says_alone_and_for_signatures() {
    let mut signer = rsa(&RSA_PKCS1_SHA256);
    let good = token(&json!({ "alg": "RS256", "kid": "rsa" }), &claims(), &signer.sign);
    signer.jwk["alg"] = json!("PS256");
    invalid(&issuer(&[&signer]), &good, "not signed by the key");
    signer.jwk["alg"] = json!("RS256");
    assert!(taken(&issuer(&[&signer]), &good).is_ok());
    signer.jwk["use"] = json!("enc");
    invalid(&issuer(&[&signer, &ed25519("ed")]), &good, "not in the file");
}

#[test]
fn a_token_names_its_key_where_there_are_several() {
    let (one, two) = (ed25519("one"), ed25519("two"));
    let unnamed = token(&json!({ "alg": "EdDSA" }), &claims(), &one.sign);
    assert!(taken(&issuer(&[&one]), &unnamed).is_ok());
    let both = issuer(&[&one, &two]);
    invalid(&both, &unnamed, "names no key");
    invalid(
        &both,
        &token(&json!({ "alg": "EdDSA", "kid": "three" }), &claims(), &one.sign),
        "not in the file",
    );
    invalid(
        &both,
        &token(&json!({ "alg": "EdDSA", "kid": "two" }), &claims(), &one.sign),
        "not signed by the key",
    );
    invalid(&both, &token(&json!({ "alg": "EdDSA", "kid": 1 }), &claims(), &one.sign), "no text");
    let critical = json!({ "alg": "EdDSA", "kid": "one", "crit": ["x"] });
    invalid(&both, &token(&critical, &claims(), &one.sign), "crit");
}

#[test]
fn each_claim_is_checked() {
    let signer = ed25519("ed");
    let issuer = issuer(&[&signer]);
    let with = |name: &str, value| {
        let header = json!({ "alg": "EdDSA", "kid": "ed" });
        taken(&issuer, &token(&header, &claims_but(name, value), &signer.sign))
    };
    let no = |told: Result<String, Unproven>, why: &str| match told {
        Err(Unproven::Invalid(told)) => assert!(told.contains(why), "{why}: {told}"),
        other => panic!("{why}: {other:?}"),
    };
    for wrong in [json!(null), json!("https://issuer/"), json!(["https://issuer"]), json!(1)] {
        no(with("iss", wrong), "(iss)");
    }
    for wrong in
        [json!(null), json!("other"), json!([]), json!(["other"]), json!({ "onced": 1 }), json!([["onced"]])]
    {
        no(with("aud", wrong), "(aud)");
    }
    assert!(with("aud", json!(["other", "onced"])).is_ok());
    for wrong in [json!(null), json!("2999"), json!(-1), json!(1e300), json!(true), json!([NOW + 60])] {
        no(with("exp", wrong), "(exp)");
    }
    assert_eq!(with("exp", json!(NOW - 30)), Err(Unproven::Expired));
    assert_eq!(with("exp", json!(0)), Err(Unproven::Expired));
    assert!(with("exp", json!(NOW - 29)).is_ok());
    assert!(with("exp", json!(NOW as f64 + 0.5)).is_ok());
    // One that is no number is no beginning that has passed.
    for wrong in [json!("0"), json!(false), json!(-1)] {
        no(with("nbf", wrong), "no time");
    }
    no(with("nbf", json!(NOW + 31)), "not valid yet");
    assert!(with("nbf", json!(NOW + 30)).is_ok());
    assert!(with("nbf", json!(null)).is_ok());
    for wrong in [json!(null), json!(""), json!(5), json!("a\nb"), json!("x".repeat(600))] {
        no(with("sub", wrong), "(sub)");
    }
}

#[test]
fn what_is_remembered_still_expires() {
    let signer = ed25519("ed");
    let issuer = issuer(&[&signer]);
    let good = token(&json!({ "alg": "EdDSA" }), &claims(), &signer.sign);
    assert!(issuer.verify(&good, at(NOW)).is_ok_and(|caller| caller.until == Some(at(NOW + 90))));
    assert!(issuer.verify(&good, at(NOW + 89)).is_ok());
    assert_eq!(issuer.verify(&good, at(NOW + 90)), Err(Unproven::Expired));
}

#[test]
fn what_is_no_token_is_refused_whatever_it_is() {
    let signer = ed25519("ed");
    let issuer = issuer(&[&signer]);
    let good = token(&json!({ "alg": "EdDSA" }), &claims(), &signer.sign);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for wrong in [
        "..",
        "a.b.c",
        "",
        ".",
        "e30.e30.e30",
        signed,
        &format!("{good}.x"),
        &format!("{good}="),
        &format!("{signed}.!"),
        &format!("{signed}A.{signature}"),
        &base64("[]"),
        &format!("{}.e30.", base64("[".repeat(3_000))),
    ] {
        assert!(matches!(taken(&issuer, wrong), Err(Unproven::Invalid(_))), "{wrong}");
    }
    let long = token(&json!({ "alg": "EdDSA" }), &claims_but("x", json!("x".repeat(8_192))), &signer.sign);
    invalid(&issuer, &long, "over 8192 bytes");
}

#[test]
fn a_file_without_a_key_that_can_be_used_is_told_with_why() {
    let key = |name: &str, value: Value| {
        let mut jwk = rsa(&RSA_PKCS1_SHA256).jwk;
        jwk[name] = value;
        json!({ "keys": [jwk] })
    };
    for (keys, why) in [
        (json!([]), "no list called keys"),
        (json!({ "keys": [] }), "holds no key"),
        (json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0" }] }), "it is a secret one"),
        (json!({ "keys": [{ "kty": "other" }] }), "holds no key"),
        (key("n", json!("AQAB")), "fewer than 2048 bits"),
        (key("n", json!("!")), "n is missing"),
        (key("e", json!(null)), "e is missing"),
        (json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }] }), "x has not 32 bytes"),
        (json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "AA" }] }), "it is a secret one"),
    ] {
        let told = loaded(&keys).map(drop).unwrap_err();
        assert!(told.setting == "access.jwks" && told.text.contains(why), "{told}");
    }
}
