//! A connection to a target that knows whether its request has gone out whole, and can be cut where
//! it has not. It must not know when that is: an attempt does.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::dial::Stream;
use crate::strays::Strays;

/// A connection.
pub(crate) struct Wire {
    stream: Stream,
    grip: Grip,
    strays: Strays,
}

/// What an attempt holds of the connection its answer came over.
#[derive(Clone)]
pub(crate) struct Grip {
    /// Whether something has been written since the last flush: hyper flushes a whole request.
    unwritten: Arc<watch::Sender<bool>>,
    cut: Arc<Mutex<Cut>>,
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

impl Wire {
    pub(crate) fn new(stream: Stream) -> TokioIo<Self> {
        let grip = Grip {
            unwritten: Arc::new(watch::Sender::new(false)),
            cut: Arc::default(),
        };
        TokioIo::new(Self {
            stream,
            grip,
            strays: Strays::default(),
        })
    }
}

impl Drop for Wire {
    /// What has not gone out by now never will: nobody has to wait for it.
    fn drop(&mut self) {
        self.grip.unwritten.send_replace(false);
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.grip.clone())
    }
}

impl AsyncRead for Wire {
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
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let kept = this.strays.take_out(fresh);
            buffer.set_filled(before + kept);
            // Nothing at all says that the target has closed.
            if kept > 0 || this.strays.is_flooded() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.grip.check(cx)? {
            self.strays.request(bytes);
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
            self.strays.request(first.map_or(&[], |slice| slice));
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
