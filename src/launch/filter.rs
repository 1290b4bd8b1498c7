//! A seccomp profile compiled to classic BPF: a binary search over ranges of system call numbers, one tree an
//! architecture. The kernel runs a new filter once for each call number to fill its cache, so a linear list
//! of 400 comparisons costs start-up time that a search does not (`docs/decisions/0001-seccomp-search.md`).
//!
//! Layout: load arch; compare; per architecture: load nr, search, leaves. A leaf is one return, shared by all that
//! reach it, or a chain of conditions on arguments each ending in a return, then the default.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;

use crate::spec::seccomp::{Action, Comparison, Condition, Filter, Rule};
use crate::sys::seccomp::{self, Instruction};

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

macro_rules! calls {
    ($architecture:ident) => {
        |show| {
            use syscalls::$architecture::Sysno;
            let all = (0..Sysno::table_size()).filter_map(Sysno::new);
            all.for_each(|call| show(call.id() as u32, call.name()));
        }
    };
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Shows each call of an architecture, by number and name, in the order of the numbers.
type Calls = fn(&mut dyn FnMut(u32, &'static str));

/// The architectures whose calls the machine can make, by their `AUDIT_ARCH_*`. Names are looked up by number: to look
/// all numbers up by name takes ten times as long.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [(u32, Calls); 2] = [(0xC000_003E, calls!(x86_64)), (0x4000_0003, calls!(x86))];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [(u32, Calls); 1] = [(0xC000_00B7, calls!(aarch64))];

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: usize, jf: usize) -> Instruction {
    Instruction { code, jt: jt as u8, jf: jf as u8, k }
}

/// The program for `filter` on this machine.
pub fn compile(filter: &Filter) -> Vec<Instruction> {
    let mut program = Backwards::default();
    let mut next = program.returning(value(filter.default));
    let chains = chains(filter);
    for (architecture, calls) in ARCHITECTURES.into_iter().rev() {
        program.search(&ranges(&chains, calls), filter.default);
        program.push(instruction(LOAD, NUMBER));
        program.jump(next);
        next = program.push(branch(IF_EQUAL, architecture, 1, 0));
    }
    program.push(instruction(LOAD, ARCHITECTURE));
    program.code.reverse();
    program.code
}

fn asks(one: &Instruction) -> bool {
    one.code == RETURN && one.k == libc::SECCOMP_RET_USER_NOTIF
}

/// Installs a program for this process and all that it starts; gives the listener, if the program asks one. Under a
/// filter that has a listener already there can be no other, and the machine answers.
pub fn install(program: &[Instruction]) -> io::Result<Option<OwnedFd>> {
    if !program.iter().any(asks) {
        return seccomp::install(program).map(|()| None);
    }
    if let Ok(listener) = seccomp::install_with_listener(program) {
        return Ok(Some(listener));
    }
    let allow = Instruction { k: libc::SECCOMP_RET_ALLOW, ..instruction(RETURN, 0) };
    let silent = |one: &Instruction| if asks(one) { allow } else { *one };
    seccomp::install(&program.iter().map(silent).collect::<Vec<_>>()).map(|()| None)
}

/// A program that is written from its end, since classic BPF jumps forward only: whatever is written knows how
/// far away its targets are, and the same return serves all that are near enough.
#[derive(Default)]
struct Backwards<'a> {
    code: Vec<Instruction>,
    returns: BTreeMap<u32, usize>,
    /// Where each chain of conditions begins that was written last.
    chains: Vec<(Chain<'a>, usize)>,
}

/// How far a branch reaches.
const NEAR: usize = u8::MAX as usize;

impl<'a> Backwards<'a> {
    fn push(&mut self, one: Instruction) -> usize {
        self.code.push(one);
        self.code.len() - 1
    }

    /// From an instruction that is written `after` others to come.
    fn distance(&self, target: usize, after: usize) -> usize {
        self.code.len() + after - target - 1
    }

    fn jump(&mut self, target: usize) -> usize {
        self.push(instruction(JUMP, self.distance(target, 0) as u32))
    }

    /// A return of `value` that a branch can reach, even one that needs two long jumps.
    fn returning(&mut self, value: u32) -> usize {
        match self.returns.get(&value) {
            Some(target) if self.distance(*target, 2) <= NEAR => *target,
            _ => {
                let target = self.push(instruction(RETURN, value));
                self.returns.insert(value, target);
                target
            }
        }
    }

    /// The search for a number; gives where it begins.
    fn search(&mut self, ranges: &[Range<'a>], default: Action) -> usize {
        if let [range] = ranges {
            return self.leaf(&range.chain, default);
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let mut right = self.search(high, default);
        let mut left = self.search(low, default);
        for target in [&mut right, &mut left] {
            if self.distance(*target, 1) > NEAR {
                *target = self.jump(*target);
            }
        }
        let middle = high.first().map_or(0, |range| range.first);
        let (jt, jf) = (self.distance(right, 0), self.distance(left, 0));
        self.push(branch(IF_AT_LEAST, middle, jt, jf))
    }

    fn leaf(&mut self, chain: &Chain<'a>, default: Action) -> usize {
        match chain[..] {
            [] => self.returning(value(default)),
            [rule] if rule.conditions.is_empty() => self.returning(value(rule.action)),
            _ => self.chain(chain, default),
        }
    }

    fn chain(&mut self, chain: &Chain<'a>, default: Action) -> usize {
        let written = self.chains.iter().rev().find(|(written, _)| same(written, chain));
        if let Some((_, target)) = written.filter(|(_, target)| self.distance(*target, 2) <= NEAR) {
            return *target;
        }
        self.code.extend(conditions(chain, default).into_iter().rev());
        self.chains.push((chain.clone(), self.code.len() - 1));
        self.code.len() - 1
    }
}

fn value(action: Action) -> u32 {
    match action {
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::Ask => libc::SECCOMP_RET_USER_NOTIF,
        Action::Allow => libc::SECCOMP_RET_ALLOW,
    }
}

/// The rules that apply to one call number, in order; none means the default.
type Chain<'a> = Vec<&'a Rule>;

struct Range<'a> {
    first: u32,
    chain: Chain<'a>,
}

fn chains(filter: &Filter) -> HashMap<&str, Chain<'_>> {
    let mut chains: HashMap<&str, Chain<'_>> = HashMap::with_capacity(syscalls::Sysno::count());
    for rule in &filter.rules {
        for name in &rule.names {
            let chain = chains.entry(name).or_default();
            if chain.last().is_none_or(|last| !last.conditions.is_empty()) {
                chain.push(rule);
            }
        }
    }
    chains
}

/// Covers all numbers: each range reaches to the next one's first.
fn ranges<'a>(chains: &HashMap<&str, Chain<'a>>, calls: Calls) -> Vec<Range<'a>> {
    let mut ranges = vec![Range { first: 0, chain: Vec::new() }];
    let mut next = 0;
    calls(&mut |number, name| {
        let Some(chain) = chains.get(name) else { return };
        if number > next {
            append(&mut ranges, next, &[]);
        }
        append(&mut ranges, number, chain);
        next = number + 1;
    });
    append(&mut ranges, next, &[]);
    ranges
}

fn append<'a>(ranges: &mut Vec<Range<'a>>, first: u32, chain: &[&'a Rule]) {
    if ranges.last().is_some_and(|last| same(&last.chain, chain)) {
        return;
    }
    if ranges.last().is_some_and(|last| last.first == first) {
        ranges.pop();
    }
    ranges.push(Range { first, chain: chain.to_vec() });
}

fn same(one: &[&Rule], other: &[&Rule]) -> bool {
    let outcome = |chain: &[&Rule]| match chain {
        [] => Some(None),
        [rule] if rule.conditions.is_empty() => Some(Some(rule.action)),
        _ => None,
    };
    match (outcome(one), outcome(other)) {
        (None, None) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| std::ptr::eq(*one, *other))
        }
        (one, other) => one == other,
    }
}

fn conditions(chain: &Chain<'_>, default: Action) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in chain {
        code.extend(conditional(rule));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(instruction(RETURN, value(default)));
    code
}

/// Where a step of a condition goes on.
#[derive(Clone, Copy)]
enum Goal {
    Next,
    Pass,
    Fail,
}

struct Step {
    code: u16,
    k: u32,
    yes: Goal,
    no: Goal,
}

fn conditional(rule: &Rule) -> Vec<Instruction> {
    let blocks: Vec<Vec<Step>> = rule.conditions.iter().map(steps).collect();
    let total: usize = blocks.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(total + 1);
    let mut end = 0;
    for block in blocks {
        end += block.len();
        for step in block {
            let here = code.len() + 1;
            let distance = |goal| match goal {
                Goal::Next => 0,
                Goal::Pass => end - here,
                Goal::Fail => total + 1 - here,
            };
            code.push(branch(step.code, step.k, distance(step.yes), distance(step.no)));
        }
    }
    code.push(instruction(RETURN, value(rule.action)));
    code
}

/// A 64-bit comparison by halves; the machine is little-endian, so the low half comes first.
fn steps(condition: &Condition) -> Vec<Step> {
    let low_at = ARGUMENTS + condition.argument * 8;
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let plain = |code, k| Step { code, k, yes: Goal::Next, no: Goal::Next };
    let test = |code, k, yes, no| Step { code, k, yes, no };
    let (load_high, load_low) = (plain(LOAD, low_at + 4), plain(LOAD, low_at));
    use Goal::{Fail, Next, Pass};
    match condition.comparison {
        Comparison::Equal => {
            vec![load_high, test(IF_EQUAL, high, Next, Fail), load_low, test(IF_EQUAL, low, Pass, Fail)]
        }
        Comparison::NotEqual => {
            vec![load_high, test(IF_EQUAL, high, Next, Pass), load_low, test(IF_EQUAL, low, Fail, Pass)]
        }
        Comparison::Masked(mask) => vec![
            load_high,
            plain(AND, (mask >> 32) as u32),
            test(IF_EQUAL, high, Next, Fail),
            load_low,
            plain(AND, mask as u32),
            test(IF_EQUAL, low, Pass, Fail),
        ],
        Comparison::Greater => ordered(load_high, load_low, high, test(IF_GREATER, low, Pass, Fail)),
        Comparison::GreaterOrEqual => ordered(load_high, load_low, high, test(IF_AT_LEAST, low, Pass, Fail)),
        Comparison::LessOrEqual => less(load_high, load_low, high, test(IF_GREATER, low, Fail, Pass)),
        Comparison::Less => less(load_high, load_low, high, test(IF_AT_LEAST, low, Fail, Pass)),
    }
}

fn ordered(load_high: Step, load_low: Step, high: u32, last: Step) -> Vec<Step> {
    let above = Step { code: IF_GREATER, k: high, yes: Goal::Pass, no: Goal::Next };
    let equal = Step { code: IF_EQUAL, k: high, yes: Goal::Next, no: Goal::Fail };
    vec![load_high, above, equal, load_low, last]
}

fn less(load_high: Step, load_low: Step, high: u32, last: Step) -> Vec<Step> {
    let above = Step { code: IF_GREATER, k: high, yes: Goal::Fail, no: Goal::Next };
    let equal = Step { code: IF_EQUAL, k: high, yes: Goal::Next, no: Goal::Pass };
    vec![load_high, above, equal, load_low, last]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::capability::CapabilitySet;
    use crate::spec::seccomp::docker_default;
    use std::str::FromStr;

    /// Runs the program as the kernel would.
    fn answer(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            offset => {
                let at = (offset - ARGUMENTS) as usize;
                (arguments[at / 8] >> ((at % 8) * 8)) as u32
            }
        };
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let mut jump = |holds| at += usize::from(if holds { step.jt } else { step.jf });
            match step.code {
                LOAD => accumulator = word(step.k),
                AND => accumulator &= step.k,
                RETURN => return step.k,
                JUMP => at += step.k as usize,
                IF_EQUAL => jump(accumulator == step.k),
                IF_GREATER => jump(accumulator > step.k),
                IF_AT_LEAST => jump(accumulator >= step.k),
                other => panic!("{other:#x}"),
            }
        }
    }

    fn on(program: &[Instruction], name: &str, first: u64) -> u32 {
        let number = syscalls::Sysno::from_str(name).unwrap().id() as u32;
        answer(program, ARCHITECTURES[0].0, number, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn one_call_is_asked_and_no_other() {
        let profile = docker_default(CapabilitySet::default_set());
        let rules = [vec![crate::spec::seccomp::asked_numbers()], profile.rules].concat();
        let program = compile(&Filter { default: profile.default, rules });
        assert_eq!(on(&program, "sysinfo", 0), libc::SECCOMP_RET_USER_NOTIF);
        assert_eq!(on(&program, "sendmsg", 0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(on(&program, "mount", 0), EPERM);
    }

    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

    #[test]
    fn dockers_profile_answers_as_docker_says() {
        let program = compile(&docker_default(CapabilitySet::default_set()));
        for name in ["read", "execve", "openat2", "wait4", "chroot", "getdents64"] {
            assert_eq!(on(&program, name, 0), libc::SECCOMP_RET_ALLOW, "{name}");
        }
        for name in ["mount", "keyctl", "add_key", "kexec_load", "unshare", "bpf", "io_uring_setup", "setns"]
        {
            assert_eq!(on(&program, name, 0), EPERM, "{name}");
        }
        assert_eq!(on(&program, "clone", libc::CLONE_NEWUSER as u64), EPERM);
        assert_eq!(on(&program, "clone", libc::SIGCHLD as u64), libc::SECCOMP_RET_ALLOW);
        assert_eq!(on(&program, "clone3", 0), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        assert_eq!(on(&program, "personality", 8), libc::SECCOMP_RET_ALLOW);
        assert_eq!(on(&program, "personality", 9), EPERM);
        assert_eq!(on(&program, "socket", 40), EPERM);
        assert_eq!(on(&program, "socket", 2), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answer(&program, 0x4000_0003, 3, [0; 6]), libc::SECCOMP_RET_ALLOW, "i386 read");
        assert_eq!(answer(&program, 0x1234, 0, [0; 6]), EPERM, "an unknown architecture");
        assert_eq!(answer(&program, ARCHITECTURES[0].0, 0x4000_0000, [0; 6]), EPERM, "x32");
    }

    #[test]
    fn every_comparison_holds_at_its_edges() {
        let value = 0x1_0000_0005u64;
        let cases = [
            (Comparison::Equal, [false, true, false]),
            (Comparison::NotEqual, [true, false, true]),
            (Comparison::Less, [true, false, false]),
            (Comparison::LessOrEqual, [true, true, false]),
            (Comparison::Greater, [false, false, true]),
            (Comparison::GreaterOrEqual, [false, true, true]),
        ];
        for (comparison, expected) in cases {
            let conditions = vec![Condition { argument: 0, comparison, value }];
            let rules = vec![Rule { names: vec!["read".into()], action: Action::Allow, conditions }];
            let program = compile(&Filter { default: Action::Errno(1), rules });
            for (around, holds) in [value - 1, value, value + 1].into_iter().zip(expected) {
                let allowed = on(&program, "read", around) == libc::SECCOMP_RET_ALLOW;
                assert_eq!(allowed, holds, "{comparison:?} {around:#x}");
            }
            for (far, below) in [(5, true), (0x2_0000_0000, false)] {
                let allowed = on(&program, "read", far) == libc::SECCOMP_RET_ALLOW;
                assert_eq!(allowed, if below { expected[0] } else { expected[2] }, "{comparison:?} {far:#x}");
            }
        }
    }

    #[test]
    fn a_search_over_more_calls_than_a_branch_reaches_finds_each() {
        let odd = |number: &u32| number % 2 == 1;
        let named =
            |number: u32| syscalls::x86_64::Sysno::new(number as usize).map(|one| one.name().to_owned());
        let numbers: Vec<u32> = (0..460).filter(odd).filter(|number| named(*number).is_some()).collect();
        let rule = |number: &u32| Rule {
            names: named(*number).into_iter().collect(),
            action: Action::Allow,
            conditions: vec![Condition { argument: 1, comparison: Comparison::Less, value: 1 << 40 }],
        };
        let rules = numbers.iter().map(rule).collect();
        let program = compile(&Filter { default: Action::Errno(1), rules });
        assert!(program.len() > 4 * NEAR);
        for number in 0..460 {
            let allowed = answer(&program, ARCHITECTURES[0].0, number, [0; 6]) == libc::SECCOMP_RET_ALLOW;
            assert_eq!(allowed, numbers.contains(&number), "{number}");
        }
    }

    #[test]
    fn emulation_answers_before_the_profile() {
        let rules =
            [crate::spec::seccomp::root_emulation(), docker_default(CapabilitySet::default_set()).rules];
        let program = compile(&Filter { default: Action::Errno(1), rules: rules.concat() });
        assert_eq!(on(&program, "setgroups", 1), libc::SECCOMP_RET_ERRNO);
        assert_eq!(on(&program, "setuid", 100), libc::SECCOMP_RET_ERRNO);
        assert_eq!(on(&program, "setuid", 0), libc::SECCOMP_RET_ALLOW);
    }
}
