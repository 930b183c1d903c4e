//! Any bytes as a packed key.

use litemesh_engine::proto::PackedKey;

/// What is read can be written again, and what is canonical comes out as it went in (PK-6).
pub(crate) fn check(bytes: &[u8]) {
    let key = PackedKey::from_bytes(bytes);
    let Ok(values) = key.unpack() else {
        assert!(key.check().is_err(), "both ways of reading agree");
        return;
    };
    assert_eq!(key.check(), Ok(values.len()));
    let packed = PackedKey::pack(&values).expect("what was read has at most 255 values");
    // Integers may have been wider than needed, and a NaN becomes NULL as in SQLite: both make it shorter.
    assert!(packed.as_bytes().len() <= bytes.len());
    if packed.as_bytes().len() == bytes.len() {
        assert_eq!(packed.as_bytes(), bytes, "canonical bytes come out as they went in");
    }
    assert_eq!(packed.unpack().as_ref(), Ok(&values));
}
