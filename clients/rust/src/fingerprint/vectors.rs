//! What all client libraries make of the same: clients/vectors/fingerprints.json.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;

use super::canonical::Json;
use super::{Unfit, bytes, encoded, fields, fields_of_text, json, json_of_text, protobuf};
use crate::v1;

/// All entries of one kind.
pub(crate) fn vectors(kind: &str) -> Vec<Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/fingerprints.json");
    let text = std::fs::read_to_string(file).expect(file);
    let all: Value = serde_json::from_str(&text).unwrap();
    let entries = all[kind].as_array().expect(kind).clone();
    assert!(!entries.is_empty(), "{kind}");
    entries
}

pub(crate) fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry[field].as_str().unwrap_or_else(|| panic!("{field} of {entry}"))
}

pub(crate) fn data(entry: &Value, field: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text(entry, field)).unwrap()
}

pub(crate) fn hex(digest: &Bytes) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pointers(entry: &Value) -> Vec<&str> {
    entry["pointers"].as_array().unwrap().iter().map(|pointer| pointer.as_str().unwrap()).collect()
}

#[test]
fn fingerprints_of_bytes() {
    for entry in vectors("bytes") {
        assert_eq!(hex(&bytes(data(&entry, "data"))), text(&entry, "digest"), "{entry}");
    }
}

#[test]
fn fingerprints_of_json() {
    for entry in vectors("json") {
        let read = Json::read(text(&entry, "text").as_bytes()).unwrap();
        assert_eq!(read.canonical().unwrap(), text(&entry, "canonical"), "{entry}");
        assert_eq!(hex(&json_of_text(text(&entry, "text")).unwrap()), text(&entry, "digest"), "{entry}");
    }
    for entry in vectors("json_refused") {
        assert!(json_of_text(text(&entry, "text")).is_err(), "{entry}");
    }
}

#[test]
fn fingerprints_of_fields() {
    for entry in vectors("fields") {
        let digest = fields_of_text(text(&entry, "text"), &pointers(&entry)).unwrap();
        assert_eq!(hex(&digest), text(&entry, "digest"), "{entry}");
    }
    for entry in vectors("fields_refused") {
        assert!(fields_of_text(text(&entry, "text"), &pointers(&entry)).is_err(), "{entry}");
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    let why = |text: &str| json_of_text(text).unwrap_err();
    assert_eq!(why("[9007199254740992]"), Unfit::IntegerTooLarge("9007199254740992".to_owned()));
    let long = "-123456789012345678901234567890";
    assert_eq!(why(&format!("[\"\\\"1\", {long}]")), Unfit::IntegerTooLarge(long.to_owned()));
    assert_eq!(why("{\"a\":{\"b\":1,\"b\":1}}"), Unfit::KeyTwice("b".to_owned()));
    for wrong in ["{", "{\"a\tb\":1}", "{\"\\udc00\":1}", "[1e400]"] {
        assert!(matches!(why(wrong), Unfit::NotJson(_)), "{wrong}");
    }
    assert_eq!(fields_of_text("{}", &["/a"]), Err(Unfit::NothingThere));
    assert_eq!(fields_of_text("{}", &["a"]), Err(Unfit::NotAPointer("a".to_owned())));
}

#[derive(serde::Serialize)]
struct Order<'a> {
    sku: &'a str,
    n: u64,
    price: f32,
    share: f64,
    kind: Kind,
    notes: Option<Vec<(u8, char)>>,
}

#[derive(serde::Serialize)]
enum Kind {
    Gift {
        from: &'static str,
    },
    #[allow(dead_code)]
    Plain,
}

fn order(n: u64, share: f64) -> Order<'static> {
    let kind = Kind::Gift { from: "anna" };
    Order { sku: "A-1", n, price: 0.1, share, kind, notes: Some(vec![(7, 'ö')]) }
}

#[test]
fn a_value_has_the_fingerprint_of_its_text() {
    let written = serde_json::to_string(&order(2, 1.5e30)).unwrap();
    assert_eq!(json(&order(2, 1.5e30)).unwrap(), json_of_text(&written).unwrap(), "{written}");
    let chosen = ["/kind/Gift/from", "/notes/0/1", "/gone"];
    assert_eq!(fields(&order(2, 1.0), &chosen).unwrap(), fields_of_text(&written, &chosen).unwrap());
    let read: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(json(&read).unwrap(), json_of_text(&written).unwrap());
}

#[test]
fn values_that_other_languages_would_not_have_are_refused() {
    assert_eq!(json(&order(1 << 53, 1.0)), Err(Unfit::IntegerTooLarge("9007199254740992".to_owned())));
    assert_eq!(json(&order(1, f64::NAN)), Err(Unfit::NotFinite("NaN".to_owned())));
    assert_eq!(json(&[f32::NEG_INFINITY]), Err(Unfit::NotFinite("-inf".to_owned())));
    assert_eq!(json(&u128::MAX), Err(Unfit::IntegerTooLarge(u128::MAX.to_string())));
}

/// A number as serde_json passes it on with its feature `arbitrary_precision`, which anything in a program may turn on.
struct AsText(&'static str);

impl serde::Serialize for AsText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut number = serializer.serialize_struct(super::NUMBER_AS_TEXT, 1)?;
        number.serialize_field(super::NUMBER_AS_TEXT, self.0)?;
        number.end()
    }
}

#[test]
fn numbers_of_any_precision_are_what_they_are_without() {
    for text in ["0", "-0", "17", "-9007199254740991", "1.50", "1e21", "-2E-9", "0.1"] {
        assert_eq!(json(&[AsText(text)]).unwrap(), json_of_text(format!("[{text}]")).unwrap(), "{text}");
    }
    for text in ["9007199254740992", "123456789012345678901234567890123456789012345678901234567890"] {
        assert_eq!(json(&AsText(text)), Err(Unfit::IntegerTooLarge(text.to_owned())));
    }
    assert!(json(&AsText("1e400")).is_err());
    // Nothing but a key, however odd.
    let odd = format!("{{{:?}:\"1\"}}", super::NUMBER_AS_TEXT);
    assert_eq!(Json::read(odd.as_bytes()).unwrap().canonical().unwrap(), odd);
}

/// The message of an entry, as prost has it.
fn message<M: Message + Name + Default>(pool: &DescriptorPool, entry: &Value) -> M {
    let descriptor = pool.get_message_by_name(text(entry, "type")).unwrap();
    let read = DynamicMessage::deserialize(descriptor, &entry["json"]).unwrap();
    read.transcode_to().unwrap()
}

fn check<M: Message + Name + Default>(pool: &DescriptorPool, entry: &Value) {
    let message = message::<M>(pool, entry);
    assert_eq!(encoded(&message).unwrap(), data(entry, "encoded"), "{entry}");
    assert_eq!(hex(&protobuf(&message).unwrap()), text(entry, "digest"), "{entry}");
}

#[test]
fn fingerprints_of_protobuf_messages() {
    let files = ["onced/v1/idempotency_service.proto"];
    let compiled = protox::compile(files, [concat!(env!("CARGO_MANIFEST_DIR"), "/proto")]).unwrap();
    let pool = DescriptorPool::from_file_descriptor_set(compiled).unwrap();
    for entry in vectors("protobuf") {
        match text(&entry, "type") {
            "onced.v1.Outcome" => check::<v1::Outcome>(&pool, &entry),
            "onced.v1.Checkpoint" => check::<v1::Checkpoint>(&pool, &entry),
            "onced.v1.BeginRequest" => check::<v1::BeginRequest>(&pool, &entry),
            "onced.v1.LookupRequest" => check::<v1::LookupRequest>(&pool, &entry),
            "onced.v1.LookupResponse" => check::<v1::LookupResponse>(&pool, &entry),
            "onced.v1.Completed" => check::<v1::Completed>(&pool, &entry),
            "onced.v1.CompleteRequest" => check::<v1::CompleteRequest>(&pool, &entry),
            "onced.v1.CompleteResponse" => check::<v1::CompleteResponse>(&pool, &entry),
            "onced.v1.SessionRequest" => check::<v1::SessionRequest>(&pool, &entry),
            other => panic!("{other} is not here yet"),
        }
    }
}
