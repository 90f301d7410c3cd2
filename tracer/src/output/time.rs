//! Moments and durations as text.

use std::fmt::Write;

use clap::ValueEnum;
use jiff::{Timestamp, tz::TimeZone};

use crate::world::World;

/// How a line says when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum TimeFormat {
    /// `21:03:04`, local time.
    Seconds,
    /// `21:03:04.123456`, local time.
    #[default]
    Microseconds,
    /// `1767301384.123456`, since 1970.
    Epoch,
    /// `0.123456`, since the start.
    Relative,
    /// Not at all.
    None,
}

/// Writes moments of a stream; remembers the last second, whose text hardly ever changes.
#[derive(Debug)]
pub struct Clock {
    zone: TimeZone,
    second: i64,
    text: String,
}

impl Default for Clock {
    fn default() -> Self {
        Self { zone: TimeZone::system(), second: i64::MIN, text: String::new() }
    }
}

impl Clock {
    /// Appends the moment `ts_ns` of the stream, without a space behind it.
    pub fn write(&mut self, line: &mut String, format: TimeFormat, world: &World, ts_ns: u64) {
        let realtime_ns = world.realtime_ns(ts_ns);
        let (second, micros) = ((realtime_ns / 1_000_000_000) as i64, realtime_ns / 1_000 % 1_000_000);
        // Writing to a String cannot fail.
        let _ = match format {
            TimeFormat::None => Ok(()),
            TimeFormat::Epoch => write!(line, "{second}.{micros:06}"),
            TimeFormat::Relative => {
                let since_ns = ts_ns.saturating_sub(world.start_ns());
                write!(line, "{}.{:06}", since_ns / 1_000_000_000, since_ns / 1_000 % 1_000_000)
            }
            TimeFormat::Seconds | TimeFormat::Microseconds => {
                if second != self.second {
                    self.second = second;
                    self.text.clear();
                    let time = Timestamp::from_second(second).unwrap_or_default().to_zoned(self.zone.clone());
                    let _ = write!(self.text, "{}", time.strftime("%H:%M:%S"));
                }
                line.push_str(&self.text);
                if format == TimeFormat::Microseconds { write!(line, ".{micros:06}") } else { Ok(()) }
            }
        };
    }
}

/// Writes moments in RFC 3339, UTC, ns; remembers the last second, too.
#[derive(Debug, Default)]
pub struct Rfc3339 {
    second: Option<u64>,
    text: String,
}

impl Rfc3339 {
    /// CLOCK_REALTIME as text.
    pub fn text(&mut self, realtime_ns: u64) -> String {
        let second = realtime_ns / 1_000_000_000;
        if self.second != Some(second) {
            self.second = Some(second);
            let time = Timestamp::from_second(second as i64).unwrap_or_default();
            self.text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        format!("{}.{:09}Z", self.text, realtime_ns % 1_000_000_000)
    }
}

/// A duration for people: `1.2 ms`. Three digits at least, in the unit that suits.
pub fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        let cases = [
            (7, "7 ns"),
            (1_234, "1.23 us"),
            (12_345, "12.3 us"),
            (123_456, "123 us"),
            (9_999_000, "10.0 ms"),
            (3_200_000_000, "3.20 s"),
            (3_600_000_000_000, "3600 s"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn rfc3339_is_utc() {
        let mut clock = Rfc3339::default();
        assert_eq!(clock.text(1_767_301_384_123_456_789), "2026-01-01T21:03:04.123456789Z");
        assert_eq!(clock.text(1_767_301_385_000_000_001), "2026-01-01T21:03:05.000000001Z");
    }
}
