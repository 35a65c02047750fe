//! Connections that say nothing, and more of them than there are files.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::support::server::HANGS;

#[tokio::test]
async fn silent_sockets() {
    let scene = Scene::new().await;
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(scene.address()).await.unwrap());
        let mut half = TcpStream::connect(scene.address()).await.unwrap();
        half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        sockets.push(half);
        let mut mute = TcpStream::connect(scene.address()).await.unwrap();
        mute.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        sockets.push(mute);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.end(LITTLE).await;
}

/// A shell's usual limit is far below the server's own, for the sake of programs of another age.
#[tokio::test]
async fn a_low_limit_of_files_is_raised_as_far_as_the_system_lets() {
    let server = ServerProcess::start_with_files("memory:", 64);
    let mut clients = Vec::new();
    for number in 0..100 {
        let opening = async {
            let mut client = server::client(server.address()).await;
            client.begin(begin(&format!("file-{number}"))).await.expect("a claim");
            client
        };
        clients.push(tokio::time::timeout(HANGS, opening).await.expect("no files are left"));
    }
}
