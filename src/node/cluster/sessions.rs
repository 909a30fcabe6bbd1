//! Owns what is kept between exchanges: for each peer the responder, and for each log the peer that is asked for it.
//!
//! Both are bounded whatever peers send. A responder that is dropped costs its peer one full vector, and a dropped
//! claim on a log costs one repeated request.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::chain::ids::Origin;
use crate::chain::sync::Responder;
use crate::chain::sync::wire::{Hello, Incarnation};
use crate::chain::vector::Vector;

/// Peers whose answering side is kept. At the bound the one unused for longest is dropped, and its peer sends its full
/// vector again.
const SESSIONS_MAX: usize = 256;
/// Heads that all of them keep together; beyond it they are dropped as above. The bound limits the memory that peers
/// can take by claiming logs that do not exist to some 100 MB, and is far above what honest peers need.
const SESSION_HEADS_MAX: usize = 1 << 20;
/// A log is asked of one peer alone for this long. Then any other peer may be asked for it.
const CLAIM_TIME: Duration = Duration::from_secs(5);
/// If the link to a peer carries this many times as much, the peer is asked for a log although another peer is asked
/// for it.
const MUCH_FASTER: u64 = 4;
/// A peer whose link is not known is tried once another one has been asked for a log for this long.
const TRIAL_AFTER: Duration = Duration::from_secs(1);

/// A peer that is asked for a log.
struct Claim {
    /// Its number.
    peer: usize,
    /// When it was asked first, and when last.
    began: Instant,
    since: Instant,
    /// Bytes per second that its link carries; 0 if that is not known.
    rate: u64,
    /// It has answered.
    is_released: bool,
}

#[derive(Default)]
pub struct SyncSessions {
    responders: HashMap<Incarnation, (Responder, Instant)>,
    claims: HashMap<Origin, Claim>,
}

impl SyncSessions {
    /// Takes the answering side of a peer's exchanges, a new one if there is none. [`SyncSessions::put_back`] returns
    /// it.
    pub fn take(&mut self, hello: &Hello) -> Responder {
        let key = hello.incarnation();
        self.responders.remove(&key).map(|(responder, _)| responder).unwrap_or_default()
    }

    /// Keeps the answering side for the peer's next request.
    pub fn put_back(&mut self, hello: &Hello, responder: Responder) {
        let heads = |responder: &Responder| responder.theirs().map_or(0, Vector::origins);
        let kept = self.responders.values().map(|(responder, _)| heads(responder));
        let mut sum = heads(&responder) + kept.sum::<usize>();
        while self.responders.len() >= SESSIONS_MAX
            || (sum > SESSION_HEADS_MAX && !self.responders.is_empty())
        {
            let oldest = self.responders.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            let dropped = oldest.and_then(|key| self.responders.remove(&key));
            sum -= dropped.map_or(0, |(responder, _)| heads(&responder));
        }
        self.responders.insert(hello.incarnation(), (responder, Instant::now()));
    }

    /// Whether this peer may be asked for a log now. If so, no other one is asked for it for a while, unless its link
    /// is much faster. `rate`: bytes per second that this one's link carries.
    pub fn claim(&mut self, origin: Origin, peer: usize, rate: u64) -> bool {
        let now = Instant::now();
        let is_slow = |claim: &Claim| match rate {
            0 => claim.began.elapsed() > TRIAL_AFTER,
            rate => rate > MUCH_FASTER.saturating_mul(claim.rate),
        };
        let mut began = now;
        if let Some(claim) = self.claims.get(&origin).filter(|claim| claim.since.elapsed() < CLAIM_TIME) {
            if claim.peer == peer {
                began = claim.began;
            } else if !claim.is_released && !is_slow(claim) {
                return false;
            }
        }
        self.claims.insert(origin, Claim { peer, began, since: now, rate, is_released: false });
        true
    }

    /// The peer answers: its claims begin again.
    pub fn renew(&mut self, peer: usize) {
        let of_peer = self.claims.values_mut().filter(|claim| claim.peer == peer);
        of_peer.for_each(|claim| claim.since = Instant::now());
    }

    /// The exchange with this peer is over: others may be asked for its logs.
    pub fn release(&mut self, peer: usize) {
        self.claims.retain(|_, claim| {
            claim.is_released |= claim.peer == peer;
            claim.since.elapsed() < CLAIM_TIME
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::ChainHash;
    use crate::chain::kind::LogType;
    use crate::chain::sync::wire::{Heads, SyncMessage, short};
    use crate::chain::vector::{Head, LogSpan};

    #[test]
    fn sessions_keep_a_bounded_number_of_heads_together() {
        let head = Head { seq: 1, hash: ChainHash([1; 32]) };
        let name = |n: u32| Origin([n.to_be_bytes(); 4].concat().try_into().expect("16 bytes"));
        let count = u32::try_from(SESSION_HEADS_MAX / 8).expect("fits");
        let span = |n| (name(n), LogSpan::whole(name(n), LogType::MESSAGES, head));
        let heads = Heads { base: None, changes: (0..count).map(span).collect(), cuts: Vec::new() };
        let mut vector = Vector::default();
        heads.changes.iter().for_each(|(origin, span)| vector.insert(*origin, *span));
        let address = "127.0.0.1:2".to_owned();
        let mut hello = Hello {
            network: [0; 8],
            node_id: 2,
            store_id: [0; 16],
            incarnation_id: [0; 16],
            address,
            is_guest: false,
        };
        let request = SyncMessage {
            heads: Some(heads),
            ..SyncMessage::quiet(hello.clone(), short(vector.digest()), 0)
        };
        let mut responder = Responder::default();
        responder.on_request(&Vector::default(), &request);
        let mut sessions = SyncSessions::default();
        for n in 0..20 {
            hello.store_id = [n; 16];
            sessions.put_back(&hello, responder.clone());
        }
        assert_eq!(sessions.responders.len(), 8);
    }
}
