#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sos::fuzzing::run("journal", data));
