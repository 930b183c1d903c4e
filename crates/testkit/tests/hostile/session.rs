//! Any messages of a remote, in any order, to a session and the engine behind it.

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Result, Unstructured};
use litemesh::PeerError;
use litemesh::simulation::{Action, Event, Look, Process, Rank, Session, Timer, Work};
use litemesh_engine::proto::codec::v1::Envelope;
use litemesh_engine::proto::codec::v2::{self, Frame};
use litemesh_engine::proto::limits::VERSION_MAX;
use litemesh_engine::proto::{
    Ack, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Incarnation, Limits, PackedKey, Part,
    PeerMessage, Place, Position, Progress, Remote, Seq, SiteId, SyncRequest, Terms, Unverified, Value,
};
use litemesh_engine::{Engine, PageLimits, Severity};

const SCHEMA: &str = "
    CREATE TABLE todo (id INTEGER PRIMARY KEY NOT NULL, title, done);
    CREATE TABLE tag (t TEXT PRIMARY KEY NOT NULL);
    SELECT crsql_as_crr('todo'), crsql_as_crr('tag');
    INSERT INTO todo VALUES (1, 'a', 0), (2, 'b', 0), (3, 'c', 1), (4, 'd', 0), (5, 'e', 0);
    DELETE FROM todo WHERE id = 2;
    INSERT INTO tag VALUES ('t')";

const REMOTE: SiteId = SiteId::from_bytes([0x4e; 16]);

/// So small that a transaction goes in parts.
const PAGES: PageLimits = PageLimits { changes_max: 3, bytes_max: 600, stretch: 1 };

/// Works that a session may have under way: its opening, a merge and a read.
const JOBS_MAX: usize = 4;

/// Timers that a session may have set: one of each kind.
const TIMERS_MAX: usize = 3;

const STEPS_MAX: usize = 40;

/// One session, and what its driver keeps for it.
struct Scene {
    engine: Engine,
    process: Process,
    session: Session,
    jobs: VecDeque<Work>,
    timers: VecDeque<Timer>,
    look: Look,
    /// A message was received and is not answered yet.
    is_receiving: bool,
    is_sending: bool,
    is_over: bool,
    /// What the session asked for last, and how many messages of the answer the remote has sent.
    asked: Terms,
    sent: u64,
    /// The last message of the session that leads somewhere.
    heard: Progress,
    is_litemesh: bool,
}

/// Nothing panics, every message is answered once, queues are bounded, what the session says can be read; and afterwards the
/// database is consistent, and the application can go on writing.
pub(crate) fn check(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let mut scene = Scene::new(!matches!(bytes.arbitrary::<u8>(), Ok(0..64)));
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() || scene.is_over || scene.step(&mut bytes).is_err() {
            break;
        }
    }
    scene.finish();
}

impl Scene {
    fn new(is_litemesh: bool) -> Self {
        let engine = Engine::open_in_memory().expect("a database in memory");
        engine.connection().execute_batch(SCHEMA).expect("the schema is right");
        let look = Look::at(&engine).unwrap();
        let remote = Remote { site: REMOTE, connection: 1, is_litemesh };
        let limits = Limits { staged_bytes_max: 2000, catch_up_changes_max: 100, ..Limits::default() };
        let process = Process::new(look, true);
        let (session, opening) = Session::new(remote, Rank::LINE, &process, &limits, PAGES);
        Self {
            engine,
            process,
            session,
            jobs: VecDeque::from([opening]),
            timers: VecDeque::new(),
            look,
            is_receiving: false,
            is_sending: false,
            is_over: false,
            asked: Terms::default(),
            sent: 0,
            heard: Progress::default(),
            is_litemesh,
        }
    }

    fn step(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        match bytes.int_in_range(0..=15)? {
            0 => {
                let version: u8 = bytes.arbitrary()?;
                let id = i64::from(version % 4);
                let write = format!("INSERT OR REPLACE INTO todo VALUES ({id}, {version}, 0)");
                self.engine.connection().execute_batch(&write).expect("the application may write");
                self.announce();
            }
            1 => {
                if let Some(timer) = self.timers.pop_front() {
                    self.feed(Event::Woken(timer));
                }
            }
            2 | 3 if self.is_sending => {
                self.is_sending = false;
                self.feed(Event::Sent);
            }
            2..=5 => self.work(),
            6 | 7 => {
                let request = self.request(bytes)?;
                self.feed(Event::Asked(request));
            }
            8 => {
                let ack = Ack { answer: self.answer(bytes)?, number: number(bytes)?, until: number(bytes)? };
                self.receive(Unverified::new(PeerMessage::Ack(ack)));
            }
            9 => {
                let length = bytes.arbitrary::<u8>()?;
                let raw = bytes.bytes(usize::from(length).min(bytes.len()))?.to_vec();
                self.take_raw(&raw);
            }
            10 => {
                let progress = self.progress(bytes)?;
                self.receive(Unverified::new(PeerMessage::Eose { progress }));
            }
            _ => {
                let mut changes = Vec::new();
                for _ in 0..bytes.int_in_range(0..=4)? {
                    changes.push(change(bytes)?);
                }
                let schema_version = if bytes.ratio(1, 16)? { bytes.arbitrary()? } else { 0 };
                let progress = self.progress(bytes)?;
                self.receive(Unverified::new(PeerMessage::Changes { changes, schema_version, progress }));
            }
        }
        Ok(())
    }

    /// What the bytes say in the language of the remote.
    fn take_raw(&mut self, bytes: &[u8]) {
        if self.is_litemesh {
            match v2::decode(bytes, &Limits::default()) {
                Ok(Frame::Sync(request)) => self.feed(Event::Asked(request)),
                Ok(Frame::Message(message)) => self.receive(message),
                Ok(_) => {}
                Err(error) => self.feed(Event::Garbled(error.to_string())),
            }
            return;
        }
        match Envelope::parse(bytes).and_then(|envelope| envelope.message()) {
            Ok(message) => self.receive(message),
            Err(error) => self.feed(Event::Garbled(error.to_string())),
        }
    }

    /// One at a time: the next message waits for the answer to the last.
    fn receive(&mut self, message: Unverified) {
        while self.is_receiving && !self.is_over {
            assert!(!self.jobs.is_empty(), "a message is never answered");
            self.work();
        }
        if !self.is_over {
            self.is_receiving = true;
            self.feed(Event::Received(message));
        }
    }

    fn work(&mut self) {
        let Some(work) = self.jobs.pop_front() else { return };
        match work.run(&mut self.engine) {
            Ok(done) => self.feed(Event::Done(done)),
            // By its claims a remote can make this database look restored from a backup: then it is not talked to.
            Err(PeerError::Rewritten { .. }) => self.is_over = true,
            Err(error) => panic!("a remote makes work fail: {error}"),
        }
        self.announce();
    }

    fn announce(&mut self) {
        let look = Look::at(&self.engine).expect("a database in memory");
        if std::mem::replace(&mut self.look, look) != look && !self.is_over {
            self.process.announce(look);
            self.feed(Event::Announced);
        }
    }

    fn feed(&mut self, event: Event) {
        for action in self.session.handle(event) {
            match action {
                Action::Ask(request) => {
                    let read = v2::decode(&v2::sync(&request), &Limits::default());
                    assert!(matches!(read, Ok(Frame::Sync(found)) if found == request));
                    self.asked = request.terms.unwrap_or_default();
                    self.sent = 0;
                }
                Action::Send(message) => self.hear(&message),
                Action::Work(work) => self.jobs.push_back(work),
                Action::Wake(timer, _) => self.timers.push_back(timer),
                Action::EndAfter(delay, _) => self.is_over |= delay.is_zero(),
                Action::Reply(_) => assert!(std::mem::take(&mut self.is_receiving), "two answers to a message"),
                Action::Note(_) | Action::Tell(_) => {}
            }
        }
        assert!(self.jobs.len() <= JOBS_MAX && self.timers.len() <= TIMERS_MAX);
    }

    fn hear(&mut self, message: &PeerMessage) {
        assert!(!std::mem::replace(&mut self.is_sending, true), "two messages at once");
        if self.is_litemesh {
            let Ok(Frame::Message(read)) = v2::decode(&v2::message(message), &Limits::default()) else {
                panic!("{message:?}")
            };
            assert_eq!(read.verify(&Limits::default()).as_ref(), Ok(message));
        }
        if let Some(progress) = message.progress() {
            self.heard = progress.clone();
        }
    }

    /// Everything that is under way comes to its end.
    fn finish(mut self) {
        while !self.jobs.is_empty() && !self.is_over {
            self.work();
            if std::mem::take(&mut self.is_sending) && !self.is_over {
                self.feed(Event::Sent);
            }
        }
        assert!(self.is_over || !self.is_receiving, "a message was never answered");
        let found = self.engine.check().unwrap().map(std::result::Result::unwrap);
        let found: Vec<_> = found.filter(|finding| finding.kind.severity() != Severity::Info).collect();
        assert!(found.is_empty(), "{found:#?}");
        let version = self.engine.db_version().unwrap();
        self.engine.connection().execute_batch("INSERT INTO todo (title) VALUES ('still')").expect("may write");
        let next = self.engine.db_version().unwrap();
        assert!(version < next && next.get() <= VERSION_MAX, "{version} {next}");
        for (_, version) in self.engine.cursor().unwrap().iter() {
            assert!((0..=VERSION_MAX).contains(&version.get()), "{version}");
        }
    }

    // What the remote says.

    /// Mostly of the answer that is under way.
    fn answer(&self, bytes: &mut Unstructured<'_>) -> Result<u32> {
        if bytes.ratio(1, 8)? { bytes.arbitrary() } else { Ok(self.asked.answer) }
    }

    fn progress(&mut self, bytes: &mut Unstructured<'_>) -> Result<Option<Progress>> {
        if !self.is_litemesh {
            return Ok(None);
        }
        let answer = self.answer(bytes)?;
        let number = if bytes.ratio(1, 8)? { number(bytes)? } else { self.sent + 1 };
        self.sent = self.sent.max(number.min(1 << 32));
        let part = match bytes.int_in_range(0..=7)? {
            0 => Part::Piece { after: None, until: self.place(bytes)? },
            1 => Part::Piece { after: Some(self.place(bytes)?), until: self.place(bytes)? },
            2 => Part::Last { after: self.place(bytes)? },
            _ => Part::Whole,
        };
        let since = if bytes.ratio(1, 8)? { Some(self.position(bytes)?) } else { None };
        let position = if bytes.arbitrary()? { Some(self.position(bytes)?) } else { None };
        let as_of = if bytes.ratio(1, 4)? { Some(self.position(bytes)?) } else { None };
        let cursor = if bytes.arbitrary()? { Some(self.cursor(bytes)?) } else { None };
        Ok(Some(Progress {
            answer,
            number,
            part,
            more: bytes.arbitrary()?,
            provisional: bytes.arbitrary()?,
            since,
            position,
            as_of,
            cursor,
        }))
    }

    fn request(&mut self, bytes: &mut Unstructured<'_>) -> Result<SyncRequest> {
        let cursor = self.cursor(bytes)?;
        if !self.is_litemesh {
            return Ok(SyncRequest { cursor, terms: None });
        }
        let staged = if bytes.ratio(1, 4)? { Some(self.place(bytes)?) } else { None };
        let credit = if bytes.arbitrary()? { 16 } else { bytes.arbitrary()? };
        let as_of = if bytes.ratio(1, 4)? { Some(self.position(bytes)?) } else { None };
        let terms = Terms { answer: bytes.arbitrary()?, credit, position: self.position(bytes)?, staged, as_of };
        Ok(SyncRequest { cursor, terms: Some(terms) })
    }

    fn cursor(&self, bytes: &mut Unstructured<'_>) -> Result<Cursor> {
        let own = self.engine.site().expect("a database in memory");
        let mut cursor = Cursor::new();
        for _ in 0..bytes.int_in_range(0..=3)? {
            let site = *bytes.choose(&[own, REMOTE, SiteId::from_bytes([1; 16]), SiteId::from_bytes([2; 16])])?;
            cursor.advance(site, DbVersion::new(version(bytes)?));
        }
        Ok(cursor)
    }

    /// Made up, or as the session itself said it.
    fn position(&self, bytes: &mut Unstructured<'_>) -> Result<Position> {
        let heard = self.heard.position.unwrap_or_default();
        let incarnation = match bytes.int_in_range(0..=3)? {
            0 => Incarnation::default(),
            1 => Incarnation(bytes.arbitrary()?),
            _ => heard.incarnation,
        };
        let version = if bytes.arbitrary()? { heard.version } else { DbVersion::new(version(bytes)?) };
        Ok(Position { version, incarnation })
    }

    fn place(&self, bytes: &mut Unstructured<'_>) -> Result<Place> {
        Ok(match (bytes.int_in_range(0..=7)?, &self.heard.part) {
            (0, _) => Place(Vec::arbitrary(bytes)?.into()),
            (1, Part::Piece { until: place, .. } | Part::Last { after: place }) => place.clone(),
            (2, _) => Place([version(bytes)?.to_be_bytes(), version(bytes)?.to_be_bytes()].concat().into()),
            (n, _) => Place(Box::new([n % 2])),
        })
    }
}

fn number(bytes: &mut Unstructured<'_>) -> Result<u64> {
    if bytes.arbitrary()? { bytes.int_in_range(0..=20) } else { bytes.arbitrary() }
}

fn version(bytes: &mut Unstructured<'_>) -> Result<i64> {
    const ENDS: [i64; 7] = [i64::MAX, i64::MIN, -1, VERSION_MAX, VERSION_MAX + 1, 1 << 40, 1 << 41];
    match bytes.int_in_range(0..=5)? {
        0 => Ok(*bytes.choose(&ENDS)?),
        1 => bytes.arbitrary(),
        _ => bytes.int_in_range(0..=12),
    }
}

fn change(bytes: &mut Unstructured<'_>) -> Result<Change> {
    let small = |bytes: &mut Unstructured<'_>| bytes.int_in_range(1..=5_i64);
    let key = [Value::Integer(small(bytes)?), Value::text("t")];
    let (table, key, columns) = match bytes.int_in_range(0..=9)? {
        0 => ("tag", &key[1..], &["-1"][..]),
        1 => ("gone", &key[..1], &["title"][..]),
        2 => ("todo", &key[..], &["title"][..]),
        _ => ("todo", &key[..1], &["-1", "title", "done"][..]),
    };
    let db_version = if bytes.ratio(1, 8)? { version(bytes)? } else { small(bytes)? };
    Ok(Change {
        table: table.into(),
        key: PackedKey::pack(key).expect("one value or two"),
        column: Column::from(*bytes.choose(columns)?),
        value: if bytes.arbitrary()? { Value::Integer(small(bytes)?) } else { Value::blob(vec![7; 300]) },
        col_version: ColVersion::new(small(bytes)?),
        db_version: DbVersion::new(db_version),
        site: *bytes.choose(&[REMOTE, SiteId::from_bytes([1; 16])])?,
        causal_length: CausalLength::new(small(bytes)?),
        seq: Seq::new(small(bytes)?),
    })
}
