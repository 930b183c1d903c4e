//! Reads SQL as words, the way SQLite's tokenizer cuts it: what is inside of strings, quoted names and comments is no SQL.

/// What a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A keyword, a bare name or a number.
    Word,
    /// A name in quotes, backticks or brackets.
    Quoted,
    /// A string literal.
    Text,
    /// Any other character.
    Sign,
}

/// One token, as it stands in the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    /// Where it begins in the text, in bytes.
    pub(crate) start: usize,
}

impl Token<'_> {
    /// Whether it is this keyword. Quoted, it would be a name.
    pub(crate) fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// The text without its quotes.
    pub(crate) fn unquoted(&self) -> String {
        let Some(close) = self.text.chars().next().map(closing) else { return String::new() };
        if !matches!(self.kind, Kind::Quoted | Kind::Text) {
            return self.text.to_owned();
        }
        let inner = &self.text[1..];
        inner.strip_suffix(close).unwrap_or(inner).replace(&format!("{close}{close}"), &close.to_string())
    }
}

fn closing(open: char) -> char {
    if open == '[' { ']' } else { open }
}

/// The tokens of a text. Spaces and comments are none; what is not closed goes to the end.
pub(crate) fn tokens(sql: &str) -> Tokens<'_> {
    Tokens { sql, at: 0 }
}

/// Iterator of [`tokens`].
pub(crate) struct Tokens<'a> {
    sql: &'a str,
    at: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let start = self.at;
            let rest = &self.sql[start..];
            let first = rest.chars().next()?;
            let (kind, length) = match first {
                _ if first.is_ascii_whitespace() || first == '\u{feff}' => (None, first.len_utf8()),
                '-' if rest.starts_with("--") => (None, rest.find('\n').map_or(rest.len(), |end| end + 1)),
                '/' if rest.starts_with("/*") => (None, rest[2..].find("*/").map_or(rest.len(), |end| end + 4)),
                '\'' => (Some(Kind::Text), quoted_length(rest, first)),
                '"' | '`' | '[' => (Some(Kind::Quoted), quoted_length(rest, first)),
                _ if is_word(first) => (Some(Kind::Word), rest.find(|c| !is_word(c)).unwrap_or(rest.len())),
                _ => (Some(Kind::Sign), first.len_utf8()),
            };
            self.at += length;
            if let Some(kind) = kind {
                return Some(Token { kind, text: &rest[..length], start });
            }
        }
    }
}

/// As in SQLite, everything beyond ASCII belongs to words.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// Up to and with the closing quote. A doubled one stands for itself, except in brackets.
fn quoted_length(text: &str, open: char) -> usize {
    let close = closing(open);
    let mut from = open.len_utf8();
    while let Some(end) = text[from..].find(close) {
        from += end + 1;
        if open == '[' || !text[from..].starts_with(close) {
            return from;
        }
        from += 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        tokens(sql).map(|token| token.text).collect()
    }

    #[test]
    fn tokens_are_what_sqlite_takes_them_for() {
        assert_eq!(texts("a  b\n\t1.5"), ["a", "b", "1", ".", "5"]);
        assert_eq!(
            texts("'it''s' \"a\"\"b\" [x]y] `z``` x'00'"),
            ["'it''s'", "\"a\"\"b\"", "[x]", "y", "]", "`z```", "x", "'00'"]
        );
        assert_eq!(texts("a -- 'not a string\nb /* \" */ c"), ["a", "b", "c"]);
        assert_eq!(texts("a--"), ["a"]);
        assert_eq!(texts("a/* open"), ["a"]);
        assert_eq!(texts("'open; b"), ["'open; b"]);
        assert_eq!(texts("ünï_1;é"), ["ünï_1", ";", "é"]);
        assert!(texts(" \u{feff}").is_empty());
    }

    #[test]
    fn quotes_come_off() {
        let unquoted: Vec<_> = tokens("'it''s' \"a\"\"b\" [x] `` word 'open").map(|token| token.unquoted()).collect();
        assert_eq!(unquoted, ["it's", "a\"b", "x", "", "word", "open"]);
    }

    /// Every cut is at a character, whatever comes.
    #[test]
    fn any_text_is_cut() {
        let mut rng = fastrand::Rng::with_seed(7);
        let alphabet: Vec<char> = "'\"`[]-/*; aé\n\u{10ffff}".chars().collect();
        for _ in 0..2000 {
            let sql: String = (0..rng.usize(..12)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
            let mut end = 0;
            for token in tokens(&sql) {
                assert!(token.start >= end && !token.text.is_empty(), "{sql:?}");
                assert_eq!(&sql[token.start..token.start + token.text.len()], token.text, "{sql:?}");
                token.unquoted();
                end = token.start + token.text.len();
            }
        }
    }
}
