//! The few messages and expressions of nftables that the fence is made of.
//!
//! Why not a library: `rustables` is under the GPL, the `nftnl` family binds the C libraries, the
//! `nftables` crate runs the `nft` program, `netlink-packet-netfilter` has no nftables, and
//! `netlink-bindings` generates ten times this crate for it without reading back what stands.
//! Reading back is half of the work here: a fence that somebody changed must be seen.
//!
//! Names and numbers are those of `include/uapi/linux/netfilter/nf_tables.h`; numbers on the wire
//! are in network order.

use std::collections::{BTreeMap, BTreeSet};

use libc::{
    NF_ACCEPT, NF_DROP, NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFT_GOTO,
    NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELTABLE, NFT_MSG_GETCHAIN,
    NFT_MSG_GETOBJ, NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE,
    NFT_MSG_NEWCHAIN, NFT_MSG_NEWOBJ, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM,
    NFT_MSG_NEWTABLE, NLM_F_APPEND, NLM_F_CREATE,
};

use crate::connection::{Connection, KernelError};
use crate::route::{self, Family};
use crate::wire::{self, Attr, Message, be32, bytes, find, nest, says, text};

/// The one register in use; `NFT_REG_1`, 16 bytes.
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_TABLE_OWNER: u16 = 7;
const NFT_TABLE_F_DORMANT: u32 = 1;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_TABLE_F_PERSIST: u32 = 4;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
/// Elements to a message: an attribute holds 64 KiB, and an element takes less than 64 bytes.
const ELEMENTS: usize = 500;

/// What names a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// Whose packets it is about; those of both families where there is none (`inet`).
    pub family: Option<Family>,
    /// Its name within the family.
    pub name: String,
}

/// A table as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub(crate) name: TableName,
    /// What its chains and sets have behind their names, so that the next can be put beside them.
    pub(crate) generation: &'static str,
    pub(crate) comment: &'static str,
    /// Nobody but who made it can change it while that lives, and it stays after (Linux 6.9).
    pub(crate) exclusive: bool,
    pub(crate) counters: Vec<&'static str>,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

/// A set of ranges of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) family: Family,
    /// First address and, as the kernel has it, the first that is not in; apart and in order.
    pub(crate) ranges: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// Where the kernel enters it; a chain without is entered by rules.
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    pub(crate) number: i32,
    pub(crate) priority: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) comment: &'static str,
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
}

/// What a packet must be for a rule to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// It came by the named interface.
    InName(String),
    /// It leaves by the named interface.
    OutName(String),
    /// It came by an interface of this type (`ARPHRD_*`).
    InType(u16),
    /// It leaves by an interface of this type.
    OutType(u16),
    /// It is of this family.
    Family(Family),
    /// Its source is in the set of this name, or is not.
    Source(Family, &'static str, bool),
    /// Its destination is in the set of this name, or is not.
    Destination(Family, &'static str, bool),
    /// An answer to it would not leave by the interface that it came by.
    NoWayBack,
    /// Its source is an address of this host.
    SourceIsLocal,
    /// It is UDP from this port.
    UdpFrom(u16),
    /// It is UDP to this port.
    UdpTo(u16),
    /// The socket that sent it has this priority (`SO_PRIORITY`).
    Priority(u32),
    /// It is an ICMP message of this family about a UDP packet to this port, whose beginning it repeats.
    Quotes(Family, u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Goto(&'static str),
    /// Counts under this name, then drops.
    Drop(&'static str),
    /// Shows it to whoever listens at this group of the netfilter log, as many bytes as that asks for or as are
    /// said here, and lets it pass.
    Log(u16, Option<u32>),
    /// Gives it the address of the interface that it leaves by.
    Masquerade,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            None => "inet",
            Some(Family::V4) => "ip",
            Some(Family::V6) => "ip6",
        };
        write!(f, "{family} {}", self.name)
    }
}

impl Table {
    /// The transaction that puts this table in the place of whatever has its name.
    pub(crate) fn replace(&self) -> Vec<Message> {
        self.put(self.flags())
    }

    /// The same, where it is only for as long as the connection that makes it, if the kernel knows of that
    /// (Linux 5.12).
    pub(crate) fn borrow(&self) -> Vec<Message> {
        self.put(NFT_TABLE_F_OWNER)
    }

    fn put(&self, flags: u32) -> Vec<Message> {
        let name = || text(1, &self.name.name);
        let message = |kind, flags, attrs: &[Attr]| message(&self.name, kind, flags, attrs);
        // An existing table is taken away; that there is one to take is made sure before.
        let mut messages = vec![
            message(NFT_MSG_NEWTABLE, NLM_F_CREATE, &[name()]),
            message(NFT_MSG_DELTABLE, 0, &[name()]),
            message(NFT_MSG_NEWTABLE, NLM_F_CREATE, &self.table_attrs(flags)),
        ];
        messages.extend(self.contents());
        messages
    }

    /// All that is in it. Counters that are there already stay.
    fn contents(&self) -> Vec<Message> {
        let name = || text(1, &self.name.name);
        let message = |kind, flags, attrs: &[Attr]| message(&self.name, kind, flags, attrs);
        let mut messages = Vec::new();
        for counter in &self.counters {
            let attrs = counter_attrs(&self.name.name, counter);
            messages.push(message(NFT_MSG_NEWOBJ, NLM_F_CREATE, &attrs));
        }
        for set in &self.sets {
            let mut attrs = set.attrs(self);
            // NFTA_SET_ID: required, though nothing here refers to it.
            attrs.push(be32(10, 1));
            messages.push(message(NFT_MSG_NEWSET, NLM_F_CREATE, &attrs));
            for elements in set.element_attrs().chunks(ELEMENTS) {
                let list = [
                    name(),
                    text(2, &self.named(set.name)),
                    nest(3, elements.to_vec()),
                ];
                messages.push(message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, &list));
            }
        }
        for chain in &self.chains {
            let attrs = chain.attrs(self);
            messages.push(message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &attrs));
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                let attrs = rule.attrs(self, chain.name);
                messages.push(message(
                    NFT_MSG_NEWRULE,
                    NLM_F_CREATE | NLM_F_APPEND,
                    &attrs,
                ));
            }
        }
        messages
    }

    /// Whether nothing of what was found has a name that a chain or a set of this one has.
    pub(crate) fn fits_beside(&self, found: &Found) -> bool {
        let mut sets = self.sets.iter().map(|set| self.named(set.name));
        let mut chains = self.chains.iter().map(|chain| self.named(chain.name));
        !sets.any(|name| found.sets.contains_key(&name))
            && !chains.any(|name| found.chains.contains_key(&name))
    }

    /// The transactions that add this one to what stands under its name, and then take that away.
    pub(crate) fn succeed(&self, remains: &Remains) -> [Vec<Message>; 2] {
        let message = |kind, attrs: &[Attr]| message(&self.name, kind, 0, attrs);
        let named = |kind, name: &str| [text(1, &self.name.name), text(kind, name)];
        // Chains hold each other by their rules, and rules hold sets.
        let chains = remains.chains.iter();
        let rules = chains.clone();
        let remove = rules.map(|chain| message(NFT_MSG_DELRULE, &named(2, chain)));
        let remove = remove.chain(chains.map(|chain| message(NFT_MSG_DELCHAIN, &named(3, chain))));
        let sets = remains.sets.iter();
        let remove = remove.chain(sets.map(|set| message(NFT_MSG_DELSET, &named(2, set))));
        [self.contents(), remove.collect()]
    }

    fn named(&self, name: &str) -> String {
        format!("{name}{}", self.generation)
    }

    /// Whether what was found is this table: all of it and nothing besides.
    pub(crate) fn is(&self, found: &Found) -> bool {
        let rules: usize = self.chains.iter().map(|chain| chain.rules.len()).sum();
        let found_rules: usize = found.rules.values().map(Vec::len).sum();
        // Not the comment, which is kept since Linux 5.10, and not whose it is, which is another question.
        let name = &self.name.name;
        says(&found.table, &[text(1, name)])
            && !found.is_dormant()
            && found.counters.len() == self.counters.len()
            && self
                .counters
                .iter()
                .all(|name| found.counters.contains_key(*name))
            && found.sets.len() == self.sets.len()
            && self.sets.iter().all(|set| {
                found
                    .sets
                    .get(&self.named(set.name))
                    .is_some_and(|(definition, elements)| {
                        says(definition, &set.attrs(self)) && *elements == set.elements()
                    })
            })
            && found.chains.len() == self.chains.len()
            && found_rules == rules
            && self.chains.iter().all(|chain| {
                let chain_name = self.named(chain.name);
                let rules = found.rules.get(&chain_name).map_or(&[][..], Vec::as_slice);
                found.chains.get(&chain_name).is_some_and(|definition| {
                    says(definition, &chain.attrs(self))
                        && rules.len() == chain.rules.len()
                        && rules
                            .iter()
                            .zip(&chain.rules)
                            .all(|(found, rule)| says(found, &rule.attrs(self, chain.name)))
                })
            })
    }

    fn flags(&self) -> u32 {
        match self.exclusive {
            true => NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST,
            false => 0,
        }
    }

    fn table_attrs(&self, flags: u32) -> [Attr; 3] {
        let comment = bytes(NFTA_TABLE_USERDATA, &comment(self.comment));
        [
            text(1, &self.name.name),
            be32(NFTA_TABLE_FLAGS, flags),
            comment,
        ]
    }
}

/// The transaction that makes a table ours that another process of ours has left.
pub(crate) fn adopt(name: &TableName) -> Vec<Message> {
    let flags = be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST);
    let attrs = [text(1, &name.name), flags];
    vec![message(name, NFT_MSG_NEWTABLE, 0, &attrs)]
}

/// The transaction that removes a table.
pub(crate) fn remove(name: &TableName) -> Vec<Message> {
    vec![message(name, NFT_MSG_DELTABLE, 0, &[text(1, &name.name)])]
}

/// The names of all tables of a family.
pub(crate) fn table_names(
    connection: &mut Connection,
    family: Option<Family>,
) -> Result<Vec<String>, KernelError> {
    let any = TableName {
        family,
        name: String::new(),
    };
    let tables = connection.dump(&message(&any, NFT_MSG_GETTABLE, 0, &[]))?;
    let names = tables.iter().filter_map(|table| {
        let name = find(table.get(4..)?, 1).and_then(wire::read_text)?;
        Some(name.to_owned())
    });
    Ok(names.collect())
}

fn counter_attrs(table: &str, name: &str) -> Vec<Attr> {
    vec![
        text(1, table),
        text(2, name),
        be32(3, NFT_OBJECT_COUNTER),
        nest(4, Vec::new()),
    ]
}

impl Set {
    fn attrs(&self, table: &Table) -> Vec<Attr> {
        // The types are what `nft` calls ipv4_addr and ipv6_addr; the kernel does not care.
        let (key_type, length) = match self.family {
            Family::V4 => (7, 4),
            Family::V6 => (8, 16),
        };
        vec![
            text(1, &table.name.name),
            text(2, &table.named(self.name)),
            be32(3, NFT_SET_INTERVAL),
            be32(4, key_type),
            be32(5, length),
        ]
    }

    fn elements(&self) -> Elements {
        let borders = self.ranges.iter().flat_map(|(first, end)| {
            let end = end.iter().map(|end| (end.clone(), true));
            std::iter::once((first.clone(), false)).chain(end)
        });
        borders.collect()
    }

    fn element_attrs(&self) -> Vec<Attr> {
        let element = |(key, is_end): (Vec<u8>, bool)| {
            let mut attrs = vec![nest(1, vec![bytes(NFTA_DATA_VALUE, &key)])];
            if is_end {
                attrs.push(be32(3, NFT_SET_ELEM_INTERVAL_END));
            }
            nest(NFTA_LIST_ELEM, attrs)
        };
        self.elements().into_iter().map(element).collect()
    }
}

impl Chain {
    fn attrs(&self, table: &Table) -> Vec<Attr> {
        let mut attrs = vec![text(1, &table.name.name), text(3, &table.named(self.name))];
        if let Some(hook) = self.hook {
            let place = vec![
                be32(1, hook.number.cast_unsigned()),
                be32(2, hook.priority.cast_unsigned()),
            ];
            attrs.push(nest(4, place));
            attrs.push(be32(5, NF_ACCEPT.cast_unsigned()));
            attrs.push(text(7, hook.kind));
        }
        attrs
    }
}

impl Rule {
    fn attrs(&self, table: &Table, chain: &str) -> Vec<Attr> {
        let matches = self.matches.iter();
        let mut expressions: Vec<Attr> = matches
            .flat_map(|wanted| wanted.expressions(table))
            .collect();
        let verdict = |code: i32, chain: Option<&str>| {
            let mut verdict = vec![be32(1, code.cast_unsigned())];
            verdict.extend(chain.map(|chain| text(2, chain)));
            let data = nest(2, vec![nest(NFTA_DATA_VERDICT, verdict)]);
            expression("immediate", vec![be32(1, REGISTER_VERDICT), data])
        };
        match &self.verdict {
            Verdict::Accept => expressions.push(verdict(NF_ACCEPT, None)),
            Verdict::Goto(chain) => {
                expressions.push(verdict(NFT_GOTO, Some(&table.named(chain))));
            }
            Verdict::Drop(counter) => {
                let counter = vec![be32(1, NFT_OBJECT_COUNTER), text(2, counter)];
                expressions.push(expression("objref", counter));
                expressions.push(verdict(NF_DROP, None));
            }
            Verdict::Log(group, bytes_max) => {
                let mut log = vec![bytes(1, &group.to_be_bytes())];
                log.extend(bytes_max.map(|most| be32(3, most)));
                expressions.push(expression("log", log));
                expressions.push(verdict(NF_ACCEPT, None));
            }
            Verdict::Masquerade => expressions.push(expression("masq", Vec::new())),
        }
        vec![
            text(1, &table.name.name),
            text(2, &table.named(chain)),
            nest(NFTA_RULE_EXPRESSIONS, expressions),
            bytes(NFTA_RULE_USERDATA, &comment(self.comment)),
        ]
    }
}

impl Match {
    fn expressions(&self, table: &Table) -> Vec<Attr> {
        match self {
            Self::InName(name) => vec![meta(6), equals(&padded(name))],
            Self::OutName(name) => vec![meta(7), equals(&padded(name))],
            Self::InType(number) => vec![meta(8), equals(&number.to_ne_bytes())],
            Self::OutType(number) => vec![meta(9), equals(&number.to_ne_bytes())],
            Self::Family(family) => vec![meta(15), equals(&[protocol(*family)])],
            Self::Source(family, set, inside) => {
                let (offset, length) = match family {
                    Family::V4 => (12, 4),
                    Family::V6 => (8, 16),
                };
                vec![
                    network_header(offset, length),
                    lookup(&table.named(set), *inside),
                ]
            }
            Self::Destination(family, set, inside) => {
                let (offset, length) = match family {
                    Family::V4 => (16, 4),
                    Family::V6 => (24, 16),
                };
                vec![
                    network_header(offset, length),
                    lookup(&table.named(set), *inside),
                ]
            }
            // `fib saddr . iif oif missing`: the result is present or not, and must not be.
            Self::NoWayBack => {
                let (saddr, iif, present, oif) = (1, 8, 32, 1);
                let attrs = vec![
                    be32(1, REGISTER),
                    be32(2, oif),
                    be32(3, saddr | iif | present),
                ];
                vec![expression("fib", attrs), equals(&[0; 4])]
            }
            // `fib saddr type local`: `RTN_LOCAL` is 2.
            Self::SourceIsLocal => {
                let (saddr, address_type) = (1, 3);
                let attrs = vec![be32(1, REGISTER), be32(2, address_type), be32(3, saddr)];
                vec![expression("fib", attrs), equals(&2u32.to_ne_bytes())]
            }
            Self::UdpFrom(port) => udp_port(0, *port),
            // The destination port is behind the source port.
            Self::UdpTo(port) => udp_port(2, *port),
            Self::Priority(priority) => vec![meta(2), equals(&priority.to_ne_bytes())],
            // Behind eight bytes of ICMP the packet begins, without options or extensions where the kernel
            // made it.
            Self::Quotes(family, port) => {
                let (icmp, length, protocol) = match family {
                    Family::V4 => (1, 20, 9),
                    Family::V6 => (58, 40, 6),
                };
                vec![
                    meta(16),
                    equals(&[icmp]),
                    transport_header(8 + protocol, 1),
                    equals(&[route::UDP]),
                    transport_header(8 + length + 2, 2),
                    equals(&port.to_be_bytes()),
                ]
            }
        }
    }
}

fn udp_port(offset: u32, port: u16) -> Vec<Attr> {
    vec![
        meta(16),
        equals(&[route::UDP]),
        transport_header(offset, 2),
        equals(&port.to_be_bytes()),
    ]
}

fn expression(name: &str, data: Vec<Attr>) -> Attr {
    nest(NFTA_LIST_ELEM, vec![text(1, name), nest(2, data)])
}

fn meta(key: u32) -> Attr {
    expression("meta", vec![be32(1, REGISTER), be32(2, key)])
}

fn equals(value: &[u8]) -> Attr {
    let data = nest(3, vec![bytes(NFTA_DATA_VALUE, value)]);
    expression("cmp", vec![be32(1, REGISTER), be32(2, 0), data])
}

fn network_header(offset: u32, length: u32) -> Attr {
    payload(1, offset, length)
}

fn transport_header(offset: u32, length: u32) -> Attr {
    payload(2, offset, length)
}

fn payload(base: u32, offset: u32, length: u32) -> Attr {
    let attrs = vec![
        be32(1, REGISTER),
        be32(2, base),
        be32(3, offset),
        be32(4, length),
    ];
    expression("payload", attrs)
}

fn lookup(set: &str, inside: bool) -> Attr {
    // NFT_LOOKUP_F_INV.
    let flags = u32::from(!inside);
    expression(
        "lookup",
        vec![text(1, set), be32(2, REGISTER), be32(5, flags)],
    )
}

/// A name of an interface as the kernel compares it, `IFNAMSIZ` bytes.
fn padded(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = name.len().min(15);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

/// A comment as `nft` keeps it: type 0, length, text with NUL.
fn comment(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("our comments are short");
    [&[0, length], comment.as_bytes(), &[0]].concat()
}

fn protocol(family: Family) -> u8 {
    let number = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    u8::try_from(number).expect("families are numbered below 256")
}

fn message(table: &TableName, kind: i32, flags: i32, attrs: &[Attr]) -> Message {
    let kind = u16::try_from(NFNL_SUBSYS_NFTABLES << 8 | kind).expect("types are 16 bits");
    let inet = u8::try_from(NFPROTO_INET).expect("families are numbered below 256");
    let family = table.family.map_or(inet, protocol);
    // `struct nfgenmsg`: family, version, no resource.
    Message::new(kind, flags, &[family, 0, 0, 0], attrs)
}

/// The borders of a set's ranges: the address, and whether a range ends before it.
type Elements = BTreeSet<(Vec<u8>, bool)>;

/// What in a table makes place for its successor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remains {
    chains: Vec<String>,
    sets: Vec<String>,
}

/// A table as it was found: what the kernel says of each part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    table: Vec<u8>,
    /// Packets by counter.
    counters: BTreeMap<String, u64>,
    sets: BTreeMap<String, (Vec<u8>, Elements)>,
    chains: BTreeMap<String, Vec<u8>>,
    rules: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Found {
    /// The table of this name, if there is one.
    pub(crate) fn read(
        connection: &mut Connection,
        table: &TableName,
    ) -> Result<Option<Self>, KernelError> {
        let name: &str = &table.name;
        let message = |kind, flags, attrs: &[Attr]| message(table, kind, flags, attrs);
        // A dump of tables has no filter but the family; there are few.
        let tables = connection.dump(&message(NFT_MSG_GETTABLE, 0, &[]))?;
        let named =
            |wanted: &str, attrs: &[u8]| find(attrs, 1).and_then(wire::read_text) == Some(wanted);
        let body = |payload: &[u8]| payload.get(4..).unwrap_or_default().to_vec();
        let Some(table) = tables
            .iter()
            .map(|table| body(table))
            .find(|table| named(name, table))
        else {
            return Ok(None);
        };
        let mut found = Self {
            table,
            ..Self::default()
        };
        // Older kernels ignore the filter of some dumps; so each answer is asked for its table.
        let mut list = |kind: i32| -> Result<Vec<Vec<u8>>, KernelError> {
            let all = connection.dump(&message(kind, 0, &[text(1, name)]))?;
            let bodies = all.iter().map(|payload| body(payload));
            Ok(bodies.filter(|attrs| named(name, attrs)).collect())
        };
        let text_of = |attrs: &[u8], kind| {
            find(attrs, kind)
                .and_then(wire::read_text)
                .unwrap_or_default()
                .to_owned()
        };
        for object in list(NFT_MSG_GETOBJ)? {
            let packets = find(&object, 4).and_then(|counter| find(counter, 2));
            let packets = packets.and_then(|value| value.first_chunk().copied());
            let packets = packets.map_or(0, u64::from_be_bytes);
            found.counters.insert(text_of(&object, 2), packets);
        }
        for chain in list(NFT_MSG_GETCHAIN)? {
            found.chains.insert(text_of(&chain, 3), chain);
        }
        for rule in list(NFT_MSG_GETRULE)? {
            found.rules.entry(text_of(&rule, 2)).or_default().push(rule);
        }
        for set in list(NFT_MSG_GETSET)? {
            let set_name = text_of(&set, 2);
            let query = message(NFT_MSG_GETSETELEM, 0, &[text(1, name), text(2, &set_name)]);
            let elements = match connection.dump(&query) {
                Ok(elements) => elements,
                // Removed since it was listed; then this is not the table that it should be.
                Err(error) if error.errno() == libc::ENOENT => continue,
                Err(error) => return Err(error),
            };
            let elements = elements
                .iter()
                .map(|payload| body(payload))
                .collect::<Vec<_>>();
            let elements = elements
                .iter()
                .filter_map(|attrs| find(attrs, 3))
                .flat_map(wire::attributes)
                .map(|(_, element)| {
                    let key = find(element, 1).and_then(|key| find(key, NFTA_DATA_VALUE));
                    let flags = find(element, 3)
                        .and_then(wire::read_u32)
                        .map_or(0, u32::from_be);
                    let is_end = flags & NFT_SET_ELEM_INTERVAL_END != 0;
                    (key.unwrap_or_default().to_vec(), is_end)
                });
            found.sets.insert(set_name, (set, elements.collect()));
        }
        Ok(Some(found))
    }

    /// What would be found where this table has just been put, by a process that lives.
    #[cfg(test)]
    pub(crate) fn of(table: &Table) -> Self {
        let body = |message: Message| message.payload()[4..].to_vec();
        let raw = |attrs: &[Attr]| body(message(&table.name, NFT_MSG_NEWTABLE, 0, attrs));
        let mut definition = raw(&table.table_attrs(table.flags()));
        if table.exclusive {
            definition.extend(raw(&[be32(NFTA_TABLE_OWNER, 1)]));
        }
        let counters = table.counters.iter().map(|name| ((*name).to_owned(), 0));
        let sets = table.sets.iter().map(|set| {
            (
                table.named(set.name),
                (raw(&set.attrs(table)), set.elements()),
            )
        });
        let chains = table
            .chains
            .iter()
            .map(|chain| (table.named(chain.name), raw(&chain.attrs(table))));
        let rules = table.chains.iter().map(|chain| {
            let rules = chain
                .rules
                .iter()
                .map(|rule| raw(&rule.attrs(table, chain.name)));
            (table.named(chain.name), rules.collect())
        });
        Self {
            table: definition,
            counters: counters.collect(),
            sets: sets.collect(),
            chains: chains.collect(),
            rules: rules.collect(),
        }
    }

    /// The same after that process has died.
    #[cfg(test)]
    pub(crate) fn orphaned(&self) -> Self {
        self.with_table(vec![be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_PERSIST)])
    }

    #[cfg(test)]
    fn with_table(&self, mut attrs: Vec<Attr>) -> Self {
        let name = find(&self.table, 1).and_then(wire::read_text);
        let (family, name) = (None, name.unwrap_or_default().to_owned());
        attrs.insert(0, text(1, &name));
        let userdata = find(&self.table, NFTA_TABLE_USERDATA);
        attrs.extend(userdata.map(|value| bytes(NFTA_TABLE_USERDATA, value)));
        let message = message(&TableName { family, name }, NFT_MSG_NEWTABLE, 0, &attrs);
        let table = message.payload()[4..].to_vec();
        Self {
            table,
            ..self.clone()
        }
    }

    /// The same with a process that has it for itself.
    #[cfg(test)]
    pub(crate) fn adopted(&self) -> Self {
        let flags = be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST);
        self.with_table(vec![flags, be32(NFTA_TABLE_OWNER, 1)])
    }

    /// The chains and sets of both.
    #[cfg(test)]
    pub(crate) fn beside(mut self, other: &Self) -> Self {
        self.sets.extend(other.sets.clone());
        self.chains.extend(other.chains.clone());
        self.rules.extend(other.rules.clone());
        self
    }

    /// Whether the table, or a rule in it, carries a comment that begins like this.
    pub(crate) fn has_comment(&self, prefix: &str) -> bool {
        let begins = |attrs: &[u8], kind| {
            find(attrs, kind)
                .and_then(|comment| comment.get(2..))
                .is_some_and(|comment| comment.starts_with(prefix.as_bytes()))
        };
        begins(&self.table, NFTA_TABLE_USERDATA)
            || self
                .rules
                .values()
                .flatten()
                .any(|rule| begins(rule, NFTA_RULE_USERDATA))
    }

    /// All of its chains and sets.
    pub(crate) fn remains(&self) -> Remains {
        Remains {
            chains: self.chains.keys().cloned().collect(),
            sets: self.sets.keys().cloned().collect(),
        }
    }

    fn flags(&self) -> u32 {
        let flags = find(&self.table, NFTA_TABLE_FLAGS).and_then(wire::read_u32);
        flags.map_or(0, u32::from_be)
    }

    pub(crate) fn is_dormant(&self) -> bool {
        self.flags() & NFT_TABLE_F_DORMANT != 0
    }

    /// Whether a process had it for itself, and is gone.
    pub(crate) fn is_orphan(&self) -> bool {
        self.flags() & (NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST) == NFT_TABLE_F_PERSIST
    }

    /// Whether a process has it for itself.
    pub(crate) fn has_owner(&self) -> bool {
        find(&self.table, NFTA_TABLE_OWNER).is_some()
    }

    /// Packets that each counter of the table has seen.
    pub(crate) fn counters(&self) -> &BTreeMap<String, u64> {
        &self.counters
    }
}
