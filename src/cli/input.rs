//! What arguments mean: durations, digests, outcomes.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use onced_client::v1::OnLapse;
use onced_client::{Code, Outcome};
use sha2::{Digest, Sha256};

use crate::rpc::code_name;

/// How durations are shown in the help.
pub const DURATION: &str = "DURATION";

/// Reads `30s`, `5m`, `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 30s, 5m or 1h30m"))
}

/// A fingerprint in hexadecimal digits.
#[derive(Clone, Debug)]
pub struct Fingerprint(pub Bytes);

impl std::str::FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16)?.try_into().ok()).collect();
        match digits {
            Some(digits) if digits.len().is_multiple_of(2) => {
                Ok(Self(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
            }
            _ => Err("write it as hexadecimal digits, two for each byte".to_owned()),
        }
    }
}

/// What tells one request from another.
#[derive(Debug, Args)]
pub struct FingerprintArgs {
    /// A digest of the request in hexadecimal digits: the key used with another one is an error
    #[arg(long, value_name = "HEX", conflicts_with = "fingerprint_of")]
    fingerprint: Option<Fingerprint>,

    /// Take the SHA-256 of this file as the fingerprint
    #[arg(long, value_name = "FILE")]
    fingerprint_of: Option<PathBuf>,
}

impl FingerprintArgs {
    /// The fingerprint; empty if there is none.
    pub fn read(self) -> Result<Bytes, String> {
        match (self.fingerprint, self.fingerprint_of) {
            (Some(Fingerprint(bytes)), _) => Ok(bytes),
            (None, Some(file)) => Ok(Sha256::digest(read(&file)?).to_vec().into()),
            (None, None) => Ok(Bytes::new()),
        }
    }
}

/// What becomes of the claim if its holder dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnLapseArg {
    /// The next one to ask gets the key
    TakeOver,
    /// The key is in doubt until an operator resolves it
    Hold,
}

impl From<OnLapseArg> for OnLapse {
    fn from(arg: OnLapseArg) -> Self {
        match arg {
            OnLapseArg::TakeOver => OnLapse::TakeOver,
            OnLapseArg::Hold => OnLapse::Hold,
        }
    }
}

/// A status code by name or number.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCode(Code);

impl std::str::FromStr for ErrorCode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text.to_ascii_uppercase().replace('-', "_");
        (1..=16)
            .map(Code::from)
            .find(|code| code_name(*code) == named || (*code as i32).to_string() == text)
            .map(Self)
            .ok_or_else(|| {
                "write a gRPC status code such as NOT_FOUND, or its number from 1 to 16".to_owned()
            })
    }
}

/// An outcome on the command line. The arguments of one result are in the group `result`.
#[derive(Debug, Args)]
pub struct OutcomeArgs {
    /// The response
    #[arg(long, value_name = "TEXT", group = "result")]
    response: Option<String>,

    /// Take the response from this file; - is standard input
    #[arg(long, value_name = "FILE", group = "result")]
    file: Option<PathBuf>,

    /// A final error, which every duplicate gets: a gRPC status code such as NOT_FOUND
    #[arg(long, value_name = "CODE", group = "result")]
    error: Option<ErrorCode>,

    /// The text of the error
    #[arg(long, value_name = "TEXT", requires = "error")]
    message: Option<String>,

    /// How to read the response, such as application/json
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// A small fact about the outcome; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = fact)]
    metadata: Vec<(String, String)>,
}

impl OutcomeArgs {
    /// The outcome; none if there is none on the command line.
    pub fn read(self) -> Result<Option<Outcome>, String> {
        let outcome = match (self.response, self.file, self.error) {
            (Some(text), _, _) => Outcome::response(text),
            (None, Some(file), _) => Outcome::response(read(&file)?),
            (None, None, Some(ErrorCode(code))) => Outcome::error(code, self.message.unwrap_or_default()),
            (None, None, None) => return Ok(None),
        };
        let metadata = self.metadata.into_iter().collect();
        Ok(Some(Outcome { content_type: self.content_type.unwrap_or_default(), metadata, ..outcome }))
    }
}

fn fact(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// The bytes of a file, or of standard input.
pub fn read(file: &Path) -> Result<Vec<u8>, String> {
    let read = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(file)
    };
    read.map_err(|error| format!("cannot read {}: {error}", file.display()))
}

/// `text` as a shell would take it.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/,@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_pairs_of_hexadecimal_digits() {
        let read = |text: &str| text.parse::<Fingerprint>().map(|Fingerprint(bytes)| bytes.to_vec());
        assert_eq!(read("00fFa0"), Ok(vec![0, 255, 160]));
        for wrong in ["0", "0g", "0x10", "é0"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn codes_are_names_or_numbers_of_errors() {
        let read = |text: &str| text.parse::<ErrorCode>().map(|ErrorCode(code)| code).ok();
        assert_eq!(read("NOT_FOUND"), Some(Code::NotFound));
        assert_eq!(read("not-found"), Some(Code::NotFound));
        assert_eq!(read("5"), Some(Code::NotFound));
        for wrong in ["OK", "0", "17", "-1", "nonsense"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert!(duration("30").unwrap_err().contains("30s"));
    }

    #[test]
    fn suggested_commands_survive_a_shell() {
        assert_eq!(quoted("order-1"), "order-1");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
