//! The password that `login` asks for at a terminal: what is seen of it, and what is left of the terminal, also by whoever
//! ends the command with a key.

use crate::dir::Dir;
use crate::needs;
use crate::pty::Person;
use crate::sys;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

const ECHO: u32 = libc::ECHO;

/// A registry that knows one person; its address.
fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let head: Vec<String> = BufReader::new(&stream)
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            // `diver:sunken gold`
            let known = head.iter().any(|line| line.ends_with("Basic ZGl2ZXI6c3Vua2VuIGdvbGQ="));
            let answer =
                if known { "200 OK" } else { "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"" };
            let _ =
                write!(&stream, "HTTP/1.1 {answer}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
        }
    });
    address
}

#[test]
fn a_password_is_asked_for_and_not_shown() {
    needs!(userns);
    let (dir, registry) = (Dir::new(), registry());
    let before = sys::fresh_modes();
    let login = |words: &[&str]| {
        let auth = dir.text("auth.json");
        let words = [&["login", "--tls-verify=false", "--authfile", &auth], words, &[&registry]].concat();
        Person::at(dir.kelp(&words))
    };
    // Before it is asked: who answers at once is not seen and is heard.
    let hidden = |person: &Person| sys::modes(&person.terminal)[3] & ECHO == 0;
    let mut person = login(&[]);
    person.sees("Username: ");
    person.types("diver\n");
    person.sees("Password: ");
    assert!(hidden(&person), "what is typed is shown");
    person.types("sunken gold\n");
    assert_eq!(person.leaves(), 0, "{}", person.screen());
    person.sees("Login Succeeded");
    assert!(person.screen().contains("diver") && !person.screen().contains("gold"), "{}", person.screen());
    assert_eq!(sys::modes(&person.terminal), before);
    // Ctrl-C, and a terminal's other ways to end a program.
    for (keys, code) in [("\u{3}", 130), ("half\u{3}", 130), ("\u{1c}", 131)] {
        let mut person = login(&["-u", "diver"]);
        person.sees("Password: ");
        assert!(hidden(&person), "what is typed is shown");
        person.types(keys);
        assert_eq!(person.leaves(), code, "{}", person.screen());
        assert_eq!(sys::modes(&person.terminal), before);
        assert!(!person.screen().contains("half"), "{}", person.screen());
    }
    let mut person = login(&["-u", "diver"]);
    person.sees("Password: ");
    person.types("fool's gold\n");
    assert_eq!(person.leaves(), 125, "{}", person.screen());
    assert_eq!(sys::modes(&person.terminal), before);
}
