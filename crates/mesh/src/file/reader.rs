//! From TOML to a directory, item by item, carrying on after each that is wrong.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use warren_config::PublicKey;

use super::Position;
use crate::DEFAULT_KEEPALIVE_SECS;
use crate::directory::{Directory, KeyFile, Mesh, Node, Pair};
use crate::endpoint::Endpoint;
use crate::name::{NodeName, nearest};
use crate::problem::{Field, Place, Subject};
use crate::review::{MTU_MAX, MTU_MIN};

const MESH_FIELDS: &[Field] = &[
    Field::Name,
    Field::Prefixes,
    Field::Port,
    Field::Mtu,
    Field::PresharedKeyFile,
    Field::Interface,
    Field::Table,
    Field::RulePriority,
    Field::Fwmark,
];
const NODE_FIELDS: &[Field] = &[
    Field::Name,
    Field::PublicKey,
    Field::Endpoints,
    Field::Addresses,
    Field::Prefixes,
    Field::Keepalive,
];
const PAIR_FIELDS: &[Field] = &[Field::Nodes, Field::PresharedKeyFile];

/// What people who know `wg-quick` write, and what it is called here.
const KNOWN_ELSEWHERE: &[(&str, Field)] = &[
    ("allowed_ips", Field::Prefixes),
    ("allowedips", Field::Prefixes),
    ("subnets", Field::Prefixes),
    ("routes", Field::Prefixes),
    ("cidrs", Field::Prefixes),
    ("ip", Field::Addresses),
    ("ips", Field::Addresses),
    ("key", Field::PublicKey),
    ("pubkey", Field::PublicKey),
    ("psk", Field::PresharedKeyFile),
    ("preshared_key", Field::PresharedKeyFile),
    ("presharedkey", Field::PresharedKeyFile),
    ("listen_port", Field::Port),
    ("listenport", Field::Port),
    ("persistent_keepalive", Field::Keepalive),
    ("persistentkeepalive", Field::Keepalive),
    ("hostname", Field::Name),
];

/// What a file says, as far as it could be read.
pub(super) struct Read {
    pub(super) directory: Directory,
    /// Where each item is.
    pub(super) positions: BTreeMap<Subject, Position>,
    /// What could not be read, and why.
    pub(super) faults: Vec<(Option<Position>, String)>,
    /// Fields of which something is missing in the directory, though not in the file.
    pub(super) incomplete: BTreeSet<Subject>,
    /// Whether it is TOML at all; otherwise anything may be missing.
    pub(super) well_formed: bool,
}

pub(super) struct Reader<'a> {
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    positions: BTreeMap<Subject, Position>,
    faults: Vec<(Option<Position>, String)>,
    incomplete: BTreeSet<Subject>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl<'a> Reader<'a> {
    pub(super) fn read(text: &'a str) -> Read {
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(newline, _)| newline + 1))
            .collect();
        let mut reader = Self {
            text,
            lines,
            positions: BTreeMap::new(),
            faults: Vec::new(),
            incomplete: BTreeSet::new(),
        };
        let (document, errors) = DeTable::parse_recoverable(text);
        let well_formed = errors.is_empty();
        let directory = reader.document(document.get_ref(), well_formed);
        reader.not_toml(&errors);
        Read {
            directory,
            positions: reader.positions,
            faults: reader.faults,
            incomplete: reader.incomplete,
            well_formed,
        }
    }

    /// What keeps the text from being TOML.
    ///
    /// One bracket too few makes nonsense of all that follows, so that only the first such fault is
    /// named, and of what was read only that which stands before it. A key given twice is clear.
    fn not_toml(&mut self, errors: &[toml::de::Error]) {
        let mut end: Option<Position> = None;
        let mut twice = Vec::new();
        for error in errors {
            let position = error.span().map(|span| self.position(span.start));
            let message = error.message().lines().next().unwrap_or_default();
            if message == "duplicate key" {
                let text = "the field is given twice here; keep one of the two";
                twice.push((position, text.to_owned()));
            } else if end.is_none() {
                end = position;
                let text = format!("this is not TOML: {message}; what follows could not be read");
                twice.push((position, text));
            }
        }
        self.faults
            .retain(|(position, _)| end.is_none() || *position < end);
        twice.retain(|(position, _)| end.is_none() || *position <= end);
        self.faults.append(&mut twice);
    }

    fn document(&mut self, document: &DeTable<'a>, well_formed: bool) -> Directory {
        let mut directory = Directory {
            mesh: Mesh::default(),
            nodes: BTreeMap::new(),
            pairs: BTreeMap::new(),
        };
        for (key, value) in document {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("mesh", DeValue::Table(table)) => {
                    self.put(Subject::of(Place::Mesh), key.span());
                    directory.mesh = self.mesh(table);
                }
                ("mesh", _) => {
                    let of = Field::Prefixes;
                    self.incomplete.insert(Subject::entry(Place::Mesh, of, 0));
                    self.fault(
                        key.span(),
                        "\"mesh\" is a table; begin it with a line [mesh]",
                    );
                }
                ("node", DeValue::Array(nodes)) => {
                    for node in nodes {
                        self.node(node, &mut directory.nodes);
                    }
                }
                ("pair", DeValue::Array(pairs)) => {
                    for pair in pairs {
                        self.pair(pair, &mut directory.pairs);
                    }
                }
                (name @ ("node" | "pair"), _) => {
                    let text = format!(
                        "there may be many of \"{name}\"; begin each with a line [[{name}]], in \
                         two pairs of brackets"
                    );
                    self.fault(key.span(), text);
                }
                (name, _) => {
                    let known = ["mesh", "node", "pair"];
                    let text = match nearest(name, known) {
                        Some("mesh") => format!("{name:?} is unknown; did you mean [mesh]?"),
                        Some(meant) => format!("{name:?} is unknown; did you mean [[{meant}]]?"),
                        None => format!(
                            "{name:?} is unknown; a mesh file has [mesh], [[node]] and [[pair]], \
                             and every field stands below one of them"
                        ),
                    };
                    self.fault(key.span(), text);
                }
            }
        }
        if !document.contains_key("mesh") && well_formed {
            let text = "there is no [mesh]; begin with the lines [mesh] and \
                        prefixes = [\"10.77.0.0/16\"]";
            self.faults.push((None, text.to_owned()));
        }
        if !document.contains_key("mesh") {
            let of = Field::Prefixes;
            self.incomplete.insert(Subject::entry(Place::Mesh, of, 0));
        }
        directory
    }

    fn mesh(&mut self, table: &DeTable<'a>) -> Mesh {
        let place = Place::Mesh;
        let default = Mesh::default();
        self.unknown_fields(&place, table, MESH_FIELDS);
        Mesh {
            name: self
                .string(&place, table, Field::Name)
                .unwrap_or(default.name),
            port: self
                .number(&place, table, Field::Port, 1..=u16::MAX, 51820)
                .unwrap_or(default.port),
            mtu: self
                .number(&place, table, Field::Mtu, MTU_MIN..=MTU_MAX, 1420)
                .unwrap_or(default.mtu),
            prefixes: self.prefixes(&place, table),
            preshared_key: self.key_file(&place, table),
            interface: self
                .string(&place, table, Field::Interface)
                .unwrap_or(default.interface),
            table: self
                .number(&place, table, Field::Table, 1..=u32::MAX, default.table)
                .unwrap_or(default.table),
            rule_priority: self
                .number(
                    &place,
                    table,
                    Field::RulePriority,
                    1..=u32::MAX,
                    default.rule_priority,
                )
                .unwrap_or(default.rule_priority),
            fwmark: self
                .number(&place, table, Field::Fwmark, 1..=u32::MAX, default.fwmark)
                .unwrap_or(default.fwmark),
            enforcement: default.enforcement,
            steering: default.steering,
            masquerade: default.masquerade,
        }
    }

    fn node(&mut self, value: &Value<'a>, nodes: &mut BTreeMap<NodeName, Node>) {
        let DeValue::Table(table) = value.get_ref() else {
            self.fault(
                value.span(),
                "a node is a table; begin it with a line [[node]]",
            );
            return;
        };
        // Whatever its name, the node is read to the end, so that all its faults are found. A node
        // without a name of its own does so under a name that no node can have.
        let name = match table
            .get("name")
            .map(|name| (name, name.get_ref().as_str()))
        {
            Some((at, Some(text))) => match text.parse::<NodeName>() {
                Ok(name) => Some(name),
                Err(error) => {
                    self.fault(
                        at.span(),
                        format!("[[node]], name: {text:?} is no name; {error}"),
                    );
                    None
                }
            },
            Some((at, None)) => {
                let found = self.source(at.span());
                let text = format!(
                    "[[node]], name: {found} is not a string; write it in quotes, as in \"hut\""
                );
                self.fault(at.span(), text);
                None
            }
            None => {
                let text = "[[node]]: there is no name; give the node one, as in name = \"hut\"";
                self.fault(value.span(), text);
                None
            }
        };
        let taken = name.as_ref().and_then(|name| {
            self.positions
                .get(&Subject::of(Place::Node(name.clone())))
                .copied()
        });
        if name.is_none() {
            self.incomplete
                .insert(Subject::node(&NodeName::NOBODY, Field::Name, 0));
        }
        let scratch = Place::Node(
            name.clone()
                .filter(|_| taken.is_none())
                .unwrap_or(NodeName::NOBODY),
        );
        self.put(Subject::of(scratch.clone()), value.span());
        self.unknown_fields(&scratch, table, NODE_FIELDS);
        if let Some(at) = table.get("name") {
            self.put(Subject::entry(scratch.clone(), Field::Name, 0), at.span());
        }
        let node = Node {
            public_key: self.public_key(&scratch, table),
            endpoints: self.list(
                &scratch,
                table,
                Field::Endpoints,
                "an address or a host name, with or without a port, as in \"hut.example.org\"",
                |text| text.parse::<Endpoint>().map_err(|error| error.to_string()),
            ),
            addresses: self.list(
                &scratch,
                table,
                Field::Addresses,
                "an address, as in \"10.77.0.1\"",
                address,
            ),
            prefixes: self.prefixes(&scratch, table),
            keepalive: self.number(
                &scratch,
                table,
                Field::Keepalive,
                0..=u16::MAX,
                DEFAULT_KEEPALIVE_SECS,
            ),
            seniority: 0,
            outside: false,
        };
        match (name, taken) {
            (Some(name), None) => {
                nodes.insert(name, node);
            }
            (Some(name), Some(Position { line, .. })) => {
                let at = table.get("name").map_or(value.span(), Spanned::span);
                self.fault(
                    at,
                    format!(
                        "node \"{name}\", name: there is a node \"{name}\" on line {line} already; \
                         give each node a name of its own"
                    ),
                );
            }
            (None, _) => {}
        }
    }

    fn pair(&mut self, value: &Value<'a>, pairs: &mut BTreeMap<Pair, KeyFile>) {
        let DeValue::Table(table) = value.get_ref() else {
            self.fault(
                value.span(),
                "a pair is a table; begin it with a line [[pair]]",
            );
            return;
        };
        let anonymous = Place::Pair(Pair::NOBODIES);
        self.unknown_fields(&anonymous, table, PAIR_FIELDS);
        let right = "name two nodes, as in nodes = [\"hut\", \"barn\"]";
        let mut names = Vec::new();
        let mut complete = true;
        match table.get("nodes") {
            None => {
                self.fault(
                    value.span(),
                    format!("[[pair]]: there are no nodes; {right}"),
                );
            }
            Some(at) => match at.get_ref().as_array() {
                Some(entries) if entries.len() == 2 => {
                    for entry in entries {
                        match entry.get_ref().as_str().map(str::parse::<NodeName>) {
                            Some(Ok(name)) => names.push((name, entry.span())),
                            _ => {
                                complete = false;
                                let found = self.source(entry.span());
                                let text = format!("[[pair]], nodes: {found} is no name; {right}");
                                self.fault(entry.span(), text);
                            }
                        }
                    }
                }
                _ => {
                    let found = self.source(at.span());
                    let text = format!("[[pair]], nodes: {found} is not two names; {right}");
                    self.fault(at.span(), text);
                }
            },
        }
        let meant = Subject::entry(anonymous.clone(), Field::PresharedKeyFile, 0);
        let file = match table.get(Field::PresharedKeyFile.as_str()) {
            Some(_) => self.string(&anonymous, table, Field::PresharedKeyFile),
            // Not also missed where a field that does not exist was meant for it.
            None if self.incomplete.remove(&meant) => None,
            None => {
                let text = "[[pair]]: there is no preshared_key_file; name one, as in \
                            preshared_key_file = \"hut-barn.psk\"";
                self.fault(value.span(), text);
                None
            }
        };
        let (true, [(a, at_a), (b, at_b)]) = (complete, names.as_slice()) else {
            return;
        };
        let Some(pair) = Pair::new(a.clone(), b.clone()) else {
            let text = format!("[[pair]], nodes: \"{a}\" cannot be paired with itself; {right}");
            return self.fault(at_b.clone(), text);
        };
        let place = Place::Pair(pair.clone());
        if let Some(Position { line, .. }) = self.positions.get(&Subject::of(place.clone())) {
            let text = format!(
                "[[pair]], nodes: \"{a}\" and \"{b}\" are a pair on line {line} already; a pair \
                 has one preshared key"
            );
            return self.fault(at_a.clone(), text);
        }
        self.put(Subject::of(place.clone()), value.span());
        for (index, name) in pair.names().into_iter().enumerate() {
            let at = if name == a { at_a } else { at_b };
            self.put(
                Subject::entry(place.clone(), Field::Nodes, index),
                at.clone(),
            );
        }
        if let Some(at) = table.get(Field::PresharedKeyFile.as_str()) {
            self.put(Subject::entry(place, Field::PresharedKeyFile, 0), at.span());
        }
        if let Some(file) = file {
            pairs.insert(pair, KeyFile(file));
        }
    }

    fn public_key(&mut self, place: &Place, table: &DeTable<'a>) -> Option<PublicKey> {
        let text = self.string(place, table, Field::PublicKey)?;
        match text.parse() {
            Ok(key) => Some(key),
            Err(error) => {
                let at = table.get(Field::PublicKey.as_str())?.span();
                let text =
                    format!("is no public key; {error}, as `warren init` and `wg pubkey` print it");
                self.refuse(place, Field::PublicKey, at, &text);
                None
            }
        }
    }

    fn prefixes(&mut self, place: &Place, table: &DeTable<'a>) -> Vec<IpNet> {
        let right = "a prefix, as in \"10.77.2.0/24\" or \"fd77:0:0:2::/64\"";
        self.list(place, table, Field::Prefixes, right, prefix)
    }

    fn key_file(&mut self, place: &Place, table: &DeTable<'a>) -> Option<KeyFile> {
        self.string(place, table, Field::PresharedKeyFile)
            .map(KeyFile)
    }

    fn string(&mut self, place: &Place, table: &DeTable<'a>, field: Field) -> Option<String> {
        let at = table.get(field.as_str())?;
        self.put(Subject::entry(place.clone(), field, 0), at.span());
        let found = at.get_ref().as_str().map(str::to_owned);
        if found.is_none() {
            self.refuse(
                place,
                field,
                at.span(),
                "is not a string; write it in quotes",
            );
        }
        found
    }

    fn number<N>(
        &mut self,
        place: &Place,
        table: &DeTable<'a>,
        field: Field,
        range: std::ops::RangeInclusive<N>,
        example: N,
    ) -> Option<N>
    where
        N: TryFrom<u64> + PartialOrd + Display + Copy,
    {
        let at = table.get(field.as_str())?;
        self.put(Subject::entry(place.clone(), field, 0), at.span());
        let Some(digits) = at.get_ref().as_integer() else {
            let text = format!("is not a number; write one without quotes, as in {example}");
            self.refuse(place, field, at.span(), &text);
            return None;
        };
        let number = u64::from_str_radix(digits.as_str(), digits.radix()).ok();
        let number = number
            .and_then(|number| N::try_from(number).ok())
            .filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            let text = format!("is out of range; choose one from {low} to {high}, as in {example}");
            self.refuse(place, field, at.span(), &text);
        }
        number
    }

    /// The entries of a list; one entry needs no brackets.
    fn list<T>(
        &mut self,
        place: &Place,
        table: &DeTable<'a>,
        field: Field,
        right: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(at) = table.get(field.as_str()) else {
            return Vec::new();
        };
        let entries = match at.get_ref() {
            DeValue::Array(entries) => entries.iter().collect(),
            _ => vec![at],
        };
        if entries.is_empty() {
            self.put(Subject::entry(place.clone(), field, 0), at.span());
        }
        let mut list = Vec::new();
        for entry in entries {
            let parsed = match entry.get_ref().as_str() {
                Some(text) => parse(text),
                None => Err(format!("is not in quotes; write {right}")),
            };
            match parsed {
                Ok(item) => {
                    let subject = Subject::entry(place.clone(), field, list.len());
                    self.put(subject, entry.span());
                    list.push(item);
                }
                Err(text) => self.refuse(place, field, entry.span(), &text),
            }
        }
        list
    }

    /// Names each field that does not exist, and the one that was probably meant. Values are not
    /// repeated: one of them may be a private key.
    fn unknown_fields(&mut self, place: &Place, table: &DeTable<'a>, known: &[Field]) {
        let label = shown(place);
        let names: Vec<&str> = known.iter().map(|field| field.as_str()).collect();
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if names.contains(&name) {
                continue;
            }
            let lower = name.to_lowercase();
            let elsewhere = KNOWN_ELSEWHERE
                .iter()
                .find(|(other, field)| *other == lower && known.contains(field))
                .map(|(_, field)| field.as_str());
            let meant = elsewhere.or_else(|| nearest(name, names.iter().copied()));
            // What was meant for that field is not missing from the file.
            let field = known.iter().find(|field| Some(field.as_str()) == meant);
            self.incomplete
                .extend(field.map(|field| Subject::entry(place.clone(), *field, 0)));
            let text = if lower.replace('_', "") == "privatekey" {
                format!(
                    "{label}: a private key never leaves its node; remove {name:?}, make a new \
                     key, and write the public_key that belongs to it"
                )
            } else if let Some(meant) = meant {
                format!("{label}: {name:?} is unknown; did you mean \"{meant}\"?")
            } else {
                let names = names.join(", ");
                format!("{label}: {name:?} is unknown; the fields here are {names}")
            };
            self.fault(key.span(), text);
        }
    }

    /// A value that is not what its field holds.
    fn refuse(&mut self, place: &Place, field: Field, at: Range<usize>, why: &str) {
        self.incomplete
            .insert(Subject::entry(place.clone(), field, 0));
        let found = self.source(at.clone());
        let text = format!("{}, {}: {found} {why}", shown(place), field.as_str());
        self.fault(at, text);
    }

    fn fault(&mut self, at: Range<usize>, text: impl Into<String>) {
        let position = self.position(at.start);
        self.faults.push((Some(position), text.into()));
    }

    fn put(&mut self, subject: Subject, at: Range<usize>) {
        let position = self.position(at.start);
        if let Entry::Vacant(vacant) = self.positions.entry(subject) {
            vacant.insert(position);
        }
    }

    fn position(&self, offset: usize) -> Position {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines[line - 1];
        let before = self.text.get(start..offset).unwrap_or_default();
        Position {
            line,
            column: before.chars().count() + 1,
        }
    }

    /// The value as it was written, on one line and not too long.
    fn source(&self, at: Range<usize>) -> String {
        const SHOWN: usize = 60;
        let source = self.text.get(at).unwrap_or_default();
        let mut shown: String = (source.chars())
            .take(SHOWN)
            .map(|char| if char.is_control() { ' ' } else { char })
            .collect();
        if source.chars().nth(SHOWN).is_some() {
            shown.push('…');
        }
        shown
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| match text.split_once('/') {
        Some((address, _)) if address.parse::<IpAddr>().is_ok() => format!(
            "is a prefix; an address of the node itself stands alone, as in \"{address}\", and \
             what lies behind the node is in its prefixes"
        ),
        _ => "is no address; write one as in \"10.77.0.1\" or \"fd77::1\"".to_owned(),
    })
}

fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => format!(
            "has no length; for this one address write \"{}\"",
            IpNet::from(address)
        ),
        Err(_) => {
            "is no prefix; write one as in \"10.77.2.0/24\" or \"fd77:0:0:2::/64\"".to_owned()
        }
    })
}

/// The place in a sentence, also where it has no name.
fn shown(place: &Place) -> String {
    match place {
        Place::Node(name) if *name == NodeName::NOBODY => "[[node]]".to_owned(),
        Place::Pair(pair) if *pair == Pair::NOBODIES => "[[pair]]".to_owned(),
        place => place.to_string(),
    }
}
