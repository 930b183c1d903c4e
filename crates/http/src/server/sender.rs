//! Finds out who sent a body from its first bytes.

use litemesh_proto::SiteId;

/// What the beginning of a JSON object says about its sender.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Its `peerId`.
    Known(SiteId),
    /// The id has not come yet.
    NotYet,
    /// Only the whole body can tell: it is no object, has its id after something long, or has no such id.
    Unclear,
}

/// Reads the `peerId` of a message that may be cut off anywhere.
///
/// The order in which bodies *begin* to arrive decides the order in which they are handled (`known-failures.md` A2): a v1
/// client posts on several connections at once, and the small message of later must not overtake the large one of before.
/// So the sender must be known before the body is complete. Every known client writes `type` and `peerId` first.
pub(crate) fn sender(prefix: &[u8]) -> Sender {
    let mut scan = Scan { rest: prefix };
    scan.object().unwrap_or_else(|end| match end {
        End::OfInput => Sender::NotYet,
        End::OfPatience => Sender::Unclear,
    })
}

struct Scan<'a> {
    rest: &'a [u8],
}

enum End {
    OfInput,
    OfPatience,
}

impl<'a> Scan<'a> {
    fn object(&mut self) -> Result<Sender, End> {
        self.expect(b'{')?;
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            match self.peek()? {
                b'"' => {
                    let value = self.string()?;
                    if key == b"peerId" {
                        let id = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                        return Ok(id.map_or(Sender::Unclear, Sender::Known));
                    }
                }
                // Numbers and the like. Arrays and objects may be long, and nobody puts one before the id.
                b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => self.word()?,
                _ => return Err(End::OfPatience),
            }
            self.expect(b',')?;
        }
    }

    fn peek(&mut self) -> Result<u8, End> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied().ok_or(End::OfInput)
    }

    fn expect(&mut self, byte: u8) -> Result<(), End> {
        if self.peek()? != byte {
            return Err(End::OfPatience);
        }
        self.rest = &self.rest[1..];
        Ok(())
    }

    /// A string without escapes, which neither ids nor the keys before them have.
    fn string(&mut self) -> Result<&'a [u8], End> {
        self.expect(b'"')?;
        let end = memchr::memchr2(b'"', b'\\', self.rest).ok_or(End::OfInput)?;
        if self.rest[end] == b'\\' {
            return Err(End::OfPatience);
        }
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn word(&mut self) -> Result<(), End> {
        let end = self.rest.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"+-.".contains(byte));
        self.rest = &self.rest[end.ok_or(End::OfInput)?..];
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use litemesh_proto::codec::v1::Envelope;
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1";

    #[test]
    fn the_id_is_known_as_soon_as_its_bytes_are_there() {
        let body = format!(r#"{{ "type":"data", "n": -1.5e3, "peerId" :"{ID}","data":{{"#);
        let complete = body.find(r#"","data""#).unwrap() + 1;
        for cut in 0..=body.len() {
            let expected = if cut < complete { Sender::NotYet } else { Sender::Known(ID.parse().unwrap()) };
            assert_eq!(sender(&body.as_bytes()[..cut]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn unusual_bodies_are_left_to_the_real_parser() {
        let unusual =
            ["[]", "null", "\"x\"", "{}", r#"{"data":{}"#, r#"{"peerId":5,}"#, r#"{"peerId":"abc""#, r#"{"a\u0062":1"#];
        for body in unusual {
            assert_eq!(sender(body.as_bytes()), Sender::Unclear, "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_more_bytes_change_no_verdict(
            words in prop::collection::vec(prop::sample::select(vec![
                "{", "}", "[", ":", ",", "\"", "\"peerId\"", "\"type\"", "\"x\"", ":\"c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\"",
                " ", "-1", "null", "\\", "é",
            ]), 0..20),
        ) {
            let body = words.concat();
            let whole = sender(body.as_bytes());
            for cut in 0..body.len() {
                let early = sender(&body.as_bytes()[..cut]);
                prop_assert!(early == Sender::NotYet || early == whole, "{early:?} at {cut}, {whole:?} in the end");
            }
            if let (Sender::Known(site), Ok(envelope)) = (whole, Envelope::parse(body.as_bytes()))
                && body.matches("peerId").count() == 1
            {
                prop_assert_eq!(envelope.peer_id().map(str::to_owned), Some(site.to_string()));
            }
        }
    }
}
