//! Owners as the mount shows them and as the files carry them. Pure arithmetic on ids: `shown` on the way out,
//! `stored` on the way in. An id that no range covers is shown as the overflow id and cannot be stored.

use crate::config::{Config, IdRange, Owner};
use rustix::io::{Errno, Result};

/// What `stat` says where an id has no name in our user namespace (`/proc/sys/kernel/overflowuid`).
pub(crate) const OVERFLOW: u32 = 65534;

#[derive(Clone, Debug, Default)]
pub(crate) struct Ids {
    squash_uid: Option<u32>,
    squash_gid: Option<u32>,
    unmapped: Option<Owner>,
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

impl Ids {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            squash_uid: config.squash_uid,
            squash_gid: config.squash_gid,
            unmapped: config.squash_unmapped,
            uids: config.uid_map.clone(),
            gids: config.gid_map.clone(),
        }
    }

    /// The owner to show for a file whose real owner is `real`.
    pub(crate) fn shown(&self, real: Owner, in_lower: bool) -> Owner {
        let replace = |id: u32, by: Option<u32>| match by {
            Some(other) if in_lower && id == OVERFLOW => other,
            _ => id,
        };
        let uid = replace(real.uid, self.unmapped.map(|owner| owner.uid));
        let gid = replace(real.gid, self.unmapped.map(|owner| owner.gid));
        Owner {
            uid: self.squash_uid.unwrap_or_else(|| inside(&self.uids, uid)),
            gid: self.squash_gid.unwrap_or_else(|| inside(&self.gids, gid)),
        }
    }

    /// Files are shown and stored with the ids that they carry.
    pub(crate) fn is_plain(&self) -> bool {
        self.squash_uid.is_none() && self.squash_gid.is_none() && self.uids.is_empty() && self.gids.is_empty()
    }

    /// The ids that a real file must carry to be shown as `uid`; `None` leaves it alone, because every file is shown alike.
    pub(crate) fn stored_uid(&self, uid: u32) -> Result<Option<u32>> {
        if self.squash_uid.is_some() { Ok(None) } else { outside(&self.uids, uid).map(Some) }
    }

    pub(crate) fn stored_gid(&self, gid: u32) -> Result<Option<u32>> {
        if self.squash_gid.is_some() { Ok(None) } else { outside(&self.gids, gid).map(Some) }
    }
}

fn inside(map: &[IdRange], id: u32) -> u32 {
    if map.is_empty() {
        return id;
    }
    let range = map.iter().find(|r| id >= r.outside && id - r.outside < r.count);
    range.map_or(OVERFLOW, |r| r.inside + (id - r.outside))
}

fn outside(map: &[IdRange], id: u32) -> Result<u32> {
    if map.is_empty() {
        return Ok(id);
    }
    let range = map.iter().find(|r| id >= r.inside && id - r.inside < r.count);
    range.map(|r| r.outside + (id - r.inside)).ok_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_its_own_reverse_and_refuses_what_it_does_not_cover() {
        let map = [
            IdRange { inside: 0, outside: 1000, count: 1 },
            IdRange { inside: 1, outside: 100_000, count: 65_536 },
        ];
        for id in [0, 1, 2, 65_536] {
            assert_eq!(inside(&map, outside(&map, id).unwrap()), id);
        }
        assert_eq!(inside(&map, 5), OVERFLOW);
        assert_eq!(outside(&map, 70_000), Err(Errno::INVAL));
    }

    #[test]
    fn only_files_of_lowers_without_a_known_owner_are_squashed() {
        let ids = Ids { unmapped: Some(Owner { uid: 0, gid: 0 }), ..Ids::default() };
        let nobody = Owner { uid: OVERFLOW, gid: OVERFLOW };
        assert_eq!(ids.shown(nobody, true), Owner { uid: 0, gid: 0 });
        assert_eq!(ids.shown(nobody, false), nobody);
        assert_eq!(ids.shown(Owner { uid: 5, gid: OVERFLOW }, true), Owner { uid: 5, gid: 0 });
    }
}
