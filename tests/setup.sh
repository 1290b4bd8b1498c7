# What tests/run and tests/bench/run share: packages, the two users, devices, the Debian root, the build, and how
# to become each kind of user. Sourced by bash with the checkout as working directory; prints only what it changes.

user_ids=${KELP_USER_IDS:-kelp-ids}
user_one=${KELP_USER_ONE:-kelp-one}
cache=${KELP_TEST_CACHE:-/var/cache/kelp-tests}
PATH=$PATH:$HOME/.cargo/bin

# install COMMAND PACKAGE pairs that are missing.
install_pairs() {
  local wanted=()
  while [ $# -gt 0 ]; do
    command -v "$1" >/dev/null || wanted+=("$2")
    shift 2
  done
  [ ${#wanted[@]} -gt 0 ] || return 0
  [ -z "${KELP_NO_INSTALL:-}" ] || { echo "missing, and KELP_NO_INSTALL is set: ${wanted[*]}"; return 0; }
  echo "installing ${wanted[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends "${wanted[@]}" >/dev/null
}

install_missing() {
  install_pairs newuidmap uidmap fusermount3 fuse3 mmdebstrap mmdebstrap gcc build-essential git git ip iproute2 \
    setpriv util-linux python3 python3 stress stress stress-ng stress-ng slirp4netns slirp4netns pasta passt
}

make_users() {
  exec 8>/run/kelp-tests.lock
  flock 8
  touch /etc/subuid /etc/subgid
  local user
  for user in "$user_ids" "$user_one"; do
    id "$user" >/dev/null 2>&1 || useradd -m -s /bin/bash "$user"
  done
  sed -i "/^$user_one:/d" /etc/subuid /etc/subgid
  grant_range /etc/subuid
  grant_range /etc/subgid
  # A file that only a supplementary group may read: shared project folders are what groups are for.
  getent group kelp-shared >/dev/null || groupadd kelp-shared
  usermod -aG kelp-shared "$user_ids"
  usermod -aG kelp-shared "$user_one"
  install -d -m 755 "$cache"
  install -d -m 755 "$cache/shared"
  echo letter >"$cache/shared/letter"
  chgrp kelp-shared "$cache/shared/letter"
  chmod 640 "$cache/shared/letter"
  (umask 077 && echo secret >"$cache/shared/secret")
  flock -u 8
}

# A range of 65,536 ids behind every other range of the file, so that none overlaps.
grant_range() {
  awk -F: -v u="$user_ids" '$1 == u && $3 >= 65536 { found = 1 } END { exit !found }' "$1" && return 0
  sed -i "/^$user_ids:/d" "$1"
  awk -F: -v u="$user_ids" 'BEGIN { next_id = 524288 } $2 + $3 > next_id { next_id = $2 + $3 }
    END { printf "%s:%d:65536\n", u, next_id }' "$1" >"$1.kelp"
  cat "$1.kelp" >>"$1"
  rm "$1.kelp"
}

# Distributions give these two to everybody; container images often lack them.
open_devices() {
  [ -e /dev/fuse ] || mknod /dev/fuse c 10 229 || true
  [ -e /dev/net/tun ] || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; } || true
  chmod 0666 /dev/fuse /dev/net/tun 2>/dev/null || true
}

# One Debian root, unpacked for each kind of user with the owners that it can have, and one package to install in it.
make_roots() {
  exec 8>/run/kelp-tests.lock
  flock 8
  install -d -m 755 "$cache"
  if [ ! -e "$cache/root.tar" ]; then
    command -v mmdebstrap >/dev/null || return 0
    echo "making a Debian root in $cache"
    mmdebstrap --quiet --format=tar --variant=minbase --include=python3,git \
      "$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")" "$cache/root.tar.part"
    chmod 644 "$cache/root.tar.part"
    mv "$cache/root.tar.part" "$cache/root.tar"
  fi
  if [ ! -e "$cache/hello.deb" ]; then
    (cd "$cache" && apt-get download -qq -o APT::Sandbox::User=root hello && mv hello_*.deb hello.deb && chmod 644 hello.deb)
  fi
  unpack_root ids "$(id -u "$user_ids"):$(grep "^$user_ids:" /etc/subuid /etc/subgid | tr '\n' ' ')"
  unpack_root one "$(id -u "$user_one")"
  unpack_root container root
  flock -u 8
}

# unpack_root KIND STAMP: again only if the owners that STAMP describes have changed.
unpack_root() {
  local folder=$cache/root-$1
  [ "$(cat "$folder.stamp" 2>/dev/null)" = "$2" ] && [ -d "$folder" ] && return 0
  rm -rf "$folder" "$folder.part"
  mkdir -m 755 "$folder.part"
  local unpack=(tar -x -p --numeric-owner --exclude='./dev/*' -f "$cache/root.tar" -C "$folder.part")
  case $1 in
    ids)
      chown "$user_ids:" "$folder.part"
      as_user "$user_ids" / unshare --user --map-auto --map-root-user -- "${unpack[@]}"
      ;;
    one)
      chown "$user_one:" "$folder.part"
      as_user "$user_one" / "${unpack[@]}" --no-same-owner
      ;;
    container) "${unpack[@]}" ;;
  esac
  mv "$folder.part" "$folder"
  echo "$2" >"$folder.stamp"
}

# An ordinary user who runs tests/run is one of the two ordinary kinds.
own_kind() {
  grep -q "^\($(id -un)\|$(id -u)\):" /etc/subuid 2>/dev/null && echo ids || echo one
}

# Everything is built once, here (the file system's own suite has its own tests/fs/run), and put where users can read it even if they can't enter the checkout.
build() {
  echo "== building"
  command -v cargo-nextest >/dev/null || cargo install cargo-nextest --locked
  mkdir -p "$1/bin" "$1/src"
  cargo build --quiet --workspace --bins
  cargo-nextest nextest archive --workspace --exclude fs-tests --archive-file "$1/tests.tar.zst" >"$1/archive.log" 2>&1 ||
    { cat "$1/archive.log" >&2; return 1; }
  local built=${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu/debug
  cp "$(command -v cargo-nextest)" "$1/bin/"
  find "$built" -maxdepth 1 -type f -executable -exec cp -t "$1/bin" {} +
  tar -c --exclude=./target --exclude=./.git . | tar -x -C "$1/src"
  mkdir "$1/x"
  cargo-nextest nextest list --archive-file "$1/tests.tar.zst" --extract-to "$1/x" --workspace-remap "$1/src" >/dev/null 2>"$1/list.log" ||
    { cat "$1/list.log" >&2; return 1; }
  chmod -R a+rX "$1"
}

# as_user USER HOME COMMAND...: a login's ids and a login's environment, without a runtime folder.
as_user() {
  local user=$1 home=$2
  shift 2
  setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups --inh-caps=-all -- \
    env -i "HOME=$home" "USER=$user" "LOGNAME=$user" SHELL=/bin/bash LANG=C.UTF-8 TERM=xterm \
    PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin "$@"
}

# as_container HOME COMMAND...: root with docker's default capabilities in a user namespace of its own.
as_container() {
  local home=$1 gate
  shift
  gate=$(mktemp -u /run/kelp-tests-gate.XXXXXX)
  mkfifo "$gate"
  unshare --user -- bash -c 'read -r _ <"$0"; exec "$@"' "$gate" \
    setpriv --inh-caps=-all \
    --bounding-set=-all,+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,+net_bind_service,+sys_chroot,+kill,+audit_write -- \
    env -i --default-signal=INT,QUIT "HOME=$home" USER=root LOGNAME=root SHELL=/bin/bash LANG=C.UTF-8 TERM=xterm \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" &
  local child=$! own
  own=$(readlink /proc/self/ns/user)
  while [ "$(readlink "/proc/$child/ns/user" 2>/dev/null)" = "$own" ]; do sleep 0.01; done
  echo "0 0 65536" >"/proc/$child/uid_map"
  echo "0 0 65536" >"/proc/$child/gid_map"
  echo go >"$gate"
  rm "$gate"
  wait "$child"
}

# run_suite KIND STAGE LOG ARGUMENTS...: the archive as that kind of user; its output also in LOG/output.
run_suite() {
  local kind=$1 stage=$2 log=$3 home=$2/home-$1
  shift 3
  mkdir -p "$log" "$home/tmp"
  : >"$log/skipped"
  : >"$log/elsewhere"
  local suite=(env "KELP_TEST_KIND=$kind" "KELP_TEST_LOG=$log" "KELP_TEST_ROOT=$cache/root-$kind" "KELP_TEST_DEB=$cache/hello.deb"
    "KELP_BIN=$stage/bin/kelp" "KELP_GUEST=$stage/bin/guest" "TMPDIR=$home/tmp" "KELP_STORAGE_DRIVER=${KELP_STORAGE_DRIVER:-}" "CI=${CI:-}" "KELP_TEST_ROUNDS=${KELP_TEST_ROUNDS:-2}" "KELP_TEST_SEED=${KELP_TEST_SEED:-1886745193}" RUST_BACKTRACE=0
    "$stage/bin/cargo-nextest" nextest run --color never --no-fail-fast
    --cargo-metadata "$stage/x/target/nextest/cargo-metadata.json"
    --binaries-metadata "$stage/x/target/nextest/binaries-metadata.json"
    --target-dir-remap "$stage/x/target" --workspace-remap "$stage/src" "$@")
  if [ "$(id -u)" != 0 ]; then
    (cd "$stage/src" && "${suite[@]}" 2>&1 | tee "$log/output")
    return
  fi
  local user=root
  [ "$kind" = ids ] && user=$user_ids
  [ "$kind" = one ] && user=$user_one
  chown -R "$user:" "$log" "$home"
  if [ "$kind" = container ]; then
    (cd "$stage/src" && as_container "$home" "${suite[@]}" </dev/null 2>&1 | tee "$log/output")
  else
    (cd "$stage/src" && as_user "$user" "$home" "${suite[@]}" </dev/null 2>&1 | tee "$log/output")
  fi
}

# ran_nowhere STAGE KINDS: names of tests that were left to another kind of user by each of the kinds.
ran_nowhere() {
  local stage=$1 kind
  shift
  for kind in "$@"; do sort -u "$stage/log-$kind/elsewhere" | cut -f1 | sort -u; done | sort | uniq -c |
    awk -v n=$# '$1 == n { print $2 }'
}

# Folders of subordinate ids can be removed only by root or from inside a user namespace of their owner.
sweep() {
  rm -rf "$1" 2>/dev/null || unshare --user --map-auto --map-root-user rm -rf "$1" 2>/dev/null || true
}
