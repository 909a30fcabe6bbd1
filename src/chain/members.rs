//! Owns who belongs to a network, as one node knows it: the stores that ever took part, and the last address of each.
//!
//! A member is a store at a node. What a member says of itself in a later incarnation replaces what it said before,
//! whichever node passes it on, so all nodes reach the same members in whatever order they learn them. An address
//! belongs to one process: of two stores of one node at one address, the later incarnation stays. Clocks can be wrong,
//! so a node that learns of a later store at its own address raises its own incarnation id above it. A forgotten member
//! stays as a tombstone for its incarnation id: a member that speaks again is a member again, and one with an earlier
//! incarnation is not.

use std::collections::BTreeMap;

use super::bytes::ByteReader;

/// Members of a network, tombstones included. At the bound a new member takes the place of the oldest tombstone, else of
/// the oldest store of a node that has a later one. Without such a place it is not added: it is answered, but neither
/// listed nor asked.
pub const MEMBERS_MAX: usize = 256;

/// A store at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId {
    pub node_id: u16,
    pub store_id: [u8; 16],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its last incarnation. Later ones are larger.
    pub incarnation_id: [u8; 16],
    /// How often it was forgotten or came back during that incarnation: odd while it is forgotten.
    pub forget_count: u16,
    pub address: String,
}

impl Member {
    /// Whether an operator removed it.
    pub fn is_forgotten(&self) -> bool {
        self.forget_count % 2 == 1
    }

    fn rank(&self) -> ([u8; 16], u16, &str) {
        (self.incarnation_id, self.forget_count, &self.address)
    }
}

/// The first bytes of a hash over all members: enough to notice a difference.
pub type MembersDigest = [u8; 8];

/// All members, tombstones included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(BTreeMap<MemberId, Member>);

impl Members {
    /// Adds or updates a member. True if that changes anything.
    pub fn learn(&mut self, id: MemberId, member: Member) -> bool {
        let known = self.0.get(&id);
        if member.address.is_empty() || known.is_some_and(|known| known.rank() >= member.rank()) {
            return false;
        }
        let is_rival = |(other, known): &(&MemberId, &Member)| {
            other.node_id == id.node_id && **other != id && known.address == member.address
        };
        let rivals: Vec<(MemberId, bool)> = self
            .0
            .iter()
            .filter(is_rival)
            .map(|(other, known)| (*other, (known.incarnation_id, *other) < (member.incarnation_id, id)))
            .collect();
        if rivals.iter().any(|(_, is_older)| !is_older) {
            return false;
        }
        if known.is_none() && rivals.is_empty() && self.0.len() >= MEMBERS_MAX {
            let Some(other) = self.dispensable_for(id, &member) else { return false };
            self.0.remove(&other);
        }
        for (other, _) in rivals {
            self.0.remove(&other);
        }
        self.0.insert(id, member);
        true
    }

    /// The member whose place a new one takes in a full table. `None`: the new one is needed least itself, or all are
    /// needed. So a dropped member that a peer passes on does not come back.
    fn dispensable_for(&self, id: MemberId, member: &Member) -> Option<MemberId> {
        let all = || self.iter().chain([(id, member)]);
        let rank = |(id, member): (MemberId, &Member)| {
            let is_later = |(other, later): (MemberId, &Member)| {
                let is_of_node = other.node_id == id.node_id && !later.is_forgotten();
                is_of_node && (later.incarnation_id, other) > (member.incarnation_id, id)
            };
            let is_dispensable = member.is_forgotten() || all().any(is_later);
            is_dispensable.then_some((!member.is_forgotten(), member.incarnation_id, id))
        };
        let least = all().filter_map(rank).min()?.2;
        (least != id).then_some(least)
    }

    /// Drops a store, and other stores of its node at this address, where `drops` holds. True if there is one.
    pub fn drop_at(
        &mut self,
        of: MemberId,
        address: &str,
        drops: impl Fn(MemberId, &Member) -> bool,
    ) -> bool {
        let before = self.0.len();
        self.0.retain(|id, member| !(is_at(*id, member, of, address) && drops(*id, member)));
        self.0.len() < before
    }

    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.0.get(&id)
    }

    /// All of them, tombstones included, by node.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Member)> + '_ {
        self.0.iter().map(|(id, member)| (*id, member))
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Marks a member as forgotten or as back. True if that changes anything.
    pub fn set_forgotten(&mut self, id: MemberId, forgotten: bool) -> bool {
        match self.0.get_mut(&id) {
            Some(member) if member.is_forgotten() != forgotten && member.forget_count < u16::MAX => {
                member.forget_count += 1;
                true
            }
            _ => false,
        }
    }

    /// The hash that two nodes compare.
    pub fn digest(&self) -> MembersDigest {
        let mut bytes = Vec::new();
        self.iter().for_each(|(id, member)| put(&mut bytes, id, member));
        *blake3::hash(&bytes).as_bytes().first_chunk().expect("32 bytes have 8")
    }
}

/// The last incarnation id of a store, or of other stores of its node at its address.
pub fn latest<'a>(
    members: impl Iterator<Item = (MemberId, &'a Member)>,
    of: MemberId,
    address: &str,
) -> Option<[u8; 16]> {
    let found = members.filter(|(id, member)| is_at(*id, member, of, address));
    found.map(|(_, member)| member.incarnation_id).max()
}

/// Whether this is the store `of`, or another store of its node at this address.
fn is_at(id: MemberId, member: &Member, of: MemberId, address: &str) -> bool {
    id == of || (id.node_id == of.node_id && member.address == address)
}

/// The node last seen at each configured address. Not sent to other nodes.
pub type LastSeenAt = BTreeMap<String, u16>;

/// What a node stores of its network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    pub members: Members,
    pub last_seen_at: LastSeenAt,
}

impl FromIterator<(MemberId, Member)> for Members {
    fn from_iter<T: IntoIterator<Item = (MemberId, Member)>>(members: T) -> Self {
        let mut all = Members::default();
        for (id, member) in members {
            all.learn(id, member);
        }
        all
    }
}

/// Appends a member as it travels:
/// `node id u16 | store id 16 | incarnation id 16 | forget count u16 | length u8, address`.
pub fn put(out: &mut Vec<u8>, id: MemberId, member: &Member) {
    out.extend_from_slice(&id.node_id.to_be_bytes());
    out.extend_from_slice(&id.store_id);
    put_member(out, member);
}

/// Appends what is known of a member, without its id.
pub fn put_member(out: &mut Vec<u8>, member: &Member) {
    out.extend_from_slice(&member.incarnation_id);
    out.extend_from_slice(&member.forget_count.to_be_bytes());
    let address = &member.address.as_bytes()[..member.address.len().min(usize::from(u8::MAX))];
    out.push(u8::try_from(address.len()).expect("cut just now"));
    out.extend_from_slice(address);
}

/// Reads what [`put`] wrote.
pub(super) fn read(reader: &mut ByteReader<'_>) -> Option<(MemberId, Member)> {
    let id = MemberId { node_id: reader.u16()?, store_id: reader.array()? };
    Some((id, read_member(reader)?))
}

/// Reads what [`put_member`] wrote.
pub fn read_member(reader: &mut ByteReader<'_>) -> Option<Member> {
    let (incarnation_id, forget_count, length) = (reader.array()?, reader.u16()?, reader.u8()?);
    Some(Member { incarnation_id, forget_count, address: reader.str(length.into())?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(node_id: u16, store: u8) -> MemberId {
        MemberId { node_id, store_id: [store; 16] }
    }

    fn member(incarnation: u8, address: &str) -> Member {
        Member { incarnation_id: [incarnation; 16], forget_count: 0, address: address.into() }
    }

    fn rows(members: &Members) -> Vec<(u16, u8, u8, String)> {
        let row = |(id, member): (MemberId, &Member)| {
            (id.node_id, id.store_id[0], member.incarnation_id[0], member.address.clone())
        };
        members.iter().map(row).collect()
    }

    #[test]
    fn a_later_incarnation_replaces_what_was_known() {
        let mut members = Members::default();
        assert!(members.learn(id(1, 1), member(5, "a:1")));
        assert!(!members.learn(id(1, 1), member(4, "b:1")), "an older one");
        assert!(members.learn(id(1, 1), member(6, "b:1")), "it moved");
        assert_eq!(rows(&members), [(1, 1, 6, "b:1".into())]);
    }

    #[test]
    fn a_newer_store_replaces_the_earlier_one_at_its_address() {
        let mut members = Members::default();
        members.learn(id(1, 1), member(5, "a:1"));
        assert!(members.learn(id(1, 2), member(6, "a:1")));
        assert!(!members.learn(id(1, 1), member(5, "a:1")), "a peer still passes it on");
        assert!(members.learn(id(1, 3), member(4, "b:1")), "at another address it may be alive");
        assert!(
            members.learn(id(2, 4), member(1, "a:1")),
            "a store of another node is not a newer store of this one"
        );
        assert_eq!(members.count(), 3);
    }

    #[test]
    fn a_replaced_store_stays_replaced_when_its_successor_is_forgotten() {
        let mut members = Members::default();
        members.learn(id(1, 2), member(6, "a:1"));
        members.set_forgotten(id(1, 2), true);
        assert!(!members.learn(id(1, 1), member(5, "a:1")), "passed on by a peer that was away");
        assert!(members.learn(id(1, 3), member(7, "a:1")));
        assert_eq!(rows(&members), [(1, 3, 7, "a:1".into())]);
    }

    #[test]
    fn the_latest_incarnation_at_an_address_is_found() {
        let mut members = Members::default();
        members.learn(id(1, 1), member(5, "a:1"));
        members.learn(id(2, 2), member(8, "a:1"));
        members.learn(id(1, 3), member(9, "b:1"));
        let all = || members.iter();
        assert_eq!(latest(all(), id(1, 7), "a:1"), Some([5; 16]));
        assert_eq!(latest(all(), id(1, 3), "a:1"), Some([9; 16]), "its own count at every address");
        assert_eq!(latest(all(), id(4, 4), "a:1"), None);
    }

    #[test]
    fn a_member_stays_forgotten_until_its_next_incarnation() {
        let mut members = Members::default();
        members.learn(id(1, 1), member(5, "a:1"));
        assert!(members.set_forgotten(id(1, 1), true) && !members.set_forgotten(id(1, 1), true));
        assert!(!members.learn(id(1, 1), member(5, "a:1")), "the same incarnation");
        assert!(members.get(id(1, 1)).is_some_and(Member::is_forgotten));
        assert!(members.learn(id(1, 1), member(6, "a:1")));
        assert!(!members.get(id(1, 1)).is_some_and(Member::is_forgotten));
        assert!(members.set_forgotten(id(1, 1), true) && members.set_forgotten(id(1, 1), false));
        assert_eq!(
            members.get(id(1, 1)).map(|member| member.forget_count),
            Some(2),
            "it came back in the same incarnation"
        );
    }

    #[test]
    fn a_full_table_takes_no_new_member_and_updates_known_ones() {
        let mut members = Members::default();
        for node in 0..1_000 {
            members.learn(id(node, 1), member(1, &format!("a:{node}")));
        }
        assert_eq!(members.count(), MEMBERS_MAX);
        assert!(members.learn(id(3, 1), member(2, "b:1")), "a known member is updated");
    }

    #[test]
    fn a_full_table_takes_a_new_member_in_place_of_one_that_nobody_needs() {
        let numbered = |store: u8, node_id| MemberId { node_id, store_id: [store; 16] };
        let mut members = Members::default();
        for node in 0..100 {
            members.learn(numbered(0, node), member(9, &format!("a:{node}")));
        }
        for store in 1..=156 {
            members.learn(numbered(store, 100), member(store, &format!("b:{store}")));
        }
        assert_eq!(members.count(), MEMBERS_MAX);
        let first_store = members.get(numbered(1, 100)).cloned().expect("is known");
        assert!(members.learn(numbered(0, 101), member(1, "c:1")), "only the last store of a node is needed");
        assert_eq!(members.get(numbered(1, 100)), None);
        assert!(!members.learn(numbered(1, 100), first_store), "a peer still passes it on");
        assert!(members.set_forgotten(numbered(0, 7), true));
        assert!(members.learn(numbered(0, 102), member(1, "c:2")), "forgetting a node frees its place");
        assert_eq!((members.get(numbered(0, 7)), members.count()), (None, MEMBERS_MAX));
        assert!(members.get(numbered(2, 100)).is_some());
    }

    /// Frozen: a member on the wire and on disk. May be added to, never changed.
    #[test]
    fn the_bytes_of_a_member_are_frozen() {
        let mut bytes = Vec::new();
        let moved = Member { forget_count: 3, ..member(7, "127.0.0.1:8083") };
        put(&mut bytes, id(2, 9), &moved);
        assert_eq!(
            crate::chain::hex(&bytes),
            "0002090909090909090909090909090909090707070707070707070707070707070700030e3132372e302e302e313a38303833"
        );
        let mut reader = ByteReader::new(&bytes);
        assert_eq!(read(&mut reader).and_then(|member| reader.end(member)), Some((id(2, 9), moved)));
        assert_eq!(read(&mut ByteReader::new(&bytes[..bytes.len() - 1])), None);
    }

    proptest! {
        /// Two nodes that pass each other all members agree, whatever each had learned before and in which order.
        #[test]
        fn members_converge_in_any_order(statements in proptest::collection::vec((0..3_u16, 0..3_u8, 0..6_u8, 0..3_u16, 0..3_u8), 0..20), cut in 0..20_usize) {
            let statement = |(node, store, open, forgets, place): &(u16, u8, u8, u16, u8)| {
                // One incarnation has one address.
                let address = format!("h{}:{}", place, (open + store) % 2);
                (id(*node, *store), Member { forget_count: *forgets, ..member(*open, &address) })
            };
            let cut = cut.min(statements.len());
            let mut one: Members = statements[..cut].iter().map(statement).collect();
            let mut two: Members = statements[cut..].iter().map(statement).collect();
            for _ in 0..3 {
                let copy = one.clone();
                for (id, member) in copy.iter() {
                    two.learn(id, member.clone());
                }
                let copy = two.clone();
                for (id, member) in copy.iter() {
                    one.learn(id, member.clone());
                }
            }
            prop_assert_eq!(one.digest(), two.digest());
        }
    }
}
