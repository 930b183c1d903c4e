//! Cuts a failing program down to what the failure needs.

use crate::mirrored::Program;
use crate::mixed::{Cluster, Step};
use crate::original::Originals;
use crate::{Failure, Result, Tally};

/// A program whose parts can be left out.
pub(crate) trait Shrinkable: Clone {
    fn run(&self, originals: &Originals) -> std::result::Result<Tally, Failure>;

    /// How many parts there are.
    fn parts(&self) -> usize;

    /// The program without one of its parts.
    fn without(&self, part: usize) -> Self;
}

impl Shrinkable for Program {
    fn run(&self, originals: &Originals) -> std::result::Result<Tally, Failure> {
        Self::run(self, originals)
    }

    fn parts(&self) -> usize {
        self.units.iter().map(|unit| unit.statements.len() + 1).sum()
    }

    /// Units and their statements are parts.
    fn without(&self, mut part: usize) -> Self {
        let mut program = self.clone();
        for index in 0..program.units.len() {
            let statements = &mut program.units[index].statements;
            if part == 0 {
                program.units.remove(index);
                break;
            }
            if part <= statements.len() {
                statements.remove(part - 1);
                break;
            }
            part -= statements.len() + 1;
        }
        program
    }
}

impl Shrinkable for Cluster {
    fn run(&self, originals: &Originals) -> std::result::Result<Tally, Failure> {
        Self::run(self, originals)
    }

    fn parts(&self) -> usize {
        let of_step = |step: &Step| match step {
            Step::Write { unit, .. } => unit.statements.len() + 1,
            Step::Pass { .. } => 1,
        };
        self.steps.iter().map(of_step).sum()
    }

    fn without(&self, mut part: usize) -> Self {
        let mut cluster = self.clone();
        for index in 0..cluster.steps.len() {
            if part == 0 {
                cluster.steps.remove(index);
                break;
            }
            let Step::Write { unit, .. } = &mut cluster.steps[index] else {
                part -= 1;
                continue;
            };
            if part <= unit.statements.len() {
                unit.statements.remove(part - 1);
                break;
            }
            part -= unit.statements.len() + 1;
        }
        cluster
    }
}

/// Leaves out one part after the other, as long as it fails.
pub(crate) fn shrink<P: Shrinkable>(
    mut program: P,
    originals: &mut Originals,
    mut failure: Failure,
) -> Result<Failure> {
    // Where CRSqlite itself died, the next run needs another process.
    *originals = Originals::start()?;
    let mut is_smaller = true;
    while is_smaller {
        is_smaller = false;
        let mut part = program.parts();
        while part > 0 {
            part -= 1;
            if part >= program.parts() {
                continue;
            }
            let smaller = program.without(part);
            if let Err(found) = smaller.run(originals) {
                (program, failure, is_smaller) = (smaller, found, true);
            }
        }
    }
    Ok(failure)
}
