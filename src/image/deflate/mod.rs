//! DEFLATE (RFC 1951) for a registry that is near: packing keeps up with a disk, at a tenth more bytes than the lowest level of the
//! libraries (docs/decisions/0406). What makes it fast is what it leaves out: one candidate a position, found by six
//! bytes, so that hardly any short match interrupts a run of literals; no second look; wider steps where nothing
//! repeats; and a table that stays in the first cache.

mod huffman;

use huffman::{Bits, Code};

const WINDOW: usize = 1 << 15;

const SHORTEST: usize = 4;
const LONGEST: usize = 258;

/// Of the plain bytes, with one pair of codes: long enough for its header to cost nothing, short enough to follow what a tar
/// goes through.
const BLOCK: usize = 1 << 17;

/// As much as a block without codes can have (RFC 1951, 3.2.4).
const STORED: usize = u16::MAX as usize;

const TABLE_BITS: u32 = 12;

/// After so many misses, as a power of two, steps become wider by one.
const PATIENCE: u32 = 4;

/// The end of a block is packed as literals: whoever looks for a match may read so far ahead.
const TAIL: usize = 16;

/// Four literals and what is left of a byte fit into 64 bits, and so do a length and a distance with their extra bits.
const LONGEST_CODE: usize = 12;

const END: usize = 256;

/// The least length, or distance, of each symbol and how many extra bits follow it (RFC 1951, 3.2.5).
const LENGTHS: [(usize, u8); 29] = {
    let mut all = spans(3, 4);
    // The longest has a symbol of its own.
    all[28] = (LONGEST, 0);
    all
};
const DISTANCES: [(usize, u8); 30] = spans(1, 2);

/// Twice `same` symbols have no extra bits, `same` have one, and so on.
const fn spans<const N: usize>(first: usize, same: usize) -> [(usize, u8); N] {
    let mut all = [(0, 0); N];
    let mut base = first;
    let mut at = 0;
    while at < N {
        let extra = if at < 2 * same { 0 } else { at / same - 1 };
        all[at] = (base, extra as u8);
        base += 1 << extra;
        at += 1;
    }
    all
}

/// Literals, then a match. A distance is kept less one, since the farthest is 32768.
#[derive(Clone, Copy, Debug)]
struct Token {
    literals: u32,
    length: u16,
    distance: u16,
}

#[derive(Debug)]
pub struct Packer {
    /// The lower half of the position where a hash was met last.
    table: Box<[u16; 1 << TABLE_BITS]>,
    tokens: Vec<Token>,
    literals_and_lengths: [u32; 286],
    distances: [u32; 30],
    length_symbols: [u8; LONGEST + 1],
    /// Of distances less one, up to 256 as they are and then by 128.
    distance_symbols: [u8; 512],
}

impl Default for Packer {
    fn default() -> Self {
        let mut length_symbols = [0; LONGEST + 1];
        for (symbol, (base, extra)) in LENGTHS.into_iter().enumerate() {
            let span = length_symbols[base..].iter_mut().take(1 << extra);
            span.for_each(|of| *of = symbol as u8);
        }
        let mut distance_symbols = [0; 512];
        for (symbol, (base, extra)) in DISTANCES.into_iter().enumerate() {
            (base - 1..base - 1 + (1 << extra)).for_each(|less| distance_symbols[slot(less)] = symbol as u8);
        }
        Self {
            table: Box::new([0; 1 << TABLE_BITS]),
            tokens: Vec::with_capacity(BLOCK / 16),
            literals_and_lengths: [0; 286],
            distances: [0; 30],
            length_symbols,
            distance_symbols,
        }
    }
}

fn slot(less: usize) -> usize {
    if less < 256 { less } else { 256 + (less >> 7) }
}

impl Packer {
    /// Appends a whole stream to `out`.
    pub fn pack(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        self.table.fill(0);
        let mut bits = Bits::after(out);
        let mut start = 0;
        loop {
            let end = plain.len().min(start + BLOCK);
            let rest = self.find(plain, start, end);
            self.write(plain, start..end, rest, &mut bits);
            if end == plain.len() {
                return bits.finish();
            }
            start = end;
        }
    }

    /// Finds the tokens of a block and counts its symbols; returns where the literals begin that no match follows.
    fn find(&mut self, plain: &[u8], start: usize, end: usize) -> usize {
        let Self { table, tokens, literals_and_lengths, distances, length_symbols, distance_symbols } = self;
        tokens.clear();
        literals_and_lengths.fill(0);
        distances.fill(0);
        let stop = end.saturating_sub(TAIL);
        let (mut run, mut at, mut misses) = (start, start, 0_usize);
        while at < stop {
            let here = eight(plain, at);
            let entry = &mut table[hash(here)];
            let distance = usize::from((at as u16).wrapping_sub(*entry));
            *entry = at as u16;
            // An entry that was overtaken by 65536, or never made, points anywhere: what stands there decides.
            let is_near = distance.wrapping_sub(1) < WINDOW && distance <= at;
            if !is_near || eight(plain, at - distance) as u32 != here as u32 {
                misses += 1;
                at += 1 + (misses >> PATIENCE);
                continue;
            }
            let most = LONGEST.min(end - at);
            let ahead = SHORTEST + same(plain, at - distance + SHORTEST, at + SHORTEST, most - SHORTEST);
            let before = plain[run..at].iter().rev();
            let before = before.zip(plain[..at - distance].iter().rev()).take(most - ahead);
            let behind = before.take_while(|(new, old)| new == old).count();
            let length = ahead + behind;
            let literals = &plain[run..at - behind];
            tokens.push(Token {
                literals: literals.len() as u32,
                length: length as u16,
                distance: (distance - 1) as u16,
            });
            literals.iter().for_each(|literal| literals_and_lengths[usize::from(*literal)] += 1);
            literals_and_lengths[END + 1 + usize::from(length_symbols[length])] += 1;
            distances[usize::from(distance_symbols[slot(distance - 1)])] += 1;
            at += ahead;
            run = at;
            misses = 0;
            if at < stop {
                let passed = eight(plain, at - 2);
                table[hash(passed)] = (at - 2) as u16;
                table[hash(passed >> 8)] = (at - 1) as u16;
            }
        }
        plain[run..end].iter().for_each(|literal| literals_and_lengths[usize::from(*literal)] += 1);
        literals_and_lengths[END] = 1;
        run
    }

    /// Writes a block: by codes of its own, or as it is where they would not make it shorter.
    fn write(&self, plain: &[u8], block: std::ops::Range<usize>, rest: usize, bits: &mut Bits) {
        let is_last = block.end == plain.len();
        let lengths = huffman::lengths::<286>(&self.literals_and_lengths, LONGEST_CODE);
        let distances = huffman::lengths::<30>(&self.distances, LONGEST_CODE);
        let header = huffman::Header::of(&lengths, &distances);
        let extra = |symbol: usize| symbol.checked_sub(END + 1).map_or(0, |length| LENGTHS[length].1);
        let weigh = |(count, length): (&u32, u8)| u64::from(*count) * u64::from(length);
        let letters = self.literals_and_lengths.iter().enumerate();
        let letters = letters.map(|(symbol, count)| weigh((count, lengths[symbol] + extra(symbol))));
        let far = self.distances.iter().enumerate();
        let far = far.map(|(symbol, count)| weigh((count, distances[symbol] + DISTANCES[symbol].1)));
        let cost = header.cost() + letters.sum::<u64>() + far.sum::<u64>();
        if cost >= 8 * block.len() as u64 {
            return store(&plain[block], is_last, bits);
        }
        bits.make_room(block.len() + 64);
        header.write(is_last, bits);
        self.write_tokens(plain, block, rest, (&huffman::codes(&lengths), &huffman::codes(&distances)), bits);
    }

    fn write_tokens(
        &self,
        plain: &[u8],
        block: std::ops::Range<usize>,
        rest: usize,
        (letters, distances): (&[Code; 286], &[Code; 30]),
        bits: &mut Bits,
    ) {
        let matches: [Code; LONGEST + 1] = std::array::from_fn(|length| {
            let symbol = usize::from(self.length_symbols[length]);
            let (base, extra) = LENGTHS[symbol];
            letters[END + 1 + symbol].followed_by(length.saturating_sub(base) as u32, extra)
        });
        let mut at = block.start;
        for token in &self.tokens {
            let literals = &plain[at..at + token.literals as usize];
            write_literals(literals, letters, bits);
            let (length, less) = (usize::from(token.length), usize::from(token.distance));
            let symbol = usize::from(self.distance_symbols[slot(less)]);
            let (base, extra) = DISTANCES[symbol];
            bits.push(matches[length]);
            bits.push(distances[symbol].followed_by((less + 1 - base) as u32, extra));
            bits.flush();
            at += literals.len() + length;
        }
        write_literals(&plain[rest..block.end], letters, bits);
        bits.push(letters[END]);
        bits.flush();
    }
}

#[inline]
fn write_literals(literals: &[u8], letters: &[Code; 286], bits: &mut Bits) {
    let (fours, rest) = literals.as_chunks::<4>();
    for four in fours {
        four.iter().for_each(|literal| bits.push(letters[usize::from(*literal)]));
        bits.flush();
    }
    rest.iter().for_each(|literal| bits.push(letters[usize::from(*literal)]));
    bits.flush();
}

/// Blocks without codes (RFC 1951, 3.2.4); an empty one too, since a stream has at least one block.
fn store(plain: &[u8], is_last: bool, bits: &mut Bits) {
    let mut rest = plain;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(STORED));
        let is_end = after.is_empty();
        bits.make_room(piece.len() + 64);
        bits.push(Code::of(u32::from(is_last && is_end), 3));
        bits.align();
        let length = piece.len() as u16;
        bits.push(Code::of(u32::from(length) | u32::from(!length) << 16, 32));
        bits.append(piece);
        if is_end {
            return;
        }
        rest = after;
    }
}

#[inline]
fn eight(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// By the first six bytes.
#[inline]
fn hash(bytes: u64) -> usize {
    ((bytes << 16).wrapping_mul(0x9E37_79B1_85EB_CA87) >> (u64::BITS - TABLE_BITS)) as usize
}

/// How many bytes are the same at both places, at most `most`; no more than so many are there.
#[inline]
fn same(bytes: &[u8], old: usize, new: usize, most: usize) -> usize {
    let mut length = 0;
    while length + 8 <= most {
        let differ = eight(bytes, old + length) ^ eight(bytes, new + length);
        if differ != 0 {
            return length + (differ.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    let rest = bytes[new + length..new + most].iter().zip(&bytes[old + length..]);
    length + rest.take_while(|(new, old)| new == old).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::DeflateDecoder;
    use std::io::Read;

    fn again(plain: &[u8]) -> usize {
        let mut packed = b"before".to_vec();
        Packer::default().pack(plain, &mut packed);
        let mut unpacked = Vec::new();
        let mut decoder = DeflateDecoder::new(&packed[6..]);
        decoder.read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == plain, "{} bytes became {}", plain.len(), unpacked.len());
        assert_eq!(decoder.total_in() as usize, packed.len() - 6);
        packed.len() - 6
    }

    /// Numbers that look like chance (Knuth's MMIX).
    fn chance(mut state: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        }
    }

    #[test]
    fn the_tables_are_those_of_the_rfc() {
        assert_eq!(LENGTHS[..9], [(3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 1)]);
        assert_eq!((LENGTHS[20], LENGTHS[27], LENGTHS[28]), ((67, 4), (227, 5), (258, 0)));
        assert_eq!(DISTANCES[..6], [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (7, 1)]);
        assert_eq!((DISTANCES[16], DISTANCES[29]), ((257, 7), (24577, 13)));
    }

    #[test]
    fn every_length_about_an_edge_comes_out_again() {
        let edges = [0, TAIL, LONGEST, WINDOW, STORED, BLOCK, 2 * BLOCK];
        for length in edges.into_iter().flat_map(|edge| edge.saturating_sub(3)..edge + 4) {
            again(&vec![0; length]);
            again(&(0..length).map(|at| (at * at / 7) as u8).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn what_does_not_repeat_is_stored_and_grows_by_five_bytes_a_block() {
        let mut next = chance(1);
        let plain: Vec<u8> = (0..3 * BLOCK).map(|_| next(256) as u8).collect();
        assert!(again(&plain) <= plain.len() + 3 * 3 * 5);
    }

    #[test]
    fn repeats_near_and_far_come_out_again() {
        for seed in 0..200 {
            let mut next = chance(seed);
            let letters = 1 + next(256);
            let mut plain: Vec<u8> = Vec::new();
            let length = next(3 * BLOCK);
            while plain.len() < length {
                let farthest = plain.len().min(WINDOW + 8);
                if farthest > 0 && next(3) > 0 {
                    let from = plain.len() - 1 - next(farthest);
                    let most = if next(9) == 0 { 1000 } else { 20 };
                    let count = next(most);
                    (from..from + count).for_each(|at| plain.push(plain[at]));
                } else {
                    (0..next(40)).for_each(|_| plain.push(next(letters) as u8));
                }
            }
            again(&plain);
        }
    }

    #[test]
    fn skewed_letters_have_codes_that_fit() {
        // Fibonacci numbers make the deepest tree.
        let (mut count, mut more) = (1, 1);
        let mut plain = Vec::new();
        for letter in 0..24 {
            plain.extend(std::iter::repeat_n(letter, count));
            (count, more) = (more, count + more);
        }
        let mut next = chance(7);
        (1..plain.len()).for_each(|at| plain.swap(at, next(at + 1)));
        assert!(again(&plain) < plain.len() / 2);
    }
}
