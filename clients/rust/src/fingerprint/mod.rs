//! Digests of requests, for [`Once::fingerprint`](crate::Once::fingerprint): a key that is used for another request is
//! then an error. The client libraries of other languages make the same of the same request.
//!
//! ```
//! # #[cfg(feature = "json")]
//! # fn example() -> Result<(), onced_client::fingerprint::Unfit> {
//! use onced_client::fingerprint;
//!
//! let order = r#"{ "sku": "A-1", "sent_at": "12:01:07", "n": 2 }"#;
//! let retried = r#"{ "n": 2.0, "sku": "A-1", "sent_at": "12:01:09" }"#;
//! let fields = ["/sku", "/n"];
//! assert_eq!(fingerprint::fields_of_text(order, &fields)?, fingerprint::fields_of_text(retried, &fields)?);
//! # Ok(())
//! # }
//! # #[cfg(feature = "json")]
//! # example().unwrap();
//! ```

#[cfg(feature = "json")]
mod canonical;
mod order;
#[cfg(feature = "json")]
mod value;
#[cfg(test)]
#[cfg(feature = "json")]
pub(crate) mod vectors;

use bytes::Bytes;
use prost::{Message, Name};
use sha2::{Digest, Sha256};

#[cfg(feature = "json")]
use canonical::Json;
use order::Formless;

/// What serde_json calls a number that it has as text, when it passes one on: all of them, where anything in the program
/// has its feature `arbitrary_precision` on.
#[cfg(feature = "json")]
const NUMBER_AS_TEXT: &str = "$serde_json::private::Number";

/// Why there is no fingerprint of something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// Languages that know no other numbers than doubles would take it for another one.
    #[error(
        "{0} is an integer beyond 2^53 - 1, which not every language can tell from its neighbours: write it as a string"
    )]
    IntegerTooLarge(String),
    /// There is no such number in JSON.
    #[error("{0} is no number that JSON has")]
    NotFinite(String),
    /// Languages differ in which of the two counts.
    #[error("the key {0:?} is there twice in one object")]
    KeyTwice(String),
    /// It is no JSON, or has a lone surrogate, or a number beyond the largest double.
    #[error("it is no JSON that can have a fingerprint: {0}")]
    NotJson(String),
    /// A pointer is none by RFC 6901.
    #[error(
        "{0:?} is no JSON pointer: it begins with a slash, and a tilde in it is written as ~0, a slash in a name as ~1"
    )]
    NotAPointer(String),
    /// None of the fields is there, so that all such requests would be the same.
    #[error("none of the fields is there")]
    NothingThere,
    /// Its maps have no order.
    #[error(
        "the maps of {0} are HashMaps, which have no order: generate the message with prost-build's btree_map"
    )]
    MapsUnordered(String),
    /// A map's value is an enum of proto2, and prost does not write, or tell, what it begins with.
    #[error(
        "a map of {0} has an entry with the first value of its enum, which prost does not write, and which is no number from 0 to 127: take the fingerprint of something else, such as its fields as JSON"
    )]
    MapValueUnknown(String),
}

/// The fingerprint of bytes.
pub fn bytes(data: impl AsRef<[u8]>) -> Bytes {
    digest([data.as_ref()])
}

/// The fingerprint of a value as JSON, whatever the order of its fields: of its canonical form by
/// [RFC 8785](https://www.rfc-editor.org/rfc/rfc8785).
///
/// # Errors
/// If it has no such form: see [`Unfit`].
#[cfg(feature = "json")]
pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Result<Bytes, Unfit> {
    Ok(digest([Json::of(value)?.canonical()?.as_bytes()]))
}

/// The fingerprint of a text in JSON, whatever the order of its fields and the way it is written.
///
/// # Errors
/// If it has no canonical form: see [`Unfit`].
#[cfg(feature = "json")]
pub fn json_of_text(text: impl AsRef<[u8]>) -> Result<Bytes, Unfit> {
    Ok(digest([Json::read(text.as_ref())?.canonical()?.as_bytes()]))
}

/// The fingerprint of some fields of a value as JSON, by their pointers
/// ([RFC 6901](https://www.rfc-editor.org/rfc/rfc6901), such as `/items/0/sku`). Those that are not there are left out.
///
/// # Errors
/// If one of them has no canonical form, or none is there: see [`Unfit`].
#[cfg(feature = "json")]
pub fn fields<T: serde::Serialize + ?Sized>(value: &T, pointers: &[&str]) -> Result<Bytes, Unfit> {
    Ok(digest([Json::of(value)?.fields(pointers)?.canonical()?.as_bytes()]))
}

/// The same of a text in JSON.
///
/// # Errors
/// If one of them has no canonical form, or none is there: see [`Unfit`].
#[cfg(feature = "json")]
pub fn fields_of_text(text: impl AsRef<[u8]>, pointers: &[&str]) -> Result<Bytes, Unfit> {
    Ok(digest([Json::read(text.as_ref())?.fields(pointers)?.canonical()?.as_bytes()]))
}

/// The fingerprint of a protobuf message, with its full name, which comes from prost-build's `enable_type_names`.
/// Its maps must be sorted ones, from `btree_map`. Unknown fields are not in it: prost drops them when it decodes.
///
/// What prost does not write cannot be in it: -0.0 is 0 as the value of a map, and in a field that is neither `optional`
/// nor repeated nor in a oneof. In other languages it is not. (Groups of proto2 are as prost writes them, and so is a map's
/// value whose required fields are all 0: as nothing.)
///
/// # Errors
/// If a map with two entries or more is not a sorted one, or nothing shows what the values are that prost does not
/// write: see [`Unfit`].
pub fn protobuf<M: Message + Name + Default>(message: &M) -> Result<Bytes, Unfit> {
    Ok(digest([M::full_name().as_bytes(), &[0], &encoded(message)?]))
}

/// The encoding of a message that is the same in all languages.
fn encoded<M: Message + Name + Default>(message: &M) -> Result<Vec<u8>, Unfit> {
    let again = |bytes: &[u8]| M::decode(bytes).ok().map(|message| message.encode_to_vec());
    order::by_number(&message.encode_to_vec(), again).map_err(|formless| match formless {
        Formless::Unordered => Unfit::MapsUnordered(M::full_name()),
        Formless::Valueless => Unfit::MapValueUnknown(M::full_name()),
    })
}

/// The SHA-256 of these parts, one after the other.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    Bytes::copy_from_slice(&digest.finalize())
}
