//! Each entry of the register, shown: a script after which the two engines answer differently, and what each answers.
//!
//! An entry that cannot be shown any more fails, so the register holds nothing that is not needed.

use crate::engine::{Engine, Outcome};
use crate::original::{Original, Originals};
use crate::ours::Ours;
use crate::{Result, by_hand, register};

/// What an engine answers to a text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// Rows, as [`Outcome`] is displayed: values separated by commas, rows by semicolons.
    Is(&'static str),
    /// An error whose message holds this.
    Fails(&'static str),
    /// The process of the engine ends.
    Dies,
}

/// One entry.
pub(crate) struct Scenario {
    pub(crate) rule: &'static str,
    /// What differs.
    pub(crate) what: &'static str,
    /// What runs first, with the same outcome on both.
    pub(crate) before: Vec<String>,
    /// Texts, our answer, and CRSqlite's.
    pub(crate) shown: Vec<(String, Answer, Answer)>,
}

pub(crate) const SITE: [u8; 16] = [0x51; 16];

/// Shows every entry. Gives the number of entries, and a line for each that is not as it stands.
pub(crate) fn run_all(originals: &mut Originals) -> Result<(usize, Vec<String>)> {
    let mut wrong = Vec::new();
    let scenarios = register::scenarios();
    for scenario in &scenarios {
        if let Err(error) = run(scenario, originals) {
            wrong.push(format!("{} ({}): {error}", scenario.rule, scenario.what));
            *originals = Originals::start()?;
        }
    }
    for (rule, what, show) in by_hand::ALL {
        if let Err(error) = show(originals) {
            wrong.push(format!("{rule} ({what}): {error}"));
        }
    }
    Ok((scenarios.len() + by_hand::ALL.len(), wrong))
}

fn run(scenario: &Scenario, originals: &mut Originals) -> Result<()> {
    let (mut ours, mut original) = (Ours::open(SITE)?, originals.open(SITE)?);
    for text in &scenario.before {
        let (our, their) = (ours.run_one(text)?, original.run_one(text)?);
        if our.is_error() || our != their {
            return Err(format!("{text}: ours {our}, original {their}").into());
        }
    }
    for (text, our, their) in &scenario.shown {
        expect(text, "ours", *our, ours.run_one(text))?;
        let answer = original.run_one(text);
        let is_dead = answer.is_err();
        expect(text, "original", *their, answer)?;
        if is_dead {
            drop(original);
            *originals = Originals::start()?;
            original = originals.open(SITE)?;
        }
    }
    drop::<Original>(original);
    Ok(())
}

fn expect(text: &str, who: &str, expected: Answer, found: Result<Outcome>) -> Result<()> {
    let is_right = match (&expected, &found) {
        (Answer::Is(rows), Ok(outcome @ Outcome::Rows(_))) => outcome.to_string() == *rows,
        (Answer::Fails(gist), Ok(Outcome::Error { message, .. })) => message.contains(gist),
        (Answer::Dies, Err(_)) => true,
        _ => false,
    };
    if is_right {
        return Ok(());
    }
    let found = match found {
        Ok(outcome) => outcome.to_string(),
        Err(error) => error.to_string(),
    };
    Err(format!("{text}: {who} should be {expected:?}, is {found}").into())
}
