//! A command's output: passed on as it comes, and kept in order.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::cli::output::say;
use crate::generated::exec_v1::OutputStream;

/// What an outcome takes besides the output, in bytes: content type, exit code, lengths.
const FRAME_BYTES: usize = 256;
/// What a chunk takes besides its bytes.
const CHUNK_BYTES: usize = 16;
/// How much is read at a time.
const READ_BYTES: usize = 16 << 10;

/// The output of a command so far, or at its end.
#[derive(Debug, Default)]
pub struct Captured {
    /// In the order in which it came; neighbours are of different streams.
    pub chunks: Vec<(OutputStream, Vec<u8>)>,
    /// How much there was in all.
    pub all_bytes: u64,
    /// How much can be kept, about.
    pub limit_bytes: usize,
    /// True if there was more than can be kept; the chunks are its head.
    pub over: bool,
    used_bytes: usize,
}

impl Captured {
    /// Keeps what fits an outcome of at most `max_outcome_bytes`.
    pub fn new(max_outcome_bytes: u64) -> Self {
        let max = usize::try_from(max_outcome_bytes).unwrap_or(usize::MAX);
        Self { limit_bytes: max.saturating_sub(FRAME_BYTES), ..Self::default() }
    }

    /// Keeps `data` as far as it fits. True if this is what no longer fitted.
    fn push(&mut self, stream: OutputStream, data: &[u8]) -> bool {
        self.all_bytes += data.len() as u64;
        if self.over || data.is_empty() {
            return false;
        }
        let same = self.chunks.last().is_some_and(|(last, _)| *last == stream);
        let frame = if same { 0 } else { CHUNK_BYTES };
        let room = self.limit_bytes.saturating_sub(self.used_bytes + frame);
        let kept = &data[..data.len().min(room)];
        if !kept.is_empty() {
            self.used_bytes += frame + kept.len();
            match self.chunks.last_mut() {
                Some((_, chunk)) if same => chunk.extend_from_slice(kept),
                _ => self.chunks.push((stream, kept.to_vec())),
            }
        }
        self.over = kept.len() < data.len();
        self.over
    }
}

/// The output of a command, shared by those who read its streams.
#[derive(Clone, Debug)]
pub struct Capture {
    captured: Arc<Mutex<Captured>>,
    /// What is said the moment there is more than can be kept.
    overflow_note: Arc<str>,
}

impl Capture {
    pub fn new(captured: Captured, overflow_note: &str) -> Self {
        Self { captured: Arc::new(Mutex::new(captured)), overflow_note: overflow_note.into() }
    }

    /// Passes on what comes from `from` to `to` until it ends. That `to` is gone or slow is no harm to the
    /// command: what came is kept first, and the rest is kept all the same.
    pub async fn pump(
        self,
        stream: OutputStream,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) {
        let mut buffer = vec![0; READ_BYTES];
        let mut open = true;
        loop {
            // An error of a pipe is its end.
            let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
            let data = &buffer[..read];
            let passed_limit =
                self.captured.lock().unwrap_or_else(PoisonError::into_inner).push(stream, data);
            if passed_limit {
                say(&self.overflow_note);
            }
            if open {
                open = to.write_all(data).await.is_ok() && to.flush().await.is_ok();
            }
        }
    }

    /// What was captured.
    pub fn take(&self) -> Captured {
        std::mem::take(&mut *self.captured.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: OutputStream = OutputStream::Stdout;
    const ERR: OutputStream = OutputStream::Stderr;

    #[test]
    fn neighbours_of_one_stream_are_one_chunk_and_order_is_kept() {
        let mut captured = Captured::new(1 << 20);
        for (stream, data) in [(OUT, "a"), (OUT, "b"), (ERR, "c"), (OUT, "d"), (OUT, "")] {
            assert!(!captured.push(stream, data.as_bytes()));
        }
        let expected = vec![(OUT, b"ab".to_vec()), (ERR, b"c".to_vec()), (OUT, b"d".to_vec())];
        assert_eq!(captured.chunks, expected);
        assert_eq!((captured.all_bytes, captured.over), (4, false));
    }

    #[test]
    fn the_head_is_kept_and_the_overflow_is_told_once() {
        let mut captured = Captured::new((FRAME_BYTES + CHUNK_BYTES + 10) as u64);
        assert!(!captured.push(OUT, &[1; 10]));
        assert!(captured.push(OUT, &[2; 1]));
        assert!(!captured.push(ERR, &[3; 5]));
        assert_eq!(captured.chunks, vec![(OUT, vec![1; 10])]);
        assert_eq!((captured.all_bytes, captured.over), (16, true));
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_does_not_end_the_capture() {
        struct Gone;
        impl AsyncWrite for Gone {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()))
            }
            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }
            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }
        }
        let capture = Capture::new(Captured::new(1 << 20), "");
        let data = vec![7; 3 * READ_BYTES];
        capture.clone().pump(OUT, &data[..], Gone).await;
        assert_eq!(capture.take().chunks, vec![(OUT, data)]);
    }
}
