//! What the sender of a `hello` lets its receiver do.

use super::reader::Reader;
use super::writer::Writer;
use crate::limits::ACCESS_TABLES_MAX;
use crate::{Access, DecodeError, Rights};

const READ_WRITE: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;

pub(super) fn write_access(out: &mut Writer, access: &Access) {
    out.byte(match access.rights() {
        Rights::ReadWrite => READ_WRITE,
        Rights::Read => READ,
        Rights::Write => WRITE,
    });
    // One more than there are: no list is 0, an empty one 1.
    let Some(tables) = access.tables() else { return out.unsigned(0) };
    out.unsigned(tables.len() as u64 + 1);
    for table in tables {
        out.unsigned(table.len() as u64);
        out.bytes(table.as_bytes());
    }
}

pub(super) fn read_access(from: &mut Reader<'_>) -> Result<Access, DecodeError> {
    let access = Access::new(match from.byte()? {
        READ_WRITE => Rights::ReadWrite,
        READ => Rights::Read,
        WRITE => Rights::Write,
        _ => return Err(WRONG),
    });
    let Some(count) = from.unsigned()?.checked_sub(1) else { return Ok(access) };
    if count > ACCESS_TABLES_MAX as u64 {
        return Err(WRONG);
    }
    let mut tables = Vec::new();
    for _ in 0..count {
        let length = usize::try_from(from.unsigned()?).map_err(|_| WRONG)?;
        tables.push(std::str::from_utf8(from.bytes(length)?).map_err(|_| WRONG)?);
    }
    access.only(tables).map_err(|_| WRONG)
}

const WRONG: DecodeError =
    DecodeError::Shape { what: "access of a hello", expected: "0, 1 or 2, and at most 256 names of tables" };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SiteId;
    use crate::codec::v2::{Frame, Hello, decode, hello};

    #[test]
    fn every_access_comes_back_and_others_are_refused() {
        let limits = crate::Limits::default();
        let said =
            |access: &Access| hello(&Hello { version: 2, site: SiteId::from_bytes([7; 16]), access: access.clone() });
        let read = |bytes: &[u8]| decode(bytes, &limits);
        let rights = [Rights::ReadWrite, Rights::Read, Rights::Write];
        for access in rights.map(Access::new).into_iter().flat_map(|access| {
            let none: [&str; 0] = [];
            [access.clone(), access.clone().only(none).unwrap(), access.only(["todo", "tag"]).unwrap()]
        }) {
            let bytes = said(&access);
            assert!(matches!(read(&bytes).unwrap(), Frame::Hello(hello) if hello.access == access), "{access:?}");
            // What follows is of a later version.
            let longer = [bytes, vec![1, 2, 3]].concat();
            assert!(matches!(read(&longer).unwrap(), Frame::Hello(hello) if hello.access == access), "{access:?}");
        }
        let full = said(&Access::FULL);
        let full = &full[..full.len() - 2];
        for wrong in [&[3][..], &[0], &[1, 0xff, 0x7f], &[1, 2, 9, b'x'], &[1, 2, 1, 0xff]] {
            assert!(read(&[full, wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
