//! What is expected, held against what came.
//!
//! An expected object names the fields that matter; all else, down to the last value, is to be equal. `null` also stands
//! for a field that is not there. In place of a value may stand one of these, each an object of one field:
//!
//! | | |
//! |---|---|
//! | `{"$save": "NAME"}` | there is something; it is `${NAME}` from here on |
//! | `{"$above": NUMBER}` | a larger number; numbers may be written as strings |
//! | `{"$least": NUMBER}`, `{"$most": NUMBER}` | a number, no smaller or larger |
//! | `{"$has": "TEXT"}` | a text with this in it |
//! | `{"$not": VALUE}` | anything else, also nothing |
//! | `{"$zeros": COUNT}` | so many zero bytes, in base64 |

use std::cmp::Ordering;
use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

/// What was saved, and what the driver has set, by name.
pub type Vars = BTreeMap<String, String>;

/// `text` with each `${NAME}` replaced.
pub fn fill_text(text: &str, vars: &Vars) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) =
            after.split_once('}').with_context(|| format!("a ${{ without its end: {text}"))?;
        filled.push_str(before);
        filled.push_str(vars.get(name).with_context(|| format!("nothing is called {name}"))?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// `value` with all its texts filled, and `$zeros` spelt out.
pub fn fill(value: &Value, vars: &Vars) -> Result<Value> {
    Ok(match value {
        Value::String(text) => Value::String(fill_text(text, vars)?),
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| fill(item, vars)).collect::<Result<_>>()?)
        }
        Value::Object(fields) => match operator(fields) {
            Some(("$zeros", count)) => {
                let count = count.as_u64().context("$zeros of a count")?;
                Value::String(BASE64.encode(vec![0; usize::try_from(count)?]))
            }
            _ => {
                let filled = fields.iter().map(|(name, value)| Ok((name.clone(), fill(value, vars)?)));
                Value::Object(filled.collect::<Result<Map<_, _>>>()?)
            }
        },
        other => other.clone(),
    })
}

/// Holds what came against the fields that matter, and saves what is to be saved.
///
/// # Errors
/// The first field that is not as expected.
pub fn check(expected: &Value, got: &Value, vars: &mut Vars) -> Result<()> {
    let expected = fill(expected, vars)?;
    let fields = match &expected {
        Value::Null => return Ok(()),
        Value::Object(fields) if operator(fields).is_none() => fields,
        other => return equal("it", other, got, vars),
    };
    let mut saved = vars.clone();
    for (name, value) in fields {
        equal(name, value, got.get(name).unwrap_or(&Value::Null), &mut saved)?;
    }
    *vars = saved;
    Ok(())
}

fn operator(fields: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (name, argument) = fields.iter().next()?;
    (fields.len() == 1 && name.starts_with('$')).then_some((name.as_str(), argument))
}

fn equal(name: &str, expected: &Value, got: &Value, vars: &mut Vars) -> Result<()> {
    let fields = match expected {
        Value::Object(fields) => operator(fields),
        _ => None,
    };
    let Some((operator, argument)) = fields else {
        if same(expected, got) {
            return Ok(());
        }
        bail!("{name}: expected {}, got {}", short(expected), short(got));
    };
    let matches = match operator {
        "$save" => {
            let saved = argument.as_str().context("$save by a name")?;
            vars.insert(saved.to_owned(), text_of(got));
            !got.is_null()
        }
        "$above" => compared(got, argument) == Some(Ordering::Greater),
        "$least" => compared(got, argument).is_some_and(Ordering::is_ge),
        "$most" => compared(got, argument).is_some_and(Ordering::is_le),
        "$has" => got.as_str().is_some_and(|got| argument.as_str().is_some_and(|part| got.contains(part))),
        "$not" => !same(argument, got),
        unknown => bail!("{unknown} is no way to expect something"),
    };
    if !matches {
        bail!("{name}: expected {}, got {}", short(expected), short(got));
    }
    Ok(())
}

/// Equal, numbers by their values: 1 and 1.0 are the same in JSON.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| same(value, other)))
        }
        (one, other) => one == other,
    }
}

/// How two numbers compare, whole ones of 64 bits to the last digit; none if one of them is none.
fn compared(one: &Value, other: &Value) -> Option<Ordering> {
    let (one, other) = (text_of(one), text_of(other));
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => Some(one.cmp(&other)),
        _ => one.parse::<f64>().ok()?.partial_cmp(&other.parse().ok()?),
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value as it is shown: not a megabyte of it.
pub fn short(value: &Value) -> String {
    const MOST: usize = 400;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(expected: &Value, got: &Value) -> bool {
        let mut vars = Vars::from([("token".to_owned(), "7".to_owned())]);
        check(expected, got, &mut vars).is_ok()
    }

    #[test]
    fn fields_that_are_not_named_do_not_matter_and_those_within_values_do() {
        let got = json!({"result": "done", "value": {"a": 1, "b": 2}, "owner": "x"});
        assert!(holds(&json!({"result": "done"}), &got));
        assert!(holds(&json!({"value": {"b": 2.0, "a": 1}}), &got));
        assert!(!holds(&json!({"value": {"a": 1}}), &got));
        assert!(!holds(&json!({"result": "failed"}), &got));
        assert!(!holds(&json!({"owner": null}), &got));
        assert!(holds(&json!({"lost": null}), &got));
        assert!(holds(&Value::Null, &got));
        assert!(!holds(&json!({"value": "1"}), &json!({"value": 1})));
    }

    #[test]
    fn operators_say_what_a_value_is_like() {
        let got = json!({"token": "10", "left": 5, "message": "no such order", "reason": null, "big": "18446744073709551615"});
        for right in [
            json!({"token": {"$above": "${token}"}}),
            json!({"left": {"$least": 5}}),
            json!({"left": {"$most": 5.5}}),
            json!({"message": {"$has": "such"}}),
            json!({"reason": {"$not": "X"}}),
            json!({"big": {"$above": "18446744073709551614"}}),
        ] {
            assert!(holds(&right, &got), "{right}");
        }
        for wrong in [
            json!({"token": {"$above": "10"}}),
            json!({"left": {"$least": 6}}),
            json!({"left": {"$most": 4}}),
            json!({"absent": {"$most": 4}}),
            json!({"absent": {"$above": 0}}),
            json!({"message": {"$least": 0}}),
            json!({"big": {"$above": "18446744073709551615"}}),
            json!({"message": {"$has": "none"}}),
            json!({"left": {"$not": 5}}),
            json!({"reason": {"$save": "r"}}),
            json!({"left": {"$never": 5}}),
        ] {
            assert!(!holds(&wrong, &got), "{wrong}");
        }
    }

    #[test]
    fn what_is_saved_is_filled_in_later_and_only_if_all_of_it_was_right() {
        let mut vars = Vars::new();
        let expected = json!({"token": {"$save": "t"}, "attempt": "1"});
        assert!(check(&expected, &json!({"token": "9", "attempt": "2"}), &mut vars).is_err());
        assert!(vars.is_empty());
        check(&expected, &json!({"token": "9", "attempt": "1"}), &mut vars).unwrap();
        assert_eq!(fill(&json!(["<${t}>"]), &vars).unwrap(), json!(["<9>"]));
        assert_eq!(fill(&json!({"$zeros": 3}), &vars).unwrap(), json!("AAAA"));
        assert!(fill_text("${u}", &vars).is_err());
        assert!(fill_text("${t", &vars).is_err());
    }
}
