"""Layers that try to get out, tars of every dialect, and the way back to the very same bytes."""

import gzip
import io
import os
import stat
import subprocess
import tarfile
import unittest

from world import KIND, Case, Image, folder, hard, link, sha, tar


class Layers(Case):
    def pull(self, *layers, ok=True, options=(), **image):
        registry = self.registry()
        image = Image(*layers, **image)
        name = registry.add("x", image)
        if ok:
            self.kelp("pull", "-q", *options, name)
        else:
            image.refusal = self.refused("pull", "-q", *options, name)
        image.name = name
        return image

    def same_again(self, image):
        """What save writes has the layers' own digests, which kelp checks while it writes."""
        out, _ = self.kelp("save", image.name, text=False)
        members = tarfile.open(fileobj=io.BytesIO(out))
        for diff_id in image.diff_ids:
            data = members.extractfile(diff_id.split(":")[1] + ".tar").read()
            self.assertEqual(sha(data), diff_id)

    def outside(self):
        path = os.path.join(self.home, "outside")
        os.mkdir(path)
        with open(os.path.join(path, "kept"), "w") as file:
            file.write("kept")
        return path

    def unchanged(self, path):
        self.assertEqual(os.listdir(path), ["kept"])
        with open(os.path.join(path, "kept")) as file:
            self.assertEqual(file.read(), "kept")

    def test_a_name_that_climbs_is_refused_and_nothing_is_kept(self):
        for name in ("../x", "a/../../x", "a/..", ".."):
            image = self.pull(tar((name, b"1")), ok=False)
            self.assertIn("climbs out", image.refusal)
        self.assertEqual(os.listdir(os.path.join(self.store, "layers")), [])
        self.assertEqual(self.left(), [])

    def test_an_absolute_name_means_the_layers_root(self):
        image = self.pull(tar(("/etc/x", b"1"), ("//y", b"2")))
        self.assertEqual(sorted(os.listdir(self.tree(image))), ["etc", "y"])
        self.same_again(image)

    def test_a_file_through_a_symlink_stays_inside(self):
        path = self.outside()
        for target in (path, "../../../../../../../../../.." + path, "/proc/self/root" + path):
            image = self.pull(tar(link("a", target), ("a/kept", b"overwritten")), ok=False)
            self.unchanged(path)

    def test_a_symlink_inside_the_layer_is_followed_inside(self):
        image = self.pull(tar(folder("usr"), folder("usr/lib"), link("lib", "usr/lib"), link("l2", "/usr/lib"),
                              ("lib/a", b"1"), ("l2/b", b"2")))
        self.assertEqual(sorted(os.listdir(self.tree(image) + "/usr/lib")), ["a", "b"])
        self.same_again(image)

    def test_a_symlink_replaced_by_a_file_is_not_written_through(self):
        path = self.outside()
        image = self.pull(tar(link("a", path + "/kept"), ("a", b"new")))
        self.unchanged(path)
        with open(self.tree(image) + "/a") as file:
            self.assertEqual(file.read(), "new")
        self.same_again(image)

    def test_a_hard_link_out_is_refused(self):
        path = self.outside()
        for target in (path + "/kept", "../" * 20 + path[1:] + "/kept", "a/kept"):
            self.pull(tar(link("a", path), hard("b", target), ("b", b"overwritten")), ok=False)
            self.unchanged(path)

    def test_a_hard_link_before_its_target(self):
        image = self.pull(tar(hard("b", "d/a"), folder("d"), ("d/a", b"content")))
        self.assertEqual(os.stat(self.tree(image) + "/b").st_ino, os.stat(self.tree(image) + "/d/a").st_ino)
        self.same_again(image)

    def test_a_hard_link_to_nothing_is_refused(self):
        self.assertIn("to link to", self.pull(tar(hard("b", "a")), ok=False).refusal)

    def test_a_whiteout_out_is_refused_or_stays_inside(self):
        path = self.outside()
        for name in ("../.wh.kept", "a/.wh.kept", ".wh...", ".wh.."):
            self.pull(tar(link("a", path), (name, b"")), ok=False)
            self.unchanged(path)

    def test_whiteouts_and_opaque_folders_are_kernel_overlays(self):
        image = self.pull(tar(folder("d"), ("d/.wh.gone", b""), folder("o"), ("o/.wh..wh..opq", b""),
                              ("o/new", b"1"), (".wh..wh.plnk", b"aufs")))
        gone = os.lstat(self.tree(image) + "/d/gone")
        self.assertTrue(stat.S_ISCHR(gone.st_mode))
        self.assertEqual(gone.st_rdev, 0)
        self.assertEqual(os.getxattr(self.tree(image) + "/o", "user.overlay.opaque"), b"y")
        self.assertEqual(sorted(os.listdir(self.tree(image))), ["d", "o"])
        self.same_again(image)

    def test_a_whiteout_does_not_hide_its_own_layer(self):
        image = self.pull(tar(("f", b"1"), (".wh.f", b""), folder("d"), ("d/x", b"2"), (".wh.d", b""),
                              (".wh.e", b""), folder("e"), ("e/y", b"3")))
        root = self.tree(image)
        self.assertTrue(os.path.isfile(root + "/f"))
        for name in ("d", "e"):
            self.assertEqual(os.getxattr(f"{root}/{name}", "user.overlay.opaque"), b"y")
        self.same_again(image)

    def test_devices_are_inert_and_controls_of_overlays_stripped(self):
        xattrs = {"SCHILY.xattr.user.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y",
                  "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.containers.override_stat": "0:0:04755",
                  "SCHILY.xattr.user.kept": "v"}
        image = self.pull(tar(("null", None, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
                              ("disk", None, {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0}),
                              ("white", None, {"type": tarfile.CHRTYPE}),
                              ("f", b"1", {"pax_headers": xattrs}), folder("d", pax_headers=xattrs),
                              ("fifo", None, {"type": tarfile.FIFOTYPE})))
        root = self.tree(image)
        self.assertEqual(sorted(os.listdir(root)), ["d", "f", "fifo"])
        for name in ("f", "d"):
            self.assertEqual(os.listxattr(f"{root}/{name}"), ["user.kept"])
        self.same_again(image)

    def test_a_folder_that_becomes_a_link_takes_its_files_along(self):
        path = self.outside()
        image = self.pull(tar(folder("d"), ("d/f", b"first"), link("d", path), ))
        self.unchanged(path)
        self.assertTrue(os.path.islink(self.tree(image) + "/d"))
        self.same_again(image)
        image = self.pull(tar(folder("d"), link("d", path), ("d/kept", b"x")), ok=False)
        self.unchanged(path)

    def test_the_last_of_several_entries_counts_and_all_are_written_again(self):
        image = self.pull(tar(("f", b"one"), ("f", b"two"), folder("g"), ("g/x", b"3"), ("g", b"four"),
                              ("f", b"three"), hard("f", "g")))
        with open(self.tree(image) + "/f") as file:
            self.assertEqual(file.read(), "four")
        self.same_again(image)

    def test_a_giant_sparse_file_and_a_large_layer_are_refused(self):
        self.pull(tar(("f", bytes(3 << 20))), ok=False, options=["--max-layer-size", "2m"])
        registry = self.registry()
        header = tarfile.TarInfo("s")
        header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s",
                              "GNU.sparse.realsize": str(1 << 60)}
        body = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
        header.size = len(body)
        out = io.BytesIO()
        archive = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
        archive.addfile(header, io.BytesIO(body))
        archive.close()
        self.assertIn("limit", self.refused("pull", registry.add("s", Image(out.getvalue()))))
        self.assertEqual(os.listdir(os.path.join(self.store, "layers")), [])

    def test_a_decompression_bomb_is_refused(self):
        zeros = gzip.compress(bytes(1 << 20), 9, mtime=0)
        head = io.BytesIO()
        member = tarfile.TarInfo("bomb")
        member.size = 3 << 30
        head.write(member.tobuf())
        image = Image(tar(("f", b"")))
        packed = gzip.compress(head.getvalue(), mtime=0) + zeros * 3072
        registry = self.registry()
        bomb = Image(b"x", pack=lambda _: packed)
        sentence = self.refused("pull", "--max-layer-size", "2g", registry.add("b", bomb))
        self.assertIn("limit", sentence)
        self.assertEqual(self.left(), [])

    def test_names_that_are_long_deep_or_no_text(self):
        long = "n" * 255
        deep = "/".join(["d" * 200] * 30)
        raw = b"caf\xe9-\xff".decode("utf-8", "surrogateescape")
        out = io.BytesIO()
        archive = tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8",
                               errors="surrogateescape")
        for name in (long, deep + "/f", raw, "a b\n"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"1"))
        archive.close()
        image = self.pull(out.getvalue())
        root = os.fsencode(self.tree(image))
        self.assertEqual(sorted(os.listdir(root)), sorted([os.fsencode(long), b"d" * 200, b"caf\xe9-\xff", b"a b\n"]))
        self.same_again(image)
        self.pull(tar(("n" * 256, b"")), ok=False)
        self.pull(tar(("/".join("d" * 300), b"")), ok=False)

    def test_every_dialect_is_read_and_written_again(self):
        source = os.path.join(self.home, "source")
        os.makedirs(source + "/sub/" + "x" * 90)
        with open(source + "/sub/" + "x" * 90 + "/" + "y" * 90, "w") as file:
            file.write("long")
        with open(source + "/sparse", "wb") as file:
            for at in range(0, 40):
                file.seek(at << 20)
                file.write(b"island %d" % at)
            file.truncate(50 << 20)
        os.symlink("sub", source + "/link")
        os.mkfifo(source + "/fifo")
        for words in (["--format=v7", "--exclude=y*", "--exclude=fifo"], ["--format=ustar"], ["--format=gnu", "-S"],
                      ["--format=posix", "-S"], ["--format=posix", "-S", "--sparse-version=0.0"],
                      ["--format=posix", "-S", "--sparse-version=0.1"]):
            with self.subTest(words):
                data = subprocess.run(["tar", "-C", source, *words, "-cf", "-", "."], check=True,
                                      capture_output=True).stdout
                image = self.pull(data)
                with open(self.tree(image) + "/sparse", "rb") as ours, open(source + "/sparse", "rb") as theirs:
                    self.assertEqual(ours.read(), theirs.read())
                self.same_again(image)

    def test_compressions_are_seen_by_content(self):
        data = tar(("f", b"1" * 100_000))
        two = lambda data: gzip.compress(data[:5000], mtime=0) + gzip.compress(data[5000:], mtime=0)
        zstd = lambda data: subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout
        packs = [two, lambda data: data]
        if subprocess.run(["sh", "-c", "command -v zstd"], capture_output=True).returncode == 0:
            packs.append(zstd)
        for pack in packs:
            image = self.pull(data, pack=pack)
            self.same_again(image)
            self.kelp("rmi", image.name)

    def test_owners_and_modes(self):
        image = self.pull(tar(folder("locked", mode=0o555), ("locked/f", b"1", {"uid": 1000, "gid": 50}),
                              ("secret", b"2", {"mode": 0}), ("setuid", b"3", {"mode": 0o4755}),
                              ("far", b"4", {"uid": 4_000_000_000})))
        root = self.tree(image)
        if KIND == "one":
            self.assertTrue(all(os.lstat(os.path.join(path, name)).st_uid == os.getuid()
                                for path, folders, files in os.walk(root) for name in folders + files))
            self.assertEqual(os.getxattr(root + "/locked/f", "user.containers.override_stat"), b"1000:50:0644")
            self.assertEqual(os.getxattr(root + "/locked", "user.containers.override_stat"), b"0:0:0555")
        else:
            self.assertNotEqual(os.stat(root + "/locked/f").st_uid, os.getuid())
            self.assertEqual(stat.S_IMODE(os.stat(root + "/locked").st_mode), 0o555)
        self.assertEqual(stat.S_IMODE(os.stat(root + "/setuid").st_mode), 0o4755)
        self.same_again(image)
        if KIND == "one":
            subprocess.run(["rm", "-rf", self.store], check=True)

    def test_recorded_owners_leave_a_store_that_rm_removes(self):
        self.pull(tar(folder("locked", mode=0o555, uid=7), ("locked/f", b"1", {"uid": 1000})),
                  options=["--store-owners=recorded"])
        subprocess.run(["rm", "-rf", self.store], check=True)
        self.assertFalse(os.path.exists(self.store))

    def test_what_is_no_tar_is_refused(self):
        good = tar(("f", b"1" * 2000))
        for bad in (b"x" * 1024, good[:700], good[:1500], good[:148] + b"9" * 8 + good[156:],
                    good[:512] + bytes(512) + good[512:]):
            self.pull(bad, ok=False)
        self.assertEqual(self.left(), [])


if __name__ == "__main__":
    unittest.main()
