//! What `/metrics` shows, read apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::http;

/// The metrics of a server.
#[derive(Debug, Default)]
pub struct Exposition {
    pub metrics: BTreeMap<String, Shown>,
}

/// A metric as it is shown.
#[derive(Debug, Default)]
pub struct Shown {
    pub help: String,
    pub kind: String,
    /// The names of its labels.
    pub labels: BTreeSet<String>,
    /// Each line: the name, which may say more than the metric's, its labels as they stand, and the value.
    lines: Vec<(String, String, f64)>,
}

impl Exposition {
    /// Reads the page of a server.
    pub async fn of(admin: SocketAddr) -> Self {
        let page = http::get(admin, "/metrics").await;
        assert_eq!(page.status, 200, "{page:?}");
        assert!(page.head.contains("content-type: text/plain; version=0.0.4"), "{}", page.head);
        Self::parse(&page.body)
    }

    fn parse(page: &str) -> Self {
        let mut all = Self::default();
        for line in page.lines().filter(|line| !line.is_empty()) {
            if let Some(line) = line.strip_prefix("# ") {
                let (what, line) = line.split_once(' ').expect("what it says");
                let (name, text) = line.split_once(' ').expect("a name");
                let metric = all.metrics.entry(name.to_owned()).or_default();
                match what {
                    "HELP" => metric.help = text.replace("\\\\", "\\"),
                    "TYPE" => metric.kind = text.to_owned(),
                    other => panic!("what is {other}?"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series
                .split_once('{')
                .map_or((series, ""), |(name, labels)| (name, labels.strip_suffix('}').expect("a brace")));
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let base = base.filter(|base| all.metrics.contains_key(*base)).unwrap_or(name);
            let metric = all.metrics.get_mut(base).unwrap_or_else(|| panic!("{base} has no TYPE"));
            // No value of a label has a comma or an equals sign in it, but `le` alone is not ours.
            let names = labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            metric.labels.extend(names.filter(|name| *name != "le").map(str::to_owned));
            metric.lines.push((name.to_owned(), labels.to_owned(), value.parse().expect("a number")));
        }
        all
    }

    /// The sum of the values of this name over the series that have all of these labels, each as `name="value"`.
    pub fn value(&self, name: &str, labels: &[&str]) -> f64 {
        let lines = self.metrics.values().flat_map(|metric| &metric.lines);
        let wanted = |has: &str| labels.iter().all(|label| has.split(',').any(|one| one == *label));
        lines.filter(|(of, has, _)| of == name && wanted(has)).map(|(.., value)| value).sum()
    }
}

/// Reads the metrics of a server again and again until they are as `wanted`, and returns them.
pub async fn until(admin: SocketAddr, wanted: impl Fn(&Exposition) -> bool) -> Exposition {
    let page = http::until(admin, "/metrics", |page| wanted(&Exposition::parse(&page.body))).await;
    Exposition::parse(&page.body)
}
