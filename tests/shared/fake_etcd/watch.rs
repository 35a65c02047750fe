//! Streams of watches.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::data::Range;
use super::services::Answers;
use super::{EventFate, Member, StreamFate};

/// How often a stream looks whether it is fated to end, or may go on.
const LOOK: Duration = Duration::from_millis(200);
/// How many looks without news there are to a sign of progress.
const LOOKS_PER_PROGRESS: u32 = 8;

struct WatchStream {
    member: Member,
    answers: mpsc::UnboundedSender<Result<PbWatchResponse, Status>>,
    watches: BTreeMap<i64, Watch>,
}

struct Watch {
    range: Range,
    /// The first revision that was not told yet.
    next: i64,
    fragment: bool,
    progress: bool,
}

/// What a stream does next.
enum Next {
    Obey(Option<Result<PbWatchRequest, Status>>),
    Tell,
    Look,
}

#[tonic::async_trait]
impl PbWatchService for Member {
    type WatchStream = Answers<PbWatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, told) = mpsc::unbounded_channel();
        let stream = WatchStream { member: self.clone(), answers, watches: BTreeMap::new() };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(told))))
    }
}

impl WatchStream {
    async fn run(mut self, mut requests: Streaming<PbWatchRequest>) {
        let (wake, mut news) = mpsc::unbounded_channel();
        self.member.etcd.state().streams.push(wake);
        let mut quiet = 0;
        loop {
            let next = tokio::select! {
                biased;
                () = self.answers.closed() => return,
                request = requests.next() => Next::Obey(request),
                _ = news.recv() => Next::Tell,
                () = tokio::time::sleep(LOOK) => Next::Look,
            };
            if let StreamFate::Breaks(status) = self.member.etcd.faults.stream(self.member.index) {
                let _ = self.answers.send(Err(status));
                return;
            }
            match next {
                Next::Obey(Some(Ok(request))) => self.obey(request),
                Next::Obey(Some(Err(_)) | None) => return,
                Next::Tell => while news.try_recv().is_ok() {},
                Next::Look => quiet += 1,
            }
            // Whatever it was: streams that were silent have something to tell.
            if !matches!(self.member.etcd.faults.stream(self.member.index), StreamFate::Tells) {
                continue;
            }
            if self.tell() {
                quiet = 0;
            } else if quiet >= LOOKS_PER_PROGRESS {
                quiet = 0;
                self.tell_progress();
            }
        }
    }

    fn obey(&mut self, request: PbWatchRequest) {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let id = create.watch_id;
                assert!(id > 0 && !create.prev_kv && create.filters.is_empty(), "not in this etcd");
                assert!(!self.watches.contains_key(&id), "an id is used once on a stream");
                let revision = self.member.etcd.with(|data, _| data.revision());
                let next = if create.start_revision == 0 { revision + 1 } else { create.start_revision };
                let watch = Watch {
                    range: Range::new(&create.key, &create.range_end),
                    next,
                    fragment: create.fragment,
                    progress: create.progress_notify,
                };
                self.watches.insert(id, watch);
                let created = PbWatchResponse { watch_id: id, created: true, ..PbWatchResponse::default() };
                self.answer(created, revision);
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => {
                let watch_id = cancel.watch_id;
                if let Some(Watch { next, .. }) = self.watches.remove(&watch_id) {
                    let canceled = PbWatchResponse { watch_id, canceled: true, ..PbWatchResponse::default() };
                    self.answer(canceled, next - 1);
                }
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) | None => panic!("not in this etcd"),
        }
    }

    /// Tells what happened since the last time. Whether there was anything.
    fn tell(&mut self) -> bool {
        let mut told = Vec::new();
        let revision = self.member.etcd.with(|data, _| {
            for (&watch_id, watch) in &mut self.watches {
                if watch.next < data.compacted() {
                    let compact_revision = data.compacted();
                    let canceled =
                        PbWatchResponse { watch_id, canceled: true, compact_revision, ..Default::default() };
                    told.push(canceled);
                    continue;
                }
                for (at, events) in data.happened(&watch.range, watch.next) {
                    told.extend(responses(watch_id, events, watch.fragment));
                    watch.next = at + 1;
                }
                watch.next = watch.next.max(data.revision() + 1);
            }
            data.revision()
        });
        let any = !told.is_empty();
        for mut response in told {
            if response.canceled {
                self.member.etcd.faults.met("watches cancelled by compaction");
                self.watches.remove(&response.watch_id);
            }
            let mut times = 1;
            response.events.retain(|_| {
                let fate = self.member.etcd.faults.event(self.member.index);
                times += usize::from(fate == EventFate::ToldTwice);
                fate != EventFate::Lost
            });
            if response.canceled || !response.events.is_empty() {
                (0..times).for_each(|_| self.answer(response.clone(), revision));
            }
        }
        any
    }

    fn tell_progress(&self) {
        for (&watch_id, watch) in self.watches.iter().filter(|(_, watch)| watch.progress) {
            self.answer(PbWatchResponse { watch_id, ..PbWatchResponse::default() }, watch.next - 1);
        }
    }

    /// `revision` is up to where all was told, this included.
    fn answer(&self, response: PbWatchResponse, revision: i64) {
        let header = Some(self.member.header_at(revision));
        // Who watched may be gone.
        let _ = self.answers.send(Ok(PbWatchResponse { header, ..response }));
    }
}

/// What happened at one revision, in one response or in several.
fn responses(watch_id: i64, events: Vec<PbEvent>, fragment: bool) -> Vec<PbWatchResponse> {
    let size = if fragment { 1 } else { events.len() };
    let parts: Vec<&[PbEvent]> = events.chunks(size).collect();
    let last = parts.len() - 1;
    let part = |(i, part): (usize, &&[PbEvent])| PbWatchResponse {
        watch_id,
        events: part.to_vec(),
        fragment: i < last,
        ..PbWatchResponse::default()
    };
    parts.iter().enumerate().map(part).collect()
}
