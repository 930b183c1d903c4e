//! Keys between which there is always room (`crsqlite-compat.md` 14.1). Pure: no SQL, no state.
//!
//! A key is a number in base 95 whose digits are the printable ASCII characters, so that keys sort as plain text. It has an
//! integer part, whose first character tells its length, and a fraction that may be missing. Appending and prepending count
//! the integer part up and down, which keeps keys short; inserting in between makes the fraction longer.

/// Digit zero.
const ZERO: u8 = b' ';
/// The largest digit.
const LAST: u8 = b'~';
/// How many digits there are. As a digit it stands for the open end above all fractions.
const BASE: u8 = LAST - ZERO + 1;
/// Characters of the smallest integer: `A` and its digits, all zero. It is no key itself: nothing would fit before it.
const SMALLEST_LENGTH: usize = 27;

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum OrderKeyError {
    #[error("an order key must not be empty; write -1 or 1 into the column to get the first or the last key")]
    Empty,
    #[error("order key {key:?}: head is out of range, the first character must be one of A to Z or a to z")]
    Head { key: String },
    #[error("order key {key:?}: integer part too long, its head asks for {expected} characters")]
    IntegerPart { key: String, expected: usize },
    #[error("order key {key:?}: only printable ASCII characters are digits")]
    Digit { key: String },
    #[error("order key {key:?}: trailing space in the fraction")]
    TrailingSpace { key: String },
    #[error("order key {key:?}: key too small, no other fits before it")]
    TooSmall { key: String },
    #[error("a must be before b: {lo:?} does not sort before {hi:?}")]
    NotBefore { lo: String, hi: String },
}

/// A key that sorts strictly between two others, as text with BINARY collation. `None` is an open end.
///
/// # Errors
///
/// `lo` or `hi` is no key, or `lo` does not sort before `hi`: between equal keys there is none (FR-5).
///
/// ```
/// use litemesh_engine::fractional::key_between;
///
/// let first = key_between(None, None)?;
/// let second = key_between(Some(&first), None)?;
/// let between = key_between(Some(&first), Some(&second))?;
/// assert_eq!((first.as_str(), between.as_str(), second.as_str()), ("a ", "a P", "a!"));
/// # Ok::<(), litemesh_engine::fractional::OrderKeyError>(())
/// ```
pub fn key_between(lo: Option<&str>, hi: Option<&str>) -> Result<String, OrderKeyError> {
    if let (Some(lo), Some(hi)) = (lo, hi)
        && lo >= hi
    {
        return Err(OrderKeyError::NotBefore { lo: lo.to_owned(), hi: hi.to_owned() });
    }
    let (lo, hi) = (lo.map(Key::parse).transpose()?, hi.map(Key::parse).transpose()?);
    Ok(match (lo, hi) {
        (None, None) => "a ".to_owned(),
        (None, Some(hi)) => before(hi),
        (Some(lo), None) => increment(lo.integer).unwrap_or_else(|| lo.followed_by_midpoint(None)),
        (Some(lo), Some(hi)) if lo.integer == hi.integer => lo.followed_by_midpoint(Some(hi.fraction)),
        (Some(lo), Some(hi)) => match increment(lo.integer) {
            Some(next) if *next < *hi.whole => next,
            _ => lo.followed_by_midpoint(None),
        },
    })
}

/// A key that was checked.
#[derive(Clone, Copy)]
struct Key<'a> {
    whole: &'a str,
    integer: &'a str,
    fraction: &'a str,
}

impl<'a> Key<'a> {
    /// FR-2.
    fn parse(whole: &'a str) -> Result<Self, OrderKeyError> {
        let key = || whole.to_owned();
        let head = *whole.as_bytes().first().ok_or(OrderKeyError::Empty)?;
        let expected = match head {
            b'a'..=b'z' => usize::from(head - b'a') + 2,
            b'A'..=b'Z' => usize::from(b'Z' - head) + 2,
            _ => return Err(OrderKeyError::Head { key: key() }),
        };
        if !whole.bytes().all(|byte| (ZERO..=LAST).contains(&byte)) {
            return Err(OrderKeyError::Digit { key: key() });
        }
        let Some((integer, fraction)) = whole.split_at_checked(expected) else {
            return Err(OrderKeyError::IntegerPart { key: key(), expected });
        };
        if fraction.ends_with(' ') {
            return Err(OrderKeyError::TrailingSpace { key: key() });
        }
        if fraction.is_empty() && is_smallest(integer) {
            return Err(OrderKeyError::TooSmall { key: key() });
        }
        Ok(Self { whole, integer, fraction })
    }

    /// Our integer part, and a fraction between ours and another. `None` is above all fractions.
    fn followed_by_midpoint(&self, fraction: Option<&str>) -> String {
        let mut key = self.integer.to_owned();
        push_midpoint(&mut key, self.fraction.as_bytes(), fraction.map(str::as_bytes));
        key
    }
}

fn is_smallest(integer: &str) -> bool {
    integer.len() == SMALLEST_LENGTH && integer.starts_with('A') && integer[1..].bytes().all(|byte| byte == ZERO)
}

fn before(hi: Key<'_>) -> String {
    let Some(previous) = decrement(hi.integer) else {
        let mut key = hi.integer.to_owned();
        push_midpoint(&mut key, b"", Some(hi.fraction.as_bytes()));
        return key;
    };
    if !hi.fraction.is_empty() {
        return hi.integer.to_owned();
    }
    let mut key = previous;
    // The smallest integer alone is no key. CRSqlite gives it out all the same, and nothing could be put before it again.
    if is_smallest(&key) {
        push_midpoint(&mut key, b"", None);
    }
    key
}

/// The next integer, or `None` after the largest.
fn increment(integer: &str) -> Option<String> {
    step(
        integer,
        LAST,
        ZERO,
        |digit| digit + 1,
        |head| match head {
            b'Z' => Some(b'a'),
            b'z' => None,
            _ => Some(head + 1),
        },
    )
}

/// The integer before, or `None` before the smallest.
fn decrement(integer: &str) -> Option<String> {
    step(
        integer,
        ZERO,
        LAST,
        |digit| digit - 1,
        |head| match head {
            b'a' => Some(b'Z'),
            b'A' => None,
            _ => Some(head - 1),
        },
    )
}

/// Counts by one: digits at `limit` start over at `restart` and carry; if all do, the head moves and says the new length.
fn step(
    integer: &str,
    limit: u8,
    restart: u8,
    count: impl Fn(u8) -> u8,
    next_head: impl Fn(u8) -> Option<u8>,
) -> Option<String> {
    let (head, digits) = integer.as_bytes().split_first()?;
    let mut digits = digits.to_vec();
    let mut head = *head;
    match digits.iter().rposition(|digit| *digit != limit) {
        Some(position) => {
            digits[position] = count(digits[position]);
            digits[position + 1..].fill(restart);
        }
        None => {
            head = next_head(head)?;
            let length = if head >= b'a' { head - b'a' } else { b'Z' - head } + 1;
            digits = vec![restart; usize::from(length)];
        }
    }
    Some(std::iter::once(head).chain(digits).map(char::from).collect())
}

/// Appends a fraction between `lo` and `hi`, which does not end in zero. `None` is above all fractions.
///
/// Needs `lo` before `hi`, and no zero at the end of `hi`.
fn push_midpoint(key: &mut String, lo: &[u8], hi: Option<&[u8]>) {
    let mut hi = hi;
    for position in 0.. {
        let low = lo.get(position).map_or(0, |byte| byte - ZERO);
        let high = hi.and_then(|hi| hi.get(position)).map_or(BASE, |byte| byte - ZERO);
        if low == high {
            push_digit(key, low);
        } else if high - low > 1 {
            // Rounded half up. At most 95 each, so the sum fits.
            push_digit(key, (low + high).div_ceil(2));
            return;
        } else if hi.is_some_and(|hi| hi.len() > position + 1) {
            // What is left of `hi` is not all zeros: without it, it is smaller.
            push_digit(key, high);
            return;
        } else {
            // Neighbours: the room is above `lo`.
            push_digit(key, low);
            hi = None;
        }
    }
}

fn push_digit(key: &mut String, digit: u8) {
    key.push(char::from(ZERO + digit));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(lo: Option<&str>, hi: Option<&str>, expected: &str) {
        assert_eq!(key_between(lo, hi).as_deref(), Ok(expected), "between {lo:?} and {hi:?}");
    }

    /// FR-4, and key_between of CRSqlite's unit tests.
    #[test]
    fn keys_are_those_of_crsqlite() {
        let largest = format!("z{}", "~".repeat(26));
        check(None, None, "a ");
        check(Some("a "), None, "a!");
        check(None, Some("a "), "Z~");
        check(Some("a0"), Some("a1"), "a0P");
        check(Some("a0V"), Some("a1"), "a0k");
        check(Some("Z~"), Some("a "), "Z~P");
        check(Some("Z~"), Some("a!"), "a ");
        check(Some("a0"), Some("a0V"), "a0;");
        check(Some("a0"), Some("a0G"), "a04");
        check(Some("b125"), Some("b129"), "b127");
        check(Some("a0"), Some("a1V"), "a1");
        check(None, Some("a0V"), "a0");
        check(None, Some("b999"), "b99");
        check(Some("b~~"), None, "c   ");
        check(None, Some("Y  "), "X~~~");
        check(Some(&largest), None, &format!("{largest}P"));
        check(Some(&format!("{largest}P")), None, &format!("{largest}h"));
    }

    /// Increment and decrement change the length at the ends of each head (FR-3).
    #[test]
    fn integers_carry_into_the_head() {
        for (lower, upper) in [("a~", "b  "), ("Z~", "a "), ("Y~~", "Z "), ("a ", "a!"), ("b ~", "b! ")] {
            check(Some(lower), None, upper);
            check(None, Some(upper), lower);
        }
    }

    /// validate_order_key of CRSqlite's unit tests.
    #[test]
    fn what_is_no_key_is_refused() {
        let check = |lo: Option<&str>, hi: Option<&str>, gist: &str| {
            let message = key_between(lo, hi).unwrap_err().to_string();
            assert!(message.contains(gist), "{lo:?}, {hi:?}: {message}");
        };
        let smallest = format!("A{}", " ".repeat(26));
        check(None, Some(&smallest), "too small");
        check(Some(&smallest), None, "too small");
        check(Some("a1"), Some("a0"), "a must be before b");
        check(Some("a0 "), None, "trailing space");
        check(Some("a0 "), Some("a1"), "trailing space");
        check(None, Some("a0 "), "trailing space");
        check(Some("0"), None, "head is out of range");
        check(Some(" "), Some("a0"), "head is out of range");
        check(Some("b0"), None, "integer part too long");
        check(Some("a"), None, "integer part too long");
        check(Some("a0é"), None, "printable ASCII");
        check(Some("a0\u{7f}"), None, "printable ASCII");
        check(Some("é"), None, "head is out of range");
        // FR-5: these abort CRSqlite.
        check(Some("a0"), Some("a0"), "a must be before b");
        check(Some(""), None, "must not be empty");
        check(None, Some(""), "must not be empty");
        check(Some(""), Some(""), "a must be before b");
    }

    /// The smallest integer is never given out, though there is room above it.
    #[test]
    fn there_is_always_room_in_front() {
        let mut hi = format!("A{}!", " ".repeat(25));
        for _ in 0..300 {
            let key = key_between(None, Some(&hi)).unwrap();
            assert!(key < hi, "{key:?} before {hi:?}");
            hi = key;
        }
        assert!(hi.len() < 100, "keys grow by a digit each few insertions: {}", hi.len());
    }

    prop_compose! {
        /// Any key, with digits at the ends of their range more often than not.
        fn key()(
            head in prop_oneof!["[a-c]", "[X-Z]", "[a-z]", "[A-Z]"],
            digits in proptest::collection::vec(prop_oneof![Just(b' '), Just(b'!'), Just(b'}'), Just(b'~'), ZERO..=LAST], 26),
            fraction in "[ !PO~}]{0,4}",
        ) -> String {
            let byte = head.as_bytes()[0];
            let length = usize::from(if byte >= b'a' { byte - b'a' } else { b'Z' - byte }) + 1;
            let digits: String = digits[..length].iter().copied().map(char::from).collect();
            let key = format!("{head}{digits}{}", fraction.trim_end_matches(' '));
            if Key::parse(&key).is_ok() { key } else { format!("{key}!") }
        }
    }

    proptest! {
        #[test]
        fn between_is_strictly_between_and_a_key(a in key(), b in key()) {
            for (lo, hi) in [(Some(&a), None), (None, Some(&a)), (Some((&a).min(&b)), Some((&a).max(&b)))] {
                if lo == hi {
                    continue;
                }
                let key = key_between(lo.map(String::as_str), hi.map(String::as_str)).unwrap();
                prop_assert!(lo.is_none_or(|lo| *lo < key), "{:?} < {:?}", lo, key);
                prop_assert!(hi.is_none_or(|hi| key < *hi), "{:?} < {:?}", key, hi);
                prop_assert!(Key::parse(&key).is_ok(), "{:?} is a key", key);
            }
        }

        /// The random re-ordering of CRSqlite's unit tests: the order of the keys is kept.
        #[test]
        fn random_moves_keep_the_order(moves in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..200)) {
            let mut list: Vec<String> = Vec::new();
            for (from, to) in moves {
                if list.len() > 10 {
                    list.remove(from.index(list.len()));
                }
                let at = to.index(list.len() + 1);
                let lo = at.checked_sub(1).map(|before| list[before].as_str());
                let key = key_between(lo, list.get(at).map(String::as_str)).unwrap();
                list.insert(at, key);
                prop_assert!(list.is_sorted_by(|a, b| a < b), "{:?}", list);
            }
        }

        #[test]
        fn any_text_never_panics(a: String, b: String) {
            let _ = (key_between(Some(&a), Some(&b)), key_between(None, Some(&a)), key_between(Some(&a), None));
        }
    }
}
