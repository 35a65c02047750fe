//! Every call, for people and for scripts, with its exit codes.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Ran, Server, kill};
use crate::support::onced::{KillOnDrop, onced};
use crate::support::server::TestServer;
use crate::support::stores::Controlled;

/// Claims a key, and gives its token.
fn claim(server: &Server, key: &str) -> String {
    server.run(&["begin", "--key", key, "--json"]).expect(0, &[]).json()["fencing_token"].to_string()
}

#[test]
fn a_key_is_begun_completed_and_replayed() {
    let server = Server::start();
    let begun =
        server.run(&["begin", "--key", "k", "--owner", "me"]).expect(0, &["claimed", "onced complete"]);
    assert!(begun.stdout.contains("request id"), "{begun:?}");
    server.run(&["begin", "--key", "k"]).expect(3, &["in progress", "me"]);
    server.run(&["lookup", "--key", "k"]).expect(3, &["in progress", "me"]);
    let token = server.run(&["list", "--json"]).expect(0, &[]).json()["fencing_token"].to_string();
    let complete = ["complete", "--key", "k", "--token", &token, "--response", "it is done"];
    let facts = ["--content-type", "text/plain", "--metadata", "by=me"];
    let complete = [&complete[..], &facts[..]].concat();
    server.run(&complete).expect(0, &["completed"]);
    server.run(&complete).expect(0, &["completed before"]);
    let conflict = server.run(&["complete", "--key", "k", "--token", &token, "--response", "other"]);
    conflict.expect(7, &[]).said(&["onced: ", "OUTCOME_CONFLICT"]);

    server.run(&["begin", "--key", "k"]).expect(10, &["completed", "it is done", "text/plain", "by=me"]);
    server.run(&["lookup", "--key", "k"]).expect(0, &["completed", "it is done"]);
    let replay = server.run(&["begin", "--key", "k", "--json"]).expect(10, &[]).json();
    assert_eq!(replay["state"], "completed");
    assert_eq!(replay["outcome"]["response"]["utf8"], "it is done");
    assert_eq!(replay["outcome"]["response"]["base64"], "aXQgaXMgZG9uZQ==");
    assert_eq!(replay["outcome"]["metadata"]["by"], "me");
    let raw = server.run(&["lookup", "--key", "k", "--output", "-"]).expect(0, &[]);
    assert_eq!(raw.stdout, "it is done");
    raw.said(&["completed"]);
}

#[test]
fn the_same_request_id_gets_the_same_claim() {
    let server = Server::start();
    let begin = ["begin", "--key", "k", "--json", "--request-id"];
    let begin = [&begin[..], &["8c0c1b0e-7f0a-4a53-8d0a-5f3f4b1f7f10"]].concat();
    let first = server.run(&begin).expect(0, &[]).json();
    let again = server.run(&begin).expect(0, &[]).json();
    assert_eq!(first["fencing_token"], again["fencing_token"]);
    assert_eq!((first["resumed"].as_bool(), again["resumed"].as_bool()), (Some(false), Some(true)));
    assert_eq!(first["request_id"], "8c0c1b0e-7f0a-4a53-8d0a-5f3f4b1f7f10");
}

#[test]
fn responses_come_from_files_and_standard_input_byte_for_byte() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let bytes: Vec<u8> = (0..=255).collect();
    std::fs::write(&from, &bytes).unwrap();
    let token = claim(&server, "file");
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    server.run(&["complete", "--key", "file", "--token", &token, "--file", from]).expect(0, &[]);
    server.run(&["lookup", "--key", "file", "--output", to]).expect(0, &["(256 bytes"]);
    assert_eq!(std::fs::read(to).unwrap(), bytes);

    let token = claim(&server, "stdin");
    let mut complete = server.command(&["complete", "--key", "stdin", "--token", &token, "--file", "-"]);
    let mut complete = complete.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    complete.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(complete.wait().unwrap().success());
    let raw = server.command(&["lookup", "--key", "stdin", "--output", "-"]).output().unwrap();
    assert_eq!(raw.stdout, bytes);

    let missing = server.run(&["complete", "--key", "x", "--token", "1", "--file", "/no/such/file"]);
    missing.expect(2, &[]).said(&["cannot read /no/such/file"]);
}

#[test]
fn errors_are_outcomes_too() {
    let server = Server::start();
    let token = claim(&server, "k");
    let complete =
        ["complete", "--key", "k", "--token", &token, "--error", "not-found", "--message", "no such"];
    server.run(&complete).expect(0, &["completed"]);
    server.run(&["begin", "--key", "k"]).expect(10, &["NOT_FOUND: no such"]);
    let outcome = &server.lookup("k")["outcome"];
    assert_eq!(outcome["error"]["code"], "NOT_FOUND");
    assert_eq!(outcome["error"]["message"], "no such");
}

#[test]
fn a_claim_is_renewed_with_a_checkpoint_and_released() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("checkpoint");
    std::fs::write(&file, "half way").unwrap();
    let token = claim(&server, "k");
    let renew = ["renew", "--key", "k", "--token", &token];
    server.run(&renew).expect(0, &["renewed", "30s"]);
    let checkpoint = ["--checkpoint", file.to_str().unwrap(), "--sequence", "1", "--json"];
    let renewed = server.run(&[&renew[..], &checkpoint[..]].concat()).expect(0, &[]).json();
    assert_eq!(renewed["lock_expires_in_ms"], 30_000);
    let release = ["release", "--key", "k", "--token", &token, "--reason", "lunch"];
    server.run(&release).expect(0, &["released"]);
    server.run(&release).expect(0, &["released"]);
    server.run(&["lookup", "--key", "k"]).expect(9, &["available"]);
    server.run(&renew).expect(6, &[]).said(&["CLAIM_LOST"]);
    server.run(&["list"]).expect(0, &["available", "(lunch)"]);
    server.run(&["begin", "--key", "k"]).expect(0, &["claimed", "half way"]);
}

#[test]
fn doubt_is_found_and_settled() {
    let server = Server::start();
    let tokens: Vec<_> = ["a", "b", "c"].iter().map(|key| claim(&server, key)).collect();
    for (key, token) in ["a", "b"].iter().zip(&tokens) {
        let release =
            ["release", "--key", key, "--token", token, "--disposition", "in-doubt", "--reason", "crash"];
        server.run(&release).expect(0, &["in doubt"]);
    }
    server.run(&["begin", "--key", "a"]).expect(4, &["in doubt", "crash", "onced resolve"]);
    let listed = server.run(&["list", "--state", "in-doubt", "--json"]).expect(0, &[]);
    let keys: Vec<serde_json::Value> =
        listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(keys.iter().map(|record| &record["key"]).collect::<Vec<_>>(), ["a", "b"]);

    server
        .run(&["resolve", "--key", "a", "--token", &tokens[0], "--retry"])
        .expect(0, &["resolved", "available"]);
    server.run(&["begin", "--key", "a"]).expect(0, &["claimed"]);
    let resolve = ["resolve", "--key", "b", "--token", &tokens[1], "--response", "it was done", "--json"];
    assert_eq!(server.run(&resolve).expect(0, &[]).json()["state"], "completed");
    server.run(&["begin", "--key", "b"]).expect(10, &["it was done"]);
    // A record that is not in doubt cannot be settled.
    server
        .run(&["resolve", "--key", "c", "--token", &tokens[2], "--retry"])
        .expect(6, &[])
        .said(&["CLAIM_LOST", &format!("the key is now: in progress, token {}", tokens[2])]);
}

#[test]
fn records_are_listed_over_pages_and_deleted() {
    let server = Server::start();
    let tokens: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|key| claim(&server, key)).collect();
    let all = server.run(&["list", "--page-size", "2"]).expect(0, &[]);
    let keys: Vec<_> = all.stdout.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(keys, ["a", "b", "c", "d", "e"]);
    assert_eq!(server.run(&["list", "--page-size", "2", "--limit", "3"]).stdout.lines().count(), 3);
    server.run(&["list", "--namespace", "other"]).expect(0, &[]).said(&["no such records"]);

    let delete = ["delete", "--key", "a", "--token", &tokens[0]];
    server.run(&delete).expect(7, &[]).said(&["CLAIM_HELD"]);
    server.run(&[&delete[..], &["--force"]].concat()).expect(0, &["deleted"]);
    server.run(&delete).expect(0, &["deleted"]);
    server.run(&["lookup", "--key", "a"]).expect(5, &[]).said(&["RECORD_NOT_FOUND"]);
}

#[test]
fn a_watch_prints_a_line_for_each_state_and_ends_with_the_outcome() {
    let server = Server::start();
    let token = claim(&server, "k");
    let mut watch = server.command(&["watch", "--key", "k"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = watch.stdout.take().unwrap();
    let mut seen = vec![0; 11];
    stdout.read_exact(&mut seen).unwrap();
    assert_eq!(seen, b"in progress");
    server.run(&["complete", "--key", "k", "--token", &token, "--response", "two\nlines"]).expect(0, &[]);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(watch.wait().unwrap().success());
    let last = rest.lines().last().unwrap();
    assert!(last.starts_with("completed: response two\\nlines, owner"), "{rest}");
    server.run(&["watch", "--key", "k", "--json"]).expect(0, &["\"state\":\"completed\""]);
    server.run(&["watch", "--key", "missing"]).expect(5, &[]);
}

#[test]
fn waits_end_with_the_outcome() {
    let server = Server::start();
    let token = claim(&server, "k");
    server.run(&["begin", "--key", "k", "--wait", "100ms"]).expect(3, &[]);
    let mut lookup = server.command(&["lookup", "--key", "k", "--wait", "1m"]);
    let lookup = lookup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.run(&["complete", "--key", "k", "--token", &token, "--response", "done"]).expect(0, &[]);
    Ran::from(lookup.wait_with_output().unwrap()).expect(0, &["done"]);
}

#[test]
fn fingerprints_tell_requests_apart() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("request");
    std::fs::write(&file, "abc").unwrap();
    server.run(&["begin", "--key", "k", "--fingerprint-of", file.to_str().unwrap()]).expect(0, &[]);
    // The SHA-256 of abc.
    let same = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    server.run(&["begin", "--key", "k", "--fingerprint", same]).expect(3, &[]);
    server
        .run(&["begin", "--key", "k", "--fingerprint", "00"])
        .expect(7, &[])
        .said(&["FINGERPRINT_MISMATCH"]);
}

#[test]
fn bad_usage_exits_with_2_and_says_what_is_wrong() {
    let server = Server::start();
    for (args, text) in [
        (&["begin"][..], "--key"),
        (&["begin", "--key", ""], "KEY_REQUIRED"),
        (&["begin", "--key", "k", "--ttl", "1s"], "TTL_OUT_OF_RANGE"),
        (&["begin", "--key", "k", "--ttl", "soon"], "write it as 30s"),
        (&["begin", "--key", "k", "--fingerprint", "xyz"], "hexadecimal"),
        (&["begin", "--key", "k", "--request-id", "1"], "--request-id"),
        (&["begin", "--key", "k", "--server", "ftp://127.0.0.1:1"], "https://HOST:PORT for TLS"),
        (&["begin", "--key", "k", "--server", "127.0.0.1:1", "--tls-ca", "ca.crt"], "write https://"),
        (&["begin", "--key", "k", "--server", "https://127.0.0.1:1", "--tls-ca", "/no/ca"], "/no/ca"),
        (&["begin", "--key", "k", "--server", "onced.example:1", "--token-file", "t"], "for all to read"),
        (&["complete", "--key", "k", "--token", "1"], "--response"),
        (&["complete", "--key", "k", "--token", "1", "--error", "OK", "--message", "x"], "NOT_FOUND"),
        (&["resolve", "--key", "k", "--token", "1"], "--retry"),
        (&["resolve", "--key", "k", "--token", "1", "--retry", "--response", "x"], "cannot be used"),
        (&["renew", "--key", "k", "--token", "1", "--sequence", "1"], "--checkpoint"),
        (&["lookup", "--key", "k", "--namespace", "Not Valid"], "NAMESPACE_INVALID"),
        (&["serve", "--store", "redis://x"], "redis"),
        (&["serve", "--listen", "localhost:7411"], "expected an IP address"),
        (&["exec", "--key", "k"], "COMMAND"),
    ] {
        server.run(args).expect(2, &[]).said(&[text]);
    }
}

#[test]
fn serve_starts_from_a_path_that_is_no_text() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(OsStr::from_bytes(b"onced\xff"));
    std::os::unix::fs::symlink(onced().get_program(), &path).unwrap();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--store", "memory:"];
    let mut command = Command::new(path);
    command.args(serve).args(["--admin-listen", "off"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = KillOnDrop(child);
    let mut told = [0; 12];
    child.0.stdout.take().unwrap().read_exact(&mut told).unwrap();
    assert_eq!(&told, b"listening on");
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let server = Server::start();
    let missing = server.run(&["lookup", "--key", "k", "--json"]).expect(5, &[]);
    let error = &missing.json()["error"];
    assert_eq!((&error["code"], &error["reason"]), (&"NOT_FOUND".into(), &"RECORD_NOT_FOUND".into()));
    assert_eq!(missing.stderr, "");
}

#[test]
fn no_server_is_unavailable_and_the_message_helps() {
    // Nobody listens there, and nobody else gets it meanwhile.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = bound.local_addr().unwrap().to_string();
    let begin = ["begin", "--key", "k", "--timeout", "200ms", "--server", &address];
    let ran = Ran::from(onced().args(begin).output().unwrap());
    ran.expect(8, &[]).said(&[&address, "refused", "ONCED_SERVER", "--request-id"]);
    // Scripts need the id as well.
    let ran = Ran::from(onced().args(begin).arg("--json").output().unwrap()).expect(8, &[]);
    assert_eq!(ran.json()["request_id"].as_str().map(str::len), Some(36), "{ran:?}");
    let lookup = ["lookup", "--key", "k", "--timeout", "200ms", "--server", &address];
    Ran::from(onced().args(lookup).output().unwrap()).expect(8, &[]).said(&["ONCED_SERVER"]);
}

/// A server that takes every call and never answers.
#[test]
fn a_server_that_is_silent_is_told_from_none_at_all() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lookup = ["lookup", "--key", "k", "--timeout", "300ms", "--server", &address];
    let ran = Ran::from(onced().args(lookup).output().unwrap());
    let ran = ran.expect(8, &[]).said(&[&format!("{address} did not answer within"), "the log of onced"]);
    assert!(!ran.stderr.contains("is onced running there"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_told_from_a_server_that_is() {
    let store = Controlled::in_memory();
    store.set_away(true);
    let server = TestServer::start(store).await;
    let address = server.address().to_string();
    for command in ["begin", "exec"] {
        let mut onced = onced();
        onced.args([command, "--key", "k", "--timeout", "2s", "--server", &address]);
        if command == "exec" {
            onced.args(["--", "true"]);
        }
        let ran = Ran::from(onced.output().unwrap());
        let ran = ran.said(&[&address, "answered", "STORE_UNAVAILABLE", "look at the store"]);
        assert!(!ran.stderr.contains("is onced running there"), "{ran:?}");
    }
}

#[test]
fn serve_says_where_it_is_and_what_to_try_and_stops_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("file:{}", directory.path().join("data").display());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--store", &store];
    let child = onced().args(serve).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = KillOnDrop(child);
    let mut stdout = child.0.stdout.take().unwrap();
    let mut told = String::new();
    while !told.contains("-- date") {
        let mut piece = [0; 4_096];
        let read = stdout.read(&mut piece).unwrap();
        assert!(read > 0, "it ended: {told}");
        told += std::str::from_utf8(&piece[..read]).unwrap();
    }
    let address = told.lines().next().unwrap().strip_prefix("listening on ").unwrap().to_owned();
    assert!(told.contains(directory.path().to_str().unwrap()), "{told}");
    // What it suggests works as it is written.
    let (_, begin) = told.lines().find_map(|line| line.split_once("onced begin ")).unwrap();
    let begin: Vec<_> = begin.split(' ').collect();
    let begun = onced().arg("begin").args(begin).output().unwrap();
    Ran::from(begun).expect(0, &["claimed"]);

    // A port that is taken is a failed start.
    let taken = onced().args(["--store", "memory:", "--listen", &address]).output().unwrap();
    assert_eq!(Ran::from(taken).expect(1, &[]).said(&["cannot listen", &address]).stdout, "");
    kill(&child.0, Signal::TERM);
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}
