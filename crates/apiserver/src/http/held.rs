//! TLS over TCP that holds back what is written.
//!
//! A connection's driver writes frame by frame and flushes after each; sent as they come, small answers cost a system call and
//! a wake-up of the client each. Here plain text is sealed as it is written, and what is sealed leaves when whoever polls the
//! connection says that this was all for now ([`Held::send`]), or when a lot has gathered.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One connection's transport; clones are the same connection.
#[derive(Clone)]
pub struct Held(Arc<Mutex<Sealed>>);

struct Sealed {
    tls: rustls::ServerConnection,
    tcp: TcpStream,
    /// The other side sends nothing more.
    ended: bool,
    /// We said that we send nothing more.
    closing: bool,
}

/// A socket as the blocking interface that rustls reads from and writes to.
struct Now<'a, 'b>(&'a mut TcpStream, &'a mut Context<'b>);

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Now<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(into);
        or_would_block(Pin::new(&mut *self.0).poll_read(self.1, &mut into))?;
        Ok(into.filled().len())
    }
}

impl Write for Now<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.0).poll_write(self.1, bytes))
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.0).poll_write_vectored(self.1, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A result of the blocking interface as one of polling.
fn polled<T>(done: io::Result<T>) -> Poll<io::Result<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}

impl Sealed {
    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            if ready!(polled(self.tls.write_tls(&mut Now(&mut self.tcp, cx))))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and opens what the socket has.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if ready!(polled(self.tls.read_tls(&mut Now(&mut self.tcp, cx))))? == 0 {
            self.ended = true;
        }
        if let Err(error) = self.tls.process_new_packets() {
            // The other side is told what was wrong, if it still listens.
            let _ = self.poll_send(cx);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(()))
    }
}

impl Held {
    pub fn new(tcp: TcpStream, tls: rustls::ServerConnection) -> Self {
        Self(Arc::new(Mutex::new(Sealed { tls, tcp, ended: false, closing: false })))
    }

    fn lock(&self) -> MutexGuard<'_, Sealed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what was held back, as far as the socket takes it; the task is woken when it takes more.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.lock().poll_send(cx) {
            Poll::Ready(done) => done,
            Poll::Pending => Ok(()),
        }
    }
}

impl hyper::rt::Read for Held {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut sealed = self.lock();
        loop {
            match sealed.tls.reader().into_first_chunk() {
                Ok(chunk) => {
                    let taken = chunk.len().min(into.remaining());
                    into.put_slice(&chunk[..taken]);
                    sealed.tls.reader().consume(taken);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if sealed.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(sealed.poll_receive(cx))?;
        }
    }
}

impl hyper::rt::Write for Held {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut sealed = self.lock();
        if bytes.iter().all(|part| part.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            // rustls takes no more than its limit (64 KiB) of what is not sent.
            match sealed.tls.writer().write_vectored(bytes)? {
                0 => ready!(sealed.poll_send(cx))?,
                taken => return Poll::Ready(Ok(taken)),
            }
        }
    }

    /// Sends nothing: see [`Held::send`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sealed = self.lock();
        if !sealed.closing {
            sealed.closing = true;
            sealed.tls.send_close_notify();
        }
        ready!(sealed.poll_send(cx))?;
        Pin::new(&mut sealed.tcp).poll_shutdown(cx)
    }
}
