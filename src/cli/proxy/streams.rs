//! Streams of HTTP/2, and callers that take nothing of what is sent on them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::sync::{oneshot, watch};
use tower::BoxError;

use super::body::{Sent, longer};

/// The most of an answer that is on its way at once. No frame is larger in any case.
const PIECE_MAX_BYTES: usize = 16 << 10;

tokio::task_local! {
    /// Whether a piece of the answer is on its way to the caller of this stream; told anew with each.
    static SENDING: watch::Sender<bool>;
}

/// Runs each stream on a task, which ends when the caller has not taken a piece of its answer within the limit: with that
/// the stream is reset. Its body cannot do so: once a piece waits for the window of its caller, it is asked for nothing.
/// That it is asked for the first one before there is a window is hyper's way since 1.12, or before.
#[derive(Clone)]
pub struct Streams(pub Duration);

impl<S> Executor<S> for Streams
where
    S: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: S) {
        let limit = self.0;
        let (sending, told) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = SENDING.scope(sending, stream) => {}
                () = stalled(told, limit) => tracing::debug!("a caller does not take its answer"),
            }
        });
    }
}

/// Waits until the same piece has been on its way for as long as the limit.
async fn stalled(mut sending: watch::Receiver<bool>, limit: Duration) {
    while sending.wait_for(|sending| *sending).await.is_ok() {
        if tokio::time::timeout(limit, sending.changed()).await.is_err() {
            return;
        }
    }
    // The stream has ended.
    std::future::pending().await
}

/// An answer as it is sent on the stream whose task this is, if it is one's.
pub fn on_stream(body: Sent) -> Sent {
    match SENDING.try_with(watch::Sender::clone) {
        Ok(sending) => Pieces { body, rest: Bytes::new(), written: None, sending }.boxed_unsync(),
        Err(_) => body,
    }
}

/// A body that goes on, and ends, once the piece before has been written to the connection. Else the end of an answer would
/// wait in the connection for a caller that does not take it, and nothing could reset its stream.
struct Pieces {
    body: Sent,
    rest: Bytes,
    /// Ends with the piece that is on its way.
    written: Option<oneshot::Receiver<Infallible>>,
    sending: watch::Sender<bool>,
}

/// A piece, dropped by the connection once it is written.
struct Piece {
    data: Bytes,
    _written: oneshot::Sender<Infallible>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(written) = &mut this.written {
            let Err(_) = ready!(Pin::new(written).poll(context));
            this.written = None;
            this.sending.send_replace(false);
        }
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)?).map(Frame::into_data) {
                Some(Ok(data)) => this.rest = data,
                Some(Err(frame)) => return Poll::Ready(Some(Ok(frame))),
                None => return Poll::Ready(None),
            }
        }
        let data = this.rest.split_to(this.rest.len().min(PIECE_MAX_BYTES));
        let (sender, written) = oneshot::channel();
        this.written = Some(written);
        this.sending.send_replace(true);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(Piece { data, _written: sender })))))
    }

    fn is_end_stream(&self) -> bool {
        self.written.is_none() && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        longer(&self.body.size_hint(), self.rest.len())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::cli::proxy::body::boxed;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_a_piece_of_its_answer_is_not_taken_in_time() {
        let (stays, mut ended) = oneshot::channel::<Infallible>();
        let (taken, all_taken) = oneshot::channel();
        Streams(LIMIT).execute(async move {
            let _stays = stays;
            // The time until there is an answer does not count.
            tokio::time::sleep(LIMIT * 2).await;
            let large = Bytes::from(vec![b'x'; PIECE_MAX_BYTES * 2 + 1]);
            let mut body = on_stream(boxed(Full::from(large.clone())));
            assert_eq!(body.size_hint().exact(), Some(large.len() as u64));
            for length in [PIECE_MAX_BYTES, PIECE_MAX_BYTES, 1] {
                let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(piece.len(), length);
                assert!(!body.is_end_stream());
                let next = tokio::time::timeout(LIMIT * 9 / 10, body.frame()).await;
                assert!(next.is_err(), "it goes on before the piece is written");
            }
            assert!(body.frame().await.is_none());
            taken.send(()).unwrap();
            let mut body = on_stream(boxed(Full::from(large)));
            let _piece = body.frame().await;
            std::future::pending().await
        });
        all_taken.await.unwrap();
        tokio::time::sleep(LIMIT * 9 / 10).await;
        assert!(ended.try_recv() == Err(TryRecvError::Empty));
        assert!(ended.await.is_err());
    }
}
