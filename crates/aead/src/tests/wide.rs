//! Many records at once beside one at a time, for every kind of lanes that there is: the plain ones
//! of `lanes.rs` in both shapes, which assert that no limb outgrows its bounds, and the processor's.
//!
//! Nothing that Miri runs here needs the library, which it cannot call; each test takes it minutes.

use std::array;

use proptest::collection::vec;
use proptest::prelude::*;

use super::lanes::{Broad, Narrow};
use super::model;
use crate::wide::chacha20::{self, BLOCK_LEN, Keystream, Pass, Schedule, Shared, WIDEST};
use crate::wide::lanes::{Limbs, Processor, WIDEST_LIMBS, Words};
use crate::wide::poly1305::{Mac, PIECE_LEN};
use crate::wide::{self, Run};
use crate::{Forged, KEY_LEN, NONCE_LEN, TAG_LEN, nonce, portable, text_and_tag};
#[cfg(not(miri))]
use crate::{Implementation, Key};

/// Calls a function with every kind of lanes in front of its arguments.
macro_rules! with_all_lanes {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $function(Narrow, $($argument),*);
        $function(Broad, $($argument),*);
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx2) = crate::simd::Avx2::detect() {
                $function(avx2, $($argument),*);
            }
            if let Some(avx512) = crate::simd::Avx512::detect() {
                $function(avx512, $($argument),*);
            }
        }
    };
}

/// A way to seal and open, so that the processor's lanes are tried by their own way in.
trait Lanes: Processor {
    fn seal(self, key: &[u8; KEY_LEN], counters: &[u64], run: Run<'_>) {
        wide::seal(self, key, counters, run);
    }

    fn open(
        self,
        key: &[u8; KEY_LEN],
        counters: &[u64],
        run: Run<'_>,
        opened: &mut [Result<(), Forged>],
    ) {
        wide::open(self, key, counters, run, opened);
    }
}

impl Lanes for Narrow {}
impl Lanes for Broad {}

#[cfg(target_arch = "x86_64")]
mod processors {
    use super::*;
    use crate::simd::{Avx2, Avx512};

    macro_rules! lanes {
        ($processor:ty) => {
            impl Lanes for $processor {
                fn seal(self, key: &[u8; KEY_LEN], counters: &[u64], run: Run<'_>) {
                    self.seal(key, counters, run);
                }

                fn open(
                    self,
                    key: &[u8; KEY_LEN],
                    counters: &[u64],
                    run: Run<'_>,
                    opened: &mut [Result<(), Forged>],
                ) {
                    self.open(key, counters, run, opened);
                }
            }
        };
    }

    lanes!(Avx2);
    lanes!(Avx512);
}

/// The shape of a group, and what is in it.
#[derive(Debug, Clone)]
struct Group {
    key: [u8; KEY_LEN],
    counters: Vec<u64>,
    prefix: usize,
    text_len: usize,
    last_len: usize,
    /// How far behind an aligned address it begins.
    offset: usize,
}

impl Group {
    fn stride(&self) -> usize {
        self.prefix + self.text_len + TAG_LEN
    }

    /// The first of `records` records, before sealing.
    fn plain(&self, records: usize) -> Vec<u8> {
        let len = (records - 1) * self.stride() + self.prefix + self.last_len + TAG_LEN;
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// What [`Group::plain`] must become, by the pure-Rust library.
    fn sealed(&self, records: usize) -> Vec<u8> {
        let mut run = self.plain(records);
        let cipher = portable::Cipher::new(&self.key);
        for (record, &counter) in run.chunks_mut(self.stride()).zip(&self.counters) {
            let (text, tag) = text_and_tag(record, self.prefix);
            *tag = cipher.seal(nonce(counter), text);
        }
        run
    }
}

fn any_group(text_max: usize) -> impl Strategy<Value = Group> {
    (
        any::<[u8; KEY_LEN]>(),
        vec(any::<u64>(), WIDEST),
        0..40usize,
        (0..=text_max, 0..=text_max, any::<bool>()),
        0..64usize,
    )
        .prop_map(
            |(key, counters, prefix, (text_len, last, shorter), offset)| Group {
                key,
                counters,
                prefix,
                text_len,
                last_len: if shorter {
                    last.min(text_len)
                } else {
                    text_len
                },
                offset,
            },
        )
}

/// Seals and opens the first records of a group; `forged` has a byte of some records, behind their
/// clear bytes, that is changed on the way.
fn seals_and_opens<P: Lanes>(processor: P, group: &Group, forged: &[Option<prop::sample::Index>]) {
    for records in [
        1,
        P::BLOCKS / 2,
        P::BLOCKS / 2 + 1,
        P::BLOCKS,
        forged.len() % P::BLOCKS + 1,
    ] {
        let counters = &group.counters[..records];
        let stride = group.stride();
        let plain = group.plain(records);
        let mut memory = vec![0xee; group.offset + plain.len() + 64];
        let inside = group.offset..group.offset + plain.len();
        memory[inside.clone()].copy_from_slice(&plain);

        let run = Run::new(&mut memory[inside.clone()], stride, group.prefix, records);
        processor.seal(&group.key, counters, run);
        let mut sealed = group.sealed(records);
        assert_eq!(memory[inside.clone()], sealed, "{records} records");

        let mut expected = vec![Ok(()); records];
        for ((record, forged), expected) in sealed.chunks_mut(stride).zip(forged).zip(&mut expected)
        {
            if let Some(byte) = forged {
                let secret = &mut record[group.prefix..];
                let byte = byte.index(secret.len());
                secret[byte] ^= 1 << (byte % 8);
                *expected = Err(Forged);
            }
        }
        memory[inside.clone()].copy_from_slice(&sealed);
        let mut opened = vec![Err(Forged); records];
        let run = Run::new(&mut memory[inside.clone()], stride, group.prefix, records);
        processor.open(&group.key, counters, run, &mut opened);
        assert_eq!(opened, expected, "{records} records");
        let left = memory[inside.clone()].chunks(stride);
        for (i, (left, opened)) in left.zip(&opened).enumerate() {
            // A forged record is not even decrypted.
            let from = if opened.is_ok() { &plain } else { &sealed };
            let from = from.chunks(stride).nth(i).expect("as many records");
            let text = ..from.len() - TAG_LEN;
            assert_eq!(left[text], from[text], "record {i} of {records}");
        }
        let outside = memory[..inside.start].iter().chain(&memory[inside.end..]);
        assert!(outside.copied().all(|byte| byte == 0xee));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_group_is_sealed_and_opened_as_its_records_are_one_by_one(
        group in any_group(if cfg!(miri) { 200 } else { 2000 }),
        forged in vec(prop::option::weighted(0.2, any::<prop::sample::Index>()), 0..=WIDEST),
    ) {
        with_all_lanes!(seals_and_opens(&group, &forged));
    }

    #[test]
    fn the_lanes_authenticate_extreme_numbers_as_the_model_does(
        keys in vec(extreme_bytes(32), WIDEST_LIMBS),
        messages in prop_oneof![
            vec(vec(extreme_bytes(PIECE_LEN), 1..6), WIDEST_LIMBS),
            (4..14_usize).prop_flat_map(|pieces| vec(vec(extreme_bytes(PIECE_LEN), pieces), WIDEST_LIMBS)),
        ],
    ) {
        let keys: Vec<[u8; 32]> = keys.into_iter().map(|key| key.try_into().expect("32 bytes")).collect();
        let messages: Vec<Vec<u8>> = messages.iter().map(|pieces| pieces.concat()).collect();
        with_all_lanes!(authenticates(&keys, &messages, false));
        with_all_lanes!(authenticates(&keys, &messages, true));
    }
}

#[test]
fn long_texts_are_sealed_and_opened() {
    for text_len in [1500, 8999, 9000] {
        let group = Group {
            key: array::from_fn(|i| i as u8),
            counters: (7..).take(WIDEST).collect(),
            prefix: 16,
            text_len: if cfg!(miri) {
                text_len % 1000
            } else {
                text_len
            },
            last_len: text_len % 1000,
            offset: 3,
        };
        with_all_lanes!(seals_and_opens(&group, &[]));
    }
}

#[test]
fn every_length_is_sealed_and_opened() {
    let lens: Vec<usize> = if cfg!(miri) {
        vec![0, 1, 15, 16, 17, 63, 64, 65]
    } else {
        (0..=200).collect()
    };
    for text_len in lens {
        for last_len in [0, 1, text_len / 2, text_len.saturating_sub(1), text_len] {
            let group = Group {
                key: [0x5a; KEY_LEN],
                // Both words of a counter change within the group.
                counters: (u64::from(u32::MAX) - 3..).take(WIDEST).collect(),
                prefix: 16,
                text_len,
                last_len: last_len.min(text_len),
                offset: 0,
            };
            with_all_lanes!(seals_and_opens(&group, &[]));
        }
    }
}

/// Bytes at which carries begin and end, more often than chance has it.
fn extreme_bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => Just(0xff),
        2 => Just(0),
        1 => Just(0xfe),
        1 => Just(0xfb),
        1 => Just(1),
        1 => any::<u8>(),
    ];
    prop_oneof![vec(byte, len), Just(vec![0xff; len]), Just(vec![0; len])]
}

/// A message in each lane, of whole pieces; those that are shorter begin later. With `by_four` pieces
/// are absorbed four at once where every lane has them.
fn authenticates<P: Processor>(
    processor: P,
    keys: &[[u8; 32]],
    messages: &[Vec<u8>],
    by_four: bool,
) {
    let lanes = P::BLOCKS / 2;
    let half = |at: usize| {
        let halves = array::from_fn(|lane| {
            u64::from_le_bytes(*keys[lane][at..].first_chunk().expect("8 of 32 bytes"))
        });
        processor.limbs(&halves)
    };
    let mut mac = P::Mac::new(processor, [half(0), half(8)], [half(16), half(24)]);
    let powers = mac.powers();
    let pieces = |message: &Vec<u8>| message.len() / PIECE_LEN;
    let longest = messages.iter().map(pieces).max().expect("there are lanes");
    let shortest = messages.iter().map(pieces).min().expect("there are lanes");
    // Of every lane, and 1 above each that is there.
    let column = |at: usize| {
        let mut column = [[0; PIECE_LEN]; WIDEST_LIMBS];
        let mut top = [0; WIDEST_LIMBS];
        for (lane, message) in messages.iter().enumerate() {
            if let Some(at) = (at + pieces(message)).checked_sub(longest) {
                column[lane].copy_from_slice(&message[at * PIECE_LEN..][..PIECE_LEN]);
                top[lane] = 1;
            }
        }
        (
            processor.gather(|lane| &column[lane]),
            processor.limbs(&top),
        )
    };
    let mut at = 0;
    while at < longest {
        if by_four && at >= longest - shortest && longest - at >= 4 {
            mac.absorb_four(&powers, array::from_fn(|i| column(at + i).0));
            at += 4;
        } else {
            let (piece, top) = column(at);
            mac.absorb(piece, top);
            at += 1;
        }
    }
    let [low, high] = mac.finish().map(Limbs::to_array);
    for lane in 0..lanes {
        let tag = u128::from(low[lane]) | u128::from(high[lane]) << 64;
        let expected = model::poly1305(&keys[lane], &messages[lane]);
        assert_eq!(tag.to_le_bytes(), expected, "lane {lane}");
    }
}

/// RFC 8439, A.3, vectors 7 to 11: the carries that implementations are known to lose.
#[test]
fn the_lanes_authenticate_as_rfc_8439_section_a_3_does() {
    let ff = [0xff; 16];
    let number = |bytes: u128| bytes.to_le_bytes();
    let cases: [(u128, u128, Vec<[u8; 16]>, u128); 5] = [
        (2, 0, vec![ff], 3),
        (2, u128::MAX, vec![number(2)], 3),
        (1, 0, vec![ff, number(u128::MAX - 0x0f), number(0x11)], 5),
        (
            1,
            0,
            vec![
                ff,
                [
                    0xfb, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe, 0xfe,
                    0xfe, 0xfe, 0xfe,
                ],
                [1; 16],
            ],
            0,
        ),
        (2, 0, vec![number(u128::MAX - 2)], u128::MAX - 5),
    ];
    for (r, s, message, tag) in cases {
        let key: [u8; 32] = [number(r), number(s)]
            .concat()
            .try_into()
            .expect("32 bytes");
        let message = message.concat();
        assert_eq!(model::poly1305(&key, &message), number(tag));
        with_all_lanes!(authenticates(
            &[key; WIDEST_LIMBS],
            &array::from_fn::<_, WIDEST_LIMBS, _>(|_| message.clone()),
            false
        ));
    }
}

/// Every vector of Wycheproof with a nonce of 12 bytes, additional data included, by the parts that
/// groups are sealed with.
#[test]
fn the_lanes_agree_with_wycheproof() {
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    let set = TestSet::load(TestName::ChaCha20Poly1305).expect("the vectors are there");
    let mut tried = 0;
    for vector in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(nonce) = vector.nonce[..].try_into() else {
            continue;
        };
        let key = vector.key[..].try_into().expect("32 bytes");
        with_all_lanes!(agrees_with_vector(key, nonce, vector));
        tried += 1;
    }
    assert!(tried > 250, "{tried} vectors");

    fn agrees_with_vector<P: Processor>(
        processor: P,
        key: &[u8; KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        vector: &wycheproof::aead::Test,
    ) {
        let (text, tag) = seal_by_parts(processor, key, nonce, &vector.aad, &vector.pt);
        let genuine = text == vector.ct[..] && tag == vector.tag[..];
        assert_eq!(
            genuine,
            vector.result == TestResult::Valid,
            "vector {}",
            vector.tc_id
        );
    }
}

/// The same vectors as whole records, in every lane and by everything that the processor has.
///
/// A record has no additional data and a nonce that begins with four zero bytes, and every vector has
/// the one or begins otherwise. So each gives key, text and the nonce's last eight bytes, and what the
/// pure-Rust library makes of them is expected; where the nonce is a record's, that is the vector's own
/// ciphertext. A tag is changed as the vector's is: those that are not valid must not open.
#[test]
fn whole_records_agree_with_wycheproof() {
    use wycheproof::aead::{TestName, TestSet};

    let set = TestSet::load(TestName::ChaCha20Poly1305).expect("the vectors are there");
    let (mut tried, mut own, mut invalid) = (0, 0, 0);
    for vector in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(vector_nonce) = <&[u8; NONCE_LEN]>::try_from(&vector.nonce[..]) else {
            continue;
        };
        let key = vector.key[..].try_into().expect("32 bytes");
        let (first, counter) = vector_nonce
            .split_first_chunk::<4>()
            .expect("4 of 12 bytes");
        let counter = u64::from_le_bytes(counter.try_into().expect("8 of 12 bytes"));
        let mut sealed = vector.pt.to_vec();
        let tag = portable::Cipher::new(key).seal(nonce(counter), &mut sealed);
        if *first == [0; 4] {
            assert_eq!(sealed, vector.ct[..], "vector {}", vector.tc_id);
            own += 1;
        }
        let (_, right) = model::seal(key, vector_nonce, &vector.aad, &vector.pt);
        let change: [u8; TAG_LEN] = array::from_fn(|i| right[i] ^ vector.tag[i]);
        let arrived: [u8; TAG_LEN] = array::from_fn(|i| tag[i] ^ change[i]);
        let genuine = vector.result == wycheproof::TestResult::Valid;
        let record = Record {
            key,
            counter,
            plain: &vector.pt,
            sealed: [&sealed[..], &tag].concat(),
            arrived: [&sealed[..], &arrived].concat(),
            verdict: if genuine { Ok(()) } else { Err(Forged) },
        };
        with_all_lanes!(fills_every_lane(&record));
        #[cfg(not(miri))]
        takes_every_place(&record);
        tried += 1;
        invalid += usize::from(!genuine);
    }
    assert!(tried > 250, "{tried} vectors");
    assert!(own >= 10 && invalid > 50, "{own} and {invalid} vectors");

    struct Record<'a> {
        key: &'a [u8; KEY_LEN],
        counter: u64,
        plain: &'a [u8],
        sealed: Vec<u8>,
        arrived: Vec<u8>,
        verdict: Result<(), Forged>,
    }

    fn fills_every_lane<P: Lanes>(processor: P, record: &Record<'_>) {
        let stride = record.sealed.len();
        let counters = [record.counter; WIDEST];
        let counters = &counters[..P::BLOCKS];
        let mut run = [record.plain, &[0; TAG_LEN]].concat().repeat(P::BLOCKS);
        processor.seal(
            record.key,
            counters,
            Run::new(&mut run, stride, 0, P::BLOCKS),
        );
        assert_eq!(run, record.sealed.repeat(P::BLOCKS));

        let mut run = record.arrived.repeat(P::BLOCKS);
        let mut opened = vec![Err(Forged); P::BLOCKS];
        let arrived = Run::new(&mut run, stride, 0, P::BLOCKS);
        processor.open(record.key, counters, arrived, &mut opened);
        assert_eq!(opened, vec![record.verdict; P::BLOCKS]);
        if record.verdict.is_ok() {
            for run in run.chunks(stride) {
                assert_eq!(&run[..record.plain.len()], record.plain);
            }
        }
    }

    /// By keys, as callers have them: each place of a run in turn has the vector's counter.
    #[cfg(not(miri))]
    fn takes_every_place(record: &Record<'_>) {
        let stride = record.sealed.len();
        let names = Implementation::all().map(Implementation::name);
        let named = names.filter_map(|name| Implementation::named(name).ok());
        for implementation in Implementation::all().chain(named) {
            let key = Key::with(*record.key, implementation);
            for place in 0..WIDEST {
                let first = record.counter - place as u64;
                let mut run = [record.plain, &[0; TAG_LEN]].concat().repeat(WIDEST);
                key.seal_run(first, &mut run, stride, 0);
                let here = place * stride..(place + 1) * stride;
                assert_eq!(
                    run[here.clone()],
                    record.sealed,
                    "{}",
                    implementation.name()
                );

                run[here.clone()].copy_from_slice(&record.arrived);
                let counters: Vec<u64> = (first..).take(WIDEST).collect();
                let mut opened = Vec::new();
                key.open_run(&counters, &mut run, stride, 0, &mut opened);
                let mut expected = vec![Ok(()); WIDEST];
                expected[place] = record.verdict;
                assert_eq!(opened, expected, "{}", implementation.name());
            }
        }
    }
}

/// Seals one text with any nonce and additional data.
fn seal_by_parts<P: Processor>(
    processor: P,
    key: &[u8; KEY_LEN],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    plain: &[u8],
) -> (Vec<u8>, [u8; TAG_LEN]) {
    let (first, counter) = nonce.split_first_chunk().expect("4 of 12 bytes");
    let counter = u64::from_le_bytes(counter.try_into().expect("8 of 12 bytes"));
    let shared = Shared::new(processor, key, *first);
    let blocks = plain.len().div_ceil(BLOCK_LEN) as u32;
    let counters = [counter];
    let mut schedule = Schedule::new(&counters, blocks, blocks);
    let mut keystream = Vec::new();
    let mut pass = Pass::new(processor);
    loop {
        schedule.next(processor, &mut pass);
        if pass.used == 0 {
            break;
        }
        let words = chacha20::blocks(processor, &shared, &pass);
        let mut made = Keystream([[0; BLOCK_LEN]; WIDEST]);
        P::Words::interleave(&words, &mut made);
        keystream.extend(made.0[..pass.used].concat());
    }
    let (one_time_key, keystream) = keystream.split_at(BLOCK_LEN);
    let text: Vec<u8> = plain
        .iter()
        .zip(keystream)
        .map(|(text, key)| text ^ key)
        .collect();

    let half = |at: usize| {
        processor.limb(u64::from_le_bytes(
            *one_time_key[at..].first_chunk().expect("8 of 32 bytes"),
        ))
    };
    let mut mac = P::Mac::new(processor, [half(0), half(8)], [half(16), half(24)]);
    let lens = [aad.len() as u64, text.len() as u64]
        .map(u64::to_le_bytes)
        .concat();
    for piece in [aad, &text, &lens]
        .into_iter()
        .flat_map(|part| part.chunks(PIECE_LEN))
    {
        let mut padded = [0; PIECE_LEN];
        padded[..piece.len()].copy_from_slice(piece);
        mac.absorb(processor.gather(|_| &padded), processor.limb(1));
    }
    let [[low, ..], [high, ..]] = mac.finish().map(Limbs::to_array);
    let tag = u128::from(low) | u128::from(high) << 64;
    (text, tag.to_le_bytes())
}
