//! HTTP/2 as bytes, for what no client library would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server::HANGS;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Settings by their number.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header list: nothing is indexed, nothing compressed.
pub fn header_list(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (name, value) in headers {
        list.push(0);
        for text in [name, value] {
            integer(text.len(), &mut list);
            list.extend_from_slice(text.as_bytes());
        }
    }
    list
}

/// HPACK's integer with a prefix of 7 bits.
fn integer(mut value: usize, list: &mut Vec<u8>) {
    if value < 127 {
        return list.push(value as u8);
    }
    list.push(127);
    value -= 127;
    while value >= 128 {
        list.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    list.push(value as u8);
}

/// The headers of a call.
pub fn call(path: &str) -> Vec<u8> {
    header_list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "onced"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// A message as the one DATA frame of a stream, or the first of several.
pub fn message(stream: u32, flags: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    frame(DATA, flags, stream, &[&[0], &length[..], message].concat())
}

/// A connection that has said what every client says first.
pub struct Wire {
    pub stream: TcpStream,
}

impl Wire {
    pub async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &settings)).await.unwrap();
        Self { stream }
    }

    /// Sends as much as the server takes: `false` if it has closed the connection, or takes nothing for a while.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = tokio::time::timeout(Duration::from_secs(2), self.stream.write_all(bytes)).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Whether the server ends the connection: it need not wait for what was sent to be read.
    pub async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        // Broken or ended in order is the same here.
        tokio::time::timeout(HANGS, self.stream.read_to_end(&mut rest)).await.is_ok()
    }

    /// Reads until so many frames of a kind have come.
    pub async fn read_frames(&mut self, wanted: u8, mut count: usize) {
        while count > 0 {
            count -= usize::from(self.read_frame().await.0 == wanted);
        }
    }

    /// Reads until the headers of this stream's answer have come.
    pub async fn read_headers_of(&mut self, stream: u32) {
        while self.read_frame().await != (HEADERS, stream) {}
    }

    /// Reads a frame, and tells its kind and its stream.
    async fn read_frame(&mut self) -> (u8, u32) {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.expect("an open connection");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.expect("an open connection");
        (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]))
    }
}
