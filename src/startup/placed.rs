//! Connections with their places, which they have from the moment that they are accepted: also while a TLS handshake is under way.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::rt::net::{ActixStream, Ready, TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::surplus::{Places, Taken};

/// A TCP connection with its place.
#[derive(Debug)]
pub(super) struct Placed {
    connection: TcpStream,
    pub taken: Rc<Taken>,
    pub peer: Option<SocketAddr>,
}

impl Placed {
    /// Gives a connection that was just accepted its place. Small answers go out at once, which is advice that the server can do without.
    pub fn new(connection: TcpStream, places: &Places, encrypted: bool) -> Self {
        let _ = connection.set_nodelay(true);
        let peer = connection.peer_addr().ok();
        let taken = Rc::new(places.take(peer.map(|peer| peer.ip()), connection.as_fd(), encrypted));
        Self { connection, taken, peer }
    }
}

impl AsyncRead for Placed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, out)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

impl ActixStream for Placed {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_read_ready(&self.connection, context)
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(&self.connection, context)
    }
}
