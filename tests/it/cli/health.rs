//! `onced health`.

use super::*;

#[test]
fn a_ready_server_is_exit_code_0_wherever_its_address_stands() {
    let server = Server::start();
    let ready = || loop {
        // It is once it has asked its store, a moment after it listens.
        let ran = server.run(&["health"]);
        if ran.code == Some(0) {
            break ran;
        }
        assert_eq!(ran.code, Some(1), "{ran:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    ready().expect(0, &[&format!("{} is ready", server.address)]);
    server.run(&["health", "--live"]).expect(0, &["is live"]);

    let port = server.process.address().port();
    let listening = format!("0.0.0.0:{port}");
    let from_inside = onced().arg("health").env("ONCED_LISTEN", listening).output().unwrap();
    Ran::from(from_inside).expect(0, &[&format!("127.0.0.1:{port} is ready")]);
}

#[test]
fn who_is_not_reached_is_exit_code_1_and_named() {
    let server = Server::start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = nobody.local_addr().unwrap().to_string();
    server
        .run(&["health", "--server", &silent, "--timeout", "200ms"])
        .expect(1, &[])
        .said(&[&silent, "no answer"]);
    drop(nobody);
    server.run(&["health", "--server", &silent]).expect(1, &[]).said(&[&silent, "is not ready", "refused"]);
    // One that is well makes up for none that is not.
    let both = format!("{},{silent}", server.address);
    server.run(&["health", "--live", "--server", &both]).expect(1, &["is live"]).said(&["is not live"]);
    server.run(&["health", "--server", "no address"]).expect(2, &[]).said(&["write HOST:PORT"]);
}
