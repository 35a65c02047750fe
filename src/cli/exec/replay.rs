//! The result of a command as it is stored, and printed again.

use std::io::{self, Write};

use onced_client::{Code, Completion, Outcome};
use prost::Message;

use super::capture::Captured;
use super::{OWN_FAILURE, fail};
use crate::cli::output::say;
use crate::generated::exec_v1::{CommandResult, OutputChunk, OutputStream};
use crate::rpc::code_name;

/// What tells the result of a command from other responses.
const CONTENT_TYPE: &str = "application/vnd.onced.exec.v1.command-result";

/// A result to store.
pub fn encode(code: u8, captured: Captured) -> Outcome {
    let chunk =
        |(stream, data): (OutputStream, Vec<u8>)| OutputChunk { stream: stream.into(), data: data.into() };
    let result = CommandResult {
        exit_code: code.into(),
        output: captured.chunks.into_iter().map(chunk).collect(),
        truncated: captured.over,
        output_bytes: captured.all_bytes,
    };
    Outcome::response(result.encode_to_vec()).with_content_type(CONTENT_TYPE)
}

/// Prints what the command printed, and returns its exit code.
pub fn print(completion: &Completion) -> u8 {
    let outcome = &completion.outcome;
    if let Some(error) = outcome.final_error() {
        return fail(&format!("{}: {}", code_name(Code::from(error.code)), error.message));
    }
    let result = match outcome.response_bytes().map(|bytes| CommandResult::decode(bytes.clone())) {
        Some(Ok(result)) if outcome.content_type == CONTENT_TYPE => result,
        _ => {
            return fail(&format!(
                "the key was completed by {}, but not with the result of a command; onced lookup shows it",
                completion.owner
            ));
        }
    };
    write(&result, &mut io::stdout().lock(), &mut io::stderr().lock());
    if result.truncated {
        let kept: usize = result.output.iter().map(|chunk| chunk.data.len()).sum();
        say(&format!(
            "the output was truncated: these are the first {kept} of {} bytes",
            result.output_bytes
        ));
    }
    u8::try_from(result.exit_code).unwrap_or(OWN_FAILURE)
}

/// Writes the chunks in order. A stream that nobody reads is left out; the other one goes on.
fn write(result: &CommandResult, stdout: &mut dyn Write, stderr: &mut dyn Write) {
    let (mut stdout_gone, mut stderr_gone) = (false, false);
    for chunk in &result.output {
        let (stream, gone): (&mut dyn Write, _) = match chunk.stream() {
            OutputStream::Stderr => (stderr, &mut stderr_gone),
            OutputStream::Stdout | OutputStream::Unspecified => (stdout, &mut stdout_gone),
        };
        *gone = *gone || stream.write_all(&chunk.data).and_then(|()| stream.flush()).is_err();
    }
}
