//! Why a host refuses a user namespace, as a sentence with the object at fault and the mend. Sources:
//! `user_namespaces(7)`, `namespaces(7)`, Debian's and Ubuntu's kernel documentation.

use std::fs;
use std::io;

use crate::error::Error;

/// What an administrator of a Debian-like host changes.
const LIMIT_HINT: &str = "an administrator can run: sysctl -w user.max_user_namespaces=63359";
const CLONE_HINT: &str = "an administrator can run: sysctl -w kernel.unprivileged_userns_clone=1";
const APPARMOR_HINT: &str = "an administrator can run: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, \
     or install an AppArmor profile for kelp that contains `userns,`";

fn setting(file: &str) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

/// Whether AppArmor strips the capabilities of user namespaces of unconfined programs (Ubuntu 23.10 on).
pub fn apparmor_restricts() -> bool {
    setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1")
}

/// Whether a filter was installed before we started, as by an outer container.
pub fn is_filtered() -> bool {
    setting("/proc/self/status").is_some_and(|status| status.lines().any(|line| line == "Seccomp:\t2"))
}

/// The error for a `clone3(2)` with namespaces that failed.
pub fn of_clone(error: &io::Error) -> Error {
    let intent = "cannot make a user namespace";
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => of_limit(intent),
        Some(libc::EPERM) => of_permission(intent),
        Some(libc::EINVAL) => Error::host(format!("{intent}: the kernel is built without them"))
            .hint("a kernel with CONFIG_USER_NS=y is needed"),
        _ => Error::host(format!("{intent}: {error}")).hint("see `kelp doctor`"),
    }
}

fn of_limit(intent: &str) -> Error {
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"] {
        let name = format!("user.max_{kind}_namespaces");
        if setting(&format!("/proc/sys/user/max_{kind}_namespaces")).as_deref() == Some("0") {
            let hint = match kind {
                "user" => LIMIT_HINT.to_owned(),
                _ => format!("an administrator can run: sysctl -w {name}=63359"),
            };
            return Error::host(format!("{intent}: {name} is 0")).hint(hint);
        }
    }
    Error::host(format!("{intent}: the limit user.max_user_namespaces or the depth of 32 is reached"))
        .hint(LIMIT_HINT)
}

fn of_permission(intent: &str) -> Error {
    if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return Error::host(format!("{intent}: kernel.unprivileged_userns_clone is 0")).hint(CLONE_HINT);
    }
    if apparmor_restricts() {
        return Error::host(format!("{intent}: kernel.apparmor_restrict_unprivileged_userns is 1"))
            .hint(APPARMOR_HINT);
    }
    if is_filtered() {
        return Error::host(format!("{intent}: a seccomp filter of an outer container refuses it"))
            .hint("start the outer container with --security-opt seccomp=unconfined, or with a profile that allows clone and unshare");
    }
    Error::host(format!("{intent}: Operation not permitted")).hint(
        "a chroot whose root is not a mount refuses it, and so does a security module; see `kelp doctor`",
    )
}

/// The error for maps that could not be written after the clone succeeded.
pub fn of_maps(error: &io::Error) -> Error {
    let intent = "cannot write the id map of the container";
    if apparmor_restricts() {
        return Error::host(format!("{intent}: kernel.apparmor_restrict_unprivileged_userns is 1"))
            .hint(APPARMOR_HINT);
    }
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "a root without CAP_SETFCAP can't map itself (user_namespaces(7)); see `kelp doctor`"
        }
        _ => "see `kelp doctor`",
    };
    Error::host(format!("{intent}: {error}")).hint(hint)
}
