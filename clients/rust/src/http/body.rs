//! Bodies, read to their end as far as that is bounded.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use tokio::sync::watch;

use crate::completion::WorkError;

/// The body of the requests that the inner service gets, and of the answers that the layer gives.
pub struct Body(UnsyncBoxBody<Bytes, WorkError>);

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = WorkError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WorkError>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("size", &self.size_hint()).finish()
    }
}

/// Any body as one of the layer.
pub(super) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<WorkError>,
{
    Body(body.map_err(Into::into).boxed_unsync())
}

/// A body that is there.
pub(super) fn full(data: impl Into<Bytes>) -> Body {
    boxed(Full::new(data.into()))
}

/// A body that was read to its end.
pub(super) struct Whole {
    pub data: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Whole {
    pub fn into_body(self) -> Body {
        match self.trailers {
            None => full(self.data),
            Some(trailers) => boxed(Full::new(self.data).with_trailers(async { Some(Ok(trailers)) })),
        }
    }
}

/// What came of reading a body.
pub(super) enum Read {
    Whole(Whole),
    /// What was read, and the rest.
    TooLarge(VecDeque<Frame<Bytes>>, Body),
    /// What was read, and why there is no more.
    Broken(VecDeque<Frame<Bytes>>, WorkError),
}

/// Reads a body of at most `max_bytes`.
pub(super) async fn read(mut body: Body, max_bytes: usize) -> Read {
    let mut taken = Taken::new(max_bytes);
    if body.size_hint().lower() > max_bytes as u64 {
        return Read::TooLarge(VecDeque::new(), body);
    }
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => taken.add(data),
            Ok(Err(frame)) => taken.trailers = frame.into_trailers().ok(),
            Err(error) => return Read::Broken(taken.into_frames(), error),
        }
        if taken.len() > max_bytes {
            return Read::TooLarge(taken.into_frames(), body);
        }
    }
    Read::Whole(taken.into_whole())
}

/// What was read of a body. However small its pieces are, it takes little more memory than they hold.
struct Taken {
    /// Most come in one piece.
    first: Bytes,
    /// That and the others, once there are any.
    joined: Vec<u8>,
    trailers: Option<HeaderMap>,
    max_bytes: usize,
}

impl Taken {
    fn new(max_bytes: usize) -> Self {
        Self { first: Bytes::new(), joined: Vec::new(), trailers: None, max_bytes }
    }

    fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    fn add(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        let first = std::mem::take(&mut self.first);
        self.make_room(first.len() + data.len());
        self.joined.extend_from_slice(&first);
        self.joined.extend_from_slice(&data);
    }

    /// Makes room for more: as much again, but none for what would be too large.
    fn make_room(&mut self, more: usize) {
        let needed = self.joined.len() + more;
        if needed > self.joined.capacity() {
            let wanted = self.joined.capacity().saturating_mul(2).min(self.max_bytes).max(needed);
            self.joined.reserve_exact(wanted - self.joined.len());
        }
    }

    fn into_whole(self) -> Whole {
        let data = if self.joined.is_empty() { self.first } else { Bytes::from(self.joined) };
        Whole { data, trailers: self.trailers }
    }

    fn into_frames(self) -> VecDeque<Frame<Bytes>> {
        let Whole { data, trailers } = self.into_whole();
        let data = (!data.is_empty()).then_some(data).map(Frame::data);
        data.into_iter().chain(trailers.map(Frame::trailers)).collect()
    }
}

/// The most of a body that passes at once: its caller has its time for each piece.
const PIECE_MAX_BYTES: usize = 16 << 10;

/// A body that passes, until it is given up.
struct Passing(Arc<Mutex<Option<Rest>>>);

/// What was read of a body, and the rest.
struct Rest {
    frames: VecDeque<Frame<Bytes>>,
    rest: Result<Body, Option<WorkError>>,
    /// Whether the caller waits for more; told anew with each piece that it takes.
    caller_waits: watch::Sender<bool>,
}

/// The end of a body that passes.
pub(super) struct End {
    caller_waits: watch::Receiver<bool>,
    body: Weak<Mutex<Option<Rest>>>,
}

/// A body that passes, and what waits for its end.
pub(super) fn passing(frames: VecDeque<Frame<Bytes>>, rest: Result<Body, WorkError>) -> (Body, End) {
    let (sender, caller_waits) = watch::channel(false);
    let rest = Rest { frames, rest: rest.map_err(Some), caller_waits: sender };
    let passing = Arc::new(Mutex::new(Some(rest)));
    let body = Arc::downgrade(&passing);
    (boxed(Passing(passing)), End { caller_waits, body })
}

impl End {
    /// Waits until the body has been sent, or the caller has hung up. One that takes nothing of it for `limit`, though there
    /// is more, has the body taken away: it would hold the key for as long as it likes.
    pub async fn reached(mut self, limit: Duration) {
        loop {
            let waits = *self.caller_waits.borrow_and_update();
            let next = self.caller_waits.changed();
            let limit = if waits { Duration::MAX } else { limit };
            match tokio::time::timeout(limit, next).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    tracing::debug!("a caller does not take its answer");
                    drop(self.body.upgrade().and_then(|body| locked(&body).take()));
                    return;
                }
            }
        }
    }
}

fn locked(rest: &Mutex<Option<Rest>>) -> MutexGuard<'_, Option<Rest>> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = WorkError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WorkError>>> {
        let mut held = locked(&self.0);
        let Some(Rest { frames, rest, caller_waits }) = &mut *held else {
            return Poll::Ready(Some(Err("the caller did not take its answer in time".into())));
        };
        let polled = match (frames.pop_front(), rest) {
            (Some(frame), _) => Poll::Ready(Some(Ok(frame))),
            (None, Ok(body)) => Pin::new(body).poll_frame(context),
            (None, Err(error)) => Poll::Ready(error.take().map(Err)),
        };
        let polled = polled.map_ok(|frame| match frame.into_data() {
            Ok(mut data) if data.len() > PIECE_MAX_BYTES => {
                let piece = data.split_to(PIECE_MAX_BYTES);
                frames.push_front(Frame::data(data));
                Frame::data(piece)
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        });
        if polled.is_ready() {
            caller_waits.send_replace(false);
        } else {
            caller_waits.send_if_modified(|waits| !std::mem::replace(waits, true));
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tokio_stream::{self as stream, StreamExt as _};

    use super::*;

    /// A byte that is counted as long as it is kept.
    struct Piece {
        byte: [u8; 1],
        _counted: Arc<()>,
    }

    impl AsRef<[u8]> for Piece {
        fn as_ref(&self) -> &[u8] {
            &self.byte
        }
    }

    /// A body of so many pieces, with nothing in between, that fails if more than a few are kept.
    fn in_pieces(count: usize) -> Body {
        let kept = Arc::new(());
        let pieces = stream::iter(0..count * 2).map(move |number| {
            assert!(Arc::strong_count(&kept) <= 3, "{} pieces are kept", Arc::strong_count(&kept));
            let piece = Piece { byte: [b'a' + (number / 2 % 26) as u8], _counted: Arc::clone(&kept) };
            let data = if number % 2 == 0 { Bytes::from_owner(piece) } else { Bytes::new() };
            Ok::<_, WorkError>(Frame::data(data))
        });
        boxed(StreamBody::new(pieces))
    }

    #[tokio::test]
    async fn a_body_in_tiny_pieces_is_kept_in_one() {
        const COUNT: usize = 10_000;
        let Read::Whole(whole) = read(in_pieces(COUNT), COUNT).await else { panic!("it is not too large") };
        assert_eq!(whole.data.len(), COUNT);
        assert!(whole.data.starts_with(b"abcdefghijklmnopqrstuvwxyzabc"));

        let Read::TooLarge(frames, rest) = read(in_pieces(COUNT), COUNT - 1).await else {
            panic!("it is too large")
        };
        assert_eq!(frames.len(), 1);
        let (body, _end) = passing(frames, Ok(rest));
        assert_eq!(body.collect().await.unwrap().to_bytes(), whole.data);
    }

    #[tokio::test]
    async fn a_body_that_its_caller_does_not_take_is_given_up() {
        const LIMIT: Duration = Duration::from_millis(100);
        let pieces = |pause: Duration| {
            let pieces = Box::pin(stream::iter(0..3).then(move |_| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, WorkError>(Frame::data(Bytes::from_static(b"x")))
            }));
            passing(VecDeque::new(), Ok(boxed(StreamBody::new(pieces))))
        };
        let (mut body, end) = pieces(Duration::ZERO);
        assert!(body.frame().await.unwrap().is_ok());
        let given_up = tokio::time::timeout(Duration::from_secs(60), end.reached(LIMIT)).await;
        assert!(given_up.is_ok(), "it waits for its caller for ever");
        assert!(body.frame().await.unwrap().is_err());

        // The time in which there is nothing to take does not count.
        let (body, end) = pieces(LIMIT * 3);
        let (whole, ()) = tokio::join!(body.collect(), end.reached(LIMIT));
        assert_eq!(whole.unwrap().to_bytes(), "xxx");
    }

    #[tokio::test]
    async fn a_large_piece_passes_in_small_ones() {
        let large = Bytes::from(vec![b'x'; PIECE_MAX_BYTES * 2 + 1]);
        let (mut body, _end) = passing(VecDeque::from([Frame::data(large.clone())]), Ok(full(large)));
        for length in [PIECE_MAX_BYTES, PIECE_MAX_BYTES, 1].repeat(2) {
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece.len(), length);
        }
        assert!(body.frame().await.is_none());
    }

    #[test]
    fn no_more_room_is_made_than_may_be_needed() {
        let mut taken = Taken::new(1_000);
        for _ in 0..999 {
            taken.add(Bytes::from_static(b"x"));
            assert!(taken.joined.capacity() <= 1_000);
        }
        taken.add(Bytes::from_static(b"xx"));
        assert_eq!(taken.into_whole().data.len(), 1_001);
    }

    #[tokio::test]
    async fn trailers_come_last_whatever_was_read() {
        let sum = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("7"))]);
        let frames = || {
            let end: [Result<_, WorkError>; 3] = [
                Ok(Frame::data(Bytes::from_static(b"on"))),
                Ok(Frame::data(Bytes::from_static(b"e"))),
                Ok(Frame::trailers(sum.clone())),
            ];
            end
        };
        let Read::Whole(whole) = read(boxed(StreamBody::new(stream::iter(frames()))), 3).await else {
            panic!("it is whole")
        };
        assert_eq!((&whole.data[..], whole.trailers.as_ref()), (&b"one"[..], Some(&sum)));
        let broken = frames().into_iter().chain([Err("broken".into())]);
        let Read::Broken(frames, error) = read(boxed(StreamBody::new(stream::iter(broken))), 3).await else {
            panic!("it is broken")
        };
        assert_eq!((frames.len(), error.to_string().as_str()), (2, "broken"));
        assert!(frames[0].is_data() && frames[1].is_trailers());
    }
}
