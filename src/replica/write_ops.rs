//! Owns what is asked of a store's writer, and what it answers.
//!
//! Plain values; who waits for an answer, and how, is not known here.

use uuid::Uuid;

use crate::chain::frontier::SnapshotContent;
use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::logs;
use crate::chain::members::Membership;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::chain::vector::Head;

/// A checked message, ready to be written.
#[derive(Debug)]
pub struct NewMessage {
    /// Its id.
    pub id: Uuid,
    /// Digest of `content`.
    pub digest: Digest,
    /// The content bytes.
    pub content: Vec<u8>,
}

/// Records of one log from a peer, as they came.
#[derive(Debug, Clone)]
pub struct PeerRecords {
    /// The peer's head just before the first record: ours must have the same hash there.
    pub before: Head,
    /// The head that the peer claims for this log; checked if the records reach it.
    pub claimed: Option<Head>,
    /// The entries, ascending.
    pub entries: Vec<Entry>,
}

/// What is written of the node's own accord: what keeps logs whole, and milestones.
#[derive(Debug, Clone)]
pub enum Maintenance {
    /// Cut this log here: what it has from there on moves to branches.
    Cut(Origin, u64),
    /// Entries of peers that replace damaged ones here.
    Repair(Vec<Entry>),
    /// The chain's hash at a checkpoint that was found wrong, worked out anew.
    Checkpoint(Origin, u64, ChainHash),
    /// Put these milestones into the own log, so that cursors can refer to them. Where there is no room, it is not done.
    Snapshots(Vec<SnapshotContent>),
    /// Keep in mind who belongs to the network. Where there is no room, it is not done.
    Members(Membership),
}

/// What one commit will hold.
#[derive(Debug, Default)]
pub struct WriteOps<'a> {
    /// Done first: what follows is decided on whole logs.
    pub maintenance: Vec<&'a Maintenance>,
    /// Of clients, a slice for each request.
    pub sends: Vec<&'a [NewMessage]>,
    /// Of peers.
    pub admits: Vec<&'a PeerRecords>,
}

/// What became of a batch, in its order. All of it is on disk.
#[derive(Debug, Default)]
pub struct Committed {
    /// One outcome per message.
    pub sends: Vec<Vec<SendOutcome>>,
    /// One per run.
    pub admits: Vec<Admitted>,
    /// The logs have changed.
    pub changed: bool,
}

/// What became of a client's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    /// It is on disk here; `place` is that of its earliest copy.
    Stored {
        /// Where it stands.
        place: EntryKey,
        /// It was there before.
        duplicate: bool,
    },
    /// Nothing was stored.
    NotStored(Rejection),
}

/// Why a message or a run was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The id stands for other content here.
    Conflict,
    /// Too much waits already.
    Overloaded,
    /// The disk is nearly full.
    Full,
    /// A write or fsync failed, or the node is stopping.
    Failed,
}

/// What became of a peer's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Entries that are now on disk and were not before.
    pub new: u64,
    /// Why the rest of the run was refused, if it was.
    pub refused: Option<logs::AdmitError>,
    /// Why nothing of it could be stored.
    pub not_stored: Option<Rejection>,
}

/// What there is still room for on the disk.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Messages of clients.
    pub clients: bool,
    /// Entries of peers; more precious, hence refused later.
    pub peers: bool,
}

impl Space {
    /// For everything.
    pub const ALL: Space = Space { clients: true, peers: true };
}
