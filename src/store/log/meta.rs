//! Owns the table `meta` of `log.redb`: the layout of the file, the id of the store, and its network.
//!
//! Invariant: `check` covers the other rows. A file of an earlier program has no `check`.

use std::path::Path;

use redb::{ReadTransaction, TableDefinition, WriteTransaction};
use twox_hash::XxHash3_64;
use uuid::Uuid;

use super::super::{OpenError, StoreError, StoreId};
use super::{CHAIN, HEADS, malformed_table};
use crate::store::engine::catch_panic::open_if_exists;

/// The layout that this program reads. Another one is an error, not damage.
pub(super) const FORMAT: u32 = crate::chain::record::FORMAT as u32;

pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(in crate::store) struct Meta {
    format: u32,
    pub(super) id: StoreId,
    pub(super) network: String,
}

impl Meta {
    fn check(&self) -> [u8; 8] {
        let bytes = [&self.format.to_be_bytes(), self.id.0.as_slice(), self.network.as_bytes()].concat();
        XxHash3_64::oneshot(&bytes).to_be_bytes()
    }

    /// Fails unless this program may use the file for this network; `None`: for any network.
    pub(super) fn check_ours(&self, path: &Path, network: Option<&str>) -> Result<(), OpenError> {
        let path = path.to_owned();
        match network {
            _ if self.format != FORMAT => {
                Err(OpenError::OtherFormat { path, found: self.format, known: FORMAT })
            }
            Some(wanted) if self.network != wanted => {
                let (found, wanted) = (self.network.clone(), wanted.to_owned());
                Err(OpenError::OtherNetwork { path, found, wanted })
            }
            _ => Ok(()),
        }
    }
}

/// Reads the table; `None` if it is missing.
pub(super) fn read(tx: &ReadTransaction) -> Result<Option<Meta>, StoreError> {
    let Some(table) = open_if_exists(tx, META)? else { return Ok(None) };
    let read =
        |name| -> Result<Option<Vec<u8>>, StoreError> { Ok(table.get(name)?.map(|v| v.value().to_vec())) };
    let found = (read("format")?, read("store_id")?, read("network")?);
    let (Some(format), Some(id), Some(network)) = found else { return Err(malformed_table("meta")) };
    let (Ok(format), Ok(id), Ok(network)) = (format.try_into(), id.try_into(), String::from_utf8(network))
    else {
        return Err(malformed_table("meta"));
    };
    let meta = Meta { format: u32::from_be_bytes(format), id: StoreId(id), network };
    // Another program may compute another check: its file is refused, not salvaged.
    let check = read("check")?.filter(|_| meta.format == FORMAT);
    if check.is_some_and(|check| check != meta.check()) {
        return Err(malformed_table("meta"));
    }
    Ok(Some(meta))
}

/// Writes the table with a new store id. From then on the file is a log file of this network.
pub(in crate::store) fn write_new(tx: &WriteTransaction, network: &str) -> Result<Meta, StoreError> {
    let id = StoreId(Uuid::now_v7().into_bytes());
    let meta = Meta { format: FORMAT, id, network: network.to_owned() };
    let mut table = tx.open_table(META)?;
    table.insert("format", FORMAT.to_be_bytes().as_slice())?;
    table.insert("store_id", id.0.as_slice())?;
    table.insert("network", network.as_bytes())?;
    table.insert("check", meta.check().as_slice())?;
    drop(table);
    tx.open_table(HEADS)?;
    tx.open_table(CHAIN)?;
    Ok(meta)
}
