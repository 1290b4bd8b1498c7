//! Huffman codes of a DEFLATE block: their lengths from how often each symbol occurs, the codes themselves, how
//! both tables are written before the block (RFC 1951, 3.2.2 and 3.2.7), and the bits of the stream.

/// Symbols that are lengths of codes, in the order in which their own lengths are written (RFC 1951, 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// "Copy the length before", "repeat none" a few times and many times.
const COPY: u8 = 16;
const FEW: u8 = 17;
const MANY: u8 = 18;

/// The longest code of a length.
const LONGEST: usize = 7;

/// Some bits, the first one lowest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Code {
    bits: u32,
    length: u8,
}

impl Code {
    pub const fn of(bits: u32, length: u8) -> Self {
        Self { bits, length }
    }

    #[inline]
    pub const fn followed_by(self, bits: u32, length: u8) -> Self {
        Self { bits: self.bits | bits << self.length, length: self.length + length }
    }
}

/// How long the code of each symbol is, none for one that does not occur.
pub fn lengths<const N: usize>(counts: &[u32; N], limit: usize) -> [u8; N] {
    let mut lengths = [0; N];
    let mut leaves: Vec<(u32, usize)> = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(symbol, count)| (*count, symbol))
        .collect();
    leaves.sort_unstable();
    if let [(_, only)] = leaves[..] {
        lengths[only] = 1;
    }
    if leaves.len() < 2 {
        return lengths;
    }
    let mut symbols = leaves.iter().map(|(_, symbol)| *symbol);
    for (length, count) in fit(depths(&leaves), limit).into_iter().enumerate().rev() {
        symbols.by_ref().take(count as usize).for_each(|symbol| lengths[symbol] = length as u8);
    }
    lengths
}

/// How many leaves of the tree there are at each depth. Leaves and the nodes made of them are both taken from the lightest on,
/// so that two queues are enough.
fn depths(leaves: &[(u32, usize)]) -> Vec<u32> {
    let nodes = 2 * leaves.len() - 1;
    let mut weights: Vec<u32> = leaves.iter().map(|(count, _)| *count).collect();
    let mut parents = vec![0; nodes];
    let (mut leaf, mut node) = (0, leaves.len());
    for made in leaves.len()..nodes {
        let mut weight = 0;
        for _ in 0..2 {
            let is_leaf = leaf < leaves.len() && (node == made || weights[leaf] <= weights[node]);
            let taken = if is_leaf { &mut leaf } else { &mut node };
            weight += weights[*taken];
            parents[*taken] = made;
            *taken += 1;
        }
        weights.push(weight);
    }
    let mut depth = vec![0; nodes];
    let mut at_depth = vec![0; leaves.len()];
    for each in (0..nodes - 1).rev() {
        depth[each] = depth[parents[each]] + 1;
        if each < leaves.len() {
            at_depth[depth[each]] += 1;
        }
    }
    at_depth
}

/// The same where nothing lies deeper than `limit`: what does is lifted there, and others are lowered until the codes suffice.
fn fit(mut at_depth: Vec<u32>, limit: usize) -> Vec<u32> {
    let deeper = at_depth.get(limit + 1..).map_or(0, |deeper| deeper.iter().sum());
    at_depth.resize(limit + 1, 0);
    at_depth[limit] += deeper;
    let mut taken: u32 = at_depth.iter().enumerate().map(|(depth, count)| count << (limit - depth)).sum();
    while taken > 1 << limit {
        let Some(above) = (1..limit).rev().find(|depth| at_depth[*depth] > 0) else { break };
        at_depth[above] -= 1;
        at_depth[above + 1] += 2;
        at_depth[limit] -= 1;
        taken -= 1;
    }
    at_depth
}

pub fn codes<const N: usize>(lengths: &[u8; N]) -> [Code; N] {
    let mut next = [0_u32; 17];
    for length in lengths.iter().filter(|length| **length > 0) {
        next[usize::from(*length) + 1] += 1;
    }
    for length in 1..17 {
        next[length] = (next[length] + next[length - 1]) << 1;
    }
    lengths.map(|length| {
        if length == 0 {
            return Code::default();
        }
        let code = next[usize::from(length)];
        next[usize::from(length)] += 1;
        Code::of(code.reverse_bits() >> (u32::BITS - u32::from(length)), length)
    })
}

/// What a block with codes of its own begins with.
#[derive(Debug)]
pub struct Header {
    letters: usize,
    distances: usize,
    /// A symbol of the lengths' code, and what follows it.
    symbols: Vec<(u8, Code)>,
    lengths: [u8; 19],
    written: usize,
}

impl Header {
    pub fn of(letters: &[u8; 286], distances: &[u8; 30]) -> Self {
        let last = |lengths: &[u8]| lengths.iter().rposition(|length| *length > 0).map_or(0, |last| last + 1);
        let (letters, distances) = (&letters[..last(letters).max(257)], &distances[..last(distances).max(1)]);
        let mut symbols = Vec::with_capacity(letters.len() + distances.len());
        let all: Vec<u8> = [letters, distances].concat();
        for same in all.chunk_by(|one, other| one == other) {
            repeat(same[0], same.len(), &mut symbols);
        }
        let mut counts = [0; 19];
        symbols.iter().for_each(|(symbol, _)| counts[usize::from(*symbol)] += 1);
        let lengths = self::lengths(&counts, LONGEST);
        let written = ORDER.iter().rposition(|symbol| lengths[*symbol] > 0).map_or(0, |last| last + 1).max(4);
        Self { letters: letters.len(), distances: distances.len(), symbols, lengths, written }
    }

    /// In bits.
    pub fn cost(&self) -> u64 {
        let symbols = self.symbols.iter();
        let symbols =
            symbols.map(|(symbol, after)| u64::from(self.lengths[usize::from(*symbol)] + after.length));
        17 + 3 * self.written as u64 + symbols.sum::<u64>()
    }

    pub fn write(&self, is_last: bool, bits: &mut Bits) {
        bits.push(Code::of(u32::from(is_last) | 2 << 1, 3));
        bits.push(Code::of(self.letters as u32 - 257, 5));
        bits.push(Code::of(self.distances as u32 - 1, 5));
        bits.push(Code::of(self.written as u32 - 4, 4));
        for symbol in &ORDER[..self.written] {
            bits.push(Code::of(u32::from(self.lengths[*symbol]), 3));
            bits.flush();
        }
        let codes = codes(&self.lengths);
        for (symbol, after) in &self.symbols {
            bits.push(codes[usize::from(*symbol)]);
            bits.push(*after);
            bits.flush();
        }
    }
}

/// A length so many times over, in as few symbols as there are.
fn repeat(length: u8, times: usize, symbols: &mut Vec<(u8, Code)>) {
    let mut left = times;
    if length > 0 {
        symbols.push((length, Code::default()));
        left -= 1;
    }
    while left >= 3 {
        let (symbol, least, most, extra) = match (length, left) {
            (1.., _) => (COPY, 3, 6, 2),
            (0, ..=10) => (FEW, 3, 10, 3),
            (0, _) => (MANY, 11, 138, 7),
        };
        let some = left.min(most);
        symbols.push((symbol, Code::of((some - least) as u32, extra)));
        left -= some;
    }
    symbols.extend(std::iter::repeat_n((length, Code::default()), left));
}

/// Bits that are written behind some bytes.
#[derive(Debug)]
pub struct Bits<'a> {
    out: &'a mut Vec<u8>,
    /// Behind the last whole byte; there is room for more.
    at: usize,
    word: u64,
    held: u32,
}

impl<'a> Bits<'a> {
    pub fn after(out: &'a mut Vec<u8>) -> Self {
        let at = out.len();
        Self { out, at, word: 0, held: 0 }
    }

    /// For so many bytes more. Whoever writes more than that gets what is missing then.
    pub fn make_room(&mut self, bytes: usize) {
        self.out.resize(self.at + bytes, 0);
    }

    /// No more than 57 bits fit until they are flushed.
    #[inline]
    pub fn push(&mut self, code: Code) {
        self.word |= u64::from(code.bits) << self.held;
        self.held += u32::from(code.length);
    }

    /// Less than a byte is left.
    #[inline]
    pub fn flush(&mut self) {
        if self.out.len() < self.at + 8 {
            self.make_room(64);
        }
        self.out[self.at..self.at + 8].copy_from_slice(&self.word.to_le_bytes());
        self.at += (self.held / 8) as usize;
        self.word >>= self.held & !7;
        self.held %= 8;
    }

    /// Goes on with the next whole byte.
    pub fn align(&mut self) {
        self.flush();
        self.held = self.held.next_multiple_of(8);
        self.flush();
    }

    /// Whole bytes, behind whole bytes.
    pub fn append(&mut self, bytes: &[u8]) {
        self.align();
        self.make_room(bytes.len());
        self.out[self.at..].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    pub fn finish(mut self) {
        self.align();
        self.out.truncate(self.at);
    }
}
