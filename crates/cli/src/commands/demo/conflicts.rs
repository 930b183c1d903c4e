//! What the three sites do to the same rows while they cannot hear of each other, and what it must come to.

use serde::Serialize;

/// One conflict. Arrays are in the order hub, laptop, phone.
pub(super) struct Conflict {
    name: &'static str,
    /// Run at the hub before anybody joins.
    pub(super) before: &'static str,
    /// What each site writes, in one transaction each.
    pub(super) writes: [&'static str; 3],
    /// The same in words.
    told: [&'static str; 3],
    /// A query for one text: what it came to.
    pub(super) question: &'static str,
    expected: &'static str,
    rule: &'static str,
}

/// What a conflict came to.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) conflict: &'static str,
    pub(super) hub: &'static str,
    pub(super) laptop: &'static str,
    pub(super) phone: &'static str,
    pub(super) result: String,
    pub(super) rule: &'static str,
    /// All three files say so, and it is what the rule says.
    pub(super) as_expected: bool,
}

impl Conflict {
    /// Judges the answers of the three files to the question.
    pub(super) fn outcome(&self, answers: &[String]) -> Outcome {
        let [hub, laptop, phone] = self.told;
        let is_same = answers.iter().all(|answer| *answer == answers[0]);
        let result = if is_same { answers[0].clone() } else { format!("NOT THE SAME: {}", answers.join(" | ")) };
        let as_expected = is_same && result == self.expected;
        Outcome { conflict: self.name, hub, laptop, phone, result, rule: self.rule, as_expected }
    }
}

pub(super) const CONFLICTS: [Conflict; 7] = [
    Conflict {
        name: "the same cell",
        before: "INSERT INTO task (id, title) VALUES ('c-same', 'before')",
        writes: [
            "UPDATE task SET title = 'apples' WHERE id = 'c-same'",
            "UPDATE task SET title = 'cherries' WHERE id = 'c-same'",
            "UPDATE task SET title = 'bananas' WHERE id = 'c-same'",
        ],
        told: ["writes apples", "writes cherries", "writes bananas"],
        question: "SELECT coalesce(max(title), 'no row') FROM task WHERE id = 'c-same'",
        expected: "cherries",
        rule: "written equally often: the larger value",
    },
    Conflict {
        name: "the same cell, unequally often",
        before: "INSERT INTO task (id, title) VALUES ('c-often', 'before')",
        writes: [
            "UPDATE task SET title = 'yellow' WHERE id = 'c-often'",
            "UPDATE task SET title = 'blue' WHERE id = 'c-often'; UPDATE task SET title = 'green' WHERE id = 'c-often'",
            "UPDATE task SET title = 'red' WHERE id = 'c-often'",
        ],
        told: ["writes yellow", "writes blue, then green", "writes red"],
        question: "SELECT coalesce(max(title), 'no row') FROM task WHERE id = 'c-often'",
        expected: "green",
        rule: "written more often wins",
    },
    Conflict {
        name: "different cells of a row",
        before: "INSERT INTO task (id, title) VALUES ('c-cells', 'before')",
        writes: [
            "UPDATE task SET done = 1 WHERE id = 'c-cells'",
            "UPDATE task SET title = 'after' WHERE id = 'c-cells'",
            "UPDATE task SET estimate = 2.5 WHERE id = 'c-cells'",
        ],
        told: ["sets done", "writes the title", "writes the estimate"],
        question: "SELECT coalesce(max(title || ', done ' || done || ', estimate ' || estimate), 'no row')
                   FROM task WHERE id = 'c-cells'",
        expected: "after, done 1, estimate 2.5",
        rule: "all are kept",
    },
    Conflict {
        name: "a deletion and updates",
        before: "INSERT INTO task (id, title) VALUES ('c-gone', 'before')",
        writes: [
            "UPDATE task SET title = 'still here' WHERE id = 'c-gone'",
            "DELETE FROM task WHERE id = 'c-gone'",
            "UPDATE task SET done = 1 WHERE id = 'c-gone'; UPDATE task SET title = 'twice' WHERE id = 'c-gone'",
        ],
        told: ["updates", "deletes", "updates twice"],
        question: "SELECT coalesce(max(title), 'no row') FROM task WHERE id = 'c-gone'",
        expected: "no row",
        rule: "a deletion beats updates of what it deleted",
    },
    Conflict {
        name: "a deletion and a new beginning",
        before: "INSERT INTO task (id, title) VALUES ('c-back', 'before')",
        writes: [
            "UPDATE task SET title = 'still here' WHERE id = 'c-back'",
            "DELETE FROM task WHERE id = 'c-back'",
            "DELETE FROM task WHERE id = 'c-back'; INSERT INTO task (id, title) VALUES ('c-back', 'again')",
        ],
        told: ["updates", "deletes", "deletes, inserts again"],
        question: "SELECT coalesce(max(title), 'no row') FROM task WHERE id = 'c-back'",
        expected: "again",
        rule: "a row that was made anew beats the deletion",
    },
    Conflict {
        name: "the same new row",
        before: "",
        writes: [
            "INSERT INTO task (id, title, estimate) VALUES ('c-new', 'from the hub', 3.0)",
            "INSERT INTO task (id, title, estimate) VALUES ('c-new', 'from the laptop', 2.0)",
            "INSERT INTO task (id, title, estimate) VALUES ('c-new', 'from the phone', 1.0)",
        ],
        told: ["inserts, estimate 3", "inserts, estimate 2", "inserts, estimate 1"],
        question: "SELECT coalesce(max(title || ', estimate ' || estimate), 'no row') FROM task WHERE id = 'c-new'",
        expected: "from the phone, estimate 3.0",
        rule: "one row; each cell for itself, the larger value",
    },
    Conflict {
        name: "a transaction of several tables",
        before: "",
        writes: [
            "UPDATE project SET name = 'Inbox of the hub' WHERE id = 'inbox'",
            "UPDATE project SET name = 'Inbox' WHERE id = 'inbox'",
            "INSERT INTO project VALUES ('c-trip', 'A trip');
             INSERT INTO task (id, project, title) VALUES ('c-pack', 'c-trip', 'pack'), ('c-book', 'c-trip', 'book'),
                    ('c-go', 'c-trip', 'go');
             INSERT INTO note VALUES ('c-pack', 1, 'socks', NULL), ('c-pack', 2, 'passport', x'00ff')",
        ],
        told: ["renames a project", "names it as it was", "writes 6 rows of 3 tables"],
        question: "SELECT ((SELECT count(*) FROM project WHERE id = 'c-trip')
                          + (SELECT count(*) FROM task WHERE project = 'c-trip')
                          + (SELECT count(*) FROM note WHERE task = 'c-pack')) || ' rows, '
                          || (SELECT name FROM project WHERE id = 'inbox')",
        expected: "6 rows, Inbox of the hub",
        rule: "arrives whole; a write of the same value is none",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_as_expected_only_where_all_three_agree() {
        let judge = |answers: [&str; 3]| CONFLICTS[0].outcome(&answers.map(str::to_owned)).as_expected;
        assert!(judge(["cherries"; 3]));
        assert!(!judge(["apples"; 3]));
        assert!(!judge(["cherries", "cherries", "apples"]));
    }
}
