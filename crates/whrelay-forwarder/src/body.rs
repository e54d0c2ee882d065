//! Reading a request's body: whole, in its time, and within its share of memory. It must not know what becomes
//! of it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::BucketId;
use whrelay_core::limits;

use crate::budget::{Budget, Grant, Holder, NoRoom};
use crate::problem::{self, Problem, RETRY_SOON};
use crate::refusals::Reason;
use crate::seats::{Phase, Seat};

/// How much of a body that is too large is read and thrown away, in largest bodies, and for how long, so that the
/// sender gets to read why.
const DISCARDED: usize = 2;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Memory for bodies: the small ones have their own, so that large ones never stop them.
#[derive(Debug)]
pub(crate) struct Room {
    /// The largest body that is taken.
    max_body: usize,
    small: Arc<Budget>,
    large: Arc<Budget>,
}

/// A body, and the memory that it keeps until it is dropped.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    pub(crate) grant: Grant,
}

/// A body as it is read.
struct Reading<'a> {
    body: Body,
    room: &'a Room,
    seat: &'a Arc<Seat>,
    stop: &'a CancellationToken,
    gathered: Gathered,
    grant: Grant,
    began: Instant,
    /// Since when it has to hurry, and what had come until then.
    hurried: Option<(Instant, usize)>,
}

impl Room {
    pub(crate) fn new(max_body: usize) -> Self {
        let budget = |total| Budget::new(total, limits::BODY_STALLED, Reason::EvictedBody);
        Self {
            max_body,
            small: budget(limits::MAX_SMALL_BODIES),
            large: budget(limits::MAX_INGEST_BYTES.max(limits::LARGEST_AT_ONCE * max_body)),
        }
    }

    /// Reads a body whole.
    pub(crate) async fn read(
        &self,
        body: Body,
        seat: &Arc<Seat>,
        bucket: BucketId,
        stop: &CancellationToken,
    ) -> Result<Whole, Problem> {
        // From here on it waits for its sender, not for us.
        seat.enter(Phase::Body);
        let read = self.read_waiting(body, seat, bucket, stop).await;
        seat.enter(Phase::Busy);
        read
    }

    async fn read_waiting(
        &self,
        body: Body,
        seat: &Arc<Seat>,
        bucket: BucketId,
        stop: &CancellationToken,
    ) -> Result<Whole, Problem> {
        let declared = body.size_hint().lower();
        if declared > self.max_body as u64 {
            return Err(self.too_large(body, declared, seat, stop).await);
        }
        let holder = Holder {
            seat: Arc::clone(seat),
            bucket: Some(bucket),
        };
        let small = declared <= limits::SMALL_BODY as u64;
        let budget = if small { &self.small } else { &self.large };
        let reading = Reading {
            grant: budget.begin(holder),
            body,
            room: self,
            seat,
            stop,
            gathered: Gathered::default(),
            began: Instant::now(),
            hurried: None,
        };
        reading.all().await
    }

    /// The time by which a body of which so much has come must have come further.
    fn time_for(&self, received: usize) -> Duration {
        let earned = Duration::from_secs(received as u64 / limits::MIN_BODY_RATE);
        let larger = (self.max_body as f64 / limits::MAX_BODY as f64).max(1.0);
        (limits::BODY_GRACE + earned).min(limits::BODY_TIMEOUT.mul_f64(larger))
    }

    /// Takes some more of it, so that its sender reads the answer instead of a broken connection.
    async fn too_large(
        &self,
        mut body: Body,
        seen: u64,
        seat: &Seat,
        stop: &CancellationToken,
    ) -> Problem {
        let most = DISCARDED * self.max_body;
        let mut left = most;
        let discard = async {
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                if length > left {
                    break;
                }
                left -= length;
            }
        };
        if seen <= most as u64 {
            // Whether all of it came in time changes nothing.
            tokio::select! {
                _ = timeout(DISCARD_TIME, discard) => {}
                _ = seat.until_evicted() => {}
                () = stop.cancelled() => {}
            }
        }
        self.over_limit(seen)
    }

    fn over_limit(&self, seen: u64) -> Problem {
        let most = self.max_body;
        let why = format!("the body is larger than {most} bytes: {seen} were sent or announced");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why)
    }

    /// Refuses a body that is too large while its sender still waits to be asked for it (RFC 9110 section 10.1.1).
    pub(crate) fn refuse_unasked(&self, headers: &HeaderMap, body: &Body) -> Option<Problem> {
        let expects = headers.get(header::EXPECT)?;
        let announced = body.size_hint().lower();
        let waits = expects.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let is_too_large = announced > self.max_body as u64;
        (waits && is_too_large).then(|| self.over_limit(announced).closing())
    }
}

impl Reading<'_> {
    async fn all(mut self) -> Result<Whole, Problem> {
        while let Some(frame) = self.frame().await? {
            // Trailers are not merged into the header fields.
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(other) => match other.trailers_ref().and_then(|t| problem::too_large(t, 0)) {
                    Some(problem) => return Err(problem),
                    None => continue,
                },
            };
            let all = self.gathered.len() + data.len();
            if all > self.room.max_body {
                let refused = self
                    .room
                    .too_large(self.body, all as u64, self.seat, self.stop);
                return Err(refused.await);
            }
            self.reserve(data.len()).await?;
            self.gathered.add(data);
        }
        Ok(Whole {
            bytes: self.gathered.into_bytes(),
            grant: self.grant,
        })
    }

    /// The next piece; `None` after the last one.
    async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, Problem> {
        loop {
            let (deadline, late) = self.deadline();
            let stopping = self.hurried.is_some();
            let next = tokio::select! {
                biased;
                next = timeout_at(deadline, self.body.frame()) => next,
                _ = self.seat.until_evicted() => return Err(evicted()),
                () = self.stop.cancelled(), if !stopping => {
                    self.hurried = Some((Instant::now(), self.gathered.len()));
                    continue;
                }
            };
            return match next {
                Ok(Some(Ok(frame))) => Ok(Some(frame)),
                Ok(None) => Ok(None),
                Ok(Some(Err(error))) => {
                    let why = format!("the body ended early: {error}");
                    Err(Problem::new(StatusCode::BAD_REQUEST, why))
                }
                Err(_) => Err(late),
            };
        }
    }

    /// By when more has to come, and what is said where it does not.
    fn deadline(&mut self) -> (Instant, Problem) {
        let received = self.gathered.len();
        let slow = self.began + self.room.time_for(received);
        if let Some((since, had)) = &mut self.hurried {
            if received >= *had + limits::DRAIN_PROGRESS {
                (*since, *had) = (Instant::now(), received);
            }
            let stop = *since + limits::DRAIN_STALLED;
            if stop < slow {
                let why = "the forwarder stops, and the body came too slowly";
                let problem = Problem::unavailable(why, RETRY_SOON);
                return (stop, problem.because(Reason::Stopping).closing());
            }
        }
        let why = "the body came too slowly";
        (slow, Problem::new(StatusCode::REQUEST_TIMEOUT, why))
    }

    /// Takes memory for so many bytes more.
    async fn reserve(&mut self, bytes: usize) -> Result<(), Problem> {
        let received = self.gathered.len();
        let grows = self.grant.is_of(&self.room.small) && received + bytes > limits::SMALL_BODY;
        let mut large = grows.then(|| self.room.large.begin(self.grant.holder()));
        let (grant, bytes) = match &mut large {
            Some(large) => (large, received + bytes),
            None => (&mut self.grant, bytes),
        };
        match grant.add(bytes, limits::BODY_WAIT).await {
            // Its sender is not late because of us.
            Ok(waited) => self.began += waited,
            Err(NoRoom::Evicted) => return Err(evicted()),
            Err(NoRoom::Late) => {
                let problem = Problem::unavailable("too many bodies at once", RETRY_SOON);
                return Err(problem.because(Reason::Memory).closing());
            }
        }
        if let Some(large) = large {
            self.grant = large;
        }
        Ok(())
    }
}

fn evicted() -> Problem {
    let why = "the body came too slowly, and its memory is needed";
    let problem = Problem::unavailable(why, RETRY_SOON);
    problem.because(Reason::EvictedBody).closing()
}

/// A body as it comes: most come in one piece, which is not copied.
#[derive(Debug, Default)]
enum Gathered {
    #[default]
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Gathered {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn add(&mut self, data: Bytes) {
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(data),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(2 * (first.len() + data.len()));
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                Self::Many(all)
            }
            Self::Many(mut all) => {
                all.extend_from_slice(&data);
                Self::Many(all)
            }
        };
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_many_pieces_keeps_every_piece() {
        let all: Vec<u8> = (0..=255).collect();
        for size in [1, 2, 100, 256, 1000] {
            let mut gathered = Gathered::default();
            for piece in all.chunks(size) {
                gathered.add(Bytes::copy_from_slice(piece));
            }
            assert_eq!(gathered.len(), all.len());
            assert_eq!(gathered.into_bytes(), all, "in pieces of {size}");
        }
    }

    #[test]
    fn a_body_earns_time_as_it_comes_but_not_for_ever() {
        let room = Room::new(limits::MAX_BODY);
        assert_eq!(room.time_for(0), limits::BODY_GRACE);
        assert_eq!(
            room.time_for(10 * 1024),
            limits::BODY_GRACE + Duration::from_secs(10)
        );
        assert_eq!(room.time_for(limits::MAX_BODY), limits::BODY_TIMEOUT);
    }

    #[test]
    fn larger_bodies_have_memory_and_time_in_proportion() {
        let room = Room::new(limits::LARGEST_MAX_BODY);
        assert_eq!(
            room.time_for(limits::LARGEST_MAX_BODY),
            limits::BODY_TIMEOUT * 4
        );
        let small = Room::new(limits::SMALLEST_MAX_BODY);
        assert_eq!(small.time_for(limits::MAX_BODY), limits::BODY_TIMEOUT);
    }
}
