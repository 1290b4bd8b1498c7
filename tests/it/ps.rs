//! `kelp ps`: docker's filters and columns, and where a published port listens, as `ps`, `port` and `inspect`
//! say it.

use crate::dir::Dir;
use crate::host::soon;
use crate::kelp::says;
use crate::pty::Person;
use crate::{needs, sys};
use serde_json::Value;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// The names of those that `ps` shows with these options.
fn shown(dir: &Dir, options: &[&str]) -> String {
    let out = dir.kelp(&[&["ps", "--format", "{{.Names}}"], options].concat()).ok().out;
    out.lines().collect::<Vec<_>>().join(" ")
}

fn filtered(dir: &Dir, filters: &[&str]) -> String {
    let words: Vec<&str> = filters.iter().flat_map(|filter| ["--filter", *filter]).collect();
    shown(dir, &[&["-a"], &words[..]].concat())
}

/// `made` was never started, `over` has ended with 3, `runs` runs.
fn fleet(dir: &Dir) -> String {
    let quiet = ["--network", "none"];
    dir.kelp(&[&["create", "--name", "made", "-v", "named:/n"], &quiet[..], &["@host", "true"]].concat())
        .ok();
    let over = ["run", "--name", "over", "-l", "sea=north", "-l", "deep"];
    dir.kelp(&[&over[..], &quiet, &["@host", "sh", "-c", "exit 3"]].concat()).fails(3);
    let runs = ["run", "-d", "--name", "runs", "-l", "sea=south", "@host", "sleep", "1000"];
    dir.kelp(&runs).ok().out.trim().to_owned()
}

#[test]
fn filters_choose_containers_as_dockers_do() {
    needs!(userns);
    let dir = Dir::new();
    let id = fleet(&dir);
    assert_eq!(shown(&dir, &[]), "runs");
    for (filters, names) in [
        (&[&format!("id={}", &id[..5])[..]][..], "runs"),
        (&["name=ad"], "made"),
        (&["name=^/?over$"], "over"),
        (&["name=made", "name=over"], "over made"),
        (&["label=sea"], "runs over"),
        (&["label=sea=north"], "over"),
        (&["label=sea", "label=deep"], "over"),
        (&["label!=sea"], "made"),
        (&["status=created", "status=exited"], "over made"),
        (&["status=exited", "name=made"], ""),
        (&["exited=3"], "over"),
        (&["exited=0"], ""),
        (&["ancestor=@host"], "runs over made"),
        (&["ancestor=debian"], ""),
        (&["volume=named"], "made"),
        (&["volume=/n"], "made"),
        (&["network=none"], "over made"),
        (&["network=user"], "runs"),
        (&["health=none"], "runs over made"),
        (&["before=over"], "made"),
        (&["since=over"], "runs"),
        (&["until=1h"], ""),
    ] {
        assert_eq!(filtered(&dir, filters), names, "{filters:?}");
    }
    assert_eq!(shown(&dir, &["--filter", "status=exited"]), "over", "a state is asked for without -a");
    says(&dir.kelp(&["ps", "--filter", "colour=red"]).fails(125), &["colour=red", "filter"]);
    says(&dir.kelp(&["ps", "--filter", "status=asleep"]).fails(125), &["status=asleep"]);
    says(&dir.kelp(&["ps", "--filter", "before=nobody"]).fails(1), &["no such container"]);
    dir.kelp(&["rm", "-f", "runs"]).ok();
}

#[test]
fn the_last_ones_are_shown_whether_they_run_or_not() {
    needs!(userns);
    let dir = Dir::new();
    fleet(&dir);
    assert_eq!(shown(&dir, &["-n", "2"]), "runs over");
    dir.kelp(&["rm", "-f", "runs"]).ok();
    assert_eq!(shown(&dir, &["-l"]), "over");
    assert_eq!(shown(&dir, &["-n", "-1"]), "");
}

#[test]
fn columns_and_fields_are_dockers() {
    needs!(userns);
    let dir = Dir::new();
    let (root, archive) = (dir.root(), dir.text("root.tar"));
    assert!(Command::new("tar").args(["-C", &root, "-cf", &archive, "."]).status().unwrap().success());
    dir.kelp(&["import", "--change", "EXPOSE 99/udp", &archive, "reef"]).ok();
    let run =
        ["run", "-d", "--name", "web", "-l", "sea=north", "-l", "a=b", "-v", "named:/n", "-v", "/tmp:/host"];
    let ports = ["-p", "127.0.0.1:48190-48191:90-91", "-p", "48195:95"];
    dir.kelp(&[&run[..], &ports, &["reef", "/bin/guest", "sleep", "1000"]].concat()).ok();
    let lines = dir.kelp(&["ps", "-s"]).ok().out;
    let heading: Vec<&str> =
        lines.lines().next().unwrap().split("  ").map(str::trim).filter(|w| !w.is_empty()).collect();
    assert_eq!(heading, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "SIZE"]);
    assert!(lines.contains("\"/bin/guest sleep 10…\"") && lines.contains("(virtual "), "{lines}");
    let wanted = "99/udp, 127.0.0.1:48190-48191->90-91/tcp, 0.0.0.0:48195->95/tcp, [::]:48195->95/tcp";
    let field = |format: &str| dir.kelp(&["ps", "--no-trunc", "--format", format]).ok().out;
    assert_eq!(field("{{.Ports}}"), format!("{wanted}\n"));
    assert_eq!(field("{{.Labels}} {{.Label \"sea\"}} {{.Networks}}"), "a=b,sea=north north user\n");
    assert_eq!(field("{{.Mounts}} {{.LocalVolumes}}"), "named,/tmp 1\n");
    assert_eq!(field("{{.Command}}"), "\"/bin/guest sleep 1000\"\n");
    assert_eq!(field("table {{.Names}}\\t{{.State}}"), "NAMES   STATE\nweb     running\n");
    let json: Value = serde_json::from_str(&field("json")).unwrap();
    for key in [
        "Command",
        "CreatedAt",
        "ID",
        "Image",
        "Labels",
        "LocalVolumes",
        "Mounts",
        "Names",
        "Networks",
        "Ports",
        "RunningFor",
        "Size",
        "State",
        "Status",
    ] {
        assert!(json[key].is_string(), "{key}: {json}");
    }
    assert_eq!(json["ID"].as_str().map(str::len), Some(64));
    for (filter, names) in [
        ("publish=48191", "web"),
        ("publish=48192", ""),
        ("expose=99/udp", "web"),
        ("expose=90-95", "web"),
        ("expose=99", ""),
    ] {
        assert_eq!(filtered(&dir, &[filter]), names, "{filter}");
    }
    dir.kelp(&["rm", "-f", "web"]).ok();
}

#[test]
fn a_port_that_is_left_to_the_kernel_is_shown_by_its_number() {
    needs!(userns);
    let dir = Dir::new();
    let script = "import socket; s = socket.create_server(('0.0.0.0', 80)); print('up', flush=True)\nwhile True: s.accept()[0].close()";
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "80",
        "-p",
        "127.0.0.1::81/udp",
        "@host",
        "python3",
        "-c",
        script,
    ];
    dir.kelp(&run).ok();
    let port = dir.kelp(&["port", "web", "80"]).ok().out;
    let (v4, v6) = port.split_once('\n').unwrap();
    let number: u16 = v4.strip_prefix("0.0.0.0:").unwrap().parse().unwrap();
    assert!(number > 0 && v6.trim() == format!("[::]:{number}"), "{port}");
    assert!(crate::host::soon(|| dir.kelp(&["logs", "web"]).ok().out == "up\n"));
    let address: SocketAddr = ([127, 0, 0, 1], number).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    let ports = dir.kelp(&["inspect", "-f", "{{json .NetworkSettings.Ports}}", "web"]).ok().out;
    let ports: Value = serde_json::from_str(&ports).unwrap();
    assert_eq!(ports["80/tcp"][0], serde_json::json!({"HostIp": "0.0.0.0", "HostPort": number.to_string()}));
    let udp = ports["81/udp"][0]["HostPort"].as_str().unwrap();
    assert_ne!(udp, "0");
    says(
        &dir.kelp(&["ps", "--format", "{{.Ports}}"]).ok().out,
        &[&format!("0.0.0.0:{number}->80/tcp"), &format!("127.0.0.1:{udp}->81/udp")],
    );
    dir.kelp(&["stop", "-t", "0", "web"]).ok();
    assert_eq!(dir.kelp(&["port", "web"]).ok().out, "");
    dir.kelp(&["start", "web"]).ok();
    let again = dir.kelp(&["port", "web", "81/udp"]).ok().out;
    assert!(again.starts_with("127.0.0.1:") && !again.ends_with(":0\n"), "{again}");
    dir.kelp(&["rm", "-f", "web"]).ok();
}

/// Guard: tables ask the terminal for its width; a pipe gets every word, and nobody gets a colour that is no terminal.
#[test]
fn tables_keep_to_a_terminal_of_eighty_columns_and_not_to_a_pipe() {
    needs!(userns);
    let dir = Dir::new();
    let name = "a-container-with-a-rather-long-name-that-fills-half-of-a-line";
    let run = [
        "run",
        "-d",
        "--name",
        name,
        "-p",
        "127.0.0.1:48196:96",
        "--health-cmd",
        "true",
        "@host",
        "sleep",
        "1000",
    ];
    dir.kelp(&run).ok();
    let volume = "v".repeat(64);
    dir.kelp(&["volume", "create", &volume]).ok();
    for (words, kept) in [
        (&["ps"][..], "a-contai"),
        (&["ps", "-s"], "a-contai"),
        (&["images"], "REPOSITORY"),
        (&["stats", "--no-stream"], "a-contai"),
        (&["volume", "ls"], &volume),
    ] {
        let mut person = Person::before(dir.kelp(words), 24, 80);
        assert_eq!(person.leaves(), 0);
        person.sees(kept);
        let screen = person.screen();
        let widest = screen.lines().map(|line| line.trim_end().chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{words:?}:\n{screen}");
        let piped = dir.kelp(words).ok().out;
        assert!(!piped.contains(['…', '\x1b']), "{words:?}:\n{piped}");
    }
    assert!(dir.kelp(&["ps"]).ok().out.contains(name));
    let mut whole = Person::before(dir.kelp(&["ps", "--no-trunc"]), 24, 80);
    whole.leaves();
    whole.sees(name);
    dir.kelp(&["rm", "-f", name]).ok();
}

/// podman's words for columns; its own `top` needs a control group, so it can't be asked everywhere.
#[test]
fn top_has_the_columns_that_are_asked_for() {
    needs!(userns);
    let dir = Dir::new();
    dir.kelp(&["run", "-d", "--name", "reef", "@host", "sh", "-c", "sleep 1000 & exec sleep 999"]).ok();
    let top = |words: &[&str]| dir.kelp(&[&["top", "reef"], words].concat());
    let rows = |out: String| -> Vec<String> {
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    assert!(soon(|| rows(top(&["pid", "args"]).ok().out) == ["PID COMMAND", "1 sleep 999", "2 sleep 1000"]));
    let wanted = ["PPID USER GROUP COMMAND", "0 root root sleep", "1 root root sleep"];
    assert_eq!(rows(top(&["ppid,user,group", "comm"]).ok().out), wanted);
    let uid = sys::uid().to_string();
    assert_eq!(rows(top(&["huser"]).ok().out), ["HUSER", &uid, &uid]);
    says(&top(&["pid", "nonsense"]).fails(125), &["nonsense", "etime"]);
    assert_eq!(top(&["-o", "pid,args"]).ok().out.lines().count(), 3);
    dir.kelp(&["rm", "-f", "reef"]).ok();
}
