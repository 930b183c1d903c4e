//! [`Finding`]: one thing that is inconsistent, and what each kind means.

use std::sync::Arc;

use litemesh_proto::PackedKey;

/// One thing that [`Engine::check`](crate::Engine::check) found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// The replicated table, by the name that it has in changes. `None` where it concerns the whole database.
    pub table: Option<Arc<str>>,
    /// The row, where it is about one.
    pub key: Option<PackedKey>,
    /// The column, index, trigger or shadow table, where it is about one.
    pub name: Option<Arc<str>>,
    /// The facts, in a sentence.
    pub detail: String,
}

impl Finding {
    pub(crate) fn new(kind: FindingKind, detail: impl Into<String>) -> Self {
        Self { kind, table: None, key: None, name: None, detail: detail.into() }
    }

    pub(crate) fn of_table(mut self, table: &Arc<str>) -> Self {
        self.table = Some(table.clone());
        self
    }

    pub(crate) fn of_row(mut self, key: Option<PackedKey>) -> Self {
        self.key = key;
        self
    }

    pub(crate) fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Legal, and worth knowing.
    Info,
    /// Nothing is lost yet, or it costs something.
    Warning,
    /// Rows or changes do not reach other sites, or writes fail.
    Error,
}

impl Severity {
    /// In lower case, as `crsql_check()` tells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What can be done about a kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// [`Engine::repair`](crate::Engine::repair) does this.
    Automatic(&'static str),
    /// It takes a decision: somebody has to do this.
    ByHand(&'static str),
    /// Nothing needs to be done.
    None,
}

impl Repair {
    /// As `crsql_check()` tells it.
    pub fn text(self) -> String {
        match self {
            Self::Automatic(what) => format!("repair: {what}"),
            Self::ByHand(what) => format!("by hand: {what}"),
            Self::None => "none needed".to_owned(),
        }
    }
}

/// What a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FindingKind {
    /// A row that no clock knows.
    RowWithoutClocks,
    /// A cell with a value of its own that no clock knows.
    CellWithoutClock,
    /// Clocks of a living row that is not there.
    ClockWithoutRow,
    /// Clocks whose key is not in the keys table.
    ClockWithoutKey,
    /// Clocks of a column that the table does not have.
    ClockOfMissingColumn,
    /// A row that is there although its sentinel says that it is dead.
    DeadRowPresent,
    /// A dead row that has clocks besides its sentinel.
    DeadRowWithClocks,
    /// Keys that no clock belongs to.
    KeyWithoutClocks,
    /// A key that differs in type from the one that its row has.
    KeyOfOtherType,
    /// A sentinel that is no causal length.
    InvalidSentinel,
    /// Clocks near the end of the range of versions.
    AbsurdVersion,
    /// Clocks of an author that has no site id.
    UnknownAuthor,
    /// Merged clocks whose version at their author was never recorded.
    MissingOrigin,
    /// Merged clocks whose version at their author is not known.
    UnknownOrigin,
    /// Changes of a catch-up that broke off, which wait for the rest of it.
    StagedChanges,
    /// Origins of a site that is not there.
    OriginOfUnknownSite,
    /// A site id that has not 16 bytes.
    MalformedSiteId,
    /// The shadow table of a table that is gone.
    OrphanShadowTable,
    /// A shadow table that is gone.
    MissingShadowTable,
    /// A keys table whose columns are not the primary key.
    KeysOfOtherColumns,
    /// A trigger that is gone.
    MissingTrigger,
    /// A trigger that does something else.
    AlteredTrigger,
    /// A trigger that names another table.
    TriggerOfOtherTable,
    /// A table that was renamed, or whose key columns were, and whose shadow tables were not.
    RenamedTable,
    /// A table that has a history and does not replicate.
    UntrackedTable,
    /// An index that is gone, or covers something else.
    MissingIndex,
    /// A table that could not be made replicated as it is now.
    BrokenRule,
}

struct Facts {
    name: &'static str,
    severity: Severity,
    rule: &'static str,
    repair: Repair,
}

impl FindingKind {
    /// The name, such as `row-without-clocks`.
    pub fn as_str(self) -> &'static str {
        self.facts().name
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        self.facts().severity
    }

    /// The rules of `crsqlite-compat.md` that it breaks.
    pub fn rule(self) -> &'static str {
        self.facts().rule
    }

    /// What can be done.
    pub fn repair(self) -> Repair {
        self.facts().repair
    }

    fn facts(self) -> Facts {
        use Repair::{Automatic, ByHand};
        use Severity::{Error, Info, Warning};
        let (name, severity, rule, repair) = match self {
            Self::RowWithoutClocks => (
                "row-without-clocks",
                Error,
                "BUG-18",
                Automatic("the row gets clocks at a new version, as if it were inserted now"),
            ),
            Self::CellWithoutClock => (
                "cell-without-clock",
                Error,
                "BUG-18, ALT-5",
                Automatic("the cell gets a first clock at a new version"),
            ),
            Self::ClockWithoutRow => (
                "clock-without-row",
                Error,
                "VT-2",
                ByHand(
                    "`litemesh doctor --repair --bury` deletes the row at all sites; to keep it, insert it again with its values",
                ),
            ),
            Self::ClockWithoutKey => (
                "clock-without-key",
                Error,
                "DSK-4, DSK-6",
                Automatic("the clocks are removed: nobody can tell which row they belong to"),
            ),
            Self::ClockOfMissingColumn => (
                "clock-of-missing-column",
                Warning,
                "BUG-2, VT-5",
                Automatic("the clocks are removed, as crsql_commit_alter() does"),
            ),
            Self::DeadRowPresent => (
                "dead-row-present",
                Error,
                "VER-13",
                Automatic("the row comes back to life at a new version, as if it were inserted now"),
            ),
            Self::DeadRowWithClocks => (
                "dead-row-with-clocks",
                Warning,
                "VT-3",
                Automatic("the clocks besides the sentinel are removed, as a delete does"),
            ),
            Self::KeyWithoutClocks => ("key-without-clocks", Info, "MRG-5, BUG-17", Automatic("the keys are removed")),
            Self::KeyOfOtherType => (
                "key-of-other-type",
                Warning,
                "BUG-16",
                ByHand("delete the row and insert it again: it gets one key, of the column's type"),
            ),
            Self::InvalidSentinel => {
                ("invalid-sentinel", Error, "VER-13", ByHand("insert the row again, or delete it"))
            }
            Self::AbsurdVersion => (
                "absurd-version",
                Error,
                "BUG-29",
                ByHand("other sites refuse these changes: copy the tables into a new file and replicate them there"),
            ),
            Self::UnknownAuthor => (
                "unknown-author",
                Error,
                "DSK-3",
                Automatic("this site becomes the author, at a new version; values and column versions stay"),
            ),
            Self::MissingOrigin => ("missing-origin", Warning, "5.6", Automatic("their origin is recorded as unknown")),
            Self::UnknownOrigin => ("unknown-origin", Info, "5.6", Repair::None),
            Self::StagedChanges => (
                "staged-changes",
                Info,
                "docs/storage.md",
                ByHand(
                    "the rest comes with the next connection; where there will be none, `litemesh doctor --merge-staged` merges what is there, and `--forget-staged` forgets it",
                ),
            ),
            Self::OriginOfUnknownSite => {
                ("origin-of-unknown-site", Warning, "DSK-3", Automatic("the origins are removed"))
            }
            Self::MalformedSiteId => (
                "malformed-site-id",
                Warning,
                "MRG-2",
                ByHand("write the rows again here: changes of such an author cannot be sent to Litemesh peers"),
            ),
            Self::OrphanShadowTable => (
                "orphan-shadow-table",
                Warning,
                "BUG-1",
                Automatic("the table is removed; the version stays where it is (VER-7)"),
            ),
            Self::MissingShadowTable => (
                "missing-shadow-table",
                Error,
                "DSK-4, DSK-6",
                ByHand("crsql_as_table() and crsql_as_crr() begin a new history; or restore a backup"),
            ),
            Self::KeysOfOtherColumns => (
                "keys-of-other-columns",
                Error,
                "ALT-4",
                ByHand("crsql_begin_alter() and crsql_commit_alter() begin a new history under the new key"),
            ),
            Self::MissingTrigger => ("missing-trigger", Error, "DSK-8", Automatic("the triggers are made again")),
            Self::AlteredTrigger => {
                ("altered-trigger", Error, "DSK-8, ALT-7", Automatic("the triggers are made again"))
            }
            Self::TriggerOfOtherTable => {
                ("trigger-of-other-table", Error, "DSK-8", Automatic("the triggers are made again"))
            }
            Self::RenamedTable => (
                "renamed-table",
                Warning,
                "ALT-7",
                Automatic("the shadow tables are renamed, too, and the triggers are made again"),
            ),
            Self::UntrackedTable => (
                "untracked-table",
                Error,
                "DSK-9, BUG-1",
                ByHand("crsql_as_crr() takes the history up again, crsql_as_table() removes it"),
            ),
            Self::MissingIndex => ("missing-index", Error, "DSK-5, DSK-7", Automatic("the index is made again")),
            Self::BrokenRule => ("broken-rule", Warning, "CRR-2", ByHand("change the table as the text says")),
        };
        Facts { name, severity, rule, repair }
    }
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
