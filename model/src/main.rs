//! Checks the models as far as one likes: `onced-model small`, `large` (unless told otherwise) or `huge`. Prints
//! figures; ends with 1 if a promise is broken, or if something never happened that should.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use onced_model::suite::{Size, subjects};

fn main() -> ExitCode {
    let size = match std::env::args().nth(1).as_deref() {
        Some("small") => Size::Small,
        Some("large") | None => Size::Large,
        Some("huge") => Size::Huge,
        Some(other) => {
            eprintln!("onced-model: {other} is no size: small, large or huge");
            return ExitCode::from(2);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let terminal = std::io::stderr().is_terminal();
    let mut sound = true;
    for subject in subjects(size) {
        let name = subject.name;
        let figures = subject.check(threads, |states, depth| {
            if terminal {
                let _ = write!(std::io::stderr(), "\r\x1b[K{name}: {states} states, depth {depth}");
            }
        });
        if terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        println!("{name:<12} {figures}");
        if let Some((_, path)) = &figures.broken {
            println!("  {}", path.join("\n  "));
        }
        sound &= figures.broken.is_none() && figures.missing.is_empty();
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
