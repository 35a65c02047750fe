//! Encodings with their fields by number. prost writes all fields of a oneof where its first one belongs, and maps that are
//! hashed in any order. What the fields of a message are is not told at run time; but it shows by what becomes of some
//! bytes when they are read as the message, and written again.

use std::collections::BTreeMap;

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// A field that no message has, and that prost drops: its number is the largest one there is.
const UNKNOWN: [u8; 6] = [0xf8, 0xff, 0xff, 0xff, 0x0f, 0];
/// How often a map is made anew. Two entries without an order keep theirs about every other time.
const TRIALS: usize = 64;

/// There is a map that has no order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unordered;

/// The fields of an encoded message by number, and so those of the messages in it. `again` reads it, and writes it again.
pub(super) fn by_number(
    encoded: &[u8],
    again: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Vec<u8>, Unordered> {
    Orderer { again, messages: BTreeMap::new() }.ordered(encoded, &[])
}

struct Orderer<A> {
    again: A,
    /// Whether there are messages where these numbers lead.
    messages: BTreeMap<Vec<u32>, bool>,
}

/// A field as it stands in an encoding: with its number and length, and what it holds if it has a length.
struct Field<'a> {
    number: u32,
    whole: &'a [u8],
    held: Option<&'a [u8]>,
}

impl<A: Fn(&[u8]) -> Option<Vec<u8>>> Orderer<A> {
    fn ordered(&mut self, message: &[u8], way: &[u32]) -> Result<Vec<u8>, Unordered> {
        // Always: prost has written it.
        let Some(mut fields) = fields(message) else { return Ok(message.to_vec()) };
        // Fields of one number stay as they are.
        fields.sort_by_key(|field| field.number);
        let mut ordered = Vec::with_capacity(message.len());
        for same in fields.chunk_by(|one, other| one.number == other.number) {
            let way = [way, &[same[0].number]].concat();
            if same[0].held.is_none() || !self.is_message(&way) {
                same.iter().for_each(|field| ordered.extend_from_slice(field.whole));
                continue;
            }
            self.check_order(same, &way)?;
            for field in same {
                let held = self.ordered(field.held.unwrap_or_default(), &way)?;
                put(field.number, &held, &mut ordered);
            }
        }
        Ok(ordered)
    }

    /// Whether there is a message at the end of a way: it alone can have a field more, and be the same.
    fn is_message(&mut self, way: &[u32]) -> bool {
        if let Some(&known) = self.messages.get(way) {
            return known;
        }
        let empty = (self.again)(&along(way, &[&[]]));
        let found = empty.is_some() && empty == (self.again)(&along(way, &[&UNKNOWN]));
        self.messages.insert(way.to_vec(), found);
        found
    }

    /// Refuses the entries of a map whose order is another one each time that it is made anew.
    fn check_order(&self, entries: &[Field<'_>], way: &[u32]) -> Result<(), Unordered> {
        let [one, other, ..] = entries else { return Ok(()) };
        let keys = [one, other].map(|entry| entry.held.and_then(key));
        // More than two are not needed: which two are taken makes no difference.
        let [Some(one), Some(other)] = keys else { return Ok(()) };
        let first = (self.again)(&along(way, &[one, other]));
        let same = |_| first.as_ref().is_none_or(|first| (self.again)(first).as_ref() == Some(first));
        if (0..TRIALS).all(same) { Ok(()) } else { Err(Unordered) }
    }
}

/// The key of an entry of a map, as a field: the first of at most two.
fn key(entry: &[u8]) -> Option<&[u8]> {
    let fields = fields(entry)?;
    match &fields[..] {
        [key, value] if key.number == 1 && value.number == 2 => Some(key.whole),
        [key] if key.number == 1 => Some(key.whole),
        [value] if value.number == 2 => Some(&[]),
        [] => Some(&[]),
        _ => None,
    }
}

/// A message that holds nothing but what is at the end of a way.
fn along(way: &[u32], held: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::new();
    for (index, &number) in way.iter().rev().enumerate() {
        let inner = std::mem::take(&mut message);
        match index {
            0 => held.iter().for_each(|held| put(number, held, &mut message)),
            _ => put(number, &inner, &mut message),
        }
    }
    message
}

fn put(number: u32, held: &[u8], into: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, into);
    encode_varint(held.len() as u64, into);
    into.extend_from_slice(held);
}

fn fields(mut rest: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let begin = rest;
        let (number, wire) = decode_key(&mut rest).ok()?;
        let mut held = None;
        if wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let (inner, after) = rest.split_at_checked(length)?;
            (held, rest) = (Some(inner), after);
        } else {
            skip_field(wire, number, &mut rest, DecodeContext::default()).ok()?;
        }
        fields.push(Field { number, whole: &begin[..begin.len() - rest.len()], held });
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use prost::{Message, Name};

    use super::*;
    use crate::fingerprint::{Unfit, digest, protobuf};

    /// Its oneof has the numbers 1 and 9, with others in between.
    #[derive(Clone, PartialEq, ::prost::Message)]
    struct Odd {
        #[prost(oneof = "Choice", tags = "1, 9")]
        choice: Option<Choice>,
        #[prost(string, repeated, tag = "2")]
        names: Vec<String>,
        #[prost(message, optional, boxed, tag = "3")]
        inner: Option<Box<Odd>>,
        #[prost(message, repeated, tag = "4")]
        list: Vec<Odd>,
        #[prost(btree_map = "string, message", tag = "5")]
        map: BTreeMap<String, Odd>,
        #[prost(bytes = "vec", tag = "6")]
        bytes: Vec<u8>,
        #[prost(uint32, repeated, tag = "7")]
        packed: Vec<u32>,
        #[prost(hash_map = "uint32, message", tag = "8")]
        hashed: HashMap<u32, Odd>,
    }

    #[derive(Clone, PartialEq, ::prost::Oneof)]
    enum Choice {
        #[prost(uint32, tag = "1")]
        First(u32),
        #[prost(string, tag = "9")]
        Last(String),
    }

    impl Name for Odd {
        const NAME: &'static str = "Odd";
        const PACKAGE: &'static str = "test";
    }

    fn odd(n: u32) -> Odd {
        let names = vec!["z".to_owned(), "a".to_owned()];
        Odd { choice: Some(Choice::Last("x".to_owned())), names, packed: vec![n, 1], ..Odd::default() }
    }

    /// The same by number, written by hand: what each field holds, in order.
    fn written(n: u8, between: &[(u32, &[u8])]) -> Vec<u8> {
        let mut fields: Vec<(u32, &[u8])> = vec![(2, b"z"), (2, b"a")];
        let packed = [n, 1];
        fields.extend_from_slice(between);
        fields.extend([(7, &packed[..]), (9, &b"x"[..])]);
        fields.sort_by_key(|field| field.0);
        let mut message = Vec::new();
        fields.into_iter().for_each(|(number, held)| put(number, held, &mut message));
        message
    }

    fn ordered(message: &Odd) -> Result<Vec<u8>, Unordered> {
        by_number(&message.encode_to_vec(), |bytes| Odd::decode(bytes).ok().map(|odd| odd.encode_to_vec()))
    }

    #[test]
    fn fields_are_by_number_wherever_they_are() {
        let plain = odd(3);
        assert_ne!(plain.encode_to_vec(), written(3, &[]), "prost does so itself by now");
        assert_eq!(ordered(&plain).unwrap(), written(3, &[]));

        // Bytes that look like a message whose fields are not by number.
        let lookalike = plain.encode_to_vec();
        let deep = Odd {
            inner: Some(Box::new(odd(4))),
            list: vec![odd(6), odd(5)],
            map: BTreeMap::from([("b".to_owned(), odd(7)), ("a".to_owned(), odd(8))]),
            bytes: lookalike.clone(),
            hashed: HashMap::from([(1, odd(9))]),
            ..odd(2)
        };
        let entry = |key: &[u8], value: &[u8]| {
            let mut entry = key.to_vec();
            put(2, value, &mut entry);
            entry
        };
        let (a, b) = (entry(b"\x0a\x01a", &written(8, &[])), entry(b"\x0a\x01b", &written(7, &[])));
        let one = entry(b"\x08\x01", &written(9, &[]));
        let (inner, first, second) = (written(4, &[]), written(6, &[]), written(5, &[]));
        let between: [(u32, &[u8]); 7] =
            [(3, &inner), (4, &first), (4, &second), (5, &a), (5, &b), (6, &lookalike), (8, &one)];
        assert_eq!(ordered(&deep).unwrap(), written(2, &between));
        let parts = [&b"test.Odd\0"[..], &written(2, &between)];
        assert_eq!(protobuf(&deep), Ok(digest(parts)));
    }

    #[test]
    fn maps_without_an_order_are_refused_however_small_and_deep_they_are() {
        for _ in 0..200 {
            let hashed = HashMap::from([(1, odd(1)), (2, odd(2))]);
            let message = Odd { hashed, ..odd(1) };
            assert_eq!(protobuf(&message), Err(Unfit::MapsUnordered("test.Odd".to_owned())));
            let deep = Odd { map: BTreeMap::from([("a".to_owned(), message)]), ..Odd::default() };
            assert_eq!(ordered(&deep), Err(Unordered));
        }
        let single = Odd { hashed: HashMap::from([(0, Odd::default())]), ..Odd::default() };
        assert_eq!(ordered(&single).unwrap(), single.encode_to_vec());
    }
}
