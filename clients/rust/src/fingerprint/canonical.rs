//! The canonical form of JSON, by RFC 8785; and parts of it, by RFC 6901.

use std::cmp::Ordering;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{NUMBER_AS_TEXT, Unfit};

/// The largest integer that every smaller one is told from, in doubles: 2^53 - 1.
const MAX_INTEGER: i128 = (1 << 53) - 1;

/// JSON as it was written: integers apart from other numbers, and objects in order, keys that are there twice included.
#[derive(Clone, Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub fn read(text: &[u8]) -> Result<Self, Unfit> {
        let json: Json = serde_json::from_slice(text).map_err(|error| Unfit::NotJson(error.to_string()))?;
        check_text(text)?;
        Ok(json)
    }

    /// A number as it was written.
    pub fn number(text: &str) -> Result<Self, Unfit> {
        if !text.contains(['.', 'e', 'E']) {
            return text.parse().map(Json::Integer).map_err(|_| Unfit::IntegerTooLarge(text.to_owned()));
        }
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Json::Float(value)),
            _ => Err(Unfit::NotJson(format!("{text} is no number that a double can be"))),
        }
    }

    /// The object of those of the fields that are there.
    pub fn fields(&self, pointers: &[&str]) -> Result<Self, Unfit> {
        self.check_keys()?;
        let mut fields = Vec::new();
        for &pointer in pointers {
            if let Some(value) = self.at(pointer)? {
                // A pointer that is given twice is one field.
                if !fields.iter().any(|(name, _)| name == pointer) {
                    fields.push((pointer.to_owned(), value.clone()));
                }
            }
        }
        if fields.is_empty() { Err(Unfit::NothingThere) } else { Ok(Json::Object(fields)) }
    }

    pub fn canonical(&self) -> Result<String, Unfit> {
        let mut text = String::new();
        self.write(&mut text)?;
        Ok(text)
    }

    fn write(&self, text: &mut String) -> Result<(), Unfit> {
        match self {
            Json::Null => text.push_str("null"),
            Json::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Json::Integer(value) if value.abs() > MAX_INTEGER => {
                return Err(Unfit::IntegerTooLarge(value.to_string()));
            }
            Json::Integer(value) => text.push_str(&value.to_string()),
            Json::Float(value) if !value.is_finite() => return Err(Unfit::NotFinite(value.to_string())),
            Json::Float(value) => text.push_str(ryu_js::Buffer::new().format_finite(*value)),
            Json::Text(value) => text.push_str(&quoted(value)?),
            Json::List(values) => {
                text.push('[');
                for (index, value) in values.iter().enumerate() {
                    text.push_str(if index > 0 { "," } else { "" });
                    value.write(text)?;
                }
                text.push(']');
            }
            Json::Object(members) => {
                text.push('{');
                for (index, (key, value)) in sorted(members)?.into_iter().enumerate() {
                    text.push_str(if index > 0 { "," } else { "" });
                    text.push_str(&quoted(key)?);
                    text.push(':');
                    value.write(text)?;
                }
                text.push('}');
            }
        }
        Ok(())
    }

    /// Refuses keys that are there twice, wherever they are: what a pointer points at would be one of two.
    fn check_keys(&self) -> Result<(), Unfit> {
        match self {
            Json::List(values) => values.iter().try_for_each(Json::check_keys),
            Json::Object(members) => {
                sorted(members)?.into_iter().try_for_each(|(_, value)| value.check_keys())
            }
            _ => Ok(()),
        }
    }

    /// What a pointer points at, if it is there.
    fn at(&self, pointer: &str) -> Result<Option<&Json>, Unfit> {
        let mut names = pointer.split('/');
        if names.next() != Some("") {
            return Err(Unfit::NotAPointer(pointer.to_owned()));
        }
        let mut found = Some(self);
        for name in names {
            let name = unescaped(name).ok_or_else(|| Unfit::NotAPointer(pointer.to_owned()))?;
            found = found.and_then(|json| match json {
                Json::Object(members) => members.iter().find(|(key, _)| *key == name).map(|(_, value)| value),
                Json::List(values) => index(&name).and_then(|index| values.get(index)),
                _ => None,
            });
        }
        Ok(found)
    }
}

/// The members of an object by key, as UTF-16 has them.
fn sorted(members: &[(String, Json)]) -> Result<Vec<(&str, &Json)>, Unfit> {
    let mut sorted: Vec<_> = members.iter().map(|(key, value)| (key.as_str(), value)).collect();
    sorted.sort_by(|(one, _), (other, _)| utf16(one, other));
    match sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(twice) => Err(Unfit::KeyTwice(twice[0].0.to_owned())),
        None => Ok(sorted),
    }
}

fn utf16(one: &str, other: &str) -> Ordering {
    one.encode_utf16().cmp(other.encode_utf16())
}

/// A string as serde_json writes it, which is as RFC 8785 does: it escapes what must be, in the shortest way.
fn quoted(text: &str) -> Result<String, Unfit> {
    serde_json::to_string(text).map_err(|error| Unfit::NotJson(error.to_string()))
}

/// Refuses what serde_json lets pass in `text`: integers beyond what it keeps apart from other numbers, and in keys, which
/// are read as bytes, what is to be escaped.
fn check_text(text: &[u8]) -> Result<(), Unfit> {
    let mut rest = text;
    while let Some(&first) = rest.first() {
        let length = match first {
            b'"' => {
                let length = string_length(rest);
                if rest[..length].iter().any(|byte| *byte < b' ') {
                    return Err(Unfit::NotJson("a control character in a string is not escaped".to_owned()));
                }
                length
            }
            b'-' | b'0'..=b'9' => {
                let in_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let length = rest.iter().take_while(|byte| in_number(byte)).count();
                let number = &rest[..length];
                let is_integer = number.iter().all(|byte| matches!(byte, b'-' | b'0'..=b'9'));
                if is_integer && number.len() > MAX_INTEGER_DIGITS {
                    return Err(Unfit::IntegerTooLarge(String::from_utf8_lossy(number).into_owned()));
                }
                length
            }
            _ => 1,
        };
        rest = &rest[length.min(rest.len())..];
    }
    Ok(())
}

/// JSON has no leading zeros: what is longer than this, with its sign, is larger than 2^53.
const MAX_INTEGER_DIGITS: usize = 17;

/// How long the string is that `text` begins with, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    for (index, &byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// A name of a pointer; none if a tilde in it means nothing.
fn unescaped(name: &str) -> Option<String> {
    let mut parts = name.split('~');
    let mut unescaped = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.strip_prefix('0').map(|rest| ('~', rest));
        let (escaped, rest) = rest.or_else(|| part.strip_prefix('1').map(|rest| ('/', rest)))?;
        unescaped.push(escaped);
        unescaped.push_str(rest);
    }
    Some(unescaped)
}

/// The index that a name of a pointer is: digits without leading zeros.
fn index(name: &str) -> Option<usize> {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let leads = name.len() > 1 && name.starts_with('0');
    if digits && !leads { name.parse().ok() } else { None }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = object.next_key()? {
            match key {
                Key::Name(name) => members.push((name, object.next_value()?)),
                Key::NumberAsText => {
                    let text: String = object.next_value()?;
                    return Json::number(&text).map_err(serde::de::Error::custom);
                }
            }
        }
        Ok(Json::Object(members))
    }
}

/// What serde_json has for a key.
enum Key {
    Name(String),
    /// It is none: the object is a number, whose text is the value.
    NumberAsText,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A key that only looks like that of a number comes as bytes then, and that of a number does not.
        deserializer.deserialize_bytes(KeyReader)
    }
}

struct KeyReader;

impl Visitor<'_> for KeyReader {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Key, E> {
        match key {
            NUMBER_AS_TEXT => Ok(Key::NumberAsText),
            _ => Err(E::custom("serde_json passes on something that is no JSON")),
        }
    }

    fn visit_bytes<E: serde::de::Error>(self, key: &[u8]) -> Result<Key, E> {
        // What is no UTF-8 here was a lone surrogate.
        let name = std::str::from_utf8(key).map_err(|_| E::custom("a key has a lone surrogate"))?;
        Ok(Key::Name(name.to_owned()))
    }
}
