//! How the value of a setting is written. Each form reads what somebody wrote, says what it expects, and shows a
//! value so that it reads as the same one.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::StoreUrl;
use crate::record::OnLapse;
use crate::telemetry;

/// The units of times, the largest first; each value is shown in the largest that divides it.
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// The units of sizes.
const SIZE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A value as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// A whole number in a file.
    Number(i128),
    /// Text in a file.
    Text(String),
    /// Text outside of files, where numbers are text too.
    Bare(String),
    /// A list of text in a file.
    List(Vec<String>),
    /// What no other setting takes; what it is.
    Other(&'static str),
}

impl Raw {
    /// The number, if it is one.
    fn number(&self) -> Option<i128> {
        match self {
            Raw::Number(number) => Some(*number),
            Raw::Bare(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
            Raw::Bare(_) | Raw::Text(_) | Raw::List(_) | Raw::Other(_) => None,
        }
    }

    /// The text, if it is text.
    fn text(&self) -> Option<&str> {
        match self {
            Raw::Text(text) | Raw::Bare(text) => Some(text),
            Raw::Number(_) | Raw::List(_) | Raw::Other(_) => None,
        }
    }

    /// The value without the quotes of a file.
    pub fn bare(&self) -> String {
        match self {
            Raw::Text(text) | Raw::Bare(text) => text.clone(),
            Raw::Number(number) => number.to_string(),
            Raw::List(items) => items.join(", "),
            Raw::Other(what) => (*what).to_owned(),
        }
    }
}

/// As a TOML file has it.
impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Number(number) => write!(f, "{number}"),
            Raw::Text(text) | Raw::Bare(text) => {
                f.write_str("\"")?;
                for c in text.chars() {
                    match c {
                        '"' | '\\' => write!(f, "\\{c}")?,
                        c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
                        c => write!(f, "{c}")?,
                    }
                }
                f.write_str("\"")
            }
            Raw::List(items) => {
                let items: Vec<String> =
                    items.iter().map(|item| Raw::Text(item.clone()).to_string()).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Raw::Other(what) => f.write_str(what),
        }
    }
}

/// How values of type `T` are written.
pub trait Form<T> {
    /// What is expected, with bounds and an example.
    fn expected(&self) -> String;

    /// What stands for a value in the help.
    fn placeholder(&self) -> &'static str;

    /// Reads a value.
    ///
    /// # Errors
    /// What is wrong with it.
    fn read(&self, raw: &Raw) -> Result<T, String>;

    /// Shows a value; `None` if it is not set.
    fn show(&self, value: &T) -> Option<Raw>;
}

fn wrong(expected: &str, found: &Raw) -> String {
    format!("expected {expected}, found {found}")
}

/// A number of things.
pub struct Count(pub RangeInclusive<u32>);

impl<T: TryFrom<i128> + TryInto<i128> + Copy> Form<T> for Count {
    fn expected(&self) -> String {
        format!("a whole number from {} to {}", self.0.start(), self.0.end())
    }

    fn placeholder(&self) -> &'static str {
        "COUNT"
    }

    fn read(&self, raw: &Raw) -> Result<T, String> {
        let within = |number: &i128| u32::try_from(*number).is_ok_and(|number| self.0.contains(&number));
        let number = raw.number().filter(within).and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| wrong(&Form::<T>::expected(self), raw))
    }

    fn show(&self, value: &T) -> Option<Raw> {
        (*value).try_into().ok().map(Raw::Number)
    }
}

/// A number of bytes, also with a unit: `64KiB`.
pub struct Bytes(pub RangeInclusive<u64>);

impl<T: TryFrom<i128> + TryInto<i128> + Copy> Form<T> for Bytes {
    fn expected(&self) -> String {
        let (min, max) = (size(*self.0.start()), size(*self.0.end()));
        format!("a size from {} to {}, in bytes or such as \"64KiB\"", min.bare(), max.bare())
    }

    fn placeholder(&self) -> &'static str {
        "BYTES"
    }

    fn read(&self, raw: &Raw) -> Result<T, String> {
        let with_unit = |text: &str| {
            let (unit, bytes) = SIZE_UNITS.into_iter().find(|(unit, _)| text.ends_with(unit))?;
            let number: u32 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            Some(i128::from(number) * i128::from(bytes))
        };
        let number = raw.number().or_else(|| raw.text().and_then(with_unit));
        let within = |number: &i128| u64::try_from(*number).is_ok_and(|number| self.0.contains(&number));
        let number = number.filter(within).and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| wrong(&Form::<T>::expected(self), raw))
    }

    fn show(&self, value: &T) -> Option<Raw> {
        let bytes: i128 = (*value).try_into().ok()?;
        Some(u64::try_from(bytes).map_or(Raw::Number(bytes), size))
    }
}

fn size(bytes: u64) -> Raw {
    match SIZE_UNITS.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => Raw::Text(format!("{}{name}", bytes / unit)),
        None => Raw::Number(bytes.into()),
    }
}

/// A time, in whole milliseconds.
pub struct Time(pub RangeInclusive<Duration>);

impl Form<Duration> for Time {
    fn expected(&self) -> String {
        let (min, max) = (time(*self.0.start()), time(*self.0.end()));
        format!("a time from {min} to {max}, such as \"30s\" or \"1h30m\"")
    }

    fn placeholder(&self) -> &'static str {
        "TIME"
    }

    fn read(&self, raw: &Raw) -> Result<Duration, String> {
        let read = raw.text().and_then(|text| humantime::parse_duration(text).ok());
        let fits = |time: &Duration| self.0.contains(time) && time.subsec_nanos().is_multiple_of(1_000_000);
        read.filter(fits).ok_or_else(|| wrong(&self.expected(), raw))
    }

    fn show(&self, value: &Duration) -> Option<Raw> {
        Some(Raw::Text(time(*value)))
    }
}

/// A time as a person would write it.
pub fn time(time: Duration) -> String {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match TIME_UNITS.into_iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => "0s".to_owned(),
    }
}

/// An address to listen at.
pub struct Address;

impl Form<SocketAddr> for Address {
    fn expected(&self) -> String {
        "an IP address of this machine and a port, such as 127.0.0.1:7411, [::1]:7411, or 0.0.0.0:7411 for all"
            .to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "IP:PORT"
    }

    fn read(&self, raw: &Raw) -> Result<SocketAddr, String> {
        let address = raw.text().and_then(|text| text.parse().ok());
        address.ok_or_else(|| wrong(&self.expected(), raw))
    }

    fn show(&self, value: &SocketAddr) -> Option<Raw> {
        Some(Raw::Text(value.to_string()))
    }
}

/// The URL of a store. What is wrong with one never repeats it: it may hold a password.
pub struct Store;

impl Form<StoreUrl> for Store {
    fn expected(&self) -> String {
        "file:DIR, memory:, or etcd://HOST:PORT,HOST:PORT/prefix (etcds://: by TLS)".to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "URL"
    }

    fn read(&self, raw: &Raw) -> Result<StoreUrl, String> {
        let text = raw.text().ok_or_else(|| wrong(&self.expected(), raw))?;
        text.parse().map_err(|error: super::StoreUrlError| error.to_string())
    }

    fn show(&self, value: &StoreUrl) -> Option<Raw> {
        Some(Raw::Text(value.to_string()))
    }
}

/// What to log.
pub struct Filter;

impl Form<String> for Filter {
    fn expected(&self) -> String {
        "a level (error, warn, info, debug, trace), or levels by target such as \"info,onced::store=debug\""
            .to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "FILTER"
    }

    fn read(&self, raw: &Raw) -> Result<String, String> {
        let text = raw.text().ok_or_else(|| wrong(&self.expected(), raw))?;
        telemetry::check(text).map_err(|error| error.to_string())?;
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> Option<Raw> {
        Some(Raw::Text(value.clone()))
    }
}

/// What becomes of a claim that lapses.
pub struct Lapse;

impl Form<OnLapse> for Lapse {
    fn expected(&self) -> String {
        "\"take-over\" (the next one to ask gets the key) or \"hold\" (it is in doubt until an operator resolves it)"
            .to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "POLICY"
    }

    fn read(&self, raw: &Raw) -> Result<OnLapse, String> {
        match raw.text() {
            Some("take-over") => Ok(OnLapse::TakeOver),
            Some("hold") => Ok(OnLapse::Hold),
            Some(_) | None => Err(wrong(&self.expected(), raw)),
        }
    }

    fn show(&self, value: &OnLapse) -> Option<Raw> {
        let name = match value {
            OnLapse::TakeOver => "take-over",
            OnLapse::Hold => "hold",
        };
        Some(Raw::Text(name.to_owned()))
    }
}

/// Yes or no.
pub struct Switch;

impl Form<bool> for Switch {
    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "BOOL"
    }

    fn read(&self, raw: &Raw) -> Result<bool, String> {
        match raw {
            Raw::Other(text) if *text == "true" => Ok(true),
            Raw::Other(text) if *text == "false" => Ok(false),
            Raw::Bare(text) => text.parse().map_err(|_| wrong(&self.expected(), raw)),
            _ => Err(wrong(&self.expected(), raw)),
        }
    }

    fn show(&self, value: &bool) -> Option<Raw> {
        Some(Raw::Other(if *value { "true" } else { "false" }))
    }
}

/// The path of a file.
pub struct File;

impl Form<PathBuf> for File {
    fn expected(&self) -> String {
        "the path of a file".to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "FILE"
    }

    fn read(&self, raw: &Raw) -> Result<PathBuf, String> {
        let path = raw.text().filter(|text| !text.is_empty()).map(PathBuf::from);
        path.ok_or_else(|| wrong(&self.expected(), raw))
    }

    fn show(&self, value: &PathBuf) -> Option<Raw> {
        Some(Raw::Text(value.display().to_string()))
    }
}

/// A name.
pub struct Name;

impl Form<String> for Name {
    fn expected(&self) -> String {
        "a name".to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "NAME"
    }

    fn read(&self, raw: &Raw) -> Result<String, String> {
        let name = raw.text().filter(|text| !text.is_empty()).map(str::to_owned);
        name.ok_or_else(|| wrong(&self.expected(), raw))
    }

    fn show(&self, value: &String) -> Option<Raw> {
        Some(Raw::Text(value.clone()))
    }
}

/// The URL of a collector.
pub struct Collector;

impl Form<String> for Collector {
    fn expected(&self) -> String {
        "an URL without TLS or path, such as http://127.0.0.1:4317".to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "URL"
    }

    fn read(&self, raw: &Raw) -> Result<String, String> {
        let url = raw.text().and_then(|text| text.parse::<http::Uri>().ok());
        if url.as_ref().and_then(http::Uri::authority).is_some_and(|host| host.as_str().contains('@')) {
            // Not shown again: it is a secret.
            return Err(format!("expected {}, and no login in it", self.expected()));
        }
        let fits =
            |url: &http::Uri| url.scheme_str() == Some("http") && url.host().is_some() && url.path() == "/";
        let url = url.filter(fits).ok_or_else(|| wrong(&self.expected(), raw))?;
        Ok(url.to_string().trim_end_matches('/').to_owned())
    }

    fn show(&self, value: &String) -> Option<Raw> {
        Some(Raw::Text(value.clone()))
    }
}

/// What need not be set.
pub struct Optional<F>(pub F);

impl<T, F: Form<T>> Form<Option<T>> for Optional<F> {
    fn expected(&self) -> String {
        self.0.expected()
    }

    fn placeholder(&self) -> &'static str {
        self.0.placeholder()
    }

    fn read(&self, raw: &Raw) -> Result<Option<T>, String> {
        self.0.read(raw).map(Some)
    }

    fn show(&self, value: &Option<T>) -> Option<Raw> {
        value.as_ref().and_then(|value| self.0.show(value))
    }
}

/// How many of something there may be, if there is a bound.
pub struct Quota(pub RangeInclusive<u32>);

const UNLIMITED: &str = "unlimited";

impl Form<Option<u32>> for Quota {
    fn expected(&self) -> String {
        format!("a whole number from {} to {}, or \"{UNLIMITED}\"", self.0.start(), self.0.end())
    }

    fn placeholder(&self) -> &'static str {
        "COUNT"
    }

    fn read(&self, raw: &Raw) -> Result<Option<u32>, String> {
        if raw.text() == Some(UNLIMITED) {
            return Ok(None);
        }
        Count(self.0.clone()).read(raw).map(Some).map_err(|_| wrong(&self.expected(), raw))
    }

    fn show(&self, value: &Option<u32>) -> Option<Raw> {
        Some(value.map_or_else(|| Raw::Text(UNLIMITED.to_owned()), |count| Raw::Number(count.into())))
    }
}

/// What can be switched off.
pub struct OrOff<F>(pub F);

/// What switches it off.
const OFF: &str = "off";

impl<T, F: Form<T>> Form<Option<T>> for OrOff<F> {
    fn expected(&self) -> String {
        format!("{}; or \"{OFF}\"", self.0.expected())
    }

    fn placeholder(&self) -> &'static str {
        self.0.placeholder()
    }

    fn read(&self, raw: &Raw) -> Result<Option<T>, String> {
        if raw.text() == Some(OFF) {
            return Ok(None);
        }
        self.0.read(raw).map(Some).map_err(|_| wrong(&self.expected(), raw))
    }

    fn show(&self, value: &Option<T>) -> Option<Raw> {
        value.as_ref().map_or_else(|| Some(Raw::Text(OFF.to_owned())), |value| self.0.show(value))
    }
}

/// One of a few words.
pub struct OneOf<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Form<T> for OneOf<T> {
    fn expected(&self) -> String {
        self.0.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
    }

    fn placeholder(&self) -> &'static str {
        "WORD"
    }

    fn read(&self, raw: &Raw) -> Result<T, String> {
        let found = self.0.iter().find(|(word, _)| raw.text() == Some(word));
        found.map(|(_, value)| *value).ok_or_else(|| wrong(&self.expected(), raw))
    }

    fn show(&self, value: &T) -> Option<Raw> {
        let found = self.0.iter().find(|(_, one)| one == value);
        found.map(|(word, _)| Raw::Text((*word).to_owned()))
    }
}
