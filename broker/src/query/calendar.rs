//! The parts of a date in UTC, from seconds since 1970 (proleptic Gregorian calendar).

/// The parts, as numbers that PromQL gives out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Moment {
    /// 0 to 59.
    pub minute: f64,
    /// 0 to 23.
    pub hour: f64,
    /// 0 (Sunday) to 6.
    pub day_of_week: f64,
    /// 1 to 31.
    pub day_of_month: f64,
    /// 1 to 366.
    pub day_of_year: f64,
    /// 28 to 31.
    pub days_in_month: f64,
    /// 1 to 12.
    pub month: f64,
    /// With its century.
    pub year: f64,
}

/// A civil date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Date {
    /// With its century.
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
}

impl Moment {
    /// Of a time in seconds; fractions are cut off, what no calendar reaches is taken as 0.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "the parts are small; seconds saturate far outside any calendar"
    )]
    pub(crate) fn at(seconds: f64) -> Self {
        const FAR: i64 = 1 << 50;
        let seconds = (seconds as i64).clamp(-FAR, FAR);
        let days = seconds.div_euclid(DAY_S);
        let of_day = seconds.rem_euclid(DAY_S);
        let date = Date::from_days(days);
        let first = Date { day: 1, ..date };
        let next = match date.month {
            12 => Date { year: date.year + 1, month: 1, day: 1 },
            month => Date { month: month + 1, ..first },
        };
        let year_start = Date { year: date.year, month: 1, day: 1 };
        Self {
            minute: (of_day / 60 % 60) as f64,
            hour: (of_day / 3600) as f64,
            day_of_week: (days + 4).rem_euclid(7) as f64,
            day_of_month: date.day as f64,
            day_of_year: (days - year_start.days() + 1) as f64,
            days_in_month: (next.days() - first.days()) as f64,
            month: date.month as f64,
            year: date.year as f64,
        }
    }
}

impl Date {
    /// Days since 1970-01-01. Years are counted from March, so that the leap day comes last.
    #[must_use]
    pub fn days(self) -> i64 {
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let month = (self.month + 9) % 12;
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        year * 365 + leap_days + (month * 153 + 2) / 5 + self.day - 1 - MARCH_0000
    }

    /// The reverse of [`Date::days`].
    #[must_use]
    pub fn from_days(days: i64) -> Self {
        let days = days + MARCH_0000;
        let era = days.div_euclid(ERA_DAYS);
        let of_era = days.rem_euclid(ERA_DAYS);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self { year: era * 400 + year_of_era + i64::from(month <= 2), month, day }
    }
}

const DAY_S: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const MARCH_0000: i64 = 719_468;
/// Days of 400 years.
const ERA_DAYS: i64 = 146_097;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_there_and_back() {
        let mut previous = Date::from_days(-800_000);
        for days in -799_999..800_000 {
            let date = Date::from_days(days);
            assert_eq!(date.days(), days);
            let next_day = date.day == previous.day + 1 && date.month == previous.month;
            assert!(next_day || date.day == 1, "{date:?}");
            previous = date;
        }
        assert_eq!(Date::from_days(0), Date { year: 1970, month: 1, day: 1 });
        assert_eq!(Date::from_days(11_016), Date { year: 2000, month: 2, day: 29 });
    }

    #[test]
    fn parts_of_a_leap_day() {
        let moment = Moment::at(1_709_209_859.9);
        assert_eq!((moment.year, moment.month, moment.day_of_month), (2024.0, 2.0, 29.0));
        assert_eq!((moment.hour, moment.minute, moment.day_of_week), (12.0, 30.0, 4.0));
        assert_eq!((moment.day_of_year, moment.days_in_month), (60.0, 29.0));
    }
}
