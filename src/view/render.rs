//! Numbers as the kernel writes them (`proc_meminfo(5)` and its fellows). Pure, but for the two files of the machine
//! that say what its processors and its disks are called.

use std::fmt::Write;

use crate::units::CpuSet;
use crate::view::numbers::Numbers;

/// One file: where it belongs, and how it is written. The second argument is the machine's own text.
pub struct Rendered {
    pub name: &'static str,
    pub target: &'static str,
    pub text: fn(&Numbers, &str) -> String,
}

/// All files that are bound over the kernel's.
pub const FILES: [Rendered; 8] = [
    Rendered { name: "meminfo", target: "/proc/meminfo", text: meminfo },
    Rendered { name: "cpuinfo", target: "/proc/cpuinfo", text: cpuinfo },
    Rendered { name: "stat", target: "/proc/stat", text: stat },
    Rendered { name: "uptime", target: "/proc/uptime", text: uptime },
    Rendered { name: "loadavg", target: "/proc/loadavg", text: loadavg },
    Rendered { name: "swaps", target: "/proc/swaps", text: swaps },
    Rendered { name: "diskstats", target: "/proc/diskstats", text: diskstats },
    Rendered { name: "online", target: "/sys/devices/system/cpu/online", text: online },
];

/// The size of the pieces in which the kernel keeps a text, at least.
const PAGE: usize = 4096;

/// The longest line of a list.
const LINE: usize = 128;

/// A list that is longer than a page begins each page with the same line as before, however long its numbers have become:
/// so many lines to a page, and blanks before the last one's end.
pub fn in_pages(text: String) -> String {
    if text.len() <= PAGE || text.lines().any(|line| line.len() >= LINE) {
        return text;
    }
    let lines: Vec<&str> = text.lines().collect();
    let page = |lines: &[&str]| {
        let text = lines.join("\n");
        format!("{text:<width$}\n", width = PAGE - 1)
    };
    lines.chunks(PAGE / LINE).map(page).collect()
}

fn meminfo(numbers: &Numbers, _host: &str) -> String {
    let Numbers { memory, used, cached, shared, swap, swap_used, .. } = *numbers;
    let free = memory - used;
    let lines = [
        ("MemTotal", memory),
        ("MemFree", free),
        ("MemAvailable", free + cached.saturating_sub(shared)),
        ("Buffers", 0),
        ("Cached", cached),
        ("SwapCached", 0),
        ("Active", used - cached),
        ("Inactive", cached),
        ("SwapTotal", swap),
        ("SwapFree", swap - swap_used),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used - cached),
        ("Mapped", 0),
        ("Shmem", shared),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
    ];
    let line = |(name, bytes): (&str, u64)| format!("{:<16}{:>8} kB\n", format!("{name}:"), bytes >> 10);
    lines.into_iter().map(line).collect()
}

/// The machine's paragraphs of those processors, numbered anew.
fn cpuinfo(numbers: &Numbers, host: &str) -> String {
    let number = |paragraph: &str| {
        let line = paragraph.lines().find(|line| line.starts_with("processor"))?;
        line.split_once(':')?.1.trim().parse::<u32>().ok()
    };
    let shown =
        host.split("\n\n").filter(|text| number(text).is_some_and(|cpu| numbers.processors.contains(&cpu)));
    let mut text = String::new();
    for (at, paragraph) in shown.enumerate() {
        for line in paragraph.lines() {
            if line.starts_with("processor") {
                let _ = writeln!(text, "processor\t: {at}");
            } else {
                let _ = writeln!(text, "{line}");
            }
        }
        text.push('\n');
    }
    text
}

/// The container's own time, spread over its processors; the rest of its life they were idle.
fn stat(numbers: &Numbers, host: &str) -> String {
    let count = numbers.processors.len().max(1) as u64;
    let life = (numbers.uptime * 100.0) as u64 * count;
    let idle = life.saturating_sub(numbers.user + numbers.system);
    let line = |name: &str, parts: u64| {
        let part = |ticks: u64| ticks / parts;
        format!("{name} {} 0 {} {} 0 0 0 0 0 0\n", part(numbers.user), part(numbers.system), part(idle))
    };
    let mut text = line("cpu ", 1);
    (0..count).for_each(|at| text.push_str(&line(&format!("cpu{at}"), count)));
    text.push_str("intr 0\nctxt 0\n");
    let booted =
        host.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok()).unwrap_or(0);
    let _ = writeln!(text, "btime {booted}\nprocesses {}", numbers.last);
    let _ = writeln!(text, "procs_running {}\nprocs_blocked 0\nsoftirq 0", numbers.running);
    text
}

fn uptime(numbers: &Numbers, _host: &str) -> String {
    let count = numbers.processors.len().max(1) as f64;
    let used = (numbers.user + numbers.system) as f64 / 100.0;
    format!("{:.2} {:.2}\n", numbers.uptime, (numbers.uptime * count - used).max(0.0))
}

fn loadavg(numbers: &Numbers, _host: &str) -> String {
    let [one, five, fifteen] = numbers.load;
    format!("{one:.2} {five:.2} {fifteen:.2} {}/{} {}\n", numbers.running, numbers.threads, numbers.last)
}

fn swaps(numbers: &Numbers, _host: &str) -> String {
    let mut text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_owned();
    if numbers.swap > 0 {
        let (size, used) = (numbers.swap >> 10, numbers.swap_used >> 10);
        let _ = writeln!(text, "{:<40}virtual\t\t{size}\t\t{used}\t\t0", "none");
    }
    text
}

/// The machine's lines, with the container's counters.
fn diskstats(numbers: &Numbers, host: &str) -> String {
    let mut text = String::new();
    for line in host.lines() {
        let mut words = line.split_whitespace();
        let mut number = || words.next()?.parse::<u32>().ok();
        let (Some(major), Some(minor)) = (number(), number()) else { continue };
        let Some(name) = words.next() else { continue };
        let counted = numbers.devices.iter().find(|device| (device.0, device.1) == (major, minor));
        if let Some((_, _, [reads, read, writes, written])) = counted {
            let (read, written) = (read / 512, written / 512);
            let _ = writeln!(
                text,
                "{major:>4} {minor:>7} {name} {reads} 0 {read} 0 {writes} 0 {written} 0 0 0 0"
            );
        }
    }
    text
}

fn online(numbers: &Numbers, _host: &str) -> String {
    let count = numbers.processors.len().max(1) as u32;
    format!("{}\n", CpuSet((0..count).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Numbers {
        Numbers {
            processors: vec![1],
            memory: 256 << 20,
            used: 56 << 20,
            cached: 6 << 20,
            user: 300,
            system: 100,
            uptime: 10.0,
            running: 1,
            threads: 3,
            last: 9,
            load: [0.5, 0.25, 0.125],
            devices: vec![(8, 0, [1, 1024, 2, 2048])],
            ..Numbers::default()
        }
    }

    #[test]
    fn memory_adds_up() {
        let text = meminfo(&numbers(), "");
        for line in
            ["MemTotal:         262144 kB", "MemFree:          204800 kB", "MemAvailable:     210944 kB"]
        {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn a_long_list_has_each_line_in_the_same_page_whatever_it_says() {
        let list = |width: usize| (0..100).map(|at| format!("cpu{at} {at:0width$}\n")).collect::<String>();
        let (short, long) = (in_pages(list(50)), in_pages(list(90)));
        assert_eq!((short.len(), long.len()), (4 * PAGE, 4 * PAGE));
        for (at, piece) in short.as_bytes().chunks(PAGE).chain(long.as_bytes().chunks(PAGE)).enumerate() {
            assert!(piece.starts_with(format!("cpu{} ", at % 4 * 32).as_bytes()) && piece.ends_with(b"\n"));
        }
        let trimmed: String = short.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        assert_eq!(trimmed, list(50));
        assert_eq!(in_pages("a\n".to_owned()), "a\n");
    }

    #[test]
    fn processors_are_numbered_anew() {
        let host = "processor\t: 0\nmodel\t: a\n\nprocessor\t: 1\nmodel\t: b\n\n";
        assert_eq!(cpuinfo(&numbers(), host), "processor\t: 0\nmodel\t: b\n\n");
        assert_eq!(online(&numbers(), ""), "0\n");
    }

    #[test]
    fn time_is_the_containers() {
        let text = stat(&numbers(), "cpu  9 9 9\nbtime 1234\n");
        assert!(text.starts_with("cpu  300 0 100 600 0 0 0 0 0 0\ncpu0 300 0 100 600"), "{text}");
        assert!(text.contains("\nbtime 1234\n"), "{text}");
        assert_eq!(uptime(&numbers(), ""), "10.00 6.00\n");
        assert_eq!(loadavg(&numbers(), ""), "0.50 0.25 0.12 1/3 9\n");
    }

    #[test]
    fn disks_are_those_the_container_used() {
        let host = "   8       0 sda 5 6 7 8\n   8       1 sda1 1 1 1 1\n";
        assert_eq!(diskstats(&numbers(), host), "   8       0 sda 1 0 2 0 2 0 4 0 0 0 0\n");
        assert_eq!(swaps(&numbers(), "").lines().count(), 1);
    }
}
