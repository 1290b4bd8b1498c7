"""The verbs of a container's life, as podman's manual pages have them."""

import unittest

from pair import Pair


class Life(Pair):
    def test_run(self):
        self.script("""
            podman run --rm reef echo hi
            podman run --rm reef sh -c 'echo out; echo err >&2; exit 7'             #= 7 err
            podman run --rm reef /nope                                              #= 127 nope
            podman run --rm reef /etc                                               #= 126
            echo in | podman run --rm -i reef cat
            echo in | podman run --rm reef cat
            podman run --rm -e A=1 -e B='x y' reef sh -c 'echo $A$B'
            A=7 podman run --rm -e A reef sh -c 'echo $A'
            echo A=8 >$W/env; podman run --rm --env-file $W/env reef sh -c 'echo $A'
            podman run --rm -w /tmp reef pwd
            podman run --rm -u 12:34 reef id
            podman run --rm -u kelpie reef id -u
            podman run --rm -h sea reef hostname
            podman run --rm --entrypoint echo reef hi there
            podman run --rm --read-only reef touch /x                               #= 1 read-only
            podman run --rm --tmpfs /t reef sh -c 'echo x >/t/x; cat /t/x'
            podman run --rm -v $W:/w reef sh -c 'echo x >/w/made'; cat $W/made
            podman run --rm -v $W:/w:ro reef touch /w/x                             #= 1 read-only
            podman run --rm --mount type=bind,src=$W,dst=/w,ro reef ls /w
            podman run --rm --ulimit nofile=64:64 reef sh -c 'ulimit -n'
            podman run --rm --cap-drop ALL reef grep CapEff /proc/self/status
            podman run --rm --security-opt no-new-privileges reef grep NoNewPrivs /proc/self/status
            podman run --rm --init reef true; test $? = 0 -o $? = 125
            podman run --rm --umask 077 reef sh -c umask
            podman run --rm --tz UTC reef date +%Z
            podman run --rm --network none reef ls /sys/class/net
            podman run --rm --add-host sea:10.1.1.1 --network host reef grep sea /etc/hosts
            podman run --cidfile $W/cid --name a reef true; podman inspect -f '{{.Name}}' $(cat $W/cid)   #~ slash
            podman run --cidfile $W/cid reef true                                   #= 125
            podman run --rm --timeout 1 reef sleep 100                              #~ timeout-137
            podman run --rm --replace --name a reef echo again                      #~ replace-says
            podman run --rm --pidfile $W/pid reef true; test -s $W/pid && echo written
        """)

    def test_create_and_start(self):
        self.script("""
            podman create --name a reef sh -c 'echo run; exit 3'
            podman ps -a --format '{{.Names}} {{.State}} {{.Image}}'                #~ image-name
            podman start a
            podman wait a
            podman logs a
            podman inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.Running}}' a
            podman start a; podman wait a
            podman logs a
            podman create --name a reef true                                        #= 125 already in use
            podman create reef
            podman create nope:1                                                    #= 125
            podman start                                                            #= 125
            podman start nope                                                       #~ exit-1
        """)

    def test_stop_and_kill(self):
        self.script("""
            podman run -d --name a reef sh -c 'trap "exit 5" TERM; echo ready; sleep 1000 & wait'
            podman inspect -f '{{.State.Status}} {{.State.Running}} {{.State.Paused}}' a
            until podman logs a | grep -q ready; do sleep 0.1; done
            podman stop a
            podman inspect -f '{{.State.Status}} {{.State.ExitCode}}' a
            podman stop a
            podman start a
            podman kill a
            podman wait a
            podman kill a                                                           #~ exit-1
            podman stop nope                                                        #~ exit-1
            podman kill nope                                                        #~ exit-1
            podman stop -i nope
            podman kill -s NOPE a                                                   #= 125
            podman start a; podman stop -t 0 a; podman wait a
            podman run -d --name b --stop-signal USR1 reef sh -c 'trap "exit 6" USR1; echo ready; sleep 1000 & wait'
            until podman logs b | grep -q ready; do sleep 0.1; done
            podman stop b; podman wait b
            podman start b; podman rm -f -t 0 b
            podman run -d --name s reef sleep 1000; podman stop -a -t 0 >/dev/null; podman ps -q
        """)

    def test_signals(self):
        self.script("""
            podman run -d --name a reef sh -c 'trap "echo heard" HUP; echo ready; while :; do sleep 0.1; done'
            until podman logs a | grep -q ready; do sleep 0.1; done
            podman kill -s HUP a
            until podman logs a | grep -q heard; do sleep 0.1; done; podman logs a
            podman kill -s 9 a
            podman wait a
        """)

    def test_restart(self):
        self.script("""
            podman run -d --name a reef sh -c 'trap "exit 0" TERM; echo ready; sleep 1000 & wait'
            until podman logs a | grep -q ready; do sleep 0.1; done
            podman restart a
            podman inspect -f '{{.State.Status}}' a
            until [ $(podman logs a | grep -c ready) = 2 ]; do sleep 0.1; done
            podman stop a
            podman restart a
            podman inspect -f '{{.State.Status}}' a
            podman restart nope                                                     #~ exit-1
            podman run -d --name b --restart on-failure:2 reef sh -c 'echo try; exit 3'
            until [ $(podman logs b | grep -c try) = 3 ]; do sleep 0.1; done
        """)

    def test_rm(self):
        self.script("""
            podman run --name a reef true
            podman rm a
            podman rm a                                                             #= 1 no such container
            podman rm -i a
            podman rm -f a
            podman run -d --name a reef sleep 1000
            podman rm a                                                             #~ rm-running
            podman rm -f -t 0 a
            podman create --name a reef; podman create --name b reef
            podman rm a b | wc -l
            podman create --name a reef; podman rm -a | wc -l
            podman ps -a -q
            podman rm                                                               #= 125
        """)

    def test_files_of_ids(self):
        self.script("""
            podman run -d --name a --cidfile "$HOME/$(command -v podman | tr / -)" reef sleep 1000
            podman kill -s KILL --cidfile "$HOME/$(command -v podman | tr / -)" | wc -l
            podman start a
            podman stop -t 0 --cidfile "$HOME/$(command -v podman | tr / -)" | wc -l
            podman rm --cidfile "$HOME/$(command -v podman | tr / -)" | wc -l
            podman ps -aq
            podman stop --cidfile "$HOME/nope"                                      #= 125
            podman rm --cidfile "$HOME/nope"                                        #= 125
            podman rm --ignore --cidfile "$HOME/nope"                               #= 125
            rm "$HOME/$(command -v podman | tr / -)"
        """)

    def test_ps_in_order(self):
        self.script("""
            podman create --name b reef true; podman create --name c reef sleep 9; podman create --name a reef echo
            podman ps -a --sort names --format '{{.Names}}'
            podman ps -a --sort created --format '{{.Names}}'
            podman ps -a --sort command --format '{{.Names}}'
            podman ps -a --sort image -q | wc -l
            podman ps -a --sort nope                                                #= 125
        """)

    def test_rename(self):
        self.script("""
            podman create --name a reef; podman create --name b reef
            podman rename a c
            podman ps -a --format '{{.Names}}' | sort
            podman rename c b                                                       #= 125 in use
            podman rename nope x                                                    #~ exit-1
            podman rename c                                                         #= 125
            podman start c
            podman rename c d
            podman inspect -f '{{.State.ExitCode}}' d
        """)

    def test_wait(self):
        self.script("""
            podman run -d --name a reef sh -c 'sleep 0.5; exit 4'
            podman wait a
            podman run -d --name b reef sh -c 'exit 5'
            podman wait a b
            podman wait nope                                                        #~ exit-1
            podman wait                                                             #= 125
        """)

    def test_exec(self):
        self.script("""
            podman run -d --name a -e A=1 -w /srv reef sleep 1000
            podman exec a sh -c 'echo $A; pwd; echo err >&2'
            podman exec a sh -c 'exit 9'                                            #= 9
            podman exec -e B=2 -w /tmp a sh -c 'echo $A$B; pwd'
            podman exec -u 12:34 a id -u
            podman exec -u 12:34 a id                                               #~ exec-groups
            echo in | podman exec -i a cat
            podman exec a /nope                                                     #= 127 nope
            podman exec a /etc                                                      #= 126
            podman exec -d a sh -c 'echo x >/tmp/made'; until podman exec a cat /tmp/made 2>/dev/null; do sleep 0.1; done  #~ exec-detached
            podman exec a                                                           #~ exec-255
            podman exec nope true                                                   #~ exit-1
            podman stop -t 0 a
            podman exec a true                                                      #~ exec-255
            podman exec reef true                                                   #~ exit-1
        """)

    def test_logs(self):
        self.script("""
            podman run --name a reef sh -c 'echo 1; sleep 0.1; echo 2 >&2; sleep 0.1; echo 3'
            podman logs a
            podman logs a 2>/dev/null
            podman logs --tail 1 a
            podman logs --tail 2 a 2>/dev/null
            podman logs --tail 0 a
            podman logs -f a
            podman logs --since 1h a
            podman logs --until 1h a                                                #~ logs-until
            podman logs -t a 2>/dev/null | wc -l
            podman logs nope                                                        #~ exit-1
            podman run -d --name b reef sh -c 'for i in 1 2 3; do echo $i; sleep 0.2; done'
            podman logs -f b
            podman run --name c --log-driver none reef echo x
        """)

    def test_attach(self):
        self.script("""
            podman run -d --name a reef sh -c 'sleep 1; echo out; echo err >&2; exit 3'
            podman attach --no-stdin a                                              #~ attach-status
            podman attach a                                                         #~ exit-1
            podman attach nope                                                      #~ exit-1
            podman attach                                                           #= 125
            podman run -d -i --name b reef sh -c 'read word; echo got $word; exit 4'
            echo go | podman attach b                                               #~ attach-status
            podman create --name c reef sh -c 'echo out; exit 5'
            podman start -a c                                                       #= 5
            podman start --attach c                                                 #= 5
            podman create -i --name d reef cat
            echo in | podman start -a -i d
            podman container attach nope                                            #~ exit-1
        """)

    def test_health(self):
        self.script("""
            podman run -d --name a --health-cmd 'test -e /tmp/well' --health-interval disable reef sleep 1000
            podman healthcheck run a                                                #= 1
            podman exec a touch /tmp/well; podman healthcheck run a
            podman run -d --name b reef sleep 1000
            podman healthcheck run b                                                #= 125 no defined healthcheck
            podman healthcheck run nope                                             #~ exit-1
        """)

    def test_stats(self):
        self.script("""
            podman run -d --name a reef sleep 1000
            podman stats nope --no-stream                                           #~ exit-1
            podman stats --no-stream --bogus                                        #= 125
        """)

    def test_events(self):
        self.script("""
            podman run --name a -l sea=north reef sh -c 'exit 3'; podman rm a; podman volume create tide; podman volume rm tide
            podman events --stream=false --since 5m --filter container=a --filter event=create --format '{{.Type}} {{.Status}} {{.Name}}' | tail -n 1
            podman events --since 5m --stream=false --filter container=a --filter event=start --format '{{.Status}}' | tail -n 1
            podman events --since 5m --stream=false --filter type=volume --filter event=create --format '{{.Type}} {{.Status}} {{.Name}}' | tail -n 1
            podman events --filter bogus=x --stream=false --since 5m                #~ events-filter
            podman tag reef mark:1; podman untag mark:1
            podman events --since 5m --stream=false --filter type=image --filter event=untag --format '{{.Type}} {{.Status}}' | tail -n 1
            podman events --stream=false --format json --since 5m | grep -c '"tide"' | grep -q '^0' || echo told
        """)

    def test_update(self):
        self.script("""
            podman update                                                           #= 125
            podman update --memory 1g nope                                          #~ exit-1
            podman create --name a reef true; podman update --bogus 1 a             #= 125
        """)

    def test_top(self):
        self.script("""
            podman top nope                                                         #~ exit-1
            podman run --name a reef true
            podman top                                                              #= 125
        """)

    def test_pause(self):
        """podman pauses by a control group that it does not have without root on a host like this: refusals only."""
        self.script("""
            podman pause nope                                                       #~ exit-1
            podman unpause nope                                                     #~ exit-1
            podman create --name a reef
            podman pause a                                                          #~ exit-1
            podman unpause a                                                        #~ exit-1
            podman pause                                                            #= 125
        """)

    def test_port(self):
        self.script("""
            podman port nope                                                        #~ exit-1
            podman port -a
            podman create --name a reef; podman port a
        """)


class Seen(Pair):
    def test_ps(self):
        self.script("""
            podman run --name a -l sea=north reef sh -c 'exit 3'                    #= 3
            podman create --name b -l sea=south reef
            podman run -d --name c reef sleep 1000
            podman ps --format '{{.Names}}'
            podman ps -a --format '{{.Names}} {{.Command}}' | sort                  #~ quoted-command
            podman ps -a --format '{{.Names}} {{.State}}' | sort                    #~ ps-state
            podman ps -a --format '{{.Names}} {{.Status}}' | sort
            podman ps -a -q | wc -l
            podman ps -a -q --no-trunc | wc -l
            podman ps -a --filter name=b --format '{{.Names}}'
            podman ps -a --filter name='^b$' --format '{{.Names}}'
            podman ps -a --filter label=sea --format '{{.Names}}' | sort
            podman ps -a --filter label=sea=north --format '{{.Names}}'
            podman ps -a --filter status=exited --format '{{.Names}}'
            podman ps --filter status=created --format '{{.Names}}'
            podman ps -a --filter status=created --filter status=running --format '{{.Names}}' | sort
            podman ps -a --filter exited=3 --format '{{.Names}}'
            podman ps -a --filter ancestor=reef --format '{{.Names}}' | sort        #~ image-name
            podman ps -a --filter before=b --format '{{.Names}}'
            podman ps -a --filter since=b --format '{{.Names}}'
            podman ps -a --filter id=$(podman inspect -f '{{.Id}}' b) --format '{{.Names}}'
            podman ps -a --filter nope=1                                            #= 125 nope
            podman ps -l --format '{{.Names}}'
            podman ps -n 2 --format '{{.Names}}' | sort
            podman ps --last 1 --format '{{.Names}}'
            podman ps -a --noheading | wc -l
            podman ps --nope                                                        #= 125
            podman ps -a --format json | head -c 1                                  #~ json-lines
        """)

    def test_inspect(self):
        self.script("""
            podman create --name a -l sea=north -e A=1 -w /tmp -h shore -u 12:34 --entrypoint echo -v $W:/w:ro reef hi there
            podman inspect -f '{{.Path}} {{json .Args}}' a
            podman inspect -f '{{.Config.Hostname}} {{.Config.User}} {{.Config.WorkingDir}}' a
            podman inspect -f '{{index .Config.Labels "sea"}}' a
            podman inspect -f '{{json .Config.Cmd}}' a
            podman inspect -f '{{range .Config.Env}}{{println .}}{{end}}' a | grep A=
            podman inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}}{{end}}' a
            podman inspect -f '{{.State.Status}} {{.State.Pid}} {{.State.OOMKilled}}' a
            podman inspect -f '{{.HostConfig.RestartPolicy.Name}}' a                #~ restart-name
            podman inspect -f '{{.HostConfig.AutoRemove}} {{.HostConfig.ReadonlyRootfs}}' a
            podman inspect a | grep -c '"Id"'
            podman inspect --type container a | grep -c '"Id"'
            podman inspect --type image a                                           #~ exit-1
            podman inspect nope                                                     #~ exit-1
            podman inspect -f '{{.Nope}}' a                                         #= 125
            podman inspect -s -f '{{.SizeRw}}' a
            podman inspect                                                          #= 125
            podman inspect -f '{{.Config.Image}}' a                                 #~ image-name
        """)

    def test_container_verbs(self):
        self.script("""
            podman container create --name a reef sh -c 'echo x; exit 2'
            podman container exists a
            podman container exists nope                                            #= 1
            podman container start a
            podman container wait a
            podman container logs a
            podman container ls -a --format '{{.Names}}'
            podman container list -a --format '{{.Names}}'
            podman container ps -a --format '{{.Names}}'
            podman container inspect -f '{{.State.ExitCode}}' a
            podman container inspect nope                                           #~ exit-1
            podman container rename a b
            podman container diff b | sort                                          #~ diff-mounts
            podman container run -d --name c reef sleep 1000
            podman container exec c echo in
            podman container stop -t 0 c
            podman container restart c
            podman container kill c
            podman container prune -f                                               #~ prune-words
            podman container ls -a -q
            podman container rm nope                                                #= 1 no such container
            podman container nope                                                   #= 125
        """)


class Files(Pair):
    def test_cp(self):
        self.script("""
            podman create --name a reef
            mkdir -p $W/d/sub; echo x >$W/d/sub/f; echo y >$W/f
            podman cp $W/f a:/tmp/f
            podman cp $W/d a:/tmp
            podman cp a:/tmp/f $W/back; cat $W/back
            podman cp a:/tmp/d $W/tree; cat $W/tree/sub/f
            podman cp a:/tmp/d/. $W/into; cat $W/into/sub/f
            podman cp a:/etc/passwd - | tar -t
            tar -C $W -c f | podman cp - a:/srv
            podman cp a:/srv/f - | tar -xO
            podman cp a:/nope $W                                                    #= 125
            podman cp nope:/x $W                                                    #~ exit-1
            podman cp $W/nope a:/tmp                                                #= 125
            podman cp $W/f $W/g                                                     #= 125
            podman run -d --name r reef sleep 1000
            podman cp $W/f r:/tmp/f; podman exec r cat /tmp/f
            podman cp a:/tmp/f r:/tmp/g; podman exec r cat /tmp/g
        """)

    def test_diff(self):
        self.script("""
            podman run --name a --network host reef sh -c 'echo x >/srv/new; rm /srv/app/mark; echo y >/etc/passwd'
            podman diff a | grep -v -e /etc/host -e /run -e resolv | sort
            podman diff a | grep srv | sort
            podman diff nope                                                        #~ exit-1
            podman diff                                                             #= 125
        """)

    def test_commit(self):
        self.script("""
            podman run --name a reef sh -c 'echo x >/srv/new'
            podman commit -q a two
            podman run --rm two cat /srv/new
            podman commit -q -f docker -c 'CMD ["echo","hi"]' -c 'ENV A=5' -a sea -m words a three
            podman run --rm three
            podman run --rm three sh -c 'echo $A'
            podman inspect -f '{{.Author}} {{.Comment}} {{json .Config.Cmd}}' three
            podman commit -q nope x                                                 #~ exit-1
        """)

    def test_export(self):
        self.script("""
            podman run --name a reef sh -c 'echo x >/srv/new'
            podman export a | tar -t srv/new srv/app/mark
            podman export -o $W/a.tar a; tar -xOf $W/a.tar srv/new
            podman import -q $W/a.tar four; podman run --rm four cat /srv/new
            podman export nope                                                      #~ exit-1
        """)


if __name__ == "__main__":
    unittest.main()
