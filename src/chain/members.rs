//! Owns who belongs to a network, as one node knows it: the stores that ever took part, and the last address of each.
//!
//! A member is a store at a node. What a member says of itself in a later run replaces what it said before, whichever
//! node passes it on, so all nodes reach the same members in whatever order they learn them. An address belongs to one
//! process: of two stores of one node at one address, the one opened later stays. Clocks can be wrong, so a node that
//! learns of a later store at its own address raises its own incarnation id above it. A forgotten member stays as a tombstone
//! for its incarnation id: a member that speaks again is a member again, and one that was opened before it is not.

use std::collections::BTreeMap;

use super::bytes::ByteReader;

/// Members of a network, tombstones included. At the bound a new member is not added: it is answered, but neither
/// listed nor asked.
pub const MEMBERS_MAX: usize = 256;

/// A store at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId {
    /// The node.
    pub node_id: u16,
    /// The store.
    pub store_id: [u8; 16],
}

/// What is known of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its last run. Later ones are larger.
    pub incarnation_id: [u8; 16],
    /// How often it was forgotten or came back during that run: odd while it is forgotten.
    pub forget_count: u16,
    /// Its address.
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
    pub fn learn(&mut self, name: MemberId, member: Member) -> bool {
        let known = self.0.get(&name);
        if member.address.is_empty() || known.is_some_and(|known| known.rank() >= member.rank()) {
            return false;
        }
        let is_rival = |(other, known): &(&MemberId, &Member)| {
            other.node_id == name.node_id && **other != name && known.address == member.address
        };
        let rivals: Vec<(MemberId, bool)> = self
            .0
            .iter()
            .filter(is_rival)
            .map(|(other, known)| (*other, (known.incarnation_id, *other) < (member.incarnation_id, name)))
            .collect();
        if rivals.iter().any(|(_, is_older)| !is_older) {
            return false;
        }
        if known.is_none() && rivals.is_empty() && self.0.len() >= MEMBERS_MAX {
            return false;
        }
        for (other, _) in rivals {
            self.0.remove(&other);
        }
        self.0.insert(name, member);
        true
    }

    /// What is known of a member.
    pub fn get(&self, name: MemberId) -> Option<&Member> {
        self.0.get(&name)
    }

    /// All of them, tombstones included, by node.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Member)> + '_ {
        self.0.iter().map(|(name, member)| (*name, member))
    }

    /// How many, tombstones included.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Marks a member as forgotten or as back. True if that changes anything.
    pub fn set_forgotten(&mut self, name: MemberId, forgotten: bool) -> bool {
        match self.0.get_mut(&name) {
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
        self.iter().for_each(|(name, member)| put(&mut bytes, name, member));
        *blake3::hash(&bytes).as_bytes().first_chunk().expect("32 bytes have 8")
    }
}

/// The last incarnation id of a store, or of other stores of its node at its address: a later one replaces them all.
pub fn latest<'a>(
    members: impl Iterator<Item = (MemberId, &'a Member)>,
    of: MemberId,
    address: &str,
) -> Option<[u8; 16]> {
    let is_place = |(name, member): &(MemberId, &Member)| {
        *name == of || (name.node_id == of.node_id && member.address == address)
    };
    members.filter(is_place).map(|(_, member)| member.incarnation_id).max()
}

/// The node last seen at each configured address. Not sent to other nodes.
pub type LastSeenAt = BTreeMap<String, u16>;

/// What a node stores of its network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// Who belongs to the network.
    pub members: Members,
    /// Who was where.
    pub last_seen_at: LastSeenAt,
}

impl FromIterator<(MemberId, Member)> for Members {
    fn from_iter<T: IntoIterator<Item = (MemberId, Member)>>(members: T) -> Self {
        let mut all = Members::default();
        for (name, member) in members {
            all.learn(name, member);
        }
        all
    }
}

/// Appends a member as it travels: `node id u16 | store id | opening | marks u16 | length u8, address`.
pub fn put(out: &mut Vec<u8>, name: MemberId, member: &Member) {
    out.extend_from_slice(&name.node_id.to_be_bytes());
    out.extend_from_slice(&name.store_id);
    put_member(out, member);
}

/// Appends what is known of a member, without its name.
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
    let (incarnation_id, marks, length) = (reader.array()?, reader.u16()?, reader.u8()?);
    Some(Member { incarnation_id, forget_count: marks, address: reader.str(length.into())?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(node_id: u16, store: u8) -> MemberId {
        MemberId { node_id, store_id: [store; 16] }
    }

    fn member(open: u8, address: &str) -> Member {
        Member { incarnation_id: [open; 16], forget_count: 0, address: address.into() }
    }

    fn said(members: &Members) -> Vec<(u16, u8, u8, String)> {
        let row = |(name, member): (MemberId, &Member)| {
            (name.node_id, name.store_id[0], member.incarnation_id[0], member.address.clone())
        };
        members.iter().map(row).collect()
    }

    #[test]
    fn the_newest_word_of_a_store_counts() {
        let mut members = Members::default();
        assert!(members.learn(name(1, 1), member(5, "a:1")));
        assert!(!members.learn(name(1, 1), member(4, "b:1")), "an older one");
        assert!(members.learn(name(1, 1), member(6, "b:1")), "it moved");
        assert_eq!(said(&members), [(1, 1, 6, "b:1".into())]);
    }

    #[test]
    fn a_newer_store_of_a_node_replaces_the_one_before_it_at_that_address() {
        let mut members = Members::default();
        members.learn(name(1, 1), member(5, "a:1"));
        assert!(members.learn(name(1, 2), member(6, "a:1")));
        assert!(!members.learn(name(1, 1), member(5, "a:1")), "which somebody else still tells");
        assert!(members.learn(name(1, 3), member(4, "b:1")), "elsewhere it may be alive");
        assert!(members.learn(name(2, 4), member(1, "a:1")), "another node is no newer store of this one");
        assert_eq!(members.count(), 3);
    }

    #[test]
    fn who_was_replaced_does_not_come_back_when_the_other_is_forgotten() {
        let mut members = Members::default();
        members.learn(name(1, 2), member(6, "a:1"));
        members.set_forgotten(name(1, 2), true);
        assert!(!members.learn(name(1, 1), member(5, "a:1")), "of somebody who was away all the time");
        assert!(members.learn(name(1, 3), member(7, "a:1")));
        assert_eq!(said(&members), [(1, 3, 7, "a:1".into())]);
    }

    #[test]
    fn the_latest_opening_at_a_place_is_found_whoever_it_was() {
        let mut members = Members::default();
        members.learn(name(1, 1), member(5, "a:1"));
        members.learn(name(2, 2), member(8, "a:1"));
        members.learn(name(1, 3), member(9, "b:1"));
        let all = || members.iter();
        assert_eq!(latest(all(), name(1, 7), "a:1"), Some([5; 16]));
        assert_eq!(
            latest(all(), name(1, 3), "a:1"),
            Some([9; 16]),
            "its own ones are its own wherever they were"
        );
        assert_eq!(latest(all(), name(4, 4), "a:1"), None);
    }

    #[test]
    fn a_mark_counts_until_the_member_speaks_again() {
        let mut members = Members::default();
        members.learn(name(1, 1), member(5, "a:1"));
        assert!(members.set_forgotten(name(1, 1), true) && !members.set_forgotten(name(1, 1), true));
        assert!(!members.learn(name(1, 1), member(5, "a:1")), "what was known when it was forgotten");
        assert!(members.get(name(1, 1)).is_some_and(Member::is_forgotten));
        assert!(members.learn(name(1, 1), member(6, "a:1")));
        assert!(!members.get(name(1, 1)).is_some_and(Member::is_forgotten));
        assert!(members.set_forgotten(name(1, 1), true) && members.set_forgotten(name(1, 1), false));
        assert_eq!(
            members.get(name(1, 1)).map(|member| member.forget_count),
            Some(2),
            "it was there all the time"
        );
    }

    #[test]
    fn no_more_are_taken_in_than_there_is_room_for() {
        let mut members = Members::default();
        for node in 0..1_000 {
            members.learn(name(node, 1), member(1, &format!("a:{node}")));
        }
        assert_eq!(members.count(), MEMBERS_MAX);
        assert!(members.learn(name(3, 1), member(2, "b:1")), "those that are known go on");
    }

    /// Frozen: how a member travels and is kept. May be added to, never changed.
    #[test]
    fn the_bytes_of_a_member_are_frozen() {
        let mut bytes = Vec::new();
        let moved = Member { forget_count: 3, ..member(7, "127.0.0.1:8083") };
        put(&mut bytes, name(2, 9), &moved);
        assert_eq!(
            crate::chain::hex(&bytes),
            "0002090909090909090909090909090909090707070707070707070707070707070700030e3132372e302e302e313a38303833"
        );
        let mut reader = ByteReader::new(&bytes);
        assert_eq!(read(&mut reader).and_then(|member| reader.end(member)), Some((name(2, 9), moved)));
        assert_eq!(read(&mut ByteReader::new(&bytes[..bytes.len() - 1])), None);
    }

    proptest! {
        /// Two that tell each other all they know agree, whatever each heard before and in whichever order.
        #[test]
        fn all_come_to_the_same(words in proptest::collection::vec((0..3_u16, 0..3_u8, 0..6_u8, 0..3_u16, 0..3_u8), 0..20), cut in 0..20_usize) {
            let word = |(node, store, open, marks, place): &(u16, u8, u8, u16, u8)| {
                // One opening has one address.
                let address = format!("h{}:{}", place, (open + store) % 2);
                (name(*node, *store), Member { forget_count: *marks, ..member(*open, &address) })
            };
            let cut = cut.min(words.len());
            let mut one: Members = words[..cut].iter().map(word).collect();
            let mut two: Members = words[cut..].iter().map(word).collect();
            for _ in 0..3 {
                let told = one.clone();
                for (name, member) in told.iter() {
                    two.learn(name, member.clone());
                }
                let told = two.clone();
                for (name, member) in told.iter() {
                    one.learn(name, member.clone());
                }
            }
            prop_assert_eq!(one.digest(), two.digest());
        }
    }
}
