//! What only a session's messages have.

use onced_client::v1::SessionRequest;
use onced_client::v1::session_response::Answer;

use super::*;
use crate::support::caller::raw_session;

fn valid() -> SessionRequest {
    SessionRequest { id: 7, timeout: None, call: Some(Call::Begin(begin("SECRET order"))) }
}

const TABLES: &[&[Row<SessionRequest>]] = &[
    malformed_durations!(timeout, "WAIT_INVALID"),
    &[
        ("call", "CALL_REQUIRED", "none", |it| it.call = None),
        ("call", "CALL_REQUIRED", "none", |it| *it = SessionRequest::default()),
    ],
];

pub fn rows() -> usize {
    TABLES.concat().len()
}

#[tokio::test]
async fn each_wrong_field_of_a_message_is_told_and_the_session_goes_on() {
    let on = Fixture::new(Way::Session).await;
    let (calls, answers) = raw_session(&on.server).await;
    let answers = tokio::sync::Mutex::new(answers);
    let call = async |request: SessionRequest| {
        let id = request.id;
        calls.send(request).unwrap();
        let answer = answers.lock().await.message().await.unwrap().expect("an answer, not the end");
        assert_eq!(answer.id, id);
        match answer.answer {
            Some(Answer::Error(status)) => Err(status),
            _ => Ok(()),
        }
    };
    in_time(each_is_told(valid, TABLES, call)).await;
    assert_nothing_written(&on).await;
    in_time(call(valid())).await.expect("the session still takes calls");
}
