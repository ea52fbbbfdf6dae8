//! The bytes of a connection, whole and in pieces, against the tests' slow reader.

#![no_main]

#[path = "../../../tests/it/world/agreement.rs"]
mod agreement;
#[path = "../../../tests/it/world/reference.rs"]
mod reference;

use agreement::{agree, has, ours, theirs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte determines how the others are split.
    let Some((size, input)) = data.split_first() else { return };
    let theirs = theirs(input);
    agree(input, &ours(&[input]), &theirs);
    if has(input, "expect") {
        return;
    }
    let pieces: Vec<&[u8]> = input.chunks(usize::from(*size).max(1)).collect();
    agree(input, &ours(&pieces), &theirs);
});
