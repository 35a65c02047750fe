//! What a person at a terminal sees meanwhile: one line, on standard error.

use std::io::{IsTerminal as _, Write as _};

pub struct Progress {
    shown: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal() }
    }

    /// Shows this in place of what was shown before.
    pub fn show(&self, text: &str) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
