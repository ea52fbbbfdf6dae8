//! tokio with nothing above it: one single-threaded runtime and one listener (SO_REUSEPORT) per thread, one task per
//! connection, and httparse.

use arena_peers::{Exchange, RECEIVE_BYTES, Tally};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const BACKLOG: u32 = 4096;

async fn converse(mut stream: TcpStream, tally: Arc<Tally>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = vec![0; RECEIVE_BYTES];
    let mut exchange = Exchange::default();
    loop {
        let length = stream.read(&mut received).await?;
        let stays_open = length > 0 && exchange.receive(&tally, &received[..length]);
        stream.write_all(&exchange.responses).await?;
        if !stays_open {
            return Ok(());
        }
        exchange.responses.clear();
    }
}

async fn listen(port: u16, tally: Arc<Tally>) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    let listener = socket.listen(BACKLOG)?;
    loop {
        // A connection that ends with an error concerns nobody else.
        let (stream, _) = listener.accept().await?;
        tokio::spawn(converse(stream, tally.clone()));
    }
}

fn serve(port: u16, tally: Arc<Tally>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    if let Err(error) = runtime.and_then(|runtime| runtime.block_on(listen(port, tally))) {
        eprintln!("tokio-httparse: {error}");
        std::process::exit(1);
    }
}

fn main() {
    arena_peers::on_each_thread(serve);
}
