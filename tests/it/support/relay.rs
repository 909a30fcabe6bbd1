//! A bad link between two nodes: a TCP relay that is slow, delays, loses, cuts and swallows bytes, and counts them.
//!
//! Each end is configured with the relay's address of the other end and advertises its own, so every connection between
//! the two passes here. All connections of a direction share its rate, in turns of one segment. A connection begins
//! with a pause of one round trip, as its handshake takes.
//!
//! A lost segment is modeled as what TCP makes of it: its connection pauses for one retransmission timeout. The kernel's
//! own emulation (netem) is a module that test machines may lack, so no test uses it. The lost segments are evenly
//! spaced, so a short run loses the same share as a long one.
//!
//! The sockets of the relay have small buffers. Those of the two ends are their own affair, as on a real link.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// The payload of one TCP segment.
const SEGMENT_BYTES: u32 = 1_448;
/// Buffers of the relay's own sockets; the kernel doubles this.
const SOCKET_BYTES: u32 = 8 * 1024;
/// A direction that was idle may send this much time's worth of bytes at once, so late timers do not slow it down.
const BURST: Duration = Duration::from_millis(20);
/// The shortest retransmission timeout of TCP.
const RETRANSMISSION_MIN: Duration = Duration::from_millis(200);

/// What a link does to the bytes that pass.
#[derive(Debug, Clone, Copy)]
pub struct LinkSettings {
    /// Bytes per second in each direction.
    pub rate: u32,
    pub round_trip: Duration,
    /// Of 100 segments, this many are lost.
    pub loss: u64,
    /// A connection is reset once it has delivered this many bytes in one of its directions.
    pub cut_after: Option<u64>,
}

/// Whether a link carries anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Up,
    /// Connections are accepted and their bytes are swallowed, so no answer ever comes.
    HalfOpen,
    /// Connections are reset.
    Down,
}

/// A link between the ends 0 and 1. It ends when it is dropped.
pub struct Relay {
    addrs: [SocketAddr; 2],
    shared: Arc<Shared>,
    _runtime: Runtime,
}

struct Shared {
    settings: LinkSettings,
    rate: AtomicU32,
    condition: watch::Sender<Condition>,
    /// Index: the end that receives.
    directions: [Direction; 2],
}

/// One direction of the link, shared by all connections.
struct Direction {
    free_at: Mutex<Instant>,
    bytes: AtomicU64,
    segments: AtomicU64,
}

/// A segment on its way.
struct Segment {
    arrives: Instant,
    bytes: Vec<u8>,
    room: OwnedSemaphorePermit,
}

impl Relay {
    /// Starts a link between these ends, on which nothing need listen yet.
    pub fn start(settings: LinkSettings, ends: [SocketAddr; 2]) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let direction = || Direction {
            free_at: Mutex::new(Instant::now()),
            bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
        };
        let shared = Arc::new(Shared {
            settings,
            rate: AtomicU32::new(settings.rate),
            condition: watch::Sender::new(Condition::Up),
            directions: [direction(), direction()],
        });
        let entered = runtime.enter();
        let addrs = [0, 1].map(|toward| {
            let socket = small_socket().expect("a socket");
            socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
            let listener = socket.listen(64).expect("listening");
            let addr = listener.local_addr().expect("bound");
            runtime.spawn(accept(Arc::clone(&shared), listener, ends[toward], toward));
            addr
        });
        drop(entered);
        Relay { addrs, shared, _runtime: runtime }
    }

    /// The address at which the other end reaches this one.
    pub fn addr(&self, end: usize) -> SocketAddr {
        self.addrs[end]
    }

    /// Bytes that were sent toward this end so far, lost ones included.
    pub fn bytes_toward(&self, end: usize) -> u64 {
        self.shared.directions[end].bytes.load(Ordering::Relaxed)
    }

    /// Changes the rate of both directions.
    pub fn set_rate(&self, rate: u32) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    pub fn set_condition(&self, condition: Condition) {
        self.shared.condition.send_replace(condition);
    }
}

impl Shared {
    /// Waits until a segment of this many bytes has left for an end, and for its retransmission if it is lost.
    async fn send(&self, toward: usize, bytes: usize) {
        let direction = &self.directions[toward];
        direction.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let count = direction.segments.fetch_add(1, Ordering::Relaxed) + 1;
        let takes = Duration::from_secs(bytes as u64) / self.rate.load(Ordering::Relaxed);
        let left_at = {
            let mut free_at = direction.free_at.lock().expect("no task panics with the lock");
            *free_at = (*free_at).max(Instant::now() - BURST) + takes;
            *free_at
        };
        sleep_until(left_at).await;
        if count * self.settings.loss % 100 < self.settings.loss {
            sleep(RETRANSMISSION_MIN.max(self.settings.round_trip)).await;
        }
    }

    /// Bytes of one connection that are on their way at once: what the delay holds, and a little for the far socket.
    fn in_flight_max(&self) -> u32 {
        let delayed = self.settings.round_trip * self.rate.load(Ordering::Relaxed) / 2;
        u32::try_from(delayed.as_secs()).expect("a slow link") + 4 * SEGMENT_BYTES
    }
}

fn small_socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    SockRef::from(&socket).set_tcp_mss(SEGMENT_BYTES)?;
    Ok(socket)
}

/// Accepts connections toward an end. Accepted sockets inherit the listener's buffers.
async fn accept(shared: Arc<Shared>, listener: TcpListener, end: SocketAddr, toward: usize) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                running.spawn(relay(Arc::clone(&shared), stream, end, toward));
            },
            Some(_) = running.join_next() => {}
        }
    }
}

/// Relays one connection to its end, and resets both sides unless both close it in order.
async fn relay(shared: Arc<Shared>, mut near: TcpStream, end: SocketAddr, toward: usize) {
    let mut condition = shared.condition.subscribe();
    let down = condition.wait_for(|condition| *condition == Condition::Down);
    let mut far = None;
    let ended = tokio::select! {
        _ = down => Err(io::ErrorKind::ConnectionReset.into()),
        ended = pass(&shared, &mut near, &mut far, end, toward) => ended,
    };
    if ended.is_err() {
        for stream in [Some(near), far].into_iter().flatten() {
            // A close with pending bytes and no time to send them is a reset.
            drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        }
    }
}

async fn pass(
    shared: &Shared,
    near: &mut TcpStream,
    far: &mut Option<TcpStream>,
    end: SocketAddr,
    toward: usize,
) -> io::Result<()> {
    sleep(shared.settings.round_trip).await;
    let far = far.insert(small_socket()?.connect(end).await?);
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (from_near, to_near) = near.split();
    let (from_far, to_far) = far.split();
    let there = pump(shared, from_near, to_far, toward);
    let back = pump(shared, from_far, to_near, 1 - toward);
    tokio::try_join!(there, back).map(drop)
}

/// Carries the bytes of one direction of a connection. An error means that the connection is reset.
async fn pump(
    shared: &Shared,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    toward: usize,
) -> io::Result<()> {
    let room_bytes = shared.in_flight_max();
    let room = Arc::new(Semaphore::new(room_bytes as usize));
    let (departed, mut arriving) = mpsc::channel(room_bytes as usize);
    let depart = async move {
        let mut buffer = [0; SEGMENT_BYTES as usize];
        loop {
            let permits = Arc::clone(&room).acquire_many_owned(SEGMENT_BYTES).await;
            let mut permits = permits.expect("the semaphore is never closed");
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return io::Result::Ok(());
            }
            let room = permits.split(count).expect("at most one segment");
            drop(permits);
            shared.send(toward, count).await;
            if *shared.condition.borrow() == Condition::Up {
                let arrives = Instant::now() + shared.settings.round_trip / 2;
                let segment = Segment { arrives, bytes: buffer[..count].to_vec(), room };
                departed.send(segment).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
        }
    };
    let arrive = async move {
        let mut carried = 0;
        while let Some(Segment { arrives, bytes, room }) = arriving.recv().await {
            sleep_until(arrives).await;
            to.write_all(&bytes).await?;
            drop(room);
            carried += bytes.len() as u64;
            if shared.settings.cut_after.is_some_and(|most| carried >= most) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(depart, arrive).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::support::address::free_addr;
    use crate::support::eventually::eventually_blocking;
    use crate::support::plain_tcp;

    const FAST: LinkSettings =
        LinkSettings { rate: 400 * 1024, round_trip: Duration::from_millis(100), loss: 0, cut_after: None };
    const LONG: Duration = Duration::from_secs(20);

    /// A link to a server that sends back what it receives, and a connection through it.
    fn echo(settings: LinkSettings) -> (Relay, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let relay = Relay::start(settings, [free_addr(), listener.local_addr().expect("bound")]);
        let stream = TcpStream::connect(relay.addr(1)).expect("accepted");
        stream.set_read_timeout(Some(LONG)).expect("a socket");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mut from, mut to) = (&stream, &stream);
                drop(std::io::copy(&mut from, &mut to));
            }
        });
        (relay, stream)
    }

    #[test]
    fn bytes_arrive_unchanged_at_the_rate_and_after_the_round_trip() {
        let (relay, mut stream) = echo(FAST);
        let began = std::time::Instant::now();
        let sent: Vec<u8> = (0..200_000_u32).map(|i| i.to_be_bytes()[2] ^ i.to_be_bytes()[3]).collect();
        let mut received = vec![0; sent.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (&stream).write_all(&sent).expect("sent");
                stream.shutdown(std::net::Shutdown::Write).expect("open");
            });
            (&stream).read_exact(&mut received).expect("received");
        });
        assert!(received == sent);
        let took = began.elapsed();
        // The handshake, the way there and back, and 200,000 bytes at the rate.
        let least = FAST.round_trip * 2 + Duration::from_millis(450);
        assert!((least..least * 3).contains(&took), "{took:?}");
        assert_eq!([0, 1].map(|end| relay.bytes_toward(end)), [200_000; 2]);
        assert_eq!(stream.read(&mut [0]).expect("closed in order"), 0);
    }

    #[test]
    fn a_connection_is_reset_after_its_bytes() {
        let (_relay, mut stream) = echo(LinkSettings { cut_after: Some(8 * 1024), ..FAST });
        drop(stream.write_all(&[7; 16 * 1024]));
        let error = stream.read_to_end(&mut Vec::new()).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_half_open_link_swallows_and_a_link_that_is_down_resets() {
        let (relay, mut stream) = echo(FAST);
        relay.set_condition(Condition::HalfOpen);
        stream.write_all(&[7; 1_000]).expect("accepted");
        eventually_blocking(LONG, "its bytes", || relay.bytes_toward(1) == 1_000);
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
        assert_eq!(stream.read(&mut [0]).expect_err("silence").kind(), io::ErrorKind::WouldBlock);
        relay.set_condition(Condition::Down);
        stream.set_read_timeout(Some(LONG)).expect("a socket");
        assert_eq!(stream.read(&mut [0]).expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn plain_tcp_fills_a_link_and_loses_by_cuts_and_lost_segments_what_can_be_computed() {
        // A cut link: each connection takes two round trips to begin, and the time of its bytes.
        let cut_after = 100 * 1024;
        let of_a_cut = 100.0 / 400.0 / (100.0 / 400.0 + 0.2);
        // A link with losses: 20 segments in 71 ms, and a pause of 200 ms.
        let of_a_lossy = 0.071 / 0.271;
        for (settings, share) in [
            (FAST, 1.0),
            (LinkSettings { cut_after: Some(cut_after), ..FAST }, of_a_cut),
            (LinkSettings { loss: 5, ..FAST }, of_a_lossy),
        ] {
            let carried = plain_tcp::bytes_carried(settings, Duration::from_secs(3));
            let measured =
                f64::from(u32::try_from(carried).expect("a slow link")) / (3.0 * f64::from(settings.rate));
            assert!((share * 0.6..share * 1.1).contains(&measured), "{settings:?}: {measured} {share}");
        }
    }
}
