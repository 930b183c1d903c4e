//! A relay whose faults are set by the test: what it does with an event that is published, and with one that it is to deliver.
//!
//! It keeps regular events, the latest of each replaceable kind, and passes on ephemeral ones. Nothing in it depends on time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{SinkExt, StreamExt};
use nostr_relay_builder::prelude::{
    ClientMessage, Event, EventId, Filter, JsonUtil, Kind, MatchEventOptions, PublicKey, RelayMessage, SubscriptionId,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

/// Messages that wait for one client. What there is no room for is not delivered.
const OUTGOING_MAX: usize = 1 << 16;

/// What becomes of an event that somebody publishes.
pub enum Verdict {
    Store,
    /// It says that it has stored it, and has not.
    Lie,
    /// It says why not, such as `rate-limited: slow down`.
    Refuse(&'static str),
}

/// What becomes of a stored event that somebody is subscribed to.
pub enum Delivery {
    Now,
    Never,
    /// With [`HostileRelay::release`], the last one first.
    Late,
}

type Judge = Box<dyn FnMut(&Event) -> Verdict + Send>;
type Carrier = Box<dyn FnMut(&Event) -> Delivery + Send>;
type Delayed = Box<dyn Fn(&Event) -> bool + Send>;

struct State {
    events: Vec<Event>,
    judge: Judge,
    carrier: Carrier,
    held: Vec<Event>,
    /// Which events are answered only with [`HostileRelay::answer`].
    is_delayed: Delayed,
    /// What it still has to say to whom about events that were published.
    owed: Vec<(u64, String)>,
    /// Says nothing to who asks.
    is_mute: bool,
    /// Hangs up after so many messages of a client.
    messages_max: usize,
    /// Of each connection, what waits to be sent.
    clients: HashMap<u64, Client>,
    next_client: u64,
    /// How often each event was published.
    published: HashMap<EventId, usize>,
    published_first: usize,
    /// Events that it did not want.
    refused: usize,
    /// Events that it sent to who asked for what is stored.
    said: usize,
    /// The last CHANGES of each author.
    last_published: HashMap<PublicKey, EventId>,
}

struct Client {
    outgoing: mpsc::Sender<Option<String>>,
    subscriptions: HashMap<SubscriptionId, Vec<Filter>>,
}

#[derive(Clone)]
pub struct HostileRelay {
    state: Arc<Mutex<State>>,
    url: String,
}

impl HostileRelay {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let state = State {
            events: Vec::new(),
            judge: Box::new(|_| Verdict::Store),
            carrier: Box::new(|_| Delivery::Now),
            held: Vec::new(),
            is_delayed: Box::new(|_| false),
            owed: Vec::new(),
            is_mute: false,
            messages_max: usize::MAX,
            clients: HashMap::new(),
            next_client: 0,
            published: HashMap::new(),
            published_first: 0,
            refused: 0,
            said: 0,
            last_published: HashMap::new(),
        };
        let relay = Self { state: Arc::new(Mutex::new(state)), url };
        let serving = relay.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        relay
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// From now on.
    pub fn judge(&self, judge: impl FnMut(&Event) -> Verdict + Send + 'static) {
        self.state().judge = Box::new(judge);
    }

    /// From now on.
    pub fn carry(&self, carrier: impl FnMut(&Event) -> Delivery + Send + 'static) {
        self.state().carrier = Box::new(carrier);
    }

    /// From now on whether these were taken is said only with [`answer`](Self::answer): a line that is long.
    pub fn delay_answers(&self, is_delayed: impl Fn(&Event) -> bool + Send + 'static) {
        self.state().is_delayed = Box::new(is_delayed);
    }

    /// How many events are not answered yet.
    pub fn owed(&self) -> usize {
        self.state().owed.len()
    }

    /// Says of all of them whether they were taken. Gives how many that are.
    pub fn answer(&self) -> usize {
        let mut state = self.state();
        let owed = std::mem::take(&mut state.owed);
        for (client, text) in &owed {
            state.say_text(*client, text.clone());
        }
        owed.len()
    }

    /// How many events it has sent to who asked for what is stored.
    pub fn events_said(&self) -> usize {
        self.state().said
    }

    /// How many events it did not want.
    pub fn times_refused(&self) -> usize {
        self.state().refused
    }

    pub fn set_mute(&self, is_mute: bool) {
        self.state().is_mute = is_mute;
    }

    pub fn set_messages_max(&self, messages_max: usize) {
        self.state().messages_max = messages_max;
    }

    /// Forgets what it has stored of this kind.
    pub fn forget(&self, is_forgotten: impl Fn(&Event) -> bool) {
        self.state().events.retain(|event| !is_forgotten(event));
    }

    /// Somebody else has published this.
    pub fn keep(&self, event: &Event) {
        self.state().store(event);
    }

    /// Delivers what is late, backwards.
    pub fn release(&self) {
        let mut state = self.state();
        let held = std::mem::take(&mut state.held);
        for event in held.iter().rev() {
            state.deliver(event);
        }
    }

    /// Says to everybody subscribed under this name that there is this event, whatever it is.
    pub fn send_forged(&self, name: &str, event: &Event) {
        let state = self.state();
        let id = SubscriptionId::new(name);
        for client in state.clients.values().filter(|client| client.subscriptions.contains_key(&id)) {
            let _ = client.outgoing.try_send(Some(RelayMessage::event(id.clone(), event.clone()).as_json()));
        }
    }

    /// Gives up everybody's subscriptions.
    pub fn close_subscriptions(&self) {
        let mut state = self.state();
        for client in state.clients.values_mut() {
            for (id, _) in client.subscriptions.drain() {
                let closed = RelayMessage::closed(id, "error: shutting down idle subscriptions");
                let _ = client.outgoing.try_send(Some(closed.as_json()));
            }
        }
    }

    /// Hangs up on everybody.
    pub fn hang_up(&self) {
        for client in self.state().clients.values() {
            let _ = client.outgoing.try_send(None);
        }
    }

    /// What it has stored of a kind, in the order in which it came.
    pub fn events(&self, kind: Kind) -> Vec<Event> {
        self.state().events.iter().filter(|event| event.kind == kind).cloned().collect()
    }

    /// Connections whose client published something before it asked for anything.
    pub fn published_first(&self) -> usize {
        self.state().published_first
    }

    /// The CHANGES that this author has published last, whatever became of it.
    pub fn last_published(&self, author: PublicKey) -> Option<EventId> {
        self.state().last_published.get(&author).copied()
    }

    pub fn times_published(&self, id: EventId) -> usize {
        self.state().published.get(&id).copied().unwrap_or(0)
    }

    /// The streams of which it has events.
    pub fn streams(&self) -> std::collections::BTreeSet<String> {
        let stream = |event: &Event| litemesh_nostr::ChangesTags::of(event).unwrap().stream_id.to_string();
        self.events(litemesh_nostr::CHANGES_KIND).iter().map(stream).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn serve(self, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
        let (mut sink, mut source) = socket.split();
        let (outgoing, mut waiting) = mpsc::channel(OUTGOING_MAX);
        let number = {
            let mut state = self.state();
            state.next_client += 1;
            let number = state.next_client;
            state.clients.insert(number, Client { outgoing, subscriptions: HashMap::new() });
            number
        };
        let mut messages = 0;
        loop {
            tokio::select! {
                text = waiting.recv() => {
                    let Some(Some(text)) = text else { break };
                    if sink.send(Message::text(text)).await.is_err() {
                        break;
                    }
                }
                message = source.next() => {
                    let Some(Ok(message)) = message else { break };
                    messages += 1;
                    let mut state = self.state();
                    if messages > state.messages_max {
                        break;
                    }
                    if let Message::Text(text) = message
                        && let Ok(message) = ClientMessage::from_json(text.as_str())
                    {
                        state.published_first += usize::from(messages == 1 && message.is_event());
                        state.hear(number, message);
                    }
                }
            }
        }
        self.state().clients.remove(&number);
    }
}

impl State {
    fn hear(&mut self, client: u64, message: ClientMessage<'_>) {
        match message {
            ClientMessage::Event(event) => {
                let event = event.into_owned();
                *self.published.entry(event.id).or_default() += 1;
                if event.kind == litemesh_nostr::CHANGES_KIND {
                    self.last_published.insert(event.pubkey, event.id);
                }
                let (is_taken, reason) = match (self.judge)(&event) {
                    Verdict::Store => {
                        self.store(&event);
                        (true, String::new())
                    }
                    Verdict::Lie => (true, String::new()),
                    Verdict::Refuse(reason) => {
                        self.refused += 1;
                        (false, reason.to_owned())
                    }
                };
                let answer = RelayMessage::ok(event.id, is_taken, reason);
                if (self.is_delayed)(&event) {
                    self.owed.push((client, answer.as_json()));
                } else {
                    self.say(client, &answer);
                }
            }
            ClientMessage::Req { subscription_id, filters } => {
                let id = subscription_id.into_owned();
                let filters: Vec<Filter> = filters.into_iter().map(Cow::into_owned).collect();
                if !self.is_mute {
                    for event in self.stored(&filters) {
                        self.said += 1;
                        self.say(client, &RelayMessage::event(id.clone(), event));
                    }
                    self.say(client, &RelayMessage::eose(id.clone()));
                }
                if let Some(client) = self.clients.get_mut(&client) {
                    client.subscriptions.insert(id, filters);
                }
            }
            ClientMessage::Close(id) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.subscriptions.remove(id.as_ref());
                }
            }
            _ => {}
        }
    }

    fn store(&mut self, event: &Event) {
        if self.events.iter().any(|known| known.id == event.id) {
            return;
        }
        if event.kind.is_replaceable() {
            let is_same = |known: &Event| known.kind == event.kind && known.pubkey == event.pubkey;
            let is_newer = |known: &Event| (known.created_at, event.id) > (event.created_at, known.id);
            if self.events.iter().any(|known| is_same(known) && is_newer(known)) {
                return;
            }
            self.events.retain(|known| !is_same(known));
        }
        if !event.kind.is_ephemeral() {
            self.events.push(event.clone());
        }
        match (self.carrier)(event) {
            Delivery::Now => self.deliver(event),
            Delivery::Never => {}
            Delivery::Late => self.held.push(event.clone()),
        }
    }

    /// The newest first, as NIP-01 wants it, and nothing that has expired.
    fn stored(&self, filters: &[Filter]) -> Vec<Event> {
        let mut found: Vec<Event> = Vec::new();
        for filter in filters {
            let matches = |event: &&Event| !event.is_expired() && filter.match_event(event, MatchEventOptions::new());
            let mut events: Vec<Event> = self.events.iter().filter(matches).cloned().collect();
            events.sort_by_key(|event| (std::cmp::Reverse(event.created_at), event.id));
            events.truncate(filter.limit.unwrap_or(usize::MAX));
            found.extend(events);
        }
        found
    }

    fn deliver(&self, event: &Event) {
        for client in self.clients.values() {
            for (id, filters) in &client.subscriptions {
                if filters.iter().any(|filter| filter.match_event(event, MatchEventOptions::new())) {
                    let _ = client.outgoing.try_send(Some(RelayMessage::event(id.clone(), event.clone()).as_json()));
                }
            }
        }
    }

    fn say(&self, client: u64, message: &RelayMessage<'_>) {
        self.say_text(client, message.as_json());
    }

    fn say_text(&self, client: u64, text: String) {
        if let Some(client) = self.clients.get(&client) {
            let _ = client.outgoing.try_send(Some(text));
        }
    }
}
