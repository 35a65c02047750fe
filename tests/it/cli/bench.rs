//! `onced bench`: its figures, what it checks, and how it ends.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::*;
use crate::support::onced::KillOnDrop;
use crate::support::stand_in::{Fault, SHORT_SESSION, StandIn, Unheard};

/// A load on a stand-in of a server, with these flags, and warm at once unless they say otherwise.
async fn against(fault: Fault, flags: &str) -> (Ran, StandIn) {
    let server = StandIn::start(fault).await;
    let mut command = onced();
    command.args(["bench", "--server", &server.address()]).args(flags.split(' '));
    if !flags.contains("--warm-up") {
        command.args(["--warm-up", "0s"]);
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (Ran::from(output), server)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn each_scenario_tells_of_what_it_did_and_of_promises_kept() {
    let directory = tempfile::tempdir().unwrap();
    let process = ServerProcess::start(&format!("file:{}", directory.path().display()));
    let server = Server { address: process.address().to_string(), process };
    let mut executed = 0;
    for (scenario, kinds) in [
        ("unique", &["pair", "begin", "complete"][..]),
        ("duplicates --duplicates 5", &["pair", "begin", "complete", "duplicate"]),
        ("duplicates --spread zipf", &["pair", "begin", "complete", "duplicate"]),
        ("replays --keys 20", &["replay"]),
        ("mix --keys 20 --shares 1,1,1", &["pair", "begin", "complete", "duplicate", "replay"]),
        ("unique --rate 200", &["pair", "begin", "complete"]),
    ] {
        for mode in ["unary", "stream"] {
            let flags =
                format!("bench {scenario} --mode {mode} --callers 6 --duration 400ms --warm-up 50ms --json");
            let told = server.run(&flags.split(' ').collect::<Vec<_>>()).expect(0, &[]).json();
            assert_eq!(told["as_promised"], true, "{told}");
            assert_eq!(told["failed"], serde_json::json!({}), "{told}");
            let measured = told["measured"].as_object().unwrap();
            assert_eq!(measured.keys().collect::<Vec<_>>(), kinds, "{flags}: {told}");
            assert!(
                measured.values().all(|times| times["max_ms"].as_f64() >= times["p50_ms"].as_f64()),
                "{told}"
            );
            assert!(number(&told["outcomes"]["told"]) > 0, "{told}");
            assert_eq!(number(&told["asked_again"]["answered"]) > 0, kinds != ["replay"], "{told}");
            assert_eq!(told["asked_again"]["not_answered"], 0, "{told}");
            executed += number(&told["keys"]["executed_once"]);
        }
    }
    // The server has as many records, so no key was used by two runs.
    let listed = server.run(&["list", "--json"]).expect(0, &[]);
    assert_eq!(listed.stdout.lines().count() as u64, executed);
}

#[test]
fn its_records_are_told_of_and_hold_what_was_asked_for() {
    let server = Server::start();
    let flags = ["--namespace", "load", "--prefix", "night", "--payload", "1000", "--retention", "1min"];
    let bench = [&["bench", "--duration", "100ms", "--warm-up", "0s", "--json"][..], &flags[..]].concat();
    let ran = server.run(&bench).expect(0, &[]);
    let start = ran.json()["keys_begin_with"].as_str().unwrap().to_owned();
    assert!(start.starts_with("night-"), "{start}");
    ran.said(&["writes records to namespace load", &start, "kept for 2m 30s"]);
    let lookup = ["lookup", "--namespace", "load", "--key", &format!("{start}0"), "--json"];
    let record = server.run(&lookup).expect(0, &[]).json();
    assert_eq!(record["outcome"]["response"]["utf8"].as_str().unwrap().len(), 1_000);
    let time = |of: &str| humantime::parse_rfc3339(record[of].as_str().unwrap()).unwrap();
    let kept = time("expires_at").duration_since(time("completed_at")).unwrap();
    // It is among those that are asked for after the load, and so is kept as long as was said.
    assert!(kept >= Duration::from_secs(150) && kept < Duration::from_secs(300), "{kept:?}");
}

#[test]
fn people_get_a_table_and_no_progress_where_there_is_no_terminal() {
    let server = Server::start();
    let ran =
        server.run(&["bench", "--duration", "300ms"]).expect(0, &["closed loop", "pair", "all as promised"]);
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
    let rows: Vec<_> = ran.stdout.lines().skip(2).take(4).map(str::len).collect();
    assert!(rows.iter().all(|&length| length == rows[0] && length > 50), "{}", ran.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_that_is_broken_is_told_and_is_exit_code_1() {
    let counts = |told: &Value| {
        let keys = ["executed_again", "never_executed"].map(|count| number(&told["keys"][count]) > 0);
        (keys[0], keys[1], number(&told["outcomes"]["mismatched"]) > 0)
    };
    for (fault, scenario, broken) in [
        (Fault::Nothing, "duplicates", (false, false, false)),
        (Fault::Nothing, "mix", (false, false, false)),
        (Fault::ClaimsTwice, "duplicates", (true, false, false)),
        (Fault::ClaimsTwice, "mix", (true, false, false)),
        (Fault::TellsOtherBytes, "duplicates", (false, false, true)),
        (Fault::TellsOtherBytes, "replays", (false, false, true)),
        (Fault::ForgetsOutcomes, "replays", (true, false, false)),
        (Fault::InventsOutcomes, "unique", (false, true, true)),
        // What only keys show that are asked for once more when the load is over.
        (Fault::Nothing, "unique", (false, false, false)),
        (Fault::TellsOtherBytes, "unique", (false, false, true)),
        (Fault::ForgetsOutcomes, "unique", (true, false, false)),
        (Fault::FailsToComplete(Unheard::Stored), "unique", (false, false, false)),
        (Fault::FailsToComplete(Unheard::Nothing), "unique", (false, false, false)),
        (Fault::FailsToComplete(Unheard::OtherBytes), "unique", (false, false, true)),
        (Fault::FailsToComplete(Unheard::Released), "unique", (true, false, false)),
    ] {
        for mode in ["unary", "stream"] {
            let flags =
                format!("{scenario} --mode {mode} --duration 200ms --keys 10 --callers 4 --shares 1,1,1");
            let (ran, _) = against(fault, &format!("{flags} --json")).await;
            let told = ran.json();
            assert_eq!(counts(&told), broken, "{fault:?}, {flags}: {told}");
            let kept = broken == (false, false, false);
            assert_eq!(told["as_promised"], kept, "{told}");
            ran.expect(i32::from(!kept), &[]);
        }
    }
    let (ran, _) = against(Fault::ClaimsTwice, "duplicates --duration 100ms").await;
    ran.expect(1, &["A PROMISE WAS BROKEN"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_calls_failed_for_is_told_as_unknown_and_not_as_promised() {
    let flags = "unique --duration 200ms --callers 4";
    let (ran, _) = against(Fault::RefusesHalf, &format!("{flags} --json")).await;
    let told = ran.expect(0, &[]).json();
    assert!(number(&told["keys"]["unknown"]) > 0, "{told}");
    assert!(
        ["answered", "not_answered"].iter().all(|count| number(&told["asked_again"][count]) > 0),
        "{told}"
    );
    let (ran, _) = against(Fault::RefusesHalf, flags).await;
    let ran = ran.expect(0, &["nothing seen broken; ", " unknown", "and not answered: "]);
    assert!(!ran.stdout.contains("all as promised"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_counts_from_when_it_should_have_begun() {
    // The first one takes half a second, in which ten more are due: those wait for the only caller.
    let fault = Fault::StallsOnce(Duration::from_millis(500));
    let (ran, _) = against(fault, "unique --callers 1 --rate 20 --duration 600ms --json").await;
    let pair = &ran.expect(0, &[]).json()["measured"]["pair"];
    assert!(pair["p50_ms"].as_f64().unwrap() > 150.0, "{pair}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_after_the_load_counts_too() {
    let fault = Fault::IsSlow(Duration::from_millis(400));
    let (ran, _) = against(fault, "unique --callers 3 --duration 100ms --json").await;
    let pair = &ran.expect(0, &[]).json()["measured"]["pair"];
    assert_eq!(number(&pair["count"]), 3, "{pair}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_due_and_not_sent_is_told_and_counts_as_long_as_it_waited() {
    // One is begun, and takes longer than the load goes on.
    let fault = Fault::IsSlow(Duration::from_millis(900));
    let flags = "unique --callers 1 --rate 100 --duration 500ms";
    let (ran, _) = against(fault, &format!("{flags} --json")).await;
    let told = ran.expect(0, &[]).json();
    assert!(number(&told["not_sent"]) > 30, "{told}");
    for kind in ["pair", "begin"] {
        let times = &told["measured"][kind];
        assert_eq!(number(&times["count"]), 1, "{told}");
        assert!(times["p50_ms"].as_f64() < times["max_ms"].as_f64(), "{told}");
    }
    let (ran, _) = against(fault, flags).await;
    ran.expect(0, &["NOT SENT: ", "--callers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_so_high_that_only_what_was_overdue_got_done_measures_nothing() {
    // At 50 ms each, what was due in the first second is not done when the load ends.
    let fault = Fault::IsSlow(Duration::from_millis(50));
    let flags = "unique --callers 1 --rate 1000 --warm-up 1s --duration 1s";
    let (ran, _) = against(fault, &format!("{flags} --json")).await;
    let told = ran.expect(1, &[]).json();
    assert!(number(&told["keys_done"]) > 0, "{told}");
    let pair = &told["measured"]["pair"];
    assert_eq!(number(&pair["count"]), 0, "{told}");
    assert!(pair["p50_ms"].as_f64() > Some(0.0), "what waited shows: {told}");
    let (ran, _) = against(fault, flags).await;
    ran.expect(1, &["NOTHING WAS MEASURED: 1000 a second were due", "choose a --rate below"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_fail_are_told_and_none_that_succeeds_is_exit_code_1() {
    for mode in ["unary", "stream"] {
        let flags = format!("unique --mode {mode} --duration 200ms --callers 4");
        let (ran, _) = against(Fault::Refuses, &flags).await;
        ran.expect(1, &["RESOURCE_EXHAUSTED, first: no room", "NOTHING WAS MEASURED"]);
    }
    // Only one was due, while it was warming up.
    let (ran, _) = against(Fault::Nothing, "unique --rate 0.001 --warm-up 100ms --duration 100ms").await;
    ran.expect(1, &["NOTHING WAS MEASURED"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_ended_is_opened_again() {
    let flags = "unique --mode stream --connections 1 --callers 4 --duration 1s --json";
    let (ran, server) = against(Fault::EndsSessions, flags).await;
    let told = ran.expect(0, &[]).json();
    assert!(number(&told["measured"]["pair"]["count"]) > SHORT_SESSION as u64 / 2, "{told}");
    assert!(server.sessions() > 1, "{told}");
}

#[test]
fn an_interrupt_ends_the_load_and_tells_what_there_is() {
    let server = Server::start();
    let mut bench = server.command(&["bench", "--duration", "1h", "--warm-up", "0s", "--callers", "4"]);
    bench.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut bench = KillOnDrop(bench.spawn().unwrap());
    // The first of them is there before the load begins.
    while server.run(&["list"]).stdout.lines().count() < 20 {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(&bench.0, Signal::INT);
    let ended = (0..3_000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        bench.0.try_wait().unwrap()
    });
    let ended = ended.expect("it ends");
    let mut told = String::new();
    bench.0.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(ended.code(), Some(0), "{told}");
    assert!(told.contains("pair") && told.contains("all as promised"), "{told}");
}

#[test]
fn where_there_can_be_no_load_it_says_why_before_it() {
    let server = Server::start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let unreached = server.run(&["bench", "--server", &silent]);
    unreached.expect(8, &[]).said(&[&silent, "is onced running there?"]);
    let told = server.run(&["bench", "--server", &silent, "--json"]).expect(8, &[]).json();
    assert_eq!(told["error"]["code"], "UNAVAILABLE", "{told}");
    let refused = server.run(&["bench", "--namespace", "NO", "--mode", "stream"]);
    let refused = refused.expect(2, &[]).said(&["NAMESPACE_INVALID"]);
    assert!(!refused.stderr.contains("writes records"), "{refused:?}");
    for (wrong, said) in [
        ("--callers 0", "--callers"),
        ("--rate 0", "--rate"),
        ("--shares 0,0,0", "--shares"),
        ("--zipf=-1", "--zipf"),
        ("--duration 10", "--duration"),
        ("--duration 0s", "100ms or more"),
        ("--keys 0", "--keys"),
        ("--payload 1048573", "from 0 to 1048572"),
        ("--timeout 1h", "--timeout must be 29m 57s at most"),
        ("--retention 40days", "change that, or shorten --duration"),
    ] {
        let bench = [&["bench"][..], &wrong.split(' ').collect::<Vec<_>>()].concat();
        server.run(&bench).expect(2, &[]).said(&[said]);
    }
}

#[test]
fn the_largest_payload_is_taken_by_the_server() {
    let flags = "bench --payload 1048572 --duration 100ms --warm-up 0s --callers 1 --json";
    let told = Server::start().run(&flags.split(' ').collect::<Vec<_>>()).expect(0, &[]).json();
    assert_eq!(
        (&told["failed"], &told["as_promised"]),
        (&serde_json::json!({}), &Value::from(true)),
        "{told}"
    );
}
