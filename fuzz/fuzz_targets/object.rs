#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nauplius_fuzz::object(data));
