//! What a node never sends in the clear again, and how its disk has that.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_config::is_within;
use warren_k8s::Mode;
use warren_mesh::unusable_prefix;

/// What is closed until the operator opens it, whoever comes and goes meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Latch {
    /// Prefixes of pods that were reached where these are routed.
    prefixes: BTreeSet<IpNet>,
    /// Addresses of nodes that were reached where what is between them is wrapped. They are kept apart, since
    /// who changes the mode must not fence the ones as if they were the others.
    addresses: BTreeSet<IpNet>,
    /// The cluster has turned strict.
    pub(super) strict: bool,
    /// What was closed is not known any more, so that all is.
    #[serde(default)]
    pub(super) lost: bool,
}

impl Latch {
    /// What a disk has. Whatever this crate cannot have written there is damage, of which the rest is not
    /// believed, either: a fence that takes it for a prefix would be none.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let latch: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut all = latch.prefixes.iter().chain(&latch.addresses);
        match all.find(|net| unusable_prefix(**net).is_some()) {
            Some(net) => Err(format!("{net} is no prefix that a mesh could have")),
            None => Ok(latch),
        }
    }

    /// All that is known is that there was something.
    pub(super) fn lost() -> Self {
        Self {
            lost: true,
            ..Self::default()
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("prefixes are texts")
    }

    /// What was reached in this mode.
    pub(super) fn of(&self, mode: Mode) -> &BTreeSet<IpNet> {
        match mode {
            Mode::Route => &self.prefixes,
            Mode::Overlay => &self.addresses,
        }
    }

    /// These were reached in this mode. Whether any is new.
    pub(super) fn close(&mut self, mode: Mode, reached: &BTreeSet<IpNet>) -> bool {
        let closed = match mode {
            Mode::Route => &mut self.prefixes,
            Mode::Overlay => &mut self.addresses,
        };
        let before = closed.len();
        closed.extend(reached);
        closed.len() > before
    }

    /// The same in as few prefixes as say it, the largest first, and not more than `most`, of which each family
    /// has half if it needs it.
    pub(super) fn joined(&self, mode: Mode, most: usize) -> Vec<IpNet> {
        let closed: Vec<IpNet> = self.of(mode).iter().copied().collect();
        let mut joined = IpNet::aggregate(&closed);
        joined.sort_by_key(|net| (net.prefix_len(), *net));
        let is_v4 = |net: &IpNet| matches!(net, IpNet::V4(_));
        let (mut v4, mut v6): (Vec<IpNet>, Vec<IpNet>) = joined.into_iter().partition(is_v4);
        let half = most / 2;
        v4.truncate(half.max(most.saturating_sub(v6.len())));
        v6.truncate(most - v4.len());
        v4.extend(v6);
        v4
    }

    /// What the API has of an earlier [`joined`](Self::joined): what of it was forgotten is closed again. Whether
    /// there was any.
    pub(super) fn recall(&mut self, mode: Mode, joined: &[IpNet]) -> bool {
        let known: BTreeSet<IpNet> = self.joined(mode, usize::MAX).into_iter().collect();
        let forgotten = joined.iter().filter(|net| {
            let is_usable = unusable_prefix(**net).is_none();
            is_usable && !is_within(&known, net)
        });
        let forgotten = forgotten.copied().collect();
        self.close(mode, &forgotten)
    }

    /// How many there are, of both modes.
    pub(super) fn len(&self) -> usize {
        self.prefixes.len() + self.addresses.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_is_read_back_as_it_was_written() {
        let mut latch = Latch::default();
        assert!(latch.close(Mode::Route, &nets(&["10.244.2.0/24", "fd00:10:244:2::/64"])));
        assert!(latch.close(Mode::Overlay, &nets(&["192.0.2.2/32"])));
        assert!(!latch.close(Mode::Overlay, &nets(&["192.0.2.2/32"])));
        latch.strict = true;
        assert_eq!(latch.len(), 3);
        assert_eq!(Latch::from_bytes(&latch.to_bytes()), Ok(latch));
        let lost = Latch::lost();
        assert_eq!(Latch::from_bytes(&lost.to_bytes()), Ok(lost));
    }

    #[test]
    fn what_was_reached_in_one_mode_is_not_closed_in_the_other() {
        let mut latch = Latch::default();
        latch.close(Mode::Route, &nets(&["10.244.2.0/24"]));
        latch.close(Mode::Overlay, &nets(&["192.0.2.2/32"]));
        assert_eq!(*latch.of(Mode::Route), nets(&["10.244.2.0/24"]));
        assert_eq!(*latch.of(Mode::Overlay), nets(&["192.0.2.2/32"]));
    }

    #[test]
    fn what_was_forgotten_is_recalled_and_nothing_that_no_mesh_could_have() {
        let mut latch = Latch::default();
        let reached = [
            "10.244.2.0/24",
            "10.244.3.0/24",
            "10.244.5.0/24",
            "fd00:10:244:2::/64",
        ];
        latch.close(Mode::Route, &nets(&reached));
        let joined = latch.joined(Mode::Route, 8);
        let all: BTreeSet<IpNet> = joined.iter().copied().collect();
        assert_eq!(
            all,
            nets(&["10.244.2.0/23", "10.244.5.0/24", "fd00:10:244:2::/64"])
        );
        assert!(!latch.recall(Mode::Route, &joined), "nothing was forgotten");
        assert_eq!(latch.len(), reached.len());
        assert_eq!(
            latch.joined(Mode::Route, 2),
            [joined[0], joined[2]],
            "one of each"
        );
        assert_eq!(latch.joined(Mode::Route, 3), joined);
        assert!(latch.joined(Mode::Overlay, 8).is_empty());

        let mut empty = Latch::default();
        let hostile = ["0.0.0.0/0", "127.0.0.0/8"].map(|text| text.parse().expect("a prefix"));
        assert!(!empty.recall(Mode::Route, &hostile));
        assert!(empty.recall(Mode::Route, &joined));
        for prefix in nets(&reached) {
            assert!(is_within(empty.of(Mode::Route), &prefix), "{prefix}");
        }
        let never = "10.244.4.0/24".parse().expect("a prefix");
        assert!(!is_within(empty.of(Mode::Route), &never));
    }

    #[test]
    fn what_no_daemon_can_have_written_is_damage() {
        let of = |prefixes: &str, addresses: &str| {
            let text = format!(
                "{{\"prefixes\":[{prefixes}],\"addresses\":[{addresses}],\"strict\":false}}"
            );
            Latch::from_bytes(text.as_bytes())
        };
        assert!(of("\"10.244.2.0/24\"", "\"192.0.2.2/32\"").is_ok());
        for net in [
            "0.0.0.0/0",
            "::/0",
            "127.0.0.0/8",
            "0.0.0.0/1",
            "fe80::/10",
            "10.244.2.1/24",
        ] {
            let net = format!("{net:?}");
            let why = of(&net, "").expect_err(&net);
            assert!(why.contains(net.trim_matches('"')), "{why}");
            assert!(of("", &net).is_err(), "{net}");
        }
        for text in [
            "",
            "\0\0\0\0",
            "{}",
            "{\"prefixes\":[],\"strict\":false}",
            "{\"prefixes\":[],\"addresses\":[],\"strict\":false",
            "{\"prefixes\":[\"ten\"],\"addresses\":[],\"strict\":false}",
            "{\"prefixes\":[],\"addresses\":[],\"strict\":false,\"open\":[]}",
        ] {
            assert!(Latch::from_bytes(text.as_bytes()).is_err(), "{text}");
        }
    }

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        let nets = texts.iter().map(|text| text.parse().expect("a prefix"));
        nets.collect()
    }
}
