//! A connection to a target, behind its TLS, that knows whether its request has gone out whole, and can be cut where
//! it has not; which status was answered; and how many requests it has carried. It must not know when to cut: an attempt
//! does.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::raw;
use crate::strays::Strays;

/// A connection.
pub(crate) struct Wire<S> {
    stream: TokioIo<S>,
    grip: Grip,
    strays: Strays,
    /// The first line of a request, where hyper writes it in another way.
    line: Option<Line>,
    /// Whether it speaks HTTP/2, where requests and answers are mixed.
    is_h2: bool,
}

/// A line that goes out in place of another.
struct Line {
    bytes: Vec<u8>,
    written: usize,
    /// How many of hyper's bytes it stands for.
    stands_for: usize,
}

/// What an attempt holds of the connection its answer came over.
#[derive(Clone)]
pub(crate) struct Grip {
    /// Whether something has been written since the last flush: hyper flushes a whole request.
    unwritten: Arc<watch::Sender<bool>>,
    cut: Arc<Mutex<Cut>>,
    told: Arc<Mutex<Told>>,
}

/// What a connection has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Requests that it has carried, the one under way included.
    pub(crate) requests: u32,
    /// The status of the answer to the last one, also where the rest of its head is not HTTP.
    pub(crate) status: Option<u16>,
}

#[derive(Default)]
struct Cut {
    done: bool,
    writing: Option<Waker>,
}

impl Grip {
    /// Waits until the request has gone out whole.
    pub(crate) async fn written(&self) {
        // The sender is held here, so that this cannot fail.
        let _ = self
            .unwritten
            .subscribe()
            .wait_for(|unwritten| !unwritten)
            .await;
    }

    /// Lets the connection go: its next write fails, and one that waits does now.
    pub(crate) fn cut(&self) {
        let mut cut = self.lock();
        cut.done = true;
        if let Some(waker) = cut.writing.take() {
            waker.wake();
        }
    }

    /// What the connection has shown so far.
    pub(crate) fn told(&self) -> Told {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, Cut> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called at each write. Says whether a request begins with it.
    fn check(&self, cx: &Context<'_>) -> io::Result<bool> {
        let begins = self
            .unwritten
            .send_if_modified(|unwritten| !std::mem::replace(unwritten, true));
        let mut cut = self.lock();
        cut.writing = Some(cx.waker().clone());
        if cut.done {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(begins)
    }
}

impl<S: Connection> Wire<S> {
    pub(crate) fn new(stream: S) -> TokioIo<Self> {
        let grip = Grip {
            unwritten: Arc::new(watch::Sender::new(false)),
            cut: Arc::default(),
            told: Arc::default(),
        };
        let is_h2 = stream.connected().is_negotiated_h2();
        TokioIo::new(Self {
            stream: TokioIo::new(stream),
            grip,
            strays: Strays::default(),
            line: None,
            is_h2,
        })
    }
}

impl<S> Wire<S> {
    /// A request begins with these bytes.
    fn begin(&mut self, bytes: &[u8]) {
        if !self.is_h2 {
            self.strays.request(bytes);
            self.line = raw::first_line(bytes).map(|(bytes, stands_for)| Line {
                bytes,
                written: 0,
                stands_for,
            });
            self.grip.tell(|told| {
                let requests = told.requests + 1;
                *told = Told {
                    requests,
                    status: None,
                };
            });
        }
    }
}

impl<S: Write + Unpin> Wire<S> {
    /// Writes a line that goes out in place of another, if there is one. Says how many bytes it stood for.
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        while let Some(line) = &mut self.line {
            let rest = &line.bytes[line.written..];
            if rest.is_empty() {
                let stood_for = line.stands_for;
                self.line = None;
                return Poll::Ready(Ok(Some(stood_for)));
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            line.written += written;
        }
        Poll::Ready(Ok(None))
    }
}

impl<S> Drop for Wire<S> {
    /// What has not gone out by now never will: nobody has to wait for it.
    fn drop(&mut self) {
        self.grip.unwritten.send_replace(false);
    }
}

impl<S: Connection> Connection for Wire<S> {
    fn connected(&self) -> Connected {
        let connected = self.stream.inner().connected();
        connected.extra(self.grip.clone())
    }
}

impl<S: Read + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        loop {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            let fresh = &mut buffer.filled_mut()[before..];
            if fresh.is_empty() || this.is_h2 {
                return Poll::Ready(Ok(()));
            }
            let kept = this.strays.take_out(fresh);
            let status = this.strays.status();
            this.grip.tell(|told| told.status = status);
            buffer.set_filled(before + kept);
            // Nothing at all says that the target has closed.
            if kept > 0 || this.strays.is_flooded() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: Write + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.grip.check(cx)? {
            self.begin(bytes);
        }
        if let Some(stood_for) = ready!(self.poll_line(cx))? {
            return Poll::Ready(Ok(stood_for));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.grip.check(cx)? {
            let first = slices.iter().find(|slice| !slice.is_empty());
            self.begin(first.map_or(&[], |slice| slice));
        }
        if let Some(stood_for) = ready!(self.poll_line(cx))? {
            return Poll::Ready(Ok(stood_for));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.grip.unwritten.send_if_modified(std::mem::take);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
