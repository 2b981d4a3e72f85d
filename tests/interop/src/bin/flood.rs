//! Floods a node with forged initiations until it is killed.
//!
//!     flood forged ADDRESS PUBLIC-KEY RATE    the first mac is wrong
//!     flood one ADDRESS PUBLIC-KEY RATE       the first mac is right, all from one source
//!     flood many ADDRESS PUBLIC-KEY RATE      the first mac is right, from 256 sources in 198.18.0.0/24
//!
//! RATE is in messages a second.

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use warren_config::PublicKey;

/// Length of an initiation, and of the part that its first mac covers.
const INITIATION: usize = 148;
const COVERED: usize = INITIATION - 32;
/// How often a burst is sent.
const BEAT: Duration = Duration::from_millis(1);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [kind, target, key, rate] = &arguments[..] else {
        return Err("expected a kind, an address, a public key and a rate".into());
    };
    let (target, key, rate): (SocketAddr, PublicKey, u32) =
        (target.parse()?, key.parse()?, rate.parse()?);
    let sources: Vec<String> = match kind.as_str() {
        "many" => (0..=255).map(|n| format!("198.18.0.{n}:0")).collect(),
        "forged" | "one" if target.is_ipv6() => vec!["[::]:0".to_owned()],
        "forged" | "one" => vec!["0.0.0.0:0".to_owned()],
        _ => return Err("expected forged, one or many".into()),
    };
    let sockets = sources
        .iter()
        .map(UdpSocket::bind)
        .collect::<Result<Vec<_>, _>>()?;
    let mut messages: Vec<_> = (0..1024).map(|n| initiation(&key, n)).collect();
    if kind == "forged" {
        messages
            .iter_mut()
            .for_each(|message| message[COVERED] ^= 1);
    }
    flood(&sockets, &messages, target, rate)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a flood has a rate, and nothing to wait for"
)]
fn flood(
    sockets: &[UdpSocket],
    messages: &[[u8; INITIATION]],
    target: SocketAddr,
    rate: u32,
) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let mut sent = 0_u64;
    let mut pairs = sockets.iter().cycle().zip(messages.iter().cycle());
    loop {
        let due = begun.elapsed().as_micros() as u64 * u64::from(rate) / 1_000_000;
        for (socket, message) in pairs.by_ref().take(due.saturating_sub(sent) as usize) {
            // What a full queue does not take is part of a flood.
            let _ = socket.send_to(message, target);
        }
        sent = sent.max(due);
        thread::sleep(BEAT);
    }
}

/// An initiation of which nothing is right but its form and its first mac.
fn initiation(to: &PublicKey, seed: u32) -> [u8; INITIATION] {
    let mut message = [0; INITIATION];
    for (chunk, n) in message[..COVERED].chunks_mut(32).zip(0_u8..) {
        let noise = Blake2s256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update([n])
            .finalize();
        chunk.copy_from_slice(&noise[..chunk.len()]);
    }
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(to.as_bytes())
        .finalize();
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).expect("32 bytes are a key");
    mac.update(&message[..COVERED]);
    message[COVERED..COVERED + 16].copy_from_slice(&mac.finalize().into_bytes());
    message
}
