//! Whether a trigger is the one that we would make: compared word by word, since CRSqlite spaces and quotes otherwise.

use crate::sql_text::{Kind, tokens};

/// What is different about a trigger.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// It passes the name of another table.
    OtherTable(String),
    Other,
}

/// Compares the text of a trigger with the text that it should have.
pub(super) fn compare(found: &str, expected: &str) -> Option<Difference> {
    let (found, expected) = (words(found), words(expected));
    if found == expected {
        return None;
    }
    // The first string literal is the name that it passes.
    let table = |words: &[Word]| words.iter().find(|(kind, _)| *kind == Kind::Text).map(|(_, text)| text.clone());
    match table(&found) {
        Some(other) if Some(&other) != table(&expected).as_ref() => Some(Difference::OtherTable(other)),
        _ => Some(Difference::Other),
    }
}

type Word = (Kind, String);

/// The tokens from the name of the trigger on, names without quotes and in lower case. What is before it differs: with the
/// schema, or without.
fn words(sql: &str) -> Vec<Word> {
    let mut words: Vec<Word> = tokens(sql)
        .map(|token| match token.kind {
            Kind::Word | Kind::Quoted => (Kind::Word, token.unquoted().to_lowercase()),
            kind => (kind, token.unquoted()),
        })
        .collect();
    let after = words.iter().position(|(_, text)| text == "after").unwrap_or_default();
    words.split_off(after.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "CREATE TRIGGER main.\"it's__crsql_itrig\" AFTER INSERT ON \"it's\" WHEN crsql_internal_sync_bit() = 0 \
                        BEGIN VALUES (crsql_after_insert('it''s', NEW.\"a\")); END";

    #[test]
    fn spaces_quotes_case_and_schema_do_not_matter() {
        let theirs = OURS.replace("main.", "").replace(' ', "\n  ").replace("INSERT ON", "insert on");
        assert_eq!(compare(&theirs.replace("\"a\"", "[A]"), OURS), None);
    }

    #[test]
    fn what_it_does_matters() {
        assert_eq!(compare(&OURS.replace("= 0", "= 1"), OURS), Some(Difference::Other));
        assert_eq!(compare(&OURS.replace(", NEW", ", 1, NEW"), OURS), Some(Difference::Other));
        let other = Difference::OtherTable("other".to_owned());
        assert_eq!(compare(&OURS.replace("'it''s'", "'other'"), OURS), Some(other));
    }
}
