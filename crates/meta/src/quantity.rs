//! Quantities: amounts of resources as `k8s.io/apimachinery/pkg/api/resource` reads, computes and writes them.
//!
//! A [`Quantity`] is exact: a decimal mantissa, a power of ten and the family of suffixes it was written with. Two texts
//! that Go finds equal are equal here and print the same. Text already in (what Go takes for) canonical form is kept as
//! written. Bounds: a mantissa holds 38 digits, where Go's is unlimited; longer texts are refused, larger sums saturate.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The family of suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi` (12 · 2²⁰)
    BinarySi,
    /// `12M` (12 · 10⁶)
    DecimalSi,
}

/// Why a text is not a quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact amount: `mantissa · 10^scale`.
#[derive(Clone, Debug)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    format: Format,
    /// The text it was parsed from, when that counts as canonical.
    text: Option<Box<str>>,
}

/// The smallest scale kept: finer amounts are rounded away from zero.
const NANO: i32 = -9;
const MILLI: i32 = -3;
/// Digits an `i128` surely holds.
const MAX_DIGITS: usize = 38;
/// Digits an `i64` surely holds; Go reuses the text of shorter numbers only.
const MAX_I64_DIGITS: i32 = 18;
/// Binary quantities are capped here.
const MAX_BINARY: i128 = i64::MAX as i128;

const DECIMAL: &[(&str, i32)] =
    &[("", 0), ("n", -9), ("u", -6), ("m", -3), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: &[(&str, u32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

enum Suffix {
    Ten(i32, Format),
    Two(u32),
}

fn suffix(text: &str) -> Result<Suffix, QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == text) {
        return Ok(Suffix::Ten(*exponent, Format::DecimalSi));
    }
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == text) {
        return Ok(Suffix::Two(*bits));
    }
    let exponent = text.strip_prefix(['e', 'E']).filter(|t| !t.is_empty()).ok_or(QuantityError::Suffix)?;
    let exponent: i64 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    // Go truncates to 32 bits; a quarter of that keeps later sums of scales in range.
    let exponent = i32::try_from(exponent).ok().filter(|e| e.abs() < i32::MAX / 4).ok_or(QuantityError::Suffix)?;
    Ok(Suffix::Ten(exponent, Format::DecimalExponent))
}

fn power(base: i128, exponent: u32) -> Option<i128> {
    base.checked_pow(exponent)
}

/// `value / 10^digits`, away from zero.
fn divide_up(value: i128, digits: u32) -> i128 {
    let Some(divisor) = power(10, digits) else { return value.signum() };
    let quotient = value / divisor;
    if value % divisor == 0 { quotient } else { quotient + value.signum() }
}

fn strip_tens(mut mantissa: i128, mut scale: i32) -> (i128, i32) {
    while mantissa != 0 && mantissa % 10 == 0 {
        mantissa /= 10;
        scale += 1;
    }
    (mantissa, scale)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(QuantityError::Form),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let number = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, rest) = unsigned.split_at(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        // What follows must be letters of suffixes, then perhaps a sign and digits.
        let letters = rest.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
        let tail = &rest[letters..];
        let tail = tail.strip_prefix(['+', '-']).unwrap_or(tail);
        if fraction.contains('.') || !tail.bytes().all(|b| b.is_ascii_digit()) {
            return Err(QuantityError::Form);
        }
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        let suffix = suffix(rest)?;
        let digits = match fraction {
            "" => Cow::Borrowed(whole),
            _ => Cow::Owned(format!("{whole}{fraction}")),
        };
        let significant = digits.trim_start_matches('0').trim_end_matches('0').len();
        if significant > MAX_DIGITS {
            return Err(QuantityError::Number);
        }
        let trailing = digits.len() - digits.trim_end_matches('0').len();
        let mut mantissa: i128 = match digits.trim_end_matches('0') {
            "" => 0,
            digits => digits.parse().map_err(|_| QuantityError::Number)?,
        };
        let mut scale = trailing as i32 - fraction.len() as i32;
        let places = (whole.len() + fraction.len()) as i32;
        let (mut format, mut keep) = (Format::BinarySi, false);
        match suffix {
            Suffix::Ten(exponent, of) => {
                format = of;
                scale += exponent;
                let written = exponent - fraction.len() as i32;
                keep = places <= MAX_I64_DIGITS
                    && written >= NANO
                    && written % 3 == 0
                    && !digits.ends_with("000")
                    && !digits.starts_with('0');
            }
            Suffix::Two(bits) => {
                if fraction.is_empty() {
                    let precision = 15 - whole.len() as i32 - (bits as f32 * 3.0 / 10.0) as i32 - 1;
                    keep = precision >= 0
                        && digits.parse::<i64>().is_ok_and(|v| v & 7 != 0 && v.checked_mul(1 << bits).is_some());
                }
                // Too large for the mantissa is far above the cap.
                mantissa = power(10, scale.max(0) as u32)
                    .and_then(|tens| mantissa.checked_mul(tens))
                    .and_then(|m| m.checked_mul(1 << bits))
                    .unwrap_or(i128::MAX);
                scale = scale.min(0);
            }
        }
        if scale < NANO {
            mantissa = divide_up(mantissa, (NANO - scale) as u32);
            scale = NANO;
        }
        if matches!(suffix, Suffix::Two(_)) {
            let amount = Self { mantissa, scale, format, text: None };
            if amount.cmp(&Self::new(i64::MAX, format)) == Ordering::Greater {
                (mantissa, scale) = (MAX_BINARY, 0);
            } else if mantissa > 0 && amount.cmp(&Self::new(1, format)) == Ordering::Less {
                format = Format::DecimalSi;
            }
        }
        if text == "0" {
            return Ok(Self { text: Some("0".into()), ..Self::new(0, Format::DecimalSi) });
        }
        let mantissa = if negative { -mantissa } else { mantissa };
        Ok(Self { mantissa, scale, format, text: keep.then(|| text.into()) })
    }
}

impl Quantity {
    /// A whole amount.
    pub fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), scale: 0, format, text: None }
    }

    /// A whole amount with decimal suffixes.
    pub fn from_int(value: i64) -> Self {
        Self::new(value, Format::DecimalSi)
    }

    /// Thousandths.
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), scale: MILLI, format, text: None }
    }

    pub fn zero() -> Self {
        Self::from_int(0)
    }

    /// A JSON value: a string, or a number written out as one.
    pub fn from_value(value: &serde_json::Value) -> Result<Self, QuantityError> {
        match value {
            serde_json::Value::String(text) => text.trim().parse(),
            serde_json::Value::Number(number) => number.to_string().parse(),
            serde_json::Value::Null => Ok(Self::zero()),
            _ => Err(QuantityError::Form),
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The amount in units of `10^scale`, rounded away from zero and capped to 64 bits.
    fn scaled(&self, scale: i32) -> i64 {
        let value = if self.scale >= scale {
            power(10, (self.scale - scale) as u32).and_then(|tens| self.mantissa.checked_mul(tens)).unwrap_or(
                if self.mantissa < 0 {
                    i128::MIN
                } else if self.mantissa > 0 {
                    i128::MAX
                } else {
                    0
                },
            )
        } else {
            divide_up(self.mantissa, (scale - self.scale) as u32)
        };
        value.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// The amount as a whole number, rounded away from zero.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        self.scaled(MILLI)
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        let (mantissa, scale) = strip_tens(self.mantissa, self.scale);
        mantissa == 0 || scale >= 0
    }

    pub fn as_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// Both mantissas at the smaller scale; saturating.
    fn aligned(&self, other: &Self) -> (i128, i128, i32) {
        let scale = self.scale.min(other.scale);
        let at = |q: &Self| {
            power(10, (q.scale - scale) as u32)
                .and_then(|tens| q.mantissa.checked_mul(tens))
                .unwrap_or(if q.mantissa == 0 { 0 } else { q.mantissa.signum() * i128::MAX })
        };
        (at(self), at(other), scale)
    }

    fn combine(&self, other: &Self, with: fn(i128, i128) -> i128) -> Self {
        let (a, b, scale) = self.aligned(other);
        let format = if self.is_zero() { other.format } else { self.format };
        Self { mantissa: with(a, b), scale, format, text: None }
    }

    /// The sum, in the format of the first unless that is zero.
    pub fn add(&self, other: &Self) -> Self {
        self.combine(other, i128::saturating_add)
    }

    /// The difference, in the format of the first unless that is zero.
    pub fn sub(&self, other: &Self) -> Self {
        self.combine(other, i128::saturating_sub)
    }

    pub fn mul(&self, factor: i64) -> Self {
        Self { mantissa: self.mantissa.saturating_mul(factor.into()), text: None, ..self.clone() }
    }

    pub fn neg(&self) -> Self {
        Self { mantissa: -self.mantissa, text: None, ..self.clone() }
    }

    /// `mantissa` and power of 1024 when the binary form loses nothing and is at least 1024.
    fn binary_form(&self) -> Option<(i128, usize)> {
        let (mantissa, scale) = strip_tens(self.mantissa, self.scale);
        let mut whole = mantissa.checked_mul(power(10, u32::try_from(scale).ok()?)?)?;
        if whole.abs() < 1024 {
            return None;
        }
        let mut exponent = 0;
        while whole % 1024 == 0 {
            whole /= 1024;
            exponent += 1;
        }
        Some((whole, exponent))
    }
}

/// Canonical form: no fraction, the largest suffix that needs none, and the suffix family it was given.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi
            && let Some((mantissa, exponent)) = self.binary_form()
        {
            let suffix = exponent.checked_sub(1).and_then(|e| BINARY.get(e)).map_or("", |(s, _)| s);
            return write!(f, "{mantissa}{suffix}");
        }
        let (mantissa, scale) = strip_tens(self.mantissa, self.scale);
        let shift = scale.rem_euclid(3);
        let zeros = &"00"[..shift as usize];
        let exponent = scale - shift;
        match self.format {
            Format::DecimalExponent if exponent != 0 => write!(f, "{mantissa}{zeros}e{exponent}"),
            Format::DecimalExponent => write!(f, "{mantissa}{zeros}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
                write!(f, "{mantissa}{zeros}{suffix}")
            }
        }
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let (sign, other_sign) = (self.mantissa.signum(), other.mantissa.signum());
        if sign != other_sign || sign == 0 {
            return sign.cmp(&other_sign);
        }
        let magnitude = |q: &Self| q.scale + q.mantissa.unsigned_abs().ilog10() as i32;
        match magnitude(self).cmp(&magnitude(other)) {
            Ordering::Equal => {
                let (a, b, _) = self.aligned(other);
                a.cmp(&b)
            }
            larger if sign > 0 => larger,
            larger => larger.reverse(),
        }
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Equal amounts, however written.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_text_is_gos() {
        for (given, expect) in [
            ("0", "0"),
            ("00", "0"),
            ("0Ki", "0"),
            ("0.0", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1024Mi", "1Gi"),
            ("1000Mi", "1000Mi"),
            ("1Ki", "1Ki"),
            ("1000", "1k"),
            ("1000k", "1M"),
            ("1001", "1001"),
            ("10", "10"),
            ("12e6", "12e6"),
            ("12000e3", "12e6"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("10E", "10E"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("1.1n", "2n"),
            ("-0.1n", "-1n"),
            ("-1.5", "-1500m"),
            ("100u", "100u"),
            ("1500u", "1500u"),
            ("0.0015", "1500u"),
            ("1100Ki", "1100Ki"),
            ("9Ei", "9223372036854775807"),
            ("9223372036854775808Ki", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("1.5Ki", "1536"),
            ("0.0001Ki", "102400u"),
            ("2048", "2048"),
            ("2048Ki", "2Mi"),
            ("1.G", "1.G"),
            (".5", "500m"),
            ("+5", "+5"),
            ("05", "05"),
            ("1.500", "1.500"),
            ("1.50", "1500m"),
            ("3e10", "30e9"),
            ("1e1", "10"),
            (".", "0"),
            ("Mi", "0"),
            ("-", "0"),
            ("100000000000000000000", "100E"),
            ("1e-3", "1e-3"),
            ("5e-10", "1e-9"),
            ("12345678901234567890", "12345678901234567890"),
        ] {
            assert_eq!(q(given).to_string(), expect, "{given}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        use QuantityError::*;
        for (given, expect) in [
            ("", Form),
            ("1.1.M", Form),
            ("1+1.0M", Form),
            ("0.1mi", Suffix),
            ("0.1am", Form),
            ("aoeu", Form),
            (".5i", Suffix),
            ("1i", Suffix),
            ("1Kii", Suffix),
            ("1ki", Suffix),
            ("1mm", Suffix),
            ("-3.01i", Suffix),
            ("-3.01e-", Suffix),
            ("1e", Suffix),
            (" 1", Form),
            ("1 ", Form),
            ("1 Mi", Form),
            ("1e99999999999", Suffix),
        ] {
            assert_eq!(given.parse::<Quantity>().err(), Some(expect), "{given}");
        }
    }

    #[test]
    fn amounts_are_compared_and_computed_exactly() {
        assert_eq!(q("1Gi"), q("1073741824"));
        assert_eq!(q("1"), q("1000m"));
        assert!(q("1e40") > q("1E") && q("-1e40") < q("-1E") && q("999m") < q("1") && q("1e-9") > q("0"));
        for (a, b, sum, difference) in [
            ("1", "100m", "1100m", "900m"),
            ("1Gi", "512Mi", "1536Mi", "512Mi"),
            ("0", "1Gi", "1Gi", "-1Gi"),
            ("1Ki", "1", "1025", "1023"),
        ] {
            assert_eq!(q(a).add(&q(b)).to_string(), sum);
            assert_eq!(q(a).sub(&q(b)).to_string(), difference);
        }
        assert_eq!(q("250m").mul(3).to_string(), "750m");
        assert_eq!(
            (q("1.1").value(), q("-1.1").value(), q("1.1").milli_value(), q("1e40").value()),
            (2, -2, 1100, i64::MAX)
        );
        assert_eq!(Quantity::from_milli(1500, Format::DecimalSi).to_string(), "1500m");
        assert!(q("1.0").is_whole() && !q("100m").is_whole());
    }
}
