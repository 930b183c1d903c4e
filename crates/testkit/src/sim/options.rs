//! What a simulation may be like.

use fastrand::Rng;

/// What may happen. Each seed has only some of it: faults that always come together hide each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the comments beside say it
pub struct Faults {
    /// Connections break: what was under way arrives up to some message.
    pub breaks: bool,
    /// Nothing goes from one end of a wire to the other for a while, in one direction or both.
    pub partitions: bool,
    /// Messages are delivered again, later.
    pub repeats: bool,
    /// Processes die and start again.
    pub crashes: bool,
    /// A peer never comes back.
    pub vanishing: bool,
    /// Files are replaced by an older copy of themselves.
    pub restores: bool,
    /// Files are copied, and the copies become peers.
    pub copies: bool,
    /// Nothing can be written for a while.
    pub full_disks: bool,
    /// Some peers are up to a thousand times slower than others.
    pub slow: bool,
    /// A peer stops for a while, or all its timers are due at once.
    pub suspensions: bool,
    /// Applications upgrade their schema, each at its time.
    pub upgrades: bool,
    /// Some peers speak wire v1 only.
    pub v1: bool,
    /// Several transports between the same peers.
    pub double_wires: bool,
    /// Some peers are joined by a relay, which keeps messages and may forget some, beside a wire or in its place.
    pub relays: bool,
    /// Messages of a few changes, so that transactions come in parts.
    pub small_pages: bool,
    /// Messages arrive cut off, with something behind them, or with a bit that is another one.
    pub garbled: bool,
    /// Files are copied, and the copies become peers under the site id of the original. Not together with `restores`.
    pub twins: bool,
    /// Some peers keep the rules of the original.
    pub originals: bool,
    /// Applications write to a file that was restored before a remote has told it of the versions that it forgot, so that its
    /// site id stands for two things under one version (docs/storage.md, "Copies and backups"). Only with `restores`.
    pub hasty: bool,
    /// The wall clocks of machines jump by minutes to days, forward and back. Only with `relays`: nothing else reads them.
    pub clocks: bool,
    /// Machines lose their power, and with it all commits that are not on the disk yet. What a peer has acknowledged is to survive that,
    /// and the loss of who sent it. Not together with `restores`, `copies`, `twins` and `originals`, which break that promise themselves.
    pub power: bool,
}

impl Faults {
    /// Everything but power cuts.
    pub const ALL: Self = Self {
        breaks: true,
        partitions: true,
        repeats: true,
        crashes: true,
        vanishing: true,
        restores: true,
        copies: true,
        full_disks: true,
        slow: true,
        suspensions: true,
        upgrades: true,
        v1: true,
        double_wires: true,
        relays: true,
        small_pages: true,
        garbled: true,
        twins: true,
        originals: true,
        hasty: true,
        clocks: true,
        power: false,
    };

    /// Nothing but delays.
    pub const NONE: Self = Self {
        breaks: false,
        partitions: false,
        repeats: false,
        crashes: false,
        vanishing: false,
        restores: false,
        copies: false,
        full_disks: false,
        slow: false,
        suspensions: false,
        upgrades: false,
        v1: false,
        double_wires: false,
        relays: false,
        small_pages: false,
        garbled: false,
        twins: false,
        originals: false,
        hasty: false,
        clocks: false,
        power: false,
    };

    /// Those of a seed. `later` decides of those that came later, so that earlier seeds still have the others.
    pub(super) fn some(self, rng: &mut Rng, later: &mut Rng) -> Self {
        let mut half = |may: bool| may && rng.bool();
        let drawn = Self {
            breaks: half(self.breaks),
            partitions: half(self.partitions),
            repeats: half(self.repeats),
            crashes: half(self.crashes),
            vanishing: half(self.vanishing),
            restores: half(self.restores),
            copies: half(self.copies),
            full_disks: half(self.full_disks),
            slow: half(self.slow),
            suspensions: half(self.suspensions),
            upgrades: half(self.upgrades),
            v1: half(self.v1),
            double_wires: half(self.double_wires),
            relays: half(self.relays),
            small_pages: half(self.small_pages),
            garbled: half(self.garbled),
            twins: half(self.twins),
            originals: half(self.originals),
            hasty: false,
            clocks: false,
            power: self.power,
        };
        let hasty = later.bool() && self.hasty && drawn.restores;
        let clocks = later.bool() && self.clocks && drawn.relays;
        // Of a site that is there twice and has forgotten something nobody can say which of its writes are left. And the original
        // gives out what came to it in part as if it were all (A3): to who has it, that does no harm.
        let restores = drawn.restores;
        Self { twins: drawn.twins && !restores, originals: drawn.originals && !restores, hasty, clocks, ..drawn }
    }
}

/// What happens where a message is lost, or overtaken by a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lossy {
    /// Neither happens.
    #[default]
    No,
    /// The transport notices and ends the connection, as its contract asks.
    Cut,
    /// The session has to notice.
    PassOn,
}

/// The bounds of a simulation.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most peers at the beginning.
    pub nodes: usize,
    /// Most rounds, each followed by healing.
    pub rounds: usize,
    /// Most steps of a round.
    pub steps: usize,
    /// What may fail.
    pub faults: Faults,
    /// What becomes of messages that the carrier loses or reorders.
    pub lossy: Lossy,
    /// Peers with the rules of the original may be joined to two of ours.
    pub original_cycles: bool,
    /// What sessions let the engine do is done in any order, as by lanes (`litemesh`, `lanes.rs`): what one orders that has ended
    /// may be done long after the next one has begun.
    pub lanes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 5,
            rounds: 3,
            steps: 40,
            faults: Faults::ALL,
            lossy: Lossy::No,
            original_cycles: false,
            lanes: false,
        }
    }
}

/// Which peers there are, and who dials whom.
pub(super) struct Shape {
    pub(super) nodes: usize,
    pub(super) wires: Vec<[usize; 2]>,
    pub(super) pairings: Vec<[usize; 2]>,
    pub(super) v1_wires: Vec<[usize; 2]>,
    /// Peers with the rules of the original, after all others.
    pub(super) originals: usize,
    pub(super) original_wires: Vec<[usize; 2]>,
}

impl Options {
    pub(super) fn shape(&self, rng: &mut Rng, faults: Faults) -> Shape {
        let core = rng.usize(2..=self.nodes.max(2));
        let mut wires: Vec<[usize; 2]> = match rng.u8(..5) {
            0 => (1..core).map(|node| [node, node - 1]).collect(),
            1 => (0..core).map(|node| [node, (node + 1) % core]).filter(|[a, b]| a < b || core > 2).collect(),
            2 => (1..core).map(|node| [node, 0]).collect(),
            // Two hubs that know each other, and everybody at one of them or at both.
            3 => {
                let spokes = (2..core).flat_map(|node| [[node, node % 2], [node, (node + 1) % 2]]);
                let spokes: Vec<_> = spokes.filter(|[node, hub]| hub == &(node % 2) || rng.bool()).collect();
                std::iter::once([1, 0]).chain(spokes).collect()
            }
            _ => (0..core).flat_map(|a| (0..a).map(move |b| [a, b])).collect(),
        };
        if faults.double_wires {
            let again = rng.usize(1..=2);
            let doubled = rng.choose_multiple(wires.clone(), again);
            wires.extend(doubled.into_iter().map(|[a, b]| if rng.bool() { [a, b] } else { [b, a] }));
        }
        let mut pairings = Vec::new();
        if faults.relays {
            for wire in std::mem::take(&mut wires) {
                let (is_paired, is_wired) = (rng.bool(), rng.bool());
                if is_paired || !is_wired {
                    pairings.push(wire);
                }
                if is_wired {
                    wires.push(wire);
                }
            }
        }
        // Leaves: a cursor of wire v1 follows each message, so over a cycle it can claim what was beaten elsewhere.
        let leaves = if faults.v1 { rng.usize(1..=2) } else { 0 };
        let v1_wires = (0..leaves).map(|leaf| [core + leaf, rng.usize(..core)]).collect();
        // Each at one or two of ours, so that it can be a part of a cycle; never at each other, where messages would go round for
        // ever.
        let originals = if faults.originals { rng.usize(1..=2) } else { 0 };
        let mut original_wires = Vec::new();
        for original in core + leaves..core + leaves + originals {
            let count = if self.original_cycles { rng.usize(1..=2) } else { 1 };
            for ours in rng.choose_multiple(0..core, count) {
                original_wires.push(if rng.bool() { [original, ours] } else { [ours, original] });
            }
        }
        Shape { nodes: core + leaves, wires, pairings, v1_wires, originals, original_wires }
    }
}
