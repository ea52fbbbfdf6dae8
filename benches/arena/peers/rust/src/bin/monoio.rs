//! monoio as its users write it: one io_uring runtime and one listener (SO_REUSEPORT) per thread, one task per
//! connection, buffers that the kernel owns while it fills them, and httparse.

use arena_peers::{Exchange, RECEIVE_BYTES, Tally};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};
use std::io;
use std::sync::Arc;

const BACKLOG: i32 = 4096;
const ENTRIES: u32 = 4096;

async fn converse(mut stream: TcpStream, tally: Arc<Tally>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(RECEIVE_BYTES);
    let mut exchange = Exchange::default();
    loop {
        let length;
        (length, received) = stream.read(received).await;
        let stays_open = length? > 0 && exchange.receive(&tally, &received);
        let (sent, responses) = stream.write_all(std::mem::take(&mut exchange.responses)).await;
        sent?;
        if !stays_open {
            return Ok(());
        }
        exchange.responses = responses;
        exchange.responses.clear();
        received.clear();
    }
}

async fn listen(port: u16, tally: Arc<Tally>) -> io::Result<()> {
    let options = ListenerOpts::new().reuse_addr(true).reuse_port(true).backlog(BACKLOG);
    let listener = TcpListener::bind_with_config(("127.0.0.1", port), &options)?;
    loop {
        // A connection that ends with an error concerns nobody else.
        let (stream, _) = listener.accept().await?;
        monoio::spawn(converse(stream, tally.clone()));
    }
}

fn serve(port: u16, tally: Arc<Tally>) {
    let runtime = RuntimeBuilder::<IoUringDriver>::new().with_entries(ENTRIES).build();
    if let Err(error) = runtime.and_then(|mut runtime| runtime.block_on(listen(port, tally))) {
        eprintln!("monoio: {error}");
        std::process::exit(1);
    }
}

fn main() {
    arena_peers::on_each_thread(serve);
}
