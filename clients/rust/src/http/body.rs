//! Bodies, read to their end as far as that is bounded.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use tokio::sync::oneshot;

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
    let mut frames = VecDeque::new();
    let mut bytes = 0;
    if body.size_hint().lower() > max_bytes as u64 {
        return Read::TooLarge(frames, body);
    }
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Read::Broken(frames, error),
        };
        bytes += frame.data_ref().map_or(0, Bytes::len);
        frames.push_back(frame);
        if bytes > max_bytes {
            return Read::TooLarge(frames, body);
        }
    }
    Read::Whole(joined(frames, bytes))
}

fn joined(frames: VecDeque<Frame<Bytes>>, bytes: usize) -> Whole {
    let mut parts = Vec::new();
    let mut trailers = None;
    for frame in frames {
        match frame.into_data() {
            Ok(data) => parts.push(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    // Most come in one piece.
    let data = if parts.len() == 1 { parts.remove(0) } else { gathered(&parts, bytes) };
    Whole { data, trailers }
}

fn gathered(parts: &[Bytes], bytes: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(bytes);
    for part in parts {
        data.extend_from_slice(part);
    }
    data.freeze()
}

/// A body that passes: what was read of it, and the rest. Who waits for its end is told when this is dropped.
struct Passing {
    frames: VecDeque<Frame<Bytes>>,
    rest: Result<Body, Option<WorkError>>,
    _end: oneshot::Sender<()>,
}

/// A body that passes, and what waits for its end.
pub(super) fn passing(
    frames: VecDeque<Frame<Bytes>>,
    rest: Result<Body, WorkError>,
) -> (Body, oneshot::Receiver<()>) {
    let (end, ended) = oneshot::channel();
    (boxed(Passing { frames, rest: rest.map_err(Some), _end: end }), ended)
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = WorkError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WorkError>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Ok(body) => Pin::new(body).poll_frame(context),
            Err(error) => Poll::Ready(error.take().map(Err)),
        }
    }
}
