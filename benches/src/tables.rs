//! Large tables of prefixes.
//!
//! The prefixes are those of the table in which structures were compared: IPv4 60 % /32, 25 % /24,
//! 15 % /16 to /31; IPv6 within fd00::/8 60 % /128, 30 % /64, 10 % /48 to /127. Every address is in
//! a prefix of the table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_wireguard::AllowedIps;

/// A table of prefixes that belong to ten peers.
pub fn filled(prefixes: &[IpNet]) -> AllowedIps<u32> {
    let mut table = AllowedIps::new();
    for (prefix, peer) in prefixes.iter().zip((0..10).cycle()) {
        table.insert(*prefix, peer);
    }
    table
}

/// A prefix of IPv4.
pub fn v4(random: &mut Random) -> IpNet {
    let len = match random.below(100) {
        0..60 => 32,
        60..85 => 24,
        _ => 16 + random.below(16) as u8,
    };
    let ip = Ipv4Addr::from_bits(random.next() as u32);
    Ipv4Net::new(ip, len)
        .expect("a length within the width")
        .trunc()
        .into()
}

/// A prefix of IPv6.
pub fn v6(random: &mut Random) -> IpNet {
    let len = match random.below(100) {
        0..60 => 128,
        60..90 => 64,
        _ => 48 + random.below(80) as u8,
    };
    let ip = Ipv6Addr::from_bits(0xfd << 120 | random.wide() >> 8);
    Ipv6Net::new(ip, len)
        .expect("a length within the width")
        .trunc()
        .into()
}

/// An address that the prefix holds.
pub fn within(prefix: IpNet, random: &mut Random) -> IpAddr {
    match prefix {
        IpNet::V4(net) => {
            let host = random.next() as u32 & net.hostmask().to_bits();
            Ipv4Addr::from_bits(net.addr().to_bits() | host).into()
        }
        IpNet::V6(net) => {
            let host = random.wide() & net.hostmask().to_bits();
            Ipv6Addr::from_bits(net.addr().to_bits() | host).into()
        }
    }
}

/// The same numbers every time (xorshift64*).
#[derive(Debug)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

impl Random {
    /// From the beginning.
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    /// A number below the bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}
