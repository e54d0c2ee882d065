//! What came through the tunnel, on its way to the agent's disk. It must not know the tunnel.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::Seq;
use whrelay_core::limits;
use whrelay_proto::frame::WireEvent;
use whrelay_store::{NewDelivery, NewEvent, Receipt, SourceMark, StoreError};

use crate::backlog::{self, Catching};
use crate::lines::{Line, ReceivedLine};
use crate::runtime::{self, Runtime};

/// Events of a forwarder in order, each with the deliveries it begins.
pub(crate) struct Intake {
    runtime: Arc<Runtime>,
    catching: Arc<Catching>,
    forwarder: String,
    /// Where the session started.
    start: Seq,
    events: Vec<NewEvent>,
    /// Their places at the forwarder.
    places: Vec<u64>,
    /// Their bytes.
    sizes: Vec<u64>,
    /// What is told of each; nothing of one that is passed over.
    lines: Vec<Option<ReceivedLine>>,
    /// The place that all of them together reach.
    reached: u64,
}

impl Intake {
    pub(crate) fn new(
        runtime: Arc<Runtime>,
        catching: Arc<Catching>,
        (forwarder, start): (&str, Seq),
    ) -> Self {
        Self {
            runtime,
            catching,
            forwarder: forwarder.to_owned(),
            start,
            events: Vec::new(),
            places: Vec::new(),
            sizes: Vec::new(),
            lines: Vec::new(),
            reached: 0,
        }
    }

    /// Adds what a frame brought, which reaches a place.
    pub(crate) fn add(&mut self, events: Vec<WireEvent>, upto: u64) {
        let (runtime, routes) = (&self.runtime, self.runtime.routes());
        for event in events {
            let (place, size) = (event.seq, event.size());
            let event = event.into_event(runtime.bucket.name.clone());
            let passed_over = self
                .catching
                .passes_over(&self.forwarder, place, event.received_at);
            let begin = |to| NewDelivery {
                passed_over,
                ..runtime.new_delivery(to, runtime.clock.now())
            };
            let to = runtime::taking(&routes, &event.request.tail);
            let deliveries = to.into_iter().map(begin).collect();
            let line = (!passed_over).then(|| ReceivedLine::new(&event));
            self.lines.push(line);
            self.places.push(place);
            self.sizes.push(size);
            self.events.push(NewEvent { event, deliveries });
        }
        self.reached = upto;
    }

    /// Puts it on disk, each part with its deliveries and the place it reaches in one transaction, and
    /// answers with the place that all of it reaches.
    ///
    /// A full disk withholds the ack, and with it the forwarder's credit, until there is space again: the
    /// forwarder keeps what is not on this disk. Space for some is not space for all, so that parts grow
    /// smaller until one fits. Once the session is over, nothing is tried again.
    pub(crate) async fn store(mut self, over: CancellationToken) -> Result<u64, StoreError> {
        let (mut done, mut at_once) = (0, self.events.len());
        loop {
            let end = self.part(done, at_once);
            match self.append(done, end).await {
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, "what the forwarder sent is stored later");
                    if !matches!(error, StoreError::Reopening) {
                        self.runtime.set_refuses(Some(error.to_string()));
                        at_once = ((end - done) / 2).max(1);
                    }
                    tokio::select! {
                        () = over.cancelled() => return Err(error),
                        () = tokio::time::sleep(limits::REOPEN_EVERY) => {}
                    }
                }
                settled => {
                    self.tell(done, &settled?);
                    (done, at_once) = (end, at_once.saturating_mul(2).max(1));
                    if done == self.events.len() {
                        self.runtime.set_refuses(None);
                        return Ok(self.reached);
                    }
                }
            }
        }
    }

    /// Where a part ends that begins there: so many events at most, and no more bytes than one commit is to
    /// hold others up for.
    fn part(&self, done: usize, at_once: usize) -> usize {
        let sums = self.sizes[done..].iter().scan(0, |sum, size| {
            *sum += size;
            Some(*sum)
        });
        let fit = sums.take_while(|sum| *sum <= limits::APPEND_BYTES).count();
        self.events.len().min(done + fit.max(1).min(at_once))
    }

    async fn append(&self, done: usize, end: usize) -> Result<Vec<Receipt>, StoreError> {
        let events = self.events[done..end].to_vec();
        let places = self.places[done..end].iter().map(|place| Seq(*place));
        let mark = SourceMark {
            forwarder: self.forwarder.clone(),
            start: self.start,
            seq: Seq(self.place(end)),
            events: places.zip(events.iter().map(|new| new.event.id)).collect(),
        };
        let (store, bucket) = (&self.runtime.store, self.runtime.bucket.id);
        store.journal.receive(bucket, events, Some(mark)).await
    }

    /// The place that the first so many reach.
    fn place(&self, end: usize) -> u64 {
        let last = end.checked_sub(1).filter(|_| end < self.events.len());
        last.map_or(self.reached, |last| self.places[last])
    }

    /// Tells of events from one on that have these receipts.
    fn tell(&mut self, done: usize, receipts: &[Receipt]) {
        let mut passed_over = 0;
        for (line, receipt) in self.lines[done..].iter_mut().zip(receipts) {
            match line.take() {
                Some(line) if !receipt.duplicate => (self.runtime.tell)(Line::Received(line)),
                None if !receipt.duplicate => passed_over += 1,
                Some(_) | None => {}
            }
        }
        let reached = self.place(done + receipts.len());
        if let Some(passed_over) = self.catching.passed_over(passed_over, reached) {
            let whose = "that the forwarder held";
            (self.runtime.tell)(backlog::told(passed_over, "event", whose));
        }
    }
}
