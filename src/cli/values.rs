//! Parsers for the values of flags. Each error describes the expected value; clap puts the flag and the given value
//! before it.

use crate::load::decimal;
use crate::store::Location;
use crate::store::postgres::Target;
use crate::topology;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

/// A CPU list, as typed.
#[derive(Clone, Debug)]
pub(super) struct CpuList(pub(super) Vec<usize>);

impl CpuList {
    /// Returns the CPUs of a list that was typed, or all allowed CPUs.
    pub(super) fn choose(list: Option<&CpuList>) -> Result<Vec<usize>, topology::Error> {
        topology::choose(list.map(|list| list.0.as_slice()), &topology::allowed_cpus())
    }
}

pub(super) fn cpu_list(text: &str) -> Result<CpuList, topology::Error> {
    topology::parse_cpu_list(text).map(CpuList)
}

/// Parses the address to bind. Any name except `localhost` is refused, because it could resolve to several addresses, or to
/// another machine's.
pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse().ok().filter(IpAddr::is_ipv6),
        None => text.parse().ok(),
    };
    address.ok_or_else(|| {
        "expected an IPv4 or IPv6 address of this machine, or localhost, without a port".into()
    })
}

/// Parses the location of a store.
pub(super) fn location(text: &str) -> Result<Location, String> {
    match text.split_once("://") {
        None if text.is_empty() => Err("the name of the file is empty".into()),
        None => Ok(Location::File(text.into())),
        Some(_) if Target::is_url(text) => match Target::parse(text) {
            Ok(target) => Ok(Location::Postgres(Box::new(target))),
            Err(why) => Err(format!("the URL {why}")),
        },
        Some((scheme, _)) => Err(format!(
            "{scheme}:// is no kind of store: pass the name of a file, or postgres://user@host/database"
        )),
    }
}

/// Returns a parser of whole numbers in `range`: digits, digits with a suffix (`75k`, `1.5M`, `2G`), or scientific notation
/// (`1e6`). `range` must fit `T`.
pub(super) fn count<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        whole_number(text)
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                let low = *range.start();
                match *range.end() {
                    u64::MAX => format!(
                        "expected a whole number of at least {low}, such as 1000, 10k, or 1e6"
                    ),
                    high => format!("expected a whole number from {low} to {high}"),
                }
            })
    }
}

/// Reads a number without rounding: `2.5k` is 2,500, and `1.5` is invalid.
fn whole_number(text: &str) -> Option<u64> {
    decimal(text, 0)
}

/// Units of a size in bytes, each with its name.
const SIZE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Returns a parser of sizes in bytes: a whole number as [`count`] reads it, or a whole number of KiB, MiB, or GiB.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        let unit =
            SIZE_UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
        let (number, unit) = unit.unwrap_or((text, 1));
        let is_whole = unit == 1 || number.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_whole.then(|| whole_number(number)).flatten();
        let bytes = number.and_then(|number| number.checked_mul(unit));
        bytes
            .filter(|bytes| range.contains(bytes))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| {
                let (low, high) = (format_size(*range.start()), format_size(*range.end()));
                let limits = match *range.end() {
                    u64::MAX => format!("of at least {low}"),
                    _ => format!("from {low} to {high}"),
                };
                format!("expected a number of bytes {limits}, such as 16384 or 8MiB")
            })
    }
}

/// Returns a size in its largest unit that divides it.
pub(super) fn format_size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// The shortest timeout: timeouts are checked in milliseconds.
const DURATION_MIN: Duration = Duration::from_millis(1);
/// The longest timeout.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .ok()
        .filter(|duration| (DURATION_MIN..=DURATION_MAX).contains(duration))
        .ok_or_else(|| "expected a time from 1ms to 24h with its unit, such as 10s or 500ms".into())
}

/// Parses a point in time: RFC 3339, or seconds since 1970 as `date +%s` prints them.
pub(super) fn time(text: &str) -> Result<SystemTime, String> {
    let seconds = text.parse::<f64>().ok();
    let since_1970 = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    since_1970
        .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
        .or_else(|| humantime::parse_rfc3339(text).ok())
        .ok_or_else(|| {
            "expected a time such as 2026-11-24T12:00:00Z, or the seconds since 1970, as date +%s \
             prints them"
                .into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_exactly() {
        for (text, number) in [
            ("0", 0),
            ("1", 1),
            ("007", 7),
            ("1k", 1_000),
            ("100K", 100_000),
            ("2.5k", 2_500),
            ("1.25M", 1_250_000),
            ("2g", 2_000_000_000),
            ("1e6", 1_000_000),
            ("1E+6", 1_000_000),
            ("1.5e3", 1_500),
            ("1e0", 1),
            ("3.0", 3),
            ("0e99", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(whole_number(text), Some(number), "{text}");
        }
        for text in [
            "",
            "k",
            "e6",
            "1e",
            "1e-3",
            "-1",
            "+1",
            "1.5",
            "1.0005k",
            ".5k",
            "1.",
            "1.k",
            "1 000",
            "1e3k",
            "1kk",
            "1e20",
            "18446744073709551616",
            "1e256",
            "0x10",
            "NaN",
            "inf",
            "١",
        ] {
            assert_eq!(whole_number(text), None, "{text}");
        }
    }

    #[test]
    fn a_count_stays_in_its_range() {
        let pipeline = count::<usize>(1..=1024);
        assert_eq!((pipeline("1"), pipeline("1024")), (Ok(1), Ok(1024)));
        for text in ["0", "1025", "1.5", "x"] {
            let error = pipeline(text).unwrap_err();
            assert!(error.contains("a whole number from 1 to 1024"), "{text}: {error}");
        }
        assert!(count::<u64>(1..=u64::MAX)("0").unwrap_err().contains("of at least 1, such"));
        assert_eq!(count::<u16>(0..=65_535)("65535"), Ok(u16::MAX));
        assert!(count::<u16>(0..=65_535)("99999").unwrap_err().contains("from 0 to 65535"));
    }

    #[test]
    fn sizes_are_bytes_or_binary_units_both_ways() {
        let any = size(0..=u64::MAX);
        for (text, bytes, shown) in [
            ("0", 0, "0"),
            ("1", 1, "1"),
            ("1023", 1023, "1023"),
            ("1024", 1 << 10, "1KiB"),
            ("16KiB", 16 << 10, "16KiB"),
            ("1025KiB", 1025 << 10, "1025KiB"),
            ("1024KiB", 1 << 20, "1MiB"),
            ("8388608", 8 << 20, "8MiB"),
            ("2k", 2000, "2000"),
            ("3GiB", 3 << 30, "3GiB"),
        ] {
            assert_eq!(any(text), Ok(bytes), "{text}");
            assert_eq!(format_size(bytes as u64), shown);
            assert_eq!(any(shown), Ok(bytes), "{shown}");
        }
        let body = size(1..=u64::from(u32::MAX));
        assert_eq!((body("1"), body("4294967295")), (Ok(1), Ok(u32::MAX as usize)));
        for text in [
            "0",
            "4GiB",
            "17179869184GiB",
            "",
            "KiB",
            "-1KiB",
            "+1KiB",
            "1.5MiB",
            "1kib",
            "1 KiB",
            "8MB",
        ] {
            let error = body(text).unwrap_err();
            assert!(
                error.contains("from 1 to 4294967295, such as 16384 or 8MiB"),
                "{text}: {error}"
            );
        }
        assert!(size(1 << 20..=u64::MAX)("1KiB").unwrap_err().contains("of at least 1MiB,"));
    }

    #[test]
    fn hosts_are_addresses_or_localhost() {
        for (text, address) in
            [("localhost", "127.0.0.1"), ("[::1]", "::1"), ("::", "::"), ("192.0.2.7", "192.0.2.7")]
        {
            assert_eq!(host(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in ["", "example.org", "[127.0.0.1]", "[::1", "127.0.0.1:80", "[::1]:80"] {
            assert!(host(text).unwrap_err().contains("or localhost"), "{text}");
        }
    }

    #[test]
    fn a_time_is_written_in_full_or_as_seconds_since_1970() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_521_600);
        assert_eq!(time("2026-11-24T12:00:00Z"), Ok(noon));
        assert_eq!(time("1795521600"), Ok(noon));
        assert_eq!(time("1795521600.5"), Ok(noon + Duration::from_millis(500)));
        for text in ["", "noon", "-1", "NaN", "1e300", "2026-11-24", "2026-11-24T12:00:00"] {
            assert!(time(text).unwrap_err().contains("date +%s"), "{text}");
        }
    }

    #[test]
    fn timeouts_are_from_a_millisecond_to_a_day() {
        assert_eq!(duration("1ms"), Ok(DURATION_MIN));
        assert_eq!(duration("24h"), Ok(DURATION_MAX));
        for text in ["999us", "1us", "0s", "24h 1ms", "-1s", "10", "", "soon", "99999999999999y"] {
            assert!(duration(text).unwrap_err().contains("from 1ms to 24h"), "{text}");
        }
    }
}
