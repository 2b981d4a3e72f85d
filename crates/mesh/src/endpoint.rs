//! Where a node may be reached: addresses and names outside the mesh.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::name::is_dns_name;

/// Where a node may be reached: an address or a name, and a port if it is not the mesh's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Which machine.
    pub host: Host,
    /// Which UDP port; the mesh's where it is `None`.
    pub port: Option<u16>,
}

/// The machine of an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, which somebody outside this crate resolves.
    Name(HostName),
}

/// A DNS name in lower case, without the dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// Why a text is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither an address nor a name.
    #[error(
        "is neither an address nor a host name; write \"192.0.2.7\", \"2001:db8::7\" or \
         \"hut.example.org\", and a port that is not the mesh's behind it, as in \
         \"192.0.2.7:51821\" or \"[2001:db8::7]:51821\""
    )]
    Host,
    /// What follows the colon is no port.
    #[error("has no valid port behind its colon; a port is a number from 1 to 65535")]
    Port,
}

/// Why an address cannot be where a node is reached.
///
/// The record of one node must not aim the others at a third party, at themselves, or into the
/// tunnel that the endpoint is to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unusable {
    /// `0.0.0.0/8` or `::`.
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    Loopback,
    /// `169.254.0.0/16` or `fe80::/10`; also where clouds keep their metadata.
    LinkLocal,
    /// `224.0.0.0/4` or `ff00::/8`.
    Multicast,
    /// `240.0.0.0/4`, the broadcast address among them.
    Reserved,
    /// An IPv4 address in the clothes of IPv6, `::ffff:0:0/96`.
    Mapped,
    /// An address of the mesh itself.
    InsideMesh(IpNet),
}

impl Endpoint {
    /// The socket address that `address`, one of this endpoint's, has in a mesh on `mesh_port`.
    pub fn at(&self, address: IpAddr, mesh_port: u16) -> SocketAddr {
        SocketAddr::new(address, self.port.unwrap_or(mesh_port))
    }
}

impl Unusable {
    /// What keeps `address` from being an endpoint in a mesh of `prefixes`.
    pub fn of(address: IpAddr, prefixes: &[IpNet]) -> Option<Self> {
        let unusable = match address {
            IpAddr::V4(v4) if v4.octets()[0] == 0 => Self::Unspecified,
            IpAddr::V6(v6) if v6.is_unspecified() => Self::Unspecified,
            address if address.is_loopback() => Self::Loopback,
            address if address.is_multicast() => Self::Multicast,
            IpAddr::V4(v4) if v4.is_link_local() => Self::LinkLocal,
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Self::LinkLocal,
            IpAddr::V4(v4) if v4.octets()[0] >= 240 => Self::Reserved,
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Self::Mapped,
            address => Self::InsideMesh(*prefixes.iter().find(|net| net.contains(&address))?),
        };
        Some(unusable)
    }

    /// What such addresses are called.
    pub(crate) fn plural(&self) -> &'static str {
        match self {
            Self::Unspecified => "addresses that stand for none",
            Self::Loopback => "loopback addresses",
            Self::LinkLocal => "link-local addresses",
            Self::Multicast => "multicast addresses",
            Self::Reserved => "reserved addresses",
            Self::Mapped => "IPv4 addresses written as IPv6",
            Self::InsideMesh(_) => "addresses of the mesh",
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unspecified => f.write_str("stands for no address"),
            Self::Loopback => f.write_str("is a loopback address"),
            Self::LinkLocal => f.write_str("is a link-local address"),
            Self::Multicast => f.write_str("is a multicast address"),
            Self::Reserved => f.write_str("is a reserved address"),
            Self::Mapped => f.write_str("is an IPv4 address written as IPv6"),
            Self::InsideMesh(prefix) => write!(f, "is inside the mesh's own prefix \"{prefix}\""),
        }
    }
}

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // No top-level domain is a number (RFC 3696, section 2), but many a mistyped address is.
        let last = name.rsplit('.').next().unwrap_or_default();
        if is_dns_name(&name) && !last.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(Self(name))
        } else {
            Err(EndpointError::Host)
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Reads `ADDRESS`, `NAME`, `ADDRESS:PORT`, `NAME:PORT`, and IPv6 with or without brackets
    /// where there is no port.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Ok(address) = text.parse() {
            return Ok(Self {
                host: Host::Address(address),
                port: None,
            });
        }
        if text.contains('/') {
            // A URL, or a prefix: its colon begins no port.
            return Err(EndpointError::Host);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or(EndpointError::Host)?;
                let address = host.parse().map_err(|_| EndpointError::Host)?;
                let port = match after.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if after.is_empty() => None,
                    None => return Err(EndpointError::Host),
                };
                (Host::Address(IpAddr::V6(address)), port)
            }
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                let host = match host.parse() {
                    Ok(address) => Host::Address(IpAddr::V4(address)),
                    Err(_) => Host::Name(host.parse()?),
                };
                (host, port)
            }
        };
        let port = port.map(port_from_str).transpose()?;
        Ok(Self { host, port })
    }
}

fn port_from_str(text: &str) -> Result<u16, EndpointError> {
    // `u16::from_str` takes a sign as well.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EndpointError::Port);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(EndpointError::Port),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Address(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
            (Host::Address(address), Some(port)) => write!(f, "{address}:{port}"),
            (Host::Address(address), None) => write!(f, "{address}"),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Host::Name(name), None) => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_or_a_name_with_or_without_a_port() {
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:DB8::7]:65535", "[2001:db8::7]:65535"),
            ("hut.example.org", "hut.example.org"),
            ("Hut.Example.Org.:51821", "hut.example.org:51821"),
            ("hut", "hut"),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), shown);
        }
    }

    #[test]
    fn texts_that_are_no_endpoints_are_refused() {
        use EndpointError::{Host, Port};
        for (text, error) in [
            ("", Host),
            (":51820", Host),
            ("192.0.2.256", Host),
            ("192.0.2", Host),
            ("1.2.3.4.5:1", Host),
            ("[192.0.2.7]:1", Host),
            ("[2001:db8::7", Host),
            ("[2001:db8::7]1", Host),
            ("hut example", Host),
            ("hut_1.example.org", Host),
            ("http://hut.example.org", Host),
            ("hut:", Port),
            ("hut:0", Port),
            ("hut:+1", Port),
            ("hut:65536", Port),
            ("192.0.2.7:51820:1", Port),
            ("[2001:db8::7]:", Port),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn an_endpoint_that_is_special_or_inside_the_mesh_is_unusable() {
        let mesh: Vec<IpNet> = ["10.77.0.0/16", "fd77::/48"]
            .map(|net| net.parse().expect(net))
            .to_vec();
        for (address, unusable) in [
            ("192.0.2.7", None),
            ("10.78.0.1", None),
            ("192.168.1.1", None),
            ("2001:db8::7", None),
            ("fd78::1", None),
            ("0.0.0.0", Some(Unusable::Unspecified)),
            ("0.1.2.3", Some(Unusable::Unspecified)),
            ("::", Some(Unusable::Unspecified)),
            ("127.0.0.1", Some(Unusable::Loopback)),
            ("127.255.0.1", Some(Unusable::Loopback)),
            ("::1", Some(Unusable::Loopback)),
            ("169.254.169.254", Some(Unusable::LinkLocal)),
            ("fe80::1", Some(Unusable::LinkLocal)),
            ("febf::1", Some(Unusable::LinkLocal)),
            ("224.0.0.1", Some(Unusable::Multicast)),
            ("ff02::1", Some(Unusable::Multicast)),
            ("255.255.255.255", Some(Unusable::Reserved)),
            ("240.0.0.1", Some(Unusable::Reserved)),
            ("::ffff:10.77.0.1", Some(Unusable::Mapped)),
            ("10.77.3.1", Some(Unusable::InsideMesh(mesh[0]))),
            ("fd77::1", Some(Unusable::InsideMesh(mesh[1]))),
        ] {
            assert_eq!(
                Unusable::of(address.parse().expect(address), &mesh),
                unusable,
                "{address}"
            );
        }
    }
}
