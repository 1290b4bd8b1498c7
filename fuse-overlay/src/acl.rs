//! POSIX access control lists as `system.posix_acl_access` and `system.posix_acl_default` carry them: a version, then
//! entries of a tag, permissions and an id. The kernel checks them; here only ids are carried between the mount and the
//! files. It knows no file.

/// What the two attributes begin with.
pub(crate) const PREFIX: &[u8] = b"system.posix_acl_";
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const HEADER: usize = 4;
const ENTRY: usize = 8;
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// Whom an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    User(u32),
    Group(u32),
}

/// The list with `id` in the place of each id that it names, without the entries for which there is none: nobody here
/// is who they name. `true` if every entry is still there.
pub(crate) fn renamed(list: &[u8], id: impl Fn(Who) -> Option<u32>) -> (Vec<u8>, bool) {
    let (header, entries) = list.split_at(list.len().min(HEADER));
    let (mut new, mut whole) = (header.to_vec(), true);
    for entry in entries.chunks(ENTRY) {
        let who = match entry {
            [tag, more, _, _, id @ ..] => match (u16::from_le_bytes([*tag, *more]), id.try_into()) {
                (USER, Ok(id)) => Some(Who::User(u32::from_le_bytes(id))),
                (GROUP, Ok(id)) => Some(Who::Group(u32::from_le_bytes(id))),
                _ => None,
            },
            _ => None,
        };
        match who.map(&id) {
            None => new.extend_from_slice(entry),
            Some(Some(other)) => {
                new.extend_from_slice(entry.get(..HEADER).unwrap_or_default());
                new.extend_from_slice(&other.to_le_bytes());
            }
            Some(None) => whole = false,
        }
    }
    (new, whole)
}

/// The list without the entries of users and groups that our user namespace has no id for.
pub(crate) fn known(list: &[u8]) -> Vec<u8> {
    let here = |id: u32| Some(id).filter(|id| *id != u32::MAX);
    renamed(list, |who| match who {
        Who::User(id) | Who::Group(id) => here(id),
    })
    .0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            list.extend(tag.to_le_bytes());
            list.extend(permissions.to_le_bytes());
            list.extend(id.to_le_bytes());
        }
        list
    }

    #[test]
    fn only_named_users_and_groups_are_renamed_and_strangers_go() {
        let none = u32::MAX;
        let carried = list(&[
            (1, 6, none),
            (USER, 7, 1000),
            (USER, 7, none),
            (4, 4, none),
            (GROUP, 5, 50),
            (16, 7, none),
        ]);
        let shifted = |who| match who {
            Who::User(id) => (id != none).then(|| id - 1000),
            Who::Group(id) => Some(id + 1),
        };
        let (shown, whole) = renamed(&carried, shifted);
        assert_eq!(shown, list(&[(1, 6, none), (USER, 7, 0), (4, 4, none), (GROUP, 5, 51), (16, 7, none)]));
        assert!(!whole);
        assert_eq!(known(&shown), shown);
        for odd in [&b""[..], b"\x02", &carried[..9]] {
            assert_eq!(known(odd), odd, "what is no list stays as it is");
        }
    }
}
