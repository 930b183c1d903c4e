//! The recorded behaviour of the original: cursors and values (`wire-protocol.md` 1.3, 1.5 and section 10).

use litemesh_proto::codec::v1::{self, Envelope};
use litemesh_proto::limits::JSON_DEPTH_MAX;
use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, Cursor, DbVersion, DecodeError, Limits, PackedKey, PeerMessage, Seq,
    SiteId, SyncRequest, Value,
};
use serde_json::Value as Json;

fn vectors(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

/// The vectors use short site ids, upper and lower case: wire v1 compares them verbatim.
fn cursor(json: &Json) -> Cursor<String> {
    let entries = json.as_object().unwrap().iter();
    entries.map(|(site, version)| (site.clone(), DbVersion::new(version.as_i64().unwrap()))).collect()
}

fn pairs(json: &Json) -> Vec<(String, DbVersion)> {
    let pair = |pair: &Json| (pair[0].as_str().unwrap().to_owned(), DbVersion::new(pair[1].as_i64().unwrap()));
    json.as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn cursor_logic_is_the_originals() {
    let all = vectors(include_str!("vectors/cursor_logic.json"));
    let cases = |name: &str| all[name].as_array().unwrap().clone();
    for case in cases("updateCursor") {
        let mut updated = cursor(&case["cursor"]);
        updated.update(pairs(&case["changes"]));
        assert_eq!(updated, cursor(&case["result"]), "{case}");
    }
    for case in cases("filterChanges") {
        let held = cursor(&case["cursor"]);
        let kept: Vec<_> =
            pairs(&case["changes"]).into_iter().filter(|(site, version)| held.accepts(site, *version)).collect();
        assert_eq!(kept, pairs(&case["kept"]), "{case}");
    }
    for case in cases("isCursorOlder") {
        let is_older = cursor(&case["a"]).is_older_than(&cursor(&case["b"]));
        assert_eq!(is_older, case["a_is_older"].as_bool().unwrap(), "{case}");
    }
}

const SITE: SiteId = SiteId::from_bytes([0xc1; 16]);

fn change(value: Value) -> Change {
    Change {
        table: "t".into(),
        key: PackedKey::pack(&[Value::Integer(1)]).unwrap(),
        column: Column::from("c"),
        value,
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(1),
        site: SITE,
        causal_length: CausalLength::new(1),
        seq: Seq::new(0),
    }
}

fn message(changes: Vec<Change>) -> PeerMessage {
    PeerMessage::Changes { changes, schema_version: 49, progress: None }
}

/// Reads `val` from a change object with this JSON.
fn read(json: &str) -> Result<Value, String> {
    let text = format!(
        r#"{{"type":"data","peerId":"x","data":{{"type":"changes","data":[{{"table":"t","pk":"010901","cid":"c","val":{json},"col_version":1,"db_version":1,"site_id":"{SITE}","cl":1,"seq":0}}]}}}}"#
    );
    let unverified = Envelope::parse(text.as_bytes()).unwrap().message().unwrap();
    match unverified.verify(&Limits::default()) {
        Ok(PeerMessage::Changes { mut changes, .. }) => Ok(changes.remove(0).value),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

/// What an original sender writes, and what we make of it: never less than an original receiver, and BLOBs whole.
#[test]
fn values_that_the_original_sends_are_read() {
    let all = vectors(include_str!("vectors/values_over_json.json"));
    for case in all["differences"].as_array().unwrap() {
        let read = read(case["wire"].as_str().unwrap()).unwrap();
        let expected = match case["value"].as_str().unwrap() {
            "blob" => Value::blob([0, 255, 1]),
            "empty_blob" => Value::blob([]),
            // Rounded by the sender already; beyond 64 bits it can only be a REAL.
            "int64_max" => Value::Real(9_223_372_036_854_775_808.0),
            "int_2p31" => Value::Integer(2_147_483_648),
            "int_2p53_plus1" => Value::Integer(9_007_199_254_740_992),
            "int_max_safe" => Value::Integer(9_007_199_254_740_991),
            "int_neg" => Value::Integer(-9_007_199_254_740_996),
            "minus_inf" | "plus_inf" => Value::Null,
            "neg_zero" => Value::Integer(0),
            "real_1" => Value::Integer(1),
            other => panic!("no expectation for {other}"),
        };
        assert_eq!(read, expected, "{case}");
    }
    assert_eq!(read(r#"{"0":0,"1":255,"2":1}"#), Ok(Value::blob([0, 255, 1])), "a browser's Uint8Array");
    assert_eq!(read("true"), Ok(Value::Integer(1)));
    assert_eq!(read("1.0"), Ok(Value::Real(1.0)));
    assert_eq!(read("1e2"), Ok(Value::Real(100.0)));
    for bad in [r#"{"a":1}"#, "[1]", r#"{"type":"Buffer","data":[256]}"#, r#"{"1":0}"#] {
        assert!(read(bad).unwrap_err().starts_with("Invalid change at index 0: Change.val must be"), "{bad}");
    }
}

#[test]
fn values_survive_between_two_of_us() {
    let values = vec![
        Value::Null,
        Value::Integer(i64::MAX),
        Value::Integer(i64::MIN),
        Value::Real(1.0),
        Value::Real(-0.0),
        Value::Real(f64::MIN_POSITIVE),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::text("nul \0, quote \", astral \u{1f980}, line\n"),
        Value::text(""),
        Value::blob([]),
        Value::blob((0..=255).collect::<Vec<u8>>()),
    ];
    let sent = message(values.into_iter().map(change).collect());
    let bytes = v1::data(SITE, &sent);
    let read = Envelope::parse(&bytes).unwrap().message().unwrap().verify(&Limits::default()).unwrap();
    assert_eq!(read, sent);
}

#[test]
fn messages_look_as_the_original_writes_them() {
    let check = |bytes: Vec<u8>, expected: &str| assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    let id = SITE.to_string();
    check(v1::connect(SITE, false), &format!(r#"{{"type":"connect","peerId":"{id}"}}"#));
    check(v1::ping(SITE), &format!(r#"{{"type":"ping","peerId":"{id}"}}"#));
    check(
        v1::error(SITE, "ALREADY_CONNECTED"),
        &format!(r#"{{"type":"error","peerId":"{id}","error":"ALREADY_CONNECTED"}}"#),
    );
    let request = SyncRequest { cursor: [(SITE, DbVersion::new(3))].into_iter().collect(), terms: None };
    check(v1::sync(SITE, &request), &format!(r#"{{"type":"sync","peerId":"{id}","cursor":{{"peers":{{"{id}":3}}}}}}"#));
    let eose = PeerMessage::Eose { progress: None };
    check(v1::data(SITE, &eose), &format!(r#"{{"type":"data","peerId":"{id}","data":{{"type":"eose","data":[]}}}}"#));
    check(
        v1::data(SITE, &message(vec![change(Value::text("v"))])),
        &format!(
            r#"{{"type":"data","peerId":"{id}","data":{{"type":"changes","data":[{{"table":"t","pk":"010901","cid":"c","val":"v","col_version":1,"db_version":1,"site_id":"{id}","cl":1,"seq":0}}],"schemaVersion":49}}}}"#
        ),
    );
}

#[test]
fn only_a_peer_that_announces_our_version_is_a_litemesh_peer() {
    let is_litemesh = |bytes: &[u8]| Envelope::parse(bytes).unwrap().is_litemesh();
    assert!(is_litemesh(&v1::connect(SITE, true)) && !is_litemesh(&v1::connect(SITE, false)));
    for (version, expected) in [("1", false), ("2", true), ("3", true), ("-1", false), ("null", false), ("{}", false)] {
        let hello = format!(r#"{{"type":"connect","peerId":"{SITE}","litemesh":{{"version":{version}}}}}"#);
        assert_eq!(is_litemesh(hello.as_bytes()), expected, "{version}");
    }
}

proptest::proptest! {
    /// Nothing that a remote sends can panic.
    #[test]
    fn any_bytes_never_panic(bytes: Vec<u8>) {
        if let Ok(envelope) = Envelope::parse(&bytes) {
            let _ = (envelope.sync_request(), envelope.message().map(|message| message.verify(&Limits::default())));
        }
    }

    /// Almost right JSON reaches deeper.
    #[test]
    fn any_json_value_in_any_field_never_panics(field in 0..9_usize, json in r#"(null|true|-?[0-9]{1,25}(\.[0-9]{1,3})?(e[0-9]{1,3})?|"[ -~]{0,8}"|\[[0-9,]{0,6}\]|\{"type":"Buffer","data":[0-9]\})"#) {
        let names = ["table", "pk", "cid", "val", "col_version", "db_version", "site_id", "cl", "seq"];
        let good = ["\"t\"", "\"010901\"", "\"c\"", "1", "1", "1", "\"c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\"", "1", "0"];
        let fields: Vec<String> = (0..9)
            .map(|n| format!("\"{}\":{}", names[n], if n == field { json.as_str() } else { good[n] }))
            .collect();
        let text = format!(r#"{{"type":"data","peerId":"x","data":{{"type":"changes","data":[{{{}}}]}}}}"#, fields.join(","));
        if let Ok(envelope) = Envelope::parse(text.as_bytes())
            && let Ok(message) = envelope.message()
            && let Err(error) = message.verify(&Limits::default())
        {
            proptest::prop_assert!(error.to_string().starts_with("Invalid change at index 0: Change."));
        }
    }
}

/// What is deep is passed over without recursion, and is never a value.
#[test]
fn deep_json_is_refused() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        for depth in [JSON_DEPTH_MAX, 128, 100_000] {
            let value = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            for data in [value.clone(), format!(r#"{{"type":"changes","data":[{{"val":{value}}}]}}"#)] {
                let text = format!(r#"{{"type":"data","peerId":"x","data":{data}}}"#);
                let read = Envelope::parse(text.as_bytes());
                let is_refused = matches!(read, Err(DecodeError::TooDeep { max: JSON_DEPTH_MAX }));
                assert!(is_refused, "{depth} of {open} in {data:.40}: {read:?}");
            }
        }
        // One less, around it the envelope's own; brackets in strings are none.
        let value = format!("{}\"[[{{\\\"[\"{}", open.repeat(JSON_DEPTH_MAX - 1), close.repeat(JSON_DEPTH_MAX - 1));
        let text = format!(r#"{{"type":"data","unknown":{value},"other":{value}}}"#);
        assert_eq!(Envelope::parse(text.as_bytes()).unwrap().kind(), "data");
    }
}
