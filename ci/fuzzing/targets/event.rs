//! The event decoder against serde_json's own values.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtally::event::{USER_ID_BYTES_MAX, decode};
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let value = serde_json::from_slice::<Value>(body);
    let event = decode(body);
    let expected = value.as_ref().ok().and_then(|value| {
        let user = value.as_object()?.get("userId")?.as_str()?;
        let number = value.get("value")?.as_f64().filter(|number| number.is_finite())?;
        (1..=USER_ID_BYTES_MAX).contains(&user.len()).then_some((user, number))
    });
    match (&event, expected) {
        (Ok(event), Some((user, number))) => {
            assert_eq!((&*event.user, event.value.to_bits()), (user, number.to_bits()));
        }
        (Ok(event), None) => panic!("accepted: {event:?}"),
        // A value cannot tell whether a member was there twice.
        (Err(refusal), Some(_)) => {
            assert_eq!(*refusal, ringtally::event::Refusal::Repeated);
        }
        (Err(_), None) => {}
    }
});
