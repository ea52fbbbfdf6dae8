//! The date of responses.

use std::time::{Duration, SystemTime};

/// The number of bytes of a date in IMF-fixdate, the preferred format of RFC 9110 section 5.6.7.
pub(super) const DATE_BYTES: usize = 29;

/// The value of the `Date` field. It is formatted once per second rather than per response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Date(pub(super) [u8; DATE_BYTES]);

impl Date {
    /// Returns the date of a Unix time in seconds. Later times give the end of the year 9999.
    pub(super) fn from_unix(seconds: u64) -> Date {
        const END_OF_9999: u64 = 253_402_300_799;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(END_OF_9999));
        let text = httpdate::fmt_http_date(time);
        Date(text.as_bytes().try_into().expect("an IMF-fixdate has 29 bytes until the year 9999"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_an_imf_fixdate_through_the_year_9999() {
        assert_eq!(&Date::from_unix(784_111_777).0, b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&Date::from_unix(u64::MAX).0, b"Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
