//! How a connection begins: TLS, if it is spoken here, then the preface of HTTP/2. Who speaks otherwise is told so.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use crate::access::{Caller, Serving, tls};

/// What every HTTP/2 connection starts with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What one who speaks HTTP/1 is told.
const NOT_HTTP2: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    This is onced: it speaks gRPC, over HTTP/2 without TLS.\n";
/// The same where TLS is spoken.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    This is onced: it speaks gRPC, over HTTP/2 with TLS: write https://.\n";
/// What one who speaks HTTP/2 without TLS is told: empty settings, and a GOAWAY with the same in its debug data.
const NOT_TLS_HTTP2: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x33\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0d\
    this server speaks TLS only: write https://";
/// What every connection by TLS starts with: a record of its handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// How much is read of what a connection sends that is not served.
const UNREAD_MAX_BYTES: u64 = 64 << 10;

/// A connection's bytes, TLS taken off.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

/// An open connection, and who it is from if its certificate says so.
pub(super) type Opened = (Box<dyn Io>, Option<Caller>);

/// Opens a new connection, by TLS if there is what to serve it by.
pub(super) async fn open<S: Io + 'static>(stream: S, serving: Option<Serving>) -> io::Result<Opened> {
    let Some(serving) = serving else { return Ok((Box::new(open_http2(stream).await?), None)) };
    let (stream, caller) = open_tls(stream, serving).await?;
    Ok((Box::new(open_http2(stream).await?), caller))
}

/// Shakes hands. Whoever speaks no TLS, or another protocol in it, is let go.
async fn open_tls<S: Io>(stream: S, serving: Serving) -> io::Result<(impl Io, Option<Caller>)> {
    let (mut reader, writer) = tokio::io::split(stream);
    let mut start = [0; 3];
    reader.read_exact(&mut start).await?;
    if start[0] != TLS_HANDSHAKE {
        refuse(reader, writer, if start == PREFACE[..3] { NOT_TLS_HTTP2 } else { NOT_TLS }).await;
        return Err(invalid("it does not start with a handshake of TLS"));
    }
    let stream = tokio::io::join(io::Cursor::new(start).chain(reader), writer);
    let stream = match TlsAcceptor::from(serving).accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            let (reader, writer) = tokio::io::split(stream);
            // The alert that says why is written. By TLS 1.3 a caller has sent more by now than was read.
            refuse(reader, writer, b"").await;
            return Err(error);
        }
    };
    // rustls refuses who names other protocols only, and lets pass who names none.
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(invalid("it did not ask for HTTP/2 by ALPN"));
    }
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let caller = certificate.and_then(Caller::of_certificate);
    Ok((stream, caller))
}

/// Reads the preface of HTTP/2, and hands back the stream with it: hyper itself waits for it without end.
async fn open_http2<S: Io>(stream: S) -> io::Result<impl Io> {
    let (mut reader, writer) = tokio::io::split(stream);
    let mut preface = [0; PREFACE.len()];
    let mut filled = 0;
    while filled < preface.len() {
        let read = reader.read(&mut preface[filled..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if preface[..filled] != PREFACE[..filled] {
            refuse(reader, writer, NOT_HTTP2).await;
            return Err(invalid("it does not start with HTTP/2's preface"));
        }
    }
    Ok(tokio::io::join(io::Cursor::new(preface).chain(reader), writer))
}

/// Says why a connection is not served, and closes it. What was sent is read before: closed over unread bytes, a
/// connection is reset, and then who sent them may never see what was said. Whoever is gone by then is not told.
async fn refuse(reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin, said: &[u8]) {
    let told = async {
        writer.write_all(said).await?;
        writer.shutdown().await?;
        tokio::io::copy(&mut reader.take(UNREAD_MAX_BYTES), &mut tokio::io::sink()).await
    };
    let _: io::Result<u64> = told.await;
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
