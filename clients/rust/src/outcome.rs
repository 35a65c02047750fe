//! Outcomes, easily made.

use bytes::Bytes;
use prost::Message;
use tonic::Code;

use crate::v1::{Outcome, outcome};

impl Outcome {
    /// A response of these bytes.
    pub fn response(response: impl Into<Bytes>) -> Self {
        Self { result: Some(outcome::Result::Response(response.into())), ..Self::default() }
    }

    /// A final error, which every duplicate gets too. `code` is one of the errors: `Code::Ok` is refused.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self::error_with(tonic_types::Status {
            code: code as i32,
            message: message.into(),
            details: Vec::new(),
        })
    }

    /// A final error with details.
    pub fn error_with(error: tonic_types::Status) -> Self {
        Self { result: Some(outcome::Result::Error(error)), ..Self::default() }
    }

    /// Says how to read the response, such as `application/json`.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Adds a small fact.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The bytes of the response; none if the outcome is an error.
    pub fn response_bytes(&self) -> Option<&Bytes> {
        match &self.result {
            Some(outcome::Result::Response(response)) => Some(response),
            Some(outcome::Result::Error(_)) | None => None,
        }
    }

    /// The final error, if the outcome is one.
    pub fn final_error(&self) -> Option<&tonic_types::Status> {
        match &self.result {
            Some(outcome::Result::Error(error)) => Some(error),
            Some(outcome::Result::Response(_)) | None => None,
        }
    }

    /// The size that a claim's `max_outcome_bytes` bounds, in bytes.
    pub fn encoded_bytes(&self) -> u64 {
        self.encoded_len() as u64
    }
}

impl From<Bytes> for Outcome {
    fn from(response: Bytes) -> Self {
        Self::response(response)
    }
}

impl From<Vec<u8>> for Outcome {
    fn from(response: Vec<u8>) -> Self {
        Self::response(response)
    }
}

impl From<String> for Outcome {
    fn from(response: String) -> Self {
        Self::response(response)
    }
}

impl From<&'static str> for Outcome {
    fn from(response: &'static str) -> Self {
        Self::response(response)
    }
}
