//! Encodings as other languages have them: with their fields by number, and the entries of maps with key and value.
//! prost writes all fields of a oneof where its first one belongs, maps that are hashed in any order, and of an entry
//! only what is not the default. What the fields of a message are is not told at run time; but it shows by what becomes
//! of some bytes when they are read as the message, and written again.

use std::collections::BTreeMap;

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// A field that no message has, and that prost drops: its number is the largest one there is.
const UNKNOWN: [u8; 6] = [0xf8, 0xff, 0xff, 0xff, 0x0f, 0];
/// How often a map is made anew. Two entries without an order keep theirs about every other time.
const TRIALS: usize = 64;

/// All that the key of an entry may be as a field: the default of a type, and something else of it.
const KEYS: [(&[u8], &[u8]); 4] = [
    (&[0x08, 0], &[0x08, 1]),
    (&[0x09, 0, 0, 0, 0, 0, 0, 0, 0], &[0x09, 1, 0, 0, 0, 0, 0, 0, 0]),
    (&[0x0a, 0], &[0x0a, 1, b'x']),
    (&[0x0d, 0, 0, 0, 0], &[0x0d, 1, 0, 0, 0]),
];
/// What the value of an entry may be as a field when it is the default, but for integers, booleans and enums.
const VALUES: [&[u8]; 3] = [&[0x11, 0, 0, 0, 0, 0, 0, 0, 0], &[0x12, 0], &[0x15, 0, 0, 0, 0]];
/// The field of a value that is an integer, a boolean or an enum.
const VARINT: u8 = 0x10;
/// What a varint may be when it is the default: 0, unless it is an enum of proto2, which may begin with any number.
const VARINTS: std::ops::Range<u8> = 0..128;

/// Why a message has no one form.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Formless {
    /// There is a map that has no order.
    Unordered,
    /// An entry of a map was written without its value, and nothing shows what that is.
    Valueless,
}

/// An encoded message with its fields by number and its maps whole, and so the messages in it. `again` reads it, and
/// writes it again.
pub(super) fn by_number(
    encoded: &[u8],
    again: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Vec<u8>, Formless> {
    Orderer { again, kinds: BTreeMap::new() }.ordered(encoded, &[])
}

struct Orderer<A> {
    again: A,
    /// What there is where these numbers lead.
    kinds: BTreeMap<Vec<u32>, Kind>,
}

#[derive(Clone)]
enum Kind {
    /// Nothing that has fields.
    Plain,
    /// A message, or a list of them.
    Message,
    /// The entries of a map, with the default of the key as a field, and that of the value, if it shows.
    Map { key: &'static [u8], value: Option<Vec<u8>> },
}

/// A field as it stands in an encoding: with its number and length, and what it holds if it has a length.
struct Field<'a> {
    number: u32,
    whole: &'a [u8],
    held: Option<&'a [u8]>,
}

impl<A: Fn(&[u8]) -> Option<Vec<u8>>> Orderer<A> {
    fn ordered(&mut self, message: &[u8], way: &[u32]) -> Result<Vec<u8>, Formless> {
        // Always: prost has written it.
        let Some(mut fields) = fields(message) else { return Ok(message.to_vec()) };
        // Fields of one number stay as they are.
        fields.sort_by_key(|field| field.number);
        let mut ordered = Vec::with_capacity(message.len());
        for same in fields.chunk_by(|one, other| one.number == other.number) {
            let way = [way, &[same[0].number]].concat();
            let kind = if same[0].held.is_none() { Kind::Plain } else { self.kind(&way) };
            if matches!(kind, Kind::Plain) {
                same.iter().for_each(|field| ordered.extend_from_slice(field.whole));
                continue;
            }
            self.check_order(same, &way)?;
            for field in same {
                let mut held = self.ordered(field.held.unwrap_or_default(), &way)?;
                if let Kind::Map { key, value } = &kind {
                    held = completed(&held, key, value.as_deref())?;
                }
                put(field.number, &held, &mut ordered);
            }
        }
        Ok(ordered)
    }

    fn kind(&mut self, way: &[u32]) -> Kind {
        if let Some(known) = self.kinds.get(way) {
            return known.clone();
        }
        let found = match self.default_key(way) {
            _ if !self.is_message(way) => Kind::Plain,
            Some(key) => Kind::Map { key, value: self.default_value(way) },
            None => Kind::Message,
        };
        self.kinds.insert(way.to_vec(), found.clone());
        found
    }

    /// Whether there is a message at the end of a way: it alone can have a field more, and be the same.
    fn is_message(&self, way: &[u32]) -> bool {
        let empty = self.made(way, &[&[]]);
        empty.is_some() && empty == self.made(way, &[&UNKNOWN])
    }

    /// The key that prost leaves out, if there is a map at the end of a way: it alone makes one of two entries with the
    /// same key, and two of others. A list is always as long as what it is read from, and what is no list always one.
    fn default_key(&self, way: &[u32]) -> Option<&'static [u8]> {
        let count = |held: &[&[u8]]| self.made(way, held).map_or(0, |message| ends(&message, way));
        if count(&[&[], &[]]) != 1 {
            return None;
        }
        KEYS.into_iter().find(|&(_, other)| count(&[&[], other]) == 2).map(|(default, _)| default)
    }

    /// The value that prost leaves out of the entries of a map: an entry with it becomes the same as one without. None
    /// of another type can be read.
    fn default_value(&self, way: &[u32]) -> Option<Vec<u8>> {
        let without = self.made(way, &[&[]])?;
        let values = VALUES.into_iter().map(<[u8]>::to_vec).chain(VARINTS.map(|number| vec![VARINT, number]));
        values.into_iter().find(|value| self.made(way, &[value]).as_ref() == Some(&without))
    }

    /// What becomes of a message that holds nothing but this at the end of a way.
    fn made(&self, way: &[u32], held: &[&[u8]]) -> Option<Vec<u8>> {
        (self.again)(&along(way, held))
    }

    /// Refuses the entries of a map whose order is another one each time that it is made anew.
    fn check_order(&self, entries: &[Field<'_>], way: &[u32]) -> Result<(), Formless> {
        let [one, other, ..] = entries else { return Ok(()) };
        let keys = [one, other].map(|entry| entry.held.and_then(key));
        // More than two are not needed: which two are taken makes no difference.
        let [Some(one), Some(other)] = keys else { return Ok(()) };
        let first = self.made(way, &[one, other]);
        let same = |_| first.as_ref().is_none_or(|first| (self.again)(first).as_ref() == Some(first));
        if (0..TRIALS).all(same) { Ok(()) } else { Err(Formless::Unordered) }
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

/// An entry of a map with what prost has left out, because it is the default.
fn completed(entry: &[u8], key: &[u8], value: Option<&[u8]>) -> Result<Vec<u8>, Formless> {
    let numbers: Vec<u32> = fields(entry).unwrap_or_default().iter().map(|field| field.number).collect();
    let key = if numbers.contains(&1) { &[] } else { key };
    let value = if numbers.contains(&2) { &[] } else { value.ok_or(Formless::Valueless)? };
    Ok([key, entry, value].concat())
}

/// How many fields there are at the end of a way.
fn ends(message: &[u8], way: &[u32]) -> usize {
    let Some((number, rest)) = way.split_first() else { return 1 };
    let fields = fields(message).unwrap_or_default();
    let found = fields.iter().filter(|field| field.number == *number);
    found.map(|field| ends(field.held.unwrap_or_default(), rest)).sum()
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

    fn ordered<M: Message + Default>(message: &M) -> Result<Vec<u8>, Formless> {
        by_number(&message.encode_to_vec(), |bytes| M::decode(bytes).ok().map(|read| read.encode_to_vec()))
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
            assert_eq!(ordered(&deep), Err(Formless::Unordered));
        }
        let single = Odd { hashed: HashMap::from([(0, Odd::default())]), ..Odd::default() };
        assert_eq!(ordered(&single).unwrap(), along(&[8], &[&[0x08, 0, 0x12, 0]]));
    }

    /// Every type that a key or a value can have.
    #[derive(Clone, PartialEq, ::prost::Message)]
    struct Maps {
        #[prost(btree_map = "int32, double", tag = "1")]
        doubles: BTreeMap<i32, f64>,
        #[prost(btree_map = "int64, float", tag = "2")]
        floats: BTreeMap<i64, f32>,
        #[prost(btree_map = "uint32, int32", tag = "3")]
        int32s: BTreeMap<u32, i32>,
        #[prost(btree_map = "uint64, int64", tag = "4")]
        int64s: BTreeMap<u64, i64>,
        #[prost(btree_map = "sint32, uint32", tag = "5")]
        uint32s: BTreeMap<i32, u32>,
        #[prost(btree_map = "sint64, uint64", tag = "6")]
        uint64s: BTreeMap<i64, u64>,
        #[prost(btree_map = "fixed32, sint32", tag = "7")]
        sint32s: BTreeMap<u32, i32>,
        #[prost(btree_map = "fixed64, sint64", tag = "8")]
        sint64s: BTreeMap<u64, i64>,
        #[prost(btree_map = "sfixed32, fixed32", tag = "9")]
        fixed32s: BTreeMap<i32, u32>,
        #[prost(btree_map = "sfixed64, fixed64", tag = "10")]
        fixed64s: BTreeMap<i64, u64>,
        #[prost(btree_map = "bool, sfixed32", tag = "11")]
        sfixed32s: BTreeMap<bool, i32>,
        #[prost(btree_map = "string, sfixed64", tag = "12")]
        sfixed64s: BTreeMap<String, i64>,
        #[prost(btree_map = "string, bool", tag = "13")]
        bools: BTreeMap<String, bool>,
        #[prost(btree_map = "string, string", tag = "14")]
        strings: BTreeMap<String, String>,
        #[prost(btree_map = "string, bytes", tag = "15")]
        bytes: BTreeMap<String, Vec<u8>>,
        #[prost(btree_map = "string, message", tag = "16")]
        messages: BTreeMap<String, Maps>,
        #[prost(btree_map = "string, enumeration(Zero)", tag = "17")]
        zeros: BTreeMap<String, i32>,
        #[prost(btree_map = "string, enumeration(Three)", tag = "18")]
        threes: BTreeMap<String, i32>,
        #[prost(btree_map = "string, enumeration(Minus)", tag = "19")]
        minuses: BTreeMap<String, i32>,
        #[prost(hash_map = "string, message", tag = "20")]
        hashed: HashMap<String, Maps>,
        #[prost(btree_map = "string, message", tag = "21")]
        nothings: BTreeMap<String, ()>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ::prost::Enumeration)]
    #[repr(i32)]
    enum Zero {
        First = 0,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ::prost::Enumeration)]
    #[repr(i32)]
    enum Three {
        First = 3,
        Second = 0,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ::prost::Enumeration)]
    #[repr(i32)]
    enum Minus {
        First = -1,
        Second = 0,
    }

    impl Name for Maps {
        const NAME: &'static str = "Maps";
        const PACKAGE: &'static str = "test";
    }

    fn maps(way: &[u32], entries: &[&[u8]]) -> Maps {
        Maps::decode(&*along(way, entries)).unwrap()
    }

    const WIDE: [u8; 9] = [0x09, 0, 0, 0, 0, 0, 0, 0, 0];
    const NARROW: [u8; 5] = [0x0d, 0, 0, 0, 0];

    /// The entries of each map in Maps that other languages write for the default key with the default value.
    fn defaults() -> Vec<(u32, Vec<u8>)> {
        let key = |number| match number {
            7 | 9 => NARROW.to_vec(),
            8 | 10 => WIDE.to_vec(),
            12.. => vec![0x0a, 0],
            _ => vec![0x08, 0],
        };
        let value = |number| match number {
            1 | 10 | 12 => [&[0x11], &WIDE[1..]].concat(),
            2 | 9 | 11 => [&[0x15], &NARROW[1..]].concat(),
            3..=8 | 13 | 17 => vec![0x10, 0],
            18 => vec![0x10, 3],
            _ => vec![0x12, 0],
        };
        let numbers = (1..=21).filter(|&number| number != 19);
        numbers.map(|number| (number, [key(number), value(number)].concat())).collect()
    }

    #[test]
    fn entries_of_maps_have_their_defaults_whatever_their_types_and_wherever_they_are() {
        for (number, entry) in defaults() {
            let bare = along(&[number], &[&[]]);
            assert_eq!(
                maps(&[number], &[&entry]).encode_to_vec(),
                bare,
                "prost writes {number} itself by now"
            );
            assert_eq!(ordered(&maps(&[number], &[&[]])).unwrap(), along(&[number], &[&entry]), "{number}");

            // In a value of a map in a value of another one, whose keys are the default too.
            let inner = [&[0x0a, 0][..], &along(&[2, number], &[&entry])].concat();
            let whole = [&[0x0a, 0][..], &along(&[2, 16], &[&inner])].concat();
            let deep = maps(&[20, 2, 16, 2, number], &[&[]]);
            assert_eq!(ordered(&deep).unwrap(), along(&[20], &[&whole]), "{number}");
        }
    }

    #[test]
    fn entries_of_maps_have_what_they_lack_and_no_more() {
        let strings =
            [("", "x"), ("a", ""), ("b", "y")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let message = Maps { strings: BTreeMap::from(strings), ..Maps::default() };
        let entries: [&[u8]; 3] = [b"\x0a\0\x12\x01x", b"\x0a\x01a\x12\0", b"\x0a\x01b\x12\x01y"];
        assert_eq!(ordered(&message).unwrap(), along(&[14], &entries));
        let parts = [&b"test.Maps\0"[..], &along(&[14], &entries)];
        assert_eq!(protobuf(&message), Ok(digest(parts)));

        // Messages that look like entries, one by one and as lists.
        let keyed = Odd { choice: Some(Choice::First(1)), ..Odd::default() };
        for odd in [Odd::default(), keyed] {
            let inner = Some(Box::new(odd.clone()));
            let message = Odd { inner, list: vec![odd.clone(), odd.clone(), Odd::default()], ..odd };
            assert_eq!(ordered(&message).unwrap(), message.encode_to_vec());
        }
    }

    #[test]
    fn values_that_nothing_shows_are_refused() {
        let lacking = maps(&[19], &[&[]]);
        assert_eq!(protobuf(&lacking), Err(Unfit::MapValueUnknown("test.Maps".to_owned())));
        let second = maps(&[19], &[&[0x10, 0]]);
        assert_eq!(ordered(&second).unwrap(), along(&[19], &[&[0x0a, 0, 0x10, 0]]));
    }

    /// As proto2 has it: what is required is always written.
    #[derive(Clone, PartialEq, ::prost::Message)]
    struct Strict {
        #[prost(uint32, required, tag = "1")]
        n: u32,
        #[prost(message, required, tag = "2")]
        maps: Maps,
        #[prost(btree_map = "uint32, bool", tag = "3")]
        own: BTreeMap<u32, bool>,
    }

    #[test]
    fn maps_are_whole_beside_required_fields_and_in_them() {
        let maps = maps(&[14], &[&[]]);
        let strict = Strict { n: 0, maps, own: BTreeMap::from([(0, false), (1, true)]) };
        let written = [
            &[0x08, 0][..],
            &along(&[2, 14], &[&[0x0a, 0, 0x12, 0]]),
            &along(&[3], &[&[0x08, 0, 0x10, 0], &[0x08, 1, 0x10, 1]]),
        ];
        assert_eq!(ordered(&strict).unwrap(), written.concat());
    }
}
