//! A larger page cache while much is merged at once.
//!
//! Rows whose keys lie anywhere, as with UUIDv4, touch a page of each index of theirs. Once these indexes are larger than the cache,
//! SQLite writes a page out and reads another one for each row. What is staged of a catch-up is merged in one transaction, so the
//! cache can be larger for that long, and its memory is given back afterwards.

use litemesh_proto::SiteId;

use crate::core::Core;
use crate::staged;
use crate::statement::Handle;

/// Fewest staged changes that are worth it: fewer hardly fill the usual cache.
const CHANGES_MIN: u64 = 100_000;

/// Memory that SQLite may keep pages in meanwhile, in KiB.
const CACHE_KIB: i64 = 32 << 10;

/// Gives the connection its own size back when it is dropped.
pub(crate) struct LargerCache {
    db: Handle,
    before: i64,
}

impl LargerCache {
    /// For a merge of what is staged of `sender`, where that is much, and the cache is smaller.
    pub(crate) fn for_staged(core: &mut Core, sender: SiteId) -> rusqlite::Result<Option<Self>> {
        if staged::staged(core, sender)?.changes < CHANGES_MIN {
            return Ok(None);
        }
        let (db, pragma) = (core.db, "PRAGMA main.cache_size");
        // Negative: in KiB. The host may have set it in pages.
        let before = db.query_integer(pragma, &[])?.unwrap_or_default();
        let page_bytes = db.query_integer("PRAGMA main.page_size", &[])?.unwrap_or_default();
        let before_kib = if before < 0 { before.saturating_neg() } else { before.saturating_mul(page_bytes) >> 10 };
        if before_kib >= CACHE_KIB {
            return Ok(None);
        }
        db.execute(&format!("{pragma} = -{CACHE_KIB}"))?;
        Ok(Some(Self { db, before }))
    }
}

impl Drop for LargerCache {
    fn drop(&mut self) {
        // Otherwise it stays larger, which does no harm.
        let _ = self.db.execute(&format!("PRAGMA main.cache_size = {}", self.before));
    }
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{
        CausalLength, Change, ColVersion, Column, DbVersion, Incarnation, PackedKey, Position, Seq, Value,
    };

    use super::*;
    use crate::{Engine, Reach};

    const AUTHOR: SiteId = SiteId::from_bytes([7; 16]);

    fn change(id: i64) -> Change {
        Change {
            table: "t".into(),
            key: PackedKey::pack(&[Value::Integer(id)]).unwrap(),
            column: Column::from("v"),
            value: Value::Null,
            col_version: ColVersion::new(1),
            db_version: DbVersion::new(1),
            site: AUTHOR,
            causal_length: CausalLength::FIRST,
            seq: Seq::ZERO,
        }
    }

    #[test]
    fn the_cache_is_larger_for_much_and_for_no_longer() {
        let mut engine = Engine::open_in_memory().unwrap();
        let size = |engine: &Engine| -> i64 {
            engine.connection().query_row("PRAGMA cache_size", [], |row| row.get(0)).unwrap()
        };
        let usual = size(&engine);
        let larger = |engine: &Engine, of: SiteId| LargerCache::for_staged(&mut engine.core().unwrap(), of).unwrap();
        let until = Reach {
            position: Position { version: DbVersion::new(1), incarnation: Incarnation(1) },
            ..Reach::default()
        };
        let few = (CHANGES_MIN - 1) as i64;
        let changes: Vec<_> = (0..few).map(change).collect();
        engine.stage(AUTHOR, &Reach::default(), &until, &changes, u64::MAX).unwrap();
        assert!(larger(&engine, AUTHOR).is_none(), "too few");
        let end = Reach { position: Position { version: DbVersion::new(2), ..until.position }, ..Reach::default() };
        engine.stage(AUTHOR, &until, &end, &[change(few)], u64::MAX).unwrap();
        assert!(larger(&engine, SiteId::from_bytes([8; 16])).is_none(), "nothing of somebody else");
        for own in [usual, 500, -100] {
            engine.connection().pragma_update(None, "cache_size", own).unwrap();
            let cache = larger(&engine, AUTHOR);
            assert_eq!(size(&engine), -CACHE_KIB);
            drop(cache);
            assert_eq!(size(&engine), own);
        }
        for own in [-CACHE_KIB, 1 << 20] {
            engine.connection().pragma_update(None, "cache_size", own).unwrap();
            assert!(larger(&engine, AUTHOR).is_none(), "the host's is larger");
            assert_eq!(size(&engine), own);
        }
    }
}
