"""Manifest lists and searching, against Debian's docker-registry and with skopeo as the judge."""

import json
import os
import unittest

from test_peers import Standing
from world import Image, folder, sha, tar


class Manifest(Standing):
    def foreign(self, host, name, architecture):
        image = Image(tar(folder("bin"), ("which", architecture.encode())))
        config = json.loads(image.config)
        config["architecture"] = architecture
        image = Image(tar(folder("bin"), ("which", architecture.encode())), config=config)
        self.kelp("pull", "-q", self.registry().add(name, image))
        local, _ = self.kelp("images", "--no-trunc", "-q")
        self.assertIn(image.id, local)
        target = f"{host}/{name}:1"
        self.kelp("push", "-q", image.id, target)
        return image, target

    def test_a_list_of_two_platforms_is_what_skopeo_and_kelp_pull_from(self):
        host, _ = self.docker_registry()
        arm, _ = self.foreign(host, "arm", "arm64")
        self.kelp("pull", "-q", self.source)
        name = f"{host}/both:1"
        self.kelp("manifest", "create", name, self.source, arm.id)
        self.kelp("manifest", "annotate", "--variant", "v8", "--annotation", "a=b", name, arm.id)
        self.assertIn("is there already", self.refused("manifest", "create", name))
        found = json.loads(self.kelp("manifest", "inspect", name)[0])
        self.assertEqual([entry["platform"]["architecture"] for entry in found["manifests"]], ["amd64", "arm64"])
        digestfile = os.path.join(self.home, "digest")
        self.kelp("manifest", "push", "--all", "--digestfile", digestfile, name)
        raw = json.loads(self.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}"))
        self.assertEqual(raw["manifests"][1]["platform"], {"architecture": "arm64", "os": "linux", "variant": "v8"})
        self.assertEqual(raw["manifests"][1]["annotations"], {"a": "b"})
        shown = json.loads(self.skopeo("--override-arch", "arm64", "inspect", "--tls-verify=false", f"docker://{name}"))
        self.assertEqual(shown["Architecture"], "arm64")
        self.kelp("rmi", "-fa")
        self.kelp("manifest", "rm", name)
        out, _ = self.kelp("pull", "-q", "--platform", "linux/arm64", name)
        self.assertEqual("sha256:" + out.strip(), arm.id)
        out, _ = self.kelp("pull", "-q", name)
        self.assertEqual("sha256:" + out.strip(), self.image.id)
        self.kelp("rmi", "-fa")
        out, _ = self.kelp("pull", "-q", "--all-platforms", name)
        self.assertEqual(["sha256:" + line for line in out.split()], [arm.id, self.image.id])
        self.assertEqual(self.kelp("image", "inspect", "-f", "{{.Architecture}}", name)[0], "amd64\n")
        self.assertEqual(json.loads(self.kelp("manifest", "inspect", name)[0])["manifests"], raw["manifests"])
        self.kelp("manifest", "exists", name, ok=False)

    def test_images_of_a_registry_are_listed_without_being_pulled(self):
        host, _ = self.docker_registry()
        self.kelp("pull", "-q", self.source)
        self.kelp("push", "-q", self.source, f"{host}/amd:1")
        _, arm = self.foreign(host, "arm", "arm64")
        self.kelp("rmi", "-fa")
        name = f"{host}/list:1"
        self.kelp("manifest", "create", name, f"{host}/amd:1")
        self.kelp("manifest", "add", name, arm)
        self.kelp("manifest", "push", name)
        self.assertEqual(self.kelp("images", "-q")[0], "")
        raw = json.loads(self.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}"))
        self.assertEqual(len(raw["manifests"]), 2)
        self.kelp("pull", "-q", "--platform", "linux/arm64", name)
        self.kelp("manifest", "remove", name, raw["manifests"][0]["digest"])
        self.assertEqual(len(json.loads(self.kelp("manifest", "inspect", name)[0])["manifests"]), 1)
        self.assertIn("has no image", self.refused("manifest", "remove", name, raw["manifests"][0]["digest"]))

    def test_a_list_keeps_its_images(self):
        self.kelp("pull", "-q", self.source)
        self.kelp("manifest", "create", "mine:1", self.source)
        self.assertIn("manifest list mine:1", self.refused("rmi", self.source))
        self.kelp("system", "prune", "-af")
        self.kelp("image", "exists", self.source)
        self.kelp("manifest", "rm", "mine:1")
        self.kelp("rmi", self.source)
        self.assertIn("no such manifest list", self.refused("manifest", "push", "mine:1"))


class Search(Standing):
    def test_repositories_and_tags_are_found(self):
        host, _ = self.docker_registry()
        self.kelp("pull", "-q", self.source)
        for name in ("team/web:1", "team/web:2", "team/worker:1", "other:1"):
            self.kelp("push", "-q", self.source, f"{host}/{name}")
        out, _ = self.kelp("search", "--format", "{{.Name}}", f"{host}/team")
        self.assertEqual(out.splitlines(), [f"{host}/team/web", f"{host}/team/worker"])
        out, _ = self.kelp("search", f"{host}/")
        self.assertEqual(len(out.splitlines()), 4)
        self.assertEqual(len(self.kelp("search", "--limit", "1", f"{host}/")[0].splitlines()), 2)
        out, _ = self.kelp("search", "--list-tags", "--format", "{{.Tag}}", f"{host}/team/web")
        self.assertEqual(sorted(out.splitlines()), ["1", "2"])
        self.assertEqual(self.kelp("search", "--filter", "is-official=true", f"{host}/")[0].count("\n"), 1)
        self.assertIn("is no filter", self.refused("search", "--filter", "x=1", f"{host}/"))


if __name__ == "__main__":
    unittest.main()
