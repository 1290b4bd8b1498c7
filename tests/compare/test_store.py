"""Images, volumes, secrets and the system as a whole, as podman's manual pages have them."""

import unittest

from pair import Pair


class Images(Pair):
    def test_images(self):
        self.script("""
            podman images --format '{{.Repository}}:{{.Tag}}'
            podman images -q | wc -l
            podman images reef --format '{{.Tag}}'
            podman images nope --format '{{.Tag}}'
            podman image ls --format '{{.Tag}}'
            podman image list --format '{{.Tag}}'
            podman images --filter dangling=true -q
            podman images --filter reference='re*' --format '{{.Tag}}'
            podman images -n | wc -l
            podman images --no-trunc -q | wc -l
            podman image exists reef
            podman image exists nope                                                #= 1
            podman image inspect -f '{{.Os}} {{.Architecture}}' reef
            podman image inspect nope                                               #~ exit-1
            podman images --nope                                                    #= 125
        """)

    def test_tag_and_rmi(self):
        self.script("""
            podman tag reef two
            podman tag reef example.test/three:1
            podman images --format '{{.Repository}}:{{.Tag}}' | sort
            podman untag reef two
            podman rmi example.test/three:1 | grep -c -i untagged
            podman images --format '{{.Repository}}:{{.Tag}}' | sort
            podman tag nope x                                                       #= 125 nope
            podman rmi nope                                                         #= 1 nope
            podman rmi -i nope
            podman rmi                                                              #= 125
            podman create --name a reef
            podman rmi reef                                                         #~ rmi-used
            podman image tag reef five; podman image rm five | grep -c -i untagged
        """)

    def test_history(self):
        self.script("""
            podman history -q reef | wc -l
            podman history --format '{{.Size}}' reef | wc -l
            podman history nope                                                     #= 125 nope
        """)

    def test_save_and_load(self):
        self.script("""
            podman save -o $W/reef.tar reef 2>/dev/null
            podman tag reef two; podman rmi reef >/dev/null; podman tag two three
            podman load -q -i $W/reef.tar
            podman run --rm reef echo loaded
            podman save --format oci-archive -o $W/oci.tar reef 2>/dev/null; tar -tf $W/oci.tar | grep -c oci-layout
            podman load -q <$W/oci.tar >/dev/null
            podman save reef | tar -t | grep -c manifest.json
            podman save nope                                                        #= 125 nope
            podman load -i $W/nope                                                  #= 125
            podman load -i /etc/passwd                                              #= 125
            podman save -m -o $W/multi.tar reef two 2>/dev/null; tar -tf $W/multi.tar | grep -c manifest.json
        """)

    def test_registries(self):
        """What does not need one that answers; tests/image has those."""
        self.script("""
            podman pull 127.0.0.1:1/nope                                            #= 125
            podman pull                                                             #= 125
            podman pull 'NOT A NAME'                                                #= 125
            podman push nope                                                        #= 125
            podman push reef 127.0.0.1:1/nope                                       #= 125
            podman push                                                             #= 125
            podman login -u a -p b 127.0.0.1:1                                      #= 125
            podman login --get-login 127.0.0.1:1                                    #= 125 not logged in
            podman logout 127.0.0.1:1                                               #= 125 not logged in
            podman logout --all
            podman search 127.0.0.1:1/nope                                          #= 125
            podman run --pull never nope true                                       #= 125
            podman run --pull sometimes reef true                                   #= 125
            podman manifest inspect nope                                            #= 125
            podman manifest create both; podman manifest create both                #= 125
            podman manifest rm both >/dev/null
            podman manifest add nope reef                                           #= 125
        """)

    def test_sorted(self):
        self.script("""
            podman tag reef alpha:1 beta:2
            podman images --sort repository --format '{{.Repository}}:{{.Tag}}'
            podman images --sort tag -q | wc -l
            podman images --sort nope                                               #= 125
            podman history --human=false --format '{{.CreatedBy}}' reef | wc -l
            podman image tree nope                                                  #= 125
            podman image mount nope                                                 #= 125
        """)

    def test_unshare(self):
        self.script("""
            podman unshare id -u
            podman unshare sh -c 'exit 7'                                           #= 7
            podman unshare /nope                                                    #= 127
            podman unshare cat /proc/self/uid_map
        """)

    def test_rmi_after_run(self):
        self.script("""
            podman tag reef six
            podman run --rmi six echo gone
            podman image exists six                                                 #= 1
        """)

    def test_volumes_of_an_image(self):
        self.script("""
            podman run --name a reef true; podman commit -q -c 'VOLUME /srv/app' a seven
            podman run --name b seven cat /srv/app/mark
            podman volume ls -q | wc -l
            podman rm -v b | wc -l
            podman volume ls -q | wc -l
            podman run --rm seven cat /srv/app/mark
            podman volume ls -q | wc -l
            podman run --rm --image-volume ignore seven cat /srv/app/mark
            podman run --rm --image-volume tmpfs seven ls /srv/app                  #~ tmpfs-copy
        """)


class Volumes(Pair):
    def test_create_ls_inspect_rm(self):
        # A name that no random volume begins with: both programs know a volume by the beginning of its name.
        self.script("""
            podman volume create shoal
            podman volume create -l sea=north b
            podman volume create shoal                                                  #~ volume-again
            podman volume create | wc -c
            podman volume create -d nope c                                          #= 125
            podman volume ls -q | grep -v -E '^[0-9a-f]{64}$'
            podman volume ls --format '{{.Name}} {{.Driver}}' | grep -v -E '^[0-9a-f]{64}'
            podman volume ls -q --filter name=shoal | grep -c '^shoal$'
            podman volume ls -q --filter label=sea
            podman volume ls -q --filter dangling=true | wc -l
            podman volume ls --filter nope=1                                        #= 125
            podman volume inspect -f '{{.Name}} {{.Driver}} {{.Scope}}' shoal
            podman volume inspect -f '{{index .Labels "sea"}}' b
            podman volume inspect b | grep -c Mountpoint
            podman volume inspect nope                                              #~ exit-1
            podman volume exists shoal
            podman volume exists nope                                               #= 1
            podman volume rm shoal
            podman volume rm shoal                                                      #= 1 no such volume
            podman volume rm -f shoal
            podman volume rm                                                        #= 125
        """)

    def test_volumes_of_containers(self):
        self.script("""
            podman run --rm -v a:/x reef sh -c 'echo kept >/x/f'
            podman run --rm -v a:/x reef cat /x/f
            podman run --rm -v a:/x:ro reef touch /x/g                              #= 1 read-only
            podman run --rm -v b:/srv/app reef cat /srv/app/mark
            podman run --rm -v c:/srv/app:nocopy reef ls /srv/app
            podman run --rm --mount type=volume,src=a,dst=/y reef cat /y/f
            podman create --name u -v a:/x reef
            podman volume rm a                                                      #= 2 volume
            podman ps -a --filter volume=a --format '{{.Names}}'
            podman volume prune -f | sort                                           #~ volume-prune
            podman volume ls -q | grep '^a$'
            podman rm u >/dev/null; podman volume rm a
            podman run --rm -v rel:x reef true                                      #= 125
            podman run --rm -v /nope-at-all:/x reef true                            #= 125 /nope-at-all
        """)

    def test_anonymous(self):
        self.script("""
            podman run --name a -v /x reef sh -c 'echo kept >/x/f'
            podman volume ls -q | wc -l
            podman inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}}{{end}}' a
            podman run --rm --volumes-from a reef cat /x/f
            podman run --rm --volumes-from a:ro reef touch /x/g                     #= 1 read-only
            podman run --rm --volumes-from nope reef true                           #= 125 no such container
            podman rm a >/dev/null; podman volume ls -q | wc -l
            podman volume prune -f >/dev/null; podman volume ls -q | wc -l
            podman run --name b -v /x reef true; podman rm -v b >/dev/null; podman volume ls -q | wc -l
            podman run --rm -v /x reef true; podman volume ls -q | wc -l
        """)

    def test_export_and_import(self):
        self.script("""
            podman run --rm -v a:/x reef sh -c 'mkdir /x/d; echo kept >/x/d/f'
            podman volume export a -o $W/a.tar; tar -xOf $W/a.tar ./d/f 2>/dev/null || tar -xOf $W/a.tar d/f
            podman volume export a | tar -t | grep -c d/f
            podman volume create b; podman volume import b $W/a.tar
            podman run --rm -v b:/x reef cat /x/d/f
            podman volume export nope                                               #~ exit-1
            podman volume import nope $W/a.tar                                      #~ exit-1
            podman volume import b $W/nope                                          #= 125
        """)


class Secrets(Pair):
    def test_secrets(self):
        self.script("""
            printf s3cret >$W/s; podman secret create one $W/s
            printf piped | podman secret create two -
            WORD=named podman secret create --env three WORD
            podman secret create one $W/s                                           #= 125 one
            podman secret ls --format '{{.Name}} {{.Driver}}' | sort
            podman secret ls -q | wc -l
            podman secret inspect -f '{{.Spec.Name}} {{.Spec.Driver.Name}}' one
            podman secret inspect nope                                              #~ exit-1
            podman secret create x $W/nope                                          #= 125
            podman run --rm --secret one reef cat /run/secrets/one
            podman run --rm --secret one reef stat -c '%a %u %g' /run/secrets/one
            podman run --rm --secret one,target=other,mode=0400,uid=12,gid=34 reef stat -c '%a %u %g' /run/secrets/other
            podman run --rm --secret one,target=/etc/token reef cat /etc/token
            podman run --rm --secret two,type=env reef sh -c 'echo $two'
            podman run --rm --secret two,type=env,target=WORD reef sh -c 'echo $WORD'
            podman run --rm --secret nope reef true                                 #= 125 nope
            podman run --rm --secret one,colour=red reef true                       #= 125
            podman create --name a --secret one reef; podman inspect -f '{{range .Config.Secrets}}{{.Name}}{{end}}' a
            podman inspect a | grep -c s3cret                                       #= 1
            podman secret rm one | wc -l
            podman secret rm nope                                                   #~ exit-1
            podman secret rm -a | wc -l
        """)


class System(Pair):
    def test_system(self):
        self.script("""
            podman run --name a reef true; podman volume create v
            podman system df --format '{{.Type}} {{.Total}}'
            podman system df -v | grep -c -i 'images space usage'
            podman system prune -f >/dev/null; podman ps -a -q; podman volume ls -q
            podman system prune -f --volumes >/dev/null; podman volume ls -q        #~ prune-volumes
            podman image exists reef
            podman system nope                                                      #= 125
            podman info -f '{{.Host.Arch}}'                                         #~ info-shape
            podman version -f '{{.Client.OsArch}}'
            podman --version | wc -l
            podman version | head -1                                                #~ version-words
            podman nope                                                             #= 125
            podman >/dev/null                                                       #= 125
            podman --help >/dev/null
            podman run --help >/dev/null
        """)


if __name__ == "__main__":
    unittest.main()
