//! Bytes changed at random, the same way every time: what the entries are fed where libFuzzer is not.

/// Words that decoders take specially.
const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "9223372036854775808",
    "1.5",
    "\\u0000",
    "\\ud800",
    "é",
    "\"$patch\":\"delete\"",
    "\"$patch\":\"replace\"",
    "\"$setElementOrder/containers\":[]",
    "\"$retainKeys\":[]",
    "\"name\":\"\"",
    "\"metadata\":{}",
    "&a ",
    "*a",
    "<<: ",
    "- ",
    "\n",
    "|\n",
    "!!binary ",
    "/-",
    "~1",
    "~",
    "..",
    "(",
    ")",
    "&&",
    "?",
    ".map(x, x)",
    "'",
    " in ",
    "!=",
    "Ki",
    "m",
    "E",
    "T",
    "Z",
    "+25:00",
    "\0",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":{\"a\":",
];
/// Bytes an input may come to.
const MAX_INPUT: usize = 16 << 10;
/// Changes made to one input at most.
const MAX_CHANGES: u64 = 6;

/// A xorshift generator.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides.max(1) as u64).unwrap_or_default()
    }

    /// A seed with some of its bytes flipped, dropped, repeated, moved or taken from another seed.
    pub fn mutated(&mut self, seeds: &[&str]) -> Vec<u8> {
        let mut data = seeds[self.roll(seeds.len())].as_bytes().to_vec();
        for _ in 0..=self.roll(MAX_CHANGES as usize) {
            self.change(&mut data, seeds);
        }
        data.truncate(MAX_INPUT);
        data
    }

    fn change(&mut self, data: &mut Vec<u8>, seeds: &[&str]) {
        let at = self.roll(data.len() + 1);
        let span = |dice: &mut Self, len: usize| {
            let from = dice.roll(len + 1);
            from..(from + 1 + dice.roll(24)).min(len).max(from)
        };
        match self.roll(8) {
            0 if at < data.len() => data[at] ^= 1 << self.roll(8),
            1 if at < data.len() => data[at] = u8::try_from(self.roll(256)).unwrap_or_default(),
            2 => {
                let range = span(self, data.len());
                data.drain(range);
            }
            3 => {
                let range = span(self, data.len());
                let copy = data[range].to_vec();
                data.splice(at..at, copy);
            }
            4 => {
                let other = seeds[self.roll(seeds.len())].as_bytes();
                let range = span(self, other.len());
                data.splice(at..at, other[range].iter().copied());
            }
            5 => data.truncate(at),
            _ => {
                let token = TOKENS[self.roll(TOKENS.len())];
                data.splice(at..at, token.bytes());
            }
        }
    }
}
