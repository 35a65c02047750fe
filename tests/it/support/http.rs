//! HTTP/1 as a probe or a scraper speaks it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server::HANGS;

/// An answer.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Page {
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Asks for a page, which must be there.
pub async fn get(address: SocketAddr, path: &str) -> Page {
    ask(address, "GET", path).await.expect("an answer")
}

/// Asks; an error if the connection is refused or breaks.
pub async fn ask(address: SocketAddr, method: &str, path: &str) -> std::io::Result<Page> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Ok(Page { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    };
    tokio::time::timeout(HANGS, asked).await.expect("the admin port hangs")
}

/// Asks for a page again and again until it is as `wanted`, and returns it.
pub async fn until(address: SocketAddr, path: &str, wanted: impl Fn(&Page) -> bool) -> Page {
    let mut last = None;
    let asked = async {
        loop {
            match ask(address, "GET", path).await {
                Ok(page) if wanted(&page) => return page,
                answer => last = Some(answer),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(HANGS, asked).await.ok();
    found.unwrap_or_else(|| panic!("{path} is never as wanted: {last:#?}"))
}
