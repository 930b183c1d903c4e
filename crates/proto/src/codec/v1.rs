//! Wire v1: the JSON of the original `@app/sync`, byte-compatible (`wire-protocol.md` sections 1 and 5.1).
//!
//! A Litemesh peer adds one key to its `connect` frame, `litemesh`, which an original peer ignores: by it two of them find out
//! that they can speak wire v2.
//!
//! Decoding has two steps. [`Envelope::parse`] finds the parts and checks nothing else, because a server must complain in a
//! certain order; [`Envelope::sync_request`] and [`Envelope::message`] then read a part. What comes out is
//! [`Unverified`](crate::Unverified).

mod decode;
mod encode;

pub use decode::{Envelope, deserialize_changes, deserialize_cursor, deserialize_message};
pub use encode::{connect, connect_with, data, error, ping, serialize_changes, serialize_cursor, sync};

/// The newest wire version that we speak. A Litemesh peer announces it when it connects.
pub const LITEMESH_VERSION: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::JSON_DEPTH_MAX;
    use crate::{
        Access, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, DecodeError, Limits, PackedKey,
        PeerMessage, Rights, Seq, SiteId, Value,
    };

    fn read_back(changes: &[Change]) -> Vec<Change> {
        let unverified = deserialize_changes(&serialize_changes(changes)).unwrap();
        match unverified.verify(&Limits::default()).unwrap() {
            PeerMessage::Changes { changes, schema_version: 0, .. } => changes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn serialized_changes_read_back_the_same() {
        let values =
            [Value::Null, Value::Integer(i64::MIN), Value::Real(1.0), Value::text("ü\"\\"), Value::blob([0, 255])];
        let change = |value| Change {
            table: "todo".into(),
            key: PackedKey::pack(&[Value::text("a"), Value::Integer(-3)]).unwrap(),
            column: Column::Cell("title".into()),
            value,
            col_version: ColVersion::new(2),
            db_version: DbVersion::new(7),
            site: SiteId::from_bytes([0xAB; 16]),
            causal_length: CausalLength::new(1),
            seq: Seq::new(4),
        };
        let changes: Vec<Change> = values.into_iter().map(change).collect();
        assert_eq!(read_back(&changes), changes);
        assert_eq!(read_back(&[]), []);
    }

    #[test]
    fn a_bad_change_is_named_by_its_index_and_nothing_of_the_list_is_given_out() {
        let good = r#"{"table":"t","pk":"010901","cid":"c","val":1,"col_version":1,"db_version":1,
            "site_id":"0123456789abcdef0123456789abcdef","cl":1,"seq":0}"#;
        let bad = good.replace("010901", "xyz");
        let unverified = deserialize_changes(format!("[{good},{bad}]").as_bytes()).unwrap();
        let refused = unverified.verify(&Limits::default()).unwrap_err().to_string();
        assert!(refused.starts_with("Invalid change at index 1: "), "{refused}");
    }

    #[test]
    fn what_is_no_list_of_changes_or_no_cursor_is_an_error() {
        for wrong in ["", "{}", "null", "[1]", "[{]", r#"[{"__proto__":1}]"#] {
            assert!(deserialize_changes(wrong.as_bytes()).is_err(), "{wrong}");
        }
        for wrong in ["", "[]", "null", "{}", r#"{"peers":null}"#, r#"{"__proto__":{},"peers":{}}"#] {
            assert!(deserialize_cursor(wrong.as_bytes()).is_err(), "{wrong}");
        }
        for fine in [r#"{"a":"__proto__"}"#, r#"{"\"__proto__":1}"#, r#"["__proto__"]"#, r#"{"__proto\u005f":1}"#] {
            assert!(Envelope::parse(fine.as_bytes()).is_ok(), "{fine}");
        }
        for wrong in [r#"{"__proto__" :1}"#, r#"{"a":[{"__pr\u006ft\u006F__":1}]}"#, r#"{"a":"\\","__proto__":1}"#] {
            assert_eq!(Envelope::parse(wrong.as_bytes()).err(), Some(DecodeError::ForbiddenKey), "{wrong}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(deserialize_changes(deep.as_bytes()).err(), Some(DecodeError::TooDeep { max: JSON_DEPTH_MAX }));
    }

    /// `known-failures.md` C7: errors of the original print whole batches.
    #[test]
    fn an_error_says_nothing_of_what_it_found() {
        let secret = "s".repeat(10_000);
        for wrong in [format!("\"{secret}\""), format!("[\"{secret}\"]"), format!("[[\"{secret}\"]]")] {
            let error = deserialize_changes(wrong.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("not valid JSON: expected ") && error.len() < 100, "{error}");
        }
    }

    #[test]
    fn access_is_introduced_and_full_access_goes_without_saying() {
        let site = SiteId::from_bytes([7; 16]);
        let read_back = |bytes: &[u8]| Envelope::parse(bytes).unwrap().access();
        assert_eq!(connect_with(site, &Access::FULL), connect(site, true));
        for rights in [Rights::Read, Rights::Write, Rights::ReadWrite] {
            let access = Access::new(rights);
            for access in [access.clone().only(["b", "A"]).unwrap(), access.clone().only([""; 0]).unwrap(), access] {
                assert_eq!(read_back(&connect_with(site, &access)), Ok(access));
            }
        }
        let reader = Access::new(Rights::Read).only(["todo"]).unwrap();
        let text = String::from_utf8(connect_with(site, &reader)).unwrap();
        assert!(text.ends_with(r#""litemesh":{"version":2,"access":"read","tables":["todo"]}}"#), "{text}");
        assert_eq!(read_back(&connect(site, false)), Ok(Access::FULL));
        // Who does not know what it may do had better ask somebody else.
        for wrong in [r#""access":"admin""#, r#""access":1"#, r#""tables":"todo""#, r#""tables":[1]"#] {
            let frame = format!(r#"{{"type":"connect","peerId":"{site}","litemesh":{{"version":1,{wrong}}}}}"#);
            assert!(read_back(frame.as_bytes()).is_err(), "{wrong}");
        }
        let many = format!("[{}\"t\"]", "\"t\",".repeat(300));
        let frame = format!(r#"{{"type":"connect","peerId":"{site}","litemesh":{{"version":1,"tables":{many}}}}}"#);
        assert_eq!(read_back(frame.as_bytes()).unwrap().tables().unwrap().len(), 1);
        let names: Vec<String> = (0..300).map(|n| format!("\"t{n}\"")).collect();
        let frame = format!(
            r#"{{"type":"connect","peerId":"{site}","litemesh":{{"version":1,"tables":[{}]}}}}"#,
            names.join(",")
        );
        assert!(read_back(frame.as_bytes()).is_err());
    }

    #[test]
    fn a_cursor_leaves_out_what_is_no_site() {
        let cursor = deserialize_cursor(br#"{"peers":{"AB":1,"0123456789abcdef0123456789abcdef":9}}"#).unwrap();
        let site = "0123456789abcdef0123456789abcdef".parse().unwrap();
        assert_eq!(cursor, Cursor::from_iter([(site, DbVersion::new(9))]));
    }
}
