//! Values as JSON, as serde_json would write them; but it writes NaN as null, which is to be refused.

use std::fmt::Display;

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::canonical::Json;
use super::{NUMBER_AS_TEXT, Unfit};

impl serde::ser::Error for Unfit {
    fn custom<T: Display>(message: T) -> Self {
        Unfit::NotJson(message.to_string())
    }
}

impl Json {
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, Unfit> {
        value.serialize(Writer)
    }
}

struct Writer;

/// A list under way, and the variant that it is of, if it is one.
struct List(Option<&'static str>, Vec<Json>);

/// An object under way, and the variant that it is of; and the key whose value comes next.
struct Object(Option<&'static str>, Vec<(String, Json)>, Option<String>);

fn variant(name: Option<&'static str>, value: Json) -> Json {
    match name {
        Some(name) => Json::Object(vec![(name.to_owned(), value)]),
        None => value,
    }
}

impl Object {
    fn of(variant: Option<&'static str>) -> Self {
        Self(variant, Vec::new(), None)
    }

    fn push<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), Unfit> {
        // What serde_json passes on to itself, as a text that is no text.
        if key.starts_with("$serde_json::private") {
            return Err(Unfit::NotJson("raw values are not supported".to_owned()));
        }
        self.1.push((key.to_owned(), Json::of(value)?));
        Ok(())
    }
}

macro_rules! integers {
    ($($name:ident $type:ty),*) => {
        $(fn $name(self, value: $type) -> Result<Json, Unfit> {
            i128::try_from(value).map(Json::Integer).map_err(|_| Unfit::IntegerTooLarge(value.to_string()))
        })*
    };
}

impl Serializer for Writer {
    type Ok = Json;
    type Error = Unfit;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = List;
    type SerializeTupleVariant = List;
    type SerializeMap = Object;
    type SerializeStruct = Object;
    type SerializeStructVariant = Object;

    integers!(serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128);
    integers!(serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64, serialize_u128 u128);

    fn serialize_bool(self, value: bool) -> Result<Json, Unfit> {
        Ok(Json::Bool(value))
    }

    fn serialize_f32(self, value: f32) -> Result<Json, Unfit> {
        // By its own shortest digits, as serde_json writes it: 0.1 is not to be 0.10000000149011612.
        Ok(Json::Float(value.to_string().parse().unwrap_or(f64::from(value))))
    }

    fn serialize_f64(self, value: f64) -> Result<Json, Unfit> {
        Ok(Json::Float(value))
    }

    fn serialize_char(self, value: char) -> Result<Json, Unfit> {
        Ok(Json::Text(value.to_string()))
    }

    fn serialize_str(self, value: &str) -> Result<Json, Unfit> {
        Ok(Json::Text(value.to_owned()))
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<Json, Unfit> {
        Ok(Json::List(value.iter().map(|&byte| Json::Integer(byte.into())).collect()))
    }

    fn serialize_none(self) -> Result<Json, Unfit> {
        Ok(Json::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Json, Unfit> {
        Json::of(value)
    }

    fn serialize_unit(self) -> Result<Json, Unfit> {
        Ok(Json::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Json, Unfit> {
        Ok(Json::Null)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Json, Unfit> {
        Ok(Json::Text(name.to_owned()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Json, Unfit> {
        Json::of(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        value: &T,
    ) -> Result<Json, Unfit> {
        Ok(variant(Some(name), Json::of(value)?))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List, Unfit> {
        Ok(List(None, Vec::new()))
    }

    fn serialize_tuple(self, _: usize) -> Result<List, Unfit> {
        Ok(List(None, Vec::new()))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List, Unfit> {
        Ok(List(None, Vec::new()))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<List, Unfit> {
        Ok(List(Some(name), Vec::new()))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Object, Unfit> {
        Ok(Object::of(None))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Object, Unfit> {
        Ok(Object::of(None))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Object, Unfit> {
        Ok(Object::of(Some(name)))
    }
}

macro_rules! lists {
    ($($trait:ident $method:ident),*) => {
        $(impl $trait for List {
            type Ok = Json;
            type Error = Unfit;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unfit> {
                self.1.push(Json::of(value)?);
                Ok(())
            }

            fn end(self) -> Result<Json, Unfit> {
                Ok(variant(self.0, Json::List(self.1)))
            }
        })*
    };
}

lists!(
    SerializeSeq serialize_element, SerializeTuple serialize_element, SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
);

macro_rules! structs {
    ($($trait:ident),*) => {
        $(impl $trait for Object {
            type Ok = Json;
            type Error = Unfit;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Unfit> {
                if key == NUMBER_AS_TEXT {
                    self.1.push((key.to_owned(), Json::of(value)?));
                    return Ok(());
                }
                self.push(key, value)
            }

            fn end(self) -> Result<Json, Unfit> {
                match &self.1[..] {
                    [(key, Json::Text(text))] if key == NUMBER_AS_TEXT => Json::number(text),
                    _ => Ok(variant(self.0, Json::Object(self.1))),
                }
            }
        })*
    };
}

structs!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for Object {
    type Ok = Json;
    type Error = Unfit;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unfit> {
        // As serde_json has it: keys that are numbers or booleans are written as strings.
        self.2 = Some(match Json::of(key)? {
            Json::Text(text) => text,
            Json::Integer(integer) => integer.to_string(),
            Json::Bool(value) => value.to_string(),
            _ => return Err(Unfit::NotJson("the keys of an object are to be strings".to_owned())),
        });
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unfit> {
        let key = self.2.take().unwrap_or_default();
        self.push(&key, value)
    }

    fn end(self) -> Result<Json, Unfit> {
        Ok(Json::Object(self.1))
    }
}
