//! The table, the sources, and what is said of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::form::Raw;
use super::*;
use crate::access;
use crate::record::OnLapse;

/// A file with this text, in a directory of its own.
fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("onced.toml");
    fs::write(&path, text).unwrap();
    (directory, path)
}

fn sources(file: Option<&Path>, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let owned = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    Sources { file: file.map(Path::to_owned), variables: owned(variables), flags: owned(flags) }
}

/// What is said of a file, without its path.
fn problems_of(text: &str) -> Vec<String> {
    let (directory, path) = file(text);
    let problems = sources(Some(&path), &[], &[]).load().map(|loaded| loaded.config).unwrap_err();
    let place = format!("{}/", directory.path().display());
    problems.0.iter().map(|problem| problem.to_string().replace(&place, "")).collect()
}

#[test]
fn every_setting_has_names_of_its_own_a_help_text_and_a_default_within_its_bounds() {
    let mut config = Config::default();
    let (mut keys, mut flags, mut variables) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for mut setting in config.settings() {
        let key = setting.key.clone();
        assert!(keys.insert(key.clone()) && flags.insert(setting.flag()), "{key}");
        assert!(variables.insert(setting.variable()), "{key}");
        assert!(setting.help.len() > 10 && !setting.help.ends_with('.'), "{key}");
        if let Some(default) = setting.show() {
            assert_eq!(setting.set(&default), Ok(()), "{key}");
            assert_eq!(setting.set(&Raw::Bare(default.bare())), Ok(()), "{key}");
            assert_eq!(setting.show(), Some(default), "{key}");
        } else {
            assert_eq!(setting.reload, Reload::Restart, "{key}: what is reloaded has a value");
        }
    }
    assert_eq!(config, Config::default());
}

#[test]
fn a_flag_counts_more_than_the_environment_and_that_more_than_the_file() {
    let text = "[limits]\nconnections = 1\nstreams_per_connection = 1\nmax_active_calls = 1";
    let (_directory, path) = file(text);
    let variables = [("ONCED_LIMITS_CONNECTIONS", "2"), ("ONCED_LIMITS_MAX_ACTIVE_CALLS", "2")];
    let loaded = sources(Some(&path), &variables, &[("limits-max-active-calls", "3")]).load().unwrap();
    let Config { limits, rpc, .. } = &loaded.config;
    assert_eq!((limits.streams_per_connection, limits.connections, rpc.max_active_calls), (1, 2, 3));
    assert_eq!(rpc.max_holder_calls, Calls::default().max_holder_calls);
    let origins: Vec<String> = loaded.origins.values().map(Origin::to_string).collect();
    let file = format!("{}:3", path.display());
    assert_eq!(origins, ["ONCED_LIMITS_CONNECTIONS", "--limits-max-active-calls", &file]);
}

#[test]
fn a_file_is_named_by_a_flag_or_else_by_the_environment() {
    let (_one, by_flag) = file("log = \"warn\"");
    let (_other, by_variable) = file("log = \"error\"");
    let variables = [("ONCED_CONFIG", by_variable.to_str().unwrap())];
    assert_eq!(sources(Some(&by_flag), &variables, &[]).load().unwrap().config.log, "warn");
    assert_eq!(sources(None, &variables, &[]).load().unwrap().config.log, "error");
    assert_eq!(sources(None, &[("ONCED_CONFIG", "")], &[]).load().unwrap().config.log, "info");
}

#[test]
fn the_log_is_told_by_what_others_read_where_it_is_not_told_by_ours() {
    let log = |variables: &[(&str, &str)]| sources(None, variables, &[]).load().unwrap().config.log;
    assert_eq!(log(&[("RUST_LOG", "debug")]), "debug");
    assert_eq!(log(&[("RUST_LOG", "debug"), ("ONCED_LOG", "warn")]), "warn");
    assert_eq!(log(&[("RUST_LOG", "")]), "info");
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_line_key_and_what_was_expected() {
    let text = "listen = 7411\n\
                drain_limit = 30\n\
                [limits]\n\
                connections = \"many\"\n\
                handshake = \"1 ms\"\n\
                max_message_bytes = \"64 Kib\"\n\
                max_active_calls = 0\n\
                conections = 5\n\
                [etcd]\n\
                key = true\n";
    let expected = [
        "onced.toml:1: listen: expected an IP address of this machine and a port, such as 127.0.0.1:7411, \
         [::1]:7411, or 0.0.0.0:7411 for all, found 7411",
        "onced.toml:2: drain_limit: expected a time from 0s to 1h, such as \"30s\" or \"1h30m\", found 30",
        "onced.toml:4: limits.connections: expected a whole number from 1 to 1000000, found \"many\"",
        "onced.toml:5: limits.handshake: expected a time from 100ms to 5m, such as \"30s\" or \"1h30m\", \
         found \"1 ms\"",
        "onced.toml:6: limits.max_message_bytes: expected a size from 64KiB to 64MiB, in bytes or such as \
         \"64KiB\", found \"64 Kib\"",
        "onced.toml:7: limits.max_active_calls: expected a whole number from 1 to 1000000, found 0",
        "onced.toml:8: limits.conections: there is no such setting: did you mean limits.connections?",
        "onced.toml:10: etcd.key: expected the path of a file, found true",
    ];
    assert_eq!(problems_of(text), expected);
}

#[test]
fn values_that_are_overridden_are_checked_too() {
    let (_directory, path) = file("log = \"onced=loud\"");
    let variables = [("ONCED_WORKER_THREADS", "0"), ("ONCED_STORE", "etcd://root:hunter2@x")];
    let flags = [("log", "info"), ("worker-threads", "+1"), ("store", "memory:")];
    let problems = sources(Some(&path), &variables, &flags).load().map(|loaded| loaded.config).unwrap_err();
    let told = problems.to_string();
    let origins: Vec<String> = problems.0.iter().map(|problem| problem.origin.to_string()).collect();
    let file = format!("{}:1", path.display());
    assert_eq!(origins, [&file, "ONCED_STORE", "ONCED_WORKER_THREADS", "--worker-threads"], "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn what_is_no_setting_is_an_error_with_the_one_that_was_meant() {
    for (text, told) in [
        ("listn = \"x\"", "onced.toml:1: listn: there is no such setting: did you mean listen?"),
        (
            "connections = 1",
            "onced.toml:1: connections: there is no such setting: did you mean limits.connections?",
        ),
        (
            "[limit]\nconnections = 1",
            "onced.toml:2: limit.connections: there is no such setting: did you mean limits.connections?",
        ),
        ("limits = 1", "onced.toml:1: limits: expected a table, [limits], found 1"),
        ("[unheard-of]", "onced.toml:1: unheard-of: there is no such setting"),
        ("\n[etcd.\"a b\"]\nc = 1", "onced.toml:3: etcd.\"a b\".c: there is no such setting"),
        (
            "etcd.password = \"hunter2\"",
            "onced.toml:1: etcd.password: there is no such setting: did you mean etcd.password_file?",
        ),
    ] {
        assert_eq!(problems_of(text), [told], "{text}");
    }
}

#[test]
fn all_that_is_no_toml_is_told_with_its_line_and_nothing_else_of_the_file() {
    let problems = problems_of("listen = \nlog = 5\n[limits\nconnections = 0\n");
    let lines: Vec<&str> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    assert_eq!(lines, ["onced.toml:1", "onced.toml:3"], "{problems:?}");
}

#[test]
fn what_stands_in_a_file_twice_is_an_error() {
    let problems = problems_of("log = \"info\"\nlog = \"warn\"\n");
    assert!(problems[0].starts_with("onced.toml:2: duplicate key"), "{problems:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = Path::new("/no/such/onced.toml");
    let told = sources(Some(missing), &[], &[]).load().map(drop).unwrap_err().to_string();
    assert!(told.starts_with("/no/such/onced.toml: cannot read the file: "), "{told}");
}

#[test]
fn a_namespace_is_as_the_defaults_but_for_what_the_file_says_of_it() {
    let text = "[namespaces.orders]\n\
                lock_ttl = \"5s\"\n\
                [namespaces.\"a.b\"]\n\
                [defaults]\n\
                lock_ttl = \"7s\"\n\
                on_lapse = \"hold\"\n\
                [namespaces.default]\n\
                on_lapse = \"take-over\"\n";
    let (_directory, path) = file(text);
    let loaded = sources(Some(&path), &[("ONCED_DEFAULTS_RETENTION", "48h")], &[]).load().unwrap();
    let s = std::time::Duration::from_secs;
    let defaults =
        Policy { lock_ttl: s(7), retention: s(48 * 3_600), on_lapse: OnLapse::Hold, ..Policy::default() };
    let namespaces = &loaded.config.namespaces;
    assert_eq!(*namespaces.of("unheard-of"), defaults);
    assert_eq!(*namespaces.of("a.b"), defaults);
    assert_eq!(*namespaces.of("orders"), Policy { lock_ttl: s(5), ..defaults.clone() });
    assert_eq!(*namespaces.of("default"), Policy { on_lapse: OnLapse::TakeOver, ..defaults });

    let printed = loaded.print();
    for line in [
        "[namespaces.\"a.b\"]".to_owned(),
        format!("lock_ttl = \"5s\"  # {}:2", path.display()),
        "retention = \"2d\"  # as in [defaults]".to_owned(),
        "retention = \"2d\"  # ONCED_DEFAULTS_RETENTION".to_owned(),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "no {line:?} in {printed}");
    }
    fs::write(&path, printed).unwrap();
    assert_eq!(sources(Some(&path), &[], &[]).load().unwrap().config, loaded.config);
}

#[test]
fn a_quota_is_a_number_or_unlimited() {
    let text = "[defaults]\nmax_claims = 5\nmax_waiters = 0\n[namespaces.free]\nmax_claims = \"unlimited\"\n";
    let (_directory, path) = file(text);
    let loaded = sources(
        Some(&path),
        &[("ONCED_DEFAULTS_BEGINS_PER_SECOND", "unlimited")],
        &[("defaults-max-waiters", "7")],
    );
    let namespaces = loaded.load().unwrap().config.namespaces;
    let quotas = |name: &str| {
        let Policy { begins_per_second, max_waiters, max_claims, .. } = *namespaces.of(name);
        (begins_per_second, max_waiters, max_claims)
    };
    assert_eq!(quotas("any"), (None, Some(7), Some(5)));
    assert_eq!(quotas("free"), (None, Some(7), None));
    let told = [
        "onced.toml:2: defaults.max_claims: expected a whole number from 1 to 10000000, or \"unlimited\", found 0",
    ];
    assert_eq!(problems_of("[defaults]\nmax_claims = 0"), told);
}

#[test]
fn what_is_wrong_with_namespaces_is_told_with_all_else() {
    let text = "[namespaces]\n\
                orders = 5\n\
                [namespaces.Orders]\n\
                [namespaces.a.b]\n\
                lock_ttl = \"5s\"\n\
                [namespaces.x]\n\
                locktll = 1\n\
                retention = \"32d\"\n\
                on_lapse = \"holt\"\n\
                [namespaces.y]\n\
                max_lock_ttl = \"20s\"\n\
                max_retention = \"2h\"\n\
                retention = \"3h\"\n\
                [defaults]\n\
                lock_ttl = \"2m\"\n\
                max_lock_ttl = \"1m\"\n";
    let expected = [
        "onced.toml:2: namespaces.orders: expected a table, [namespaces.orders], found 5",
        "onced.toml:3: namespaces.Orders: expected a namespace that matches [a-z0-9][a-z0-9._-]{0,62}",
        "onced.toml:5: namespaces.a.b.lock_ttl: there is no such setting; a namespace with a dot in its name goes \
         in quotes: [namespaces.\"a.…\"]",
        "onced.toml:7: namespaces.x.locktll: there is no such setting: did you mean lock_ttl?",
        "onced.toml:8: namespaces.x.retention: expected a time from 1m to 31d, such as \"30s\" or \"1h30m\", \
         found \"32d\"",
        "onced.toml:9: namespaces.x.on_lapse: expected \"take-over\" (the next one to ask gets the key) or \"hold\" \
         (it is in doubt until an operator resolves it), found \"holt\"",
        "onced.toml:11: namespaces.y.max_lock_ttl: is 20s, below namespaces.y.lock_ttl, which is 2m",
        "onced.toml:13: namespaces.y.retention: is 3h, over namespaces.y.max_retention, which is 2h",
        "onced.toml:15: defaults.lock_ttl: is 2m, over defaults.max_lock_ttl, which is 1m",
    ];
    assert_eq!(problems_of(text), expected);
    assert_eq!(
        problems_of("namespaces = 1"),
        ["onced.toml:1: namespaces: expected a table for each namespace, [namespaces.NAME], found 1"]
    );
}

#[test]
fn what_does_not_fit_together_is_told_beside_what_is_wrong_by_itself() {
    let (directory, path) = file("user = \"onced\"");
    let password = path.display().to_string();
    let missing = directory.path().join("missing").display().to_string();
    let told = |variables: &[(&str, &str)]| match sources(None, variables, &[]).load() {
        Ok(_) => Vec::new(),
        Err(problems) => {
            problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect()
        }
    };
    let of_etcd =
        told(&[("ONCED_ETCD_USER", "onced"), ("ONCED_ETCD_QUOTA_BYTES", "1"), ("ONCED_LISTEN", "x")]);
    assert_eq!(of_etcd.len(), 4, "{of_etcd:?}");
    assert_eq!(of_etcd[1], "etcd.user: is for a store in etcd, but the store is file:./onced-data");
    assert!(of_etcd[2].starts_with("etcd.user: needs a password"), "{of_etcd:?}");

    let etcd = ("ONCED_STORE", "etcd://one");
    let tls = told(&[etcd, ("ONCED_ETCD_CERT", &missing)]);
    assert_eq!(tls.len(), 3, "{tls:?}");
    assert!(tls[0].starts_with("etcd.cert: cannot read") && tls[0].contains(&missing), "{tls:?}");
    assert!(tls[1].contains("write etcds://") && tls[2].contains("set etcd.key, too"), "{tls:?}");
    let nobody = told(&[etcd, ("ONCED_ETCD_PASSWORD_FILE", &password)]);
    assert_eq!(nobody, ["etcd.password_file: needs the name of the user: set etcd.user, too"]);
    let unread = told(&[etcd, ("ONCED_ETCD_USER", "u"), ("ONCED_ETCD_PASSWORD_FILE", &missing)]);
    assert!(unread[0].contains(&missing) && unread.len() == 1, "{unread:?}");
    let slow = told(&[etcd, ("ONCED_ETCD_CALL_TIMEOUT", "5s")]);
    assert!(slow[0].contains("limits.store_timeout, which is 5s"), "{slow:?}");
    let small = told(&[("ONCED_LIMITS_MAX_MESSAGE_BYTES", "1MiB")]);
    assert!(small[0].contains("at least 1064960"), "{small:?}");
    let narrow = told(&[("ONCED_LIMITS_BYTES_PER_CONNECTION", "1MiB")]);
    assert!(narrow[0].contains("limits.max_message_bytes, which is 2097152"), "{narrow:?}");
    // One that cannot be read leaves open which store is meant.
    let unknown = told(&[("ONCED_STORE", "redis://x"), ("ONCED_ETCD_CALL_TIMEOUT", "1s")]);
    assert!(unknown.len() == 1 && unknown[0].starts_with("store: "), "{unknown:?}");
}

#[test]
fn a_password_comes_from_its_file_without_the_end_of_the_line_or_from_the_environment() {
    let (_directory, path) = file(" pass word \r\n");
    let named = path.display().to_string();
    let password = |variables: &[(&str, &str)]| {
        let user = [("ONCED_STORE", "etcd://one"), ("ONCED_ETCD_USER", "onced")];
        sources(None, &[&user, variables].concat(), &[]).load().map(|loaded| loaded.config.etcd_password)
    };
    let of_file = ("ONCED_ETCD_PASSWORD_FILE", named.as_str());
    let secret = |text: &str| Ok(Some(Secret(text.to_owned())));
    assert_eq!(password(&[of_file]), secret(" pass word "));
    assert_eq!(password(&[("ONCED_ETCD_PASSWORD", "word")]), secret("word"));
    fs::write(&path, "\n").unwrap();
    let told = password(&[of_file]).unwrap_err().to_string();
    assert!(told.contains(&named) && told.contains("empty"), "{told}");
    // A running server has it, and does not look again.
    let user = [("ONCED_STORE", "etcd://one"), ("ONCED_ETCD_USER", "onced"), of_file];
    let again = sources(None, &user, &[]).load_again().unwrap();
    assert_eq!((again.config.etcd_password, again.doubts.len()), (None, 0));
}

#[test]
fn what_is_printed_reads_as_the_same_configuration_and_shows_no_password() {
    let (_directory, path) = file("drain_limit = \"1m30s\"\nlog = \"info,onced=\\u0064ebug\"");
    let variables = [
        ("ONCED_STORE", "etcd://one:1,two/p"),
        ("ONCED_ETCD_USER", "a \"b\" \\ c"),
        ("ONCED_ETCD_PASSWORD", "hunter2"),
        ("ONCED_ETCD_QUOTA_BYTES", "3000000000"),
        ("ONCED_LIMITS_HANDSHAKE", "1500ms"),
    ];
    let loaded = sources(Some(&path), &variables, &[("worker-threads", "3")]).load().unwrap();
    let printed = loaded.print();
    assert!(!printed.contains("hunter2"), "{printed}");
    for line in [
        format!("drain_limit = \"90s\"  # {}:1", path.display()),
        "handshake = \"1500ms\"  # ONCED_LIMITS_HANDSHAKE".to_owned(),
        "worker_threads = 3  # --worker-threads".to_owned(),
        "connections = 8192  # default".to_owned(),
        "# ca is not set".to_owned(),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "no {line:?} in {printed}");
    }
    fs::write(&path, &printed).unwrap();
    let again = sources(Some(&path), &[("ONCED_ETCD_PASSWORD", "hunter2")], &[]).load().unwrap();
    assert_eq!(again.config, loaded.config);
}

#[test]
fn what_can_change_under_a_running_server_does_and_the_rest_is_told() {
    let read = |text: &str| {
        let (_directory, path) = file(text);
        sources(Some(&path), &[], &[("limits-max-wait", "1s")]).load().unwrap().config
    };
    let mut running =
        read("[limits]\nmax_wait = \"2s\"\n[namespaces.gone]\nlock_ttl = \"5s\"\n[namespaces.same]\n");
    let nowhere = BTreeMap::new();
    assert_eq!(running.take_over(running.clone(), &nowhere).unwrap(), []);
    let new = read(
        "log = \"debug\"\nworker_threads = 3\n[limits]\nmax_wait = \"3s\"\nmax_session_calls = 5\nconnections = 5\n\
         [defaults]\nretention = \"48h\"\n[namespaces.\"n.ew\"]\nmax_claims = 5\n",
    );
    let changes = running.take_over(new.clone(), &nowhere).unwrap();
    let told: Vec<String> = changes
        .iter()
        .map(|Change { key, from, to, reload }| format!("{reload:?} {key}: {from} to {to}"))
        .collect();
    let expected = [
        "Live namespaces.gone.lock_ttl: 5s to 30s",
        "Live namespaces.gone.retention: 1d to 2d",
        "Live namespaces.\"n.ew\".retention: 1d to 2d",
        "Live namespaces.\"n.ew\".max_claims: unlimited to 5",
        "Live namespaces.same.retention: 1d to 2d",
        "Live log: info to debug",
        "Restart worker_threads: not set to 3",
        "Restart limits.connections: 8192 to 5",
        "Live limits.max_session_calls: 1024 to 5",
        "Live defaults.retention: 1d to 2d",
    ];
    assert_eq!(told, expected);
    let mut at_once = new.clone();
    (at_once.worker_threads, at_once.limits.connections) = (None, Limits::default().connections);
    assert_eq!(running, at_once);
    // What needs a restart is told each time.
    let again = running.take_over(new, &nowhere).unwrap();
    let again: Vec<String> = again.into_iter().map(|change| change.key).collect();
    assert_eq!(again, ["worker_threads", "limits.connections"]);
}

/// Else claims would promise room for outcomes that no message can bring, and rules would be in force for nobody.
#[test]
fn what_is_new_and_does_not_go_with_what_stays_changes_nothing() {
    let read = |text: &str| {
        let (_directory, path) = file(text);
        sources(Some(&path), &[], &[]).load().unwrap()
    };
    let tokens = tempfile::NamedTempFile::new().unwrap();
    fs::write(&tokens, access::tokens::new("ci").unwrap().1).unwrap();
    let rules = format!(
        "[limits]\nmax_message_bytes = \"64KiB\"\n[defaults]\nmax_outcome_bytes = \"16KiB\"\n[access]\ntokens = {:?}\n[access.rules.ci]\nidentities = [\"token:ci\"]\nnamespaces = [\"*\"]\nactions = [\"begin\"]\n",
        tokens.path()
    );
    let large = "[limits]\nmax_message_bytes = \"2MiB\"\nmax_wait = \"3s\"\n[defaults]\nmax_outcome_bytes = \"512KiB\"\n";
    for (new, key) in [(large, "limits.max_message_bytes"), (&rules, "access.rules.ci.identities")] {
        let mut running =
            read("[limits]\nmax_message_bytes = \"64KiB\"\n[defaults]\nmax_outcome_bytes = \"16KiB\"\n")
                .config;
        let (before, new) = (running.clone(), read(new));
        let told = running.take_over(new.config, &new.origins).unwrap_err().0;
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].key == key && told[0].text.ends_with("takes a restart"), "{told:?}");
        assert_eq!(running, before);
    }
}

#[test]
fn a_new_password_needs_a_restart_and_is_not_told() {
    let read = |password: &str| {
        let variables =
            [("ONCED_STORE", "etcd://x"), ("ONCED_ETCD_USER", "u"), ("ONCED_ETCD_PASSWORD", password)];
        sources(None, &variables, &[]).load().unwrap().config
    };
    let mut running = read("hunter2");
    let changes = running.take_over(read("hunter3"), &BTreeMap::new()).unwrap();
    assert_eq!((changes.len(), changes[0].reload), (1, Reload::Restart));
    assert!(!format!("{changes:?}").contains("hunter"));
    assert_eq!(running, read("hunter2"));
}

#[test]
fn a_variable_that_is_nearly_one_of_ours_is_doubted_and_others_are_left_alone() {
    let variables = [
        ("ONCED_LISTN", "127.0.0.1:1"),
        ("ONCED_SERVER", "x"),
        ("ONCED_NAMESPACE", "x"),
        ("ONCED_KEY", "x"),
        ("ONCED_PORT", "tcp://10.0.0.1:7411"),
        ("ONCED_SERVICE_HOST", "10.0.0.1"),
        ("ONCED_PORT_7411_TCP_PROTO", "tcp"),
        ("ONCED_TEST_ETCD", "x"),
        ("ONCED_CONFIG", ""),
        ("ONCED_ETCD_PASSWORD", "x"),
    ];
    let doubts = sources(None, &variables, &[]).load().unwrap().doubts;
    assert_eq!(doubts, ["ONCED_LISTN is not a setting: did you mean ONCED_LISTEN?"]);
}

#[test]
fn the_reference_is_the_page_in_docs_and_its_file_sets_every_default() {
    let reference = reference();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    assert!(
        page == reference,
        "write it anew: cargo run -p onced -- check-config --reference > docs/configuration.md"
    );

    let examples: Vec<&str> =
        reference.split("```toml\n").skip(1).map(|text| text.split("```").next().unwrap()).collect();
    for example in &examples[1..] {
        let (_directory, path) = file(example);
        sources(Some(&path), &[], &[]).load().unwrap();
    }
    let (_directory, path) = file(examples[0]);
    let loaded = sources(Some(&path), &[], &[]).load().unwrap();
    assert_eq!(loaded.config, Config::default());
    let mut config = Config::default();
    let set = config.settings().iter().filter(|setting| setting.show().is_some()).count();
    assert_eq!(loaded.origins.len(), set);

    // What is not set can be, by taking its # away: the file is still TOML, and at most that value is wrong.
    let is_unset = |line: &&str| {
        let name = line.strip_prefix("# ").and_then(|line| line.split_once(" = "));
        name.is_some_and(|(name, _)| !name.contains(' '))
    };
    let unset: Vec<&str> = examples[0].lines().filter(is_unset).collect();
    assert_eq!(unset.len(), config.settings().len() - set);
    for line in unset {
        let (_directory, path) = file(&examples[0].replace(line, &line[2..]));
        let problems =
            sources(Some(&path), &[], &[]).load().map_or_else(|problems| problems.0, |_| Vec::new());
        let named = |problem: &Problem| line.contains(problem.key.rsplit('.').next().unwrap());
        assert!(problems.iter().all(|problem| !problem.key.is_empty() && named(problem)), "{problems:?}");
    }
}
