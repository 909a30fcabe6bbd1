//! Addresses for real processes, which must know their port before they start and keep it over a restart.
//!
//! All of 127.0.0.0/8 is loopback on Linux, so every caller gets an IP address of its own and may use every port on it
//! except `CLAIM_PORT`. A claim is a listener on that port, held until the test process ends, so no two tests, in this
//! process or another, get the same address. In-process tests do not need this module: they bind port 0.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// The port that claims an IP address. Like all ports here it is below the kernel's ephemeral ports.
const CLAIM_PORT: u16 = 7999;
const FREE_PORT: u16 = 7000;
/// The number of consecutive ports that `free_base_port` reserves.
pub const UP_PORTS: u16 = 9;
/// The range that `free_base_port` searches.
const UP_PORT_FIRST: u16 = 10_000;
const UP_PORT_LAST: u16 = 30_000;

static CLAIMS: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A loopback IP address that no other test uses while this process lives.
pub fn free_ip() -> Ipv4Addr {
    loop {
        let ip = candidate(std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        match TcpListener::bind((ip, CLAIM_PORT)) {
            Ok(claim) => {
                CLAIMS.lock().expect("no claim panics").push(claim);
                return ip;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(e) => panic!("cannot bind the loopback address {ip}: {e}"),
        }
    }
}

/// An address on which nothing listens and which no other test gets.
pub fn free_addr() -> SocketAddr {
    (free_ip(), FREE_PORT).into()
}

/// The first of `UP_PORTS` consecutive free ports on 127.0.0.1, for `chatchain up`.
pub fn free_base_port() -> u16 {
    loop {
        let step = std::process::id().wrapping_mul(7).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let steps = (UP_PORT_LAST - UP_PORT_FIRST) / (UP_PORTS + 1);
        let step = u16::try_from(step % u32::from(steps)).expect("below steps");
        let base = UP_PORT_FIRST + step * (UP_PORTS + 1);
        // The claim is the port after the last one, which is never given out.
        let claim = TcpListener::bind((Ipv4Addr::LOCALHOST, base + UP_PORTS));
        let free =
            || (base..base + UP_PORTS).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
        if let Ok(claim) = claim
            && free()
        {
            CLAIMS.lock().expect("no claim panics").push(claim);
            return base;
        }
    }
}

/// Processes start far apart in 127.0.0.0/8, so that they rarely try the same address. Never 127.0.0.x, which the
/// machine's other programs use.
fn candidate(pid: u32, count: u32) -> Ipv4Addr {
    let [_, a, b, c] = (pid.wrapping_mul(0x9E37_79B1) >> 8).wrapping_add(count).to_be_bytes();
    Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254))
}

/// An address where a connection is neither accepted nor refused, as on a host that is gone.
pub struct Blackhole {
    pub addr: SocketAddr,
    /// The accept queue of this listener stays full, so the kernel drops every further connection attempt.
    _held: (tokio::net::TcpListener, tokio::runtime::Runtime, Vec<std::net::TcpStream>),
}

impl Blackhole {
    pub fn open() -> Self {
        use std::time::Duration;
        let addr = free_addr();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let entered = runtime.enter();
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(addr).expect("a free address");
        let listener = socket.listen(0).expect("listening");
        drop(entered);
        let connect = || std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(100));
        let queued = std::iter::from_fn(|| connect().ok()).take(8).collect();
        assert!(connect().is_err(), "this kernel answers although the queue is full");
        Blackhole { addr, _held: (listener, runtime, queued) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::TcpStream;
    use std::time::Duration;

    #[test]
    fn every_caller_gets_an_address_of_its_own_that_can_be_bound() {
        let addrs: Vec<SocketAddr> = (0..50).map(|_| free_addr()).collect();
        assert_eq!(addrs.iter().collect::<HashSet<_>>().len(), 50);
        for addr in addrs {
            let first = TcpListener::bind(addr).expect("free");
            TcpStream::connect(addr).expect("reachable");
            drop(first);
            TcpListener::bind(addr).expect("free again, as for a restarted process");
        }
    }

    #[test]
    fn an_ip_claimed_by_another_process_is_skipped() {
        let next = NEXT.load(Ordering::Relaxed);
        let soon: Vec<_> = (next..next + 20).map(|count| candidate(std::process::id(), count)).collect();
        let claims: Vec<_> = soon.iter().filter_map(|ip| TcpListener::bind((*ip, CLAIM_PORT)).ok()).collect();
        let ip = free_ip();
        assert!(claims.iter().all(|claim| claim.local_addr().expect("bound").ip() != ip));
    }

    #[test]
    fn a_blackhole_neither_accepts_nor_refuses() {
        let hole = Blackhole::open();
        let error = TcpStream::connect_timeout(&hole.addr, Duration::from_millis(50)).expect_err("silence");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }

    #[test]
    fn base_ports_do_not_overlap() {
        let (one, two) = (free_base_port(), free_base_port());
        assert!(one.abs_diff(two) >= UP_PORTS, "{one} {two}");
    }

    #[test]
    fn candidates_avoid_127_0_0_x() {
        for pid in 0..10_000 {
            let [first, second, _, last] = candidate(pid, pid % 7).octets();
            assert_eq!(first, 127);
            assert!((1..=254).contains(&second) && (1..=254).contains(&last));
        }
    }
}
