//! The server's own tokens. Their file holds hashes, from which nobody gets a token.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use super::Unusable;

/// The setting that names the file.
pub(super) const SETTING: &str = "access.tokens";
/// How each token begins, so that whoever finds one knows what it is.
const START: &str = "onced_";
/// How each hash begins.
const HASH: &str = "sha256:";

/// What a line is to be.
const EXPECTED: &str = "expected NAME = sha256: and 64 hexadecimal digits, as onced token new NAME prints it";

/// A name with the hash of a token.
type Entry = (String, [u8; 32]);

/// The tokens of a file. One name may have several, so that a token can be replaced while both are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(Vec<Entry>);

impl Tokens {
    /// Reads a file of them.
    ///
    /// # Errors
    /// If it cannot be read, or a line is wrong.
    pub fn load(file: &Path) -> Result<Self, Unusable> {
        let text = fs::read_to_string(file).map_err(|error| Unusable::unread(SETTING, file, &error))?;
        let mut tokens: Vec<Entry> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong =
                |why: &str| Unusable::of(SETTING, file, format!("is wrong in line {}: {why}", number + 1));
            let (name, hash) = entry(line).ok_or_else(|| wrong(EXPECTED))?;
            // Whose it is would be a matter of their order.
            if let Some((other, _)) = tokens.iter().find(|(other, held)| *held == hash && *other != name) {
                return Err(wrong(&format!(
                    "the token of {name} is that of {other}, too; make each its own"
                )));
            }
            tokens.push((name, hash));
        }
        Ok(Self(tokens))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// That a file which held some holds none: whoever writes it is at it still, as a rule, and would lock everybody out.
    pub fn lost(file: &Path) -> Unusable {
        const WHY: &str = "holds no token any more: it may be half written; to take all back, take their names out of the rules";
        Unusable::of(SETTING, file, WHY)
    }

    /// Whose a token is. It takes as long whether or not it is one, and whosever it is.
    pub fn name_of(&self, token: &str) -> Option<&str> {
        let hash = Sha256::digest(token);
        let mut found = None;
        for (name, held) in &self.0 {
            if bool::from(held.ct_eq(hash.as_slice())) {
                found = Some(name.as_str());
            }
        }
        found
    }
}

fn entry(line: &str) -> Option<Entry> {
    let (name, hash) = line.split_once('=')?;
    let name = name.trim();
    let digits = hash.trim().strip_prefix(HASH)?.as_bytes();
    let mut hash = [0; 32];
    if !is_name(name) || digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some((name.to_owned(), hash))
}

/// Whether a token can be called so.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/@".contains(&b);
    !name.is_empty() && name.len() <= 100 && name.bytes().all(plain)
}

/// A new token, and its line for the file.
///
/// # Errors
/// If that can be no name, or there is no randomness.
pub fn new(name: &str) -> Result<(String, String), String> {
    if !is_name(name) {
        return Err(format!("{name:?} can be no name: write letters, digits and ._-/@, at most 100"));
    }
    let mut random = [0; 32];
    SystemRandom::new().fill(&mut random).map_err(|_| "this system gives no randomness".to_owned())?;
    let token = format!("{START}{}", URL_SAFE_NO_PAD.encode(random));
    let digits: String = Sha256::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{name} = {HASH}{digits}");
    Ok((token, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Result<Tokens, Unusable> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tokens");
        fs::write(&file, text).unwrap();
        Tokens::load(&file)
    }

    #[test]
    fn a_token_is_known_by_its_line_and_by_no_other() {
        let (one, line) = new("ci").unwrap();
        let (two, other) = new("ci").unwrap();
        let (three, ops) = new("ops@example.com").unwrap();
        assert!(one != two && one.starts_with("onced_") && one.len() == 49, "{one}");
        let tokens = loaded(&format!("# ours\n\n{line}\n {other} \r\n{ops}")).unwrap();
        assert_eq!(
            [&one, &two, &three].map(|token| tokens.name_of(token)),
            [Some("ci"), Some("ci"), Some("ops@example.com")]
        );
        let hash = line.split_once("sha256:").unwrap().1;
        for wrong in ["", hash, "onced_", &one[..48], &one.to_uppercase(), &format!("{one} ")] {
            assert_eq!(tokens.name_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_that_is_wrong_is_told_and_never_shown() {
        let (token, line) = new("ci").unwrap();
        for wrong in [
            &token,
            "ci",
            "ci = ",
            &line.replace("sha256:", ""),
            &line[..line.len() - 1],
            &format!("{line}0"),
        ] {
            let told = loaded(&format!("{line}\n{wrong}")).unwrap_err();
            assert!(told.text.contains("line 2") && !told.text.contains(&token), "{told}");
        }
        let same = line.replace("ci = ", "ops = ");
        let told = loaded(&format!("{line}\n{line}\n{same}")).unwrap_err();
        assert!(told.text.contains("line 3: the token of ops is that of ci"), "{told}");
        for wrong in ["", "a b", "a=b", "é", &"a".repeat(101)] {
            assert!(new(wrong).is_err(), "{wrong}");
        }
    }
}
