//! Owns the tables `members` and `met` of `log.redb`: the members of the network, and which node was last seen at each
//! configured address.
//!
//! A row of `members` is `(node id, store id) -> incarnation, forget count, address, check`; a row of `met` is
//! `address -> node id, check`. Both tables are small and are rewritten as a whole. They say nothing about messages: a
//! salvage drops them, a damaged row is skipped, and peers send the members again. A store without one of them is of an
//! earlier program, or has met no node.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::super::StoreError;
use super::{checked, with_check};
use crate::chain::bytes::ByteReader;
use crate::chain::members::{self, LastSeenAt, Member, MemberId, Members, Membership};
use crate::store::engine::catch_panic::{catch_panic, open_if_exists};

const MEMBERS: TableDefinition<(u16, [u8; 16]), &[u8]> = TableDefinition::new("members");

const MET: TableDefinition<&str, &[u8]> = TableDefinition::new("met");

pub(super) fn read(tx: &ReadTransaction) -> Result<Membership, StoreError> {
    let (mut members, mut met) = (Members::default(), LastSeenAt::new());
    if let Some(table) = open_if_exists(tx, MEMBERS)? {
        for row in table.iter()? {
            let (key, value) = row?;
            let (node_id, store_id) = key.value();
            let id = MemberId { node_id, store_id };
            if let Some(member) = decode(id, value.value()) {
                members.learn(id, member);
            } else {
                tracing::warn!(node_id, "a damaged row of the table `members` is skipped");
            }
        }
    }
    if let Some(table) = open_if_exists(tx, MET)? {
        for row in table.iter()? {
            let (key, value) = row?;
            let read = || {
                let address = key.value().to_owned(); // panics if it is not UTF-8
                Ok(decode_met(&address, value.value()).map(|node_id| (address, node_id)))
            };
            if let Ok(Some((address, node_id))) = catch_panic(read) {
                met.insert(address, node_id);
            } else {
                tracing::warn!("a damaged row of the table `met` is skipped");
            }
        }
    }
    Ok(Membership { members, last_seen_at: met })
}

/// Writes both tables anew: comparing a damaged key with another one may panic.
pub(super) fn write(tx: &WriteTransaction, membership: &Membership) -> Result<(), StoreError> {
    let Membership { members, last_seen_at: met } = membership;
    tx.delete_table(MEMBERS)?;
    let mut table = tx.open_table(MEMBERS)?;
    for (id, member) in members.iter() {
        table.insert((id.node_id, id.store_id), encode(id, member).as_slice())?;
    }
    drop(table);
    tx.delete_table(MET)?;
    let mut table = tx.open_table(MET)?;
    for (address, node_id) in met {
        table.insert(address.as_str(), encode_met(address, *node_id).as_slice())?;
    }
    Ok(())
}

fn key(id: MemberId) -> Vec<u8> {
    [&id.node_id.to_be_bytes()[..], &id.store_id].concat()
}

fn encode(id: MemberId, member: &Member) -> Vec<u8> {
    let mut row = Vec::new();
    members::put_member(&mut row, member);
    with_check(&key(id), row)
}

fn decode(id: MemberId, bytes: &[u8]) -> Option<Member> {
    let mut reader = ByteReader::new(checked(&key(id), bytes)?);
    let member = members::read_member(&mut reader)?;
    reader.end(member)
}

fn encode_met(address: &str, node_id: u16) -> Vec<u8> {
    with_check(address.as_bytes(), node_id.to_be_bytes().to_vec())
}

fn decode_met(address: &str, bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(checked(address.as_bytes(), bytes)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase, ReadableTableMetadata};

    use super::*;
    use crate::store::Store;
    use crate::store::log::WriteBatch;

    #[test]
    fn damaged_rows_are_skipped_and_the_log_is_not_salvaged() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (one, two) =
            (MemberId { node_id: 1, store_id: [1; 16] }, MemberId { node_id: 2, store_id: [2; 16] });
        let member = Member { incarnation_id: [7; 16], forget_count: 0, address: "127.0.0.1:8082".into() };
        let (store, logs) = Store::open(dir.path(), "test", 0).expect("opens");
        let tx = store.log().db.begin_write().expect("begins");
        {
            let mut table = tx.open_table(MEMBERS).expect("opens");
            for id in [one, two] {
                table.insert((id.node_id, id.store_id), encode(one, &member).as_slice()).expect("inserts");
            }
            let mut table = tx.open_table(MET).expect("opens");
            for address in ["127.0.0.1:8082", "127.0.0.1:8083"] {
                table.insert(address, encode_met("127.0.0.1:8082", 1).as_slice()).expect("inserts");
            }
        }
        tx.commit().expect("commits");
        drop((store, logs));
        let (store, logs) = Store::open(dir.path(), "test", 0).expect("opens");
        assert_eq!(store.recovery(), None);
        let membership = store.log().membership();
        assert_eq!(membership.members.iter().map(|(id, _)| id).collect::<Vec<_>>(), [one]);
        assert_eq!(membership.last_seen_at, LastSeenAt::from([("127.0.0.1:8082".to_owned(), 1)]));
        let members = Some(membership.clone());
        store.commit(WriteBatch { members, ..WriteBatch::default() }, &logs).expect("commits");
        let tx = store.log().db.begin_read().expect("begins");
        let rows = (tx.open_table(MEMBERS).expect("opens").len(), tx.open_table(MET).expect("opens").len());
        assert_eq!((rows.0.expect("counts"), rows.1.expect("counts")), (1, 1), "damaged rows are removed");
    }

    /// Frozen: a row of `members` in format 1. May be added to, never changed.
    #[test]
    fn a_row_of_members_in_format_1_is_frozen() {
        let name = MemberId { node_id: 2, store_id: [9; 16] };
        let member = Member { incarnation_id: [7; 16], forget_count: 1, address: "127.0.0.1:8083".into() };
        let row = encode(name, &member);
        assert_eq!(decode(name, &row), Some(member));
        assert_eq!(decode(MemberId { node_id: 3, ..name }, &row), None, "a row belongs to its member");
        assert_eq!(
            crate::chain::hex(&row),
            "0707070707070707070707070707070700010e3132372e302e302e313a38303833013e993785f0908f"
        );
    }

    /// Frozen: a row of `met` in format 1. May be added to, never changed.
    #[test]
    fn a_row_of_met_in_format_1_is_frozen() {
        let row = encode_met("127.0.0.1:8083", 2);
        assert_eq!(decode_met("127.0.0.1:8083", &row), Some(2));
        assert_eq!(decode_met("127.0.0.1:8084", &row), None, "a row belongs to its address");
        assert_eq!(crate::chain::hex(&row), "0002da3d565c6df848e6");
    }
}
