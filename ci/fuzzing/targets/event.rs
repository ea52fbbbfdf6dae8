//! The event decoder against serde_json's own values, with numbers read by the standard library.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtally::event::{USER_ID_BYTES_MAX, decode};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;

fuzz_target!(|body: &[u8]| {
    let value = serde_json::from_slice::<Value>(body);
    let event = decode(body);
    let expected = value.as_ref().ok().and_then(|value| {
        let user = value.as_object()?.get("userId")?.as_str()?;
        value.get("value")?.as_f64()?;
        // A repeated member has its last value in both.
        let tokens: HashMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
        let number: f64 = tokens.get("value")?.get().parse().ok()?;
        let number = Some(number).filter(|number| number.is_finite())?;
        (1..=USER_ID_BYTES_MAX).contains(&user.len()).then_some((user, number))
    });
    match (&event, expected) {
        (Ok(event), Some((user, number))) => {
            assert_eq!((&*event.user, event.value.to_bits()), (user.as_bytes(), number.to_bits()));
        }
        (Ok(event), None) => panic!("accepted: {event:?}"),
        // A `Value` does not show whether a member was repeated.
        (Err(refusal), Some(_)) => {
            assert_eq!(*refusal, ringtally::event::Refusal::Repeated);
        }
        (Err(_), None) => {}
    }
});
