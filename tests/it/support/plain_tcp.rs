//! What plain TCP carries over a bad link: the measure for an exchange over the same link.
//!
//! The sender writes without a pause. After a cut it connects again, and goes on where the receiver says it is. So it
//! loses what was on its way and the time to connect, and nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::address::free_addr;
use super::eventually::eventually_blocking;
use super::relay::{LinkSettings, Relay};

/// Bytes that reach the receiver in this time.
pub fn bytes_carried(settings: LinkSettings, time: Duration) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let to = listener.local_addr().expect("bound");
    let (received, ended) = (&AtomicU64::new(0), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let relay = Relay::start(settings, [free_addr(), to]);
        let via = relay.addr(1);
        scope.spawn(|| receive(&listener, received, ended));
        scope.spawn(move || send(via, ended));
        let began = Instant::now();
        eventually_blocking(time * 2, "the end of the measure", || began.elapsed() >= time);
        let carried = received.load(Ordering::SeqCst);
        ended.store(true, Ordering::SeqCst);
        drop(relay);
        drop(TcpStream::connect(to)); // ends a receiver that waits for a connection
        carried
    })
}

/// Says where it is at the begin of each connection, and counts what follows.
fn receive(listener: &TcpListener, received: &AtomicU64, ended: &AtomicBool) {
    let mut buffer = [0; 16 * 1024];
    while !ended.load(Ordering::SeqCst) {
        let (mut stream, _) = listener.accept().expect("a connection");
        if stream.write_all(&received.load(Ordering::SeqCst).to_be_bytes()).is_err() {
            continue;
        }
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            received.fetch_add(count as u64, Ordering::SeqCst);
        }
    }
}

/// All bytes are alike, so the place where the receiver is only has to be awaited.
fn send(via: SocketAddr, ended: &AtomicBool) {
    let piece = [7; 16 * 1024];
    while !ended.load(Ordering::SeqCst) {
        let Ok(mut stream) = TcpStream::connect(via) else { continue };
        if stream.read_exact(&mut [0; 8]).is_ok() {
            while stream.write_all(&piece).is_ok() {}
        }
    }
}
