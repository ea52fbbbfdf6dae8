//! The event decoder against itself: an ignored member in front makes any body noncanonical. It leads to the general parser,
//! and must change neither the verdict nor a bit of the value. A body that is wrong in several ways may be refused for any of
//! them, because the general parser reads longer bodies in another order.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtally::event::decode;

fuzz_target!(|body: &[u8]| {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let open = body.iter().take_while(|byte| is_space(byte)).count();
    let Some((b'{', members)) = body.get(open..).and_then(<[u8]>::split_first) else { return };
    // In an empty object, the comma would be one too many.
    if members.iter().find(|byte| !is_space(byte)).is_none_or(|byte| *byte == b'}') {
        return;
    }
    let general = [&body[..=open], b"\"\":0,", members].concat();
    let bits = |body| decode(body).ok().map(|event| (event.user.into_owned(), event.value.to_bits()));
    assert_eq!(bits(body), bits(&general));
});
