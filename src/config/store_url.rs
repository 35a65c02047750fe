//! Where records are kept, as an operator writes it.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of an etcd endpoint that names none.
const ETCD_PORT: u16 = 2379;
/// The prefix of all keys in etcd, if the URL names none.
const ETCD_PREFIX: &str = "/onced";
/// The longest prefix, in bytes: it is part of every key in etcd.
const ETCD_PREFIX_MAX_BYTES: usize = 256;

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// The embedded store, in this directory: one server, one machine.
    File(PathBuf),
    /// The embedded store in memory: for tests, gone with the process.
    Memory,
    /// etcd: any number of servers act as one.
    Etcd {
        /// Its endpoints, each `host:port`; an IPv6 host is in brackets.
        endpoints: Vec<String>,
        /// What all keys start with: a slash first, none last.
        prefix: String,
        /// Whether it is reached by TLS.
        tls: bool,
    },
}

/// Why a text is no store URL. Holds no part of the text that could be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the store URL is not valid: {0}; write file:DIR (one machine), memory: (for tests), \
     or etcd://HOST:PORT,HOST:PORT/prefix (a cluster; etcds:// with TLS)"
)]
pub struct StoreUrlError(String);

impl Default for StoreUrl {
    fn default() -> Self {
        StoreUrl::File(PathBuf::from("./onced-data"))
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let parsed = match url.split_once(':') {
            None if url.is_empty() => Err("it is empty".to_owned()),
            None => Err("it does not start with file:, memory: or etcd://".to_owned()),
            Some(("file", directory)) => file(directory),
            Some(("memory", "")) => Ok(StoreUrl::Memory),
            Some(("memory", _)) => Err("nothing goes after memory:".to_owned()),
            Some(("etcd", rest)) => etcd(rest, false),
            Some(("etcds", rest)) => etcd(rest, true),
            // What looks like a scheme is shown; anything else could be part of a password.
            Some((scheme, _)) if scheme.len() <= 10 && scheme.bytes().all(|b| b.is_ascii_alphabetic()) => {
                Err(format!("no store is called \"{scheme}\""))
            }
            Some(_) => Err("it does not start with file:, memory: or etcd://".to_owned()),
        };
        parsed.map_err(StoreUrlError)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::File(directory) => write!(f, "file:{}", directory.display()),
            StoreUrl::Memory => f.write_str("memory:"),
            StoreUrl::Etcd { endpoints, prefix, tls } => {
                let scheme = if *tls { "etcds" } else { "etcd" };
                write!(f, "{scheme}://{}{prefix}", endpoints.join(","))
            }
        }
    }
}

fn file(directory: &str) -> Result<StoreUrl, String> {
    // file:///var/lib/onced is how other programs write /var/lib/onced.
    let path = match directory.strip_prefix("//") {
        None => directory,
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err("after file:// comes an absolute path, and no host".to_owned()),
    };
    if path.is_empty() {
        return Err("no directory after file:".to_owned());
    }
    Ok(StoreUrl::File(PathBuf::from(path)))
}

fn etcd(rest: &str, tls: bool) -> Result<StoreUrl, String> {
    let rest = rest.strip_prefix("//").ok_or("after etcd: comes //")?;
    // Before anything else is said about the text, so that no error repeats a password.
    if rest.contains('@') {
        return Err("a password in it would show in process lists: use --etcd-user and \
                    --etcd-password-file"
            .to_owned());
    }
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let endpoints = hosts.split(',').map(endpoint).collect::<Result<_, _>>()?;
    Ok(StoreUrl::Etcd { endpoints, prefix: prefix_of(prefix)?, tls })
}

fn prefix_of(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('/');
    if name.is_empty() {
        return Ok(ETCD_PREFIX.to_owned());
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
    if !name.bytes().all(allowed) {
        return Err("the prefix may hold letters, digits and . _ - / alone".to_owned());
    }
    if name.len() > ETCD_PREFIX_MAX_BYTES {
        return Err(format!("the prefix has over {ETCD_PREFIX_MAX_BYTES} bytes"));
    }
    Ok(format!("/{name}"))
}

/// Checks `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`, and spells the port out.
fn endpoint(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an endpoint is empty".to_owned());
    }
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) =
            bracketed.split_once(']').ok_or_else(|| format!("\"{text}\" has no closing bracket"))?;
        let address: Ipv6Addr =
            address.parse().map_err(|_| format!("\"{address}\" is not an IPv6 address"))?;
        let port = match port.strip_prefix(':') {
            Some(port) => port_of(port, text)?,
            None if port.is_empty() => ETCD_PORT,
            None => return Err(format!("after the bracket of \"{text}\" comes :PORT or nothing")),
        };
        return Ok(format!("[{address}]:{port}"));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("an IPv6 address goes in brackets: [{text}]"));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port_of(port, text)?),
        None => (text, ETCD_PORT),
    };
    if host.is_empty() {
        return Err(format!("\"{text}\" has no host"));
    }
    if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err(format!("\"{host}\" is not a host name"));
    }
    Ok(format!("{host}:{port}"))
}

fn port_of(port: &str, endpoint: &str) -> Result<u16, String> {
    // `parse` would take a sign.
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(format!("the port of \"{endpoint}\" is not a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_reads_as_what_it_names() {
        let etcd = |endpoints: &[&str], prefix: &str| StoreUrl::Etcd {
            endpoints: endpoints.iter().map(|&text| text.to_owned()).collect(),
            prefix: prefix.to_owned(),
            tls: false,
        };
        let tls =
            StoreUrl::Etcd { endpoints: vec!["one:2379".to_owned()], prefix: "/p".to_owned(), tls: true };
        for (text, expected) in [
            ("file:./onced-data", StoreUrl::File("./onced-data".into())),
            ("file:/var/lib/onced", StoreUrl::File("/var/lib/onced".into())),
            ("file:///var/lib/onced", StoreUrl::File("/var/lib/onced".into())),
            ("file:a:b@c", StoreUrl::File("a:b@c".into())),
            ("memory:", StoreUrl::Memory),
            ("etcd://one", etcd(&["one:2379"], "/onced")),
            ("etcd://one/", etcd(&["one:2379"], "/onced")),
            ("etcd://one:1,two,10.0.0.3:3/a/b/", etcd(&["one:1", "two:2379", "10.0.0.3:3"], "/a/b")),
            ("etcds://one/p", tls),
            ("etcd://[::1],[fe80:0::2]:7", etcd(&["[::1]:2379", "[fe80::2]:7"], "/onced")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn an_error_names_what_is_wrong_and_shows_the_three_forms() {
        for (text, wrong) in [
            ("", "it is empty"),
            ("onced-data", "does not start with"),
            ("C0:onced-data", "does not start with"),
            ("redis://one", "no store is called \"redis\""),
            ("file:", "no directory"),
            ("file://host/dir", "no host"),
            ("memory", "does not start with"),
            ("memory:x", "nothing goes after memory:"),
            ("etcd:one", "comes //"),
            ("etcd://", "an endpoint is empty"),
            ("etcd://one,,two", "an endpoint is empty"),
            ("etcd://:1", "\":1\" has no host"),
            ("etcd://one:0", "the port of \"one:0\""),
            ("etcd://one:+1", "the port of \"one:+1\""),
            ("etcd://one:65536", "the port of \"one:65536\""),
            ("etcd://one:", "the port of \"one:\""),
            ("etcd://::1", "[::1]"),
            ("etcd://[::1", "no closing bracket"),
            ("etcd://[one]:1", "\"one\" is not an IPv6 address"),
            ("etcd://[::1]1", "after the bracket"),
            ("etcd://o ne", "\"o ne\" is not a host name"),
            ("etcd://one?x=1", "\"one?x=1\" is not a host name"),
            ("etcd://one/a?x=1", "the prefix may hold"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
            for form in ["file:DIR", "memory:", "etcd://HOST:PORT,HOST:PORT/prefix"] {
                assert!(error.contains(form), "{text}: {error}");
            }
        }
    }

    #[test]
    fn no_error_repeats_a_password() {
        for text in [
            "etcd://root:hunter2@one:2379",
            "etcds://root:hunter2@one:2379",
            "root:hunter2@one",
            "etcd://one,a:hunter2@[x/p",
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_shown_reads_as_the_same_store() {
        for text in ["file:dir", "memory:", "etcd://a,[::1]:1/p/q", "etcds://a/p"] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string().parse(), Ok(url), "{text}");
        }
        assert_eq!(StoreUrl::default().to_string(), "file:./onced-data");
    }
}
