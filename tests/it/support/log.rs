//! What is logged, for tests that read it.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, NoSubscriber};

/// What is logged on this thread at info and above, while this lives.
pub struct Log {
    lines: Lines,
    _logged: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn start() -> Self {
        // While there is one subscriber alone, `tracing` asks that of whichever thread comes to a line first whether
        // the line is wanted, for good; and the other tests have none. With two it asks all.
        static OTHER: OnceLock<Dispatch> = OnceLock::new();
        OTHER.get_or_init(|| Dispatch::new(NoSubscriber::new()));
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        Self { lines, _logged: tracing::subscriber::set_default(subscriber) }
    }

    /// The lines so far that hold each of `texts`.
    pub fn lines_with(&self, texts: &[&str]) -> Vec<String> {
        let lines = String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap();
        let holds_all = |line: &&str| texts.iter().all(|text| line.contains(text));
        lines.lines().filter(holds_all).map(str::to_owned).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
