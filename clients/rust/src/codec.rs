//! How values become outcomes, and outcomes values: for [`Once::run_as`](crate::Once::run_as). The client libraries of
//! other languages write the same.

use bytes::Bytes;
use prost::{Message, Name};

use crate::completion::WorkError;
use crate::v1::Outcome;

/// Writes values of `T` as outcomes, and reads them.
pub trait Codec<T> {
    /// The outcome that `value` is stored as.
    ///
    /// # Errors
    /// If it cannot be. The work has run by then, so its key is in doubt.
    fn encode(&self, value: &T) -> Result<Outcome, WorkError>;

    /// The value that was stored as `outcome`, which is no error.
    ///
    /// # Errors
    /// If it is something else.
    fn decode(&self, outcome: &Outcome) -> Result<T, WorkError>;
}

/// Values as JSON, by serde: `application/json`.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

#[cfg(feature = "json")]
const JSON: &str = "application/json";

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Json {
    fn encode(&self, value: &T) -> Result<Outcome, WorkError> {
        Ok(Outcome::response(serde_json::to_vec(value)?).with_content_type(JSON))
    }

    fn decode(&self, outcome: &Outcome) -> Result<T, WorkError> {
        Ok(serde_json::from_slice(response(outcome, JSON)?)?)
    }
}

/// Bytes as they are: `application/octet-stream`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Binary;

const BINARY: &str = "application/octet-stream";

impl Codec<Bytes> for Binary {
    fn encode(&self, value: &Bytes) -> Result<Outcome, WorkError> {
        Ok(Outcome::response(value.clone()).with_content_type(BINARY))
    }

    fn decode(&self, outcome: &Outcome) -> Result<Bytes, WorkError> {
        response(outcome, BINARY).cloned()
    }
}

impl Codec<Vec<u8>> for Binary {
    fn encode(&self, value: &Vec<u8>) -> Result<Outcome, WorkError> {
        Ok(Outcome::response(value.clone()).with_content_type(BINARY))
    }

    fn decode(&self, outcome: &Outcome) -> Result<Vec<u8>, WorkError> {
        response(outcome, BINARY).map(|bytes| bytes.to_vec())
    }
}

/// Text: `text/plain; charset=utf-8`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text;

const TEXT: &str = "text/plain; charset=utf-8";

impl Codec<String> for Text {
    fn encode(&self, value: &String) -> Result<Outcome, WorkError> {
        Ok(Outcome::response(value.clone()).with_content_type(TEXT))
    }

    fn decode(&self, outcome: &Outcome) -> Result<String, WorkError> {
        Ok(std::str::from_utf8(response(outcome, TEXT)?)?.to_owned())
    }
}

/// Protobuf messages: `application/x-protobuf; messageType="FULL.NAME"`. Their names come from prost-build's
/// `enable_type_names`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Protobuf;

impl<M: Message + Name + Default> Codec<M> for Protobuf {
    fn encode(&self, value: &M) -> Result<Outcome, WorkError> {
        Ok(Outcome::response(value.encode_to_vec()).with_content_type(protobuf_type::<M>()))
    }

    fn decode(&self, outcome: &Outcome) -> Result<M, WorkError> {
        Ok(M::decode(response(outcome, &protobuf_type::<M>())?.clone())?)
    }
}

fn protobuf_type<M: Name>() -> String {
    format!("application/x-protobuf; messageType=\"{}\"", M::full_name())
}

/// The bytes of an outcome of this content type, or of none.
fn response<'a>(outcome: &'a Outcome, content_type: &str) -> Result<&'a Bytes, WorkError> {
    let found = &outcome.content_type;
    if !found.is_empty() && found != content_type {
        return Err(format!("it is {found}, and is to be {content_type}").into());
    }
    outcome.response_bytes().ok_or_else(|| "it holds no response".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back<T: PartialEq + std::fmt::Debug, C: Codec<T>>(codec: &C, value: T, content_type: &str) -> Bytes {
        let outcome = codec.encode(&value).unwrap();
        assert_eq!(outcome.content_type, content_type);
        assert_eq!(codec.decode(&outcome).unwrap(), value);
        let response = outcome.response_bytes().unwrap().clone();
        assert_eq!(codec.decode(&Outcome::response(response.clone())).unwrap(), value, "of no content type");
        let other = outcome.with_content_type("application/pdf");
        assert_eq!(
            codec.decode(&other).unwrap_err().to_string(),
            format!("it is application/pdf, and is to be {content_type}")
        );
        response
    }

    #[test]
    fn each_codec_reads_what_it_wrote_and_nothing_else() {
        assert_eq!(back(&Binary, Bytes::from_static(b"\0\xff"), BINARY), &[0, 0xff][..]);
        assert_eq!(back(&Binary, vec![1, 2], BINARY), &[1, 2][..]);
        assert_eq!(back(&Text, "zwölf".to_owned(), TEXT), "zwölf");
        let message = crate::v1::Checkpoint { sequence: 3, data: Bytes::from_static(b"x") };
        let encoded = back(&Protobuf, message, "application/x-protobuf; messageType=\"onced.v1.Checkpoint\"");
        assert_eq!(encoded, &[8, 3, 18, 1, b'x'][..]);
    }

    #[test]
    fn text_that_is_none_is_refused() {
        assert!(Text.decode(&Outcome::response(vec![0xff])).is_err());
        let error = Text.decode(&Outcome::error(tonic::Code::Aborted, "x")).unwrap_err();
        assert_eq!(error.to_string(), "it holds no response");
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_is_as_serde_has_it_and_nothing_is_null() {
        assert_eq!(back(&Json, vec!["a".to_owned()], JSON), "[\"a\"]");
        assert_eq!(back(&Json, (), JSON), "null");
        assert!(Codec::<String>::decode(&Json, &Outcome::response("1")).is_err());
    }
}
