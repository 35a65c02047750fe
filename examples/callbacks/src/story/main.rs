//! Plays the same callbacks against the naive service and the one with onced, and checks what they answer.

mod replica;

use anyhow::{Context as _, ensure};
use serde_json::json;

use replica::{Answer, Replica};

const PAID: &str = r#"{"status": "paid", "attempt": 1}"#;
const PAID_AGAIN: &str = r#"{"attempt": 2, "status": "paid"}"#;
const DECLINED: &str = r#"{"status": "declined"}"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!(
        "A payment provider calls back when a payment is settled: at either of two replicas, and again until it is"
    );
    println!("answered. The caller who waits for it is at the first replica.\n");
    println!("WITHOUT ONCED: who waits is in a map of the replica");
    let without = naive().await.context("without onced")?;
    println!("\nWITH ONCED: the payment is a record, its callback the outcome");
    let with = once().await.context("with onced")?;

    println!("\n{:<58}{:>14}{:>12}", "", "without onced", "with onced");
    for ((what, without), (_, with)) in without.iter().zip(&with) {
        println!("{what:<58}{without:>14}{with:>12}");
    }
    Ok(())
}

type Account = [(&'static str, String); 4];

fn account(at_another: &Answer, repeated: &Answer, asked: &Answer, after_crash: &Answer) -> Account {
    [
        ("a callback that comes to the other replica", at_another.status.to_string()),
        ("the same callback, sent again", repeated.status.to_string()),
        ("who asks for the answer afterwards", asked.status.to_string()),
        ("a callback after the replica that took it first crashed", after_crash.status.to_string()),
    ]
}

/// Sends a callback to a replica that dies of it.
async fn deliver_to_death(to: &mut Replica, callback: &str) -> anyhow::Result<()> {
    ensure!(to.post(callback, PAID).await.is_err(), "{} answered", to.name);
    ensure!(to.aborted().await?, "{} did not die as it was to", to.name);
    println!("  callback to {}: no answer: it died while it settled the payment", to.name);
    Ok(())
}

/// Sends a callback, and tells of it.
async fn deliver(to: &Replica, callback: &str, body: &str) -> anyhow::Result<Answer> {
    let answer = to.post(callback, body).await?;
    println!("  callback to {}: {answer}", to.name);
    Ok(answer)
}

async fn naive() -> anyhow::Result<Account> {
    let (first, second) = (Replica::start("A", true, false).await?, Replica::start("B", true, false).await?);
    let callback = first.expect("order-1").await?;
    let at_another = deliver(&second, &callback, PAID).await?;
    ensure!(at_another.status == 404, "the map of the other replica knew of it: {at_another}");
    println!("  the provider gives up: to a 404 it is told that there is no such payment");

    let accepted = deliver(&first, &callback, PAID).await?;
    ensure!(accepted.status == 200, "it was not accepted: {accepted}");
    println!("  that answer is lost on its way, so it is sent again");
    let repeated = deliver(&first, &callback, PAID_AGAIN).await?;
    ensure!(repeated.status == 404, "a repetition was known: {repeated}");
    let asked = first.wait_for(&callback, 0).await?;
    println!("  who asks A for the answer now: {asked}");
    ensure!(asked.status == 404, "the answer was kept: {asked}");

    let mut fragile = Replica::start("C", true, true).await?;
    let callback = fragile.expect("order-2").await?;
    deliver_to_death(&mut fragile, &callback).await?;
    let anew = Replica::start("C, started again", true, false).await?;
    let after_crash = deliver(&anew, &callback, PAID_AGAIN).await?;
    ensure!(after_crash.status == 404, "what it expected outlived it: {after_crash}");
    Ok(account(&at_another, &repeated, &asked, &after_crash))
}

async fn once() -> anyhow::Result<Account> {
    let (first, mut second) =
        (Replica::start("A", false, false).await?, Replica::start("B", false, true).await?);
    let callback = first.expect("order-1").await?;
    let early = first.wait_for(&callback, 0).await?;
    println!("  who asks for the answer before the callback: {early}");
    ensure!(early.status == 202, "there is an answer before the callback: {early}");

    let waits = async { first.wait_for(&callback, 30).await };
    let calls = async {
        deliver_to_death(&mut second, &callback).await?;
        // As an impatient provider sends it.
        let again = || deliver(&first, &callback, PAID_AGAIN);
        let (one, two) = tokio::join!(again(), again());
        anyhow::Ok((one?, two?))
    };
    let (waiting, after_crash) = tokio::join!(waits, calls);
    let (waiting, (after_crash, beside)) = (waiting?, after_crash?);
    println!("  the caller who waits at A: {waiting}");
    for answer in [&waiting, &after_crash, &beside] {
        ensure!(answer.status == 200 && answer.body == after_crash.body, "{answer} is not {after_crash}");
    }
    ensure!(after_crash.body["order_id"] == "order-1", "the order was not handed over: {after_crash}");
    ensure!(!(after_crash.replayed && beside.replayed), "nobody accepted it");

    let third = Replica::start("D, started now", false, false).await?;
    let repeated = deliver(&third, &callback, PAID_AGAIN).await?;
    ensure!(repeated.replayed && repeated.body == after_crash.body, "{repeated} is not {after_crash}");
    let asked = third.wait_for(&callback, 0).await?;
    println!("  who asks D for the answer now: {asked}");
    ensure!(asked.body == after_crash.body, "{asked} is not {after_crash}");
    let other = deliver(&third, &callback, DECLINED).await?;
    ensure!(other.status == 422, "another callback was taken for it: {other}");
    let unknown = deliver(&third, "/callbacks/6f1c5c66-6e0b-4b3a-9a55-0d4b4f3c8a01", PAID).await?;
    ensure!(unknown.status == 404, "a callback that nobody expects was accepted: {unknown}");
    let senseless = deliver(&third, &callback, &json!({ "state": "paid" }).to_string()).await?;
    ensure!(
        senseless.status == 400 && senseless.detail().contains("status"),
        "no word of the field: {senseless}"
    );

    let callback = first.expect("order-2").await?;
    let at_another = deliver(&third, &callback, DECLINED).await?;
    ensure!(at_another.status == 200 && at_another.body["status"] == "declined", "{at_another}");
    Ok(account(&at_another, &repeated, &asked, &after_crash))
}
