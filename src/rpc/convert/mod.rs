//! Protocol to record and back. All validation is here: what passes is valid for everything further in.

mod check;
pub mod page_token;
pub mod request;
pub mod response;
