//! A connection's bytes on their way to hyper and from it: counted, bounded and timed. It must not know what they
//! mean.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use whrelay_core::limits;

use crate::budget::{Budget, Holder};
use crate::seats::{Phase, Seat};
use crate::target::Reader;

/// hyper's buffer for a head grows by doubling, so that it may be twice as large as the head.
const GROWTH: usize = 2;

/// A stream of a seat.
pub(crate) struct Watched {
    inner: Take<TcpStream>,
    seat: Arc<Seat>,
    heads: Arc<Budget>,
    targets: Reader,
    /// Whether it speaks HTTP/2, whose frames are no heads.
    is_h2: bool,
    /// Runs while nothing of an answer is taken.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Runs while a large head waits for memory.
    waits: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    /// One that speaks HTTP/1.
    pub(crate) fn new(
        stream: TcpStream,
        seat: Arc<Seat>,
        heads: Arc<Budget>,
        targets: Reader,
    ) -> Self {
        Self {
            is_h2: false,
            inner: stream.take(0),
            seat,
            heads,
            targets,
            blocked: None,
            waits: None,
        }
    }

    /// One that speaks HTTP/2.
    pub(crate) fn of_h2(stream: TcpStream, seat: Arc<Seat>, heads: Arc<Budget>) -> Self {
        let mut stream = Self::new(stream, seat, heads, Reader::idle());
        stream.is_h2 = true;
        stream
    }

    /// How many bytes may be read now: none of a large head before there is memory for it.
    fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(waits) = &mut self.waits {
                ready!(waits.as_mut().poll(cx));
                self.waits = None;
            }
            match self.allowed() {
                0 => self.waits = Some(Box::pin(sleep(limits::BUDGET_RECHECK))),
                bytes => return Poll::Ready(bytes),
            }
        }
    }

    /// hyper asks for a larger buffer after a read that filled the one it had: one byte less keeps it small.
    fn allowed(&self) -> usize {
        let head = match self.seat.phase() {
            Phase::Idle | Phase::Head if !self.is_h2 => self.seat.head_bytes(),
            Phase::Idle | Phase::Head | Phase::Body | Phase::Busy | Phase::Tunnel => {
                return limits::READ_AT_ONCE - 1;
            }
        };
        let mut held = self.seat.head();
        let granted = held.as_ref().map_or(0, |grant| grant.bytes() / GROWTH);
        let free = (limits::SMALL_HEAD + granted).saturating_sub(head);
        if free > 0 {
            return free.min(limits::SMALL_HEAD - 1);
        }
        let holder = || Holder {
            seat: Arc::clone(&self.seat),
            bucket: None,
        };
        let grant = held.get_or_insert_with(|| self.heads.begin(holder()));
        match grant.demand(GROWTH * limits::SMALL_HEAD) {
            true => limits::SMALL_HEAD - 1,
            false => 0,
        }
    }

    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.blocked = None;
                if self.seat.phase() == Phase::Tunnel {
                    self.seat.moved(bytes);
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // A tunnel times what it sends by itself.
            Poll::Pending if self.seat.phase() == Phase::Tunnel => Poll::Pending,
            Poll::Pending => {
                let timer = self
                    .blocked
                    .get_or_insert_with(|| Box::pin(sleep(limits::ANSWER_TIMEOUT)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let allowed = ready!(this.poll_allowed(cx));
        this.inner.set_limit(allowed as u64);
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        let came = &mut buffer.filled_mut()[before..];
        if came.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match this.seat.phase() {
            // Its frames may be about no request.
            Phase::Idle | Phase::Head if this.is_h2 => return Poll::Ready(Ok(())),
            Phase::Idle => {
                this.targets.next();
                this.targets.read(came);
            }
            Phase::Head => this.targets.read(came),
            Phase::Body | Phase::Busy => this.targets.pass(came.len()),
            Phase::Tunnel => return Poll::Ready(Ok(())),
        }
        this.seat.moved(came.len());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.inner.get_mut()).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.inner.get_mut()).poll_write_vectored(cx, bytes);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.inner.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.inner.get_mut()).poll_shutdown(cx)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A head that never ended gives its memory back; it would keep its own seat otherwise.
        drop(self.seat.head().take());
    }
}
