//! Owns the table `members` of `log.redb`: who belongs to the network, as this store heard last.
//!
//! A row is `(node id, store id) -> opening, marks, address, check`. The table is written as a whole, which is short and
//! seldom. It is no part of the truth about messages: a salvage forgets it, and peers bring it back.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use twox_hash::XxHash3_64;

use super::super::Error;
use super::not_ours;
use crate::chain::members::{self, Member, Members, Name};

const MEMBERS: TableDefinition<(u16, [u8; 16]), &[u8]> = TableDefinition::new("members");

/// All that are there.
pub(super) fn read(db: &Database) -> Result<Members, Error> {
    let table = match db.begin_read()?.open_table(MEMBERS) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Members::default()), // of a store without peers
        table => table?,
    };
    let mut all = Members::default();
    for row in table.iter()? {
        let (key, value) = row?;
        let (node_id, store_id) = key.value();
        let name = Name { node_id, store_id };
        let member = decode(name, value.value()).ok_or_else(|| not_ours("members"))?;
        all.take(name, member);
    }
    Ok(all)
}

/// Writes all of them, and no others.
pub(super) fn write(tx: &WriteTransaction, all: &Members) -> Result<(), Error> {
    let mut table = tx.open_table(MEMBERS)?;
    table.retain(|(node_id, store_id), _| all.get(Name { node_id, store_id }).is_some())?;
    for (name, member) in all.iter() {
        table.insert((name.node_id, name.store_id), encode(name, member).as_slice())?;
    }
    Ok(())
}

fn check(name: Name, bytes: &[u8]) -> [u8; 8] {
    let key = [&name.node_id.to_be_bytes()[..], &name.store_id].concat();
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&key), bytes).to_be_bytes()
}

fn encode(name: Name, member: &Member) -> Vec<u8> {
    let mut out = Vec::new();
    members::put_member(&mut out, member);
    let check = check(name, &out);
    out.extend_from_slice(&check);
    out
}

fn decode(name: Name, bytes: &[u8]) -> Option<Member> {
    let (member, rest) = members::read_member(bytes)?;
    let body = &bytes[..bytes.len() - rest.len()];
    (rest == check(name, body)).then_some(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: a row of `members` in format 1. May be added to, never changed.
    #[test]
    fn a_row_of_members_in_format_1_is_frozen() {
        let name = Name { node_id: 2, store_id: [9; 16] };
        let member = Member { open_id: [7; 16], marks: 1, address: "127.0.0.1:8083".into() };
        let row = encode(name, &member);
        assert_eq!(decode(name, &row), Some(member));
        assert_eq!(decode(Name { node_id: 3, ..name }, &row), None, "a row belongs to its member");
        assert_eq!(
            crate::chain::hex(&row),
            "0707070707070707070707070707070700010e3132372e302e302e313a38303833013e993785f0908f"
        );
    }
}
