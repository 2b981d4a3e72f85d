//! Packets of a few flows, most of them joinable, some broken: what is joined and cut again are the
//! very same packets, and those that may belong to one flow keep their order. UDP without checksum over
//! IPv4 comes out with one where it was joined.
//!
//! The input is a program: eight bytes make one packet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_packet::checksum::{Sum, pseudo};
use warren_packet::coalesce::{Coalescer, Merge};
use warren_packet::ip::{self, Fragment, Packet};
use warren_packet::segment::Segments;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, program)) = data.split_first() else {
        return;
    };
    let mut arena = Vec::new();
    let mut ranges = Vec::new();
    let mut flows = Default::default();
    // As many as a batch holds.
    for step in program.as_chunks::<8>().0.iter().take(128) {
        let packet = packet(*step, &mut flows);
        ranges.push(arena.len()..arena.len() + packet.len());
        arena.extend_from_slice(&packet);
    }
    let before: Vec<Vec<u8>> = ranges
        .iter()
        .map(|range| arena[range.clone()].to_vec())
        .collect();

    let mut coalescer = Coalescer::new(Merge {
        tcp: mode & 1 == 0,
        udp: mode & 2 == 0,
    });
    for range in &ranges {
        coalescer.push(&arena, range.clone());
    }
    coalescer.finish(&mut arena);
    let mut after = Vec::new();
    for write in coalescer.writes() {
        let whole: Vec<u8> = write
            .pieces
            .iter()
            .flat_map(|piece| &arena[piece.clone()])
            .copied()
            .collect();
        assert_eq!(whole.len(), write.bytes());
        assert!(whole.len() <= warren_packet::batch::MAX_PACKET);
        let alone = write.packets() == 1;
        assert!(
            !alone || before.contains(&whole),
            "what stays alone was changed"
        );
        let segments = Segments::new(write.header, &whole).expect("what was joined can be cut");
        assert_eq!(segments.count(), write.packets());
        for index in 0..segments.count() {
            let mut out = vec![0; segments.len(index)];
            segments.copy_into(index, &mut out);
            assert!(alone || summed(&out) == out, "joined without a checksum");
            after.push(out);
        }
    }
    let before: Vec<Vec<u8>> = before.iter().map(|packet| summed(packet)).collect();
    let after: Vec<Vec<u8>> = after.iter().map(|packet| summed(packet)).collect();

    let sorted = |packets: &[Vec<u8>]| {
        let mut packets = packets.to_vec();
        packets.sort();
        packets
    };
    assert_eq!(
        sorted(&before),
        sorted(&after),
        "joined and cut again it is not what it was"
    );
    for flow in before.iter().filter_map(|packet| flow(packet)) {
        // A packet without ports, a fragment for one, may belong to any flow between its addresses.
        let may_belong = |packet: &&Vec<u8>| {
            Packet::parse(packet).is_ok_and(|parsed| {
                parsed.addresses() == flow.0 && self::flow(packet).is_none_or(|other| other == flow)
            })
        };
        assert!(
            before
                .iter()
                .filter(may_belong)
                .eq(after.iter().filter(may_belong)),
            "the order of a flow changed"
        );
    }
});

/// The packet with a checksum, if it is UDP without one over IPv4.
fn summed(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() < 28 || packet[0] != 0x45 || packet[9] != ip::UDP || packet[26..28] != [0, 0] {
        return packet;
    }
    let sum = pseudo(&packet[12..20], ip::UDP)
        .word((packet.len() - 20) as u16)
        .bytes(&packet[20..]);
    packet[26..28].copy_from_slice(&sum.udp_checksum().to_be_bytes());
    packet
}

/// Addresses, protocol and ports, where all of them are there.
fn flow(packet: &[u8]) -> Option<(Vec<u8>, u8, [u8; 4])> {
    let parsed = Packet::parse(packet).ok()?;
    let transport = parsed.transport()?;
    let known =
        matches!(transport.protocol, ip::TCP | ip::UDP) && transport.fragment == Fragment::No;
    let ports = *parsed.bytes().get(transport.offset..)?.first_chunk()?;
    known.then(|| (parsed.addresses().to_vec(), transport.protocol, ports))
}

/// What a sender counts for each of its flows.
#[derive(Clone, Copy, Default)]
struct Counters {
    sequence: u32,
    id: u16,
}

/// One packet: `[flow, length, length, flags, change, value, quirk, filling]`.
fn packet(step: [u8; 8], counters: &mut [Counters; 16]) -> Vec<u8> {
    let [which, low, high, flags, change, value, quirk, filling] = step;
    let (v6, udp, host, port) = (
        which & 1 != 0,
        which & 2 != 0,
        which >> 2 & 1,
        which >> 3 & 1,
    );
    let counter = &mut counters[usize::from(which & 15)];
    let length = usize::from(u16::from_le_bytes([low, high]) % 1400);

    let mut transport = vec![0x9c, 0x40 | port, 0x01, 0xbb];
    if udp {
        transport.extend(((8 + length) as u16).to_be_bytes());
        transport.extend([0, 0]);
    } else {
        transport.extend(counter.sequence.to_be_bytes());
        transport.extend([0, 0, 0, 77]);
        // Mostly data with an acknowledgement, as bulk is.
        transport.extend([
            0x50,
            if quirk & 1 == 0 { 0x10 } else { flags },
            1,
            246,
            0,
            0,
            0,
            0,
        ]);
        counter.sequence = counter.sequence.wrapping_add(length as u32);
    }
    transport.extend(std::iter::repeat_n(filling, length));

    let mut packet = Vec::new();
    let protocol = if udp { ip::UDP } else { ip::TCP };
    if v6 {
        packet.extend([0x60, 0, 0, 1]);
        packet.extend((transport.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
        for end in [1, 2 + host] {
            packet.extend([0xfd; 15]);
            packet.push(end);
        }
    } else {
        packet.extend([0x45, 0]);
        packet.extend(((20 + transport.len()) as u16).to_be_bytes());
        packet.extend(counter.id.to_be_bytes());
        packet.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2 + host]);
        counter.id = counter.id.wrapping_add(1);
    }
    // A change that the checksums cover: another mark, id, window, option length...
    if quirk & 2 != 0 {
        let header = packet.len() + 20;
        let at = usize::from(change) % header;
        match at.checked_sub(packet.len()) {
            None => packet[at] ^= value,
            Some(at) => {
                if let Some(byte) = transport.get_mut(at) {
                    *byte ^= value;
                }
            }
        }
    }
    if !v6 {
        packet[10..12].fill(0);
        let sum = Sum::of(&packet).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
    let field = if udp { 6 } else { 16 };
    transport[field..field + 2].fill(0);
    let sum = pseudo(addresses, protocol)
        .word(transport.len() as u16)
        .bytes(&transport);
    let sum = if udp {
        sum.udp_checksum()
    } else {
        sum.checksum()
    };
    if !udp || quirk & 8 == 0 {
        transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(transport);
    // And one that they do not cover.
    if quirk & 4 != 0 {
        let at = usize::from(u16::from_le_bytes([change, value])) % packet.len();
        packet[at] ^= filling | 1;
    }
    // What the coalescer gets was trimmed to the length that its header states.
    Packet::parse(&packet).map_or_else(|_| packet.clone(), |parsed| parsed.bytes().to_vec())
}
