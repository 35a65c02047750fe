//! Page tokens: where a List goes on. Opaque to callers, safe in a URL, and good for one namespace only.

use crate::record::{Key, Namespace};

/// Leads every token, so that another form can follow one day.
const VERSION: &str = "1";

/// The token of the page after `after`.
pub fn encode(namespace: &Namespace, after: &Key) -> String {
    let name = [namespace.as_str().as_bytes(), &[0], after.as_str().as_bytes()].concat();
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    let digits = name.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]);
    VERSION.chars().chain(digits).collect()
}

/// The key that a token stands for; `None` if no List gave it for this namespace.
pub fn decode(namespace: &Namespace, token: &str) -> Option<Key> {
    let (pairs, rest) = token.strip_prefix(VERSION)?.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let name: Option<Vec<u8>> =
        pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
    let name = String::from_utf8(name?).ok()?;
    // A namespace holds no zero, so the first one ends it.
    let (bound_to, after) = name.split_once('\0')?;
    if bound_to == namespace.as_str() { Key::new(after) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn namespace(name: &str) -> Namespace {
        Namespace::new(name).unwrap()
    }

    #[test]
    fn a_token_holds_for_its_namespace_alone() {
        let token = encode(&namespace("orders"), &Key::new("k").unwrap());
        assert_eq!(decode(&namespace("orders"), &token), Key::new("k"));
        assert_eq!(decode(&namespace("order"), &token), None);
        assert_eq!(decode(&namespace("payments"), &token), None);
    }

    #[test]
    fn anything_else_is_no_token() {
        let token = encode(&namespace("a"), &Key::new("key").unwrap());
        let longer = token.clone() + "0";
        for bad in ["", "1", "2610062", "1zz", "1€", "16100", "1610", &token[1..], &longer] {
            assert_eq!(decode(&namespace("a"), bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_key_survives_as_url_safe_text(key in "\\PC{1,100}|[\\x00-\\x7f]{1,100}") {
            let (namespace, key) = (namespace("n"), Key::new(&key).unwrap());
            let token = encode(&namespace, &key);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric()));
            prop_assert_eq!(decode(&namespace, &token), Some(key));
        }

        #[test]
        fn no_text_makes_decoding_panic(text in ".*") {
            let _ = decode(&namespace("n"), &text);
        }
    }
}
