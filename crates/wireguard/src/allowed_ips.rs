//! Cryptokey routing: which peer a destination belongs to, and which a source must come from (the
//! paper's section 2).
//!
//! For each family a trie of nodes that decide five bits at a time. A node holds the prefixes that
//! end within its five bits, and has a child for each value of the five that has something below;
//! both are bitmaps, and what they count lies in one block of an arena. Runs of bits in which
//! nothing is decided have no node: a node knows its whole path, and a lookup compares it.
//!
//! So a lookup takes at most 7 steps for IPv4 and 26 for IPv6, whatever prefixes an adversary
//! picks, without a hash to be keyed; a million random prefixes take about four, ten prefixes one
//! or two. All is in two flat arrays per family: cloning copies memory and chases nothing, which is
//! how a device changes its table while packets are looked up in the old one.
//!
//! A large table that has come to rest is given a `Shortcut`: the outcome of its first steps for
//! each value of the bits that they decide, so that a lookup begins behind them. What a lookup in it
//! costs is waiting for memory, and the addresses of a batch wait together.

use std::array;
use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{BitOr, BitXor, Range, Shl, Shr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes of both families, each with the value of whom it belongs to.
#[derive(Clone)]
pub struct AllowedIps<V> {
    v4: Trie<u32, V>,
    v6: Trie<u128, V>,
}

impl<V: Copy + Eq> AllowedIps<V> {
    /// No prefix at all.
    pub fn new() -> Self {
        Self {
            v4: Trie::new(),
            v6: Trie::new(),
        }
    }

    /// Gives `prefix` to `value`, and answers to whom it belonged.
    ///
    /// Bits beyond the prefix's length do not count.
    pub fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        match prefix {
            IpNet::V4(net) => self.v4.insert(prefix_v4(net), value),
            IpNet::V6(net) => self.v6.insert(prefix_v6(net), value),
        }
    }

    /// Takes `prefix` away from `value`. Answers `false`, and does nothing, if it is not its own.
    pub fn remove(&mut self, prefix: &IpNet, value: V) -> bool {
        match *prefix {
            IpNet::V4(net) => self.v4.remove(prefix_v4(net), value),
            IpNet::V6(net) => self.v6.remove(prefix_v6(net), value),
        }
    }

    /// Makes lookups in a large table faster, until its next change. Costs as much as some hundred
    /// changes, so it is for the end of a series of them.
    pub fn come_to_rest(&mut self) {
        self.v4.come_to_rest();
        self.v6.come_to_rest();
    }

    /// Takes every prefix away from `value`.
    pub fn remove_all(&mut self, value: V) {
        self.retain(|_, owner| owner != value);
    }

    /// Removes the prefixes for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(IpNet, V) -> bool) {
        self.v4.retain(|prefix, value| keep(prefix.into(), value));
        self.v6.retain(|prefix, value| keep(prefix.into(), value));
    }

    /// To whom the longest prefix that holds `ip` belongs.
    #[inline]
    pub fn lookup(&self, ip: IpAddr) -> Option<V> {
        match ip {
            IpAddr::V4(ip) => self.v4.lookup(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.lookup(ip.to_bits()),
        }
    }

    /// What [`lookup`](Self::lookup) answers for each of `ips`, in their order, in place of what was in
    /// `found`. In a large table that has come to rest many at once cost a fraction of one at a time.
    pub fn lookup_all(&self, ips: &[IpAddr], found: &mut Vec<Option<V>>) {
        found.clear();
        found.resize(ips.len(), None);
        self.v4.lookup_all(ips, found);
        self.v6.lookup_all(ips, found);
    }

    /// Every prefix with its value: IPv4 first, by address, the shorter first.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, V)> {
        let v4 = self.v4.sorted().into_iter();
        let v6 = self.v6.sorted().into_iter();
        v4.map(|(prefix, value)| (prefix.into(), value))
            .chain(v6.map(|(prefix, value)| (prefix.into(), value)))
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.v4.len + self.v6.len
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V: Copy + Eq> Default for AllowedIps<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Copy + Eq + fmt::Debug> fmt::Debug for AllowedIps<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Bits that a node decides.
const STRIDE: u8 = 5;

/// For each value of five bits: which of a node's prefixes hold it, numbered as [`place`] does.
const HOLDING: [u32; 32] = {
    let mut holding = [0; 32];
    let mut chunk = 0;
    while chunk < 32 {
        let mut level = 0;
        while level < STRIDE {
            holding[chunk] |= 1 << ((1 << level) - 1 + (chunk >> (STRIDE - level)));
            level += 1;
        }
        chunk += 1;
    }
    holding
};

/// The number of a node's prefix: those that end after `level` of the five bits come after all
/// that end before. `chunk` holds the five bits.
fn place(chunk: u32, level: u8) -> u32 {
    (1 << level) - 1 + (chunk >> (STRIDE - level))
}

/// An address as a number.
trait Bits:
    Copy
    + Ord
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Shl<u8, Output = Self>
    + Shr<u8, Output = Self>
{
    const ZERO: Self;
    const WIDTH: u8;
    /// The number of an address, if it is of this width.
    fn of(ip: IpAddr) -> Option<Self>;
    fn leading_zeros(self) -> u8;
    fn low_bits(self) -> u32;
    fn from_low_bits(bits: u32) -> Self;
}

impl Bits for u32 {
    const ZERO: Self = 0;
    const WIDTH: u8 = 32;
    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.to_bits()),
            IpAddr::V6(_) => None,
        }
    }
    fn leading_zeros(self) -> u8 {
        self.leading_zeros() as u8
    }
    fn low_bits(self) -> u32 {
        self
    }
    fn from_low_bits(bits: u32) -> Self {
        bits
    }
}

impl Bits for u128 {
    const ZERO: Self = 0;
    const WIDTH: u8 = 128;
    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.to_bits()),
        }
    }
    fn leading_zeros(self) -> u8 {
        self.leading_zeros() as u8
    }
    fn low_bits(self) -> u32 {
        self as u32
    }
    fn from_low_bits(bits: u32) -> Self {
        Self::from(bits)
    }
}

/// The first `len` bits of `bits`, the others zero.
fn head<B: Bits>(bits: B, len: u8) -> B {
    match B::WIDTH - len {
        rest if rest == B::WIDTH => B::ZERO,
        rest => bits >> rest << rest,
    }
}

/// The five bits behind the first `depth`, with zeros beyond the last bit. A `depth` is below the
/// width, which no multiple of five is.
#[inline]
fn chunk<B: Bits>(bits: B, depth: u8) -> u32 {
    (bits << depth >> (B::WIDTH - STRIDE)).low_bits()
}

/// How many of the first bits are the same.
#[inline]
fn common<B: Bits>(a: B, b: B) -> u8 {
    (a ^ b).leading_zeros()
}

/// How many of the bits below `bit` are set.
#[inline]
fn rank(bitmap: u32, bit: u32) -> u32 {
    (bitmap & ((1 << bit) - 1)).count_ones()
}

fn has(bitmap: u32, bit: u32) -> bool {
    bitmap >> bit & 1 != 0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix<B> {
    /// Zero beyond `len`.
    bits: B,
    len: u8,
}

impl<B: Bits> Prefix<B> {
    fn new(bits: B, len: u8) -> Self {
        let bits = head(bits, len);
        Self { bits, len }
    }

    /// The depth of the node in which the prefix ends.
    fn depth(self) -> u8 {
        self.len / STRIDE * STRIDE
    }

    /// Its number in that node.
    fn place(self) -> u32 {
        let depth = self.depth();
        place(chunk(self.bits, depth), self.len - depth)
    }
}

fn prefix_v4(net: Ipv4Net) -> Prefix<u32> {
    Prefix::new(net.addr().to_bits(), net.prefix_len())
}

fn prefix_v6(net: Ipv6Net) -> Prefix<u128> {
    Prefix::new(net.addr().to_bits(), net.prefix_len())
}

impl From<Prefix<u32>> for IpNet {
    fn from(prefix: Prefix<u32>) -> Self {
        let ip = Ipv4Addr::from_bits(prefix.bits);
        Ipv4Net::new(ip, prefix.len)
            .expect("a prefix is no longer than an address")
            .into()
    }
}

impl From<Prefix<u128>> for IpNet {
    fn from(prefix: Prefix<u128>) -> Self {
        let ip = Ipv6Addr::from_bits(prefix.bits);
        Ipv6Net::new(ip, prefix.len)
            .expect("a prefix is no longer than an address")
            .into()
    }
}

/// The prefixes of one family.
#[derive(Clone)]
struct Trie<B, V> {
    /// The root is the first. Of all slots in use it alone may be empty.
    slots: Arena<Slot<B, V>>,
    /// Values of prefixes that end within nodes.
    values: Arena<V>,
    len: usize,
    /// Only while the trie is as it was when this was made.
    shortcut: Option<Shortcut<B>>,
}

/// So many prefixes are worth a shortcut by so many bits. Smaller tries stay in the cache
/// without.
const SHORTCUTS: [(usize, u8); 2] = [(1 << 18, 4 * STRIDE), (1 << 12, 3 * STRIDE)];

/// Where the lookup of an address stands after the bits behind the root's path, and what it has
/// found by then, for each value of these bits.
#[derive(Clone)]
struct Shortcut<B> {
    /// What every address in the trie begins with.
    path: B,
    depth: u8,
    /// How many bits behind that are decided.
    bits: u8,
    stages: Box<[Stage]>,
}

/// A place in a lookup: the slot to look at next, and the value of the longest prefix so far.
#[derive(Debug, Clone, Copy)]
struct Stage {
    next: u32,
    best: u32,
}

/// No slot, or no value.
const NONE: u32 = u32::MAX;

impl Stage {
    const START: Self = Self {
        next: 0,
        best: NONE,
    };
    const END: Self = Self {
        next: NONE,
        best: NONE,
    };

    /// The stage behind a node of which an address has the path.
    #[inline]
    fn behind<B: Bits>(self, node: &Node<B>, chunk: u32) -> Self {
        let holding = node.prefixes & HOLDING[chunk as usize];
        Self {
            next: node.below(chunk).unwrap_or(NONE),
            best: match holding {
                0 => self.best,
                _ => node.values + rank(node.prefixes, holding.ilog2()),
            },
        }
    }
}

impl<B: Bits> Shortcut<B> {
    /// Where an address begins.
    #[inline]
    fn stage(&self, ip: B) -> Stage {
        if common(ip, self.path) < self.depth {
            return Stage::END;
        }
        self.stages[self.index(ip)]
    }

    #[inline]
    fn index(&self, ip: B) -> usize {
        (ip << self.depth >> (B::WIDTH - self.bits)).low_bits() as usize
    }
}

/// So many lookups go side by side: about as many misses of the cache as a core has under way at once.
const LANES: usize = 16;

/// One of the lookups that go side by side.
#[derive(Debug, Clone, Copy)]
struct Lane<B> {
    ip: B,
    /// Which of the addresses it is.
    at: usize,
    stage: Stage,
}

/// What is below one value of a node's five bits.
#[derive(Debug, Clone, Copy)]
enum Slot<B, V> {
    Empty,
    /// A prefix with nothing below.
    Leaf(Prefix<B>, V),
    Node(Node<B>),
}

/// What is decided by the five bits behind `depth`, for addresses that begin with `path`.
///
/// A node has two prefixes or children at least: a single prefix is a leaf, and what would be a
/// chain of only children is one node.
#[derive(Debug, Clone, Copy)]
struct Node<B> {
    /// Zero beyond `depth`.
    path: B,
    /// A multiple of five.
    depth: u8,
    /// Which prefixes end here, by [`place`].
    prefixes: u32,
    /// Which values of the five bits have something below.
    branches: u32,
    /// Where the prefixes' values begin.
    values: u32,
    /// Where the slots below begin.
    slots: u32,
}

impl<B: Bits, V> Slot<B, V> {
    /// What all below begins with, and how many bits of it.
    fn path(&self) -> (B, u8) {
        match self {
            Self::Empty => (B::ZERO, 0),
            Self::Leaf(prefix, _) => (prefix.bits, prefix.depth()),
            Self::Node(node) => (node.path, node.depth),
        }
    }
}

impl<B: Bits> Node<B> {
    fn new(path: B, depth: u8) -> Self {
        Self {
            path: head(path, depth),
            depth,
            prefixes: 0,
            branches: 0,
            values: 0,
            slots: 0,
        }
    }

    /// Where the slot is that `chunk` leads to.
    #[inline]
    fn below(&self, chunk: u32) -> Option<u32> {
        has(self.branches, chunk).then(|| self.slots + rank(self.branches, chunk))
    }

    /// Where the value of the prefix at `place` is.
    fn value(&self, place: u32) -> Option<u32> {
        has(self.prefixes, place).then(|| self.values + rank(self.prefixes, place))
    }

    /// Where the values of its prefixes are.
    fn all_values(&self) -> Range<u32> {
        self.values..self.values + self.prefixes.count_ones()
    }

    /// Where all below is.
    fn all_slots(&self) -> Range<u32> {
        self.slots..self.slots + self.branches.count_ones()
    }

    /// The prefix at `place`.
    fn prefix(&self, place: u32) -> Prefix<B> {
        let level = (place + 1).ilog2() as u8;
        let len = self.depth + level;
        let bits = match level {
            0 => self.path,
            _ => self.path | B::from_low_bits(place + 1 - (1 << level)) << (B::WIDTH - len),
        };
        Prefix { bits, len }
    }

    /// The prefixes that end here, each with where its value is.
    fn prefixes(&self) -> impl Iterator<Item = (Prefix<B>, u32)> {
        let places = (0..32).filter(|&place| has(self.prefixes, place));
        places
            .zip(self.values..)
            .map(|(place, at)| (self.prefix(place), at))
    }
}

impl<B: Bits, V: Copy + Eq> Trie<B, V> {
    fn new() -> Self {
        let mut slots = Arena::new();
        slots.put(Slot::Empty);
        Self {
            slots,
            values: Arena::new(),
            len: 0,
            shortcut: None,
        }
    }

    #[inline]
    fn lookup(&self, ip: B) -> Option<V> {
        let shortcut = self.shortcut.as_ref();
        let mut stage = shortcut.map_or(Stage::START, |shortcut| shortcut.stage(ip));
        while let Some(slot) = self.slots.items.get(stage.next as usize) {
            match slot {
                Slot::Node(node) if common(ip, node.path) >= node.depth => {
                    stage = stage.behind(node, chunk(ip, node.depth));
                }
                Slot::Leaf(prefix, value) if common(ip, prefix.bits) >= prefix.len => {
                    return Some(*value);
                }
                _ => break,
            }
        }
        self.values.items.get(stage.best as usize).copied()
    }

    /// Writes to `found` what those of `ips` that are of this family belong to. What it finds nothing for
    /// stays as it is.
    fn lookup_all(&self, ips: &[IpAddr], found: &mut [Option<V>]) {
        let mut own = (ips.iter().enumerate()).filter_map(|(at, ip)| Some((at, B::of(*ip)?)));
        let Some(shortcut) = &self.shortcut else {
            // It is in the cache, where there is nothing to wait for.
            for (at, ip) in own {
                found[at] = self.lookup(ip);
            }
            return;
        };
        loop {
            let mut lanes = [const {
                Lane {
                    ip: B::ZERO,
                    at: 0,
                    stage: Stage::END,
                }
            }; LANES];
            let mut count = 0;
            for (lane, (at, ip)) in lanes.iter_mut().zip(own.by_ref()) {
                let stage = shortcut.stage(ip);
                *lane = Lane { ip, at, stage };
                count += 1;
            }
            if count == 0 {
                return;
            }
            self.side_by_side(&mut lanes, found);
        }
    }

    fn side_by_side(&self, lanes: &mut [Lane<B>; LANES], found: &mut [Option<V>]) {
        let slots = &self.slots.items;
        // The root is always there.
        let last = slots.len() - 1;
        while lanes.iter().any(|lane| lane.stage.next != NONE) {
            // By itself, so that no slot is waited for before the next is asked for.
            let reached: [_; LANES] =
                array::from_fn(|lane| slots[last.min(lanes[lane].stage.next as usize)]);
            for (lane, slot) in lanes.iter_mut().zip(&reached) {
                if lane.stage.next == NONE {
                    continue;
                }
                match slot {
                    Slot::Node(node) if common(lane.ip, node.path) >= node.depth => {
                        lane.stage = lane.stage.behind(node, chunk(lane.ip, node.depth));
                    }
                    Slot::Leaf(prefix, value) if common(lane.ip, prefix.bits) >= prefix.len => {
                        found[lane.at] = Some(*value);
                        lane.stage = Stage::END;
                    }
                    _ => lane.stage.next = NONE,
                }
            }
        }
        for lane in lanes {
            if let Some(value) = self.values.items.get(lane.stage.best as usize) {
                found[lane.at] = Some(*value);
            }
        }
    }

    fn come_to_rest(&mut self) {
        let fitting = SHORTCUTS.into_iter().find(|&(least, _)| self.len >= least);
        let Some((_, bits)) = fitting.filter(|_| self.shortcut.is_none()) else {
            return;
        };
        let Slot::Node(Node { path, depth, .. }) = self.slots.items[0] else {
            return;
        };
        let mut shortcut = Shortcut {
            path,
            depth,
            bits,
            stages: vec![Stage::START; 1 << bits].into(),
        };
        // Each with the values of the bits that lead to it.
        let mut stages = vec![(Stage::START, 0..1 << bits)];
        while let Some((stage, values)) = stages.pop() {
            shortcut.stages[values.clone()].fill(stage);
            let Some(Slot::Node(node)) = self.slots.items.get(stage.next as usize) else {
                continue;
            };
            let Some(rest) = bits.checked_sub(node.depth - depth + STRIDE) else {
                continue;
            };
            // Those with another path end here.
            shortcut.stages[values].fill(Stage {
                next: NONE,
                ..stage
            });
            let first = shortcut.index(node.path);
            stages.extend((0..1 << STRIDE).map(|chunk: u32| {
                let from = first + ((chunk as usize) << rest);
                (stage.behind(node, chunk), from..from + (1 << rest))
            }));
        }
        self.shortcut = Some(shortcut);
    }

    fn insert(&mut self, prefix: Prefix<B>, value: V) -> Option<V> {
        self.shortcut = None;
        let mut at = 0;
        loop {
            let slot = self.slots.items[at as usize];
            let (path, depth) = slot.path();
            let shared = common(prefix.bits, path).min(depth).min(prefix.depth());
            let meet = shared / STRIDE * STRIDE;
            let slot = match slot {
                Slot::Leaf(same, before) if same == prefix => {
                    self.slots.items[at as usize] = Slot::Leaf(prefix, value);
                    return Some(before);
                }
                Slot::Node(node) if meet == depth && depth == prefix.depth() => {
                    return self.insert_here(at, node, prefix, value);
                }
                Slot::Node(node) if meet == depth => {
                    let chunk = chunk(prefix.bits, depth);
                    if let Some(below) = node.below(chunk) {
                        at = below;
                        continue;
                    }
                    let leaf = Slot::Leaf(prefix, value);
                    let index = rank(node.branches, chunk);
                    self.len += 1;
                    self.slots.items[at as usize] = Slot::Node(Node {
                        branches: node.branches | 1 << chunk,
                        slots: self.slots.grow(node.all_slots(), index, leaf),
                        ..node
                    });
                    return None;
                }
                Slot::Empty => {
                    self.len += 1;
                    self.slots.items[at as usize] = Slot::Leaf(prefix, value);
                    return None;
                }
                // What is there ends where the new one ends or goes on: a node for the two.
                Slot::Leaf(other, value) if meet == depth => Slot::Node(Node {
                    prefixes: 1 << other.place(),
                    values: self.values.put(value),
                    ..Node::new(path, depth)
                }),
                // They part above, or the new one ends there: that needs a node as well.
                _ => Slot::Node(Node {
                    branches: 1 << chunk(path, meet),
                    slots: self.slots.put(slot),
                    ..Node::new(path, meet)
                }),
            };
            self.slots.items[at as usize] = slot;
        }
    }

    /// Gives a prefix that ends in the node its value.
    fn insert_here(&mut self, at: u32, node: Node<B>, prefix: Prefix<B>, value: V) -> Option<V> {
        let place = prefix.place();
        if let Some(at) = node.value(place) {
            return Some(mem::replace(&mut self.values.items[at as usize], value));
        }
        self.len += 1;
        let index = rank(node.prefixes, place);
        self.slots.items[at as usize] = Slot::Node(Node {
            prefixes: node.prefixes | 1 << place,
            values: self.values.grow(node.all_values(), index, value),
            ..node
        });
        None
    }

    fn remove(&mut self, prefix: Prefix<B>, value: V) -> bool {
        self.shortcut = None;
        let mut above = None;
        let mut at = 0;
        loop {
            match self.slots.items[at as usize] {
                Slot::Leaf(same, owner) if same == prefix && owner == value => {
                    self.remove_leaf(at, above);
                    break;
                }
                Slot::Node(node) if node.depth < prefix.depth() => {
                    let chunk = chunk(prefix.bits, node.depth);
                    let Some(below) = node.below(chunk) else {
                        return false;
                    };
                    above = Some((at, node, chunk));
                    at = below;
                }
                Slot::Node(node)
                    if node.depth == prefix.depth()
                        && common(node.path, prefix.bits) >= node.depth
                        && let place = prefix.place()
                        && let Some(owner) = node.value(place)
                        && self.values.items[owner as usize] == value =>
                {
                    let index = rank(node.prefixes, place);
                    let node = Node {
                        prefixes: node.prefixes & !(1 << place),
                        values: self.values.shrink(node.all_values(), index),
                        ..node
                    };
                    self.settle(at, node);
                    break;
                }
                _ => return false,
            }
        }
        self.len -= 1;
        true
    }

    /// Takes a leaf out of the node `above`, which leads to it by a chunk.
    fn remove_leaf(&mut self, at: u32, above: Option<(u32, Node<B>, u32)>) {
        let Some((parent, node, chunk)) = above else {
            self.slots.items[at as usize] = Slot::Empty;
            return;
        };
        let index = rank(node.branches, chunk);
        let node = Node {
            branches: node.branches & !(1 << chunk),
            slots: self.slots.shrink(node.all_slots(), index),
            ..node
        };
        self.settle(parent, node);
    }

    /// Puts a node that has lost something back, or what is left of it if that is but one thing.
    fn settle(&mut self, at: u32, node: Node<B>) {
        let slot = match (node.prefixes.count_ones(), node.branches.count_ones()) {
            (1, 0) => {
                let value = self.values.items[node.values as usize];
                self.values.free(node.all_values());
                Slot::Leaf(node.prefix(node.prefixes.ilog2()), value)
            }
            (0, 1) => {
                let only = self.slots.items[node.slots as usize];
                self.slots.free(node.all_slots());
                only
            }
            _ => Slot::Node(node),
        };
        self.slots.items[at as usize] = slot;
    }

    fn retain(&mut self, mut keep: impl FnMut(Prefix<B>, V) -> bool) {
        let mut all = self.sorted();
        all.retain(|&(prefix, value)| !keep(prefix, value));
        for (prefix, value) in all {
            self.remove(prefix, value);
        }
    }

    fn sorted(&self) -> Vec<(Prefix<B>, V)> {
        let mut all = Vec::with_capacity(self.len);
        let mut slots = vec![0];
        while let Some(at) = slots.pop() {
            match &self.slots.items[at as usize] {
                Slot::Empty => {}
                Slot::Leaf(prefix, value) => all.push((*prefix, *value)),
                Slot::Node(node) => {
                    let value = |at| self.values.items[at as usize];
                    all.extend(node.prefixes().map(|(prefix, at)| (prefix, value(at))));
                    slots.extend(node.all_slots());
                }
            }
        }
        all.sort_unstable_by_key(|&(prefix, _)| prefix);
        all
    }
}

/// Blocks of 1 to 32 items in one allocation.
///
/// A block has no spare room: one more item moves it. What it leaves is used for the next block of
/// that size.
#[derive(Clone)]
struct Arena<T> {
    items: Vec<T>,
    /// Where blocks of each size are free, from size 1.
    free: [Vec<u32>; 32],
}

impl<T: Copy> Arena<T> {
    fn new() -> Self {
        Self {
            items: Vec::new(),
            free: [const { Vec::new() }; 32],
        }
    }

    /// Makes a block of one item.
    fn put(&mut self, item: T) -> u32 {
        self.grow(0..0, 0, item)
    }

    /// Inserts an item into a block, and answers where the block is now.
    fn grow(&mut self, block: Range<u32>, index: u32, item: T) -> u32 {
        let to = self.allocate(block.len() + 1, item);
        let (from, at) = (block.start as usize, to as usize);
        let (index, len) = (index as usize, block.len());
        self.items.copy_within(from..from + index, at);
        self.items[at + index] = item;
        self.items
            .copy_within(from + index..from + len, at + index + 1);
        self.free(block);
        to
    }

    /// Takes an item out of a block, and answers where the block is now.
    fn shrink(&mut self, block: Range<u32>, index: u32) -> u32 {
        let (from, index, len) = (block.start as usize, index as usize, block.len());
        if len == 1 {
            self.free(block);
            return 0;
        }
        let to = self.allocate(len - 1, self.items[from]);
        let at = to as usize;
        self.items.copy_within(from..from + index, at);
        self.items
            .copy_within(from + index + 1..from + len, at + index);
        self.free(block);
        to
    }

    fn allocate(&mut self, len: usize, filler: T) -> u32 {
        self.free[len - 1].pop().unwrap_or_else(|| {
            let at = self.items.len();
            self.items.resize(at + len, filler);
            u32::try_from(at).expect("memory ends before 2^32 nodes or values do")
        })
    }

    fn free(&mut self, block: Range<u32>) {
        if !block.is_empty() {
            self.free[block.len() - 1].push(block.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What the table should do, without a thought for speed.
    #[derive(Default)]
    struct Model(BTreeMap<IpNet, u8>);

    impl Model {
        fn lookup(&self, ip: IpAddr) -> Option<u8> {
            let holding = self.0.iter().filter(|(prefix, _)| prefix.contains(&ip));
            holding
                .max_by_key(|(prefix, _)| prefix.prefix_len())
                .map(|(_, value)| *value)
        }
    }

    #[test]
    fn the_longest_match_of_the_whole_table_decides_whose_an_address_is() {
        let mut table = AllowedIps::new();
        table.insert(net("10.1.0.0/16"), 'a');
        table.insert(net("10.1.2.0/24"), 'b');
        assert_eq!(table.lookup(ip("10.1.1.1")), Some('a'));
        assert_eq!(
            table.lookup(ip("10.1.2.1")),
            Some('b'),
            "not a's, whose /16 holds it"
        );
        assert_eq!(table.lookup(ip("10.2.0.1")), None);
    }

    #[test]
    fn a_prefix_moves_to_another_peer_in_one_step_and_is_not_the_first_ones_to_remove() {
        let mut table = AllowedIps::new();
        assert_eq!(table.insert(net("10.0.0.0/8"), 'a'), None);
        assert_eq!(table.insert(net("10.0.0.0/8"), 'b'), Some('a'));
        assert_eq!(table.len(), 1);
        assert!(!table.remove(&net("10.0.0.0/8"), 'a'));
        assert_eq!(table.lookup(ip("10.0.0.1")), Some('b'));
        assert!(table.remove(&net("10.0.0.0/8"), 'b'));
        assert_eq!(table.lookup(ip("10.0.0.1")), None);
        assert!(table.is_empty());
    }

    #[test]
    fn a_copy_is_looked_up_undisturbed_while_the_table_changes() {
        let mut table = AllowedIps::new();
        table.insert(net("10.0.0.0/8"), 'a');
        table.insert(net("fd00::/8"), 'a');
        let before = table.clone();
        table.remove_all('a');
        table.insert(net("fd00::/8"), 'b');
        assert_eq!(before.lookup(ip("10.0.0.1")), Some('a'));
        assert_eq!(before.lookup(ip("fd00::1")), Some('a'));
        assert_eq!(table.lookup(ip("10.0.0.1")), None);
        assert_eq!(table.lookup(ip("fd00::1")), Some('b'));
    }

    /// The cases of `selftest/allowedips.c` in the kernel, IPv4.
    #[test]
    fn the_kernels_ipv4_cases_hold() {
        let mut table = AllowedIps::new();
        for (prefix, peer) in [
            ("192.168.4.0/24", 'a'),
            ("192.168.4.4/32", 'b'),
            ("192.168.0.0/16", 'c'),
            ("192.95.5.64/27", 'd'),
            ("192.95.5.65/27", 'c'),
            ("0.0.0.0/0", 'e'),
            ("64.15.112.0/20", 'g'),
            ("64.15.123.211/25", 'h'),
            ("10.0.0.0/25", 'a'),
            ("10.0.0.128/25", 'b'),
            ("10.1.0.0/30", 'a'),
            ("10.1.0.4/30", 'b'),
            ("10.1.0.8/29", 'c'),
            ("10.1.0.16/29", 'd'),
        ] {
            table.insert(net(prefix), peer);
        }
        for (address, peer) in [
            ("192.168.4.20", 'a'),
            ("192.168.4.0", 'a'),
            ("192.168.4.4", 'b'),
            ("192.168.200.182", 'c'),
            ("192.95.5.68", 'c'),
            ("192.95.5.96", 'e'),
            ("64.15.116.26", 'g'),
            ("64.15.127.3", 'g'),
            ("64.15.123.1", 'g'),
            ("64.15.123.128", 'h'),
            ("64.15.123.129", 'h'),
            ("10.0.0.52", 'a'),
            ("10.0.0.220", 'b'),
            ("10.1.0.2", 'a'),
            ("10.1.0.6", 'b'),
            ("10.1.0.10", 'c'),
            ("10.1.0.20", 'd'),
        ] {
            assert_eq!(table.lookup(ip(address)), Some(peer), "{address}");
        }
        for (prefix, peer) in [
            ("1.0.0.0/32", 'a'),
            ("64.0.0.0/32", 'a'),
            ("128.0.0.0/32", 'a'),
            ("192.0.0.0/32", 'a'),
            ("255.0.0.0/32", 'a'),
        ] {
            table.insert(net(prefix), peer);
        }
        table.remove_all('a');
        for address in ["1.0.0.0", "64.0.0.0", "128.0.0.0", "192.0.0.0", "255.0.0.0"] {
            assert_ne!(table.lookup(ip(address)), Some('a'), "{address}");
        }
        table.retain(|_, _| false);
        table.insert(net("192.168.0.0/16"), 'a');
        table.insert(net("192.168.0.0/24"), 'a');
        table.remove_all('a');
        assert_eq!(table.lookup(ip("192.168.0.1")), None);
        assert!(table.is_empty());
    }

    /// The cases of `selftest/allowedips.c` in the kernel, IPv6.
    #[test]
    fn the_kernels_ipv6_cases_hold() {
        let mut table = AllowedIps::new();
        for (prefix, peer) in [
            ("2607:5300:6000:6b00::c05f:543/128", 'd'),
            ("2607:5300:6000:6b00::/64", 'c'),
            ("::/0", 'e'),
            ("::/0", 'f'),
            ("2404:6800::/32", 'g'),
            ("2404:6800:4004:800:dead:beef:dead:beef/64", 'h'),
            ("2404:6800:4004:800:dead:beef:dead:beef/128", 'a'),
            ("2444:6800:40e4:800:deae:beef:def:beef/128", 'c'),
            ("2444:6800:f0e4:800:eeae:beef::/98", 'b'),
        ] {
            table.insert(net(prefix), peer);
        }
        for (address, peer) in [
            ("2607:5300:6000:6b00::c05f:543", 'd'),
            ("2607:5300:6000:6b00::c02e:1ee", 'c'),
            ("2607:5300:6000:6b01::", 'f'),
            ("2404:6800:4004:806::1006", 'g'),
            ("2404:6800:4004:806:0:1234:0:5678", 'g'),
            ("2404:67ff:4004:806:0:1234:0:5678", 'f'),
            ("2404:6801:4004:806:0:1234:0:5678", 'f'),
            ("2404:6800:4004:800:0:1234:0:5678", 'h'),
            ("2404:6800:4004:800::", 'h'),
            ("2404:6800:4004:800:1010:1010:1010:1010", 'h'),
            ("2404:6800:4004:800:dead:beef:dead:beef", 'a'),
        ] {
            assert_eq!(table.lookup(ip(address)), Some(peer), "{address}");
        }
        // Each differs from all others in one bit, at every depth there is.
        let mut table = AllowedIps::new();
        for bit in 0..128 {
            let address = Ipv6Addr::from_bits(!(1 << bit));
            table.insert(IpNet::from(IpAddr::from(address)), bit);
        }
        for bit in 0..128 {
            let address = Ipv6Addr::from_bits(!(1 << bit));
            assert_eq!(table.lookup(address.into()), Some(bit));
        }
    }

    /// The kernel's case of what is listed, `wg_allowedips_read_node`.
    #[test]
    fn prefixes_are_listed_in_order_and_without_the_bits_beyond_their_length() {
        let mut table = AllowedIps::new();
        for prefix in [
            "192.95.5.93/27",
            "2607:5300:6000:6b00::c05f:543/128",
            "10.1.0.20/29",
            "2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523/83",
            "2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523/21",
        ] {
            table.insert(net(prefix), 'a');
        }
        let listed: Vec<_> = table.iter().map(|(prefix, _)| prefix.to_string()).collect();
        assert_eq!(
            listed,
            [
                "10.1.0.16/29",
                "192.95.5.64/27",
                "2607:5000::/21",
                "2607:5300:6000:6b00::c05f:543/128",
                "2607:5300:6d8a:6bf8:dab1:e000::/83",
            ]
        );
    }

    #[test]
    fn every_length_nests_in_every_shorter_one() {
        for (address, width) in [
            ("85.170.85.170", 32),
            ("5555:aaaa:5555:aaaa:5555:aaaa:5555:aaaa", 128),
        ] {
            let ip = ip(address);
            let mut table = AllowedIps::new();
            for len in 0..=width {
                table.insert(IpNet::new(ip, len).expect("a length within the width"), len);
                assert_eq!(table.lookup(ip), Some(len));
            }
            let lengths: Vec<_> = table
                .iter()
                .map(|(prefix, _)| prefix.prefix_len())
                .collect();
            assert_eq!(lengths, (0..=width).collect::<Vec<_>>());
            for len in (0..=width).rev() {
                assert_eq!(table.lookup(ip), Some(len));
                table.remove_all(len);
            }
            assert_eq!(table.lookup(ip), None);
        }
    }

    #[test]
    fn a_table_that_is_emptied_and_filled_again_does_not_grow() {
        let mut table = AllowedIps::new();
        let mut sizes = Vec::new();
        for round in 0..5 {
            for n in 0..1000_u32 {
                let bits = n.wrapping_mul(0x9e37_79b9);
                let prefix = Ipv4Net::new(Ipv4Addr::from_bits(bits), 8 + (n % 25) as u8);
                table.insert(prefix.expect("a length within the width").into(), round);
            }
            sizes.push((table.v4.slots.items.len(), table.v4.values.items.len()));
            table.remove_all(round);
            assert!(table.is_empty());
        }
        assert_eq!(sizes[1..], [sizes[1]; 4]);
    }

    #[test]
    fn a_large_table_at_rest_answers_as_it_does_while_it_changes() {
        for (count, bits) in [(1 << 12, 15), (1 << 18, 20)] {
            let mut table = AllowedIps::new();
            let mut numbers = (0..).map(|n: u64| {
                let n = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (n ^ n >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
            });
            let mut next = || numbers.next().expect("there is no end");
            // Some agree in many bits, so that paths are long; some lengths end within the shortcut.
            let mut addresses = Vec::new();
            while table.v4.len < count || table.v6.len < count {
                let (n, len) = (next(), next());
                let near = if n % 3 == 0 { 0xff } else { 0xffff_ffff };
                let v4 = IpAddr::from(Ipv4Addr::from_bits((n >> 16) as u32 & near | 0x0a00_0000));
                let v6 = u128::from(n) << 60 & !(u128::from(!near) << 90) | 0xfd << 120;
                let v6 = IpAddr::from(Ipv6Addr::from_bits(v6));
                for (ip, width) in [(v4, 32), (v6, 128)] {
                    let len = if len % 4 == 0 {
                        len >> 8 & 31
                    } else {
                        width - (len >> 8 & 15)
                    };
                    let net = IpNet::new(ip, len.max(5) as u8).expect("a length within the width");
                    table.insert(net, n as u32 % 50);
                    addresses.extend([net.addr(), net.network(), net.broadcast()]);
                }
            }
            let mut rested = table.clone();
            rested.come_to_rest();
            for found in [
                rested.v4.shortcut.as_ref().map(|shortcut| shortcut.bits),
                rested.v6.shortcut.as_ref().map(|shortcut| shortcut.bits),
            ] {
                assert_eq!(found, Some(bits));
            }
            addresses.extend((0..count).map(|_| IpAddr::from(Ipv4Addr::from_bits(next() as u32))));
            let mut found = vec![Some(99)];
            rested.lookup_all(&addresses, &mut found);
            assert_eq!(found.len(), addresses.len());
            for (&ip, found) in addresses.iter().zip(found) {
                assert_eq!(rested.lookup(ip), table.lookup(ip), "{ip}");
                assert_eq!(found, table.lookup(ip), "{ip}");
            }
            // Any change ends it.
            rested.insert(net("10.0.0.0/32"), 99);
            assert_eq!(rested.lookup(ip("10.0.0.0")), Some(99));
        }
    }

    /// One step in the life of a table.
    #[derive(Debug, Clone)]
    enum Step {
        Insert(IpNet, u8),
        Remove(IpNet, u8),
        RemoveAll(u8),
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_list(
            steps in vec(step(), 1..60),
            addresses in vec(address(), 30),
        ) {
            let mut table = AllowedIps::new();
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Insert(prefix, value) => {
                        let before = model.0.insert(prefix.trunc(), value);
                        prop_assert_eq!(table.insert(prefix, value), before);
                    }
                    Step::Remove(prefix, value) => {
                        let own = model.0.get(&prefix.trunc()) == Some(&value);
                        if own {
                            model.0.remove(&prefix.trunc());
                        }
                        prop_assert_eq!(table.remove(&prefix, value), own);
                    }
                    Step::RemoveAll(value) => {
                        model.0.retain(|_, owner| *owner != value);
                        table.remove_all(value);
                    }
                }
                prop_assert_eq!(table.len(), model.0.len());
            }
            check_shape(&table.v4);
            check_shape(&table.v6);
            let mut found = Vec::new();
            table.lookup_all(&addresses, &mut found);
            for (address, found) in addresses.into_iter().zip(found) {
                prop_assert_eq!(table.lookup(address), model.lookup(address));
                prop_assert_eq!(found, model.lookup(address));
            }
            for prefix in model.0.keys() {
                prop_assert_eq!(table.lookup(prefix.addr()), model.lookup(prefix.addr()));
                prop_assert_eq!(table.lookup(prefix.broadcast()), model.lookup(prefix.broadcast()));
            }
            prop_assert_eq!(table.iter().collect::<Vec<_>>(), model.0.into_iter().collect::<Vec<_>>());
        }
    }

    /// No node is there for nothing, no slot is out of place, and none is lost.
    fn check_shape<B: Bits, V: Copy + Eq>(trie: &Trie<B, V>) {
        let (mut slots, mut values, mut leaves) = (0, 0, 0);
        let mut stack = vec![(0, None)];
        while let Some((at, from)) = stack.pop() {
            slots += 1;
            let slot = &trie.slots.items[at as usize];
            let (path, depth) = slot.path();
            if let Some((above, above_depth, branch)) = from {
                assert!(above_depth < depth);
                assert_eq!(chunk(path, above_depth), branch);
                assert!(common(path, above) >= above_depth);
            }
            match slot {
                Slot::Empty => assert_eq!((at, trie.len), (0, 0)),
                Slot::Leaf(..) => leaves += 1,
                Slot::Node(node) => {
                    assert_eq!(depth % STRIDE, 0);
                    assert!(node.all_values().len() + node.all_slots().len() > 1);
                    values += node.all_values().len();
                    let chunks = (0..32).filter(|&chunk| has(node.branches, chunk));
                    let below = chunks.zip(node.all_slots());
                    stack.extend(below.map(|(chunk, at)| (at, Some((path, depth, chunk)))));
                }
            }
        }
        assert_eq!(leaves + values, trie.len);
        assert_eq!(values + trie.values.idle(), trie.values.items.len());
        assert_eq!(slots + trie.slots.idle(), trie.slots.items.len());
    }

    impl<T> Arena<T> {
        /// How many items are in free blocks.
        fn idle(&self) -> usize {
            let sizes = self.free.iter().zip(1..);
            sizes.map(|(blocks, size)| blocks.len() * size).sum()
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (prefix(), 0..4u8).prop_map(|(prefix, value)| Step::Insert(prefix, value)),
            3 => (prefix(), 0..4u8).prop_map(|(prefix, value)| Step::Remove(prefix, value)),
            1 => (0..4u8).prop_map(Step::RemoveAll),
        ]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), any::<u8>()).prop_map(|(ip, len)| {
            let width = if ip.is_ipv4() { 32 } else { 128 };
            IpNet::new(ip, len % (width + 1)).expect("a length within the width")
        })
    }

    /// Addresses close enough to each other that prefixes nest, part and meet again.
    fn address() -> impl Strategy<Value = IpAddr> {
        let few = prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0x0f), Just(0xff)];
        prop_oneof![
            vec(few.clone(), 4).prop_map(|b| IpAddr::from([b[0], b[1], b[2], b[3]])),
            vec(few, 16).prop_map(|b| IpAddr::from(<[u8; 16]>::try_from(b).expect("sixteen"))),
        ]
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }
}
