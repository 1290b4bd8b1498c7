//! DNS messages, as much as a forwarder needs: is this one plain query, for which name; how long may its answer be kept;
//! and answers of our own for the host's names.

use std::net::IpAddr;

use super::frame::u16_at;

const HEADER: usize = 12;
pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
const OPT: u16 = 41;

/// The one question of a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// Lower case, dots between the labels, none at the end.
    pub(crate) name: String,
    pub(crate) kind: u16,
    /// Where the question section ends.
    pub(crate) end: usize,
}

/// Reads a message as a standard query with one question. Anything else is not forwarded.
pub(crate) fn question(message: &[u8]) -> Option<Question> {
    let flags = u16_at(message, 2)?;
    // QR and opcode must be 0, one question, no answers; additional records (EDNS) may be there.
    if flags & 0xf800 != 0 || u16_at(message, 4)? != 1 || u16_at(message, 6)? != 0 {
        return None;
    }
    let (mut name, mut at) = (String::new(), HEADER);
    loop {
        let length = usize::from(*message.get(at)?);
        at = at.checked_add(1)?;
        match length {
            0 => break,
            1..=63 => {}
            _ => return None,
        }
        let label = message.get(at..at.checked_add(length)?)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        at = at.checked_add(length)?;
        if name.len() > 255 {
            return None;
        }
    }
    let kind = u16_at(message, at)?;
    u16_at(message, at.checked_add(2)?)?;
    Some(Question { name, kind, end: at.checked_add(4)? })
}

/// Where each record's time to live is, and the least of them, for an answer that may be kept.
pub(crate) fn lifetimes(answer: &[u8]) -> Option<(u32, Vec<usize>)> {
    let flags = u16_at(answer, 2)?;
    // Answers only, whole ones (TC clear), success or "no such name".
    if flags & 0x8000 == 0 || flags & 0x0200 != 0 || !matches!(flags & 0x000f, 0 | 3) {
        return None;
    }
    let mut at = HEADER;
    for _ in 0..u16_at(answer, 4)? {
        at = skip_name(answer, at)?.checked_add(4)?;
    }
    let counts = [u16_at(answer, 6)?, u16_at(answer, 8)?, u16_at(answer, 10)?];
    let records: u32 = counts.iter().copied().map(u32::from).sum();
    let (mut least, mut places) = (u32::MAX, Vec::new());
    for _ in 0..records {
        at = skip_name(answer, at)?;
        let kind = u16_at(answer, at)?;
        let place = at.checked_add(4)?;
        let seconds = u32::from_be_bytes(*answer.get(place..)?.first_chunk()?);
        let length = usize::from(u16_at(answer, at.checked_add(8)?)?);
        if kind != OPT {
            least = least.min(seconds);
            places.push(place);
        }
        at = at.checked_add(10)?.checked_add(length)?;
    }
    (least != u32::MAX && at <= answer.len()).then_some((least, places))
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return at.checked_add(1),
            1..=63 => at = at.checked_add(usize::from(length))?.checked_add(1)?,
            192.. => return at.checked_add(2),
            _ => return None,
        }
    }
}

/// Takes `age` seconds off the records at `places`.
pub(crate) fn age(answer: &mut [u8], places: &[usize], age: u32) {
    for place in places {
        if let Some(field) = answer.get_mut(*place..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *field = u32::from_be_bytes(*field).saturating_sub(age).to_be_bytes();
        }
    }
}

/// An answer of our own with the addresses that fit the question's type.
pub(crate) fn answer(query: &[u8], question: &Question, addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let mut records = Vec::new();
    let mut count = 0_u16;
    for address in addresses {
        let octets = match (question.kind, address) {
            (A, IpAddr::V4(ip)) => ip.octets().to_vec(),
            (AAAA, IpAddr::V6(ip)) => ip.octets().to_vec(),
            _ => continue,
        };
        // A pointer to the question's name, its type, class IN, five seconds.
        records.extend_from_slice(&[0xc0, HEADER as u8]);
        records.extend_from_slice(&question.kind.to_be_bytes());
        records.extend_from_slice(&[0, 1, 0, 0, 0, 5]);
        records.extend_from_slice(&u16::try_from(octets.len()).ok()?.to_be_bytes());
        records.extend_from_slice(&octets);
        count = count.saturating_add(1);
    }
    let mut message = reply(query, question.end, 0)?;
    message.get_mut(6..8)?.copy_from_slice(&count.to_be_bytes());
    message.extend_from_slice(&records);
    Some(message)
}

/// "Server failure", for a query that no server answered.
pub(crate) fn failure(query: &[u8]) -> Option<Vec<u8>> {
    reply(query, question(query)?.end, 2)
}

fn reply(query: &[u8], end: usize, code: u8) -> Option<Vec<u8>> {
    let mut message = query.get(..end)?.to_vec();
    let recursion = *message.get(2)? & 1;
    message.get_mut(2..4)?.copy_from_slice(&[0x80 | recursion, 0x80 | code]);
    message.get_mut(6..HEADER)?.fill(0);
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(b"\x04Host\x07example\0\0\x01\0\x01");
        message
    }

    #[test]
    fn a_query_cut_off_anywhere_is_no_query() {
        let query = query();
        assert_eq!(question(&query).unwrap().name, "host.example");
        for length in 0..query.len() {
            assert_eq!(question(&query[..length]), None);
        }
    }

    #[test]
    fn an_answer_or_a_pointer_in_the_question_is_no_query() {
        let mut answered = query();
        answered[2] = 0x81;
        assert_eq!(question(&answered), None);
        let mut pointed = query();
        pointed[12] = 0xc0;
        assert_eq!(question(&pointed), None);
    }

    #[test]
    fn the_least_lifetime_of_an_answer_is_found_and_lowered() {
        let query = query();
        let question = question(&query).unwrap();
        let mut message = answer(&query, &question, &["192.0.2.1".parse().unwrap()]).unwrap();
        let (least, places) = lifetimes(&message).unwrap();
        assert_eq!((least, places.len()), (5, 1));
        age(&mut message, &places, 2);
        assert_eq!(lifetimes(&message).unwrap().0, 3);
        for length in 0..message.len() {
            assert!(lifetimes(&message[..length]).is_none());
        }
    }
}
