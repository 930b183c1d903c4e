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

    pub(crate) fn is_sign(&self, sign: char) -> bool {
        self.kind == Kind::Sign && self.text.starts_with(sign)
    }

    /// Where it ends, in bytes.
    pub(crate) fn end(&self) -> usize {
        self.start + self.text.len()
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

/// Cuts a script into its statements, each as its tokens. As in SQLite's shell, the body of a trigger ends with `; END;`.
pub(crate) fn statements(sql: &str) -> Vec<Vec<Token<'_>>> {
    let mut statements = Vec::new();
    let mut statement: Vec<Token<'_>> = Vec::new();
    for token in tokens(sql) {
        if !token.is_sign(';') {
            statement.push(token);
            continue;
        }
        let is_body_closed = matches!(statement.as_slice(), [.., before, end] if before.is_sign(';') && end.is("end"));
        if is_trigger(&statement) && !is_body_closed {
            statement.push(token);
        } else if !statement.is_empty() {
            statements.push(std::mem::take(&mut statement));
        }
    }
    statements.extend((!statement.is_empty()).then_some(statement));
    statements
}

fn is_trigger(statement: &[Token<'_>]) -> bool {
    let is = |index: usize, keyword| statement.get(index).is_some_and(|token| token.is(keyword));
    is(0, "create") && (is(1, "trigger") || ((is(1, "temp") || is(1, "temporary")) && is(2, "trigger")))
}

/// Whether two texts differ in nothing but spaces, comments, quotes of names, and case.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    let words = |sql| -> Vec<(bool, String)> {
        let word = |token: Token<'_>| match token.kind {
            Kind::Text => (true, token.unquoted()),
            _ => (false, token.unquoted().to_ascii_lowercase()),
        };
        tokens(sql).map(word).collect()
    };
    words(one) == words(other)
}

/// The text that defines a column, as it stands in a CREATE TABLE.
pub(crate) fn column_definition<'a>(create: &'a str, column: &str) -> Option<&'a str> {
    let mut depth = 0_usize;
    let mut definition: Option<(Token<'_>, Token<'_>)> = None;
    for token in tokens(create) {
        let is_end = depth == 1 && (token.is_sign(',') || token.is_sign(')'));
        depth = match token.kind {
            Kind::Sign if token.is_sign('(') => depth + 1,
            Kind::Sign if token.is_sign(')') => depth.saturating_sub(1),
            _ => depth,
        };
        if is_end {
            if let Some((first, last)) = definition.take()
                && names_column(&first, column)
            {
                return Some(&create[first.start..last.end()]);
            }
            if depth == 0 {
                return None;
            }
        } else if depth > 1 || (depth == 1 && !token.is_sign('(')) || definition.is_some() {
            definition = Some((definition.map_or(token, |(first, _)| first), token));
        }
    }
    None
}

/// Unquoted, these words begin a constraint of the table.
fn names_column(token: &Token<'_>, column: &str) -> bool {
    let is_constraint = ["constraint", "primary", "unique", "check", "foreign"].iter().any(|word| token.is(word));
    !is_constraint && token.unquoted().eq_ignore_ascii_case(column)
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

    #[test]
    fn scripts_are_cut_at_semicolons_outside_of_everything() {
        let check = |sql: &str, expected: &[&str]| {
            let found: Vec<_> =
                statements(sql).iter().map(|s| &sql[s[0].start..s.last().map_or(0, Token::end)]).collect();
            assert_eq!(found, expected, "{sql}");
        };
        check("", &[]);
        check(" ;; -- nothing; here\n;", &[]);
        check("a; b c;d", &["a", "b c", "d"]);
        check("SELECT ';'; SELECT \";\" /* ; */, [;]", &["SELECT ';'", "SELECT \";\" /* ; */, [;]"]);
        let trigger = "CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT CASE 1 WHEN 1 THEN 2 END; SELECT 2; END";
        check(&format!("{trigger}; a"), &[trigger, "a"]);
        let trigger = trigger.replace("CREATE", "create temp /* ; */");
        check(&format!("{trigger};a;"), &[&trigger, "a"]);
        check("CREATE TABLE trigger_ (a); END; a", &["CREATE TABLE trigger_ (a)", "END", "a"]);
    }

    #[test]
    fn texts_are_the_same_where_sqlite_reads_the_same() {
        for (one, other, same) in [
            ("CREATE INDEX i ON t (a, b)", "create  index \"i\" on [T]( `a`,b) -- x", true),
            ("ON t (a, b)", "ON t (b, a)", false),
            ("ON t (a) WHERE a > 'x'", "ON t (a) WHERE a > 'X'", false),
            ("ON t (a) WHERE a > 'x'", "ON t (a) WHERE a > x", false),
            ("ON t (a DESC)", "ON t (a)", false),
        ] {
            assert_eq!(is_same(one, other), same, "{one} and {other}");
        }
    }

    #[test]
    fn definitions_of_columns_are_found() {
        let create = "CREATE TABLE \"t(a\" (a INTEGER PRIMARY KEY NOT NULL, -- the key, (b)
            \"b c\" DECIMAL(10, 2) NOT NULL DEFAULT ((1)) /* x */, [check] TEXT COLLATE NOCASE CHECK (\"check\" IN ('a', ')')), d,
            UNIQUE (d), CHECK (d > 1), CONSTRAINT d CHECK (a)) STRICT";
        for (column, definition) in [
            ("A", Some("a INTEGER PRIMARY KEY NOT NULL")),
            ("b c", Some("\"b c\" DECIMAL(10, 2) NOT NULL DEFAULT ((1))")),
            ("check", Some("[check] TEXT COLLATE NOCASE CHECK (\"check\" IN ('a', ')'))")),
            ("d", Some("d")),
            ("UNIQUE", None),
            ("e", None),
        ] {
            assert_eq!(column_definition(create, column), definition, "{column}");
        }
        assert_eq!(column_definition("CREATE TABLE t (a)", "a"), Some("a"));
        assert_eq!(column_definition("CREATE TABLE t (a", "a"), None);
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
                assert_eq!(&sql[token.start..token.end()], token.text, "{sql:?}");
                token.unquoted();
                end = token.end();
            }
        }
    }
}
