//! Owns what the committer is asked to write, and what it answers.
//!
//! Plain values. Who waits for an answer, and how, is not known here.

use uuid::Uuid;

use crate::chain::frontier::SnapshotContent;
use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::logs;
use crate::chain::members::Membership;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::chain::vector::Head;

/// A checked message of a client, encoded.
#[derive(Debug)]
pub struct NewMessage {
    pub id: Uuid,
    pub digest: Digest,
    pub content: Vec<u8>,
}

/// A piece of a run from a peer.
#[derive(Debug, Clone)]
pub struct PeerRecords {
    /// The peer's head just before the first entry: our chain must have the same hash there.
    pub before: Head,
    /// The head that the peer claims for this log; compared if the entries reach it.
    pub claimed: Option<Head>,
    /// The peer, by its number, that answered at its address that it appends to this log itself.
    pub owner: Option<usize>,
    pub entries: Vec<Entry>,
}

/// What a node writes without a client: repairs and cuts of logs, snapshots and members.
#[derive(Debug, Clone)]
pub enum Maintenance {
    /// Cut this log before this seq: the entries from there on move to branches.
    Cut(Origin, u64),
    /// The same on the word of a peer, which has cut that log.
    ClaimedCut(Origin, u64),
    /// If this is the own log, the next message begins another one: an entry of it is damaged and not repaired in time.
    Abandon(Origin),
    /// Entries of peers that replace damaged ones here.
    Repair(Vec<Entry>),
    /// The right hash for a checkpoint of the chain that was found wrong.
    Checkpoint(Origin, u64, ChainHash),
    /// Append these frontier snapshots to the own log, so that cursors can refer to them. Skipped if the disk is nearly
    /// full.
    Snapshots(Vec<SnapshotContent>),
    /// Store the membership. Skipped if the disk is nearly full.
    Members(Membership),
}

impl Maintenance {
    /// Whether it is skipped while the disk has no space for entries of peers.
    pub fn needs_space(&self) -> bool {
        !matches!(self, Maintenance::Cut(..) | Maintenance::ClaimedCut(..) | Maintenance::Abandon(_))
    }
}

/// What the committer is asked for: the input of one commit, before anything is decided.
#[derive(Debug, Default)]
pub struct WriteOps<'a> {
    /// Done first, so that the rest is decided on repaired logs.
    pub maintenance: Vec<&'a Maintenance>,
    /// Messages of clients, one slice per request.
    pub sends: Vec<&'a [NewMessage]>,
    /// Entries of peers, one per piece of a run.
    pub admits: Vec<&'a PeerRecords>,
}

/// The outcomes of a batch, in its order. All of it is on disk.
#[derive(Debug, Default)]
pub struct Committed {
    pub sends: Vec<Vec<SendOutcome>>,
    pub admits: Vec<Admitted>,
    pub changed: bool,
}

/// The outcome of a client's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    /// It is on disk here; `key` is that of its earliest intact copy, `duplicate` if it was stored before.
    Stored {
        key: EntryKey,
        duplicate: bool,
    },
    NotStored(Rejection),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The id has other content here.
    Conflict,
    /// Too much waits in the inbox.
    Overloaded,
    Full,
    /// A write or fsync failed, or the node is stopping.
    Failed,
}

/// The outcome of a peer's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Entries that are now on disk and were not before.
    pub new: u64,
    /// Why the rest of the run was refused, if it was.
    pub refused: Option<logs::AdmitError>,
    /// Why nothing of it could be stored.
    pub not_stored: Option<Rejection>,
}

/// What the disk has space for.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    pub clients: bool,
    /// Entries of peers; refused later than messages of clients, because another node has acknowledged them.
    pub peers: bool,
}

impl Space {
    pub const ALL: Space = Space { clients: true, peers: true };
}
