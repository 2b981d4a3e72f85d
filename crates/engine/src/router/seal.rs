//! Cuts packets into records and seals them where they will be sent from.
//!
//! Records of one size to one place lie one after the other and leave as one segmented send, sealed
//! together once the send is complete. A record that is shorter ends its send, since only the last
//! datagram of one may be shorter.

use std::ops::Range;

use warren_packet::batch::{MAX_SEGMENTS, MAX_TRANSMIT, SendBatch, Transmit};
use warren_packet::segment::{Malformed, Segments};
use warren_packet::{Ecn, ecn, ip, vnet};
use warren_wireguard::Permit;
use warren_wireguard::messages::{DATA_HEADER, TAG, padded_len, write_data_header};

use super::{Edges, source_of};
use crate::peer::PeerId;

/// Seals packets of one peer under one permit, in order.
pub(super) struct Sealer<'a> {
    permit: &'a Permit,
    peer: PeerId,
    /// Records are padded, but not beyond this.
    mtu: usize,
    counter: u64,
    run: Option<Run>,
}

/// The send that is being put together at the end of the arena.
struct Run {
    range: Range<usize>,
    stride: usize,
    records: usize,
    first_counter: u64,
    ecn: Ecn,
}

impl<'a> Sealer<'a> {
    pub(super) fn new(permit: &'a Permit, peer: PeerId, mtu: usize) -> Self {
        Self {
            permit,
            peer,
            mtu,
            counter: permit.first_counter,
            run: None,
        }
    }

    /// Cuts and seals one packet. Transmits what is ready whenever `out` is full.
    pub(super) fn push(
        &mut self,
        header: vnet::Header,
        packet: &[u8],
        out: &mut SendBatch,
        edges: &mut dyn Edges,
    ) -> Result<(), Malformed> {
        let segments = Segments::new(header, packet)?;
        // Of the inner traffic class the outer header tells only the mark (RFC 6040).
        let inner = ip::Packet::parse(packet).map_or(Ecn::NotEct, |packet| packet.ecn());
        let ecn = ecn::encapsulate(inner);
        for index in 0..segments.count() {
            let len = segments.len(index);
            let record = self.record(len, ecn, out, edges);
            let (packet, padding) = record[DATA_HEADER..].split_at_mut(len);
            segments.copy_into(index, packet);
            let padding_len = padding.len() - TAG;
            padding[..padding_len].fill(0);
        }
        Ok(())
    }

    /// An empty record: what keeps a session alive.
    pub(super) fn push_keepalive(&mut self, out: &mut SendBatch, edges: &mut dyn Edges) {
        self.record(0, Ecn::NotEct, out, edges);
    }

    /// Seals the last run.
    pub(super) fn finish(mut self, out: &mut SendBatch) {
        self.close(out);
    }

    /// Room for the record of a packet of `len` bytes, its header written.
    fn record<'o>(
        &mut self,
        len: usize,
        ecn: Ecn,
        out: &'o mut SendBatch,
        edges: &mut dyn Edges,
    ) -> &'o mut [u8] {
        let size = DATA_HEADER + padded_len(len, self.mtu) + TAG;
        let fits = |run: &Run, arena: usize| {
            size <= run.stride
                && run.ecn == ecn
                && run.records < MAX_SEGMENTS
                && run.range.len() + size <= MAX_TRANSMIT
                && run.range.end + size <= arena
                && run.range.len() == run.records * run.stride
        };
        if !self
            .run
            .as_ref()
            .is_some_and(|run| fits(run, out.arena.len()))
        {
            self.close(out);
            if out.used() + size > out.arena.len() {
                edges.transmit(out);
            }
            let start = out.used();
            self.run = Some(Run {
                range: start..start,
                stride: size,
                records: 0,
                first_counter: self.counter,
                ecn,
            });
        }
        let run = self.run.as_mut().expect("made above if there was none");
        let record = &mut out.arena[run.range.end..run.range.end + size];
        run.range.end += size;
        run.records += 1;
        write_data_header(record, self.permit.session.remote_index(), self.counter);
        self.counter += 1;
        record
    }

    fn close(&mut self, out: &mut SendBatch) {
        let Some(run) = self.run.take() else { return };
        let records = &mut out.arena[run.range.clone()];
        self.permit
            .session
            .sealing()
            .seal_run(run.first_counter, records, run.stride, DATA_HEADER);
        out.transmits.push(Transmit {
            range: run.range,
            stride: run.stride,
            remote: self.permit.endpoint.addr,
            source: source_of(&self.permit.endpoint),
            ecn: run.ecn,
            tos: 0,
            tag: self.peer.0,
        });
    }
}
