//! Bodies whose readers are to go on taking what there is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tower::BoxError;

use super::body::Sent;

/// The most that is handed to an HTTP/2 stream at once, which takes a piece of any size as soon as there is room for a
/// byte of it. No frame is larger in any case.
const PIECE_MAX_BYTES: usize = 16 << 10;

/// A body that tells whether it is its reader that is waited for, or where it comes from.
pub struct Watched {
    body: Sent,
    /// Whether the reader waits; told anew with each piece that it takes.
    reader_waits: watch::Sender<bool>,
}

/// Who reads a body.
pub struct Reader(watch::Receiver<bool>);

impl Watched {
    /// A body, and its reader.
    pub fn new(body: Sent) -> (Self, Reader) {
        let (reader_waits, told) = watch::channel(false);
        (Self { body, reader_waits }, Reader(told))
    }
}

impl Reader {
    /// Waits until it has taken nothing for `limit` (at the beginning, for `first`), or the body is gone: whether it is the
    /// former. The time in which there is nothing to take does not count.
    pub async fn stalls(mut self, first: Duration, limit: Duration) -> bool {
        let mut left = first;
        loop {
            let waits = *self.0.borrow_and_update();
            let next = self.0.changed();
            let told = match waits {
                true => next.await,
                false => match tokio::time::timeout(left, next).await {
                    Ok(told) => told,
                    Err(_) => return true,
                },
            };
            if told.is_err() {
                return false;
            }
            left = limit;
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Pending => {
                self.reader_waits.send_if_modified(|waits| !std::mem::replace(waits, true));
            }
            Poll::Ready(_) => {
                self.reader_waits.send_replace(false);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer over HTTP/2. A caller may well keep its stream open and take nothing, while its connection is alive: when
/// that has gone on for `limit`, the body is dropped, and with it whatever it holds.
pub fn taken_in_time(body: Sent, limit: Duration) -> Sent {
    if body.is_end_stream() {
        return body;
    }
    let (body, reader) = Watched::new(Pieces { body, rest: Bytes::new() }.boxed_unsync());
    let taken = Arc::new(Mutex::new(Some(body)));
    let held = Arc::downgrade(&taken);
    tokio::spawn(async move {
        if reader.stalls(limit, limit).await
            && let Some(held) = held.upgrade()
        {
            tracing::debug!("a caller does not take its answer");
            drop(held.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    });
    Taken(taken).boxed_unsync()
}

/// A body until it is given up.
struct Taken(Arc<Mutex<Option<Watched>>>);

impl Body for Taken {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(Some(Err("the caller did not take its answer in time".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.as_ref().is_some_and(Watched::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.as_ref().map(Watched::size_hint).unwrap_or_default()
    }
}

/// A body in pieces of bounded size.
struct Pieces {
    body: Sent,
    rest: Bytes,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context).map_ok(Frame::into_data) {
                Poll::Ready(Some(Ok(Ok(data)))) => self.rest = data,
                Poll::Ready(Some(Ok(Err(frame)))) => return Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        let length = self.rest.len().min(PIECE_MAX_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(rest));
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use futures_util::stream;
    use http_body_util::{Full, StreamBody};

    use super::*;
    use crate::cli::proxy::body::boxed;

    const LIMIT: Duration = Duration::from_secs(30);

    /// A body of pieces that come every so often.
    fn every(pause: Duration, count: usize) -> Sent {
        let pieces = stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))
        });
        boxed(StreamBody::new(Box::pin(pieces)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_has_its_time_for_each_piece_and_none_counts_while_there_is_nothing_to_take() {
        let (mut body, reader) = Watched::new(every(LIMIT * 3, 3));
        let stalls = tokio::spawn(reader.stalls(LIMIT, LIMIT));
        while body.frame().await.is_some() {
            tokio::time::sleep(LIMIT * 9 / 10).await;
        }
        drop(body);
        assert!(!stalls.await.unwrap());

        let (mut body, reader) = Watched::new(every(LIMIT * 3, 3));
        let stalls = tokio::spawn(reader.stalls(LIMIT, LIMIT));
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(LIMIT * 11 / 10).await;
        assert!(stalls.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_begins_to_read_has_the_first_limit() {
        let (_body, reader) = Watched::new(every(LIMIT, 1));
        let stalls = tokio::spawn(reader.stalls(LIMIT * 2, LIMIT));
        tokio::time::sleep(LIMIT * 19 / 10).await;
        assert!(!stalls.is_finished());
        assert!(stalls.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_is_dropped_with_what_it_holds() {
        let large = Bytes::from(vec![b'x'; PIECE_MAX_BYTES * 2 + 1]);
        let mut taken = taken_in_time(boxed(Full::from(large.clone())), LIMIT);
        assert_eq!(taken.size_hint().exact(), Some(large.len() as u64));
        assert_eq!(taken.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE_MAX_BYTES);
        tokio::time::sleep(LIMIT * 9 / 10).await;
        assert_eq!(taken.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE_MAX_BYTES);
        tokio::time::sleep(LIMIT * 11 / 10).await;
        assert!(taken.frame().await.unwrap().is_err());

        let taken = taken_in_time(boxed(Full::from(large.clone())), LIMIT);
        assert_eq!(taken.collect().await.unwrap().to_bytes(), large);
    }
}
