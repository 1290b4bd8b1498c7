//! Every fuzzer: the target in `net/src/fuzz.rs` that has the program's name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kelp_net::fuzz::run(env!("CARGO_BIN_NAME"), bytes));
